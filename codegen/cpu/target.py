"""CPU targets: what `--target` names, the instruction-set levels in each, and what this machine can run."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

from qcompiler.codegen.cpu.isa.amx import AMX
from qcompiler.codegen.cpu.isa.arm import ARM_LEVELS, DOTPROD, I8MM, NEON
from qcompiler.codegen.cpu.isa.armv7 import NEON32
from qcompiler.codegen.cpu.isa.base import VectorInstructionSet
from qcompiler.codegen.cpu.isa.x86 import AVX2, AVX512_VNNI, AVX_VNNI
from qcompiler.codegen.host import host_architecture
from qcompiler.codegen.toolchain import TOOLCHAINS, Toolchain
from qcompiler.sim.errors import TargetError, did_you_mean


@dataclass(frozen=True)
class CpuTarget:
    """One `--target` for a CPU.

    levels: instruction sets compiled into the library, best first; the first that the CPU has is chosen at load.
    architecture: the machine word of `uname -m`."""

    name: str
    description: str
    levels: tuple[VectorInstructionSet, ...]
    architecture: str = "x86_64"

    @property
    def toolchain(self) -> Toolchain:
        """What assembles, links and emulates."""
        return TOOLCHAINS[self.architecture]

    def supported_here(self) -> bool:
        """Whether this machine can run the library: its architecture, and at least one of the levels."""
        return self.architecture == host_architecture() and any(runs_here(level) for level in self.levels)


@functools.cache
def host_cpu_flags() -> frozenset[str]:
    """The features that the kernel reports for the first CPU ("flags" on x86, "Features" on ARM); empty if unknown."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def runs_here(level: VectorInstructionSet) -> bool:
    """Whether this CPU reports every feature of the level."""
    return host_cpu_flags() >= set(level.cpu_flags)


# What each core implements: GCC's and LLVM's tables of cores agree (tests/arm/test_aarch64.py asks GCC).
_CORES = {
    I8MM: ("neoverse-v1", "neoverse-n2"),
    DOTPROD: ("cortex-a55", "cortex-a76", "cortex-a78", "cortex-x1", "neoverse-n1", "apple-m1"),
    NEON: ("cortex-a53", "cortex-a72"),
}


def _aarch64(name: str, description: str, *levels: VectorInstructionSet) -> CpuTarget:
    return CpuTarget(f"arm:{name}" if name else "arm", description, levels, "aarch64")


CPU_TARGETS: dict[str, CpuTarget] = {
    target.name: target
    for target in (
        CpuTarget(
            "x86", "x86-64, chosen at load: AMX, AVX-512 VNNI, AVX-VNNI or AVX2", (AMX, AVX512_VNNI, AVX_VNNI, AVX2)
        ),
        CpuTarget("x86:amx", "x86-64 with AMX (Sapphire Rapids and later)", (AMX,)),
        CpuTarget("x86:avx512-vnni", "x86-64 with AVX-512 VNNI (Cascade Lake, Zen 4 and later)", (AVX512_VNNI,)),
        CpuTarget("x86:avx-vnni", "x86-64 with AVX-VNNI (Alder Lake, Zen 5 and later)", (AVX_VNNI,)),
        CpuTarget("x86:avx2", "x86-64 with AVX2 and FMA (Haswell, Zen and later)", (AVX2,)),
        _aarch64("", "AArch64 Linux, chosen at load: i8mm, dotprod or neon", *ARM_LEVELS),
        _aarch64("i8mm", "AArch64 with SMMLA (Armv8.6 and later)", I8MM),
        _aarch64("dotprod", "AArch64 with SDOT (Armv8.2 and later)", DOTPROD),
        _aarch64("neon", "any AArch64 (Armv8.0)", NEON),
        CpuTarget(
            "armv7:neon", "32-bit Armv7-A Linux with NEON and VFPv4 (Cortex-A7, A15 and later)", (NEON32,), "armv7l",
        ),
        *(_aarch64(c, f"the core's level, {level.name}", level) for level, cores in _CORES.items() for c in cores),
    )
}  # fmt: skip
"""Every CPU target by name."""


def cpu_target(name: str) -> CpuTarget:
    """The target of that name. Raises TargetError with the nearest names for an unknown one."""
    if name not in CPU_TARGETS:
        raise TargetError(
            f"unknown CPU target {name!r}{did_you_mean(name, CPU_TARGETS)}; known: {', '.join(CPU_TARGETS)}"
        )
    return CPU_TARGETS[name]
