"""Small rewrites of a finished integer program that change no value: what import and layout left behind.

- a transpose that only moves axes of extent 1 is a reshape; reshapes of reshapes are one, or none;
- a transpose in front of a matmul's second operand becomes the matmul's transpose_b;
- operations, tensors and constants that no output needs are dropped.
"""

from __future__ import annotations

from dataclasses import replace

from qcompiler.sim.integer_program import IntegerProgram, MatMul, Operation, Reshape, Shape, Transpose


def tidy(program: IntegerProgram) -> IntegerProgram:
    """The simplified program; outputs and their values are the same."""
    return drop_dead(_without_copies(_reshapes(_transposed_operands(program))))


def drop_dead(program: IntegerProgram) -> IntegerProgram:
    """Without the operations, tensors and constants that no output depends on. Inputs stay."""
    needed = set(program.outputs)
    operations: list[Operation] = []
    for op in reversed(program.operations):
        if op.output in needed:
            needed.update(op.inputs)
            operations.append(op)
    needed.update(program.inputs)
    tensors = {n: t for n, t in program.tensors.items() if n in needed}
    constants = {n: v for n, v in program.constants.items() if n in needed}
    return program.replace(operations=tuple(reversed(operations)), tensors=tensors, constants=constants)


def _keeps_order(shape: Shape, permutation: tuple[int, ...]) -> bool:
    """The transpose moves axes of extent 1 only, so that the elements stay in order."""
    moved = [p for p in permutation if shape[p] != 1]
    return moved == sorted(moved)


def _reshapes(program: IntegerProgram) -> IntegerProgram:
    origin: dict[str, str] = {}  # output of a reshape to what it reshapes
    operations = []
    for op in program.operations:
        out = program.tensors[op.output]
        if isinstance(op, Transpose) and _keeps_order(program.tensors[op.inputs[0]].shape, op.permutation):
            op = Reshape(op.name, op.inputs, op.output, out.shape)
        if isinstance(op, Reshape):
            op = replace(op, inputs=(origin.get(op.inputs[0], op.inputs[0]),))
            origin[op.output] = op.inputs[0]
        operations.append(op)
    return program.replace(operations=tuple(operations))


def _without_copies(program: IntegerProgram) -> IntegerProgram:
    """Readers of a reshape that keeps the shape read its source; outputs keep theirs."""
    source: dict[str, str] = {}
    operations = []
    for op in program.operations:
        op = replace(op, inputs=tuple(source.get(n, n) for n in op.inputs))
        same = isinstance(op, Reshape) and op.shape == program.tensors[op.inputs[0]].shape
        if same and op.output not in program.outputs:
            source[op.output] = op.inputs[0]
        operations.append(op)
    return program.replace(operations=tuple(operations))


def _transposed_operands(program: IntegerProgram) -> IntegerProgram:
    """``matmul(a, transpose(b))`` reads rows of b where the transpose's last axis is not b's."""
    consumers, producers = program.consumers(), program.producers()
    replaced: dict[str, Operation] = {}
    tensors = dict(program.tensors)
    for op in program.operations:
        if not isinstance(op, MatMul) or op.transpose_b or op.inputs[0] == op.inputs[1]:
            continue
        transpose = producers.get(op.inputs[1])
        if not isinstance(transpose, Transpose) or len(consumers[op.inputs[1]]) != 1:
            continue
        if op.inputs[1] in program.outputs or transpose.permutation[-2] != len(transpose.permutation) - 1:
            continue
        *outer, rows, columns = transpose.permutation
        out = tensors[transpose.output]
        *extents, height, width = out.shape
        tensors[out.name] = replace(out, shape=(*extents, width, height))
        replaced[transpose.name] = replace(transpose, permutation=(*outer, columns, rows))
        replaced[op.name] = replace(op, transpose_b=True)
    operations = [replaced.get(op.name, op) for op in program.operations]
    return program.replace(operations=tuple(operations), tensors=tensors)
