"""The arena plan: buffers that live together never overlap, and little is wasted."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompiler.codegen.memory_plan import ALIGNMENT, Buffer, lower_bound, plan_memory


@st.composite
def buffer_lists(draw: st.DrawFn) -> list[Buffer]:
    buffers = []
    for i in range(draw(st.integers(0, 25))):
        first = draw(st.integers(0, 30))
        buffers.append(Buffer(f"b{i}", draw(st.integers(0, 5000)), first, first + draw(st.integers(0, 10))))
    return buffers


@settings(max_examples=150, deadline=None)
@given(buffer_lists())
def test_live_buffers_never_overlap(buffers: list[Buffer]) -> None:
    plan = plan_memory(buffers)
    assert set(plan.offsets) == {b.name for b in buffers}
    for i, a in enumerate(buffers):
        assert plan.offsets[a.name] % ALIGNMENT == 0
        assert 0 <= plan.offsets[a.name] and plan.offsets[a.name] + a.size <= plan.size
        for b in buffers[:i]:
            together = a.first <= b.last and b.first <= a.last
            apart = (
                plan.offsets[a.name] + a.size <= plan.offsets[b.name]
                or plan.offsets[b.name] + b.size <= plan.offsets[a.name]
            )
            assert apart or not together, (a, b, plan)
    assert plan.size >= plan.lower_bound


def test_chain_reaches_the_lower_bound() -> None:
    """A plain chain of layers needs the largest neighbouring pair and not a byte more."""
    sizes = [4096, 64, 8192, 128, 2048, 16384, 64]
    buffers = [Buffer(f"b{i}", size, i, i + 1) for i, size in enumerate(sizes)]
    plan = plan_memory(buffers)
    assert plan.size == plan.lower_bound == 2048 + 16384


def test_a_chain_of_odd_sizes_lies_at_opposite_ends() -> None:
    """What MobileNet's padded copies look like: filling from the bottom alone wastes a sixth here."""
    sizes = [27648, 28812, 20000, 18432, 40000, 9216, 21632, 18432]
    plan = plan_memory([Buffer(f"b{i}", size, i, i + 1) for i, size in enumerate(sizes)])
    assert plan.size == plan.lower_bound == 18432 + 40000


def test_residual_networks_stay_within_five_per_cent() -> None:
    chance = random.Random(1)
    for _ in range(20):
        buffers = []
        for i in range(60):
            skip = chance.choice([1, 1, 1, 3, 4])
            buffers.append(Buffer(f"b{i}", chance.choice([1, 2, 4, 8, 16]) * 12544, i, i + skip))
        plan = plan_memory(buffers)
        assert plan.size <= 1.05 * plan.lower_bound


def test_lower_bound_counts_both_ends_of_a_lifetime() -> None:
    assert lower_bound([Buffer("a", 10, 0, 1), Buffer("b", 20, 1, 2), Buffer("c", 5, 2, 2)]) == 30


def test_a_backward_lifetime_is_refused() -> None:
    with pytest.raises(ValueError, match=r"buffer 'a': size 4, alive from step 3 to 2"):
        plan_memory([Buffer("a", 4, 3, 2)])
