"""Which points are tried, and in which order: each a generator of batches that is sent the batch's merits.

The sequence depends on space, seed and merits alone: what is sent back to Optuna, and when, is the same whatever the
number of workers, and after an interruption the sampler runs again over the outcomes that were kept.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

from qcompiler.exploration import adaptive
from qcompiler.exploration.adaptive import BATCH
from qcompiler.sim.errors import ExplorationError
from qcompiler.sim.explore.space import Point, Space

SAMPLERS = ("exhaustive", "random", "tpe", "nsga2")
EXHAUSTIVE_LIMIT = 1_000_000
CHUNK = 128  # points that are stored together
NOTHING = 1e6  # the score of what is no machine at all; its violation keeps it behind everything else


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
    yield list(islice(_shuffled(space, seed), trials))


def _shuffled(space: Space, seed: int) -> Iterator[Point]:
    """Different points, each as likely as the next: a longer run begins with the shorter one."""
    rng = np.random.default_rng(seed)
    if space.size(EXHAUSTIVE_LIMIT) <= EXHAUSTIVE_LIMIT:
        everything = list(space.points())
        yield from (everything[i] for i in rng.permutation(len(everything)))
        return
    found = set[Point]()
    while True:
        if (point := space.draw(rng)) not in found:
            found.add(point)
            yield point


def _adaptive(space: Space, name: str, seed: int, trials: int, objectives: int) -> Batches:
    """Only new points are handed out; random ones where the sampler repeats itself."""
    sampler = adaptive.sampler(name, space, objectives, seed)
    limit = min(trials, space.size(trials))
    known = dict.fromkeys(corners(space)[: min(BATCH // 2, limit)])
    chosen, others = list(known), _shuffled(space, seed)
    while True:
        count = min(BATCH, limit - len(known) + len(chosen))
        filling = list(islice((p for p in others if p not in known), count - len(chosen)))
        known.update(dict.fromkeys(filling))
        chosen += filling
        verdicts = yield chosen
        if len(known) == limit:
            return
        scores = [v.scores or (NOTHING,) * objectives for v in verdicts]
        sampler.learn(chosen, scores, [v.violation for v in verdicts])
        chosen = sampler.choose(min(BATCH, limit - len(known)), known)
        known.update(dict.fromkeys(chosen))


def corners(space: Space) -> list[Point]:
    """Points whose every axis has its first or its last choice, such that each axis and each pair of axes has all
    combinations equally often: a Hadamard design and its reverse, twice the least power of two above the axes.

    What is extreme in one figure is often near a corner, and few of them hold all that there is to recombine.
    """
    rows = 1 << len(space.axes).bit_length()
    found = dict[Point, None]()
    for row in range(rows):
        signs = [(row & axis).bit_count() % 2 for axis in range(1, len(space.axes) + 1)]
        for high in (0, 1):
            ends = [(sign ^ high) * (len(a.choices) - 1) for sign, a in zip(signs, space.axes, strict=True)]
            found[space.settle(ends)] = None
    return list(found)
