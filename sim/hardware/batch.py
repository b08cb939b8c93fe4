"""Many machines as arrays, one element a machine: what the cost model computes with.

All values are float64 that hold exact integers (below 2**52, so that sums, products, quotients rounded up and maxima
are exact too): NumPy divides floats several times faster than integers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from qcompiler.sim.hardware.machine import BANDWIDTH_STEPS, ExternalMemory, Machine

Floats = npt.NDArray[np.float64]
Index = Any  # whatever indexes the first axis


def ceil_div(a: Any, b: Any) -> Any:
    """Quotient rounded up, of exact integers below 2**52: the correctly rounded quotient never crosses an integer."""
    return np.ceil(a / b)


Arrays = TypeVar("Arrays", bound="_Arrays")


class _Arrays:
    @cached_property
    def _table(self) -> Floats:
        """All fields [F, ...], so that all are taken at once."""
        values = [getattr(self, f.name) for f in fields(self)]  # type: ignore[arg-type]
        return np.concatenate([v._table if isinstance(v, _Arrays) else v[None] for v in values], dtype=np.float64)

    def take(self: Arrays, index: Index) -> Arrays:
        """The machines of an index, in its order."""
        if isinstance(index, np.ndarray):
            return self._like(self._table.take(index, axis=1))  # rows stay in one piece
        return self._like(self._table[(slice(None), *index) if isinstance(index, tuple) else (slice(None), index)])

    def _like(self: Arrays, table: Floats) -> Arrays:
        """With these values, in the order of `_table`."""
        made, low = object.__new__(type(self)), 0
        for name, value in vars(self).items():
            if name == "_table":
                continue
            if isinstance(value, _Arrays):
                high = low + len(value._table)
                made.__dict__[name] = value._like(table[low:high])
            else:
                high = low + 1
                made.__dict__[name] = table[low] > 0 if value.dtype == bool else table[low]
            low = high
        made.__dict__["_table"] = table
        return made

    def shaped(self: Arrays, axes: int) -> Arrays:
        """With axes of length one behind that of the machines, to broadcast against tilings."""
        return self.take((slice(None), *(np.newaxis,) * (axes - 1)))


@dataclass(frozen=True, eq=False)
class Memories(_Arrays):
    """External memories; fields as in `ExternalMemory`, bandwidths in sixteenths of a byte a cycle."""

    read: Floats
    write: Floats
    latency: Floats
    burst_bytes: Floats
    outstanding: Floats
    size_bytes: Floats

    @classmethod
    def of(cls, memories: Sequence[ExternalMemory]) -> Memories:
        rows = [
            (
                round(m.read_bytes_per_cycle * BANDWIDTH_STEPS), round(m.write_bytes_per_cycle * BANDWIDTH_STEPS),
                m.latency_cycles, m.burst_bytes, m.outstanding_transfers, m.size_bytes,
            )
            for m in memories
        ]  # fmt: skip
        return cls(*np.array(rows, dtype=np.float64).reshape(-1, 6).T.copy())

    def moved(self, runs: Any, run_bytes: Any) -> Any:
        """Bytes moved for `runs` runs of consecutive bytes: whole bursts."""
        return runs * (ceil_div(run_bytes, self.burst_bytes) * self.burst_bytes)

    def read_cycles(self, moved: Any) -> Any:
        """Cycles of the read channel."""
        return ceil_div(moved * BANDWIDTH_STEPS, self.read)

    def write_cycles(self, moved: Any) -> Any:
        """Cycles of the write channel."""
        return ceil_div(moved * BANDWIDTH_STEPS, self.write)


@dataclass(frozen=True, eq=False)
class Machines(_Arrays):
    """Fields as in `Machine`; weight_stationary, output_stationary, separate (a memory of its own for constants): bool.

    constant: the constant memory, the main memory where there is none.
    """

    rows: Floats
    columns: Floats
    weight_bits: Floats
    accumulator_rows: Floats
    weight_buffers: Floats
    lanes: Floats
    parameter_bytes: Floats
    activation_bytes: Floats
    activation_width: Floats
    weight_bytes: Floats
    weight_width: Floats
    queue_entries: Floats
    weight_stationary: npt.NDArray[np.bool_]
    output_stationary: npt.NDArray[np.bool_]
    separate: npt.NDArray[np.bool_]
    main: Memories
    constant: Memories

    @classmethod
    def of(cls, machines: Sequence[Machine]) -> Machines:
        rows = [
            (
                m.matrix.rows, m.matrix.columns, m.matrix.weight_bits, m.matrix.accumulator_rows,
                m.matrix.weight_buffers, m.vector.lanes, m.vector.parameter_bytes, m.activation_memory.size_bytes,
                m.activation_memory.bytes_per_cycle, m.weight_memory.size_bytes, m.weight_memory.bytes_per_cycle,
                m.control.queue_entries,
            )
            for m in machines
        ]  # fmt: skip
        flags = [
            (
                "weight_stationary" in m.matrix.dataflows, "output_stationary" in m.matrix.dataflows,
                m.constant_memory is not None,
            )
            for m in machines
        ]  # fmt: skip
        columns = [*np.array(rows, dtype=np.float64).reshape(-1, 12).T.copy()]
        can = [*np.array(flags, dtype=bool).reshape(-1, 3).T.copy()]
        main = Memories.of([m.main_memory for m in machines])
        constant = Memories.of([m.constant_memory or m.main_memory for m in machines])
        values = dict(zip((f.name for f in fields(cls)), [*columns, *can, main, constant], strict=True))
        return cls(**values)  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self.rows)

    def different(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """One machine of each sort, and for each machine which of them it is like: clocks and processes make none."""
        _, one, where = np.unique(self._table, axis=1, return_index=True, return_inverse=True)
        return one, where.reshape(-1)

    def weight_row_bytes(self, columns: Any) -> Any:
        """As `Matrix.weight_row_bytes`."""
        return ceil_div(columns * self.weight_bits, 8)
