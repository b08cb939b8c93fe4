"""Products of two activations equal the reference: broadcasting, both orders of b, zero points on both sides."""

from __future__ import annotations

import numpy as np
import pytest
from single_operation import assert_exact, levels, with_add

from qcompiler.codegen.cpu.gemm import matmul
from qcompiler.sim.integer_program import MatMul, Requantize, Tensor

CASES = {
    "ragged": ((5, 9), (9, 70), False, 11, ""),
    "ragged, transposed": ((5, 23), (70, 23), True, 11, ""),
    "heads": ((1, 2, 14, 64), (1, 2, 64, 64), False, 0, ""),
    "heads, transposed": ((1, 2, 14, 64), (1, 2, 19, 64), True, -5, "first"),
    "broadcast": ((2, 1, 3, 8), (3, 8, 5), False, -128, ""),
    "vector": ((1, 40), (3, 40, 20), False, 127, ""),
}


@pytest.mark.parametrize("level", levels())
@pytest.mark.parametrize("case", CASES)
def test_matmul_is_exact(level, case):
    shape_a, shape_b, transposed, zero_b, add = CASES[case]
    scale = np.array([2e-3 / np.sqrt(shape_a[-1])], dtype=np.float32)
    op = MatMul("matmul", ("a", "b"), "y", Requantize(scale, 5), transposed)
    shape = op.infer_shape([shape_a, shape_b])
    tensors = [
        Tensor("a", shape_a, "int8", 0.5, -7),
        Tensor("b", shape_b, "int8", 0.5, zero_b),
        Tensor("y", shape, "int8", 0.5, 5),
    ]
    assert_exact(with_add([op], tensors, ["a", "b"], add), matmul, level)
