"""The vector unit: L lanes behind two activation read ports, one write port, one accumulator port, one parameter port.

A vector is up to L neighbouring channels of one pixel; a pixel of `width` channels takes ceil(width/L) vectors. With
fewer channels than lanes a program may treat several neighbouring pixels as one (and repeat their parameters).
Each port serves one vector a cycle at any byte address: memories are interleaved by byte over the port's width.
Results are written `VECTOR_PIPELINE` cycles after their last operand was read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from qcompiler.sim.errors import ProgramError
from qcompiler.sim.isa.base import Counts, Space, Timing, ceil_div, check_written, operand
from qcompiler.sim.isa.post import (
    ADD_FLAG,
    ADD_RECORD_BYTES,
    SHARED_FLAG,
    TABLE_BYTES,
    TABLE_FLAG,
    VECTOR_PIPELINE,
    Requantized,
    RoundingCode,
    VectorInstruction,
    add,
    check_rounding,
    look_up,
    read_add_record,
    requantize,
)  # fmt: skip
from qcompiler.sim.isa.window import Windowed, window_values

if TYPE_CHECKING:
    from qcompiler.sim.hardware import Machine
    from qcompiler.sim.machine_state import MachineState


def vectors(width: int, machine: Machine) -> int:
    """Vectors of a pixel."""
    return ceil_div(width, machine.vector.lanes)


def issue(cycles: int) -> Timing:
    """A vector instruction that reads operands for `cycles` cycles."""
    return Timing(0, cycles, cycles, VECTOR_PIPELINE, 0)


@dataclass(frozen=True, kw_only=True)
class Requantize(Requantized):
    """Accumulators to int8 in the activation memory, with an optional table and residual add.

    Semantics: for pixel p = y*out_w + x: ``q = requantise(acc[accumulator_row + p, n], record n)``; with post bit 1
    ``q = table[q + 128]``; with post bit 2 ``q = clamp((q*Ma + b*Mb + bias) >> shift)`` where b is the byte at
    ``add_address + y*add_row_pitch + x*add_pixel_pitch + n``; q goes to
    ``out_address + y*out_row_pitch + x*out_pixel_pitch + n``.
    Timing: out_h*out_w*ceil(width/L) cycles, plus ceil(256/L) to load the table.
    Counts: accumulators read; one requantisation (with the table one look-up, with the add two vector MACs) an
    element; parameter records.
    """

    opcode = 0x30
    mnemonic = "requantize"

    accumulator_row: int = operand("u16", "accumulator row of pixel 0")
    out_h: int = operand("u16", "output rows")
    out_w: int = operand("u16", "output columns")
    add_address: int = operand("u32", "activation memory: second operand of the add", 0)
    add_row_pitch: int = operand("u32", "bytes from one row of it to the next", 0)
    add_pixel_pitch: int = operand("u16", "bytes from one pixel of it to the next", 0)
    add_params: int = operand("u16", "parameter memory: the add record", 0)

    @property
    def pixels(self) -> int:
        return self.out_h * self.out_w

    def check(self, machine: Machine) -> None:
        self.check_post(machine, self.pixels, TABLE_FLAG | ADD_FLAG | SHARED_FLAG)
        if self.width > machine.matrix.columns or not self.pixels:
            raise ProgramError(f"requantize: {self.pixels} pixels of {self.width}; at most {machine.matrix.columns}")
        if self.accumulator_row + self.pixels > machine.matrix.accumulator_rows:
            raise ProgramError(f"requantize: its pixels exceed the {machine.matrix.accumulator_rows} accumulator rows")

    def execute(self, state: MachineState) -> None:
        acc = state.read_accumulators(self, self.accumulator_row, self.pixels, self.width)
        values = self.finish(state, acc.astype(np.int64)).reshape(self.out_h, self.out_w, self.width)
        if self.post & ADD_FLAG:
            shape, strides = (self.out_h, self.out_w, self.width), (self.add_row_pitch, self.add_pixel_pitch, 1)
            other = state.memory(Space.activation).read(self, self.add_address, shape, strides)
            values = add(values, other, read_add_record(self, state, self.add_params))
        self.store(state, values)

    def timing(self, machine: Machine) -> Timing:
        return issue(self.table_cycles(machine) + self.pixels * vectors(self.width, machine))

    def counts(self, machine: Machine) -> Counts:
        elements = self.pixels * self.width
        counts = self.post_counts(machine, self.pixels) | {"accumulator_read_bytes": 4 * elements}
        if self.post & ADD_FLAG:
            counts |= {"activation_read_bytes": elements, "vector_macs": 2 * elements}
            counts["parameter_read_bytes"] += ADD_RECORD_BYTES
        return counts


@dataclass(frozen=True, kw_only=True)
class Depthwise(Requantized, Windowed):
    """Depthwise convolution: each channel with its own taps, one tap a cycle on every lane.

    Semantics: ``acc[p, n] = sum_t (x[p, t, n] - zero) * w[t, n]`` with w int8 at ``weights + t*width + n`` in the
    parameter memory, then requantise and table. Padding contributes nothing. A sum beyond int32 is an error.
    Timing: out_h*out_w*ceil(width/L)*kernel_h*kernel_w cycles, plus ceil(256/L) to load a table.
    Counts: a vector MAC, an activation byte and a weight byte (parameter memory) each tap and element.
    """

    opcode = 0x31
    mnemonic = "depthwise"

    zero: int = operand("i8", "zero point of the activations", 0)
    weights: int = operand("u16", "parameter memory: weights of tap 0")

    def check(self, machine: Machine) -> None:
        self.check_window(self.width)
        self.check_post(machine, self.pixels, TABLE_FLAG | SHARED_FLAG)

    def execute(self, state: MachineState) -> None:
        x, _ = window_values(self, state, Space.activation, self.width, self.zero)
        raw = state.memory(Space.parameter).read_as(self, self.weights, self.taps * self.width, "i1")
        w = raw.reshape(self.kernel_h, self.kernel_w, self.width).astype(np.int64)
        acc = np.zeros((self.out_h, self.out_w, self.width), dtype=np.int64)
        for i in range(self.kernel_h):
            for j in range(self.kernel_w):
                acc += (x[:, :, i, j].astype(np.int64) - self.zero) * w[i, j]
        self.store(state, self.finish(state, acc))

    def timing(self, machine: Machine) -> Timing:
        return issue(self.table_cycles(machine) + self.pixels * vectors(self.width, machine) * self.taps)

    def counts(self, machine: Machine) -> Counts:
        macs = self.pixels * self.width * self.taps
        counts = self.post_counts(machine, self.pixels) | {"vector_macs": macs, "activation_read_bytes": macs}
        counts["parameter_read_bytes"] += macs
        return counts


MAXIMUM, SUM = 0, 1


@dataclass(frozen=True, kw_only=True)
class Pool(Requantized, Windowed):
    """Maximum or sum over each window; the sum is requantised (average pools, means).

    Semantics: mode 0: the largest byte inside the tile (-128 where there is none), clamped to minimum..maximum;
    params, rounding and out_zero are unused. Mode 1: ``sum (x - zero)`` over the bytes inside, requantised.
    Then the table.
    Timing: as depthwise.
    Counts: one vector operation and an activation byte each tap and element; mode 0 requantises nothing.
    """

    opcode = 0x32
    mnemonic = "pool"

    zero: int = operand("i8", "zero point of the activations", 0)
    mode: int = operand("u8", "0 maximum, 1 sum", MAXIMUM)

    def check(self, machine: Machine) -> None:
        self.check_window(self.width)
        self.check_post(machine, self.pixels, TABLE_FLAG | SHARED_FLAG)
        if self.mode not in (MAXIMUM, SUM):
            raise ProgramError(f"pool: unknown mode {self.mode}")

    def execute(self, state: MachineState) -> None:
        fill = -128 if self.mode == MAXIMUM else self.zero
        x, _ = window_values(self, state, Space.activation, self.width, fill)
        if self.mode == SUM:
            acc = x.sum(axis=(2, 3), dtype=np.int64) - self.zero * self.taps
            self.store(state, self.finish(state, acc))
            return
        best = np.clip(x.max(axis=(2, 3)), self.minimum, self.maximum)
        self.store(state, look_up(self, state, best, self.table) if self.post & TABLE_FLAG else best)

    def timing(self, machine: Machine) -> Timing:
        return issue(self.table_cycles(machine) + self.pixels * vectors(self.width, machine) * self.taps)

    def counts(self, machine: Machine) -> Counts:
        operations = self.pixels * self.width * self.taps
        counts = self.post_counts(machine, self.pixels)
        if self.mode == MAXIMUM:
            del counts["requantizations"]
            counts["parameter_read_bytes"] = TABLE_BYTES if self.post & TABLE_FLAG else 0
        return counts | {"vector_operations": operations, "activation_read_bytes": operations}


@dataclass(frozen=True, kw_only=True)
class _Binary(VectorInstruction):
    """Operands a and b, each [out_h, out_w, width] with their own pitches (0 repeats), from the activation memory."""

    out_h: int = operand("u16", "output rows")
    out_w: int = operand("u16", "output columns")
    width: int = operand("u16", "channels of a pixel")
    a_address: int = operand("u32", "first byte of a")
    a_row_pitch: int = operand("u32", "bytes from one row of a to the next")
    a_pixel_pitch: int = operand("u16", "bytes from one pixel of a to the next")
    b_address: int = operand("u32", "first byte of b")
    b_row_pitch: int = operand("u32", "bytes from one row of b to the next")
    b_pixel_pitch: int = operand("u16", "bytes from one pixel of b to the next")
    b_scalar: int = operand("u8", "1: one byte of b serves all channels of a pixel", 0)
    out_address: int = operand("u32", "first byte written")
    out_row_pitch: int = operand("u32", "bytes from one output row to the next")
    out_pixel_pitch: int = operand("u16", "bytes from one output pixel to the next")
    params: int = operand("u16", "parameter memory: the record")

    @property
    def elements(self) -> int:
        return self.out_h * self.out_w * self.width

    def check(self, machine: Machine) -> None:
        if not self.elements:
            raise ProgramError(f"{self.mnemonic}: out_h, out_w and width must be at least 1")
        if self.b_scalar > 1:
            raise ProgramError(f"{self.mnemonic}: b_scalar is 0 or 1")
        check_written(self, self.elements, Space.activation, machine)

    def read_operands(self, state: MachineState) -> tuple[np.ndarray, np.ndarray]:
        memory, shape = state.memory(Space.activation), (self.out_h, self.out_w, self.width)
        a = memory.read(self, self.a_address, shape, (self.a_row_pitch, self.a_pixel_pitch, 1))
        step = 0 if self.b_scalar else 1
        return a, memory.read(self, self.b_address, shape, (self.b_row_pitch, self.b_pixel_pitch, step))

    def store(self, state: MachineState, values: np.ndarray) -> None:
        strides = (self.out_row_pitch, self.out_pixel_pitch, 1)
        state.memory(Space.activation).write(self, self.out_address, strides, values)

    def timing(self, machine: Machine) -> Timing:
        return issue(self.out_h * self.out_w * vectors(self.width, machine))

    def read_bytes(self) -> int:
        return self.elements + (self.out_h * self.out_w if self.b_scalar else self.elements)


@dataclass(frozen=True, kw_only=True)
class Add(_Binary):
    """Element-wise add or subtract with rescale.

    Semantics: ``out = clamp((a*Ma + b*Mb + bias) >> shift, minimum, maximum)`` with the add record at params.
    Timing: out_h*out_w*ceil(width/L) cycles.
    Counts: two vector MACs an element; bytes of a, b and the output.
    """

    opcode = 0x33
    mnemonic = "add"

    def execute(self, state: MachineState) -> None:
        a, b = self.read_operands(state)
        self.store(state, add(a, b, read_add_record(self, state, self.params)))

    def counts(self, machine: Machine) -> Counts:
        return {
            "vector_macs": 2 * self.elements,
            "activation_read_bytes": self.read_bytes(),
            "activation_write_bytes": self.elements,
            "parameter_read_bytes": ADD_RECORD_BYTES,
        }


@dataclass(frozen=True, kw_only=True)
class Multiply(_Binary):
    """Element-wise product, requantised with one record.

    Semantics: ``out = requantise((a - a_zero) * (b - b_zero))`` with one record.
    Timing: out_h*out_w*ceil(width/L) cycles.
    Counts: one vector MAC and one requantisation an element; bytes of a, b and the output.
    """

    opcode = 0x34
    mnemonic = "multiply"

    a_zero: int = operand("i8", "zero point of a")
    b_zero: int = operand("i8", "zero point of b")
    out_zero: int = operand("i8", "output zero point")
    minimum: int = operand("i8", "smallest result", -128)
    maximum: int = operand("i8", "largest result", 127)
    rounding: int = operand("u8", "rounding of the requantisation", 0, enum=RoundingCode)

    def check(self, machine: Machine) -> None:
        super().check(machine)
        check_rounding(self, self.rounding, machine)

    def execute(self, state: MachineState) -> None:
        a, b = self.read_operands(state)
        acc = (a.astype(np.int64) - self.a_zero) * (b.astype(np.int64) - self.b_zero)
        out = requantize(self, state, acc, self.params, True, self.rounding, self.out_zero, self.minimum, self.maximum)
        self.store(state, out)

    def counts(self, machine: Machine) -> Counts:
        return {
            "vector_macs": self.elements,
            "requantizations": self.elements,
            "activation_read_bytes": self.read_bytes(),
            "activation_write_bytes": self.elements,
            "parameter_read_bytes": RoundingCode(self.rounding).record_bytes,
        }


@dataclass(frozen=True, kw_only=True)
class Table(VectorInstruction):
    """Any unary int8 function by a 256-entry table, one for all channels or one a channel.

    Semantics: ``out[y, x, n] = table[in[y, x, n] + 128]``; with per_channel the table of channel n starts at
    ``table + 256*n``. A table is an int8 array in the parameter memory.
    Timing: shared: ceil(256/L) cycles to load it into every lane (L entries a cycle), then
    out_h*out_w*ceil(width/L). Per channel: vectors outermost; each loads L tables (one entry a lane a cycle, 256
    cycles), then takes out_h*out_w cycles.
    Counts: one look-up an element; bytes in and out; table bytes.
    """

    opcode = 0x35
    mnemonic = "table"

    out_h: int = operand("u16", "output rows")
    out_w: int = operand("u16", "output columns")
    width: int = operand("u16", "channels of a pixel")
    in_address: int = operand("u32", "activation memory: first byte read")
    in_row_pitch: int = operand("u32", "bytes from one input row to the next")
    in_pixel_pitch: int = operand("u16", "bytes from one input pixel to the next")
    out_address: int = operand("u32", "activation memory: first byte written")
    out_row_pitch: int = operand("u32", "bytes from one output row to the next")
    out_pixel_pitch: int = operand("u16", "bytes from one output pixel to the next")
    table: int = operand("u16", "parameter memory: the table(s)")
    per_channel: int = operand("u8", "1: a table each channel", 0)

    @property
    def pixels(self) -> int:
        return self.out_h * self.out_w

    def check(self, machine: Machine) -> None:
        if not self.pixels * self.width:
            raise ProgramError("table: out_h, out_w and width must be at least 1")
        if self.per_channel > 1:
            raise ProgramError("table: per_channel is 0 or 1")
        check_written(self, self.pixels * self.width, Space.activation, machine)

    def execute(self, state: MachineState) -> None:
        memory, shape = state.memory(Space.activation), (self.out_h, self.out_w, self.width)
        x = memory.read(self, self.in_address, shape, (self.in_row_pitch, self.in_pixel_pitch, 1))
        if self.per_channel:
            raw = state.memory(Space.parameter).read_as(self, self.table, TABLE_BYTES * self.width, "i1")
            values = raw.reshape(self.width, TABLE_BYTES)[np.arange(self.width), x.astype(np.int64) + 128]
        else:
            values = look_up(self, state, x, self.table)
        memory.write(self, self.out_address, (self.out_row_pitch, self.out_pixel_pitch, 1), values)

    def timing(self, machine: Machine) -> Timing:
        if self.per_channel:
            return issue(vectors(self.width, machine) * (TABLE_BYTES + self.pixels))
        return issue(ceil_div(TABLE_BYTES, machine.vector.lanes) + self.pixels * vectors(self.width, machine))

    def counts(self, machine: Machine) -> Counts:
        elements = self.pixels * self.width
        return {
            "table_lookups": elements,
            "activation_read_bytes": elements,
            "activation_write_bytes": elements,
            "parameter_read_bytes": TABLE_BYTES * (self.width if self.per_channel else 1),
        }


COORDINATE_BYTES = 6


@dataclass(frozen=True, kw_only=True)
class Interpolate(VectorInstruction):
    """One output row of a bilinear resize (`integer_program.ResizeLinear`).

    Semantics: the parameter memory holds for each output pixel low u16, high u16, weight u16 at
    ``coordinates + 6*x``; with wy = weight_y and wx its weight, ``acc = (1-wy)(1-wx)*A + (1-wy)wx*B + wy(1-wx)*C +
    wy*wx*D`` in units of 2**-16 (1 stands for 256), where A, B are the pixels low, high of the row at row_low,
    C, D of the row at row_high, each minus zero; requantised with one record.
    Timing: 4 * pixels * ceil(width/L) cycles.
    Counts: four vector MACs and four activation bytes, one requantisation an element.
    """

    opcode = 0x36
    mnemonic = "interpolate"

    out_w: int = operand("u16", "output pixels")
    width: int = operand("u16", "channels of a pixel")
    row_low: int = operand("u32", "activation memory: the upper input row")
    row_high: int = operand("u32", "activation memory: the lower input row")
    pixel_pitch: int = operand("u16", "bytes from one input pixel to the next")
    weight_y: int = operand("u16", "weight of the lower row, 0..256")
    coordinates: int = operand("u16", "parameter memory: low, high, weight of each output pixel")
    zero: int = operand("i8", "zero point of the input")
    out_address: int = operand("u32", "activation memory: first byte written")
    out_pixel_pitch: int = operand("u16", "bytes from one output pixel to the next")
    params: int = operand("u16", "parameter memory: the record")
    out_zero: int = operand("i8", "output zero point")
    minimum: int = operand("i8", "smallest result", -128)
    maximum: int = operand("i8", "largest result", 127)
    rounding: int = operand("u8", "rounding of the requantisation", 0, enum=RoundingCode)

    def check(self, machine: Machine) -> None:
        if not self.out_w * self.width or self.weight_y > 256:
            raise ProgramError("interpolate: out_w and width must be at least 1, weight_y at most 256")
        check_written(self, self.out_w * self.width, Space.activation, machine)
        check_rounding(self, self.rounding, machine)

    def execute(self, state: MachineState) -> None:
        words = state.memory(Space.parameter).read_as(self, self.coordinates, 3 * self.out_w, "u2")
        low, high, weight = words.reshape(self.out_w, 3).astype(np.int64).T
        if int(weight.max()) > 256:
            raise ProgramError("interpolate: a column weight exceeds 256")
        memory = state.memory(Space.activation)

        def pixels(row: int, index: np.ndarray) -> np.ndarray:
            used, where = np.unique(index, return_inverse=True)
            lines = [memory.read(self, row + i * self.pixel_pitch, (self.width,), (1,)) for i in used.tolist()]
            return np.stack(lines)[where].astype(np.int64) - self.zero

        wx = weight[:, None]
        upper = pixels(self.row_low, low) * (256 - wx) + pixels(self.row_low, high) * wx
        lower = pixels(self.row_high, low) * (256 - wx) + pixels(self.row_high, high) * wx
        acc = upper * (256 - self.weight_y) + lower * self.weight_y
        out = requantize(self, state, acc, self.params, True, self.rounding, self.out_zero, self.minimum, self.maximum)
        memory.write(self, self.out_address, (self.out_pixel_pitch, 1), out)

    def timing(self, machine: Machine) -> Timing:
        return issue(4 * self.out_w * vectors(self.width, machine))

    def counts(self, machine: Machine) -> Counts:
        elements = self.out_w * self.width
        return {
            "vector_macs": 4 * elements,
            "requantizations": elements,
            "activation_read_bytes": 4 * elements,
            "activation_write_bytes": elements,
            "parameter_read_bytes": RoundingCode(self.rounding).record_bytes + COORDINATE_BYTES * self.out_w,
        }
