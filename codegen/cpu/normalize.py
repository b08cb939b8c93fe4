"""Integer softmax and layer normalisation over the last axis; one task is one row."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from tvm import tirx

from qcompiler.codegen.cpu.elementwise import clamp_stored, widen
from qcompiler.codegen.cpu.emit import Emitter, Expr, cast, constant, intrinsic, load, splat, vector_type
from qcompiler.codegen.cpu.isa.base import VectorInstructionSet
from qcompiler.codegen.cpu.kernel import Kernel
from qcompiler.codegen.cpu.loops import chunk_widths, for_chunks, tasks
from qcompiler.sim import numerics
from qcompiler.sim.integer_program import LayerNorm, Softmax, Tensor


def _int64(value: int) -> Expr:
    return constant(value, "int64")


class _Reduction:
    """A sum or maximum over chunks of a row: one register for each vector width, joined at the end."""

    def __init__(self, e: Emitter, operation: str, dtype: str, initial: int, widths: list[int]) -> None:
        self._e, self._operation, self._dtype = e, operation, dtype
        self._registers = {w: e.registers(1, vector_type(dtype, w), "total") for w in widths}
        for width, register in self._registers.items():
            register[0] = splat(initial, dtype, width)

    def _join(self, a: Expr, b: Expr) -> Expr:
        return a + b if self._operation == "add" else tirx.max(a, b)

    def take(self, values: Expr, width: int) -> None:
        register = self._registers[width]
        register[0] = self._join(register[0], values)

    def result(self) -> Expr:
        name = f"llvm.vector.reduce.{self._operation}"
        parts = [r[0] if w == 1 else intrinsic(name, self._dtype, r[0]) for w, r in self._registers.items()]
        return self._e.bind(functools.reduce(self._join, parts), self._dtype, "total")


def softmax_template(isa: VectorInstructionSet, length: int, rows: int, fraction_bits: int) -> Any:
    """Constants: int32 [256], `numerics.softmax_table`. See `numerics.softmax`; one 64-bit division a row."""
    e = Emitter()
    x = e.buffer("x", rows * length, isa.storage)
    table = e.buffer("table", 256, "int32")
    powers = e.buffer("scratch", length, "int32")
    y = e.buffer("y", rows * length, isa.storage)
    lanes = isa.lanes(4)
    with tasks(e) as task:
        base = e.bind(task * length, "int32", "base")
        unsigned = isa.storage == "uint8"
        best = _Reduction(
            e, "umax" if unsigned else "smax", isa.storage, 0 if unsigned else -128,
            chunk_widths(length, isa.vector_bytes),
        )  # fmt: skip
        for_chunks(e, length, isa.vector_bytes, lambda i, w: best.take(load(x, base + i, w), w))
        highest = e.bind(cast(best.result(), "int32"), "int32", "highest")
        total = _Reduction(e, "add", "int32", 0, chunk_widths(length, lanes))

        def look_up(i: Expr, width: int) -> None:
            distance = splat(highest, "int32", width) - widen(x, base + i, width)
            power = e.bind(tirx.BufferLoad(table, [distance]), vector_type("int32", width), "power")
            e.store(powers, i, power, width)
            total.take(power, width)

        for_chunks(e, length, lanes, look_up)
        summed = total.result()
        bits = e.bind(constant(32) - cast(tirx.clz(summed), "int32"), "int32", "bits")
        reciprocal = tirx.shift_left(_int64(1), cast(bits + 15, "int64")) // cast(summed, "int64")
        factor = e.bind(cast(reciprocal, "uint32"), "uint32", "reciprocal")
        # With s = n + 15 - f: (p + 2**(s-1)) >> s = ((p >> 1) + 2**(s-2)) >> (s-1), which stays within 32 bits up to
        # s = 32, n = 17 + f. Beyond, p <= 2**31 is below half a step and the quotient is zero.
        limit = 17 + fraction_bits
        less_one = tirx.min(bits, constant(limit)) + (14 - fraction_bits)
        shift = e.bind(cast(less_one, "uint32"), "uint32", "shift")
        half = e.bind(tirx.shift_left(constant(1, "uint32"), shift - constant(1, "uint32")), "uint32", "half")
        scale = e.bind(tirx.Select(bits > limit, constant(0, "uint32"), factor), "uint32", "scale")

        def divide(i: Expr, width: int) -> None:
            product = cast(load(powers, i, width), vector_type("uint32", width)) * splat(scale, "uint32", width)
            rounded = tirx.shift_right(product, splat(1, "uint32", width)) + splat(half, "uint32", width)
            q = cast(tirx.shift_right(rounded, splat(shift, "uint32", width)), vector_type("int32", width))
            e.store(
                y,
                base + i,
                clamp_stored(e, isa, q - splat(128 - isa.storage_offset, "int32", width), -128, 127, width),
                width,
            )

        for_chunks(e, length, lanes, divide)
    return e.function()


def softmax_kernel(op: Softmax, x: Tensor, isa: VectorInstructionSet) -> Kernel:
    """Softmax; scratch holds one row of exponentials."""
    length = x.shape[-1]
    parameters = {"length": length, "rows": x.elements // length, "fraction_bits": op.fraction_bits}
    return Kernel(
        "softmax", softmax_template, parameters, x.elements // length, (op.table.astype(np.int32),), 4 * length
    )


def layer_norm_template(
    isa: VectorInstructionSet, length: int, rows: int, shift: int, minimum: int, maximum: int
) -> Any:
    """Constants: int16 [K] gain, int32 [K] bias, int64 [1] epsilon. See `numerics.layer_norm`, step by step."""
    e = Emitter()
    x = e.buffer("x", rows * length, isa.storage)
    gains, biases = e.buffer("gain", length, "int16"), e.buffer("bias", length, "int32")
    epsilon = e.buffer("epsilon", 1, "int64")
    y = e.buffer("y", rows * length, isa.storage)
    lanes, offset = isa.lanes(4), isa.storage_offset
    with tasks(e) as task:
        base = e.bind(task * length, "int32", "base")
        total, squares = (_Reduction(e, "add", "int32", 0, chunk_widths(length, lanes)) for _ in range(2))

        def centred(i: Expr, width: int) -> Expr:
            return widen(x, base + i, width) - splat(offset, "int32", width)

        def accumulate(i: Expr, width: int) -> None:
            value = e.bind(centred(i, width), vector_type("int32", width), "value")
            total.take(value, width)
            squares.take(value * value, width)

        for_chunks(e, length, lanes, accumulate)
        summed = e.bind(cast(total.result(), "int64"), "int64", "sum")
        variance = _int64(length) * cast(squares.result(), "int64") - summed * summed + load(epsilon, 0, 1)
        variance = e.bind(variance, "int64", "variance")
        fraction = numerics.LAYER_NORM_MEAN_BITS
        mean = tirx.floordiv(summed * _int64(1 << fraction) + _int64(length // 2), _int64(length))
        mean = e.bind(cast(mean, "int32"), "int32", "mean")
        # rho, m = inverse_sqrt_normalised(variance)
        bits = e.bind(constant(64) - cast(tirx.clz(variance), "int32"), "int32", "bits")
        m = e.bind(tirx.shift_right(bits - 31, constant(1)), "int32", "m")
        right, left = tirx.max(m * 2, constant(0)), tirx.max(m * -2, constant(0))
        v = tirx.shift_right(tirx.shift_left(variance, cast(left, "int64")), cast(right, "int64"))
        quotient = e.bind(tirx.truncdiv(_int64(1 << 60), v), "int64", "quotient")
        # The float64 root of an integer below 2**52 never rounds up to the next integer.
        root = intrinsic("llvm.sqrt", "float64", cast(quotient, "float64"))
        rho = e.bind(cast(root, "int32"), "int32", "rho")
        exponent = m + (28 - (length - 1).bit_length())
        exponent = e.bind(tirx.max(tirx.min(exponent, constant(31)), constant(1)), "int32", "exponent")
        half = e.bind(tirx.shift_left(constant(1), exponent - 1), "int32", "half")

        def normalise(i: Expr, width: int) -> None:
            def all_(value: Expr | int) -> Expr:
                return splat(value, "int32", width)

            c = tirx.shift_left(centred(i, width), all_(fraction)) - all_(mean)
            z = tirx.shift_right(c * all_(rho) + all_(half), all_(exponent))
            z = tirx.max(tirx.min(z, all_(32767)), all_(-32768))
            scaled = z * widen(gains, i, width) + load(biases, i, width)
            q = tirx.shift_right(scaled, all_(shift)) + all_(offset)
            e.store(y, base + i, clamp_stored(e, isa, q, minimum, maximum, width), width)

        for_chunks(e, length, lanes, normalise)
    return e.function()


def layer_norm_kernel(op: LayerNorm, x: Tensor, isa: VectorInstructionSet) -> Kernel:
    """LayerNorm over the last axis."""
    length = x.shape[-1]
    parameters = {"length": length, "rows": x.elements // length, "shift": op.shift, "minimum": op.minimum,
                  "maximum": op.maximum}  # fmt: skip
    constants = (op.gain.astype(np.int16), op.bias.astype(np.int32), np.array([op.epsilon], np.int64))
    return Kernel("layer_norm", layer_norm_template, parameters, x.elements // length, constants)
