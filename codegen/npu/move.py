"""Gather, Concat and Transpose: every box is one copy, or two where neither side is on chip."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from qcompiler.codegen.npu.context import Context, Place
from qcompiler.codegen.npu.hazards import Region
from qcompiler.sim import isa
from qcompiler.sim.isa import Queue, Space
from qcompiler.sim.mapping import Mapping
from qcompiler.sim.moves import Box, Loop, split
from qcompiler.sim.workload import Layer

MAX_TRIPS = 65535


def _copy(context: Context, queue: Queue, source: Place | None, target: Place, box: Box) -> None:
    """One box by one queue; no source means the box's fill byte."""
    loops: list[Loop] = [(1, 0, 0)] * (3 - len(box.loops)) + list(box.loops)
    if any(n > MAX_TRIPS for n, _, _ in loops):
        for part in split(box, box.bytes // 2):
            _copy(context, queue, source, target, part)
        return
    fields: dict[str, Any] = {}
    for i, (n, s, t) in enumerate(loops, start=1):
        fields |= {f"n{i}": n, f"source_stride{i}": s, f"target_stride{i}": t}
    reads: list[Region] = []
    if source is None:
        fields |= {"source": Space.fill, "fill": box.fill}
    else:
        fields |= {"source": source.space, "source_address": source.address + box.source}
        reads = [source.region(box.source_first, box.source_first + box.source_span)]
    copy = isa.Copy(
        unit=queue, target=target.space, target_address=target.address + box.target, run_bytes=box.run, **fields
    )
    context.stream.emit(copy, reads, [target.region(box.target, box.target + box.target_span)])


def _packed(box: Box) -> tuple[Box, Box]:
    """The box in two halves, into and out of a buffer that holds its bytes in order."""
    size = box.run
    loops: list[tuple[int, int, int, int]] = []
    for n, s, t in reversed(box.loops):
        loops.insert(0, (n, s, t, size))
        size *= n
    into = replace(box, target=0, loops=tuple((n, s, p) for n, s, _, p in loops))
    out = replace(box, source=0, loops=tuple((n, p, t) for n, _, t, p in loops))
    return into, out


def move(context: Context, layer: Layer, m: Mapping) -> None:
    """Emit the copies of a layer. m.tile_h: bytes of a staging buffer."""
    op = layer.operations[0]
    out = context.places[layer.output]
    for box in layer.geometry.boxes:
        source = None if box.operand < 0 else context.places[op.inputs[box.operand]]
        if source is not None and not source.resident and out.resident:
            _copy(context, context.queue_from(source), source, out, box)
        elif source is None or source.resident:
            _copy(context, Queue.store, source, out, box)
        else:
            for part in split(box, m.tile_h):
                into, outof = _packed(part)
                buffer = context.slots["image"].next()
                _copy(context, context.queue_from(source), source, buffer, into)
                _copy(context, Queue.store, buffer, out, outof)
