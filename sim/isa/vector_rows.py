"""Row-wise normalisation on the vector unit: softmax and layer norm over the contiguous last axis.

Each row runs its passes one after the other, because each needs a scalar of the one before: a pass reads ceil(n/L)
vectors, a reduction adds ceil(log2 L) tree stages, and the scalar unit has a restoring divider (one quotient bit a
cycle) and a square root (one result bit a cycle).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qcompiler.sim import numerics
from qcompiler.sim.errors import ProgramError
from qcompiler.sim.isa.base import Counts, Space, Timing, check_written, operand
from qcompiler.sim.isa.post import VECTOR_PIPELINE, VectorInstruction
from qcompiler.sim.isa.vector import issue, vectors

if TYPE_CHECKING:
    from qcompiler.sim.hardware import Machine
    from qcompiler.sim.machine_state import MachineState

DIVIDE_32_CYCLES = 32
DIVIDE_64_CYCLES = 64
SQUARE_ROOT_CYCLES = 16
EXP_TABLE_BYTES = 64


@dataclass(frozen=True, kw_only=True)
class _Rows(VectorInstruction):
    rows: int = operand("u32", "rows")
    length: int = operand("u16", "elements of a row")
    in_address: int = operand("u32", "activation memory: first byte read")
    in_pitch: int = operand("u32", "bytes from one input row to the next")
    out_address: int = operand("u32", "activation memory: first byte written")
    out_pitch: int = operand("u32", "bytes from one output row to the next")

    def check_rows(self, machine: Machine, longest: int) -> None:
        if not self.rows or not 1 <= self.length <= longest:
            raise ProgramError(f"{self.mnemonic}: {self.rows} rows of {self.length}; a row has 1..{longest} elements")
        check_written(self, self.rows * self.length, Space.activation, machine)

    def read_rows(self, state: MachineState):  # type: ignore[no-untyped-def]
        shape, strides = (self.rows, self.length), (self.in_pitch, 1)
        return state.memory(Space.activation).read(self, self.in_address, shape, strides)


def _tree(machine: Machine) -> int:
    return (machine.vector.lanes - 1).bit_length()


@dataclass(frozen=True, kw_only=True)
class Softmax(_Rows):
    """`numerics.softmax` of each row.

    Semantics: numerics.softmax with the uint16 factors [2, 16] at `factors` in the parameter memory and
    `fraction_bits`.
    Timing: ceil(64/L) cycles to load the factors (L bytes a cycle); then each row 3*ceil(length/L) (maximum; look-up
    and sum; scale), two trees of ceil(log2 L), a 32-cycle division and two drained pipelines of 8.
    Counts: per element three activation reads, one write, three vector operations, two look-ups, one requantisation.
    """

    opcode = 0x38
    mnemonic = "softmax"

    factors: int = operand("u16", "parameter memory: 2 x 16 uint16 factors of the exponentials")
    fraction_bits: int = operand("u8", "the output scale is 2**-fraction_bits, 8..15", numerics.SOFTMAX_MIN_BITS)

    def check(self, machine: Machine) -> None:
        self.check_rows(machine, numerics.SOFTMAX_MAX_LENGTH - 1)
        low, high = numerics.SOFTMAX_MIN_BITS, numerics.SOFTMAX_MAX_BITS
        if not low <= self.fraction_bits <= high:
            raise ProgramError(f"softmax: fraction_bits={self.fraction_bits} is outside {low}..{high}")

    def execute(self, state: MachineState) -> None:
        factors = state.memory(Space.parameter).read_as(self, self.factors, 32, "u2").reshape(2, 16)
        if not (factors[:, 0] == numerics.SOFTMAX_ONE).all():
            raise ProgramError(f"softmax: what lies at {self.factors} is not from numerics.softmax_factors")
        values = numerics.softmax(self.read_rows(state), factors, self.fraction_bits)
        state.memory(Space.activation).write(self, self.out_address, (self.out_pitch, 1), values)

    def timing(self, machine: Machine) -> Timing:
        row = 3 * vectors(self.length, machine) + 2 * _tree(machine) + DIVIDE_32_CYCLES + 2 * VECTOR_PIPELINE
        return issue(-(-EXP_TABLE_BYTES // machine.vector.lanes) + self.rows * row)

    def counts(self, machine: Machine) -> Counts:
        elements = self.rows * self.length
        return {
            "vector_operations": 3 * elements,
            "table_lookups": 2 * elements,
            "requantizations": elements,
            "activation_read_bytes": 3 * elements,
            "activation_write_bytes": elements,
            "parameter_read_bytes": EXP_TABLE_BYTES,
        }


@dataclass(frozen=True, kw_only=True)
class LayerNorm(_Rows):
    """`numerics.layer_norm` of each row.

    Semantics: numerics.layer_norm with gain int16 [length] at `gain` and bias int16 [length] at `bias` in the
    parameter memory.
    Timing: each row 2*ceil(length/L) (sums; result), a tree of ceil(log2 L), a 64-cycle division and a 16-cycle
    square root (the mean's 32-cycle division runs beside them) and two drained pipelines of 8.
    Counts: per element two activation reads, one write, three vector MACs, one requantisation, four parameter bytes.
    """

    opcode = 0x39
    mnemonic = "layer_norm"

    gain: int = operand("u16", "parameter memory: int16 gains")
    bias: int = operand("u16", "parameter memory: int16 biases")
    shift: int = operand("u8", "common shift, 0..7")
    epsilon: int = operand("i64", "variance offset, at least 1")
    minimum: int = operand("i8", "smallest result", -128)
    maximum: int = operand("i8", "largest result", 127)

    def check(self, machine: Machine) -> None:
        self.check_rows(machine, numerics.LAYER_NORM_MAX_LENGTH)
        if not 0 <= self.shift <= numerics.LAYER_NORM_MAX_SHIFT or not 1 <= self.epsilon <= 1 << 48:
            raise ProgramError(f"layer_norm: shift={self.shift} or epsilon={self.epsilon} is outside 0..7, 1..2**48")

    def execute(self, state: MachineState) -> None:
        memory = state.memory(Space.parameter)
        gain = memory.read_as(self, self.gain, self.length, "i2")
        bias = memory.read_as(self, self.bias, self.length, "i2")
        values = numerics.layer_norm(
            self.read_rows(state), gain, bias, self.shift, self.epsilon, self.minimum, self.maximum
        )
        state.memory(Space.activation).write(self, self.out_address, (self.out_pitch, 1), values)

    def timing(self, machine: Machine) -> Timing:
        row = 2 * vectors(self.length, machine) + _tree(machine) + 2 * VECTOR_PIPELINE
        return issue(self.rows * (row + DIVIDE_64_CYCLES + SQUARE_ROOT_CYCLES))

    def counts(self, machine: Machine) -> Counts:
        elements = self.rows * self.length
        return {
            "vector_macs": 3 * elements,
            "requantizations": elements,
            "activation_read_bytes": 2 * elements,
            "activation_write_bytes": elements,
            "parameter_read_bytes": 4 * elements,
        }
