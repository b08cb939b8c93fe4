"""The matrix unit: R x C multiply-accumulate array, int32 accumulators.

Rows of the array are the reduction, columns the outputs. Its operands are weights of weight_bits and activations of
activation_bits, each minus a zero point (one bit more). Accumulators live in a memory of accumulator_rows rows of C
int32. The unit has its own read port of R bytes a cycle on the activation memory, of a row of C packed weights a cycle
(C bytes with 8 bits) on the weight memory, and a read and a write port of one row on the accumulators, so that it never
conflicts with other units.

Packed weights: value j of a row is bits j*weight_bits to j*weight_bits + weight_bits-1 of the row, counted from the
lowest bit of its first byte, in two's complement; every row begins at a byte. They are sign extended where they enter
the array. With 8 bits packed and unpacked are the same. Activations take a byte each, whatever their width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from qcompiler.sim.errors import ProgramError
from qcompiler.sim.isa.base import Counts, Queue, Space, Timing, ceil_div, operand
from qcompiler.sim.isa.packing import unpack
from qcompiler.sim.isa.window import Windowed, window_values
from qcompiler.sim.widths import interval

if TYPE_CHECKING:
    from qcompiler.sim.hardware import Machine
    from qcompiler.sim.machine_state import MachineState

BLOCK_ELEMENTS = 1 << 22  # of the unrolled windows that the simulator holds at once


def _check_width(values: npt.NDArray[np.int8], bits: int, what: str, field: str) -> None:
    """Hardware would drop the upper bits."""
    if bits == 8:
        return
    low, high = interval(bits)
    for worst in (int(values.min()), int(values.max())):
        if not low <= worst <= high:
            raise ProgramError(f"matmul: {what} {worst} does not fit {field} = {bits} ({low}..{high})")


@dataclass(frozen=True, kw_only=True)
class MatrixMultiply(Windowed):
    """Windows of an activation tile times a weight tile into the accumulators: convolution, dense, batched matmul.

    Semantics: with P = out_h*out_w pixels, K = kernel_h*kernel_w*run and k = tap*run + j:
    ``acc[accumulator_row + p, n] (+)= sum_k (x[p, k] - zero) * (w[k, n] - weight_zero)`` for n < columns, where
    x is the window's byte (padding contributes nothing) and w[k, n] is byte ``weight_address + k*weight_pitch + n``
    of the weight memory, or ``weight_address + n*weight_pitch + k`` with weight_transposed; with
    weights_from_activation it is in the activation memory. With packed, w[k, n] is value n of the packed row at
    ``weight_address + k*weight_pitch`` (value k of the one at ``weight_address + n*weight_pitch``). An x or a w that
    does not fit its width is an error, as is a sum beyond int32. Adding to sums of an earlier matmul needs neither
    token nor fence: rows are updated in order where they leave the array.

    Timing, weight stationary: the sequencer makes passes = kernel_h*kernel_w*ceil(run/R) passes, each with up to R
    values of k. A pass loads weights for W cycles, then streams P rows, one a cycle; the last row leaves the array
    R+C-2 cycles after it entered. W is R*ceil(row/port), row being the bytes of C weights (packed or not) and port the
    width of the memory that holds them (a weight memory has at least that of a packed row), or C*ceil(row/port) with a
    row of R weights when transposed: columns shift in from the side. With two weight buffers the next load runs beside
    the stream: passes start max(P, W) cycles apart, the next instruction's first load starts with the last stream. With
    one buffer, each load waits until the array is empty: passes start W+P+R+C-2 cycles apart. Weights from the
    activation memory share its port with every stream: each pass takes W+P cycles of the unit.
    Timing, output stationary: groups of R pixels; the array holds R x C sums, one value of k enters each cycle.
    R values of k need R fetches of activations (each of the R pixels fetches R bytes in turn) beside W cycles of
    weights, one behind the other where both come from the activation memory: S = max(R, W) or R+W cycles. So a group
    takes K' = kernel_h*kernel_w*ceil(run/R)*S cycles and R cycles shift its sums out, beside the next group with two
    buffers: groups start K' cycles apart, the last is complete K'+R+C-2+R cycles after its start. With one
    buffer they start K'+2R+C-2 cycles apart.

    Counts: P*K*columns array_macs; P*K activation bytes (padding included: the port does not know); weight bytes
    K*columns, or K packed rows of ceil(columns*weight_bits/8) (output stationary: once a group; transposed: columns
    rows of K weights); accumulators of P*columns*4 bytes written in every pass and read in every pass that adds (output
    stationary: written once, read when accumulating).
    """

    opcode = 0x20
    mnemonic = "matmul"

    run: int = operand("u16", "consecutive bytes of a tap: the channels it reduces over")
    zero: int = operand("i8", "zero point of the activations", 0)
    weight_address: int = operand("u32", "byte address of w[0, 0]")
    weight_pitch: int = operand("u16", "bytes from one weight row to the next")
    weight_zero: int = operand("i8", "zero point of the weights", 0)
    columns: int = operand("u16", "outputs, at most C")
    accumulator_row: int = operand("u16", "accumulator row of pixel 0")
    flags: int = operand(
        "u8", "1 accumulate, 2 output stationary, 4 weights from activation memory, 8 transposed, 16 packed", 0
    )

    @property
    def queue(self) -> Queue:
        return Queue.matrix

    @property
    def accumulate(self) -> bool:
        return bool(self.flags & 1)

    @property
    def output_stationary(self) -> bool:
        return bool(self.flags & 2)

    @property
    def weight_space(self) -> Space:
        return Space.activation if self.flags & 4 else Space.weight

    @property
    def weight_transposed(self) -> bool:
        return bool(self.flags & 8)

    @property
    def packed(self) -> bool:
        return bool(self.flags & 16)

    @property
    def reduction(self) -> int:
        return self.taps * self.run

    def row_bytes(self, weights: int, machine: Machine) -> int:
        """Bytes of a row of so many weights."""
        return machine.matrix.weight_row_bytes(weights) if self.packed else weights

    def check(self, machine: Machine) -> None:
        self.check_window(self.run)
        if not 1 <= self.columns <= machine.matrix.columns:
            raise ProgramError(f"matmul: columns={self.columns} is not in 1..{machine.matrix.columns}")
        if self.accumulator_row + self.pixels > machine.matrix.accumulator_rows:
            raise ProgramError(
                f"matmul: {self.pixels} pixels from accumulator row {self.accumulator_row} exceed the "
                f"{machine.matrix.accumulator_rows} rows"
            )
        if self.flags > 31:
            raise ProgramError(f"matmul: flags={self.flags} has unknown bits")
        if self.packed and self.weight_space == Space.activation:
            raise ProgramError("matmul: only the weight memory holds packed weights")
        array = machine.matrix
        for name, bits in (("zero", array.activation_bits), ("weight_zero", array.weight_bits)):
            low, high = interval(bits)
            if not low <= getattr(self, name) <= high:
                raise ProgramError(f"matmul: {name}={getattr(self, name)} does not fit {bits} bits ({low}..{high})")
        dataflow = "output_stationary" if self.output_stationary else "weight_stationary"
        if dataflow not in machine.matrix.dataflows:
            raise ProgramError(f"matmul: machine {machine.name!r} has no {dataflow} dataflow")

    def execute(self, state: MachineState) -> None:
        w = self.read_weights(state).astype(np.float64) - self.weight_zero
        # Padding holds the zero point and contributes nothing.
        values, _ = window_values(self, state, Space.activation, self.run, self.zero)
        _check_width(values, state.machine.matrix.activation_bits, "activation", "matrix.activation_bits")
        total = np.empty((self.pixels, self.columns), dtype=np.int64)
        rows = max(1, BLOCK_ELEMENTS // (self.out_w * self.reduction))
        for y in range(0, self.out_h, rows):
            # float64 is exact: every partial sum is far below 2**53.
            x = values[y : y + rows].reshape(-1, self.reduction).astype(np.float64) - self.zero
            total[y * self.out_w : (y + rows) * self.out_w] = x @ w
        if self.accumulate:
            total += state.read_accumulators(self, self.accumulator_row, self.pixels, self.columns)
        state.write_accumulators(self, self.accumulator_row, total)

    def read_weights(self, state: MachineState) -> npt.NDArray[np.int8]:
        """w, int8 [K, columns]."""
        rows, width = self.reduction, self.columns
        if self.weight_transposed:
            rows, width = width, rows
        bits, size = state.machine.matrix.weight_bits, self.row_bytes(width, state.machine)
        w = state.memory(self.weight_space).read(self, self.weight_address, (rows, size), (self.weight_pitch, 1))
        if self.packed:
            w = unpack(w, width, bits)
        else:
            _check_width(w, bits, "weight", "matrix.weight_bits")
        return w.T if self.weight_transposed else w

    def timing(self, machine: Machine) -> Timing:
        array, pixels = machine.matrix, self.pixels
        rows, columns = array.rows, array.columns
        shared = self.weight_space == Space.activation
        port = (machine.activation_memory if shared else machine.weight_memory).bytes_per_cycle
        wide, deep = (rows, columns) if self.weight_transposed else (columns, rows)
        load = deep * ceil_div(self.row_bytes(wide, machine), port)
        through = rows + columns - 2
        chunks = self.taps * ceil_div(self.run, rows)
        if self.output_stationary:
            groups, active = ceil_div(pixels, rows), chunks * rows
            steps = chunks * (rows + load if shared else max(rows, load))
            if array.weight_buffers == 1:
                return Timing(0, groups * (steps + 2 * rows + columns - 2), groups * active, 0, 0)
            # steps >= rows, so that the shift-out of a group always hides behind the next one.
            return Timing(0, groups * steps, groups * active, through + rows, 0)
        if array.weight_buffers == 1:
            occupy = chunks * (load + pixels + through) - load - through
            return Timing(load, occupy, chunks * pixels, through, -through)
        if shared:
            # The load is part of the occupation: it needs the port that the previous instruction streams through.
            return Timing(0, chunks * (load + pixels), chunks * pixels, through, 0)
        interval = max(pixels, load)
        return Timing(load, (chunks - 1) * interval + pixels, chunks * pixels, through, pixels)

    def counts(self, machine: Machine) -> Counts:
        rows, k, n, pixels = machine.matrix.rows, self.reduction, self.columns, self.pixels
        wide, deep = (k, n) if self.weight_transposed else (n, k)
        writes, weights = self.taps * ceil_div(self.run, rows), deep * self.row_bytes(wide, machine)
        if self.output_stationary:
            writes, weights = 1, weights * ceil_div(pixels, rows)
        reads = writes if self.accumulate else writes - 1
        counts = {
            "array_macs": pixels * k * n,
            "activation_read_bytes": pixels * k,
            "accumulator_write_bytes": writes * pixels * n * 4,
            "accumulator_read_bytes": reads * pixels * n * 4,
        }
        name = f"{self.weight_space.name}_read_bytes"
        counts[name] = counts.get(name, 0) + weights
        return counts
