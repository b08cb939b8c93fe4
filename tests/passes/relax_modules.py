"""Small canonical Relax modules, built by name, and the two executors that judge them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnxruntime
import tvm
from tvm import relax
from tvm.relax import op as R

from qcompiler.passes.export_onnx import export
from qcompiler.passes.rewrite import Builder, const

Array = np.ndarray[Any, Any]


def module(shapes: Mapping[str, tuple[int, ...]], body: Callable[..., Mapping[str, relax.Expr]]) -> tvm.IRModule:
    """A module with float32 inputs; `body(builder, *inputs)` returns its outputs by name."""
    builder = Builder()
    inputs = [builder.input(name, shape, "float32") for name, shape in shapes.items()]
    return builder.finish(body(builder, *inputs))


def unary(operator: Callable[[Builder, relax.Expr], relax.Expr], shape: tuple[int, ...] = (1, 4, 4, 8)) -> tvm.IRModule:
    """x → y by `operator(builder, x)`, which returns a call or a bound tensor."""

    def body(b: Builder, x: relax.Expr) -> dict[str, relax.Expr]:
        y = operator(b, x)
        return {"y": b.emit(y, "y.value") if isinstance(y, relax.Call) else y}

    return module({"x": shape}, body)


def conv(b: Builder, x: relax.Expr, weight: Array, bias: Array | None, name: str, **options: Any) -> relax.Expr:
    """NHWC convolution with OHWI weight, and its bias behind it."""
    y = b.emit(R.nn.conv2d(x, const(weight), data_layout="NHWC", kernel_layout="OHWI", **options), f"{name}.conv")
    return y if bias is None else b.emit(R.add(y, const(bias)), name)


def run_float(module: tvm.IRModule, sample: Mapping[str, Array]) -> dict[str, Array]:
    """The float module in ONNX Runtime."""
    session = onnxruntime.InferenceSession(export(module).SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, dict(sample)), strict=True))
