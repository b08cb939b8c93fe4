"""Which architecture this process can load code of, in the words of `uname -m`. Imports nothing heavy."""

from __future__ import annotations

import platform
import sys

_32_BIT = {"aarch64": "armv7l", "armv8l": "armv7l", "x86_64": "i686"}


def host_architecture() -> str:
    """The machine word of `uname -m`, but that of the 32-bit architecture in a 32-bit process on a 64-bit kernel."""
    machine = platform.machine()
    return machine if sys.maxsize > 1 << 32 else _32_BIT.get(machine, machine)
