"""The vector operations that the dense kernels are made of, and the facts a tile is chosen by.

A *quad* is four consecutive bytes of the reduction (four input channels, or four kernel taps) in one 32-bit lane;
`dot` multiplies quads of activations by quads of weights and adds the four products to an int32 lane. Every x86
and ARM level has that, natively or by 16-bit pairs. Methods work on any vector length that the level has
(`lanes` counts 32-bit lanes), because depthwise kernels and channel tails use the short ones too.

The versions here are portable TIR; a level overrides what it has an instruction for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm import tirx

from qcompiler.codegen.cpu.emit import Buffer, Emitter, Expr, cast, intrinsic, load, shuffle, splat, unpack, vector_type
from qcompiler.codegen.cpu.instruction_set import InstructionSet

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class VectorInstructionSet(InstructionSet):
    """registers: vector registers; peak_macs: int8 multiply-accumulates a cycle at best (for shares of peak);

    dot_latency: cycles from one `dot` to the next on the same accumulator; dots_per_cycle: dots of full vectors
    that can start each cycle; weight_registers, operand_registers, dot_temporaries: registers that a vector of
    weights, a quad of activations and the inside of a `dot` take; rounds_down: `floor_fma_int` costs one FMA and one
    conversion, rounded inside the instructions.
    """

    registers: int = 16
    dots_per_cycle: float = 1.0
    dot_latency: int = 5
    weight_registers: int = 1
    operand_registers: int = 1
    dot_temporaries: int = 0
    weight_dtype: str = "int8"
    rounds_down: bool = False

    @property
    def peak_macs(self) -> float:
        return self.dots_per_cycle * self.vector_bytes

    # ------------------------------------------------------------------------------------ dot product
    def arrange_weights(self, quads: Array) -> Array:
        """Weight quads int8 [..., lanes, 4] as they lie in memory, [..., elements] of `weight_dtype`."""
        return np.ascontiguousarray(quads.reshape(*quads.shape[:-2], -1))

    def load_weights(self, buffer: Buffer, index: Expr, lanes: int) -> tuple[Expr, ...]:
        """One arranged vector of weight quads from element `index` on; 4 * lanes elements."""
        return (load(buffer, index, 4 * lanes),)

    def operand(self, quads: Expr, lanes: int) -> tuple[Expr, ...]:
        """Stored activation bytes (4 * lanes of them) as `dot` wants them."""
        return (quads,)

    def dot(self, acc: Expr, operand: tuple[Expr, ...], weights: tuple[Expr, ...], lanes: int) -> Expr:
        """``acc[l] + sum over j of activation[4l + j] * weight[4l + j]``, exact modulo 2**32."""
        raise NotImplementedError  # pragma: no cover - abstract

    # ------------------------------------------------------------------------------------- requantise
    def floor_fma(self, acc: Expr, scale: Expr, addend: Expr, lanes: int) -> Expr:
        """``floor(acc * scale + addend)`` as float32, exact for |acc| <= 2**24 wherever the result is below 2**22.

        acc: float32 integers; addend: a float32 scalar, a multiple of 1/2 below 2**20. Rounding to nearest can carry
        the sum up to an integer that the exact value stays below. A second FMA computes the exact value's distance
        from the candidate: one rounding of a number cannot change its sign, so a negative distance means one too many.
        """
        dtype = f"float32x{lanes}"
        half = splat(addend, "float32", lanes)
        candidate = intrinsic("llvm.floor", dtype, intrinsic("llvm.fma", dtype, acc, scale, half))
        distance = intrinsic("llvm.fma", dtype, acc, scale, half - candidate)
        one = splat(1.0, "float32", lanes)
        zero = splat(0.0, "float32", lanes)
        return candidate - tirx.Select(distance < zero, one, zero)

    def floor_fma_int(self, acc: Expr, scale: Expr, addend: Expr, lanes: int, bounded: bool) -> Expr:
        """`floor_fma` as int32. bounded: no result leaves int32; otherwise it is clamped to +-2**20 first."""
        value = self.floor_fma(acc, scale, addend, lanes)
        if not bounded:
            limit = splat(float(1 << 20), "float32", lanes)
            value = tirx.max(tirx.min(value, limit), splat(-float(1 << 20), "float32", lanes))
        return cast(value, f"int32x{lanes}")

    def pack(self, vectors: Sequence[Expr], lanes: int) -> Expr:
        """Four int32 vectors saturated to the storage type, 4 * lanes bytes in the order `pack_order` tells."""
        raise NotImplementedError  # pragma: no cover - abstract

    def pack_order(self, lanes: int) -> list[tuple[int, int]]:
        """(vector, lane) of each byte that `pack` returns."""
        return [(v, i) for v in range(4) for i in range(lanes)]

    # ------------------------------------------------------------------------------------ interleaving
    def interleave(self, rows: Sequence[Expr], lanes: int) -> list[Expr]:
        """Transposes four vectors of 4 * lanes bytes into quads: four vectors whose lane (v, i) is the

        quad of the byte that `pack` puts back to where it came from: ``pack(interleave(x))`` keeps the order.
        """
        count = 4 * lanes
        pairs = [[unpack(rows[i], rows[i + 1], 1, high, count) for i in (0, 2)] for high in (False, True)]
        return [unpack(p[0], p[1], 2, high, count) for p in pairs for high in (False, True)]

    def transpose_words(self, rows: Sequence[Expr], lanes: int) -> list[Expr]:
        """`lanes` rows of four 32-bit words (16 bytes each) to four vectors: word j of every row, in row order."""
        # Vector j joins rows j, 4 + j, 8 + j, ...: then a 4x4 transpose inside each 128-bit block.
        count = 4 * lanes
        joined = [shuffle([rows[block + j] for block in range(0, lanes, 4)], range(count)) for j in range(4)]
        low = [unpack(joined[0], joined[1], 4, high, count) for high in (False, True)]
        high = [unpack(joined[2], joined[3], 4, high, count) for high in (False, True)]
        return [unpack(low[i], high[i], 8, half, count) for i in (0, 1) for half in (False, True)]

    def as_weights(self, quads: Expr, lanes: int) -> list[tuple[Expr, str, int]]:
        """Stored activation quads as arranged weights: (vector, element type, elements), to be stored in turn."""
        raise NotImplementedError  # pragma: no cover - abstract

    # ------------------------------------------------------------------------------------- fused steps
    def rescaled_add(
        self, a: Expr, b: Expr, multiplier_a: int, multiplier_b: int, bias: int, shift: int, lanes: int
    ) -> Expr:
        """`numerics.add` of two stored byte vectors (4 * lanes bytes), saturated to int8, as stored bytes."""
        raise NotImplementedError  # pragma: no cover - abstract

    def clamp_words(self, value: Expr, minimum: int, maximum: int, lanes: int) -> Expr:
        """int32 ``q + storage offset`` clamped to the int8 range minimum..maximum; packing saturates to int8 itself."""
        offset = self.storage_offset
        if minimum > -128:
            value = tirx.max(value, splat(minimum + offset, "int32", lanes))
        if maximum < 127:
            value = tirx.min(value, splat(maximum + offset, "int32", lanes))
        return value

    def clamp_bytes(self, value: Expr, minimum: int, maximum: int, count: int) -> Expr:
        """Stored bytes clamped to the int8 range minimum..maximum."""
        dtype, low = ("uint8", 0) if self.storage == "uint8" else ("int8", -128)
        offset = self.storage_offset
        if minimum + offset > low:
            value = tirx.max(value, splat(minimum + offset, dtype, count))
        if maximum + offset < low + 255:
            value = tirx.min(value, splat(maximum + offset, dtype, count))
        return value

    # ------------------------------------------------------------------------------------------- tables
    @property
    def table_bytes(self) -> int:
        """Size of an arranged 256-entry table."""
        return 256

    def arrange_table(self, table: Array) -> Array:
        """A stored table (entry i belongs to the value i - 128) as `table_look_up` reads it."""
        return table

    def table_look_up(self, e: Emitter, table: Buffer) -> Callable[[Expr, int], Expr]:
        """Loads what can stay in registers, once; the result maps stored bytes (vector, count) to stored bytes."""

        def look_up(x: Expr, count: int) -> Expr:
            offset = splat(128 - self.storage_offset, "int32", count)
            index = cast(x, vector_type("int32", count)) + offset
            return tirx.BufferLoad(table, [index])

        return look_up
