"""What a quantised model computes: SQNR against the float model and accuracy on labelled samples, once for each width.

The integer program is executed exactly, by the reference interpreter or, where that would take long, by a library
compiled for this machine: the two are equal to the last bit, so that the figures do not depend on which it was.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from qcompiler.data import Samples, read_column
from qcompiler.exploration.models import Model
from qcompiler.exploration.storage import digest
from qcompiler.sim import reference
from qcompiler.sim.errors import ExplorationError
from qcompiler.sim.explore.merit import Quality
from qcompiler.sim.integer_program import FloatOp, IntegerProgram
from qcompiler.sim.tensor import Tensor
from qcompiler.sim.widths import Widths

if TYPE_CHECKING:
    from qcompiler.data import Source
    from qcompiler.progress import Progress

Array = npt.NDArray[Any]
Execute = Callable[[Mapping[str, Array]], Mapping[str, Array]]
LARGEST_SQNR = 200.0  # dB: of a model that nothing was rounded in
UNLABELLED = 100  # samples that SQNR alone is measured on, at most
INTERPRETED_MACS = 20e9  # work of all samples that is left to the reference interpreter, some 1 GMAC a second


@dataclass(frozen=True, eq=False)
class Data:
    """Of one model. evaluation: samples to measure on, those of the calibration where there are no others. labels: the
    array of the evaluation's file, or the labels themselves, one for each sample."""

    calibration: Source | None = None
    evaluation: Source | None = None
    labels: str | Sequence[int] | Array | None = None

    @property
    def source(self) -> Source | None:
        return self.calibration if self.evaluation is None else self.evaluation

    def figures(self, path: Path) -> tuple[str, ...]:
        """Which of `merit.QUALITY` can be measured for the model at `path`. Raises ExplorationError."""
        if self.labels is not None and self.source is None:
            raise ExplorationError(
                f"{path}: labels belong to samples, and there are none; give --evaluation or --calibration"
            )
        found = () if self.source is None or path.is_dir() else ("sqnr_db",)
        return found if self.labels is None else (*found, "accuracy")

    def open(self, inputs: Mapping[str, Tensor]) -> tuple[Samples, Array | None]:
        """The samples, and one integer for each of them if there are labels. Raises CalibrationError where they do not
        fit each other, or the model's inputs."""
        from qcompiler.execution import check_labels

        assert self.source is not None
        samples = Samples(self.source, inputs, "evaluation")
        if self.labels is None:
            return samples, None
        if not isinstance(self.labels, str):
            labels = np.asarray(self.labels)
        elif isinstance(self.source, (str, Path)):
            labels = read_column(self.source, self.labels)
        else:
            raise ExplorationError(
                f"labels {self.labels!r} name an array of a file, but the samples are in none; give the labels "
                "themselves"
            )
        check_labels(labels, len(samples), str(samples.where))
        return samples, labels


@dataclass(frozen=True, eq=False)
class Measurement:
    """How the quality of one model is measured. figures: which of `merit.QUALITY` are wanted."""

    model: Model
    data: Data
    figures: tuple[str, ...]

    @cached_property
    def _opened(self) -> tuple[Samples, Array | None]:
        program = next(iter(self.model.programs.values()))
        return self.data.open({n: program.tensors[n] for n in program.inputs})

    @property
    def samples(self) -> Samples:
        """What is measured on."""
        return self._opened[0]

    @property
    def labels(self) -> Array | None:
        """One integer for each sample."""
        return self._opened[1]

    @property
    def count(self) -> int:
        """How many samples are gone through."""
        return len(self.samples) if self.labels is not None else min(len(self.samples), UNLABELLED)

    @cached_property
    def identity(self) -> list[Any]:
        """What the figures depend on beside the program."""
        labels = None if self.labels is None else digest(self.labels.tolist())
        return [list(self.figures), self.samples.sha256(), labels, self.count]

    def measure(self, widths: Widths, progress: Progress) -> Quality:
        """Execute the program of these widths on every sample."""
        program = self.model.programs[widths]
        hits: list[int] = []
        with progress.stage(f"measure {self.model.name}, {widths}"), _Executor(program, self.count) as execute:

            def judged(sample: Mapping[str, Array]) -> Mapping[str, Array]:
                outputs = execute(sample)
                hits.append(int(np.argmax(outputs[program.outputs[0]])))
                progress.advance(len(hits), self.count, "")
                return outputs

            sqnr = self._sqnr(program, judged)
        accuracy = None if self.labels is None else float(np.mean(np.array(hits) == self.labels[: len(hits)]))
        return Quality(sqnr, accuracy)

    def _sqnr(self, program: IntegerProgram, execute: Execute) -> float | None:
        samples: Iterable[Mapping[str, Array]] = islice(self.samples, self.count)
        if "sqnr_db" not in self.figures or self.model.graph is None:
            for sample in samples:
                execute(sample)
            return None
        from qcompiler.accuracy import output_accuracy

        found = output_accuracy(self.model.graph, program, execute, samples).sqnr_db[program.outputs[0]]
        return float(np.clip(found, -LARGEST_SQNR, LARGEST_SQNR))

    @cached_property
    def float_accuracy(self) -> float | None:
        """Accuracy of the float model, to compare with."""
        if self.labels is None or self.model.graph is None:
            return None
        from qcompiler.passes.calibrate import FloatExecutor

        graph = self.model.graph
        executor = FloatExecutor(graph, graph.outputs[:1])
        hits = [int(np.argmax(dict(executor.run_canonical([s]))[graph.outputs[0]])) for s in self.samples]
        return float(np.mean(np.array(hits) == self.labels))


class _Executor:
    """Runs samples: the reference, or a library for this machine that stands in for it."""

    def __init__(self, program: IntegerProgram, samples: int) -> None:
        self.program = program
        work = samples * sum(program.macs(op) for op in program.operations)
        # Float operations may round differently in a library.
        exact = not any(isinstance(op, FloatOp) for op in program.operations)
        self.compiled = exact and work > INTERPRETED_MACS
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Execute:
        execute = self._library() if self.compiled else None
        return execute or (lambda sample: reference.execute(self.program, sample))

    def _library(self) -> Execute | None:
        """The program compiled for the best level of this machine; None where that is not possible."""
        from qcompiler.codegen.cpu.target import CPU_TARGETS
        from qcompiler.codegen.host import host_architecture
        from qcompiler.pipeline import build
        from qcompiler.progress import Progress
        from qcompiler.targets import CpuBackend

        here = [CpuBackend(n, t) for n, t in CPU_TARGETS.items() if t.architecture == host_architecture()]
        level = here[0].level_here() if here else None
        backend = next((b for b in here if b.target.levels == (level,)), None)
        if backend is None:
            return None
        self._folder = tempfile.TemporaryDirectory(prefix="qcompiler-")
        program = replace(self.program, name="model")  # the prefix of C symbols, which not every file's name can be
        artifact, _ = build(program, backend, Path(self._folder.name), program.name, Progress())
        return backend.executor(artifact) if "model.so" in artifact.manifest.files else None

    def __exit__(self, *_: object) -> None:
        if self._folder is not None:
            self._folder.cleanup()
