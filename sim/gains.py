"""What to change next: the predicted effect of doubling each resource of a machine, alone."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import ValidationError

from qcompiler.sim.energy import EnergyTable
from qcompiler.sim.errors import HardwareError
from qcompiler.sim.evaluate import evaluate
from qcompiler.sim.hardware import Machine
from qcompiler.sim.hardware.machine import packed_bytes
from qcompiler.sim.network import Network

# The machine's fields that are doubled.
RESOURCES: dict[str, tuple[str, ...]] = {
    "array rows": ("matrix.rows",), "array columns": ("matrix.columns",), "accumulators": ("matrix.accumulator_rows",),
    "vector lanes": ("vector.lanes",), "parameter memory": ("vector.parameter_bytes",),
    "activation memory": ("activation_memory.size_bytes",), "weight memory": ("weight_memory.size_bytes",),
    "main read bandwidth": ("main_memory.read_bytes_per_cycle",),
    "main write bandwidth": ("main_memory.write_bytes_per_cycle",),
    "outstanding transfers": ("main_memory.outstanding_transfers",),
    "constant bandwidth": ("constant_memory.read_bytes_per_cycle",), "queue entries": ("control.queue_entries",),
}  # fmt: skip


@dataclass(frozen=True)
class Gain:
    """What doubling a resource of a machine does to one inference of a network, as ratios to the machine as it is.

    machine: the changed one. cycles, energy, area: new over old, 1 for no difference.
    """

    resource: str
    machine: Machine
    cycles: float
    energy: float
    area: float


def gains(network: Network, machine: Machine, table: EnergyTable) -> list[Gain]:
    """The predicted effect of doubling each resource alone, largest first. Widths of on-chip memories grow along where
    the array or the lanes need them; what no machine may have is left out. Raises HardwareError where the machine
    itself cannot run the network."""
    changed = {name: _doubled(machine, fields) for name, fields in RESOURCES.items()}
    machines = [machine, *(m for m in changed.values() if m is not None)]
    r = evaluate([network], machines, table)
    if r.reasons[0]:
        raise HardwareError(r.reasons[0])
    names = [name for name, m in changed.items() if m is not None]
    found = [
        Gain(name, m, r.cycles[i, 0] / r.cycles[0, 0], r.energy_pj[i, 0, 0] / r.energy_pj[0, 0, 0],
             r.area_mm2[i, 0] / r.area_mm2[0, 0])
        for i, (name, m) in enumerate(zip(names, machines[1:], strict=True), start=1) if not r.reasons[i]
    ]  # fmt: skip
    return sorted(found, key=lambda gain: (gain.cycles, gain.energy, gain.resource))


def _doubled(machine: Machine, names: tuple[str, ...]) -> Machine | None:
    """The machine with these fields doubled; None where it has no such field or none so large may be."""
    content = machine.model_dump(mode="json")
    for name in names:
        holder, field = name.split(".")
        if content[holder] is None:
            return None
        content[holder][field] *= 2
    matrix, lanes = content["matrix"], content["vector"]["lanes"]
    weights = packed_bytes(matrix["columns"], matrix["weight_bits"])
    for memory, need in (("activation_memory", max(matrix["rows"], lanes)), ("weight_memory", weights)):
        content[memory]["bytes_per_cycle"] = max(content[memory]["bytes_per_cycle"], need)
    try:
        return Machine.model_validate(content)
    except ValidationError:
        return None
