"""Targets that are C source: `cortex-m4` and its like, which qemu emulates, and `c99`, which this machine runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from qcompiler.artifact import Artifact
from qcompiler.codegen.mcu.build import McuReport, build, missing_tool
from qcompiler.codegen.mcu.example import BOARD, around_model, board_files, qemu_command
from qcompiler.codegen.mcu.lower import lower
from qcompiler.codegen.mcu.target import MCU_TARGETS, McuTarget
from qcompiler.data import fit
from qcompiler.progress import Progress
from qcompiler.sim.errors import ArtifactError, TargetError
from qcompiler.sim.integer_program import IntegerProgram
from qcompiler.sim.widths import Widths
from qcompiler.targets import Built, Execute, Limits

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class McuBackend:
    """C source, and where the compiler is installed an object file and a static library, for one core.

    limits: bytes of flash and RAM that the device has for the model.
    """

    target: McuTarget
    limits: Limits = Limits()
    widths: Widths | None = None

    @property
    def name(self) -> str:
        return self.target.name

    @property
    def architecture(self) -> str:
        return self.target.architecture

    @property
    def macs_to_measure(self) -> float:
        return 2e9 if self.target.board is None else 50e6

    def build(self, program: IntegerProgram, directory: Path, prefix: str, progress: Progress) -> Built:
        with progress.stage(f"C for {self.name}"):
            report = build(program, self.target, directory, prefix)
        if report.missing is not None:
            progress.note(
                f"{self.name}: only the C source and its header were written; for model.o and libmodel.a, "
                f"{report.missing} is not on the PATH (on Debian: apt-get install {' '.join(self.target.packages)})"
            )
        sizes = memory_sizes(program, report)
        check_limits(self.target, self.limits, sizes, report)
        return Built(report.workspace_bytes, report.kernels, sizes)

    def executor(self, artifact: Artifact) -> Execute | None:
        return Model(artifact).run if missing_to_run(self.target) is None else None


def memory_sizes(program: IntegerProgram, report: McuReport) -> dict[str, int]:
    """Bytes by name, for the report. Flash is code and constants; RAM the workspace, the arrays that the caller hands
    in and takes out, and the stack."""
    sizes = {"constants": report.constant_bytes, "arena": report.arena_bytes}
    if report.code_bytes is not None:
        sizes |= {"code": report.code_bytes, "flash": report.code_bytes + report.constant_bytes}
    sizes["inputs"] = sum(program.tensors[n].bytes for n in program.inputs)
    sizes["outputs"] = sum(program.tensors[n].bytes for n in program.outputs)
    sizes["ram"] = report.workspace_bytes + sizes["inputs"] + sizes["outputs"] + (report.stack_bytes or 0)
    if report.stack_bytes is not None:
        sizes["stack"] = report.stack_bytes
    return sizes


def check_limits(target: McuTarget, limits: Limits, sizes: Mapping[str, int], report: McuReport) -> None:
    """Raises TargetError when the model needs more flash or RAM than there is."""
    flash = sizes.get("flash", sizes["constants"])
    if limits.flash_bytes is not None and flash > limits.flash_bytes:
        code = f"{sizes['code']:,} of code" if "code" in sizes else "code not counted: no compiler"
        raise TargetError(
            f"the model needs {flash:,} bytes of flash on {target.name} ({sizes['constants']:,} of weights and tables, "
            f"{code}), {flash - limits.flash_bytes:,} more than --flash-limit {limits.flash_bytes:,}; "
            f"most of it is {report.largest}"
        )
    if limits.ram_bytes is not None and sizes["ram"] > limits.ram_bytes:
        arrays = [f"{sizes[n]:,} of {n}" for n in ("inputs", "outputs", "stack") if sizes.get(n)]
        parts = ", ".join([f"{report.workspace_bytes:,} of working memory", *arrays])
        raise TargetError(
            f"the model needs {sizes['ram']:,} bytes of RAM on {target.name} ({parts}), "
            f"{sizes['ram'] - limits.ram_bytes:,} more than --ram-limit {limits.ram_bytes:,}; "
            f"the arena is fullest in {report.peak}"
        )


# -------------------------------------------------------------------------------------------------- running
def missing_to_run(target: McuTarget) -> str | None:
    """The first program that running an artefact of the target lacks here."""
    if target.board is not None and shutil.which("qemu-system-arm") is None:
        return "qemu-system-arm"
    return missing_tool(target)


def target_of(artifact: Artifact) -> McuTarget | None:
    """The micro-controller that an artefact was compiled for, None for other targets."""
    return MCU_TARGETS.get(artifact.manifest.target)


_NANOSECONDS_LOG2 = 6  # of an instruction under qemu -icount: ticks of SysTick then count them one by one


class Model:
    """Runs the artefact in a process that lives as long as this object: on an emulated board, or on this machine.

    count: have qemu count the instructions of each step; `steps` has them after a run, in the order of `lower`.
    Raises TargetError when qemu or the compiler is missing.
    """

    def __init__(self, artifact: Artifact, count: bool = False) -> None:
        target = target_of(artifact)
        assert target is not None
        self.artifact, self.target = artifact, target
        self._counted = len(lower(artifact.program(), target).steps) if count and target.board else 0
        self.steps: list[int] = []
        if (tool := missing_to_run(target)) is not None:
            packages = " ".join((*target.packages, *(("qemu-system-arm",) if target.board else ())))
            raise TargetError(
                f"{artifact.directory} was compiled for {target.name}; running it here needs {tool}, which is not on "
                f"the PATH (on Debian: apt-get install {packages})"
            )
        self._folder = tempfile.TemporaryDirectory(prefix="qcompiler-")
        folder = Path(self._folder.name)
        self._link(folder)
        self._errors = (folder / "errors").open("w+b")
        if target.board is None:
            self.emulator = ""
            self._process = self._start([str(folder / "runner")], subprocess.PIPE)
            assert self._process.stdin is not None and self._process.stdout is not None
            self._inputs: IO[bytes] = self._process.stdin
            self._outputs: IO[bytes] = self._process.stdout
            return
        command = qemu_command(target.board)
        self.emulator = " ".join(command[:3])
        if self._counted:
            command += ["-icount", f"shift={_NANOSECONDS_LOG2}"]
        for name in ("inputs", "outputs"):
            os.mkfifo(folder / name)
        # Opened for both directions, a pipe never waits for the other side; qemu's end is seen from its exit.
        self._outputs = os.fdopen(os.open(folder / "outputs", os.O_RDWR), "rb", buffering=0)
        self._inputs = os.fdopen(os.open(folder / "inputs", os.O_RDWR), "wb", buffering=0)
        self._process = self._start([*command, "-kernel", str(folder / "runner")], subprocess.DEVNULL)

    def _start(self, command: list[str], pipe: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=self._errors, cwd=self._folder.name)

    def _link(self, folder: Path) -> None:
        manifest, target = self.artifact.manifest, self.target
        text = around_model("runner.c", len(manifest.inputs), len(manifest.outputs), manifest.name)
        (folder / "runner.c").write_text(text, encoding="ascii")
        sources, options = ["runner.c"], ["-O1", "-std=c99"]
        if target.board is not None:
            for name, content in board_files(target.board).items():
                (folder / name).write_text(content, encoding="ascii")
            sources.append("startup.c")
            options += ["-DBOARD", "-nostartfiles", "-T", "board.ld", "-Wl,--gc-sections"]
        library = self.artifact.path("libmodel.a").resolve()
        product = [str(library)]
        if self._counted:
            names = [n for n in manifest.files if n == "model.c" or (n.startswith("qc_") and n.endswith(".c"))]
            product = [str(self.artifact.path(n).resolve()) for n in sorted(names)]
            options += ["-O2", f"-DCOUNT={self._counted}", "-include", str(BOARD / "count.h")]
        command = [
            f"{target.compiler}gcc", *target.flags, *options, f"-I{library.parent}", *sources, *product, "-o", "runner",
        ]  # fmt: skip
        result = subprocess.run(command, capture_output=True, text=True, cwd=folder)
        if result.returncode:
            raise ArtifactError(f"{library} cannot be linked by {command[0]}: {result.stderr.strip()[-500:]}")

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Array]:
        """The outputs for these inputs (a missing leading axis of 1 is added). Raises CalibrationError, TargetError."""
        manifest = self.artifact.manifest
        data = b"".join(
            np.ascontiguousarray(fit(np.asarray(inputs[t.name]), t, f"input {t.name!r}")).tobytes()
            for t in manifest.inputs
        )
        total = sum(t.bytes for t in manifest.outputs)
        received = self._exchange(data, total + 4 * self._counted)
        if self._counted:
            assert self.target.board is not None
            nanoseconds = np.frombuffer(received[total:], "<u4") * (1000 / self.target.board.clock_mhz)
            self.steps = [round(n) for n in nanoseconds / 2**_NANOSECONDS_LOG2]
        outputs, at = {}, 0
        for tensor in manifest.outputs:
            part = received[at : at + tensor.bytes]
            at += tensor.bytes
            outputs[tensor.name] = np.frombuffer(part, tensor.dtype).reshape(tensor.shape).copy()
        return outputs

    def _exchange(self, data: bytes, total: int) -> bytes:
        """Write and read at once, so that neither side waits on a full pipe."""
        import selectors

        received = bytearray()
        rest = memoryview(data)
        with selectors.DefaultSelector() as selector:
            selector.register(self._outputs, selectors.EVENT_READ)
            selector.register(self._inputs, selectors.EVENT_WRITE)
            while len(received) < total or rest:
                events = selector.select(timeout=0.2)
                if not events and self._process.poll() is not None:
                    raise self._failed()
                for key, _ in events:
                    if key.fileobj is self._outputs:
                        part = os.read(key.fd, total - len(received))
                        if not part:
                            raise self._failed()
                        received += part
                    else:
                        try:
                            # At most what fits into the pipe at once: a longer write could block.
                            rest = rest[os.write(key.fd, rest[:4096]) :]
                        except BrokenPipeError:
                            raise self._failed() from None
                        if not rest:
                            selector.unregister(self._inputs)
        return bytes(received)

    def _failed(self) -> TargetError:
        self._process.wait()
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip()
        how = f", emulated by {self.emulator}" if self.emulator else ""
        return TargetError(
            f"{self.artifact.directory}{how}: {said or f'it ended with status {self._process.returncode}'}"
        )

    def close(self) -> None:
        """End the process."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for stream in (self._inputs, self._outputs, self._errors):
            try:
                stream.close()
            except BrokenPipeError:
                pass
        self._folder.cleanup()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def print_profile(artifact: Artifact, sample: Mapping[str, Any]) -> None:
    """Print how many instructions each step executes on the emulated core."""
    target = target_of(artifact)
    assert target is not None
    program = artifact.program()
    steps = lower(program, target).steps
    with Model(artifact, count=True) as model:
        model.run(sample)
        counts = model.steps
    print(f"profile   instructions of one inference, counted by {model.emulator}; a core's time is another matter")
    titles = [
        f"{s.call.function.removeprefix('qc_')} {s.operations[-1].name if s.operations else s.output}" for s in steps
    ]
    width = max(map(len, titles), default=0)
    for title, step, count in zip(titles, steps, counts, strict=True):
        macs = sum(program.macs(op) for op in step.operations)
        each = f"  {count / macs:5.2f} a multiply-accumulate" if macs else ""
        print(f"  {title:<{width}}  {count:>12,}  {count / sum(counts):6.1%}{each}")
    print(f"  {'all':<{width}}  {sum(counts):>12,}")
