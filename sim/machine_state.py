"""The memories of a running machine: bytes, and for each byte whether anything has written it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from qcompiler.sim.errors import ProgramError

if TYPE_CHECKING:
    from qcompiler.sim.hardware import Machine
    from qcompiler.sim.isa.base import Instruction, Space

Array = npt.NDArray[Any]


class Memory:
    """A byte-addressed memory that knows which of its bytes were written.

    Strided accesses are given as a shape and byte strides (any sign, zero repeats). An access outside the memory,
    or a read of a byte that nothing wrote, raises ProgramError with the instruction, the memory and the address.
    """

    tracks = False  # whether `observe` wants to know what windows read (sim.races)

    def __init__(self, name: str, size: int, read_only: bool = False) -> None:
        self.name, self.size, self.read_only = name, size, read_only
        self.values: Array = np.zeros(size, dtype=np.int8)
        self.known: Array = np.zeros(size, dtype=bool)

    def _check_range(self, ins: Instruction, address: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
        spans = [(n - 1) * s for n, s in zip(shape, strides, strict=True)]
        low, high = address + sum(min(s, 0) for s in spans), address + sum(max(s, 0) for s in spans)
        if low < 0 or high >= self.size:
            raise ProgramError(
                f"{ins.mnemonic}: touches bytes {low}..{high} of the {self.name} memory, which has {self.size}"
            )

    def _view(self, plane: Array, address: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> Array:
        # np.ndarray checks the strides against the buffer once more, and is four times faster than as_strided.
        return np.ndarray(shape, plane.dtype, plane, address, strides)  # type: ignore[call-overload]

    def peek(
        self, ins: Instruction, address: int, shape: tuple[int, ...], strides: tuple[int, ...]
    ) -> tuple[Array, Array]:
        """``(values int8, known bool)`` views of a strided access; only the range is checked."""
        self._check_range(ins, address, shape, strides)
        return self._view(self.values, address, shape, strides), self._view(self.known, address, shape, strides)

    def read(self, ins: Instruction, address: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> Array:
        """The int8 values of a strided access (a view)."""
        values, known = self.peek(ins, address, shape, strides)
        if not known.all():
            where = np.argwhere(~known)[0]
            first = address + int((where * np.array(strides)).sum())
            raise ProgramError(f"{ins.mnemonic}: reads byte {first} of the {self.name} memory, which nothing wrote")
        return values

    def read_as(self, ins: Instruction, address: int, count: int, dtype: str) -> Array:
        """`count` consecutive little-endian numbers."""
        item = np.dtype(dtype).itemsize
        raw = self.read(ins, address, (count * item,), (1,))
        return np.ascontiguousarray(raw).view(np.dtype(dtype).newbyteorder("<"))

    def observe(self, addresses: Array) -> None:
        """A window read these bytes; called where `tracks` is set."""

    def write(self, ins: Instruction, address: int, strides: tuple[int, ...], values: Array) -> None:
        """Store int8 `values` at a strided position."""
        if self.read_only:
            raise ProgramError(f"{ins.mnemonic}: writes the {self.name} memory, which is read only")
        self._check_range(ins, address, values.shape, strides)
        self._view(self.values, address, values.shape, strides)[...] = values
        self._view(self.known, address, values.shape, strides)[...] = True

    def preload(self, address: int, data: bytes | Array) -> None:
        """Put bytes there before the run (constants, inputs)."""
        raw = np.frombuffer(data if isinstance(data, bytes) else np.ascontiguousarray(data).tobytes(), dtype=np.int8)
        self.values[address : address + raw.size] = raw
        self.known[address : address + raw.size] = True


class MachineState:
    """All memories of one machine: five byte-addressed spaces and the accumulators.

    accumulators: int32 [rows, columns of the array]; accumulators_known says which of them hold a value.
    """

    memories: list[Memory]

    def __init__(self, machine: Machine, main_bytes: int, constants: bytes) -> None:
        self.machine = machine
        self.memories = [
            Memory("main", main_bytes),
            Memory("constant", len(constants), read_only=True),
            Memory("activation", machine.activation_memory.size_bytes),
            Memory("weight", machine.weight_memory.size_bytes),
            Memory("parameter", machine.vector.parameter_bytes),
        ]
        self.memories[1].preload(0, constants)
        shape = (machine.matrix.accumulator_rows, machine.matrix.columns)
        self.accumulators: Array = np.zeros(shape, dtype=np.int32)
        self.accumulators_known: Array = np.zeros(shape, dtype=bool)

    def memory(self, space: Space) -> Memory:
        return self.memories[space]

    def read_accumulators(self, ins: Instruction, row: int, rows: int, columns: int) -> Array:
        """int32 [rows, columns] from accumulator row `row` on."""
        self._check_accumulators(ins, row, rows, columns)
        if not self.accumulators_known[row : row + rows, :columns].all():
            raise ProgramError(f"{ins.mnemonic}: reads accumulators {row}..{row + rows - 1} that nothing wrote")
        return self.accumulators[row : row + rows, :columns]

    def write_accumulators(self, ins: Instruction, row: int, values: Array) -> None:
        """Store int64 sums [rows, columns]; a sum beyond int32 raises ProgramError."""
        self._check_accumulators(ins, row, *values.shape)
        low, high = int(values.min()), int(values.max())
        if low < -(2**31) or high >= 2**31:
            worst = low if low < -(2**31) else high
            raise ProgramError(f"{ins.mnemonic}: an accumulator overflows int32 with {worst}")
        self.accumulators[row : row + values.shape[0], : values.shape[1]] = values
        self.accumulators_known[row : row + values.shape[0], : values.shape[1]] = True

    def _check_accumulators(self, ins: Instruction, row: int, rows: int, columns: int) -> None:
        have_rows, have_columns = self.accumulators.shape
        if row + rows > have_rows or columns > have_columns:
            raise ProgramError(
                f"{ins.mnemonic}: uses accumulators [{row}..{row + rows - 1}, {columns} columns] of "
                f"[{have_rows}, {have_columns}]"
            )
