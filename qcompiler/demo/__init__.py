"""The bundled example: a small CNN for handwritten digits, trained by examples/digits/train.py.

`digits.onnx` has unfolded BatchNormalization, a depthwise-separable block and residual additions; `calibration.npz`
holds 100 training images, `test.npz` 360 test images with labels (scikit-learn's copy of the UCI digits).
"""

from __future__ import annotations

import shlex
import sys
from contextlib import ExitStack
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from qcompiler.data import Samples
    from qcompiler.progress import Progress


def run_demo(output: Path, target: str, threads: int, progress: Progress) -> None:
    """Compile the example into `output`, run it on the test images, print accuracy, latency and the report's path."""
    from qcompiler.data import Samples, read_column
    from qcompiler.execution import accuracy, execute, execute_foreign, is_foreign
    from qcompiler.library import load
    from qcompiler.pipeline import Options, compile_model

    with ExitStack() as stack:
        model, calibration, test = (
            stack.enter_context(resources.as_file(resources.files("qcompiler.demo").joinpath(name)))
            for name in ("digits.onnx", "calibration.npz", "test.npz")
        )
        artifact = compile_model(model, target, calibration, output, Options(), progress)
        samples = Samples(test, {t.name: t for t in artifact.manifest.inputs}, "test")
        labels = read_column(test, "labels")
        if is_foreign(artifact):
            scores, latency = execute_foreign(artifact, samples)
        else:
            compiled = load(output, threads)
            scores, timing = execute(compiled, samples)
            latency = f"{timing} ({compiled.isa}, {threads} thread{'s' if threads > 1 else ''})"
        right = accuracy(scores["scores"], labels, str(test))
        reference = accuracy(_float_scores(model, samples), labels, str(test))
    print(f"accuracy  {right:.4f} on {len(labels)} test images (the float model: {reference:.4f})")
    print(f"latency   {latency}")
    print(f"report    {output / 'report.html'}")
    if sys.stdout.isatty():
        print(f"next      qcompiler inspect {shlex.quote(str(output))} --layers")


def _float_scores(model: Path, samples: Samples) -> npt.NDArray[Any]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    return np.stack([session.run(["scores"], sample)[0] for sample in samples])
