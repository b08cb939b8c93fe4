"""The closed form of one layer: what it costs on machines for mappings, as expressions over arrays.

`work` adds up, from the timing rules of the instruction set alone and without any instruction, how long each unit is
occupied, what moves through each memory, and what cannot overlap: bringing in the first tile and taking out the last.
The units work at the same time on different pieces, so that a layer takes the longest of them plus those ends.
DRAM bytes are exact, ragged tiles and bursts included.

Every argument may have any shape that broadcasts against the others: a lattice of candidates (machines x tilings x
groups x ...), in which an expression only has the axes that it depends on, or one mapping a machine.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from qcompiler.sim.hardware.batch import Machines, Memories, ceil_div
from qcompiler.sim.isa.post import ADD_RECORD_BYTES, TABLE_BYTES, VECTOR_PIPELINE
from qcompiler.sim.isa.vector import COORDINATE_BYTES
from qcompiler.sim.isa.vector_rows import DIVIDE_32_CYCLES, DIVIDE_64_CYCLES, EXP_TABLE_BYTES, SQUARE_ROOT_CYCLES
from qcompiler.sim.mapping import Residency, pixels_sharing_lanes, taps
from qcompiler.sim.moves import Box
from qcompiler.sim.tilings import Chunk, Tiles, chunks, tilings
from qcompiler.sim.workload import MATRIX_KINDS, Geometry

Values = Any  # float64 array, or a number, that broadcasts


@dataclass(frozen=True, eq=False)
class Choice:
    """Mappings (`mapping.Mapping`) as arrays; tiling: index into the geometry's `tilings` or `chunks`."""

    tiling: Values
    group: Values
    groups_outer: Values
    step_h: Values
    step_w: Values
    output_stationary: Values = False
    im2col: Values = False
    part_rows: Values = 0
    part_channels: Values = 0

    def take(self, index: Any) -> Choice:
        return Choice(**{k: v[index] for k, v in vars(self).items()})


@dataclass(eq=False)
class Work:
    """Cycles of each unit and bytes of each external memory for one layer (whole bursts).

    first_load, first_fetch: of `load` and `fetch`, what comes before anything can start; last_store, last_vector: what
    follows when the others are done. steps: instructions of the array or the lanes; tiles: how often the double buffers
    change hands.
    """

    matrix: Values = 0.0
    vector: Values = 0.0
    load: Values = 0.0
    fetch: Values = 0.0
    store: Values = 0.0
    main_read: Values = 0.0
    constant_read: Values = 0.0
    main_write: Values = 0.0
    first_load: Values = 0.0
    first_fetch: Values = 0.0
    first_matrix: Values = 0.0
    last_vector: Values = 0.0
    last_store: Values = 0.0
    steps: Values = 1.0
    tiles: Values = 1.0

    def times(self, count: int) -> Work:
        """The same work `count` times, one after the other."""
        once = ("first_load", "first_fetch", "first_matrix", "last_vector", "last_store")
        return Work(**{k: v if k in once else v * count for k, v in vars(self).items()})

    def bring(self, m: Machines, constant: bool, cycles: Values, moved: Values) -> None:
        """Add transfers of an operand, from the constant memory if it lies there."""
        if constant:
            self.fetch, self.constant_read = self.fetch + cycles, self.constant_read + moved
        else:
            self.load, self.main_read = self.load + cycles, self.main_read + moved

    def outline(self, m: Machines) -> Outline:
        """What the cycles of the layer alone follow from: the first pieces in, the slowest unit, the last piece out."""
        latency = m.main.latency
        head = np.maximum(
            self.first_load + latency * (self.first_load > 0),
            self.first_fetch + m.constant.latency * (self.first_fetch > 0),
        )
        load, fetch = self.load - self.first_load, self.fetch - self.first_fetch
        # A buffer is asked for again when it is free, and two are on their way at a time.
        flow = np.maximum(self.load, self.store)
        return Outline(
            compute=np.maximum(self.matrix, self.vector),
            chained=np.maximum(self.matrix, self.vector + self.first_matrix),
            moves=np.maximum(np.where(m.separate, np.maximum(load, fetch), load + fetch), self.store),
            turns=np.where(flow > 0, self.tiles * latency + flow, 0),
            ends=head + self.last_store + latency * (self.store > 0),
            last_vector=self.last_vector,
            traffic=self.main_read + self.constant_read + self.main_write,
            steps=self.steps,
        )


@dataclass(eq=False)
class Outline:
    """Of `Work`, what mappings are ranked by. Each has few axes of a lattice: what needs all of them, `cycles`, is for
    candidates that fit.

    compute: the slower of array and lanes; chained: the same, the lanes behind the first result; moves: the memories;
    turns: double buffers; ends, last_vector: before and after all that; traffic: external bytes.
    """

    compute: Values
    chained: Values
    moves: Values
    turns: Values
    ends: Values
    last_vector: Values
    traffic: Values
    steps: Values

    def at(self, index: npt.NDArray[np.int64], shape: tuple[int, ...]) -> Outline:
        """That of some candidates, by their flat index [k] into a lattice of this shape."""
        return Outline(**at_all(vars(self), index, shape))

    @property
    def cycles(self) -> Values:
        """Of the layer alone."""
        body = np.maximum(np.maximum(self.chained, self.moves), (self.turns + self.compute) / 2)
        return body + self.ends + self.last_vector


def at_all(values: dict[str, Values], index: npt.NDArray[np.int64], shape: tuple[int, ...]) -> dict[str, Values]:
    """The elements at a flat index [k] into a lattice of this shape, of arrays that broadcast to it."""
    places: list[npt.NDArray[np.int64]] = []  # along each axis
    flat: dict[tuple[int, ...], Any] = {shape: index}
    found = {}
    for name, value in values.items():
        own = np.shape(value)
        if np.size(value) == 1:
            found[name] = value if not own else value.reshape(())
            continue
        own = (1,) * (len(shape) - len(own)) + own
        if own not in flat:
            places = places or unravel(index, shape)
            place: Any = 0
            for size, position in zip(own, places, strict=True):
                if size > 1:
                    place = place * size + position
            flat[own] = place
        found[name] = value.ravel().take(flat[own])
    return found


def unravel(index: npt.NDArray[np.int64], shape: tuple[int, ...]) -> list[npt.NDArray[np.int64]]:
    """`np.unravel_index`, several times as fast: NumPy is quick to divide by a number."""
    places, rest = [], index
    for size in reversed(shape):
        above = rest // size
        places.append(rest - above * size)
        rest = above
    return places[::-1]


def read(memory: Memories, runs: Values, run_bytes: Values, transfers: Values = 1) -> tuple[Values, Values]:
    """``(cycles, bytes)`` of transfers of `runs` runs of `run_bytes` bytes each."""
    moved = memory.moved(runs, run_bytes)
    return transfers * memory.read_cycles(moved), transfers * moved


def write(memory: Memories, runs: Values, run_bytes: Values, transfers: Values = 1) -> tuple[Values, Values]:
    """As `read`, for the write channel."""
    moved = memory.moved(runs, run_bytes)
    return transfers * memory.write_cycles(moved), transfers * moved


def row_runs(tile: Tiles, index: Any, whole: int, channels: int) -> tuple[Values, Values]:
    """The part of an image `whole` pixels wide under a tile as (runs, bytes): one run where it is whole rows."""
    rows, columns = tile.ih[index], tile.iw[index]
    one = columns == whole
    return np.where(one, 1, rows), np.where(one, rows, 1) * (columns * channels)


def pixel_runs(h: Values, w: Values, whole: int, channels: int, size: Values) -> tuple[Values, Values, Values]:
    """``(runs, bytes a run, transfers)`` of `size` of `channels` channels of a tile h x w: whole pixels in rows."""
    full, row = size == channels, w == whole
    runs = np.where(full, np.where(row, 1, h), np.where(row, h * w, w))
    return runs, np.where(full, w * channels * np.where(row, h, 1), size), np.where(full | row, 1, h)


class Parts(NamedTuple):
    """The pieces of the reduction: `count` of `size` weights a channel, `last_count` of `last`; weight tiles in all."""

    count: Values
    size: Values
    last_count: Values
    last: Values
    passes: Values

    @property
    def number(self) -> Values:
        return self.count + self.last_count


class Timing(NamedTuple):
    """Of a matrix instruction (`isa.matrix`): the array works `occupy` cycles, at the earliest `lead` after the
    operands are there and `gap` after the instruction before; the result is complete `tail` cycles later."""

    lead: Values
    occupy: Values
    gap: Values
    tail: Values


def load_cycles(g: Geometry, m: Machines, output_stationary: Values) -> Values:
    """Cycles to shift a tile of weights into the array (W of `isa.matrix`)."""
    if g.kind != "matmul":
        return m.rows  # a packed row is never wider than the port
    # An operand that is itself an activation has a byte a value.
    straight = m.rows * ceil_div(m.columns, m.weight_width)
    if not g.transposed:
        return straight
    # It shifts in from the side, unless the sums stay and it was turned on its way.
    return np.where(output_stationary, straight, m.columns * ceil_div(m.rows, m.weight_width))


def matrix_timing(pixels: Values, part: Parts, m: Machines, output_stationary: Values, load: Values) -> Timing:
    """`Timing` of a block over `pixels` rows: one instruction, or one after the other for each part.

    load: as of `load_cycles`.
    """
    passes = part.passes
    through, single = m.rows + m.columns - 2, m.weight_buffers == 1
    occupy = np.where(
        single, passes * (load + pixels + through) - load - through, (passes - 1) * np.maximum(pixels, load) + pixels
    )
    gap, tail = np.where(single, load + through, np.maximum(load - pixels, 0)), through
    if np.any(output_stationary):
        groups, beat = ceil_div(pixels, m.rows), passes * np.maximum(m.rows, load)
        stationary = groups * np.where(single, beat + part.number * (m.rows + through), beat)
        occupy = np.where(output_stationary, stationary, occupy)
        gap = np.where(output_stationary, 0, gap)
        tail = np.where(output_stationary, np.where(single, 0, through + m.rows), tail)
        load = np.where(output_stationary, 0, load)
    return Timing(load, occupy, gap, tail)


def parts(g: Geometry, c: Choice, m: Machines) -> Parts:
    """As `mapping.parts`."""
    (kh, kw), channels = g.kernel, g.image[3] // g.groups
    rows, columns, run = taps(g, False)
    passes = rows * columns * ceil_div(run, m.rows)
    if np.any(c.im2col):
        passes = np.where(c.im2col, ceil_div(kh * kw * channels, m.rows), passes)
    if not np.any(c.part_rows):
        return Parts(1, kh * kw * channels, 0, 0, passes)
    pr = np.where(c.part_rows > 0, c.part_rows, kh)
    pc = np.where((c.part_channels > 0) & (c.part_channels < channels), c.part_channels, channels)
    cut, rest = pc < channels, channels % pc
    fine = kh * kw * (np.floor(channels / pc) * ceil_div(pc, m.rows) + ceil_div(rest, m.rows))
    return Parts(
        np.where(cut, kh * np.floor(channels / pc), np.floor(kh / pr)), pr * kw * pc,
        np.where(cut, kh * (rest > 0), (kh % pr) > 0), np.where(cut, kw * rest, (kh % pr) * kw * channels),
        np.where(cut, fine, passes),
    )  # fmt: skip


class Blocks(NamedTuple):
    """Output channels in blocks of at most C: `count` in all, the last of each of the convolution's groups `last` wide;
    vectors: of the lanes for one pixel."""

    count: Values
    per_group: Values
    width: Values
    last: Values
    vectors: Values

    def row_bytes(self, m: Machines, blocks: Values) -> Values:
        """Bytes of a row of weights of the first `blocks` blocks: each block's are packed for themselves."""
        narrow = np.floor(blocks / self.per_group)
        return (blocks - narrow) * m.weight_row_bytes(self.width) + narrow * m.weight_row_bytes(self.last)

    def channels(self, g: Geometry, first: Values) -> Values:
        """Output channels before block `first`."""
        each = g.output[3] // g.groups
        return np.minimum(np.floor(first / self.per_group) * each + (first % self.per_group) * self.width, g.output[3])


def blocks(g: Geometry, m: Machines) -> Blocks:
    """As `mapping.blocks`."""
    each = g.output[3] // g.groups
    per_group, width = ceil_div(each, m.columns), np.minimum(m.columns, each)
    last = each - (per_group - 1) * width
    vectors = g.groups * ((per_group - 1) * ceil_div(width, m.lanes) + ceil_div(last, m.lanes))
    return Blocks(g.groups * per_group, per_group, width, last, vectors)


def group_sizes(g: Geometry, b: Blocks, group: Values) -> Iterator[tuple[Values, Values]]:
    """``(how many, channels)`` of the groups of `group` blocks."""
    number = ceil_div(b.count, group)
    last = g.output[3] - b.channels(g, (number - 1) * group)
    yield 1, last
    if g.groups == 1 or np.all(b.per_group == 1) or not np.any(number > 2):
        yield number - 1, b.channels(g, group)
        return
    for k in range(int(np.max(number)) - 1):
        yield k < number - 1, b.channels(g, (k + 1) * group) - b.channels(g, k * group)


def block_cycles(pixels: Values, part: Parts, m: Machines, output_stationary: Values, load: Values) -> Values:
    """Cycles from block to block of back-to-back instructions: occupy and gap of `matrix_timing`."""
    through, single = m.rows + m.columns - 2, m.weight_buffers == 1
    cycles: Values = 0.0
    if not np.all(output_stationary):
        cycles = part.passes * np.where(single, pixels + (load + through), np.maximum(pixels, load))
    if np.any(output_stationary):
        beat = part.passes * np.maximum(m.rows, load) + np.where(single, part.number * (m.rows + through), 0)
        stationary = ceil_div(pixels, m.rows) * beat
        cycles = np.where(output_stationary, stationary, cycles)
    return cycles


def step_sizes(tile: Tiles, index: Any, c: Choice) -> Iterator[tuple[Values, Values]]:
    """``(how many, pixels)`` of the steps of a kind of tile."""
    h, w = tile.h[index], tile.w[index]
    nh, nw = np.floor(h / c.step_h), np.floor(w / c.step_w)
    rh, rw = h - nh * c.step_h, w - nw * c.step_w
    yield nh * nw, c.step_h * c.step_w
    ragged_h, ragged_w = rh > 0, rw > 0
    if ragged_w.any():
        yield nh * ragged_w, c.step_h * rw
        yield ragged_h & ragged_w, rh * rw
    if ragged_h.any():
        yield ragged_h * nw, rh * c.step_w


def residual(g: Geometry) -> bool:
    """Whether a tensor is added behind the product."""
    return g.operands > (g.kind == "matmul")


def record_bytes(g: Geometry, channels: Values) -> Values:
    """Parameters of a group of channels of matrix work."""
    tail = ADD_RECORD_BYTES * residual(g) + TABLE_BYTES * g.tables
    return (g.record_bytes if g.kind == "matmul" else channels * g.record_bytes) + tail


def operand_runs(g: Geometry, output_stationary: Values, columns: Values) -> tuple[Values, Values]:
    """How `columns` columns of matmul's b are loaded: (runs, bytes a run)."""
    k = g.reduction
    if g.transposed:
        return np.where(output_stationary, k * columns, 1), np.where(output_stationary, 1, k * columns)
    whole = columns == g.output[3]
    return np.where(whole, 1, k), np.where(whole, k, 1) * columns


def operand_cycles(g: Geometry, runs: Values, size: Values, m: Machines) -> Values:
    """Cycles to copy matmul's b inside the chip: runs of bytes, or a transpose byte by byte (`isa.dma`)."""
    width = m.activation_width
    cycles = runs * ceil_div(size, width)
    if not g.transposed:
        return cycles
    together = np.floor(width / np.gcd(g.reduction, width.astype(np.int64)))
    return np.where(size > 1, cycles, g.reduction * ceil_div(runs / g.reduction, together))


def gathers(g: Geometry) -> tuple[int, int]:
    """``(taps, bytes a tap)`` of an im2col."""
    c = g.image[3]
    return (g.kernel[0], g.kernel[1] * c) if g.dilation[1] == 1 else (math.prod(g.kernel), c)


def _matrix(g: Geometry, c: Choice, r: Residency, m: Machines) -> Work:
    """Convolutions, dense layers, products."""
    w, t = Work(), tilings(g)
    channels, (_, oh, ow, o) = g.image[3], g.output
    pixels = (1 if g.kind == "matmul" else g.output[0]) * oh * ow
    b, part, tiles, constant = blocks(g, m), parts(g, c, m), t.count[c.tiling], "image" in r.constant
    number, beat = ceil_div(b.count, c.group), load_cycles(g, m, c.output_stationary)
    table = ceil_div(TABLE_BYTES, m.lanes) * g.tables
    image_loads = np.where(c.groups_outer & (tiles > 1), number, 1)
    weight_loads = np.where(~c.groups_outer & (number > 1), tiles, 1)
    steps: Values = 0.0
    load: Values = 0.0
    for kind in t.kinds:
        count = kind.count[c.tiling]
        for many, size in step_sizes(kind, c.tiling, c):
            times = count * many
            w.matrix = w.matrix + times * block_cycles(size, part, m, c.output_stationary, beat)
            steps = steps + times
    for window in () if r.image else t.windows:
        count = window.count[c.tiling]
        cycles, moved = read(m.constant if constant else m.main, *row_runs(window, c.tiling, g.image[2], channels))
        load, w.main_read = load + count * cycles, w.main_read + count * moved
    w.matrix = w.matrix * b.count
    w.vector = pixels * b.vectors + steps * table * b.count
    if not r.image:
        w.load, moved, w.main_read = image_loads * load, image_loads * w.main_read, 0.0
        if constant:
            w.fetch, w.load, w.constant_read = w.load, 0.0, moved
        else:
            w.main_read = moved
    if np.any(c.im2col):
        number_of, run = gathers(g)
        gather = pixels * number_of * ceil_div(run, m.activation_width)
        w.load = w.load + np.where(c.im2col, image_loads * gather, 0)
    last = o - b.channels(g, (number - 1) * c.group)
    cycles, moved = 0.0, 0.0
    for many, size in group_sizes(g, b, c.group):
        for kind in t.kinds if not (r.output and (r.operand or not residual(g))) else ():
            h, wd, times = kind.h[c.tiling], kind.w[c.tiling], many * kind.count[c.tiling]
            runs = pixel_runs(h, wd, ow, o, size)
            if not r.output:
                took, bytes_ = write(m.main, *runs)
                w.store, w.main_write = w.store + times * took, w.main_write + times * bytes_
            if residual(g) and not r.operand:
                apart = "operand" in r.constant
                took, bytes_ = read(m.constant if apart else m.main, *runs)
                w.bring(m, apart, times * took, times * bytes_)
        took, bytes_ = read(m.constant, 1, record_bytes(g, size))
        cycles, moved = cycles + many * took, moved + many * bytes_
    w.fetch, w.constant_read = w.fetch + weight_loads * cycles, w.constant_read + weight_loads * moved
    first = np.where(number > 1, b.channels(g, c.group), last)
    w.first_fetch = read(m.constant, 1, record_bytes(g, first))[0]
    if g.kind == "matmul":
        for many, size in group_sizes(g, b, c.group):
            shape = operand_runs(g, c.output_stationary, size)
            if r.weights:
                w.load = w.load + weight_loads * many * operand_cycles(g, *shape, m)
            else:
                apart = "weights" in r.constant
                took, bytes_ = read(m.constant if apart else m.main, *shape)
                w.bring(m, apart, weight_loads * many * took, weight_loads * many * bytes_)
    else:
        cycles, moved = 0.0, 0.0
        for many, width in ((g.groups * (b.per_group - 1), b.width), (g.groups, b.last)):
            for pieces, size in ((part.count, part.size), (part.last_count, part.last)):
                took, bytes_ = read(m.constant, 1, size * m.weight_row_bytes(width))
                cycles, moved = cycles + many * pieces * took, moved + many * pieces * bytes_
        times = np.where(c.part_rows > 0, steps, weight_loads)
        w.fetch, w.constant_read = w.fetch + times * cycles, w.constant_read + times * moved
        w.first_fetch = w.first_fetch + read(m.constant, 1, part.size * m.weight_row_bytes(b.width))[0]
    h, wd = np.minimum(c.step_h, t.first.h[c.tiling]), np.minimum(c.step_w, t.first.w[c.tiling])
    most = h * wd
    w.first_matrix = block_cycles(most, part, m, c.output_stationary, beat) + (m.rows + m.columns)
    if not r.image:
        w.first_load = read(m.main, *row_runs(t.first, c.tiling, g.image[2], channels))[0]
    if np.any(c.im2col):
        number_of, run = gathers(g)
        gather = t.first.h[c.tiling] * t.first.w[c.tiling] * number_of * ceil_div(run, m.activation_width)
        w.first_load = w.first_load + np.where(c.im2col, gather, 0)
    w.last_vector = most * ceil_div(b.last, m.lanes) + table + VECTOR_PIPELINE
    if not r.output:
        w.last_store = write(m.main, *pixel_runs(t.first.h[c.tiling], t.first.w[c.tiling], ow, o, last))[0]
    w.steps = steps * b.count * part.number
    w.tiles = np.maximum(tiles * image_loads * (not r.image), tiles * number * (not r.output))
    return w.times(t.batch) if t.batch > 1 else w


def merged_pixels(g: Geometry, c: Choice, m: Machines) -> Values:
    """`mapping.merged_pixels` of each."""
    if g.kind != "depthwise":
        return 1
    width = g.output[2]
    whole = (c.group * m.lanes >= g.output[3]) & (tilings(g).tile_w[c.tiling] >= width) & (c.step_w >= width)
    return pixels_sharing_lanes(g, whole, m.lanes, m.parameter_bytes)


def lane_groups(g: Geometry, c: Choice, m: Machines) -> tuple[Values, Values, Values]:
    """``(groups, channels of a group, channels of the last)`` of a depthwise layer; a pool has all in one."""
    o = g.output[3]
    if g.kind == "pool":
        return 1, o, o
    number = ceil_div(o, c.group * m.lanes)
    return number, np.minimum(c.group * m.lanes, o), o - (number - 1) * c.group * m.lanes


def window_parameters(g: Geometry, channels: Values, merged: Values) -> Values:
    """Bytes of constants of a group of a depthwise layer, or of a pool."""
    own = (math.prod(g.kernel) + g.record_bytes) * channels * merged if g.kind == "depthwise" else (
        g.records * g.record_bytes
    )  # fmt: skip
    return own + TABLE_BYTES * g.tables


def _vector(g: Geometry, c: Choice, r: Residency, m: Machines) -> Work:
    """Depthwise convolutions and pools."""
    w, t = Work(), tilings(g)
    (_, _, ow, o), tap = g.output, math.prod(g.kernel)
    number, width, last = lane_groups(g, c, m)
    merged, tiles, constant = merged_pixels(g, c, m), t.count[c.tiling], "image" in r.constant
    table = ceil_div(TABLE_BYTES, m.lanes) * g.tables
    image_loads = np.where(c.groups_outer & (tiles > 1), number, 1)
    for kind in t.kinds:
        count, h, wd = kind.count[c.tiling], kind.h[c.tiling], kind.w[c.tiling]
        steps = ceil_div(h, c.step_h) * np.where(wd % merged == 0, 1, 2)
        for many, size in ((number - 1, width), (1, last)):
            across = ceil_div(wd, merged) * ceil_div(merged * size, m.lanes)
            w.vector = w.vector + count * many * (h * across * tap + table * steps)
            if not r.output:
                took, bytes_ = write(m.main, *pixel_runs(h, wd, ow, o, size))
                w.store, w.main_write = w.store + count * many * took, w.main_write + count * many * bytes_
    for window in () if r.image else t.windows:
        count = window.count[c.tiling] * image_loads
        took, bytes_ = read(m.constant if constant else m.main, *row_runs(window, c.tiling, g.image[2], g.image[3]))
        w.bring(m, constant, count * took, count * bytes_)
    loads = np.where(~c.groups_outer & (number > 1), tiles, 1)
    if g.kind == "depthwise" or g.records or g.tables:
        for many, size in ((number - 1, width), (1, last)):
            took, bytes_ = read(m.constant, 1, window_parameters(g, size, merged))
            w.fetch, w.constant_read = w.fetch + many * loads * took, w.constant_read + many * loads * bytes_
        w.first_fetch = read(m.constant, 1, window_parameters(g, width, merged))[0]
    if not r.image:
        w.first_load = read(m.main, *row_runs(t.first, c.tiling, g.image[2], g.image[3]))[0]
    w.last_vector = VECTOR_PIPELINE
    if not r.output:
        w.last_store = write(m.main, *pixel_runs(t.first.h[c.tiling], t.first.w[c.tiling], ow, o, last))[0]
    w.steps = tiles * number * ceil_div(t.tile_h[c.tiling], c.step_h)
    w.tiles = np.maximum(tiles * image_loads * (not r.image), tiles * number * (not r.output))
    return w


def chunk_cycles(g: Geometry, chunk: Chunk, index: Any, m: Machines) -> Values:
    """Cycles of the lanes for one chunk."""
    each = chunk.outer[index] * ceil_div(chunk.inner[index], m.lanes)
    if g.kind == "table":
        beside = TABLE_BYTES * ceil_div(g.output[3], m.lanes) if g.tables > 1 else ceil_div(TABLE_BYTES, m.lanes)
        return each + beside
    if g.kind in ("softmax", "layer_norm"):
        tree = np.frexp(m.lanes - 1)[1]  # its bit length
        if g.kind == "softmax":
            row = 2 * tree + DIVIDE_32_CYCLES + 2 * VECTOR_PIPELINE
            return ceil_div(EXP_TABLE_BYTES, m.lanes) + 3 * each + chunk.rows[index] * row
        row = tree + 2 * VECTOR_PIPELINE + DIVIDE_64_CYCLES + SQUARE_ROOT_CYCLES
        return 2 * each + chunk.rows[index] * row
    return each


def chunk_parameters(g: Geometry, c: Choice, m: Machines) -> tuple[Values, Values, Values]:
    """``(bytes, how often, groups)`` of the constants of a layer of another kind; tables of channels that do not fit
    come group by group, again for every chunk."""
    if g.kind == "table" and g.tables > 1:
        number = ceil_div(g.output[3], c.group * m.lanes)
        return TABLE_BYTES * g.output[3], np.where(number > 1, chunks(g).count[c.tiling], 1), number
    length = g.image[3]
    size = {"table": TABLE_BYTES, "softmax": EXP_TABLE_BYTES, "layer_norm": 4 * length, "elementwise": g.record_bytes,
            "resize": COORDINATE_BYTES * g.output[2] + g.record_bytes}  # fmt: skip
    return size.get(g.kind, 0), 1, 1


def on_chip(box: Box, m: Machines) -> Values:
    """Cycles of a box inside the activation memory (`isa.dma`)."""
    width = m.activation_width
    if box.run > 1 or not box.loops:
        return box.bytes // box.run * ceil_div(box.run, width)
    n, source, target = box.loops[-1]
    banks = width.astype(np.int64)
    conflicts = np.maximum(np.gcd(source, banks) if source and box.operand >= 0 else 1, np.gcd(target, banks))
    return box.bytes // n * ceil_div(n, np.floor(width / conflicts))


class Piece(NamedTuple):
    """What one chunk does: cycles and bytes of its loads (and of those from the constants), of the lanes, of moves
    inside the chip, and of its stores."""

    load: Values
    main_read: Values
    fetch: Values
    constant_read: Values
    vector: Values
    local: Values
    store: Values
    main_write: Values


def piece(g: Geometry, chunk: Chunk, index: Any, r: Residency, m: Machines) -> Piece | None:
    """One chunk of a layer; None where the layer has no such chunks for this residency."""
    load, main, fetch, constant, local, store, written = (0.0,) * 7
    image, output = chunk.image[index], chunk.output[index]
    if g.kind == "move":
        box, run = g.boxes[chunk.box], chunk.run[index]
        here = r.image or box.operand < 0
        if chunk.part == (here or r.output):
            return None
        if not here:
            took, moved = read(m.constant if "image" in r.constant else m.main, image / run, run)
            load, main, fetch, constant = (0.0, 0.0, took, moved) if "image" in r.constant else (took, moved, 0.0, 0.0)
        if not r.output:
            store, written = write(m.main, output / run, run)
        elif here:
            local = on_chip(box, m)
        return Piece(load, main, fetch, constant, 0.0, local, store, written)
    for name, size, there in (("image", image, r.image), ("operand", chunk.operand[index], r.operand)):
        if not there and np.any(size):
            took, moved = read(m.constant if name in r.constant else m.main, 1, size)
            if name in r.constant:
                fetch, constant = fetch + took, constant + moved
            else:
                load, main = load + took, main + moved
    if g.kind == "embedding":
        took, moved = read(m.constant, output / g.output[3], g.output[3])
        fetch, constant = fetch + took, constant + moved
    if not r.output:
        store, written = write(m.main, 1, output)
    return Piece(load, main, fetch, constant, chunk_cycles(g, chunk, index, m), local, store, written)


def _other(g: Geometry, c: Choice, r: Residency, m: Machines) -> Work:
    w, t = Work(), chunks(g)
    number: Values = 0.0
    for kind in t.kinds:
        p = piece(g, kind, c.tiling, r, m)
        if p is None:
            continue
        count = kind.count[c.tiling]
        number = number + count
        w.load, w.main_read = w.load + count * p.load, w.main_read + count * p.main_read
        w.fetch, w.constant_read = w.fetch + count * p.fetch, w.constant_read + count * p.constant_read
        w.store, w.main_write = w.store + count * (p.store + p.local), w.main_write + count * p.main_write
        w.vector = w.vector + count * p.vector
        w.first_load, w.last_store = np.maximum(w.first_load, p.load), np.maximum(w.last_store, p.store)
    size, times, _ = chunk_parameters(g, c, m)
    if size:
        took, moved = read(m.constant, 1, size)
        w.first_fetch = took
        w.fetch, w.constant_read = w.fetch + times * took, w.constant_read + times * moved
    w.last_vector, w.steps, w.tiles = VECTOR_PIPELINE, number, number
    return w


def work(g: Geometry, c: Choice, r: Residency, m: Machines) -> Work:
    """What the layer occupies and moves."""
    if g.kind in MATRIX_KINDS:
        return _matrix(g, c, r, m)
    if g.kind in ("depthwise", "pool"):
        return _vector(g, c, r, m)
    return _other(g, c, r, m)
