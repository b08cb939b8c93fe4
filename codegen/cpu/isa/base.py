"""The vector operations that the dense kernels are made of, and the facts a tile is chosen by.

A *quad* is four consecutive bytes of the reduction (four input channels, or four kernel taps) in one 32-bit lane;
`dot` multiplies quads of activations by quads of weights and adds the four products to an int32 lane. Every x86
and ARM level has that, natively or by 16-bit pairs. Methods work on any vector length that the level has
(`lanes` counts 32-bit lanes), because depthwise kernels and channel tails use the short ones too.

Dense matrix work is made of *blocks*: what one multiplication takes in and what one accumulator register holds is
data (`Block`), and `for_units`, `multiply`, `fold` and `unfold` are its code. The template reads the data and calls the
four; it knows no instruction set.

The versions here are portable TIR; a level overrides what it has an instruction for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from tvm import tirx

from qcompiler.codegen.cpu.emit import (
    Buffer,
    Emitter,
    Expr,
    bits,
    cast,
    constant,
    intrinsic,
    load,
    shuffle,
    splat,
    unpack,
    vector_type,
)
from qcompiler.codegen.cpu.instruction_set import InstructionSet

Array = npt.NDArray[Any]
UnitBody = Callable[[Expr, Callable[[int], tuple[Expr, ...]]], None]


@dataclass(frozen=True)
class Block:
    """The shape of the small matrix product behind `VectorInstructionSet.multiply`.

    rows: output positions in one accumulator register, beside ``lanes / rows`` channels; `rows` registers hold the
    same positions by one whole vector of channels. depth: bytes of the reduction that one multiplication sums, also
    the unit in which weights are packed. run: bytes of a position that one load brings, for run / depth of them.
    keeps: what stays in registers during one multiplication of all groups with all vectors; the other comes one by one.
    """

    rows: int = 1
    depth: int = 4
    run: int = 4
    keeps: Literal["weights", "operands"] = "weights"

    def groups(self, positions: int) -> int:
        """Groups of `rows` positions that cover them."""
        return -(-positions // self.rows)

    def units(self, quads: int) -> int:
        """Multiplications that cover that many quads of the reduction."""
        return -(-4 * quads // self.depth)


@dataclass(frozen=True, eq=False)
class VectorInstructionSet(InstructionSet):
    """block: of the dense kernels; registers: vector registers; peak_macs: int8 multiply-accumulates a cycle at best.

    dot_latency: cycles from one `dot` or `multiply` to the next on the same accumulator; dots_per_cycle: those on full
    vectors that can start each cycle; operand_dots: what preparing one position's operand costs beside its load,
    counted in dots; weight_registers, operand_registers, dot_temporaries: registers that a vector of weights of one
    unit, the operand of a position (for a whole run) and the inside of a `dot` take; rounds_down: `floor_fma_int`
    costs one FMA and one conversion, rounded inside the instructions; own_tables: `table_look_up` uses
    what the level adds to its base; most_positions, most_vectors: the largest tile;
    most_vectors_alone: of a tile with one position; prefetches: weights of the next block are asked
    for in time (measured to pay on x86); opaque_loops: the loops over the window must not be unrolled, because LLVM
    would then lift weights out of the loop over tiles and spill accumulators for them. complements: of weights
    packed at run time, bytes 2 and 3 of each quad are kept as their complements (see `multiply`).
    """

    block: Block = Block()
    registers: int = 16
    dots_per_cycle: float = 1.0
    dot_latency: int = 5
    operand_dots: float = 0.0
    weight_registers: int = 1
    operand_registers: int = 1
    dot_temporaries: int = 0
    weight_dtype: str = "int8"
    rounds_down: bool = False
    own_tables: bool = False
    most_positions: int = 32
    most_vectors: int = 4
    most_vectors_alone: int = 8
    prefetches: bool = False
    opaque_loops: bool = False
    complements: bool = False

    @property
    def add_scalars(self) -> int:
        """How many numbers `add_constants` gives."""
        return len(self.add_constants(1, 1, 0, 1))

    @property
    def peak_macs(self) -> float:
        return self.dots_per_cycle * self.lanes(4) * self.block.depth

    @property
    def operand_dtype(self) -> str:
        """Element type in which dense matrix work reads its input: the storage type, or a wider one (see `pad`)."""
        return self.storage

    # ------------------------------------------------------------------------------------ dot product
    def arrange_weights(self, weights: Array) -> Array:
        """Weights int8 [..., lanes, depth] as they lie in memory, [..., elements] of `weight_dtype`.

        depth: 4 for `dot`, the block's for `multiply`.
        """
        return np.ascontiguousarray(weights.reshape(*weights.shape[:-2], -1))

    def load_weights(self, buffer: Buffer, index: Expr, lanes: int) -> tuple[Expr, ...]:
        """One arranged vector of weight quads from element `index` on; 4 * lanes elements."""
        return (load(buffer, index, 4 * lanes),)

    def operand(self, quads: Expr, lanes: int) -> tuple[Expr, ...]:
        """Stored activation bytes (4 * lanes of them) as `dot` wants them."""
        return (quads,)

    def interleaved_operands(self, rows: Sequence[Expr], lanes: int) -> list[tuple[Expr, ...]]:
        """The four operands that `interleave` makes of four vectors of stored bytes."""
        return [self.operand(quads, lanes) for quads in self.interleave(rows, lanes)]

    def dot(self, acc: Expr, operand: tuple[Expr, ...], weights: tuple[Expr, ...], lanes: int) -> Expr:
        """``acc[l] + sum over j of activation[4l + j] * weight[4l + j]``, exact modulo 2**32.

        A level may require that no two factors of one product are both -128, which holds for constant weights.
        """
        raise NotImplementedError  # pragma: no cover - abstract

    @property
    def saturating_pairs(self) -> bool:
        """Whether `saturating_dot` exists and is cheaper than `dot`."""
        return False

    def saturating_dot(self, acc: Expr, factors: Sequence[tuple[Expr, Expr]]) -> Expr:
        """The sum of `dot`s of unsigned stored bytes and int8 weights, (quads, weights) each.

        No product of a pair of bytes, and no sum of those of all factors, may leave 16 bits.
        """
        raise NotImplementedError  # pragma: no cover - abstract

    # ------------------------------------------------------------------------------------------ blocks
    def load_block_weights(self, buffer: Buffer, index: Expr, lanes: int) -> tuple[Expr, ...]:
        """One arranged vector of weights of the block's depth from element `index` on; depth * lanes elements."""
        return self.load_weights(buffer, index, lanes)

    def weight_stream(self, e: Emitter, buffer: Buffer, index: Expr) -> Callable[[], list[Expr]] | None:
        """Reads arranged weights from element `index` on, some registers of them a call, in the order of memory.

        For one position, which reads every weight once; None where that is not cheaper than `load_block_weights`.
        """
        return None

    def for_units(self, e: Emitter, x: Buffer, groups: Sequence[Sequence[Expr]], units: int, body: UnitBody) -> None:
        """Emit ``body(unit, operand_of)`` for `units` multiplications along one run of every group of positions.

        groups: the index in `x` of the run of each of the group's `rows` positions. units: run / depth, or fewer at
        the end. ``operand_of(group)`` is the operand of `multiply`. Loads may reach past the bytes that are multiplied.
        """
        body(constant(0), lambda group: self.load_operand(e, x, groups[group][0]))

    def load_operand(self, e: Emitter, x: Buffer, index: Expr) -> tuple[Expr, ...]:
        """The operand of one quad for every lane alike, where a run is one quad of one position."""
        return tuple(e.bind_typed(v) for v in self.operand(self.broadcast_quad(x, index), self.lanes(4)))

    def broadcast_quad(self, x: Buffer, index: Expr) -> Expr:
        """Four stored bytes in every lane."""
        word = bits(load(x, index, 4), "int32")
        return bits(splat(word, "int32", self.lanes(4)), f"{self.storage}x{self.vector_bytes}")

    def multiply(
        self, acc: Sequence[Expr], operand: tuple[Expr, ...], weights: tuple[Expr, ...], constant_weights: bool
    ) -> list[Expr]:
        """The `rows` accumulators of a group and a vector of channels, one multiplication further.

        constant_weights: no weight is -128. Otherwise, on a level that `complements`, what is added for bytes 2 and 3
        of a quad is activation * (weight + 1), in words of the weights as they were before they were packed.
        """
        return [self.dot(acc[0], operand, weights, self.lanes(4))]

    def fold(self, vectors: Sequence[Expr]) -> list[Expr]:
        """`rows` vectors, one position each by all lanes' channels, as accumulators."""
        return list(vectors)

    def unfold(self, acc: Sequence[Expr]) -> list[Expr]:
        """The inverse of `fold`."""
        return list(acc)

    # ------------------------------------------------------------------------------------- requantise
    def floor_fma(self, acc: Expr, scale: Expr, addend: Expr, lanes: int) -> Expr:
        """``floor(acc * scale + addend)`` as float32, exact for |acc| <= 2**24 wherever the result is below 2**22.

        acc: float32 integers; addend: a float32 scalar, a multiple of 1/2 below 2**20. Rounding to nearest can carry
        the sum up to an integer that the exact value stays below. A second FMA computes the exact value's distance
        from the candidate: one rounding of a number cannot change its sign, so a negative distance means one too many.
        """
        dtype = f"float32x{lanes}"
        half = splat(addend, "float32", lanes)
        candidate = self.floor(intrinsic("llvm.fma", dtype, acc, scale, half), lanes)
        distance = intrinsic("llvm.fma", dtype, acc, scale, half - candidate)
        one = splat(1.0, "float32", lanes)
        zero = splat(0.0, "float32", lanes)
        return candidate - tirx.Select(distance < zero, one, zero)

    def floor(self, value: Expr, lanes: int) -> Expr:
        """float32 rounded down to an integer; exact below 2**22 in magnitude, of the right sign and far out above."""
        return intrinsic("llvm.floor", f"float32x{lanes}", value)

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

    def as_weights(self, quads: Sequence[Expr], lanes: int) -> list[tuple[Expr, str, int]]:
        """Stored activations as arranged weights: (vector, element type, elements), to be stored in turn.

        quads: depth / 4 vectors, the quads of one multiplication in order.
        """
        raise NotImplementedError  # pragma: no cover - abstract

    # ---------------------------------------------------------------------------------- 16-bit words
    def widen(self, x: Expr, count: int) -> list[Expr]:
        """Stored bytes as int16: two vectors of half of them each, in `word_order`; one vector of fewer than 16."""
        if count < 16:
            return [cast(x, vector_type("int16", count))]
        halves = (range(count // 2), range(count // 2, count))
        return [cast(shuffle([x], half), f"int16x{count // 2}") for half in halves]

    def narrow(self, words: Sequence[Expr], count: int) -> Expr:
        """The inverse of `widen`, for any int16: saturated to the storage type."""
        low, high = (0, 255) if self.storage == "uint8" else (-128, 127)
        size = count // len(words)
        dtype = vector_type(self.storage, size)
        parts = [
            cast(tirx.max(tirx.min(w, splat(high, "int16", size)), splat(low, "int16", size)), dtype) for w in words
        ]
        return parts[0] if len(parts) == 1 else shuffle(parts, range(count))

    def word_order(self, count: int) -> list[int]:
        """Which byte each word that `widen` makes comes from; bytes that `unpack` interleaves lie in the same order."""
        return list(range(count))

    def multiply_high(self, a: Expr, b: Expr, words: int) -> Expr:
        """The upper 16 bits of products of uint16."""
        wide = vector_type("uint32", words)
        product = tirx.shift_right(cast(a, wide) * cast(b, wide), splat(16, "uint32", words))
        return cast(product, vector_type("uint16", words))

    def multiply_high_round(self, a: Expr, b: Expr, words: int) -> Expr:
        """`numerics.multiply_high_round` of int16; not both are -2**15."""
        wide = vector_type("int32", words)
        product = cast(a, wide) * cast(b, wide) + splat(1 << 14, "int32", words)
        return cast(tirx.shift_right(product, splat(15, "int32", words)), vector_type("int16", words))

    def dot_words(self, acc: Expr, a: Expr, b: Expr, words: int) -> Expr:
        """Adds the products of int16 words to int32 lanes, half as many (as many for fewer than eight words)."""
        if words < 8:
            wide = vector_type("int32", words)
            return acc + cast(a, wide) * cast(b, wide)
        for half in (range(words // 2), range(words // 2, words)):
            acc = acc + cast(shuffle([a], half), f"int32x{words // 2}") * cast(
                shuffle([b], half), f"int32x{words // 2}"
            )
        return acc

    # ------------------------------------------------------------------------------------- fused steps
    def add_constants(self, multiplier_a: int, multiplier_b: int, bias: int, shift: int) -> list[int]:
        """The numbers of a `numerics.add` as `rescaled_add` wants them, `add_scalars` of int32."""
        return [multiplier_a, multiplier_b, bias, shift]

    def rescaled_add(self, a: Expr, b: Expr, scalars: Sequence[Expr], lanes: int) -> Expr:
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

    @property
    def short_table_bytes(self) -> int:
        """Size of an arranged table of 16 bytes."""
        return 16

    def arrange_short_table(self, table: Array) -> Array:
        """16 bytes of the storage type as `short_look_up` reads them."""
        return table

    def short_look_up(self, table: Buffer, index: Expr, count: int) -> Expr:
        """The entries at indices 0..15, a vector of storage type."""
        return tirx.BufferLoad(table, [cast(index, vector_type("int32", count))])
