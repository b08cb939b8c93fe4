"""The search for a layer's mapping, shared by the accelerator's compiler and the explorer.

`cost.work` ranks all mappings that fit; the flow of the layer alone decides between the best of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from qcompiler.sim import candidates, cost
from qcompiler.sim.cost import Choice, Outline, Values, at_all
from qcompiler.sim.flow import Flow
from qcompiler.sim.hardware.batch import Machines
from qcompiler.sim.mapping import Mapping, Residency
from qcompiler.sim.tilings import WINDOW_KINDS, chunks, tilings
from qcompiler.sim.visits import Visits, visits
from qcompiler.sim.workload import MATRIX_KINDS, Geometry

FINALISTS = 6
RESOLUTION = 64  # mappings whose cycles differ by less than a 64th are told apart by their traffic
LATTICE = 1 << 19  # candidates that are ranked at a time
RACE = 1 << 12  # finalists that run together, at least, where there are as many
NEVER = np.iinfo(np.int64).max
BYTE_BITS, STEP_BITS = 36, 14
FIELDS = (
    "tiling",
    "group",
    "groups_outer",
    "step_h",
    "step_w",
    "output_stationary",
    "im2col",
    "part_rows",
    "part_channels",
)


def keys(w: Outline) -> npt.NDArray[np.int64]:
    """What to minimise: cycles in steps of a 64th of their power of two, then external bytes, then instructions."""
    moved = np.minimum(w.traffic, (1 << BYTE_BITS) - 1).astype(np.int64)
    steps = np.minimum(w.steps, (1 << STEP_BITS) - 1).astype(np.int64)
    key = ((_steps_of(w.cycles) << BYTE_BITS) + moved << STEP_BITS) + steps
    return np.asarray(key)


def _steps_of(cycles: Values) -> npt.NDArray[np.int64]:
    mantissa, exponent = np.frexp(np.maximum(cycles, 1))
    steps = exponent.astype(np.int64) * RESOLUTION + np.round(mantissa * 2 * RESOLUTION).astype(np.int64) - RESOLUTION
    return np.asarray(steps)


# Finalists that run alone: which layer's, their machines and columns there, their visits.
_Race = tuple[int, npt.NDArray[np.int64], npt.NDArray[np.int64], Visits]


@dataclass(frozen=True, eq=False)
class Finalists:
    """The best mappings of a layer by `cost.work` for n machines: their fields [FIELDS, n, FINALISTS] and keys
    [n, FINALISTS], NEVER where there are fewer. machines: an index [n] each, into those of the search."""

    geometry: Geometry
    residency: Residency
    machines: npt.NDArray[np.int64]
    fields: npt.NDArray[np.float64]
    keys: npt.NDArray[np.int64]


def rank(g: Geometry, r: Residency, m: Machines, machines: npt.NDArray[np.int64], free: Values) -> Finalists:
    """The finalists of a layer for some of the machines, each with `free` bytes for tiles."""
    n = len(machines)
    found = Finalists(g, r, machines, np.zeros((len(FIELDS), n, FINALISTS)), np.full((n, FINALISTS), NEVER))
    size = len(tilings(g).tile_h) * 60 if g.kind in MATRIX_KINDS else 40
    step = max(LATTICE // size, 1)
    order = np.argsort(free, kind="stable")  # machines with as much room have the same candidates
    for low in range(0, n, step):
        part = order[low : low + step]
        some, keys_of = np.zeros((len(FIELDS), part.size, FINALISTS)), np.full((part.size, FINALISTS), NEVER)
        _rank(g, r, m.take(machines[part]), free[part], some, keys_of)
        found.fields[:, part], found.keys[part] = some, keys_of
    return found


def choose(layers: Sequence[Finalists], m: Machines) -> list[Choice]:
    """For each layer and machine the mapping with the fewest cycles of the layer alone (within `RESOLUTION`), then the
    least external traffic, then the fewest instructions; of a machine without any, something that means nothing."""
    alone = [np.full(layer.keys.shape, NEVER) for layer in layers]
    waiting: dict[tuple[str, int, int], list[_Race]] = {}

    def run(kind: str, operands: int, races: list[_Race]) -> None:
        """Let the finalists of several layers of a kind run at once."""
        flow = Flow(m.take(np.concatenate([layers[k].machines[rows] for k, rows, _, _ in races])))
        v = Visits(np.concatenate([v.values for _, _, _, v in races], axis=1))
        cycles = np.round(flow.layer(kind, v, "image", "output", ("operand",) * operands))
        for k, rows, column, own in races:
            here, cycles = np.split(cycles, [own.values.shape[1]])
            traffic = layers[k].keys[rows, column] & ((1 << BYTE_BITS + STEP_BITS) - 1)
            alone[k][rows, column] = (_steps_of(here) << BYTE_BITS + STEP_BITS) + traffic

    for k, layer in enumerate(layers):
        g, there = layer.geometry, layer.keys < NEVER
        rows, column = np.nonzero(there & there[:, 1:2])
        if not rows.size:
            continue
        key = g.kind, g.operands, tilings(g).batch if g.kind == "matmul" else 1
        v = visits(g, _choice(layer.fields[:, rows, column]), layer.residency, m.take(layer.machines[rows]))
        races = waiting.setdefault(key, [])
        races.append((k, rows, column, v))
        if sum(own.size for _, own, _, _ in races) >= RACE:
            run(*key[:2], waiting.pop(key))
    for key, races in waiting.items():
        run(*key[:2], races)
    return [_choice(layer.fields[:, np.arange(len(own)), own.argmin(axis=1)])
            for layer, own in zip(layers, alone, strict=True)]  # fmt: skip


def _choice(columns: npt.NDArray[np.float64]) -> Choice:
    values: dict[str, Any] = dict(zip(FIELDS, columns, strict=True))
    values["tiling"] = values["tiling"].astype(np.int64)
    for name in ("groups_outer", "output_stationary", "im2col"):
        values[name] = values[name] > 0
    return Choice(**values)


def _rank(g: Geometry, r: Residency, m: Machines, free: Values, columns: Any, found: Any) -> None:
    """Fill in the finalists of each machine: their fields, and their keys (NEVER where there are fewer)."""
    parts = [(part, np.flatnonzero(part.fits)) for part in candidates.lattice(g, r, m, free)]
    parts = [(part, index) for part, index in parts if index.size]
    if not parts:
        return
    tables, begins = [], []
    for part, index in parts:
        # From here on only what fits is looked at, one candidate after the other.
        own, per = m.take(part.rows).shaped(candidates.AXES), part.fits[0].size
        w = cost.work(g, part.choice, r, own).outline(own).at(index, part.fits.shape)
        begin = np.searchsorted(index, np.arange(len(part.rows) + 1) * per)
        many = np.diff(begin)
        table = np.full((len(m), many.max()), NEVER)
        table[np.repeat(part.rows, many), np.arange(index.size) - np.repeat(begin[:-1], many)] = keys(w)
        tables.append(table)
        begins.append(np.zeros(len(m), np.int64))
        begins[-1][part.rows] = begin[:-1]
    table = np.concatenate(tables, axis=1)
    ends = np.cumsum([t.shape[1] for t in tables])
    row = np.arange(len(m))
    for f in range(FINALISTS):
        position = table.argmin(axis=1)
        found[:, f] = table[row, position]
        table[row, position] = NEVER
        some = found[:, f] < NEVER
        if not some.any():
            return
        source = np.searchsorted(ends, position, side="right")
        for k, (part, index) in enumerate(parts):
            mine = np.flatnonzero(some & (source == k))
            place = index[begins[k][mine] + position[mine] - (ends[k] - tables[k].shape[1])]
            values = at_all(vars(part.choice), place, part.fits.shape)
            for i, name in enumerate(FIELDS):
                columns[i, mine, f] = values[name]


def mapping(g: Geometry, c: Choice, i: int) -> Mapping:
    """The i-th of the mappings as the compiler wants it."""
    t = int(c.tiling[i])
    if g.kind in WINDOW_KINDS:
        h, w = int(tilings(g).tile_h[t]), int(tilings(g).tile_w[t])
    else:
        h, w = int(chunks(g).tile_h[t]), 1
    return Mapping(
        h, w, int(c.group[i]), bool(c.groups_outer[i]), int(c.step_h[i]), int(c.step_w[i]),
        bool(c.output_stationary[i]), bool(c.im2col[i]), int(c.part_rows[i]), int(c.part_channels[i]),
    )  # fmt: skip
