"""The evaluation of machines: against the compiler and the event simulator, and as a batch."""

from __future__ import annotations

import numpy as np
import pytest
from machines import EDGE, MICRO, any_machine, edited
from networks import network as build

from qcompiler.codegen.npu.lower import compile_npu
from qcompiler.sim import energy, hardware
from qcompiler.sim.errors import HardwareError, QCompilerError
from qcompiler.sim.evaluate import evaluate
from qcompiler.sim.gains import gains
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


def test_every_machine_alone_gives_the_same_bits_as_in_any_batch() -> None:
    nets = [network(build(name)[0]) for name in ("digits", "resnet8")]
    machines = [any_machine(seed) for seed in range(24)]
    machines[5] = edited(machines[5], activation_memory__size_bytes=300, vector__lanes=4, matrix__rows=4,
                         matrix__columns=4)  # fmt: skip
    whole = evaluate(nets, machines, TABLE)
    assert whole.feasible.sum() >= 15 and not whole.feasible[5]
    for parts in ([[i] for i in range(24)], [list(range(0, 24, 2)), list(range(1, 24, 2))], [list(range(23, -1, -1))]):
        for part in parts:
            found = evaluate(nets, [machines[i] for i in part], TABLE)
            assert found.reasons == [whole.reasons[i] for i in part]
            for name in ("cycles", "counts", "energy_pj", "area_mm2", "leakage_mw", "clock_mhz"):
                np.testing.assert_array_equal(getattr(found, name), getattr(whole, name)[part], err_msg=name)


def test_machines_that_differ_in_clock_or_name_alone() -> None:
    """They are evaluated once, but each with its own time, energy, and name in what it lacks."""
    nets = [network(build("digits")[0])]
    tiny = edited(MICRO, activation_memory__size_bytes=300, vector__parameter_bytes=1024)
    small = edited(EDGE, main_memory__size_bytes=4096)
    machines = [EDGE, tiny, small, edited(EDGE, clock_mhz=100, name="slow", process_nm=40),
                edited(tiny, name="another"), edited(small, name="third")]  # fmt: skip
    whole = evaluate(nets, machines, TABLE)
    assert whole.cycles[3] == whole.cycles[0] > 0 and whole.latency_ms[3] > whole.latency_ms[0]
    assert "'micro-8x8'" in whole.reasons[1] and "'another'" in whole.reasons[4] and "'third'" in whole.reasons[5]
    for i, machine in enumerate(machines):
        alone = evaluate(nets, [machine], TABLE)
        assert alone.reasons == [whole.reasons[i]]
        np.testing.assert_array_equal(alone.cycles[0], whole.cycles[i])
        np.testing.assert_array_equal(alone.energy_pj[0], whole.energy_pj[i])


def test_energy_is_that_of_the_report() -> None:
    machines = [hardware.load(name) for name in ("edge-16x16", "u55-128-like", "cloud-128x128")]
    found = evaluate([network(build("kws")[0])], machines, TABLE)
    for i, machine in enumerate(machines):
        one = energy.energy(found.counts[i, 0], int(found.cycles[i, 0]), machine, TABLE).total
        np.testing.assert_array_equal(found.energy_pj[i, 0], one)
        np.testing.assert_array_equal(found.leakage_mw[i], energy.static_power(machine, TABLE))


def test_an_external_memory_that_is_too_small() -> None:
    machine = edited(EDGE, main_memory__size_bytes=4096)
    program, _ = build("digits")
    with pytest.raises(QCompilerError) as caught:
        compile_npu(program, machine)
    (reason,) = evaluate([network(program)], [machine], TABLE).reasons
    assert reason == str(caught.value).replace("program", "network")
    assert "main and constant data take" in reason


def test_more_bandwidth_or_less_latency_is_hardly_ever_slower() -> None:
    """The mapping is searched anew, within a 64th: a better memory may lose no more than that."""
    nets = [network(build(name)[0]) for name in ("kws", "resnet8")]
    machines = [any_machine(seed) for seed in range(100, 130)]
    better = [
        edited(m, main_memory__read_bytes_per_cycle=2 * m.main_memory.read_bytes_per_cycle,
               main_memory__latency_cycles=m.main_memory.latency_cycles // 2) for m in machines
    ]  # fmt: skip
    before, after = evaluate(nets, machines, TABLE), evaluate(nets, better, TABLE)
    assert before.reasons == after.reasons
    assert (after.cycles <= 1.03 * before.cycles).all()


def test_gains() -> None:
    net = network(build("kws")[0])
    found = gains(net, EDGE, TABLE)
    assert found[0].resource == "vector lanes" and found[0].cycles < 0.75  # depthwise layers bind it
    assert found[0].machine.vector.lanes == 2 * EDGE.vector.lanes
    by_name = {gain.resource: gain for gain in found}
    assert "constant bandwidth" not in by_name
    assert by_name["activation memory"].area > 1.3 and by_name["main read bandwidth"].area == 1
    tiny = edited(MICRO, activation_memory__size_bytes=300)
    with pytest.raises(HardwareError, match="network 'random': layer 'op[0-9]+' does not fit machine 'micro-8x8'"):
        gains(net, tiny, TABLE)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["kws", "resnet8", "vww", "ad"])
def test_random_machines_rank_as_simulated(name: str) -> None:
    """Kendall's rank correlation over 100 machines; DRAM bytes equal; energy within the cycles' error."""
    program, _ = build(name)
    machines = [any_machine(seed) for seed in range(1000, 1120)]
    found = evaluate([network(program)], machines, TABLE)
    rows = np.flatnonzero(found.feasible)[:100]
    assert rows.size == 100
    predicted, simulated = found.cycles[rows, 0], []
    for i in rows.tolist():
        compiled = compile_npu(program, machines[i])
        np.testing.assert_array_equal(energy.count(compiled).sum(axis=0), found.counts[i, 0])
        simulated.append(simulate(compiled).cycles)
    truth = np.array(simulated)
    signs = np.sign(predicted[:, None] - predicted) * np.sign(truth[:, None] - truth)
    tau, errors = signs.sum() / (100 * 99), np.abs(predicted / truth - 1)
    print(f"{name}: tau {tau:.4f}, mean error {errors.mean():.4f}, largest {errors.max():.4f}, "
          f"within 2 % {(errors <= 0.02).mean():.2f}")  # fmt: skip
    assert tau >= 0.98
    assert np.median(errors) <= 0.01 and (errors <= 0.02).mean() >= 0.9
