"""What `--target` may say, and the backend behind each family of targets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from qcompiler.artifact import Artifact
from qcompiler.codegen.host import host_architecture
from qcompiler.sim.errors import TargetError, did_you_mean
from qcompiler.sim.integer_program import IntegerProgram
from qcompiler.sim.widths import Widths

if TYPE_CHECKING:
    from qcompiler.codegen.cpu.tune import Tuned
    from qcompiler.progress import Progress

NPU_PREFIX = "npu:"  # a preset of `qcompiler.sim.hardware`, or the path of a machine's YAML file
Execute = Callable[[Mapping[str, Any]], Mapping[str, Any]]


@dataclass(frozen=True)
class Limits:
    """What a device has for the model, in bytes; None: not stated."""

    flash_bytes: int | None = None
    ram_bytes: int | None = None


@dataclass(frozen=True)
class Built:
    """What a backend left in the output directory. workspace_bytes: working memory of a call. kernels: operation name
    to (kernel, name of the group that it is fused into). sizes: bytes of the product's parts, for the report. steps: of
    a CPU's library, by level and in its numbering: kernel, operation, level of the code, macs, bytes. tuning: for the
    manifest, the level and by operation the tile that measuring preferred."""

    workspace_bytes: int
    kernels: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    steps: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    tuning: Mapping[str, Any] | None = None


class Backend(Protocol):
    """name: the target as the user gave it. architecture: the machine word of `uname -m`, "" for an accelerator.
    macs_to_measure: how much work to spend on measuring the outputs' accuracy: a few seconds of `executor`.
    widths: of an accelerator's operands; None where any integers of int8 will do."""

    @property
    def name(self) -> str: ...

    @property
    def architecture(self) -> str: ...

    @property
    def macs_to_measure(self) -> float: ...

    @property
    def widths(self) -> Widths | None: ...

    def build(self, program: IntegerProgram, directory: Path, prefix: str, progress: Progress) -> Built:
        """Compile into an existing directory."""

    def executor(self, artifact: Artifact) -> Execute | None:
        """Runs the product on this machine, or None when it cannot run here."""


@dataclass(frozen=True)
class Listed:
    """A row of `qcompiler targets`."""

    name: str
    description: str
    runs_here: bool


def known_targets() -> list[Listed]:
    """Every target by name, in the order of the documentation."""
    from qcompiler.codegen.cpu.target import CPU_TARGETS
    from qcompiler.codegen.mcu.target import MCU_TARGETS
    from qcompiler.microcontroller import missing_to_run
    from qcompiler.sim import hardware

    here = host_architecture()
    cpus = [
        Listed(name, target.description, target.architecture == here and target.supported_here())
        for name, target in CPU_TARGETS.items()
    ]
    cpus += [Listed(n, t.description, t.board is None and missing_to_run(t) is None) for n, t in MCU_TARGETS.items()]
    machines = [
        Listed(f"{NPU_PREFIX}{name}", " ".join(hardware.load(name).description.split()), True)
        for name in hardware.preset_names()
    ]
    return cpus + machines


def resolve(name: str, host_fallback: bool = False, limits: Limits | None = None, tune: float | None = None) -> Backend:
    """The backend for a target. Raises TargetError with the nearest names for one that does not exist.

    host_fallback: what an accelerator may leave to its host (`codegen.npu.partition`); CPUs run everything anyway.
    limits: of a micro-controller. tune: seconds to spend on measuring tiles on this machine, which must run the target.
    """
    from qcompiler.codegen.cpu.target import CPU_TARGETS, cpu_target

    if name not in CPU_TARGETS or limits not in (None, Limits()):  # what else there is takes a while to import
        return _other(name, host_fallback, limits or Limits(), tune)
    cpu = CpuBackend(name, cpu_target(name), tune)
    if tune is not None and cpu.level_here() is None:
        raise TargetError(
            f"--tune measures on this machine, which cannot run {name}; leave it out, or compile elsewhere"
        )
    return cpu


def _other(name: str, host_fallback: bool, limits: Limits, tune: float | None) -> Backend:
    """`resolve` for what is no CPU with an operating system."""
    from qcompiler.codegen.mcu.target import MCU_TARGETS

    if limits != Limits() and name not in MCU_TARGETS:
        raise TargetError(
            f"--flash-limit and --ram-limit are for micro-controllers ({', '.join(MCU_TARGETS)}), not for {name}"
        )
    if tune is not None and (name.startswith(NPU_PREFIX) or name in MCU_TARGETS):
        raise TargetError(f"--tune measures on this machine, and {name} is another; leave it out")
    if name.startswith(NPU_PREFIX):
        from qcompiler.npu import backend

        return backend(name, host_fallback)
    if name in MCU_TARGETS:
        from qcompiler.microcontroller import McuBackend

        return McuBackend(MCU_TARGETS[name], limits)
    names = [t.name for t in known_targets()]
    raise TargetError(f"unknown target {name!r}; `qcompiler targets` lists what there is{did_you_mean(name, names)}")


@dataclass(frozen=True)
class CpuBackend:
    """A CPU: an object file, a static and a shared library, and a C header."""

    name: str
    target: Any
    tune: float | None = None  # seconds
    widths: Widths | None = None

    @property
    def macs_to_measure(self) -> float:
        return 100e9 if self.architecture == host_architecture() else 50e6

    @property
    def architecture(self) -> str:
        return str(self.target.architecture)

    def build(self, program: IntegerProgram, directory: Path, prefix: str, progress: Progress) -> Built:
        from qcompiler.codegen import aot

        tuned = self._tune(program, progress) if self.tune is not None else None
        chosen = {tuned.level: tuned.chosen} if tuned else None
        report = aot.build(program, self.target, directory, prefix, progress, chosen)
        library = directory / "model.so"
        if report.missing is not None:
            progress.note(
                f"{self.name}: only the kernels' object files, model.h and the C sources around them were written; "
                f"{report.missing} is not on the PATH. Install it (on Debian: apt-get install "
                f"{' '.join(self.target.toolchain.packages)}), then compile again, or run `make library` in the output"
            )
        record = None
        if tuned:
            tiles = {tuned.operations[geometry]: repr(tiling) for geometry, tiling in tuned.chosen.items()}
            record = {"level": tuned.level, "tiles": tiles}
        return Built(
            report.workspace_bytes,
            {op.name: (op.kernel, op.group) for op in report.operations},
            {**({"library": library.stat().st_size} if library.exists() else {}), "arena": report.arena_bytes},
            {level: [asdict(step) for step in steps] for level, steps in report.steps.items()},
            record,
        )

    def level_here(self) -> Any:
        """The level that this machine would choose, or None."""
        from qcompiler.codegen.cpu.measure import request_state
        from qcompiler.codegen.cpu.target import runs_here

        mine = self.target.levels if self.architecture == host_architecture() else ()
        return next((level for level in mine if runs_here(level) and request_state(level)), None)

    def _tune(self, program: IntegerProgram, progress: Progress) -> Tuned:
        from qcompiler.codegen.cpu.tune import tune

        level = self.level_here()
        assert self.tune is not None and level is not None
        with progress.stage(f"tune {level.name}"):
            tuned = tune(program, level, self.tune, progress.note)
        if tuned.measured:
            progress.note(
                f"tuned: {len(tuned.chosen)} shapes cut otherwise than by the model; those measured now took "
                f"{tuned.before * 1e3:.3f} ms of an inference, and take {tuned.after * 1e3:.3f} ms"
            )
        else:
            progress.note(f"tuned: nothing new to measure; {len(tuned.chosen)} shapes cut otherwise than by the model")
        return tuned

    def executor(self, artifact: Artifact) -> Execute | None:
        if self.architecture != host_architecture():
            from qcompiler import emulation

            return emulation.Model(artifact).run if emulation.missing_tool(self.architecture) is None else None
        if not self.target.supported_here():
            return None
        from qcompiler.library import Model

        return Model(artifact).run
