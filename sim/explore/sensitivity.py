"""Which field matters, and what to change next.

The first is variance: the share of a figure's variance over the space (of its logarithm) that an axis explains. `main`
is what the axis explains alone, Var(E[y | axis]) / Var(y); `total` adds what it does together with others,
E[Var(y | all other axes)] / Var(y). Both are exact over a space that was gone through (impossible machines left out).
The second is the predicted figures of a machine with one resource doubled.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import ValidationError

from qcompiler.sim.errors import HardwareError
from qcompiler.sim.explore.space import INACTIVE, Point, Space, lookup
from qcompiler.sim.hardware import Machine
from qcompiler.sim.hardware.machine import packed_bytes


@dataclass(frozen=True)
class Effect:
    """Shares of the variance, 0 to 1; main is None where the points cannot say."""

    main: float | None
    total: float


def effects(points: Sequence[Point], values: Sequence[float]) -> list[Effect]:
    """The effect of each axis over all points of a space."""
    y = np.asarray(values, float)
    variance = y.var()
    found = []
    for axis in range(len(points[0])):
        if not variance > 0:
            found.append(Effect(0.0, 0.0))
            continue
        levels, rest = defaultdict(list), defaultdict(list)
        for point, value in zip(points, y, strict=True):
            levels[point[axis]].append(value)
            rest[point[:axis] + point[axis + 1 :]].append(value)
        main = sum(len(v) * (np.mean(v) - y.mean()) ** 2 for v in levels.values()) / (len(y) * variance)
        total = sum(len(v) * np.var(v) for v in rest.values()) / (len(y) * variance)
        found.append(Effect(float(main), float(total)))
    return found


def centres(space: Space, seed: int, count: int) -> list[Point]:
    """Random points, each axis uniformly."""
    rng = np.random.default_rng([seed, 1])
    return [space.draw(rng) for _ in range(count)]


def sweeps(space: Space, seed: int, count: int) -> list[list[list[Point]]]:
    """[count][axes]: all choices of each axis around each of `centres` (the centre itself at its place)."""
    found = []
    for centre in centres(space, seed, count):
        lines = []
        for axis, choice in enumerate(centre):
            choices = range(len(space.axes[axis].choices)) if choice != INACTIVE else (INACTIVE,)
            lines.append([space.settle((*centre[:axis], c, *centre[axis + 1 :])) for c in choices])
        found.append(lines)
    return found


def swept_effects(lines: Sequence[Sequence[Sequence[float | None]]], centres: Sequence[float | None]) -> list[Effect]:
    """Total effects from the values of `sweeps` (None: impossible) and those of their centres."""
    variance = np.var([c for c in centres if c is not None]) if any(c is not None for c in centres) else 0.0
    found = []
    for axis in range(len(lines[0])):
        within = []
        for sweep, centre in zip(lines, centres, strict=True):
            if centre is not None:
                within.append(np.var([v for v in sweep[axis] if v is not None]))
        found.append(Effect(None, float(np.mean(within) / variance) if within and variance > 0 else 0.0))
    return found


# -------------------------------------------------------------------------------------- what to change next
RESOURCES = {
    "rows of the array": ("matrix.rows",),
    "columns of the array": ("matrix.columns",),
    "accumulators": ("matrix.accumulator_rows",),
    "vector lanes": ("vector.lanes",),
    "parameter memory": ("vector.parameter_bytes",),
    "activation memory": ("activation_memory.size_bytes",),
    "ports of the activation memory": ("activation_memory.bytes_per_cycle",),
    "weight memory": ("weight_memory.size_bytes",),
    "ports of the weight memory": ("weight_memory.bytes_per_cycle",),
    "read bandwidth": ("main_memory.read_bytes_per_cycle",),
    "write bandwidth": ("main_memory.write_bytes_per_cycle",),
    "read bandwidth of constants": ("constant_memory.read_bytes_per_cycle",),
    "outstanding transfers": ("main_memory.outstanding_transfers",),
    "instruction queues": ("control.queue_entries",),
    "clock": ("clock_mhz",),
}


def double(machine: Machine, resource: str) -> tuple[Machine, dict[str, Any]]:
    """The machine with a resource of `RESOURCES` doubled, and all fields that changed.

    What the doubled resource needs to be fed (the widths of memories, room for two weight tiles) grows along.
    Raises HardwareError where the machine has no such resource, or no more of it is possible.
    """
    content = machine.model_dump(mode="json")
    changed: dict[str, Any] = {}

    def put(dotted: str, value: Any) -> None:
        part, _, last = dotted.rpartition(".")
        (content[part] if part else content)[last] = changed[dotted] = value

    for dotted in RESOURCES[resource]:
        value = lookup(content, dotted)
        if value is None:
            raise HardwareError(f"{machine.name} has no {dotted}")
        put(dotted, value * 2)
    array, lanes = content["matrix"], content["vector"]["lanes"]
    weights = packed_bytes(array["columns"], array["weight_bits"])
    tile = array["rows"] * weights * array["weight_buffers"]
    least = {
        "activation_memory.bytes_per_cycle": max(array["rows"], lanes),
        "activation_memory.size_bytes": 4 * max(array["rows"], array["columns"], lanes),
        "weight_memory.bytes_per_cycle": weights,
        "weight_memory.size_bytes": tile,
    }
    if "output_stationary" in array["dataflows"]:
        least["matrix.accumulator_rows"] = array["rows"]
    for dotted, need in least.items():
        if lookup(content, dotted) < need:
            put(dotted, need)
    try:
        return Machine.model_validate(content), changed
    except ValidationError:
        raise HardwareError(
            f"{machine.name}: {resource} cannot be doubled, the limits of a machine forbid it"
        ) from None


def gain(before: Mapping[str, float], after: Mapping[str, float], figure: str) -> float:
    """The relative change of a figure: -0.5 is half of it."""
    return after[figure] / before[figure] - 1 if before[figure] else 0.0
