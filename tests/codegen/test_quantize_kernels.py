"""The program's float inputs: the law's division from a reciprocal, planes interleaved, a border around an image."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from single_operation import levels

from qcompiler.codegen.cpu.kernel import Step, stored
from qcompiler.codegen.cpu.measure import LoadedSteps
from qcompiler.codegen.cpu.quantize import _quotient_of, quantize_kernel, rounds_alike
from qcompiler.sim import numerics
from qcompiler.sim.integer_program import Tensor

SCALE, ZERO = 0.0173, -11


def awkward(rng: np.random.Generator, shape: tuple[int, ...], scale: float) -> np.ndarray:
    """Floats at and beside the half-integers of the quotient, in and out of range, and what is no number."""
    size = int(np.prod(shape))
    x = ((rng.integers(-300, 300, size) + 0.5) * scale).astype(np.float32)
    x = np.where(rng.random(size) < 0.5, np.nextafter(x, np.float32(0)), x)
    x = np.where(rng.random(size) < 0.2, rng.standard_normal(size).astype(np.float32), x)
    special = np.array([np.nan, np.inf, -np.inf, 3e38, -3e38, 1e-42, -0.0], np.float32)
    x[: min(size, special.size)] = special[: min(size, special.size)]
    return rng.permutation(x).reshape(shape)


@given(st.floats(2.0**-40, 2.0**10, width=32), st.integers(0, 2**32 - 1))
def test_where_the_reciprocal_is_taken_no_value_rounds_otherwise(scale: float, seed: int) -> None:
    s = np.float32(scale)
    x = awkward(np.random.default_rng(seed), (4096,), scale)
    x = np.clip(x[np.isfinite(x)], -1024 * s, 1024 * s)
    x = x[np.abs(x) > 1e-30]
    if rounds_alike(scale):
        np.testing.assert_array_equal(np.rint(_quotient_of(x, s)), np.rint(x / s))


def test_scales_at_the_ends_of_float32_divide() -> None:
    assert rounds_alike(SCALE) and not rounds_alike(1e-30) and not rounds_alike(1e30)


@pytest.mark.parametrize("level", levels())
@pytest.mark.parametrize("scale", [SCALE, 1e-30], ids=["reciprocal", "division"])
@pytest.mark.parametrize("shape, border", [
    ((2, 5, 219, 3), (1, 2, 0, 3)), ((1, 3, 20, 4), (0, 0, 0, 0)), ((1, 4, 71, 2), (2, 1, 1, 1)),
    ((1, 9, 7, 5), (0, 0, 0, 0)),
])  # fmt: skip
def test_an_image_comes_out_interleaved_within_its_border(level, scale, shape, border) -> None:
    n, h, w, c = shape
    x = awkward(np.random.default_rng(1), (n, c, h, w), scale)
    out = Tensor("y", shape, "int8", scale, ZERO)
    top, left, bottom, right = border
    expected = numerics.quantize_linear(x, np.float32(scale), ZERO).transpose(0, 2, 3, 1)
    padding = ((0, 0), (top, bottom), (left, right), (0, 0))
    expected = stored(np.pad(expected, padding, constant_values=ZERO), level.storage)
    kernel = quantize_kernel(Tensor("x", x.shape, "float32"), out, level, (n, c, h * w), border)
    loaded = LoadedSteps([Step(kernel, ("x",), "y", expected.size)], level, {"x": x})
    for splits in (1, 3):
        np.testing.assert_array_equal(loaded.run(splits), expected.reshape(-1))


@pytest.mark.parametrize("level", levels())
def test_a_flat_tensor(level) -> None:
    x = awkward(np.random.default_rng(2), (5, 1777), SCALE)
    kernel = quantize_kernel(
        Tensor("x", x.shape, "float32"), Tensor("y", x.shape, "int8", SCALE, ZERO), level, None, (0, 0, 0, 0)
    )
    loaded = LoadedSteps([Step(kernel, ("x",), "y", x.size)], level, {"x": x})
    expected = stored(numerics.quantize_linear(x, np.float32(SCALE), ZERO), level.storage)
    np.testing.assert_array_equal(loaded.run(2), expected.reshape(-1))
