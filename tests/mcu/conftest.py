"""Building integer programs for micro-controllers and portable C, and running them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qcompiler import microcontroller
from qcompiler.artifact import Artifact, Manifest, describe_files
from qcompiler.codegen.mcu.build import build
from qcompiler.codegen.mcu.target import MCU_TARGETS
from qcompiler.sim import reference
from qcompiler.sim.integer_program import IntegerProgram


def artifact_of(program: IntegerProgram, target: str, directory: Path) -> Artifact:
    directory.mkdir(exist_ok=True)
    report = build(program, MCU_TARGETS[target], directory)
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


@pytest.fixture
def assert_exact(tmp_path: Path) -> Iterator[Callable[..., None]]:
    """``assert_exact(program, target, samples)``: the artefact's outputs are the reference's, bit for bit."""
    running: list[microcontroller.Model] = []

    def check(program: IntegerProgram, target: str, samples: list[dict[str, Any]]) -> None:
        model = microcontroller.Model(artifact_of(program, target, tmp_path / target))
        running.append(model)
        writer = program.producers()
        for sample in samples:
            found, wanted = model.run(sample), reference.execute(program, sample)
            for name, value in wanted.items():
                bytes_of = (np.frombuffer(v.tobytes(), np.uint8) for v in (found[name], value))
                differ = np.flatnonzero(np.not_equal(*bytes_of))
                op = writer.get(name)
                assert not differ.size, f"{target}: {op and op.name} differs at bytes {differ[:8]} of {value.nbytes}"

    yield check
    for model in running:
        model.close()
