"""Data movement as boxes: strided copies that a DMA engine can do, from any Gather, Concat or Transpose.

A box is a nest of loops, each with a source and a target stride, around a run of neighbouring bytes. Gathers are cut
into boxes where their index vectors are arithmetic progressions; neighbouring loops that walk memory as one are
merged, so that the runs are as long as the bytes allow.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from qcompiler.sim.integer_program import Concat, Gather, Operation, Shape, Transpose

Loop = tuple[int, int, int]  # trips, source stride, target stride
MAX_LOOPS = 3


@dataclass(frozen=True)
class Box:
    """``target[target + i*t1 + j*t2 + ... + b] = source[source + i*s1 + j*s2 + ... + b]`` for b < run.

    operand: which input is read, -1 for the constant `fill`. loops: outermost first, at most `MAX_LOOPS`.
    """

    operand: int
    source: int
    target: int
    loops: tuple[Loop, ...]
    run: int
    fill: int = 0

    @property
    def bytes(self) -> int:
        return math.prod(n for n, _, _ in self.loops) * self.run

    @property
    def source_span(self) -> int:
        """Bytes from the first to the last that is read."""
        return sum((n - 1) * abs(s) for n, s, _ in self.loops) + self.run

    @property
    def source_first(self) -> int:
        """Lowest address that is read."""
        return self.source + sum((n - 1) * min(s, 0) for n, s, _ in self.loops)

    @property
    def target_span(self) -> int:
        return sum((n - 1) * t for n, _, t in self.loops) + self.run


def strides(shape: Shape) -> tuple[int, ...]:
    """Byte strides of an int8 array in C order."""
    result, step = [], 1
    for d in reversed(shape):
        result.append(step)
        step *= d
    return tuple(reversed(result))


def _segments(vector: npt.NDArray[np.int64] | None, extent: int) -> Iterator[tuple[int, int, int, int]]:
    """``(position, first, step, count)`` of the arithmetic progressions of an index vector; first -1 is fill."""
    if vector is None:
        yield 0, 0, 1, extent
        return
    values = [int(v) for v in vector]
    at = 0
    while at < len(values):
        first, step, stop = values[at], 1, at + 1
        if first < 0:
            while stop < len(values) and values[stop] < 0:
                stop += 1
            yield at, -1, 0, stop - at
        else:
            if stop < len(values) and values[stop] >= 0:
                step = values[stop] - first
                while stop < len(values) and values[stop] >= 0 and values[stop] - values[stop - 1] == step:
                    stop += 1
            yield at, first, step, stop - at
        at = stop


def normalise(box: Box) -> list[Box]:
    """The same bytes with loops merged, runs as long as possible and at most `MAX_LOOPS` loops a box."""
    merged: list[Loop] = []
    loops = [loop for loop in box.loops if loop[0] != 1]
    for n, s, t in reversed(loops):
        if not merged and t == box.run and (s == box.run or box.operand < 0):
            box = replace(box, run=box.run * n)
        elif merged and (s, t) == (merged[0][0] * merged[0][1], merged[0][0] * merged[0][2]):
            merged[0] = (n * merged[0][0], *merged[0][1:])
        else:
            merged.insert(0, (n, s, t))
    extra, inner = merged[: max(len(merged) - MAX_LOOPS, 0)], tuple(merged[max(len(merged) - MAX_LOOPS, 0) :])
    result = []
    for index in itertools.product(*(range(n) for n, _, _ in extra)):
        source = box.source + sum(i * s for i, (_, s, _) in zip(index, extra, strict=True))
        target = box.target + sum(i * t for i, (_, _, t) in zip(index, extra, strict=True))
        result.append(replace(box, source=source, target=target, loops=inner))
    return result


def boxes(op: Operation, shapes: list[Shape], output: Shape) -> tuple[Box, ...]:
    """The boxes of a Gather, Concat or Transpose of int8 tensors."""
    out = strides(output)
    found: list[Box] = []
    if isinstance(op, Transpose):
        source = strides(shapes[0])
        loops = tuple((n, source[p], t) for n, p, t in zip(output, op.permutation, out, strict=True))
        found.append(Box(0, 0, 0, loops, 1))
    elif isinstance(op, Concat):
        at = 0
        for i, shape in enumerate(shapes):
            loops = tuple(zip(shape, strides(shape), out, strict=True))
            found.append(Box(i, 0, at * out[op.axis], loops, 1))
            at += shape[op.axis]
    elif isinstance(op, Gather):
        source = strides(shapes[0])
        per_axis = [list(_segments(v, d)) for v, d in zip(op.indices, shapes[0], strict=True)]
        for parts in itertools.product(*per_axis):
            filled = any(first < 0 for _, first, _, _ in parts)
            loops = tuple((n, 0 if filled else step * s, t)
                          for (_, _, step, n), s, t in zip(parts, source, out, strict=True))  # fmt: skip
            start = 0 if filled else sum(first * s for (_, first, _, _), s in zip(parts, source, strict=True))
            target = sum(p * t for (p, _, _, _), t in zip(parts, out, strict=True))
            found.append(Box(-1 if filled else 0, start, target, loops, 1, op.fill if filled else 0))
    else:
        raise TypeError(f"{type(op).__name__} is not a move")
    return tuple(b for box in found for b in normalise(box) if b.bytes)


def split(box: Box, limit: int) -> Iterator[Box]:
    """Boxes of at most `limit` bytes each, in order, that together are `box`."""
    if box.bytes <= limit:
        yield box
        return
    if not box.loops:
        for at in range(0, box.run, limit):
            yield replace(box, source=box.source + at, target=box.target + at, run=min(limit, box.run - at))
        return
    (n, s, t), inner = box.loops[0], box.loops[1:]
    one = replace(box, loops=inner)
    together = max(limit // one.bytes, 1)
    for first in range(0, n, together):
        count = min(together, n - first)
        part = replace(one, source=box.source + first * s, target=box.target + first * t)
        if count > 1:
            yield replace(part, loops=((count, s, t), *inner))
        else:
            yield from split(part, limit)
