"""Observers: properties that hold for any data, and the definition of each on data where it is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qcompiler.passes.observers import OBSERVERS, Histogram, MeanSquaredError, make_observer
from qcompiler.sim.errors import CalibrationError

FINITE = st.floats(-(2.0**40), 2.0**40, width=32)
BATCHES = st.lists(hnp.arrays(np.float32, st.integers(1, 40), elements=FINITE), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(BATCHES, st.sampled_from(sorted(OBSERVERS)))
def test_range_holds_zero_and_stays_within_the_extremes(batches, name):
    observer = make_observer(name)
    for batch in batches:
        observer.update(batch)
    low, high = observer.range()
    everything = np.concatenate(batches)
    assert min(everything.min(), 0.0) <= low <= 0.0 <= high <= max(everything.max(), 0.0)


@settings(max_examples=100, deadline=None)
@given(BATCHES)
def test_histogram_keeps_every_value_in_its_bin_while_it_grows(batches):
    histogram = Histogram(bins=64)
    for batch in batches:
        histogram.add(batch, float(batch.min()), float(batch.max()))
    values = np.concatenate(batches).astype(np.float64)
    assert len(histogram.counts) == 64
    assert histogram.counts.sum() == values.size
    assert np.min(np.abs(histogram.edges)) == 0.0  # zero is an edge
    # A value may sit one bin off where float32 rounds it over an edge; re-binning then keeps that bin.
    expected, _ = np.histogram(values, histogram.edges)
    off = np.abs(np.cumsum(histogram.counts) - np.cumsum(expected))
    near = [np.sum(np.abs(values - e) <= histogram.width * 1e-4 + 1e-30) for e in histogram.edges[1:]]
    assert np.all(off <= near)


def test_min_max_is_exact_and_moving_average_follows_its_recurrence():
    batches = [np.array([-1.0, 4.0], np.float32), np.array([-3.0, 2.0], np.float32), np.array([0.5, 9.0], np.float32)]
    exact, moving = make_observer("min_max"), make_observer("moving_average", momentum=0.5)
    for batch in batches:
        exact.update(batch)
        moving.update(batch)
    assert exact.range() == (-3.0, 9.0)
    low, high = -1.0, 4.0
    for batch in batches[1:]:
        low, high = low + 0.5 * (batch.min() - low), high + 0.5 * (batch.max() - high)
    assert moving.range() == pytest.approx((low, high))


@pytest.mark.parametrize("percentile", [99.0, 99.9])
def test_percentile_is_numpys_within_a_bin(percentile):
    values = np.random.default_rng(0).normal(0, 1, 200_000).astype(np.float32)
    observer = make_observer("percentile", percentile=percentile)
    for batch in np.split(values, 20):
        observer.update(batch)
    tail = (100 - percentile) / 2
    wanted = np.percentile(values, [tail, 100 - tail])
    assert np.abs(np.array(observer.range()) - wanted).max() <= 2 * observer.histogram.width


def _error(values, low, high):
    scale = (high - low) / 255
    zero = np.round(-128 - low / scale)
    q = np.clip(np.round(values / scale) + zero, -128, 127)
    return float(np.mean(((q - zero) * scale - values) ** 2))


@pytest.mark.parametrize("shape", ["normal", "laplace", "relu", "outlier"])
def test_mse_observer_beats_min_max_and_percentile_by_its_own_measure(shape):
    rng = np.random.default_rng(1)
    values = {
        "normal": rng.normal(0, 1, 100_000),
        "laplace": rng.laplace(0, 1, 100_000),
        "relu": np.maximum(rng.normal(0, 1, 100_000), 0),
        "outlier": np.concatenate([rng.normal(0, 1, 100_000), [60.0]]),
    }[shape].astype(np.float32)
    errors = {}
    for name in ("mse", "min_max", "percentile"):
        observer = make_observer(name)
        observer.update(values)
        errors[name] = _error(values.astype(np.float64), *observer.range())
    assert errors["mse"] <= 1.01 * min(errors.values())


def test_entropy_clips_a_far_outlier_and_keeps_a_uniform_range():
    rng = np.random.default_rng(2)
    with_outlier = make_observer("entropy")
    with_outlier.update(np.concatenate([rng.normal(0, 1, 100_000), [12.0]]).astype(np.float32))
    assert with_outlier.range()[1] < 8.0
    uniform = make_observer("entropy")
    uniform.update(rng.uniform(-1, 1, 100_000).astype(np.float32))
    assert uniform.range()[1] - uniform.range()[0] > 1.95


def test_memory_does_not_grow_with_the_data():
    observer = MeanSquaredError()
    rng = np.random.default_rng(3)
    for i in range(50):
        observer.update((rng.normal(0, 1, 1000) * 1.5**i).astype(np.float32))
    assert observer.histogram.counts.nbytes == 2048 * 8


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(bad):
    with pytest.raises(FloatingPointError):
        make_observer("percentile").update(np.array([1.0, bad], np.float32))


def test_unknown_observer_names_the_near_ones():
    with pytest.raises(CalibrationError) as error:
        make_observer("minmax")
    assert str(error.value) == (
        "no observer is called 'minmax'; known: min_max, moving_average, percentile, entropy, mse; "
        "did you mean 'min_max'?"
    )


def test_percentile_out_of_range_is_refused():
    with pytest.raises(CalibrationError) as error:
        make_observer("percentile", percentile=0.999)
    assert str(error.value) == "percentile 0.999 is not within 50..100; 99.999 is usual"
