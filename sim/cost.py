"""The closed form of one layer: what it costs on a machine for a mapping.

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
from typing import Any

from qcompiler.sim import mapping
from qcompiler.sim.hardware import ExternalMemory, Machine
from qcompiler.sim.isa import Instruction, LayerNorm, Softmax
from qcompiler.sim.isa.post import ADD_RECORD_BYTES, TABLE_BYTES, VECTOR_PIPELINE
from qcompiler.sim.isa.vector import COORDINATE_BYTES
from qcompiler.sim.isa.vector_rows import EXP_TABLE_BYTES
from qcompiler.sim.mapping import Mapping, Residency, ceil_div
from qcompiler.sim.moves import Box, split
from qcompiler.sim.workload import MATRIX_KINDS, Geometry


@dataclass
class Work:
    """Cycles of each unit and bytes of each external memory for one layer (whole bursts).

    first_load, first_fetch: of `load` and `fetch`, what comes before anything can start; last_store, last_vector: what
    follows when the others are done. steps: instructions of the array or the lanes; tiles: how often the double buffers
    change hands.
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
    tiles: int = 1

    def times(self, count: int) -> Work:
        """The same work `count` times, one after the other."""
        once = ("first_load", "first_fetch", "first_matrix", "last_vector", "last_store")
        return Work(**{k: v if k in once else v * count for k, v in vars(self).items()})

    def bring(self, machine: Machine, r: Residency, operand: str, runs: list[tuple[int, int]], times: int = 1) -> int:
        """Add transfers of an operand from wherever it lies; returns the cycles of doing them once."""
        constant = operand in r.constant
        memory = machine.constant_memory if constant and machine.constant_memory else machine.main_memory
        cycles, moved = read(memory, runs)
        if constant:
            self.fetch, self.constant_read = self.fetch + times * cycles, self.constant_read + times * moved
        else:
            self.load, self.main_read = self.load + times * cycles, self.main_read + times * moved
        return cycles

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
        compute, latency = max(self.matrix, self.vector), self.tiles * memory.latency_cycles
        # A buffer is asked for again when it is free, and two are on their way at a time.
        turns = [(latency + flow + compute) // 2 for flow in (self.load, self.store) if flow]
        return head + max(self.matrix, self.vector + self.first_matrix, *loads, self.store, *turns) + tail


def read(memory: ExternalMemory, runs: Iterable[tuple[int, int]]) -> tuple[int, int]:
    """``(cycles, bytes)`` of transfers given as (runs, bytes a run), one instruction each."""
    cycles = total = 0
    for count, size in runs:
        moved = count * memory.burst(size)
        cycles += memory.read_cycles(moved)
        total += moved
    return cycles, total


def write(memory: ExternalMemory, runs: Iterable[tuple[int, int]]) -> tuple[int, int]:
    """As `read`, for the write channel."""
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


def row_runs(rows: int, columns: int, whole: int, size: int) -> tuple[int, int]:
    """Rows of `columns` pixels of `size` bytes as (runs, bytes): one run where they are `whole` rows."""
    return (1, rows * columns * size) if columns == whole else (rows, columns * size)


def pixel_runs(rows: int, columns: int, whole: int, channels: int, size: int) -> list[tuple[int, int]]:
    """The transfers of `size` of `channels` channels of a tile."""
    if size == channels:
        return [row_runs(rows, columns, whole, channels)]
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


def matrix_timing(
    pixels: int, passes: int, machine: Machine, output_stationary: bool, transposed: bool = False
) -> tuple[int, int, int, int]:
    """``(lead, occupy, gap, tail)`` of a matrix instruction (`isa.matrix`).

    The array works `occupy` cycles, at the earliest `lead` after the operands are there and `gap` after the
    instruction before; the result is complete `tail` cycles later.
    """
    array = machine.matrix
    load, through = array.columns if transposed else array.rows, array.rows + array.columns - 2
    if output_stationary:
        groups, steps = ceil_div(pixels, array.rows), passes * array.rows
        if array.weight_buffers == 1:
            return 0, groups * (steps + array.rows + through), 0, 0
        return 0, groups * steps, 0, through + array.rows
    if array.weight_buffers == 1:
        return load, passes * (load + pixels + through) - load - through, load + through, through
    return load, (passes - 1) * max(pixels, load) + pixels, max(load - pixels, 0), through


def matrix_cycles(pixels: int, passes: int, machine: Machine, output_stationary: bool, transposed: bool = False) -> int:
    """Cycles between the starts of back-to-back matrix instructions."""
    _, occupy, gap, _ = matrix_timing(pixels, passes, machine, output_stationary, transposed)
    return occupy + gap


def operand_cycles(g: Geometry, runs: int, size: int, machine: Machine) -> int:
    """Cycles to copy matmul's b inside the chip: runs of bytes, or a transpose byte by byte (`isa.dma`)."""
    width = machine.activation_memory.bytes_per_cycle
    if size > 1 or not g.transposed:
        return runs * ceil_div(size, width)
    columns = runs // g.reduction
    return g.reduction * ceil_div(columns, width // math.gcd(g.reduction, width))


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
        for count_pixels, count in steps.items():
            w.matrix += (
                n
                * count
                * len(blocks)
                * matrix_cycles(count_pixels, passes, machine, m.output_stationary, g.transposed)
            )
            w.vector += n * count * (count_pixels * vectors + table * len(blocks))
        block_steps += n * sum(steps.values())
        if not r.image:
            w.bring(machine, r, "image", [row_runs(ih, iw, g.image[2], c)], n * image_loads)
        if m.im2col:
            run, taps = (g.kernel[1] * c, g.kernel[0]) if g.dilation[1] == 1 else (c, math.prod(g.kernel))
            w.load += n * image_loads * h * wd * taps * ceil_div(run, machine.activation_memory.bytes_per_cycle)
        for size in sizes:
            transfers = pixel_runs(h, wd, ow, o, size)
            if not r.output:
                cycles, moved = write(main, transfers)
                w.store += n * cycles
                w.main_write += n * moved
            if residual and not r.operand:
                w.bring(machine, r, "operand", transfers, n)
    # Weights: once, or once a tile (in parts: once a step).
    weight_loads = tiles if not m.groups_outer and len(groups) > 1 else 1
    tail = ADD_RECORD_BYTES * residual + TABLE_BYTES * g.tables
    records = [g.record_bytes if g.kind == "matmul" else size * g.record_bytes for size in sizes]
    cycles, moved = read(constants, [(1, size + tail) for size in records])
    w.fetch, w.constant_read = w.fetch + weight_loads * cycles, w.constant_read + weight_loads * moved
    w.first_fetch = read(constants, [(1, records[0] + tail)])[0]
    if g.kind == "matmul":
        runs = [mapping.operand_runs(g, m, size) for size in sizes]
        if r.weights:
            for count, size in runs:
                w.load += weight_loads * operand_cycles(g, count, size, machine)
        else:
            w.bring(machine, r, "weights", runs, weight_loads)
    else:
        k = [math.prod(p.kernel) for p in parts]
        cycles, moved = read(constants, [(1, size * width) for _, _, width in blocks for size in k])
        times = block_steps if len(parts) > 1 else weight_loads
        w.fetch, w.constant_read = w.fetch + times * cycles, w.constant_read + times * moved
        w.first_fetch += read(constants, [(1, k[0] * blocks[0][2])])[0]
    n, h, wd, ih, iw = shapes[0]
    most = max(_step_sizes(h, wd, m))
    w.first_matrix = matrix_cycles(most, passes, machine, m.output_stationary) + array.rows + array.columns
    if not r.image:
        w.first_load = read(main, [row_runs(ih, iw, g.image[2], c)])[0]
    if m.im2col:
        w.first_load += h * wd * g.kernel[0] * ceil_div(g.kernel[1] * c, machine.activation_memory.bytes_per_cycle)
    w.last_vector = most * ceil_div(blocks[-1][2], lanes) + table + VECTOR_PIPELINE
    if not r.output:
        w.last_store = write(main, pixel_runs(h, wd, ow, o, sizes[-1]))[0]
    w.steps = block_steps * len(blocks) * len(parts)
    w.tiles = max(tiles * image_loads * (not r.image), tiles * len(groups) * (not r.output))
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
                cycles, moved = write(main, pixel_runs(h, wd, ow, o, width))
                w.store += n * cycles
                w.main_write += n * moved
        if not r.image:
            w.bring(machine, r, "image", [row_runs(ih, iw, g.image[2], c)], n * image_loads)
    if depthwise:
        loads = tiles if not m.groups_outer and len(groups) > 1 else 1
        chunks = [(1, (taps + g.record_bytes) * (b - a) * merged + TABLE_BYTES * g.tables) for a, b in groups]
        cycles, moved = read(constants, chunks)
        w.fetch, w.constant_read = w.fetch + loads * cycles, w.constant_read + loads * moved
        w.first_fetch = read(constants, chunks[:1])[0]
    elif g.records or g.tables:
        w.first_fetch, moved = read(constants, [(1, g.records * g.record_bytes + TABLE_BYTES * g.tables)])
        w.fetch, w.constant_read = w.fetch + w.first_fetch, w.constant_read + moved
    n, h, wd, ih, iw = shapes[0]
    if not r.image:
        w.first_load = read(main, [row_runs(ih, iw, g.image[2], c)])[0]
    w.last_vector = VECTOR_PIPELINE
    if not r.output:
        w.last_store = write(main, pixel_runs(h, wd, ow, o, groups[-1][1] - groups[-1][0]))[0]
    w.steps = tiles * len(groups) * ceil_div(m.tile_h, m.step_h)
    w.tiles = max(tiles * image_loads * (not r.image), tiles * len(groups) * (not r.output))
    return w


@dataclass(frozen=True)
class Chunk:
    """A piece of element-wise, row-wise or moving work. loads, stores: external transfers as (runs, bytes), loads
    with the operand's name; vector,
    local: cycles of the lanes, and of moves inside the activation memory."""

    loads: list[tuple[str, tuple[int, int]]]
    vector: int
    local: int
    stores: list[tuple[int, int]]


@dataclass(frozen=True)
class Chunks:
    """All pieces of a layer. in_order: whether the i-th reads only about the i-th part of its inputs."""

    items: list[Chunk]
    parameter_bytes: int
    in_order: bool = True


def chunks(g: Geometry, m: Mapping, r: Residency, machine: Machine) -> Chunks:
    """The pieces in which layers other than convolutions, products and pools are done."""
    lanes = machine.vector.lanes

    def piece(image: int, output: int, vector: int, operand: int = 0) -> Chunk:
        sizes = {"image": 0 if r.image else image, "operand": 0 if r.operand else operand}
        loads = [(name, (1, size)) for name, size in sizes.items() if size]
        return Chunk(loads, vector, 0, [] if r.output else [(1, output)])

    items = []
    if g.kind == "move":
        return Chunks(_moves(g, m, r, machine), 0, in_order=False)
    if g.kind == "elementwise":
        *outer, (inner, _, _) = g.loops
        for low, high in mapping.cut(0, g.loops[0][0], m.tile_h):
            trips = [high - low, *(n for n, _, _ in g.loops[1:])]
            cycles = math.prod(trips[:-1]) * ceil_div(trips[-1], lanes)
            sizes = [mapping.operand_bytes(g, high - low, k) for k in (0, 1)]
            items.append(piece(sizes[0], math.prod(trips), cycles, sizes[1]))
        return Chunks(items, g.record_bytes)
    length, out = g.image[3], g.output[3]
    for low, high in mapping.cut(0, _trips(g), m.tile_h):
        n = high - low
        if g.kind == "table" and g.tables == 1:
            items.append(piece(n, n, ceil_div(TABLE_BYTES, lanes) + ceil_div(n, lanes)))
        elif g.kind == "table":
            items.append(piece(n * length, n * length, ceil_div(length, lanes) * (TABLE_BYTES + n)))
        elif g.kind == "resize":
            ys = [y for a, b, _ in g.loops[low:high] for y in (a, b)]
            size = (max(ys) - min(ys) + 1) * g.image[2] * length
            items.append(piece(size, n * g.output[2] * out, 4 * n * g.output[2] * ceil_div(out, lanes)))
        elif g.kind == "embedding":
            items.append(
                Chunk([("image", (1, n * length)), ("table", (n, out))], 0, 0, [] if r.output else [(1, n * out)])
            )
        else:
            addresses = ("in_address", "in_pitch", "out_address", "out_pitch")
            common: dict[str, Any] = {"rows": n, "length": length, **dict.fromkeys(addresses, 0)}
            rows: Instruction = Softmax(**common, table=0)
            if g.kind == "layer_norm":
                rows = LayerNorm(**common, gain=0, bias=0, shift=1, epsilon=1)
            items.append(piece(n * length, n * length, rows.timing(machine).occupy))
    constants = {"table": TABLE_BYTES * g.tables, "softmax": EXP_TABLE_BYTES, "layer_norm": 6 * length,
                 "resize": COORDINATE_BYTES * g.output[2] + g.record_bytes}  # fmt: skip
    items *= g.image[0] if g.kind == "resize" else 1
    return Chunks(items, constants.get(g.kind, 0), in_order=g.kind != "resize" or g.image[0] == 1)


def _trips(g: Geometry) -> int:
    return g.image_bytes if g.kind == "table" and g.tables == 1 else g.output[1]


def _on_chip(box: Box, width: int) -> int:
    """Cycles of a box inside the activation memory (`isa.dma`)."""
    if box.run > 1 or not box.loops:
        return box.bytes // box.run * ceil_div(box.run, width)
    n, source, target = box.loops[-1]
    conflicts = max(math.gcd(source, width) if source and box.operand >= 0 else 1, math.gcd(target, width))
    return box.bytes // n * ceil_div(n, width // conflicts)


def _moves(g: Geometry, m: Mapping, r: Residency, machine: Machine) -> list[Chunk]:
    width, items = machine.activation_memory.bytes_per_cycle, []
    for box in g.boxes:
        on_chip = r.image or box.operand < 0
        parts = [box] if on_chip or r.output else split(box, m.tile_h)
        for part in parts:
            runs = [(part.bytes // part.run, part.run)]
            local = _on_chip(part, width) if on_chip and r.output else 0
            loads = [] if on_chip else [("image", run) for run in runs]
            items.append(Chunk(loads, 0, local, [] if r.output else runs))
    return items


def _other(g: Geometry, m: Mapping, r: Residency, machine: Machine) -> Work:
    main, constants = machine.main_memory, machine.constant_memory or machine.main_memory
    w, pieces = Work(), chunks(g, m, r, machine)
    for i, chunk in enumerate(pieces.items):
        cycles = sum(w.bring(machine, r, name, [run]) for name, run in chunk.loads)
        w.first_load = cycles if i == 0 else w.first_load
        w.last_store, moved = write(main, chunk.stores)
        w.store, w.main_write = w.store + w.last_store + chunk.local, w.main_write + moved
        w.vector += chunk.vector
    if pieces.parameter_bytes:
        w.first_fetch, moved = read(constants, [(1, pieces.parameter_bytes)])
        w.fetch, w.constant_read = w.fetch + w.first_fetch, w.constant_read + moved
    w.last_vector, w.steps, w.tiles = VECTOR_PIPELINE, len(pieces.items), len(pieces.items)
    return w


def work(g: Geometry, m: Mapping, r: Residency, machine: Machine) -> Work:
    """What the layer occupies and moves."""
    if g.kind in MATRIX_KINDS:
        return _matrix(g, m, r, machine)
    if g.kind in ("depthwise", "pool"):
        return _vector(g, m, r, machine)
    return _other(g, m, r, machine)
