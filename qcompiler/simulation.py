"""`qcompiler simulate`: what a compiled program costs on its machine: cycles, traffic and energy by layer and cause."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from qcompiler.artifact import Artifact, open_artifact
from qcompiler.output import new_file
from qcompiler.sim import energy, hardware, timing
from qcompiler.sim.energy import Quantity
from qcompiler.sim.errors import ProgramError, TargetError
from qcompiler.sim.hardware import Machine
from qcompiler.sim.isa.base import COUNTERS
from qcompiler.sim.program import NpuProgram
from qcompiler.sim.timing import Timeline
from qcompiler.sim.widths import FULL

# What a cycle of the critical path was spent on, from the unit and its cause.
CAUSES = {
    "matrix": "the array works",
    "vector": "the vector lanes work",
    "bandwidth": "data moves to or from an external memory, or is rearranged on chip",
    "latency": "the first data of a transfer, or its response, is under way",
    "fill": "weights shift into the array, results leave a pipeline",
    "control": "dispatch, fences, limits of outstanding transfers",
}
_TRANSFER_UNITS = ("load", "fetch", "store")
GROUPS = ("mac", "vector", "sram", "dram", "static")
_SRAM = ("activation", "weight", "parameter", "accumulator")


@dataclass(frozen=True)
class LayerCost:
    """One layer. cycles: its part of the critical path, by cause (`CAUSES`). energy: pJ by group. sram_bytes: of all
    on-chip memories. roofline: the fewest cycles that array and external bandwidth allow."""

    name: str
    kind: str
    macs: int
    cycles: Mapping[str, int]
    read_bytes: int
    write_bytes: int
    sram_bytes: int
    energy: Mapping[str, float]
    roofline: int
    utilisation: float

    @property
    def total(self) -> int:
        return sum(self.cycles.values())

    @property
    def achieved(self) -> float:
        """Roofline cycles over cycles: 1 is as fast as the machine allows."""
        return self.roofline / self.total if self.total else 1.0


@dataclass(frozen=True, eq=False)
class Result:
    """A simulated run. energy in pJ, area in mm2, both with their uncertainty."""

    program: NpuProgram
    machine: Machine
    timeline: Timeline
    layers: list[LayerCost]
    energy: energy.Energy
    area: Mapping[str, Quantity]

    @property
    def cycles(self) -> int:
        return self.timeline.cycles

    @property
    def macs(self) -> int:
        return sum(layer.macs for layer in self.layers)

    @property
    def utilisation(self) -> float:
        return self.macs / (self.cycles * self.machine.matrix.macs_per_cycle)

    @property
    def milliseconds(self) -> float:
        return self.timeline.seconds * 1e3

    @property
    def millijoules(self) -> Quantity:
        return self.energy.total * 1e-9

    @property
    def milliwatts(self) -> Quantity:
        return self.millijoules * (1e3 / self.milliseconds)

    @property
    def square_millimetres(self) -> Quantity:
        total = Quantity(0.0, 0.0, 0.0)
        for part in self.area.values():
            total = total.plus(part)
        return total

    @property
    def tops_per_watt(self) -> Quantity:
        """Useful operations (two a MAC) per joule, in 1e12."""
        value, low, high = (2 * self.macs / (pj * 1e-12) * 1e-12 if pj else 0.0 for pj in self.energy.total)
        return Quantity(value, high, low)


def cause(name: str) -> str:
    """The group of a critical-path cause such as ``matrix_busy`` or ``load_latency``."""
    unit, _, what = name.partition("_")
    if what == "busy":
        return unit if unit in ("matrix", "vector") else "bandwidth"
    if what == "latency":
        return "latency"
    return "fill" if what in ("weight_load", "drain") else "control"


def measure(program: NpuProgram, machine: Machine | None = None) -> Result:
    """Time the program (on `machine` instead of its own where given) and price what it does."""
    machine = machine or program.machine
    timeline = timing.simulate(program, machine)
    table = energy.load_table()
    counts = energy.count(program, machine)
    split = timing.critical_path(timeline)
    column = {name: i for i, name in enumerate(COUNTERS)}
    layers = []
    for info, row, causes in zip(program.layers, counts, split, strict=True):
        cycles = dict.fromkeys(CAUSES, 0)
        for name, n in causes.items():
            cycles[cause(name)] += n
        total = sum(cycles.values())
        spent = energy.energy(row, total, machine, table)
        read = int(row[column["main_read_bytes"]] + row[column["constant_read_bytes"]])
        written = int(row[column["main_write_bytes"]])
        sram = sum(int(row[column[f"{m}_{way}_bytes"]]) for m in _SRAM for way in ("read", "write"))
        peak = machine.matrix.macs_per_cycle
        layers.append(
            LayerCost(
                info.name, info.kind, info.macs, cycles, read, written, sram,
                {g: spent.groups[g].value for g in GROUPS}, roofline(info.macs, row, machine),
                info.macs / (total * peak) if total else 0.0,
            )
        )  # fmt: skip
    whole = energy.energy(counts.sum(axis=0), timeline.cycles, machine, table)
    return Result(program, machine, timeline, layers, whole, energy.area(machine, table))


def roofline(macs: int, counts: np.ndarray, machine: Machine) -> int:
    """The fewest cycles for these MACs on the array, or these bytes through each external channel."""
    column = {name: i for i, name in enumerate(COUNTERS)}
    main, constant = machine.main_memory, machine.constant_memory
    bounds = [
        -(-macs // machine.matrix.macs_per_cycle),
        main.read_cycles(int(counts[column["main_read_bytes"]])),
        main.write_cycles(int(counts[column["main_write_bytes"]])),
        constant.read_cycles(int(counts[column["constant_read_bytes"]])) if constant else 0,
    ]
    return int(max(bounds))


# ------------------------------------------------------------------------------------------- output
def to_csv(result: Result) -> str:
    """One line a layer: cycles by cause, bytes, energy in pJ by group."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([
        "layer", "kind", "macs", "cycles", *(f"{c}_cycles" for c in CAUSES), "utilisation", "roofline_cycles",
        "external_read_bytes", "external_write_bytes", "sram_bytes", *(f"{g}_pj" for g in GROUPS),
    ])  # fmt: skip
    for y in result.layers:
        writer.writerow([
            y.name, y.kind, y.macs, y.total, *y.cycles.values(), f"{y.utilisation:.4f}", y.roofline, y.read_bytes,
            y.write_bytes, y.sram_bytes, *(f"{v:.1f}" for v in y.energy.values()),
        ])  # fmt: skip
    return out.getvalue()


def band(q: Quantity, unit: str) -> str:
    """A value with its uncertainty."""
    return f"{q.value:.4g} {unit} ({q.low:.3g}..{q.high:.3g})"


def totals(result: Result) -> dict[str, str]:
    """The figures of the whole run, for people."""
    widths = result.machine.matrix.widths
    return {
        "machine": result.machine.name,
        "cycles": f"{result.cycles:,} ({result.milliseconds:.4g} ms at {result.machine.clock_mhz:g} MHz)",
        "utilisation": f"{result.utilisation:.1%} of {result.machine.matrix.macs_per_cycle} MACs a cycle"
        + (f" of {widths}" if widths != FULL else ""),
        "external traffic": f"{sum(y.read_bytes for y in result.layers):,} bytes read, "
        f"{sum(y.write_bytes for y in result.layers):,} written",
        "energy": band(result.millijoules, "mJ"),
        "power": band(result.milliwatts, "mW"),
        "area": band(result.square_millimetres, "mm²"),
        "efficiency": band(result.tops_per_watt, "TOPS/W"),
    }


def print_result(result: Result) -> None:
    """The table of layers and the totals, to stdout."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("layer", overflow="fold")
    headings = ("kind", "MACs", "cycles", *CAUSES, "util", "roof", "ext KiB", "SRAM KiB", "µJ", *GROUPS)
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "kind" else "right", no_wrap=True)
    for y in result.layers:
        picojoules = sum(y.energy.values())
        shares = [f"{v / picojoules:.0%}" if picojoules else "" for v in y.energy.values()]
        table.add_row(
            y.name, y.kind, f"{y.macs:,}" if y.macs else "", f"{y.total:,}",
            *(f"{n / y.total:.0%}" if n and y.total else "" for n in y.cycles.values()),
            f"{y.utilisation:.0%}" if y.macs else "", f"{y.achieved:.0%}",
            f"{(y.read_bytes + y.write_bytes) / 1024:,.1f}", f"{y.sram_bytes / 1024:,.1f}", f"{picojoules * 1e-6:,.3f}",
            *shares,
        )  # fmt: skip
    console = Console(soft_wrap=True, width=None if Console().is_terminal else 240)
    console.print(table)
    width = max(map(len, totals(result)))
    for name, value in totals(result).items():
        print(f"{name:<{width}}  {value}")


def simulate(artifact: Artifact | str | Path, machine: Machine | str | Path | None = None) -> Result:
    """What a compiled artefact costs on its machine, or on `machine`: a description, a preset or a YAML file.

    Raises ArtifactError for an artefact that is damaged or for a CPU, TargetError for a machine that differs in more
    than memories and clock, HardwareError for one that is wrong.
    """
    from qcompiler.npu import load_program

    opened = artifact if isinstance(artifact, Artifact) else open_artifact(artifact)
    compiled = load_program(opened)
    if machine is None:
        return measure(compiled)
    other = machine if isinstance(machine, Machine) else hardware.load(machine)
    try:
        return measure(compiled, other)
    except ProgramError as error:
        raise TargetError(
            f"{opened.directory} was compiled for {compiled.machine.name!r} and cannot run on {other.name!r}, which "
            f"differs in more than memories and clock ({error}); compile the model for it with --target npu:{machine}"
        ) from None


def simulate_artifact(
    directory: Path, data: Path | None, trace: Path | None, report: Path | None, machine: str | None
) -> None:
    """`qcompiler simulate`: print the table; optionally run samples, write the trace and the report page."""
    from qcompiler.npu import Executor

    artifact = open_artifact(directory)
    result = simulate(artifact, machine)
    print_result(result)
    if data is not None:
        _run(artifact, Executor(artifact.program(), result.program), data)
    if trace is not None:
        from qcompiler.sim.trace import to_bytes

        with new_file(trace) as work:
            work.write_bytes(to_bytes(result.timeline))
        print(f"trace             {trace} (open at https://ui.perfetto.dev)")
    if report is not None:
        from qcompiler.report.npu import render

        with new_file(report) as work:
            work.write_text(render(result), encoding="utf-8")
        print(f"report            {report}")


def _run(artifact: Artifact, executor: Any, data: Path) -> None:
    """Samples through the functional simulator, each compared with the reference to the last bit."""
    from qcompiler.data import Samples
    from qcompiler.sim import reference

    program = artifact.program()
    samples = Samples(data, {t.name: t for t in artifact.manifest.inputs}, "input")
    count = 0
    for sample in samples:
        got, wanted = executor.run(sample), reference.execute(program, sample)
        for name in program.outputs:
            if not np.array_equal(got[name], wanted[name]):
                raise RuntimeError(
                    f"sample {count}: output {name!r} of the accelerator differs from the reference in "
                    f"{int(np.sum(got[name] != wanted[name]))} elements; this is a bug in qcompiler, please report it"
                )
        if count == 0:
            for name, value in got.items():
                text = np.array2string(value, precision=4, threshold=24, edgeitems=4, separator=", ")
                print(f"{name}: {value.dtype}{list(value.shape)}, of the first sample:\n{text}")
        count += 1
    print(f"verified          {count} sample{'s' if count != 1 else ''} equal to the reference, bit for bit")
