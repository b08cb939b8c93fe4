"""Element-wise kernels: Add, Mul, Table, and the conversions at the program's boundary."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from tvm import tirx

from qcompiler.codegen.cpu.emit import Buffer, Emitter, Expr, cast, constant, intrinsic, load, splat, vector_type
from qcompiler.codegen.cpu.isa.base import VectorInstructionSet
from qcompiler.codegen.cpu.kernel import Kernel, stored
from qcompiler.codegen.cpu.loops import broadcast_strides, collapse, dot, for_blocks, for_chunks, tasks, unflatten
from qcompiler.codegen.cpu.requantize import Requantizer, Rescale, rescale_constants, rescale_of
from qcompiler.sim.errors import TargetError
from qcompiler.sim.integer_program import Add, Mul, Shape, Table, Tensor

BLOCK = 4096
"""Elements of one task of a flat kernel: long enough to hide the loop, short enough to share among threads."""


def zero_of(tensor: Tensor) -> int:
    assert tensor.zero_point is not None
    return tensor.zero_point


def scale_of(tensor: Tensor) -> float:
    assert tensor.scale is not None
    return tensor.scale


def clamp_stored(e: Emitter, isa: VectorInstructionSet, value: Expr, minimum: int, maximum: int, lanes: int) -> Expr:
    """int32 ``q + storage offset`` clamped to minimum..maximum and narrowed to the storage type."""
    low, high = minimum + isa.storage_offset, maximum + isa.storage_offset
    bounded = tirx.max(tirx.min(value, splat(high, "int32", lanes)), splat(low, "int32", lanes))
    return cast(bounded, vector_type(isa.storage, lanes))


def widen(buffer: Buffer, index: Expr, lanes: int, dtype: str = "int32") -> Expr:
    return cast(load(buffer, index, lanes), vector_type(dtype, lanes))


# ---------------------------------------------------------------------------------- two-operand kernels
def _binary_template(
    isa: VectorInstructionSet, a: Shape, b: Shape, output: Shape,
    prepare: Callable[[Emitter], Callable[[Expr, Expr, int], Expr]], alias: bool,
) -> Any:  # fmt: skip
    """Loops of a broadcasting kernel; ``prepare(emitter)`` declares constants and returns (a, b, lanes) -> bytes.

    One task is a block of a flat tensor, or one innermost row where the operands broadcast. a and b are int32.
    """
    extents, (walk_a, walk_b) = collapse(output, [broadcast_strides(a, output), broadcast_strides(b, output)])
    e = Emitter()
    buffer_a = e.buffer("a", int(np.prod(a)), isa.storage)
    buffer_b = e.buffer("b", int(np.prod(b)), isa.storage)
    compute = prepare(e)
    y = e.buffer("y", int(np.prod(output)), isa.storage)
    lanes, row = isa.lanes(4), extents[-1]

    def operand(buffer: Buffer, base: Expr, start: Expr, step: int, width: int) -> Expr:
        if step:
            return widen(buffer, base + start * step, width)
        return splat(cast(load(buffer, base, 1), "int32"), "int32", width)

    with tasks(e) as task:
        if len(extents) == 1:

            def flat(start: Expr, width: int) -> None:
                zero = constant(0)
                values = (
                    operand(buffer_a, zero, start, walk_a[0], width),
                    operand(buffer_b, zero, start, walk_b[0], width),
                )
                e.store(y, start, compute(*values, width), width)

            for_blocks(e, task, row, min(BLOCK, row), lanes, flat)
        else:
            at = unflatten(e, task, extents[:-1])
            base_a, base_b = (e.bind(dot(at, w[:-1]), "int32", "base") for w in (walk_a, walk_b))

            def inner(start: Expr, width: int) -> None:
                values = (
                    operand(buffer_a, base_a, start, walk_a[-1], width),
                    operand(buffer_b, base_b, start, walk_b[-1], width),
                )
                e.store(y, task * row + start, compute(*values, width), width)

            for_chunks(e, row, lanes, inner)
    return e.function().with_attr("tirx.noalias", not alias)


def _in_place(a: Tensor, b: Tensor, out: Tensor) -> tuple[int, ...]:
    return tuple(i for i, t in enumerate((a, b)) if t.shape == out.shape)


def _binary_tasks(a: Shape, b: Shape, output: Shape) -> int:
    extents, _ = collapse(output, [broadcast_strides(a, output), broadcast_strides(b, output)])
    return -(-extents[0] // BLOCK) if len(extents) == 1 else int(np.prod(extents[:-1]))


def add_template(
    isa: VectorInstructionSet, a: Shape, b: Shape, output: Shape, minimum: int, maximum: int, alias: bool
) -> Any:
    """``clamp((a*Ma + b*Mb + bias) >> shift)`` with constants int16 [2] multipliers and int32 [2] bias, shift."""

    def prepare(e: Emitter) -> Callable[[Expr, Expr, int], Expr]:
        multipliers, rest = e.buffer("multipliers", 2, "int16"), e.buffer("rest", 2, "int32")

        def compute(x: Expr, z: Expr, lanes: int) -> Expr:
            ma, mb = (splat(cast(load(multipliers, i, 1), "int32"), "int32", lanes) for i in (0, 1))
            bias, shift = (splat(load(rest, i, 1), "int32", lanes) for i in (0, 1))
            return clamp_stored(e, isa, tirx.shift_right(x * ma + z * mb + bias, shift), minimum, maximum, lanes)

        return compute

    return _binary_template(isa, a, b, output, prepare, alias)


def add_f32_template(
    isa: VectorInstructionSet, a: Shape, b: Shape, output: Shape, zero_a: int, zero_b: int, zero: int, sign: int,
    minimum: int, maximum: int, alias: bool,
) -> Any:  # fmt: skip
    """`numerics.add_f32_half_even`; constants float32 [3]: the scales of a, b and the output."""

    def prepare(e: Emitter) -> Callable[[Expr, Expr, int], Expr]:
        scales = e.buffer("scales", 3, "float32")

        def compute(x: Expr, z: Expr, lanes: int) -> Expr:
            dtype = vector_type("float32", lanes)
            sa, sb, so = (splat(load(scales, i, 1), "float32", lanes) for i in range(3))
            # LLVM may contract a float32 product and the sum into an FMA, which rounds once instead of twice. The
            # product is exact in float64, and its conversion is the rounding that must stay.
            wide = vector_type("float64", lanes)
            real_a = cast(cast(x - splat(zero_a, "int32", lanes), wide) * cast(sa, wide), dtype)
            real_b = cast(cast(z - splat(zero_b, "int32", lanes), wide) * cast(sb, wide), dtype)
            total = real_a + real_b if sign > 0 else real_a - real_b
            return quantized(isa, total, so, zero, minimum, maximum, lanes)

        return compute

    return _binary_template(isa, a, b, output, prepare, alias)


def add_kernel(op: Add, a: Tensor, b: Tensor, out: Tensor, isa: VectorInstructionSet) -> Kernel:
    """Add with NumPy broadcasting; the output may take the place of an operand of its own shape."""
    shapes = {"a": a.shape, "b": b.shape, "output": out.shape}
    limits = {"minimum": op.minimum, "maximum": op.maximum, "alias": out.shape in (a.shape, b.shape)}
    count = _binary_tasks(a.shape, b.shape, out.shape)
    offset = isa.storage_offset
    if op.rounding == "exact_half_up":
        # Stored values are q + offset: the bias takes the operands' offsets back and puts one onto the result.
        bias = op.bias - offset * (op.multiplier_a + op.multiplier_b) + (offset << op.shift)
        constants = (np.array([op.multiplier_a, op.multiplier_b], np.int16), np.array([bias, op.shift], np.int32))
        return Kernel("add", add_template, {**shapes, **limits}, count, constants, in_place=_in_place(a, b, out))
    if op.rounding != "f32_half_even":
        raise TargetError(f"Add {op.name!r}: rounding {op.rounding!r} is not defined for additions")
    zeros = {"zero_a": zero_of(a) + offset, "zero_b": zero_of(b) + offset, "zero": zero_of(out)}
    sign = -1 if op.multiplier_b < 0 else 1
    scales = np.array([scale_of(a), scale_of(b), scale_of(out)], np.float32)
    parameters = {**shapes, **limits, **zeros, "sign": sign}
    return Kernel("add", add_f32_template, parameters, count, (scales,), in_place=_in_place(a, b, out))


def mul_template(
    isa: VectorInstructionSet,
    a: Shape,
    b: Shape,
    output: Shape,
    zero_a: int,
    zero_b: int,
    rescale: Rescale,
    alias: bool,
) -> Any:
    """``requantize((a - zero_a) * (b - zero_b))``; zero points as stored."""

    def prepare(e: Emitter) -> Callable[[Expr, Expr, int], Expr]:
        requantizer = Requantizer(isa, rescale, e, 1)

        def compute(x: Expr, z: Expr, lanes: int) -> Expr:
            product = (x - splat(zero_a, "int32", lanes)) * (z - splat(zero_b, "int32", lanes))
            value = requantizer.apply(product, requantizer.uniform(lanes), lanes)
            return clamp_stored(e, isa, value, rescale.minimum, rescale.maximum, lanes)

        return compute

    return _binary_template(isa, a, b, output, prepare, alias)


def mul_kernel(op: Mul, a: Tensor, b: Tensor, out: Tensor, isa: VectorInstructionSet) -> Kernel:
    """Mul with NumPy broadcasting; the output may take the place of an operand of its own shape."""
    rescale = rescale_of(op.requantize, np.array([255 * 255]))
    parameters = {
        "a": a.shape, "b": b.shape, "output": out.shape, "zero_a": zero_of(a) + isa.storage_offset,
        "zero_b": zero_of(b) + isa.storage_offset, "rescale": rescale, "alias": out.shape in (a.shape, b.shape),
    }  # fmt: skip
    constants = rescale_constants(op.requantize, rescale, 1, np.zeros(1, np.int64))
    count = _binary_tasks(a.shape, b.shape, out.shape)
    return Kernel("mul", mul_template, parameters, count, constants, in_place=_in_place(a, b, out))


# ------------------------------------------------------------------------------------------------ table
def table_template(isa: VectorInstructionSet, elements: int, channels: int) -> Any:
    """``y = table[x]``; one table, or one per position of the last axis (`channels` of them).

    constants: the arranged table (`arrange_table`), or uint8/int8 [channels, 256] in order of the stored byte.
    """
    e = Emitter()
    x = e.buffer("x", elements, isa.storage)
    arranged = isa.table_bytes if channels == 1 else channels * 256
    table = e.buffer("table", arranged, isa.storage)
    y = e.buffer("y", elements, isa.storage)
    with tasks(e) as task:
        if channels == 1:
            look_up = isa.table_look_up(e, table)

            def flat(start: Expr, width: int) -> None:
                e.store(y, start, look_up(load(x, start, width), width), width)

            for_blocks(e, task, elements, min(BLOCK, elements), isa.vector_bytes, flat)
        else:
            with e.loop(channels, "c") as c:
                index = cast(load(x, task * channels + c, 1), "int32") + (128 - isa.storage_offset)
                e.store(y, task * channels + c, load(table, c * 256 + index, 1), 1)
    return e.function().with_attr("tirx.noalias", False)


def table_kernel(op: Table, x: Tensor, isa: VectorInstructionSet) -> Kernel:
    """A 256-entry look-up; the output may take the place of the input."""
    table = stored(op.table, isa.storage)
    if op.table.ndim == 2:
        parameters = {"elements": x.elements, "channels": op.table.shape[0]}
        return Kernel("table", table_template, parameters, x.elements // op.table.shape[0], (table,), in_place=(0,))
    parameters = {"elements": x.elements, "channels": 1}
    constants = (isa.arrange_table(table),)
    tasks = -(-x.elements // BLOCK)
    return Kernel("table", table_template, parameters, tasks, constants, in_place=(0,), extended=isa.own_tables)


# --------------------------------------------------------------------------------------------- boundary
def quantized(
    isa: VectorInstructionSet, x: Expr, scale: Expr, zero: int, minimum: int, maximum: int, lanes: int
) -> Expr:
    """`numerics.quantize_linear` then clamp, as stored bytes; x and scale are float32 vectors."""
    dtype = vector_type("float32", lanes)
    value = intrinsic("llvm.rint", dtype, x / scale) + splat(float(zero), "float32", lanes)
    low = splat(float(max(minimum, -128)), "float32", lanes)
    # maxnum drops a NaN for its other operand: the least value, as the law wants.
    value = intrinsic("llvm.maxnum", dtype, value, low)
    value = tirx.min(value, splat(float(min(maximum, 127)), "float32", lanes))
    return cast(cast(value, vector_type("int32", lanes)) + splat(isa.storage_offset, "int32", lanes),
                vector_type(isa.storage, lanes))  # fmt: skip


def dequantize_template(isa: VectorInstructionSet, rows: int, channels: int, columns: int, zero: int) -> Any:
    """Stored int8 [rows, columns, channels] to float32 [rows, channels, columns]; constants float32 [1]: scale."""
    e = Emitter()
    x = e.buffer("x", rows * channels * columns, isa.storage)
    scale = e.buffer("scale", 1, "float32")
    y = e.buffer("y", rows * channels * columns, "float32")

    def convert(value: Expr, width: int) -> Expr:
        centred = cast(value, vector_type("int32", width)) - splat(zero + isa.storage_offset, "int32", width)
        return cast(centred, vector_type("float32", width)) * splat(load(scale, 0, 1), "float32", width)

    with tasks(e) as task:
        if channels == 1:
            elements = rows * columns

            def flat(i: Expr, w: int) -> None:
                e.store(y, i, convert(load(x, i, w), w), w)

            for_blocks(e, task, elements, min(BLOCK, elements), isa.lanes(4), flat)
        else:  # one task: one channel of one row block
            row, channel = e.bind(task // channels, "int32", "row"), e.bind(task % channels, "int32", "channel")
            with e.loop(columns, "w") as w:
                value = load(x, (row * columns + w) * channels + channel, 1)
                e.store(y, task * columns + w, convert(value, 1), 1)
    return e.function()


def strip_length(channels: int, columns: int) -> int:
    """Columns of one strip: a divisor of `columns`, as long as a strip of all channels stays within 8 KiB."""
    limit = max(1, min(columns, 8192 // channels))
    return next(n for n in range(limit, 0, -1) if columns % n == 0)


def dequantize_kernel(x: Tensor, isa: VectorInstructionSet, planes: tuple[int, int, int] | None) -> Kernel:
    """Dequantize. planes: (rows, channels, columns) of the output when its transpose is done in the same pass."""
    rows, channels, columns = planes or (1, 1, x.elements)
    parameters = {"rows": rows, "channels": channels, "columns": columns, "zero": zero_of(x)}
    count = -(-x.elements // BLOCK) if channels == 1 else rows * channels
    constants = (np.array([scale_of(x)], np.float32),)
    return Kernel("dequantize", dequantize_template, parameters, count, constants, boundary=True)


def convert_template(isa: VectorInstructionSet, elements: int) -> Any:
    """int8 values to stored bytes or back: the same operation both ways."""
    e = Emitter()
    x, y = e.buffer("x", elements, "uint8"), e.buffer("y", elements, "uint8")
    with tasks(e) as task:

        def flat(i: Expr, w: int) -> None:
            flipped = tirx.bitwise_xor(load(x, i, w), splat(isa.storage_offset, "uint8", w))
            e.store(y, i, flipped, w)

        for_blocks(e, task, elements, min(BLOCK, elements), isa.vector_bytes, flat)
    return e.function()


def convert_kernel(tensor: Tensor) -> Kernel:
    """An int8 input or output of the program between the ABI's int8 and the storage type."""
    parameters = {"elements": tensor.elements}
    return Kernel("convert", convert_template, parameters, -(-tensor.elements // BLOCK), boundary=True)
