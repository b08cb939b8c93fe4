"""The C compiler of each architecture, and how a program of it runs elsewhere. Imports nothing heavy."""

from __future__ import annotations

import shutil
from dataclasses import dataclass


@dataclass(frozen=True)
class Toolchain:
    """compiler: of C, named as GCC's are: "PREFIX-gcc" beside PREFIX-objcopy and PREFIX-ar. packages: Debian's for it,
    its library and the emulator. emulator: the command that runs a program as a core with every level of the targets.
    """

    compiler: str
    packages: tuple[str, ...]
    emulator: tuple[str, ...] = ()

    def tool(self, name: str) -> str:
        """The full name of "gcc", "objcopy" or "ar"."""
        return self.compiler.removesuffix("gcc") + name

    def missing(self) -> str | None:
        """The first of the three that is not on the PATH."""
        return next((self.tool(n) for n in ("gcc", "objcopy", "ar") if shutil.which(self.tool(n)) is None), None)


TOOLCHAINS = {
    "x86_64": Toolchain("gcc", ("gcc",)),
    "aarch64": Toolchain(
        "aarch64-linux-gnu-gcc", ("gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross", "qemu-user"),
        ("qemu-aarch64", "-cpu", "max"),
    ),
    "armv7l": Toolchain(
        "arm-linux-gnueabihf-gcc", ("gcc-arm-linux-gnueabihf", "libc6-dev-armhf-cross", "qemu-user"),
        ("qemu-arm", "-cpu", "cortex-a15"),
    ),
}  # fmt: skip
"""By the machine word of `uname -m`."""
