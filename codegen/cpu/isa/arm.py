"""AArch64 levels: dotprod (SDOT) and neon (widening multiplies); activations are stored as int8.

Source for instruction semantics: Arm Architecture Reference Manual for A-profile, DDI 0487; for throughput: Arm
Cortex-A76 and Cortex-A53 software optimisation guides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tvm import tirx

from qcompiler.codegen.cpu.emit import Buffer, Emitter, Expr, bits, cast, intrinsic, load, shuffle, splat
from qcompiler.codegen.cpu.isa.base import VectorInstructionSet

LANES = 4  # 32-bit lanes of a NEON register


@dataclass(frozen=True, eq=False)
class Neon(VectorInstructionSet):
    """ARMv8.0: SMULL makes 16-bit products, pairwise additions widen and sum them."""

    def as_weights(self, quads: Expr, lanes: int) -> list[tuple[Expr, str, int]]:
        return [(quads, "int8", 4 * lanes)]

    def dot(self, acc: Expr, operand: tuple[Expr, ...], weights: tuple[Expr, ...], lanes: int) -> Expr:
        # SADDLP sums pairs into 32 bits at once: -128 * -128 twice would not fit into 16.
        halves = []
        for half in (range(8), range(8, 16)):
            a, b = (shuffle([v], half) for v in (operand[0], weights[0]))
            products = intrinsic("llvm.aarch64.neon.smull.v8i16", "int16x8", a, b)
            halves.append(intrinsic("llvm.aarch64.neon.saddlp.v4i32.v8i16", "int32x4", products))
        return acc + intrinsic("llvm.aarch64.neon.addp.v4i32", "int32x4", *halves)

    def pack(self, vectors: Sequence[Expr], lanes: int) -> Expr:
        """SQXTN twice: saturated to 16 bits, then to 8; bytes stay in order."""
        words = [intrinsic("llvm.aarch64.neon.sqxtn.v4i16", "int16x4", v) for v in vectors]
        joined = [shuffle(words[i : i + 2], range(8)) for i in (0, 2)]
        halves = [intrinsic("llvm.aarch64.neon.sqxtn.v8i8", "int8x8", w) for w in joined]
        return shuffle(halves, range(16))

    def rescaled_add(
        self, a: Expr, b: Expr, multiplier_a: int, multiplier_b: int, bias: int, shift: int, lanes: int
    ) -> Expr:
        sums = []
        for v in range(4):
            wide = [cast(shuffle([x], range(lanes * v, lanes * (v + 1))), f"int32x{lanes}") for x in (a, b)]
            total = wide[0] * splat(multiplier_a, "int32", lanes) + wide[1] * splat(multiplier_b, "int32", lanes)
            sums.append(tirx.shift_right(total + splat(bias, "int32", lanes), splat(shift, "int32", lanes)))
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


@dataclass(frozen=True, eq=False)
class Dotprod(Neon):
    """ARMv8.2: SDOT adds four signed products to each 32-bit lane."""

    def dot(self, acc: Expr, operand: tuple[Expr, ...], weights: tuple[Expr, ...], lanes: int) -> Expr:
        return intrinsic("llvm.aarch64.neon.sdot.v4i32.v16i8", "int32x4", acc, operand[0], weights[0])


_TRIPLE = {"kind": "llvm", "mtriple": "aarch64-linux-gnu"}
NEON = Neon(
    name="neon",
    vector_bytes=16,
    llvm={**_TRIPLE, "mcpu": "cortex-a53"},
    storage="int8",
    cpu_flags=("asimd",),
    registers=32,
    dots_per_cycle=0.2,
    dot_latency=8,
    dot_temporaries=3,
)
DOTPROD = Dotprod(
    name="dotprod",
    vector_bytes=16,
    llvm={**_TRIPLE, "mcpu": "cortex-a76"},
    storage="int8",
    cpu_flags=("asimd", "asimddp"),
    registers=32,
    dots_per_cycle=2.0,
    dot_latency=2,
    dot_temporaries=4,  # LLVM loads ahead: without spare registers it spills accumulators
)
ARM_LEVELS: tuple[Neon, ...] = (DOTPROD, NEON)
