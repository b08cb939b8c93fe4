"""The models of an exploration: integer programs from ONNX or from a compiled artefact, for each width of operands."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qcompiler.sim.errors import ExplorationError
from qcompiler.sim.integer_program import IntegerProgram
from qcompiler.sim.tensor import Tensor
from qcompiler.sim.widths import FULL, Widths, misfit

if TYPE_CHECKING:
    from qcompiler.data import Source
    from qcompiler.passes.graph import Graph
    from qcompiler.progress import Progress

SYNTHETIC_SAMPLES = 2
Check = Callable[[Mapping[str, Tensor]], object]
"""Called with a model's inputs before anything takes long; raises where data does not fit them."""


@dataclass(frozen=True, eq=False)
class Model:
    """name: an identifier. calibration: "given" (samples, or scales that the model carried) or "synthetic" (random:
    good for costs, not for results). programs: all of it, by widths; cores: what the accelerator runs of it. refused:
    why there is none for other widths. graph: the float model; None where only an artefact is known."""

    name: str
    source: str
    calibration: str
    programs: Mapping[Widths, IntegerProgram]
    cores: Mapping[Widths, IntegerProgram]
    refused: Mapping[Widths, str] = field(default_factory=dict)
    graph: Graph | None = None

    @property
    def core(self) -> IntegerProgram:
        """What the accelerator runs, for the widest operands."""
        return next(iter(self.cores.values()))


def name_of(path: Path) -> str:
    """The model's name in spaces and figures: its file's, as an identifier."""
    name = re.sub(r"\W", "_", path.stem if path.suffix else path.name, flags=re.ASCII)
    return f"_{name}" if name[:1].isdigit() else name or "model"


def load(
    path: Path, name: str, shapes: Mapping[str, Sequence[int]], calibration: Source | None, host_fallback: bool,
    progress: Progress, widths: Sequence[Widths] = (FULL,), check: Check | None = None,
) -> Model:  # fmt: skip
    """The model of an ONNX file or an artefact. Raises QCompilerError.

    check: of the data that goes with the model.

    A float model without calibration is quantised with random samples: its cost does not depend on the scales. One that
    is quantised already is what it is; machines whose operands it does not fit cannot run it.
    """
    from qcompiler.codegen.npu.partition import partition

    graph = None
    if path.is_dir():
        from qcompiler.artifact import open_artifact

        program, how = open_artifact(path).program(), "given"
        programs = dict.fromkeys(widths, program)
        if check is not None:
            check({n: program.tensors[n] for n in program.inputs})
    elif path.exists():
        graph, programs, how = _quantise(path, shapes, calibration, progress, widths, check)
    else:
        raise ExplorationError(f"model {path} does not exist; give an ONNX file or a compiled artefact")
    refused = {w: f"{name}: {reason}" for w, program in programs.items() if (reason := misfit(program, w)) is not None}
    if len(refused) == len(programs):
        raise ExplorationError(
            f"{next(iter(refused.values()))}: the model is quantised already, and not for the machines of this space; "
            "give the float model"
        )
    fitting = {w: program for w, program in programs.items() if w not in refused}
    cores = {w: partition(program, host_fallback).core for w, program in fitting.items()}
    return Model(name, path.name, how, fitting, cores, refused, graph)


def _quantise(
    path: Path, shapes: Mapping[str, Sequence[int]], calibration: Source | None, progress: Progress,
    widths: Sequence[Widths], check: Check | None,
) -> tuple[Graph, dict[Widths, IntegerProgram], str]:  # fmt: skip
    from qcompiler.frontend.onnx import import_onnx
    from qcompiler.passes.graph import read
    from qcompiler.passes.integerize import integerize
    from qcompiler.pipeline import Options, Passes, inputs_of, prepare, quantise
    from qcompiler.progress import Progress as Silent

    how = "given"
    if calibration is None:
        graph = read(import_onnx(path, dict(shapes) or None))
        calibration, how = _random_samples(inputs_of(graph)), "synthetic"
        if any(node.op == "quantize" for node in graph.nodes):
            calibration, how = None, "given"
    options = Options(shapes=shapes)
    run = Passes(options, progress)
    prepared = prepare(path, calibration, options, progress, run)
    if check is not None:
        check({n: Tensor(n, t.shape, t.dtype) for n, t in inputs_of(read(prepared.module)).items()})
    programs: dict[Widths, IntegerProgram] = {}
    for w in widths:
        if programs and prepared.carried:
            programs[w] = next(iter(programs.values()))
            continue
        if len(widths) == 1 or prepared.carried:
            module = quantise(prepared, options, progress, run, w).module
        else:
            with progress.stage(f"quantise {path.stem}, {w}"):
                module = quantise(prepared, options, Silent(), run, w).module
        programs[w] = integerize(module, name=path.stem)
    return read(prepared.module), programs, how


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
