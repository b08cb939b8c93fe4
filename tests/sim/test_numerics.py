"""The arithmetic law against independent definitions: exact rationals, gemmlowp's C written out, float64."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from qcompiler.sim import numerics

scales = st.floats(min_value=2.0**-40, max_value=2.0**10, width=32, exclude_min=True)
accumulators = st.integers(-(2**31), 2**31 - 1)


def exact_half_up(acc: int, scale: float) -> int:
    return math.floor(Fraction(acc) * Fraction(scale) + Fraction(1, 2))


@given(scales)
def test_a_scale_is_its_multiplier_and_shift(scale: float) -> None:
    multiplier, shift = numerics.decompose_scale(scale)
    assert Fraction(int(multiplier)) / Fraction(2) ** int(shift) == Fraction(scale)
    assert 2**23 <= multiplier < 2**24


def test_subnormal_scales_decompose_exactly() -> None:
    scale = np.float32(1e-45)
    multiplier, shift = numerics.decompose_scale(scale)
    assert Fraction(int(multiplier)) / Fraction(2) ** int(shift) == Fraction(float(scale))


@pytest.mark.parametrize("bad", [0.0, -1.0, math.inf, math.nan])
def test_a_scale_must_be_finite_and_positive(bad: float) -> None:
    with pytest.raises(ValueError, match="finite and positive"):
        numerics.decompose_scale([0.5, bad])


def test_a_scale_must_be_below_two_to_the_23() -> None:
    with pytest.raises(ValueError, match=r"below 2\*\*23"):
        numerics.decompose_scale(2.0**24)


@given(accumulators, scales, st.integers(-128, 127))
def test_exact_half_up_is_the_rational_definition(acc: int, scale: float, zero_point: int) -> None:
    got = numerics.requantize(np.array([acc]), np.float32([scale]), zero_point)
    assert got[0] == min(127, max(-128, exact_half_up(acc, scale) + zero_point))


@given(st.integers(-(2**20), 2**20), st.integers(1, 30))
def test_ties_go_up(odd_half: int, shift: int) -> None:
    """acc * 2**-shift with acc an odd multiple of 2**(shift-1) is exactly half-way."""
    acc = (2 * odd_half + 1) << (shift - 1)
    if abs(acc) < 2**31:
        got = numerics.scale_accumulator(np.array([acc]), np.float32([2.0**-shift]), "exact_half_up")
        assert got[0] == odd_half + 1


@given(accumulators, scales)
def test_one_float32_fma_rounded_down_is_the_same_law(acc: int, scale: float) -> None:
    """The CPU's form, fma_rd(float(acc), scale, zp + 1/2) then floor, for |acc| <= 2**24: exact rationals stand in
    for the FMA (one rounding towards minus infinity to a 24-bit float)."""
    acc = max(-(2**24), min(2**24, acc))
    for zero_point in (-128, 0, 127):
        exact = Fraction(acc) * Fraction(scale) + zero_point + Fraction(1, 2)
        nearest = np.float32(float(exact)) if abs(exact) < 2**100 else None
        assert nearest is not None
        down = float(nearest)
        while Fraction(down) > exact:
            down = float(np.nextafter(np.float32(down), np.float32(-np.inf)))
        assert math.floor(down) == exact_half_up(acc, scale) + zero_point or abs(exact) > 2**23


def gemmlowp_double(acc: int, multiplier: int, shift: int) -> int:
    """SaturatingRoundingDoublingHighMul and RoundingDivideByPOT as C integers do them."""
    left, right = max(shift, 0), max(-shift, 0)
    x = (acc << left) & 0xFFFFFFFF
    x = x - 2**32 if x >= 2**31 else x
    product = x * multiplier
    total = product + (2**30 if product >= 0 else 1 - 2**30)
    high = abs(total) // 2**31 * (1 if total >= 0 else -1)
    mask = (1 << right) - 1
    remainder, threshold = high & mask, (mask >> 1) + (1 if high < 0 else 0)
    return (high >> right) + (1 if remainder > threshold else 0)


@given(st.integers(-(2**22), 2**22), st.floats(2.0**-20, 2.0**6))
def test_q31_double_is_gemmlowp(acc: int, scale: float) -> None:
    multiplier, shift = numerics.quantize_multiplier_q31(scale)
    got = numerics.scale_accumulator(np.array([acc]), np.float64([scale]), "q31_double")
    assert got[0] == gemmlowp_double(acc, int(multiplier), int(shift))


@given(accumulators, st.floats(2.0**-30, 2.0**6))
def test_q31_single_rounds_once(acc: int, scale: float) -> None:
    multiplier, shift = (int(v) for v in numerics.quantize_multiplier_q31(scale))
    got = numerics.scale_accumulator(np.array([acc]), np.float64([scale]), "q31_single")
    assert got[0] == math.floor(Fraction(acc * multiplier) / Fraction(2) ** (31 - shift) + Fraction(1, 2))


@given(st.floats(2.0**-30, 2.0**10))
def test_a_q31_multiplier_is_within_half_a_unit(scale: float) -> None:
    multiplier, shift = (int(v) for v in numerics.quantize_multiplier_q31(scale))
    assert 2**30 <= multiplier < 2**31
    assert abs(Fraction(multiplier) / 2**31 * Fraction(2) ** shift - Fraction(scale)) <= Fraction(2) ** (shift - 32)


def test_f32_half_even_rounds_ties_to_even() -> None:
    got = numerics.scale_accumulator(np.array([1, 3, 5, -1, -3]), np.float32([0.5]), "f32_half_even")
    assert got.tolist() == [0, 2, 2, 0, -2]


def test_an_unknown_rounding_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown rounding 'up'; known: exact_half_up"):
        numerics.scale_accumulator(np.array([1]), np.float32([1.0]), "up")  # type: ignore[arg-type]


def test_quantize_linear_is_the_standard_one() -> None:
    x = np.float32([-1e30, -0.75, 0.25, 0.75, 1e30, np.inf, -np.inf, np.nan])
    assert numerics.quantize_linear(x, np.float32(0.5), 1).tolist() == [-128, -1, 1, 3, 127, 127, -128, -128]


ratio = st.floats(1e-4, 100.0)
zero = st.integers(-128, 127)


@given(ratio, zero, ratio, zero, ratio, zero, st.sampled_from([1, -1]), st.integers(0, 2**32 - 1))
def test_add_stays_in_int32_and_near_the_real_sum(sa, za, sb, zb, so, zo, sign, seed) -> None:
    assume(max(sa, sb) / so <= 32767)
    ma, mb, bias, shift = numerics.add_multipliers(sa, za, sb, zb, so, zo, sign)
    assert max(abs(ma), abs(mb)) < 2**15 and 0 <= shift <= 22
    assert 128 * (abs(ma) + abs(mb)) + abs(bias) < 2**31
    rng = np.random.default_rng(seed)
    a, b = rng.integers(-128, 128, (2, 64)).astype(np.int8)
    got = numerics.add(a, b, ma, mb, bias, shift)
    real = ((a.astype(float) - za) * sa + sign * (b.astype(float) - zb) * sb) / so + zo
    # Multipliers carry 15 bits, relative to the larger one: 255 steps of each input times half a unit.
    slack = 0.5 + 1e-9 + 2 * 255 * 0.5 / (1 << shift)
    assert np.abs(got - np.clip(real, -128, 127)).max() <= slack


def test_add_refuses_a_scale_beyond_its_multipliers() -> None:
    with pytest.raises(ValueError, match="times the output's"):
        numerics.add_multipliers(1e6, 0, 1.0, 0, 1.0, 0)


def test_a_table_is_the_function_at_every_input() -> None:
    table = numerics.build_table(np.tanh, 0.05, 3, 1 / 128, -1)
    q = np.arange(-128, 128)
    want = np.clip(np.floor(np.tanh((q - 3) * 0.05) * 128 + 0.5) - 1, -128, 127)
    assert np.array_equal(numerics.look_up(q.astype(np.int8), table), want)


def test_a_table_sends_nan_to_the_zero_point() -> None:
    table = numerics.build_table(np.log, 0.1, 0, 0.1, 7)
    assert (table[:128] == 7).all()


def test_channel_tables_follow_the_last_axis() -> None:
    tables = np.stack([np.arange(-128, 128), np.full(256, 5)]).astype(np.int8)
    x = np.int8([[-128, -128], [7, 9]])
    assert numerics.look_up(x, tables).tolist() == [[-128, 5], [7, 5]]


@settings(max_examples=50)
@given(st.integers(1, 700), st.floats(1e-3, 0.5), st.integers(0, 2**32 - 1))
@example(47, 0.1, 1754)
def test_softmax_is_within_a_step_of_the_real_one(length: int, scale: float, seed: int) -> None:
    """Off by half a step and what the definition's words lose, in steps of 1/256.

    A factor is off by -1..1/2, a power e with its floor by -3..1 from its real value E, so that the sum S is off by at
    most 3 for each of the others from T, the sum of the E. e/S - E/T = (e - E)/S + p(T - S)/S with p = E/T; the
    reciprocal, at least 2**15, loses at most 1.
    """
    x = np.random.default_rng(seed).integers(-128, 128, (4, length)).astype(np.int8)
    got = (numerics.softmax(x, numerics.softmax_factors(scale)).astype(float) + 128) / 256
    e = np.exp(x.astype(float) * scale - x.max(axis=-1, keepdims=True) * scale)
    total = e.sum(axis=-1, keepdims=True)
    p, least = e / total, np.maximum(total * 2.0**16 - 3 * (length - 1), 2.0**16)
    bound = 0.5 + 2.0**-7 + 256 * 3 * (1 + p * (length - 1)) / least
    assert (np.abs(got - np.minimum(p, 255 / 256)) * 256 <= bound).all()


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 255, 65535]), st.integers(8, 15), st.floats(1e-4, 2.0))
def test_softmax_is_16_bit_arithmetic(seed: int, length: int, fraction_bits: int, scale: float) -> None:
    """The stated bounds, and the stated form in words: a high multiply, two shifts and an addition."""
    x = np.random.default_rng(seed).integers(-128, 128, (1, length)).astype(np.int8)
    e = [int(v) for v in numerics.softmax_powers(int(x.max()) - x[0].astype(np.int64), numerics.softmax_factors(scale))]
    total = sum(e) + 2
    bits = total.bit_length()
    r = ((1 << (bits + 15)) - 1) // total
    assert max(e) < 2**16 <= total < 2**32 and 2**15 <= r < 2**16
    shift = bits - 2 - fraction_bits
    assert shift >= 0
    words = [(((v * r >> 16) >> shift) + 1) >> 1 for v in e]
    got = numerics.softmax(x, numerics.softmax_factors(scale), fraction_bits)
    assert got[0].tolist() == [min(w, 255) - 128 for w in words]


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 255, 256, 257, 1024, 4096, 4097, 16384])
def test_layer_norm_stays_within_16_bits(length: int) -> None:
    """The farthest that a value can be from its mean, in the rows whose variance is least and greatest."""
    rng = np.random.default_rng(length)
    rows = np.zeros((8, length), dtype=np.int64)
    rows[0, 0], rows[1, 0], rows[2, 0], rows[3, 0] = 1, 127, -128, -1
    rows[4] = rng.integers(-128, 128, length)
    rows[5, : length // 2], rows[5, length // 2 :] = 127, -128
    rows[6], rows[6, 0] = 126, 127
    rows[7], rows[7, 0] = -128, 127
    for epsilon in (1, length, 1 << 48):
        total, squares = rows.sum(1, keepdims=True), (rows * rows).sum(1, keepdims=True)
        rho, m = numerics.inverse_sqrt_normalised(length * squares - total * total + epsilon)
        centred = (rows << 7) - (total * 128 + length // 2) // length
        assert np.abs(centred).max() < 2**15 and np.abs(total).max() < 2**31 and squares.max() < 2**31
        p = numerics.multiply_high_round(centred, np.minimum(rho, 32767))
        e = 22 + m - (length - 1).bit_length() - numerics.layer_norm_fraction_bits(length)
        z = p * 2.0**-e
        assert np.abs(z).max() <= 2**15 - 1
        assert ((-15 <= e) | (p == 0).all(axis=1, keepdims=True)).all()


@given(st.integers(1, 2**62 - 1))
def test_inverse_square_root(value: int) -> None:
    rho, m = (int(v) for v in numerics.inverse_sqrt_normalised(np.array(value)))
    assert 2**14 <= rho <= 2**15
    real = 2.0**30 / math.sqrt(value / 4.0**m)
    assert abs(rho - real) <= 1 + 2**-14


@settings(max_examples=60)
@given(st.integers(8, 1024), st.floats(1e-3, 0.2), st.floats(0.02, 0.1), zero, st.integers(0, 2**32 - 1))
def test_layer_norm_is_within_a_step_of_the_real_one(length, scale, scale_out, zero_out, seed) -> None:
    rng = np.random.default_rng(seed)
    x = np.clip(rng.normal(rng.uniform(-40, 40), 25, (3, length)), -128, 127).astype(np.int8)
    gamma, beta = rng.uniform(-1.5, 1.5, length), rng.normal(0, 0.5, length)
    gain, bias, shift = numerics.layer_norm_constants(gamma, beta, length, scale_out, zero_out)
    got = numerics.layer_norm(x, gain, bias, shift, numerics.layer_norm_epsilon(1e-5, scale, length))
    real = x * scale
    real = (real - real.mean(-1, keepdims=True)) / np.sqrt(real.var(-1, keepdims=True) + 1e-5) * gamma + beta
    # Half a step for the result, half a unit of 2**-shift for product and bias, of 2**-F for the normalised value.
    slope = 1.5 / scale_out * 2.0 ** -numerics.layer_norm_fraction_bits(length)
    bound = 0.55 + 2.0**-shift + slope / 2
    assert np.abs(got - np.clip(real / scale_out + zero_out, -128, 127)).max() <= bound


def test_layer_norm_of_a_constant_row_is_beta() -> None:
    gain, bias, shift = numerics.layer_norm_constants(np.ones(16), np.full(16, 0.5), 16, 0.05, 0)
    x = np.full((2, 16), 100, dtype=np.int8)
    assert (numerics.layer_norm(x, gain, bias, shift, numerics.layer_norm_epsilon(1e-5, 0.1, 16)) == 10).all()


@given(st.integers(0, 2**40), st.integers(0, 80))
def test_rounding_shift_right_is_floor_of_half_up(value: int, shift: int) -> None:
    got = int(numerics.rounding_shift_right(np.array(value), shift))
    assert got == math.floor(Fraction(value, 2**shift) + Fraction(1, 2))


@given(st.integers(0, 2**32 - 1), st.integers(9, 15), st.integers(2, 2000))
def test_finer_softmax_outputs_saturate_and_round(seed: int, bits: int, length: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.integers(-20, 20, (3, length)).astype(np.int8)
    got = (numerics.softmax(x, numerics.softmax_factors(0.02), bits).astype(float) + 128) / 2.0**bits
    e = np.exp(x * 0.02)
    real = np.minimum(e / e.sum(axis=-1, keepdims=True), 255 * 2.0**-bits)
    # Exponentials and reciprocal carry 16 bits each: a relative error below 2**-13 of up to 255 steps.
    assert np.abs(got - real).max() * 2.0**bits <= 0.5 + 255 * 2.0**-13


@given(st.floats(1e-7, 1.0))
def test_softmax_bits_reach_the_largest_probability(largest: float) -> None:
    bits = numerics.softmax_fraction_bits(largest)
    assert 8 <= bits <= 15
    assert 255 * 2.0**-bits >= largest or bits == 8
    assert bits == 15 or 255 * 2.0 ** -(bits + 1) < largest
