"""The simulated accelerator as a target: `--target npu:edge-16x16` or `npu:my_machine.yaml`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qcompiler.artifact import Artifact
from qcompiler.codegen.npu.lower import compile_npu
from qcompiler.codegen.npu.partition import partition
from qcompiler.progress import Progress
from qcompiler.sim import container, functional, hardware, reference, workload
from qcompiler.sim.errors import ArtifactError
from qcompiler.sim.hardware import Machine
from qcompiler.sim.integer_program import IntegerProgram
from qcompiler.sim.program import NpuProgram
from qcompiler.sim.widths import Widths
from qcompiler.targets import NPU_PREFIX, Built

PROGRAM_FILE, REPORT_FILE, TABLE_FILE, MACHINE_FILE = "model.npu", "simulation.html", "simulation.csv", "machine.yaml"
# The functional simulator does some 200 MMAC/s: larger models are not run on every calibration sample.
EXECUTE_MACS = 200e6


@dataclass(frozen=True)
class NpuBackend:
    """One machine. The artefact gets the program, the machine, and what a simulated run of it costs.

    host_fallback: float operations before or behind all integer work are the host's.
    """

    name: str
    machine: Machine
    architecture: str = ""
    macs_to_measure: float = 1e9
    host_fallback: bool = False

    @property
    def widths(self) -> Widths:
        return self.machine.matrix.widths

    def build(self, program: IntegerProgram, directory: Path, prefix: str, progress: Progress) -> Built:
        from qcompiler.report.npu import render
        from qcompiler.simulation import measure, to_csv

        with progress.stage(f"compile for {self.machine.name}"):
            compiled = compile_npu(program, self.machine, self.host_fallback)
        container.save(compiled, directory / PROGRAM_FILE)
        (directory / MACHINE_FILE).write_text(hardware.to_yaml(self.machine), encoding="utf-8")
        with progress.stage("simulate"):
            result = measure(compiled)
        (directory / REPORT_FILE).write_text(render(result), encoding="utf-8")
        (directory / TABLE_FILE).write_text(to_csv(result), encoding="utf-8")
        kernels = {
            op.name: (layer.geometry.kind, layer.name)
            for layer in workload.extract(partition(program, self.host_fallback).core)
            for op in layer.operations
        }
        size = (directory / PROGRAM_FILE).stat().st_size
        return Built(compiled.main_bytes, kernels, {"program": size, "main memory": compiled.main_bytes})

    def executor(self, artifact: Artifact) -> Any:
        program = artifact.program()
        if sum(program.macs(op) for op in program.operations) > EXECUTE_MACS:
            return None
        return Executor(program, load_program(artifact)).run


def backend(name: str, host_fallback: bool = False) -> NpuBackend:
    """The backend of a target name with `NPU_PREFIX`. Raises HardwareError for an unknown or wrong machine."""
    return NpuBackend(name, hardware.load(name[len(NPU_PREFIX) :]), host_fallback=host_fallback)


def load_program(artifact: Artifact) -> NpuProgram:
    """The accelerator's program of an artefact. Raises ArtifactError for one that was compiled for a CPU."""
    if not artifact.manifest.target.startswith(NPU_PREFIX):
        raise ArtifactError(
            f"{artifact.directory} was compiled for {artifact.manifest.target}, which no simulator runs; "
            f"compile with --target {NPU_PREFIX}edge-16x16 or another machine of `qcompiler targets`"
        )
    return container.load(artifact.path(PROGRAM_FILE))


class Executor:
    """Runs samples through the functional simulator, host operations before and behind included."""

    def __init__(self, program: IntegerProgram, compiled: NpuProgram) -> None:
        self.program, self.compiled = program, compiled
        self.parts = partition(program, host_fallback=True)

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """All outputs of the program for one set of inputs."""
        values = dict(inputs)
        for part in (self.parts.before, None, self.parts.after):
            if part is None:
                core = {port.name: values[port.name] for port in self.compiled.inputs}
                values |= functional.execute(self.compiled, core)
            elif part.operations:
                values |= reference.execute(part, {n: values[n] for n in part.inputs})
        return {n: values[n] for n in self.program.outputs}
