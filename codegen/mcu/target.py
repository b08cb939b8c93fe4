"""Micro-controllers by name: what the compiler is told, and the board on which qemu emulates them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Board:
    """A board of qemu's: the clock of its core; where code, constants and data lie (origin, KiB each)."""

    machine: str
    clock_mhz: float
    code: tuple[int, int]
    constants: tuple[int, int]
    data: tuple[int, int]


@dataclass(frozen=True)
class McuTarget:
    """A core, or portable C.

    architecture: for the manifest. lanes: reduction terms that lie together in packed weights (`QC_LANES`). blocks:
    whether matrix work is packed for the DSP instructions (`qc_blocks.h`).
    column_bytes: of one gathered term, at most. compiler: family of the tools; packages: Debian's names of them. flags:
    of the compiler. board: None for portable C, which the host runs.
    """

    name: str
    description: str
    architecture: str
    lanes: int = 4
    blocks: bool = False
    column_bytes: int = 2
    compiler: str = "arm-none-eabi-"
    packages: tuple[str, ...] = ("gcc-arm-none-eabi", "libnewlib-arm-none-eabi")
    flags: tuple[str, ...] = ()
    board: Board | None = None

    @property
    def k_multiple(self) -> int:
        """To what multiple a dot product's terms are filled up: the DSP loop takes eight a turn."""
        return max(8, self.lanes)


def _core(cpu: str, fpu: str) -> tuple[str, ...]:
    return ("-mthumb", f"-mcpu={cpu}", "-mfloat-abi=hard", f"-mfpu={fpu}")


MCU_TARGETS: dict[str, McuTarget] = {
    t.name: t
    for t in (
        McuTarget(
            "cortex-m4", "Cortex-M4 with FPU: C and a library, DSP instructions (SMLAD)", "armv7e-m",
            blocks=True, flags=_core("cortex-m4", "fpv4-sp-d16"),
            board=Board("mps2-an386", 25, (0x00000000, 64), (0x00010000, 4032), (0x21000000, 16384)),
        ),
        McuTarget(
            "cortex-m7", "Cortex-M7: C and a library, DSP instructions (SMLAD)", "armv7e-m",
            blocks=True, flags=_core("cortex-m7", "fpv5-sp-d16"),
            board=Board("mps2-an500", 25, (0x00000000, 64), (0x00010000, 4032), (0x60000000, 16384)),
        ),
        McuTarget(
            "cortex-m33", "Cortex-M33: C and a library, DSP instructions (SMLAD)", "armv8-m.main",
            blocks=True, flags=_core("cortex-m33", "fpv5-sp-d16"),
            board=Board("mps2-an505", 20, (0x10000000, 64), (0x10010000, 4032), (0x80000000, 16384)),
        ),
        McuTarget(
            "cortex-m55", "Cortex-M55: C and a library, Helium instructions (VMLADAV)", "armv8.1-m.main", 16,
            column_bytes=1, flags=("-mthumb", "-mcpu=cortex-m55", "-mfloat-abi=hard"),
            board=Board("mps3-an547", 32, (0x00000000, 512), (0x60000000, 16384), (0x61000000, 65536)),
        ),
        McuTarget(
            "c99", "portable C99 without any dependency, for every other machine", "c99", compiler="",
            packages=("gcc",),
        ),
    )
}  # fmt: skip
