"""`qcompiler hardware`: machines of the simulated accelerator."""

from __future__ import annotations

import json
from pathlib import Path

from qcompiler.sim import energy, hardware
from qcompiler.sim.energy import Quantity
from qcompiler.sim.hardware import Machine


def show(name: str) -> None:
    """Print a machine as YAML, what follows from it as comments: the output is a machine's file again."""
    machine = hardware.load(name)
    for line in summary(machine):
        print(f"# {line}")
    print(hardware.to_yaml(machine), end="")


def summary(machine: Machine) -> list[str]:
    """Peak, bandwidth, area and leakage, a line each."""
    table = energy.load_table()
    total = Quantity(0.0, 0.0, 0.0)
    for part in energy.area(machine, table).values():
        total = total.plus(part)
    leakage = energy.static_power(machine, table)
    peak, clock = machine.matrix.macs_per_cycle, machine.clock_mhz
    main = machine.main_memory
    lines = [
        f"peak: {peak} MACs a cycle, {2 * peak * clock * 1e-6:.3g} TOPS at {clock:g} MHz",
        f"array: {machine.matrix.widths}",
        f"main memory: {main.read_bytes_per_cycle * clock * 1e-3:.3g} GB/s read, "
        f"{main.write_bytes_per_cycle * clock * 1e-3:.3g} GB/s write",
    ]
    if machine.constant_memory is not None:
        rate = machine.constant_memory.read_bytes_per_cycle * clock * 1e-3
        lines.append(f"constant memory: {rate:.3g} GB/s read")
    return [
        *lines,
        f"area: {total.value:.3g} mm2 ({total.low:.3g}..{total.high:.3g}), leakage: {leakage.value:.3g} mW "
        f"({leakage.low:.3g}..{leakage.high:.3g}) at {machine.process_nm} nm",
    ]


def check(path: Path) -> None:
    """Load a machine's file; HardwareError says what is wrong with it."""
    machine = hardware.load(path)
    print(f"{path}: machine {machine.name!r} is right")
    for line in summary(machine):
        print(f"  {line}")


def schema() -> None:
    """Print the JSON Schema of a machine's file."""
    print(json.dumps(hardware.json_schema(), indent=2))
