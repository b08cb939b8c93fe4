"""Register tiles by a small cost model: cycles of the inner loop, of edges and of the epilogue, nothing measured.

The inner loop of a tile with A accumulators takes per quad step the largest of: A dots at the level's throughput;
one dot latency (accumulators are independent, so fewer than latency x throughput of them leave units idle); the
vector loads (weights and broadcasts) over two load ports. Output positions and channels that do not divide evenly
run as smaller tiles, whose poor efficiency the model sees too.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

from qcompiler.codegen.cpu.contraction import Geometry, Tile, blocks_of
from qcompiler.codegen.cpu.isa.base import VectorInstructionSet

LOADS_PER_CYCLE = 2.0
EPILOGUE_CYCLES = 2.5  # per accumulator: two conversions, one FMA, its share of packing
STORE_CYCLES = 1.0  # per output position of a tile
TILE_CYCLES = 12.0  # prologue of a tile: addresses, biases, the first loads
L1_BYTES = 32 * 1024
L2_BYTES_PER_CYCLE = 32.0
L2_STALL_BYTES_PER_CYCLE = 256.0  # what fetching weights from L2 costs beside the dots that hide it (Sapphire Rapids)
SWEEP_BYTES = 256 * 1024  # a set this small is cheap to sweep again for every block of the other
TASK_MACS = 1 << 19  # about two microseconds: bookkeeping costs nothing, and threads split evenly


def _tile_cycles(isa: VectorInstructionSet, positions: int, vectors: int, geometry: Geometry) -> float:
    """Cycles of one register tile."""
    block = isa.block
    units = geometry.taps * block.units(geometry.quads)
    accumulators = block.groups(positions) * block.rows * vectors
    dots = accumulators + isa.operand_dots * positions
    compute = max(dots / isa.dots_per_cycle, isa.dot_latency)
    loads = (positions * block.depth / block.run + vectors * isa.weight_registers) / LOADS_PER_CYCLE
    step = max(compute, loads)
    weight_bytes = vectors * isa.weight_registers * isa.vector_bytes
    if weight_bytes * units > L1_BYTES:
        step = max(step, weight_bytes / L2_BYTES_PER_CYCLE) + weight_bytes / L2_STALL_BYTES_PER_CYCLE
    return step * units + EPILOGUE_CYCLES * positions * vectors + STORE_CYCLES * positions + TILE_CYCLES


def _parts(total: int, tile: int) -> list[tuple[int, int]]:
    """(how often, size) of the tiles that cover `total`: whole ones and a rest."""
    full, rest = divmod(total, tile)
    return [(n, size) for n, size in ((full, tile), (1, rest)) if n and size]


def cycles(isa: VectorInstructionSet, geometry: Geometry, lines: int, pixels: int, vectors: int) -> float:
    """Modelled cycles of the whole kernel on one thread."""
    blocks = blocks_of(geometry, vectors, isa.lanes(4))
    per_position = 0.0
    for line_count, line in _parts(geometry.lines, lines):
        for pixel_count, pixel in _parts(geometry.pixels, pixels):
            for vector_count, vector in ((blocks.full, vectors), (1, blocks.tail_vectors)):
                if vector_count and vector:
                    cost = _tile_cycles(isa, line * pixel, vector, geometry)
                    per_position += line_count * pixel_count * vector_count * cost
    return per_position * geometry.images * geometry.groups


def fits(isa: VectorInstructionSet, positions: int, vectors: int) -> bool:
    """Whether the tile's accumulators, weights and operands fit into the vector registers."""
    groups, rows = isa.block.groups(positions), isa.block.rows
    runs = groups * rows if isa.block.run > isa.block.depth or isa.block.keeps == "operands" else 1
    kept = vectors if isa.block.keeps == "weights" else 1
    streams = runs * isa.operand_registers + kept * isa.weight_registers
    return groups * rows * vectors + streams + isa.dot_temporaries <= isa.registers


def choose_tile(isa: VectorInstructionSet, geometry: Geometry) -> Tile:
    """The cheapest tile by the model."""
    return rank_tiles(isa, geometry)[0][1]


@functools.cache
def rank_tiles(isa: VectorInstructionSet, geometry: Geometry) -> tuple[tuple[float, Tile], ...]:
    """All tiles with their modelled cycles, cheapest first; ties go to fewer lines and wider pixels, fewer vectors."""
    if geometry.weight_copies:
        widths: Iterable[int] = (4,)  # what packing at run time makes
    else:
        most = isa.most_vectors_alone if geometry.lines * geometry.pixels == 1 else isa.most_vectors
        widths = range(1, min(-(-geometry.channels // isa.lanes(4)), most) + 1)
    candidates = [
        (cycles(isa, geometry, lines, pixels, vectors), lines, -pixels, vectors)
        for vectors in widths
        for lines in range(1, min(geometry.lines, 4) + 1)
        for pixels in range(1, min(geometry.pixels, isa.registers) + 1)
        if lines * pixels <= isa.most_positions
        if fits(isa, lines * pixels, vectors) and (lines == 1 or pixels == geometry.pixels)
    ]
    return tuple(
        (cost, _tile(isa, geometry, lines, -narrow, vectors)) for cost, lines, narrow, vectors in sorted(candidates)
    )


def _tile(isa: VectorInstructionSet, geometry: Geometry, lines: int, pixels: int, vectors: int) -> Tile:
    """With the order and the size of its tasks."""
    weights = geometry.groups * geometry.channels * geometry.taps * geometry.quads * 4
    # The set of the inner sweep is read again for every step of the outer one: keep the larger set outside.
    channels_outer = weights > SWEEP_BYTES or weights * geometry.images * geometry.lines >= geometry.input_elements
    whole = geometry.pixels // pixels
    macs = lines * pixels * vectors * isa.lanes(4) * geometry.taps * geometry.quads * 4
    chunk = whole if geometry.lines > 1 else max(1, min(whole, TASK_MACS // macs))
    return Tile(lines, pixels, vectors, chunk, channels_outer)
