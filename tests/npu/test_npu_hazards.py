"""Tokens and fences from what instructions touch, and addresses from lifetimes."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from qcompiler.codegen.npu.hazards import Arena, Region, Stream
from qcompiler.sim.isa import Queue, Sync
from qcompiler.sim.isa.base import tokens_of
from qcompiler.sim.residency import Item, pack


def on(queue: Queue) -> Sync:
    return Sync(unit=queue)


def edges(stream: Stream) -> list[tuple[int, int]]:
    """(signaller, waiter) pairs: the n-th wait on a token takes its n-th signal."""
    instructions = stream.finish()
    signals: dict[int, list[int]] = {}
    for i, ins in enumerate(instructions):
        for token in tokens_of(ins.signal):
            signals.setdefault(token, []).append(i)
    return [(signals[t].pop(0), i) for i, ins in enumerate(instructions) for t in tokens_of(ins.wait)]


def test_a_reader_waits_for_the_writer_and_the_next_writer_for_the_reader() -> None:
    stream, buffer = Stream(), Arena("m", 64).claim("b", 0, 64)
    stream.emit(on(Queue.load), [], [buffer.all()])
    stream.emit(on(Queue.matrix), [buffer.all()], [])
    stream.emit(on(Queue.load), [], [buffer.all()])
    assert edges(stream) == [(0, 1), (1, 2)]


def test_two_buffers_are_independent() -> None:
    arena, stream = Arena("m", 64), Stream()
    for turn in range(4):
        buffer = arena.claim("b", 32 * (turn % 2), 32)
        stream.emit(on(Queue.load), [], [buffer.all()])
        stream.emit(on(Queue.matrix), [buffer.all()], [])
    # Each load waits for the reader two turns before, not for the last one.
    assert edges(stream) == [(0, 1), (2, 3), (1, 4), (4, 5), (3, 6), (6, 7)]


def test_columns_of_the_same_rows_do_not_conflict() -> None:
    stream, buffer = Stream(), Arena("m", 64).claim("b", 0, 64)
    stream.emit(on(Queue.vector), [], [Region(buffer, 0, 60, 8, 0, 4)])
    stream.emit(on(Queue.store), [Region(buffer, 4, 64, 8, 4, 8)], [])
    stream.emit(on(Queue.store), [Region(buffer, 0, 60, 8, 0, 4)], [])
    assert edges(stream) == [(0, 2)]


def test_a_wait_covers_everything_before_it() -> None:
    stream, buffer = Stream(), Arena("m", 64).claim("b", 0, 64)
    stream.emit(on(Queue.load), [], [Region(buffer, 0, 32)])
    stream.emit(on(Queue.load), [], [Region(buffer, 32, 64)])
    stream.emit(on(Queue.matrix), [buffer.all()], [])
    stream.emit(on(Queue.matrix), [Region(buffer, 0, 32)], [])
    assert edges(stream) == [(1, 2)]


def test_reading_ones_own_result_takes_a_fence_and_only_one() -> None:
    stream, buffer = Stream(), Arena("m", 64).claim("b", 0, 64)
    stream.emit(on(Queue.vector), [], [buffer.all()])
    stream.emit(on(Queue.vector), [Region(buffer, 0, 8)], [])
    stream.emit(on(Queue.vector), [Region(buffer, 8, 16)], [])
    assert [ins.fence for ins in stream.finish()] == [False, True, False]


def test_a_new_tenant_waits_for_all_it_displaces() -> None:
    arena, stream = Arena("m", 64), Stream()
    for start in (0, 32):
        buffer = arena.claim("old", start, 32)
        stream.emit(on(Queue.load), [], [buffer.all()])
        stream.emit(on(Queue.matrix if start else Queue.vector), [buffer.all()], [])
    stream.emit(on(Queue.load), [], [arena.claim("new", 16, 32).all()])
    assert {s for s, w in edges(stream) if w == 4} == {1, 3}


accesses = st.tuples(
    st.sampled_from([Queue.load, Queue.matrix, Queue.vector, Queue.store]), st.booleans(),
    st.integers(0, 7), st.integers(1, 8),
)  # fmt: skip


@given(st.lists(accesses, max_size=30))
def test_conflicting_instructions_are_ordered(items: list[tuple[Queue, bool, int, int]]) -> None:
    """Whatever conflicts is connected by queue order and tokens, so no order that hardware may choose differs."""
    stream, buffer = Stream(), Arena("m", 16).claim("b", 0, 16)
    regions = [Region(buffer, start, start + size) for _, _, start, size in items]
    for (queue, writes, _, _), region in zip(items, regions, strict=True):
        stream.emit(on(queue), [] if writes else [region], [region] if writes else [])
    before: list[set[int]] = [set() for _ in items]
    direct = edges(stream)
    for i, (queue, *_) in enumerate(items):
        sources = [s for s, w in direct if w == i] + [j for j in range(i) if items[j][0] == queue]
        for s in sources:
            before[i] |= before[s] | {s}
    for i, j in itertools.combinations(range(len(items)), 2):
        overlap = regions[i].start < regions[j].stop and regions[j].start < regions[i].stop
        if overlap and (items[i][1] or items[j][1]):
            assert i in before[j]


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 9), st.integers(0, 5)), max_size=12))
def test_packed_items_never_meet(sizes: list[tuple[int, int, int]]) -> None:
    items = [Item(str(i), size, first, first + length) for i, (size, first, length) in enumerate(sizes)]
    addresses, used = pack(items, 4)
    for a, b in itertools.combinations(items, 2):
        if a.meets(b):
            assert addresses[a.name] + a.size <= addresses[b.name] or addresses[b.name] + b.size <= addresses[a.name]
    assert used == max((addresses[i.name] + i.size for i in items), default=0)
    assert all(address % 4 == 0 for address in addresses.values())
