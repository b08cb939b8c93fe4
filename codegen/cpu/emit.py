"""Writes TIR statement by statement: loops, vector loads and stores, registers as named values.

A template is Python that emits exactly the loop nest and the vector operations wanted. That gives full control of
edges and of register tiles, where a schedule would have to be talked into both. Every buffer is flat; indices count
elements.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tvm import ir, tirx

EXPLICIT = "qcompiler.explicit"  # attribute of the functions that this module writes: nothing left to schedule

Expr = Any  # tirx expressions; TVM's Python classes carry no static types
Buffer = Any


def constant(value: int | float, dtype: str = "int32") -> Expr:
    return tirx.const(value, dtype)


def vector_type(dtype: str, lanes: int) -> str:
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def splat(value: int | float | Expr, dtype: str, lanes: int) -> Expr:
    """One scalar in every lane."""
    scalar = constant(value, dtype) if isinstance(value, (int, float)) else value
    return tirx.Broadcast(scalar, lanes) if lanes > 1 else scalar


def load(buffer: Buffer, index: Expr | int, lanes: int) -> Expr:
    """`lanes` consecutive elements from `index` on."""
    start = constant(index) if isinstance(index, int) else index
    return tirx.BufferLoad(buffer, [tirx.Ramp(start, constant(1), lanes) if lanes > 1 else start])


def bits(value: Expr, dtype: str) -> Expr:
    """The same bits read as another type of the same size."""
    return tirx.reinterpret(dtype, value)


def cast(value: Expr, dtype: str) -> Expr:
    return tirx.Cast(dtype, value)


def shuffle(vectors: Sequence[Expr], order: Sequence[int]) -> Expr:
    """The elements of the joined vectors in the given order; constant indices, so LLVM picks the instruction."""
    return tirx.Shuffle(list(vectors), [constant(int(i)) for i in order])


def unpack(a: Expr, b: Expr, width: int, high: bool, count: int) -> Expr:
    """Interleaves elements of `width` bytes of the low or high halves of each 128-bit block.

    a, b: vectors of `count` bytes. PUNPCKL/PUNPCKH on x86, ZIP1/ZIP2 on ARM.
    """
    order = []
    for block in range(0, count, 16):
        start = block + (8 if high else 0)
        for i in range(start, start + 8, width):
            order += [*range(i, i + width), *range(count + i, count + i + width)]
    return shuffle([a, b], order)


@functools.cache
def _intrinsic_id(name: str) -> int:
    from tvm.target import codegen

    number = int(codegen.llvm_lookup_intrinsic_id(name))
    if number == 0:
        raise ValueError(f"LLVM knows no intrinsic {name!r}")
    return number


def intrinsic(name: str, dtype: str, *arguments: Expr) -> Expr:
    """A call of an LLVM intrinsic without side effects."""
    return tirx.call_llvm_pure_intrin(dtype, constant(_intrinsic_id(name), "uint32"), *arguments)


class Registers:
    """Vectors held in a local array that is only indexed by constants, so that LLVM keeps them in registers."""

    def __init__(self, emitter: Emitter, count: int, dtype: str, name: str) -> None:
        self._emitter = emitter
        self._buffer = tirx.decl_buffer((count,), dtype, name=name, scope="local")
        emitter.statement(tirx.AllocBuffer(self._buffer))

    def __getitem__(self, index: int) -> Expr:
        return tirx.BufferLoad(self._buffer, [constant(index)])

    def __setitem__(self, index: int, value: Expr) -> None:
        self._emitter.statement(tirx.BufferStore(self._buffer, value, [constant(index)]))


class Emitter:
    """Collects the statements of one function."""

    def __init__(self) -> None:
        self._blocks: list[list[Any]] = [[]]
        self._names: dict[str, int] = {}
        self._parameters: list[Any] = []
        self._scalars: list[Any] = []
        self._imports: list[str] = []

    def _unique(self, name: str) -> str:
        count = self._names[name] = self._names.get(name, -1) + 1
        return f"{name}_{count}" if count else name

    def statement(self, statement: Any) -> None:
        self._blocks[-1].append(statement)

    def buffer(self, name: str, elements: int, dtype: str) -> Buffer:
        """The next parameter: a flat buffer."""
        buffer = tirx.decl_buffer((max(elements, 1),), dtype, name=name)
        self._parameters.append(buffer)
        return buffer

    def scalar(self, name: str) -> Expr:
        """The next parameter: an int32 from 0 to 2**30 - 1."""
        variable = tirx.Var(name, "int32")
        self._parameters.append(variable)
        self._scalars.append(variable)
        return variable

    def opaque(self, count: int) -> Expr:
        """`count` as LLVM cannot know it: a loop over it stays a loop. Needs a scalar parameter."""
        return tirx.bitwise_and(self._scalars[0], constant(1 << 30)) + count

    def bind(self, value: Expr, dtype: str, name: str = "v") -> Expr:
        """Compute a value once, here."""
        variable = tirx.Var(self._unique(name), dtype)
        self.statement(tirx.Bind(variable, value))
        return variable

    def bind_typed(self, value: Expr) -> Expr:
        """`bind` for a value whose type TVM knows already."""
        return self.bind(value, str(value.ty.dtype))

    def registers(self, count: int, dtype: str, name: str = "acc") -> Registers:
        return Registers(self, count, dtype, self._unique(name))

    def cell(self, buffer: Buffer, index: Expr) -> Expr:
        """Where the address of an element lies, for functions that count it on; LLVM keeps it in a register."""
        pointer = tirx.decl_buffer((1,), "uint64", name=self._unique("pointer"), scope="local")
        self.statement(tirx.AllocBuffer(pointer))
        address = tirx.reinterpret("uint64", tirx.address_of(tirx.BufferLoad(buffer, [index])))
        self.statement(tirx.BufferStore(pointer, address, [constant(0)]))
        return tirx.address_of(tirx.BufferLoad(pointer, [constant(0)]))

    def store(self, buffer: Buffer, index: Expr | int, value: Expr, lanes: int) -> None:
        start = constant(index) if isinstance(index, int) else index
        self.statement(tirx.BufferStore(buffer, value, [tirx.Ramp(start, constant(1), lanes) if lanes > 1 else start]))

    def prefetch(self, buffer: Buffer, index: Expr) -> None:
        """Ask for the cache line of an element in the second-level cache. The address may lie outside the buffer."""
        address = tirx.address_of(tirx.BufferLoad(buffer, [index]))
        read, second_level, data = constant(0), constant(2), constant(1)
        call = tirx.call_llvm_intrin("void", "llvm.prefetch", address, read, second_level, data)
        self.statement(tirx.Evaluate(call))

    def _close(self) -> Any:
        block = self._blocks.pop()
        if not block:
            return tirx.Evaluate(constant(0))
        return block[0] if len(block) == 1 else tirx.SeqStmt(block)

    @contextmanager
    def loop(self, extent: Expr | int, name: str = "i", begin: Expr | int = 0) -> Iterator[Expr]:
        """``for name in range(begin, begin + extent)``; an extent of the Python integer 1 makes no loop."""
        if isinstance(extent, int) and extent == 1:
            yield constant(begin) if isinstance(begin, int) else begin
            return
        variable = tirx.Var(self._unique(name), "int32")
        self._blocks.append([])
        yield variable
        body = self._close()
        start = constant(begin) if isinstance(begin, int) else begin
        count = constant(extent) if isinstance(extent, int) else extent
        self.statement(tirx.For(variable, start, count, tirx.ForKind.SERIAL, body))

    @contextmanager
    def when(self, condition: Expr | bool) -> Iterator[None]:
        """Statements under a condition; one that Python knows to hold needs no branch."""
        if condition is True:
            yield
            return
        self._blocks.append([])
        yield
        self.statement(tirx.IfThenElse(condition, self._close(), None))

    def call(self, source: str, name: str, dtype: str, *arguments: Expr) -> Expr:
        """A call of the function `name` that `source`, a module in LLVM's assembly language, defines; it is inlined.

        For what `intrinsic` cannot say: results of several registers, for instance.
        """
        if source not in self._imports:
            self._imports.append(source)
        return tirx.call_extern(dtype, name, *arguments)

    def function(self) -> Any:
        """The PrimFunc: parameters in the order of their declaration."""
        body = self._close()
        for source in self._imports:
            body = tirx.AttrStmt(constant(0), "pragma_import_llvm", ir.StringImm(source), body)
        function = tirx.PrimFunc(self._parameters, body)
        return function.with_attr("tirx.noalias", True).with_attr(EXPLICIT, True)
