"""A mapping: how a layer is cut into pieces that fit the on-chip memories, and in which order they run.

A layer's output is cut into tiles (rows x columns of pixels, whole channels) that are staged in the activation
memory when the tensors live outside, and into groups of channel blocks (C channels each; lanes for vector work)
whose constants are staged together. One loop is outside the other: with `groups_outer` each group's constants come in
once and the image once a group, else each tile comes in once and the constants once a tile. Inside, each block of
each step (rows of a tile that fit half the accumulators) is one instruction of the matrix unit and one of the
vector unit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise, product

import numpy as np
import numpy.typing as npt

from qcompiler.sim.hardware import Machine
from qcompiler.sim.isa.post import TABLE_BYTES
from qcompiler.sim.workload import MATRIX_KINDS, Geometry

STEPS = 8  # pieces of a tile of vector work, so that what follows can begin early
MAX_MERGED = 16  # neighbouring pixels that one vector may hold


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


@dataclass(frozen=True)
class Residency:
    """Which operands of a layer stay in the activation memory, and the bytes that are left there for tiles.

    operand: a residual or addend; weights: matmul's b. constant: which of them lie among the constants.
    """

    image: bool
    output: bool
    operand: bool
    free_bytes: int
    weights: bool = False
    constant: tuple[str, ...] = ()


@dataclass(frozen=True)
class Mapping:
    """tile_h, tile_w: output pixels of a tile. group: blocks of a group. step_h, step_w: output pixels of a step.

    part_rows, part_channels: kernel rows and channels of a part, for weights of which not even one block fits (0: all).
    For layers that are no convolutions, products or pools, tile_h counts what `candidates` says and the rest is 1.
    """

    tile_h: int
    tile_w: int
    group: int
    groups_outer: bool
    step_h: int
    step_w: int
    output_stationary: bool = False
    im2col: bool = False
    part_rows: int = 0
    part_channels: int = 0


@dataclass(frozen=True)
class Tile:
    """Output pixels n, y0..y1-1, x0..x1-1."""

    n: int
    y0: int
    y1: int
    x0: int
    x1: int

    @property
    def pixels(self) -> int:
        return (self.y1 - self.y0) * (self.x1 - self.x0)


def cut(low: int, high: int, step: int) -> list[tuple[int, int]]:
    """low..high in pieces of `step`, the last one shorter."""
    return [(a, min(a + step, high)) for a in range(low, high, step)]


def tiles(g: Geometry, m: Mapping) -> list[Tile]:
    """All tiles of the output, in order."""
    n, h, w, _ = g.output
    rows, columns = cut(0, h, m.tile_h), cut(0, w, m.tile_w)
    return [Tile(i, y0, y1, x0, x1) for i in range(n) for y0, y1 in rows for x0, x1 in columns]


def steps(tile: Tile, m: Mapping) -> list[Tile]:
    """The pieces of a tile that one instruction handles."""
    rows, columns = cut(tile.y0, tile.y1, m.step_h), cut(tile.x0, tile.x1, m.step_w)
    return [Tile(tile.n, y0, y1, x0, x1) for y0, y1 in rows for x0, x1 in columns]


def window(low: int, high: int, size: int, kernel: int, stride: int, dilation: int, before: int) -> tuple[int, int]:
    """Input positions (never empty, inside the image) that output positions low..high-1 read along one axis."""
    first = min(max(low * stride - before, 0), size - 1)
    last = min((high - 1) * stride - before + (kernel - 1) * dilation, size - 1)
    return first, max(last, first) + 1


def input_window(g: Geometry, tile: Tile) -> tuple[int, int, int, int]:
    """``(y0, y1, x0, x1)`` of the image that a tile reads."""
    _, h, w, _ = g.image
    y = window(tile.y0, tile.y1, h, g.kernel[0], g.stride[0], g.dilation[0], g.padding[0])
    x = window(tile.x0, tile.x1, w, g.kernel[1], g.stride[1], g.dilation[1], g.padding[1])
    return (*y, *x)


def taps(g: Geometry, im2col: bool) -> tuple[int, int, int]:
    """``(kernel_h, kernel_w, run)`` of the matrix instruction: neighbouring pixels are one run where that is allowed.

    A kernel row of an ungrouped, undilated convolution reads kernel_w * channels consecutive bytes.
    """
    (kh, kw), channels = g.kernel, g.image[3] // g.groups
    if im2col:
        return 1, 1, kh * kw * channels
    if g.groups == 1 and g.dilation[1] == 1:
        return kh, 1, kw * channels
    return kh, kw, channels


@dataclass(frozen=True)
class Part:
    """Kernel rows row..row+rows-1 and channels channel..channel+channels-1; kernel as in `taps`."""

    row: int
    rows: int
    channel: int
    channels: int
    kernel: tuple[int, int, int]


def parts(g: Geometry, m: Mapping) -> list[Part]:
    """The pieces of the reduction that follow each other in the accumulators: usually one."""
    kh, kw, run = taps(g, m.im2col)
    channels = g.image[3] // g.groups
    if m.im2col or not (m.part_rows or m.part_channels):
        return [Part(0, g.kernel[0], 0, channels, (kh, kw, run))]
    wide = m.part_channels in (0, channels)
    found = []
    for y0, y1 in cut(0, g.kernel[0], m.part_rows or g.kernel[0]):
        for c0, c1 in cut(0, channels, m.part_channels or channels):
            kernel = (y1 - y0, kw, run) if wide else (y1 - y0, g.kernel[1], c1 - c0)
            found.append(Part(y0, y1 - y0, c0, c1 - c0, kernel))
    return found


def passes(g: Geometry, m: Mapping, machine: Machine) -> int:
    """Weight tiles of one block: how often the array is loaded."""
    return sum(p.kernel[0] * p.kernel[1] * ceil_div(p.kernel[2], machine.matrix.rows) for p in parts(g, m))


def blocks(g: Geometry, machine: Machine) -> list[tuple[int, int, int]]:
    """``(group of the convolution, first output channel, channels)`` of each block of at most C channels."""
    per_group = g.output[3] // g.groups
    width = machine.matrix.columns
    return [
        (i, i * per_group + c, min(width, per_group - c)) for i in range(g.groups) for c in range(0, per_group, width)
    ]


def operand_runs(g: Geometry, m: Mapping, columns: int) -> tuple[int, int]:
    """How `columns` columns of matmul's b are loaded: (runs, bytes a run)."""
    if g.transposed and m.output_stationary:  # the output-stationary array takes rows of w only
        return g.reduction * columns, 1
    return (1, g.reduction * columns) if g.transposed or columns == g.output[3] else (g.reduction, columns)


def balanced(size: int, limit: int) -> int:
    """The step that cuts `size` into the fewest pieces of at most `limit`, as equal as possible."""
    return ceil_div(size, ceil_div(size, max(limit, 1)))


def _window_bytes(g: Geometry, m: Mapping) -> int:
    """Largest part of the image under a tile."""
    _, h, w, c = g.image
    rows = min(h, (m.tile_h - 1) * g.stride[0] + (g.kernel[0] - 1) * g.dilation[0] + 1)
    columns = min(w, (m.tile_w - 1) * g.stride[1] + (g.kernel[1] - 1) * g.dilation[1] + 1)
    return rows * columns * c


def operand_bytes(g: Geometry, count: int, operand: int) -> int:
    """Bytes of an element-wise operand (0: a, 1: b) under `count` trips of the outermost loop."""
    inner = 1 + sum((n - 1) * loop[operand] for n, *loop in g.loops[1:])
    return (count - 1) * g.loops[0][operand + 1] + inner


def slot_bytes(g: Geometry, m: Mapping, r: Residency, machine: Machine) -> dict[str, int]:
    """Bytes of one buffer of each operand that is staged in the activation memory (two of each are held)."""
    slots = {"image": 0, "im2col": 0, "operand": 0, "output": 0}
    if g.kind in (*MATRIX_KINDS, "depthwise", "pool"):
        unit = machine.vector.lanes if g.kind == "depthwise" else machine.matrix.columns
        channels = g.output[3] if g.kind == "pool" else min(m.group * unit, g.output[3])
        pixels = m.tile_h * m.tile_w
        slots |= {"image": _window_bytes(g, m), "output": pixels * channels}
        if m.im2col:
            slots["im2col"] = pixels * math.prod(taps(g, True))
        if g.operands > (g.kind == "matmul"):
            slots["operand"] = pixels * channels
    elif g.kind == "elementwise":
        inner = math.prod(n for n, _, _ in g.loops[1:])
        slots |= {
            "image": operand_bytes(g, m.tile_h, 0), "operand": operand_bytes(g, m.tile_h, 1),
            "output": m.tile_h * inner,
        }  # fmt: skip
    elif g.kind == "table":
        unit = g.image[3] if g.tables > 1 else 1
        slots |= {"image": m.tile_h * unit, "output": m.tile_h * unit}
    elif g.kind == "move":
        slots["image"] = m.tile_h
    elif g.kind == "resize":
        _, _, w, c = g.image
        under = [[y for a, b, _ in g.loops[y0:y1] for y in (a, b)] for y0, y1 in cut(0, len(g.loops), m.tile_h)]
        rows = max(max(ys) - min(ys) + 1 for ys in under)
        slots |= {"image": rows * w * c, "output": m.tile_h * g.output[2] * c}
    else:  # rows: softmax, layer_norm, embedding
        slots |= {"image": m.tile_h * g.image[3], "output": m.tile_h * g.output[3]}
    resident = {"image": r.image, "output": r.output, "operand": r.operand, "im2col": not m.im2col}
    return {name: size for name, size in slots.items() if size and not resident[name]}


def merged_pixels(g: Geometry, m: Mapping, machine: Machine) -> int:
    """How many neighbouring pixels of a depthwise layer share the lanes when its channels alone would not fill them.

    Only where the window moves by one pixel and all channels are together: then neighbouring results and what they
    read are neighbouring bytes. Weights and records are repeated, so that the result must fit half the parameters.
    """
    channels, lanes, width = g.output[3], machine.vector.lanes, g.output[2]
    whole_rows = m.tile_w >= g.output[2] and m.step_w >= g.output[2]
    if g.stride[1] != 1 or m.group * lanes < channels or not whole_rows:
        return 1
    repeated = channels * (math.prod(g.kernel) + g.record_bytes)
    most = min(MAX_MERGED, max(1, (machine.vector.parameter_bytes // 2 - TABLE_BYTES) // repeated))
    return min(
        (n for n in range(1, most + 1) if n <= width),
        key=lambda n: (ceil_div(g.output[2], n) * ceil_div(n * channels, lanes), n),
    )


def merged_pieces(step: Tile, pixels: int) -> list[Tile]:
    """A step cut where `pixels` at a time no longer fit: the last ones are computed again, together with the rest."""
    columns = step.x1 - step.x0
    whole = columns // pixels * pixels
    pieces = [replace(step, x1=step.x0 + whole)]
    if whole < columns:
        pieces.append(replace(step, x0=step.x1 - pixels))
    return pieces


def uniform_pieces(step: Tile, counts: npt.NDArray[np.int64]) -> list[Tile]:
    """A step cut into rectangles over which `counts` [OH, OW] (of an average pool) does not change."""
    rows, columns = range(step.y0, step.y1), range(step.x0, step.x1)
    ys = [y for y in rows if y == step.y0 or (counts[y] != counts[y - 1]).any()] + [step.y1]
    xs = [x for x in columns if x == step.x0 or (counts[:, x] != counts[:, x - 1]).any()] + [step.x1]
    return [Tile(step.n, y0, y1, x0, x1) for y0, y1 in pairwise(ys) for x0, x1 in pairwise(xs)]


def resize_rows(low: npt.NDArray[np.int64], high: npt.NDArray[np.int64], y0: int, y1: int) -> tuple[int, int]:
    """Image rows that output rows y0..y1-1 of a bilinear resize read, as a half-open range."""
    return int(min(low[y0:y1].min(), high[y0:y1].min())), int(max(low[y0:y1].max(), high[y0:y1].max())) + 1


# ---------------------------------------------------------------------------------------- candidates
def _halvings(size: int) -> list[int]:
    """Steps that cut `size` into 1, 2, 3, 4, 6, 8, 12, ... as equal pieces as possible, largest first."""
    counts, n = [1, 2, 3], 4
    while n < size:
        counts += [n, n * 3 // 2]
        n *= 2
    return sorted({ceil_div(size, k) for k in [*counts, size] if k <= size}, reverse=True)


def _step(tile_h: int, tile_w: int, limit: int) -> tuple[int, int]:
    """The largest step of at most `limit` pixels: whole rows where possible."""
    if tile_w > limit:
        return 1, balanced(tile_w, limit)
    return balanced(tile_h, max(limit // tile_w, 1)), tile_w


def fits(g: Geometry, m: Mapping, r: Residency, machine: Machine) -> bool:
    """Whether two buffers of every staged operand fit what the residents leave of the activation memory."""
    return 2 * sum(slot_bytes(g, m, r, machine).values()) <= r.free_bytes


def _tilings(g: Geometry, r: Residency) -> list[tuple[int, int]]:
    """Tile heights and widths worth trying: whole rows, and pieces of one row in case whole ones do not fit."""
    _, h, w, _ = g.output
    if r.image and r.output and (r.operand or not g.operands):
        return [(h, w)]
    return [(rows, w) for rows in _halvings(h)] + [(1, columns) for columns in _halvings(w)[1:]]


def _reductions(g: Geometry, machine: Machine) -> list[tuple[int, int]]:
    """part_rows, part_channels worth trying: (0, 0) when a block's weights fit, the largest parts of which two fit
    when two blocks do not."""
    (kh, kw), channels = g.kernel, g.image[3] // g.groups
    columns, memory = min(machine.matrix.columns, g.output[3] // g.groups), machine.weight_memory.size_bytes
    row, half = kw * channels * columns, memory // 2
    whole = [(0, 0)] if kh * row <= memory else []
    if kh * row <= half or g.kind == "matmul":
        return whole
    if row <= half:
        return [*whole, (balanced(kh, half // row), 0)]
    return [*whole, (1, balanced(channels, half // (kw * columns)))] if kw * columns <= half else whole


def _groups(g: Geometry, machine: Machine, parted: bool) -> list[int]:
    """Blocks of a group whose weights (unless they come in parts) and parameters fit, twice where there are more."""
    count, array = len(blocks(g, machine)), machine.matrix
    block_bytes = 0 if parted else g.reduction * min(array.columns, g.output[3] // g.groups)
    found = []
    for group in _halvings(count):
        parameters = group * array.columns * g.record_bytes + TABLE_BYTES * g.tables + 16
        # One block may stand alone: its successor then loads when it is done.
        share = 1 if group in (1, count) else 2
        if group * block_bytes * share <= machine.weight_memory.size_bytes and (
            parameters * share <= machine.vector.parameter_bytes
        ):
            found.append(group)
    return found


def _matrix(g: Geometry, r: Residency, machine: Machine) -> Iterator[Mapping]:
    count, array = len(blocks(g, machine)), machine.matrix
    flows = [flow == "output_stationary" for flow in array.dataflows]
    if g.kind == "matmul" and "weight_stationary" in array.dataflows:
        flows = [False]
    limits = {max(array.accumulator_rows // n, 1) for n in (2, 4, 8)}
    for part_rows, part_channels in _reductions(g, machine):
        parted = bool(part_rows or part_channels)
        gathers = [False]
        if g.kind == "conv" and g.groups == 1 and math.prod(g.kernel) > 1 and not parted and g.reduction < 65536:
            if ceil_div(g.reduction, array.rows) < g.kernel[0] * ceil_div(g.kernel[1] * g.image[3], array.rows):
                gathers = [False, True]
        for (tile_h, tile_w), group in product(_tilings(g, r), _groups(g, machine, parted)):
            steps = {_step(tile_h, tile_w, limit) for limit in limits}
            orders = (True, False) if group < count else (True,)
            for outer, (step_h, step_w), flow, im2col in product(orders, sorted(steps, reverse=True), flows, gathers):
                yield Mapping(tile_h, tile_w, group, outer, step_h, step_w, flow, im2col, part_rows, part_channels)


def candidates(g: Geometry, r: Residency, machine: Machine) -> list[Mapping]:
    """Mappings that fit, without repetition, in an order that starts with the largest tiles.

    tile_h of other kinds counts trips of the outermost loop (element-wise), bytes (tables, moves), output rows
    (resize) or rows (softmax, layer norm, embedding, per-channel tables).
    """
    found: list[Mapping] = []
    if g.kind in MATRIX_KINDS:
        found = list(_matrix(g, r, machine))
    elif g.kind == "depthwise":
        lanes = machine.vector.lanes
        channel_bytes = math.prod(g.kernel) + g.record_bytes
        memory = machine.vector.parameter_bytes - TABLE_BYTES * g.tables
        for tile_h, tile_w in _tilings(g, r):
            for group in _halvings(ceil_div(g.output[3], lanes)):
                whole = group * lanes >= g.output[3]
                need = min(group * lanes, g.output[3]) * channel_bytes
                if need * (1 if whole else 2) <= memory:
                    for outer in (True, False) if not whole else (True,):
                        found.append(Mapping(tile_h, tile_w, group, outer, max(1, ceil_div(tile_h, STEPS)), tile_w))
    elif g.kind == "pool":
        found = [Mapping(h, w, 1, True, max(1, ceil_div(h, STEPS)), w) for h, w in _tilings(g, r)]
    else:
        trips, group = g.output[1], 1
        if g.kind == "table" and g.tables > 1:
            group = max(1, machine.vector.parameter_bytes // 2 // TABLE_BYTES // machine.vector.lanes)
        elif g.kind == "table":
            trips = g.image_bytes
        elif g.kind == "elementwise":
            trips = g.loops[0][0]
        elif g.kind == "move":
            trips = max((box.bytes for box in g.boxes), default=1)
        found = [Mapping(n, 1, group, True, n, 1) for n in _halvings(trips)]
    return list(dict.fromkeys(m for m in found if fits(g, m, r, machine)))


def reserve(g: Geometry, r: Residency, machine: Machine) -> int | None:
    """Activation memory worth keeping for the layer's tiles: a quarter of it, but no more than the largest tiling and
    no less than the smallest needs. None where the other memories are too small for any."""
    roomy = replace(r, free_bytes=1 << 62)
    sizes = [2 * sum(slot_bytes(g, m, roomy, machine).values()) for m in candidates(g, roomy, machine)]
    return max(min(sizes), min(max(sizes), machine.activation_memory.size_bytes // 4)) if sizes else None


def shortfall(g: Geometry, r: Residency, machine: Machine) -> str:
    """Which memory is too small for the layer, and by how much."""
    roomy = replace(r, free_bytes=1 << 62)
    possible = candidates(g, roomy, machine)
    if possible:
        need = min(2 * sum(slot_bytes(g, m, roomy, machine).values()) for m in possible)
        return (
            f"the smallest double-buffered tile needs {need} bytes of activation memory, {need - r.free_bytes} more "
            f"than the {r.free_bytes} that are free"
        )
    columns, lanes = min(machine.matrix.columns, g.output[3]), machine.vector.lanes
    if g.kind in MATRIX_KINDS and g.reduction * columns > machine.weight_memory.size_bytes:
        need, have, what = g.reduction * columns, machine.weight_memory.size_bytes, "weight memory"
    else:
        channels = columns if g.kind in MATRIX_KINDS else min(lanes, g.output[3])
        taps = math.prod(g.kernel) if g.kind == "depthwise" else 0
        need, have = channels * (taps + g.record_bytes) + TABLE_BYTES * g.tables, machine.vector.parameter_bytes
        what = "parameter memory"
    return f"one block of {columns} channels needs {need} bytes of {what}, {need - have} more than the {have} there are"
