"""The models of an exploration: integer programs from ONNX or from a compiled artefact."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qcompiler.sim.errors import ExplorationError
from qcompiler.sim.integer_program import IntegerProgram

if TYPE_CHECKING:
    from qcompiler.data import Source
    from qcompiler.progress import Progress

SYNTHETIC_SAMPLES = 2


@dataclass(frozen=True, eq=False)
class Model:
    """name: an identifier. core: what the accelerator runs. program: all of it. calibration: "given" (samples, or
    scales that the model carried) or "synthetic" (random: good for costs, not for results)."""

    name: str
    source: str
    program: IntegerProgram
    core: IntegerProgram
    calibration: str


def name_of(path: Path) -> str:
    """The model's name in spaces and figures: its file's, as an identifier."""
    name = re.sub(r"\W", "_", path.stem if path.suffix else path.name, flags=re.ASCII)
    return f"_{name}" if name[:1].isdigit() else name or "model"


def load(
    path: Path, name: str, shapes: Mapping[str, Sequence[int]], calibration: Source | None, host_fallback: bool,
    progress: Progress,
) -> Model:  # fmt: skip
    """The model of an ONNX file or an artefact. Raises QCompilerError.

    A float model without calibration is quantised with random samples: its cost does not depend on the scales.
    """
    from qcompiler.codegen.npu.partition import partition

    if path.is_dir():
        from qcompiler.artifact import open_artifact

        program, how = open_artifact(path).program(), "given"
    elif path.exists():
        program, how = _quantise(path, shapes, calibration, progress)
    else:
        raise ExplorationError(f"model {path} does not exist; give an ONNX file or a compiled artefact")
    return Model(name, path.name, program, partition(program, host_fallback).core, how)


def _quantise(
    path: Path, shapes: Mapping[str, Sequence[int]], calibration: Source | None, progress: Progress
) -> tuple[IntegerProgram, str]:
    from qcompiler.frontend.onnx import import_onnx
    from qcompiler.passes.graph import read
    from qcompiler.passes.integerize import integerize
    from qcompiler.pipeline import Options, inputs_of, quantise_model

    how = "given"
    if calibration is None:
        graph = read(import_onnx(path, dict(shapes) or None))
        calibration, how = _random_samples(inputs_of(graph)), "synthetic"
        if any(node.op == "quantize" for node in graph.nodes):
            calibration, how = None, "given"
    quantised = quantise_model(path, calibration, Options(shapes=shapes), progress)
    return integerize(quantised.module, name=path.stem), how


def _random_samples(inputs: Mapping[str, Any]) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    return [
        {
            name: rng.standard_normal(t.shape).astype(np.float32)
            if t.dtype == "float32"
            else np.zeros(t.shape, t.dtype)
            for name, t in inputs.items()
        }
        for _ in range(SYNTHETIC_SAMPLES)
    ]
