"""Packing at run time: an activation as the right-hand side of a matrix product.

`pack_right` brings b into the layout of packed weights in blocks of `VECTORS` vectors, the number that `pack` joins
and `interleave` yields, so that interleaving four rows of b is already the lane order of the contraction.
`column_bias` and `row_bias` compute what the zero points of both sides add (see `gemm.matmul`).
"""

from __future__ import annotations

from typing import Any

from tvm import tirx

from qcompiler.codegen.cpu.emit import Buffer, Emitter, Expr, cast, constant, load, shuffle, splat
from qcompiler.codegen.cpu.isa.base import VectorInstructionSet
from qcompiler.codegen.cpu.loops import for_chunks, tasks
from qcompiler.codegen.cpu.packed_weights import lane_channels

VECTORS = 4


def pack_right(isa: VectorInstructionSet, copies: int, n: int, k: int, transposed: bool) -> Any:
    """Buffers: b [copies, K, N] ([copies, N, K] if transposed), the packed weights. A task is one block of channels."""
    lanes = isa.lanes(4)
    width = VECTORS * lanes
    blocks, quads = -(-n // width), -(-k // 4)
    elements = 4 * lanes  # of one vector of weights
    e = Emitter()
    b = e.buffer("b", copies * n * k, isa.storage)
    y = e.buffer("packed", copies * blocks * quads * VECTORS * elements, isa.weight_dtype)
    with tasks(e) as task:
        copy = e.bind(tirx.truncdiv(task, constant(blocks)), "int32", "copy")
        block = e.bind(task - copy * blocks, "int32", "block")
        base = e.bind(copy * (n * k), "int32", "base")
        target = e.bind(task * (quads * VECTORS * elements), "int32", "target")

        def store(quad: Expr, v: int, vector: Expr) -> None:
            at = target + (quad * VECTORS + v) * elements
            start = 0
            for part, dtype, count in isa.as_weights(vector, lanes):
                e.store(y, at + start, e.bind(part, f"{dtype}x{count}"), count)
                start += count

        if transposed:
            _transposed_block(isa, e, b, base, block * width, n, k, store)
        else:
            _block(isa, e, b, base + block * width, n, k, store)
    return e.function()


def _block(isa: VectorInstructionSet, e: Emitter, b: Buffer, first: Expr, n: int, k: int, store: Any) -> None:
    """b [K, N]: four rows interleaved make one quad of all channels. Columns past N are read but never used."""
    count = 4 * isa.lanes(4)
    zero = splat(isa.storage_offset, isa.storage, count)

    def quad_of(quad: Expr, rows: int) -> None:
        dtype = f"{isa.storage}x{count}"
        loads = [e.bind(load(b, first + (quad * 4 + r) * n, count), dtype, "row") for r in range(rows)]
        for v, vector in enumerate(isa.interleave([*loads, *[zero] * (4 - rows)], isa.lanes(4))):
            store(quad, v, vector)

    full, rest = divmod(k, 4)
    if full:
        with e.loop(full, "quad") as quad:
            quad_of(quad, 4)
    if rest:
        quad_of(constant(full), rest)


def _transposed_block(
    isa: VectorInstructionSet, e: Emitter, b: Buffer, base: Expr, first: Expr, n: int, k: int, store: Any
) -> None:
    """b [N, K]: a channel's quads lie together; 16 bytes of several channels at a time are transposed as words."""
    lanes = isa.lanes(4)
    channels = lane_channels(isa, VECTORS)
    full, rest = divmod(k, 16)
    for v in range(VECTORS):
        # Channels past N repeat the last one; their products are never stored.
        rows = [
            e.bind(base + tirx.min(first + int(channels[v, i]), constant(n - 1)) * k, "int32", "row")
            for i in range(lanes)
        ]
        if full:
            with e.loop(full, "chunk") as chunk:
                loads = [e.bind(load(b, rows[i] + chunk * 16, 16), f"{isa.storage}x16", "bytes") for i in range(lanes)]
                for j, vector in enumerate(isa.transpose_words(loads, lanes)):
                    store(chunk * 4 + j, v, vector)
        for quad in range(4 * full, 4 * full + -(-rest // 4)):
            valid = min(4, k - 4 * quad)
            words = []
            for i in range(lanes):
                parts = [load(b, rows[i] + (4 * quad + min(j, valid - 1)), 1) for j in range(4)]
                parts[valid:] = [constant(isa.storage_offset, isa.storage)] * (4 - valid)
                words += parts
            store(constant(quad), v, shuffle(words, range(4 * lanes)))


def column_bias(isa: VectorInstructionSet, blocks: int, quads: int, factor: int, addend: int) -> Any:
    """``factor * sum over K of b + addend`` of every channel, int32. Buffers: packed weights, the biases."""
    lanes = isa.lanes(4)
    dtype = f"int32x{lanes}"
    e = Emitter()
    w = e.buffer("packed", blocks * quads * VECTORS * 4 * lanes, isa.weight_dtype)
    y = e.buffer("bias", blocks * VECTORS * lanes, "int32")
    ones = isa.operand(splat(1, isa.storage, 4 * lanes), lanes)
    with tasks(e) as task:
        acc = e.registers(VECTORS, dtype)
        for v in range(VECTORS):
            acc[v] = splat(0, "int32", lanes)
        with e.loop(quads, "quad") as quad:
            for v in range(VECTORS):
                weights = isa.load_weights(w, ((task * quads + quad) * VECTORS + v) * (4 * lanes), lanes)
                acc[v] = isa.dot(acc[v], ones, weights, lanes)
        for v in range(VECTORS):
            value = acc[v] * splat(factor, "int32", lanes) + splat(addend, "int32", lanes)
            e.store(y, (task * VECTORS + v) * lanes, value, lanes)
    return e.function()


def row_bias(isa: VectorInstructionSet, rows: int, k: int, factor: int) -> Any:
    """``factor * sum of the stored bytes`` of every row, int32. Buffers: a [rows, K]; ones arranged as weights; out."""
    lanes = isa.lanes(4)
    e = Emitter()
    a = e.buffer("a", rows * k, isa.storage)
    ones = e.buffer("ones", 4 * lanes, isa.weight_dtype)
    y = e.buffer("row_bias", rows, "int32")
    with tasks(e) as task:
        total = e.registers(1, "int32", "total")
        total[0] = constant(0)
        acc = e.registers(1, f"int32x{lanes}")
        acc[0] = splat(0, "int32", lanes)

        def add(start: Expr, count: int) -> None:
            values = load(a, task * k + start, count)
            if count == 4 * lanes:
                acc[0] = isa.dot(acc[0], isa.operand(values, lanes), isa.load_weights(ones, constant(0), lanes), lanes)
            else:
                total[0] = total[0] + _sum(e, cast(values, f"int32x{count}" if count > 1 else "int32"), count)

        for_chunks(e, k, 4 * lanes, add)
        e.store(y, task, (total[0] + _sum(e, acc[0], lanes)) * factor, 1)
    return e.function()


def _sum(e: Emitter, vector: Expr, lanes: int) -> Expr:
    """The sum of a vector's lanes, halving it until one is left."""
    while lanes > 1:
        vector = e.bind(vector, f"int32x{lanes}", "sum")
        lanes //= 2
        vector = shuffle([vector], range(lanes)) + shuffle([vector], range(lanes, 2 * lanes))
    return vector
