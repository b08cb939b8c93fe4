"""The mappings worth trying for a layer, as lattices over machines, tilings, groups, steps and orders.

`lattice` gives them in a few parts, one for each dataflow and way to read the image; in each, every quantity only has
the axes that it depends on, and a mask says which candidates fit. What a layer needs at least and at most of the
activation memory follows from the ends of the same lists.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from qcompiler.sim import cost
from qcompiler.sim.cost import Choice
from qcompiler.sim.hardware import Machine
from qcompiler.sim.hardware.batch import Machines, ceil_div
from qcompiler.sim.isa.post import TABLE_BYTES
from qcompiler.sim.mapping import Residency, taps
from qcompiler.sim.tilings import WINDOW_KINDS, Tilings, chunks, divisions, tilings
from qcompiler.sim.workload import MATRIX_KINDS, Geometry

Values = Any
AXES = 6  # machines, tilings, groups, steps, orders, dataflows
ORDERS = np.array([True, False]).reshape(1, 1, 1, 1, 2, 1)
STEPS = 8  # pieces of a tile of vector work, so that what follows can begin early


@dataclass(frozen=True, eq=False)
class Part:
    """Candidates of one kind: which machines they are for, the mappings, and which of them fit (all AXES axes)."""

    rows: npt.NDArray[np.int64]
    choice: Choice
    fits: npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Groups:
    """Numbers of blocks in a group [n, 1, G]: as equal groups as possible of `count` blocks; valid: no repetition."""

    size: Values
    valid: Values
    count: Values


def groups(count: Values) -> Groups:
    """The groups worth trying for `count` blocks [n]."""
    most = int(count.max())
    pieces = np.array([k for k in divisions(most) if k in divisions(1 << 20)], dtype=np.float64)
    few = count[:, None] < pieces
    size = np.where(few, 1, ceil_div(count[:, None], np.minimum(pieces, count[:, None])))
    size = np.concatenate([size, np.ones((len(count), 1))], axis=1)
    valid = np.concatenate([np.ones((len(count), 1), bool), size[:, 1:] < size[:, :-1]], axis=1)
    return Groups(size[:, None, :], valid[:, None, :], count[:, None, None])


def balanced(size: Values, limit: Values) -> Values:
    """The step that cuts `size` into the fewest pieces of at most `limit`, as equal as possible."""
    return ceil_div(size, ceil_div(size, np.maximum(limit, 1)))


def slot_bytes(g: Geometry, r: Residency, m: Machines, tiling: Values, group: Values, im2col: Values) -> Values:
    """Bytes of one buffer of each operand that is staged in the activation memory, all together."""
    if g.kind not in WINDOW_KINDS:
        pieces = chunks(g)
        output = 0 if r.output else pieces.output_slot[tiling]
        image = pieces.image_slot[tiling] * (not r.output if g.kind == "move" else 1)
        return (0 if r.image else image) + (0 if r.operand else pieces.operand_slot[tiling]) + output
    t = tilings(g)
    pixels = t.tile_h[tiling] * t.tile_w[tiling]
    total: Values = 0 if r.image else t.window_bytes[tiling]
    unit = m.lanes if g.kind == "depthwise" else m.columns
    out = pixels * (g.output[3] if g.kind == "pool" else np.minimum(group * unit, g.output[3]))
    staged = (not r.output) + (cost.residual(g) and not r.operand if g.kind in MATRIX_KINDS else 0)
    if np.any(im2col):
        total = total + np.where(im2col, pixels * math.prod(taps(g, True)), 0)
    return total + staged * out


def _tiles(g: Geometry, r: Residency) -> npt.NDArray[np.int64]:
    """Indices of the tilings worth trying: only the whole where nothing has to be staged."""
    if g.kind not in WINDOW_KINDS:
        return np.arange(len(chunks(g).tile_h))
    whole = r.image and r.output and (r.operand or not g.operands)
    return np.arange(1 if whole else len(tilings(g).tile_h))


def block_row_bytes(g: Geometry, m: Machines) -> Values:
    """Bytes of a row of the weights of a block in the weight memory."""
    columns = np.minimum(m.columns, g.output[3] // g.groups)
    return columns if g.kind == "matmul" else m.weight_row_bytes(columns)


def _reductions(g: Geometry, m: Machines) -> tuple[Values, Values, Values, Values]:
    """Whether a block's weights fit whole; and where two do not, whether two parts do: rows and channels of a part."""
    (kh, kw), channels = g.kernel, g.image[3] // g.groups
    across, memory = block_row_bytes(g, m), m.weight_bytes
    row, half = kw * channels * across, np.floor(memory / 2)
    by_rows, by_channels = row <= half, kw * across <= half
    parted = (kh * row > half) & (by_rows | by_channels) & (g.kind != "matmul")
    rows = np.where(by_rows, balanced(kh, np.maximum(np.floor(half / row), 1)), 1)
    part = np.where(by_rows, 0, balanced(channels, np.maximum(np.floor(half / (kw * across)), 1)))
    return kh * row <= memory, parted, rows, part


def _gathers(g: Geometry, m: Machines) -> npt.NDArray[np.bool_]:
    """Where windows side by side fill the array better than runs of pixels."""
    if g.kind != "conv" or g.groups != 1 or math.prod(g.kernel) == 1 or g.reduction >= 65536:
        return np.zeros(len(m), bool)
    better = ceil_div(g.reduction, m.rows) < g.kernel[0] * ceil_div(g.kernel[1] * g.image[3], m.rows)
    return better


def _matrix_groups(g: Geometry, m: Machines, parted: bool) -> tuple[Groups, Values]:
    """Groups whose weights (unless they come in parts) and parameters fit, twice where there are more."""
    found, one = groups(cost.blocks(g, m).count), m.take((slice(None), None, None))
    block_bytes = 0 if parted else g.reduction * block_row_bytes(g, one)
    parameters = found.size * one.columns * g.record_bytes + TABLE_BYTES * g.tables + 16
    # One block may stand alone: its successor then loads when it is done.
    share = np.where((found.size == 1) | (found.size == found.count), 1, 2)
    fits = (found.size * block_bytes * share <= one.weight_bytes) & (parameters * share <= one.parameter_bytes)
    return found, found.valid & fits


def _lane_groups(g: Geometry, m: Machines) -> tuple[Groups, Values]:
    """Groups of a depthwise layer whose weights and records fit, twice where there are more."""
    found, one = groups(ceil_div(g.output[3], m.lanes)), m.take((slice(None), None, None))
    whole = found.size * one.lanes >= g.output[3]
    need = np.minimum(found.size * one.lanes, g.output[3]) * (math.prod(g.kernel) + g.record_bytes)
    return found, found.valid & (need * np.where(whole, 1, 2) <= one.parameter_bytes - TABLE_BYTES * g.tables)


def _variants(g: Geometry, m: Machines) -> Iterator[tuple[bool, bool, npt.NDArray[np.bool_], Values, Values]]:
    """``(im2col, parted, for which machines, rows of a part, channels of a part)``."""
    whole, parted, rows, channels = _reductions(g, m)
    nothing = np.zeros(len(m))
    yield False, False, whole, nothing, nothing
    yield True, False, whole & _gathers(g, m), nothing, nothing
    yield False, True, parted, rows, channels


def table_group(g: Geometry, m: Machines) -> Values:
    """Vectors of channels whose tables are held together, twice where there are more."""
    fit = np.floor(np.floor(m.parameter_bytes / 2 / TABLE_BYTES) / m.lanes)
    return np.maximum(fit, 1) if g.kind == "table" and g.tables > 1 else np.ones(len(m))


def _parameters_fit(g: Geometry, m: Machines) -> npt.NDArray[np.bool_]:
    """Whether a layer of another kind has room for its constants."""
    if g.kind == "table" and g.tables > 1:
        return np.minimum(m.lanes, g.output[3]) * TABLE_BYTES <= m.parameter_bytes
    need, _, _ = cost.chunk_parameters(g, Choice(0, 1, True, 1, 1), m)
    if g.kind == "pool":
        need = cost.window_parameters(g, g.output[3], 1)
    return need <= m.parameter_bytes


def _inner(t: Tilings, tiling: Values, size: Values, found: Groups) -> Values:
    """Where groups in the inner loop are another order: there are several of them, and several tiles."""
    return (size < found.count[..., None, None, None]) & (t.count[tiling] > 1)


def lattice(g: Geometry, r: Residency, m: Machines, free: Values) -> Iterator[Part]:
    """All candidates for machines whose activation memory has `free` [n] bytes for tiles."""
    tiling = _tiles(g, r).reshape(1, -1, 1, 1, 1, 1)
    every = np.arange(len(m))
    if g.kind in MATRIX_KINDS:
        yield from _matrix(g, r, m, free, tiling)
        return
    wide, room = m.shaped(AXES), free.reshape(-1, 1, 1, 1, 1, 1)
    orders = ORDERS
    if g.kind == "depthwise":
        found, valid = _lane_groups(g, m)
        size, t = found.size[..., None, None, None], tilings(g)
        fits = 2 * slot_bytes(g, r, wide, tiling, size, False) <= room
        fits = fits & valid[..., None, None, None] & (orders | _inner(t, tiling, size, found))
        yield Part(
            every,
            Choice(tiling, size, orders, np.maximum(1, ceil_div(t.tile_h[tiling], STEPS)), t.tile_w[tiling]),
            fits,
        )
        return
    fits = (2 * slot_bytes(g, r, wide, tiling, 1, False) <= room) & _parameters_fit(g, m).reshape(room.shape)
    if g.kind == "pool":
        t = tilings(g)
        step = np.maximum(1, ceil_div(t.tile_h[tiling], STEPS))
        yield Part(every, Choice(tiling, 1.0, True, step, t.tile_w[tiling]), fits)
        return
    group = table_group(g, m).reshape(room.shape)
    yield Part(every, Choice(tiling, group, True, chunks(g).tile_h[tiling], 1.0), fits)


def _matrix(g: Geometry, r: Residency, m: Machines, free: Values, tiling: Values) -> Iterator[Part]:
    t = tilings(g)
    orders = ORDERS
    for im2col, parted, possible, part_rows, part_channels in _variants(g, m):
        rows = np.flatnonzero(possible)
        if not rows.size:
            continue
        own = m.take(rows)
        wide, found, valid = own.shaped(AXES), *_matrix_groups(g, own, parted)
        flow_of = np.array([False, True]).reshape(1, 1, 1, 1, 1, 2)
        able = np.where(flow_of, wide.output_stationary, wide.weight_stationary)
        if g.kind == "matmul":
            able = able & ~(flow_of & wide.weight_stationary)
        used = able.any(axis=0).reshape(2)
        flow_of, able = flow_of[..., used], able[..., used]
        size = found.size[..., None, None, None]
        fits = 2 * slot_bytes(g, r, wide, tiling, size, im2col) <= free[rows].reshape(-1, 1, 1, 1, 1, 1)
        fits = fits & valid[..., None, None, None] & (orders | _inner(t, tiling, size, found))
        if not fits.any():
            continue
        # Tilings and groups that no machine has room for are not looked at any further.
        fits = np.broadcast_to(fits, (rows.size, tiling.shape[1], *fits.shape[2:]))
        tiles, kept = fits.any(axis=(0, 2, 3, 4, 5)), fits.any(axis=(0, 1, 3, 4, 5))
        fits, cut, size = fits[:, tiles][:, :, kept], tiling[:, tiles], size[:, :, kept]
        h, w = t.tile_h[cut], t.tile_w[cut]
        limit = np.maximum(np.floor(wide.accumulator_rows / np.array([2.0, 4, 8]).reshape(1, 1, 1, 3, 1, 1)), 1)
        narrow = w > limit  # not even a row of the tile is one step
        step_h = np.where(narrow, 1, balanced(h, np.floor(limit / w)))
        step_w = np.where(narrow, balanced(w, limit), w)
        # The same step again would only tie with itself.
        again = np.zeros(np.broadcast_shapes(step_h.shape, step_w.shape), bool)
        same_h, same_w = (x[:, :, :, 1:] == x[:, :, :, :-1] for x in (step_h, step_w))
        again[:, :, :, 1:] = same_h & same_w
        at = (slice(None), *(None,) * (AXES - 1))
        choice = Choice(cut, size, orders, step_h, step_w, flow_of, im2col, part_rows[rows][at],
                        part_channels[rows][at])  # fmt: skip
        yield Part(rows, choice, fits & ~again & able)


def needs(g: Geometry, r: Residency, m: Machines) -> tuple[Values, Values]:
    """``(least, most)`` activation memory [n] that two buffers of every staged operand take, over all candidates;
    infinite where the other memories are too small for any."""
    ends = _tiles(g, r)[[0, -1]].reshape(1, -1, 1)
    one = m.take((slice(None), None, None))
    least, most = np.full(len(m), np.inf), np.zeros(len(m))

    def add(rows: Values, sizes: Values, valid: Values) -> None:
        sizes, valid = np.broadcast_arrays(2.0 * sizes, valid)
        least[rows] = np.minimum(least[rows], np.where(valid, sizes, np.inf).min(axis=(1, 2)))
        most[rows] = np.maximum(most[rows], np.where(valid, sizes, 0).max(axis=(1, 2)))

    every = np.arange(len(m))
    if g.kind == "depthwise":
        found, valid = _lane_groups(g, m)
        add(every, slot_bytes(g, r, one, ends, found.size, False), valid)
    elif g.kind not in MATRIX_KINDS:
        add(every, slot_bytes(g, r, one, ends, 1, False), _parameters_fit(g, m).reshape(-1, 1, 1))
    else:
        for im2col, parted, possible, _, _ in _variants(g, m):
            rows = np.flatnonzero(possible)
            if rows.size:
                own = m.take(rows)
                found, valid = _matrix_groups(g, own, parted)
                sizes = slot_bytes(g, r, own.take((slice(None), None, None)), ends, found.size, im2col)
                add(rows, sizes, valid)
    return least, most


class Reserve(NamedTuple):
    """Activation memory [n] for the layer's tiles: worth keeping, the least and the most that is of any use."""

    wanted: Values
    least: Values
    most: Values


def reserve(g: Geometry, r: Residency, m: Machines) -> Reserve:
    """A quarter of the memory is worth keeping, but no more than the largest tiling and no less than the smallest
    needs. Infinite where the other memories are too small for any."""
    least, most = needs(g, r, m)
    return Reserve(np.maximum(least, np.minimum(most, np.floor(m.activation_bytes / 4))), least, most)


def shortfall(g: Geometry, least: float, free: float, machine: Machine) -> str:
    """Which memory is too small for the layer, and by how much; `least` as of `reserve`, `free` what there is."""
    if least < np.inf:
        return (
            f"the smallest double-buffered tile needs {least:.0f} bytes of activation memory, {least - free:.0f} more "
            f"than the {free:.0f} that are free"
        )
    m = Machines.of([machine])
    channels = min(machine.matrix.columns, g.output[3] // g.groups)
    have, what = machine.vector.parameter_bytes, "parameter memory"
    weights = g.reduction * int(block_row_bytes(g, m)[0])
    if g.kind in MATRIX_KINDS and weights > machine.weight_memory.size_bytes:
        need, have, what = weights, machine.weight_memory.size_bytes, "weight memory"
    elif g.kind in (*MATRIX_KINDS, "depthwise"):
        channels = channels if g.kind in MATRIX_KINDS else min(machine.vector.lanes, g.output[3])
        tap = math.prod(g.kernel) if g.kind == "depthwise" else 0
        need = channels * (tap + g.record_bytes) + TABLE_BYTES * g.tables
    else:
        if g.kind == "table" and g.tables > 1:
            size = TABLE_BYTES * min(machine.vector.lanes, g.output[3])
        elif g.kind == "pool":
            size = cost.window_parameters(g, g.output[3], 1)
        else:
            size = cost.chunk_parameters(g, Choice(0, 1, True, 1, 1), m)[0]
        return f"its constants need {size} bytes of {what}, {size - have} more than the {have} there are"
    return (
        f"one block of {channels} channels needs {need} bytes of {what}, {need - have} more than the {have} there are"
    )
