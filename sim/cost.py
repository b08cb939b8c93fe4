"""The closed form: what a layer costs on a machine for a mapping, and the search for the best mapping.

`work` adds up, from the timing rules of the instruction set alone and without any instruction, how long each unit is
occupied, what moves through each memory, and what cannot overlap: bringing in the first tile and taking out the last.
The units work at the same time on different pieces, so that a layer takes the longest of them plus those ends.
DRAM bytes are exact, ragged tiles and bursts included.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from qcompiler.sim import mapping
from qcompiler.sim.hardware import ExternalMemory, Machine
from qcompiler.sim.isa.post import ADD_RECORD_BYTES, TABLE_BYTES, VECTOR_PIPELINE
from qcompiler.sim.mapping import Mapping, Residency, ceil_div
from qcompiler.sim.workload import MATRIX_KINDS, Geometry

RECORD_BYTES = 8  # of exact_half_up and f32_half_even; the q31 records are 12


@dataclass
class Work:
    """Cycles of each unit and bytes of each external memory for one layer (whole bursts).

    first_load, first_fetch: of `load` and `fetch`, what comes before anything can start; last_store, last_vector: what
    follows when the others are done. steps: pieces that flow through the units one after the other.
    """

    matrix: int = 0
    vector: int = 0
    load: int = 0
    fetch: int = 0
    store: int = 0
    main_read: int = 0
    constant_read: int = 0
    main_write: int = 0
    first_load: int = 0
    first_fetch: int = 0
    first_matrix: int = 0
    last_vector: int = 0
    last_store: int = 0
    steps: int = 1

    def times(self, count: int) -> Work:
        """The same work `count` times, one after the other."""
        once = ("first_load", "first_fetch", "first_matrix", "last_vector", "last_store")
        return Work(**{k: v if k in once else v * count for k, v in vars(self).items()})

    def cycles(self, machine: Machine) -> int:
        """The layer alone: the first pieces in, the slowest unit, the last piece out."""
        memory = machine.main_memory
        constant = machine.constant_memory or memory
        head = max(
            self.first_load + (memory.latency_cycles if self.first_load else 0),
            self.first_fetch + (constant.latency_cycles if self.first_fetch else 0),
        )
        loads = [self.load - self.first_load, self.fetch - self.first_fetch]
        if machine.constant_memory is None:
            loads = [sum(loads)]
        tail = self.last_vector + self.last_store + (memory.latency_cycles if self.store else 0)
        return head + max(self.matrix, self.vector + self.first_matrix, *loads, self.store) + tail


def _read(memory: ExternalMemory, runs: Iterable[tuple[int, int]]) -> tuple[int, int]:
    """``(cycles, bytes)`` of transfers given as (runs, bytes a run), one instruction each."""
    cycles = total = 0
    for count, size in runs:
        moved = count * memory.burst(size)
        cycles += memory.read_cycles(moved)
        total += moved
    return cycles, total


def _write(memory: ExternalMemory, runs: Iterable[tuple[int, int]]) -> tuple[int, int]:
    cycles = total = 0
    for count, size in runs:
        moved = count * memory.burst(size)
        cycles += memory.write_cycles(moved)
        total += moved
    return cycles, total


@lru_cache(maxsize=4096)
def _tile_shapes(g: Geometry, tile_h: int, tile_w: int) -> list[tuple[int, int, int, int, int]]:
    """``(how often, rows, columns, image rows, image columns)`` of the distinct tiles of one image of the batch."""
    rows = Counter(_spans(g, 0, tile_h))
    columns = Counter(_spans(g, 1, tile_w))
    return [(a * b, h, w, ih, iw) for (h, ih), a in rows.items() for (w, iw), b in columns.items()]


def _spans(g: Geometry, axis: int, step: int) -> list[tuple[int, int]]:
    """``(output positions, image positions)`` of each piece along an axis."""
    found = []
    for low, high in mapping.cut(0, g.output[1 + axis], step):
        first, last = mapping.window(
            low, high, g.image[1 + axis], g.kernel[axis], g.stride[axis], g.dilation[axis], g.padding[axis]
        )
        found.append((high - low, last - first))
    return found


def _rows(rows: int, columns: int, whole: int, size: int) -> tuple[int, int]:
    """Rows of `columns` pixels of `size` bytes as (runs, bytes): one run where they are `whole` rows."""
    return (1, rows * columns * size) if columns == whole else (rows, columns * size)


def _pixels(rows: int, columns: int, whole: int, channels: int, size: int) -> list[tuple[int, int]]:
    """The transfers of `size` of `channels` channels of a tile."""
    if size == channels:
        return [_rows(rows, columns, whole, channels)]
    return [(rows * columns, size)] if columns == whole else [(columns, size)] * rows


def _step_sizes(tile_h: int, tile_w: int, m: Mapping) -> Counter[int]:
    """Pixels of each step of a tile, and how often."""
    hs = Counter(b - a for a, b in mapping.cut(0, tile_h, m.step_h))
    ws = Counter(b - a for a, b in mapping.cut(0, tile_w, m.step_w))
    sizes: Counter[int] = Counter()
    for h, a in hs.items():
        for w, b in ws.items():
            sizes[h * w] += a * b
    return sizes


def matrix_cycles(pixels: int, passes: int, machine: Machine, output_stationary: bool, transposed: bool = False) -> int:
    """Cycles between the starts of back-to-back matrix instructions (`isa.matrix`, two weight buffers or one)."""
    array = machine.matrix
    load = array.columns if transposed else array.rows
    through = array.rows + array.columns - 2
    if output_stationary:
        steps = passes * array.rows
        extra = 2 * array.rows + array.columns - 2 if array.weight_buffers == 1 else 0
        return ceil_div(pixels, array.rows) * (steps + extra)
    if array.weight_buffers == 1:
        return passes * (load + pixels + through)
    return passes * max(pixels, load)


def _matrix(g: Geometry, m: Mapping, r: Residency, machine: Machine) -> Work:
    """Convolutions, dense layers, products."""
    w, array, lanes = Work(), machine.matrix, machine.vector.lanes
    (images, _, _, c), (_, _, ow, o) = g.image, g.output
    batch, images = (images, 1) if g.kind == "matmul" else (1, images)
    blocks = mapping.blocks(g, machine)
    groups = [blocks[a:b] for a, b in mapping.cut(0, len(blocks), m.group)]
    parts = mapping.parts(g, m)
    passes = mapping.passes(g, m, machine)
    main, constants = machine.main_memory, machine.constant_memory or machine.main_memory
    shapes = _tile_shapes(g, m.tile_h, m.tile_w)
    tiles = sum(n for n, *_ in shapes) * images
    residual = g.operands > (g.kind == "matmul")
    vectors = sum(ceil_div(width, lanes) for _, _, width in blocks)
    table = ceil_div(TABLE_BYTES, lanes) * g.tables
    sizes = [sum(width for _, _, width in group) for group in groups]
    image_loads = len(groups) if m.groups_outer and tiles > 1 else 1
    block_steps = 0
    for n, h, wd, ih, iw in shapes:
        n *= images
        steps = _step_sizes(h, wd, m)
        for pixels, count in steps.items():
            w.matrix += n * count * len(blocks) * matrix_cycles(pixels, passes, machine, m.output_stationary)
            w.vector += n * count * (pixels * vectors + table * len(blocks))
        block_steps += n * sum(steps.values())
        if not r.image:
            cycles, moved = _read(main, [_rows(ih, iw, g.image[2], c)])
            w.load += n * image_loads * cycles
            w.main_read += n * image_loads * moved
        if m.im2col:
            run, taps = (g.kernel[1] * c, g.kernel[0]) if g.dilation[1] == 1 else (c, math.prod(g.kernel))
            w.load += n * image_loads * h * wd * taps * ceil_div(run, machine.activation_memory.bytes_per_cycle)
        for size in sizes:
            transfers = _pixels(h, wd, ow, o, size)
            if not r.output:
                cycles, moved = _write(main, transfers)
                w.store += n * cycles
                w.main_write += n * moved
            if residual and not r.operand:
                cycles, moved = _read(main, transfers)
                w.load += n * cycles
                w.main_read += n * moved
    # Weights: once, or once a tile (in parts: once a step).
    weight_loads = tiles if not m.groups_outer and len(groups) > 1 else 1
    tail = ADD_RECORD_BYTES * residual + TABLE_BYTES * g.tables
    records = [RECORD_BYTES if g.kind == "matmul" else size * RECORD_BYTES for size in sizes]
    cycles, moved = _read(constants, [(1, size + tail) for size in records])
    fetched, fetched_bytes = weight_loads * cycles, weight_loads * moved
    if g.kind != "matmul":
        k = [math.prod(p.kernel) for p in parts]
        cycles, moved = _read(constants, [(1, size * width) for _, _, width in blocks for size in k])
        times = block_steps if len(parts) > 1 else weight_loads
        fetched, fetched_bytes = fetched + times * cycles, fetched_bytes + times * moved
        first = _read(constants, [(1, records[0] + tail), (1, k[0] * blocks[0][2])])[0]
    else:
        runs = [(g.reduction, size) if size < o else (1, g.reduction * size) for size in sizes]
        cycles, moved = _read(main, runs)
        w.load += weight_loads * cycles
        w.main_read += weight_loads * moved
        first = fetched
    w.first_fetch, w.fetch, w.constant_read = first, fetched, fetched_bytes
    n, h, wd, ih, iw = shapes[0]
    pixels = max(_step_sizes(h, wd, m))
    w.first_matrix = matrix_cycles(pixels, passes, machine, m.output_stationary) + array.rows + array.columns
    if not r.image:
        w.first_load = _read(main, [_rows(ih, iw, g.image[2], c)])[0]
    if m.im2col:
        w.first_load += h * wd * g.kernel[0] * ceil_div(g.kernel[1] * c, machine.activation_memory.bytes_per_cycle)
    w.last_vector = pixels * ceil_div(blocks[-1][2], lanes) + table + VECTOR_PIPELINE
    if not r.output:
        w.last_store = _write(main, _pixels(h, wd, ow, o, sizes[-1]))[0]
    w.steps = block_steps * len(blocks)
    return w.times(batch) if batch > 1 else w


def _vector(g: Geometry, m: Mapping, r: Residency, machine: Machine) -> Work:
    """Depthwise convolutions and pools."""
    w, lanes = Work(), machine.vector.lanes
    (images, _, _, c), (_, _, ow, o) = g.image, g.output
    main, constants = machine.main_memory, machine.constant_memory or machine.main_memory
    depthwise = g.kind == "depthwise"
    groups = mapping.cut(0, o, m.group * lanes) if depthwise else [(0, o)]
    merged = mapping.merged_pixels(g, m, machine) if depthwise else 1
    taps = math.prod(g.kernel)
    shapes = _tile_shapes(g, m.tile_h, m.tile_w)
    tiles = sum(n for n, *_ in shapes) * images
    table = ceil_div(TABLE_BYTES, lanes) * g.tables
    image_loads = len(groups) if m.groups_outer and tiles > 1 else 1
    for n, h, wd, ih, iw in shapes:
        n *= images
        for first, last in groups:
            width = last - first
            across = ceil_div(wd, merged) * ceil_div(merged * width, lanes)
            steps = len(mapping.cut(0, h, m.step_h)) * (1 if wd % merged == 0 else 2)
            w.vector += n * (h * across * taps + table * steps)
            if not r.output:
                cycles, moved = _write(main, _pixels(h, wd, ow, o, width))
                w.store += n * cycles
                w.main_write += n * moved
        if not r.image:
            cycles, moved = _read(main, [_rows(ih, iw, g.image[2], c)])
            w.load += n * image_loads * cycles
            w.main_read += n * image_loads * moved
    if depthwise:
        loads = tiles if not m.groups_outer and len(groups) > 1 else 1
        chunks = [(1, (taps + RECORD_BYTES) * (b - a) * merged + TABLE_BYTES * g.tables) for a, b in groups]
        cycles, moved = _read(constants, chunks)
        w.fetch, w.constant_read = loads * cycles, loads * moved
        w.first_fetch = _read(constants, chunks[:1])[0]
    n, h, wd, ih, iw = shapes[0]
    if not r.image:
        w.first_load = _read(main, [_rows(ih, iw, g.image[2], c)])[0]
    w.last_vector = VECTOR_PIPELINE
    if not r.output:
        w.last_store = _write(main, _pixels(h, wd, ow, o, groups[-1][1] - groups[-1][0]))[0]
    w.steps = tiles * len(groups)
    return w


def work(g: Geometry, m: Mapping, r: Residency, machine: Machine) -> Work:
    """What the layer occupies and moves."""
    if g.kind in MATRIX_KINDS:
        return _matrix(g, m, r, machine)
    if g.kind in ("depthwise", "pool"):
        return _vector(g, m, r, machine)
    return Work(vector=g.output_bytes, steps=ceil_div(g.output[1], m.tile_h))


def search(g: Geometry, r: Residency, machine: Machine) -> Mapping | None:
    """The fitting mapping with the fewest cycles, then the least external traffic; None where nothing fits."""
    best, found = None, None
    for m in mapping.candidates(g, r, machine):
        w = work(g, m, r, machine)
        key = (w.cycles(machine), w.main_read + w.constant_read + w.main_write, m.output_stationary)
        if best is None or key < best:
            best, found = key, m
    return found
