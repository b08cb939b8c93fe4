"""The Python side of `qcompiler explore`. Importing it loads neither TVM nor Optuna."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qcompiler.progress import Progress

if TYPE_CHECKING:
    from qcompiler.data import Source
    from qcompiler.exploration.run import Exploration
    from qcompiler.sim.explore.space import Space


def explore(
    models: str | Path | Sequence[str | Path],
    *,
    space: str | Path | Space,
    output: str | Path,
    objectives: Sequence[str] = (),
    constraints: Sequence[str] = (),
    sampler: str | None = None,
    trials: int | None = None,
    seed: int = 0,
    workers: int = 1,
    cluster: str | None = None,
    storage: str | None = None,
    calibration: Source | None = None,
    evaluation: Source | None = None,
    labels: str | Sequence[int] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    host_fallback: bool = False,
    simulate: bool = True,
    progress: Progress | None = None,
) -> Exploration:
    """Search a space of machines for models, and write the results into the directory `output`, whole or not at all.

    models: ONNX files or artefacts. space: the path of a space.yaml, or a `sim.explore.space.Space`. objectives:
    "latency", "energy", "power", "area", "edp", "traffic", and with data "sqnr", "accuracy" (default: the space's).
    constraints: comparisons such as "area_mm2 < 2". calibration: samples to quantise with, as for `compile`.
    evaluation: samples held out, to measure on (default: those of the calibration); labels: the key of an array of
    their file, or one integer for each sample. sampler: "exhaustive", "random", "tpe", "nsga2", or None for what the
    size of the space allows; trials: different machines to try. The same seed gives the same points, whatever `workers`
    or `cluster` (the address of a Dask scheduler) evaluates them. storage: a file or a database URL; by default a
    journal beside `output`.
    With workers > 1, call this below ``if __name__ == "__main__":``, since workers import the calling script.
    Raises QCompilerError for anything wrong with the arguments, saying what to do.
    """
    from qcompiler.exploration.run import Request
    from qcompiler.exploration.run import explore as run

    many = [models] if isinstance(models, (str, Path)) else list(models)
    request = Request(
        models=many, space=space, output=Path(output), objectives=tuple(objectives), constraints=tuple(constraints),
        sampler=sampler, trials=trials, seed=seed, workers=workers, cluster=cluster, storage=storage,
        calibration=calibration, evaluation=evaluation, labels=labels, shapes=shapes or {}, host_fallback=host_fallback,
        simulate_front=simulate,
    )  # fmt: skip
    return run(request, progress or Progress())
