"""Which points are tried, and in which order: each a generator of batches that is sent the batch's merits.

The sequence depends on space, seed and merits alone: what is sent back to Optuna, and when, is the same whatever the
number of workers, and after an interruption the sampler runs again over the outcomes that were kept.
"""

from __future__ import annotations

import warnings
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import numpy as np

from qcompiler.exploration.storage import require_optuna
from qcompiler.sim.errors import ExplorationError
from qcompiler.sim.explore.space import INACTIVE, Point, Space

SAMPLERS = ("exhaustive", "random", "tpe", "nsga2")
EXHAUSTIVE_LIMIT = 1_000_000
CHUNK = 128  # points that are stored together
BATCH = 40  # points that an adaptive sampler chooses before it hears of the first
NOTHING = 1e6  # the score of what is no machine at all; its violation keeps it behind everything else
ASKS = 10  # times that an adaptive sampler may repeat itself for each new point


@dataclass(frozen=True)
class Verdict:
    """What a sampler hears of a point. scores: the objectives, less is better; None where there is no such machine.
    violation: by how much it breaks its constraints; 0 where it does not."""

    scores: tuple[float, ...] | None
    violation: float


Batches = Generator[list[Point], list[Verdict], None]


def batches(space: Space, sampler: str, seed: int, trials: int | None, objectives: int) -> Batches:
    """The batches of a sampler. Raises ExplorationError for a space that is too large to go through."""
    if sampler == "exhaustive":
        return _exhaustive(space)
    assert trials is not None
    if sampler == "random":
        return _random(space, seed, trials)
    return _adaptive(space, sampler, seed, trials, objectives)


def chunk_size(sampler: str) -> int:
    """Points a chunk: many where they are known long before, few where the sampler waits for them."""
    return CHUNK if sampler in ("exhaustive", "random") else BATCH // 2


def _exhaustive(space: Space) -> Batches:
    if space.size(EXHAUSTIVE_LIMIT) > EXHAUSTIVE_LIMIT:
        raise ExplorationError(
            f"space {space.name!r} has more than {EXHAUSTIVE_LIMIT:,} points; take --sampler nsga2, tpe or random with "
            "--trials"
        )
    yield list(space.points())


def _random(space: Space, seed: int, trials: int) -> Batches:
    """Different points, each as likely as the next: a longer run begins with the shorter one."""
    if space.size(EXHAUSTIVE_LIMIT) <= EXHAUSTIVE_LIMIT:
        everything = list(space.points())
        order = np.random.default_rng(seed).permutation(len(everything))
        yield [everything[i] for i in order[:trials]]
        return
    rng, found = np.random.default_rng(seed), dict[Point, None]()
    while len(found) < trials:
        found[space.draw(rng)] = None
    yield list(found)


def _adaptive(space: Space, sampler: str, seed: int, trials: int, objectives: int) -> Batches:
    """Optuna asks and is told in memory, in an order that is fixed; only new points are handed out."""
    optuna = require_optuna()
    study = optuna.create_study(directions=["minimize"] * objectives, sampler=_sampler(optuna, space, sampler, seed))
    known: dict[Point, Verdict] = {}
    limit = min(trials, space.size(trials))
    idle = 0
    while len(known) < limit and idle < ASKS * BATCH:
        fresh: dict[Point, list[Any]] = {}
        asked = 0
        while len(fresh) < min(BATCH, limit - len(known)) and asked < ASKS * BATCH:
            trial = study.ask()
            point, asked = _suggest(space, trial), asked + 1
            if point in known:
                _tell(study, trial, known[point], objectives)
            else:
                fresh.setdefault(point, []).append(trial)
        idle = 0 if fresh else idle + asked
        if not fresh:
            break
        verdicts = yield list(fresh)
        for (point, waiting), verdict in zip(fresh.items(), verdicts, strict=True):
            known[point] = verdict
            for trial in waiting:
                _tell(study, trial, verdict, objectives)


def _sampler(optuna: Any, space: Space, name: str, seed: int) -> Any:
    conditional = any(axis.when for axis in space.axes)

    if name == "nsga2":
        # Choices are steps along an axis: blending parents finds the steps between them (benchmarks/samplers.py).
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            blend = optuna.samplers.nsgaii.BLXAlphaCrossover()
        return optuna.samplers.NSGAIISampler(population_size=BATCH, crossover=blend, seed=seed)
    return optuna.samplers.TPESampler(
        n_startup_trials=BATCH, multivariate=True, group=conditional, constant_liar=True, seed=seed,
    )  # fmt: skip


def _suggest(space: Space, trial: Any) -> Point:
    head: list[int] = []
    for i, axis in enumerate(space.axes):
        if not space.active(i, head):
            head.append(INACTIVE)
        elif axis.ordered:
            head.append(trial.suggest_int(axis.name, 0, len(axis.choices) - 1))
        else:
            head.append(trial.suggest_categorical(axis.name, list(range(len(axis.choices)))))
    return tuple(head)


def _tell(study: Any, trial: Any, verdict: Verdict, objectives: int) -> None:
    trial.set_constraint("limits", verdict.violation)
    study.tell(trial, verdict.scores or (NOTHING,) * objectives)
