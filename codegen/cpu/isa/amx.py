"""The amx level: AVX-512 VNNI plus tiles, eight registers of up to 16 rows of 64 bytes, and a matrix product on them.

``TDPBUSD c, a, b`` adds to c[m][n] (int32) the sum over k, j of a[m][4k + j] (unsigned) times b[k][4n + j] (signed):
what VPDPBUSD does for one quad, it does for 16 quads of 16 positions. A row of b holds one quad of 16 channels,
which is one vector of arranged weights, so the weights lie in memory as the VNNI kernels want them.

Shapes of the tiles are set once a call (`configure`, about 200 cycles) and given back at its end, so that a context
switch saves no tiles. The intrinsics name tile registers by number: LLVM neither spills nor renames them.
Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18, and volume 2; measured on
Sapphire Rapids: TDPBUSD starts every max(rows, quads) cycles, nearly every `rows` where it shares b with the one
before; a tile load takes half a cycle a row, and three more for each row that crosses a cache line.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from tvm import tirx

from qcompiler.codegen.cpu.emit import Buffer, Emitter, Expr, bits, constant, intrinsic, load, shuffle, splat
from qcompiler.codegen.cpu.isa.base import Array
from qcompiler.codegen.cpu.isa.x86 import AVX512_VNNI, Avx512Vnni

TILE_ROWS = 16
TILE_ROW_BYTES = 64
TILE_BYTES = TILE_ROWS * TILE_ROW_BYTES
TILES = 8
ACCUMULATORS = 4  # tiles 0..3; the other four hold operands


@dataclass(frozen=True, eq=False)
class Amx(Avx512Vnni):
    """Tile instructions; vectors are those of AVX-512 VNNI, but for VBMI's byte tables, which every such CPU has."""

    @property
    def peak_macs(self) -> float:
        return float(TILE_ROWS * TILE_ROW_BYTES)

    # Byte tables by VPERMI2B, which looks up 128 entries: one for each half, chosen by the index's upper bit.
    @property
    def table_bytes(self) -> int:
        return 256

    def arrange_table(self, table: Array) -> Array:
        return table

    def table_look_up(self, e: Emitter, table: Buffer) -> Callable[[Expr, int], Expr]:
        entries = [e.bind(load(table, k * 64, 64), "uint8x64", "entries") for k in range(4)]

        def look_up(x: Expr, count: int) -> Expr:
            if count < 64:  # tails: widen by lanes that nobody reads
                wide = shuffle([x] * (64 // count), range(64)) if count > 1 else splat(x, "uint8", 64)
                found = look_up(wide, 64)
                return shuffle([found], range(count))
            index = e.bind(bits(x, "int8x64"), "int8x64", "index")
            low, high = (
                intrinsic("llvm.x86.avx512.vpermi2var.qi.512", "uint8x64", a, index, b)
                for a, b in (entries[:2], entries[2:])
            )
            return tirx.Select(index < splat(0, "int8", 64), high, low)

        return look_up

    @staticmethod
    def tile_configuration(shapes: Sequence[tuple[int, int]]) -> Array:
        """What `configure` loads, uint8 [64]: (rows, bytes a row) of the tiles from number 0 on."""
        out = np.zeros(64, dtype=np.uint8)
        out[0] = 1  # the palette
        for tile, (rows, row_bytes) in enumerate(shapes):
            assert 0 < rows <= TILE_ROWS and 0 < row_bytes <= TILE_ROW_BYTES and row_bytes % 4 == 0
            out[16 + 2 * tile] = row_bytes
            out[48 + tile] = rows
        return out

    def configure(self, e: Emitter, configuration: Buffer) -> None:
        self._call(e, "ldtilecfg", _address(configuration, constant(0)))

    def release(self, e: Emitter) -> None:
        self._call(e, "tilerelease")

    def tile_zero(self, e: Emitter, tile: int) -> None:
        self._call(e, "tilezero", _number(tile))

    def tile_load(self, e: Emitter, tile: int, buffer: Buffer, index: Expr, stride: int, once: bool) -> None:
        """Rows from element `index` on, `stride` bytes apart. once: without room in the first-level cache for them."""
        name = "tileloaddt164" if once else "tileloadd64"
        self._call(e, name, _number(tile), _address(buffer, index), constant(stride, "int64"))

    def tile_store(self, e: Emitter, tile: int, buffer: Buffer, index: Expr, stride: int) -> None:
        self._call(e, "tilestored64", _number(tile), _address(buffer, index), constant(stride, "int64"))

    def tile_dot(self, e: Emitter, acc: int, a: int, b: int) -> None:
        """TDPBUSD: acc += a (activations, unsigned) times b (weights, signed)."""
        self._call(e, "tdpbusd", _number(acc), _number(a), _number(b))

    @staticmethod
    def _call(e: Emitter, name: str, *arguments: Expr) -> None:
        e.statement(tirx.Evaluate(tirx.call_llvm_intrin("void", f"llvm.x86.{name}", *arguments)))


def _number(tile: int) -> Expr:
    return constant(tile, "int8")


def _address(buffer: Buffer, index: Expr) -> Expr:
    return tirx.address_of(tirx.BufferLoad(buffer, [index]))


AMX = Amx(
    name="amx",
    vector_bytes=64,
    llvm={"kind": "llvm", "mcpu": "cascadelake", "mattr": ["-prefer-256-bit", "+avx512vbmi", "+amx-tile", "+amx-int8"]},
    storage="uint8",
    quick_optimiser=True,
    cpu_flags=(*AVX512_VNNI.cpu_flags, "avx512vbmi", "amx_tile", "amx_int8"),
    registers=32,
    dots_per_cycle=2.0,
    rounds_down=True,
    own_tables=True,
    base=AVX512_VNNI,
    state_component=18,  # XTILEDATA
)
