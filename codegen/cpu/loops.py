"""Loop shapes that the element-wise and moving kernels share: tasks, vector chunks, broadcast axes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from qcompiler.codegen.cpu.emit import Emitter, Expr, constant
from qcompiler.sim.integer_program import Shape


@contextmanager
def tasks(e: Emitter) -> Iterator[Expr]:
    """Declares task_begin and task_end (after the buffers) and loops over the tasks between them."""
    begin, end = e.scalar("task_begin"), e.scalar("task_end")
    with e.loop(end - begin, "task", begin=begin) as task:
        yield task


def for_chunks(e: Emitter, extent: int, lanes: int, body: Callable[[Expr, int], None]) -> None:
    """Covers 0..extent: ``body(start, lanes)`` in a loop as often as whole vectors fit, then shorter ones once each."""
    start = 0
    while start < extent:
        count = (extent - start) // lanes
        if count:
            with e.loop(count, "chunk") as i:
                body(i * lanes + start, lanes)
            start += count * lanes
        lanes //= 2


def chunk_widths(extent: int, lanes: int) -> list[int]:
    """The vector widths that `for_chunks` uses, longest first."""
    widths = []
    while extent:
        if extent >= lanes:
            widths.append(lanes)
            extent %= lanes
        lanes //= 2
    return widths


def for_blocks(e: Emitter, task: Expr, extent: int, block: int, lanes: int, body: Callable[[Expr, int], None]) -> None:
    """Task number `task` of a flat range: elements task * block .. min(extent, (task + 1) * block), in chunks."""
    full, rest = divmod(extent, block)

    def chunks(elements: int) -> None:
        for_chunks(e, elements, lanes, lambda start, width: body(task * block + start, width))

    if full:
        with e.when(task < full if rest else True):
            chunks(block)
    if rest:
        with e.when(constant(full) <= task if full else True):
            chunks(rest)


def unflatten(e: Emitter, index: Expr, extents: Sequence[int]) -> list[Expr]:
    """The coordinates of a flat C-order index."""
    coordinates: list[Expr] = []
    for axis, extent in enumerate(extents):
        inner = math.prod(extents[axis + 1 :])
        value = index // inner if inner > 1 else index
        coordinates.append(e.bind(value % extent if axis and extent > 1 else value, "int32", "at") if extent > 1 else 0)
    return coordinates


def dot(coordinates: Sequence[Expr], strides: Sequence[int]) -> Expr:
    """The flat offset of coordinates; an int32 expression."""
    terms = [c * s for c, s in zip(coordinates, strides, strict=True) if s and not (isinstance(c, int) and c == 0)]
    return sum(terms[1:], terms[0]) if terms else constant(0)


def strides_of(shape: Sequence[int]) -> list[int]:
    """Element strides in C order."""
    return [math.prod(shape[i + 1 :]) for i in range(len(shape))]


def collapse(output: Shape, walks: Sequence[Sequence[int]]) -> tuple[list[int], list[list[int]]]:
    """Merges axes: (extents, per operand the stride of each), for operands that walk `output` with these strides.

    Adjacent axes become one where every operand walks them as one; axes of extent 1 vanish. At least one is left.
    """
    extents: list[int] = []
    merged: list[list[int]] = [[] for _ in walks]
    for axis in reversed(range(len(output))):
        if output[axis] == 1:
            continue
        steps = [w[axis] for w in walks]
        if extents and all(s == m[0] * extents[0] for s, m in zip(steps, merged, strict=True)):
            extents[0] *= output[axis]
            continue
        extents.insert(0, output[axis])
        for m, s in zip(merged, steps, strict=True):
            m.insert(0, s)
    return (extents, merged) if extents else ([1], [[0] for _ in walks])


def broadcast_strides(shape: Shape, output: Shape) -> list[int]:
    """Strides with which a tensor of `shape` is walked when it broadcasts to `output`: zero where it repeats."""
    padded = (1,) * (len(output) - len(shape)) + tuple(shape)
    return [0 if p == 1 else s for p, s in zip(padded, strides_of(padded), strict=True)]
