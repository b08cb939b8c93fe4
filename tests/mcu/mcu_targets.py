"""Micro-controllers as parameters of tests, and artefacts of integer programs for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qcompiler import microcontroller
from qcompiler.artifact import PROGRAM, Artifact, Manifest, describe_files
from qcompiler.codegen.mcu.build import build
from qcompiler.codegen.mcu.target import MCU_TARGETS
from qcompiler.sim import program_text
from qcompiler.sim.integer_program import IntegerProgram


def artifact_of(program: IntegerProgram, target: str, directory: Path) -> Artifact:
    directory.mkdir(exist_ok=True)
    report = build(program, MCU_TARGETS[target], directory)
    (directory / PROGRAM).write_bytes(program_text.save(program))
    return Artifact(
        directory,
        Manifest(
            name="model", target=target, architecture=MCU_TARGETS[target].architecture,
            inputs=tuple(program.tensors[n] for n in program.inputs),
            outputs=tuple(program.tensors[n] for n in program.outputs),
            workspace_bytes=report.workspace_bytes, program_sha256="", files=describe_files(directory), build={},
        ),
    )  # fmt: skip


def targets(*names: str) -> list[Any]:
    """Parameters, skipped visibly where a tool is missing."""
    rows = []
    for name in names or MCU_TARGETS:
        tool = microcontroller.missing_to_run(MCU_TARGETS[name])
        rows.append(pytest.param(name, marks=pytest.mark.skipif(tool is not None, reason=f"needs {tool}")))
    return rows
