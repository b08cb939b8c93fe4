"""A layer as at most five runs of visits, for the flow of a network (`flow`).

A layer is two nested loops, over groups of channel blocks and over tiles, either outside; a visit is one tile with one
group. Runs of equal visits are one step of the flow: the first visit (A), the rest of the first outer iteration (B),
the iterations in the middle (C), the last iteration (D) and in it the last visit (E), as far as there are any. The
amounts of the runs add up to those of the layer (`cost.work`), ragged tiles and groups included.
Other layers are chunks: the first, those in the middle, the last.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from qcompiler.sim import cost
from qcompiler.sim.cost import Choice, Values
from qcompiler.sim.hardware.batch import Machines, ceil_div
from qcompiler.sim.isa.post import TABLE_BYTES
from qcompiler.sim.mapping import Residency
from qcompiler.sim.tilings import WINDOW_KINDS, Tiles, chunks, tilings
from qcompiler.sim.workload import MATRIX_KINDS, Geometry

Floats = npt.NDArray[np.float64]
RUNS = "ABCDE"
# Of a run: visits; cycles of the array and of the lanes; cycles of image loads, how many, and of gathers (im2col);
# cycles of operand loads; how many groups are loaded, and cycles of their weights; cycles of stores; instructions of
# the array and of the lanes.
AMOUNTS = (
    "visits",
    "matrix",
    "vector",
    "load",
    "loads",
    "gather",
    "operand",
    "groups",
    "fetch",
    "store",
    "issues",
    "lane_issues",
)
# Of a layer:
# lead, gap, through (`cost.Timing`); first, first_vector, last_vector: cycles of the first block, and of the lanes for
# the first and the last; depth: steps that the accumulators hold, rows: of a step;
# weights, parameters: cycles of loading the first group; block, blocks: of one transfer, and how many; *_bytes: their
# sizes, last_*_bytes of the last group; outer: groups are the outer loop;
# ahead: parts of weights that are there at a time, share: the part of a block that the last of them is;
# stream: weights come for every step anew; image_apart, operand_apart, weights_apart: loaded from the constants; local:
# weights are loaded from the activation memory;
# staged, written, added: image, output, operand are not on chip;
# first_step, first_tile: fractions of the image that these need; output_step: of the output that is finished first;
# last_step: the part of a visit that its last step is; transfers: of a tile's operand or store; renewed: only the last
# group completes the output.
FIXED = (
    "lead", "gap", "through", "first", "first_vector", "last_vector", "depth", "rows", "weights", "block", "blocks",
    "parameters", "weight_bytes", "parameter_bytes", "last_weight_bytes",
    "last_parameter_bytes", "outer", "ahead", "share", "stream", "staged", "written", "added", "image_apart",
    "operand_apart", "weights_apart", "local", "first_step", "first_tile", "output_step", "last_step", "batch",
    "renewed", "transfers",
)  # fmt: skip
FIELDS = {name: i for i, name in enumerate([*(r + n for r in RUNS for n in AMOUNTS), *FIXED])}


class Visits:
    """float64 [FIELDS, n]: the runs of one layer on n machines, by name."""

    def __init__(self, values: Floats) -> None:
        self.values = values

    @classmethod
    def empty(cls, n: int) -> Visits:
        return cls(np.zeros((len(FIELDS), n)))

    def __getitem__(self, name: str) -> Floats:
        return self.values[FIELDS[name]]

    def __setitem__(self, name: str, value: Any) -> None:
        self.values[FIELDS[name]] = value

    def run(self, name: str) -> Floats:
        """float64 [AMOUNTS, n] of one run."""
        first = FIELDS[name + AMOUNTS[0]]
        return self.values[first : first + len(AMOUNTS)]


def _split(outer: Values, tiles: tuple[Values, ...], groups: tuple[Values, ...]) -> tuple[Values, ...]:
    """Amounts of the five runs of a quantity that is a product of a tile's and a group's share.

    tiles, groups: of the first, of all, of the last. outer: groups are the outer loop.
    """
    x0, x, x1 = tiles
    y0, y, y1 = groups
    a0, a, a1 = (np.where(outer, q, p) for p, q in zip(tiles, groups, strict=True))  # outer
    b0, b, b1 = (np.where(outer, p, q) for p, q in zip(tiles, groups, strict=True))  # inner
    return x0 * y0, a0, a, a1, b0, b, b1, x1 * y1


def runs(
    outer: Values, several: Values, many: Values, tiles: tuple[Values, ...], groups: tuple[Values, ...]
) -> list[Values]:
    """As above, where `several` iterations of the outer loop and `many` visits exist."""
    first, a0, a, a1, b0, b, b1, last = _split(outer, tiles, groups)
    none = 0.0
    return [
        np.where(many, first, a * b),
        np.where(many, a0 * (b - b0 - np.where(several, none, b1)), none),
        np.where(several, (a - a0 - a1) * b, none),
        np.where(several, a1 * (b - b1), none),
        np.where(many, last, none),
    ]


def visits(g: Geometry, c: Choice, r: Residency, m: Machines) -> Visits:
    """The runs of a layer with one mapping a machine (all fields of `c` are [n])."""
    v = Visits.empty(len(m))
    v["staged"], v["written"] = not r.image, not r.output
    v["image_apart"], v["operand_apart"] = "image" in r.constant, "operand" in r.constant
    v["weights_apart"] = g.kind != "matmul" or "weights" in r.constant
    for name in ("batch", "depth", "blocks", "last_step", "transfers"):
        v[name] = 1
    if g.kind in WINDOW_KINDS:
        _windows(v, g, c, r, m)
    else:
        _chunks(v, g, c, r, m)
    return v


def _rows_of(g: Geometry, h: Values) -> Values:
    """The fraction of the image above the end of the first `h` output rows."""
    high = (h - 1) * g.stride[0] - g.padding[0] + (g.kernel[0] - 1) * g.dilation[0] + 1
    return np.clip(high / g.image[1], 0, 1) / (1 if g.kind == "matmul" else g.image[0])


def _windows(v: Visits, g: Geometry, c: Choice, r: Residency, m: Machines) -> None:
    """Convolutions, products, depthwise and pools."""
    t, matrix = tilings(g), g.kind in MATRIX_KINDS
    tiles = t.count[c.tiling]
    table = ceil_div(TABLE_BYTES, m.lanes) * g.tables
    w = cost.work(g, c, r, m)
    if matrix:
        b, part, shift = cost.blocks(g, m), cost.parts(g, c, m), cost.load_cycles(g, m, c.output_stationary)
        number = ceil_div(b.count, c.group)
        first_blocks, last_blocks = np.minimum(c.group, b.count), b.count - (number - 1) * c.group
        size = b.channels(g, first_blocks), g.output[3], g.output[3] - b.channels(g, (number - 1) * c.group)
        per_block = b.vectors / b.count
    else:
        number, width, last = cost.lane_groups(g, c, m)
        number, first_blocks, last_blocks = number * np.ones(len(m)), 1.0, 1.0
        size = width, g.output[3], last
        merged = cost.merged_pixels(g, c, m)
    blocks = first_blocks, (b.count if matrix else number), last_blocks

    def tile(kind: Tiles) -> tuple[Values, ...]:
        """Pixels, steps and cycles of one block of the array, of a tile."""
        h, wd = kind.h[c.tiling], kind.w[c.tiling]
        if not matrix:
            return h * ceil_div(wd, merged), ceil_div(h, c.step_h) * np.where(wd % merged == 0, 1, 2), 0.0
        steps, cycles = 0.0, 0.0
        for many, pixels in cost.step_sizes(kind, c.tiling, c):
            beat = cost.block_cycles(pixels, part, m, c.output_stationary, shift)
            steps, cycles = steps + many, cycles + many * beat
        return h * wd, steps, cycles

    first, last_tile = tile(t.first), tile(t.last)
    total = [0.0, 0.0, 0.0]
    for kind in t.kinds:
        total = [x + kind.count[c.tiling] * y for x, y in zip(total, tile(kind), strict=True)]
    pixels, steps, cycles = ((first[i], total[i], last_tile[i]) for i in range(3))
    outer = c.groups_outer | (number == 1)
    several, many = np.where(outer, number, tiles) > 1, number * tiles > 1
    batch = t.batch

    def put(name: str, amounts: list[Values]) -> None:
        for run, amount in zip(RUNS, amounts, strict=True):
            v[run + name] = amount

    ones = 1.0, tiles, 1.0
    put("visits", runs(outer, several, many, ones, (1.0, number, 1.0)))
    if matrix:
        put("matrix", runs(outer, several, many, cycles, blocks))
        lanes = runs(outer, several, many, pixels, tuple(n * per_block for n in blocks))
        tables = runs(outer, several, many, steps, tuple(n * table for n in blocks))
        put("vector", [x + y for x, y in zip(lanes, tables, strict=True)])
        issues = runs(outer, several, many, steps, blocks)
        put("issues", [x * part.number for x in issues])
        put("lane_issues", issues)
    else:
        taps = g.kernel[0] * g.kernel[1]
        across = [ceil_div(merged * s, m.lanes) for s in (size[0], size[2])]
        vectors = across[0], (number - 1) * across[0] + across[1], across[1]
        lanes = runs(outer, several, many, pixels, tuple(n * taps for n in vectors))
        tables = runs(outer, several, many, steps, (table, number * table, table))
        put("vector", [x + y for x, y in zip(lanes, tables, strict=True)])
        put("lane_issues", runs(outer, several, many, steps, (1.0, number, 1.0)))
    # Images: for every visit where tiles are inside and there are several, else once a tile.
    again = outer & (tiles > 1)
    apart = "image" in r.constant
    memory = m.constant if apart else m.main
    if not r.image:
        load = [cost.read(memory, *cost.row_runs(k, c.tiling, g.image[2], g.image[3]))[0] for k in (t.first, t.last)]
        whole: Values = 0.0
        for kind in t.windows:
            under = cost.row_runs(kind, c.tiling, g.image[2], g.image[3])
            whole = whole + kind.count[c.tiling] * cost.read(memory, *under)[0]
        put("load", _staged(outer, again, several, many, (load[0], whole, load[1]), number, tiles))
        put("loads", _staged(outer, again, several, many, ones, number, tiles))
    if np.any(c.im2col):
        taps_of, run = cost.gathers(g)
        beat = np.where(c.im2col, taps_of * ceil_div(run, m.activation_width), 0)
        put("gather", _staged(outer, again, several, many, tuple(p * beat for p in pixels), number, tiles))
        if r.image:
            once = _staged(outer, again, several, many, ones, number, tiles)
            put("loads", [x * np.where(c.im2col, 1, 0) for x in once])
        v["staged"] = np.where(c.im2col, 1.0, v["staged"])
    # Groups: constants for every visit where groups are inside and there are several, else once a group.
    inside = (~outer & (number > 1)) | (c.part_rows > 0)
    put("groups", _grouped(outer, inside, several, many, (1.0, number, 1.0), tiles))
    # Stores and operands: the last exactly, the rest on average.
    visits_of = tiles * number
    for name, wanted, there, read in (("store", True, r.output, False),
                                      ("operand", matrix and cost.residual(g), r.operand, True)):  # fmt: skip
        if there or not wanted:
            continue
        memory = m.constant if read and "operand" in r.constant else m.main
        per = cost.read if read else cost.write
        ends = [per(memory, *cost.pixel_runs(k.h[c.tiling], k.w[c.tiling], g.output[2], g.output[3], s))[0]
                for k, s in ((t.first, size[0]), (t.last, size[2]))]  # fmt: skip
        if read:
            whole = 0.0
            for much, s in cost.group_sizes(g, b, c.group):
                for k in t.kinds:
                    runs_of = cost.pixel_runs(k.h[c.tiling], k.w[c.tiling], g.output[2], g.output[3], s)
                    whole = whole + much * k.count[c.tiling] * per(memory, *runs_of)[0]
        else:
            whole = w.store / batch
        middle = np.maximum(whole - ends[0] - ends[1], 0) / np.maximum(visits_of - 2, 1)
        counts = [v[run + "visits"] for run in RUNS]
        v["transfers"] = cost.pixel_runs(t.first.h[c.tiling], t.first.w[c.tiling], g.output[2], g.output[3], size[0])[2]
        put(name, [np.where(many, ends[0], whole), counts[1] * middle, counts[2] * middle, counts[3] * middle,
                   np.where(many, ends[1], 0)])  # fmt: skip
    v["written"], v["added"] = not r.output, matrix and cost.residual(g) and not r.operand
    v["batch"], v["renewed"], v["outer"] = batch, outer & (number > 1), outer
    step_h, step_w = np.minimum(c.step_h, t.first.h[c.tiling]), np.minimum(c.step_w, t.first.w[c.tiling])
    if matrix:
        timing = cost.matrix_timing(step_h * step_w, part, m, c.output_stationary, shift)
        v["lead"], v["gap"], v["through"], v["first"] = timing.lead, timing.gap, timing.tail, timing.occupy
        v["first_vector"] = step_h * step_w * ceil_div(b.width, m.lanes) + table
        v["last_vector"] = step_h * step_w * ceil_div(b.last, m.lanes) + table
        v["depth"] = np.maximum(np.floor(m.accumulator_rows / (step_h * step_w)), 1)
        v["rows"] = step_h * step_w
        fetch = _weights(v, g, c, r, m, b, part, size[0], blocks, number, steps[1] / tiles)
        put("fetch", _grouped(outer, inside, several, many, fetch, tiles))
        v["parameter_bytes"], v["last_parameter_bytes"] = (cost.record_bytes(g, size[k]) for k in (0, 2))
    else:
        v["parameter_bytes"], v["last_parameter_bytes"] = (cost.window_parameters(g, size[k], merged) for k in (0, 2))
        v["last_vector"] = v["first_vector"] = step_h * taps * ceil_div(step_w, merged) * across[0] + table
    some = v["parameter_bytes"] > 0
    v["parameters"] = np.where(some, cost.read(m.constant, 1, v["parameter_bytes"])[0], 0)
    per_tile = steps[0] * (1 if matrix else 1)
    v["last_step"] = 1 / np.maximum(steps[2], 1)
    whole_rows = g.output[1] * (1 if g.kind == "matmul" else g.output[0])
    v["first_step"] = _rows_of(g, step_h)
    v["first_tile"] = _rows_of(g, t.first.h[c.tiling])
    v["output_step"] = np.where(v["written"] > 0, t.first.h[c.tiling], t.first.h[c.tiling] / per_tile) / whole_rows


def _staged(outer: Values, again: Values, several: Values, many: Values, tiles: tuple[Values, ...], number: Values,
            count: Values) -> list[Values]:  # fmt: skip
    """Amounts of the runs of what comes with an image."""
    x0, x, x1 = tiles
    every = runs(outer, several, many, tiles, (1.0, number, 1.0))
    # Tiles outside: with the first group of each. Otherwise only the first visit of all.
    once = [x0, 0.0, np.where(several, x - x0 - x1, 0.0), np.where(several, x1, 0.0), 0.0]
    inner = [
        np.where(again, e, np.where(outer, f, o)) for e, f, o in zip(every, [x, 0.0, 0.0, 0.0, 0.0], once, strict=True)
    ]
    return inner


def _grouped(
    outer: Values, inside: Values, several: Values, many: Values, groups: tuple[Values, ...], tiles: Values
) -> list[Values]:
    """Amounts of the runs of what comes with groups of constants: of the first, of all, of the last."""
    y0, y, y1 = groups
    every = runs(outer, several, many, (1.0, tiles, 1.0), groups)
    single = tiles == 1  # a group has one visit: the last group comes with the last visit
    ends = several & outer
    once: list[Values] = [
        y0, 0.0, np.where(ends, y - y0 - y1, 0), np.where(ends & ~single, y1, 0), np.where(ends & single, y1, 0),
    ]  # fmt: skip
    return [np.where(inside, e, o) for e, o in zip(every, once, strict=True)]


def _weights(
    v: Visits, g: Geometry, c: Choice, r: Residency, m: Machines, b: cost.Blocks, part: cost.Parts, channels: Values,
    blocks: tuple[Values, ...], number: Values, steps: Values,
) -> tuple[Values, ...]:  # fmt: skip
    """How the weights of a group come; the cycles of the first group, of all, of the last."""
    if g.kind == "matmul":
        v["weight_bytes"] = v["last_weight_bytes"] = g.reduction * channels
        shape = cost.operand_runs(g, c.output_stationary, channels)
        if r.weights:
            v["weights"], v["local"] = cost.operand_cycles(g, *shape, m), 1
        else:
            v["weights"] = cost.read(m.constant if "weights" in r.constant else m.main, *shape)[0]
        v["block"] = v["weights"]
        return v["weights"], number * v["weights"], v["weights"]
    stream = c.part_rows > 0
    row = m.weight_row_bytes(b.width)

    def block(width: Values) -> Values:
        wide = m.weight_row_bytes(width)
        rest = np.where(part.last > 0, cost.read(m.constant, 1, part.last * wide)[0], 0)
        return part.count * cost.read(m.constant, 1, part.size * wide)[0] + part.last_count * rest

    def upto(count: Values) -> Values:
        """Of so many blocks from the first on: the last of each of the convolution's groups is narrower."""
        narrow = np.floor(count / b.per_group)
        return ((count - narrow) * block(b.width) + narrow * block(b.last)) * np.where(stream, steps, 1)

    first, total, last = upto(blocks[0]), upto(blocks[1]), upto(blocks[1]) - upto(blocks[1] - blocks[2])
    v["block"] = cost.read(m.constant, 1, part.size * row)[0]
    v["blocks"] = blocks[0] * np.where(stream, part.number * steps, 1)
    v["weights"], v["stream"] = first, stream
    v["weight_bytes"] = np.where(stream, part.size * row, g.reduction * b.row_bytes(m, blocks[0]))
    # Parts that are in the weight memory at a time, all where they fit; the part of a block that the last one is.
    whole = g.reduction * b.row_bytes(m, blocks[0])
    v["ahead"] = np.where(whole <= m.weight_bytes, v["blocks"], np.floor(m.weight_bytes / (part.size * row)))
    v["share"] = np.asarray(np.where(part.last > 0, part.last, part.size)) / g.reduction
    rest = b.row_bytes(m, blocks[1]) - b.row_bytes(m, blocks[1] - blocks[2])
    v["last_weight_bytes"] = np.where(stream, part.size * row, g.reduction * rest)
    return first, total, last


def _chunks(v: Visits, g: Geometry, c: Choice, r: Residency, m: Machines) -> None:
    """Other layers: equal chunks on average, the first and the last among them."""
    t = chunks(g)
    number: Values = 0.0
    sums: dict[str, Values] = dict.fromkeys(("load", "operand", "vector", "gather", "store"), 0.0)
    for kind in t.kinds:
        p = cost.piece(g, kind, c.tiling, r, m)
        if p is not None:
            count = kind.count[c.tiling]
            number = number + count
            for name, value in (("load", p.load), ("operand", p.fetch), ("vector", p.vector), ("gather", p.local),
                                ("store", p.store)):  # fmt: skip
                sums[name] = sums[name] + count * value
    number = np.maximum(number, 1)
    for run, count in zip(RUNS, (np.ones(len(m)), np.maximum(number - 2, 0), 0, 0, number > 1), strict=True):
        v[run + "visits"] = count
        for name, total in sums.items():
            v[run + name] = total / number * count
        v[run + "loads"] = v[run + "visits"] if np.any(sums["load"]) else 0
        v[run + "lane_issues"] = v[run + "visits"] if np.any(sums["vector"]) else 0
    size, times, groups = cost.chunk_parameters(g, c, m)
    v["Agroups"] = 1 if size else 0
    v["parameter_bytes"] = v["last_parameter_bytes"] = 1.0 * size / groups
    v["parameters"] = cost.read(m.constant, 1, v["parameter_bytes"])[0] if size else 0
    for run in RUNS[1:]:
        v[run + "groups"] = v[run + "visits"] * (times > 1)
    v["staged"], v["added"] = bool(np.any(sums["load"])), bool(np.any(sums["operand"]))
    v["image_apart"], v["operand_apart"] = 0, 1  # by memory, not by operand
    v["first_tile"] = v["first_step"] = 1 / number if t.in_order else 1
    v["output_step"] = 1 / number
    v["first_vector"] = v["last_vector"] = v["Avector"]
