"""Integer softmax and layer normalisation over the last axis, in 16-bit words; one task is one row."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from tvm import tirx

from qcompiler.codegen.cpu.emit import (
    Emitter,
    Expr,
    bits,
    cast,
    constant,
    intrinsic,
    load,
    shuffle,
    splat,
    unpack,
    vector_type,
)
from qcompiler.codegen.cpu.isa.base import Array, VectorInstructionSet
from qcompiler.codegen.cpu.kernel import Kernel
from qcompiler.codegen.cpu.loops import chunk_widths, for_chunks, tasks
from qcompiler.sim import numerics
from qcompiler.sim.integer_program import LayerNorm, Softmax, Tensor


def _int64(value: int) -> Expr:
    return constant(value, "int64")


class _Reduction:
    """A sum or maximum over the chunks of a row: one register for each vector width, joined at the end.

    widths: of the chunks, to the lanes that a chunk of each is reduced to.
    """

    def __init__(self, e: Emitter, operation: str, dtype: str, initial: int, widths: dict[int, int]) -> None:
        self._e, self._operation, self._dtype = e, operation, dtype
        self._lanes = widths
        self._registers = {w: e.registers(1, vector_type(dtype, lanes), "total") for w, lanes in widths.items()}
        for width, register in self._registers.items():
            register[0] = splat(initial, dtype, widths[width])

    def __getitem__(self, width: int) -> Expr:
        return self._registers[width][0]

    def __setitem__(self, width: int, value: Expr) -> None:
        self._registers[width][0] = value

    def join(self, a: Expr, b: Expr) -> Expr:
        return a + b if self._operation == "add" else tirx.max(a, b)

    def result(self) -> Expr:
        name = f"llvm.vector.reduce.{self._operation}"
        parts = [
            r[0] if self._lanes[w] == 1 else intrinsic(name, self._dtype, r[0]) for w, r in self._registers.items()
        ]
        return self._e.bind(functools.reduce(self.join, parts), self._dtype, "total")


def _sum_of_words(e: Emitter, widths: list[int]) -> _Reduction:
    """What `isa.dot_words` adds up over chunks of so many bytes, as int32."""
    words = {w: _words_of(w) for w in widths}
    return _Reduction(e, "add", "int32", 0, {w: n // 2 if n >= 8 else n for w, n in words.items()})


def _words_of(width: int) -> int:
    """Words of one vector that `isa.widen` makes of so many bytes."""
    return width // 2 if width >= 16 else width


def _join_bytes(low: Expr, high: Expr, width: int) -> list[Expr]:
    """uint16 of their low and high bytes, in the order of `isa.widen`."""
    if width >= 16:
        halves = [unpack(low, high, 1, half, width) for half in (False, True)]
        return [bits(half, f"uint16x{width // 2}") for half in halves]
    pairs = shuffle([low, high], [i + half for i in range(width) for half in (0, width)])
    return [bits(pairs, vector_type("uint16", width))]


def softmax_template(isa: VectorInstructionSet, length: int, rows: int, fraction_bits: int) -> Any:
    """Constants: low and high bytes of the coarse factors, then of the fine ones (`numerics.softmax_factors`)."""
    e = Emitter()
    x = e.buffer("x", rows * length, isa.storage)
    tables = [
        e.buffer(f"{part}_{half}", isa.short_table_bytes, isa.storage)
        for part in ("coarse", "fine")
        for half in ("low", "high")
    ]
    powers = e.buffer("scratch", length, "uint16")
    y = e.buffer("y", rows * length, isa.storage)
    widths = chunk_widths(length, isa.vector_bytes)
    with tasks(e) as task:
        base = e.bind(task * length, "int32", "base")
        unsigned = isa.storage == "uint8"
        best = _Reduction(
            e, "umax" if unsigned else "smax", isa.storage, 0 if unsigned else -128, {w: w for w in widths}
        )  # fmt: skip

        def compare(i: Expr, width: int) -> None:
            best[width] = best.join(best[width], load(x, base + i, width))

        for_chunks(e, length, isa.vector_bytes, compare)
        highest = best.result()
        total = _sum_of_words(e, widths)

        def look_up(i: Expr, width: int) -> None:
            dtype = vector_type(isa.storage, width)
            distance = bits(splat(highest, isa.storage, width) - load(x, base + i, width), vector_type("uint8", width))
            distance = e.bind(distance, vector_type("uint8", width), "distance")
            coarse = tirx.shift_right(distance, splat(4, "uint8", width))
            fine = tirx.bitwise_and(distance, splat(15, "uint8", width))
            factors = []
            for index, (low, high) in zip((coarse, fine), (tables[:2], tables[2:]), strict=True):
                index = e.bind(bits(index, dtype), dtype, "index")
                factors.append(
                    _join_bytes(isa.short_look_up(low, index, width), isa.short_look_up(high, index, width), width)
                )
            words = _words_of(width)
            for n, (a, b) in enumerate(zip(*factors, strict=True)):
                power = e.bind(isa.multiply_high(a, b, words), vector_type("uint16", words), "power")
                e.store(powers, i + n * words, power, words)
                # Sums are of signed words: less 2**15 each, which the total gets back.
                centred = bits(tirx.bitwise_xor(power, splat(1 << 15, "uint16", words)), vector_type("int16", words))
                total[width] = isa.dot_words(total[width], centred, splat(1, "int16", words), words)

        for_chunks(e, length, isa.vector_bytes, look_up)
        summed = e.bind(cast(total.result(), "int64") + _int64((length << 15) + 2), "int64", "sum")
        size = e.bind(constant(64) - cast(tirx.clz(summed), "int32"), "int32", "bits")
        # The quotient stays below 2**16 and at least 2**-32 from the next integer: float64 cannot round up to it.
        above = cast(tirx.shift_left(_int64(1), cast(size + 15, "int64")) - _int64(1), "float64")
        reciprocal = e.bind(cast(above / cast(summed, "float64"), "int32"), "int32", "reciprocal")
        shift = e.bind(size - (2 + fraction_bits), "int32", "shift")
        # Shifts of words end at 15; beyond, every quotient is below one half.
        factor = e.bind(cast(tirx.Select(shift > 15, constant(0), reciprocal), "uint16"), "uint16", "factor")
        shift = e.bind(cast(tirx.min(shift, constant(15)), "uint16"), "uint16", "shift")

        def divide(i: Expr, width: int) -> None:
            words = _words_of(width)
            quotients = []
            for n in range(width // words):
                top = isa.multiply_high(load(powers, i + n * words, words), splat(factor, "uint16", words), words)
                doubled = tirx.shift_right(top, splat(shift, "uint16", words)) + splat(1, "uint16", words)
                rounded = bits(tirx.shift_right(doubled, splat(1, "uint16", words)), vector_type("int16", words))
                if isa.storage_offset != 128:
                    rounded = rounded - splat(128 - isa.storage_offset, "int16", words)
                quotients.append(e.bind(rounded, vector_type("int16", words), "quotient"))
            e.store(y, base + i, isa.narrow(quotients, width), width)

        for_chunks(e, length, isa.vector_bytes, divide)
    return e.function()


def softmax_kernel(op: Softmax, x: Tensor, isa: VectorInstructionSet) -> Kernel:
    """Softmax; scratch holds one row of exponentials."""
    length = x.shape[-1]
    parameters = {"length": length, "rows": x.elements // length, "fraction_bits": op.fraction_bits}
    entries = op.factors.astype("<u2").view(np.uint8).reshape(2, 16, 2)
    halves = [np.ascontiguousarray(entries[part, :, half]).view(isa.storage) for part in (0, 1) for half in (0, 1)]
    tables = tuple(isa.arrange_short_table(half) for half in halves)
    return Kernel("softmax", softmax_template, parameters, x.elements // length, tables, 2 * length)


def layer_norm_template(
    isa: VectorInstructionSet, length: int, rows: int, shift: int, minimum: int, maximum: int
) -> Any:
    """Constants: int16 [K] gain and bias, each in `word_order`; int64 [1] epsilon. See `numerics.layer_norm`.

    Works on stored bytes: their offset moves the mean and nothing else; the bias puts it onto the result.
    """
    e = Emitter()
    x = e.buffer("x", rows * length, isa.storage)
    gains, biases = e.buffer("gain", length, "int16"), e.buffer("bias", length, "int16")
    epsilon = e.buffer("epsilon", 1, "int64")
    y = e.buffer("y", rows * length, isa.storage)
    widths = chunk_widths(length, isa.vector_bytes)
    with tasks(e) as task:
        base = e.bind(task * length, "int32", "base")
        total, squares = (_sum_of_words(e, widths) for _ in range(2))

        def accumulate(i: Expr, width: int) -> None:
            words = _words_of(width)
            for value in isa.widen(e.bind(load(x, base + i, width), vector_type(isa.storage, width)), width):
                value = e.bind(value, vector_type("int16", words), "value")
                total[width] = isa.dot_words(total[width], value, splat(1, "int16", words), words)
                squares[width] = isa.dot_words(squares[width], value, value, words)

        for_chunks(e, length, isa.vector_bytes, accumulate)
        summed = e.bind(cast(total.result(), "int64"), "int64", "sum")
        variance = _int64(length) * cast(squares.result(), "int64") - summed * summed + load(epsilon, 0, 1)
        variance = e.bind(variance, "int64", "variance")
        fraction = numerics.LAYER_NORM_MEAN_BITS
        mean = tirx.floordiv(summed * _int64(1 << fraction) + _int64(length // 2), _int64(length))
        mean = e.bind(cast(mean, "int16"), "int16", "mean")
        # rho, m = inverse_sqrt_normalised(variance)
        size = e.bind(constant(64) - cast(tirx.clz(variance), "int32"), "int32", "bits")
        m = e.bind(tirx.shift_right(size - 31, constant(1)), "int32", "m")
        right, left = tirx.max(m * 2, constant(0)), tirx.max(m * -2, constant(0))
        v = tirx.shift_right(tirx.shift_left(variance, cast(left, "int64")), cast(right, "int64"))
        quotient = e.bind(tirx.truncdiv(_int64(1 << 60), v), "int64", "quotient")
        # The float64 root of an integer below 2**52 never rounds up to the next integer.
        root = intrinsic("llvm.sqrt", "float64", cast(quotient, "float64"))
        rho = e.bind(cast(tirx.min(cast(root, "int32"), constant(32767)), "int16"), "int16", "rho")
        bits_left = (length - 1).bit_length() + numerics.layer_norm_fraction_bits(length)
        exponent = e.bind(tirx.max(tirx.min(m + (22 - bits_left), constant(15)), constant(-15)), "int32", "exponent")

        def word(value: Expr) -> Expr:
            return e.bind(cast(value, "int16"), "int16", "word")

        up = word(tirx.max(-exponent, constant(0)))
        down = word(tirx.max(exponent - 1, constant(0)))
        last = word(tirx.min(tirx.max(exponent, constant(0)), constant(1)))

        def normalise(i: Expr, width: int) -> None:
            words = _words_of(width)

            def all_(value: Expr | int) -> Expr:
                return splat(value, "int16", words)

            results = []
            for n, value in enumerate(
                isa.widen(e.bind(load(x, base + i, width), vector_type(isa.storage, width)), width)
            ):
                c = tirx.shift_left(value, all_(fraction)) - all_(mean)
                p = isa.multiply_high_round(c, all_(rho), words)
                # A right shift rounded half up, by one bit at last: nothing can overflow before it.
                shifted = tirx.shift_right(tirx.shift_left(p, all_(up)), all_(down))
                z = tirx.shift_right(shifted + all_(last), all_(last))
                scaled = isa.multiply_high_round(z, load(gains, i + n * words, words), words)
                moved = intrinsic(
                    "llvm.sadd.sat", vector_type("int16", words), scaled, load(biases, i + n * words, words)
                )
                results.append(e.bind(tirx.shift_right(moved, all_(shift)), vector_type("int16", words), "result"))
            stored = e.bind(isa.narrow(results, width), vector_type(isa.storage, width), "bytes")
            e.store(y, base + i, isa.clamp_bytes(stored, minimum, maximum, width), width)

        for_chunks(e, length, isa.vector_bytes, normalise)
    return e.function()


def layer_norm_kernel(op: LayerNorm, x: Tensor, isa: VectorInstructionSet) -> Kernel:
    """LayerNorm over the last axis."""
    length = x.shape[-1]
    parameters = {"length": length, "rows": x.elements // length, "shift": op.shift, "minimum": op.minimum,
                  "maximum": op.maximum}  # fmt: skip
    bias = op.bias.astype(np.int32) + (isa.storage_offset << op.shift)  # within int16: LAYER_NORM_BIAS_LIMIT
    constants = (
        _in_word_order(isa, op.gain), _in_word_order(isa, bias.astype(np.int16)), np.array([op.epsilon], np.int64)
    )  # fmt: skip
    return Kernel("layer_norm", layer_norm_template, parameters, x.elements // length, constants)


def _in_word_order(isa: VectorInstructionSet, values: Array) -> Array:
    """A vector [K] of words as the chunks of a row of K bytes meet them."""
    order: list[int] = []
    widest = isa.vector_bytes
    for width in chunk_widths(values.size, widest):
        for _ in range((values.size - len(order)) // width):
            start = len(order)
            order += [start + i for i in isa.word_order(width)]
    return np.ascontiguousarray(values[order])
