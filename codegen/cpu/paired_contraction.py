"""Matrix work on AVX2 with byte multiplications wherever they are exact.

VPMADDUBSW multiplies bytes and adds pairs of products with 16-bit saturation: three instructions for a quad of 8
channels (it, VPMADDWD by ones, VPADDD) where exact 16-bit pairs take four. Activations are any byte 0..255, but the
weights are known: a pair of products lies between 255 times the sum of the pair's negative weights and 255 times that
of its positive ones. From -128 * 255 = -32640 to 128 * 255 = 32640 nothing saturates, so two weights of one sign
that add to more than 128 are all that is in the way. For each vector of channels the quads of the window are put into
an order of its own: first those whose weights are harmless in every lane, as bytes, then the others, as 16-bit pairs
of a widened copy of the input. A table says where in the window each quad lies.

Weights: int8 ``[vector][quad][lane][4]`` of the harmless quads (`bytes`), int16 pairs of the others (`words`). Table,
int32: for each vector the number of harmless quads and where its `bytes` and `words` begin; then all its quads.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm import tirx

from qcompiler.codegen.cpu import contraction
from qcompiler.codegen.cpu.contraction import Geometry, Tile
from qcompiler.codegen.cpu.emit import Expr, Registers, constant, load
from qcompiler.codegen.cpu.epilogue import FusedOp
from qcompiler.codegen.cpu.isa.base import VectorInstructionSet
from qcompiler.codegen.cpu.kernel import Kernel
from qcompiler.codegen.cpu.packed_weights import channel_order
from qcompiler.codegen.cpu.requantize import Rescale, rescale_constants, rescale_of
from qcompiler.codegen.cpu.tiles import SWEEP_BYTES, choose_tile
from qcompiler.sim.integer_program import Requantize

Array = npt.NDArray[Any]
HEADER = 3  # table entries of a vector before its quads
LEAST_SHARE = 0.3  # of harmless quads: below, narrower tiles cost more than bytes save
LEAST_QUADS = 16  # of the window: below, the epilogue decides
LIMIT = 128  # of the weights of one sign in a pair


@dataclass(frozen=True)
class Streams:
    """Sizes of the two weight buffers, in elements, for the template."""

    bytes: int
    words: int


def harmless(weights: Array) -> npt.NDArray[np.bool_]:
    """int8 [..., 4]: whether no pair of products of bytes 0..255 with the weights leaves 16 bits, [...]."""
    first, second = weights[..., 0::2].astype(np.int16), weights[..., 1::2].astype(np.int16)
    positive, negative = np.maximum(first, 0) + np.maximum(second, 0), np.minimum(first, 0) + np.minimum(second, 0)
    fits = (positive <= LIMIT) & (negative >= -LIMIT)
    return np.asarray(fits[..., 0] & fits[..., 1])


def _in_lanes(isa: VectorInstructionSet, geometry: Geometry, weights: Array, vectors: int) -> tuple[Array, Array]:
    """(weights int8 [vectors, window quads, lanes, 4], the channel of each lane), all vectors of all groups in order.

    vectors: of a block of channels, which decides what channels share a vector.
    """
    blocks = contraction.blocks_of(geometry, vectors, isa.lanes(4))
    order = channel_order(isa, blocks)
    gathered = np.where((order < 0)[:, None, None], np.int8(0), weights[:, np.maximum(order, 0)])
    quads = weights.shape[2]
    in_lanes = gathered.reshape(-1, isa.lanes(4), quads, 4).transpose(0, 2, 1, 3)
    return in_lanes, contraction.lane_order(isa, geometry, blocks)


def pays(isa: VectorInstructionSet, geometry: Geometry, weights: Array) -> bool:
    """Whether the level has saturating byte products, and enough of the weights are harmless."""
    if not isa.saturating_pairs or geometry.weight_copies or geometry.taps * geometry.quads < LEAST_QUADS:
        return False
    if geometry.positions < 4:  # bound by the weights
        return False
    vectors, _ = _in_lanes(isa, geometry, weights, 2)
    return float(harmless(vectors).all(axis=2).mean()) >= LEAST_SHARE


def choose_paired_tile(isa: VectorInstructionSet, geometry: Geometry) -> Tile:
    """The contraction's choice among tiles of two vectors, one of which is in the registers at a time.

    The two copies of the input are three times its bytes: they are swept once a block of channels only where the
    weights are too many for the second-level cache.
    """
    tile = choose_tile(_one_at_a_time(isa), geometry)
    weights = geometry.groups * geometry.channels * geometry.taps * geometry.quads * 4
    return replace(tile, channels_outer=weights > SWEEP_BYTES)


@functools.cache
def _one_at_a_time(isa: VectorInstructionSet) -> VectorInstructionSet:
    return replace(isa, most_vectors=2, weight_registers=1, operand_registers=1, dot_temporaries=2)


def paired_kernel(
    name: str, isa: VectorInstructionSet, geometry: Geometry, tile: Tile, weights: Array, bias: Array, offset: int,
    requantize: Requantize, bound: Array, fused: tuple[FusedOp, ...],
) -> Kernel:  # fmt: skip
    """The kernel; arguments as of `contraction.contraction_kernel`.

    Its inputs are the stored bytes and their widened copy.
    """
    vectors, order = _in_lanes(isa, geometry, weights, tile.vectors)
    safe = np.asarray(harmless(vectors).all(axis=2))
    table, byte_parts, word_parts = [], [], []
    byte_start = word_start = 0
    offsets = _window(geometry)
    for quads, is_safe in zip(vectors, safe, strict=True):
        byte_parts.append(quads[is_safe].reshape(-1))
        word_parts.append(isa.arrange_weights(quads)[~is_safe].reshape(-1))
        table += [int(is_safe.sum()), byte_start, word_start, *offsets[is_safe], *offsets[~is_safe]]
        byte_start += byte_parts[-1].size
        word_start += word_parts[-1].size
    sums = weights.astype(np.int64).sum(axis=(2, 3)).ravel()
    corrected = (bias.astype(np.int64) - offset * sums)[np.maximum(order, 0)]
    lane_bias = np.where(order < 0, 0, corrected).astype(np.int32)
    rescale = rescale_of(requantize, bound, isa)
    constants: tuple[Array, ...] = (
        np.concatenate(byte_parts).astype(np.int8), np.concatenate(word_parts).astype(np.int16),
        np.array(table, dtype=np.int32), lane_bias,
        *rescale_constants(requantize, rescale, geometry.output_channels, order),
    )  # fmt: skip
    parameters = {"geometry": geometry, "tile": tile, "rescale": rescale, "fused": fused,
                  "streams": Streams(byte_start, word_start)}  # fmt: skip
    tasks = contraction.task_count(geometry, tile, isa.lanes(4))
    return Kernel(name, paired_contraction, parameters, tasks, constants)


def _window(geometry: Geometry) -> npt.NDArray[np.int64]:
    """Where each quad of the window lies from the position's first element, in the order of the weights."""
    rows = np.arange(geometry.rows[0]) * geometry.rows[1]
    columns = np.arange(geometry.columns[0]) * geometry.columns[1]
    quads = np.arange(geometry.quads) * 4
    return (rows[:, None, None] + columns[:, None] + quads).reshape(-1)


def paired_contraction(
    isa: VectorInstructionSet, geometry: Geometry, tile: Tile, rescale: Rescale, fused: tuple[FusedOp, ...],
    streams: Streams,
) -> Any:  # fmt: skip
    """The PrimFunc. Buffers: the stored bytes, the widened copy, the fused operations' second operands; constants:

    bytes, words, table, bias, scales, the fused operations' own; the output.
    """
    return _Writer(isa, geometry, tile, rescale, fused, streams).function()


class _Writer(contraction.Writer):
    """The contraction with another inner loop."""

    def __init__(
        self, isa: VectorInstructionSet, geometry: Geometry, tile: Tile, rescale: Rescale, fused: tuple[FusedOp, ...],
        streams: Streams,
    ) -> None:  # fmt: skip
        self.streams = streams
        super().__init__(isa, geometry, tile, rescale, fused)

    def input_buffers(self) -> None:
        elements = self.geometry.input_elements
        self.stored = self.e.buffer("x", elements, self.isa.storage)
        self.x = self.e.buffer("wide", elements, self.isa.operand_dtype)

    def weight_buffers(self) -> None:
        e = self.e
        self.bytes = e.buffer("bytes", self.streams.bytes, "int8")
        self.words = e.buffer("words", self.streams.words, "int16")
        self.table = e.buffer("table", self.padded // self.lanes * (HEADER + self.window_units), "int32")
        self.bias = e.buffer("bias", self.padded, "int32")

    def _accumulate(self, acc: Registers, offsets: list[int], source: Expr, number: Expr) -> None:
        """Vector by vector: the harmless quads, then the others."""
        first = self.e.bind(tirx.truncdiv(self.scale_lane, constant(self.lanes)), "int32", "first")
        for v in range(self.vectors):
            self._accumulate_vector(acc, v, offsets, source, first + v, number)

    def _accumulate_vector(
        self, acc: Registers, v: int, offsets: list[int], source: Expr, vector: Expr, number: Expr
    ) -> None:
        """Each tile asks for its share of the weights of the next block, which are about as many as this one's."""
        e, isa, lanes = self.e, self.isa, self.lanes
        share = -(-4 * lanes // contraction.sweep_tiles(self.geometry, self.tile))
        slots = [self._slot(r, v) for r in range(len(offsets))]
        header = e.bind(vector * (HEADER + self.window_units), "int32", "header")
        count, byte_start, word_start = (
            e.bind(load(self.table, header + i, 1), "int32", name)
            for i, name in enumerate(("count", "bytes_at", "words_at"))
        )
        first = e.bind(header + HEADER, "int32", "first")
        with e.loop(count, "quad") as quad:
            at = e.bind(source + load(self.table, first + quad, 1), "int32", "at")
            e.prefetch(self.bytes, byte_start + count * (self.vectors * 4 * lanes) + (number * count + quad) * share)
            weights = e.bind_typed(load(self.bytes, byte_start + quad * (4 * lanes), 4 * lanes))
            for slot, offset in zip(slots, offsets, strict=True):
                acc[slot] = isa.saturating_dot(acc[slot], isa.broadcast_quad(self.stored, at + offset), weights)
        rest = e.bind(first + count, "int32", "rest")
        others = e.bind(self.window_units - count, "int32", "others")
        with e.loop(others, "quad") as quad:
            at = e.bind(source + load(self.table, rest + quad, 1), "int32", "at")
            e.prefetch(self.words, word_start + others * (self.vectors * 4 * lanes) + (number * others + quad) * share)
            parts = isa.load_weights(self.words, word_start + quad * (4 * lanes), lanes)
            pairs = tuple(e.bind_typed(p) for p in parts)
            for slot, offset in zip(slots, offsets, strict=True):
                acc[slot] = isa.dot(acc[slot], isa.load_operand(e, self.x, at + offset), pairs, lanes)
