"""A compiled CPU library in this process: preallocated inputs and outputs, one C call an inference.

Nothing here needs TVM; `qcompiler.load` is as light as NumPy and ctypes.
"""

from __future__ import annotations

import ctypes
import platform
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qcompiler.artifact import Artifact, open_artifact
from qcompiler.data import fit
from qcompiler.sim.errors import ArtifactError, TargetError
from qcompiler.sim.integer_program import Tensor

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

    def __init__(self, artifact: Artifact, threads: int = 1) -> None:
        if threads < 1:
            raise ValueError(f"threads must be at least 1, not {threads}")
        self.artifact, manifest = artifact, artifact.manifest
        if manifest.architecture != platform.machine():
            made_for = manifest.architecture or "the simulated accelerator"
            raise ArtifactError(
                f"{artifact.directory} was compiled for {made_for} (target {manifest.target}); this machine is "
                f"{platform.machine()}. Compile with a target of this machine (`qcompiler targets`) to run it here"
            )
        library = _open_library(artifact.path("model.so"))
        prefix = manifest.name
        isa = getattr(library, f"{prefix}_isa")
        isa.restype = ctypes.c_char_p
        name = isa()
        if name is None:
            raise TargetError(
                f"{artifact.directory} was compiled for {manifest.target}, and this CPU lacks those instructions; "
                "compile for a lower level, or for 'x86', which chooses at load"
            )
        self.isa: str = name.decode()
        getattr(library, f"{prefix}_set_threads")(ctypes.c_int(threads))
        self.inputs = {t.name: _aligned(t) for t in manifest.inputs}
        self.outputs = {t.name: _aligned(t) for t in manifest.outputs}
        workspace = _aligned(Tensor("workspace", (max(manifest.workspace_bytes, 1),), "uint8"))
        self._keep = (library, workspace)
        self.invoke = _invoker(getattr(library, f"{prefix}_run"), self.inputs, self.outputs, workspace)

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Array]:
        """Copies of the outputs for these inputs (a missing leading axis of 1 is added). Raises CalibrationError."""
        for tensor in self.artifact.manifest.inputs:
            if tensor.name not in inputs:
                raise KeyError(f"input {tensor.name!r} is missing; the model takes {', '.join(map(repr, self.inputs))}")
            self.inputs[tensor.name][...] = fit(np.asarray(inputs[tensor.name]), tensor, f"input {tensor.name!r}")
        self.invoke()
        return {name: value.copy() for name, value in self.outputs.items()}


def load(directory: str | Path, threads: int = 1) -> Model:
    """The compiled model in `directory`, ready to run on this machine.

    Raises ArtifactError for an artefact that is missing, truncated, altered, foreign or for another architecture, and
    TargetError when this CPU lacks its instruction set.
    """
    return Model(open_artifact(directory), threads)


def _open_library(path: Path) -> ctypes.CDLL:
    # The dynamic loader takes a path that it has seen for the same library, even when the file has been replaced since;
    # a link of a fresh name makes it compare the files themselves.
    with tempfile.TemporaryDirectory(prefix="qcompiler-") as folder:
        link = Path(folder) / "model.so"
        link.symlink_to(path.resolve())
        try:
            return ctypes.CDLL(str(link))
        except OSError as error:
            raise ArtifactError(f"{path} cannot be loaded: {str(error).replace(str(link), str(path))}") from None


def _invoker(
    function: Any, inputs: Mapping[str, Array], outputs: Mapping[str, Array], workspace: Array
) -> Callable[[], None]:
    """A closure over everything that does not change between calls: what remains is one foreign call."""
    function.restype = ctypes.c_int
    sources = (ctypes.c_void_p * len(inputs))(*(a.ctypes.data for a in inputs.values()))
    results = (ctypes.c_void_p * len(outputs))(*(a.ctypes.data for a in outputs.values()))
    space = ctypes.c_void_p(workspace.ctypes.data)

    def invoke() -> None:
        status = function(sources, results, space)
        if status:
            raise RuntimeError(f"the compiled model returned status {status}")

    return invoke


def _aligned(tensor: Tensor) -> Array:
    raw = np.zeros(tensor.bytes + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + tensor.bytes].view(tensor.dtype).reshape(tensor.shape)
