"""The ARM Linux targets as parameters of tests, artefacts for them, and their machine code read back by objdump."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from program_builder import ProgramBuilder

from qcompiler import emulation
from qcompiler.artifact import Artifact, Manifest, describe_files
from qcompiler.codegen import aot
from qcompiler.codegen.cpu.target import cpu_target
from qcompiler.sim import reference
from qcompiler.sim.integer_program import IntegerProgram


@dataclass(frozen=True)
class Level:
    """A target, the qemu core that it runs on, and the binutils prefix of its architecture."""

    target: str
    core: str
    tools: str = "aarch64-linux-gnu-"

    def __str__(self) -> str:
        return f"{self.target}-{self.core}"


I8MM, DOTPROD, NEON = Level("arm:i8mm", "max"), Level("arm:dotprod", "neoverse-n1"), Level("arm:neon", "cortex-a53")
NEON32 = Level("armv7:neon", "cortex-a7", "arm-linux-gnueabihf-")
LEVELS = (I8MM, DOTPROD, NEON, NEON32)


def parameters(*levels: Level) -> list[Any]:
    """Parameters, skipped visibly where a tool is missing."""
    rows = []
    for level in levels or LEVELS:
        tool = emulation.missing_tool(cpu_target(level.target).architecture)
        reason = f"needs {tool} (Debian: qemu-user, gcc-aarch64-linux-gnu, gcc-arm-linux-gnueabihf)"
        rows.append(pytest.param(level, id=str(level), marks=pytest.mark.skipif(tool is not None, reason=reason)))
    return rows


def build(program: IntegerProgram, target: str, directory: Path) -> Artifact:
    directory.mkdir(exist_ok=True)
    report = aot.build(program, cpu_target(target), directory)
    return Artifact(
        directory,
        Manifest(
            name="model", target=target, architecture=cpu_target(target).architecture,
            inputs=tuple(program.tensors[n] for n in program.inputs),
            outputs=tuple(program.tensors[n] for n in program.outputs),
            workspace_bytes=report.workspace_bytes, program_sha256="", files=describe_files(directory), build={},
        ),
    )  # fmt: skip


@contextmanager
def running(program: IntegerProgram, level: Level, directory: Path) -> Iterator[Callable[[Mapping[str, Any]], Any]]:
    """The program, built and started as the level's core."""
    with emulation.Model(build(program, level.target, directory), level.core) as model:
        yield model.run


def assert_equal_to_reference(
    run: Callable[[Mapping[str, Any]], Any], program: IntegerProgram, values: Mapping[str, Any], what: str
) -> None:
    found, writer = run(values), program.producers()
    for name, wanted in reference.execute(program, values).items():
        same = np.array_equal(found[name], wanted, equal_nan=wanted.dtype == np.float32)
        assert same, f"{what}: {writer[name].name} {program.tensors[name]}"


def dense_program() -> IntegerProgram:
    b = ProgramBuilder()
    return b.program([b.conv(b.input((1, 14, 14, 64)), 64, (1, 1))])


# ----------------------------------------------------------------------------------------------- machine code
def functions(path: Path, tools: str) -> dict[str, list[tuple[int, str]]]:
    """(address, instruction) of each function of an object file."""
    command = [f"{tools}objdump", "-d", "--no-show-raw-insn", str(path)]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: dict[str, list[tuple[int, str]]] = {}
    code: list[tuple[int, str]] = []
    for line in text.splitlines():
        if head := re.match(r"[0-9a-f]+ <(\w+)>:", line):
            code = found[head[1]] = []
        elif entry := re.match(r"\s*([0-9a-f]+):\t(.*)", line):
            code.append((int(entry[1], 16), entry[2].replace("\t", " ")))
    return found


def innermost_loop(code: list[tuple[int, str]], multiply: str) -> list[str]:
    """The innermost loop with most instructions that `multiply` matches: from a backward branch's target to it."""
    best: list[str] = []
    branches = []
    for address, text in code:
        branch = re.match(
            r"(?:b|b\.\w+|b(?:eq|ne|cc|cs|lt|gt|le|ge|hi|ls|mi|pl)(?:\.n|\.w)?|cbn?z|tbn?z) .*?([0-9a-f]+) <", text
        )
        if branch and int(branch[1], 16) <= address:
            branches.append((int(branch[1], 16), address))
    for first, last in branches:
        if any(first <= start and end < last for start, end in branches):
            continue
        body = [text for address, text in code if first <= address <= last]
        best = max(best, body, key=lambda lines: sum(bool(re.match(multiply, line)) for line in lines))
    return best


def stack_accesses(loop: list[str]) -> list[str]:
    """The loads and stores of a loop that address the stack, and address computations on it."""
    return [line for line in loop if re.search(r"\bsp\b", line)]
