"""Every integer operation, bit for bit: as portable C on this machine, and on emulated Cortex-M boards."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from mcu_targets import artifact_of, targets
from operation_cases import FAMILIES
from program_builder import ProgramBuilder

from qcompiler.codegen.mcu.example import around_model
from qcompiler.sim import reference


@pytest.mark.parametrize("target", targets("c99", "cortex-m4", "cortex-m55"))
@pytest.mark.parametrize("cases", FAMILIES)
def test_equals_reference(cases: Callable, target: str, assert_exact: Callable) -> None:
    b = ProgramBuilder(seed=FAMILIES.index(cases))
    program = b.program(cases(b))
    values = b.random_inputs(program)
    for value in values.values():
        if value.dtype == np.float32 and value.size > 4:
            value.ravel()[:4] = 3e38, -3e38, 1e-42, -0.0
    assert_exact(program, target, [values])


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
@pytest.mark.parametrize(
    "cases,target", [*((cases, "c99") for cases in FAMILIES), *((cases, "cortex-m4") for cases in FAMILIES[:2])]
)
def test_portable_source_is_strict_and_has_no_undefined_behaviour(cases: Callable, target: str, tmp_path: Path) -> None:
    """As a user builds it, without a warning; with every check of the sanitizers on; and still the same bits.

    The source for cores with DSP instructions, whose weights of matrix work lie otherwise, is portable too.
    """
    b = ProgramBuilder(seed=FAMILIES.index(cases))
    program = b.program(cases(b))
    values = b.random_inputs(program)
    folder = artifact_of(program, target, tmp_path / "out").directory
    runner = around_model("runner.c", len(program.inputs), len(program.outputs), "model")
    (folder / "runner.c").write_text(runner)
    strict = ["-std=c99", "-pedantic", "-Wall", "-Wextra", "-Wconversion", "-Wno-sign-conversion", "-Werror"]
    checks = ["-O1", "-fsanitize=undefined,address", "-fno-sanitize-recover=all"]
    sources = ["model.c", *(p.name for p in sorted(folder.glob("qc_*.c")))]
    subprocess.run(["gcc", *strict, *checks, "-c", *sources], cwd=folder, check=True)
    objects = [name.replace(".c", ".o") for name in sources]
    subprocess.run(["gcc", *checks, "runner.c", *objects, "-o", "checked"], cwd=folder, check=True)
    data = b"".join(values[n].tobytes() for n in program.inputs)
    done = subprocess.run([folder / "checked"], input=data, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    wanted = reference.execute(program, values)
    assert done.stdout == b"".join(wanted[n].tobytes() for n in program.outputs)
