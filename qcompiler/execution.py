"""`qcompiler run`: a compiled artefact over a set of samples, with latency and accuracy."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from qcompiler import emulation, profiling
from qcompiler.artifact import Artifact, open_artifact
from qcompiler.data import Samples, read_column
from qcompiler.library import Model
from qcompiler.output import new_file
from qcompiler.sim.errors import CalibrationError

if TYPE_CHECKING:
    from qcompiler import microcontroller

    ForeignModel: TypeAlias = emulation.Model | microcontroller.Model

MIN_TIMED = 200  # inferences; small models are timed on repeats until so many


@dataclass(frozen=True)
class Timing:
    """Of single inferences, in seconds: the first output byte after the last input byte, copies excluded."""

    minimum: float
    median: float
    count: int

    def __str__(self) -> str:
        return f"min {_time(self.minimum)}, median {_time(self.median)} over {self.count} inferences"


def execute(model: Model, samples: Samples) -> tuple[dict[str, npt.NDArray[Any]], Timing]:
    """All outputs, joined over samples, and the timing."""
    results: dict[str, list[npt.NDArray[Any]]] = {name: [] for name in model.outputs}
    seconds = []
    for sample in samples:
        for name, value in sample.items():
            model.inputs[name][...] = value
        seconds.append(_timed(model))
        for name, value in model.outputs.items():
            results[name].append(value.copy())
    while len(seconds) < MIN_TIMED and sum(seconds) < 2.0:
        seconds.append(_timed(model))
    return (
        {name: _join(values) for name, values in results.items()},
        Timing(min(seconds), statistics.median(seconds), len(seconds)),
    )


def accuracy(scores: npt.NDArray[Any], labels: npt.NDArray[Any], where: str) -> float:
    """Fraction of samples whose largest score is at the label. scores: [N, ..., classes]; labels: [N] integers."""
    check_labels(labels, len(scores), where)
    flat = scores.reshape(len(scores), -1)
    return float(np.mean(np.argmax(flat, axis=1) == labels))


def check_labels(labels: npt.NDArray[Any], samples: int, where: str) -> None:
    """Raise CalibrationError unless there is one integer for each sample."""
    if labels.shape != (samples,) or labels.dtype.kind not in "iu":
        raise CalibrationError(
            f"{where}: labels are {labels.dtype}{list(labels.shape)}; {samples} samples want as many integers"
        )


def _join(values: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """One array with a leading sample axis: the batch axis where that is 1, a new one otherwise."""
    return np.concatenate(values) if values[0].shape[:1] == (1,) else np.stack(values)


def run_samples(
    directory: Path, data: Path, labels: str | None, output: Path | None, threads: int,
    profile: bool = False, by_time: bool = False, profile_csv: Path | None = None,
) -> None:  # fmt: skip
    """Run the artefact on the data and print outputs or where they went, accuracy, latency, and time per step."""
    artifact = open_artifact(directory)
    model = None if is_foreign(artifact) else Model(artifact, threads, verify=True)
    samples = Samples(data, {t.name: t for t in artifact.manifest.inputs}, "input")
    wanted = read_column(data, labels) if labels else None
    if model is None:
        outputs, how = execute_foreign(artifact, samples)
    else:
        outputs, timing = execute(model, samples)
        how = f"{timing} ({model.isa}, {threads} thread{'s' if threads > 1 else ''})"
    if output is not None:
        with new_file(output) as work, work.open("wb") as stream:
            np.savez(stream, **outputs)  # type: ignore[arg-type]
        print(f"outputs   {output}")
    else:
        for name, values in outputs.items():
            first = np.array2string(values[0], precision=4, threshold=24, edgeitems=4, separator=", ")
            print(f"{name}: {values.dtype}{list(values.shape)}, of the first sample:\n{first}")
    if wanted is not None:
        name, scores = next(iter(outputs.items()))
        print(f"accuracy  {accuracy(scores, wanted, str(data)):.4f} ({len(scores)} samples, argmax of {name!r})")
    print(f"latency   {how}")
    if not profile and profile_csv is None:
        return
    if model is not None:
        _profile(model, threads, by_time, profile_csv)
        return
    from qcompiler import microcontroller

    target = microcontroller.target_of(artifact)
    if target is not None and target.board is not None:
        microcontroller.print_profile(artifact, next(iter(samples)))
    else:
        print("profile   none: an emulated step has no time")


def is_foreign(artifact: Artifact) -> bool:
    """Whether the artefact runs in a process of its own, emulated or built from C source, and has no time here."""
    from qcompiler import microcontroller

    return microcontroller.target_of(artifact) is not None or emulation.emulates(artifact.manifest.architecture)


def execute_foreign(artifact: Artifact, samples: Samples) -> tuple[dict[str, npt.NDArray[Any]], str]:
    """All outputs, joined over samples, and why there is no latency. Raises TargetError where a tool is missing."""
    from qcompiler import microcontroller

    controller = microcontroller.target_of(artifact) is not None
    with microcontroller.Model(artifact) if controller else emulation.Model(artifact) as model:
        outputs = _emulate(model, samples)
        if model.emulator:
            return outputs, f"none: emulated by {model.emulator}, which says nothing of it"
        return outputs, "none: built here from C source, to check it; time it where it is used"


def _emulate(model: ForeignModel, samples: Samples) -> dict[str, npt.NDArray[Any]]:
    results: dict[str, list[npt.NDArray[Any]]] = {t.name: [] for t in model.artifact.manifest.outputs}
    for sample in samples:
        for name, value in model.run(sample).items():
            results[name].append(value)
    return {name: _join(values) for name, values in results.items()}


def _profile(model: Model, threads: int, by_time: bool, path: Path | None) -> None:
    """Print the profile, and write it as CSV to `path`."""
    steps, count = profiling.profile(model)
    machine = profiling.measure_machine(model, threads, [step.level for step in steps])
    print(profiling.text(steps, machine, count, by_time))
    fallbacks = {f["name"] for f in model.artifact.report()["fallbacks"]}
    if fallbacks:
        total = sum(step.seconds for step in steps)
        share = sum(step.seconds for step in steps if step.operation in fallbacks) / total
        what = "1 float operation takes" if len(fallbacks) == 1 else f"{len(fallbacks)} float operations take"
        print(f"{what} {share:.1%} of the time; report.html says why")
    if path is not None:
        profiling.write_csv(path, steps, machine)
        print(f"written   {path}")


def _timed(model: Model) -> float:
    started = time.perf_counter_ns()
    model.invoke()
    return (time.perf_counter_ns() - started) / 1e9


def _time(seconds: float) -> str:
    return f"{seconds * 1e6:.1f} µs" if seconds < 1e-3 else f"{seconds * 1e3:.2f} ms"
