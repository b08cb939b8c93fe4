"""Integer programs whose values fit narrow operands of the array, made from any: values are clipped where they are
made, zero points moved, inputs clipped by a table. Such a program is as good a test as any other; it means nothing."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from qcompiler.sim.integer_program import (
    KEEPS_QUANTISATION,
    Conv2d,
    Dense,
    Gather,
    IntegerProgram,
    Operation,
    Softmax,
    Table,
    check,
)  # fmt: skip
from qcompiler.sim.widths import interval


def narrowed(program: IntegerProgram, weight_bits: int = 8, activation_bits: int = 8) -> IntegerProgram:
    """The program with weights of work on the array in `weight_bits`, and all activations in `activation_bits` bits
    (but a softmax's, which no array may then read)."""
    largest, (low, high) = (1 << weight_bits - 1) - 1, interval(activation_bits)
    kept: set[str] = set()
    for op in program.operations:
        if isinstance(op, Softmax) or (isinstance(op, KEEPS_QUANTISATION) and op.inputs[0] in kept):
            kept.add(op.output)

    def clip(value: Any) -> Any:
        return type(value)(np.clip(value, low, high)) if isinstance(value, int) else np.clip(value, low, high)

    tensors = {
        n: t if n in kept or t.zero_point is None else dataclasses.replace(t, zero_point=clip(t.zero_point))
        for n, t in program.tensors.items()
    }

    def narrow(op: Operation) -> Operation:
        changes: dict[str, Any] = {}
        if isinstance(op, Dense) or (isinstance(op, Conv2d) and not op.depthwise):
            changes["weight"] = np.clip(op.weight, -largest, largest)
        r = getattr(op, "requantize", None)
        if r is not None:
            ends = {n: clip(getattr(r, n)) for n in ("zero_point", "minimum", "maximum")}
            changes["requantize"] = dataclasses.replace(r, **ends)
        changes |= {n: clip(getattr(op, n)) for n in ("minimum", "maximum", "table") if hasattr(op, n)}
        if isinstance(op, Gather) and op.output not in kept:
            changes["fill"] = clip(op.fill)
        return dataclasses.replace(op, **changes)

    clips = []
    for n in program.inputs if activation_bits < 8 else ():
        if program.tensors[n].dtype == "int8":
            tensors[f"{n}.clipped"] = dataclasses.replace(tensors[n], name=f"{n}.clipped")
            table = np.clip(np.arange(-128, 128), low, high).astype(np.int8)
            clips.append(Table(f"clip {n}", (n,), f"{n}.clipped", table, "clip"))
    renamed = {op.inputs[0]: op.output for op in clips}
    operations = [
        dataclasses.replace(op, inputs=tuple(renamed.get(n, n) for n in op.inputs)) for op in program.operations
    ]
    constants = {n: clip(v) if v.dtype == np.int8 else v for n, v in program.constants.items()}
    return check(program.replace(tensors=tensors, operations=(*clips, *map(narrow, operations)), constants=constants))
