"""What networks cost on machines, without compiling anything: cycles, energy, traffic and area of each pair.

The decisions are the accelerator compiler's own (`residency`, `search`), so that a figure is that of the program which
it would make. A machine that cannot run a network is a result with the reason, never an exception. The result of a
machine does not depend on which others are evaluated with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qcompiler.sim import cost, energy
from qcompiler.sim.energy import EnergyTable
from qcompiler.sim.estimate import Estimator, Scheduled
from qcompiler.sim.hardware import Machine
from qcompiler.sim.isa.base import COUNTERS
from qcompiler.sim.network import Network
from qcompiler.sim.residency import Misfit, decide
from qcompiler.sim.search import search

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Results:
    """Arrays over machines M and networks K; the last axis of a quantity is value, low, high of its uncertainty.

    reasons [M]: why the machine cannot run the networks, "" where it can; the rest of its row is then zero.
    cycles int64 [M, K]; counts int64 [M, K, COUNTERS] (`isa.base.COUNTERS`); energy_pj float64 [M, K, 3], with the
    leakage of these cycles; area_mm2, leakage_mw float64 [M, 3]; clock_mhz float64 [M].
    """

    reasons: list[str]
    cycles: Ints
    counts: Ints
    energy_pj: Floats
    area_mm2: Floats
    leakage_mw: Floats
    clock_mhz: Floats

    @property
    def feasible(self) -> npt.NDArray[np.bool_]:
        """bool [M]."""
        return np.array([not reason for reason in self.reasons], dtype=bool)

    @property
    def latency_ms(self) -> Floats:
        """float64 [M, K]."""
        return self.cycles / (self.clock_mhz[:, None] * 1e3)

    @property
    def dram_bytes(self) -> Ints:
        """int64 [M, K]: all bytes of data that the external memories move, whole bursts (instructions excluded)."""
        return self.counts[:, :, EXTERNAL].sum(axis=2)


EXTERNAL = [list(COUNTERS).index(f"{n}_bytes") for n in ("main_read", "main_write", "constant_read")]


def evaluate(networks: Sequence[Network], machines: Sequence[Machine], table: EnergyTable) -> Results:
    """Cost of every network on every machine."""
    shape = (len(machines), len(networks))
    cycles, counts = np.zeros(shape, np.int64), np.zeros((*shape, len(COUNTERS)), np.int64)
    energies, areas, leakages = np.zeros((*shape, 3)), np.zeros((shape[0], 3)), np.zeros((shape[0], 3))
    reasons = []
    for i, machine in enumerate(machines):
        found = [_one(network, machine) for network in networks]
        reasons.append("\n".join(f for f in found if isinstance(f, str)))
        if reasons[-1]:
            continue
        areas[i] = np.sum([tuple(q) for q in energy.area(machine, table).values()], axis=0)
        leakages[i] = energy.static_power(machine, table)
        for k, pair in enumerate(found):
            assert not isinstance(pair, str)
            cycles[i, k], counts[i, k] = pair
            energies[i, k] = energy.energy(counts[i, k], int(cycles[i, k]), machine, table).total
    return Results(reasons, cycles, counts, energies, areas, leakages, np.array([m.clock_mhz for m in machines]))


def _one(network: Network, machine: Machine) -> tuple[int, Ints] | str:
    refusal = network.refused(machine.name, machine.vector.roundings)
    if refusal:
        return refusal
    decision = decide(network, machine)
    if isinstance(decision, Misfit):
        return f"layer {decision.layer!r} of {network.name!r} does not fit: {decision.reason}"
    estimator, counts = Estimator(machine), dict.fromkeys(COUNTERS, 0)
    for work, r in zip(network.layers, decision.residencies, strict=True):
        m = search(work.geometry, r, machine)
        assert m is not None
        estimator.run(Scheduled(work.geometry, m, r, work.reads[0], work.output, work.reads[1:]))
        w = cost.work(work.geometry, m, r, machine)
        counts["array_macs"] += work.geometry.macs
        counts["main_read_bytes"] += w.main_read + (w.constant_read if machine.constant_memory is None else 0)
        counts["constant_read_bytes"] += w.constant_read if machine.constant_memory else 0
        counts["main_write_bytes"] += w.main_write
    return estimator.frontier, np.array(list(counts.values()), np.int64)
