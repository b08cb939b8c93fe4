"""AArch64 libraries under qemu: every operation bit for bit, the instructions used, what is said where they cannot run.

Nothing here is timed: qemu translates instructions, so its speed says nothing about a core's.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from operation_cases import FAMILIES
from program_builder import ProgramBuilder

from qcompiler import emulation
from qcompiler.artifact import Artifact, Manifest, describe_files
from qcompiler.codegen import aot
from qcompiler.codegen.cpu.target import CPU_TARGETS, cpu_target
from qcompiler.sim import reference
from qcompiler.sim.errors import TargetError
from qcompiler.sim.integer_program import IntegerProgram

MISSING = emulation.missing_tool("aarch64")
pytestmark = pytest.mark.skipif(
    MISSING is not None, reason=f"needs {MISSING} (Debian: qemu-user, gcc-aarch64-linux-gnu)"
)
CORES = [("arm:i8mm", "max"), ("arm:dotprod", "max"), ("arm:dotprod", "neoverse-n1"), ("arm:neon", "cortex-a53")]


def build(program: IntegerProgram, target: str, directory: Path) -> Artifact:
    directory.mkdir(exist_ok=True)
    report = aot.build(program, cpu_target(target), directory)
    return Artifact(
        directory,
        Manifest(
            name="model", target=target, architecture="aarch64",
            inputs=tuple(program.tensors[n] for n in program.inputs),
            outputs=tuple(program.tensors[n] for n in program.outputs),
            workspace_bytes=report.workspace_bytes, program_sha256="", files=describe_files(directory), build={},
        ),
    )  # fmt: skip


@pytest.fixture
def emulate(tmp_path: Path) -> Iterator[Callable[[IntegerProgram, str, str], emulation.Model]]:
    """Builds for a target once and runs it as a core; ends every process afterwards."""
    built: dict[str, Artifact] = {}
    running: list[emulation.Model] = []

    def start(program: IntegerProgram, target: str, core: str) -> emulation.Model:
        if target not in built:
            built[target] = build(program, target, tmp_path / target.replace(":", "-"))
        running.append(emulation.Model(built[target], core))
        return running[-1]

    yield start
    for model in running:
        model.close()


@pytest.mark.parametrize("cases", FAMILIES)
def test_equals_reference_on_every_level(cases: Callable, emulate: Callable) -> None:
    b = ProgramBuilder(seed=FAMILIES.index(cases))
    program = b.program(cases(b))
    values = b.random_inputs(program)
    for value in values.values():
        if value.dtype == np.float32 and value.size > 4:
            value.ravel()[:4] = 3e38, -3e38, 1e-42, -0.0
    expected = reference.execute(program, values)
    writer = program.producers()
    for target, core in CORES:
        found = emulate(program, target, core).run(values)
        for name, wanted in expected.items():
            same = np.array_equal(found[name], wanted, equal_nan=wanted.dtype == np.float32)
            assert same, f"{target} as {core}: {writer[name].name} {program.tensors[name]}"


def dense_program() -> IntegerProgram:
    b = ProgramBuilder()
    return b.program([b.conv(b.input((1, 14, 14, 64)), 64, (1, 1))])


def test_a_library_says_what_the_core_lacks(emulate: Callable) -> None:
    program = dense_program()
    model = emulate(program, "arm:dotprod", "cortex-a53")
    with pytest.raises(TargetError) as error:
        model.run({n: np.zeros(program.tensors[n].shape, np.int8) for n in program.inputs})
    assert str(error.value) == (
        f"{model.artifact.directory}, emulated by qemu-aarch64 -cpu cortex-a53: this CPU lacks the instruction set "
        "that the model was compiled for"
    )


def test_arm_chooses_its_level_at_load(emulate: Callable) -> None:
    program = dense_program()
    values = {n: np.full(program.tensors[n].shape, 7, np.int8) for n in program.inputs}
    expected = reference.execute(program, values)
    for core in ("cortex-a53", "max"):
        found = emulate(program, "arm", core).run(values)
        assert all(np.array_equal(found[n], v) for n, v in expected.items())


def functions(path: Path) -> dict[str, list[str]]:
    """Mnemonics with operands of each function of an object file."""
    command = ["aarch64-linux-gnu-objdump", "-d", "--no-show-raw-insn", str(path)]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = {}
    for block in text.split("\n\n"):
        lines = block.strip().splitlines()
        if lines and (head := re.match(r"[0-9a-f]+ <(\w+)>:", lines[0])):
            found[head[1]] = [line.split("\t", 1)[1] for line in lines[1:] if "\t" in line]
    return found


@pytest.mark.parametrize("target,instruction", [("arm:dotprod", "sdot"), ("arm:neon", "smull")])
def test_dense_kernels_use_the_level_s_multiplication(target: str, instruction: str, tmp_path: Path) -> None:
    build(dense_program(), target, tmp_path / "out")
    (kernel,) = (code for name, code in functions(tmp_path / "out" / "model.o").items() if name.endswith("_conv2d"))
    assert sum(line.startswith(instruction) for line in kernel) >= 16
    assert target == "arm:dotprod" or not any(line.startswith("sdot") for line in kernel)


def test_every_named_core_is_a_level() -> None:
    cores = [t for name, t in CPU_TARGETS.items() if name.startswith("arm:cortex") or name.startswith("arm:neoverse")]
    assert len(cores) >= 8
    assert all(len(core.levels) == 1 and core.architecture == "aarch64" for core in cores)


def test_a_missing_cross_compiler_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(TargetError) as error:
        aot.build(dense_program(), cpu_target("arm:cortex-a76"), tmp_path)
    assert str(error.value) == (
        "target arm:cortex-a76 needs aarch64-linux-gnu-gcc, which is not on the PATH; install gcc and binutils "
        "(on Debian: apt-get install gcc-aarch64-linux-gnu)"
    )
