"""Optuna's samplers, asked for a batch of new machines at a time.

What is added, through Optuna's own hooks, and why:

- A machine that is known is not proposed again: its trial ends as failed, so that no copy of it enters a generation.
- NSGA-II tells points of one rank apart by the hypervolume that each alone adds to it: who survives, where Optuna has
  the crowding distance, which says little with three objectives, and who becomes a parent, where it has chance. An
  ordered axis mutates by steps, since neighbouring choices make similar machines.
- TPE fits its densities once a batch instead of once a point: each point of a batch is the best new one among its own
  candidates. A fit goes through all trials in Python; one for each of 600 points took 27 s.
"""

from __future__ import annotations

import warnings
from collections.abc import Container, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from qcompiler.exploration.storage import require_optuna
from qcompiler.sim.explore import pareto
from qcompiler.sim.explore.space import INACTIVE, Point, Space

Floats = npt.NDArray[np.float64]
BATCH = 40  # points that a sampler chooses before it hears of the first: a generation of NSGA-II
ASKS = 10  # times that a sampler may repeat itself for each point of a batch
CANDIDATES = 8  # of TPE for each point of a batch
ALONE = 0.1  # chance that a child of NSGA-II has one parent
ROUNDS = 5  # in which those who do not survive are found, each after what is left
FURTHER = 0.5  # chance that a mutation goes one step more


class Sampler(Protocol):
    """What chooses points by what it learned."""

    def choose(self, count: int, known: Container[Point]) -> list[Point]:
        """Up to `count` different points that are not known; a larger count begins with the same points."""

    def learn(self, points: Sequence[Point], scores: Sequence[Sequence[float]], violations: Sequence[float]) -> None:
        """The outcomes of points that need not be the sampler's own."""


class Nsga2:
    """Optuna's NSGA-II: its generations, with `_survivors` and `_Children`."""

    def __init__(self, space: Space, objectives: int, seed: int) -> None:
        optuna, self._space = require_optuna(), space
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.NSGAIISampler(
                population_size=BATCH, elite_population_selection_strategy=_survivors,
                child_generation_strategy=_Children(space, seed), seed=seed,
            )  # fmt: skip
        self._study = optuna.create_study(directions=["minimize"] * objectives, sampler=sampler)
        self._failed = optuna.trial.TrialState.FAIL
        self._waiting: dict[Point, Any] = {}

    def choose(self, count: int, known: Container[Point]) -> list[Point]:
        for _ in range(ASKS * BATCH):
            if len(self._waiting) == count:
                break
            trial = self._study.ask()
            point = _suggest(self._space, trial)
            if point in known or point in self._waiting:
                self._study.tell(trial, state=self._failed)
            else:
                self._waiting[point] = trial
        return list(self._waiting)

    def learn(self, points: Sequence[Point], scores: Sequence[Sequence[float]], violations: Sequence[float]) -> None:
        for point, values, violation in zip(points, scores, violations, strict=True):
            trial = self._waiting.pop(point, None)
            if trial is None:
                self._study.enqueue_trial(_parameters(self._space, point))
                trial = self._study.ask()
                _suggest(self._space, trial)
                _ = trial.relative_params  # what makes it one of the generation
            trial.set_constraint("limits", violation)
            self._study.tell(trial, values)


class _Children:
    """Parameters of a child: Optuna calls this with the axes that all trials have, and with the parents.

    Two tournaments of two, by rank and then by what each adds to the hypervolume of its rank; uniform crossover; each
    axis mutates with probability 1/axes, an ordered one by steps whose number is geometric, reflected at the ends.
    """

    def __init__(self, space: Space, seed: int) -> None:
        self._axes = {axis.name: axis for axis in space.axes}
        self._rng = np.random.default_rng(seed)
        self._of: tuple[int, ...] = ()
        self._fitness: list[tuple[float, float]] = []

    def __call__(self, study: Any, search_space: dict[str, Any], parents: list[Any]) -> dict[str, int]:
        if self._of != (of := tuple(t.number for t in parents)):
            self._of, self._fitness = of, _fitness(parents)
        rng, one, other = self._rng, self._pick(parents), self._pick(parents)
        child = dict[str, int]()
        for name in search_space:
            crossed = rng.random() < 0.5
            child[name] = (other if crossed else one).params[name]
        if rng.random() < ALONE:
            child = {name: one.params[name] for name in search_space}
        for name in search_space:
            if rng.random() < 1 / len(search_space):
                child[name] = self._mutated(child[name], name)
        return child

    def _pick(self, parents: list[Any]) -> Any:
        a, b = (int(i) for i in self._rng.integers(len(parents), size=2))
        return parents[a if self._fitness[a] < self._fitness[b] else b]

    def _mutated(self, choice: int, name: str) -> int:
        axis, last = self._axes[name], len(self._axes[name].choices) - 1
        if not axis.ordered:
            return int(self._rng.integers(last + 1))
        steps = int(self._rng.geometric(1 - FURTHER)) * (1 if self._rng.random() < 0.5 else -1)
        moved = choice + steps if 0 <= choice + steps <= last else choice - steps
        return min(max(moved, 0), last)


def _survivors(study: Any, population: list[Any]) -> list[Any]:
    """The best `BATCH`: whole ranks, and of the rank that does not fit those that add most to its hypervolume."""
    ranks, kept = _ranks(population), list[int]()
    for rank in np.unique(ranks):
        alike, room = np.flatnonzero(ranks == rank), BATCH - len(kept)
        if room == 0:
            break
        for rounds in range(ROUNDS, 0, -1):  # who is left adds more once a neighbour is gone
            least = -(-max(len(alike) - room, 0) // rounds)
            alike = alike[np.argsort(_added(population, alike), kind="stable")[least:]]
        kept += sorted(alike.tolist())
    return [population[i] for i in kept]


def _fitness(trials: Sequence[Any]) -> list[tuple[float, float]]:
    """Of each trial, less is better: its rank, then less of what it alone adds to the hypervolume of its rank."""
    ranks, added = _ranks(trials), np.zeros(len(trials))
    for rank in np.unique(ranks):
        alike = np.flatnonzero(ranks == rank)
        added[alike] = _added(trials, alike)
    return [(float(rank), -float(volume)) for rank, volume in zip(ranks, added, strict=True)]


def _ranks(trials: Sequence[Any]) -> Floats:
    """0 for the front of those that keep the limits, 1 for the front of the rest of them, ...; then by violation."""
    values = np.array([t.values for t in trials], float)
    violations = np.array([sum(max(v, 0.0) for v in t.constraints.values()) for t in trials])
    ranks, left, rank = len(trials) + violations, np.flatnonzero(violations == 0), 0
    while len(left):
        front = left[pareto.front(values[left])]
        ranks[front] = rank
        left, rank = np.setdiff1d(left, front), rank + 1
    return np.asarray(ranks)


def _added(trials: Sequence[Any], alike: npt.NDArray[np.int64]) -> Floats:
    values = np.array([trials[i].values for i in alike], float)
    low, high = values.min(axis=0), values.max(axis=0)
    span = np.where(high > low, high - low, 1.0)
    return pareto.exclusive((values - low) / span, np.full(len(low), 1.1))


class Tpe:
    """Optuna's multivariate TPE, by groups of axes where some are conditional."""

    def __init__(self, space: Space, objectives: int, seed: int) -> None:
        optuna: Any = require_optuna()
        self._space = space
        self._candidates: list[tuple[dict[str, Floats], Floats]] = []
        candidates = self._candidates

        base: Any = optuna.samplers.TPESampler

        class Recorded(base):  # type: ignore[misc] # Optuna is there only when it is needed
            """Keeps the candidates that it draws. The method is not public: without it a fit gives one point."""

            def _compute_acquisition_func(self, samples: Any, below: Any, above: Any) -> Any:
                merits = super()._compute_acquisition_func(samples, below, above)
                candidates.append((samples, merits))
                return merits

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = Recorded(
                n_startup_trials=BATCH, n_ei_candidates=CANDIDATES * BATCH, multivariate=True,
                group=any(axis.when for axis in space.axes), constant_liar=False, seed=seed,
            )  # fmt: skip
        self._study = optuna.create_study(directions=["minimize"] * objectives, sampler=sampler)
        self._failed = optuna.trial.TrialState.FAIL
        self._rng = np.random.default_rng(seed)
        self._told = 0
        self._trial = optuna.trial.create_trial
        self._distributions = {
            axis.name: optuna.distributions.IntDistribution(0, len(axis.choices) - 1)
            if axis.ordered
            else optuna.distributions.CategoricalDistribution(list(range(len(axis.choices))))
            for axis in space.axes
        }

    def choose(self, count: int, known: Container[Point]) -> list[Point]:
        chosen = dict[Point, None]()
        for _ in range(ASKS if self._told >= BATCH else ASKS * BATCH):
            self._candidates.clear()
            trial = self._study.ask()
            asked = _suggest(self._space, trial)
            self._study.tell(trial, state=self._failed)
            for slot in self._slots() or [[asked]]:
                new = next((p for p in slot if p not in known and p not in chosen), None)
                if new is not None and len(chosen) < count:
                    chosen[new] = None
            if len(chosen) == count:
                break
        return list(chosen)

    def _slots(self) -> list[list[Point]]:
        """The candidates of the last fit in groups, the best of each first. Axes of separate groups are independent:
        their merits, logarithms of ratios of densities, add up."""
        if not self._candidates:
            return []
        total = np.sum([merits for _, merits in self._candidates], axis=0)
        drawn = {name: column for samples, _ in self._candidates for name, column in samples.items()}
        points = []
        for i in range(len(total)):
            rest = self._space.draw(self._rng)  # axes that no trial had yet
            choices = [
                int(drawn[axis.name][i]) if axis.name in drawn else choice
                for axis, choice in zip(self._space.axes, rest, strict=True)
            ]
            points.append(self._space.settle(choices))
        groups = [range(i, min(i + CANDIDATES, len(points))) for i in range(0, len(points), CANDIDATES)]
        return [[points[i] for i in sorted(group, key=lambda i: -total[i])] for group in groups]

    def learn(self, points: Sequence[Point], scores: Sequence[Sequence[float]], violations: Sequence[float]) -> None:
        for point, values, violation in zip(points, scores, violations, strict=True):
            parameters = _parameters(self._space, point)
            self._study.add_trial(
                self._trial(
                    values=values, params=parameters, constraints={"limits": violation},
                    distributions={name: self._distributions[name] for name in parameters},
                )
            )  # fmt: skip
        self._told += len(points)


def sampler(name: str, space: Space, objectives: int, seed: int) -> Sampler:
    """The sampler of that name, tpe or nsga2."""
    return Tpe(space, objectives, seed) if name == "tpe" else Nsga2(space, objectives, seed)


def _parameters(space: Space, point: Point) -> dict[str, int]:
    return {axis.name: i for axis, i in zip(space.axes, point, strict=True) if i != INACTIVE}


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
