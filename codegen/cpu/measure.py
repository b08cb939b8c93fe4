"""Runs kernels inside this process: for tests, for benchmarks and for tuning by measurement.

The steps' kernels are compiled and linked into a temporary shared library and called through ctypes on one thread.
Only an instruction-set level that this CPU has can run.
"""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qcompiler.codegen.cpu.compile import compile_kernels
from qcompiler.codegen.cpu.instruction_set import InstructionSet
from qcompiler.codegen.cpu.kernel import Kernel, Step

Array = npt.NDArray[Any]
ALIGNMENT = 64


def aligned_copy(values: Array) -> Array:
    """A flat copy of the bytes that starts on a 64-byte boundary and has 64 readable bytes behind it."""
    raw = np.zeros(values.nbytes + 2 * ALIGNMENT, dtype=np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    raw[start : start + values.nbytes] = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    return raw[start:]


def request_state(isa: InstructionSet) -> bool:
    """Ask Linux for the registers of a level that are not given unasked, for this process; whether it may use them."""
    if isa.state_component is None:
        return True
    arch_prctl, request_permission = 158, 0x1023  # system call of x86-64; ARCH_REQ_XCOMP_PERM
    return bool(ctypes.CDLL(None).syscall(arch_prctl, request_permission, isa.state_component) == 0)


class LoadedSteps:
    """Compiled steps with memory for their tensors; `run` executes them in order."""

    def __init__(self, steps: Sequence[Step], isa: InstructionSet, inputs: Mapping[str, Array]) -> None:
        """inputs: tensor name to its stored value (see `kernel.stored`)."""
        request_state(isa)
        self.steps = list(steps)
        kernels: dict[Any, tuple[str, Kernel]] = {}
        for step in self.steps:
            kernels.setdefault(step.kernel.key, (f"kernel_{len(kernels)}", step.kernel))
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            objects = compile_kernels(dict(kernels.values()), isa, Path(folder))
            self.compile_seconds = time.perf_counter() - started
            library = Path(folder) / "kernels.so"
            subprocess.run(["cc", "-shared", "-o", str(library), *map(str, objects)], check=True)
            loaded = ctypes.CDLL(str(library))
        self._memory: dict[str, Array] = {name: aligned_copy(value) for name, value in inputs.items()}
        for step in self.steps:
            self._memory[step.output] = aligned_copy(np.zeros(step.output_bytes, dtype=np.uint8))
        self._calls = []
        self._keep: list[Array] = []
        for step in self.steps:
            constants = [aligned_copy(c) for c in step.kernel.constants]
            scratch = [aligned_copy(np.zeros(step.kernel.scratch_bytes, dtype=np.uint8))]
            arrays = [self._memory[n] for n in step.inputs] + constants
            arrays += [*(scratch if step.kernel.scratch_bytes else []), self._memory[step.output]]
            self._keep += arrays
            pointers = [ctypes.c_void_p(a.ctypes.data) for a in arrays]
            self._calls.append((loaded[kernels[step.kernel.key][0]], pointers, step.kernel.tasks))

    def write(self, name: str, value: Array) -> None:
        """Replace the stored value of an input by another of the same size."""
        self._memory[name][: value.nbytes] = np.ascontiguousarray(value).reshape(-1).view(np.uint8)

    def run(self, splits: int = 1) -> Array:
        """The stored bytes of the last step's output. splits: task ranges that each step's tasks are called in."""
        for function, pointers, tasks in self._calls:
            bounds = [tasks * i // splits for i in range(splits + 1)]
            for begin, end in zip(bounds, bounds[1:], strict=False):
                function(*pointers, ctypes.c_int32(begin), ctypes.c_int32(end))
        last = self.steps[-1]
        return self._memory[last.output][: last.output_bytes]

    def seconds(self, step: int, repeat: int = 20, least: float = 2e-4) -> float:
        """Shortest time of one call of one step; short calls are timed in batches of `least` seconds."""
        function, pointers, tasks = self._calls[step]
        arguments = [*pointers, ctypes.c_int32(0), ctypes.c_int32(tasks)]
        started = time.perf_counter()
        function(*arguments)
        batch = max(1, int(least / max(time.perf_counter() - started, 1e-7)))
        best = float("inf")
        for _ in range(repeat):
            started = time.perf_counter()
            for _ in range(batch):
                function(*arguments)
            best = min(best, (time.perf_counter() - started) / batch)
        return best
