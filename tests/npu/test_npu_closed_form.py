"""The closed form against the event simulator, and the utilisation that the compiler reaches."""

from __future__ import annotations

import numpy as np
import pytest
from networks import network
from random_graphs import random_machine, random_program

from qcompiler.codegen.npu.lower import compile_npu, plan
from qcompiler.codegen.npu.partition import partition
from qcompiler.sim import cost, energy, hardware
from qcompiler.sim.errors import TargetError
from qcompiler.sim.estimate import estimate
from qcompiler.sim.hardware import Machine
from qcompiler.sim.integer_program import IntegerProgram
from qcompiler.sim.isa.base import COUNTERS
from qcompiler.sim.timing import simulate

TINY = ["kws", "resnet8", "vww", "ad"]
EXTERNAL = [list(COUNTERS).index(f"{n}_bytes") for n in ("main_read", "constant_read", "main_write")]


def traffic(program: IntegerProgram, machine: Machine) -> tuple[np.ndarray, np.ndarray]:
    """External bytes of each layer [layers, 3]: predicted, and counted over the instructions."""
    decided, rows = plan(program, machine), []
    for layer, m, r in zip(decided.layers, decided.mappings, decided.residencies, strict=True):
        w = cost.work(layer.geometry, m, r, machine)
        constants_apart = machine.constant_memory is not None
        main = w.main_read if constants_apart else w.main_read + w.constant_read
        rows.append((main, w.constant_read if constants_apart else 0, w.main_write))
    return np.array(rows), energy.count(compile_npu(program, machine))[:, EXTERNAL]


def compare(name: str, machine: Machine) -> tuple[np.ndarray, np.ndarray]:
    """Cycles of each layer: predicted, and simulated."""
    program, _ = network(name)
    predicted = estimate(plan(program, machine).schedule(), machine)
    return np.array(predicted), np.array(simulate(compile_npu(program, machine)).layer_cycles())


def check_cycles(name: str, machine: Machine, layer_slack: float = 0.0) -> None:
    predicted, simulated = compare(name, machine)
    assert abs(predicted.sum() - simulated.sum()) <= 0.02 * simulated.sum()
    wrong = np.abs(predicted - simulated) > np.maximum(0.05 * simulated, layer_slack * simulated.sum())
    assert not wrong.any(), list(zip(np.flatnonzero(wrong), predicted[wrong], simulated[wrong], strict=True))


@pytest.mark.parametrize("machine", [m for m in hardware.preset_names() if m != "micro-8x8"])
@pytest.mark.parametrize("name", TINY)
def test_cycles_within_2_percent_and_5_percent_a_layer(name: str, machine: str) -> None:
    check_cycles(name, hardware.load(machine))


@pytest.mark.parametrize("name", TINY)
def test_cycles_on_the_smallest_machine(name: str) -> None:
    """With 32 KiB of activations most tiles are ragged: a layer may be 0.5 % of the whole network off."""
    check_cycles(name, hardware.load("micro-8x8"), layer_slack=0.005)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet50"])
def test_cycles_of_large_networks(name: str) -> None:
    """Layers that stream through the external memory shift work to their neighbours: up to 0.7 % of the network."""
    check_cycles(name, hardware.load("edge-16x16"), layer_slack=0.007)


@pytest.mark.parametrize("machine", hardware.preset_names())
@pytest.mark.parametrize("name", TINY)
def test_external_bytes_are_exact(name: str, machine: str) -> None:
    predicted, counted = traffic(network(name)[0], hardware.load(machine))
    np.testing.assert_array_equal(predicted, counted)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet50"])
def test_external_bytes_of_large_networks_are_exact(name: str) -> None:
    predicted, counted = traffic(network(name)[0], hardware.load("edge-16x16"))
    np.testing.assert_array_equal(predicted, counted)


def test_external_bytes_of_random_programs_are_exact() -> None:
    compared = 0
    for seed in range(40):
        try:
            predicted, counted = traffic(partition(random_program(seed)[0]).core, random_machine(seed))
        except TargetError:
            continue
        np.testing.assert_array_equal(predicted, counted, err_msg=str(seed))
        compared += 1
    assert compared > 20


def utilisation(name: str, machine: Machine, timed_on: Machine | None = None) -> float:
    compiled = compile_npu(network(name)[0], machine)
    macs = sum(layer.macs for layer in compiled.layers)
    return macs / (simulate(compiled, timed_on).cycles * machine.matrix.macs_per_cycle)


@pytest.mark.parametrize(
    ("name", "machine", "least"),
    [("kws", "u55-128-sram", 0.45), ("resnet8", "u55-128-sram", 0.85), ("vww", "u55-128-sram", 0.50),
     ("kws", "u55-256-sram", 0.30), ("resnet8", "u55-256-sram", 0.85)],
)  # fmt: skip
def test_utilisation(name: str, machine: str, least: float) -> None:
    assert utilisation(name, hardware.load(machine)) >= least


@pytest.mark.slow
def test_utilisation_of_resnet50_with_an_ideal_memory() -> None:
    machine = hardware.load("edge-32x32")
    assert utilisation("resnet50", machine, hardware.ideal_memory(machine)) >= 0.88
