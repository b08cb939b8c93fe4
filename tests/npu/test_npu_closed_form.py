"""The closed form against the event simulator, and the utilisation that the compiler reaches."""

from __future__ import annotations

import numpy as np
import pytest
from networks import network
from random_graphs import random_machine, random_program

from qcompiler.codegen.npu.lower import compile_npu
from qcompiler.codegen.npu.partition import partition
from qcompiler.sim import energy, hardware
from qcompiler.sim.errors import TargetError
from qcompiler.sim.evaluate import counters, layer_cycles, schedule
from qcompiler.sim.hardware import Machine
from qcompiler.sim.hardware.batch import Machines
from qcompiler.sim.integer_program import IntegerProgram
from qcompiler.sim.network import network as extract
from qcompiler.sim.timing import simulate

TINY = ["kws", "resnet8", "vww", "ad"]


def compare(name: str, machine: Machine) -> tuple[np.ndarray, np.ndarray]:
    """Cycles of each layer: predicted, and simulated."""
    program, _ = network(name)
    predicted = layer_cycles(schedule(extract(program), Machines.of([machine])))[:, 0]
    return predicted, np.array(simulate(compile_npu(program, machine)).layer_cycles())


def check_cycles(name: str, machine: Machine, layer_slack: float) -> None:
    """The total within 2 %; a layer within 5 %, or `layer_slack` of the network."""
    predicted, simulated = compare(name, machine)
    assert abs(predicted.sum() - simulated.sum()) <= 0.02 * simulated.sum()
    wrong = np.abs(predicted - simulated) > np.maximum(0.05 * simulated, layer_slack * simulated.sum())
    assert not wrong.any(), list(zip(np.flatnonzero(wrong), predicted[wrong], simulated[wrong], strict=True))


@pytest.mark.parametrize("machine", hardware.preset_names())
@pytest.mark.parametrize("name", TINY)
def test_cycles(name: str, machine: str) -> None:
    check_cycles(name, hardware.load(machine), 0.005 if machine == "micro-8x8" else 0.0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet50"])
def test_cycles_of_large_networks(name: str) -> None:
    check_cycles(name, hardware.load("edge-16x16"), 0.001)


def check_counters(program: IntegerProgram, machine: Machine) -> None:
    """Every counter of every layer, external bytes and instructions among them, is that of the compiled program."""
    compiled, found = compile_npu(program, machine), schedule(extract(program), Machines.of([machine]))
    predicted, constants = counters(found)
    np.testing.assert_array_equal(predicted[:, 0], energy.count(compiled))
    assert constants[0] == len(compiled.constants)


@pytest.mark.parametrize("machine", hardware.preset_names())
@pytest.mark.parametrize("name", TINY)
def test_counters_are_exact(name: str, machine: str) -> None:
    check_counters(network(name)[0], hardware.load(machine))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet50"])
def test_counters_of_large_networks_are_exact(name: str) -> None:
    check_counters(network(name)[0], hardware.load("edge-16x16"))


def _random_counters(seeds: range) -> int:
    compared = 0
    for seed in seeds:
        program, machine = partition(random_program(seed)[0]).core, random_machine(seed)
        try:
            check_counters(program, machine)
        except TargetError as error:
            assert "does not fit machine" in str(error), seed
            continue
        compared += 1
    return compared


def test_counters_of_random_programs_are_exact() -> None:
    assert _random_counters(range(40)) > 30


@pytest.mark.slow
def test_counters_of_many_random_programs_are_exact() -> None:
    assert _random_counters(range(1000, 1400)) > 300


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
