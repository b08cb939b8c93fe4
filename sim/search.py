"""The search for a layer's mapping, shared by the accelerator's compiler and the explorer.

`cost.work` ranks all mappings that fit; `estimate` decides between the best of them.
"""

from __future__ import annotations

import heapq
import math

from qcompiler.sim import cost, mapping
from qcompiler.sim.estimate import Estimator, Scheduled
from qcompiler.sim.hardware import Machine
from qcompiler.sim.mapping import Mapping, Residency
from qcompiler.sim.workload import Geometry

FINALISTS = 6
RESOLUTION = 1 / 64  # mappings whose cycles differ by less are told apart by their traffic


def search(g: Geometry, r: Residency, machine: Machine) -> Mapping | None:
    """The fitting mapping with the fewest cycles (within `RESOLUTION`), then the least external traffic, then the
    fewest instructions; None where nothing fits."""
    ranked = []
    for i, m in enumerate(mapping.candidates(g, r, machine)):
        w = cost.work(g, m, r, machine)
        ranked.append((_key(w.cycles(machine), w), m.output_stationary, i, m, w))
    finalists = heapq.nsmallest(FINALISTS, ranked, key=lambda c: c[:3])
    if not finalists:
        return None
    best = min(finalists, key=lambda c: (_key(_alone(g, c[3], r, machine), c[4]), *c[1:3]))
    return best[3]


def _key(cycles: int, w: cost.Work) -> tuple[int, int, int]:
    return round(math.log(max(cycles, 1)) / RESOLUTION), w.main_read + w.constant_read + w.main_write, w.steps


def _alone(g: Geometry, m: Mapping, r: Residency, machine: Machine) -> int:
    return Estimator(machine).run(Scheduled(g, m, r, "image", "output", ("operand",) * g.operands))
