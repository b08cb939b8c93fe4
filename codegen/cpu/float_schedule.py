"""The default schedule of a float function: producers inlined, inner loops vectorised, reductions in register tiles.

It takes TVM's legalised function of one operation (a few blocks at most) and needs to know nothing of the operation.
It aims at sane code for fallbacks, within a small factor of the machine, not at the last percent.
"""

from __future__ import annotations

import math
from typing import Any

from tvm import s_tir, tirx
from tvm.s_tir.schedule import ScheduleError
from tvm.tirx.analysis import undefined_vars

ACCUMULATORS = 12
"""Vector registers that hold sums: out of 16 on AVX2, the rest are operands."""

MAX_UNROLL = 8

Schedule = Any
Block = Any
Loop = Any


def divisor(extent: int, limit: int) -> int:
    """The largest divisor of `extent` that does not pass `limit`."""
    return max(d for d in range(1, max(min(extent, limit), 1) + 1) if extent % d == 0)


def vector_width(extent: int, lanes: int) -> int:
    """Elements of a vector that divide `extent`: a power of two unless that would waste more than half of it."""
    best = divisor(extent, lanes)
    power = math.gcd(extent, 1 << (best.bit_length() - 1))
    return power if 2 * power >= best else best


def schedule_default(function: Any, lanes: int, pack_weight: bool = False, channel_group: int = 0) -> Any:
    """The scheduled function. lanes: float32 elements of a vector register.

    pack_weight: the second operand of the reduction is a weight with output channels first; it is transposed
    once, so that channels are contiguous. channel_group: output channels of a group, for a grouped convolution.
    """
    if function.body.block.name_hint != "root":
        return function  # one opaque loop nest (a scan or a scatter)
    schedule = s_tir.Schedule(function)
    for block in schedule.get_child_blocks(schedule.get_sblock("root")):
        _inline(schedule, block)
    for block in schedule.get_child_blocks(schedule.get_sblock("root")):
        kinds = _iteration_kinds(schedule, block)
        if kinds is None:
            continue
        if "R" in kinds:
            _reduction(schedule, block, kinds, lanes, pack_weight, channel_group)
        else:
            _elementwise(schedule, block, lanes)
    return schedule.mod["main"]


def _iteration_kinds(schedule: Schedule, block: Block) -> str | None:
    """One letter a loop, S (spatial) or R (reduction); None for a block that is not a plain nest of those."""
    variables = list(schedule.get(block).iter_vars)
    letters = {tirx.IterVar.DataPar: "S", tirx.IterVar.CommReduce: "R"}
    kinds = "".join(letters.get(v.iter_type, "?") for v in variables)
    if "?" in kinds or not kinds or len(schedule.get_loops(block)) != len(kinds):
        return None
    return kinds


def _extents(schedule: Schedule, loops: list[Loop]) -> list[int]:
    return [int(schedule.get(loop).extent) for loop in loops]


def _inline(schedule: Schedule, block: Block) -> None:
    """Compute a block inside its only consumer, unless that would compute an element more than once."""
    kinds = _iteration_kinds(schedule, block)
    consumers = schedule.get_consumers(block)
    if kinds is None or "R" in kinds or len(consumers) != 1 or _iteration_kinds(schedule, consumers[0]) is None:
        return
    made = math.prod(_extents(schedule, schedule.get_loops(block)))
    if math.prod(_extents(schedule, schedule.get_loops(consumers[0]))) > made:
        return
    try:
        schedule.compute_inline(block)
    except ScheduleError:  # not every block of one store can be inlined; it then stays a loop of its own
        return


def _elementwise(schedule: Schedule, block: Block, lanes: int) -> None:
    loops = schedule.get_loops(block)
    width = vector_width(_extents(schedule, loops[-1:])[0], 2 * lanes)
    if width > 1:
        schedule.vectorize(schedule.split(loops[-1], [None, width])[1])


def _depends(expression: Any, variable: Any) -> bool:
    return any(v.same_as(variable) for v in undefined_vars(expression))


def _reads_rows(statement: Any, last: Any) -> bool:
    """`last`, the last output axis, is the contiguous axis of everything read that depends on it."""
    regions = [region.region for region in statement.reads if region.region]
    contiguous = [_depends(region[-1].min, last) for region in regions]
    elsewhere = [any(_depends(r.min, last) for r in region[:-1]) for region in regions]
    return any(contiguous) and not any(elsewhere)


def _reduction(
    schedule: Schedule, block: Block, kinds: str, lanes: int, pack_weight: bool, channel_group: int
) -> None:  # fmt: skip
    """Registers hold a tile of the output over the whole reduction.

    Where the last output axis is contiguous in what is read, the tile is rows by vectors of it. Otherwise (a
    reduction along the contiguous axis) it is several independent rows, which hides the latency of their sums
    and adds each in the order written.
    """
    statement = schedule.get(block)
    loops = schedule.get_loops(block)
    spatial = [loop for loop, kind in zip(loops, kinds, strict=True) if kind == "S"]
    reduced = [loop for loop, kind in zip(loops, kinds, strict=True) if kind == "R"]
    if len(statement.writes) != 1 or not spatial:
        return
    last = [v.var for v, kind in zip(statement.iter_vars, kinds, strict=True) if kind == "S"][-1]
    extents = _extents(schedule, spatial)
    width = 1
    if pack_weight or _reads_rows(statement, last):
        channels = channel_group or extents[-1]
        width = vector_width(channels, lanes)
        rows = divisor(extents[-2], 7) if len(spatial) > 1 else 1
        vectors = divisor(channels // width, max(ACCUMULATORS // rows, 1))
        if pack_weight:
            _pack_weight(schedule, block, width * vectors)
        outer, *tile = schedule.split(spatial[-1], [None, vectors, width])
        at = outer
        if len(spatial) > 1:
            at, row = schedule.split(spatial[-2], [None, rows])
            schedule.reorder(outer, *spatial[:-2], at)
            tile.insert(0, row)
    else:
        at, *tile = schedule.split(spatial[-1], [None, divisor(extents[-1], MAX_UNROLL)])
    schedule.reorder(at, *reduced, *tile)
    result = schedule.cache_write(block, 0, "local")
    schedule.reverse_compute_at(result, at)
    copy = list(schedule.get_loops(result)[len(spatial) :])  # what is inside `at`: the tile, its vectors in one loop
    if width > 1:
        copy[-1:] = schedule.split(copy[-1], [None, width])
        schedule.vectorize(copy.pop())
        schedule.vectorize(tile.pop())
    for loop in (*tile, *copy):
        schedule.unroll(loop)
    # Last: the loops of the initialisation are copies of the tile's, unrolled and vectorised alike.
    schedule.decompose_reduction(block, reduced[0])


def _pack_weight(schedule: Schedule, block: Block, panel: int) -> None:
    """Copy the weight [O, ..., I] into panels [O / panel, ..., I, panel], which the inner loops read in one stream."""
    packed = schedule.cache_read(block, 1, "global")
    schedule.transform_layout(packed, ("write", 0), lambda o, *rest: (o // panel, *rest, o % panel))
    # Square tiles, so that whole cache lines are read and written.
    output, *rest, inputs = schedule.get_loops(packed)
    output, o = schedule.split(output, [None, divisor(panel, MAX_UNROLL)])
    inputs, i = schedule.split(inputs, [None, divisor(_extents(schedule, [inputs])[0], MAX_UNROLL)])
    schedule.reorder(output, *rest, inputs, i, o)
