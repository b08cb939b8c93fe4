"""IntegerProgram to kernel calls and the memory that they share, for one instruction set.

Three kinds of work vanish here. Operations behind matrix work are fused into its kernel (`fuse`); a Reshape, and a
Concat along an axis that nothing lies outside of, become views of one buffer (`_Memory`); a Transpose at the float
boundary is done by the Quantize or Dequantize beside it. No value of the program changes by any of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from qcompiler.codegen.cpu import elementwise, movement, normalize, reduce
from qcompiler.codegen.cpu.contraction import NO_BORDER, Border
from qcompiler.codegen.cpu.conv import conv2d, wanted_border, writes_border
from qcompiler.codegen.cpu.epilogue import fusable
from qcompiler.codegen.cpu.float_ops import float_kernel
from qcompiler.codegen.cpu.gemm import dense, matmul
from qcompiler.codegen.cpu.isa.base import VectorInstructionSet
from qcompiler.codegen.cpu.kernel import Array, Group, Kernel, Step, stored
from qcompiler.codegen.cpu.loops import collapse, strides_of
from qcompiler.codegen.cpu.pad import padded_shape
from qcompiler.codegen.cpu.quantize import is_image, quantize_kernel
from qcompiler.sim.integer_program import (
    Add,
    AveragePool2d,
    Concat,
    Conv2d,
    Dense,
    Dequantize,
    Embedding,
    FloatOp,
    Gather,
    IntegerProgram,
    LayerNorm,
    MatMul,
    MaxPool2d,
    Mean,
    Mul,
    Operation,
    Quantize,
    Reshape,
    ResizeLinear,
    Softmax,
    Table,
    Tensor,
    Transpose,
)

MATRIX = (Conv2d, Dense, MatMul)
ALIGNMENT = 64
Planes = tuple[int, int, int]


@dataclass(frozen=True)
class View:
    """A place in memory: `offset` bytes into the buffer named `base`."""

    base: str
    offset: int = 0


@dataclass(frozen=True, eq=False)
class Lowered:
    """The program for one instruction set.

    steps: kernel calls in order. views: every tensor name of the steps to its place. arena: bytes of the buffers that
    need working memory; the other bases are the caller's (`input_names`, `output_names`, by position) and
    `constants`, in stored form.
    """

    steps: tuple[Step, ...]
    views: Mapping[str, View]
    arena: Mapping[str, int]
    constants: Mapping[str, Array]
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]


def lower(program: IntegerProgram, isa: VectorInstructionSet) -> Lowered:
    """Choose kernels and fuse. Raises TargetError for an operation that the target has no code for."""
    steps: list[Step] = []
    memory = _Memory(program)
    renamed: dict[str, str] = {}  # int8 inputs, whose stored form is another buffer
    for name in program.inputs:
        tensor = program.tensors[name]
        if tensor.dtype == "int8":
            renamed[name] = f"{name}:stored"
            kernel = elementwise.convert_kernel(tensor)
            steps.append(Step(kernel, (name,), renamed[name], tensor.bytes))
    groups = fuse(program)
    borders = _borders(program, groups)
    walks = _transposed_operands(program, groups)
    for group in groups:
        if group[-1].output in walks:
            memory.alias(group[0], renamed)
            continue
        if memory.is_view(group[0], renamed):
            continue
        for step in _steps(program, group, isa, borders, walks):
            inputs = tuple(renamed.get(n, n) for n in step.inputs)
            steps.append(Step(step.kernel, inputs, step.output, step.output_bytes, step.operations))
    steps += memory.outputs(steps, renamed, isa)
    memory.reuse_in_place(steps)
    constants = {n: stored(v, isa.storage) for n, v in program.constants.items()}
    return Lowered(
        tuple(steps), memory.views(steps), memory.arena(steps), constants, program.inputs, memory.output_names
    )


# ------------------------------------------------------------------------------------------------- fusion
def fuse(program: IntegerProgram) -> list[tuple[Operation, ...]]:
    """The operations in groups, in execution order: a group runs where its last operation stands."""
    readers = program.consumers()
    position = {op.name: i for i, op in enumerate(program.operations)}
    taken: set[str] = set()
    groups: list[tuple[Operation, ...]] = []

    def only_reader(name: str) -> Operation | None:
        """The one operation that reads a tensor, once, and that is free to join a group."""
        users = readers[name]
        if len(users) != 1 or name in program.outputs or users[0].inputs.count(name) != 1 or users[0].name in taken:
            return None
        return users[0]

    # From the end, so that of two convolutions that meet in an addition the later one takes it.
    for op in reversed(program.operations):
        group = [op]
        if isinstance(op, MATRIX):
            while (user := only_reader(group[-1].output)) is not None and fusable(user, program.tensors):
                group.append(user)
        elif isinstance(op, (Quantize, Transpose, Dequantize)) and op.name not in taken:
            user = only_reader(op.output)
            if user is not None and float_planes(program, op, user) is not None:
                group.append(user)
        if len(group) > 1:
            taken.update(o.name for o in group)
            groups.append(tuple(group))
    groups += [(op,) for op in program.operations if op.name not in taken]
    return sorted(groups, key=lambda group: position[group[-1].name])


def float_planes(program: IntegerProgram, first: Operation, second: Operation) -> Planes | None:
    """(rows, channels, columns) when the two are a boundary conversion and a swap of the last two (merged) axes.

    The order is that of the float side: [rows, channels, columns] beside [rows, columns, channels] of the int8.
    """
    kinds = {type(first), type(second)}
    if kinds not in ({Transpose, Quantize}, {Transpose, Dequantize}):
        return None
    transpose = first if isinstance(first, Transpose) else second
    assert isinstance(transpose, Transpose)
    source, result = program.tensors[transpose.inputs[0]].shape, program.tensors[transpose.output].shape
    steps = strides_of(source)
    extents, (walk,) = collapse(result, [[steps[p] for p in transpose.permutation]])
    if len(extents) == 2:
        extents, walk = [1, *extents], [math.prod(extents), *walk]
    if len(extents) != 3 or walk != [extents[1] * extents[2], 1, extents[1]]:
        return None
    rows, middle, last = extents
    return (rows, last, middle) if Quantize in kinds else (rows, middle, last)


# ---------------------------------------------------------------------------------------------- operations
def _borders(program: IntegerProgram, groups: list[tuple[Operation, ...]]) -> dict[str, Border]:
    """The results that their kernels write with the border that the convolutions behind them want."""
    readers = program.consumers()
    writers = {g[-1].output for g in groups if writes_border(g[0]) or _writes_image(program, g)}
    wanted = {name: wanted_border(readers[name]) for name in writers.difference(program.outputs)}
    return {name: border for name, border in wanted.items() if any(border)}


def _writes_image(program: IntegerProgram, group: tuple[Operation, ...]) -> bool:
    planes = float_planes(program, group[0], group[-1]) if len(group) == 2 else None
    quantizes = any(isinstance(op, Quantize) for op in group)
    return quantizes and planes is not None and is_image(program.output_tensor(group[-1]), planes)


def _transposed_operands(program: IntegerProgram, groups: list[tuple[Operation, ...]]) -> dict[str, list[int]]:
    """Transposes that only the packing of right-hand sides reads, to the strides with which it walks their input."""
    readers = program.consumers()
    found = {}
    for group in groups:
        op = group[0]
        if not isinstance(op, Transpose) or len(group) > 1 or op.output in program.outputs:
            continue
        source, rank = program.tensors[op.inputs[0]], len(op.permutation)
        packed = all(isinstance(r, MatMul) and r.inputs[0] != op.output for r in readers[op.output])
        if packed and op.permutation[-1] == rank - 1 and source.dtype == "int8":
            steps = strides_of(source.shape)
            found[op.output] = [steps[p] for p in op.permutation]
    return found


def _steps(
    program: IntegerProgram, group: tuple[Operation, ...], isa: VectorInstructionSet, borders: Mapping[str, Border],
    walks: Mapping[str, list[int]],
) -> list[Step]:  # fmt: skip
    op, last = group[0], group[-1]
    if isinstance(op, Conv2d):
        border = borders.get(last.output, NO_BORDER)
        return conv2d(Group(group, program.tensors), isa, op.inputs[0] in borders, border)
    if isinstance(op, MatMul):
        return matmul(Group(group, program.tensors), isa, walks.get(op.inputs[1]))
    if isinstance(op, Dense):
        return dense(Group(group, program.tensors), isa)
    out = program.output_tensor(last)
    names = tuple(o.name for o in group)
    if any(isinstance(o, Quantize) for o in group):
        border = borders.get(out.name, NO_BORDER)
        planes = float_planes(program, op, last) if len(group) == 2 else None
        quantizing = quantize_kernel(program.input_tensors(op)[0], out, isa, planes, border)
        size = math.prod(padded_shape(out.shape, border)) if any(border) else out.bytes
        return [Step(quantizing, op.inputs, out.name, size, names)]
    kernel = _kernel(program, group, isa)
    inputs = tuple(dict.fromkeys(op.inputs)) if isinstance(op, Concat) else op.inputs
    return [Step(kernel, inputs, out.name, out.bytes, names)]


def _kernel(program: IntegerProgram, group: tuple[Operation, ...], isa: VectorInstructionSet) -> Kernel:
    op, last = group[0], group[-1]
    ins, out = program.input_tensors(op), program.output_tensor(op)
    planes = float_planes(program, op, last) if len(group) == 2 else None
    for boundary in group:
        if isinstance(boundary, Dequantize):
            return elementwise.dequantize_kernel(program.input_tensors(boundary)[0], isa, planes)
    if isinstance(op, Add):
        return elementwise.add_kernel(op, ins[0], ins[1], out, isa)
    if isinstance(op, Mul):
        return elementwise.mul_kernel(op, ins[0], ins[1], out, isa)
    if isinstance(op, Table):
        return elementwise.table_kernel(op, ins[0], isa)
    if isinstance(op, MaxPool2d):
        return reduce.max_pool_kernel(op, ins[0], out, isa)
    if isinstance(op, AveragePool2d):
        return reduce.average_pool_kernel(op, ins[0], out, isa)
    if isinstance(op, Mean):
        return reduce.mean_kernel(op, ins[0], out, isa)
    if isinstance(op, ResizeLinear):
        return reduce.resize_linear_kernel(op, ins[0], out, isa)
    if isinstance(op, Softmax):
        return normalize.softmax_kernel(op, ins[0], isa)
    if isinstance(op, LayerNorm):
        return normalize.layer_norm_kernel(op, ins[0], isa)
    if isinstance(op, Gather):
        return movement.gather_kernel(op, ins[0], isa)
    if isinstance(op, Embedding):
        return movement.embedding_kernel(op, ins[0], ins[1], isa)
    if isinstance(op, Concat):
        return movement.concat_kernel(op, ins, isa)
    if isinstance(op, Transpose):
        return movement.transpose_kernel(op, ins[0], out, isa)
    if isinstance(op, FloatOp):
        return float_kernel(op, ins, out, isa)
    raise NotImplementedError(f"no kernel for {type(op).__name__}")


# --------------------------------------------------------------------------------------------------- views
class _Memory:
    """Which names share a buffer: a forest of views, each name standing at an offset in its parent."""

    def __init__(self, program: IntegerProgram) -> None:
        self._program = program
        self._parent: dict[str, View] = {}
        self._fixed = {*program.inputs, *program.constants}
        self.output_names: tuple[str, ...] = ()

    def _place(self, name: str) -> View:
        offset = 0
        while name in self._parent:
            view = self._parent[name]
            name, offset = view.base, offset + view.offset
        return View(name, offset)

    def alias(self, op: Operation, renamed: Mapping[str, str]) -> None:
        """The operation's output is its input's memory."""
        source = op.inputs[0]
        self._parent[op.output] = View(renamed.get(source, source))

    def is_view(self, op: Operation, renamed: Mapping[str, str]) -> bool:
        """Whether the operation needs no code; registers the view if so."""
        if isinstance(op, Reshape) or (isinstance(op, Transpose) and keeps_order(self._program, op)):
            self.alias(op, renamed)
            return True
        return isinstance(op, Concat) and self._join(op, renamed)

    def _join(self, op: Concat, renamed: Mapping[str, str]) -> bool:
        """Let the producers of a Concat write straight into it. Not for memory that something else decides."""
        tensors = self._program.input_tensors(op)
        if math.prod(tensors[0].shape[: op.axis]) != 1:
            return False
        names = [renamed.get(n, n) for n in op.inputs]
        places = [self._place(n) for n in names]
        offsets = [sum(t.bytes for t in tensors[:i]) for i in range(len(tensors))]
        bases = [p.base for p in places]
        if (
            len(set(bases)) != len(bases)
            or any(b in self._fixed for b in bases)
            or any(p.offset for p in places)
            or any(offset % ALIGNMENT for offset in offsets)
            or any(n in self._program.outputs for n in op.inputs)
            or any(self._bytes(b) != t.bytes for b, t in zip(bases, tensors, strict=True))
        ):
            return False
        for base, offset in zip(bases, offsets, strict=True):
            self._parent[base] = View(op.output, offset)
        return True

    def _bytes(self, name: str) -> int:
        name = name.removesuffix(":stored")
        return self._program.tensors[name].bytes if name in self._program.tensors else -1

    def outputs(self, steps: list[Step], renamed: Mapping[str, str], isa: VectorInstructionSet) -> list[Step]:
        """Decide where the program's outputs are written; returns the conversions and copies that this needs."""
        extra: list[Step] = []
        names: list[str] = []
        writer = {s.output: s for s in steps}
        for i, name in enumerate(self._program.outputs):
            tensor = self._program.tensors[name]
            source = renamed.get(name, name)
            place = self._place(source)
            direct = (
                tensor.dtype != "int8" and place.offset == 0 and place.base not in self._fixed
                and place.base not in names and place.base in writer and writer[place.base].kernel.boundary
                and self._bytes(place.base) == tensor.bytes
            )  # fmt: skip
            if direct:
                names.append(place.base)
                continue
            target = f"{name}:output{i}"
            if tensor.dtype == "int8" and name not in renamed:
                kernel = elementwise.convert_kernel(tensor)
            else:  # an int8 input that is an output too is copied as it came
                kernel, source = movement.copy_kernel(tensor, isa), name
            extra.append(Step(kernel, (source,), target, tensor.bytes))
            names.append(target)
        self.output_names = tuple(names)
        return extra

    def reuse_in_place(self, steps: list[Step]) -> None:
        """Give a step's output the memory of an input that nobody reads afterwards, where its kernel allows it."""
        last_use = {self._place(n).base: i for i, s in enumerate(steps) for n in s.inputs}
        private = self._fixed.union(self.output_names)
        for i, step in enumerate(steps):
            place = self._place(step.output)
            for candidate in step.kernel.in_place:
                source = self._place(step.inputs[candidate])
                others = [self._place(n) for j, n in enumerate(step.inputs) if j not in step.kernel.in_place]
                if (
                    source.base != place.base and source.offset == 0 and place.offset == 0
                    and all(o.base != source.base for o in others)
                    and step.output not in self._parent and not {source.base, place.base} & private
                    and last_use[source.base] == i and self._extent(source.base, steps) == step.output_bytes
                ):  # fmt: skip
                    self._parent[place.base] = View(source.base)
                    last_use[source.base] = max(i, last_use.get(place.base, i))
                    break

    def _extent(self, base: str, steps: list[Step]) -> int:
        """Bytes of a buffer: up to the end of the last thing that is placed in it."""
        ends = [p.offset + s.output_bytes for s in steps if (p := self._place(s.output)).base == base]
        return max(ends, default=0)

    def views(self, steps: list[Step]) -> dict[str, View]:
        return {n: self._place(n) for s in steps for n in (*s.inputs, s.output)}

    def arena(self, steps: list[Step]) -> dict[str, int]:
        sizes: dict[str, int] = {}
        outside = self._fixed.union(self.output_names)
        for step in steps:
            place = self._place(step.output)
            if place.base not in outside:
                sizes[place.base] = max(sizes.get(place.base, 0), place.offset + step.output_bytes)
        return sizes


def keeps_order(program: IntegerProgram, op: Transpose) -> bool:
    """Only axes of extent 1 move: the same elements in the same order."""
    shape: Tensor = program.tensors[op.inputs[0]]
    moved = [p for p in op.permutation if shape.shape[p] != 1]
    return moved == sorted(moved)
