"""AArch64 levels: i8mm (SMMLA), dotprod (SDOT) and neon (widening multiplies); activations are stored as int8.

Source for instruction semantics: Arm Architecture Reference Manual for A-profile, DDI 0487; for throughput: Arm
Cortex-A76 and Cortex-A53 software optimisation guides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
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
)
from qcompiler.codegen.cpu.isa.base import Array, Block, UnitBody, VectorInstructionSet

LANES = 4  # 32-bit lanes of a NEON register
STREAM_REGISTERS = 4  # of one LD1
# LD1 of four registers has no offset to its address, but can count it on. LLVM does so only where the next address is
# seen to come from this one; the empty assembly keeps it from computing all of them from the first.
_STREAM = """
declare {R, R, R, R} @llvm.aarch64.neon.ld1x4.v16i8.p0(ptr)
define <64 x i8> @qc_stream(ptr %cell) {
  %at = load ptr, ptr %cell
  %r = call {R, R, R, R} @llvm.aarch64.neon.ld1x4.v16i8.p0(ptr %at)
  %behind = getelementptr i8, ptr %at, i64 64
  %next = call ptr asm "", "=r,0"(ptr %behind)
  store ptr %next, ptr %cell
  %a = extractvalue {R, R, R, R} %r, 0
  %b = extractvalue {R, R, R, R} %r, 1
  %c = extractvalue {R, R, R, R} %r, 2
  %d = extractvalue {R, R, R, R} %r, 3
  %ab = shufflevector R %a, R %b, <32 x i32> <I32>
  %cd = shufflevector R %c, R %d, <32 x i32> <I32>
  %abcd = shufflevector <32 x i8> %ab, <32 x i8> %cd, <64 x i32> <I64>
  ret <64 x i8> %abcd
}
""".replace("R", "<16 x i8>")
for _count in (32, 64):
    _STREAM = _STREAM.replace(f"<I{_count}>", f"<{', '.join(f'i32 {i}' for i in range(_count))}>")


@dataclass(frozen=True, eq=False)
class Neon(VectorInstructionSet):
    """ARMv8.0: SMULL and SMLAL2 make and add 16-bit products, SADALP widens pairs of them into the accumulator.

    Vectors of quads hold the first pair of bytes of every lane, then the second pairs, so that the two products of a
    16-bit sum belong to the same lane. Such a sum is exact unless all four factors are -128: constant weights are in
    [-127, 127], and 2 * 128 * 127 = 32512 < 2**15. Of weights that may be -128 (`multiply` of two activations), the
    second pairs are complemented and their products subtracted: -a * ~w = a * (w + 1), and a difference of two
    products is at most 128 * 128 + 128 * 127 = 32640.
    """

    def arrange_weights(self, weights: Array) -> Array:
        pairs = weights.reshape(*weights.shape[:-1], weights.shape[-1] // 2, 2)
        return np.ascontiguousarray(pairs.swapaxes(-3, -2).reshape(*weights.shape[:-2], -1))

    def as_weights(self, quads: Sequence[Expr], lanes: int) -> list[tuple[Expr, str, int]]:
        halves = bits(shuffle([constant(w) for w in (0, 0, -1, -1)], range(4)), "int8x16")
        return [(tirx.bitwise_xor(*self.operand(quads[0], lanes), halves), "int8", 4 * lanes)]

    def operand(self, quads: Expr, lanes: int) -> tuple[Expr, ...]:
        pairs = bits(quads, f"int16x{2 * lanes}")
        order = [2 * lane + pair for pair in (0, 1) for lane in range(lanes)]
        return (bits(shuffle([pairs], order), f"int8x{4 * lanes}"),)

    def interleaved_operands(self, rows: Sequence[Expr], lanes: int) -> list[tuple[Expr, ...]]:
        count, operands = 4 * lanes, []
        for half in (False, True):
            first, second = (unpack(rows[i], rows[i + 1], 1, half, count) for i in (0, 2))
            operands += [(unpack(first, second, 8, quarter, count),) for quarter in (False, True)]
        return operands

    def weight_stream(self, e: Emitter, buffer: Buffer, index: Expr) -> Callable[[], list[Expr]] | None:
        cell = e.cell(buffer, index)

        def read() -> list[Expr]:
            joined = e.bind(e.call(_STREAM, "qc_stream", "int8x64", cell), "int8x64", "weights")
            return [shuffle([joined], range(16 * i, 16 * (i + 1))) for i in range(STREAM_REGISTERS)]

        return read

    def for_units(self, e: Emitter, x: Buffer, groups: Sequence[Sequence[Expr]], units: int, body: UnitBody) -> None:
        # A loop: side by side, LLVM's scheduler would make all products of a run before it adds the first of them.
        runs = [e.bind_typed(load(x, at[0], 16)) for at in groups]
        pick = e.registers(1, "int8x16", "pick")
        pick[0] = bits(
            shuffle([constant(w) for w in (0x01000100, 0x01000100, 0x03020302, 0x03020302)], range(4)), "int8x16"
        )
        with e.loop(e.opaque(units), "unit") as unit:
            index = e.bind_typed(pick[0])

            def operand_of(group: int) -> tuple[Expr, ...]:
                return (e.bind_typed(intrinsic("llvm.aarch64.neon.tbl1.v16i8", "int8x16", runs[group], index)),)

            body(unit, operand_of)
            pick[0] = index + splat(4, "int8", 16)

    def dot(self, acc: Expr, operand: tuple[Expr, ...], weights: tuple[Expr, ...], lanes: int) -> Expr:
        low, high = self._products(operand[0], weights[0])
        return self.add_pairs(acc, low + high)

    def multiply(
        self, acc: Sequence[Expr], operand: tuple[Expr, ...], weights: tuple[Expr, ...], constant_weights: bool
    ) -> list[Expr]:
        if constant_weights:
            return [self.dot(acc[0], operand, weights, LANES)]
        low, high = self._products(operand[0], weights[0])
        return [self.add_pairs(acc[0], low - high)]

    def _products(self, a: Expr, b: Expr) -> list[Expr]:
        """The 16 products of two byte vectors, as two int16 vectors."""
        halves = ([shuffle([v], half) for v in (a, b)] for half in (range(8), range(8, 16)))
        return [self.multiply_bytes(*half) for half in halves]

    def multiply_bytes(self, a: Expr, b: Expr) -> Expr:
        """Eight products of bytes, as int16."""
        return intrinsic("llvm.aarch64.neon.smull.v8i16", "int16x8", a, b)

    def add_pairs(self, acc: Expr, words: Expr) -> Expr:
        """``acc`` plus the sums of neighbouring int16, in int32."""
        return acc + intrinsic("llvm.aarch64.neon.saddlp.v4i32.v8i16", "int32x4", words)

    def pack(self, vectors: Sequence[Expr], lanes: int) -> Expr:
        """SQXTN twice: saturated to 16 bits, then to 8; bytes stay in order."""
        words = [intrinsic("llvm.aarch64.neon.sqxtn.v4i16", "int16x4", v) for v in vectors]
        joined = [shuffle(words[i : i + 2], range(8)) for i in (0, 2)]
        halves = [intrinsic("llvm.aarch64.neon.sqxtn.v8i8", "int8x8", w) for w in joined]
        return shuffle(halves, range(16))

    def multiply_high_round(self, a: Expr, b: Expr, words: int) -> Expr:
        if words != 8:
            return super().multiply_high_round(a, b, words)
        return intrinsic("llvm.aarch64.neon.sqrdmulh.v8i16", "int16x8", a, b)

    def rescaled_add(self, a: Expr, b: Expr, scalars: Sequence[Expr], lanes: int) -> Expr:
        multiplier_a, multiplier_b, bias, shift = (splat(s, "int32", lanes) for s in scalars)
        sums = []
        for v in range(4):
            wide = [cast(shuffle([x], range(lanes * v, lanes * (v + 1))), f"int32x{lanes}") for x in (a, b)]
            total = wide[0] * multiplier_a + wide[1] * multiplier_b
            sums.append(tirx.shift_right(total + bias, shift))
        return self.pack(sums, lanes)

    def table_look_up(self, e: Emitter, table: Buffer) -> Callable[[Expr, int], Expr]:
        """TBL looks up 64 entries, three TBX the other ones; an index outside its 64 leaves the result alone."""
        entries = [e.bind(load(table, 16 * k, 16), "int8x16", "entries") for k in range(16)]

        def look_up(x: Expr, count: int) -> Expr:
            if count < 16:  # short tails: widen by lanes that nobody reads
                wide = shuffle([x] * (16 // count), range(16)) if count > 1 else splat(x, "int8", 16)
                return shuffle([look_up(wide, 16)], range(count))
            index = bits(tirx.bitwise_xor(x, splat(-128, "int8", 16)), "int8x16")
            result = intrinsic("llvm.aarch64.neon.tbl4.v16i8", "int8x16", *entries[:4], index)
            for k in range(1, 4):
                index = e.bind(index - splat(64, "int8", 16), "int8x16", "index")
                quarter = entries[4 * k : 4 * k + 4]
                result = intrinsic("llvm.aarch64.neon.tbx4.v16i8", "int8x16", result, *quarter, index)
            return result

        return look_up

    def short_look_up(self, table: Buffer, index: Expr, count: int) -> Expr:
        if count < 16:
            return super().short_look_up(table, index, count)
        return intrinsic("llvm.aarch64.neon.tbl1.v16i8", "int8x16", load(table, 0, 16), index)


@dataclass(frozen=True, eq=False)
class Dotprod(Neon):
    """ARMv8.2: SDOT adds four signed products to each 32-bit lane; one factor may be one lane of a register for all."""

    def arrange_weights(self, weights: Array) -> Array:
        return VectorInstructionSet.arrange_weights(self, weights)

    def operand(self, quads: Expr, lanes: int) -> tuple[Expr, ...]:
        return (quads,)

    def as_weights(self, quads: Sequence[Expr], lanes: int) -> list[tuple[Expr, str, int]]:
        return [(quads[0], "int8", 4 * lanes)]

    def interleaved_operands(self, rows: Sequence[Expr], lanes: int) -> list[tuple[Expr, ...]]:
        return VectorInstructionSet.interleaved_operands(self, rows, lanes)

    def for_units(self, e: Emitter, x: Buffer, groups: Sequence[Sequence[Expr]], units: int, body: UnitBody) -> None:
        runs = [e.bind(bits(load(x, at[0], 16), "int32x4"), "int32x4") for at in groups]
        for unit in range(units):
            # The duplication is no instruction: SDOT by element takes the lane from the register.
            body(constant(unit), lambda group: (bits(shuffle([runs[group]], [unit] * LANES), "int8x16"),))  # noqa: B023

    def dot(self, acc: Expr, operand: tuple[Expr, ...], weights: tuple[Expr, ...], lanes: int) -> Expr:
        return intrinsic("llvm.aarch64.neon.sdot.v4i32.v16i8", "int32x4", acc, operand[0], weights[0])

    def multiply(
        self, acc: Sequence[Expr], operand: tuple[Expr, ...], weights: tuple[Expr, ...], constant_weights: bool
    ) -> list[Expr]:
        # The indexed factor is the second one.
        return [self.dot(acc[0], weights, operand, LANES)]


@dataclass(frozen=True, eq=False)
class I8mm(Dotprod):
    """ARMv8.6: SMMLA adds the product of a 2x8 and an 8x2 matrix to a 2x2 one: two positions by two channels."""

    def load_block_weights(self, buffer: Buffer, index: Expr, lanes: int) -> tuple[Expr, ...]:
        return (load(buffer, index, 16), load(buffer, index + 16, 16))

    def as_weights(self, quads: Sequence[Expr], lanes: int) -> list[tuple[Expr, str, int]]:
        return [(unpack(quads[0], quads[1], 4, high, 4 * lanes), "int8", 4 * lanes) for high in (False, True)]

    def for_units(self, e: Emitter, x: Buffer, groups: Sequence[Sequence[Expr]], units: int, body: UnitBody) -> None:
        runs = [[e.bind_typed(load(x, index, 16)) for index in at] for at in groups]
        for unit in range(units):
            operands = [e.bind_typed(unpack(first, second, 8, bool(unit), 16)) for first, second in runs]
            body(constant(unit), lambda group: (operands[group],))  # noqa: B023

    def multiply(
        self, acc: Sequence[Expr], operand: tuple[Expr, ...], weights: tuple[Expr, ...], constant_weights: bool
    ) -> list[Expr]:
        return [
            intrinsic("llvm.aarch64.neon.smmla.v4i32.v16i8", "int32x4", a, operand[0], w)
            for a, w in zip(acc, weights, strict=True)
        ]

    def fold(self, vectors: Sequence[Expr]) -> list[Expr]:
        return [shuffle(vectors, order) for order in ((0, 1, 4, 5), (2, 3, 6, 7))]

    def unfold(self, acc: Sequence[Expr]) -> list[Expr]:
        return self.fold(acc)  # its own inverse


_TRIPLE = {"kind": "llvm", "mtriple": "aarch64-unknown-linux-gnu"}
NEON = Neon(
    name="neon",
    vector_bytes=16,
    llvm={**_TRIPLE, "mcpu": "cortex-a72"},  # the same instructions as cortex-a53, whose scheduling model spills
    storage="int8",
    cpu_flags=("asimd",),
    block=Block(run=16),
    registers=32,
    dots_per_cycle=0.33,
    dot_latency=8,
    operand_dots=0.33,
    operand_registers=1,
    dot_temporaries=9,  # products, and what picks a quad out of a run
    opaque_loops=True,
    complements=True,
)
DOTPROD = Dotprod(
    name="dotprod",
    vector_bytes=16,
    llvm={**_TRIPLE, "mcpu": "cortex-a76"},
    storage="int8",
    cpu_flags=("asimd", "asimddp"),
    block=Block(run=16, keeps="operands"),
    registers=32,
    dots_per_cycle=2.0,
    dot_latency=2,
    dot_temporaries=1,
    opaque_loops=True,
)
I8MM = I8mm(
    name="i8mm",
    vector_bytes=16,
    llvm={**_TRIPLE, "mcpu": "neoverse-n1", "mattr": ["+i8mm"]},
    storage="int8",
    cpu_flags=("asimd", "asimddp", "i8mm"),
    block=Block(rows=2, depth=8, run=16, keeps="operands"),
    registers=32,
    dots_per_cycle=2.0,
    dot_latency=2,
    operand_dots=0.5,
    weight_registers=2,
    most_positions=8,
    most_vectors=6,
    opaque_loops=True,
)
ARM_LEVELS: tuple[Neon, ...] = (I8MM, DOTPROD, NEON)
