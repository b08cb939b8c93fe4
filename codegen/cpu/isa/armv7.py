"""32-bit Armv7-A with NEON and VFPv4 (Cortex-A7, A15, A17 and the 32-bit mode of later cores): 16 vector registers.

Source for instruction semantics: Arm Architecture Reference Manual, Armv7-A and Armv7-R edition, DDI 0406. NEON there
flushes subnormal floats to zero; no scaled accumulator or distance in `floor_fma` is one, because scales are normal
and addends are odd multiples of 1/2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tvm import tirx

from qcompiler.codegen.cpu.emit import Buffer, Emitter, Expr, bits, cast, intrinsic, load, shuffle, splat
from qcompiler.codegen.cpu.isa.arm import Neon
from qcompiler.codegen.cpu.isa.base import UnitBody, VectorInstructionSet


@dataclass(frozen=True, eq=False)
class Neon32(Neon):
    """VMULL.S8 and VMLAL.S8 make and add 16-bit products, VPADAL.S16 widens pairs of them into the accumulator."""

    def weight_stream(self, e: Emitter, buffer: Buffer, index: Expr) -> None:
        return None  # VLD1 brings four registers of eight bytes: two as the others count

    def for_units(self, e: Emitter, x: Buffer, groups: Sequence[Sequence[Expr]], units: int, body: UnitBody) -> None:
        VectorInstructionSet.for_units(self, e, x, groups, units, body)

    def load_operand(self, e: Emitter, x: Buffer, index: Expr) -> tuple[Expr, ...]:
        pairs = [splat(bits(load(x, index + first, 2), "int16"), "int16", 4) for first in (0, 2)]
        return (e.bind_typed(bits(shuffle(pairs, range(8)), "int8x16")),)

    def multiply_bytes(self, a: Expr, b: Expr) -> Expr:
        return intrinsic("llvm.arm.neon.vmulls.v8i16", "int16x8", a, b)

    def add_pairs(self, acc: Expr, words: Expr) -> Expr:
        return intrinsic("llvm.arm.neon.vpadals.v4i32.v8i16", "int32x4", acc, words)

    def pack(self, vectors: Sequence[Expr], lanes: int) -> Expr:
        """VQMOVN twice: saturated to 16 bits, then to 8; bytes stay in order."""
        words = [intrinsic("llvm.arm.neon.vqmovns.v4i16", "int16x4", v) for v in vectors]
        joined = [shuffle(words[i : i + 2], range(8)) for i in (0, 2)]
        halves = [intrinsic("llvm.arm.neon.vqmovns.v8i8", "int8x8", w) for w in joined]
        return shuffle(halves, range(16))

    def floor(self, value: Expr, lanes: int) -> Expr:
        # No instruction rounds down: convert towards zero, back, and correct. The limit keeps the conversion in int32;
        # what lies beyond it saturates either way.
        dtype, limit = f"float32x{lanes}", float(1 << 30)
        value = tirx.max(tirx.min(value, splat(limit, "float32", lanes)), splat(-limit, "float32", lanes))
        whole = cast(cast(value, f"int32x{lanes}"), dtype)
        one, zero = (splat(number, "float32", lanes) for number in (1.0, 0.0))
        return whole - tirx.Select(value < whole, one, zero)

    def table_look_up(self, e: Emitter, table: Buffer) -> Callable[[Expr, int], Expr]:
        # 256 entries fill all sixteen registers: byte loads are better.
        return VectorInstructionSet.table_look_up(self, e, table)

    def short_look_up(self, table: Buffer, index: Expr, count: int) -> Expr:
        """VTBL looks up eight bytes in a pair of registers."""
        if count < 16:
            return super().short_look_up(table, index, count)
        entries = [load(table, half, 8) for half in (0, 8)]
        parts = [shuffle([index], range(half, half + 8)) for half in (0, 8)]
        return shuffle([intrinsic("llvm.arm.neon.vtbl2", "int8x8", *entries, part) for part in parts], range(16))

    def multiply_high_round(self, a: Expr, b: Expr, words: int) -> Expr:
        if words != 8:
            return super().multiply_high_round(a, b, words)
        return intrinsic("llvm.arm.neon.vqrdmulh.v8i16", "int16x8", a, b)


NEON32 = Neon32(
    name="neon",
    vector_bytes=16,
    llvm={
        "kind": "llvm", "mtriple": "armv7-unknown-linux-gnueabihf", "mcpu": "cortex-a7", "mattr": ["+neon", "+vfp4"],
        "mfloat-abi": "hard",
    },
    storage="int8",
    cpu_flags=("neon", "vfpv4"),
    registers=16,
    dots_per_cycle=0.2,
    dot_latency=8,
    operand_dots=0.67,
    dot_temporaries=6,  # products: LLVM makes those of a whole step before it adds the first
    opaque_loops=True,
    complements=True,
)  # fmt: skip
