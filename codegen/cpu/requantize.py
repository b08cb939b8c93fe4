"""int32 accumulators to stored int8, exactly as `numerics.requantize`: the choice of method, its constants, its code.

`exact_half_up` is one FMA and one conversion (`VectorInstructionSet.floor_fma_int`) where the accumulator cannot
leave +-2**24, because then float32 holds it exactly; otherwise the 64-bit product of the definition.

A level that cannot round down inside an instruction takes `nearest` where the constants prove it equal. With
``scale = M * 2**-s``, M = odd * 2**v, the product acc * scale is halfway between integers only for odd multiples acc
of 2**(s-1-v). If that is more than the accumulator's bound no tie exists, and rounding half up is rounding to
nearest: one FMA with the addend 1.5 * 2**23 + zero point rounds the exact sum to an integer, once, because float32
is spaced by 1 there, and the integer is the low bits of the float.

The other roundings follow their definitions in 64-bit integers or float32. Accumulators end as
``q + storage offset`` in int32, far outside the byte range at most saturated; `pack` then saturates and
`clamp_bytes` applies what is left of the clamp.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from tvm import tirx

from qcompiler.codegen.cpu.emit import Buffer, Emitter, Expr, bits, cast, constant, intrinsic, load, splat
from qcompiler.codegen.cpu.isa.base import VectorInstructionSet
from qcompiler.sim import numerics
from qcompiler.sim.integer_program import Conv2d, Dense, Requantize, Tensor

Array = npt.NDArray[Any]
Method = Literal["fma", "nearest", "int64", "f32_half_even", "q31_single", "q31_double"]

FMA_ACCUMULATOR_LIMIT = 1 << 24
NEAREST_MAGIC = 3 << 22  # 1.5 * 2**23: float32 is spaced by 1 from 2**23 to 2**24
NEAREST_LIMIT = 1 << 21  # scaled accumulators that surely stay in that interval
_SATURATED = 1 << 20  # beyond every byte, and exact in float32

CONSTANT_DTYPES: dict[Method, tuple[str, ...]] = {
    "fma": ("float32",),
    "nearest": ("float32",),
    "int64": ("int64", "int64", "int64"),
    "f32_half_even": ("float32",),
    "q31_single": ("int64", "int64", "int64"),
    "q31_double": ("int64", "int64", "int64"),
}
"""Types of the per-channel constant vectors of each method, in order."""


@dataclass(frozen=True)
class Rescale:
    """How to requantise: hashable, a template parameter. bounded: no scaled accumulator leaves +-2**30."""

    method: Method
    minimum: int
    maximum: int
    bounded: bool


def rescale_of(r: Requantize, bound: Array, isa: VectorInstructionSet | None = None) -> Rescale:
    """The method for accumulators of at most `bound` (int64 [C] or [1]) in magnitude.

    isa: lets a level without embedded rounding take `nearest` where that is exact.
    """
    largest = int(np.max(bound, initial=0))
    scaled = float(np.max(np.asarray(bound, dtype=np.float64) * r.scale.astype(np.float64), initial=0.0))
    method: Method
    if r.rounding != "exact_half_up":
        method = r.rounding
    elif largest > FMA_ACCUMULATOR_LIMIT:
        method = "int64"
    elif isa is not None and not isa.rounds_down and scaled < NEAREST_LIMIT and not ties_exist(r.scale, bound):
        method = "nearest"
    else:
        method = "fma"
    return Rescale(method, r.minimum, r.maximum, scaled < 2.0**30)


def ties_exist(scale: Array, bound: Array) -> bool:
    """Whether some integer within +-bound times its float32 scale lies exactly between two integers."""
    multiplier, shift = numerics.decompose_scale(scale)
    trailing_zeros = np.log2((multiplier & -multiplier).astype(np.float64)).astype(np.int64)
    exponent = shift - 1 - trailing_zeros
    smallest = np.where(exponent < 0, np.inf, np.exp2(np.minimum(exponent, 62).astype(np.float64)))
    return bool(np.any(smallest <= np.asarray(bound, dtype=np.float64)))


def reachable_bound(op: Conv2d | Dense, x: Tensor) -> npt.NDArray[np.int64]:
    """Largest |acc| of each output channel over all int8 inputs x (tighter than `accumulator_bound`)."""
    assert x.zero_point is not None
    weight = op.weight.reshape(op.weight.shape[0], -1)
    total = weight.sum(axis=1, dtype=np.int64)
    positive = np.maximum(weight, 0).sum(axis=1, dtype=np.int64)
    negative = total - positive
    low, high = numerics.INT8_MIN - x.zero_point, numerics.INT8_MAX - x.zero_point
    bias = op.bias.astype(np.int64)
    most, least = bias + high * positive + low * negative, bias + low * positive + high * negative
    return np.maximum(np.abs(most), np.abs(least))


def rescale_constants(r: Requantize, rescale: Rescale, channels: int, gather: Array) -> tuple[Array, ...]:
    """Per-channel vectors in kernel order, then the zero point, int32 [1]: layers that differ in it share their code.

    gather: int64 [padded], the channel of each lane, or -1 for none.
    """
    return (*_scale_constants(r, rescale, channels, gather), np.array([r.zero_point], dtype=np.int32))


def _scale_constants(r: Requantize, rescale: Rescale, channels: int, gather: Array) -> tuple[Array, ...]:
    scale = np.broadcast_to(r.scale, (channels,))
    scale = np.where(gather < 0, r.scale.dtype.type(1.0), scale[np.maximum(gather, 0)])
    if rescale.method in ("fma", "nearest", "f32_half_even"):
        return (np.ascontiguousarray(scale, dtype=np.float32),)
    if rescale.method == "int64":
        multiplier, shift = numerics.decompose_scale(scale)
        shift = np.minimum(shift, 62)
        return (multiplier, np.int64(1) << (shift - 1), shift)
    multiplier, shift = numerics.quantize_multiplier_q31(scale)
    if rescale.method == "q31_single":
        right = np.minimum(31 - shift, 62)
        return (multiplier, np.where(right > 0, np.int64(1) << np.maximum(right - 1, 0), 0), right)
    return (multiplier, np.maximum(shift, 0), np.maximum(-shift, 0))


class Requantizer:
    """Emits the code. Its buffers are parameters of the kernel: those that `rescale_constants` fills, in that order."""

    def __init__(self, isa: VectorInstructionSet, rescale: Rescale, emitter: Emitter, channels: int) -> None:
        self._isa, self._rescale, self._emitter = isa, rescale, emitter
        dtypes = CONSTANT_DTYPES[rescale.method]
        self._buffers: list[tuple[Buffer, str]] = [
            (emitter.buffer(f"scale{i}", channels, dtype), dtype) for i, dtype in enumerate(dtypes)
        ]
        zero_point = emitter.buffer("zero_point", 1, "int32")
        self._offset = emitter.bind(load(zero_point, 0, 1) + isa.storage_offset, "int32", "offset")

    def constants(self, channel: Expr, lanes: int) -> tuple[Expr, ...]:
        """The constants of `lanes` channels from `channel` on."""
        return tuple(
            self._emitter.bind(load(b, channel, lanes), f"{dtype}x{lanes}", "scale") for b, dtype in self._buffers
        )

    def uniform(self, lanes: int, index: Expr | int = 0) -> tuple[Expr, ...]:
        """The constants at `index` for all lanes alike."""
        return tuple(splat(load(b, index, 1), dtype, lanes) for b, dtype in self._buffers)

    def apply(self, acc: Expr, constants: tuple[Expr, ...], lanes: int) -> Expr:
        """int32 accumulators to int32 ``q + storage offset``, not yet clamped to a byte."""
        method, offset = self._rescale.method, self._offset
        if method == "fma":
            value = cast(acc, f"float32x{lanes}")
            addend = cast(offset, "float32") + constant(0.5, "float32")
            return self._isa.floor_fma_int(value, constants[0], addend, lanes, self._rescale.bounded)
        if method == "nearest":
            dtype = f"float32x{lanes}"
            addend = splat(cast(offset + NEAREST_MAGIC, "float32"), "float32", lanes)
            rounded = intrinsic("llvm.fma", dtype, cast(acc, dtype), constants[0], addend)
            magic = int(np.float32(NEAREST_MAGIC).view(np.int32))
            return bits(rounded, f"int32x{lanes}") - splat(magic, "int32", lanes)
        if method == "f32_half_even":
            dtype = f"float32x{lanes}"
            value = intrinsic("llvm.rint", dtype, cast(acc, dtype) * constants[0])
            value = _limit(value, lanes, "float32")
            return cast(value, f"int32x{lanes}") + splat(offset, "int32", lanes)
        wide = cast(acc, f"int64x{lanes}")
        if method == "q31_double":
            value = _scale_q31_double(self._emitter, wide, constants, lanes)
        else:
            value = _scale_int64(wide, constants)
        return cast(_limit(value, lanes, "int64"), f"int32x{lanes}") + splat(offset, "int32", lanes)


def _limit(value: Expr, lanes: int, dtype: str) -> Expr:
    low, high = (splat(v, dtype, lanes) for v in (-_SATURATED, _SATURATED))
    return tirx.max(tirx.min(value, high), low)


def _scale_int64(acc: Expr, constants: tuple[Expr, ...]) -> Expr:
    multiplier, half, shift = constants
    return tirx.shift_right(acc * multiplier + half, shift)


def _scale_q31_double(e: Emitter, acc: Expr, constants: tuple[Expr, ...], lanes: int) -> Expr:
    """gemmlowp's rounding doubling high multiply and rounding shift, as `numerics._scale_q31_double`."""
    multiplier, left, right = constants
    dtype = f"int64x{lanes}"

    def number(value: int) -> Expr:
        return splat(tirx.const(value, "int64"), "int64", lanes)

    def sign(value: Expr) -> Expr:
        """-1 where negative, else 0: masks instead of selections, which TVM's simplifier takes seconds over."""
        return tirx.shift_right(value, number(63))

    shifted = cast(cast(tirx.shift_left(acc, left), f"int32x{lanes}"), dtype)  # wraps, as int32 does
    product = e.bind(shifted * multiplier, dtype, "product")
    nudge = number(1 << 30) + tirx.bitwise_and(sign(product), number(1 - (1 << 31)))
    total = e.bind(product + nudge, dtype, "total")
    # C division truncates towards zero: add the divisor less one to negative totals before the arithmetic shift.
    bias = tirx.bitwise_and(sign(total), number((1 << 31) - 1))
    high = e.bind(tirx.shift_right(total + bias, number(31)), dtype, "high")
    mask = e.bind(tirx.shift_left(number(1), right) - number(1), dtype, "mask")
    remainder = tirx.bitwise_and(high, mask)
    threshold = tirx.shift_right(mask, number(1)) - sign(high)
    return tirx.shift_right(high, right) - sign(threshold - remainder)
