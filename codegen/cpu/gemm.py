"""Dense and MatMul to kernels."""

from __future__ import annotations

import math

import numpy as np

from qcompiler.codegen.cpu.contraction import Geometry, contraction_kernel
from qcompiler.codegen.cpu.conv import offset_of
from qcompiler.codegen.cpu.epilogue import fused_ops
from qcompiler.codegen.cpu.isa.base import VectorInstructionSet
from qcompiler.codegen.cpu.kernel import Group, Step
from qcompiler.sim.integer_program import Dense, accumulator_bound


def dense(group: Group, isa: VectorInstructionSet) -> list[Step]:
    """A fully connected layer: one line of M pixels with K bytes each."""
    op = group.root
    assert isinstance(op, Dense)
    x = group.inputs[0]
    n, k = op.weight.shape
    m = math.prod(x.shape[:-1])
    quads = -(-k // 4)
    weights = np.pad(op.weight, ((0, 0), (0, 4 * quads - k))).reshape(1, n, quads, 4)
    geometry = Geometry(
        images=1, lines=1, pixels=m, channels=n, quads=quads, input_bytes=m * k,
        image_stride=m * k, line_stride=m * k, pixel_stride=k,
    )  # fmt: skip
    kernel = contraction_kernel(
        "dense", isa, geometry, weights, op.bias, offset_of(x, isa), op.requantize, accumulator_bound(op),
        fused_ops(group),
    )  # fmt: skip
    return [group.step(kernel)]
