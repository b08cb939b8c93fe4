"""Choice of a layer's mapping."""

from __future__ import annotations

from qcompiler.sim.hardware import Machine
from qcompiler.sim.mapping import Mapping, Residency, candidates
from qcompiler.sim.workload import Geometry


def search(g: Geometry, r: Residency, machine: Machine) -> Mapping | None:
    """The mapping with the largest tiles that fits, or None."""
    found = candidates(g, r, machine)
    return found[0] if found else None
