"""How much of the best hypervolume each sampler finds: python benchmarks/samplers.py MODEL... [--seeds 5] [--share 0.1]

Every machine of a space is evaluated once (kept in --cache); then each sampler explores the space, answered from that
table. Objectives: latency, energy and area. Hypervolume: of the logarithms, scaled to 0..1 between the best and the
worst machine of the space, below the reference 1.1 in each; and of the figures themselves, scaled alike.
Prints Markdown: the share of the exhaustive hypervolume, the median over the seeds and each of them. --joint adds the
case of all models at once, each weighted such that all take the same time on the
machine that is quickest for it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np

from qcompiler.exploration import cores, samplers
from qcompiler.exploration.engines import engine
from qcompiler.exploration.evaluation import Context, evaluate
from qcompiler.exploration.models import load, name_of
from qcompiler.exploration.samplers import Verdict
from qcompiler.progress import Progress
from qcompiler.sim.explore import pareto, space_file
from qcompiler.sim.explore.merit import Merit, Outcome
from qcompiler.sim.explore.space import ModelOptions, Point, Space

SPACE = Path(__file__).parents[1] / "examples" / "explore" / "tiny.yaml"
CHUNK = 256


def outcomes(space: Space, path: Path, cache: Path) -> dict[Point, Outcome]:
    """Every machine of the space with this model."""
    points, name = list(space.points()), name_of(path)
    kept = cache / f"{name}.json"
    if kept.exists():
        rows = json.loads(kept.read_text())
        return {p: Outcome.from_json(r) for p, r in zip(points, rows, strict=True)}
    context = Context(space, {name: load(path, name, {}, None, False, Progress()).core})
    tasks = [(i, points[i : i + CHUNK]) for i in range(0, len(points), CHUNK)]
    begin = time.perf_counter()
    with engine(context, cores(), None) as workers:
        done = dict(workers.run(evaluate, tasks, len(points)))
    found = [o for i, _ in tasks for o in done[i]]
    print(f"{name}: {len(points) / (time.perf_counter() - begin):,.0f} machines/s with {cores()} workers", flush=True)
    cache.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps([o.to_json() for o in found]))
    return dict(zip(points, found, strict=True))


def joint(tables: dict[str, dict[Point, Outcome]]) -> tuple[dict[str, ModelOptions], dict[Point, Outcome]]:
    """All models on each machine, with weights that make their least latencies equal."""
    weights = {
        name: ModelOptions(1 / min(o.costs[0].cycles / o.clock_mhz for o in table.values() if not o.reason))
        for name, table in tables.items()
    }
    together = {}
    for point, first in next(iter(tables.values())).items():
        found = [table[point] for table in tables.values()]
        reason = next((o.reason for o in found if o.reason), "")
        costs = tuple(cost for o in found for cost in o.costs)
        together[point] = Outcome(reason) if reason else replace(first, costs=costs)
    return weights, together


class Ruler:
    """Hypervolumes of sets of points as shares of what all points reach."""

    def __init__(self, merit: Merit, table: dict[Point, Outcome]) -> None:
        self.costs: dict[Point, np.ndarray] = {}
        self.scores: dict[Point, tuple[float, ...] | None] = {}
        for point, outcome in table.items():
            figures = None if outcome.reason else merit.figures(outcome)
            self.scores[point] = figures and tuple(o.score(figures) for o in merit.objectives)
            if figures:
                self.costs[point] = np.array([o.cost(figures) for o in merit.objectives])
        everything = np.array(list(self.costs.values()))
        self.low, self.high = everything.min(axis=0), everything.max(axis=0)
        self.reference = np.full(len(self.low), 1.1)
        self.best = self._volumes(everything)

    def _volumes(self, costs: np.ndarray) -> tuple[float, float]:
        linear = (costs - self.low) / (self.high - self.low)
        return (
            pareto.hypervolume(pareto.normalised(costs, self.low, self.high), self.reference),
            pareto.hypervolume(linear, self.reference),
        )

    def shares(self, points: Sequence[Point]) -> tuple[float, float]:
        found = self._volumes(np.array([self.costs[p] for p in points if p in self.costs]))
        return found[0] / self.best[0], found[1] / self.best[1]


def explore(space: Space, ruler: Ruler, sampler: str, seed: int, trials: int) -> list[Point]:
    """The points that a sampler chooses."""
    generator, points = samplers.batches(space, sampler, seed, trials, 3), list[Point]()
    verdicts: list[Verdict] | None = None
    while True:
        try:
            batch = generator.send(verdicts) if verdicts is not None else next(generator)
        except StopIteration:
            return points
        points += batch
        scores = [ruler.scores[p] for p in batch]
        verdicts = [Verdict(s, 0.0 if s else samplers.NOTHING) for s in scores]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL", help="ONNX models or artefacts")
    parser.add_argument("--space", type=Path, default=SPACE)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--share", type=float, default=0.1, help="evaluations, as a share of the space")
    parser.add_argument("--joint", action="store_true", help="all models at once as well")
    parser.add_argument("--samplers", default="random,tpe,nsga2")
    parser.add_argument("--cache", type=Path, default=Path("samplers-cache"))
    options = parser.parse_args()
    space = space_file.load(options.space)
    trials = int(options.share * space.size(samplers.EXHAUSTIVE_LIMIT))
    rows = []
    tables = {name_of(path): outcomes(space, path, options.cache) for path in options.models}
    cases = {name: ({name: ModelOptions()}, table) for name, table in tables.items()}
    if options.joint:
        cases["all at once"] = joint(tables)
    for name, (models, table) in cases.items():
        ruler = Ruler(Merit(models, ("latency", "energy", "area"), ()), table)
        for sampler in options.samplers.split(","):
            begin = time.perf_counter()
            found = [explore(space, ruler, sampler, seed, trials) for seed in range(options.seeds)]
            seconds = (time.perf_counter() - begin) / options.seeds
            shares = np.array([ruler.shares(points) for points in found])
            tried = max(map(len, found))
            seeds = ", ".join(f"{100 * share:.2f}" for share in shares[:, 0])
            rows.append(
                f"| {name} | {sampler} | {tried} of {len(table)} | {median(shares[:, 0]):.2%} | {seeds} | "
                f"{median(shares[:, 1]):.2%} | {shares[:, 1].min():.2%} | {seconds:.1f} |"
            )
            print(rows[-1], flush=True)
    print("\n| model | sampler | evaluations | hypervolume | each seed, % | linear | its worst | sampler's s |")
    print("|---|---|---|---|---|---|---|---|\n" + "\n".join(rows))


if __name__ == "__main__":
    main()
