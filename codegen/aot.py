"""Integer program to a stand-alone library: kernels, constants, driver and runtime, linked by the system's compiler.

Everything is made in a directory of its own inside the output directory and moved out at the end; equal programs
give equal bytes. The products name no TVM symbol and need only libc, libm and POSIX threads.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, Future
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from qcompiler.codegen.cpu.compile import BATCH, code_level, submit_kernels, worker_pool
from qcompiler.codegen.cpu.contraction import Geometry
from qcompiler.codegen.cpu.isa.base import VectorInstructionSet
from qcompiler.codegen.cpu.kernel import Kernel, Step
from qcompiler.codegen.cpu.lower import Lowered, lower
from qcompiler.codegen.cpu.matrix_work import Tiling, tilings
from qcompiler.codegen.cpu.object_cache import ObjectCache, kernel_digest, object_cache
from qcompiler.codegen.cpu.target import CpuTarget
from qcompiler.codegen.driver import PUBLIC, Level, driver_source, header_source, identifier, step_title
from qcompiler.codegen.example import example_files, library_rules
from qcompiler.codegen.memory_plan import Buffer, MemoryPlan, plan_memory
from qcompiler.sim.errors import TargetError
from qcompiler.sim.integer_program import IntegerProgram

RUNTIME = Path(__file__).parent / "runtime"
ALIGNMENT = 64
T = TypeVar("T")


class Progress(Protocol):
    """Where `build` tells what it does."""

    def stage(self, title: str) -> AbstractContextManager[None]: ...

    def track(self, items: Iterable[Any], total: int | None = None) -> Iterable[Any]: ...


class _Silent:
    def stage(self, title: str) -> AbstractContextManager[None]:
        return nullcontext()

    def track(self, items: Iterable[Any], total: int | None = None) -> Iterable[Any]:
        return items


@dataclass(frozen=True)
class OperationReport:
    """Where an operation of the program went, on the best level.

    kernel: family, "" for a view, which costs nothing; group: name of the first operation of the group that it is
    computed in; step: number of the kernel call (`<prefix>_step_name`), -1 for a view; macs; bytes: moved to and from
    memory by the group's step, activations and constants.
    """

    name: str
    kernel: str
    group: str
    step: int
    macs: int
    bytes: int


@dataclass(frozen=True)
class StepReport:
    """A kernel call of one level: kernel family, the operation that it completes, the level whose instructions it is
    made of, multiply-accumulates, and the bytes of activations and constants that it reads and writes."""

    kernel: str
    operation: str
    level: str
    macs: int
    bytes: int


@dataclass(frozen=True)
class BuildReport:
    """workspace_bytes: what a caller hands to `run`; arena_bytes, arena_bound: planned and least possible working
    memory of the best level; constant_bytes: weights and tables of all levels; kernels: functions compiled; steps: by
    level, as the library numbers them; missing: the tool without which only the library's parts were written."""

    workspace_bytes: int
    arena_bytes: int
    arena_bound: int
    constant_bytes: int
    kernels: int
    operations: tuple[OperationReport, ...]
    steps: Mapping[str, tuple[StepReport, ...]]
    missing: str | None = None


class _Constants:
    """One read-only blob; equal bytes are stored once, also across levels."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._offsets: dict[bytes, int] = {}
        self.size = 0

    def add(self, value: Any) -> int:
        data = np.ascontiguousarray(value).tobytes()
        key = hashlib.sha256(data).digest()
        if key not in self._offsets:
            self._offsets[key] = self.size
            padded = data + bytes(-len(data) % ALIGNMENT)
            self._parts.append(padded)
            self.size += len(padded)
        return self._offsets[key]

    def write(self, path: Path) -> None:
        with path.open("wb") as stream:
            for part in self._parts:
                stream.write(part)
            # Vector loads of a kernel's last constant may reach past its end.
            stream.write(bytes(ALIGNMENT))


def build(
    program: IntegerProgram, target: CpuTarget, directory: Path, prefix: str = "model",
    progress: Progress | None = None, chosen: Mapping[str, Mapping[Geometry, Tiling]] | None = None,
) -> BuildReport:  # fmt: skip
    """Write model.so, libmodel.a, model.o, model.h, main.c and Makefile for the program into an existing directory.

    Where another architecture's C compiler is missing, the kernels' object files, the C sources beside them and a
    Makefile that finishes the library are written instead (`BuildReport.missing`). prefix: of the C functions and
    macros, a C identifier. chosen: tilings by level that replace the cost model's (see `cpu.tune`). Raises TargetError
    without this machine's own C compiler, for a prefix that C would not take, and for operations that the target has
    no code for.
    """
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", prefix):
        raise TargetError(f"the name {prefix!r} cannot begin C functions; use letters, digits and underscores")
    missing = target.toolchain.missing()
    if missing is not None and not target.toolchain.emulator:
        raise TargetError(
            f"target {target.name} needs {missing}, which is not on the PATH; install gcc and binutils "
            f"(on Debian: apt-get install {' '.join(target.toolchain.packages)})"
        )
    cache = object_cache()
    compile_c = _CCompiler(target.toolchain.tool, cache) if missing is None else None
    say = progress or _Silent()
    constants = _Constants()
    levels, plans, batches = [], [], []
    with (
        tempfile.TemporaryDirectory(prefix=".build-", dir=directory) as folder,
        worker_pool() as pool,
    ):
        work = Path(folder)
        sources = _copy_runtime(work)
        # The runtime needs nothing of the program.
        parts = [compile_c(pool, work, name) for name in sources] if compile_c else []
        known: dict[Hashable, str] = {}
        with say.stage("kernels"):
            for isa in target.levels:
                with tilings((chosen or {}).get(isa.name, {})):
                    lowered = lower(program, isa)
                symbols, kernels = _symbols(lowered.steps, isa, known)
                # LLVM works while the next level is lowered.
                batches += submit_kernels(pool, kernels, isa, work, BATCH if compile_c else None, cache)
                plan = _plan(lowered)
                levels.append(
                    Level(
                        isa.name, isa.cpu_flags, lowered, symbols,
                        [[constants.add(c) for c in step.kernel.constants] for step in lowered.steps],
                        _threads(program, lowered.steps, isa),
                        plan.offsets, {n: constants.add(v) for n, v in lowered.constants.items()},
                    )
                )  # fmt: skip
                plans.append(plan)
            arena = max(plan.size for plan in plans)
            scratch = max((step.kernel.scratch_bytes for level in levels for step in level.lowered.steps), default=0)
            # One alignment for the caller's address, one that vector loads at the end of the last buffer may reach.
            workspace = arena + -(-scratch // ALIGNMENT) * ALIGNMENT + 2 * ALIGNMENT
            (work / "driver.c").write_text(driver_source(program, levels, prefix, arena, scratch), encoding="ascii")
            header = header_source(program, prefix, workspace, [level.name for level in levels])
            (work / "model.h").write_text(header, encoding="ascii")
            constants.write(work / "constants.bin")
            (work / "constants.S").write_text(_CONSTANTS, encoding="ascii")
            sources += ["driver.c", "constants.S"]
            parts += [compile_c(pool, work, name) for name in sources[-2:]] if compile_c else []
            compiled = sum(batch.kernels for batch in batches)
            for _ in say.track((kernel for b in batches for kernel in [b.file.result()] * b.kernels), compiled):
                pass
        objects = [batch.file.result() for batch in batches]
        if cache:
            cache.trim()
        if compile_c:
            with say.stage("link"):
                compile_c.link(pool, work, [*(part.result() for part in parts), *objects], prefix)
            products, rules = ["model.so", "libmodel.a", "model.o"], ""
        else:
            names = [path.rename(work / f"kernels_{i}.o").name for i, path in enumerate(objects)]
            headers = [path.name for path in RUNTIME.glob("*.h")]
            products = [*names, *sources, *headers, "constants.bin"]
            rules = library_rules(target, names, sources, _CFLAGS, _objcopy_flags(prefix), _LINK_FLAGS)
        for name, text in example_files(program, target, prefix, rules).items():
            (work / name).write_text(text, encoding="ascii")
        for name in (*products, "model.h", "main.c", "Makefile"):
            (work / name).replace(directory / name)
    return BuildReport(
        workspace, plans[0].size, plans[0].lower_bound, constants.size, compiled, _report(program, levels[0].lowered),
        {level.name: _step_reports(program, level, isa) for level, isa in zip(levels, target.levels, strict=True)},
        missing,
    )  # fmt: skip


def _plan(lowered: Lowered) -> MemoryPlan:
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for i, step in enumerate(lowered.steps):
        for name in (*step.inputs, step.output):
            base = lowered.views[name].base
            if base in lowered.arena:
                first.setdefault(base, i)
                last[base] = i
    return plan_memory([Buffer(n, size, first[n], last[n]) for n, size in lowered.arena.items()])


def _symbols(
    steps: Sequence[Step], isa: VectorInstructionSet, known: dict[Hashable, str]
) -> tuple[list[str], dict[str, Kernel]]:
    """The symbol of each step's kernel, and one kernel for each symbol that is new; known: those of other levels."""
    kernels: dict[str, Kernel] = {}
    symbols = []
    for step in steps:
        level = code_level(isa, step.kernel).name
        key = (level, step.kernel.key)
        if key not in known:
            known[key] = f"{identifier(level)}_{kernel_digest(step.kernel)}_{identifier(step.kernel.name)}"
            kernels[known[key]] = step.kernel
        symbols.append(known[key])
    return symbols, kernels


# What a step on two threads costs beside waking one: some of what it reads lies in the other core's cache, then and in
# the next step, at some 10 bytes a nanosecond; little, as long as each thread has the same share of every step (see
# `runtime/threads.c`). So a thread more pays for some arithmetic, counted in cycles at the peak of the step's
# instructions (tiles do eight times as much in a cycle as vectors), or for more data than such a cache holds. Measured
# on ResNet-8 and the MobileNets: two and four times as many cycles lose up to 10 % on two threads.
_CYCLES_PER_THREAD = 15_000
_BYTES_PER_THREAD = 640 * 1024
_BYTES_PER_THREAD_OF = {"softmax": 192 * 1024, "layer_norm": 192 * 1024}  # arithmetic that is not counted as MACs
_WINOGRAD_SAVING = 9 / 4  # F(2x2, 3x3): 16 multiplications instead of 36


def _macs(program: IntegerProgram, step: Step) -> int:
    operations = {op.name: op for op in program.operations if op.name in step.operations}
    return sum(program.macs(op) for op in operations.values())


def _bytes(program: IntegerProgram, step: Step) -> int:
    """Activations and constants that the step reads and writes once."""
    reads = sum(program.tensors[n].bytes for n in step.inputs if n in program.tensors)
    return reads + step.output_bytes + sum(c.nbytes for c in step.kernel.constants)


def _threads(program: IntegerProgram, steps: Sequence[Step], isa: VectorInstructionSet) -> list[int]:
    """The most threads for each step. What only prepares a step's input takes as many as that step.

    Then each thread mostly finds in its core's cache what it has prepared.
    """
    threads = [_useful_threads(program, step, isa) for step in steps]
    readers = {name: i for i, step in enumerate(steps) for name in step.inputs}
    for i in reversed(range(len(steps))):
        if not steps[i].operations and steps[i].output in readers:
            threads[i] = max(threads[i], threads[readers[steps[i].output]])
    return threads


def _useful_threads(program: IntegerProgram, step: Step, isa: VectorInstructionSet) -> int:
    """The most threads that make the step quicker."""
    name = step.kernel.name
    cycles = _macs(program, step) / code_level(isa, step.kernel).peak_macs
    if name == "winograd":
        cycles /= _WINOGRAD_SAVING
    by_bytes = _bytes(program, step) // _BYTES_PER_THREAD_OF.get(name, _BYTES_PER_THREAD)
    return 1 + max(int(cycles / _CYCLES_PER_THREAD), by_bytes)


def _report(program: IntegerProgram, lowered: Lowered) -> tuple[OperationReport, ...]:
    place = {name: i for i, step in enumerate(lowered.steps) for name in step.operations}
    rows = []
    for op in program.operations:
        i = place.get(op.name, -1)
        step = lowered.steps[i] if i >= 0 else None
        rows.append(
            OperationReport(
                op.name, step.kernel.name if step else "", step.operations[0] if step else op.name, i,
                program.macs(op), _bytes(program, step) if step else 0,
            )
        )  # fmt: skip
    return tuple(rows)


def _step_reports(program: IntegerProgram, level: Level, isa: VectorInstructionSet) -> tuple[StepReport, ...]:
    return tuple(
        StepReport(
            step.kernel.name, step_title(step), code_level(isa, step.kernel).name, _macs(program, step),
            _bytes(program, step),
        )
        for step in level.lowered.steps
    )  # fmt: skip


# --------------------------------------------------------------------------------------------------- link
_CFLAGS = ("-std=gnu11", "-O2", "-fPIC", "-fvisibility=hidden", "-ffunction-sections", "-Wall", "-Wextra", "-Werror")
_LINK_FLAGS = (
    "-Wl,--build-id=none", "-Wl,-z,noexecstack", "-Wl,-z,relro,-z,now", "-Wl,-s", "-pthread", "-lm"
)  # fmt: skip
_CONSTANTS = """\
    .section .rodata
    .balign 64
    .globl qc_constants
    .hidden qc_constants
qc_constants:
    .incbin "constants.bin"
    .section .note.GNU-stack,"",%progbits
"""


def _copy_runtime(work: Path) -> list[str]:
    """The C runtime into `work`; the names of its sources."""
    for path in RUNTIME.glob("*.[ch]"):
        shutil.copy(path, work / path.name)
    return sorted(path.name for path in RUNTIME.glob("*.c"))


def _objcopy_flags(prefix: str) -> list[str]:
    """Only the C interface stays global."""
    return ["--strip-debug", *(f"--keep-global-symbol={prefix}_{name}" for name in PUBLIC)]


def _run(arguments: Sequence[str], work: Path) -> None:
    result = subprocess.run(arguments, cwd=work, capture_output=True, text=True)
    if result.returncode:
        raise OSError(f"{Path(arguments[0]).name} failed ({result.returncode}): {result.stderr.strip()[-2000:]}")


_HEADERS = tuple(sorted(path.name for path in RUNTIME.glob("*.h")))


@dataclass(frozen=True)
class _CCompiler:
    """The target's C compiler and its companions. tool: maps "gcc", "objcopy", "ar" to their names. cache: of what is
    compiled from C."""

    tool: Callable[[str], str]
    cache: ObjectCache | None = None

    def __call__(self, pool: Executor, work: Path, source: str) -> Future[Path]:
        """Compile or assemble a file in `work`, in the background."""

        def run() -> Path:
            path = work / f"{Path(source).stem}.o"
            cache = self.cache if source.endswith(".c") else None
            key = self._key(work / source) if cache else ""
            known = cache.read(key) if cache else None
            if known is not None:
                path.write_bytes(known)
                return path
            _run([self.tool("gcc"), *_CFLAGS, "-c", source], work)
            if cache:
                cache.write(key, path.read_bytes())
            return path

        return pool.submit(run)

    def _key(self, source: Path) -> str:
        """Of the compiler (the file and when it came there), its arguments, the source and the runtime's headers."""
        gcc = Path(shutil.which(self.tool("gcc")) or "gcc").resolve()
        state = gcc.stat()
        digest = hashlib.sha256(repr((str(gcc), state.st_size, state.st_mtime_ns, _CFLAGS, source.name)).encode())
        for path in (source, *(source.parent / name for name in _HEADERS)):
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()

    def link(self, pool: Executor, work: Path, objects: Sequence[Path], prefix: str) -> None:
        """To model.o (only the C interface is global), libmodel.a and, at the same time, model.so in `work`."""
        gcc = self.tool("gcc")
        (work / "parts.txt").write_text("\n".join(path.name for path in objects), encoding="ascii")
        exported = " ".join(f"{prefix}_{name};" for name in PUBLIC)
        (work / "exports.txt").write_text(f"{{ global: {exported} local: *; }};", encoding="ascii")
        exports = "-Wl,--version-script=exports.txt"
        shared = pool.submit(_run, [gcc, "-shared", "-o", "model.so", "@parts.txt", exports, *_LINK_FLAGS], work)
        _run([gcc, "-r", "-nostdlib", "-o", "model.o", "@parts.txt"], work)
        _run([self.tool("objcopy"), *_objcopy_flags(prefix), "model.o"], work)
        _run([self.tool("ar"), "rcsD", "libmodel.a", "model.o"], work)
        shared.result()
