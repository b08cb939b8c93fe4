"""The search for a layer's mapping, shared by the accelerator's compiler and the explorer.

`cost.work` ranks all mappings that fit; the flow of the layer alone decides between the best of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from qcompiler.sim import candidates, cost
from qcompiler.sim.cost import Choice, Values, at_all
from qcompiler.sim.flow import Flow
from qcompiler.sim.hardware.batch import Machines
from qcompiler.sim.mapping import Mapping, Residency
from qcompiler.sim.tilings import WINDOW_KINDS, chunks, tilings
from qcompiler.sim.visits import visits
from qcompiler.sim.workload import MATRIX_KINDS, Geometry

FINALISTS = 6
RESOLUTION = 64  # mappings whose cycles differ by less than a 64th are told apart by their traffic
LATTICE = 1 << 18  # candidates that are ranked at a time
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


def keys(cycles: Values, w: cost.Work) -> npt.NDArray[np.int64]:
    """What to minimise: cycles in steps of a 64th of their power of two, then external bytes, then instructions."""
    mantissa, exponent = np.frexp(np.maximum(cycles, 1))
    rank = exponent.astype(np.int64) * RESOLUTION + np.round(mantissa * 2 * RESOLUTION).astype(np.int64) - RESOLUTION
    moved = np.minimum(w.main_read + w.constant_read + w.main_write, (1 << BYTE_BITS) - 1).astype(np.int64)
    steps = np.minimum(w.steps, (1 << STEP_BITS) - 1).astype(np.int64)
    key = ((rank << BYTE_BITS) + moved << STEP_BITS) + steps
    return np.asarray(key)


def search(g: Geometry, r: Residency, m: Machines, free: Values) -> tuple[Choice, npt.NDArray[np.bool_]]:
    """For each machine, with `free` bytes for tiles, the fitting mapping with the fewest cycles (within
    `RESOLUTION`), then the least external traffic, then the fewest instructions; and whether there is any."""
    n = len(m)
    columns = np.zeros((len(FIELDS), n, FINALISTS))
    found = np.full((n, FINALISTS), NEVER)
    size = len(tilings(g).tile_h) * 60 if g.kind in MATRIX_KINDS else 40
    step = max(LATTICE // size, 1)
    order = np.argsort(free, kind="stable")  # machines with as much room have the same candidates
    for low in range(0, n, step):
        part = order[low : low + step]
        some, keys_of = np.zeros((len(FIELDS), part.size, FINALISTS)), np.full((part.size, FINALISTS), NEVER)
        _rank(g, r, m.take(part), free[part], some, keys_of)
        columns[:, part], found[part] = some, keys_of
    # Where even the first is none, a dummy keeps the arrays regular.
    valid = found[:, 0] < NEVER
    several = np.flatnonzero((found[:, 1] < NEVER) & valid)
    best = np.zeros(n, np.int64)
    if several.size:
        rows, column = np.nonzero(found[several] < NEVER)
        rows = several[rows]
        own, choice = m.take(rows), _choice(columns[:, rows, column])
        alone = np.full((n, FINALISTS), NEVER)
        alone[rows, column] = keys(_alone(g, choice, r, own), cost.work(g, choice, r, own))
        best = np.where(np.isin(np.arange(n), several), alone.argmin(axis=1), 0)
    return _choice(columns[:, np.arange(n), best]), valid


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
    tables, places = [], []
    for part, index in parts:
        # From here on only what fits is looked at, one candidate after the other.
        each, per = part.rows[index // part.fits[0].size], part.fits[0].size
        w = cost.work(g, part.choice, r, m.take(part.rows).shaped(candidates.AXES)).at(index, part.fits.shape)
        key = keys(w.cycles(m.main.latency[each], m.constant.latency[each], m.separate[each]), w)
        begin = np.searchsorted(index, np.arange(len(part.rows)) * per)
        many = np.diff(begin, append=index.size)
        table, place = np.full((len(m), many.max()), NEVER), np.zeros((len(m), many.max()), np.int64)
        column = np.arange(index.size) - np.repeat(begin, many)
        table[each, column], place[each, column] = key, index
        tables.append(table)
        places.append(place)
    if not tables:
        return
    table, place = np.concatenate(tables, axis=1), np.concatenate(places, axis=1)
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
        for k, (part, _) in enumerate(parts):
            mine = np.flatnonzero(some & (source == k))
            index = place[mine, position[mine]]
            values = at_all(vars(part.choice), index, part.fits.shape)
            for i, name in enumerate(FIELDS):
                columns[i, mine, f] = values[name]


def _alone(g: Geometry, c: Choice, r: Residency, m: Machines) -> Values:
    flow = Flow(m)
    return np.round(flow.layer(g.kind, visits(g, c, r, m), "image", "output", ("operand",) * g.operands))


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
