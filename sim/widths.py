"""Bit widths of quantised operands: what a multiply-accumulate array takes, and whether a program keeps to it.

Integers stay in int8 containers; a width below 8 only says which of its values occur. Weights of b bits lie in
[-(2^(b-1) - 1), 2^(b-1) - 1], activations in [-2^(b-1), 2^(b-1) - 1]. The second operand of a product of two
activations goes through the array's weight port, and so has the weights' width. Depthwise convolutions are no work
of the array: their weights have 8 bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from qcompiler.sim.integer_program import (
    Add,
    AveragePool2d,
    Concat,
    Conv2d,
    Dense,
    Embedding,
    Gather,
    IntegerProgram,
    LayerNorm,
    MatMul,
    MaxPool2d,
    Mean,
    Mul,
    Operation,
    Reshape,
    ResizeLinear,
    Table,
    Transpose,
)  # fmt: skip
from qcompiler.sim.numerics import INT8_MAX, INT8_MIN

WEIGHT_BITS = (2, 8)
ACTIVATION_BITS = (4, 8)
Interval = tuple[int, int]


@dataclass(frozen=True, order=True)
class Widths:
    """weight_bits: 2 to 8; activation_bits: 4 to 8. Raises ValueError for others."""

    weight_bits: int = 8
    activation_bits: int = 8

    def __post_init__(self) -> None:
        for name, (low, high) in (("weight_bits", WEIGHT_BITS), ("activation_bits", ACTIVATION_BITS)):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} is {getattr(self, name)}; it may be {low} to {high}")

    @property
    def weight_max(self) -> int:
        """The largest magnitude of a weight."""
        return (1 << (self.weight_bits - 1)) - 1

    @property
    def short(self) -> str:
        """As w4a8."""
        return f"w{self.weight_bits}a{self.activation_bits}"

    def __str__(self) -> str:
        return f"{self.weight_bits}-bit weights, {self.activation_bits}-bit activations"


FULL = Widths()


def interval(bits: int) -> Interval:
    """The least and the greatest signed integer of that many bits."""
    return -(1 << (bits - 1)), (1 << (bits - 1)) - 1


def within(values: Interval, bits: int) -> bool:
    """Whether all values of an interval are integers of that many bits."""
    low, high = interval(bits)
    return low <= values[0] and values[1] <= high


def bits(values: Interval) -> int:
    """The fewest bits whose integers hold an interval."""
    return max((v if v >= 0 else ~v).bit_length() for v in values) + 1


def on_array(op: Operation) -> bool:
    """Whether the operation is the multiply-accumulate array's."""
    return isinstance(op, (Dense, MatMul)) or (isinstance(op, Conv2d) and not op.depthwise)


class Operands(NamedTuple):
    """What an operation feeds to the array: values of its weights (or of what takes their place) and activations."""

    operation: Operation
    weights: Interval
    activations: Interval


def array_operands(program: IntegerProgram) -> Iterator[Operands]:
    """The operands of all work of the array, in order."""
    known = intervals(program)

    def activation(name: str) -> Interval:
        zero = program.tensors[name].zero_point or 0  # the array subtracts it, padding holds it
        return _union([known[name], (zero, zero)])

    for op in program.operations:
        if isinstance(op, MatMul):
            yield Operands(op, activation(op.inputs[1]), activation(op.inputs[0]))
        elif on_array(op):
            assert isinstance(op, (Conv2d, Dense))
            weights = int(op.weight.min(initial=0)), int(op.weight.max(initial=0))
            yield Operands(op, weights, activation(op.inputs[0]))


def misfit(program: IntegerProgram, widths: Widths) -> str | None:
    """Why an array of these widths cannot run a program, or None: the first operand that may not fit."""
    if widths == FULL:
        return None
    for op, weights, activations in array_operands(program):
        if not isinstance(op, MatMul) and not within(weights, widths.weight_bits):
            return f"the weights of {op.name!r} do not fit {widths.weight_bits} bits"
        ports = ((activations, widths.activation_bits), (weights, widths.weight_bits))
        for name, (values, width) in zip(op.inputs, ports, strict=False):
            if not within(values, width):
                return (
                    f"operand {name!r} of {op.name!r} may be anything from {values[0]} to {values[1]}, which {width} "
                    "bits do not hold"
                )
    return None


EVERYTHING = (INT8_MIN, INT8_MAX)


def intervals(program: IntegerProgram) -> dict[str, Interval]:
    """Least and greatest value that each int8 tensor may hold, whatever the inputs."""
    known: dict[str, Interval] = {}
    for name, value in program.constants.items():
        known[name] = (int(value.min(initial=0)), int(value.max(initial=0))) if value.dtype.kind == "i" else EVERYTHING
    for name in program.inputs:
        known[name] = EVERYTHING
    for op in program.operations:
        known[op.output] = _result(op, [known[n] for n in op.inputs])
    return known


def _result(op: Operation, sources: list[Interval]) -> Interval:
    if isinstance(op, (Conv2d, Dense, MatMul, Mul, AveragePool2d, Mean, ResizeLinear)):
        return op.requantize.minimum, op.requantize.maximum
    if isinstance(op, (Add, LayerNorm)):
        return op.minimum, op.maximum
    if isinstance(op, Table):
        entries = op.table.reshape(-1, 256)[:, sources[0][0] - INT8_MIN : sources[0][1] - INT8_MIN + 1]
        return int(entries.min()), int(entries.max())
    if isinstance(op, Gather):
        padded = any(v is not None and v.min(initial=0) < 0 for v in op.indices)
        return _union([sources[0], *([(op.fill, op.fill)] if padded else [])])
    if isinstance(op, (Reshape, Transpose, MaxPool2d, Embedding)):
        return sources[0]
    return _union(sources) if isinstance(op, Concat) else EVERYTHING


def _union(parts: list[Interval]) -> Interval:
    return min(low for low, _ in parts), max(high for _, high in parts)
