"""AMX or vectors, and which block of tiles: a cost model beside that of `tiles.py`, in the same cycles.

A step of a block takes the longer of its products and its tile loads. A product starts every max(rows, quads) cycles,
or every `rows` where it shares its weights with the one before, but never faster than every tenth. A tile load
takes half a cycle a row and three more for each row that crosses a cache line; what comes from the second-level
cache takes its bandwidth. The epilogue of a block runs beside the next block's products; of what is shorter a part
remains, because neither hides the other completely. All constants were measured on Sapphire Rapids.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

from qcompiler.codegen.cpu.amx_contraction import (
    MatrixTile,
    blocks_of_image,
    channel_blocks,
    in_steps,
    joined_pixels,
    pitch,
)
from qcompiler.codegen.cpu.contraction import Geometry
from qcompiler.codegen.cpu.isa.amx import TILE_ROW_BYTES, TILE_ROWS, Amx
from qcompiler.codegen.cpu.operand_packing import VECTORS
from qcompiler.codegen.cpu.tiles import rank_tiles

LEAST_PRODUCT = 10.0  # cycles between two products of any shape
SPLIT_ROW = 3.0  # more for a row that crosses a cache line
L1_BYTES = 40 * 1024
NEAR_INPUT = 44 * 1024  # activations that stay in the first-level cache while weights stream past it
L2_BYTES_PER_CYCLE = 40.0
UNIT_CYCLES = 14.0  # epilogue of 64 bytes of output
BLOCK_CYCLES = 70.0  # biases, stores of the sums, the latency of the last product
UNHIDDEN = 0.35  # of the shorter of products and epilogue
CALL_CYCLES = 400.0  # configuration and release, on one thread
GAIN = 0.9  # AMX must be this much cheaper by the model
SWEEP_BYTES = 256 * 1024
TASK_CYCLES = 12_000.0
SHAPES = ((2, 2), (1, 4), (4, 1), (1, 3), (3, 1), (1, 2), (2, 1), (1, 1))
LEAST_ROWS = 4
JOINED_TASKS = 16


@dataclass(frozen=True)
class _Block:
    rows: int
    row_tiles: int
    vectors: int
    step_quads: int
    joined: bool = False


def _tile(block: _Block, blocks: int, channels_outer: bool) -> MatrixTile:
    return MatrixTile(
        block.rows, block.row_tiles, block.vectors, block.step_quads, blocks, channels_outer, block.joined
    )  # fmt: skip


def _block_cycles(geometry: Geometry, block: _Block, vectors: int) -> float:
    steps = geometry.taps * geometry.quads // block.step_quads
    first = max(block.rows, block.step_quads, LEAST_PRODUCT)
    products = vectors * (first + (block.row_tiles - 1) * max(block.rows, LEAST_PRODUCT))
    row_bytes = 4 * block.step_quads
    a_load = block.rows * (0.5 + SPLIT_ROW * _split_share(geometry, row_bytes))
    a_loads = block.row_tiles * (vectors if block.row_tiles > 2 else 1)
    loads = a_loads * a_load + vectors * block.step_quads * 0.5
    panel = vectors * TILE_ROW_BYTES * (geometry.taps * geometry.quads)
    window = block.row_tiles * block.rows * row_bytes * steps
    far = (block.row_tiles * block.rows * row_bytes if geometry.input_elements > NEAR_INPUT else 0) + (
        vectors * TILE_ROW_BYTES * block.step_quads if panel + min(window, geometry.input_elements) > L1_BYTES else 0
    )
    work = steps * max(products, loads + far / L2_BYTES_PER_CYCLE)
    units = block.row_tiles * -(-block.rows // max(1, 4 // vectors))
    epilogue = units * UNIT_CYCLES
    return max(work, epilogue) + UNHIDDEN * min(work, epilogue) + BLOCK_CYCLES


def _split_share(geometry: Geometry, row_bytes: int) -> float:
    """The share of rows, starting at every multiple of the strides, that cross a cache line."""
    step = math.gcd(geometry.pixel_stride, geometry.line_stride, geometry.rows[1], geometry.columns[1], row_bytes, 64)
    starts = range(0, 64, step) if step else range(1)
    return sum(s + row_bytes > 64 for s in starts) / len(starts)


def _cycles(geometry: Geometry, block: _Block) -> float:
    whole = in_steps(geometry, block.step_quads)
    tile = _tile(block, 1, True)
    channels = channel_blocks(geometry, tile)
    total = 0.0
    for count, vectors in ((channels.full, block.vectors), (1, channels.tail_vectors)):
        if count and vectors:
            total += count * _block_cycles(whole, block, vectors)
    return total * blocks_of_image(geometry, tile) * geometry.images * geometry.groups + CALL_CYCLES


def _step_sizes(geometry: Geometry) -> list[int]:
    """Quads of a product: as few steps as possible, or parts of a row that never cross a cache line."""
    if geometry.weight_copies:  # packed at run time without filling: steps must divide the run
        return [q for q in range(TILE_ROWS, 0, -1) if geometry.quads % q == 0][:1]
    steps = -(-geometry.quads // TILE_ROWS)
    sizes = {-(-geometry.quads // steps)}
    sizes.update(q for q in (TILE_ROWS, 8) if q <= geometry.quads)
    return sorted(sizes)


def choose_matrix_tile(isa: Amx, geometry: Geometry) -> MatrixTile | None:
    """The cheapest block of tiles by the model, or None where vectors are cheaper."""
    ranked = rank_matrix_tiles(geometry)
    if not ranked or ranked[0][0] > GAIN * rank_tiles(isa, geometry)[0][0]:
        return None
    return ranked[0][1]


@functools.cache
def rank_matrix_tiles(geometry: Geometry) -> tuple[tuple[float, MatrixTile], ...]:
    """All blocks of tiles with their modelled cycles, cheapest first."""
    if geometry.pixels < LEAST_ROWS:
        return ()
    widest = -(-geometry.channels // (TILE_ROW_BYTES // 4))
    most = min(TILE_ROWS, geometry.pixels)
    runs = {-(-geometry.pixels // r) for r in range(LEAST_ROWS, most + 1)}
    rows = [(-(-geometry.pixels // run), False) for run in runs]
    if _may_join(geometry, widest):
        rows.append((min(TILE_ROWS, joined_pixels(geometry)), True))
    candidates = [
        _Block(row_count, row_tiles, vectors, quads, joined)
        for row_count, joined in rows
        for row_tiles, vectors in SHAPES
        for quads in _step_sizes(geometry)
        if (vectors == VECTORS if geometry.weight_copies else vectors <= widest)
    ]
    costs = {block: _cycles(geometry, block) for block in candidates}
    return tuple((costs[block], _tasks(geometry, block)) for block in sorted(costs, key=costs.__getitem__))


def _may_join(geometry: Geometry, channel_vectors: int) -> bool:
    """Whether lines can be computed as one: little between them, and tasks enough without dividing an image."""
    if geometry.lines == 1 or not geometry.pixels <= pitch(geometry) <= 2 * geometry.pixels:
        return False
    return geometry.images * geometry.groups * channel_vectors >= JOINED_TASKS


def _tasks(geometry: Geometry, block: _Block) -> MatrixTile:
    tile = _tile(block, 1, True)
    weights = geometry.groups * geometry.channels * (geometry.taps * geometry.quads) * 4
    # The set of the inner sweep is read again for every step of the outer one: keep the larger set outside.
    channels_outer = weights > SWEEP_BYTES or weights >= geometry.input_elements
    cost = _block_cycles(in_steps(geometry, block.step_quads), block, block.vectors)
    whole = blocks_of_image(geometry, tile)
    blocks = whole if block.joined else max(1, min(whole, int(TASK_CYCLES / cost)))
    return _tile(block, blocks, channels_outer)
