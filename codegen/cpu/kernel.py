"""What a kernel is: one TIR function over a range of independent tasks, its constants and its scratch memory.

An operation (or a fused group of operations, `Group`) lowers to one or more `Step`s; a step calls one `Kernel`.
A kernel does not know about threads: the C driver hands each thread a range of the tasks.

**The function.** ``template(isa, **parameters)`` returns a scheduled ``PrimFunc`` whose parameters are, in order:
the buffers read (as in `Step.inputs`), the constants (as in `Kernel.constants`), a uint8 buffer of `scratch_bytes`
(only when that is not zero; private to the calling thread, contents undefined), the output buffer, and the int32
scalars ``task_begin`` and ``task_end``. It computes the tasks task_begin <= t < task_end of 0..tasks-1; two tasks never
write the same byte. Buffers are contiguous in C order and start on a 64-byte boundary, except that the
program's own inputs and outputs are aligned to their element only (see `Kernel.boundary`). Except from the caller's
memory, a kernel may load up to 63 bytes past a buffer's end; what it finds there never reaches a result.

**Storage.** An int8 activation is stored as `isa.storage` says: on x86 as uint8 holding value + 128 (what VPDPBUSD
multiplies), elsewhere as int8. The other dtypes are stored as they are. Only the code generator knows this; the ABI
and the integer program speak int8.

**Sharing.** `template` is a module-level function and `parameters` are hashable, so that equal (template, parameters)
mean equal code: it is scheduled and compiled once, whatever the number of steps that call it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from qcompiler.sim.integer_program import Operation, Tensor

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Kernel:
    """See the module's text. `name` is the family, for people and symbols: "conv2d", "depthwise", "table"."""

    name: str
    template: Callable[..., Any]
    parameters: Mapping[str, Hashable]
    tasks: int
    constants: tuple[Array, ...] = ()
    scratch_bytes: int = 0
    boundary: bool = False
    """The kernel may read or write the caller's memory, aligned to its element only: no wider alignment assumed."""
    in_place: tuple[int, ...] = ()
    """The inputs whose memory the output may take: each element is read before the same place is written."""

    extended: bool = False
    """The kernel uses what its level adds to the level's base (`InstructionSet.base`)."""

    @property
    def key(self) -> tuple[Hashable, ...]:
        """Equal keys mean equal machine code for one instruction set."""
        template = f"{self.template.__module__}.{self.template.__qualname__}"
        return (template, tuple(sorted(self.parameters.items(), key=lambda item: item[0])))


@dataclass(frozen=True, eq=False)
class Step:
    """One kernel call. inputs: the tensors read; output: the tensor written and its size in bytes as stored.

    A name that is no tensor of the program is a temporary between the steps of one group: prefix it with the
    group's output name. operations: the names of the program's operations that this step completes.
    """

    kernel: Kernel
    inputs: tuple[str, ...]
    output: str
    output_bytes: int
    operations: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Group:
    """Operations computed together: a root (Conv2d, Dense, MatMul) and what is fused behind it, in order.

    Each later operation (Add, Mul, Table) reads the result of the one before, which nothing else reads, plus at
    most one other tensor of exactly the result's shape; the two may stand in either order in its `inputs`. Every
    intermediate is an int8 value of the program, requantised and clamped as the program says: fusing changes no
    value.
    """

    operations: tuple[Operation, ...]
    tensors: Mapping[str, Tensor]

    @property
    def root(self) -> Operation:
        return self.operations[0]

    @property
    def output(self) -> Tensor:
        return self.tensors[self.operations[-1].output]

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The tensors read from outside: the root's, then the other operand of each later operation, in order."""
        inside = {op.output for op in self.operations}
        return tuple(self.tensors[n] for op in self.operations for n in op.inputs if n not in inside)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(op.name for op in self.operations)

    def step(self, kernel: Kernel) -> Step:
        """The one step of a group that needs no temporary."""
        output = self.output
        return Step(kernel, tuple(t.name for t in self.inputs), output.name, output.bytes, self.names)


def stored(values: Array, storage: str) -> Array:
    """int8 values as they lie in memory: value + 128 as uint8 where `storage` is "uint8"; other dtypes unchanged."""
    if values.dtype == np.int8 and storage == "uint8":
        return (values.view(np.uint8) ^ np.uint8(128)).reshape(values.shape)
    return values
