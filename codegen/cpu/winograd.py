"""3x3 convolutions with 16 products instead of 36 for every 2x2 outputs, exactly: for levels that multiply 16 bits.

Winograd's F(2x2, 3x3) computes ``Y = A^T [(G g G^T) * (B^T d B)] A`` from a 4x4 piece d of the input and a kernel g:

    B^T = 1  0 -1  0     G = 1    0    0       A^T = 1  1  1  0
          0  1  1  0         1/2  1/2  1/2           0  1 -1 -1
          0 -1  1  0         1/2 -1/2  1/2
          0  1  0 -1         0    0    1

Here G is doubled, so that every number is an integer and Y is four times the sums wanted. Stored bytes are 0..255: an
element of ``B^T d B`` is a sum of at most four of them with signs, -510..1020; one of ``2G g 2G^T`` is at most
9 * 127 in magnitude. Both fit 16 bits, VPMADDWD multiplies and adds pairs exactly, and the sums wrap modulo 2**32 as
all accumulators do; the end result, at most four times an accumulator, is checked to fit (`applies`), so that shifting
it right by two loses nothing. A level whose dot product takes bytes would lose more than it gains.

Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016.

Two steps: `transform_input` writes ``B^T d B`` of all tiles, int16 [chunk][element][tile][channel], a chunk being some
rows of tiles; `winograd` multiplies a chunk by 16 channels of weights, element by element, into its scratch memory, and
transforms, requantises and stores the outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm import tirx

from qcompiler.codegen.cpu.contraction import Border, divide
from qcompiler.codegen.cpu.emit import Emitter, Expr, cast, constant, load, splat, vector_type
from qcompiler.codegen.cpu.epilogue import Epilogue, FusedOp, fused_ops, pack_rows
from qcompiler.codegen.cpu.isa.base import VectorInstructionSet
from qcompiler.codegen.cpu.kernel import Group, Kernel, Step
from qcompiler.codegen.cpu.loops import for_chunks, tasks
from qcompiler.codegen.cpu.packed_weights import Blocks, channel_order
from qcompiler.codegen.cpu.requantize import Requantizer, Rescale, reachable_bound, rescale_constants, rescale_of
from qcompiler.sim.integer_program import Conv2d, Shape

Array = npt.NDArray[Any]
ELEMENTS = 16  # of a transformed tile
VECTORS = 2  # of channels in a block
TILES = 4  # in a register tile: 8 accumulators and what VPMADDWD needs in 16 registers
CHUNK_TILES = 64  # their accumulators are 16 * 64 * 16 words, which stay in the second-level cache at worst
LEAST_CHANNELS = 16  # of the input: below, the transforms cost what the products save

_DOUBLE_G = np.array([[2, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 2]], dtype=np.int64)


@dataclass(frozen=True)
class WinogradGeometry:
    """input: N, H, W, C of the padded image; output: lines and pixels, channels; rows: of tiles in a chunk."""

    input: Shape
    lines: int
    pixels: int
    channels: int
    rows: int
    border: Border
    fill: int

    @property
    def tile_lines(self) -> int:
        return -(-self.lines // 2)

    @property
    def tile_pixels(self) -> int:
        return -(-self.pixels // 2)

    @property
    def chunks(self) -> int:
        """Of one image."""
        return self.tile_lines // self.rows

    @property
    def chunk_tiles(self) -> int:
        return self.rows * self.tile_pixels

    @property
    def transformed(self) -> int:
        """Elements of the transformed input."""
        return self.input[0] * self.tile_lines * self.tile_pixels * ELEMENTS * self.input[3]

    @property
    def channels_outer(self) -> bool:
        """Whether the weights are larger than the transformed input."""
        return ELEMENTS * self.input[3] * self.channels > self.transformed

    @property
    def bordered_lines(self) -> int:
        return self.lines + self.border[0] + self.border[2]

    @property
    def bordered_pixels(self) -> int:
        return self.pixels + self.border[1] + self.border[3]

    @property
    def output_bytes(self) -> int:
        return self.input[0] * self.bordered_lines * self.bordered_pixels * self.channels


def applies(op: Conv2d, isa: VectorInstructionSet) -> bool:
    """Whether the convolution has the form, the level gains, and four times an accumulator fits 32 bits."""
    outputs, *kernel, inputs = op.weight.shape
    if not (
        isa.operand_dtype == "int16" and kernel == [3, 3] and op.stride == op.dilation == (1, 1) and op.groups == 1
        and inputs >= LEAST_CHANNELS and inputs % 4 == 0 and outputs % (VECTORS * isa.lanes(4)) == 0
    ):  # fmt: skip
        return False
    largest = int(np.abs(op.weight.astype(np.int64)).reshape(outputs, -1).sum(axis=1).max(initial=0))
    bias = int(np.abs(op.bias.astype(np.int64)).max(initial=0))
    return 4 * (2 * 255 * largest + bias) < 2**31


def winograd_steps(
    group: Group, isa: VectorInstructionSet, source: str, shape: Shape, border: Border, offset: int
) -> list[Step]:
    """The two steps for a convolution on the padded image `source` of stored bytes.

    offset: what stored input bytes exceed centred values by; border: around each output image, filled by the kernel.
    """
    op, out = group.root, group.output
    assert isinstance(op, Conv2d) and out.zero_point is not None
    _, lines, pixels, channels = out.shape
    tile_lines, tile_pixels = -(-lines // 2), -(-pixels // 2)
    rows = max(r for r in range(1, tile_lines + 1)
               if tile_lines % r == 0 and (r == 1 or r * tile_pixels <= CHUNK_TILES))  # fmt: skip
    fill = out.zero_point + isa.storage_offset if any(border) else 0
    geometry = WinogradGeometry(shape, lines, pixels, channels, rows, border, fill)
    name = f"{out.name}.transformed"
    transform = Kernel("winograd_input", transform_input, {"geometry": geometry}, shape[0] * tile_lines)
    blocks = Blocks(isa.lanes(4), channels, VECTORS)
    order = channel_order(isa, blocks)
    rescale = rescale_of(op.requantize, reachable_bound(op, group.inputs[0]), isa)
    fused = fused_ops(group, isa)
    constants = (
        _pack_weights(isa, op.weight, order),
        _pack_bias(isa, op, offset, order),
        *rescale_constants(op.requantize, rescale, channels, order),
        *fused.constants,
    )
    parameters = {"geometry": geometry, "rescale": rescale, "fused": fused.operations}
    scratch = ELEMENTS * geometry.chunk_tiles * VECTORS * isa.vector_bytes
    kernel = Kernel(
        "winograd", winograd, parameters, blocks.count * shape[0] * geometry.chunks, constants, scratch
    )  # fmt: skip
    names = (name, *(t.name for t in group.inputs[1:]))
    return [
        Step(transform, (source,), name, 2 * geometry.transformed),
        Step(kernel, names, out.name, geometry.output_bytes, group.names),
    ]


def transformed_weights(weight: Array) -> npt.NDArray[np.int64]:
    """int8 [O, 3, 3, C] to ``2G g 2G^T``, [O, 16, C]."""
    u = np.einsum("ai,oijc,bj->oabc", _DOUBLE_G, weight.astype(np.int64), _DOUBLE_G)
    return u.reshape(weight.shape[0], ELEMENTS, weight.shape[3])


def _pack_weights(isa: VectorInstructionSet, weight: Array, order: Array) -> Array:
    """``[block][element][quad][vector][arranged quads]``, int16."""
    lanes = isa.lanes(4)
    u = transformed_weights(weight)[order]
    u = u.reshape(-1, VECTORS, lanes, ELEMENTS, u.shape[2] // 4, 4).transpose(0, 3, 4, 1, 2, 5)
    return isa.arrange_weights(u.astype(np.int16)).reshape(-1)


def _pack_bias(isa: VectorInstructionSet, op: Conv2d, offset: int, order: Array) -> Array:
    """``[block][element][vector][lane]``, int32: the element that every output adds once begins with four biases."""
    sums = op.weight.astype(np.int64).reshape(op.weight.shape[0], -1).sum(axis=1)
    bias = 4 * (op.bias.astype(np.int64) - offset * sums)[order].reshape(-1, VECTORS * isa.lanes(4))
    packed = np.zeros((bias.shape[0], ELEMENTS, bias.shape[1]), dtype=np.int32)
    packed[:, 5] = bias.astype(np.int32)
    return packed.reshape(-1)


def _transform(d: list[list[Expr]]) -> list[list[Expr]]:
    """``B^T d`` of a 4-row matrix."""
    r0, r1, r2, r3 = d
    return [
        [a - b for a, b in zip(r0, r2, strict=True)],
        [a + b for a, b in zip(r1, r2, strict=True)],
        [b - a for a, b in zip(r1, r2, strict=True)],
        [a - b for a, b in zip(r1, r3, strict=True)],
    ]


def _transposed(d: list[list[Expr]]) -> list[list[Expr]]:
    return [list(row) for row in zip(*d, strict=True)]


def transform_input(isa: VectorInstructionSet, geometry: WinogradGeometry) -> Any:
    """Buffers: the padded image; ``B^T d B``. A task is a row of tiles.

    What a last tile would read outside the image is read from its last line or column instead: an output inside the
    image does not depend on it, because its terms cancel.
    """
    g = geometry
    n, h, w, c = g.input
    e = Emitter()
    x = e.buffer("x", n * h * w * c, isa.storage)
    y = e.buffer("y", g.transformed, "int16")
    with tasks(e) as task:
        image = e.bind(tirx.truncdiv(task, constant(g.tile_lines)), "int32", "image")
        row = e.bind(task - image * g.tile_lines, "int32", "row")
        chunk = e.bind(tirx.truncdiv(task, constant(g.rows)), "int32", "chunk")
        first = e.bind((task - chunk * g.rows) * g.tile_pixels, "int32", "first")
        base = e.bind((chunk * (ELEMENTS * g.chunk_tiles) + first) * c, "int32", "base")
        lines = [
            e.bind((image * h + tirx.min(row * 2 + i, constant(h - 1))) * (w * c), "int32", "line") for i in range(4)
        ]

        def tile(t: Expr, columns: list[int]) -> None:
            def channels(start: Expr, lanes: int) -> None:
                dtype = vector_type("int16", lanes)

                def at(i: int, j: int) -> Expr:
                    return e.bind(cast(load(x, lines[i] + (t * 2 + j) * c + start, lanes), dtype), dtype, "d")

                def bound(matrix: list[list[Expr]]) -> list[list[Expr]]:
                    return [[e.bind(v, dtype, "v") for v in line] for line in matrix]

                # Column by column, so that few values are alive at a time.
                halfway = [bound(_transform([[at(i, j)] for i in range(4)])) for j in columns]
                for i in range(4):
                    values = _transform([[halfway[j][i][0]] for j in range(4)])
                    for j, (value,) in enumerate(values):
                        e.store(y, base + ((i * 4 + j) * g.chunk_tiles + t) * c + start, value, lanes)

            for_chunks(e, c, isa.vector_bytes // 2, channels)

        whole = g.tile_pixels - g.pixels % 2
        if whole:
            with e.loop(whole, "tile") as t:
                tile(t, [0, 1, 2, 3])
        if g.pixels % 2:
            tile(constant(whole), [0, 1, 2, 2])
    return e.function()


def winograd(
    isa: VectorInstructionSet, geometry: WinogradGeometry, rescale: Rescale, fused: tuple[FusedOp, ...]
) -> Any:
    """Buffers: the transformed input, the fused operations' operands, weights, biases, scales, scratch, the output.

    A task is one block of channels of one chunk of tiles. The larger of weights and input is read once, and by one
    thread.
    """
    return _Writer(isa, geometry, rescale, fused).function()


class _Writer:
    def __init__(
        self, isa: VectorInstructionSet, geometry: WinogradGeometry, rescale: Rescale, fused: tuple[FusedOp, ...]
    ) -> None:
        self.isa, self.g, self.rescale = isa, geometry, rescale
        self.lanes = isa.lanes(4)
        self.acc_dtype = f"int32x{self.lanes}"
        self.e = e = Emitter()
        g = geometry
        images, _, _, inputs = g.input
        self.quads = inputs // 4
        self.block = VECTORS * self.lanes
        self.x = e.buffer("x", g.transformed, "int16")
        self.epilogue = Epilogue(isa, e, fused, images * g.lines * g.pixels * g.channels)
        self.unit = VECTORS * 4 * self.lanes  # elements of one quad's weights
        self.w = e.buffer("w", g.channels // self.block * ELEMENTS * self.quads * self.unit, isa.weight_dtype)
        self.bias = e.buffer("bias", g.channels * ELEMENTS, "int32")
        self.requantizer = Requantizer(isa, rescale, e, g.channels)
        self.epilogue.constants()
        self.products = e.buffer("scratch", ELEMENTS * g.chunk_tiles * self.block, "int32")
        self.y = e.buffer("y", g.output_bytes, isa.storage)

    def function(self) -> Any:
        e, g = self.e, self.g
        positions = g.input[0] * g.chunks
        with tasks(e) as task:
            if g.channels_outer:
                block, position = divide(e, task, positions)
            else:
                position, block = divide(e, task, g.channels // self.block)
            self.image = e.bind(tirx.truncdiv(position, constant(g.chunks)), "int32", "image")
            row = e.bind((position - self.image * g.chunks) * g.rows, "int32", "row")
            self.channel = e.bind(block * self.block, "int32", "channel")
            with e.loop(ELEMENTS, "element") as element:
                self._multiply(position, block, element)
            with e.loop(g.rows, "r") as r:
                self._row_of_tiles(e.bind(row + r, "int32", "line") * 2, r)
        return e.function()

    # ---------------------------------------------------------------------------------------- products
    def _multiply(self, position: Expr, block: Expr, element: Expr) -> None:
        """One element of all tiles of the chunk: a matrix product of tiles by channels.

        Each register tile asks for its share of the next element's weights, a little every step: there are 16/9 as
        many of them as in the kernel and twice as wide, so that they come from the outer caches.
        """
        e, g = self.e, self.g
        inputs = g.input[3]
        number = e.bind(block * ELEMENTS + element, "int32", "number")
        weights = e.bind(number * (self.quads * self.unit), "int32", "weights")
        source = e.bind((position * ELEMENTS + element) * (g.chunk_tiles * inputs), "int32", "source")
        target = e.bind(element * (g.chunk_tiles * self.block), "int32", "target")
        full, rest = divmod(g.chunk_tiles, TILES)
        share = self.unit // (full + (rest > 0))
        ahead = e.bind(weights + self.quads * self.unit, "int32", "ahead")

        def tiles(first: Expr, count: int) -> None:
            here = e.bind(ahead + tirx.truncdiv(first, constant(TILES)) * (self.quads * share), "int32", "here")
            acc = e.registers(count * VECTORS, self.acc_dtype)
            for v in range(VECTORS):
                bias = e.bind(load(self.bias, number * self.block + v * self.lanes, self.lanes), self.acc_dtype, "bias")
                for t in range(count):
                    acc[t * VECTORS + v] = bias
            at = e.bind(source + first * inputs, "int32", "at")
            with e.loop(self.quads, "quad") as quad:
                base = e.bind(weights + quad * self.unit, "int32", "base")
                e.prefetch(self.w, here + quad * share)
                parts = [
                    tuple(
                        e.bind_typed(p) for p in self.isa.load_weights(self.w, base + v * (4 * self.lanes), self.lanes)
                    )
                    for v in range(VECTORS)
                ]
                for t in range(count):
                    operand = self.isa.load_operand(e, self.x, at + (t * inputs) + quad * 4)
                    for v in range(VECTORS):
                        i = t * VECTORS + v
                        acc[i] = self.isa.dot(acc[i], operand, parts[v], self.lanes)
            for i in range(count * VECTORS):
                e.store(self.products, target + first * self.block + i * self.lanes, acc[i], self.lanes)

        if full:
            with e.loop(full, "group") as i:
                tiles(e.bind(i * TILES, "int32", "first"), TILES)
        if rest:
            tiles(constant(full * TILES), rest)

    # ----------------------------------------------------------------------------------------- outputs
    def _row_of_tiles(self, line: Expr, row: Expr) -> None:
        """Two lines of outputs, or one at the end of an odd number of lines."""
        e, g = self.e, self.g
        scales = [self.requantizer.constants(self.channel + v * self.lanes, self.lanes) for v in range(VECTORS)]

        def columns(lines: int) -> None:
            with e.loop(g.pixels // 2, "tile") as t:
                self._outputs(line, row, t, lines, 2, scales)
            if g.pixels % 2:
                self._outputs(line, row, constant(g.pixels // 2), lines, 1, scales)
            if any(g.border):
                self._border(line, lines)

        if g.lines % 2 == 0:
            columns(2)
            return
        if g.lines > 1:
            with e.when(line + 1 < g.lines):
                columns(2)
        with e.when(line + 1 == g.lines):
            columns(1)

    def _outputs(self, line: Expr, row: Expr, t: Expr, lines: int, pixels: int, scales: list[tuple[Expr, ...]]) -> None:
        """One tile's `lines` x `pixels` outputs of all channels of the block."""
        e, g, lanes = self.e, self.g, self.lanes
        tile = e.bind((row * g.tile_pixels + t) * self.block, "int32", "tile")
        values: dict[tuple[int, int, int], Expr] = {}  # line, pixel, vector
        for v in range(VECTORS):

            def product(i: int, j: int, v: int = v) -> Expr:
                return load(self.products, tile + ((i * 4 + j) * (g.chunk_tiles * self.block) + v * lanes), lanes)

            def rows(elements: list[Expr], count: int) -> list[Expr]:
                """The first `count` of ``A^T`` times a column."""
                m0, m1, m2, m3 = elements
                return [e.bind_typed(m0 + m1 + m2), *([e.bind_typed(m1 - m2 - m3)] if count == 2 else [])]

            halfway = [rows([e.bind_typed(product(i, j)) for i in range(4)], lines) for j in range(4)]
            for i in range(lines):
                for j, value in enumerate(rows([halfway[k][i] for k in range(4)], pixels)):
                    shifted = e.bind_typed(tirx.shift_right(value, splat(2, "int32", lanes)))
                    scaled = self.requantizer.apply(shifted, scales[v], lanes)
                    values[i, j, v] = e.bind(scaled, self.acc_dtype)
        first = (self.image * g.bordered_lines + line + g.border[0]) * g.bordered_pixels + g.border[1] + t * 2
        target = e.bind(first, "int32", "out")
        operand = e.bind((self.image * g.lines + line) * g.pixels + t * 2, "int32", "operand")
        for i in range(lines):
            words = [values[i, j, v] for j in range(pixels) for v in range(VECTORS)]
            packed = pack_rows(self.isa, e, words, pixels, self.block, self.rescale)
            at = [(target + (i * g.bordered_pixels + j)) * g.channels + self.channel for j in range(pixels)]
            operand_at = [(operand + (i * g.pixels + j)) * g.channels + self.channel for j in range(pixels)]
            self.epilogue.finish(packed, at, operand_at, self.block, self.block, self.y)

    def _border(self, line: Expr, lines: int) -> None:
        """Fill what lies around these lines, in the block's channels only."""
        e, g = self.e, self.g
        top, left, bottom, right = g.border

        def fill(position: Expr, count: int) -> None:
            if count:
                with e.loop(count, "border") as i:
                    value = splat(g.fill, self.isa.storage, self.block)
                    e.store(self.y, (position + i) * g.channels + self.channel, value, self.block)

        start = e.bind((self.image * g.bordered_lines + line + top) * g.bordered_pixels, "int32", "start")
        for i in range(lines):
            fill(start + i * g.bordered_pixels, left)
            fill(start + (i * g.bordered_pixels + left + g.pixels), right)
        if top:
            with e.when(line == 0):
                fill(start - top * g.bordered_pixels, top * g.bordered_pixels)
        if bottom:
            with e.when(line + lines == g.lines):
                fill(start + lines * g.bordered_pixels, bottom * g.bordered_pixels)
