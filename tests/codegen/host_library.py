"""A library for this machine, called through its C interface."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from single_operation import supported

from qcompiler.codegen.cpu.target import cpu_target
from qcompiler.sim.integer_program import IntegerProgram

Array = Any


class Library:
    """A built model.so, called as C calls it. One workspace and one set of outputs: for one thread at a time."""

    def __init__(self, path: Path, program: IntegerProgram, workspace_bytes: int, isa: str, prefix: str) -> None:
        self.program, self.prefix = program, prefix
        previous = os.environ.get("QCOMPILER_ISA")
        os.environ["QCOMPILER_ISA"] = f"{isa}!" if isa else ""
        try:
            self.dll = ctypes.CDLL(str(path))
            self.call("isa").restype = ctypes.c_char_p
            name = self.call("isa")()  # chosen now, while the environment says so
            self.isa = name.decode() if name else None
        finally:
            os.environ.pop("QCOMPILER_ISA")
            if previous is not None:
                os.environ["QCOMPILER_ISA"] = previous
        self.workspace = np.full(workspace_bytes + 64, 0xA5, np.uint8)

    def call(self, name: str) -> Any:
        return getattr(self.dll, f"{self.prefix}_{name}")

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Inputs and outputs stand one element off a cache line; bytes around the outputs must stay untouched."""
        sources = [_misaligned(np.asarray(inputs[n])) for n in self.program.inputs]
        results = {}
        for n in dict.fromkeys(self.program.outputs):
            t = self.program.tensors[n]
            results[n] = _misaligned(np.full(t.shape, 99, t.dtype))
        outputs = [results[n] for n in self.program.outputs]
        arrays = (ctypes.c_void_p * len(sources))(*(a.ctypes.data for a in sources))
        targets = (ctypes.c_void_p * len(outputs))(*(a.ctypes.data for a in outputs))
        status = self.call("run")(arrays, targets, ctypes.c_void_p(self.workspace.ctypes.data))
        assert status == 0, status
        assert (self.workspace[-64:] == 0xA5).all(), "wrote behind the workspace"
        for array in results.values():
            guard = array.base.view(np.uint8)[-64:]
            assert (guard == 0xA5).all(), "wrote behind an output"
        return results


def _misaligned(array: Array) -> Array:
    size, item = array.size, array.itemsize
    raw = np.full(size * item + 256, 0xA5, np.uint8)
    start = -raw.ctypes.data % 64 + item
    raw = raw[: start + size * item + 64]
    view = np.ndarray(array.shape, array.dtype, buffer=raw, offset=start)
    view[...] = array
    return view


LEVELS = [level.name for level in cpu_target("x86").levels if supported(level)]
"""Levels that this CPU executes, best first."""
