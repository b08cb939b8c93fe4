"""Samplers on a space whose figures are formulas: no machine is evaluated here."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompiler.exploration import samplers
from qcompiler.exploration.adaptive import BATCH
from qcompiler.exploration.samplers import Verdict
from qcompiler.sim.explore import pareto
from qcompiler.sim.explore.space import INACTIVE, Point, Space
from qcompiler.sim.explore.space_file import loads

pytest.importorskip("optuna")

ADAPTIVE = ("tpe", "nsga2")
WIDE = loads(
    """
base: edge-16x16
fields:
  matrix.rows: {low: 2, high: 32, log2: true}
  matrix.columns: {low: 2, high: 32, log2: true}
  vector.lanes: {low: 1, high: 16, log2: true}
  main_memory.read_bytes_per_cycle: {low: 1, high: 16, log2: true}
variables:
  tiles: [1, 2, 3, 4]
"""
)
CONDITIONAL = loads(  # lanes are in no order: a categorical axis
    """
base: edge-16x16
fields:
  vector.lanes: [16, 4]
  main_memory.read_bytes_per_cycle: [4, 8, 16]
  matrix.rows: {choices: [4, 8, 16], when: {vector.lanes: [16]}}
  matrix.columns: {choices: [2, 4, 8], when: {vector.lanes: [4]}}
"""
)


def costs(point: Point) -> tuple[float, ...]:
    """A time that is bound by the slowest of three resources, an energy, an area."""
    rows, columns, lanes, bandwidth, tiles = (2.0 ** max(i, 0) for i in point)
    time = max(256 / (rows * columns), 64 / lanes, 128 / (bandwidth * (1 + tiles / 8))) + 2
    return time, 100 / rows + 3 * columns + 2 * time + lanes / 4, rows * columns + 4 * lanes + 2 * bandwidth + 8 * tiles


def verdict(point: Point) -> Verdict:
    """More lanes than the array gives work are no machine; large machines break a limit."""
    if len(point) < 5:
        return Verdict((float(sum(point)), -float(point[-1]), 1.0), 0.0)
    if point[2] > point[0] + point[1]:
        return Verdict(None, samplers.NOTHING)
    return Verdict(tuple(math.log(c) for c in costs(point)), max(0.0, costs(point)[2] / 400 - 1))


def explored(space: Space, sampler: str, seed: int, trials: int) -> list[Point]:
    generator, points = samplers.batches(space, sampler, seed, trials, 3), list[Point]()
    try:
        batch = next(generator)
        while True:
            points += batch
            batch = generator.send([verdict(p) for p in batch])
    except StopIteration:
        return points


def share(points: list[Point]) -> float:
    """Of the hypervolume of all points that keep the limits."""

    def volume(chosen: list[Point]) -> float:
        good = [v.scores for p in chosen if (v := verdict(p)).scores and not v.violation]
        return pareto.hypervolume((np.array(good) - low) / (high - low), np.full(3, 1.1))

    everything = list(WIDE.points())
    scores = np.array([v.scores for p in everything if (v := verdict(p)).scores])
    low, high = scores.min(axis=0), scores.max(axis=0)
    return volume(points) / volume(everything)


@pytest.mark.parametrize("sampler", ADAPTIVE)
def test_better_than_chance_and_never_the_same_twice(sampler: str) -> None:
    found = [explored(WIDE, sampler, seed, 250) for seed in (0, 1)]  # a tenth of the space
    assert all(len(set(points)) == len(points) == 250 for points in found)
    assert min(map(share, found)) > max(share(explored(WIDE, "random", seed, 250)) for seed in range(4)) + 0.03


@pytest.mark.parametrize("sampler", ADAPTIVE)
@pytest.mark.parametrize("space", [WIDE, CONDITIONAL], ids=["wide", "conditional"])
def test_the_seed_decides_and_a_longer_run_begins_with_the_shorter(sampler: str, space: Space) -> None:
    trials = min(130, space.size(1000))
    whole = explored(space, sampler, 5, trials)
    assert explored(space, sampler, 5, trials) == whole
    for shorter in (7, BATCH, trials - 11):
        assert explored(space, sampler, 5, shorter) == whole[:shorter]
    assert explored(space, sampler, 6, trials) != whole


@pytest.mark.parametrize("sampler", ADAPTIVE)
def test_more_trials_than_points_are_all_points(sampler: str) -> None:
    for text in ("matrix.rows: [2, 4, 8, 16]\n  matrix.columns: [2, 4, 8, 16]\n  vector.lanes: [4, 8, 16, 32]",
                 "matrix.rows: [8]"):  # fmt: skip
        space = loads(f"base: edge-16x16\nfields:\n  {text}\n")
        found = explored(space, sampler, 1, 1000)
        assert sorted(found) == sorted(space.points())


def test_a_conditional_axis_is_chosen_only_where_it_is_active() -> None:
    for sampler in ADAPTIVE:
        found = explored(CONDITIONAL, sampler, 2, 1000)
        assert sorted(found) == sorted(CONDITIONAL.points())
        assert {(p[2] == INACTIVE, p[3] == INACTIVE) for p in found} == {(True, False), (False, True)}


def test_the_first_points_are_balanced_corners() -> None:
    corners = samplers.corners(WIDE)
    last = [len(axis.choices) - 1 for axis in WIDE.axes]
    assert corners[:2] == [(0,) * len(last), tuple(last)] and len(set(corners)) == 16
    for three in itertools.combinations(range(len(last)), 3):
        seen = [tuple(corner[i] for i in three) for corner in corners]
        wanted = itertools.product(*((0, last[i]) for i in three))
        assert all(seen.count(ends) == 2 for ends in wanted)
    for sampler in ADAPTIVE:
        assert explored(WIDE, sampler, 3, 16) == corners


@given(st.integers(1, 4), st.lists(st.lists(st.integers(0, 5), min_size=4, max_size=4), min_size=1, max_size=9))
@settings(deadline=None)
def test_what_each_point_alone_adds_to_the_hypervolume(objectives: int, rows: list[list[int]]) -> None:
    values, reference = np.array(rows, float)[:, :objectives], np.full(objectives, 6.0)
    whole = pareto.hypervolume(values, reference)
    wanted = [whole - pareto.hypervolume(np.delete(values, i, axis=0), reference) for i in range(len(values))]
    assert pareto.exclusive(values, reference) == pytest.approx(wanted)
