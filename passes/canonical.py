"""The canonical form that quantisation starts from, as a pipeline.

NHWC inside, batch normalisation folded, biases as additions of constant vectors, transposed convolutions
decomposed, no quantised tensor of another type than int8. See each pass for what it ensures.
"""

from __future__ import annotations

from qcompiler.passes.base import Pipeline
from qcompiler.passes.canonicalize import Canonicalize
from qcompiler.passes.decompose_conv_transpose import DecomposeConvTranspose
from qcompiler.passes.fold_batch_norm import FoldBatchNorm
from qcompiler.passes.layout import Layout
from qcompiler.passes.recognize import Recognize


def canonical_pipeline() -> Pipeline:
    """The passes from an imported module to a canonical one."""
    return Pipeline(
        (
            Canonicalize(),
            Recognize(),
            Layout(),
            Canonicalize(),
            FoldBatchNorm(),
            DecomposeConvTranspose(),
            FoldBatchNorm(),
            Canonicalize(),
        )
    )
