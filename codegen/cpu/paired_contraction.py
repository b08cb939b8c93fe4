"""Matrix work on AVX2 with byte multiplications wherever they are exact.

`byte_products` says how: for each vector of channels the quads of the window have an order of their own, first pairs of
quads that are added in 16 bits, then quads whose products are alone there, then those for which bytes will not do, as
16-bit pairs of a widened copy of the input. A table says where in the window each lies, and in which copy of the input
(`byte_forms`). One vector's accumulators are in the registers at a time.

Weights: int8 ``[vector][quad][lane][4]`` of the quads in bytes (`bytes`), int16 pairs of the others (`words`). Table,
int32: for each vector the number of its pairs and of its quads alone, where its `bytes` and `words` begin; then all its
quads.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm import tirx

from qcompiler.codegen.cpu import contraction
from qcompiler.codegen.cpu.byte_forms import forms_bytes, plane_bytes, store_forms
from qcompiler.codegen.cpu.byte_products import Products, products
from qcompiler.codegen.cpu.contraction import Geometry, Tile
from qcompiler.codegen.cpu.emit import Expr, Registers, bits, constant, load
from qcompiler.codegen.cpu.epilogue import Fused, FusedOp
from qcompiler.codegen.cpu.isa.base import VectorInstructionSet
from qcompiler.codegen.cpu.kernel import Kernel
from qcompiler.codegen.cpu.packed_weights import channel_order
from qcompiler.codegen.cpu.requantize import Rescale, rescale_constants, rescale_of
from qcompiler.codegen.cpu.tiles import SWEEP_BYTES, choose_tile
from qcompiler.sim.integer_program import Requantize

Array = npt.NDArray[Any]
HEADER = 4  # table entries of a vector before its quads
MOST_INSTRUCTIONS = 3.8  # a quad: above, one vector at a time costs more than bytes save
LEAST_QUADS = 16  # of the window: below, the epilogue decides
MOST_POSITIONS = 8  # 11 would fit beside two weights, two products and ones, and are slower


def _in_lanes(isa: VectorInstructionSet, geometry: Geometry, weights: Array, vectors: int) -> Array:
    """The weights int8 [vectors, window quads, lanes, 4], all vectors of all groups in order.

    vectors: of a block of channels, which decides what channels share a vector.
    """
    blocks = contraction.blocks_of(geometry, vectors, isa.lanes(4))
    order = channel_order(isa, blocks)
    gathered = np.where((order < 0)[:, None, None], np.int8(0), weights[:, np.maximum(order, 0)])
    quads = weights.shape[2]
    return np.ascontiguousarray(gathered.reshape(-1, isa.lanes(4), quads, 4).transpose(0, 2, 1, 3))


def pays(isa: VectorInstructionSet, geometry: Geometry, weights: Array) -> Products | None:
    """How to multiply, where the level has saturating byte products and they are worth it with these weights."""
    if not isa.saturating_pairs or geometry.weight_copies or geometry.taps * geometry.quads < LEAST_QUADS:
        return None
    if geometry.positions < 4:  # bound by the weights
        return None
    tile = choose_paired_tile(isa, geometry)
    found = products(_in_lanes(isa, geometry, weights, tile.vectors), _complemented(geometry))
    return found if found.instructions <= MOST_INSTRUCTIONS else None


def _complemented(geometry: Geometry) -> bool:
    """Whether each window's odd bytes are odd bytes of the image."""
    strides = (
        geometry.line_stride,
        geometry.pixel_stride,
        geometry.rows[1],
        geometry.columns[1],
        geometry.group_stride,
    )
    return all(stride % 2 == 0 for stride in (*strides, *(stride for _, stride, _ in geometry.image_axes)))


def choose_paired_tile(isa: VectorInstructionSet, geometry: Geometry) -> Tile:
    """The contraction's choice among tiles of two vectors, one of which is in the registers at a time.

    The positions are swept once a block of channels only where the weights are too many for the second-level cache.
    """
    tile = choose_tile(_one_at_a_time(isa), geometry)
    weights = geometry.groups * geometry.channels * geometry.taps * geometry.quads * 4
    return replace(tile, channels_outer=weights > SWEEP_BYTES)


@functools.cache
def _one_at_a_time(isa: VectorInstructionSet) -> VectorInstructionSet:
    return replace(
        isa, most_vectors=2, most_positions=MOST_POSITIONS, registers=2 * isa.registers, dots_per_cycle=1.0,
        weight_registers=1, operand_registers=1,
    )  # fmt: skip


def own_forms(tile: Tile) -> bool:
    """Whether the kernel reads stored bytes and makes their forms itself, for a task's positions at a time.

    Then these are in the first caches when they are read, by all blocks of channels one after another. Where the
    positions are swept again for each block, they are few: `byte_forms` makes the forms of all of them before.
    """
    return not tile.channels_outer


def _form_elements(geometry: Geometry, tile: Tile) -> int:
    """Elements of the image whose forms lie together: all, or what one task's windows can reach."""
    if not own_forms(tile):
        return geometry.input_elements
    g = geometry
    pixels = min(tile.chunk * tile.pixels + g.pixels % tile.pixels, g.pixels)
    return (
        (tile.lines - 1) * g.line_stride + (pixels - 1) * g.pixel_stride + (g.groups - 1) * g.group_stride
        + (g.rows[0] - 1) * g.rows[1] + (g.columns[0] - 1) * g.columns[1] + 4 * g.quads
    )  # fmt: skip


def paired_kernel(
    name: str, isa: VectorInstructionSet, geometry: Geometry, chosen: Products, weights: Array, bias: Array,
    offset: int, requantize: Requantize, bound: Array, fused: Fused,
) -> Kernel:  # fmt: skip
    """The kernel; chosen: by `pays`; other arguments as of `contraction.contraction_kernel`.

    Its input is the stored bytes where the tile has `own_forms`, otherwise their forms.
    """
    tile = choose_paired_tile(isa, geometry)
    elements = _form_elements(geometry, tile)
    order = contraction.lane_order(isa, geometry, contraction.blocks_of(geometry, tile.vectors, isa.lanes(4)))
    window, plane = _window(geometry), plane_bytes(elements)
    numbers, quad_bytes = np.arange(len(window)), 4 * isa.lanes(4)
    table: list[int] = []
    in_bytes, byte_count, word_count = [], 0, 0
    for v, (exact, partner) in enumerate(zip(chosen.exact, chosen.partner, strict=True)):
        pairs, alone, rest = numbers[partner > numbers], numbers[exact & (partner < 0)], numbers[~exact]
        first = np.concatenate([np.stack([pairs, partner[pairs]], axis=1).ravel(), alone])
        in_bytes.append(first + v * len(window))
        table += [
            len(pairs), len(alone), byte_count * quad_bytes, word_count * quad_bytes,
            *(window[first] + plane * chosen.complemented[v, first]), *(2 * plane + 2 * window[rest]),
        ]  # fmt: skip
        byte_count += len(first)
        word_count += len(rest)
    byte_weights = chosen.weights.reshape(-1, quad_bytes)[np.concatenate(in_bytes)]
    words = isa.arrange_weights(chosen.weights[~chosen.exact]) if word_count else np.empty(0, np.int16)
    sums = weights.astype(np.int64).sum(axis=(2, 3)).ravel()
    corrected = (bias.astype(np.int64) - offset * sums)[np.maximum(order, 0)] + chosen.bias.ravel()
    # Accumulators wrap modulo 2**32; only their final value, which the program bounds, has to fit.
    lane_bias = np.where(order < 0, 0, corrected).astype(np.int32)
    rescale = rescale_of(requantize, bound, isa)
    constants: tuple[Array, ...] = (
        byte_weights, words, np.array(table, dtype=np.int32), lane_bias,
        *rescale_constants(requantize, rescale, geometry.output_channels, order), *fused.constants,
    )  # fmt: skip
    parameters = {"geometry": geometry, "tile": tile, "rescale": rescale, "fused": fused.operations}
    tasks = contraction.task_count(geometry, tile, isa.lanes(4))
    scratch = forms_bytes(elements) if own_forms(tile) else 0
    return Kernel(name, paired_contraction, parameters, tasks, constants, scratch)


def _window(geometry: Geometry) -> npt.NDArray[np.int64]:
    """Where each quad of the window lies from the position's first element, in the order of the weights."""
    rows = np.arange(geometry.rows[0]) * geometry.rows[1]
    columns = np.arange(geometry.columns[0]) * geometry.columns[1]
    quads = np.arange(geometry.quads) * 4
    return (rows[:, None, None] + columns[:, None] + quads).reshape(-1)


def paired_contraction(
    isa: VectorInstructionSet, geometry: Geometry, tile: Tile, rescale: Rescale, fused: tuple[FusedOp, ...]
) -> Any:
    """The PrimFunc. Buffers: the input or its forms, the fused operations' second operands; constants:

    bytes, words, table, bias, scales, the fused operations' own; the output.
    """
    return _Writer(isa, geometry, tile, rescale, fused).function()


class _Writer(contraction.Writer):
    """The contraction with another inner loop."""

    def input_buffers(self) -> None:
        self.elements = _form_elements(self.geometry, self.tile)
        self.start = constant(0)
        if own_forms(self.tile):
            self.stored = self.e.buffer("x", self.geometry.input_elements, self.isa.storage)
        else:
            self.x = self.e.buffer("forms", forms_bytes(self.elements), self.isa.storage)

    def scratch_buffer(self) -> None:
        if own_forms(self.tile):
            self.x = self.e.buffer("forms", forms_bytes(self.elements), self.isa.storage)

    def begin_task(self, task: Expr, position: Expr, block: Expr) -> None:
        """Makes the forms of what the task's windows can reach, unless the task before had the same positions."""
        if not own_forms(self.tile):
            return
        e, g, lanes = self.e, self.geometry, 4 * self.lanes
        image, line_group, _, chunk = self.place(position)
        pixel = chunk * (self.tile.chunk * self.tile.pixels)
        first, _ = self.image(image)
        first = first + line_group * (self.tile.lines * g.line_stride) + pixel * g.pixel_stride
        self.start = e.bind(first, "int32", "start")
        with e.when(tirx.any(block == 0, task == self.task_begin)):
            reach = tirx.min(constant(self.elements), constant(g.input_elements) - self.start)
            with e.loop(tirx.truncdiv(reach + (lanes - 1), constant(lanes)), "chunk") as i:
                value = load(self.stored, self.start + i * lanes, lanes)
                store_forms(self.isa, e, self.x, self.elements, i * lanes, value, lanes)

    def weight_buffers(self) -> None:
        e = self.e
        # Each holds what the other does not: how much is data, so that layers with other weights share the code.
        self.bytes = e.buffer("bytes", self.group_weights * self.geometry.groups, "int8")
        self.words = e.buffer("words", self.group_weights * self.geometry.groups, "int16")
        self.table = e.buffer("table", self.padded // self.lanes * (HEADER + self.window_units), "int32")
        self.bias = e.buffer("bias", self.padded, "int32")

    def _accumulate(self, acc: Registers, offsets: list[int], source: Expr, number: Expr) -> None:
        source = self.e.bind(source - self.start, "int32", "from")
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
        pairs, alone, byte_start, word_start = (
            e.bind(load(self.table, header + i, 1), "int32", name)
            for i, name in enumerate(("pairs", "alone", "bytes_at", "words_at"))
        )
        first = e.bind(header + HEADER, "int32", "first")
        in_bytes = e.bind(2 * pairs + alone, "int32", "in_bytes")
        ahead = e.bind(byte_start + in_bytes * (self.vectors * 4 * lanes + number * share), "int32", "ahead")

        def quads(number: Expr, count: int) -> None:
            """`count` quads in bytes from `number` on, added in 16 bits."""
            e.prefetch(self.bytes, ahead + number * share)
            at = [e.bind(source + load(self.table, first + number + i, 1), "int32", "at") for i in range(count)]
            weights = [
                e.bind_typed(load(self.bytes, byte_start + (number + i) * (4 * lanes), 4 * lanes)) for i in range(count)
            ]
            for slot, offset in zip(slots, offsets, strict=True):
                factors = [(isa.broadcast_quad(self.x, a + offset), w) for a, w in zip(at, weights, strict=True)]
                acc[slot] = isa.saturating_dot(acc[slot], factors)

        with e.loop(pairs, "pair") as pair:
            quads(2 * pair, 2)
        with e.loop(alone, "quad", begin=2 * pairs) as quad:
            quads(quad, 1)
        wide_source = e.bind(2 * source, "int32", "wide")
        rest = e.bind(first + in_bytes, "int32", "rest")
        others = e.bind(self.window_units - in_bytes, "int32", "others")
        with e.loop(others, "quad") as quad:
            start = e.bind(wide_source + load(self.table, rest + quad, 1), "int32", "at")
            e.prefetch(self.words, word_start + others * (self.vectors * 4 * lanes) + (number * others + quad) * share)
            parts = isa.load_weights(self.words, word_start + quad * (4 * lanes), lanes)
            words = tuple(e.bind_typed(p) for p in parts)
            for slot, offset in zip(slots, offsets, strict=True):
                halves = (isa.broadcast_quad(self.x, start + (2 * offset + 4 * half)) for half in range(2))
                operand = tuple(e.bind_typed(bits(h, f"{isa.operand_dtype}x{2 * lanes}")) for h in halves)
                acc[slot] = isa.dot(acc[slot], operand, words, lanes)
