"""The tail of the vector pipeline: requantise, look up, add a second operand, clamp, write.

A parameter record holds one channel's constants, little-endian, in the parameter memory:

- `exact_half_up`: bias i32, multiplier u24, shift u8 (8 bytes): ``((acc + bias)*M + 2**(s-1)) >> s``;
- `f32_half_even`: bias i32, scale f32 (8 bytes);
- `q31_single`, `q31_double`: bias i32, multiplier i32, shift i32 (12 bytes), scale = multiplier * 2**(shift - 31).

An add record (12 bytes) is multiplier_a i16, multiplier_b i16, bias i32, shift u8, minimum i8, maximum i8, 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from qcompiler.sim import numerics
from qcompiler.sim.errors import ProgramError
from qcompiler.sim.isa.base import Counts, Instruction, Queue, Space, ceil_div, check_written, operand

if TYPE_CHECKING:
    from qcompiler.sim.hardware import Machine
    from qcompiler.sim.machine_state import MachineState

Array = npt.NDArray[Any]

# Stages of the vector pipeline: read, align, multiply, accumulate, scale (two), look up, add, clamp and write.
VECTOR_PIPELINE = 8
ADD_RECORD_BYTES = 12
TABLE_BYTES = 256


class RoundingCode(IntEnum):
    """`numerics.Rounding` as encoded; the names are the same."""

    exact_half_up = 0
    f32_half_even = 1
    q31_single = 2
    q31_double = 3

    @property
    def record_bytes(self) -> int:
        """Bytes of one parameter record."""
        return 12 if self in (RoundingCode.q31_single, RoundingCode.q31_double) else 8


def encode_records(bias: npt.ArrayLike, scale: npt.ArrayLike, rounding: numerics.Rounding) -> bytes:
    """Parameter records of bias int [C] and scale [C] (float32, float64 for q31), as the vector unit reads them."""
    bias, scale = np.broadcast_arrays(np.asarray(bias, dtype=np.int32), np.asarray(scale))
    code = RoundingCode[rounding]
    out = np.zeros((bias.size, code.record_bytes // 4), dtype="<i4")
    out[:, 0] = bias.ravel()
    if code == RoundingCode.exact_half_up:
        multiplier, shift = numerics.decompose_scale(scale.ravel())
        out[:, 1] = (multiplier | np.minimum(shift, 63) << 24).astype("<u4").view("<i4")
    elif code == RoundingCode.f32_half_even:
        out[:, 1] = scale.ravel().astype("<f4").view("<i4")
    else:
        multiplier, shift = numerics.quantize_multiplier_q31(scale.ravel())
        out[:, 1], out[:, 2] = multiplier, shift
    return out.tobytes()


def encode_add_record(
    multiplier_a: int, multiplier_b: int, bias: int, shift: int,
    minimum: int = numerics.INT8_MIN, maximum: int = numerics.INT8_MAX,
) -> bytes:  # fmt: skip
    """The 12-byte add record of `numerics.add`'s constants."""
    head = np.array([multiplier_a, multiplier_b], dtype="<i2").tobytes() + np.array([bias], dtype="<i4").tobytes()
    return head + np.array([shift, minimum, maximum, 0], dtype=np.int64).astype(np.int8).tobytes()


def read_add_record(ins: Instruction, state: MachineState, address: int) -> tuple[int, int, int, int, int, int]:
    """``(multiplier_a, multiplier_b, bias, shift, minimum, maximum)`` from the parameter memory."""
    memory = state.memory(Space.parameter)
    a, b = memory.read_as(ins, address, 2, "i2").tolist()
    (bias,) = memory.read_as(ins, address + 4, 1, "i4").tolist()
    shift, minimum, maximum = memory.read_as(ins, address + 8, 3, "i1").tolist()
    if not 0 <= shift <= 31:
        raise ProgramError(f"{ins.mnemonic}: the add record at {address} has shift {shift}, not 0..31")
    return a, b, bias, shift, minimum, maximum


def requantize(
    ins: Instruction, state: MachineState, acc: Array, params: int, shared: bool, rounding: int,
    zero: int, minimum: int, maximum: int,
) -> Array:  # fmt: skip
    """int64 sums [..., width] to int8 with the parameter records at `params` (one for all when shared)."""
    code, width = RoundingCode(rounding), acc.shape[-1]
    count = 1 if shared else width
    words = state.memory(Space.parameter).read_as(ins, params, count * code.record_bytes // 4, "i4")
    record = words.reshape(count, -1)
    total = acc + record[:, 0].astype(np.int64)
    if total.size and (int(total.min()) < -(2**31) or int(total.max()) >= 2**31):
        raise ProgramError(f"{ins.mnemonic}: sum and bias overflow int32")
    if code == RoundingCode.exact_half_up:
        word = record[:, 1].astype(np.int64) & 0xFFFFFFFF
        scaled = numerics.rounding_shift_right(total * (word & 0xFFFFFF), word >> 24)
    else:
        scale: Array
        if code == RoundingCode.f32_half_even:
            scale = np.ascontiguousarray(record[:, 1]).view("<f4")
        else:
            scale = np.ldexp(record[:, 1].astype(np.float64), record[:, 2].astype(np.int32) - 31)
        if not np.all(np.isfinite(scale)):
            raise ProgramError(f"{ins.mnemonic}: a parameter record at {params} holds no finite scale")
        scaled = numerics.scale_accumulator(total, scale, code.name)  # type: ignore[arg-type]
    return np.clip(scaled + zero, minimum, maximum).astype(np.int8)


def look_up(ins: Instruction, state: MachineState, values: Array, address: int) -> Array:
    """One 256-entry table for all channels."""
    table = state.memory(Space.parameter).read_as(ins, address, TABLE_BYTES, "i1")
    return table[values.astype(np.int64) + 128]


def add(values: Array, other: Array, record: tuple[int, int, int, int, int, int]) -> Array:
    """`numerics.add` with an add record."""
    a, b, bias, shift, minimum, maximum = record
    return numerics.add(values, other, a, b, bias, shift, minimum, maximum)


def check_rounding(ins: Instruction, rounding: int, machine: Machine) -> None:
    """Refuse a rounding that does not exist or that the machine lacks."""
    if rounding not in list(RoundingCode):
        raise ProgramError(f"{ins.mnemonic}: unknown rounding {rounding}")
    name = RoundingCode(rounding).name
    if name not in machine.vector.roundings:
        raise ProgramError(f"{ins.mnemonic}: machine {machine.name!r} does not implement rounding {name}")


@dataclass(frozen=True, kw_only=True)
class VectorInstruction(Instruction):
    """Anything the vector unit executes."""

    @property
    def queue(self) -> Queue:
        return Queue.vector


TABLE_FLAG, ADD_FLAG, SHARED_FLAG = 1, 2, 4


@dataclass(frozen=True, kw_only=True)
class Requantized(VectorInstruction):
    """Operands of the output stages: requantise, then the table if flag 1, then the add if flag 2."""

    width: int = operand("u16", "channels of a pixel")
    out_address: int = operand("u32", "activation memory: first byte written")
    out_row_pitch: int = operand("u32", "bytes from one output row to the next")
    out_pixel_pitch: int = operand("u16", "bytes from one output pixel to the next")
    params: int = operand("u16", "parameter memory: the records of channel 0, 1, ...")
    rounding: int = operand("u8", "rounding of the requantisation", 0, enum=RoundingCode)
    out_zero: int = operand("i8", "output zero point")
    minimum: int = operand("i8", "smallest result", -128)
    maximum: int = operand("i8", "largest result", 127)
    post: int = operand("u8", "1 table, 2 add, 4 one record for all channels", 0)
    table: int = operand("u16", "parameter memory: the 256 bytes of the table", 0)

    def check_post(self, machine: Machine, pixels: int, allowed: int) -> None:
        if self.post & ~allowed:
            raise ProgramError(f"{self.mnemonic}: post={self.post} has bits that it does not know")
        check_rounding(self, self.rounding, machine)
        if self.width < 1:
            raise ProgramError(f"{self.mnemonic}: width must be at least 1")
        check_written(self, pixels * self.width, Space.activation, machine)

    def table_cycles(self, machine: Machine) -> int:
        """Loading a shared table: L entries a cycle, broadcast to the look-up memory of every lane."""
        return ceil_div(TABLE_BYTES, machine.vector.lanes) if self.post & TABLE_FLAG else 0

    def post_counts(self, machine: Machine, pixels: int) -> Counts:
        """Records are read once when all channels fit the lanes, else for every pixel."""
        record = RoundingCode(self.rounding).record_bytes
        if self.post & SHARED_FLAG:
            parameters = record
        else:
            parameters = self.width * record * (1 if self.width <= machine.vector.lanes else pixels)
        counts = {
            "requantizations": pixels * self.width,
            "activation_write_bytes": pixels * self.width,
            "parameter_read_bytes": parameters,
        }
        if self.post & TABLE_FLAG:
            counts["table_lookups"] = pixels * self.width
            counts["parameter_read_bytes"] += TABLE_BYTES
        return counts

    def finish(self, state: MachineState, acc: Array) -> Array:
        """int64 sums [h, w, width] through requantisation and table to int8."""
        shared = bool(self.post & SHARED_FLAG)
        out = requantize(
            self, state, acc, self.params, shared, self.rounding, self.out_zero, self.minimum, self.maximum
        )
        return look_up(self, state, out, self.table) if self.post & TABLE_FLAG else out

    def store(self, state: MachineState, values: Array) -> None:
        """Write int8 [h, w, width] to the activation memory."""
        strides = (self.out_row_pitch, self.out_pixel_pitch, 1)
        state.memory(Space.activation).write(self, self.out_address, strides, values)
