"""The Python side of the command line: `qcompiler.compile`, `qcompiler.quantize` and `qcompiler.explore`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qcompiler.artifact import Artifact
from qcompiler.data import Source
from qcompiler.pipeline import Options, compile_model, quantise_to_onnx
from qcompiler.progress import Progress
from qcompiler.sim.numerics import Rounding
from qcompiler.targets import Limits

if TYPE_CHECKING:
    import onnx

    from qcompiler.exploration.run import Exploration
    from qcompiler.sim.explore.space import Space


def compile(  # noqa: A001 - the word users look for; always written qcompiler.compile
    model: str | Path | onnx.ModelProto,
    *,
    output: str | Path,
    target: str = "x86",
    calibration: Source | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    observer: str = Options.observer,
    rounding: Rounding = Options.rounding,
    passes: str | None = None,
    name: str = Options.name,
    dump_ir: str | Path | None = None,
    time_passes: bool = False,
    explain: bool = False,
    min_sqnr: float | None = None,
    min_agreement: float | None = None,
    host_fallback: bool = False,
    flash_limit: int | None = None,
    ram_limit: int | None = None,
    tune: float | None = None,
    progress: Progress | None = None,
) -> Artifact:
    """Compile an ONNX model into the directory `output`, which appears whole or not at all.

    model: a path or an onnx.ModelProto, float or quantised (QDQ, QOperator). calibration: an `.npz` keyed by input name
    with a leading sample axis, a folder of `.npy`, or an iterable of dicts of arrays; a quantised model needs none.
    shapes: of inputs that the model leaves open, e.g. {"image": (1, 3, 224, 224)}. flash_limit, ram_limit:
    bytes that a micro-controller has; a model that needs more is refused. tune: seconds to spend on measuring
    tiles on this machine. The rest: `pipeline.Options`.
    Raises QCompilerError for anything wrong with the arguments, saying what to do.
    """
    options = Options(
        shapes=shapes or {}, observer=observer, rounding=rounding, passes=passes, name=name,
        dump_ir=Path(dump_ir) if dump_ir is not None else None, time_passes=time_passes, explain=explain,
        min_sqnr=min_sqnr, min_agreement=min_agreement, host_fallback=host_fallback,
        limits=Limits(flash_limit, ram_limit), tune=tune,
    )  # fmt: skip
    return compile_model(model, target, calibration, output, options, progress or Progress())


def quantize(
    model: str | Path | onnx.ModelProto,
    *,
    output: str | Path,
    calibration: Source,
    shapes: Mapping[str, Sequence[int]] | None = None,
    observer: str = Options.observer,
    progress: Progress | None = None,
) -> None:
    """Write the quantised model as ONNX with QuantizeLinear and DequantizeLinear nodes to the file `output`.

    Arguments and errors as in `compile`.
    """
    options = Options(shapes=shapes or {}, observer=observer)
    quantise_to_onnx(model, calibration, output, options, progress or Progress())


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
    shapes: Mapping[str, Sequence[int]] | None = None,
    host_fallback: bool = False,
    simulate: bool = True,
    progress: Progress | None = None,
) -> Exploration:
    """Search a space of machines for models, and write the results into the directory `output`, whole or not at all.

    models: ONNX files or artefacts. space: the path of a space.yaml, or a `sim.explore.space.Space`. objectives:
    "latency", "energy", "power", "area", "edp", "traffic" (default: the space's). constraints: comparisons such as
    "area_mm2 < 2". sampler: "exhaustive", "random", "tpe", "nsga2", or None for what the size of the space allows;
    trials: different machines to try. The same seed gives the same points, whatever `workers` or `cluster` (the address
    of a Dask scheduler) evaluates them. storage: a file or a database URL; by default a journal beside `output`.
    With workers > 1, call this below ``if __name__ == "__main__":``, since workers import the calling script.
    Raises QCompilerError for anything wrong with the arguments, saying what to do.
    """
    from qcompiler.exploration.run import Request
    from qcompiler.exploration.run import explore as run

    many = [models] if isinstance(models, (str, Path)) else list(models)
    request = Request(
        models=many, space=space, output=Path(output), objectives=tuple(objectives), constraints=tuple(constraints),
        sampler=sampler, trials=trials, seed=seed, workers=workers, cluster=cluster, storage=storage,
        calibration=calibration, shapes=shapes or {}, host_fallback=host_fallback, simulate_front=simulate,
    )  # fmt: skip
    return run(request, progress or Progress())
