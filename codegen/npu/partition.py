"""Which operations the accelerator runs: the integer middle of a program, between what the host does in float32.

The host quantises inputs and dequantises outputs, and changes their layout as it does; with host fallback it also
runs float operations that lie wholly before or wholly behind the integer work.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from qcompiler.sim.errors import TargetError
from qcompiler.sim.integer_program import Embedding, FloatOp, IntegerProgram, Operation, Reshape, Transpose

# What the host does on the way while it touches every value of an input or output anyway: NCHW to NHWC and back.
LAYOUT = (Transpose, Reshape)


@dataclass(frozen=True)
class Partition:
    """Three programs that follow each other by tensor name: host, accelerator, host. before and after may be empty."""

    before: IntegerProgram
    core: IntegerProgram
    after: IntegerProgram


def _is_host(program: IntegerProgram, op: Operation) -> bool:
    names = (op.inputs[0], op.output) if isinstance(op, Embedding) else (*op.inputs, op.output)
    return any(program.tensors[n].dtype != "int8" for n in names)


def partition(program: IntegerProgram, host_fallback: bool = False) -> Partition:
    """Split the program. Raises TargetError naming every operation that the accelerator cannot run."""
    host = [op for op in program.operations if _is_host(program, op)]
    floats = [op for op in host if isinstance(op, FloatOp)]
    if floats and not host_fallback:
        raise TargetError(_refusal(program, floats) + "\nfloat operations before or behind all integer work can run "
                          "on the host (--host-fallback); others need quantisation")  # fmt: skip
    written = {op.output for op in program.operations}
    early = {n for n in (*program.inputs, *program.constants) if n not in written}
    before: list[Operation] = []
    for op in program.operations:
        host_made = any(op.inputs[0] == b.output for b in before)
        if (_is_host(program, op) or (host_made and isinstance(op, LAYOUT))) and all(n in early for n in op.inputs):
            before.append(op)
            early.add(op.output)
    taken = {op.name for op in before}
    consumers = program.consumers()
    after: list[Operation] = []
    for op in reversed(program.operations):
        readers = consumers[op.output]
        hosted = _is_host(program, op) or (readers and isinstance(op, LAYOUT) and op.output not in program.outputs)
        if op.name not in taken and hosted and all(r.name in taken for r in readers):
            after.insert(0, op)
            taken.add(op.name)
    core = [op for op in program.operations if op.name not in taken]
    stuck = [op for op in core if _is_host(program, op)]
    if stuck:
        raise TargetError(_refusal(program, stuck) + "\nthey lie between integer operations")
    if not core:
        raise TargetError(f"program {program.name!r} has no integer operation that an accelerator could run")
    return Partition(*(_part(program, ops) for ops in (before, core, after)))


def _refusal(program: IntegerProgram, operations: Sequence[Operation]) -> str:
    lines = [f"the accelerator cannot run {len(operations)} operations of {program.name!r}:"]
    for op in operations:
        kind = f"float {op.kind}" if isinstance(op, FloatOp) else type(op).__name__
        reason = f": {op.reason}" if isinstance(op, FloatOp) and op.reason else ""
        lines.append(f"  {kind} {op.name!r}{reason}")
    return "\n".join(lines)


def _part(program: IntegerProgram, operations: list[Operation]) -> IntegerProgram:
    """The program of these operations: what they read from elsewhere comes in, what others need goes out."""
    own = {op.name for op in operations}
    written = {op.output for op in operations}
    read = dict.fromkeys(n for op in operations for n in op.inputs)
    inputs = tuple(n for n in read if n not in written and n not in program.constants)
    wanted = {n for op in program.operations if op.name not in own for n in op.inputs} | set(program.outputs)
    outputs = tuple(op.output for op in operations if op.output in wanted)
    names = dict.fromkeys((*read, *(op.output for op in operations)))
    return dataclasses.replace(
        program, inputs=inputs, outputs=outputs, tensors={n: program.tensors[n] for n in names},
        operations=tuple(operations), constants={n: v for n, v in program.constants.items() if n in read},
    )  # fmt: skip
