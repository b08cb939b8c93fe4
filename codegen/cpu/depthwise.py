"""Depthwise convolution at vector speed: a vector holds channels, a quad of bytes holds four columns of one channel.

Four neighbouring columns of the image are interleaved to quads once and multiplied by as many arrangements of the
kernel row as outputs can use them: with a 3-wide kernel and stride 1, columns 0..3 serve output 0 with weights
(w0, w1, w2, 0) and output 1 with (0, w0, w1, w2); input rows serve several output lines alike. Packing the
results to bytes undoes the interleaving, so channels come out in order. Where the channels are fewer than a vector's
bytes and divide them, a vector holds several neighbouring output pixels.

The image is padded by a copy first. Packed weights: ``[chunk][kernel row][shift][vector][arranged quads]``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm import tirx

from qcompiler.codegen.cpu.emit import Emitter, Expr, Registers, constant, load, shuffle, splat
from qcompiler.codegen.cpu.epilogue import Epilogue, FusedOp, fused_ops
from qcompiler.codegen.cpu.isa.base import VectorInstructionSet
from qcompiler.codegen.cpu.kernel import Group, Kernel, Step
from qcompiler.codegen.cpu.loops import tasks
from qcompiler.codegen.cpu.packed_weights import lane_channels
from qcompiler.codegen.cpu.pad import padded_input
from qcompiler.codegen.cpu.requantize import Requantizer, Rescale, reachable_bound, rescale_constants, rescale_of
from qcompiler.sim.integer_program import Conv2d

Array = npt.NDArray[Any]
VECTORS = 4  # int32 vectors that pack to one vector of bytes
MAX_KERNEL_AREA = 81  # the kernel is unrolled; larger ones are left to the grouped contraction
INTERLEAVE_COST = 8  # shuffles to interleave four columns
MAX_LINES = 4
ROWS_BYTES = 40 * 1024
RESERVED_REGISTERS = 8  # columns, quads and temporaries beside the accumulators


@dataclass(frozen=True)
class DepthwiseGeometry:
    """Sizes of the padded image and of the output; `pixels`: how many output pixels a vector holds."""

    images: int
    height: int
    width: int
    channels: int
    lines: int
    line_pixels: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    pixels: int

    @property
    def step(self) -> int:
        """Columns from one vector of outputs to the next."""
        return self.pixels * self.stride[1]

    def shifts(self, outputs: int) -> list[tuple[int, int, int]]:
        """(output, quad, shift) of every product of a tile of `outputs` vectors.

        Slot i of a quad is column 4 * quad + i; output t reads tap j in column ``step * t + dilation * j``, which is
        slot ``shift + dilation * j`` with ``shift = step * t - 4 * quad``.
        """
        kernel, dilation = self.kernel[1], self.dilation[1]
        out = []
        for t in range(outputs):
            columns = [self.step * t + dilation * j for j in range(kernel)]
            out += [(t, q, self.step * t - 4 * q) for q in sorted({c // 4 for c in columns})]
        return out

    def rows(self, lines: int) -> dict[int, list[tuple[int, int]]]:
        """Input row of a tile of `lines` output lines to the (line, kernel row) that read it."""
        readers: dict[int, list[tuple[int, int]]] = {}
        for line in range(lines):
            for i in range(self.kernel[0]):
                readers.setdefault(line * self.stride[0] + i * self.dilation[0], []).append((line, i))
        return dict(sorted(readers.items()))

    def quads(self, outputs: int) -> int:
        """Quads of columns that a tile of `outputs` vectors reads."""
        return len({quad for _, quad, _ in self.shifts(outputs)})

    def cost(self, lines: int, outputs: int) -> float:
        """Vector instructions per vector of outputs."""
        shifts = self.shifts(outputs)
        interleaves = INTERLEAVE_COST * self.quads(outputs) * len(self.rows(lines))
        dots = VECTORS * len(shifts) * lines * self.kernel[0]
        return (interleaves + dots) / (lines * outputs)


def choose_outputs(isa: VectorInstructionSet, geometry: DepthwiseGeometry) -> tuple[int, int]:
    """(lines, vectors of outputs) of a tile: the cheapest that fits the registers.

    Tiles whose columns lie in one quad come first: measured on Sapphire Rapids, a second one costs a quarter more than
    its instructions. More than two lines only where the input rows that they share stay in the first-level cache.
    """
    most = max(1, (isa.registers - RESERVED_REGISTERS) // VECTORS)
    row = geometry.width * geometry.channels
    candidates = [
        (geometry.quads(outputs), geometry.cost(lines, outputs), lines * outputs, lines, outputs)
        for lines in range(1, min(MAX_LINES, geometry.lines) + 1)
        for outputs in range(1, min(4, -(-geometry.line_pixels // geometry.pixels)) + 1)
        if lines * outputs <= most and (lines <= 2 or len(geometry.rows(lines)) * row <= ROWS_BYTES)
    ]
    return min(candidates)[3:]


def depthwise(group: Group, isa: VectorInstructionSet, bordered: bool = False) -> list[Step]:
    """The steps of a depthwise Conv2d and what is fused behind it: a padded copy if needed, the convolution.

    bordered: the input lies in memory with the border that the convolution pads it by.
    """
    op = group.root
    assert isinstance(op, Conv2d) and op.depthwise
    x, *others = group.inputs
    assert x.zero_point is not None
    steps, source, (n, h, w, c) = padded_input(isa, x, op.padding, bordered, f"{group.output.name}.padded")
    _, lines, line_pixels, _ = group.tensors[op.output].shape
    pixels = isa.vector_bytes // c if isa.vector_bytes % c == 0 else 1
    geometry = DepthwiseGeometry(
        n, h, w, c, lines, line_pixels, op.kernel, op.stride, op.dilation, min(pixels, line_pixels)
    )
    tile = choose_outputs(isa, geometry)
    order = _lane_channels(isa, geometry)
    sums = op.weight.astype(np.int64).reshape(c, -1).sum(axis=1)
    bias = (op.bias.astype(np.int64) - (x.zero_point + isa.storage_offset) * sums).astype(np.int32)
    rescale = rescale_of(op.requantize, reachable_bound(op, x), isa)
    fused = fused_ops(group, isa)
    constants = (
        _pack_weights(isa, op.weight[..., 0], geometry, tile, order),
        np.where(order < 0, 0, bias[np.maximum(order, 0)]).astype(np.int32).ravel(),
        *rescale_constants(op.requantize, rescale, c, order.ravel()),
        *fused.constants,
    )
    parameters = dict(geometry=geometry, tile=tile, rescale=rescale, fused=fused.operations)
    chunks = order.shape[0]
    kernel = Kernel("depthwise", depthwise_template, parameters, n * -(-lines // tile[0]) * chunks, constants)
    names = (source, *(t.name for t in others))
    steps.append(Step(kernel, names, group.output.name, group.output.bytes, group.names))
    return steps


def _lane_channels(isa: VectorInstructionSet, geometry: DepthwiseGeometry) -> npt.NDArray[np.int64]:
    """[chunks, VECTORS * lanes]: the channel of every lane, -1 for lanes past the last channel."""
    inside = lane_channels(isa, VECTORS).ravel()
    if geometry.pixels > 1:
        return np.where(inside < geometry.pixels * geometry.channels, inside % geometry.channels, -1)[None]
    chunks = -(-geometry.channels // isa.vector_bytes)
    order = inside + isa.vector_bytes * np.arange(chunks)[:, None]
    return np.where(order < geometry.channels, order, -1)


def _distinct_shifts(geometry: DepthwiseGeometry, outputs: int) -> list[int]:
    return sorted({shift for _, _, shift in geometry.shifts(outputs)})


def _pack_weights(
    isa: VectorInstructionSet, weight: Array, geometry: DepthwiseGeometry, tile: tuple[int, int], order: Array
) -> Array:
    """int8 [C, KH, KW] to the packed layout."""
    lanes = isa.lanes(4)
    shifts = _distinct_shifts(geometry, tile[1])
    slots = np.zeros((geometry.channels, geometry.kernel[0], len(shifts), 4), dtype=np.int8)
    for s, shift in enumerate(shifts):
        for j in range(geometry.kernel[1]):
            if 0 <= (slot := shift + geometry.dilation[1] * j) < 4:
                slots[:, :, s, slot] = weight[:, :, j]
    gathered = np.where((order < 0)[..., None, None, None], np.int8(0), slots[np.maximum(order, 0)])
    chunks = order.shape[0]
    vectors = gathered.reshape(chunks, VECTORS, lanes, geometry.kernel[0], len(shifts), 4).transpose(0, 3, 4, 1, 2, 5)
    return isa.arrange_weights(vectors).reshape(-1)


def depthwise_template(
    isa: VectorInstructionSet,
    geometry: DepthwiseGeometry,
    tile: tuple[int, int],
    rescale: Rescale,
    fused: tuple[FusedOp, ...],
) -> Any:
    """Buffers: the padded image, the fused operations' operands, packed weights, bias, scales, the output.

    A task is one chunk of channels over one group of output lines.
    """
    return _Writer(isa, geometry, tile, rescale, fused).function()


class _Writer:
    def __init__(
        self, isa: VectorInstructionSet, geometry: DepthwiseGeometry, tile: tuple[int, int], rescale: Rescale,
        fused: tuple[FusedOp, ...],
    ) -> None:  # fmt: skip
        self.isa, self.g, self.tile, self.rescale = isa, geometry, tile, rescale
        self.lanes, self.bytes = isa.lanes(4), isa.vector_bytes
        self.shifts = _distinct_shifts(geometry, tile[1])
        g = geometry
        self.chunks = 1 if g.pixels > 1 else -(-g.channels // self.bytes)
        self.e = e = Emitter()
        elements = g.images * g.lines * g.line_pixels * g.channels
        self.x = e.buffer("x", g.images * g.height * g.width * g.channels, self.isa.storage)
        self.epilogue = Epilogue(isa, e, fused, elements)
        self.chunk_weights = g.kernel[0] * len(self.shifts) * VECTORS * self.bytes
        self.w = e.buffer("w", self.chunks * self.chunk_weights, isa.weight_dtype)
        self.bias = e.buffer("bias", self.chunks * self.bytes, "int32")
        self.requantizer = Requantizer(isa, rescale, e, self.chunks * self.bytes)
        self.epilogue.constants()
        self.y = e.buffer("y", elements, self.isa.storage)

    def function(self) -> Any:
        e, g = self.e, self.g
        groups = -(-g.lines // self.tile[0])
        rest = g.lines % self.tile[0]
        with tasks(e) as task:
            line_group = e.bind(tirx.truncdiv(task, constant(self.chunks)), "int32", "line_group")
            chunk = e.bind(task - line_group * self.chunks, "int32", "chunk")
            image = e.bind(tirx.truncdiv(line_group, constant(groups)), "int32", "image")
            line = e.bind((line_group - image * groups) * self.tile[0], "int32", "line")
            self.chunk = chunk
            self.line_start = e.bind(
                ((image * g.height + line * g.stride[0]) * g.width) * g.channels + chunk * self.bytes, "int32", "start"
            )
            self.target = e.bind(
                (image * g.lines + line) * (g.line_pixels * g.channels) + chunk * self.bytes, "int32", "target"
            )
            tail = g.channels % self.bytes if g.pixels == 1 else g.pixels * g.channels
            whole = self.chunks - 1 if tail else self.chunks
            if whole:
                with e.when(chunk < whole if tail else True):
                    self._lines(line, rest, self.bytes)
            if tail:
                with e.when(chunk >= whole if whole else True):
                    self._lines(line, rest, tail)
        return e.function()

    def _lines(self, line: Expr, rest: int, valid: int) -> None:
        e, g = self.e, self.g
        if g.lines >= self.tile[0]:
            with e.when(line + self.tile[0] <= g.lines if rest else True):
                self._line_group(self.tile[0], valid)
        if rest:
            with e.when(line + self.tile[0] > g.lines if g.lines >= self.tile[0] else True):
                self._line_group(rest, valid)

    def _line_group(self, lines: int, valid: int) -> None:
        """All outputs of some lines: whole tiles, a narrower tile, a vector that is not full."""
        e, g = self.e, self.g
        vectors, partial = divmod(g.line_pixels, g.pixels)
        full, rest = divmod(vectors, self.tile[1])
        if full:
            with e.loop(full, "tile") as i:
                self._tile(lines, self.tile[1], i * self.tile[1], valid)
        if rest:
            self._tile(lines, rest, constant(full * self.tile[1]), valid)
        if partial:
            self._tile(lines, 1, constant(vectors), partial * g.channels)

    def _tile(self, lines: int, outputs: int, first: Expr, valid: int) -> None:
        e, g, lanes = self.e, self.g, self.lanes
        source = e.bind(self.line_start + first * (g.step * g.channels), "int32", "in")
        target = e.bind(self.target + first * (g.pixels * g.channels), "int32", "out")
        acc = e.registers(lines * outputs * VECTORS, f"int32x{lanes}")
        for v in range(VECTORS):
            at = self.chunk * self.bytes + v * lanes
            bias = e.bind(load(self.bias, at, lanes), f"int32x{lanes}", "bias")
            for output in range(lines * outputs):
                acc[output * VECTORS + v] = bias
        shifts = g.shifts(outputs)
        for row, readers in g.rows(lines).items():
            for quad in sorted({q for _, q, _ in shifts}):
                operands = self._quads(source + row * (g.width * g.channels), quad, outputs)
                for t, q, shift in shifts:
                    if q == quad:
                        for line, kernel_row in readers:
                            self._multiply(acc, line * outputs + t, operands, kernel_row, shift)
        self._finish(acc, lines, outputs, target, valid)

    def _quads(self, row: Expr, quad: int, outputs: int) -> list[tuple[Expr, ...]]:
        """Four columns interleaved; columns that no tap reads repeat another (their weights are zero)."""
        g, kernel = self.g, self.g.kernel[1]
        used = sorted({g.step * t + g.dilation[1] * j for t in range(outputs) for j in range(kernel)})
        columns = [c for c in range(4 * quad, 4 * quad + 4) if c in used]
        loaded = {c: self._column(row, c) for c in columns}
        rows = [loaded[c] if c in loaded else loaded[columns[0]] for c in range(4 * quad, 4 * quad + 4)]
        operands = self.isa.interleaved_operands(rows, self.lanes)
        return [tuple(self.e.bind_typed(part) for part in operand) for operand in operands]

    def _column(self, row: Expr, column: int) -> Expr:
        """One column for all outputs of a vector: contiguous with stride 1, else gathered pixel by pixel."""
        g = self.g
        if g.pixels == 1 or g.stride[1] == 1:
            return self.e.bind_typed(load(self.x, row + column * g.channels, self.bytes))
        step = g.stride[1] * g.channels
        parts = [load(self.x, row + (column * g.channels + i * step), g.channels) for i in range(g.pixels)]
        used = g.pixels * g.channels
        if used < self.bytes:  # a line of fewer pixels than a vector holds
            parts.append(splat(0, self.isa.storage, self.bytes))
        return self.e.bind_typed(shuffle(parts, range(self.bytes)))

    def _multiply(
        self, acc: Registers, output: int, operands: list[tuple[Expr, ...]], kernel_row: int, shift: int
    ) -> None:
        at = self.chunk * self.chunk_weights
        at = at + (kernel_row * len(self.shifts) + self.shifts.index(shift)) * (VECTORS * self.bytes)
        for v in range(VECTORS):
            weights = self.isa.load_weights(self.w, at + v * self.bytes, self.lanes)
            i = output * VECTORS + v
            acc[i] = self.isa.dot(acc[i], operands[v], weights, self.lanes)

    def _finish(self, acc: Registers, lines: int, outputs: int, target: Expr, valid: int) -> None:
        e, g, isa, lanes = self.e, self.g, self.isa, self.lanes
        scales = [self.requantizer.constants(self.chunk * self.bytes + v * lanes, lanes) for v in range(VECTORS)]
        for line in range(lines):
            for t in range(outputs):
                start = (line * outputs + t) * VECTORS
                scaled = [
                    e.bind(self.requantizer.apply(acc[start + v], scales[v], lanes), f"int32x{lanes}")
                    for v in range(VECTORS)
                ]
                packed = isa.clamp_bytes(
                    isa.pack(scaled, lanes), self.rescale.minimum, self.rescale.maximum, self.bytes
                )
                packed = e.bind(packed, f"{self.isa.storage}x{self.bytes}", "bytes")
                at = target + (line * g.line_pixels * g.channels + t * g.pixels * g.channels)
                self.epilogue.finish(packed, [at], [at], self.bytes, valid, self.y)
