"""Energy and area: what a program does times a table, scaled to the machine's process, with an uncertainty band.

Energy of a program = sum over counters of count * price, plus static power * time. Prices follow from the entries of
an energy table (default: hardware/energy.yaml), each with source, node, voltage and scope:

- a vector MAC is an 8-bit multiply and a 32-bit add, an array MAC one of the machine's widths and a 32-bit add; a
  multiplier follows the product of its operands' widths; a requantisation is a 32-bit multiply and two adds;
- a byte of an on-chip memory is an eighth of a 64-bit access of its capacity, on the log-log line through 8 KiB and
  1 MiB; a table look-up is a byte of a 256-byte memory;
- a byte of an external memory is eight bits of its technology, or of its capacity where that is SRAM; instructions
  are read from the main memory.

Node scaling: log-log interpolation between the nodes of an entry, extrapolation along the nearest segment.
The band is the sum of every part at its entry's low, and at its high: entries err together at worst.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
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
ADD_BITS = 32
LANE_FLIP_FLOPS = 8 * (2 * ADD_BITS)  # eight pipeline stages of an operand pair


# Activation: array read, two vector reads, vector write, DMA read and write. Weight: array read, DMA write.
# Parameter: vector read, DMA write. Accumulator: array read and write, vector read.
PORTS = {"activation": 6, "weight": 2, "parameter": 2, "accumulator": 3}


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
    multiplier_width: Factor


class EnergyTable(BaseModel):
    """All figures of the model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    description: str = ""
    energy_pj: _Energies
    leakage: _Leakage
    area_um2: _Areas
    factors: _Factors

    @cached_property
    def nodes(self) -> dict[int, Node]:
        """The nodes that were asked for (`at`)."""
        return {}

    def at(self, node_nm: int) -> Node:
        """All figures at a process node."""
        if node_nm not in self.nodes:
            self.nodes[node_nm] = Node(self, node_nm)
        return self.nodes[node_nm]


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


class Node:
    """What a table says at one process node: pJ of operations and bytes, mm2 of units and memories."""

    def __init__(self, table: EnergyTable, node_nm: int) -> None:
        self.table, self.node_nm = table, node_nm
        pj, um2 = table.energy_pj, table.area_um2
        self._cells: dict[tuple[int, int], tuple[Quantity, Quantity]] = {}
        self.add, self.multiply = pj.int32_add.at(node_nm), pj.int8_multiply.at(node_nm)
        self.requantization = pj.int32_multiply.at(node_nm).plus(self.add * 2)
        self.small, self.large = pj.sram_8kib_64bit.at(node_nm), pj.sram_1mib_64bit.at(node_nm)
        flop, adder = um2.flip_flop.at(node_nm), um2.int32_adder.at(node_nm)
        # A lane: a MAC, the requantisation's multiplier, two more adders, its look-up memory in flip-flops.
        self.mac, cell = self.array_mac(8, 8)
        lane = cell.plus(um2.int32_multiplier.at(node_nm)).plus(adder * 2)
        self.lane_um2 = lane.plus(flop * (LANE_FLIP_FLOPS + 8 * LOOK_UP_BYTES))
        self.bit_um2 = um2.sram_bit.at(node_nm)
        self.sram_uw = table.leakage.sram_uw_per_kib.at(node_nm)
        self.logic_mw = table.leakage.logic_mw_per_mm2.at(node_nm)
        self._bytes: dict[int, Quantity] = {}
        self._external: dict[str, Quantity] = {}
        self._macros: dict[tuple[int, int], Quantity] = {}

    def array_mac(self, weight_bits: int, activation_bits: int) -> tuple[Quantity, Quantity]:
        """pJ of a multiply-accumulate in an array of these operands, and um2 of a cell of it: multiplier, adder,
        registers of weight, shadow weight, activation (a bit wider each: minus a zero point) and partial sum."""
        if (weight_bits, activation_bits) not in self._cells:
            exponent, ratio = self.table.factors.multiplier_width.quantity, weight_bits * activation_bits / 64
            # Below 8 bits a large exponent makes a small multiplier: the bounds cross over.
            factor = Quantity(ratio**exponent.value, *sorted((ratio**exponent.low, ratio**exponent.high)))
            um2 = self.table.area_um2
            spent, size = (
                Quantity(*(q * f for q, f in zip(quantity, factor, strict=True)))
                for quantity in (self.multiply, um2.int8_multiplier.at(self.node_nm))
            )
            registers = um2.flip_flop.at(self.node_nm) * (2 * (weight_bits + 1) + activation_bits + 1 + ADD_BITS)
            size = size.plus(um2.int32_adder.at(self.node_nm)).plus(registers)
            self._cells[weight_bits, activation_bits] = spent.plus(self.add), size
        return self._cells[weight_bits, activation_bits]

    def sram_byte(self, size_bytes: int) -> Quantity:
        """pJ of one byte of an SRAM of this capacity."""
        if size_bytes not in self._bytes:
            weight = math.log(size_bytes / 8192) / math.log(128)
            blend = [
                math.exp((1 - weight) * math.log(s) + weight * math.log(b)) / 8
                for s, b in zip(self.small, self.large, strict=True)
            ]
            self._bytes[size_bytes] = Quantity(*blend)
        return self._bytes[size_bytes]

    def external_byte(self, memory: ExternalMemory) -> Quantity:
        """pJ of one byte moved to or from an external memory."""
        if memory.technology == "sram":
            return self.sram_byte(memory.size_bytes)
        if memory.technology not in self._external:
            entry: Scaled = getattr(self.table.energy_pj, f"{memory.technology}_bit")
            self._external[memory.technology] = entry.at(self.node_nm) * 8
        return self._external[memory.technology]

    def sram_mm2(self, size_bytes: int, ports: int) -> Quantity:
        """mm2 of an SRAM with this many ports."""
        if (size_bytes, ports) not in self._macros:
            share, port = self.table.factors.sram_array_efficiency, self.table.factors.sram_port.quantity
            cells = self.bit_um2 * (8 * size_bytes * 1e-6)
            # A low efficiency makes a large macro: the bounds cross over.
            macro = Quantity(
                cells.value / share.value, cells.low / share.value / share.high, cells.high / share.value / share.low
            )
            grown = Quantity(*(m * (1 + p * (ports - 1)) for m, p in zip(macro, port, strict=True)))
            self._macros[size_bytes, ports] = grown
        return self._macros[size_bytes, ports]


def memories(machine: Machine) -> dict[str, int]:
    """Bytes of the on-chip memories."""
    return {
        "activation": machine.activation_memory.size_bytes, "weight": machine.weight_memory.size_bytes,
        "parameter": machine.vector.parameter_bytes, "accumulator": machine.matrix.accumulator_bytes,
    }  # fmt: skip


def prices(machine: Machine, table: EnergyTable) -> dict[str, Quantity]:
    """pJ of one unit of every counter on this machine."""
    node = table.at(machine.process_nm)
    main = node.external_byte(machine.main_memory)
    result = {
        "array_macs": node.array_mac(machine.matrix.weight_bits, machine.matrix.activation_bits)[0],
        "vector_macs": node.mac,
        "vector_operations": node.add,
        "requantizations": node.requantization,
        "table_lookups": node.sram_byte(LOOK_UP_BYTES),
        "main_read_bytes": main,
        "main_write_bytes": main,
        "constant_read_bytes": node.external_byte(machine.constant_memory or machine.main_memory),
        "instruction_bytes": main,
    }
    for name, size in memories(machine).items():
        result[f"{name}_read_bytes"] = result[f"{name}_write_bytes"] = node.sram_byte(size)
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


def area(machine: Machine, table: EnergyTable) -> dict[str, Quantity]:
    """mm2 of array, vector unit, each on-chip memory and the control around them (external memories excluded)."""
    node, array = table.at(machine.process_nm), machine.matrix
    parts = {
        "array": node.array_mac(array.weight_bits, array.activation_bits)[1] * (array.macs_per_cycle * 1e-6),
        "vector": node.lane_um2 * (machine.vector.lanes * 1e-6),
    }
    overhead = table.factors.logic_overhead.quantity
    logic = parts["array"].plus(parts["vector"])
    parts["control"] = Quantity(*(part * max(factor - 1, 0) for part, factor in zip(logic, overhead, strict=True)))
    for name, size in memories(machine).items():
        parts[name] = node.sram_mm2(size, PORTS[name])
    return parts


def leakage(machine: Machine, table: EnergyTable, parts: Mapping[str, Quantity]) -> Quantity:
    """mW of leakage of the on-chip parts, whose `area` is known."""
    node, kib = table.at(machine.process_nm), sum(memories(machine).values()) / 1024
    logic_mm2 = parts["array"].value + parts["vector"].value + parts["control"].value
    return (node.sram_uw * (kib / 1000)).plus(node.logic_mw * logic_mm2)


def static_power(machine: Machine, table: EnergyTable) -> Quantity:
    """mW of leakage of the on-chip parts."""
    return leakage(machine, table, area(machine, table))


@dataclass(frozen=True, eq=False)
class Totals:
    """float64: pJ of a run [M, K, 3], mm2 and mW of leakage of a machine [M, 3]; the last axis is value, low, high."""

    energy_pj: npt.NDArray[np.float64]
    area_mm2: npt.NDArray[np.float64]
    leakage_mw: npt.NDArray[np.float64]


def totals(
    counts: npt.NDArray[np.int64], cycles: npt.NDArray[np.int64], machines: Sequence[Machine], table: EnergyTable
) -> Totals:
    """Totals of `energy`, `area` and `static_power` for counters [M, K, COUNTERS] and cycles [M, K], bit for bit."""
    column = {name: i for i, name in enumerate(COUNTERS)}
    known, where, rows = dict[Hashable, int](), np.zeros(len(machines), np.int64), list[list[Quantity]]()
    for i, machine in enumerate(machines):
        # Machines of an exploration are alike in most of what their prices follow from.
        widths = machine.matrix.weight_bits, machine.matrix.activation_bits
        key = (machine.process_nm, *widths, *memories(machine).values(), machine.main_memory, machine.constant_memory)
        if key not in known:
            known[key] = len(rows)
            rows.append(_figures(machine, table))
        where[i] = known[key]
    figures = (
        np.array(rows, dtype=np.float64).reshape(len(rows), 4 + len(PORTS) + len(COUNTERS), 3)[where].swapaxes(0, 1)
    )
    mac_mm2, lane_mm2, sram_mw, logic_mw, *macros = figures[: 4 + len(PORTS)]
    size = np.array([(m.matrix.macs_per_cycle, m.vector.lanes) for m in machines], dtype=np.float64).reshape(-1, 2)
    array, vector = mac_mm2 * (size[:, :1] * 1e-6), lane_mm2 * (size[:, 1:] * 1e-6)
    control = (array + vector) * np.maximum(np.array(table.factors.logic_overhead.quantity) - 1, 0)
    areas = array + vector + control
    leaks = sram_mw + logic_mw * areas[:, :1]
    for macro in macros:
        areas = areas + macro
    price = figures[4 + len(PORTS) :, :, None]
    result, at = np.zeros((*cycles.shape, 3)), 0
    for names in GROUPS.values():
        group = np.zeros_like(result)
        for name in names:
            group = group + price[at] * counts[:, :, column[name], None]
            at += 1
        result = result + group
    seconds = cycles / (np.array([m.clock_mhz for m in machines]) * 1e6)[:, None]
    return Totals(result + leaks[:, None] * (seconds * 1e9)[:, :, None], areas, leaks)


def _figures(machine: Machine, table: EnergyTable) -> list[Quantity]:
    """What follows from process, widths and memories of a machine: um2 of a MAC and of a lane, mW that memories leak,
    mW that a mm2 of logic leaks, mm2 of each memory, and the prices in the order of `GROUPS`."""
    node, sizes, price = table.at(machine.process_nm), memories(machine), prices(machine, table)
    leaked = node.sram_uw * (sum(sizes.values()) / 1024 / 1000)
    macros = [node.sram_mm2(size, PORTS[name]) for name, size in sizes.items()]
    return [
        node.array_mac(machine.matrix.weight_bits, machine.matrix.activation_bits)[1],
        node.lane_um2,
        leaked,
        node.logic_mw,
        *macros,
        *(price[n] for g in GROUPS.values() for n in g),
    ]
