"""What networks cost on machines, without compiling anything: cycles, energy, traffic and area of each pair.

The decisions are the accelerator compiler's own (`schedule`), so that a figure is that of the program which it would
make. A machine that cannot run a network is a result with the reason, never an exception. The result of a machine does
not depend on which others are evaluated with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qcompiler.sim import energy
from qcompiler.sim.cost import Choice
from qcompiler.sim.counts import counts
from qcompiler.sim.energy import EnergyTable
from qcompiler.sim.flow import Flow
from qcompiler.sim.hardware import Machine
from qcompiler.sim.hardware.batch import Machines
from qcompiler.sim.isa.base import COUNTERS, INSTRUCTION_BYTES
from qcompiler.sim.mapping import Residency
from qcompiler.sim.network import Network
from qcompiler.sim.residency import Decisions, decide, misfit
from qcompiler.sim.search import NEVER, Finalists, choose, rank
from qcompiler.sim.visits import Visits, visits
from qcompiler.sim.workload import Geometry

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
BLOCK = 1024  # machines at a time
EXTERNAL = [list(COUNTERS).index(f"{n}_bytes") for n in ("main_read", "main_write", "constant_read")]


@dataclass(frozen=True, eq=False)
class Cases:
    """Layers of one geometry and residency: machines [c] (an index each), and what was chosen for them."""

    geometry: Geometry
    residency: Residency
    machines: Ints
    choice: Choice


@dataclass(frozen=True, eq=False)
class Schedule:
    """All decisions for a network on n machines. layers: for each layer the cases that serve it, with the machines [k]
    that they serve here and the position of each machine's case [k]."""

    network: Network
    machines: Machines
    decisions: Decisions
    cases: list[Cases]
    layers: list[list[tuple[int, Ints, Ints]]]


def schedule(network: Network, m: Machines) -> Schedule:
    """What stays on chip, and a mapping for every layer, on each machine that can run the network."""
    decisions = decide(network, m)
    rows = [np.flatnonzero(decisions.layout == k) for k in range(len(decisions.layouts))]
    free = [layout.free(m.activation_bytes[r]) for layout, r in zip(decisions.layouts, rows, strict=True)]
    found: list[Finalists] = []
    served: list[list[tuple[int, Ints, Ints]]] = [[] for _ in network.layers]
    for g, positions in network.geometries.items():
        wanted: dict[Residency, list[tuple[int, Ints, Floats]]] = {}
        for i in positions:
            for k, layout in enumerate(decisions.layouts):
                wanted.setdefault(layout.residencies[i], []).append((i, rows[k], free[k][i]))
        for r, asked in wanted.items():
            layer = np.concatenate([np.full(len(own), i) for i, own, _ in asked])
            machine = np.concatenate([own for _, own, _ in asked])
            room = np.concatenate([have for _, _, have in asked])
            # A machine's layers share a case where they have equal room, or more than is of use.
            room = np.minimum(room, decisions.needs[g, r].most[machine])
            key = machine.astype(np.int64) << 29 | np.maximum(room, 0).astype(np.int64)
            _, first, where = np.unique(key, return_index=True, return_inverse=True)
            found.append(rank(g, r, m, machine[first], room[first]))
            assert (found[-1].keys[:, 0] < NEVER).all(), (network.name, g)
            for i in positions:
                here = np.flatnonzero(layer == i)
                if here.size:
                    served[i].append((len(found) - 1, machine[here], where[here]))
    cases = [Cases(f.geometry, f.residency, f.machines, choice)
             for f, choice in zip(found, choose(found, m), strict=True)]  # fmt: skip
    return Schedule(network, m, decisions, cases, served)


def layer_cycles(s: Schedule) -> Ints:
    """int64 [layers, n]: how far each layer moves the frontier of completed work (`Timeline.layer_cycles`)."""
    made = [visits(c.geometry, c.choice, c.residency, s.machines.take(c.machines)) for c in s.cases]
    able = np.flatnonzero(s.decisions.layout >= 0)
    place = np.full(len(s.machines), -1)
    place[able] = np.arange(able.size)
    flow = Flow(s.machines.take(able))
    total = np.zeros((len(s.network.layers) + 1, len(s.machines)), dtype=np.int64)
    for i, (work, serving) in enumerate(zip(s.network.layers, s.layers, strict=True)):
        v = Visits.empty(able.size)
        for k, machines, where in serving:
            at = place[machines]
            for row, own in zip(v.values, made[k].values, strict=True):
                row[at] = own[where]
        flow.layer(work.geometry.kind, v, work.reads[0], work.output, work.reads[1:])
        total[i + 1, able] = np.round(flow.frontier)
    return total[1:] - total[:-1]


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


def evaluate(networks: Sequence[Network], machines: Sequence[Machine], table: EnergyTable) -> Results:
    """Cost of every network on every machine."""
    shape = (len(machines), len(networks))
    cycles, total = np.zeros(shape, np.int64), np.zeros((*shape, len(COUNTERS)), np.int64)
    reasons = [""] * len(machines)
    for k, network in enumerate(networks):
        for low in range(0, len(machines), BLOCK):
            part = machines[low : low + BLOCK]
            for i, machine in enumerate(part):
                refusal = network.refused(machine)
                reasons[low + i] += "\n" * bool(refusal and reasons[low + i]) + refusal
            if network.impossible:
                continue
            m = Machines.of(part)
            one, like = m.different()
            s = schedule(network, m.take(one))
            for i, kind in enumerate(like.tolist()):
                if kind in s.decisions.misfits:
                    text = f"network {network.name!r}: {misfit(network, part[i], s.decisions.misfits[kind])}"
                    reasons[low + i] += "\n" * bool(reasons[low + i]) + text
            cycles[low : low + BLOCK, k] = layer_cycles(s).sum(axis=0)[like]
            counted, constants = counters(s)
            total[low : low + BLOCK, k] = counted.sum(axis=0)[like]
            for i, text in _overflows(s.decisions, m, like, part, constants).items():
                reasons[low + i] += "\n" * bool(reasons[low + i]) + f"network {network.name!r}: {text}"
    able = np.array([not reason for reason in reasons], dtype=bool).reshape(-1)
    cycles[~able], total[~able] = 0, 0
    priced = energy.totals(total, cycles, machines, table)
    for quantity in (priced.energy_pj, priced.area_mm2, priced.leakage_mw):
        quantity[~able] = 0
    clocks = np.array([m.clock_mhz for m in machines], dtype=np.float64)
    return Results(reasons, cycles, total, priced.energy_pj, priced.area_mm2, priced.leakage_mw, clocks)


def counters(s: Schedule) -> tuple[Ints, Ints]:
    """int64 [layers, n, COUNTERS]: the counters of every layer, as `energy.count` finds them in the compiled program;
    and int64 [n], the bytes of its constants."""
    own = [counts(c.geometry, c.choice, c.residency, s.machines.take(c.machines)) for c in s.cases]
    total = np.zeros((len(s.layers), len(s.machines), len(COUNTERS)), dtype=np.int64)
    constants = np.full(len(s.machines), s.network.constant_bytes)
    for i, serving in enumerate(s.layers):
        for k, machines, where in serving:
            total[i, machines] = own[k].values[:, where].T
            constants[machines] += own[k].constants[where].astype(np.int64)
    total[-1, s.decisions.layout >= 0, list(COUNTERS).index("instruction_bytes")] += INSTRUCTION_BYTES  # halt
    return total, constants


def _overflows(d: Decisions, m: Machines, like: Ints, machines: Sequence[Machine], constants: Ints) -> dict[int, str]:
    """Machines whose external memories cannot hold the data (as `program.NpuProgram` checks), with the reason.

    like: which of the machines of `d` and `constants` each is like.
    """
    found, alignments = {}, {}
    layout, constants = d.layout[like], constants[like]
    for i in np.flatnonzero(layout >= 0).tolist():
        key = int(layout[i]), int(m.main.burst_bytes[i])
        if key not in alignments:
            alignments[key] = max(d.layouts[key[0]].outside(key[1])[1], 1)
        used, what = alignments[key], "main data takes"
        if not m.separate[i]:
            used, what = used + int(constants[i]), "main and constant data take"
        elif constants[i] > m.constant.size_bytes[i]:
            have = int(m.constant.size_bytes[i])
            found[i] = (
                f"its constants take {constants[i]} bytes; the constant memory of {machines[i].name!r} has {have}"
            )
            continue
        if used > m.main.size_bytes[i]:
            have = int(m.main.size_bytes[i])
            found[i] = f"{what} {used} bytes; the main memory of {machines[i].name!r} has {have}"
    return found
