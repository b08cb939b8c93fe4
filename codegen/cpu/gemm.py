"""Dense and MatMul to kernels: one line of M pixels with K bytes each, weights constant or packed at run time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from qcompiler.codegen.cpu.contraction import Geometry, blocks_of, lane_order
from qcompiler.codegen.cpu.conv import offset_of
from qcompiler.codegen.cpu.epilogue import fused_ops
from qcompiler.codegen.cpu.isa.base import VectorInstructionSet
from qcompiler.codegen.cpu.kernel import Group, Kernel, Step
from qcompiler.codegen.cpu.loops import collapse, strides_of
from qcompiler.codegen.cpu.matrix_work import matrix_kernel, packed_kernel
from qcompiler.codegen.cpu.operand_packing import VECTORS, column_bias, pack_right, row_bias
from qcompiler.codegen.cpu.pad import NO_PADDING, padded_input
from qcompiler.codegen.cpu.requantize import reachable_bound, rescale_constants, rescale_of
from qcompiler.sim.integer_program import Dense, MatMul, Shape, Tensor


def dense(group: Group, isa: VectorInstructionSet) -> list[Step]:
    """The step of a fully connected layer and what is fused behind it."""
    op = group.root
    assert isinstance(op, Dense)
    x = group.inputs[0]
    n, k = op.weight.shape
    m = math.prod(x.shape[:-1])
    quads = -(-k // 4)
    weights = np.pad(op.weight, ((0, 0), (0, 4 * quads - k))).reshape(1, n, quads, 4)
    geometry = _lines((), m, n, k)
    kernel = matrix_kernel(
        "dense", isa, geometry, weights, op.bias, offset_of(x, isa), op.requantize, reachable_bound(op, x),
        fused_ops(group, isa),
    )  # fmt: skip
    steps, source = _operand(isa, group, x, m)
    names = (source, *(t.name for t in group.inputs[1:]))
    return [*steps, Step(kernel, names, group.output.name, group.output.bytes, group.names)]


def _operand(isa: VectorInstructionSet, group: Group, x: Tensor, rows: int) -> tuple[list[Step], str]:
    """The left-hand side as the contraction reads it: x itself, or the step that widens it."""
    flat = replace(x, shape=(1, rows, 1, math.prod(x.shape) // rows))
    steps, name, _ = padded_input(isa, flat, NO_PADDING, False, f"{group.output.name}.wide", isa.operand_dtype)
    return steps, name


def _lines(
    image_axes: tuple[tuple[int, int, int], ...], m: int, n: int, k: int, x_images: int = 1, copies: int = 0,
    row_bias: bool = False,
) -> Geometry:  # fmt: skip
    return Geometry(
        image_axes=image_axes, lines=1, pixels=m, channels=n, quads=-(-k // 4), input_elements=x_images * m * k,
        line_stride=m * k, pixel_stride=k, weight_copies=copies, row_bias=row_bias,
    )  # fmt: skip


def matmul(group: Group, isa: VectorInstructionSet, walk: Sequence[int] | None = None) -> list[Step]:
    """The steps of a product of two activations.

    walk: the strides of b's axes in the buffer that holds it, where that is a transposed view (its last one is 1).

    With stored bytes a' = a + 128 and offset o = zero_a + 128, ``sum (a - zero_a)(b - zero_b)`` is
    ``sum a'b - o * sum b + K * o * zero_b - zero_b * sum a'``: b is packed as weights, the second and third terms
    are its columns' bias, the last one is a bias of a's rows, left out where zero_b is zero. On a level that
    `complements`, both biases also take away what it adds for the bytes 2 and 3 of every quad.
    """
    op = group.root
    assert isinstance(op, MatMul)
    a, b, *others = group.inputs
    lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    m, k = a.shape[-2:]
    n = b.shape[-2] if op.transpose_b else b.shape[-1]
    assert b.zero_point is not None
    copies = math.prod(b.shape[:-2])
    x_images = math.prod(a.shape[:-2])
    axes = tuple(zip(lead, _strides(a.shape[:-2], lead, m * k), _strides(b.shape[:-2], lead, 1), strict=True))
    geometry = _lines(axes, m, n, k, x_images, copies, row_bias=b.zero_point != 0 or isa.complements)
    blocks = blocks_of(geometry, VECTORS, isa.lanes(4))
    name, offset = group.output.name, offset_of(a, isa)
    packed, bias = f"{name}.packed", f"{name}.bias"
    all_blocks, lanes = copies * blocks.count, copies * blocks.total_vectors * isa.lanes(4)
    walk = strides_of(b.shape) if walk is None else walk
    extents, (strides,) = collapse(b.shape[:-2], [walk[:-2]])
    places = dict(copies=tuple(zip(extents, strides, strict=True)), row_stride=walk[-2], elements=b.elements)
    packing = Kernel("pack_right", pack_right, dict(n=n, k=k, transposed=op.transpose_b, **places), all_blocks)
    behind = sum(j % 4 >= 2 for j in range(k)) if isa.complements else 0
    correction = dict(quads=geometry.quads, factor=-offset, addend=offset * (k * b.zero_point + behind))
    summing = Kernel("column_bias", column_bias, dict(blocks=all_blocks, **correction), all_blocks)
    weight_bytes = lanes * isa.block.units(geometry.quads) * isa.block.depth * np.dtype(isa.weight_dtype).itemsize
    steps = [Step(packing, (b.name,), packed, weight_bytes), Step(summing, (packed,), bias, 4 * lanes)]
    widening, source = _operand(isa, group, a, x_images * m)
    steps += widening
    sources = [source, packed, bias]
    if geometry.row_bias:
        rows = x_images * m
        kinds = ([1, 1, 1, 1], [0, 0, 1, 1])[: 1 + isa.complements]
        ones = tuple(isa.arrange_weights(np.tile(np.array(w, dtype=np.int8), (isa.lanes(4), 1))) for w in kinds)
        kernel = Kernel("row_bias", row_bias, dict(rows=rows, k=k, factor=-b.zero_point), rows, ones)
        steps.append(Step(kernel, (a.name,), f"{name}.row_bias", 4 * rows))
        sources.append(steps[-1].output)
    rescale = rescale_of(op.requantize, np.array([255 * 255 * k], dtype=np.int64), isa)
    constants = rescale_constants(op.requantize, rescale, n, lane_order(isa, geometry, blocks))
    kernel = packed_kernel("matmul", isa, geometry, rescale, constants, fused_ops(group, isa))
    names = (*sources, *(t.name for t in others))
    steps.append(Step(kernel, names, name, group.output.bytes, group.names))
    return steps


def _strides(shape: Shape, lead: Shape, unit: int) -> list[int]:
    """Strides of the leading axes for an operand of leading `shape`, broadcast to `lead`; unit: the innermost's."""
    strides, stride = [], unit
    for extent in reversed((1,) * (len(lead) - len(shape)) + tuple(shape)):
        strides.append(0 if extent == 1 else stride)
        stride *= extent
    return strides[::-1]
