"""Packed weights of dense matrix work, and which lane computes which output channel.

The layout is ``[group][channel block][unit of the window][vector][arranged weights]``, a unit being the bytes that one
multiplication of the instruction set sums (`isa.base.Block.depth`). Which channel sits in which
lane follows from the order in which the instruction set packs int32 vectors to bytes, so that the packed bytes
come out in channel order; biases and scales use the same lane order.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from qcompiler.codegen.cpu.isa.base import VectorInstructionSet

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Blocks:
    """How the channels of one group fall into blocks of `vectors` vectors.

    The last block may hold fewer channels, and then fewer vectors unless the blocks are to be whole.
    """

    lanes: int
    channels: int
    vectors: int
    whole: bool = False

    @property
    def total_vectors(self) -> int:
        return self.full * self.vectors + self.tail_vectors

    @property
    def full(self) -> int:
        return self.channels // self._width

    @property
    def _width(self) -> int:
        return self.vectors * self.lanes

    @property
    def tail_channels(self) -> int:
        return self.channels % self._width

    @property
    def tail_vectors(self) -> int:
        if self.whole and self.tail_channels:
            return self.vectors
        return -(-self.tail_channels // self.lanes)

    @property
    def count(self) -> int:
        return self.full + (self.tail_channels > 0)

    def sizes(self) -> Iterator[int]:
        """Vectors of each block."""
        for _ in range(self.full):
            yield self.vectors
        if self.tail_channels:
            yield self.tail_vectors


def pack_units(vectors: int, rows: int) -> list[list[tuple[int, int]]]:
    """Which (row, vector) accumulators are packed together: at most four, whole rows where a row has up to four."""
    if vectors > 4:
        return [[(r, v) for v in range(v0, min(v0 + 4, vectors))] for r in range(rows) for v0 in range(0, vectors, 4)]
    together = 4 // vectors
    return [
        [(r, v) for r in range(r0, min(r0 + together, rows)) for v in range(vectors)] for r0 in range(0, rows, together)
    ]


@functools.cache
def lane_channels(isa: VectorInstructionSet, vectors: int) -> npt.NDArray[np.int64]:
    """[vectors, lanes], read-only: the channel, counted from the block's first, that each lane computes."""
    lanes = isa.lanes(4)
    out = np.empty((vectors, lanes), dtype=np.int64)
    for v0 in range(0, vectors, 4):
        part = min(4, vectors - v0)
        inside = [(v, lane) for v, lane in isa.pack_order(lanes) if v < part]
        for channel, (v, lane) in enumerate(inside):
            out[v0 + v, lane] = v0 * lanes + channel
    out.flags.writeable = False
    return out


def channel_order(isa: VectorInstructionSet, blocks: Blocks) -> npt.NDArray[np.int64]:
    """[total_vectors * lanes]: the channel of every lane of one group in kernel order, -1 for padding lanes."""
    order = []
    for start, vectors in zip(range(0, blocks.channels, blocks.vectors * blocks.lanes), blocks.sizes(), strict=True):
        order.append((start + lane_channels(isa, vectors)).ravel())
    joined = np.concatenate(order)
    return np.where(joined < blocks.channels, joined, -1)


def pack_weights(isa: VectorInstructionSet, weights: Array, blocks: Blocks) -> Array:
    """int8 [groups, channels, window units, depth] to the packed layout (see the module's text)."""
    groups, _, units, depth = weights.shape
    lanes = blocks.lanes
    order = channel_order(isa, blocks)
    gathered = np.where((order < 0)[:, None, None], np.int8(0), weights[:, np.maximum(order, 0)])
    parts = []
    start = 0
    for vectors in blocks.sizes():
        block = gathered[:, start * lanes : (start + vectors) * lanes].reshape(groups, vectors, lanes, units, depth)
        arranged = isa.arrange_weights(block.transpose(0, 3, 1, 2, 4))
        parts.append(arranged.reshape(groups, -1))
        start += vectors
    return np.ascontiguousarray(np.concatenate(parts, axis=1))
