"""Products of two activations equal the reference: broadcasting, both orders of b, zero points on both sides."""

from __future__ import annotations

import pytest
from single_operation import assert_exact, levels, matmul_program

from qcompiler.codegen.cpu.gemm import matmul

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
    assert_exact(matmul_program(*CASES[case]), matmul, level)
