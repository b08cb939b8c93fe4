"""Offsets of buffers in one static arena, so that buffers alive at the same time do not overlap.

The problem (dynamic storage allocation with known lifetimes) is NP-hard. Placing one buffer after the other, each at
the bottom or the top of a gap beside those already placed, is within a few per cent of the lower bound once the order
is good; so a few orders are tried, and then the best is improved: a buffer that ends at the peak moves forward, another
changes its side.
Deterministic. Source of the greedy step: Pisarchyk and Lee, "Efficient Memory Management for Deep Neural Net
Inference", 2020 (greedy by size).
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

ALIGNMENT = 64
IMPROVEMENT_ROUNDS = 300
IMPROVEMENT_WORK = 1_000_000  # pairs of buffers looked at, at most: some hundred milliseconds


@dataclass(frozen=True)
class Buffer:
    """size: bytes. first, last: the steps of the first write and the last read, both included."""

    name: str
    size: int
    first: int
    last: int


@dataclass(frozen=True)
class MemoryPlan:
    """offsets: byte offset of each buffer, a multiple of the alignment. size: bytes of the arena. lower_bound: the most
    bytes alive at any one step, which no plan can undercut."""

    offsets: Mapping[str, int]
    size: int
    lower_bound: int


def plan_memory(buffers: Sequence[Buffer], alignment: int = ALIGNMENT) -> MemoryPlan:
    """Place the buffers. Raises ValueError for a lifetime that ends before it begins or a negative size."""
    for b in buffers:
        if b.last < b.first or b.size < 0:
            raise ValueError(f"buffer {b.name!r}: size {b.size}, alive from step {b.first} to {b.last}")
    rounded = [Buffer(b.name, -(-b.size // alignment) * alignment, b.first, b.last) for b in buffers]
    bound = lower_bound(rounded)
    orders = [
        sorted(rounded, key=lambda b: (-b.size, b.first)),
        sorted(rounded, key=lambda b: (-b.size * (b.last - b.first + 1), b.first)),
        sorted(rounded, key=lambda b: (b.first, -b.size)),
        _by_breadth(rounded),
    ]
    # In a chain of layers neighbours lie at opposite ends of the arena, whatever their sizes.
    sides = [frozenset(), frozenset(b.name for b in rounded if b.first % 2)]
    plans = [(order, top, *_place(order, top, bound)) for order in orders for top in sides]
    order, top, offsets, size = min(plans, key=lambda plan: plan[3])
    chance = random.Random(0)
    rounds = min(IMPROVEMENT_ROUNDS, IMPROVEMENT_WORK // max(1, len(order)) ** 2)
    for _ in range(rounds if size > bound else 0):
        highest = [b for b in order if offsets[b.name] + b.size == size]
        moved = chance.choice(highest)
        at = order.index(moved)
        trial = order[:at] + order[at + 1 :]
        trial.insert(chance.randrange(at) if at else chance.randrange(len(order)), moved)
        turned = top ^ {chance.choice(order).name} if chance.random() < 0.5 else top
        placed, total = _place(trial, turned, bound)
        if total <= size:  # equal plans are taken too: they lead across plateaus
            order, top, offsets, size = trial, turned, placed, total
        if size == bound:
            break
    return MemoryPlan(offsets, size, bound)


def lower_bound(buffers: Sequence[Buffer]) -> int:
    """The most bytes alive at any step."""
    change: dict[int, int] = {}
    for b in buffers:
        change[b.first] = change.get(b.first, 0) + b.size
        change[b.last + 1] = change.get(b.last + 1, 0) - b.size
    alive = peak = 0
    for step in sorted(change):
        alive += change[step]
        peak = max(peak, alive)
    return peak


def _by_breadth(buffers: Sequence[Buffer]) -> list[Buffer]:
    """Buffers of the fullest steps first, largest first within a step."""
    steps = sorted({b.first for b in buffers})
    load = {s: sum(b.size for b in buffers if b.first <= s <= b.last) for s in steps}
    rank: dict[str, tuple[int, int]] = {}
    for b in buffers:
        fullest = max(load[s] for s in steps if b.first <= s <= b.last)
        rank[b.name] = (-fullest, -b.size)
    return sorted(buffers, key=lambda b: (*rank[b.name], b.first))


def _place(order: Sequence[Buffer], top: Set[str], ceiling: int) -> tuple[dict[str, int], int]:
    """Each buffer into a gap among those that are alive with it, or above them.

    The gap is the tightest; for the buffers in `top`, the highest one below `ceiling`, of which they take the end.
    """
    offsets: dict[str, int] = {}
    placed: list[Buffer] = []
    total = 0
    for b in order:
        if not b.size:
            offsets[b.name] = 0
            continue
        occupied = sorted(
            (offsets[p.name], offsets[p.name] + p.size) for p in placed if p.first <= b.last and b.first <= p.last
        )
        gaps, end = [], 0
        for low, high in occupied:
            if low - end >= b.size:
                gaps.append((end, low))
            end = max(end, high)
        if b.name in top and (
            below := [min(high, ceiling) for low, high in [*gaps, (end, ceiling)] if min(high, ceiling) - low >= b.size]
        ):
            offsets[b.name] = max(below) - b.size
        else:
            offsets[b.name] = min(gaps, key=lambda gap: gap[1] - gap[0])[0] if gaps else end
        placed.append(b)
        total = max(total, offsets[b.name] + b.size)
    return offsets, total
