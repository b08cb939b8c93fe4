"""Integer arithmetic of the quantised program: the law that every target obeys to the last bit.

Real value of an integer tensor: ``scale * (q - zero_point)``. Activations are int8, weights int8 in
[-127, 127] per output channel, accumulators and biases int32. Everything here is written for clarity in
NumPy int64, without a floating-point step except where the definition itself is float32 (`f32_half_even`,
`quantize_linear`, `dequantize_linear`) or a table is built at compile time in float64.

Sources: Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference", CVPR 2018 (affine quantisation, q31 multipliers); gemmlowp `fixedpoint.h` and TensorFlow Lite
`common.h` (`q31_double`, `q31_single`); ONNX operator specification (QuantizeLinear, DequantizeLinear).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

Rounding = Literal["exact_half_up", "f32_half_even", "q31_single", "q31_double"]
ROUNDINGS: tuple[str, ...] = get_args(Rounding)

INT8_MIN, INT8_MAX = -128, 127
WEIGHT_MAX = 127
Array = npt.NDArray[np.generic]


def decompose_scale(scale: npt.ArrayLike) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Split positive float32 scales into integers ``M, s`` with ``scale == M * 2**-s`` and ``2**23 <= M < 2**24``.

    Exact for every normal and subnormal float32 (a subnormal gets its missing mantissa bits as zeros).
    Raises ValueError for a scale that is not finite and positive, or is 2**23 and above (s would be < 1).
    """
    value = np.asarray(scale, dtype=np.float32)
    if not (np.all(np.isfinite(value)) and np.all(value > 0)):
        raise ValueError(f"a requantisation scale must be finite and positive, got {value.min()}..{value.max()}")
    mantissa, exponent = np.frexp(value.astype(np.float64))
    multiplier = np.rint(mantissa * 2.0**24).astype(np.int64)
    shift = 24 - exponent.astype(np.int64)
    if np.any(shift < 1):
        raise ValueError(f"a requantisation scale must be below 2**23, got {value.max()}")
    return multiplier, shift


def quantize_multiplier_q31(scale: npt.ArrayLike) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """TensorFlow Lite's QuantizeMultiplier: ``scale ~ multiplier * 2**(shift - 31)``, multiplier in [2**30, 2**31).

    scale: positive float64, any shape. Source: tensorflow/lite/kernels/internal/quantization_util.cc.
    """
    mantissa, shift = np.frexp(np.asarray(scale, dtype=np.float64))
    # TfLiteRound is round half away from zero; the mantissa is positive, so half up.
    multiplier = np.floor(mantissa * 2.0**31 + 0.5).astype(np.int64)
    shift = shift.astype(np.int64)
    carry = multiplier == 1 << 31
    multiplier = np.where(carry, multiplier >> 1, multiplier)
    shift = np.where(carry, shift + 1, shift)
    tiny = shift < -31
    return np.where(tiny, 0, multiplier), np.where(tiny, 0, shift)


def rounding_shift_right(value: Array, shift: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """``floor(value / 2**shift + 1/2)`` for int64 values below 2**61 in magnitude and shifts >= 0 (any size)."""
    shift = np.minimum(np.asarray(shift, dtype=np.int64), 62)
    half = np.where(shift > 0, np.int64(1) << np.maximum(shift - 1, 0), 0)
    return (np.asarray(value, dtype=np.int64) + half) >> shift


def _scale_q31_double(acc: Array, scale: npt.ArrayLike) -> npt.NDArray[np.int64]:
    multiplier, shift = quantize_multiplier_q31(scale)
    left, right = np.maximum(shift, 0), np.maximum(-shift, 0)
    # gemmlowp's fixed-point types are int32: the left shift wraps and the doubling product saturates there.
    x = (acc.astype(np.int64) << left).astype(np.int32).astype(np.int64)
    product = x * multiplier
    nudge = np.where(product >= 0, 1 << 30, 1 - (1 << 30))
    total = product + nudge
    high = np.where(total >= 0, total >> 31, -((-total) >> 31))  # C division truncates towards zero
    remainder = high & ((np.int64(1) << right) - 1)
    threshold = (((np.int64(1) << right) - 1) >> 1) + (high < 0)
    return (high >> right) + (remainder > threshold)


def _scale_q31_single(acc: Array, scale: npt.ArrayLike) -> npt.NDArray[np.int64]:
    multiplier, shift = quantize_multiplier_q31(scale)
    return rounding_shift_right(acc.astype(np.int64) * multiplier, 31 - shift)


def scale_accumulator(acc: Array, scale: Array, rounding: Rounding) -> npt.NDArray[np.int64]:
    """``acc * scale`` rounded to an integer by the named rule, before zero point and clamp.

    acc: int32 values, any shape. scale: positive, broadcast against acc; float32 for `exact_half_up` and
    `f32_half_even`, float64 for the q31 rules (they need 31 bits). Rules:

    - `exact_half_up`: floor(acc * scale + 1/2) in exact arithmetic, ``(acc*M + 2**(s-1)) >> s``;
    - `f32_half_even`: float32 product rounded half to even (ONNX Runtime);
    - `q31_single`: one rounding of the 31-bit product (TensorFlow Lite single rounding, CMSIS-NN);
    - `q31_double`: rounding doubling high multiply, then rounding shift (gemmlowp, TensorFlow Lite).
    """
    if rounding == "exact_half_up":
        multiplier, shift = decompose_scale(scale)
        return rounding_shift_right(acc.astype(np.int64) * multiplier, shift)
    if rounding == "f32_half_even":
        product = acc.astype(np.int32).astype(np.float32) * np.asarray(scale, dtype=np.float32)
        return np.rint(np.clip(product, -(2.0**31), 2.0**31)).astype(np.int64)
    if rounding == "q31_double":
        return _scale_q31_double(acc, scale)
    if rounding == "q31_single":
        return _scale_q31_single(acc, scale)
    raise ValueError(f"unknown rounding {rounding!r}; known: {', '.join(ROUNDINGS)}")


def requantize(
    acc: Array,
    scale: Array,
    zero_point: int,
    minimum: int = INT8_MIN,
    maximum: int = INT8_MAX,
    rounding: Rounding = "exact_half_up",
) -> npt.NDArray[np.int8]:
    """int32 accumulators to int8: ``clamp(scale_accumulator(acc) + zero_point, minimum, maximum)``."""
    return np.clip(scale_accumulator(acc, scale, rounding) + zero_point, minimum, maximum).astype(np.int8)


def quantize_linear(x: Array, scale: np.float32, zero_point: int) -> npt.NDArray[np.int8]:
    """ONNX QuantizeLinear in float32: ``saturate(round_half_even(x / scale) + zero_point)``; NaN becomes -128."""
    with np.errstate(over="ignore"):  # beyond float32 is beyond int8: infinity saturates like any large value
        q = np.rint(np.asarray(x, dtype=np.float32) / np.float32(scale)).astype(np.float32) + np.float32(zero_point)
    q = np.where(np.isnan(q), np.float32(INT8_MIN), q)
    return np.clip(q, INT8_MIN, INT8_MAX).astype(np.int8)


def dequantize_linear(q: Array, scale: np.float32, zero_point: int) -> npt.NDArray[np.float32]:
    """ONNX DequantizeLinear: ``float32(q - zero_point) * scale`` with one float32 rounding."""
    return (q.astype(np.int32) - np.int32(zero_point)).astype(np.float32) * np.float32(scale)


# ---------------------------------------------------------------------------------------------- add
ADD_MULTIPLIER_BITS = 15
ADD_MAX_SHIFT = 22


def add_multipliers(
    scale_a: float, zero_a: int, scale_b: float, zero_b: int, scale_out: float, zero_out: int, sign_b: int = 1
) -> tuple[int, int, int, int]:
    """Constants ``(Ma, Mb, bias, shift)`` of an int8 add or subtract (`sign_b=-1`); see `add`.

    Multipliers fit in 16 bits signed with magnitude < 2**15; the bias holds both input zero points, the
    rounding half and the output zero point. With shift <= 22 every intermediate fits in int32.
    Raises ValueError when an input's scale is more than 2**15 times the output's (nothing meaningful is left).
    """
    ratio_a, ratio_b = scale_a / scale_out, scale_b / scale_out
    largest = max(ratio_a, ratio_b)
    limit = (1 << ADD_MULTIPLIER_BITS) - 1
    if largest > limit:
        raise ValueError(f"an add input's scale is {largest:g} times the output's; at most {limit} can be rescaled")
    shift = ADD_MAX_SHIFT
    while shift > 0 and round(largest * (1 << shift)) > limit:
        shift -= 1
    multiplier_a = round(ratio_a * (1 << shift))
    multiplier_b = sign_b * round(ratio_b * (1 << shift))
    half = (1 << shift) >> 1
    bias = (zero_out << shift) + half - zero_a * multiplier_a - zero_b * multiplier_b
    return multiplier_a, multiplier_b, bias, shift


def add(
    a: Array, b: Array, multiplier_a: int, multiplier_b: int, bias: int, shift: int,
    minimum: int = INT8_MIN, maximum: int = INT8_MAX,
) -> npt.NDArray[np.int8]:  # fmt: skip
    """int8 add with rescale: ``clamp((a*Ma + b*Mb + bias) >> shift)``, all in int32; a and b broadcast."""
    acc = a.astype(np.int64) * multiplier_a + b.astype(np.int64) * multiplier_b + bias
    return np.clip(acc >> shift, minimum, maximum).astype(np.int8)


def add_f32_half_even(
    a: Array, a_scale: float, a_zero: int, b: Array, b_scale: float, b_zero: int, scale: float, zero: int,
    sign_b: int = 1, minimum: int = INT8_MIN, maximum: int = INT8_MAX,
) -> npt.NDArray[np.int8]:  # fmt: skip
    """Add as a dequantise-add-quantise chain in float32 (what ONNX's QDQ form of an Add means)."""
    real = dequantize_linear(a, np.float32(a_scale), a_zero) + np.float32(sign_b) * dequantize_linear(
        b, np.float32(b_scale), b_zero
    )
    return np.clip(quantize_linear(real, np.float32(scale), zero), minimum, maximum)


# -------------------------------------------------------------------------------------------- tables
def build_table(
    function: Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]],
    scale_in: float,
    zero_in: int,
    scale_out: float,
    zero_out: int,
) -> npt.NDArray[np.int8]:
    """256 int8 entries of a unary function; entry ``i`` belongs to the input ``q = i - 128``.

    Evaluated in float64 and rounded half up; NaN maps to the output zero point.
    """
    q = np.arange(INT8_MIN, INT8_MAX + 1, dtype=np.float64)
    with np.errstate(all="ignore"):
        real = np.asarray(function((q - zero_in) * float(scale_in)), dtype=np.float64)
        out = np.floor(real / float(scale_out) + 0.5) + zero_out
    out = np.where(np.isnan(out), zero_out, out)
    return np.clip(out, INT8_MIN, INT8_MAX).astype(np.int8)


def look_up(x: Array, table: Array) -> npt.NDArray[np.int8]:
    """``table[x + 128]``; a table of shape [C, 256] is chosen by the last axis of x."""
    index = x.astype(np.int64) + 128
    if table.ndim == 1:
        return np.asarray(table, dtype=np.int8)[index]
    return np.asarray(table, dtype=np.int8)[np.arange(table.shape[0]), index]


# ------------------------------------------------------------------------------------------- softmax
SOFTMAX_ZERO_POINT = -128
SOFTMAX_MIN_BITS, SOFTMAX_MAX_BITS = 8, 15
SOFTMAX_MAX_LENGTH = 1 << 16
SOFTMAX_ONE = (1 << 16) - 1


def softmax_factors(scale_in: float) -> npt.NDArray[np.uint16]:
    """uint16 [2, 16]: ``min(round(2**16 * exp(-d * scale_in)), 2**16 - 1)`` for the distances d = 16*i and d = i."""
    distance = np.array([[16.0], [1.0]]) * np.arange(16)
    power = np.floor(np.exp(-distance * float(scale_in)) * 2.0**16 + 0.5)
    return np.minimum(power, SOFTMAX_ONE).astype(np.uint16)


def softmax_powers(distance: npt.NDArray[np.int64], factors: Array) -> npt.NDArray[np.int64]:
    """``factors[0, d >> 4] * factors[1, d & 15] >> 16`` for d = max - x in 0..255; 2**16 - 2 for d = 0.

    Two look-ups of 16 entries, which fit a vector register, and a high multiply instead of 256 entries.
    """
    coarse, fine = np.asarray(factors, dtype=np.int64)
    return np.asarray((coarse[distance >> 4] * fine[distance & 15]) >> 16)


def softmax_fraction_bits(largest: float) -> int:
    """The finest output scale ``2**-f``, f in 8..15, at which 255 steps still reach the probability `largest`."""
    bits = int(np.floor(np.log2(255.0 / max(float(largest), 2.0**-20))))
    return min(max(bits, SOFTMAX_MIN_BITS), SOFTMAX_MAX_BITS)


def softmax(x: Array, factors: Array, fraction_bits: int = SOFTMAX_MIN_BITS) -> npt.NDArray[np.int8]:
    """Integer softmax over the last axis; output scale ``2**-fraction_bits`` (8..15), zero point -128.

    Eight bits always fit; more suit rows whose probabilities are all small (attention over many keys, a thousand
    classes), and saturate above ``255 * 2**-fraction_bits``.

    With e = softmax_powers(max - x) (uint16) and S = sum(e) + 2 (that of d = 0 stands for 2**16; 2**16 <= S < 2**32)
    of n = bit_length(S) bits: ``r = floor((2**(n+15) - 1) / S)`` (2**15 <= r < 2**16) and
    ``q = min((e*r + 2**(s-1)) >> s, 255) - 128`` with ``s = n + 15 - fraction_bits``. As s >= 17, that is
    ``(((e*r >> 16) >> (s-17)) + 1) >> 1``: a high multiply and shifts of 16-bit words. The last axis holds at most
    2**16 - 1 elements.
    """
    distance = x.max(axis=-1, keepdims=True).astype(np.int64) - x.astype(np.int64)
    e = softmax_powers(distance, factors)
    total = e.sum(axis=-1, keepdims=True) + 2
    bits = _bit_length(total)
    reciprocal = ((np.int64(1) << (bits + 15)) - 1) // total
    shift = bits + 15 - fraction_bits
    q = (e * reciprocal + (np.int64(1) << (shift - 1))) >> shift
    return (np.minimum(q, 255) - 128).astype(np.int8)


# ---------------------------------------------------------------------------------------- layer norm
LAYER_NORM_MEAN_BITS = 7
LAYER_NORM_MAX_LENGTH = 1 << 14
LAYER_NORM_MAX_SHIFT = 7
LAYER_NORM_BIAS_LIMIT = (1 << 14) - (1 << 7)  # leaves room for a storage offset of 128 steps


def layer_norm_fraction_bits(length: int) -> int:
    """Fractional bits F of the normalised value over `length` elements: it never leaves int16.

    With L = ceil(log2 K) it is at most ``2**L / sqrt(K)``; F is the largest that leaves it a factor of 1.25**0.5 for
    what its own roundings add: ``5 * 2**(2L + 2F) <= 4 * K * 2**30``.
    """
    bits = 15
    while 5 << (2 * ((length - 1).bit_length() + bits)) > 4 * length << 30:
        bits -= 1
    return bits


def layer_norm_constants(
    gamma: Array, beta: Array, length: int, scale_out: float, zero_out: int
) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.int16], int]:
    """``(gain int16[K], bias int16[K], shift)`` of `layer_norm`.

    The factor K / 2**ceil(log2 K) that the normalised value misses is folded into the gain; the bias holds
    beta, the output zero point and the rounding half. ``shift`` is common to all channels, 0..7: as large as gains
    and biases (within half of int16) allow.
    """
    factor = length / (1 << (length - 1).bit_length())
    real = (
        np.asarray(gamma, dtype=np.float64) * factor / float(scale_out) * 2.0 ** (15 - layer_norm_fraction_bits(length))
    )
    offset = np.asarray(beta, dtype=np.float64) / float(scale_out) + zero_out
    steepest, farthest = (float(np.abs(v).max(initial=0.0)) for v in (real, offset))
    shift = LAYER_NORM_MAX_SHIFT
    while shift > 0 and (round(steepest * (1 << shift)) > 32767 or farthest * (1 << shift) > LAYER_NORM_BIAS_LIMIT):
        shift -= 1
    gain = np.clip(np.floor(real * (1 << shift) + 0.5), -32767, 32767).astype(np.int16)
    half = (1 << shift) >> 1
    bias = np.clip(np.floor(offset * (1 << shift) + 0.5), -LAYER_NORM_BIAS_LIMIT, LAYER_NORM_BIAS_LIMIT) + half
    return gain, bias.astype(np.int16), shift


def layer_norm_epsilon(epsilon: float, scale_in: float, length: int) -> int:
    """The variance offset of `layer_norm`: ``max(1, round(epsilon * K**2 / scale_in**2))``."""
    return max(1, min(1 << 48, round(epsilon * length * length / (float(scale_in) ** 2))))


def inverse_sqrt_normalised(value: Array) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """``(rho, m)`` with ``rho ~ 2**30 / sqrt(value / 2**(2m))`` and 2**14 <= rho <= 2**15, for 1 <= value < 2**62.

    ``v`` is value shifted by an even count 2m (right when m > 0, left when m < 0) into [2**30, 2**32), and
    ``rho = isqrt(floor(2**60 / v))``: one 64-bit division and one 32-bit integer square root per row.
    """
    value = np.asarray(value, dtype=np.int64)
    bits = _bit_length(value)
    m = (bits - 31) >> 1  # floor: bits - 2m is 31 or 32
    v = np.where(m >= 0, value >> np.maximum(2 * m, 0), value << np.maximum(-2 * m, 0))
    quotient = (np.int64(1) << 60) // v
    root = np.floor(np.sqrt(quotient.astype(np.float64))).astype(np.int64)
    root -= root * root > quotient
    root += (root + 1) * (root + 1) <= quotient
    return root, m


def _bit_length(value: Array) -> npt.NDArray[np.int64]:
    bits = np.zeros(np.shape(value), dtype=np.int64)
    rest = np.array(value, dtype=np.int64)
    for step in (32, 16, 8, 4, 2, 1):
        high = rest >= (np.int64(1) << step)
        bits += np.where(high, step, 0)
        rest = np.where(high, rest >> step, rest)
    return bits + (rest > 0)


def multiply_high_round(a: Array, b: Array) -> npt.NDArray[np.int64]:
    """``(a*b + 2**14) >> 15`` of int16 values: PMULHRSW on x86, SQRDMULH on ARM."""
    return (np.asarray(a, dtype=np.int64) * np.asarray(b, dtype=np.int64) + (1 << 14)) >> 15


def layer_norm(
    x: Array, gain: Array, bias: Array, shift: int, epsilon: int,
    minimum: int = INT8_MIN, maximum: int = INT8_MAX,
) -> npt.NDArray[np.int8]:  # fmt: skip
    """Integer layer normalisation over the last axis of int8 x [..., K]; K <= 2**14. Elements are 16-bit words:

    1. sums ``S = sum(x)``, ``Q = sum(x*x)`` (int32); ``V = K*Q - S*S + epsilon`` (int64) is K^2 times the variance;
    2. centred value with 7 fractional bits ``c = (x << 7) - floor((S * 2**7 + floor(K/2)) / K)``, |c| < 2**15;
    3. ``rho, m = inverse_sqrt_normalised(V)`` once a row, rho capped at 2**15 - 1;
    4. ``p = multiply_high_round(c, rho)`` and ``z = p * 2**-e``, rounded half up, with
       ``e = 22 + m - L - F``, L = ceil(log2 K), F = layer_norm_fraction_bits(K), clamped to -15..15: the normalised
       value with F fractional bits, still lacking the factor K / 2**L (in the gain), within int16;
    5. ``q = clamp(sat16(multiply_high_round(z, gain) + bias) >> shift)``.
    """
    length = x.shape[-1]
    wide = x.astype(np.int64)
    total = wide.sum(axis=-1, keepdims=True)
    squares = (wide * wide).sum(axis=-1, keepdims=True)
    variance = length * squares - total * total + epsilon
    mean = (total * (1 << LAYER_NORM_MEAN_BITS) + length // 2) // length
    centred = (wide << LAYER_NORM_MEAN_BITS) - mean
    rho, m = inverse_sqrt_normalised(variance)
    p = multiply_high_round(centred, np.minimum(rho, 32767))
    e = np.clip(22 + m - (length - 1).bit_length() - layer_norm_fraction_bits(length), -15, 15)
    z = rounding_shift_right(p << np.maximum(-e, 0), np.maximum(e, 0))
    scaled = np.clip(multiply_high_round(z, gain) + np.asarray(bias, dtype=np.int64), -32768, 32767)
    return np.clip(scaled >> shift, minimum, maximum).astype(np.int8)
