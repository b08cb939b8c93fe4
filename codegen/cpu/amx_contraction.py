"""The contraction of `contraction.py` on AMX tiles: the same geometry, weights, requantisation and fused operations.

A *block* is up to four accumulator tiles: `row_tiles` runs of `rows` output pixels of a line times `vectors` times
16 channels. A step multiplies `step_quads` quads of every pixel, loaded from the activations as they lie (the stride of
a tile load is the pixel stride), by as many quads of the channels' weights, and sums them up in the tiles. The
finished block goes through a buffer in the first-level cache to vectors, where `Epilogue` ends it.

Two things keep the matrix unit busy. The epilogue of a block is written between the steps of the next one, so that
vector instructions run beside the products. And nothing is ragged: the last run of a line begins earlier instead of
being shorter, so that some pixels are computed twice, by the same task, with the same result.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx

from qcompiler.codegen.cpu.contraction import Geometry, in_units, lane_order
from qcompiler.codegen.cpu.emit import Emitter, Expr, constant, load, splat
from qcompiler.codegen.cpu.epilogue import Epilogue, Fused, FusedOp, pack_rows, pieces
from qcompiler.codegen.cpu.isa.amx import ACCUMULATORS, TILE_BYTES, TILE_ROW_BYTES, Amx
from qcompiler.codegen.cpu.isa.base import Array
from qcompiler.codegen.cpu.kernel import Kernel
from qcompiler.codegen.cpu.packed_weights import Blocks, pack_weights
from qcompiler.codegen.cpu.requantize import Requantizer, Rescale, rescale_constants, rescale_of
from qcompiler.sim.integer_program import Requantize

LANES = TILE_ROW_BYTES // 4
L1_BYTES = 36 * 1024  # of 48 KiB, for operands


@dataclass(frozen=True)
class MatrixTile:
    """How a geometry is cut into blocks.

    rows: pixels of a tile, at most those of a line; row_tiles, vectors: tiles of a block along the positions and
    along the channels; step_quads: quads of one product; blocks: in one task, along the positions; channels_outer:
    tasks run through all positions of one channel block before the next. joined: all lines of an image are one, and
    what lies between the lines of the input is computed too (see `joined_pixels`); a task then holds a whole image.
    """

    rows: int
    row_tiles: int
    vectors: int
    step_quads: int
    blocks: int
    channels_outer: bool
    joined: bool = False

    @property
    def tile_shapes(self) -> list[tuple[int, int]]:
        """(rows, bytes a row) of the tile registers."""
        accumulators = [(self.rows, TILE_ROW_BYTES)] * ACCUMULATORS
        activations = [(self.rows, 4 * self.step_quads)] * len(self.activation_tiles)
        weights = [(self.step_quads, TILE_ROW_BYTES)] * len(self.weight_tiles)
        return accumulators + activations + weights

    @property
    def activation_tiles(self) -> list[int]:
        """Registers of activations; what has fewer than its runs is used in turn."""
        count = 3 if self.row_tiles > 2 else 1 if self.vectors > 2 else 2
        return list(range(ACCUMULATORS, ACCUMULATORS + count))

    @property
    def weight_tiles(self) -> list[int]:
        return list(range(ACCUMULATORS + len(self.activation_tiles), 2 * ACCUMULATORS))


def pitch(geometry: Geometry) -> int:
    """Pixels from one line of the input to the next; zero if that is no whole number."""
    return 0 if geometry.line_stride % geometry.pixel_stride else geometry.line_stride // geometry.pixel_stride


def joined_pixels(geometry: Geometry) -> int:
    """Pixels of an image whose lines are one.

    What is computed between two lines is stored where the next line, or the border, is written afterwards: positions
    come in ascending order.
    """
    return (geometry.lines - 1) * pitch(geometry) + geometry.pixels


def _sweep(geometry: Geometry, tile: MatrixTile) -> tuple[int, int]:
    """Lines of an image and pixels of a line, as the tiles run over them."""
    return (1, joined_pixels(geometry)) if tile.joined else (geometry.lines, geometry.pixels)


def tiles_of_line(geometry: Geometry, tile: MatrixTile) -> int:
    return -(-_sweep(geometry, tile)[1] // tile.rows)


def tiles_of_image(geometry: Geometry, tile: MatrixTile) -> int:
    return _sweep(geometry, tile)[0] * tiles_of_line(geometry, tile)


def blocks_of_image(geometry: Geometry, tile: MatrixTile) -> int:
    return -(-tiles_of_image(geometry, tile) // tile.row_tiles)


def channel_blocks(geometry: Geometry, tile: MatrixTile) -> Blocks:
    return Blocks(LANES, geometry.channels, tile.vectors, whole=geometry.weight_copies > 0)


def _chunks(geometry: Geometry, tile: MatrixTile) -> int:
    return -(-blocks_of_image(geometry, tile) // tile.blocks)


def task_count(geometry: Geometry, tile: MatrixTile) -> int:
    channels = geometry.groups * channel_blocks(geometry, tile).count
    return channels * geometry.images * _chunks(geometry, tile)


def in_steps(geometry: Geometry, step_quads: int) -> Geometry:
    """The geometry with each run of quads filled up to whole steps; what is read behind a run meets zero weights."""
    return dataclasses.replace(geometry, quads=-(-geometry.quads // step_quads) * step_quads)


def amx_kernel(
    name: str, isa: Amx, geometry: Geometry, tile: MatrixTile, weights: Array, bias: Array, offset: int,
    requantize: Requantize, bound: Array, fused: Fused,
) -> Kernel:  # fmt: skip
    """The kernel for constant weights; arguments as for `contraction.contraction_kernel`."""
    whole = in_steps(geometry, tile.step_quads)
    runs = weights.reshape(geometry.groups, geometry.channels, -1, geometry.quads, 4)
    filled = np.pad(runs, ((0, 0),) * 3 + ((0, whole.quads - geometry.quads), (0, 0)))
    weights = filled.reshape(geometry.groups, geometry.channels, whole.taps * whole.quads, 4)
    blocks = channel_blocks(geometry, tile)
    order = lane_order(isa, geometry, blocks)
    sums = weights.astype(np.int64).sum(axis=(2, 3)).ravel()
    corrected = (bias.astype(np.int64) - offset * sums)[np.maximum(order, 0)]
    lane_bias = np.where(order < 0, 0, corrected).astype(np.int32)
    rescale = rescale_of(requantize, bound, isa)
    scales = rescale_constants(requantize, rescale, geometry.output_channels, order)
    constants = (pack_weights(isa, in_units(isa, whole, weights), blocks), lane_bias, *scales)
    return packed_amx_kernel(name, isa, whole, tile, rescale, constants, fused)


def packed_amx_kernel(
    name: str, isa: Amx, geometry: Geometry, tile: MatrixTile, rescale: Rescale, constants: tuple[Array, ...],
    fused: Fused,
) -> Kernel:  # fmt: skip
    """The kernel for weights that are packed already: among the constants or, at run time, among the inputs."""
    parameters = {"geometry": geometry, "tile": tile, "rescale": rescale, "fused": fused.operations}
    constants = (isa.tile_configuration(tile.tile_shapes), *constants, *fused.constants)
    return Kernel(
        name, amx_contraction, parameters, task_count(geometry, tile), constants,
        scratch_bytes=ACCUMULATORS * TILE_BYTES, extended=True,
    )  # fmt: skip


def amx_contraction(
    isa: Amx, geometry: Geometry, tile: MatrixTile, rescale: Rescale, fused: tuple[FusedOp, ...] = ()
) -> Any:
    """The PrimFunc. Buffers as for `contraction.contraction`, the tile configuration first among the constants."""
    return _Writer(isa, geometry, tile, rescale, fused).function()


class _Writer:
    def __init__(
        self, isa: Amx, geometry: Geometry, tile: MatrixTile, rescale: Rescale, fused: tuple[FusedOp, ...]
    ) -> None:
        assert isinstance(isa, Amx) and tile.row_tiles * tile.vectors <= ACCUMULATORS
        self.line_pixels = _sweep(geometry, tile)[1]
        assert tile.rows <= self.line_pixels and geometry.quads % tile.step_quads == 0
        assert not tile.joined or tile.blocks == blocks_of_image(geometry, tile)
        self.isa, self.geometry, self.tile, self.rescale = isa, geometry, tile, rescale
        self.blocks = channel_blocks(geometry, tile)
        self.run_steps = geometry.quads // tile.step_quads
        self.steps = geometry.taps * self.run_steps
        panel = tile.vectors * TILE_ROW_BYTES * geometry.taps * geometry.quads
        window = tile.row_tiles * tile.rows * 4 * geometry.quads
        crowded = panel + window > L1_BYTES
        # What does not stay in the first-level cache until it is read again should not push out what does.
        self.activations_once = crowded and geometry.taps == 1 and geometry.input_elements > L1_BYTES
        self.weights_once = blocks_of_image(geometry, tile) == 1 and not geometry.weight_copies
        self.padded = geometry.groups * self.blocks.total_vectors * LANES
        self.group_weights = (geometry.taps * geometry.quads) * self.blocks.total_vectors * TILE_ROW_BYTES
        self.e = e = Emitter()
        copies = max(geometry.weight_copies, 1)

        def weight_buffers() -> None:
            self.w = e.buffer("w", geometry.groups * self.group_weights * copies, isa.weight_dtype)
            self.bias = e.buffer("bias", self.padded * copies, "int32")

        self.x = e.buffer("x", geometry.input_elements, isa.storage)
        if geometry.weight_copies:
            weight_buffers()
        if geometry.row_bias:
            self.row_bias = e.buffer("row_bias", geometry.input_elements // geometry.pixel_stride, "int32")
        self.epilogue = Epilogue(isa, e, fused, geometry.positions * geometry.output_channels)
        self.configuration = e.buffer("configuration", 64, "uint8")
        if not geometry.weight_copies:
            weight_buffers()
        self.requantizer = Requantizer(isa, rescale, e, self.padded)
        self.epilogue.constants()
        self.sums = e.buffer("sums", ACCUMULATORS * TILE_BYTES // 4, "int32")
        self.y = e.buffer("y", geometry.output_bytes, isa.storage)
        self.task_begin, self.task_end = e.scalar("task_begin"), e.scalar("task_end")

    def function(self) -> Any:
        e, g, tile = self.e, self.geometry, self.tile
        positions = g.images * _chunks(g, tile)
        channels = g.groups * self.blocks.count
        self.isa.configure(e, self.configuration)
        with e.loop(self.task_end - self.task_begin, "task", self.task_begin) as t:
            if tile.channels_outer:
                block, position = _divmod(e, t, positions)
            else:
                position, block = _divmod(e, t, channels)
            group, block = _divmod(e, block, self.blocks.count)
            with e.when(block < self.blocks.full if self.blocks.tail_channels and self.blocks.full else True):
                if self.blocks.full:
                    self._task(position, group, block, tile.vectors, tile.vectors * LANES)
            if self.blocks.tail_channels:
                with e.when(block >= self.blocks.full if self.blocks.full else True):
                    self._task(position, group, block, self.blocks.tail_vectors, self.blocks.tail_channels)
        self.isa.release(e)
        return e.function()

    def _task(self, position: Expr, group: Expr, block: Expr, vectors: int, channels: int) -> None:
        """Some blocks of one image and one block of channels."""
        e, g, tile = self.e, self.geometry, self.tile
        self.vectors, self.channels = vectors, channels
        image, chunk = _divmod(e, position, _chunks(g, tile))
        first_vector = group * self.blocks.total_vectors + block * tile.vectors
        weights = group * self.group_weights + block * ((g.taps * g.quads) * tile.vectors * TILE_ROW_BYTES)
        lane = first_vector * LANES
        source, copy = self._image(image)
        if g.weight_copies > 1:
            weights = weights + copy * (g.groups * self.group_weights)
            lane = lane + copy * self.padded
        self.weights = e.bind(weights, "int32", "weights")
        self.lane = e.bind(lane, "int32", "lane")
        self.scale_lane = e.bind(first_vector * LANES, "int32", "scale_lane")
        self.channel = e.bind(group * g.channels + block * (tile.vectors * LANES), "int32", "channel")
        self.source = e.bind(source + group * g.group_stride, "int32", "source")
        self.image = image
        total = blocks_of_image(g, tile)
        first = e.bind(chunk * tile.blocks, "int32", "first")
        count: Expr | int = tile.blocks
        if total % tile.blocks:
            count = e.bind(tirx.min(constant(tile.blocks), total - first), "int32", "count")
        with e.loop(count, "block") as i:
            self._compute(e.bind(first + i, "int32", "block"), i)
        self._drain(e.bind(first + (count - 1), "int32", "last"))
        if any(g.border):
            begin = e.bind(first * tile.row_tiles, "int32", "begin")
            end = tirx.min((first + count) * tile.row_tiles, constant(tiles_of_image(g, tile)))
            self._border(begin, e.bind(end, "int32", "end"))

    def _image(self, image: Expr) -> tuple[Expr, Expr]:
        """The first input byte of an image and which copy of the weights it takes."""
        source, copy = constant(0), constant(0)
        for extent, source_stride, copy_stride in reversed(self.geometry.image_axes):
            image, index = _divmod(self.e, image, extent)
            source, copy = source + index * source_stride, copy + index * copy_stride
        return source, copy

    # ------------------------------------------------------------------------------------------ positions
    def _place(self, block: Expr, run: Expr | int) -> tuple[Expr, Expr]:
        """(line, first pixel) of a run of a block; runs behind the last one of the image repeat it."""
        e, g, tile = self.e, self.geometry, self.tile
        index = block * tile.row_tiles + run
        total = tiles_of_image(g, tile)
        if total % tile.row_tiles:
            index = tirx.min(index, constant(total - 1))
        line, piece = _divmod(e, e.bind(index, "int32", "run"), tiles_of_line(g, tile))
        pixel = piece * tile.rows
        if self.line_pixels % tile.rows:
            pixel = tirx.min(pixel, constant(self.line_pixels - tile.rows))
        return line, e.bind(pixel, "int32", "pixel")

    # ------------------------------------------------------------------------------------------- products
    def _compute(self, block: Expr, number: Expr) -> None:
        """The products of a block, and between them the epilogue of the one before.

        A tile of the block before is stored just before its register is needed again: a store that waits for its tile
        keeps everything behind it from being issued.
        """
        e, g, tile = self.e, self.geometry, self.tile
        sources = []
        for run in range(tile.row_tiles):
            line, pixel = self._place(block, run)
            sources.append(e.bind(self.source + line * g.line_stride + pixel * g.pixel_stride, "int32", "in"))
        units = self._units()
        # Behind the first step only if there are not many others: each place is one more copy of the code.
        start = 1 if self.steps > 2 else 0
        each = -(-units // (self.steps - start))  # units of the epilogue behind a step
        end = start + -(-units // each)  # behind these steps stands some of it
        before = e.bind(block - 1, "int32", "before")

        def epilogue(step: Expr) -> None:
            unit = e.bind((step - start) * each, "int32", "unit")
            count = tirx.min(constant(each), units - unit) if units % each else each
            with e.when(number > 0), e.loop(count, "unit", unit) as i:
                self._finish(before, i)

        self._step(sources, constant(0), block, first=True)
        if start == 0:
            epilogue(constant(0))
        if end > 1:
            with e.loop(end - 1, "step", 1) as step:
                self._step(sources, step, block)
                epilogue(step)
        if self.steps > end:
            with e.loop(self.steps - end, "step", end) as step:
                self._step(sources, step, block)

    def _drain(self, block: Expr) -> None:
        """Store and end the last block of a task."""
        e, tile = self.e, self.tile
        for run in range(tile.row_tiles):
            for v in range(self.vectors):
                self._store(self._accumulator(run, v))
        with e.loop(self._units(), "unit") as unit:
            self._finish(block, unit)

    def _accumulator(self, run: int, vector: int) -> int:
        return run * self.vectors + vector

    def _store(self, tile: int) -> None:
        self.isa.tile_store(self.e, tile, self.sums, constant(tile * TILE_BYTES // 4), TILE_ROW_BYTES)

    def _step(self, sources: list[Expr], step: Expr, block: Expr, first: bool = False) -> None:
        """One product of every pair of tiles; those that share weights follow each other.

        first: of the block: the tiles hold the sums of the block before, which are stored here.
        """
        e, g, tile, isa = self.e, self.geometry, self.tile, self.isa
        tap, part = _divmod(e, step, self.run_steps)
        row, column = _divmod(e, tap, g.columns[0])
        at = e.bind(row * g.rows[1] + column * g.columns[1] + part * (4 * tile.step_quads), "int32", "at")
        step_bytes = tile.step_quads * self.vectors * TILE_ROW_BYTES
        base = e.bind(self.weights + step * step_bytes, "int32", "base")
        self._prefetch(step, block, step_bytes)
        dots = [(run, v) for v in range(self.vectors) for run in range(tile.row_tiles)]
        for action in _scheduled(dots, tile.activation_tiles, tile.weight_tiles):
            if isinstance(action, _Load):
                if action.weights:
                    index, stride = base + action.number * TILE_ROW_BYTES, self.vectors * TILE_ROW_BYTES
                    isa.tile_load(e, action.tile, self.w, index, stride, once=self.weights_once)
                else:
                    index = sources[action.number] + at
                    isa.tile_load(e, action.tile, self.x, index, g.pixel_stride, once=self.activations_once)
                continue
            accumulator = self._accumulator(action.run, action.vector)
            if first:
                self._store(accumulator)
                isa.tile_zero(e, accumulator)
            isa.tile_dot(e, accumulator, action.a, action.b)

    def _prefetch(self, step: Expr, block: Expr, step_bytes: int) -> None:
        """Fetch a share of the next channel block's weights: in a network they come from memory.

        Behind the last block lies the next layer.
        """
        if self.geometry.weight_copies:
            return
        sweep = blocks_of_image(self.geometry, self.tile) * self.geometry.images
        lines = -(-step_bytes // TILE_ROW_BYTES)
        share = -(-lines // (sweep if self.tile.channels_outer else self.tile.blocks))
        ahead = self.steps * step_bytes
        start = self.e.bind(self.weights + ahead + step * step_bytes + block * (share * 64), "int32", "ahead")
        for i in range(share):
            self.e.prefetch(self.w, start + i * 64)

    # ------------------------------------------------------------------------------------------- epilogue
    @property
    def _unit_rows(self) -> int:
        """Rows that are packed together."""
        return min(4 // self.vectors, self.tile.rows)

    def _units_of_run(self) -> int:
        return -(-self.tile.rows // self._unit_rows)

    def _units(self) -> int:
        return self.tile.row_tiles * self._units_of_run()

    def _finish(self, block: Expr, unit: Expr) -> None:
        """Some rows of a finished block: requantise, pack, apply the fused operations and store."""
        e, g, tile = self.e, self.geometry, self.tile
        rows = self._unit_rows
        run, index = _divmod(e, unit, self._units_of_run())
        first_row = index * rows
        if tile.rows % rows:
            first_row = tirx.min(first_row, constant(tile.rows - rows))
        first_row = e.bind(first_row, "int32", "row")
        line, pixel = self._place(block, run)
        pixel = e.bind(pixel + first_row, "int32", "pixel")
        sums = e.bind(run * (self.vectors * TILE_BYTES // 4) + first_row * LANES, "int32", "sums")
        dtype = f"int32x{LANES}"
        scaled = []
        for r in range(rows):
            if g.row_bias:
                start = self.source + line * g.line_stride + (pixel + r) * g.pixel_stride
                at = tirx.truncdiv(start, constant(g.pixel_stride))
                addend = e.bind(splat(load(self.row_bias, at, 1), "int32", LANES), dtype)
            for v in range(self.vectors):
                bias = e.bind(load(self.bias, self.lane + v * LANES, LANES), dtype, "bias")
                acc = load(self.sums, sums + (v * TILE_BYTES // 4 + r * LANES), LANES) + bias
                if g.row_bias:
                    acc = acc + addend
                scales = self.requantizer.constants(self.scale_lane + v * LANES, LANES)
                scaled.append(e.bind(self.requantizer.apply(acc, scales, LANES), dtype))
        places = [self._output(line, pixel + r) for r in range(rows)]
        width = self.vectors * LANES
        valid = min(width, self.channels)
        packed = pack_rows(self.isa, e, scaled, rows, valid, self.rescale)
        at = [e.bind(target * g.output_channels + self.channel, "int32", "to") for target, _ in places]
        operand_at = [operand * g.output_channels + self.channel for _, operand in places]
        self.epilogue.finish(packed, at, operand_at, width, valid, self.y)

    def _output(self, line: Expr, pixel: Expr) -> tuple[Expr, Expr]:
        """The position of a pixel in the output, and in the fused operations' operands, which have no border."""
        e, g = self.e, self.geometry
        if self.tile.joined:
            line, pixel = _divmod(e, pixel, pitch(g))
        target = (self.image * g.bordered_lines + line + g.border[0]) * g.bordered_pixels + g.border[1] + pixel
        target = e.bind(target, "int32", "out")
        if not any(g.border):
            return target, target
        return target, e.bind((self.image * g.lines + line) * g.pixels + pixel, "int32", "operand")

    # --------------------------------------------------------------------------------------------- border
    def _border(self, begin: Expr, end: Expr) -> None:
        """Fill what lies around the runs begin..end, in the task's channels only."""
        e, g, tile = self.e, self.geometry, self.tile
        top, left, bottom, right = g.border

        def fill(position: Expr, count: int) -> None:
            if count:
                with e.loop(count, "border") as i:
                    at = (position + i) * g.output_channels + self.channel
                    for start, length in pieces(self.channels):
                        e.store(self.y, at + start, splat(g.fill, self.isa.storage, length), length)

        def surround(line: Expr) -> None:
            start = (self.image * g.bordered_lines + line + top) * g.bordered_pixels
            start = e.bind(start, "int32", "start")
            fill(start, left)
            fill(start + (left + g.pixels), right)
            if top:
                with e.when(line == 0):
                    fill(start - top * g.bordered_pixels, top * g.bordered_pixels)
            if bottom:
                with e.when(line == g.lines - 1):
                    fill(start + g.bordered_pixels, bottom * g.bordered_pixels)

        if tile.joined:
            with e.loop(g.lines, "line") as line:
                surround(line)
            return
        pieces_of_line = tiles_of_line(g, tile)
        with e.loop(end - begin, "run", begin) as run:
            line, piece = _divmod(e, run, pieces_of_line)
            with e.when(piece == 0 if pieces_of_line > 1 else True):
                surround(line)


@dataclass(frozen=True)
class _Load:
    """Of a run of activations or of a vector of weights."""

    tile: int
    weights: bool
    number: int


@dataclass(frozen=True)
class _Dot:
    run: int
    vector: int
    a: int
    b: int


def _scheduled(dots: list[tuple[int, int]], a_tiles: list[int], b_tiles: list[int]) -> list[_Load | _Dot]:
    """Products of (run, vector) in the order given, and before them loads as early as their registers are free."""
    loads: list[tuple[_Load, int]] = []  # and the product that reads what was in the register before
    products: list[_Dot] = []
    held: dict[int, _Load] = {}
    read: dict[int, int] = {}
    for i, (run, vector) in enumerate(dots):
        product = _Dot(run, vector, a_tiles[run % len(a_tiles)], b_tiles[vector % len(b_tiles)])
        for load_ in (_Load(product.b, True, vector), _Load(product.a, False, run)):
            if held.get(load_.tile) != load_:
                loads.append((load_, read.get(load_.tile, -1)))
                held[load_.tile] = load_
            read[load_.tile] = i
        products.append(product)
    out: list[_Load | _Dot] = []
    for i, product in enumerate(products):
        while loads and loads[0][1] < i:
            out.append(loads.pop(0)[0])
        out.append(product)
    return out


def _divmod(e: Emitter, value: Expr, divisor: int) -> tuple[Expr, Expr]:
    """Quotient and remainder of a non-negative number."""
    if divisor == 1:
        return value, constant(0)
    quotient = e.bind(tirx.truncdiv(value, constant(divisor)), "int32", "q")
    return quotient, e.bind(value - quotient * divisor, "int32", "r")
