"""Random convolutions, products and layers against the reference: seeded, so that a failure repeats."""

from __future__ import annotations

import numpy as np
import pytest
from single_operation import assert_exact, conv_program, levels, matmul_program

from qcompiler.codegen.cpu.conv import conv2d
from qcompiler.codegen.cpu.gemm import matmul

FEW, MANY = range(3), range(3, 60)


def random_convolution(seed: int) -> dict:
    rng = np.random.default_rng(seed)

    def pick(*values: int) -> int:
        return int(rng.choice(values))

    depthwise, grouped = seed % 3 == 1, seed % 6 == 2
    groups = pick(2, 3, 8) if grouped else 1
    c = pick(1, 3, 4, 7, 16, 24, 48, 64, 65, 130)
    if grouped:
        c = groups * pick(1, 2, 5, 16)
    o = groups * pick(1, 5, 12, 33) if grouped else pick(1, 2, 8, 17, 32, 63, 100, 128)
    if depthwise:
        groups = o = c = pick(2, 8, 15, 16, 32, 40, 64, 96, 144, 200)
    kernel = (pick(1, 2, 3, 5), pick(1, 3, 3, 4, 7))
    if not depthwise and not grouped and seed % 2:
        kernel = (1, 1)
    dilation = (pick(1, 1, 1, 2), pick(1, 1, 1, 3))
    padding = tuple(pick(0, 1, 2) for _ in range(4)) if seed % 4 else (0, 0, 0, 0)
    least = [(kernel[i] - 1) * dilation[i] + 1 - padding[i] - padding[i + 2] for i in range(2)]
    size = [max(1, n) + pick(0, 1, 4, 11, 20) for n in least]
    return dict(
        n=pick(1, 1, 2), h=size[0], w=size[1], c=c, o=o, kernel=kernel, stride=(pick(1, 1, 2, 3), pick(1, 1, 2)),
        dilation=dilation, padding=padding, groups=groups, add=["", "", "first", "second"][pick(0, 1, 2, 3)],
        minimum=pick(-128, -128, -30), maximum=pick(127, 127, 90),
    )  # fmt: skip


def random_matmul(seed: int) -> dict:
    rng = np.random.default_rng(seed)
    m, k, n = (int(rng.integers(1, 90)) for _ in range(3))
    lead_a, lead_b = [((), ()), ((2,), (2,)), ((3, 1), (2,)), ((1, 2), (1, 2)), ((), (2, 2))][seed % 5]
    transposed = bool(rng.integers(2))
    return dict(
        shape_a=(*lead_a, m, k), shape_b=(*lead_b, n, k) if transposed else (*lead_b, k, n), transposed=transposed,
        zero_b=int(rng.choice([0, -128, 127, 31])), add="first" if seed % 3 == 0 else "",
    )  # fmt: skip


def check(level, seed: int) -> None:
    assert_exact(conv_program(seed, **random_convolution(seed)), conv2d, level, seed)
    if seed % 3 == 0:
        assert_exact(matmul_program(**random_matmul(seed)), matmul, level, seed)


@pytest.mark.parametrize("level", levels())
@pytest.mark.parametrize("seed", FEW)
def test_a_few(level, seed):
    check(level, seed)


@pytest.mark.slow
@pytest.mark.parametrize("level", levels())
@pytest.mark.parametrize("seed", MANY)
def test_many(level, seed):
    check(level, seed)
