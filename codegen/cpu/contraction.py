"""The template of all dense matrix work: output pixels times output channels, summed over quads of input bytes.

A convolution, a 1x1 convolution, a fully connected layer and a batched matrix product differ only in where the
bytes of an output pixel's window lie: some kernel rows, some kernel columns, some contiguous quads each, at constant
strides from the pixel's first byte (`Geometry`). A register tile holds ``lines x pixels x vectors`` accumulators;
each step loads a run of every pixel and as many units of packed weights, and multiplies them in the blocks that the
instruction set describes (`isa.base.Block`). The tile ends in registers: requantise, pack, fused operations, store.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm import tirx

from qcompiler.codegen.cpu.emit import Emitter, Expr, Registers, cast, constant, load, splat
from qcompiler.codegen.cpu.epilogue import Epilogue, Fused, FusedOp, pack_rows, pieces
from qcompiler.codegen.cpu.isa.base import VectorInstructionSet
from qcompiler.codegen.cpu.kernel import Kernel
from qcompiler.codegen.cpu.packed_weights import Blocks, channel_order, pack_units, pack_weights
from qcompiler.codegen.cpu.requantize import Requantizer, Rescale, rescale_constants, rescale_of
from qcompiler.sim.integer_program import Requantize

Array = npt.NDArray[Any]
Border = tuple[int, int, int, int]
Stream = Callable[[], list[Expr]]
NO_BORDER: Border = (0, 0, 0, 0)


@dataclass(frozen=True)
class Geometry:
    """Where everything lies. All strides count elements: stored int8 values, in the input of `operand_dtype`.

    images x lines x pixels: the output positions. image_axes: (extent, input stride, weight stride) of the axes that
    number the images; weight strides count copies of the weights and are zero for constant ones. rows, columns:
    (count, input stride) of kernel rows and columns; quads: contiguous quads under one kernel row and column.
    groups: independent channel groups, `channels` outputs each, their inputs `group_stride` apart. weight_copies:
    zero for constant weights; otherwise weights and biases are inputs, packed at run time in blocks of whole
    tiles. row_bias: an int32 for every input line of `pixel_stride` bytes is added to the accumulators of its output.
    border: (top, left, bottom, right) positions around each output image that the kernel fills with the byte `fill`,
    so that a convolution which pads can read the result as it lies.
    """

    image_axes: tuple[tuple[int, int, int], ...]
    lines: int
    pixels: int
    channels: int
    quads: int
    input_elements: int
    line_stride: int
    pixel_stride: int
    rows: tuple[int, int] = (1, 0)
    columns: tuple[int, int] = (1, 0)
    groups: int = 1
    group_stride: int = 0
    weight_copies: int = 0
    row_bias: bool = False
    border: Border = NO_BORDER
    fill: int = 0

    @property
    def images(self) -> int:
        return math.prod(extent for extent, _, _ in self.image_axes)

    @property
    def taps(self) -> int:
        return self.rows[0] * self.columns[0]

    @property
    def output_channels(self) -> int:
        return self.groups * self.channels

    @property
    def positions(self) -> int:
        return self.images * self.lines * self.pixels

    @property
    def bordered_pixels(self) -> int:
        return self.pixels + self.border[1] + self.border[3]

    @property
    def bordered_lines(self) -> int:
        return self.lines + self.border[0] + self.border[2]

    @property
    def output_bytes(self) -> int:
        return self.images * self.bordered_lines * self.bordered_pixels * self.output_channels


@dataclass(frozen=True)
class Tile:
    """A register tile of lines x pixels output positions and `vectors` vectors of channels.

    chunk: pixel tiles in one task. channels_outer: tasks run through all positions of one channel block before the
    next block (else through all channel blocks of some positions).
    """

    lines: int
    pixels: int
    vectors: int
    chunk: int
    channels_outer: bool


def blocks_of(geometry: Geometry, vectors: int, lanes: int) -> Blocks:
    return Blocks(lanes, geometry.channels, vectors, whole=geometry.weight_copies > 0)


def task_count(geometry: Geometry, tile: Tile, lanes: int) -> int:
    blocks = blocks_of(geometry, tile.vectors, lanes)
    return geometry.groups * blocks.count * _position_blocks(geometry, tile)


def _line_groups(geometry: Geometry, tile: Tile) -> int:
    return -(-geometry.lines // tile.lines)


def _chunks(geometry: Geometry, tile: Tile) -> int:
    return -(-(geometry.pixels // tile.pixels) // tile.chunk)


def _position_blocks(geometry: Geometry, tile: Tile) -> int:
    return geometry.images * _line_groups(geometry, tile) * _chunks(geometry, tile)


def contraction_kernel(
    name: str, isa: VectorInstructionSet, geometry: Geometry, tile: Tile, weights: Array, bias: Array, offset: int,
    requantize: Requantize, bound: Array, fused: Fused,
) -> Kernel:  # fmt: skip
    """The kernel for constant weights.

    weights: int8 [groups, channels, window quads, 4]; bias: int32 [groups * channels]; offset: what stored input
    bytes exceed centred values by, taken out of the bias; bound: largest |accumulator| of each channel.
    """
    blocks = blocks_of(geometry, tile.vectors, isa.lanes(4))
    order = lane_order(isa, geometry, blocks)
    sums = weights.astype(np.int64).sum(axis=(2, 3)).ravel()
    corrected = (bias.astype(np.int64) - offset * sums)[np.maximum(order, 0)]
    # Accumulators wrap modulo 2**32; only their final value, which the program bounds, has to fit.
    lane_bias = np.where(order < 0, 0, corrected).astype(np.int32)
    rescale = rescale_of(requantize, bound, isa)
    scales = rescale_constants(requantize, rescale, geometry.output_channels, order)
    constants = (pack_weights(isa, in_units(isa, geometry, weights), blocks), lane_bias, *scales, *fused.constants)
    parameters = {"geometry": geometry, "tile": tile, "rescale": rescale, "fused": fused.operations}
    return Kernel(name, contraction, parameters, task_count(geometry, tile, isa.lanes(4)), constants)


def in_units(isa: VectorInstructionSet, geometry: Geometry, weights: Array) -> Array:
    """int8 [groups, channels, window quads, 4] as [groups, channels, window units, depth], zeros behind each tap."""
    groups, channels = weights.shape[:2]
    depth, units = isa.block.depth, isa.block.units(geometry.quads)
    taps = weights.reshape(groups, channels, geometry.taps, geometry.quads * 4)
    padded = np.pad(taps, ((0, 0),) * 3 + ((0, units * depth - geometry.quads * 4),))
    return padded.reshape(groups, channels, geometry.taps * units, depth)


def lane_order(isa: VectorInstructionSet, geometry: Geometry, blocks: Blocks) -> npt.NDArray[np.int64]:
    """The output channel of every lane of all groups in kernel order, -1 for padding lanes."""
    one = channel_order(isa, blocks)
    starts = np.arange(geometry.groups)[:, None] * geometry.channels
    return np.where(one < 0, -1, one + starts).ravel()


def _tiles_per_line(geometry: Geometry, tile: Tile) -> int:
    return -(-geometry.pixels // tile.pixels)


def sweep_tiles(geometry: Geometry, tile: Tile) -> int:
    """Tiles of one channel block before the next block begins."""
    if tile.channels_outer:
        return geometry.images * _line_groups(geometry, tile) * _tiles_per_line(geometry, tile)
    return min(tile.chunk, _tiles_per_line(geometry, tile))


def contraction(
    isa: VectorInstructionSet, geometry: Geometry, tile: Tile, rescale: Rescale, fused: tuple[FusedOp, ...] = ()
) -> Any:
    """The PrimFunc. Buffers: x, packed weights and bias if they are not constant, row bias if there is one, the fused

    operations' second operands; constants: packed weights and bias, scales, the fused operations' own; the output.
    """
    return Writer(isa, geometry, tile, rescale, fused).function()


class Writer:
    """Emits the loops; `paired_contraction` has the same ones around another inner loop."""

    def __init__(
        self, isa: VectorInstructionSet, geometry: Geometry, tile: Tile, rescale: Rescale, fused: tuple[FusedOp, ...]
    ) -> None:
        self.isa, self.geometry, self.tile = isa, geometry, tile
        self.lanes = isa.lanes(4)
        self.acc_dtype = f"int32x{self.lanes}"
        self.blocks = blocks_of(geometry, tile.vectors, self.lanes)
        self.e = e = Emitter()
        self.padded = geometry.groups * self.blocks.total_vectors * self.lanes
        self.units = isa.block.units(geometry.quads)  # of one tap
        self.window_units = geometry.taps * self.units
        self.vector_elements = isa.block.depth * self.lanes
        # In elements of the weight buffer: one group's channels over the whole window.
        self.group_weights = self.window_units * self.blocks.total_vectors * self.vector_elements
        self.input_buffers()
        if geometry.weight_copies:
            self.weight_buffers()
        if geometry.row_bias:
            self.row_bias = e.buffer("row_bias", geometry.input_elements // geometry.pixel_stride, "int32")
        elements = geometry.positions * geometry.output_channels
        self.epilogue = Epilogue(isa, e, fused, elements)
        if not geometry.weight_copies:
            self.weight_buffers()
        self.requantizer = Requantizer(isa, rescale, e, self.padded)
        self.rescale = rescale
        self.epilogue.constants()
        self.scratch_buffer()
        self.y = e.buffer("y", geometry.output_bytes, self.isa.storage)
        self.task_begin, self.task_end = e.scalar("task_begin"), e.scalar("task_end")

    def input_buffers(self) -> None:
        self.x = self.e.buffer("x", self.geometry.input_elements, self.isa.operand_dtype)

    def scratch_buffer(self) -> None:
        """Declares it, for kernels that have one."""

    def begin_task(self, task: Expr, position: Expr, block: Expr) -> None:
        """What comes before a task; block: of channels, counted over the groups."""

    def weight_buffers(self) -> None:
        copies = max(self.geometry.weight_copies, 1)
        weights = self.geometry.groups * self.group_weights * copies
        self.w = self.e.buffer("w", weights, self.isa.weight_dtype)
        self.bias = self.e.buffer("bias", self.padded * copies, "int32")

    def function(self) -> Any:
        e, g, tile = self.e, self.geometry, self.tile
        positions = _position_blocks(g, tile)
        channel_blocks = g.groups * self.blocks.count
        with e.loop(self.task_end - self.task_begin, "task", self.task_begin) as t:
            if tile.channels_outer:
                block, position = divide(e, t, positions)
            else:
                position, block = divide(e, t, channel_blocks)
            self.begin_task(t, position, block)
            group, block = divide(e, block, self.blocks.count)
            with e.when(block < self.blocks.full if self.blocks.tail_channels and self.blocks.full else True):
                if self.blocks.full:
                    self._channel_block(position, group, block, tile.vectors, tile.vectors * self.lanes)
            if self.blocks.tail_channels:
                with e.when(block >= self.blocks.full if self.blocks.full else True):
                    self._channel_block(position, group, block, self.blocks.tail_vectors, self.blocks.tail_channels)
        return e.function()

    def _channel_block(self, position: Expr, group: Expr, block: Expr, vectors: int, channels: int) -> None:
        """All positions of one task for one block of channels."""
        e, g, tile = self.e, self.geometry, self.tile
        image, line_group, line_and_image, chunk = self.place(position)
        first_vector = group * self.blocks.total_vectors + block * tile.vectors
        weights = group * self.group_weights + block * (self.window_units * tile.vectors * self.vector_elements)
        lane = first_vector * self.lanes
        image_source, copy = self.image(image)
        if g.weight_copies > 1:
            weights = weights + copy * (g.groups * self.group_weights)
            lane = lane + copy * self.padded
        self.vectors, self.channels = vectors, channels
        self.weights = e.bind(weights, "int32", "weights")
        self.lane = e.bind(lane, "int32", "lane")
        self.scale_lane = e.bind(first_vector * self.lanes, "int32", "scale_lane")
        self.channel = e.bind(group * g.channels + block * (tile.vectors * self.lanes), "int32", "channel")
        tiles_before = line_and_image * _tiles_per_line(g, tile) + chunk * tile.chunk
        self.first_tile = tiles_before if tile.channels_outer else constant(0)
        line = line_group * tile.lines
        self.source = e.bind(image_source + line * g.line_stride + group * g.group_stride, "int32", "source")
        # Positions in the output, and in the fused operations' operands, which have no border.
        first = (image * g.bordered_lines + line + g.border[0]) * g.bordered_pixels + g.border[1]
        self.target = e.bind(first, "int32", "target")
        self.operand = e.bind((image * g.lines + line) * g.pixels, "int32", "operand") if any(g.border) else self.target
        tail_lines = g.lines % tile.lines
        if g.lines >= tile.lines:
            with e.when(line_group < g.lines // tile.lines if tail_lines else True):
                self._line_group(tile.lines, line, chunk)
        if tail_lines:
            with e.when(line_group >= g.lines // tile.lines if g.lines >= tile.lines else True):
                self._line_group(tail_lines, line, chunk)

    def place(self, position: Expr) -> tuple[Expr, Expr, Expr, Expr]:
        """Image, group of lines in it, group of lines in all, and chunk of a task's positions."""
        line_and_image, chunk = divide(self.e, position, _chunks(self.geometry, self.tile))
        image, line_group = divide(self.e, line_and_image, _line_groups(self.geometry, self.tile))
        return image, line_group, line_and_image, chunk

    def image(self, image: Expr) -> tuple[Expr, Expr]:
        """The first input byte of an image and which copy of the weights it takes."""
        source, copy = constant(0), constant(0)
        for extent, source_stride, copy_stride in reversed(self.geometry.image_axes):
            image, index = divide(self.e, image, extent)
            source, copy = source + index * source_stride, copy + index * copy_stride
        return source, copy

    def _line_group(self, lines: int, line: Expr, chunk: Expr) -> None:
        e, g, tile = self.e, self.geometry, self.tile
        full, rest = divmod(g.pixels, tile.pixels)
        chunks = _chunks(g, tile)
        count: Expr | int = full if chunks == 1 else tile.chunk
        if chunks > 1 and full % tile.chunk:
            count = tirx.min(constant(tile.chunk), full - chunk * tile.chunk)
        with e.loop(count, "tile") as i:
            self._tile(lines, tile.pixels, (chunk * tile.chunk + i) * tile.pixels, self.first_tile + i)
        if rest:
            with e.when(chunk == chunks - 1 if chunks > 1 else True):
                self._tile(
                    lines, rest, constant(full * tile.pixels), self.first_tile + (full - (chunks - 1) * tile.chunk)
                )
        if any(g.border):
            with e.when(chunk == 0 if chunks > 1 else True):
                self._border(lines, line)

    def _border(self, lines: int, line: Expr) -> None:
        """Fill what lies around the lines of this task, in its channels only."""
        e, g = self.e, self.geometry
        top, left, bottom, right = g.border

        def fill(position: Expr, count: int) -> None:
            if count:
                with e.loop(count, "border") as i:
                    at = (position + i) * g.output_channels + self.channel
                    for start, length in pieces(self.channels):
                        e.store(self.y, at + start, splat(g.fill, self.isa.storage, length), length)

        for i in range(lines):
            fill(self.target + (i * g.bordered_pixels - left), left)
            fill(self.target + (i * g.bordered_pixels + g.pixels), right)
        start = self.target - left
        if top:
            with e.when(line == 0):
                fill(start - top * g.bordered_pixels, top * g.bordered_pixels)
        if bottom:
            with e.when(line + lines == g.lines):
                fill(start + lines * g.bordered_pixels, bottom * g.bordered_pixels)

    def _tile(self, lines: int, pixels: int, pixel: Expr, number: Expr) -> None:
        """One register tile, starting at the position `pixel` of the line; number: of the tile in the channel block."""
        e, g, vectors = self.e, self.geometry, self.vectors
        source = e.bind(self.source + pixel * g.pixel_stride, "int32", "in")
        target = e.bind(self.target + pixel, "int32", "out")
        operand = e.bind(self.operand + pixel, "int32", "at") if any(g.border) else target
        offsets = [(i, j) for i in range(lines) for j in range(pixels)]
        rows, groups = self.isa.block.rows, self.isa.block.groups(len(offsets))
        acc = e.registers(groups * rows * vectors, self.acc_dtype)
        for v in range(vectors):
            bias = e.bind(load(self.bias, self.lane + v * self.lanes, self.lanes), self.acc_dtype, "bias")
            for j, part in enumerate(self.isa.fold([bias] * rows)):
                folded = e.bind(part, self.acc_dtype, "bias") if rows > 1 else part
                for group in range(groups):
                    acc[self._slot(group * rows + j, v)] = folded
        starts = [i * g.line_stride + j * g.pixel_stride for i, j in offsets]
        self._accumulate(acc, starts, source, number)
        if rows > 1:
            for group in range(groups):
                for v in range(vectors):
                    slots = [self._slot(group * rows + j, v) for j in range(rows)]
                    vectors_of_rows = [
                        e.bind(part, self.acc_dtype) for part in self.isa.unfold([acc[s] for s in slots])
                    ]
                    for s, value in zip(slots, vectors_of_rows, strict=True):
                        acc[s] = value
        if g.row_bias:
            first = e.bind(tirx.truncdiv(source, constant(g.pixel_stride)), "int32", "line")
            for r in range(len(offsets)):
                addend = e.bind(splat(load(self.row_bias, first + r, 1), "int32", self.lanes), self.acc_dtype)
                for v in range(vectors):
                    acc[self._slot(r, v)] = acc[self._slot(r, v)] + addend
        targets = [target + (i * g.bordered_pixels + j) for i, j in offsets]
        self._finish(acc, targets, [operand + (i * g.pixels + j) for i, j in offsets])

    def _slot(self, position: int, vector: int) -> int:
        """The register of a position and a vector: those of a group and a vector stand together."""
        group, row = divmod(position, self.isa.block.rows)
        return (group * self.vectors + vector) * self.isa.block.rows + row

    def _accumulate(self, acc: Registers, offsets: list[int], source: Expr, number: Expr) -> None:
        """The loop over the window: one run of every position times as many units of every channel a step.

        Each tile of a channel block prefetches its share of the next block's weights, a little every step: in a
        network they come from the outer caches or from memory. Behind the last block lies the next layer.
        """
        e, g, block = self.e, self.geometry, self.isa.block
        unit = self.vectors * self.vector_elements
        most = block.run // block.depth  # units of one step
        full, rest = divmod(self.units, most)
        steps = full + (rest > 0)
        line = 64 // np.dtype(self.isa.weight_dtype).itemsize
        share = -(-unit * min(most, self.units) // sweep_tiles(g, self.tile))
        # With few tiles the weights stream through, and the hardware's prefetcher keeps up by itself.
        prefetching = self.isa.prefetches and share <= line and not g.weight_copies
        behind = self.window_units * unit + number * (g.taps * steps * share)
        ahead = e.bind(self.weights + behind, "int32", "ahead")
        # A group that is not full repeats its last position; nobody reads the result.
        offsets = offsets + [offsets[-1]] * (-len(offsets) % block.rows)
        stream = None
        if block.groups(len(offsets)) == 1 and self.vectors * self.isa.weight_registers % 4 == 0:
            stream = self.isa.weight_stream(e, self.w, self.weights)
        with e.loop(self._extent(g.rows[0]), "row") as row, e.loop(self._extent(g.columns[0]), "column") as column:
            tap = row * g.columns[0] + column
            at = self._index(source + row * g.rows[1] + column * g.columns[1], "tap")
            base = self._index(self.weights + tap * (self.units * unit), "base")
            ahead_base = e.bind(ahead + tap * (steps * share), "int32", "ahead")

            def step(number: Expr, units: int) -> None:
                if prefetching:
                    e.prefetch(self.w, ahead_base + number * share)
                number = cast(number, at.ty.dtype)
                start = at + number * block.run
                self._step(acc, [start + o for o in offsets], base + number * (most * unit), units, stream)

            if full:
                with e.loop(self._extent(full, alone=g.taps == 1), "step") as number:
                    step(number, most)
            if rest:
                with e.loop(self._extent(1, alone=steps * g.taps == 1), "step", begin=full) as number:
                    step(number, rest)

    def _index(self, value: Expr, name: str) -> Expr:
        """An index to count on from in a loop over the window; 64 bits wide where LLVM cannot see that 32 suffice."""
        if self.isa.opaque_loops:
            return self.e.bind(cast(value, "int64"), "int64", name)
        return self.e.bind(value, "int32", name)

    def _extent(self, count: int, alone: bool = False) -> Expr | int:
        """The count of a loop over the window. alone: no other loop keeps the weights inside the loop over tiles."""
        return self.e.opaque(count) if self.isa.opaque_loops and (count > 1 or alone) else count

    def _step(self, acc: Registers, at: list[Expr], base: Expr, units: int, stream: Stream | None) -> None:
        """`units` multiplications of every group of positions with every vector of channels."""
        e, isa, rows = self.e, self.isa, self.isa.block.rows

        groups = range(len(at) // rows)

        streamed: list[Expr] = []

        def weights(unit: Expr, v: int) -> tuple[Expr, ...]:
            if stream is not None:  # everything is used once and in order
                if not streamed:
                    streamed.extend(stream())
                return tuple(streamed.pop(0) for _ in range(isa.weight_registers))
            index = base + (cast(unit, base.ty.dtype) * self.vectors + v) * self.vector_elements
            return tuple(e.bind_typed(w) for w in isa.load_block_weights(self.w, index, self.lanes))

        def multiply(group: int, v: int, operand: tuple[Expr, ...], weight: tuple[Expr, ...]) -> None:
            slots = [self._slot(group * rows + j, v) for j in range(rows)]
            results = isa.multiply([acc[s] for s in slots], operand, weight, not self.geometry.weight_copies)
            for s, value in zip(slots, results, strict=True):
                acc[s] = value

        def keeping_weights(unit: Expr, operand_of: Callable[[int], tuple[Expr, ...]]) -> None:
            kept = [weights(unit, v) for v in range(self.vectors)]
            for group in groups:
                operand = operand_of(group)
                for v in range(self.vectors):
                    multiply(group, v, operand, kept[v])

        def keeping_operands(unit: Expr, operand_of: Callable[[int], tuple[Expr, ...]]) -> None:
            operands = [operand_of(group) for group in groups]
            for v in range(self.vectors):
                weight = weights(unit, v)
                for group in groups:
                    multiply(group, v, operands[group], weight)

        body = keeping_operands if isa.block.keeps == "operands" else keeping_weights
        isa.for_units(e, self.x, [at[r : r + rows] for r in range(0, len(at), rows)], units, body)

    def _finish(self, acc: Registers, targets: list[Expr], operands: list[Expr]) -> None:
        """Requantise, pack, apply the fused operations and store; positions in the output and in the operands."""
        e, isa, lanes = self.e, self.isa, self.lanes
        scales = [self.requantizer.constants(self.scale_lane + v * lanes, lanes) for v in range(self.vectors)]
        for unit in pack_units(self.vectors, len(targets)):
            scaled = []
            for r, v in unit:
                value = self.requantizer.apply(acc[self._slot(r, v)], scales[v], lanes)
                scaled.append(e.bind(value, self.acc_dtype))
            rows = list(dict.fromkeys(r for r, _ in unit))
            first = unit[0][1]
            width = len(unit) // len(rows) * lanes
            valid = min(width, self.channels - first * lanes)
            packed = pack_rows(isa, e, scaled, len(rows), valid, self.rescale)
            channel = self.channel + first * lanes
            channels = self.geometry.output_channels
            at = [targets[r] * channels + channel for r in rows]
            operand_at = [operands[r] * channels + channel for r in rows]
            self.epilogue.finish(packed, at, operand_at, width, valid, self.y)


def divide(e: Emitter, value: Expr, divisor: int) -> tuple[Expr, Expr]:
    """Quotient and remainder of a non-negative number."""
    if divisor == 1:
        return value, constant(0)
    quotient = e.bind(tirx.truncdiv(value, constant(divisor)), "int32", "q")
    return quotient, e.bind(value - quotient * divisor, "int32", "r")
