"""Integer program to kernel calls and the memory that they share.

Fused: an Add into the convolution or matrix product whose result it alone reads, so that the sum can take its other
operand's memory; a Transpose at the float boundary into the Quantize or Dequantize beside it. A Reshape is a view.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from qcompiler.codegen.cpu.lower import float_planes, keeps_order
from qcompiler.codegen.mcu import descriptors
from qcompiler.codegen.mcu.c_text import Arrays, Name, identifier
from qcompiler.codegen.mcu.descriptors import Call, Context, Unsupported
from qcompiler.codegen.mcu.target import McuTarget
from qcompiler.codegen.memory_plan import Buffer, MemoryPlan, plan_memory
from qcompiler.sim.errors import TargetError
from qcompiler.sim.integer_program import (
    Add,
    Conv2d,
    Dense,
    Dequantize,
    FloatOp,
    IntegerProgram,
    Operation,
    Quantize,
    Reshape,
    Transpose,
)

ALIGNMENT = 8
Group = tuple[Operation, ...]


@dataclass(frozen=True, eq=False)
class Step:
    """A kernel call that writes `output` and completes `operations`. name: of its descriptor in C."""

    name: str
    call: Call
    output: str
    operations: Group


@dataclass(frozen=True, eq=False)
class Lowered:
    """steps in order. place: buffer of every tensor: ("arena", offset), ("inputs", i), ("outputs", i) or a constant's
    name. scratch: arena offset of each step's scratch, None without. live: bytes in the arena at each step. values: C
    arrays of the program's constant tensors."""

    steps: tuple[Step, ...]
    place: Mapping[str, tuple[str, int] | Name]
    scratch: tuple[int | None, ...]
    live: tuple[int, ...]
    plan: MemoryPlan
    arrays: Arrays


def lower(program: IntegerProgram, target: McuTarget) -> Lowered:
    """Raises TargetError naming every operation that has no kernel."""
    arrays = Arrays()
    steps: list[Step] = []
    refused: list[str] = []
    memory = _Memory(program)
    for group in fuse(program):
        if len(group) == 1 and memory.is_view(group[0]):
            continue
        name = f"{type(group[0]).__name__.lower()}{len(steps)}_{identifier(group[-1].name)}"
        try:
            calls = _calls(Context(program, target, arrays, name), group)
        except Unsupported as error:
            refused.append(f"{type(group[0]).__name__} {group[0].name!r}: {error}")
            continue
        for i, call in enumerate(calls):
            unique = name if len(calls) == 1 else f"{name}_{i}"
            steps.append(Step(unique, call, group[-1].output, group if call is calls[-1] else ()))
    for constant, value in program.constants.items():
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            refused.append(f"constant {constant!r}: it has elements that are not finite")
    if refused:
        raise TargetError(
            f"target {target.name} has no kernel for {len(refused)} operation{'s' if len(refused) > 1 else ''}:\n  "
            + "\n  ".join(refused)
            + "\nthe x86 and arm targets compute float operations; here the model must be integer from end to end"
        )
    steps += memory.outputs(steps)
    memory.reuse_in_place(steps)
    return memory.plan(tuple(steps), arrays)


def fuse(program: IntegerProgram) -> list[Group]:
    """The operations in groups, in execution order: a group runs where its last operation stands."""
    readers, position = program.consumers(), {op.name: i for i, op in enumerate(program.operations)}
    taken: set[str] = set()
    groups: list[Group] = []
    # From the end, so that of two convolutions that meet in an addition the later one takes it.
    for op in reversed(program.operations):
        users = readers[op.output]
        if len(users) != 1 or op.output in program.outputs or op.name in taken or users[0].name in taken:
            continue
        if _adds(program, op, users[0]) or float_planes(program, op, users[0]) is not None:
            taken |= {op.name, users[0].name}
            groups.append((op, users[0]))
    groups += [(op,) for op in program.operations if op.name not in taken]
    return sorted(groups, key=lambda group: position[group[-1].name])


def _adds(program: IntegerProgram, op: Operation, user: Operation) -> bool:
    if not isinstance(op, (Conv2d, Dense)) or not isinstance(user, Add) or user.inputs.count(op.output) != 1:
        return False
    same = all(program.tensors[n].shape == program.tensors[user.output].shape for n in user.inputs)
    return same and (user.rounding == "exact_half_up" or user.inputs[0] == op.output)


def _calls(c: Context, group: Group) -> list[Call]:
    op, last = group[0], group[-1]
    ins, out = c.program.input_tensors(op), c.program.output_tensor(op)
    if isinstance(op, FloatOp):
        raise Unsupported(f"float operation {op.kind!r} ({op.reason})" if op.reason else f"float operation {op.kind!r}")
    for edge in group:
        if isinstance(edge, (Quantize, Dequantize)):
            name = edge.output if isinstance(edge, Quantize) else edge.inputs[0]
            planes = float_planes(c.program, op, last) if len(group) == 2 else None
            return [descriptors.boundary(edge, c.program.tensors[name], op.inputs[0], planes)]
    if type(op) in descriptors.MATRIX:
        fused = last if isinstance(last, Add) else None
        return [descriptors.MATRIX[type(op)](c, op, ins, out, fused)]
    if type(op) not in descriptors.CALLS:
        raise Unsupported("no kernel of that kind")
    calls = descriptors.CALLS[type(op)](c, op, ins, out)
    return calls if isinstance(calls, list) else [calls]


# ------------------------------------------------------------------------------------------------- memory
class _Memory:
    """Which tensors share a buffer: every name stands for itself or for another."""

    def __init__(self, program: IntegerProgram) -> None:
        self._program = program
        self._base: dict[str, str] = {}
        self._outputs: dict[str, int] = {}

    def base(self, name: str) -> str:
        while name in self._base:
            name = self._base[name]
        return name

    def is_view(self, op: Operation) -> bool:
        """Whether the operation needs no code; its result is then another name of its input."""
        if isinstance(op, Reshape) or (isinstance(op, Transpose) and keeps_order(self._program, op)):
            self._base[op.output] = op.inputs[0]
            return True
        return False

    def _outside(self, base: str) -> bool:
        return base in self._program.inputs or base in self._program.constants or base in self._outputs

    def outputs(self, steps: list[Step]) -> list[Step]:
        """Decide where the program's outputs are written: by their kernels if possible, by a copy otherwise."""
        extra = []
        for i, name in enumerate(self._program.outputs):
            base, tensor = self.base(name), self._program.tensors[name]
            if not self._outside(base):
                self._outputs[base] = i
                continue
            size = np.dtype(tensor.dtype).itemsize
            call = descriptors.copy((tensor.elements,), [1], [1], size, name)
            copied = f"{name}:output{i}"
            self._outputs[copied] = i
            extra.append(Step(f"output{i}", call, copied, ()))
        return extra

    def _bytes(self, base: str) -> int:
        return self._program.tensors[base].bytes

    def reuse_in_place(self, steps: list[Step]) -> None:
        """Give a step's output the memory of an input that nobody reads afterwards, where its kernel allows it."""
        last_use = {self.base(n): i for i, s in enumerate(steps) for n in s.call.inputs}
        for i, step in enumerate(steps):
            target = self.base(step.output)
            for candidate in step.call.in_place:
                if candidate >= len(step.call.inputs) or self._outside(target):
                    continue
                source = self.base(step.call.inputs[candidate])
                others = [self.base(n) for j, n in enumerate(step.call.inputs) if j not in step.call.in_place]
                if (
                    source != target and not self._outside(source) and source not in others
                    and last_use[source] == i and self._bytes(source) == self._bytes(target)
                ):  # fmt: skip
                    self._base[target] = source
                    last_use[source] = max(i, last_use.get(target, i))
                    break

    def plan(self, steps: tuple[Step, ...], arrays: Arrays) -> Lowered:
        first: dict[str, int] = {}
        last: dict[str, int] = {}
        names = {n for s in steps for n in (*s.call.inputs, s.output)}
        for i, step in enumerate(steps):
            for name in (*step.call.inputs, step.output):
                if not self._outside(base := self.base(name)):
                    first.setdefault(base, i)
                    last[base] = i
        buffers = [Buffer(n, self._bytes(n), first[n], last[n]) for n in first]
        for i, step in enumerate(steps):
            if step.call.scratch_bytes:
                buffers.append(Buffer(f"{i}:scratch", step.call.scratch_bytes, i, i))
        plan = plan_memory(buffers, ALIGNMENT)
        place: dict[str, tuple[str, int] | Name] = {}
        for name in sorted(names):
            base = self.base(name)
            if base in self._outputs:
                place[name] = ("outputs", self._outputs[base])
            elif base in self._program.inputs:
                place[name] = ("inputs", self._program.inputs.index(base))
            elif base in self._program.constants:
                value = self._program.constants[base]
                place[name] = arrays.add(f"constant_{identifier(base)}", value, value.dtype)
            else:
                place[name] = ("arena", plan.offsets[base])
        live = tuple(sum(b.size for b in buffers if b.first <= i <= b.last) for i in range(len(steps)))
        scratch = tuple(plan.offsets.get(f"{i}:scratch") for i in range(len(steps)))
        return Lowered(steps, place, scratch, live, plan, arrays)
