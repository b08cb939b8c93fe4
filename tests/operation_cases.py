"""Every integer operation in odd sizes, with tails and every rounding: what each CPU target must compute exactly.

Each function is a family; its cases are outputs of one program, so that one build covers them all.
"""

from __future__ import annotations

import numpy as np
from program_builder import ProgramBuilder, Tensor

from qcompiler.sim.numerics import ROUNDINGS


def matrix_cases(b: ProgramBuilder) -> list[Tensor]:
    outs = []
    image = b.input((1, 9, 11, 24))
    for channels, kernel, stride, padding in [
        (40, (3, 3), (1, 1), (1, 1, 1, 1)), (7, (1, 1), (1, 1), (0, 0, 0, 0)), (64, (3, 2), (2, 2), (0, 1, 2, 0)),
        (16, (5, 5), (2, 1), (2, 2, 2, 2)),
    ]:  # fmt: skip
        outs.append(b.conv(image, channels, kernel, stride, padding=padding))
    outs.append(b.conv(image, 33, (3, 3), dilation=(2, 2), padding=(2, 2, 2, 2)))
    outs.append(b.conv(image, 24, (3, 3), groups=24, padding=(1, 1, 1, 1)))
    outs.append(b.conv(image, 24, (3, 3), (2, 2), groups=24, padding=(0, 0, 1, 1)))
    outs.append(b.conv(image, 48, (3, 3), groups=24, padding=(1, 1, 1, 1)))
    outs.append(b.conv(image, 36, (3, 3), groups=4))
    thin = b.input((2, 13, 10, 3))
    outs.append(b.conv(thin, 32, (3, 3), (2, 2), padding=(1, 1, 1, 1)))
    outs.append(b.conv(b.input((1, 8, 8, 1)), 5, (7, 3)))
    for rounding in ROUNDINGS:
        outs.append(b.conv(image, 17, (3, 3), rounding=rounding))
        outs.append(b.dense(b.input((5, 37)), 19, rounding=rounding))
    outs.append(b.dense(b.input((1, 640)), 128))
    outs.append(b.dense(b.input((3, 7, 64)), 96))
    a = b.input((2, 5, 12, 20))
    outs.append(b.matmul(a, b.input((2, 5, 20, 13))))
    outs.append(b.matmul(a, b.input((5, 33, 20)), transpose_b=True))
    outs.append(b.matmul(b.input((6, 64)), b.input((64, 32))))
    # Right-hand sides that are transposed views: heads of attention, keys and values, with and without a batch.
    for lead, heads, length, depth in (((1,), 3, 20, 24), ((2,), 2, 7, 70), ((), 5, 13, 6)):
        split, order = (*lead, length, heads, depth), (*range(len(lead)), *(len(lead) + i for i in (1, 0, 2)))
        keys, values = (b.transpose(b.input(split), order) for _ in range(2))
        scores = b.matmul(b.transpose(b.input(split), order), keys, transpose_b=True)
        outs.append(b.matmul(scores, values))
        outs.append(b.matmul(scores, b.transpose(values, (*range(len(lead) + 1), len(lead) + 2, len(lead) + 1)), True))
    return outs


def fused_cases(b: ProgramBuilder) -> list[Tensor]:
    outs = []
    x = b.input((1, 7, 6, 20))
    first = b.conv(x, 40, (3, 3), padding=(1, 1, 1, 1))
    second = b.conv(x, 40, (1, 1))
    outs.append(b.add(first, second))
    third = b.add(b.input((1, 7, 6, 40)), b.conv(outs[0], 40, (3, 3), padding=(1, 1, 1, 1)), sign=-1)
    outs.append(b.table(third))
    same = b.conv(x, 12)
    outs.append(b.add(same, same))
    outs.append(b.add(b.dense(b.input((4, 30)), 21), b.input((4, 21)), rounding="f32_half_even"))
    outs.append(b.table(b.dense(b.input((4, 30)), 50)))
    kept = b.conv(x, 8)
    outs += [kept, b.add(kept, b.input((1, 7, 6, 8)))]
    return outs


def elementwise_cases(b: ProgramBuilder) -> list[Tensor]:
    outs = []
    for shape_a, shape_b in [
        ((1, 5, 7, 30), (1, 5, 7, 30)), ((3, 5, 7), (7,)), ((3, 5, 7), (3, 1, 7)), ((777,), (1,)), ((13, 1), (1, 9)),
        ((2, 3, 33), (2, 3, 1)), ((), (5,)), ((4, 9000), (4, 9000)),
    ]:  # fmt: skip
        x, y = b.input(shape_a), b.input(shape_b)
        outs += [b.add(x, y), b.add(x, y, -1), b.add(x, y, rounding="f32_half_even"), b.mul(x, y)]
    for rounding in ROUNDINGS:
        outs.append(b.mul(b.input((3, 29)), b.input((3, 29)), rounding))
    squared = b.input((3, 50))
    outs += [b.mul(squared, squared), b.add(squared, squared)]
    for n in (1, 3, 15, 64, 100, 5000):
        outs.append(b.table(b.input((n,))))
    outs.append(b.table(b.input((4, 5, 3)), per_channel=True))
    return outs


def pool_cases(b: ProgramBuilder) -> list[Tensor]:
    outs = []
    for channels in (5, 72):
        x = b.input((2, 9, 8, channels))
        outs.append(b.max_pool(x, (3, 3), (2, 2), padding=(1, 1, 1, 1)))
        outs.append(b.max_pool(x, (2, 3), (1, 2), dilation=(2, 1)))
        outs.append(b.average_pool(x, (3, 2), (2, 1), padding=(1, 0, 1, 1)))
        outs.append(
            b.average_pool(x, (3, 3), (2, 2), padding=(1, 1, 2, 2), count_include_pad=True, padding_excess=(1, 1))
        )
        outs.append(b.average_pool(x, (3, 3), (2, 2), padding=(1, 1, 2, 2), padding_excess=(1, 1)))
        outs += [
            b.mean(x, (1, 2), True),
            b.mean(x, (3,), False),
            b.mean(x, (0, 2), False),
            b.mean(x, (0, 1, 2, 3), False),
        ]
        outs += [b.resize_linear(x, (13, 5)), b.resize_linear(x, (4, 16))]
    x = b.input((1, 40, 40, 3))
    for rounding in ROUNDINGS:
        outs += [b.mean(x, (1, 2), False, rounding), b.average_pool(x, (4, 4), (4, 4), rounding)]
    outs.append(b.mean(b.input((1, 300, 300, 2)), (1, 2), False))  # sums beyond 2**24
    return outs


def row_cases(b: ProgramBuilder) -> list[Tensor]:
    outs = []
    for length in (1, 2, 10, 49, 128, 600):
        x = b.input((3, 2, length))
        outs += [b.softmax(x), b.softmax(x, 12), b.softmax(x, 15)]
        outs += [b.layer_norm(x), b.layer_norm(x, 1.0)]
    return outs


def movement_cases(b: ProgramBuilder) -> list[Tensor]:
    outs = []
    for dtype in ("int8", "float32", "int64", "int32", "bool"):
        x = b.input((2, 5, 6, 7), dtype)
        outs.append(b.gather(x, [None, [1, 2, 3], None, None]))
        outs.append(b.gather(x, [[1], [4, 2, 0], [5, 4, 3, 2, 1, 0], None]))
        outs.append(
            b.gather(x, [None, [-1, 0, 1, 2, 3, 4, -1], [-1, -1, 0, 1, 2, 3, 4, 5], None], 3 if dtype == "int8" else 0)
        )
        outs.append(b.gather(x, [None, None, None, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, -1, 6, 6]]))
        outs.append(b.gather(x, [None, None, None, None]))
        for permutation in [(0, 3, 1, 2), (0, 2, 3, 1), (3, 2, 1, 0), (1, 0, 2, 3), (0, 1, 3, 2), (0, 1, 2, 3)]:
            outs.append(b.transpose(x, permutation))
        y = b.input((2, 5, 6, 4), dtype, x)
        outs += [b.concat([x, y, x], 3), b.concat([x, x], 0), b.reshape(x, (60, 7))]
    outs.append(b.transpose(b.input((70, 90)), (1, 0)))
    index, wide = b.input((3, 2), "int64"), b.input((4,), "int32")
    table = b.constant(b.rng.integers(-128, 128, (7, 5)).astype(np.int8))
    outs += [b.embedding(table, index), b.embedding(table, wide)]
    outs.append(b.embedding(b.constant(b.rng.standard_normal((6, 2, 3)).astype(np.float32)), index))
    return outs


def boundary_cases(b: ProgramBuilder) -> list[Tensor]:
    outs = []
    for shape in ((1, 3, 8, 12), (2, 5, 7, 11), (1, 40, 3, 3), (1, 1, 6, 5)):
        x = b.input(shape, "float32")
        outs.append(b.quantize(b.transpose(x, (0, 2, 3, 1))))
        outs.append(b.transpose(b.quantize(x), (0, 2, 3, 1)))
        outs.append(b.quantize(x))
        q = b.input(shape)
        outs.append(b.dequantize(b.transpose(q, (0, 3, 1, 2))))
        outs.append(b.transpose(b.dequantize(q), (0, 3, 1, 2)))
        outs.append(b.dequantize(q))
        outs.append(b.transpose(b.dequantize(q), (3, 2, 1, 0)))
    return outs


FAMILIES = [matrix_cases, fused_cases, elementwise_cases, pool_cases, row_cases, movement_cases, boundary_cases]
