"""Figures of merit, constraints, fronts, hypervolumes and sensitivities against independent definitions."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompiler.sim import hardware
from qcompiler.sim.errors import ExplorationError, HardwareError
from qcompiler.sim.explore import pareto, sensitivity
from qcompiler.sim.explore.merit import Cost, Merit, Outcome
from qcompiler.sim.explore.space import ModelOptions, Point
from qcompiler.sim.explore.space_file import loads

ONE = {"net": ModelOptions()}
OUTCOME = Outcome("", 100.0, 2.0, 0.5, (Cost(200_000, 3e6, 4096),))  # 2 ms, 3 uJ


def test_figures_by_hand() -> None:
    merit = Merit(ONE, ["latency"], [])
    assert merit.figures(OUTCOME) == {
        "latency_ms": 2.0, "energy_uj": 3.0, "power_mw": 1.5, "area_mm2": 2.0, "edp_uj_ms": 6.0, "dram_bytes": 4096.0,
        "net.latency_ms": 2.0, "net.energy_uj": 3.0, "net.dram_bytes": 4096,
    }  # fmt: skip


def test_weights_are_how_often_a_model_runs() -> None:
    merit = Merit({"a": ModelOptions(3.0), "b": ModelOptions(1.0)}, ["latency"], [])
    figures = merit.figures(Outcome("", 100.0, 2.0, 0.5, (Cost(100_000, 4e6, 0), Cost(500_000, 8e6, 80))))
    assert figures["latency_ms"] == 2.0 and figures["energy_uj"] == 5.0 and figures["dram_bytes"] == 20.0
    assert figures["power_mw"] == 2.5 and figures["b.latency_ms"] == 5.0


def test_a_period_charges_the_leakage_of_waiting() -> None:
    merit = Merit({"net": ModelOptions(period_ms=20.0)}, ["power"], [])
    figures = merit.figures(OUTCOME)
    # 3 uJ, of which 2 ms * 0.5 mW = 1 uJ leak; 2 uJ every 20 ms, and 0.5 mW always
    assert figures["power_mw"] == pytest.approx(0.5 + 2.0 / 20.0)
    assert merit.violations(OUTCOME, figures, {}) == {}
    tight = Merit({"net": ModelOptions(period_ms=1.0)}, ["power"], [])
    assert tight.violations(OUTCOME, tight.figures(OUTCOME), {}) == {"the models fit their periods": 1.0}


def test_constraints_say_by_how_much() -> None:
    texts = ["area_mm2 < 1", "latency <= 2", "latency < 2", "net.energy_uj > 4", "area < matrix.rows / 8"]
    merit = Merit(ONE, ["latency"], texts)
    broken = merit.violations(OUTCOME, merit.figures(OUTCOME), {"matrix.rows": 8})
    assert broken == {
        "area_mm2 < 1": 0.5, "latency < 2": 1e-9, "net.energy_uj > 4": 0.25, "area < matrix.rows / 8": 0.5,
    }  # fmt: skip


def test_a_constraint_reads_fields_that_are_looked_up_when_missing() -> None:
    class Base(dict[str, int]):
        def __missing__(self, name: str) -> int:
            return {"vector.lanes": 16}[name]

    merit = Merit(ONE, ["latency"], ["area < vector.lanes / 16"])
    assert merit.reads_fields and not Merit(ONE, ["latency"], ["area < 2"]).reads_fields
    assert merit.violations(OUTCOME, merit.figures(OUTCOME), Base()) == {"area < vector.lanes / 16": 0.5}


@pytest.mark.parametrize(
    ("objectives", "constraints", "message"),
    [
        (["latncy"], [], "unknown objective 'latncy'; did you mean 'latency' or 'latency_ms' or 'net.latency_ms'? (one "
         "of latency, energy, power, area, edp, traffic, sqnr, accuracy)"),
        (["latency", "latency_ms"], [], "objectives: latency, latency_ms names one of them twice"),
        ([], [], "there is no objective; give any of latency, energy, power, area, edp, traffic, sqnr, accuracy"),
        (["latency"], ["area + 2"], "constraint 'area + 2': want a comparison, such as 'area_mm2 < 2'"),
        (["latency"], ["are < 2"], "constraint 'are < 2': unknown name 'are'; did you mean 'area' or 'area_mm2'?"),
        (["latency"], ["matrix.rows < 2"], "constraint 'matrix.rows < 2': names no figure; limit fields by their "
         "choices instead"),
    ],
)  # fmt: skip
def test_mistakes(objectives: list[str], constraints: list[str], message: str) -> None:
    with pytest.raises(ExplorationError) as error:
        Merit(ONE, objectives, constraints)
    assert str(error.value) == message


def test_periods_are_for_all_models() -> None:
    with pytest.raises(ExplorationError) as error:
        Merit({"a": ModelOptions(period_ms=2.0), "b": ModelOptions()}, ["power"], [])
    assert str(error.value) == "models.b: has no period_ms, but others have; give it to all or to none"


@given(st.one_of(st.just(Outcome("too small")), st.builds(
    Outcome, st.just(""), st.floats(1, 5000), st.floats(0, 99), st.floats(0, 99),
    st.tuples(st.builds(Cost, st.integers(0, 1 << 40), st.floats(0, 1e12), st.integers(0, 1 << 40))),
)))  # fmt: skip
def test_outcomes_survive_storage(outcome: Outcome) -> None:
    import json

    assert Outcome.from_json(json.loads(json.dumps(outcome.to_json()))) == outcome


# ------------------------------------------------------------------------------------------------ fronts
values = st.integers(1, 4).flatmap(
    lambda k: st.lists(st.tuples(*[st.integers(0, 5)] * k), min_size=1, max_size=25).map(lambda v: np.array(v, float))
)


@given(values)
def test_front_by_definition(rows: np.ndarray) -> None:
    wanted = [
        not any((b <= a).all() and ((b < a).any() or j < i) for j, b in enumerate(rows)) for i, a in enumerate(rows)
    ]  # fmt: skip
    assert pareto.front(rows).tolist() == wanted


@settings(max_examples=60)
@given(values)
def test_hypervolume_by_counting_unit_boxes(rows: np.ndarray) -> None:
    k = rows.shape[1]
    counted = sum(
        any((row <= corner).all() for row in rows) for corner in itertools.product(range(6), repeat=k)
    )  # boxes of integer corners below 6
    assert pareto.hypervolume(rows, np.full(k, 6.0)) == pytest.approx(counted)


def test_points_beyond_the_reference_add_nothing() -> None:
    assert pareto.hypervolume(np.array([[7.0, 1.0]]), np.array([6.0, 6.0])) == 0.0


# ----------------------------------------------------------------------------------------- sensitivities
def test_effects_of_a_function_with_known_shares() -> None:
    """y = 3a + b + c d over a full factorial of +-1: variances 9, 1 and 1 of 11; c and d only together."""
    points = list(itertools.product(range(2), repeat=4))
    values = [3 * s[0] + s[1] + s[2] * s[3] for s in (tuple(2 * i - 1 for i in p) for p in points)]
    effects = sensitivity.effects(points, values)
    assert [e.main for e in effects] == pytest.approx([9 / 11, 1 / 11, 0, 0])
    assert [e.total for e in effects] == pytest.approx([9 / 11, 1 / 11, 1 / 11, 1 / 11])


def test_a_constant_has_no_effects() -> None:
    assert sensitivity.effects([(0, 0), (1, 0)], [2.0, 2.0]) == [sensitivity.Effect(0.0, 0.0)] * 2


def test_swept_effects_approach_the_exact_ones() -> None:
    space = loads(
        "base: edge-16x16\nfields: {matrix.rows: [4, 8, 16], matrix.columns: [4, 8, 16], vector.lanes: [2, 4, 8]}"
    )

    def value(point: Point) -> float:
        return point[0] ** 2 + 2.0 * point[1] + point[0] * point[2]

    exact = sensitivity.effects(list(space.points()), [value(p) for p in space.points()])
    sweeps = sensitivity.sweeps(space, 1, 400)
    lines = [[[value(p) for p in line] for line in sweep] for sweep in sweeps]
    swept = sensitivity.swept_effects(lines, [value(p) for p in sensitivity.centres(space, 1, 400)])
    assert [e.total for e in swept] == pytest.approx([e.total for e in exact], abs=0.06)
    assert all(e.main is None for e in swept)


def test_doubling_feeds_what_it_doubles() -> None:
    machine = hardware.load("edge-16x16")
    other, changed = sensitivity.double(machine, "rows of the array")
    assert changed == {"matrix.rows": 32} and other.matrix.rows == 32
    micro = hardware.load("micro-8x8")
    other, changed = sensitivity.double(micro, "rows of the array")
    assert changed == {"matrix.rows": 16, "activation_memory.bytes_per_cycle": 16}
    for resource in sensitivity.RESOURCES:
        try:
            other, changed = sensitivity.double(micro, resource)
        except HardwareError:
            continue
        assert other.hash != micro.hash and changed


def test_what_cannot_be_doubled_says_so() -> None:
    with pytest.raises(HardwareError) as error:
        sensitivity.double(hardware.load("edge-16x16"), "read bandwidth of constants")
    assert str(error.value) == "edge-16x16 has no constant_memory.read_bytes_per_cycle"
    big = hardware.load("edge-16x16").model_copy(update={"clock_mhz": 4000.0})
    with pytest.raises(HardwareError) as error:
        sensitivity.double(big, "clock")
    assert str(error.value) == "edge-16x16: clock cannot be doubled, the limits of a machine forbid it"
