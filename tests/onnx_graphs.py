"""Small ONNX graphs for tests, and the comparison of an imported module with ONNX Runtime."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import tvm
from onnx import TensorProto, helper, numpy_helper

from qcompiler.frontend.onnx import import_onnx
from qcompiler.passes.canonical import canonical_pipeline
from qcompiler.passes.graph import Graph, read
from qcompiler.sim.float_ops import FLOAT_OPS

Array = np.ndarray
OPSET = 17


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Sequence[int | str | None]],
    outputs: Sequence[str],
    constants: Mapping[str, Array] | None = None,
    opset: int = OPSET,
    dtypes: Mapping[str, int] | None = None,
    name: str = "test",
) -> onnx.ModelProto:
    """A model of float32 inputs (others by `dtypes`) and outputs of unstated shape."""
    dtypes = dtypes or {}
    graph = helper.make_graph(
        list(nodes),
        name,
        [helper.make_tensor_value_info(n, dtypes.get(n, TensorProto.FLOAT), s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(n, dtypes.get(n, TensorProto.FLOAT), None) for n in outputs],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in (constants or {}).items()],
    )
    imports = [helper.make_opsetid("", opset)]
    if any(n.domain == "com.microsoft" for n in nodes):
        imports.append(helper.make_opsetid("com.microsoft", 1))
    return helper.make_model(graph, opset_imports=imports, ir_version=min(10, onnx.IR_VERSION))


def canonical(source: onnx.ModelProto, shapes: Mapping[str, Sequence[int]] | None = None) -> tvm.IRModule:
    return canonical_pipeline().run(import_onnx(source, shapes))


def operators(module: tvm.IRModule) -> dict[str, int]:
    """How often each Relax operator occurs."""
    return dict(Counter(node.op for node in read(module).nodes))


def random_feeds(graph: Graph, seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    feeds = {}
    for name in graph.inputs:
        kind = graph.types[name]
        if kind.dtype == "float32":
            feeds[name] = rng.normal(size=kind.shape).astype(np.float32)
        elif kind.dtype == "bool":
            feeds[name] = rng.random(kind.shape) < 0.5
        else:
            low, high = (0, 256) if kind.dtype == "uint8" else (-128, 128) if kind.dtype == "int8" else (1, 4)
            feeds[name] = rng.integers(low, high, kind.shape).astype(kind.dtype)
    return feeds


def evaluate(module: tvm.IRModule, feeds: Mapping[str, Array]) -> list[Array]:
    """The module's outputs by the NumPy meaning of each Relax operator (`sim.float_ops`)."""
    graph = read(module)
    values: dict[str, Array] = {**graph.constants, **feeds}
    for node in graph.nodes:
        arguments = [values[n] for n in node.inputs]
        attributes: dict[str, Any] = dict(node.attributes)
        if node.op == "quantize":
            values[node.name] = _quantize(*arguments, **attributes)
        elif node.op == "dequantize":
            values[node.name] = _dequantize(*arguments, **attributes)
        else:
            values[node.name] = FLOAT_OPS[node.op](*arguments, **attributes)
        kind = graph.types[node.name]
        if kind.dtype == "float32":  # the law computes some in float64 and rounds once
            values[node.name] = values[node.name].astype(np.float32)
        assert (values[node.name].shape, str(values[node.name].dtype)) == (kind.shape, kind.dtype), node
    return [values[n] for n in graph.outputs]


def _along(vector: Array, axis: int, rank: int) -> Array:
    shape = [1] * rank
    if vector.size > 1:
        shape[axis] = -1
    return vector.reshape(shape) if rank else vector.reshape(())


def _quantize(x: Array, scale: Array, zero: Array, *, axis: int, out_dtype: str) -> Array:
    info = np.iinfo(out_dtype)
    q = np.rint(x / _along(scale, axis, x.ndim)) + _along(zero, axis, x.ndim).astype(np.float32)
    return np.clip(q, info.min, info.max).astype(out_dtype)


def _dequantize(q: Array, scale: Array, zero: Array, *, axis: int, out_dtype: str = "float32") -> Array:
    centred = q.astype(np.int32) - _along(zero, axis, q.ndim).astype(np.int32)
    return (centred.astype(np.float32) * _along(scale, axis, q.ndim)).astype(out_dtype)


def run_onnxruntime(source: onnx.ModelProto, feeds: Mapping[str, Array]) -> list[Array]:
    """ONNX Runtime without optimisation, so that it computes what the file says."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(source.SerializeToString(), options).run(None, dict(feeds))


def assert_close(actual: Sequence[Array], expected: Sequence[Array], tolerance: float = 2e-5) -> None:
    """Equal shapes and dtypes; floats within `tolerance` of the largest magnitude, everything else exactly."""
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected, strict=True):
        assert (a.shape, a.dtype) == (e.shape, e.dtype)
        if e.dtype.kind == "f":
            scale = max(float(np.abs(e).max(initial=0)), 1e-6)
            np.testing.assert_allclose(a, e, rtol=0, atol=tolerance * scale)
        else:
            np.testing.assert_array_equal(a, e)


def check(
    source: onnx.ModelProto, shapes: Mapping[str, Sequence[int]] | None = None, tolerance: float = 2e-5
) -> tvm.IRModule:
    """Import and canonicalise; both must compute what ONNX Runtime does. Returns the canonical module.

    A transposed convolution has no NumPy meaning of its own: it never survives canonicalisation.
    """
    imported = import_onnx(source, shapes)
    module = canonical_pipeline().run(imported)
    feeds = random_feeds(read(imported))
    expected = run_onnxruntime(source, feeds)
    if "nn.conv2d_transpose" not in operators(imported):
        assert_close(evaluate(imported, feeds), expected, tolerance)
    assert_close(evaluate(module, feeds), expected, tolerance)
    return module
