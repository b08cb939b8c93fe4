"""`qcompiler explore`: points from a sampler, outcomes from an engine, kept in a storage; then the front, proven by the
event simulator, what matters, and what to change next."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import qcompiler
from qcompiler.exploration import samplers
from qcompiler.exploration.engines import Engine, engine
from qcompiler.exploration.evaluation import Context, Work, doubled, evaluate, simulate
from qcompiler.exploration.models import Model, load, name_of
from qcompiler.exploration.quality import Data, Measurement
from qcompiler.exploration.samplers import SAMPLERS, Verdict
from qcompiler.exploration.storage import Chunk, Storage, digest
from qcompiler.sim import energy, program_text
from qcompiler.sim.errors import ExplorationError, did_you_mean
from qcompiler.sim.explore import sensitivity, space_file
from qcompiler.sim.explore.merit import QUALITY_ALIASES, Merit, Outcome, Quality
from qcompiler.sim.explore.sensitivity import RESOURCES, Effect
from qcompiler.sim.explore.space import ModelOptions, Point, Space, lookup
from qcompiler.sim.hardware import Machine
from qcompiler.sim.integer_program import IntegerProgram
from qcompiler.sim.widths import Widths

if TYPE_CHECKING:
    from qcompiler.data import Source
    from qcompiler.progress import Progress

DEFAULT_EXHAUSTIVE = 20_000  # spaces of up to so many points are gone through
DEFAULT_TRIALS = 1000
SWEEPS = 48  # random points around which the choices of each axis are tried, where not all points are known
FRONT_CHUNK, NEXT_CHUNK = 4, 64


@dataclass(frozen=True)
class Request:
    """What to explore. calibration, evaluation, labels: `quality.Data` of models of which the space has none. sampler:
    None for the best of what the space's size allows. storage: a file or database URL; None for a journal beside the
    output. simulate_front: prove the front in the event simulator."""

    models: Sequence[str | Path]
    space: str | Path | Space
    output: Path
    objectives: Sequence[str] = ()
    constraints: Sequence[str] = ()
    sampler: str | None = None
    trials: int | None = None
    seed: int = 0
    workers: int = 1
    cluster: str | None = None
    storage: str | None = None
    calibration: Source | None = None
    evaluation: Source | None = None
    labels: str | Sequence[int] | None = None
    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    host_fallback: bool = False
    simulate_front: bool = True


@dataclass(frozen=True, eq=False)
class Exploration:
    """The result. points, outcomes, figures (None where impossible), broken (constraints and by how much): by number of
    the point. front: numbers of the points that nothing dominates, by the first objective. simulated: outcomes of the
    front in the event simulator. effects: by objective and axis. next: by number of a front point and resource, the
    outcome of doubling it. quality: of each model, by the widths of operands; empty where it is not measured.
    float_accuracy: of each model where quality is measured."""

    space: Space
    merit: Merit
    sampler: str
    seed: int
    identity: Mapping[str, Any]
    points: list[Point]
    outcomes: list[Outcome]
    figures: list[dict[str, float] | None]
    broken: list[dict[str, float]]
    front: list[int]
    simulated: dict[int, Outcome] = field(default_factory=dict)
    effects: dict[str, list[Effect]] = field(default_factory=dict)
    next: dict[int, dict[str, Outcome]] = field(default_factory=dict)
    models: tuple[Model, ...] = ()
    quality: Mapping[Widths, tuple[Quality, ...]] = field(default_factory=dict)
    float_accuracy: tuple[float | None, ...] = ()

    @property
    def hash(self) -> str:
        return digest(self.identity)

    def name(self, number: int) -> str:
        """What the machine of a point is called, and its file in ``front/``."""
        return f"p{number:0{len(str(max(len(self.points) - 1, 0)))}d}"

    def machine(self, number: int) -> Machine:
        """The machine of a point that is one."""
        return self.space.machine(self.points[number], f"{self.space.name}.{self.name(number)}")


# ------------------------------------------------------------------------------------------------ the run
class _Run:
    def __init__(self, request: Request, progress: Progress) -> None:
        self.request, self.progress = request, progress
        self.space = request.space if isinstance(request.space, Space) else space_file.load(request.space)
        self.options = _models(request, self.space)
        objectives = request.objectives or self.space.objectives or ("latency", "energy", "area")
        constraints = [*self.space.constraints, *request.constraints]
        self.data = {n: _data(request, o) for n, (_, o) in self.options.items()}
        measured = _measured(self.options, self.data, self.space, [*objectives, *constraints])
        # Mistakes in objectives and constraints should not wait for the models.
        self.merit = Merit({n: o for n, (_, o) in self.options.items()}, objectives, constraints, measured)
        self.sampler, self.trials = _sampler(request, self.space)
        if len(self.space.widths) > 1 and not any(measured.values()):
            progress.note(
                "the widths of operands vary, and nothing says what narrow ones cost in accuracy: give --calibration "
                "samples, --evaluation for samples held out, and their --labels where the model tells classes apart"
            )

    def load(self) -> tuple[tuple[Model, ...], Context]:
        models, request, widths = [], self.request, self.space.widths
        for name, (path, options) in self.options.items():
            shapes = {**(options.shapes or {}), **request.shapes}
            data, check = self.data[name], self.data[name].open if self.merit.measured[name] else None
            models.append(
                load(path, name, shapes, data.calibration, request.host_fallback, self.progress, widths, check)
            )
        synthetic = [m.name for m in models if m.calibration == "synthetic"]
        if synthetic:
            self.progress.note(
                f"{', '.join(synthetic)}: quantised with random samples, since there is no --calibration: costs are "
                "right, the numbers that such a program computes are not"
            )
        variants: dict[Widths, dict[str, IntegerProgram] | str] = {}
        for w in widths:
            refused = [m.refused[w] for m in models if w in m.refused]
            variants[w] = "; ".join(refused) if refused else {m.name: m.cores[w] for m in models}
        return tuple(models), Context(self.space, {m.name: m.core for m in models}, variants)

    def measurements(self, models: Sequence[Model]) -> list[Measurement]:
        """How the quality of each model is measured; none where nothing is."""
        measured = self.merit.measured
        return [Measurement(m, self.data[m.name], measured[m.name]) for m in models] if any(measured.values()) else []

    def identity(self, models: Sequence[Model], measurements: Sequence[Measurement]) -> dict[str, Any]:
        """Everything that the results depend on, but the number of trials: a longer run begins with the shorter."""
        space = self.space
        optuna = {} if self.sampler in ("exhaustive", "random") else {"optuna": metadata.version("optuna")}
        return {
            "base": space.base.hash,
            "axes": [[a.name, list(a.choices), dict(a.when or {})] for a in space.axes],
            "derived": [[n, e.text] for n, e in space.derived],
            "space": space.name,
            "models": {
                m.name: [{w.short: program_text.digest(p) for w, p in m.cores.items()}, o.weight, o.period_ms]
                for m, o in zip(models, self.merit.models.values(), strict=True)
            },
            "quality": {m.model.name: m.identity for m in measurements if m.figures},
            "objectives": [o.figure for o in self.merit.objectives],
            "constraints": [c.text for c in self.merit.constraints],
            "sampler": self.sampler,
            "seed": self.request.seed if self.sampler != "exhaustive" else 0,
            "energy": digest(energy.load_table().model_dump(mode="json")),
            "versions": {"qcompiler": qcompiler.__version__, **optuna},
        }


def explore(request: Request, progress: Progress) -> Exploration:
    """Explore, and leave ``output`` whole or untouched. Raises a QCompilerError for what the user can mend."""
    from qcompiler.exploration import output

    run = _Run(request, progress)
    output.check(request.output)
    models, context = run.load()
    measurements = run.measurements(models)
    identity = run.identity(models, measurements)
    where = output.storage_of(request, digest(identity))
    storage = Storage(where, identity)
    if storage.repaired:
        progress.note(f"{where}: dropped {storage.repaired} bytes of a record that was not finished")
    quality = _qualities(run, measurements, storage)
    with engine(context, request.workers, request.cluster) as workers:
        found = _evaluate_all(run, quality, workers, storage)
        found = _study_front(run, found, workers, storage)
    found = replace(found, models=models, float_accuracy=tuple(m.float_accuracy for m in measurements))
    storage.close()
    output.write(found, request.output, where if isinstance(where, Path) else None)
    return found


Qualities = Mapping[Widths, tuple[Quality, ...]]


def _qualities(run: _Run, measurements: Sequence[Measurement], storage: Storage) -> Qualities:
    """The quality of all models by widths, each measured once and kept in the storage."""
    found: dict[Widths, tuple[Quality, ...]] = {}
    for w in run.space.widths if measurements else ():
        if any(w in m.model.refused for m in measurements):
            continue
        row = []
        for m in measurements:
            key = f"quality-{m.model.name}-{w.short}"
            kept = storage.value(key)
            if kept is None and m.figures:
                measured = m.measure(w, run.progress)
                kept = [measured.sqnr_db, measured.accuracy]
                storage.keep(key, kept)
            row.append(Quality(*(kept or ())))
        found[w] = tuple(row)
    return found


def _judged(space: Space, quality: Qualities, point: Point, outcome: Outcome) -> Outcome:
    """The outcome with the quality that the point's widths have."""
    if outcome.reason or not quality:
        return outcome
    return replace(outcome, quality=quality[space.widths_of(point)])


def _evaluate_all(run: _Run, quality: Qualities, workers: Engine, storage: Storage) -> Exploration:
    known = storage.read("points")
    points: list[Point] = []
    outcomes: list[Outcome] = []
    figures: list[dict[str, float] | None] = []
    broken: list[dict[str, float]] = []
    kept = _Front(run.merit)
    base = run.space.base.model_dump(mode="json")
    size = samplers.chunk_size(run.sampler)
    generator = samplers.batches(run.space, run.sampler, run.request.seed, run.trials, len(run.merit.objectives))
    limit = run.trials or samplers.EXHAUSTIVE_LIMIT
    total = min(limit, run.space.size(limit))
    with run.progress.stage(f"explore {run.space.name} ({run.sampler})"):
        verdicts: list[Verdict] | None = None
        begin = time.perf_counter()
        fresh = 0
        while True:
            try:
                batch = generator.send(verdicts) if verdicts is not None else next(generator)
            except StopIteration:
                break
            offset, verdicts = len(points), []
            chunks = [(offset + i, batch[i : i + size]) for i in range(0, len(batch), size)]
            for first, chunk, result in _in_order(chunks, known, storage, "points", evaluate, workers):
                result = [_judged(run.space, quality, p, o) for p, o in zip(chunk, result, strict=True)]
                for number, (point, outcome) in enumerate(zip(chunk, result, strict=True), first):
                    f, b = _judge(run, base, point, outcome)
                    figures.append(f)
                    broken.append(b)
                    verdicts.append(_verdict(run.merit, f, b))
                    if f is not None and not b:
                        kept.add(number, f)
                points += chunk
                outcomes += result
                fresh += len(chunk) if first not in known else 0
                rate = fresh / (time.perf_counter() - begin)
                run.progress.advance(len(points), total, f"{rate:,.0f} points/s, {len(kept.numbers)} on the front")
    front = kept.settled()
    return Exploration(
        run.space, run.merit, run.sampler, run.request.seed, storage.identity, points, outcomes, figures, broken, front,
        quality=quality,
    )  # fmt: skip


def _in_order(
    chunks: Sequence[tuple[int, Sequence[Any]]], kept: Mapping[int, Chunk], storage: Storage, kind: str, work: Work,
    workers: Engine,
) -> Iterator[tuple[int, Sequence[Any], list[Outcome]]]:  # fmt: skip
    """All chunks in order; those that the storage does not hold are evaluated and kept as soon as they are done."""
    done: dict[int, list[Outcome]] = {}
    for first, items in chunks:
        try:
            outcomes = kept[first].head(items) if first in kept else None
        except ValueError:
            raise ExplorationError(
                f"storage {storage.where}: its points from {first} on are not those that this sampler chooses: another "
                "version wrote it; remove it to begin again"
            ) from None
        if outcomes is not None:
            done[first] = outcomes
    items_of = dict(chunks)
    todo = [c for c in chunks if c[0] not in done]
    # In closed form a point costs less among many, in the simulator it does not.
    points = 0 if work is simulate else sum(len(items) for _, items in todo)
    results = iter(workers.run(work, _elsewhere(todo, storage, kind, done), points))
    for first, items in chunks:
        while first not in done:
            key, outcomes = next(results, (first, done.get(first, [])))  # the last ones may have come from elsewhere
            if key in done:
                continue
            storage.write(kind, key, items_of[key], outcomes)
            done[key] = outcomes
        yield first, items, done.pop(first)


def _elsewhere(
    todo: Sequence[tuple[int, Sequence[Any]]], storage: Storage, kind: str, done: dict[int, list[Outcome]]
) -> Iterator[tuple[int, Sequence[Any]]]:
    """The chunks that nobody else has finished in the meantime, where the storage is shared between machines.

    Machines begin at different places of a batch, so that they meet as late as possible.
    """
    if not storage.shared or len(todo) < 2:
        yield from todo
        return
    start = int.from_bytes(os.urandom(4), "big") % len(todo)
    looked, found = time.monotonic(), dict[int, Chunk]()
    for first, items in (*todo[start:], *todo[:start]):
        if time.monotonic() - looked > 0.5:
            looked, found = time.monotonic(), storage.read(kind)
        if first in found and (outcomes := found[first].head(items)) is not None:
            done[first] = outcomes
        else:
            yield first, items


def _judge(
    run: _Run, base: Mapping[str, Any], point: Point, outcome: Outcome
) -> tuple[dict[str, float] | None, dict[str, float]]:
    if outcome.reason:
        return None, {}
    figures = run.merit.figures(outcome)
    fields: Mapping[str, Any] = _Fields(base, run.space.fields(point)) if run.merit.reads_fields else {}
    return figures, run.merit.violations(outcome, figures, fields)


class _Fields(dict[str, Any]):
    """The fields of a point's machine by dotted name, the base's where the point says nothing."""

    def __init__(self, base: Mapping[str, Any], fields: Mapping[str, Any]) -> None:
        super().__init__(fields)
        self._base = base

    def __missing__(self, name: str) -> Any:
        return lookup(self._base, name)


def _verdict(merit: Merit, figures: Mapping[str, float] | None, broken: Mapping[str, float]) -> Verdict:
    if figures is None:
        return Verdict(None, samplers.NOTHING)
    return Verdict(tuple(o.score(figures) for o in merit.objectives), sum(broken.values()))


class _Front:
    """The front of the points so far, kept up to date."""

    def __init__(self, merit: Merit) -> None:
        self.merit = merit
        self.numbers: list[int] = []
        self.costs = np.empty((0, len(merit.objectives)))

    def add(self, number: int, figures: Mapping[str, float]) -> None:
        cost = np.array([o.cost(figures) for o in self.merit.objectives])
        if (self.costs <= cost).all(axis=1).any():
            return
        stay = np.logical_not((cost <= self.costs).all(axis=1))
        self.costs = np.vstack([self.costs[stay], cost])
        self.numbers = [*(self.numbers[i] for i in np.flatnonzero(stay)), number]

    def settled(self) -> list[int]:
        """By the first objective, then the others."""
        return [self.numbers[i] for i in np.lexsort(self.costs.T[::-1])]


# ---------------------------------------------------------------------------------------- behind the front
def _study_front(run: _Run, found: Exploration, workers: Engine, storage: Storage) -> Exploration:
    """Prove the front, and say what matters and what to change."""
    front = sorted(found.front)
    simulated: dict[int, Outcome] = {}
    if run.request.simulate_front and front:
        chunks = [(n, [found.points[n]]) for n in front]
        with run.progress.stage("simulate the front"):
            for first, _, result in _tracked(run, chunks, storage, "simulated", simulate, workers):
                simulated[first] = _judged(run.space, found.quality, found.points[first], result[0])
    with run.progress.stage("which field matters"):
        effects = _effects(run, found, workers, storage)
    following: dict[int, dict[str, Outcome]] = {n: {} for n in front}
    items = [(n, resource) for n in front for resource in RESOURCES]
    questions = [
        (i, [(found.points[n], r) for n, r in items[i : i + NEXT_CHUNK]]) for i in range(0, len(items), NEXT_CHUNK)
    ]
    kind = "next-" + digest([list(found.points[n]) for n in front])[:8]  # another front asks other questions
    with run.progress.stage("what to change next"):
        for first, chunk, result in _tracked(run, questions, storage, kind, doubled, workers):
            for (n, resource), outcome in zip(items[first : first + len(chunk)], result, strict=True):
                following[n][resource] = _judged(run.space, found.quality, found.points[n], outcome)
    return replace(found, simulated=simulated, effects=effects, next=following)


def _tracked(
    run: _Run, chunks: Sequence[tuple[int, Sequence[Any]]], storage: Storage, kind: str, work: Work, workers: Engine
) -> Iterator[tuple[int, Sequence[Any], list[Outcome]]]:
    known = storage.read(kind)
    for i, done in enumerate(_in_order(chunks, known, storage, kind, work, workers), 1):
        yield done
        run.progress.advance(i, len(chunks), "")


def _effects(run: _Run, found: Exploration, workers: Engine, storage: Storage) -> dict[str, list[Effect]]:
    merit = run.merit
    if run.sampler == "exhaustive":
        good = [(p, f) for p, f in zip(found.points, found.figures, strict=True) if f is not None]
        points = [p for p, _ in good]
        if not points:
            return {o.figure: [Effect(0.0, 0.0)] * len(run.space.axes) for o in merit.objectives}
        return {o.figure: sensitivity.effects(points, [o.score(f) for _, f in good]) for o in merit.objectives}
    sweeps = sensitivity.sweeps(run.space, run.request.seed, SWEEPS)
    wanted = list(dict.fromkeys(p for lines in sweeps for line in lines for p in line))
    size = samplers.CHUNK
    chunks = [(i, wanted[i : i + size]) for i in range(0, len(wanted), size)]
    figures: dict[Point, dict[str, float] | None] = {}
    for _, chunk, result in _tracked(run, chunks, storage, "sweeps", evaluate, workers):
        for point, outcome in zip(chunk, result, strict=True):
            judged = _judged(run.space, found.quality, point, outcome)
            figures[point] = None if judged.reason else merit.figures(judged)
    centres = sensitivity.centres(run.space, run.request.seed, SWEEPS)
    effects = {}
    for o in merit.objectives:

        def score(point: Point, value: Callable[..., float] = o.score) -> float | None:
            known = figures[point]
            return None if known is None else value(known)

        lines = [[[score(p) for p in line] for line in sweep] for sweep in sweeps]
        effects[o.figure] = sensitivity.swept_effects(lines, [score(p) for p in centres])
    return effects


# ------------------------------------------------------------------------------------------------ options
def _models(request: Request, space: Space) -> dict[str, tuple[Path, ModelOptions]]:
    given = {name_of(Path(p)): Path(p) for p in request.models}
    if len(given) < len(request.models):
        raise ExplorationError("two models have the same name; give different files, or copies with other names")
    described = dict(space.models or {})
    if given:
        for name in described:
            if name not in given and described[name].path is None:
                near = did_you_mean(name, given)
                raise ExplorationError(f"models.{name}: is no model on the command line, and has no path{near}")
    paths = {n: Path(o.path) for n, o in described.items() if o.path is not None} | given
    if not paths:
        raise ExplorationError(
            "there is no model; give an ONNX file or an artefact, or models with a path in the space"
        )
    missing = [n for n in described if n not in paths]
    if missing:
        raise ExplorationError(f"models.{missing[0]}: give its path, or the model on the command line")
    return {n: (p, described.get(n, ModelOptions())) for n, p in paths.items()}


def _data(request: Request, options: ModelOptions) -> Data:
    """The samples of a model: the space's own, or what was given for all."""
    own = options.calibration or options.evaluation or options.labels
    if own:
        return Data(options.calibration, options.evaluation, options.labels)
    return Data(request.calibration, request.evaluation, request.labels)


def _measured(
    options: Mapping[str, tuple[Path, ModelOptions]], data: Mapping[str, Data], space: Space, wanted: Sequence[str]
) -> dict[str, tuple[str, ...]]:
    """Which figures of quality each model has: what its data allows, where anything asks for them."""
    possible = {n: data[n].figures(path) for n, (path, _) in options.items()}
    asked = len(space.widths) > 1 or any(q in text for text in wanted for q in QUALITY_ALIASES)
    said = any(d.evaluation is not None or d.labels is not None for d in data.values())
    return possible if asked or said else {}


def _sampler(request: Request, space: Space) -> tuple[str, int | None]:
    sampler = request.sampler
    if sampler is None:
        small = request.trials is None and space.size(DEFAULT_EXHAUSTIVE) <= DEFAULT_EXHAUSTIVE
        sampler = "exhaustive" if small else "nsga2"
    if sampler not in SAMPLERS:
        raise ExplorationError(
            f"unknown sampler {sampler!r}; it is one of {', '.join(SAMPLERS)}{did_you_mean(sampler, SAMPLERS)}"
        )
    if sampler == "exhaustive":
        if request.trials is not None:
            raise ExplorationError("--trials is for samplers that choose points; exhaustive takes all of them")
        return sampler, None
    return sampler, request.trials if request.trials is not None else DEFAULT_TRIALS
