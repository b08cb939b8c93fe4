"""`qcompiler run --profile`: where the time of an inference goes, step by step, beside what the machine could do.

Work and bytes of each step come from the artefact's report. Two facts of the machine are measured on the spot: the
peak of each instruction-set level in use (`codegen.cpu.peak`; it needs the compiler, so an installation that can only
run models goes without), and the speed of memory over as many bytes as the model touches.
"""

from __future__ import annotations

import csv
import importlib.util
import os
import shutil
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qcompiler.library import Model
from qcompiler.output import new_file
from qcompiler.sim.errors import ArtifactError

BATCHES, BATCH_SECONDS, MOST_REPEATS = 5, 0.2, 200


@dataclass(frozen=True)
class Machine:
    """peaks: multiply-accumulates a second of one core by instruction-set level, empty when `why_no_peak`; bandwidth:
    bytes read and written a second by one core, of a working set of `working_set` bytes; threads of an inference."""

    peaks: Mapping[str, float]
    why_no_peak: str
    bandwidth: float
    working_set: int
    threads: int


@dataclass(frozen=True)
class StepProfile:
    """One kernel call. level: whose instructions it is made of; seconds: of one inference; bytes: of activations and
    constants, each read or written once."""

    kernel: str
    operation: str
    level: str
    macs: int
    bytes: int
    seconds: float

    @property
    def macs_per_second(self) -> float:
        return self.macs / self.seconds if self.seconds else 0.0

    @property
    def bytes_per_second(self) -> float:
        return self.bytes / self.seconds if self.seconds else 0.0

    def share_of_peak(self, machine: Machine) -> float | None:
        """Of one core times the threads; None without work or without a measured peak."""
        peak = machine.peaks.get(self.level)
        return self.macs_per_second / (peak * machine.threads) if peak and self.macs else None

    def bound(self, machine: Machine) -> str:
        """What takes longer at the machine's best: "compute" or "memory"; "" when nobody can say."""
        if not self.macs:
            return "memory"
        peak = machine.peaks.get(self.level)
        if not peak:
            return ""
        return "compute" if self.macs / peak >= self.bytes / machine.bandwidth else "memory"


def profile(model: Model) -> tuple[list[StepProfile], int]:
    """The steps in order and how many inferences were timed, on what the inputs hold.

    Each step's time is the median of the means of a few batches: an interruption spoils one batch, not the result.
    Raises ArtifactError for an artefact of an older version, whose report does not list the steps.
    """
    known = model.artifact.report().get("steps", {}).get(model.isa)
    if known is None:
        raise ArtifactError(f"{model.artifact.directory} was compiled without what a profile needs; compile it again")
    started = time.perf_counter()
    model.invoke()
    seconds = max(time.perf_counter() - started, 1e-7)
    repeats = max(1, min(MOST_REPEATS, int(BATCH_SECONDS / seconds)))
    batches = [[t for _, t in model.profile(repeats)] for _ in range(BATCHES)]
    steps = [StepProfile(**step, seconds=statistics.median(t)) for step, t in zip(known, zip(*batches, strict=True),
             strict=True)]  # fmt: skip
    return steps, repeats * BATCHES


def measure_machine(model: Model, threads: int, levels: Iterable[str]) -> Machine:
    """What this machine could do: a tenth of a second, besides importing and using the compiler for the peaks."""
    manifest = model.artifact.manifest
    weights = int(model.artifact.report()["sizes"]["weights"])
    working_set = weights + manifest.workspace_bytes
    peaks, why = _peaks(levels)
    return Machine(peaks, why, _bandwidth(working_set), working_set, threads)


def _peaks(levels: Iterable[str]) -> tuple[dict[str, float], str]:
    if importlib.util.find_spec("tvm") is None:
        return {}, "no peak: measuring it needs TVM, which is not installed here"
    if shutil.which("cc") is None:
        return {}, "no peak: measuring it needs a C compiler, and there is no cc on the PATH"
    from qcompiler.codegen.cpu.peak import peak
    from qcompiler.codegen.cpu.target import CPU_TARGETS

    known = {level.name: level for target in CPU_TARGETS.values() for level in target.levels}
    return {name: peak(known[name]) for name in dict.fromkeys(levels) if name in known}, ""


def _bandwidth(working_set: int) -> float:
    """Bytes read and written a second when half as many are copied to as many others again and again."""
    half = max(working_set // 2, 1 << 16)  # below, the call takes longer than the copy
    source, target = np.ones(half, np.uint8), np.zeros(half, np.uint8)
    best, until = float("inf"), time.perf_counter() + 0.05
    while time.perf_counter() < until:
        started = time.perf_counter()
        np.copyto(target, source)
        best = min(best, time.perf_counter() - started)
    return 2 * half / best


# ---------------------------------------------------------------------------------------------- telling
def text(steps: Sequence[StepProfile], machine: Machine, count: int, by_time: bool) -> str:
    """The table for people: steps, then kernel families."""
    total = sum(s.seconds for s in steps)
    peaks = ", ".join(f"{level} {value / 1e9:.0f} GMAC/s" for level, value in machine.peaks.items())
    head = [
        f"profile   {count} inferences on the last sample, each step timed; "
        + (f"peak of one core: {peaks}" if peaks else machine.why_no_peak),
        f"          memory: {machine.bandwidth / 1e9:.0f} GB/s of one core over the {_bytes(machine.working_set)} "
        "that the model touches",
    ]
    ordered = sorted(steps, key=lambda s: -s.seconds) if by_time else list(steps)
    rows = [(f"{s.kernel} {s.operation}", *_figures(s, machine, total), s.bound(machine)) for s in ordered]
    families: dict[tuple[str, str], list[StepProfile]] = {}
    for step in steps:
        families.setdefault((step.kernel, step.level), []).append(step)
    sums = [
        StepProfile(kernel, str(len(group)), level, sum(s.macs for s in group), sum(s.bytes for s in group),
                    sum(s.seconds for s in group))
        for (kernel, level), group in families.items()
    ]  # fmt: skip
    sums.sort(key=lambda s: -s.seconds)
    kinds = [(f"{s.kernel} x{s.operation} ({s.level})", *_figures(s, machine, total), "") for s in sums]
    whole = StepProfile("", "", "", sum(s.macs for s in steps), sum(s.bytes for s in steps), total)
    last = ("all steps", *_figures(whole, machine, total), "")
    columns = ("time", "share", "GMAC/s", "of peak", "moved", "GB/s", "bound")
    return "\n".join([*head, "", *_aligned([("step", *columns), *rows]), "",
                      *_aligned([("kernel", *columns[:-1], ""), *kinds, last])])  # fmt: skip


def _figures(step: StepProfile, machine: Machine, total: float) -> tuple[str, ...]:
    share = step.share_of_peak(machine)
    return (
        f"{step.seconds * 1e6:.1f} µs", f"{step.seconds / total:.1%}" if total else "",
        f"{step.macs_per_second / 1e9:.1f}" if step.macs else "", "" if share is None else f"{share:.0%}",
        _bytes(step.bytes), f"{step.bytes_per_second / 1e9:.1f}",
    )  # fmt: skip


def _bytes(count: int) -> str:
    return f"{count / 1024:.1f} KiB" if count < 1 << 20 else f"{count / (1 << 20):.1f} MiB"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        .rstrip()
        for row in rows
    ]  # fmt: skip


def write_csv(path: Path, steps: Sequence[StepProfile], machine: Machine) -> None:
    """One row a step, in order of execution, in plain units."""
    columns = ("step", "kernel", "operation", "level", "seconds", "macs", "bytes", "macs_per_second", "share_of_peak",
               "bytes_per_second", "bound")  # fmt: skip
    with new_file(path) as work, work.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator=os.linesep)
        writer.writerow(columns)
        for i, s in enumerate(steps):
            share = s.share_of_peak(machine)
            writer.writerow([
                i, s.kernel, s.operation, s.level, f"{s.seconds:.9g}", s.macs, s.bytes, f"{s.macs_per_second:.6g}",
                "" if share is None else f"{share:.4f}", f"{s.bytes_per_second:.6g}", s.bound(machine),
            ])  # fmt: skip
