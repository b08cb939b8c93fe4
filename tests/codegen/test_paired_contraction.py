"""Byte products on AVX2 where the weights rule saturation out: the same integers."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from single_operation import assert_exact, conv_program, levels, program_of

from qcompiler.codegen.cpu import paired_contraction as module
from qcompiler.codegen.cpu.byte_forms import forms
from qcompiler.codegen.cpu.conv import conv2d
from qcompiler.codegen.cpu.paired_contraction import paired_contraction

AVX2_ONLY = [p for p in levels() if p.id == "avx2"]


def weighted(program, spread: float):
    """The program with weights of a narrower distribution, of which more quads are harmless, and extremes in it."""
    op = program.operations[0]
    rng = np.random.default_rng(5)
    weight = np.clip(np.rint(rng.standard_normal(op.weight.shape) * spread), -127, 127).astype(np.int8)
    weight.reshape(-1)[:8] = [127, 127, -127, -127, 127, 1, 64, 64]  # 128 is the most that fits
    changed = dataclasses.replace(op, weight=weight)
    return program_of([changed, *program.operations[1:]], list(program.tensors.values()), list(program.inputs))


SHAPES = [
    ((1, 6, 9, 64, 24), (1, 1), {}),
    ((2, 7, 5, 16, 20), (3, 3), {"stride": (2, 2), "padding": (1, 1, 1, 1), "add": "first"}),
    ((1, 9, 8, 18, 13), (3, 2), {"dilation": (1, 2)}),
    ((1, 7, 8, 15, 13), (3, 2), {"padding": (1, 0, 0, 2)}),
    ((1, 5, 6, 64, 32), (2, 2), {"groups": 2}),
]


@pytest.mark.parametrize("level", AVX2_ONLY)
@pytest.mark.parametrize("spread", [20, 35, 2])
@pytest.mark.parametrize("shape, kernel, options", SHAPES)
def test_equals_the_reference(level, spread, shape, kernel, options) -> None:
    program = weighted(conv_program(3, *shape, kernel, **options), spread)
    steps = assert_exact(program, lambda group, isa: conv2d(group, isa), level)
    assert steps[-1].kernel.template is paired_contraction


@pytest.mark.parametrize("level", AVX2_ONLY)
@pytest.mark.parametrize("shape, kernel, options", SHAPES)
def test_equals_the_reference_with_forms_made_before(level, shape, kernel, options, monkeypatch) -> None:
    """As where the weights are too many to sweep for each task."""
    monkeypatch.setattr(module, "SWEEP_BYTES", 0)
    program = weighted(conv_program(3, *shape, kernel, **options), 35)
    steps = assert_exact(program, lambda group, isa: conv2d(group, isa), level)
    assert [step.kernel.template for step in steps] == [forms, paired_contraction]
