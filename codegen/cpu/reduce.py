"""Pools, means and bilinear resizing: sums or maxima over positions, vectorised along the channels."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from tvm import tirx

from qcompiler.codegen.cpu.elementwise import clamp_stored, widen, zero_of
from qcompiler.codegen.cpu.emit import Buffer, Emitter, Expr, constant, load, splat, vector_type
from qcompiler.codegen.cpu.isa.base import VectorInstructionSet
from qcompiler.codegen.cpu.kernel import Kernel
from qcompiler.codegen.cpu.loops import collapse, dot, for_chunks, strides_of, tasks, unflatten
from qcompiler.codegen.cpu.requantize import Requantizer, Rescale, rescale_constants, rescale_of
from qcompiler.sim.integer_program import AveragePool2d, MaxPool2d, Mean, ResizeLinear, Shape, Tensor

Pair = tuple[int, int]
Padding = tuple[int, int, int, int]


def _clip(
    e: Emitter, out: Expr, stride: int, before: int, dilation: int, kernel: int, size: int, inside: bool
) -> tuple[Expr, Expr, Expr]:
    """(first position of a window, first and one-past-last kernel index that lie inside the image).

    inside: no window leaves the image, so that the limits are known now.
    """
    origin = e.bind(out * stride - before, "int32", "origin")
    if inside:
        return origin, constant(0), constant(kernel)
    zero = constant(0)
    begin = tirx.max(zero, tirx.floordiv(constant(dilation - 1) - origin, constant(dilation)))
    end = tirx.min(constant(kernel), tirx.floordiv(constant(size + dilation - 1) - origin, constant(dilation)))
    return origin, e.bind(begin, "int32", "begin"), e.bind(tirx.max(end, begin), "int32", "end")


def _window_loops(
    e: Emitter, shape: Shape, output: Shape, kernel: Pair, stride: Pair, dilation: Pair, padding: Padding,
    task: Expr, body: Any,
) -> None:  # fmt: skip
    """One task is a line of outputs: ``body(out index, column, visit)``; visit(use) calls use(base) per position."""
    n, h, w, c = shape
    _, oh, ow, _ = output
    image, line = e.bind(task // oh, "int32", "image"), e.bind(task % oh, "int32", "line")
    top, left, bottom, right = padding
    y0, y_begin, y_end = _clip(e, line, stride[0], top, dilation[0], kernel[0], h, top == 0 and bottom == 0)
    with e.loop(ow, "column") as column:
        x0, x_begin, x_end = _clip(e, column, stride[1], left, dilation[1], kernel[1], w, left == 0 and right == 0)

        def visit(use: Any) -> None:
            with e.loop(y_end - y_begin, "ky", begin=y_begin) as ky:
                row = e.bind((image * h + y0 + ky * dilation[0]) * w + x0, "int32", "row")
                with e.loop(x_end - x_begin, "kx", begin=x_begin) as kx:
                    use(e.bind((row + kx * dilation[1]) * c, "int32", "base"))

        body(e.bind((task * ow + column) * c, "int32", "out"), line, column, visit)


class _Accumulator:
    """One vector in a register across loops."""

    def __init__(self, e: Emitter, dtype: str, initial: Expr) -> None:
        self._registers = e.registers(1, dtype)
        self.set(initial)

    def set(self, value: Expr) -> None:
        self._registers[0] = value

    @property
    def value(self) -> Expr:
        return self._registers[0]


def max_pool_template(
    isa: VectorInstructionSet, shape: Shape, output: Shape, kernel: Pair, stride: Pair, dilation: Pair, padding: Padding
) -> Any:
    """Stored bytes keep their order, so the maximum is taken on them directly."""
    e = Emitter()
    x, y = e.buffer("x", math.prod(shape), isa.storage), e.buffer("y", math.prod(output), isa.storage)
    least = 0 if isa.storage == "uint8" else -128
    with tasks(e) as task:

        def pixel(out: Expr, line: Expr, column: Expr, visit: Any) -> None:
            def channels(start: Expr, lanes: int) -> None:
                best = _Accumulator(e, vector_type(isa.storage, lanes), splat(least, isa.storage, lanes))
                visit(lambda base: best.set(tirx.max(best.value, load(x, base + start, lanes))))
                e.store(y, out + start, best.value, lanes)

            for_chunks(e, shape[3], isa.vector_bytes, channels)

        _window_loops(e, shape, output, kernel, stride, dilation, padding, task, pixel)
    return e.function()


def max_pool_kernel(op: MaxPool2d, x: Tensor, out: Tensor, isa: VectorInstructionSet) -> Kernel:
    """MaxPool2d; one task a line of the output."""
    parameters = {"shape": x.shape, "output": out.shape, "kernel": op.kernel, "stride": op.stride,
                  "dilation": op.dilation, "padding": op.padding}  # fmt: skip
    return Kernel("max_pool", max_pool_template, parameters, out.shape[0] * out.shape[1])


def average_pool_template(
    isa: VectorInstructionSet, shape: Shape, output: Shape, kernel: Pair, stride: Pair, dilation: Pair,
    padding: Padding, zero: int, rescale: Rescale,
) -> Any:  # fmt: skip
    """Constants: requantisation by count - 1, then int32 [OH] and [OW]: counted rows and columns of each window."""
    e = Emitter()
    x = e.buffer("x", math.prod(shape), isa.storage)
    requantizer = Requantizer(isa, rescale, e, kernel[0] * kernel[1])
    rows, columns = e.buffer("rows", output[1], "int32"), e.buffer("columns", output[2], "int32")
    y = e.buffer("y", math.prod(output), isa.storage)
    with tasks(e) as task:

        def pixel(out: Expr, line: Expr, column: Expr, visit: Any) -> None:
            counted = tirx.max(load(rows, line, 1) * load(columns, column, 1), constant(1)) - 1
            index = e.bind(counted, "int32", "counted")
            # The zero point is taken off once for every position that was visited.
            visited = _Accumulator(e, "int32", constant(0))
            visit(lambda base: visited.set(visited.value + 1))

            def channels(start: Expr, lanes: int) -> None:
                total = _Accumulator(e, vector_type("int32", lanes), splat(visited.value * -zero, "int32", lanes))
                visit(lambda base: total.set(total.value + widen(x, base + start, lanes)))
                value = requantizer.apply(total.value, requantizer.uniform(lanes, index), lanes)
                e.store(y, out + start, clamp_stored(e, isa, value, rescale.minimum, rescale.maximum, lanes), lanes)

            for_chunks(e, shape[3], isa.lanes(4), channels)

        _window_loops(e, shape, output, kernel, stride, dilation, padding, task, pixel)
    return e.function()


def _counted(size: int, output: int, kernel: int, stride: int, dilation: int, before: int, after: int) -> Any:
    """How many kernel positions of each window fall on -before <= position < size + after."""
    positions = np.arange(output)[:, None] * stride - before + np.arange(kernel)[None, :] * dilation
    lowest = -before if after >= 0 else 0
    return ((positions >= lowest) & (positions < size + max(after, 0))).sum(axis=1).astype(np.int32)


def average_pool_kernel(op: AveragePool2d, x: Tensor, out: Tensor, isa: VectorInstructionSet) -> Kernel:
    """AveragePool2d; one task a line of the output."""
    taps = op.kernel[0] * op.kernel[1]
    rescale = rescale_of(op.requantize, np.full(taps, 255 * taps))
    top, left, bottom, right = op.padding
    counts = []
    for axis, before, after in ((0, top, bottom), (1, left, right)):
        real = after - op.padding_excess[axis] if op.count_include_pad else -1
        counts.append(
            _counted(
                x.shape[1 + axis],
                out.shape[1 + axis],
                op.kernel[axis],
                op.stride[axis],
                op.dilation[axis],
                before,
                real,
            )
        )
    parameters = {"shape": x.shape, "output": out.shape, "kernel": op.kernel, "stride": op.stride,
                  "dilation": op.dilation, "padding": op.padding, "zero": zero_of(x) + isa.storage_offset,
                  "rescale": rescale}  # fmt: skip
    constants = (*rescale_constants(op.requantize, rescale, taps, np.arange(taps)), *counts)
    return Kernel("average_pool", average_pool_template, parameters, out.shape[0] * out.shape[1], constants)


# ------------------------------------------------------------------------------------------------ means
def _mean_axes(shape: Shape, axes: tuple[int, ...]) -> tuple[list[int], list[int], list[int], list[int]]:
    """(kept extents, their strides, summed extents, their strides), adjacent axes merged."""
    strides = strides_of(shape)
    kept = [i for i in range(len(shape)) if i not in axes]
    summed = [i for i in range(len(shape)) if i in axes]
    parts = []
    for group in (kept, summed):
        extents, (walk,) = collapse(tuple(shape[i] for i in group), [[strides[i] for i in group]])
        parts += [extents, walk]
    return parts[0], parts[1], parts[2], parts[3]


def _block_channels(isa: VectorInstructionSet, extent: int) -> int:
    """Channels of one task of a mean: one vector, or all when they do not fill a whole number of vectors."""
    lanes = isa.lanes(4)
    return lanes if extent % lanes == 0 else extent


def mean_template(isa: VectorInstructionSet, shape: Shape, axes: tuple[int, ...], zero: int, rescale: Rescale) -> Any:
    """One task: one vector of outputs (sums over rows), or one output where the last axis is summed."""
    kept, kept_strides, summed, summed_strides = _mean_axes(shape, axes)
    count = math.prod(summed)
    e = Emitter()
    x = e.buffer("x", math.prod(shape), isa.storage)
    requantizer = Requantizer(isa, rescale, e, 1)
    y = e.buffer("y", math.prod(kept), isa.storage)

    def finish(total: Expr, at: Expr, lanes: int) -> None:
        centred = total - splat(zero * count, "int32", lanes)
        value = requantizer.apply(centred, requantizer.uniform(lanes), lanes)
        e.store(y, at, clamp_stored(e, isa, value, rescale.minimum, rescale.maximum, lanes), lanes)

    def over(extents: list[int], strides: list[int], base: Expr, use: Any) -> None:
        if not extents:
            use(base)
            return
        with e.loop(extents[0], "r") as r:
            over(extents[1:], strides[1:], base + r * strides[0], use)

    with tasks(e) as task:
        if kept_strides[-1] == 1:
            block = _block_channels(isa, kept[-1])
            at = unflatten(e, task, [*kept[:-1], kept[-1] // block])
            base = e.bind(dot(at, [*kept_strides[:-1], block]), "int32", "base")

            def channels(start: Expr, lanes: int) -> None:
                total = _Accumulator(e, vector_type("int32", lanes), splat(0, "int32", lanes))
                over(summed, summed_strides, base + start,
                     lambda index: total.set(total.value + widen(x, index, lanes)))  # fmt: skip
                finish(total.value, task * block + start, lanes)

            for_chunks(e, block, isa.lanes(4), channels)
        else:
            base = e.bind(dot(unflatten(e, task, kept), kept_strides), "int32", "base")
            total = _Accumulator(e, "int32", constant(0))
            over(summed, summed_strides, base, lambda index: total.set(total.value + widen(x, index, 1)))
            finish(total.value, task, 1)
    return e.function()


def mean_kernel(op: Mean, x: Tensor, out: Tensor, isa: VectorInstructionSet) -> Kernel:
    """Mean over any axes; also the global average pool."""
    kept, kept_strides, summed, _ = _mean_axes(x.shape, op.axes)
    rescale = rescale_of(op.requantize, np.array([255 * math.prod(summed)]))
    parameters = {"shape": x.shape, "axes": op.axes, "zero": zero_of(x) + isa.storage_offset, "rescale": rescale}
    constants = rescale_constants(op.requantize, rescale, 1, np.zeros(1, np.int64))
    block = _block_channels(isa, kept[-1]) if kept_strides[-1] == 1 else 1
    return Kernel("mean", mean_template, parameters, math.prod(kept) // block, constants)


# ----------------------------------------------------------------------------------------------- resize
def resize_linear_template(isa: VectorInstructionSet, shape: Shape, output: Shape, zero: int, rescale: Rescale) -> Any:
    """Constants: requantisation, then int32 [6 rows of OH or OW]: low, high, weight of lines and of columns."""
    n, h, w, c = shape
    _, oh, ow, _ = output
    e = Emitter()
    x = e.buffer("x", math.prod(shape), isa.storage)
    requantizer = Requantizer(isa, rescale, e, 1)
    low_h, high_h, weight_h = (e.buffer(name, oh, "int32") for name in ("low_h", "high_h", "weight_h"))
    low_w, high_w, weight_w = (e.buffer(name, ow, "int32") for name in ("low_w", "high_w", "weight_w"))
    y = e.buffer("y", math.prod(output), isa.storage)

    def bind(buffer: Buffer, index: Expr) -> Expr:
        return e.bind(load(buffer, index, 1), "int32", "at")

    with tasks(e) as task:
        image, line = e.bind(task // oh, "int32", "image"), e.bind(task % oh, "int32", "line")
        rows = [e.bind((image * h + load(b, line, 1)) * w, "int32", "row") for b in (low_h, high_h)]
        wh = bind(weight_h, line)
        with e.loop(ow, "column") as column:
            columns = [bind(b, column) for b in (low_w, high_w)]
            ww = bind(weight_w, column)
            corners = [
                (e.bind((r + k) * c, "int32", "corner"), e.bind(a * b, "int32", "weight"))
                for r, a in zip(rows, (256 - wh, wh), strict=True)
                for k, b in zip(columns, (256 - ww, ww), strict=True)
            ]

            def channels(start: Expr, lanes: int, corners: Any = corners, column: Expr = column) -> None:
                # The weights sum to 2**16, so that the zero point comes off once.
                total = splat(-zero << 16, "int32", lanes)
                for base, weight in corners:
                    total = total + widen(x, base + start, lanes) * splat(weight, "int32", lanes)
                value = requantizer.apply(total, requantizer.uniform(lanes), lanes)
                at = (task * ow + column) * c + start
                e.store(y, at, clamp_stored(e, isa, value, rescale.minimum, rescale.maximum, lanes), lanes)

            for_chunks(e, c, isa.lanes(4), channels)
    return e.function()


def resize_linear_kernel(op: ResizeLinear, x: Tensor, out: Tensor, isa: VectorInstructionSet) -> Kernel:
    """Bilinear resize; one task a line of the output."""
    rescale = rescale_of(op.requantize, np.array([255 << 16]))
    parameters = {"shape": x.shape, "output": out.shape, "zero": zero_of(x) + isa.storage_offset, "rescale": rescale}
    positions = (op.low_h, op.high_h, op.weight_h, op.low_w, op.high_w, op.weight_w)
    constants = (
        *rescale_constants(op.requantize, rescale, 1, np.zeros(1, np.int64)),
        *(p.astype(np.int32) for p in positions),
    )
    return Kernel("resize_linear", resize_linear_template, parameters, out.shape[0] * out.shape[1], constants)
