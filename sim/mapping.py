"""A mapping: how a layer is cut into pieces that fit the on-chip memories, and in which order they run.

A layer's output is cut into tiles (rows x columns of pixels, whole channels) that are staged in the activation
memory when the tensors live outside, and into groups of channel blocks (C channels each; lanes for vector work)
whose constants are staged together. One loop is outside the other: with `groups_outer` each group's constants come in
once and the image once a group, else each tile comes in once and the constants once a tile. Inside, each block of
each step (rows of a tile that fit half the accumulators) is one instruction of the matrix unit and one of the
vector unit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from qcompiler.sim.hardware import Machine
from qcompiler.sim.isa.post import TABLE_BYTES
from qcompiler.sim.workload import MATRIX_KINDS, Geometry

MAX_MERGED = 16  # neighbouring pixels that one vector may hold


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


@dataclass(frozen=True)
class Residency:
    """Which operands of a layer stay in the activation memory, and the bytes that are left there for tiles.

    operand: a residual or addend; weights: matmul's b. constant: which of them lie among the constants.
    """

    image: bool
    output: bool
    operand: bool
    free_bytes: int
    weights: bool = False
    constant: tuple[str, ...] = ()


@dataclass(frozen=True)
class Mapping:
    """tile_h, tile_w: output pixels of a tile. group: blocks of a group. step_h, step_w: output pixels of a step.

    part_rows, part_channels: kernel rows and channels of a part, for weights of which not even one block fits (0: all).
    For layers that are no convolutions, products or pools, tile_h counts trips of the
    outermost loop (element-wise), bytes (tables, moves), output rows (resize) or rows (softmax, layer norm, embedding,
    per-channel tables), group vectors of channels (per-channel tables), and the rest is 1.
    """

    tile_h: int
    tile_w: int
    group: int
    groups_outer: bool
    step_h: int
    step_w: int
    output_stationary: bool = False
    im2col: bool = False
    part_rows: int = 0
    part_channels: int = 0


@dataclass(frozen=True)
class Tile:
    """Output pixels n, y0..y1-1, x0..x1-1."""

    n: int
    y0: int
    y1: int
    x0: int
    x1: int

    @property
    def pixels(self) -> int:
        return (self.y1 - self.y0) * (self.x1 - self.x0)


def cut(low: int, high: int, step: int) -> list[tuple[int, int]]:
    """low..high in pieces of `step`, the last one shorter."""
    return [(a, min(a + step, high)) for a in range(low, high, step)]


def tiles(g: Geometry, m: Mapping) -> list[Tile]:
    """All tiles of the output, in order."""
    n, h, w, _ = g.output
    rows, columns = cut(0, h, m.tile_h), cut(0, w, m.tile_w)
    return [Tile(i, y0, y1, x0, x1) for i in range(n) for y0, y1 in rows for x0, x1 in columns]


def steps(tile: Tile, m: Mapping) -> list[Tile]:
    """The pieces of a tile that one instruction handles."""
    rows, columns = cut(tile.y0, tile.y1, m.step_h), cut(tile.x0, tile.x1, m.step_w)
    return [Tile(tile.n, y0, y1, x0, x1) for y0, y1 in rows for x0, x1 in columns]


def window(low: int, high: int, size: int, kernel: int, stride: int, dilation: int, before: int) -> tuple[int, int]:
    """Input positions (never empty, inside the image) that output positions low..high-1 read along one axis."""
    first = min(max(low * stride - before, 0), size - 1)
    last = min((high - 1) * stride - before + (kernel - 1) * dilation, size - 1)
    return first, max(last, first) + 1


def input_window(g: Geometry, tile: Tile) -> tuple[int, int, int, int]:
    """``(y0, y1, x0, x1)`` of the image that a tile reads."""
    _, h, w, _ = g.image
    y = window(tile.y0, tile.y1, h, g.kernel[0], g.stride[0], g.dilation[0], g.padding[0])
    x = window(tile.x0, tile.x1, w, g.kernel[1], g.stride[1], g.dilation[1], g.padding[1])
    return (*y, *x)


def taps(g: Geometry, im2col: bool) -> tuple[int, int, int]:
    """``(kernel_h, kernel_w, run)`` of the matrix instruction: neighbouring pixels are one run where that is allowed.

    A kernel row of an ungrouped, undilated convolution reads kernel_w * channels consecutive bytes.
    """
    (kh, kw), channels = g.kernel, g.image[3] // g.groups
    if im2col:
        return 1, 1, kh * kw * channels
    if g.groups == 1 and g.dilation[1] == 1:
        return kh, 1, kw * channels
    return kh, kw, channels


@dataclass(frozen=True)
class Part:
    """Kernel rows row..row+rows-1 and channels channel..channel+channels-1; kernel as in `taps`."""

    row: int
    rows: int
    channel: int
    channels: int
    kernel: tuple[int, int, int]


def parts(g: Geometry, m: Mapping) -> list[Part]:
    """The pieces of the reduction that follow each other in the accumulators: usually one."""
    kh, kw, run = taps(g, m.im2col)
    channels = g.image[3] // g.groups
    if m.im2col or not (m.part_rows or m.part_channels):
        return [Part(0, g.kernel[0], 0, channels, (kh, kw, run))]
    wide = m.part_channels in (0, channels)
    found = []
    for y0, y1 in cut(0, g.kernel[0], m.part_rows or g.kernel[0]):
        for c0, c1 in cut(0, channels, m.part_channels or channels):
            kernel = (y1 - y0, kw, run) if wide else (y1 - y0, g.kernel[1], c1 - c0)
            found.append(Part(y0, y1 - y0, c0, c1 - c0, kernel))
    return found


def blocks(g: Geometry, machine: Machine) -> list[tuple[int, int, int]]:
    """``(group of the convolution, first output channel, channels)`` of each block of at most C channels."""
    per_group = g.output[3] // g.groups
    width = machine.matrix.columns
    return [
        (i, i * per_group + c, min(width, per_group - c)) for i in range(g.groups) for c in range(0, per_group, width)
    ]


def _window_bytes(g: Geometry, m: Mapping) -> int:
    """Largest part of the image under a tile."""
    _, h, w, c = g.image
    rows = min(h, (m.tile_h - 1) * g.stride[0] + (g.kernel[0] - 1) * g.dilation[0] + 1)
    columns = min(w, (m.tile_w - 1) * g.stride[1] + (g.kernel[1] - 1) * g.dilation[1] + 1)
    return rows * columns * c


def operand_bytes(g: Geometry, count: int, operand: int) -> int:
    """Bytes of an element-wise operand (0: a, 1: b) under `count` trips of the outermost loop."""
    inner = 1 + sum((n - 1) * loop[operand] for n, *loop in g.loops[1:])
    return (count - 1) * g.loops[0][operand + 1] + inner


def slot_bytes(g: Geometry, m: Mapping, r: Residency, machine: Machine) -> dict[str, int]:
    """Bytes of one buffer of each operand that is staged in the activation memory (two of each are held)."""
    slots = {"image": 0, "im2col": 0, "operand": 0, "output": 0}
    if g.kind in (*MATRIX_KINDS, "depthwise", "pool"):
        unit = machine.vector.lanes if g.kind == "depthwise" else machine.matrix.columns
        channels = g.output[3] if g.kind == "pool" else min(m.group * unit, g.output[3])
        pixels = m.tile_h * m.tile_w
        slots |= {"image": _window_bytes(g, m), "output": pixels * channels}
        if m.im2col:
            slots["im2col"] = pixels * math.prod(taps(g, True))
        if g.operands > (g.kind == "matmul"):
            slots["operand"] = pixels * channels
    elif g.kind == "elementwise":
        inner = math.prod(n for n, _, _ in g.loops[1:])
        slots |= {
            "image": operand_bytes(g, m.tile_h, 0), "operand": operand_bytes(g, m.tile_h, 1),
            "output": m.tile_h * inner,
        }  # fmt: skip
    elif g.kind == "table":
        unit = g.image[3] if g.tables > 1 else 1
        slots |= {"image": m.tile_h * unit, "output": m.tile_h * unit}
    elif g.kind == "move":
        slots["image"] = 0 if r.output else m.tile_h  # only where neither side is on chip
    elif g.kind == "resize":
        _, _, w, c = g.image
        under = [[y for a, b, _ in g.loops[y0:y1] for y in (a, b)] for y0, y1 in cut(0, len(g.loops), m.tile_h)]
        rows = max(max(ys) - min(ys) + 1 for ys in under)
        slots |= {"image": rows * w * c, "output": m.tile_h * g.output[2] * c}
    else:  # rows: softmax, layer_norm, embedding
        slots |= {"image": m.tile_h * g.image[3], "output": m.tile_h * g.output[3]}
    resident = {"image": r.image, "output": r.output, "operand": r.operand, "im2col": not m.im2col}
    return {name: size for name, size in slots.items() if size and not resident[name]}


def merged_pixels(g: Geometry, m: Mapping, machine: Machine) -> int:
    """How many neighbouring pixels of a depthwise layer share the lanes when its channels alone would not fill them."""
    lanes, width = machine.vector.lanes, g.output[2]
    whole = m.group * lanes >= g.output[3] and m.tile_w >= width and m.step_w >= width
    return int(pixels_sharing_lanes(g, whole, lanes, machine.vector.parameter_bytes))


def pixels_sharing_lanes(g: Geometry, whole: Any, lanes: Any, parameter_bytes: Any) -> Any:
    """The rule of `merged_pixels`, over arrays that broadcast as well as over numbers.

    Only where the window moves by one pixel and all channels and columns are together (`whole`): then neighbouring
    results and what they read are neighbouring bytes. Weights and records are repeated, so that the result must fit
    half the parameters.
    """
    channels, width = g.output[3], g.output[2]
    if g.stride[1] != 1:
        return 1
    repeated = channels * (math.prod(g.kernel) + g.record_bytes)
    most = (parameter_bytes // 2 - TABLE_BYTES) // repeated
    best: Any = 1
    least: Any = width * np.ceil(channels / lanes)
    for n in range(2, min(MAX_MERGED, width) + 1):
        vectors = ceil_div(width, n) * np.ceil(n * channels / lanes)
        better = (n <= most) & (vectors < least) & whole
        best, least = np.where(better, n, best), np.where(better, vectors, least)
    return best


def merged_pieces(step: Tile, pixels: int) -> list[Tile]:
    """A step cut where `pixels` at a time no longer fit: the last ones are computed again, together with the rest."""
    columns = step.x1 - step.x0
    whole = columns // pixels * pixels
    pieces = [replace(step, x1=step.x0 + whole)]
    if whole < columns:
        pieces.append(replace(step, x0=step.x1 - pixels))
    return pieces


def uniform_pieces(step: Tile, counts: npt.NDArray[np.int64]) -> list[Tile]:
    """A step cut into rectangles over which `counts` [OH, OW] (of an average pool) does not change."""
    rows, columns = range(step.y0, step.y1), range(step.x0, step.x1)
    ys = [y for y in rows if y == step.y0 or (counts[y] != counts[y - 1]).any()] + [step.y1]
    xs = [x for x in columns if x == step.x0 or (counts[:, x] != counts[:, x - 1]).any()] + [step.x1]
    return [Tile(step.n, y0, y1, x0, x1) for y0, y1 in pairwise(ys) for x0, x1 in pairwise(xs)]


def resize_rows(low: npt.NDArray[np.int64], high: npt.NDArray[np.int64], y0: int, y1: int) -> tuple[int, int]:
    """Image rows that output rows y0..y1-1 of a bilinear resize read, as a half-open range."""
    return int(min(low[y0:y1].min(), high[y0:y1].min())), int(max(low[y0:y1].max(), high[y0:y1].max())) + 1
