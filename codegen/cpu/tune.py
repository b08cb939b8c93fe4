"""`--tune`: tiles by measurement instead of by the cost model, within a time budget, for the layers that matter.

The model ranks the ways to cut each shape of matrix work; here the best of them run on this machine, each against the
one that has won so far, in turns. All shapes get their second candidate before one gets its third, the heavy ones
first, so a short budget is spent where the time goes. What was found is remembered by CPU, level, code and shape.
"""

from __future__ import annotations

import functools
import hashlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from qcompiler.codegen.cache import JsonCache, cache_directory
from qcompiler.codegen.cpu.contraction import Geometry
from qcompiler.codegen.cpu.isa.base import VectorInstructionSet
from qcompiler.codegen.cpu.kernel import Array, Step
from qcompiler.codegen.cpu.lower import Lowered, lower
from qcompiler.codegen.cpu.matrix_work import Tiling, candidate_tilings, tilings
from qcompiler.codegen.cpu.measure import LoadedSteps
from qcompiler.sim.integer_program import IntegerProgram

CANDIDATES = 8
AT_ONCE = 8  # shapes that are compiled and measured together
REPEATS = 12
LEAST_GAIN = 0.03  # what is closer is noise
HEAVY = 0.98  # of the multiply-accumulates: shapes beyond are left to the model


class Loaded(Protocol):
    def seconds(self, step: int, repeat: int = 20, least: float = 2e-4) -> float: ...


Load = Callable[[Sequence[Step], VectorInstructionSet, Mapping[str, Array]], Loaded]


@dataclass(frozen=True)
class Tuned:
    """chosen: how to cut the shapes where the model's choice lost. operations: the name of an operation of each such
    shape. before, after: seconds of an inference in the shapes measured now; measured: how many; known: how many
    were remembered."""

    level: str
    chosen: Mapping[Geometry, Tiling]
    operations: Mapping[Geometry, str]
    before: float
    after: float
    measured: int
    known: int


@dataclass
class _Champion:
    """The fastest tiling of a shape so far: where it is loaded, and how many candidates were tried."""

    tiling: Tiling
    loaded: Loaded
    index: int
    tried: int = 1
    first_seconds: float = 0.0
    seconds: float = 0.0


def tune(
    program: IntegerProgram, isa: VectorInstructionSet, budget: float, tell: Callable[[str], None],
    load: Load = LoadedSteps, clock: Callable[[], float] = time.perf_counter, cpu: str | None = None,
) -> Tuned:  # fmt: skip
    """Search for `budget` seconds on this CPU, which must have the level. tell: is told what happens."""
    deadline = clock() + budget
    cache = JsonCache(cache_directory() / "tiles.json", tell)
    base = lower(program, isa)
    shapes = _heavy_shapes(program, base)
    candidates = {g: candidate_tilings(isa, g, CANDIDATES) for g in shapes}
    prefix = f"{cpu or cpu_model()} | {isa.name} | {code_digest()} | "
    best = {g: options[0] for g, options in candidates.items()}
    tried = dict.fromkeys(shapes, 1)
    known = 0
    for g, entry in (
        (g, entry) for entries in [cache.read()] for g in shapes if (entry := entries.get(f"{prefix}{g}"))
    ):
        found = next((c for c in candidates[g] if repr(c) == entry.get("tile")), None)
        if found is not None and isinstance(entry.get("tried"), int):
            best[g], tried[g], known = found, entry["tried"], known + 1
    open_shapes = [g for g in shapes if tried[g] < len(candidates[g])]
    tell(f"tuning {isa.name}: {len(shapes)} shapes, {len(shapes) - len(open_shapes)} known, at most {budget:g} s")
    inputs = _Inputs(program, base)
    champions: dict[Geometry, _Champion] = {}
    longest = 0.0
    while open_shapes:
        # The fewest tried first, the heaviest among them: `shapes` is in that order, and sorting keeps it.
        part = sorted(open_shapes, key=lambda g: champions[g].tried if g in champions else tried[g])[:AT_ONCE]
        started = clock()
        if started + longest > deadline:
            break
        _round(program, isa, part, candidates, best, tried, champions, inputs, load)
        longest = max(longest, clock() - started)
        cache.update({f"{prefix}{g}": {"tile": repr(best[g]), "tried": tried[g]} for g in part})
        open_shapes = [g for g in shapes if tried[g] < len(candidates[g])]
        gained = sum(1 for c in champions.values() if c.seconds < c.first_seconds)
        tell(f"  {sum(tried.values())} of {sum(map(len, candidates.values()))} ways tried, {gained} shapes faster")
    before, after = (
        sum(shapes[g].count * getattr(c, f) for g, c in champions.items()) for f in ("first_seconds", "seconds")
    )
    chosen = {g: tiling for g, tiling in best.items() if tiling != candidates[g][0]}
    return Tuned(
        isa.name, chosen, {g: shapes[g].operation for g in chosen}, before, after, len(champions), known
    )  # fmt: skip


def _round(
    program: IntegerProgram, isa: VectorInstructionSet, part: Sequence[Geometry],
    candidates: Mapping[Geometry, Sequence[Tiling]], best: dict[Geometry, Tiling], tried: dict[Geometry, int],
    champions: dict[Geometry, _Champion], inputs: _Inputs, load: Load,
) -> None:  # fmt: skip
    """The next candidate of each shape against its champion."""
    fresh = [g for g in part if g not in champions]
    if fresh:
        steps = _steps_of(program, isa, {g: best[g] for g in fresh})
        if steps:
            loaded = load(list(steps.values()), isa, inputs.of(steps.values()))
            champions.update((g, _Champion(best[g], loaded, i)) for i, g in enumerate(steps))
    challengers = {g: candidates[g][tried[g]] for g in part if g in champions}
    steps = _steps_of(program, isa, challengers)
    for g in part:
        if g not in champions:  # lowered to another shape than the one that the choice is made for
            tried[g] = len(candidates[g])
        elif g not in steps:
            tried[g] += 1
    if not steps:
        return
    loaded = load(list(steps.values()), isa, inputs.of(steps.values()))
    for i, g in enumerate(steps):
        champion = champions[g]
        old = new = float("inf")
        for _ in range(REPEATS):  # in turns, so that both see the same machine
            old = min(old, champion.loaded.seconds(champion.index, 1))
            new = min(new, loaded.seconds(i, 1))
        # A machine that has become faster or slower since the first measurement does not change what was gained.
        champion.first_seconds = champion.first_seconds * old / champion.seconds if champion.seconds else old
        champion.seconds = old
        tried[g] += 1
        if new < old * (1 - LEAST_GAIN):
            best[g] = champion.tiling = challengers[g]
            champion.loaded, champion.index, champion.seconds = loaded, i, new
        champion.tried = tried[g]


def _steps_of(
    program: IntegerProgram, isa: VectorInstructionSet, wanted: Mapping[Geometry, Tiling]
) -> dict[Geometry, Step]:
    """One step of each geometry, cut as wanted."""
    with tilings(wanted):
        steps = lower(program, isa).steps
    found: dict[Geometry, Step] = {}
    for step in steps:
        geometry: Any = step.kernel.parameters.get("geometry")
        if geometry in wanted and step.kernel.parameters.get("tile") == wanted[geometry]:
            found.setdefault(geometry, step)
    return found


@dataclass
class _Shape:
    operation: str
    macs: int = 0
    count: int = 0


def _heavy_shapes(program: IntegerProgram, lowered: Lowered) -> dict[Geometry, _Shape]:
    """The shapes of constant-weight matrix work, most multiply-accumulates in the network first."""
    macs = {op.name: program.macs(op) for op in program.operations}
    shapes: dict[Geometry, _Shape] = {}
    for step in lowered.steps:
        geometry = step.kernel.parameters.get("geometry")
        if not isinstance(geometry, Geometry) or geometry.weight_copies or "tile" not in step.kernel.parameters:
            continue
        shape = shapes.setdefault(geometry, _Shape(step.operations[0] if step.operations else step.output))
        shape.macs += sum(macs[name] for name in step.operations)
        shape.count += 1
    total, seen, heavy = sum(s.macs for s in shapes.values()), 0, {}
    for geometry, shape in sorted(shapes.items(), key=lambda item: -item[1].macs):
        if seen < HEAVY * total:
            heavy[geometry] = shape
        seen += shape.macs
    return heavy


class _Inputs:
    """Something to compute on: random bytes of the right size for every tensor of the lowered program."""

    def __init__(self, program: IntegerProgram, lowered: Lowered) -> None:
        self._sizes = {name: tensor.bytes for name, tensor in program.tensors.items()}
        self._sizes.update((step.output, step.output_bytes) for step in lowered.steps)

    def of(self, steps: Iterable[Step]) -> dict[str, Array]:
        names = {name for step in steps for name in step.inputs}
        rng = np.random.default_rng(0)
        return {name: rng.integers(0, 256, self._sizes[name], dtype=np.uint8) for name in sorted(names)}


# -------------------------------------------------------------------------------------------- what it depends on
def cpu_model() -> str:
    """Name, family, model and stepping of the first CPU, as Linux tells them."""
    facts: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            facts.setdefault(key.strip(), value.strip())
    except OSError:
        pass
    return " ".join(facts.get(key, "?") for key in ("model name", "cpu family", "model", "stepping"))


@functools.cache
def code_digest() -> str:
    """Of the code that kernels are made by: other kernels want to be measured anew."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
