"""Energy and area: what a program does times a table, scaled to the machine's process, with an uncertainty band.

Energy of a program = sum over counters of count * price, plus static power * time. Prices follow from the entries of
an energy table (default: hardware/energy.yaml), each with source, node, voltage and scope:

- an array or vector MAC is an 8-bit multiply and a 32-bit add; a requantisation a 32-bit multiply and two adds;
- a byte of an on-chip memory is an eighth of a 64-bit access of its capacity, on the log-log line through 8 KiB and
  1 MiB; a table look-up is a byte of a 256-byte memory;
- a byte of an external memory is eight bits of its technology, or of its capacity where that is SRAM; instructions
  are read from the main memory.

Node scaling: log-log interpolation between the nodes of an entry, extrapolation along the nearest segment.
The band is the sum of every part at its entry's low, and at its high: entries err together at worst.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import numpy.typing as npt
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qcompiler.sim.errors import HardwareError
from qcompiler.sim.hardware import ExternalMemory, Machine
from qcompiler.sim.hardware.machine import FOLDER
from qcompiler.sim.isa.base import COUNTERS, INSTRUCTION_BYTES
from qcompiler.sim.program import NpuProgram

DEFAULT_TABLE = FOLDER / "energy.yaml"
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
LOOK_UP_BYTES = 256
ADD_BITS, MULTIPLY_BITS = 32, 9
MAC_FLIP_FLOPS = 3 * MULTIPLY_BITS + ADD_BITS  # weight, shadow weight, activation, partial sum
LANE_FLIP_FLOPS = 8 * (2 * ADD_BITS)  # eight pipeline stages of an operand pair


class Quantity(NamedTuple):
    """A value with the bounds of its uncertainty."""

    value: float
    low: float
    high: float

    def __mul__(self, factor: float) -> Quantity:  # type: ignore[override]
        return Quantity(self.value * factor, self.low * factor, self.high * factor)

    def plus(self, other: Quantity) -> Quantity:
        return Quantity(self.value + other.value, self.low + other.low, self.high + other.high)


ZERO = Quantity(0.0, 0.0, 0.0)


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    low: Positive = Field(le=1)
    high: Positive = Field(ge=1)
    scope: str
    source: str


class Scaled(_Entry):
    """A figure at one or more process nodes (nm)."""

    points: dict[int, Positive] = Field(min_length=1)
    voltage_v: dict[int, Positive] = {}

    def at(self, node_nm: int) -> Quantity:
        """The figure at a node (rule in the module's docstring)."""
        value = _log_interpolate(self.points, node_nm)
        return Quantity(value, value * self.low, value * self.high)


class Factor(_Entry):
    """A dimensionless factor of the area model."""

    value: Positive

    @property
    def quantity(self) -> Quantity:
        return Quantity(self.value, self.value * self.low, self.value * self.high)


class _Energies(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    int8_multiply: Scaled
    int32_add: Scaled
    int32_multiply: Scaled
    sram_8kib_64bit: Scaled
    sram_1mib_64bit: Scaled
    lpddr4_bit: Scaled
    ddr4_bit: Scaled
    hbm2_bit: Scaled
    flash_bit: Scaled


class _Leakage(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    sram_uw_per_kib: Scaled
    logic_mw_per_mm2: Scaled


class _Areas(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    int8_multiplier: Scaled
    int32_adder: Scaled
    int32_multiplier: Scaled
    flip_flop: Scaled
    sram_bit: Scaled


class _Factors(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    sram_array_efficiency: Factor
    sram_port: Factor
    logic_overhead: Factor


class EnergyTable(BaseModel):
    """All figures of the model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    description: str = ""
    energy_pj: _Energies
    leakage: _Leakage
    area_um2: _Areas
    factors: _Factors


def load_table(path: str | Path = DEFAULT_TABLE) -> EnergyTable:
    """Read and validate an energy table. Raises HardwareError naming file and field."""
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        return EnergyTable.model_validate(content)
    except OSError as error:
        raise HardwareError(f"{path}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise HardwareError(f"{path}: is not YAML: {' '.join(str(error).split())}") from None
    except ValidationError as error:
        lines = [f"{path}: {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_url=False)]
        raise HardwareError("\n".join(lines)) from None


def _log_interpolate(points: Mapping[int, float], at: float) -> float:
    if len(points) == 1:
        return next(iter(points.values()))
    nodes = sorted(points)
    k = min(max(1, int(np.searchsorted(nodes, at))), len(nodes) - 1)
    low, high = nodes[k - 1], nodes[k]
    slope = math.log(points[high] / points[low]) / math.log(high / low)
    return points[low] * (at / low) ** slope


def sram_byte(table: EnergyTable, node_nm: int, size_bytes: int) -> Quantity:
    """pJ of one byte of an SRAM of this capacity."""
    small, large = table.energy_pj.sram_8kib_64bit.at(node_nm), table.energy_pj.sram_1mib_64bit.at(node_nm)
    weight = math.log(size_bytes / 8192) / math.log(128)
    blend = [math.exp((1 - weight) * math.log(s) + weight * math.log(b)) / 8 for s, b in zip(small, large, strict=True)]
    return Quantity(*blend)


def external_byte(table: EnergyTable, node_nm: int, memory: ExternalMemory) -> Quantity:
    """pJ of one byte moved to or from an external memory."""
    if memory.technology == "sram":
        return sram_byte(table, node_nm, memory.size_bytes)
    entry: Scaled = getattr(table.energy_pj, f"{memory.technology}_bit")
    return entry.at(node_nm) * 8


def prices(machine: Machine, table: EnergyTable) -> dict[str, Quantity]:
    """pJ of one unit of every counter on this machine."""
    node, pj = machine.process_nm, table.energy_pj
    multiply, add = pj.int8_multiply.at(node), pj.int32_add.at(node)
    main = external_byte(table, node, machine.main_memory)
    result = {
        "array_macs": multiply.plus(add),
        "vector_macs": multiply.plus(add),
        "vector_operations": add,
        "requantizations": pj.int32_multiply.at(node).plus(add * 2),
        "table_lookups": sram_byte(table, node, LOOK_UP_BYTES),
        "main_read_bytes": main,
        "main_write_bytes": main,
        "constant_read_bytes": external_byte(table, node, machine.constant_memory or machine.main_memory),
        "instruction_bytes": main,
    }
    for name, size in (
        ("activation", machine.activation_memory.size_bytes),
        ("weight", machine.weight_memory.size_bytes),
        ("parameter", machine.vector.parameter_bytes),
        ("accumulator", machine.matrix.accumulator_bytes),
    ):
        result[f"{name}_read_bytes"] = result[f"{name}_write_bytes"] = sram_byte(table, node, size)
    assert result.keys() == COUNTERS.keys()
    return result


# What reports group the counters into.
GROUPS: dict[str, tuple[str, ...]] = {
    "mac": ("array_macs",),
    "vector": ("vector_macs", "vector_operations", "requantizations", "table_lookups"),
    "sram": tuple(n for n in COUNTERS if n.startswith(("activation", "weight", "parameter", "accumulator"))),
    "dram": ("main_read_bytes", "main_write_bytes", "constant_read_bytes", "instruction_bytes"),
}


def count(program: NpuProgram, machine: Machine | None = None) -> npt.NDArray[np.int64]:
    """int64 [layers, counters]: the counters of every layer, in the order of `COUNTERS`."""
    machine = machine or program.machine
    column = {name: i for i, name in enumerate(COUNTERS)}
    total = [[0] * len(COUNTERS) for _ in program.layers]
    for ins, layer in zip(program.instructions, program.layer_of, strict=True):
        row = total[layer]
        row[column["instruction_bytes"]] += INSTRUCTION_BYTES
        for name, value in ins.counts(machine).items():
            row[column[name]] += value
    return np.array(total, dtype=np.int64)


@dataclass(frozen=True)
class Energy:
    """pJ by group (mac, vector, sram, dram, static) and in total."""

    groups: dict[str, Quantity]

    @property
    def total(self) -> Quantity:
        total = ZERO
        for part in self.groups.values():
            total = total.plus(part)
        return total


def energy(counts: npt.NDArray[np.int64], cycles: int, machine: Machine, table: EnergyTable) -> Energy:
    """Energy of counters [len(COUNTERS)] over a run (or a layer's share) of `cycles` cycles."""
    price = prices(machine, table)
    by_name = dict(zip(COUNTERS, counts.tolist(), strict=True))
    groups = {}
    for group, names in GROUPS.items():
        part = ZERO
        for name in names:
            part = part.plus(price[name] * by_name[name])
        groups[group] = part
    seconds = cycles / (machine.clock_mhz * 1e6)
    groups["static"] = static_power(machine, table) * (seconds * 1e9)  # mW * s = 1e9 pJ
    return Energy(groups)


# Activation: array read, two vector reads, vector write, DMA read and write. Weight: array read, DMA write.
# Parameter: vector read, DMA write. Accumulator: array read and write, vector read.
PORTS = {"activation": 6, "weight": 2, "parameter": 2, "accumulator": 3}


def area(machine: Machine, table: EnergyTable) -> dict[str, Quantity]:
    """mm2 of array, vector unit, each on-chip memory and the control around them (external memories excluded)."""
    node, um2 = machine.process_nm, table.area_um2
    flop, adder, multiplier = um2.flip_flop.at(node), um2.int32_adder.at(node), um2.int8_multiplier.at(node)
    mac = multiplier.plus(adder).plus(flop * MAC_FLIP_FLOPS)
    # A lane: a MAC, the requantisation's multiplier, two more adders, its look-up memory in flip-flops.
    lane = mac.plus(um2.int32_multiplier.at(node)).plus(adder * 2)
    lane = lane.plus(flop * (LANE_FLIP_FLOPS + 8 * LOOK_UP_BYTES))
    parts = {
        "array": mac * (machine.matrix.macs_per_cycle * 1e-6),
        "vector": lane * (machine.vector.lanes * 1e-6),
    }
    overhead = table.factors.logic_overhead.quantity
    logic = parts["array"].plus(parts["vector"])
    parts["control"] = Quantity(*(part * max(factor - 1, 0) for part, factor in zip(logic, overhead, strict=True)))
    bit, share = um2.sram_bit.at(node), table.factors.sram_array_efficiency
    for name, size in (
        ("activation", machine.activation_memory.size_bytes),
        ("weight", machine.weight_memory.size_bytes),
        ("parameter", machine.vector.parameter_bytes),
        ("accumulator", machine.matrix.accumulator_bytes),
    ):
        cells = bit * (8 * size * 1e-6)
        # A low efficiency makes a large macro: the bounds cross over.
        macro = Quantity(
            cells.value / share.value, cells.low / share.value / share.high, cells.high / share.value / share.low
        )
        port = table.factors.sram_port.quantity
        parts[name] = Quantity(*(m * (1 + p * (PORTS[name] - 1)) for m, p in zip(macro, port, strict=True)))
    return parts


def static_power(machine: Machine, table: EnergyTable) -> Quantity:
    """mW of leakage of the on-chip parts."""
    node, parts = machine.process_nm, area(machine, table)
    kib = (
        machine.activation_memory.size_bytes + machine.weight_memory.size_bytes
        + machine.vector.parameter_bytes + machine.matrix.accumulator_bytes
    ) / 1024  # fmt: skip
    logic_mm2 = parts["array"].value + parts["vector"].value + parts["control"].value
    sram = table.leakage.sram_uw_per_kib.at(node) * (kib / 1000)
    return sram.plus(table.leakage.logic_mw_per_mm2.at(node) * logic_mm2)
