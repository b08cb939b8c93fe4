"""qcompiler: trained neural networks as integer-only programs for x86, ARM and a simulated accelerator.

    artifact = qcompiler.compile("model.onnx", target="x86", calibration="samples.npz", output="out")
    model = qcompiler.load("out")
    scores = model.run({"input": image})["scores"]

Importing this package is cheap; what is used loads on first use.
"""

from __future__ import annotations

import importlib
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qcompiler.api import compile, quantize
    from qcompiler.artifact import Artifact, open_artifact
    from qcompiler.exploration.api import explore
    from qcompiler.library import Model, load
    from qcompiler.sim.errors import QCompilerError
    from qcompiler.simulation import simulate

__version__ = "0.1.0"
__all__ = ["Artifact", "Model", "QCompilerError", "compile", "explore", "load", "open_artifact", "quantize", "simulate"]

_HOME = {
    "Artifact": "artifact",
    "Model": "library",
    "QCompilerError": "sim.errors",
    "compile": "api",
    "explore": "exploration.api",
    "load": "library",
    "open_artifact": "artifact",
    "quantize": "api",
    "simulate": "simulation",
}
_COMPILING = ("api", "exploration.api")  # homes that import TVM


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'qcompiler' has no attribute {name!r}")
    with _quick_imports() if _HOME[name] in _COMPILING else nullcontext():
        value = getattr(importlib.import_module(f"qcompiler.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def _quick_imports() -> AbstractContextManager[None]:
    from qcompiler.quick_imports import quick_imports

    return quick_imports()


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
