"""Operations fused behind matrix work, applied to packed bytes in registers before they are stored.

Each is the program's own operation on int8 values (nothing is skipped or merged, so no value changes); only the trip
through memory is saved. A vector holds the same `width` channels of one or more rows, one after the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from qcompiler.codegen.cpu.emit import Buffer, Emitter, Expr, load, shuffle, splat
from qcompiler.codegen.cpu.isa.base import VectorInstructionSet
from qcompiler.codegen.cpu.kernel import Group
from qcompiler.codegen.cpu.requantize import Rescale
from qcompiler.sim.integer_program import Add, Operation, Tensor


@dataclass(frozen=True)
class FusedOp:
    """What the code of one operation depends on, hashable. add: `Add` with another tensor of the output's shape."""

    kind: Literal["add"]
    minimum: int = -128
    maximum: int = 127


@dataclass(frozen=True, eq=False)
class Fused:
    """operations: a template parameter; constants: of the kernel, behind all others. Layers that differ in their
    constants only share one kernel.
    """

    operations: tuple[FusedOp, ...] = ()
    constants: tuple[npt.NDArray[Any], ...] = ()


def fusable(op: Operation, tensors: Mapping[str, Tensor]) -> bool:
    """Whether matrix work can take this operation, reading its result, into its epilogue."""
    if not isinstance(op, Add) or op.rounding != "exact_half_up":
        return False
    a, b = (tensors[n] for n in op.inputs)
    return a.shape == b.shape


def fused_ops(group: Group, isa: VectorInstructionSet) -> Fused:
    """What follows the group's root."""
    out, constants = [], []
    previous = group.root.output
    for op in group.operations[1:]:
        assert isinstance(op, Add) and fusable(op, group.tensors), op
        ours, other = op.multiplier_a, op.multiplier_b
        if op.inputs[0] != previous:
            ours, other = other, ours
        out.append(FusedOp("add", op.minimum, op.maximum))
        constants.append(np.array(isa.add_constants(ours, other, op.bias, op.shift), dtype=np.int32))
        previous = op.output
    return Fused(tuple(out), tuple(constants))


def pack_rows(
    isa: VectorInstructionSet, e: Emitter, scaled: Sequence[Expr], rows: int, valid: int, rescale: Rescale
) -> Expr:
    """Requantised words of some rows, at most four vectors in all, as clamped bytes: row after row, channels in order.

    scaled: int32 ``q + storage offset``, the vectors of the first row first; valid: bytes of a row that will be stored.
    """
    lanes = isa.lanes(4)
    count, vectors = 4 * lanes, len(scaled) // rows
    # LLVM 22 narrows and widens a byte clamp without end when parts of its result are stored separately.
    whole = valid == count
    if not whole:
        scaled = [isa.clamp_words(v, rescale.minimum, rescale.maximum, lanes) for v in scaled]
    # Missing vectors repeat the last one: their bytes are dropped.
    packed = isa.pack([*scaled, *[scaled[-1]] * (4 - len(scaled))], lanes)
    order = [
        p
        for row in range(rows)
        for p, (slot, _) in enumerate(isa.pack_order(lanes))
        if slot // vectors == row and slot < len(scaled)
    ]
    order += [order[-1]] * (count - len(order))
    if order != list(range(count)):
        packed = shuffle([packed], order)
    if whole:
        packed = isa.clamp_bytes(packed, rescale.minimum, rescale.maximum, count)
    return e.bind(packed, f"{isa.storage}x{count}", "bytes")


class Epilogue:
    """Declares the buffers that the fused operations need and emits their code."""

    def __init__(self, isa: VectorInstructionSet, emitter: Emitter, fused: tuple[FusedOp, ...], elements: int) -> None:
        self._isa, self._e, self._fused = isa, emitter, fused
        self._operands: list[Buffer] = [
            emitter.buffer(f"other{i}", elements, self._isa.storage) for i in range(len(fused))
        ]

    def constants(self) -> None:
        """Declares the constants, in the order of `Fused.constants`."""
        count = self._isa.add_scalars
        self._scalars = [self._e.buffer(f"add{i}", count, "int32") for i in range(len(self._fused))]

    def finish(self, packed: Expr, at: list[Expr], operand_at: list[Expr], width: int, valid: int, y: Buffer) -> None:
        """Apply the operations and store `valid` of the `width` bytes of each row.

        at: index of each row in the output; operand_at: in the operations' second operands.
        """
        lanes = self._isa.lanes(4)
        count = 4 * lanes
        for op, operand, scalars in zip(self._fused, self._operands, self._scalars, strict=True):
            other = self._rows(operand, operand_at, width, valid, count)
            numbers = [load(scalars, i, 1) for i in range(self._isa.add_scalars)]
            packed = self._isa.rescaled_add(packed, other, numbers, lanes)
            packed = self._isa.clamp_bytes(packed, op.minimum, op.maximum, count)
            packed = self._e.bind(packed, f"{self._isa.storage}x{count}", "bytes")
        for row, index in enumerate(at):
            for start, length in pieces(valid):
                first = row * width + start
                part = packed if length == count else shuffle([packed], range(first, first + length))
                self._e.store(y, index + start, part, length)

    def _rows(self, buffer: Buffer, at: list[Expr], width: int, valid: int, count: int) -> Expr:
        """The same positions of another tensor, arranged alike; zeros where nothing is stored."""
        if len(at) == 1 and valid == count:
            return self._e.bind(load(buffer, at[0], count), f"{self._isa.storage}x{count}", "other")
        parts, order = [splat(0, self._isa.storage, count)], [0] * count
        joined = count
        for row, index in enumerate(at):
            for start, length in pieces(valid):
                parts.append(load(buffer, index + start, length))
                first = row * width + start
                order[first : first + length] = range(joined, joined + length)
                joined += length
        return self._e.bind(shuffle(parts, order), f"{self._isa.storage}x{count}", "other")


def pieces(count: int) -> list[tuple[int, int]]:
    """(start, length) of power-of-two stretches that make up `count` bytes, longest first."""
    out, start = [], 0
    while count - start:
        length = 1 << ((count - start).bit_length() - 1)
        out.append((start, length))
        start += length
    return out
