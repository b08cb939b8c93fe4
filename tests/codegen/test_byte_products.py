"""Which quads are multiplied as bytes, and with which others: no lane can leave 16 bits, whatever the input."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompiler.codegen.cpu.byte_products import LIMIT, heights, products


@given(st.lists(st.integers(-127, 127), min_size=4, max_size=4))
def test_heights_decide_exactly(weights: list[int]) -> None:
    """For both forms: bytes of 0 or 255 are the extremes, and 16 bits hold them just where the heights are low."""
    w = np.array([weights], dtype=np.int8)
    for form, signs in enumerate(([1, 1, 1, 1], [1, -1, 1, -1])):
        pairs = (w.astype(np.int64) * signs).reshape(2, 2)
        extremes = [255 * np.maximum(pairs, 0).sum(axis=1), 255 * np.minimum(pairs, 0).sum(axis=1)]
        fits = all((-32768 <= e).all() and (e <= 32767).all() for e in extremes)
        assert (heights(w)[form].max() <= LIMIT) == fits


@pytest.mark.parametrize("complement", [False, True])
@pytest.mark.parametrize("spread", [5, 35, 60])
def test_the_choice_is_exact_and_complete(spread: int, complement: bool) -> None:
    rng = np.random.default_rng(7)
    weights = np.clip(np.rint(rng.standard_normal((3, 37, 8, 4)) * spread), -128, 127).astype(np.int8)
    weights[0, 5, 3] = [-128, 0, 0, -128]
    chosen = products(weights, complement)
    assert not chosen.exact[0, 5]
    assert complement or not chosen.complemented.any()
    assert not (chosen.complemented & ~chosen.exact).any()
    # The same sum: as stored, or complemented with the rest in the bias.
    x = rng.integers(0, 256, (37, 1, 4))
    odd = np.where(np.arange(4) % 2, 255 - x, x)
    read = np.where(chosen.complemented[:, :, None, None], odd, x)
    sums = (chosen.weights.astype(np.int64) * read).sum(axis=(1, 3)) + chosen.bias
    assert np.array_equal(sums, (weights.astype(np.int64) * x).sum(axis=(1, 3)))
    # Partners are each other's, and what is added in 16 bits fits there at its extremes.
    vectors, quads = np.nonzero(chosen.partner >= 0)
    partners = chosen.partner[vectors, quads]
    assert np.array_equal(chosen.partner[vectors, partners], quads)
    assert chosen.exact[vectors, quads].all()
    pairs = chosen.weights.astype(np.int64).reshape(3, 37, 16, 2)
    high, low = 255 * np.maximum(pairs, 0).sum(axis=-1), 255 * np.minimum(pairs, 0).sum(axis=-1)
    assert high[chosen.exact].max() <= 32767 and low[chosen.exact].min() >= -32768
    assert (high[vectors, quads] + high[vectors, partners]).max(initial=0) <= 32767
    assert (low[vectors, quads] + low[vectors, partners]).min(initial=0) >= -32768


def test_small_weights_pair_up() -> None:
    """Of weights of at most 25 any two quads fit; of large ones of one sign, only complemented ones fit at all."""
    rng = np.random.default_rng(3)
    small = rng.integers(-25, 26, (4, 64, 8, 4)).astype(np.int8)
    assert products(small, False).instructions == 2.5
    large = np.full((1, 16, 8, 4), 100, dtype=np.int8)
    assert products(large, False).instructions == 4.0
    assert products(large, True).instructions == 3.0
