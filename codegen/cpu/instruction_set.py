"""What the code generator knows about an instruction set: data. One file each in `isa/` fills it in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, eq=False)
class InstructionSet:
    """One level that kernels are compiled for.

    name: as in a target ("avx2"); vector_bytes: width of the integer registers; llvm: TVM's target as a dict;
    storage: how an int8 activation lies in memory ("uint8" holds value + 128, see `kernel`); cpu_flags: the
    features a CPU must report, by the names of Linux's /proc/cpuinfo; base: the level that this one adds to: a kernel
    which uses nothing of what is added is the base's, compiled once for both (see `Kernel.extended`);
    state_component: number of the register state that a Linux process must ask for before it may use it, if any;
    quick_optimiser: LLVM's first level of optimisation is enough for convolutions, which are made of vectors already.
    """

    name: str
    vector_bytes: int
    llvm: Mapping[str, Any]
    storage: Literal["uint8", "int8"]
    cpu_flags: tuple[str, ...] = ()
    base: InstructionSet | None = None
    state_component: int | None = None
    quick_optimiser: bool = False

    @property
    def storage_offset(self) -> int:
        """What is added to an int8 value when it is stored: 128 or 0."""
        return 128 if self.storage == "uint8" else 0

    def lanes(self, dtype_bytes: int) -> int:
        """How many elements of that size fill a register."""
        return self.vector_bytes // dtype_bytes
