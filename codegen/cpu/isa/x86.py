"""x86 vector levels, best first: avx512-vnni, avx-vnni (VEX-encoded, 256 bits) and avx2 (exact 16-bit pairs).

AVX2 has a byte multiply-add too, VPMADDUBSW, but it saturates its 16-bit sums and so may change values; it is used only
where the weights rule that out (`paired_contraction`). Source for instruction semantics: Intel 64 and IA-32
Architectures Software Developer's Manual, volume 2; for throughput and latency: https://uops.info (Ice Lake and
Sapphire Rapids).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from tvm import tirx

from qcompiler.codegen.cpu.emit import Buffer, Emitter, Expr, bits, intrinsic, load, shuffle, splat, unpack
from qcompiler.codegen.cpu.isa.base import Array, VectorInstructionSet

ROUND_DOWN_NO_EXCEPTIONS = 9  # _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC


@dataclass(frozen=True, eq=False)
class X86(VectorInstructionSet):
    """What all x86 levels share: packing and unpacking inside 128-bit blocks, 16-bit pairs."""

    _PACK_SIGNED = {4: "llvm.x86.sse2.packssdw.128", 8: "llvm.x86.avx2.packssdw", 16: "llvm.x86.avx512.packssdw.512"}
    _PACK_UNSIGNED = {4: "llvm.x86.sse2.packuswb.128", 8: "llvm.x86.avx2.packuswb", 16: "llvm.x86.avx512.packuswb.512"}
    _PAIRS = {4: "llvm.x86.sse2.pmadd.wd", 8: "llvm.x86.avx2.pmadd.wd", 16: "llvm.x86.avx512.pmaddw.d.512"}

    def multiply_pairs(self, a: Expr, b: Expr, lanes: int) -> Expr:
        """VPMADDWD: ``a[2l] * b[2l] + a[2l+1] * b[2l+1]`` of int16 in int32."""
        return intrinsic(self._PAIRS[lanes], f"int32x{lanes}", a, b)

    def add_pairs(self, acc: Expr, a: Expr, b: Expr, lanes: int) -> Expr:
        """``acc + multiply_pairs(a, b)``."""
        return acc + self.multiply_pairs(a, b, lanes)

    _HIGH = {8: "llvm.x86.ssse3.pmul.hr.sw.128", 16: "llvm.x86.avx2.pmul.hr.sw", 32: "llvm.x86.avx512.pmul.hr.sw.512"}

    _HIGH_UNSIGNED = {8: "llvm.x86.sse2.pmulhu.w", 16: "llvm.x86.avx2.pmulhu.w", 32: "llvm.x86.avx512.pmulhu.w.512"}

    def widen(self, x: Expr, count: int) -> list[Expr]:
        if count < 16:
            return super().widen(x, count)
        zero = splat(0, "uint8", count)
        return [bits(unpack(x, zero, 1, high, count), f"int16x{count // 2}") for high in (False, True)]

    def narrow(self, words: Sequence[Expr], count: int) -> Expr:
        if count < 16:
            return super().narrow(words, count)
        return bits(intrinsic(self._PACK_UNSIGNED[count // 4], f"int8x{count}", *words), f"uint8x{count}")

    def word_order(self, count: int) -> list[int]:
        if count < 16:
            return super().word_order(count)
        return [block + half + i for half in (0, 8) for block in range(0, count, 16) for i in range(8)]

    def multiply_high(self, a: Expr, b: Expr, words: int) -> Expr:
        if words not in self._HIGH:
            return super().multiply_high(a, b, words)
        # LLVM finds VPMULHUW by itself, but not where one factor is a broadcast scalar.
        return intrinsic(self._HIGH_UNSIGNED[words], f"uint16x{words}", a, b)

    def multiply_high_round(self, a: Expr, b: Expr, words: int) -> Expr:
        if words not in self._HIGH:
            return super().multiply_high_round(a, b, words)
        return intrinsic(self._HIGH[words], f"int16x{words}", a, b)

    def dot_words(self, acc: Expr, a: Expr, b: Expr, words: int) -> Expr:
        return super().dot_words(acc, a, b, words) if words < 8 else self.add_pairs(acc, a, b, words // 2)

    def pack(self, vectors: Sequence[Expr], lanes: int) -> Expr:
        half = f"int16x{2 * lanes}"
        low = intrinsic(self._PACK_SIGNED[lanes], half, vectors[0], vectors[1])
        high = intrinsic(self._PACK_SIGNED[lanes], half, vectors[2], vectors[3])
        return bits(intrinsic(self._PACK_UNSIGNED[lanes], f"int8x{4 * lanes}", low, high), f"uint8x{4 * lanes}")

    def pack_order(self, lanes: int) -> list[tuple[int, int]]:
        return [(v, 4 * block + i) for block in range(lanes // 4) for v in range(4) for i in range(4)]

    # Byte tables by PSHUFB, which looks up 16 entries: 16 look-ups of differences, added by XOR. PSHUFB yields zero
    # where the index is negative as a signed byte, so look-up k, of x - 16k, contributes for 0 <= x - 16k < 128:
    # for x >> 4 in k..k+7. The first eight subtractions wrap (x >= 128 must come back below 128), the later ones
    # saturate (a negative index must stay negative).
    @property
    def table_bytes(self) -> int:
        return 16 * self.vector_bytes

    def arrange_table(self, table: Array) -> Array:
        rows = table.view(np.uint8).reshape(16, 16)
        differences = np.zeros_like(rows)
        for k in range(16):
            differences[k] = rows[k] ^ np.bitwise_xor.reduce(differences[max(0, k - 7) : k], axis=0)
        return np.ascontiguousarray(np.tile(differences, self.vector_bytes // 16)).reshape(-1)

    _SHUFFLE = {16: "llvm.x86.ssse3.pshuf.b.128", 32: "llvm.x86.avx2.pshuf.b", 64: "llvm.x86.avx512.pshuf.b.512"}

    def table_look_up(self, e: Emitter, table: Buffer) -> Callable[[Expr, int], Expr]:
        width = self.vector_bytes
        registers = {width: [e.bind(load(table, k * width, width), f"uint8x{width}", "entries") for k in range(16)]}

        def look_up(x: Expr, count: int) -> Expr:
            if count < 16:  # short tails: widen by lanes that nobody reads
                wide = shuffle([x] * (16 // count), range(16)) if count > 1 else splat(x, "uint8", 16)
                return shuffle([look_up(wide, 16)], range(count))
            if count not in registers:
                registers[count] = [load(table, k * width, count) for k in range(16)]
            dtype = f"int8x{count}"
            index = e.bind(bits(x, dtype), dtype, "index")
            step = splat(16, "int8", count)
            result = None
            for k in range(16):
                if 1 <= k <= 8:
                    index = e.bind(index - step, dtype, "index")
                elif k > 8:
                    index = e.bind(intrinsic("llvm.ssub.sat", dtype, index, step), dtype, "index")
                entry = intrinsic(self._SHUFFLE[count], dtype, bits(registers[count][k], dtype), index)
                result = entry if result is None else tirx.bitwise_xor(result, entry)
            return bits(result, f"uint8x{count}")

        return look_up

    @property
    def short_table_bytes(self) -> int:
        return self.vector_bytes

    def arrange_short_table(self, table: Array) -> Array:
        return np.tile(table, self.vector_bytes // 16)

    def short_look_up(self, table: Buffer, index: Expr, count: int) -> Expr:
        if count < 16:
            return super().short_look_up(table, index, count)
        entries = bits(load(table, 0, count), f"int8x{count}")
        return bits(
            intrinsic(self._SHUFFLE[count], f"int8x{count}", entries, bits(index, f"int8x{count}")), f"uint8x{count}"
        )

    def add_constants(self, multiplier_a: int, multiplier_b: int, bias: int, shift: int) -> list[int]:
        """Both multipliers in one word, the bias for stored bytes, the shift."""
        # Stored bytes are q + 128: the bias takes the 128s back, and puts one onto the result.
        bias = bias - 128 * (multiplier_a + multiplier_b) + (128 << shift)
        pair = (multiplier_a & 0xFFFF) | (multiplier_b & 0xFFFF) << 16
        return [pair - (1 << 32 if pair >> 31 else 0), bias, shift]

    # One shift amount a lane: the form with one for all is two instructions inside the processor.
    _SHIFT = {4: "llvm.x86.avx2.psrav.d", 8: "llvm.x86.avx2.psrav.d.256", 16: "llvm.x86.avx512.psrav.d.512"}

    def rescaled_add(self, a: Expr, b: Expr, scalars: Sequence[Expr], lanes: int) -> Expr:
        count = 4 * lanes
        zero = splat(0, "uint8", count)
        pair, bias, shift = (splat(s, "int32", lanes) for s in scalars)
        multipliers = bits(pair, f"int16x{2 * lanes}")
        sums = []
        for high in (False, True):
            mixed = unpack(a, b, 1, high, count)  # a0 b0 a1 b1 ...
            for high_half in (False, True):
                wide = bits(unpack(mixed, zero, 1, high_half, count), f"int16x{2 * lanes}")
                total = self.add_pairs(bias, wide, multipliers, lanes)
                sums.append(intrinsic(self._SHIFT[lanes], f"int32x{lanes}", total, shift))
        return self.pack(sums, lanes)


@dataclass(frozen=True, eq=False)
class Avx2(X86):
    """Bytes widened to 16 bits and VPMADDWD on the two pairs of a quad; weights are packed as int16.

    Dense work reads activations that were widened once, when they were padded or copied: widening in the inner loop
    would take two of its ten vector instructions. What is left, two VPMADDWD and two VPADDD for 32 products on three
    ports, is 24 products a cycle at best; with VPMADDUBSW it is 32.
    """

    @property
    def operand_dtype(self) -> str:
        return "int16"

    @property
    def saturating_pairs(self) -> bool:
        return True

    def saturating_dot(self, acc: Expr, factors: Sequence[tuple[Expr, Expr]]) -> Expr:
        lanes = self.lanes(4)
        byte_type, word_type = f"int8x{4 * lanes}", f"int16x{2 * lanes}"
        pairs = [
            intrinsic("llvm.x86.avx2.pmadd.ub.sw", word_type, bits(quads, byte_type), bits(weights, byte_type))
            for quads, weights in factors
        ]
        return acc + self.multiply_pairs(sum(pairs[1:], pairs[0]), splat(1, "int16", 2 * lanes), lanes)

    def arrange_weights(self, weights: Array) -> Array:
        wide = weights.astype(np.int16)
        halves = np.stack([wide[..., :2], wide[..., 2:]], axis=-3)
        return np.ascontiguousarray(halves.reshape(*weights.shape[:-2], -1))

    def load_weights(self, buffer: Buffer, index: Expr, lanes: int) -> tuple[Expr, ...]:
        return (load(buffer, index, 2 * lanes), load(buffer, index + 2 * lanes, 2 * lanes))

    def operand(self, quads: Expr, lanes: int) -> tuple[Expr, ...]:
        zero = splat(0, "uint8", 4 * lanes)
        return tuple(self._spread(quads, zero, half, False, lanes) for half in (0, 1))

    @staticmethod
    def _spread(quads: Expr, fill: Expr, half: int, high: bool, lanes: int) -> Expr:
        """Two bytes of every quad as 16-bit words: the byte in the high or the low part of the word, `fill` beside."""
        count = 4 * lanes
        order = []
        for first in range(2 * half, count, 4):
            for byte in (first, first + 1):
                order += [count + byte, byte] if high else [byte, count + byte]
        return bits(shuffle([quads, fill], order), f"int16x{2 * lanes}")

    def load_operand(self, e: Emitter, x: Buffer, index: Expr) -> tuple[Expr, ...]:
        lanes = self.lanes(4)
        words = (splat(bits(load(x, index + 2 * half, 2), "int32"), "int32", lanes) for half in (0, 1))
        return tuple(e.bind_typed(bits(word, f"int16x{2 * lanes}")) for word in words)

    def interleaved_operands(self, rows: Sequence[Expr], lanes: int) -> list[tuple[Expr, ...]]:
        # Two bytes side by side, then each with a zero: the quads themselves are never needed.
        count, zero = 4 * lanes, splat(0, "uint8", 4 * lanes)
        pairs = [[unpack(rows[i], rows[i + 1], 1, high, count) for i in (0, 2)] for high in (False, True)]
        return [
            tuple(bits(unpack(pair, zero, 1, high, count), f"int16x{2 * lanes}") for pair in halves)
            for halves in pairs
            for high in (False, True)
        ]

    def as_weights(self, quads: Sequence[Expr], lanes: int) -> list[tuple[Expr, str, int]]:
        signed, zero = tirx.bitwise_xor(quads[0], splat(128, "uint8", 4 * lanes)), splat(0, "uint8", 4 * lanes)
        eight = splat(8, "int16", 2 * lanes)
        halves = (self._spread(signed, zero, half, True, lanes) for half in (0, 1))
        return [(tirx.shift_right(half, eight), "int16", 2 * lanes) for half in halves]

    def dot(self, acc: Expr, operand: tuple[Expr, ...], weights: tuple[Expr, ...], lanes: int) -> Expr:
        for a, w in zip(operand, weights, strict=True):
            acc = self.add_pairs(acc, a, w, lanes)
        return acc


@dataclass(frozen=True, eq=False)
class Vnni(X86):
    """VPDPBUSD: unsigned by signed bytes, four products a lane, no saturation."""

    _DOT = {4: "llvm.x86.avx512.vpdpbusd.128", 8: "llvm.x86.avx512.vpdpbusd.256", 16: "llvm.x86.avx512.vpdpbusd.512"}
    _ADD_PAIRS = {
        4: "llvm.x86.avx512.vpdpwssd.128", 8: "llvm.x86.avx512.vpdpwssd.256", 16: "llvm.x86.avx512.vpdpwssd.512",
    }  # fmt: skip

    def as_weights(self, quads: Sequence[Expr], lanes: int) -> list[tuple[Expr, str, int]]:
        signed = bits(tirx.bitwise_xor(quads[0], splat(128, "uint8", 4 * lanes)), f"int8x{4 * lanes}")
        return [(signed, "int8", 4 * lanes)]

    def add_pairs(self, acc: Expr, a: Expr, b: Expr, lanes: int) -> Expr:
        return intrinsic(self._ADD_PAIRS[lanes], f"int32x{lanes}", acc, a, b)

    def dot(self, acc: Expr, operand: tuple[Expr, ...], weights: tuple[Expr, ...], lanes: int) -> Expr:
        return intrinsic(self._DOT[lanes], f"int32x{lanes}", acc, operand[0], weights[0])


@dataclass(frozen=True, eq=False)
class Avx512Vnni(Vnni):
    """512-bit vectors and rounding towards minus infinity inside the instruction."""

    def floor_fma_int(self, acc: Expr, scale: Expr, addend: Expr, lanes: int, bounded: bool) -> Expr:
        """One FMA and one conversion, both rounded down.

        Rounding down never crosses an integer: with y = round_down(x), floor(y) <= floor(x) because y <= x, and
        floor(x) is itself a float32 not above x (below 2**24), so y >= floor(x). Hence floor(y) == floor(x).
        Above 2**24 the value is far outside int8 and only its sign and saturation matter.
        """
        if lanes != 16:  # only the 512-bit form carries a rounding mode
            return super().floor_fma_int(acc, scale, addend, lanes, bounded)
        down = splat(addend, "float32", lanes)
        mode = tirx.const(ROUND_DOWN_NO_EXCEPTIONS, "int32")
        value = intrinsic("llvm.x86.avx512.vfmadd.ps.512", "float32x16", acc, scale, down, mode)
        if not bounded:
            limit = splat(float(1 << 20), "float32", lanes)
            value = tirx.max(tirx.min(value, limit), splat(-float(1 << 20), "float32", lanes))
        return intrinsic(
            "llvm.x86.avx512.mask.cvtps2dq.512", "int32x16", value, splat(0, "int32", 16),
            tirx.const(0xFFFF, "uint16"), mode,
        )  # fmt: skip


AVX2 = Avx2(
    name="avx2",
    vector_bytes=32,
    llvm={"kind": "llvm", "mcpu": "haswell"},
    storage="uint8",
    quick_optimiser=True,
    prefetches=True,
    cpu_flags=("avx2", "fma"),
    registers=16,
    dots_per_cycle=0.75,  # two VPMADDWD and two VPADDD a dot on three vector ports
    dot_latency=2,
    weight_registers=2,
    operand_registers=2,
    dot_temporaries=1,
    weight_dtype="int16",
)
AVX_VNNI = Vnni(
    name="avx-vnni",
    vector_bytes=32,
    llvm={"kind": "llvm", "mcpu": "haswell", "mattr": ["+avxvnni"]},
    storage="uint8",
    quick_optimiser=True,
    prefetches=True,
    cpu_flags=("avx2", "fma", "avx_vnni"),
    registers=16,
    dots_per_cycle=2.0,
)
AVX512_VNNI = Avx512Vnni(
    name="avx512-vnni",
    vector_bytes=64,
    llvm={"kind": "llvm", "mcpu": "cascadelake", "mattr": ["-prefer-256-bit"]},
    storage="uint8",
    quick_optimiser=True,
    prefetches=True,
    cpu_flags=("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx512_vnni", "avx2", "fma"),
    registers=32,
    dots_per_cycle=2.0,
    rounds_down=True,
)
