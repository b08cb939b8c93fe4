"""Packing at run time: an activation as the right-hand side of a matrix product.

`pack_right` brings b into the layout of packed weights in blocks of `VECTORS` vectors, the number that `pack` joins
and `interleave` yields, so that interleaving four rows of b is already the lane order of the contraction.
`column_bias` and `row_bias` compute what the zero points of both sides add (see `gemm.matmul`), and take away again
what complements add (`isa.base`, `complements`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tvm import tirx

from qcompiler.codegen.cpu.emit import Buffer, Emitter, Expr, cast, constant, load, shuffle, splat
from qcompiler.codegen.cpu.isa.base import VectorInstructionSet
from qcompiler.codegen.cpu.loops import dot, for_chunks, tasks, unflatten
from qcompiler.codegen.cpu.packed_weights import lane_channels

VECTORS = 4


def pack_right(
    isa: VectorInstructionSet, copies: tuple[tuple[int, int], ...], n: int, k: int, row_stride: int, elements: int,
    transposed: bool,
) -> Any:  # fmt: skip
    """Buffers: b [*copies, K, N] ([*copies, N, K] if transposed), the packed weights. A task is one block of channels.

    copies: (extent, stride) of the leading axes; the last axis is contiguous; elements: of the buffer that holds b.
    """
    extents, strides = zip(*copies, strict=True)
    lanes = isa.lanes(4)
    width = VECTORS * lanes
    blocks, units = -(-n // width), isa.block.units(-(-k // 4))
    vector = isa.block.depth * lanes  # elements of one vector of weights
    e = Emitter()
    b = e.buffer("b", elements, isa.storage)
    y = e.buffer("packed", math.prod(extents) * blocks * units * VECTORS * vector, isa.weight_dtype)
    with tasks(e) as task:
        copy = e.bind(tirx.truncdiv(task, constant(blocks)), "int32", "copy")
        block = e.bind(task - copy * blocks, "int32", "block")
        base = e.bind(dot(unflatten(e, copy, extents), strides), "int32", "base")
        target = e.bind(task * (units * VECTORS * vector), "int32", "target")

        def store(unit: Expr, v: int, quads: Sequence[Expr]) -> None:
            at = target + (unit * VECTORS + v) * vector
            start = 0
            for part, dtype, count in isa.as_weights(quads, lanes):
                e.store(y, at + start, e.bind(part, f"{dtype}x{count}"), count)
                start += count

        if transposed:
            _transposed_block(isa, e, b, base, block * width, n, k, row_stride, store)
        else:
            _block(isa, e, b, base + block * width, k, row_stride, store)
    return e.function()


def _block(isa: VectorInstructionSet, e: Emitter, b: Buffer, first: Expr, k: int, row_stride: int, store: Any) -> None:
    """b [K, N]: four rows interleaved make one quad of all channels. Columns past N are read but never used."""
    lanes, depth = isa.lanes(4), isa.block.depth
    count = 4 * lanes

    def unit_of(unit: Expr, rows: int) -> None:
        dtype = f"{isa.storage}x{count}"
        loads = [e.bind(load(b, first + (unit * depth + r) * row_stride, count), dtype, "row") for r in range(rows)]
        loads += [splat(_padding(isa, r), isa.storage, count) for r in range(rows, depth)]
        quads = [isa.interleave(loads[start : start + 4], lanes) for start in range(0, depth, 4)]
        for v in range(VECTORS):
            store(unit, v, [vectors[v] for vectors in quads])

    full, rest = divmod(k, depth)
    if full:
        with e.loop(full, "unit") as unit:
            unit_of(unit, depth)
    if rest:
        unit_of(constant(full), rest)


def _transposed_block(
    isa: VectorInstructionSet, e: Emitter, b: Buffer, base: Expr, first: Expr, n: int, k: int, row_stride: int,
    store: Any,
) -> None:  # fmt: skip
    """b [N, K]: a channel's quads lie together; 16 bytes of several channels at a time are transposed as words."""
    lanes, unit_quads = isa.lanes(4), isa.block.depth // 4
    channels = lane_channels(isa, VECTORS)
    full, rest = divmod(k, 16)
    for v in range(VECTORS):
        # Channels past N repeat the last one; their products are never stored.
        rows = [
            e.bind(base + tirx.min(first + int(channels[v, i]), constant(n - 1)) * row_stride, "int32", "row")
            for i in range(lanes)
        ]
        if full:
            with e.loop(full, "chunk") as chunk:
                loads = [e.bind(load(b, rows[i] + chunk * 16, 16), f"{isa.storage}x16", "bytes") for i in range(lanes)]
                words = isa.transpose_words(loads, lanes)
                for unit in range(4 // unit_quads):
                    store(chunk * (4 // unit_quads) + unit, v, words[unit * unit_quads : (unit + 1) * unit_quads])
        for unit in range(full * 4 // unit_quads, isa.block.units(-(-k // 4))):
            quads = range(unit * unit_quads, (unit + 1) * unit_quads)
            store(constant(unit), v, [_quad(isa, b, rows, quad, k) for quad in quads])


def _quad(isa: VectorInstructionSet, b: Buffer, rows: Sequence[Expr], quad: int, k: int) -> Expr:
    """One quad of several rows, gathered byte by byte; zeros past K."""
    parts = []
    for row in rows:
        for j in range(4 * quad, 4 * quad + 4):
            parts.append(load(b, row + j, 1) if j < k else constant(_padding(isa, j), isa.storage))
    return shuffle(parts, range(len(parts)))


def _padding(isa: VectorInstructionSet, byte: int) -> int:
    """What stands for byte number `byte` of a row where it has none: zero once it is packed."""
    return -1 if isa.complements and byte % 4 >= 2 else isa.storage_offset


def column_bias(isa: VectorInstructionSet, blocks: int, quads: int, factor: int, addend: int) -> Any:
    """``factor * sum over K of b + addend`` of every channel, int32. Buffers: packed weights, the biases.

    On a level that `complements`, one more is summed for every byte 2 and 3 of a quad: `addend` has to know.
    """
    lanes, rows, depth = isa.lanes(4), isa.block.rows, isa.block.depth
    dtype = f"int32x{lanes}"
    e = Emitter()
    units = isa.block.units(quads)
    w = e.buffer("packed", blocks * units * VECTORS * depth * lanes, isa.weight_dtype)
    y = e.buffer("bias", blocks * VECTORS * lanes, "int32")
    ones = isa.operand(splat(1, isa.storage, 4 * lanes), lanes)
    with tasks(e) as task:
        acc = e.registers(VECTORS * rows, dtype)
        for slot in range(VECTORS * rows):
            acc[slot] = splat(0, "int32", lanes)
        with e.loop(units, "unit") as unit:
            for v in range(VECTORS):
                at = ((task * units + unit) * VECTORS + v) * (depth * lanes)
                slots = range(v * rows, (v + 1) * rows)
                weights = isa.load_block_weights(w, at, lanes)
                results = isa.multiply([acc[s] for s in slots], ones, weights, False)
                for s, value in zip(slots, results, strict=True):
                    acc[s] = value
        for v in range(VECTORS):
            total = isa.unfold([acc[s] for s in range(v * rows, (v + 1) * rows)])[0]
            value = total * splat(factor, "int32", lanes) + splat(addend, "int32", lanes)
            e.store(y, (task * VECTORS + v) * lanes, value, lanes)
    return e.function()


def row_bias(isa: VectorInstructionSet, rows: int, k: int, factor: int) -> Any:
    """``factor * sum of the stored bytes`` of every row, int32. Buffers: a [rows, K]; ones arranged as weights; out.

    On a level that `complements`, less the sum of the bytes 2 and 3 of all quads: ones only there are a second buffer.
    """
    lanes = isa.lanes(4)
    kinds = ("ones", "ones_behind")[: 1 + isa.complements]
    e = Emitter()
    a = e.buffer("a", rows * k, isa.storage)
    ones = [e.buffer(name, 4 * lanes, isa.weight_dtype) for name in kinds]
    y = e.buffer("row_bias", rows, "int32")
    with tasks(e) as task:
        totals = e.registers(len(kinds), "int32", "total")
        acc = e.registers(len(kinds), f"int32x{lanes}")
        for i in range(len(kinds)):
            totals[i] = constant(0)
            acc[i] = splat(0, "int32", lanes)

        def add(start: Expr, count: int) -> None:
            values = load(a, task * k + start, count)
            for i, buffer in enumerate(ones):
                if count == 4 * lanes:
                    weights = isa.load_weights(buffer, constant(0), lanes)
                    acc[i] = isa.dot(acc[i], isa.operand(values, lanes), weights, lanes)
                    continue
                # Single bytes come last: behind a pair, or at the beginning of a quad.
                chosen = [j for j in range(count) if i == 0 or j % 4 >= 2 or (count == 1 and k % 4 == 3)]
                if chosen:
                    part = values if len(chosen) == count else shuffle([values], chosen)
                    size = len(chosen)
                    totals[i] = totals[i] + _sum(e, cast(part, f"int32x{size}" if size > 1 else "int32"), size)

        for_chunks(e, k, 4 * lanes, add)
        sums = [totals[i] + _sum(e, acc[i], lanes) for i in range(len(kinds))]
        e.store(y, task, sums[0] * factor - sums[1] if isa.complements else sums[0] * factor, 1)
    return e.function()


def _sum(e: Emitter, vector: Expr, lanes: int) -> Expr:
    """The sum of a vector's lanes, halving it until one is left."""
    while lanes > 1:
        vector = e.bind(vector, f"int32x{lanes}", "sum")
        lanes //= 2
        vector = shuffle([vector], range(lanes)) + shuffle([vector], range(lanes, 2 * lanes))
    return vector
