"""What values the tensors of an integer program can hold, from the clamps of the operations that make them.

An interval is ``(low, high)``, both included. Nothing is known of what the host writes: program inputs and what a
Quantize makes have none (None), and neither has what only moves their values.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from qcompiler.sim.integer_program import (
    Concat,
    Embedding,
    Gather,
    IntegerProgram,
    MaxPool2d,
    Operation,
    Quantize,
    Reshape,
    Table,
    Transpose,
)  # fmt: skip
from qcompiler.sim.numerics import INT8_MAX, INT8_MIN

Interval = tuple[int, int] | None
INT8 = (INT8_MIN, INT8_MAX)


def bits(low: int, high: int) -> int:
    """Bits that two's complement needs for both values, at least 1."""
    return max((v if v >= 0 else ~v).bit_length() for v in (low, high)) + 1


def intervals(program: IntegerProgram) -> dict[str, Interval]:
    """The interval of every int8 tensor."""
    found: dict[str, Interval] = {
        n: (int(v.min()), int(v.max())) for n, v in program.constants.items() if v.dtype == np.int8 and v.size
    }
    for op in program.operations:
        if program.output_tensor(op).dtype == "int8":
            found[op.output] = _interval(op, [found.get(n) for n in op.inputs])
    return found


def _interval(op: Operation, inputs: list[Interval]) -> Interval:
    if isinstance(op, Quantize):
        return None
    clamped: Any = getattr(op, "requantize", op)
    if hasattr(clamped, "minimum"):
        return clamped.minimum, clamped.maximum
    if isinstance(op, Table):
        low, high = inputs[0] or INT8
        reached = op.table[..., low - INT8_MIN : high - INT8_MIN + 1]
        return int(reached.min()), int(reached.max())
    if isinstance(op, Gather) and any(v is not None and (v == -1).any() for v in op.indices):
        return _union([inputs[0], (op.fill, op.fill)])
    if isinstance(op, (Gather, MaxPool2d, Embedding, Reshape, Transpose)):
        return inputs[0]
    return _union(inputs) if isinstance(op, Concat) else INT8


def _union(parts: list[Interval]) -> Interval:
    known = [p for p in parts if p is not None]
    return (min(p[0] for p in known), max(p[1] for p in known)) if len(known) == len(parts) else None
