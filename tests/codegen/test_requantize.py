"""The code of every rounding equals the law of `sim.numerics`, above all at ties and at the edges of its range."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from single_operation import levels

from qcompiler.codegen.cpu.emit import Emitter, load
from qcompiler.codegen.cpu.kernel import Kernel, Step
from qcompiler.codegen.cpu.loops import tasks
from qcompiler.codegen.cpu.measure import LoadedSteps
from qcompiler.codegen.cpu.requantize import (
    FMA_ACCUMULATOR_LIMIT,
    Requantizer,
    reachable_bound,
    rescale_constants,
    rescale_of,
    ties_exist,
)
from qcompiler.sim import numerics
from qcompiler.sim.integer_program import Dense, Requantize, Tensor

CHANNELS = 256


def template(isa, rescale, channels):
    """int32 accumulators to stored bytes, one scale an element."""
    lanes = isa.lanes(4)
    e = Emitter()
    acc = e.buffer("acc", channels, "int32")
    requantizer = Requantizer(isa, rescale, e, channels)
    y = e.buffer("y", channels, "uint8")
    with tasks(e) as task:
        vectors = []
        for v in range(4):
            at = (task * 4 + v) * lanes
            value = requantizer.apply(load(acc, at, lanes), requantizer.constants(at, lanes), lanes)
            vectors.append(e.bind(value, f"int32x{lanes}"))
        packed = isa.clamp_bytes(isa.pack(vectors, lanes), rescale.minimum, rescale.maximum, 4 * lanes)
        e.store(y, task * 4 * lanes, packed, 4 * lanes)
    return e.function()


def assert_law(level, acc: np.ndarray, requantize: Requantize, bound: int = 0) -> str:
    """Compare every element; returns the method that was chosen. bound: of |acc|, if not what acc reaches."""
    rescale = rescale_of(requantize, np.array([bound]) if bound else np.abs(acc.astype(np.int64)), level)
    constants = rescale_constants(requantize, rescale, CHANNELS, np.arange(CHANNELS))
    lanes = level.lanes(4)
    parameters = {"rescale": rescale, "channels": CHANNELS}
    kernel = Kernel("requantize", template, parameters, CHANNELS // (4 * lanes), constants)
    packed = LoadedSteps([Step(kernel, ("acc",), "y", CHANNELS)], level, {"acc": acc}).run().reshape(-1, 4 * lanes)
    actual = np.empty((len(packed), 4, lanes), dtype=np.uint8)
    for p, (v, lane) in enumerate(level.pack_order(lanes)):
        actual[:, v, lane] = packed[:, p]
    r = requantize
    expected = numerics.requantize(acc, r.scale, r.zero_point, r.minimum, r.maximum, r.rounding)
    difference = np.flatnonzero((actual.reshape(-1) ^ 128).view(np.int8) != expected)
    assert difference.size == 0, (rescale, acc[difference[:4]], r.scale[difference[:4]])
    return rescale.method


def near_ties(rng: np.random.Generator, scale: np.ndarray, limit: int) -> np.ndarray:
    """Accumulators whose scaled value lies at or beside k + 1/2, some far outside the byte range."""
    k = rng.integers(-140, 140, CHANNELS)
    acc = np.rint((k + 0.5) / scale.astype(np.float64)) + rng.integers(-1, 2, CHANNELS)
    return np.clip(acc, -limit, limit).astype(np.int32)


@pytest.mark.parametrize("level", levels())
@pytest.mark.parametrize("rounding", numerics.ROUNDINGS)
@settings(max_examples=6, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1), zero=st.sampled_from([-128, -1, 0, 55, 127]))
def test_ties_and_their_neighbours(level, rounding, seed, zero):
    rng = np.random.default_rng(seed)
    # Few mantissa bits make exact ties frequent; powers of two make nearly every second accumulator one.
    mantissa = rng.choice([1.0, 1.5, 1.25, 1 + 2**-23], CHANNELS) + rng.choice([0, 2**-10], CHANNELS)
    scale = (mantissa * 2.0 ** rng.integers(-16, 1, CHANNELS)).astype(np.float32)
    scale = scale.astype(np.float64) if rounding.startswith("q31") else scale
    assert_law(level, near_ties(rng, scale, FMA_ACCUMULATOR_LIMIT), Requantize(scale, zero, rounding=rounding))


@pytest.mark.parametrize("level", levels())
@settings(max_examples=6, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1), zero=st.sampled_from([-128, 3, 127]))
def test_rounding_to_nearest_where_no_tie_exists(level, seed, zero):
    rng = np.random.default_rng(seed)
    multiplier = rng.integers(2**22, 2**23, CHANNELS) * 2 + 1  # odd: a tie needs an accumulator of 2**(s-1)
    scale = (multiplier * 2.0 ** -rng.integers(26, 36, CHANNELS)).astype(np.float32)
    acc = near_ties(rng, scale, 2**24)
    bound = int(np.abs(acc.astype(np.int64)).max())
    method = assert_law(level, acc, Requantize(scale, zero), bound)
    assert method == ("fma" if level.rounds_down else "nearest")


def test_ties_exist_only_where_an_accumulator_reaches_one():
    scale = np.array([5 * 2.0**-10], dtype=np.float32)
    assert ties_exist(scale, np.array([2**9])) and not ties_exist(scale, np.array([2**9 - 1]))
    assert not ties_exist(np.array([4.0], dtype=np.float32), np.array([2**24]))  # every product is an integer


@pytest.mark.parametrize("zero", [-128, 0, 5])
def test_the_reachable_bound_is_reached(zero):
    rng = np.random.default_rng(0)
    weight, bias = rng.integers(-127, 128, (9, 12)).astype(np.int8), rng.integers(-999, 999, 9).astype(np.int32)
    op = Dense("dense", ("x",), "y", weight, bias, Requantize(np.ones(1, np.float32), 0))
    wide = weight.astype(np.int64)
    extremes = [np.where(sign * wide > 0, 127, -128) - zero for sign in (1, -1)]
    reached = np.max([np.abs((x * wide).sum(axis=1) + bias) for x in extremes], axis=0)
    np.testing.assert_array_equal(reachable_bound(op, Tensor("x", (1, 12), "int8", 1.0, zero)), reached)


@pytest.mark.parametrize("level", levels())
@pytest.mark.parametrize("rounding", numerics.ROUNDINGS)
def test_the_whole_int32_range_and_extreme_scales(level, rounding):
    rng = np.random.default_rng(1)
    edges = np.array([-(2**31), 2**31 - 1, -(2**24) - 1, 2**24 + 1, -1, 0, 1, 2**30], dtype=np.int64)
    acc = np.resize(np.concatenate([edges, rng.integers(-(2**31), 2**31, 24)]), CHANNELS).astype(np.int32)
    scale = np.repeat((2.0 ** np.linspace(-40, 7, 8)).astype(np.float32), CHANNELS // 8)
    scale = scale.astype(np.float64) if rounding.startswith("q31") else scale
    assert_law(level, acc, Requantize(scale, 3, -100, 99, rounding))


@pytest.mark.parametrize("level", levels())
def test_scaled_values_beyond_int32_saturate_on_the_float_path(level):
    acc = np.resize(np.array([2**24, -(2**24), 5, -5, 0], dtype=np.int64), CHANNELS).astype(np.int32)
    scale = np.full(CHANNELS, 3.0e4, dtype=np.float32)
    assert_law(level, acc, Requantize(scale, 0))


@pytest.mark.parametrize("rounding, largest, method", [
    ("exact_half_up", 2**24, "fma"), ("exact_half_up", 2**24 + 1, "int64"), ("q31_double", 1, "q31_double"),
])  # fmt: skip
def test_the_method_follows_the_accumulator_bound(rounding, largest, method):
    scale = np.array([0.5], dtype=np.float32)
    assert rescale_of(Requantize(scale, 0, rounding=rounding), np.array([largest])).method == method
