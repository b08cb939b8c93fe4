"""The counters of a layer in closed form: what `energy.count` finds in the program that the compiler makes of it.

Exact for every mapping, so that energy is exact but for the leakage of the cycles.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from qcompiler.sim import cost
from qcompiler.sim.cost import Choice, Values
from qcompiler.sim.hardware.batch import Machines, ceil_div
from qcompiler.sim.isa.base import COUNTERS, INSTRUCTION_BYTES
from qcompiler.sim.isa.post import ADD_RECORD_BYTES, TABLE_BYTES
from qcompiler.sim.isa.vector import COORDINATE_BYTES
from qcompiler.sim.isa.vector_rows import EXP_TABLE_BYTES
from qcompiler.sim.isa.window import MAX_WINDOW_BYTES
from qcompiler.sim.loops import nest
from qcompiler.sim.mapping import Residency, cut
from qcompiler.sim.moves import Box, split
from qcompiler.sim.tilings import chunks, tilings
from qcompiler.sim.workload import MATRIX_KINDS, Geometry

MAX_TRIPS = 65535  # of one loop of a copy
COLUMN = {name: i for i, name in enumerate(COUNTERS)}


class Counts:
    """float64 [COUNTERS, n], by name; constants [n]: bytes that the layer puts into the constant memory."""

    def __init__(self, n: int) -> None:
        self.values = np.zeros((len(COUNTERS), n))
        self.instructions: Values = np.zeros(n)
        self.constants: Values = np.zeros(n)

    def add(self, **amounts: Values) -> None:
        """Names without the `_bytes` of those that have it."""
        for name, amount in amounts.items():
            self.values[COLUMN[name] if name in COLUMN else COLUMN[f"{name}_bytes"]] += amount

    def total(self) -> npt.NDArray[np.float64]:
        self.add(instruction=self.instructions * INSTRUCTION_BYTES)
        self.instructions = 0.0
        return self.values


def counts(g: Geometry, c: Choice, r: Residency, m: Machines) -> Counts:
    """The counters of a layer with one mapping a machine (all fields of `c` are [n])."""
    found, w = Counts(len(m)), cost.work(g, c, r, m)
    found.add(
        main_read=w.main_read + np.where(m.separate, 0, w.constant_read),
        constant_read=np.where(m.separate, w.constant_read, 0), main_write=w.main_write,
    )  # fmt: skip
    if g.kind in MATRIX_KINDS:
        _matrix(found, g, c, r, m)
    elif g.kind in ("depthwise", "pool"):
        _windows(found, g, c, r, m)
    else:
        _chunks(found, g, c, r, m)
    found.total()
    return found


def _image(found: Counts, g: Geometry, c: Choice, r: Residency, image_loads: Values) -> None:
    t = tilings(g)
    if not r.image:
        size: Values = 0.0
        for kind in t.windows:
            size = size + kind.count[c.tiling] * kind.ih[c.tiling] * kind.iw[c.tiling] * g.image[3]
        found.add(activation_write=image_loads * size)
        found.instructions = found.instructions + image_loads * t.count[c.tiling]


def _copies(g: Geometry, c: Choice, sizes: list[tuple[Values, Values]]) -> Values:
    """Instructions that bring or take all tiles of all groups."""
    t, total = tilings(g), 0.0
    for many, size in sizes:
        for kind in t.kinds:
            runs, _, transfers = cost.pixel_runs(kind.h[c.tiling], kind.w[c.tiling], g.output[2], g.output[3], size)
            total = total + many * kind.count[c.tiling] * transfers * ceil_div(runs, MAX_TRIPS)
    return total


def _matrix(found: Counts, g: Geometry, c: Choice, r: Residency, m: Machines) -> None:
    t, b, part = tilings(g), cost.blocks(g, m), cost.parts(g, c, m)
    o, k, tiles = g.output[3], g.reduction, t.count[c.tiling]
    pixels = (1 if g.kind == "matmul" else g.output[0]) * g.output[1] * g.output[2]
    number = ceil_div(b.count, c.group)
    image_loads = np.where(c.groups_outer & (tiles > 1), number, 1)
    weight_loads = np.where(~c.groups_outer & (number > 1), tiles, 1)
    steps: Values = 0.0
    batches: Values = 0.0  # of R pixels
    for kind in t.kinds:
        for many, size in cost.step_sizes(kind, c.tiling, c):
            steps = steps + kind.count[c.tiling] * many
            batches = batches + kind.count[c.tiling] * many * ceil_div(size, m.rows)
    issues = steps * b.count
    sums = np.where(c.output_stationary, part.number, part.passes) * pixels * o * 4
    parted = np.asarray(c.part_rows) > 0
    added, record = cost.residual(g), g.record_bytes
    weights = k * (o if g.kind == "matmul" else b.row_bytes(m, b.count))
    found.add(
        array_macs=pixels * k * o, activation_read=pixels * k * b.count, accumulator_read=sums, accumulator_write=sums,
        weight_read=np.where(c.output_stationary, batches, steps) * weights,
        weight_write=np.where(parted, steps, weight_loads) * weights,
        requantizations=pixels * o, activation_write=pixels * o,
        parameter_read=issues * (TABLE_BYTES * g.tables + ADD_RECORD_BYTES * added),
        table_lookups=pixels * o * g.tables,
    )  # fmt: skip
    if g.kind == "matmul":
        found.add(parameter_read=issues * record)
    else:
        for many, width in ((g.groups * (b.per_group - 1), b.width), (g.groups, b.last)):
            found.add(parameter_read=many * width * record * np.where(width <= m.lanes, steps, pixels))
    tail = ADD_RECORD_BYTES * added + TABLE_BYTES * g.tables
    chunk = number * tail + (number * record if g.kind == "matmul" else o * record)
    found.add(parameter_write=weight_loads * chunk)
    weight_copies = np.where(parted, steps, weight_loads) * b.count * part.number
    if g.kind == "matmul":
        weight_copies = weight_loads * number
        if r.weights:
            found.add(activation_read=weight_loads * k * o)
    found.instructions = issues * (part.number + 1) + weight_loads * number + weight_copies
    _image(found, g, c, r, image_loads)
    if np.any(c.im2col):
        taps, run = cost.gathers(g)
        gathered = np.where(c.im2col, image_loads, 0)
        found.add(activation_read=gathered * pixels * taps * run, activation_write=gathered * pixels * taps * run)
        found.instructions = found.instructions + gathered * tiles
    sizes = list(cost.group_sizes(g, b, c.group))
    if added:
        found.add(activation_read=pixels * o, vector_macs=2 * pixels * o)
        if not r.operand:
            found.add(activation_write=pixels * o)
            found.instructions = found.instructions + _copies(g, c, sizes)
    if not r.output:
        found.add(activation_read=pixels * o)
        found.instructions = found.instructions + _copies(g, c, sizes)
    if t.batch > 1:
        external = [COLUMN[f"{n}_bytes"] for n in ("main_read", "constant_read", "main_write")]
        kept = found.values[external].copy()
        found.values *= t.batch
        found.values[external], found.instructions = kept, found.instructions * t.batch
    found.constants = chunk + (0 if g.kind == "matmul" else weights)


@lru_cache(maxsize=1024)
def _pool_pieces(g: Geometry) -> Any:
    """Instructions of a pool for each tiling: steps cut where the number of averaged positions changes."""
    t, found = tilings(g), []
    spans = math.ceil(g.output[3] / max(MAX_WINDOW_BYTES // math.prod(g.kernel), 1))
    for tile_h, tile_w in zip(t.tile_h.astype(int).tolist(), t.tile_w.astype(int).tolist(), strict=True):
        step = max(1, -(-tile_h // 8))
        rows = [piece for low, high in cut(0, g.output[1], tile_h) for piece in cut(low, high, step)]
        pieces = [sum(1 + sum(low < b < high for b in breaks) for low, high in part)
                  for part, breaks in ((rows, g.breaks[0]), (cut(0, g.output[2], tile_w), g.breaks[1]))]  # fmt: skip
        found.append(g.output[0] * pieces[0] * pieces[1] * spans)
    return np.array(found, dtype=np.float64)


def _windows(found: Counts, g: Geometry, c: Choice, r: Residency, m: Machines) -> None:
    t, taps, record = tilings(g), math.prod(g.kernel), g.record_bytes
    number, width, last = cost.lane_groups(g, c, m)
    merged, tiles = cost.merged_pixels(g, c, m), t.count[c.tiling]
    image_loads = np.where(c.groups_outer & (tiles > 1), number, 1)
    loads = np.where(~c.groups_outer & (number > 1), tiles, 1)
    sizes = [(number - 1, width), (1, last)]
    total = math.prod(g.output)
    for kind in t.kinds if g.kind == "depthwise" else ():
        h, wd, count = kind.h[c.tiling], kind.w[c.tiling], kind.count[c.tiling]
        pixels, pieces = h * ceil_div(wd, merged), ceil_div(h, c.step_h) * np.where(wd % merged == 0, 1, 2)
        for many, size in sizes:
            elements, times = pixels * merged * size, count * many
            records = size * merged * record * np.where(size * merged <= m.lanes, pieces, pixels)
            found.add(
                vector_macs=times * elements * taps, activation_read=times * elements * taps,
                parameter_read=times * (elements * taps + records + TABLE_BYTES * g.tables * pieces),
                requantizations=times * elements, activation_write=times * elements,
                table_lookups=times * elements * g.tables,
            )  # fmt: skip
            found.instructions = found.instructions + times * pieces
    if g.kind == "pool":
        pieces = _pool_pieces(g)[c.tiling]
        found.add(
            vector_operations=total * taps, activation_read=total * taps, activation_write=total,
            table_lookups=total * g.tables, requantizations=total * (g.records > 0),
            parameter_read=pieces * (record * (g.records > 0) + TABLE_BYTES * g.tables),
        )  # fmt: skip
        found.instructions = found.instructions + pieces
    if g.kind == "depthwise" or g.records or g.tables:
        for many, size in sizes:
            chunk = many * cost.window_parameters(g, size, merged)
            found.add(parameter_write=loads * chunk)
            found.constants = found.constants + chunk
        found.instructions = found.instructions + loads * number
    _image(found, g, c, r, image_loads)
    if not r.output:
        found.add(activation_read=total)
        found.instructions = found.instructions + _copies(g, c, sizes)


@lru_cache(maxsize=4096)
def _nested(loops: tuple[tuple[int, int, int], ...], trips: int, lanes: int) -> tuple[int, int, bool]:
    """Of `trips` of the outer loop: ``(instructions, pixels in all, whether b has one byte a pixel)``."""
    swapped = loops[-1][1] == 0
    ordered = [(n, b, a) if swapped else (n, a, b) for n, a, b in loops]
    strides = [math.prod(n for n, _, _ in ordered[i + 1 :]) for i in range(len(ordered))]
    chunk = [(trips, *ordered[0][1:], strides[0])]
    chunk += [(n, a, b, s) for (n, a, b), s in zip(ordered[1:], strides[1:], strict=True)]
    found = nest(chunk, lanes)
    return len(found), sum(rows[0] * pixels[0] for _, rows, pixels, _ in found), found[0][3][2] == 0


def _chunks(found: Counts, g: Geometry, c: Choice, r: Residency, m: Machines) -> None:
    t = chunks(g)
    if g.kind == "move":
        _moves(found, g, c, r)
        return
    size, times, groups = cost.chunk_parameters(g, c, m)
    if size:
        found.add(parameter_write=times * size)
        found.instructions = found.instructions + times * groups
        found.constants = found.constants + size
    for kind in t.kinds:
        count, elements = kind.count[c.tiling], kind.output[c.tiling]
        for loaded, there in ((kind.image[c.tiling], r.image), (kind.operand[c.tiling], r.operand)):
            if not there and np.any(loaded):
                found.add(activation_write=count * loaded)
                found.instructions = found.instructions + count
        if not r.output:
            found.add(activation_read=count * elements)
            found.instructions = found.instructions + count
        found.add(activation_write=count * elements)
        issues: Values = 1.0
        if g.kind == "elementwise":
            each = [_nested(g.loops, int(n), int(lanes)) for n, lanes in zip(
                np.round(elements / math.prod(loop[0] for loop in g.loops[1:])), m.lanes, strict=True)]  # fmt: skip
            issues, pixels = (np.array([e[i] for e in each], dtype=np.float64) for i in (0, 1))
            scalar = np.array([e[2] for e in each], dtype=bool)
            found.add(
                vector_macs=count * elements * (1 if g.records else 2), requantizations=count * elements * g.records,
                activation_read=count * (elements + np.where(scalar, pixels, elements)),
                parameter_read=count * issues * g.record_bytes,
            )  # fmt: skip
        elif g.kind == "table":
            issues = groups
            width = g.output[3] if g.tables > 1 else 1
            found.add(table_lookups=count * elements, activation_read=count * elements,
                      parameter_read=count * TABLE_BYTES * width)  # fmt: skip
        elif g.kind == "softmax":
            found.add(vector_operations=3 * count * elements, table_lookups=2 * count * elements,
                      requantizations=count * elements, activation_read=3 * count * elements,
                      parameter_read=count * EXP_TABLE_BYTES)  # fmt: skip
        elif g.kind == "layer_norm":
            found.add(vector_macs=3 * count * elements, requantizations=count * elements,
                      activation_read=2 * count * elements, parameter_read=4 * count * elements)  # fmt: skip
        elif g.kind == "resize":
            issues = kind.rows[c.tiling]
            found.add(vector_macs=4 * count * elements, requantizations=count * elements,
                      activation_read=4 * count * elements,
                      parameter_read=count * issues * (g.record_bytes + COORDINATE_BYTES * g.output[2]))  # fmt: skip
        else:  # embedding
            found.add(activation_read=count * kind.image[c.tiling])
        found.instructions = found.instructions + count * issues


@lru_cache(maxsize=4096)
def _pieces(box: Box) -> int:
    """Copies that a box takes: loops of an instruction are short."""
    if all(n <= MAX_TRIPS for n, _, _ in box.loops):
        return 1
    return sum(_pieces(part) for part in split(box, box.bytes // 2))


def _moves(found: Counts, g: Geometry, c: Choice, r: Residency) -> None:
    for kind in chunks(g).kinds:
        box = g.boxes[kind.box]
        here = r.image or box.operand < 0
        if kind.part == (here or r.output):
            continue
        count = kind.count[c.tiling]
        size = kind.output[c.tiling] * count
        copies: Values = _pieces(box) * count
        if not here and not r.output:
            found.add(activation_write=size, activation_read=size)
            copies = 2 * count  # parts are small
        elif r.output:
            found.add(activation_write=size, activation_read=size if here and box.operand >= 0 else 0)
        elif box.operand >= 0:
            found.add(activation_read=size)
        found.instructions = found.instructions + copies
