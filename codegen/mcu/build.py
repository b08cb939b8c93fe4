"""Integer program to C source, and to an object file and a static library where the target's compiler is there."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qcompiler.codegen.mcu import emit
from qcompiler.codegen.mcu.example import example_files
from qcompiler.codegen.mcu.lower import Lowered, Step, lower
from qcompiler.codegen.mcu.target import McuTarget
from qcompiler.sim.errors import TargetError
from qcompiler.sim.integer_program import IntegerProgram

KERNELS = Path(__file__).parent / "kernels"
HEADERS = ("qc_kernels.h", "qc_inline.h", "qc_dot.h", "qc_blocks.h")
CFLAGS = ("-std=c99", "-O2", "-ffunction-sections", "-fdata-sections", "-Wall", "-Wextra", "-Werror", "-pedantic")


@dataclass(frozen=True)
class McuReport:
    """workspace_bytes: what a caller hands to `run`; arena_bytes, arena_bound: planned, and least possible.
    constant_bytes: weights and tables. code_bytes: machine code with what it takes from the C library; stack_bytes: an
    upper bound of the stack of a call; both None where no compiler is installed (`missing`). peak, largest: the step
    that fills the arena most, and the one with the most weights. kernels: operation name to (kernel, group that it is
    computed in)."""

    workspace_bytes: int
    arena_bytes: int
    arena_bound: int
    constant_bytes: int
    code_bytes: int | None
    stack_bytes: int | None
    missing: str | None
    peak: str
    largest: str
    kernels: dict[str, tuple[str, str]]


def missing_tool(target: McuTarget) -> str | None:
    """The first program of the target's toolchain that is not on the PATH."""
    names = [target.compiler + tool for tool in ("gcc", "ld", "objcopy", "ar", "size")]
    return next((n for n in names if shutil.which(n) is None), None)


def build(program: IntegerProgram, target: McuTarget, directory: Path, prefix: str = "model") -> McuReport:
    """Write model.h, model.c, model_data.h, the kernels they use and an example with a Makefile into an existing
    directory; model.o and libmodel.a, too, where the compiler is installed.

    Raises TargetError for operations without a kernel and for a prefix that C would not take.
    """
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", prefix):
        raise TargetError(f"the name {prefix!r} cannot begin C functions; use letters, digits and underscores")
    lowered = lower(program, target)
    workspace = emit.workspace_bytes(lowered)
    files = {
        "model.h": emit.header_source(program, target, prefix, workspace),
        "model_data.h": emit.data(lowered),
        "model.c": emit.source(program, lowered, target, prefix),
    }
    sources = kernel_sources(lowered)
    for name in (*HEADERS, *sources):
        files[name] = (KERNELS / name).read_text(encoding="ascii")
    for macro, value in (("QC_LANES 4", target.lanes), ("QC_BLOCKS 0", int(target.blocks))):
        name, _ = macro.split()
        files["qc_kernels.h"] = files["qc_kernels.h"].replace(f"#define {macro}\n", f"#define {name} {value}\n")
    files |= example_files(program, target, prefix, ["model.c", *sources])
    missing, code, stack = missing_tool(target), None, None
    with tempfile.TemporaryDirectory(prefix=".build-", dir=directory) as folder:
        work = Path(folder)
        for name, text in files.items():
            (work / name).write_text(text, encoding="ascii")
        products = list(files)
        if missing is None:
            code, stack = _compile(work, target, ["model.c", *sources], prefix)
            products += ["model.o", "libmodel.a"]
        for name in products:
            (work / name).replace(directory / name)
    return McuReport(
        workspace, lowered.plan.size, lowered.plan.lower_bound, lowered.arrays.bytes, code, stack, missing,
        _peak(program, lowered), _largest(lowered), _kernels(program, lowered),
    )  # fmt: skip


def kernel_sources(lowered: Lowered) -> list[str]:
    """The kernel files that the calls need."""
    used = {step.call.file for step in lowered.steps}
    if any(step.call.slow for step in lowered.steps):
        used.add("qc_round.c")
    return sorted(used)


def _kernels(program: IntegerProgram, lowered: Lowered) -> dict[str, tuple[str, str]]:
    rows = {op.name: ("", op.name) for op in program.operations}
    for step in lowered.steps:
        for op in step.operations:
            rows[op.name] = (step.call.function.removeprefix("qc_"), step.operations[0].name)
    return rows


def _peak(program: IntegerProgram, lowered: Lowered) -> str:
    """The step at which most of the arena is in use, in words."""
    if not lowered.steps:
        return "nothing"
    at = max(range(len(lowered.live)), key=lambda i: lowered.live[i])
    step = lowered.steps[at]
    out = program.tensors.get(step.output)
    shape = "x".join(map(str, out.shape)) if out else ""
    return f"{_title(step)} with output {shape}, {lowered.live[at]:,} bytes alive"


def _title(step: Step) -> str:
    name = step.operations[-1].name if step.operations else step.output
    return f"{step.call.function.removeprefix('qc_')} {name!r}"


def _largest(lowered: Lowered) -> str:
    """The step with the most weights, in words."""
    weights = {s: sum(getattr(op, "weight", np.empty(0)).nbytes for op in s.operations) for s in lowered.steps}
    if not any(weights.values()):
        return "tables"
    step = max(weights, key=lambda s: weights[s])
    return f"{_title(step)} with {weights[step]:,} bytes of weights"


# ------------------------------------------------------------------------------------------------ compile
def _run(arguments: Sequence[str], work: Path) -> str:
    result = subprocess.run(arguments, cwd=work, capture_output=True, text=True)
    if result.returncode:
        raise OSError(f"{arguments[0]} failed ({result.returncode}): {result.stderr.strip()[-2000:]}")
    return result.stdout


def _compile(work: Path, target: McuTarget, sources: Sequence[str], prefix: str) -> tuple[int, int]:
    """model.o (only the C interface is global) and libmodel.a; returns bytes of code and of stack."""
    tool = target.compiler
    _run([f"{tool}gcc", *CFLAGS, *target.flags, "-fstack-usage", "-c", *sources], work)
    objects = [s.removesuffix(".c") + ".o" for s in sources]
    (work / "parts").mkdir()
    for name in objects:
        (work / name).replace(work / "parts" / name)
    _run([f"{tool}gcc", *target.flags, "-r", "-nostdlib", "-o", "model.o", *(f"parts/{n}" for n in objects)], work)
    keep = [f"--keep-global-symbol={prefix}_{name}" for name in emit.PUBLIC]
    _run([f"{tool}objcopy", "--strip-debug", *keep, "model.o"], work)
    _run([f"{tool}ar", "rcsD", "libmodel.a", "model.o"], work)
    return _code_bytes(work, target, prefix), _stack_bytes(work)


def _code_bytes(work: Path, target: McuTarget, prefix: str) -> int:
    """Bytes of instructions, linked alone with what they take from the C library and with nothing unused."""
    entry = [f"-Wl,-e,{prefix}_run", "-Wl,--gc-sections", "-nostartfiles"]
    if not target.compiler:
        text = _run(["size", "-A", "model.o"], work)
        return sum(int(m[1]) for m in re.finditer(r"^\.text\S*\s+(\d+)", text, re.MULTILINE))
    _run([f"{target.compiler}gcc", *target.flags, *entry, "model.o", "-o", "alone.elf"], work)
    text = _run([f"{target.compiler}size", "-A", "alone.elf"], work)
    return sum(int(m[1]) for m in re.finditer(r"^\.(?:text|ARM)\S*\s+(\d+)", text, re.MULTILINE))


def _stack_bytes(work: Path) -> int:
    """An upper bound: `run`, all functions of the deepest kernel file at once, and a rounding.

    GCC counts nothing for functions in assembly; `qc_blocks_1` and `_2` push 68 bytes, less than `rest_of_outputs`
    beside them, which they never meet.
    """
    frames: dict[str, int] = {}
    largest_round = 0
    for path in work.glob("*.su"):
        rows = [line.split("\t") for line in path.read_text().splitlines()]
        sizes = {row[0].rsplit(":", 1)[1]: int(row[1]) for row in rows}
        if path.stem.endswith("qc_round"):
            largest_round = max(sizes.values(), default=0)
        else:
            frames[path.stem] = sum(sizes.values())
    model = next((size for stem, size in frames.items() if stem.endswith("model")), 0)
    return model + max((s for stem, s in frames.items() if not stem.endswith("model")), default=0) + largest_round
