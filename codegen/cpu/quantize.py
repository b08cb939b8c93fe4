"""Quantize: the program's float inputs to stored bytes, an image from planes to interleaved channels in the same pass.

The law divides (ONNX QuantizeLinear), and a division of 16 floats takes 16 cycles. Where the scale allows, the quotient
comes from the reciprocal instead and still rounds to the same integer, see `rounds_alike`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm import tirx

from qcompiler.codegen.cpu.elementwise import BLOCK, quantized, scale_of, strip_length, zero_of
from qcompiler.codegen.cpu.emit import Emitter, Expr, bits, intrinsic, load, shuffle, splat, vector_type
from qcompiler.codegen.cpu.isa.base import VectorInstructionSet
from qcompiler.codegen.cpu.kernel import Kernel
from qcompiler.codegen.cpu.loops import for_blocks, for_chunks, tasks
from qcompiler.sim.integer_program import Shape, Tensor

Array = npt.NDArray[Any]
Border = tuple[int, int, int, int]
IMAGE_CHANNELS = 4  # at most so many planes are interleaved in registers
_SATURATED = 1024.0  # a quotient beyond every byte
_MAGIC = 3 << 22  # 1.5 * 2**23: float32 is spaced by 1 there, so adding it rounds half to even
_PLANE = 16  # columns whose planes are interleaved at a time


@functools.cache
def rounds_alike(scale: float) -> bool:
    """Whether rounding `_quotient` gives what the law's division gives, for every float32 that is clamped to a byte.

    With r the rounded reciprocal of s and q = round(x * r), one FMA gives the remainder x - q * s, right to 2**-24
    (s is far from the ends of float32, and a remainder that underflows belongs to a quotient that rounds to zero).
    One more gives round(x / s + d) with ``|d| < |x / s| * 2**-45``: the remainder is below 2**-22 of x, and r is right
    to 2**-24. That and round(x / s) round to the same integer unless x / s is so near the float32 midpoint beside a
    half-integer that d reaches across. Neighbouring x are 2**-24 apart: one x for each such midpoint, and this looks
    at all of them, in exact arithmetic.
    """
    s = float(np.float32(scale))
    if not 2.0**-60 < s < 2.0**60:
        return False
    halves = np.arange(1, 2 * int(_SATURATED), 2, dtype=np.float32) / np.float32(2)
    for neighbour in (np.float32(0), np.float32(np.inf)):
        middle = (halves.astype(np.float64) + np.nextafter(halves, neighbour).astype(np.float64)) / 2
        nearest = (middle * s).astype(np.float32)  # with its neighbours, the floats around middle * s
        for x in (np.nextafter(nearest, np.float32(0)), nearest, np.nextafter(nearest, np.float32(np.inf))):
            if not np.array_equal(np.rint(x / np.float32(s)), np.rint(_quotient_of(x, np.float32(s)))):
                return False
    return True


def _quotient_of(x: Array, scale: np.float32) -> Array:
    """`_quotient` in NumPy: float32, each FMA rounded once."""
    reciprocal = np.float32(1) / scale
    q = x * reciprocal
    exact = x.astype(np.float64) - q.astype(np.float64) * np.float64(scale)
    remainder = exact.astype(np.float32).astype(np.float64)
    # The sum in float64, rounded to odd where it is not exact, rounds to float32 as the exact sum does.
    product = remainder * np.float64(reciprocal)
    total = q.astype(np.float64) + product
    back = total - q.astype(np.float64)
    error = (q.astype(np.float64) - (total - back)) + (product - back)
    away = np.where((error > 0) == (total > 0), np.inf, 0.0) * np.sign(total)
    even = (total.view(np.int64) & 1) == 0
    return np.where((error != 0) & even, np.nextafter(total, away), total).astype(np.float32)


def _constants(scale: float) -> Array:
    """float32 [3]: the scale, its correctly rounded reciprocal, what x is clamped at."""
    s = np.float32(scale)
    return np.array([s, np.float32(1) / s, np.float32(_SATURATED) * s], np.float32)


def _quotient(x: Expr, scale: Expr, reciprocal: Expr, lanes: int) -> Expr:
    """x / scale to within its last place; see `rounds_alike`."""
    dtype = vector_type("float32", lanes)
    q = x * reciprocal
    remainder = intrinsic("llvm.fma", dtype, splat(0.0, "float32", lanes) - q, scale, x)
    return intrinsic("llvm.fma", dtype, remainder, reciprocal, q)


class _Converter:
    """Emits the conversion; declares the input and the constants."""

    def __init__(self, isa: VectorInstructionSet, e: Emitter, elements: int, zero: int, division: bool) -> None:
        self._isa, self._e, self._zero, self._division = isa, e, zero, division
        self._x = e.buffer("x", elements, "float32")
        self._constants = e.buffer("scale", 3, "float32")

    def _constant(self, index: int, lanes: int) -> Expr:
        return splat(load(self._constants, index, 1), "float32", lanes)

    def words(self, start: Expr, lanes: int) -> Expr:
        """int32 ``q + storage offset``, saturated by packing alone."""
        e, dtype = self._e, vector_type("float32", lanes)
        limit = self._constant(2, lanes)
        least = splat(0.0, "float32", lanes) - limit
        x = e.bind(load(self._x, start, lanes), dtype, "x")
        x = tirx.Select(x > least, x, least)  # a NaN becomes the least value, as the law wants
        x = e.bind(tirx.Select(x < limit, x, limit), dtype, "x")
        q = _quotient(x, self._constant(0, lanes), self._constant(1, lanes), lanes)
        rounded = bits(q + splat(float(_MAGIC), "float32", lanes), vector_type("int32", lanes))
        magic = int(np.float32(_MAGIC).view(np.int32))
        return rounded + splat(self._zero + self._isa.storage_offset - magic, "int32", lanes)

    def bytes(self, start: Expr, count: int) -> Expr:
        """`count` stored bytes from element `start` on."""
        if self._division or count < 16:
            return quantized(self._isa, load(self._x, start, count), self._constant(0, count), self._zero, -128, 127,
                             count)  # fmt: skip
        lanes = count // 4
        vectors = [
            self._e.bind(self.words(start + v * lanes, lanes), vector_type("int32", lanes), "q") for v in range(4)
        ]
        order = [0] * count
        for position, (vector, lane) in enumerate(self._isa.pack_order(lanes)):
            order[vector * lanes + lane] = position
        packed = self._isa.pack(vectors, lanes)
        return packed if order == list(range(count)) else shuffle([packed], order)


def quantize_template(
    isa: VectorInstructionSet, rows: int, channels: int, columns: int, zero: int, division: bool
) -> Any:
    """float32 [rows, channels, columns] to stored int8 [rows, columns, channels].

    With channels == 1 it is the flat conversion. Otherwise one task quantises, channel by channel, a strip of columns
    into a small buffer and writes it out interleaved.
    """
    e = Emitter()
    elements = rows * channels * columns
    converter = _Converter(isa, e, elements, zero, division)
    y = e.buffer("y", elements, isa.storage)
    width = isa.lanes(4) if division else isa.vector_bytes
    with tasks(e) as task:
        if channels == 1:
            for_blocks(
                e, task, elements, min(BLOCK, elements), width, lambda i, w: e.store(y, i, converter.bytes(i, w), w)
            )
        else:
            strip = strip_length(channels, columns)
            row = e.bind(task // (columns // strip), "int32", "row")
            column = e.bind(task % (columns // strip) * strip, "int32", "column")
            block = tirx.decl_buffer((channels * strip,), isa.storage, name="block", scope="local")
            e.statement(tirx.AllocBuffer(block))
            with e.loop(channels, "c") as c:
                base = e.bind((row * channels + c) * columns + column, "int32", "base")
                for_chunks(e, strip, width, lambda i, w: e.store(block, c * strip + i, converter.bytes(base + i, w), w))
            with e.loop(strip, "w") as w:
                out = e.bind((row * columns + column + w) * channels, "int32", "out")
                with e.loop(channels, "c") as c:
                    e.store(y, out + c, load(block, c * strip + w, 1), 1)
    return e.function()


def image_template(isa: VectorInstructionSet, shape: Shape, border: Border, zero: int, division: bool) -> Any:
    """float32 planes [N, C, H, W] of at most `IMAGE_CHANNELS` to stored int8 `shape` [N, H, W, C] within a border of

    the zero point. One task writes one line.
    """
    n, h, w, c = shape
    top, left, bottom, right = border
    lines, width = h + top + bottom, (w + left + right) * c
    e = Emitter()
    converter = _Converter(isa, e, n * c * h * w, zero, division)
    y = e.buffer("y", n * lines * width, isa.storage)
    fill = zero + isa.storage_offset

    def blank(at: Expr, count: int) -> None:
        def write(i: Expr, lanes: int) -> None:
            e.store(y, at + i, splat(fill, isa.storage, lanes), lanes)

        for_chunks(e, count, isa.vector_bytes, write)

    with tasks(e) as task:
        image, line = e.bind(task // h, "int32", "image"), e.bind(task % h, "int32", "line")
        start = e.bind((image * lines + line + top) * width, "int32", "start")
        source = e.bind((image * (c * h) + line) * w, "int32", "source")
        inside = e.bind(start + left * c, "int32", "inside")
        blank(start, left * c)

        def columns(i: Expr, count: int) -> None:
            planes = [
                e.bind(converter.bytes(source + k * (h * w) + i, count), vector_type(isa.storage, count), "plane")
                for k in range(c)
            ]
            to = e.bind(inside + i * c, "int32", "to")
            length = min(count, _PLANE)
            for k in range(c):
                dtype = vector_type(isa.storage, count)
                piece = e.bind(_interleaved(planes, k, count, length), dtype, "piece")
                for block in range(count // length):
                    part = shuffle([piece], range(block * length, (block + 1) * length)) if count > length else piece
                    e.store(y, to + (block * c + k) * length, part, length)

        for_chunks(e, w, isa.vector_bytes, columns)
        blank(inside + w * c, right * c)
        if top:
            with e.when(line == 0):
                blank(start - top * width, top * width)
        if bottom:
            with e.when(line == h - 1):
                blank(start + width, bottom * width)
    return e.function()


def _interleaved(planes: Sequence[Expr], k: int, count: int, length: int) -> Expr:
    """Piece k of `length` bytes of each block of `length` columns, channel by channel of every column.

    All blocks at once: no byte leaves its block, so that this takes a byte shuffle of each plane.
    """
    channels = len(planes)
    if length == 1:
        return planes[k]
    wanted = [divmod(k * length + i, channels) for i in range(length)]  # (column in the block, channel)
    vector = planes[0]
    for plane in range(1, channels):
        order = []
        for block in range(0, count, length):
            for i, (column, channel) in enumerate(wanted):
                kept = block + (column if plane == 1 else i)
                order.append(count + block + column if channel == plane else kept)
        vector = shuffle([vector, planes[plane]], order)
    return vector


def quantize_kernel(
    x: Tensor, out: Tensor, isa: VectorInstructionSet, planes: tuple[int, int, int] | None, border: Border
) -> Kernel:
    """Quantize. planes: (rows, channels, columns) when a transpose of the last two is done in the same pass."""
    rows, channels, columns = planes or (1, 1, out.elements)
    constants = (_constants(scale_of(out)),)
    division = not rounds_alike(scale_of(out))
    common = {"zero": zero_of(out), "division": division}
    if planes is not None and is_image(out, planes):
        image = {"shape": out.shape, "border": border, **common}
        return Kernel("quantize", image_template, image, out.shape[0] * out.shape[1], constants, boundary=True)
    assert not any(border)
    parameters = {"rows": rows, "channels": channels, "columns": columns, **common}
    count = -(-out.elements // BLOCK) if channels == 1 else rows * (columns // strip_length(channels, columns))
    return Kernel("quantize", quantize_template, parameters, count, constants, boundary=True)


def is_image(out: Tensor, planes: tuple[int, int, int]) -> bool:
    """Whether the kernel takes the tensor as an image of few channels, which it can surround with a border."""
    if len(out.shape) != 4 or not 1 < planes[1] <= IMAGE_CHANNELS:
        return False
    n, h, w, c = out.shape
    return planes == (n, c, h * w)
