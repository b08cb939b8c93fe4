"""Byte products on AVX2 where the weights rule saturation out: the same integers, and no quad taken that could."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from single_operation import assert_exact, conv_program, levels, program_of

from qcompiler.codegen.cpu.conv import conv2d
from qcompiler.codegen.cpu.paired_contraction import harmless, paired_contraction

AVX2_ONLY = [p for p in levels() if p.id == "avx2"]


@given(st.lists(st.integers(-128, 127), min_size=4, max_size=4))
def test_harmless_quads_never_saturate_and_others_can(weights: list[int]) -> None:
    w = np.array(weights, dtype=np.int8)
    pairs = w.astype(np.int64).reshape(2, 2)
    extremes = [255 * np.maximum(pairs, 0).sum(axis=1), 255 * np.minimum(pairs, 0).sum(axis=1)]  # bytes 0 or 255
    fits = all((-32768 <= e).all() and (e <= 32767).all() for e in extremes)
    assert harmless(w) == fits


def weighted(program, spread: float):
    """The program with weights of a narrower distribution, of which more quads are harmless, and extremes in it."""
    op = program.operations[0]
    rng = np.random.default_rng(5)
    weight = np.clip(np.rint(rng.standard_normal(op.weight.shape) * spread), -127, 127).astype(np.int8)
    weight.reshape(-1)[:8] = [127, 127, -127, -127, 127, 1, 64, 64]  # 128 is the most that fits
    changed = dataclasses.replace(op, weight=weight)
    return program_of([changed, *program.operations[1:]], list(program.tensors.values()), list(program.inputs))


@pytest.mark.parametrize("level", AVX2_ONLY)
@pytest.mark.parametrize("spread", [20, 35, 2])
@pytest.mark.parametrize("shape, kernel, options", [
    ((1, 6, 9, 64, 24), (1, 1), {}),
    ((2, 7, 5, 16, 20), (3, 3), {"stride": (2, 2), "padding": (1, 1, 1, 1), "add": "first"}),
    ((1, 9, 8, 18, 13), (3, 2), {"dilation": (1, 2)}),
    ((1, 5, 6, 64, 32), (2, 2), {"groups": 2}),
])  # fmt: skip
def test_equals_the_reference(level, spread, shape, kernel, options) -> None:
    program = weighted(conv_program(3, *shape, kernel, **options), spread)
    steps = assert_exact(program, lambda group, isa: conv2d(group, isa), level)
    assert steps[-1].kernel.template is paired_contraction
