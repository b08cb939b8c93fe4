"""The ways to cut a layer that do not depend on a machine, as arrays over tilings, made once a geometry.

A tiling cuts the output into tiles. Of what a tiling does to a layer only the distinct tiles matter: how many there
are of each size, and the first and the last one, which the flow of a layer begins and ends with.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from qcompiler.sim.loops import MAX_WIDTH
from qcompiler.sim.mapping import ceil_div, cut, operand_bytes, window
from qcompiler.sim.moves import split
from qcompiler.sim.workload import MATRIX_KINDS, Geometry

Floats = npt.NDArray[np.float64]
WINDOW_KINDS = (*MATRIX_KINDS, "depthwise", "pool")
MOST_PIECES = 4096  # of a move or a table: tiles smaller than that are of no use


def halvings(size: int) -> list[int]:
    """Steps that cut `size` into 1, 2, 3, 4, 6, 8, 12, ... as equal pieces as possible, largest first."""
    return sorted({ceil_div(size, k) for k in divisions(size)}, reverse=True)


def divisions(size: int) -> list[int]:
    """Numbers of pieces worth trying: 1, 2, 3, 4, 6, 8, 12, ... up to `size`."""
    counts, n = [1, 2, 3], 4
    while n < size:
        counts += [n, n * 3 // 2]
        n *= 2
    return sorted({k for k in counts if k <= size} | {size})


@dataclass(frozen=True, eq=False)
class Tiles:
    """Sizes of a kind of tile, each [T]: `count` of h x w output pixels, or of ih x iw pixels of the image."""

    count: Floats
    h: Floats
    w: Floats
    ih: Floats
    iw: Floats


@dataclass(frozen=True, eq=False)
class Tilings:
    """Convolutions, products, depthwise and pools: tile_h, tile_w [T], the first tiling being the whole image.

    kinds: the distinct sizes of tiles; windows: of the parts of the image under them; count [T]: tiles of the layer (of
    one product of a batch); window_bytes [T]: the largest part of the image under a tile; batch: how often all is done.
    """

    tile_h: Floats
    tile_w: Floats
    count: Floats
    kinds: tuple[Tiles, ...]
    windows: tuple[Tiles, ...]
    first: Tiles
    last: Tiles
    window_bytes: Floats
    batch: int


def _floats(values: Iterable[float]) -> Floats:
    return np.array(list(values), dtype=np.float64)


def _spans(g: Geometry, axis: int, step: int) -> list[tuple[int, int]]:
    """``(output positions, image positions)`` of each piece along an axis."""
    found = []
    for low, high in cut(0, g.output[1 + axis], step):
        first, last = window(
            low, high, g.image[1 + axis], g.kernel[axis], g.stride[axis], g.dilation[axis], g.padding[axis]
        )
        found.append((high - low, last - first))
    return found


@lru_cache(maxsize=1024)
def tilings(g: Geometry) -> Tilings:
    """Whole rows, and pieces of one row in case whole ones do not fit."""
    images, h, w, _ = g.output
    batch, images = (images, 1) if g.kind == "matmul" else (1, images)
    sizes = [(rows, w) for rows in halvings(h)] + [(1, columns) for columns in halvings(w)[1:]]
    columns = {n: _spans(g, 1, n) for _, n in sizes}
    kinds: list[list[tuple[int, int, int]]] = []
    windows: list[list[tuple[int, int, int]]] = []
    firsts, lasts = [], []
    for tile_h, tile_w in sizes:
        rows, across = _spans(g, 0, tile_h), columns[tile_w]
        for found, k in ((kinds, 0), (windows, 1)):
            ys, xs = Counter(y[k] for y in rows), Counter(x[k] for x in across)
            found.append([(images * a * b, y, x) for y, a in ys.items() for x, b in xs.items()])
        firsts.append((1, rows[0][0], across[0][0], rows[0][1], across[0][1]))
        lasts.append((1, rows[-1][0], across[-1][0], rows[-1][1], across[-1][1]))
    outputs, inputs = _padded(kinds), _padded(windows)
    one = np.ones(len(sizes))
    return Tilings(
        tile_h=_floats(a for a, _ in sizes), tile_w=_floats(b for _, b in sizes),
        count=np.sum([k[0] for k in outputs], axis=0),
        kinds=tuple(Tiles(n, h, w, one, one) for n, h, w in outputs),
        windows=tuple(Tiles(n, one, one, h, w) for n, h, w in inputs),
        first=Tiles(*np.array(firsts, dtype=np.float64).T), last=Tiles(*np.array(lasts, dtype=np.float64).T),
        window_bytes=_floats(_window(g, 0, a) * _window(g, 1, b) * g.image[3] for a, b in sizes), batch=batch,
    )  # fmt: skip


def _padded(found: list[list[tuple[int, int, int]]]) -> list[list[Floats]]:
    """``count, height, width`` [T] of the first kind of each tiling, of the second, ...; count 0: none."""
    most = max(map(len, found))
    values = np.array([k + [(0, 1, 1)] * (most - len(k)) for k in found], dtype=np.float64)
    return [[values[:, k, i].copy() for i in range(3)] for k in range(most)]


def _window(g: Geometry, axis: int, tile: int) -> int:
    return min(g.image[1 + axis], (tile - 1) * g.stride[axis] + (g.kernel[axis] - 1) * g.dilation[axis] + 1)


@dataclass(frozen=True, eq=False)
class Chunk:
    """Pieces of element-wise, row-wise or moving work, each [T]: `count` of them read `image` and `operand` bytes in
    runs of `run` and write `output` bytes; the lanes take `outer` times ceil(`inner` / lanes) cycles, and what
    `rows` of the kind cost beside (`cost.chunk_cycles`). box: which box of a move it belongs to; part: it is a part of
    one that is cut because neither side is on chip.
    """

    count: Floats
    image: Floats
    operand: Floats
    output: Floats
    run: Floats
    outer: Floats
    inner: Floats
    rows: Floats
    box: int = 0
    part: bool = False


@dataclass(frozen=True, eq=False)
class Chunks:
    """Other layers: tile_h [T] (what it counts: `mapping`), chunks [T] in all, kinds in order.

    image_slot, operand_slot, output_slot [T]: bytes of a staging buffer. parameters: bytes fetched once. in_order:
    whether the i-th piece reads only about the i-th part of its inputs.
    """

    tile_h: Floats
    count: Floats
    kinds: tuple[Chunk, ...]
    image_slot: Floats
    operand_slot: Floats
    output_slot: Floats
    in_order: bool


def trips(g: Geometry) -> int:
    """What tile_h of a layer of another kind cuts."""
    if g.kind == "table" and g.tables == 1:
        return g.image_bytes
    if g.kind == "elementwise":
        return g.loops[0][0]
    if g.kind == "move":
        return max((box.bytes for box in g.boxes), default=1)
    return g.output[1]


@lru_cache(maxsize=1024)
def chunks(g: Geometry) -> Chunks:
    """The pieces of element-wise, row-wise and moving layers."""
    total = trips(g)
    fine = g.kind == "move" or (g.kind == "table" and g.tables == 1)
    sizes = [
        n for n in halvings(total) if (not fine or n * MOST_PIECES >= total) and (g.kind == "move" or n <= MAX_WIDTH)
    ]
    if g.kind == "move":
        return _moves(g, sizes)
    repeat = g.image[0] if g.kind == "resize" else 1
    found = []
    for size in sizes:
        pieces = Counter(_piece(g, low, high) for low, high in cut(0, total, size))
        found.append([(count * repeat, *piece) for piece, count in pieces.items()])
    most = max(map(len, found))
    padded = np.array([p + [(0, *([1] * 7))] * (most - len(p)) for p in found], dtype=np.float64)
    staged = np.where(padded[:, :, :1] > 0, padded, 0)
    return Chunks(
        _floats(sizes), padded[:, :, 0].sum(axis=1), tuple(Chunk(*padded[:, k].T) for k in range(most)),
        staged[:, :, 1].max(axis=1), staged[:, :, 2].max(axis=1), staged[:, :, 3].max(axis=1),
        in_order=g.kind != "resize" or g.image[0] == 1,
    )  # fmt: skip


def _piece(g: Geometry, low: int, high: int) -> tuple[int, ...]:
    """image, operand, output, run, outer, inner, rows of trips low..high-1."""
    n, length, out = high - low, g.image[3], g.output[3]
    if g.kind == "elementwise":
        *outer, inner = [n, *(loop[0] for loop in g.loops[1:])]
        a, b = (operand_bytes(g, n, k) for k in (0, 1))
        return a, b, math.prod(outer) * inner, 0, math.prod(outer), inner, 1
    if g.kind == "table" and g.tables == 1:
        return n, 0, n, 0, 1, n, 1
    if g.kind == "table":
        return n * length, 0, n * length, 0, n, length, n
    if g.kind == "resize":
        ys = [y for a, b, _ in g.loops[low:high] for y in (a, b)]
        image = (max(ys) - min(ys) + 1) * g.image[2] * length
        return image, 0, n * g.output[2] * out, 0, 4 * n * g.output[2], out, n
    if g.kind == "embedding":
        return n * length, 0, n * out, 0, 0, 1, n
    return n * length, 0, n * length, 0, n, length, n  # softmax, layer norm


def _moves(g: Geometry, sizes: list[int]) -> Chunks:
    """Each box as it is, then its parts."""
    kinds: list[Chunk] = []
    whole = np.ones(len(sizes))
    for k, box in enumerate(g.boxes):
        kinds.append(_box([[(1, box.bytes, box.run)]] * len(sizes), k)[0])
        kinds += _box([[(c, *s) for s, c in Counter((p.bytes, p.run) for p in split(box, size)).items()]
                       for size in sizes], k, part=True)  # fmt: skip
    return Chunks(_floats(sizes), whole, tuple(kinds), _floats(sizes), 0 * whole, 0 * whole, in_order=False)


def _box(found: list[list[tuple[int, int, int]]], k: int, part: bool = False) -> list[Chunk]:
    most = max(map(len, found))
    a = np.array([p + [(0, 1, 1)] * (most - len(p)) for p in found], dtype=np.float64)
    one = np.ones(len(found))
    return [Chunk(a[:, i, 0], a[:, i, 1], 0 * one, a[:, i, 1], a[:, i, 2], 0 * one, one, one, k, part)
            for i in range(most)]  # fmt: skip
