"""The evaluation of machines: against the compiler and the event simulator, and as a batch."""

from __future__ import annotations

import numpy as np
from machines import EDGE, MICRO, edited
from networks import network as build

from qcompiler.codegen.npu.lower import compile_npu
from qcompiler.sim import energy
from qcompiler.sim.evaluate import evaluate
from qcompiler.sim.network import network
from qcompiler.sim.timing import simulate

TABLE = energy.load_table()


def test_a_machine_that_runs_a_network_and_one_that_does_not() -> None:
    program, _ = build("digits")
    small = edited(MICRO, vector__parameter_bytes=1024, matrix__dataflows=["weight_stationary"])
    tiny = edited(small, activation_memory__size_bytes=300)
    found = evaluate([network(program)], [EDGE, tiny], TABLE)
    assert found.feasible.tolist() == [True, False]
    assert found.reasons[1] == (
        "network 'random': layer 'op3' does not fit machine 'micro-8x8': the smallest double-buffered tile needs 304 "
        "bytes of activation memory, 4 more than the 300 that are free"
    )
    simulated = simulate(compile_npu(program, EDGE)).cycles
    assert abs(found.cycles[0, 0] - simulated) <= 0.02 * simulated
    assert not found.cycles[1].any() and not found.energy_pj[1].any() and not found.area_mm2[1].any()


def test_the_batch_does_not_matter() -> None:
    nets = [network(build(name)[0]) for name in ("digits", "kws")]
    machines = [EDGE, MICRO, edited(EDGE, matrix__rows=8), edited(MICRO, vector__lanes=4)]
    whole = evaluate(nets, machines, TABLE)
    for i, machine in enumerate(machines):
        alone = evaluate(nets, [machine], TABLE)
        np.testing.assert_array_equal(alone.cycles[0], whole.cycles[i])
        np.testing.assert_array_equal(alone.counts[0], whole.counts[i])
        np.testing.assert_array_equal(alone.energy_pj[0], whole.energy_pj[i])
