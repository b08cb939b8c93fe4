"""A compiled CPU library in this process: preallocated inputs and outputs, one C call an inference.

Nothing here needs TVM; `qcompiler.load` is as light as NumPy and ctypes.
"""

from __future__ import annotations

import ctypes
import itertools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qcompiler.artifact import Artifact, open_artifact
from qcompiler.codegen.host import host_architecture
from qcompiler.sim.errors import ArtifactError, TargetError
from qcompiler.sim.tensor import Tensor

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

ALIGNMENT = 64


class Model:
    """inputs, outputs: NumPy arrays of the artefact's dtypes and shapes, by name. Fill the inputs in place, call
    `invoke()`, read the outputs in place; or let `run` do the three. One Model is for one thread at a time; load the
    artefact again for another (they share code and constants, and the number of threads).
    """

    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]
    invoke: Callable[[], None]

    def __init__(self, artifact: Artifact, threads: int = 1, verify: bool = False) -> None:
        if threads < 1:
            raise ValueError(f"threads must be at least 1, not {threads}")
        self.artifact, manifest = artifact, artifact.manifest
        if not manifest.architecture:
            raise ArtifactError(
                f"{artifact.directory} was compiled for {manifest.target}, which is simulated; "
                f"`qcompiler simulate {artifact.directory} --input DATA` runs it"
            )
        if "model.so" not in manifest.files and "model.c" in manifest.files:
            raise ArtifactError(
                f"{artifact.directory} was compiled for {manifest.target}: C source and a static library, which Python "
                f"does not load; `qcompiler run {artifact.directory} --input DATA` runs it"
            )
        if manifest.architecture != host_architecture():
            from qcompiler.emulation import emulates

            emulated = f", or emulate it: `qcompiler run {artifact.directory} --input DATA`"
            raise ArtifactError(
                f"{artifact.directory} was compiled for {manifest.architecture} (target {manifest.target}); this "
                f"machine is {host_architecture()}. Compile with a target of this machine (`qcompiler targets`) "
                f"to run it here{emulated if emulates(manifest.architecture) else ''}"
            )
        self._library, self._prefix = _open_library(artifact.path("model.so", verify)), manifest.name
        self.isa = self._chosen_instruction_set()
        if self._function("set_threads", ctypes.c_int)(threads):
            raise TargetError(f"{artifact.directory}: {threads} threads could not be started; ask for fewer")
        self.inputs = {t.name: _aligned(t) for t in manifest.inputs}
        self.outputs = {t.name: _aligned(t) for t in manifest.outputs}
        self._workspace = _aligned(Tensor("workspace", (max(manifest.workspace_bytes, 1),), "uint8"))
        self.invoke = _invoker(self._function("run", ctypes.c_int), self.inputs, self.outputs, self._workspace)

    def _function(self, name: str, result: Any) -> Any:
        function = getattr(self._library, f"{self._prefix}_{name}")
        function.restype = result
        return function

    def _chosen_instruction_set(self) -> str:
        name = self._function("isa", ctypes.c_char_p)()
        if name is not None:
            return str(name.decode())
        what = f"{self.artifact.directory}, compiled for {self.artifact.manifest.target},"
        if forced := os.environ.get("QCOMPILER_ISA"):
            raise TargetError(
                f"{what} cannot use QCOMPILER_ISA={forced}: this CPU lacks it, or it was not compiled in; unset it"
            )
        raise TargetError(
            f"{what} needs instructions that this CPU lacks; compile for one of those that `qcompiler targets` "
            "says run here, or for 'x86', which chooses at load"
        )

    def profile(self, repeats: int) -> list[tuple[str, float]]:
        """Run on what the inputs hold and return (step, seconds of one run, mean) in order of execution."""
        steps = self._function("step_count", ctypes.c_int)()
        times, switch = (ctypes.c_uint64 * steps)(), self._function("profile", None)
        switch(times)
        try:
            for _ in range(repeats):
                self.invoke()
        finally:
            switch(None)
        name = self._function("step_name", ctypes.c_char_p)
        return [(name(i).decode(), times[i] / repeats / 1e9) for i in range(steps)]

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Array]:
        """Copies of the outputs for these inputs (a missing leading axis of 1 is added). Raises CalibrationError."""
        from qcompiler.data import fit

        for tensor in self.artifact.manifest.inputs:
            if tensor.name not in inputs:
                raise KeyError(f"input {tensor.name!r} is missing; the model takes {', '.join(map(repr, self.inputs))}")
            self.inputs[tensor.name][...] = fit(np.asarray(inputs[tensor.name]), tensor, f"input {tensor.name!r}")
        self.invoke()
        return {name: value.copy() for name, value in self.outputs.items()}


def load(directory: str | Path, threads: int = 1, verify: bool = False) -> Model:
    """The compiled model in `directory`, ready to run on this machine.

    verify: read the whole library and compare its SHA-256 with the manifest's, which takes half a second a gigabyte;
    without it the size is compared, and pages are read when they are first used.

    Raises ArtifactError for an artefact that is missing, truncated, altered, foreign or for another architecture, and
    TargetError when this CPU lacks its instruction set.
    """
    return Model(open_artifact(directory), threads, verify)


_loads = itertools.count()


def _open_library(path: Path) -> ctypes.CDLL:
    # The dynamic loader takes a path that it has seen for the same library, even when the file has been replaced since;
    # a spelling that it has not seen makes it compare the files themselves: a "/." for each 1 in the number of the
    # load, a "/" for each 0.
    steps = "".join("/." if digit == "1" else "/" for digit in f"{next(_loads):b}")
    spelling = f"{path.absolute().parent}{steps}/{path.name}"
    try:
        return ctypes.CDLL(spelling)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be loaded: {str(error).replace(spelling, str(path))}") from None


def _invoker(
    function: Any, inputs: Mapping[str, Array], outputs: Mapping[str, Array], workspace: Array
) -> Callable[[], None]:
    """A closure over everything that does not change between calls: what remains is one foreign call."""
    sources = (ctypes.c_void_p * len(inputs))(*(a.ctypes.data for a in inputs.values()))
    results = (ctypes.c_void_p * len(outputs))(*(a.ctypes.data for a in outputs.values()))
    space = ctypes.c_void_p(workspace.ctypes.data)

    def invoke() -> None:
        status = function(sources, results, space)
        if status:
            raise RuntimeError(f"the compiled model returned status {status}")

    # Whoever keeps only `invoke` keeps the memory that its pointers lead to.
    invoke.memory = (inputs, outputs, workspace)  # type: ignore[attr-defined]
    return invoke


def _aligned(tensor: Tensor) -> Array:
    raw = np.zeros(tensor.bytes + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + tensor.bytes].view(tensor.dtype).reshape(tensor.shape)
