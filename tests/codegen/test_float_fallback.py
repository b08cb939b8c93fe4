"""Integer networks with float work in the middle: quantised around it, compiled, each fallback with its reason."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from qcompiler.frontend.onnx import import_onnx
from qcompiler.passes.calibrate import calibrate
from qcompiler.passes.canonical import canonical_pipeline
from qcompiler.passes.integerize import integerize
from qcompiler.passes.quantize import Quantize
from qcompiler.sim import reference
from qcompiler.sim.integer_program import Conv2d, FloatOp

Middle = tuple[Sequence[onnx.NodeProto], Mapping[str, Any], set[str]]
node = helper.make_node

# Nodes from "a" to "b", their constants, and the kinds that stay float.
MIDDLES: dict[str, Middle] = {
    "local response normalisation": ([node("LRN", ["a"], ["b"], size=5)], {}, set()),
    "quotient of two tensors": (
        [
            node("ReduceMean", ["a"], ["mean"], axes=[2, 3], keepdims=1),
            node("Add", ["mean", "one"], ["positive"]),
            node("Div", ["a", "positive"], ["b"]),
        ],
        {"one": np.ones(1, np.float32)},
        {"divide"},
    ),
    "instance normalisation": (
        [node("InstanceNormalization", ["a", "gain", "shift"], ["b"])],
        {"gain": np.ones(8, np.float32), "shift": np.zeros(8, np.float32)},
        {"divide"},
    ),
    "unit length": (
        [
            node("ReduceL2", ["a"], ["length"], axes=[1], keepdims=1),
            node("Clip", ["length", "least"], ["safe"]),
            node("Div", ["a", "safe"], ["b"]),
        ],
        {"least": np.array(1e-3, np.float32)},
        {"sum", "sqrt", "maximum", "divide"},
    ),
    "cubic resize": (
        [node("Resize", ["a", "", "scales"], ["b"], mode="cubic")],
        {"scales": np.array([1, 1, 2, 2], np.float32)},
        {"image.resize2d"},
    ),
    "running sum": ([node("CumSum", ["a", "axis"], ["b"])], {"axis": np.array(1)}, {"cumsum"}),
    "selection": (
        [
            node("Greater", ["a", "limit"], ["above"]),
            node("Neg", ["a"], ["negated"]),
            node("Where", ["above", "a", "negated"], ["b"]),
        ],
        {"limit": np.array(0.5, np.float32)},
        {"greater", "where"},
    ),
}  # fmt: skip


def network(nodes: Sequence[onnx.NodeProto], constants: Mapping[str, Any]) -> onnx.ModelProto:
    """convolution, relu, the middle, convolution."""
    rng = np.random.default_rng(0)
    weights = {
        "w1": (rng.standard_normal((8, 3, 3, 3)) * 0.3).astype(np.float32),
        "w2": (rng.standard_normal((4, 8, 3, 3)) * 0.2).astype(np.float32),
    }
    graph = helper.make_graph(
        [
            node("Conv", ["x", "w1"], ["c"], pads=[1] * 4),
            node("Relu", ["c"], ["a"]),
            *nodes,
            node("Conv", ["b", "w2"], ["y"], pads=[1] * 4),
        ],
        "fallback",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(v, n) for n, v in {**weights, **constants}.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("name", MIDDLES)
def test_float_in_the_middle(name: str, build_library: Callable[..., Any]) -> None:
    nodes, constants, kinds = MIDDLES[name]
    model = network(nodes, constants)
    rng = np.random.default_rng(1)
    samples = [{"x": rng.standard_normal((1, 3, 16, 16)).astype(np.float32)} for _ in range(4)]
    module = canonical_pipeline().run(import_onnx(model))
    program = integerize(Quantize(calibrate(module, samples)).run(module))
    left = [op for op in program.operations if isinstance(op, FloatOp)]
    assert {op.kind for op in left} == kinds
    assert all(op.reason for op in left), "the fallback report says why"
    assert sum(isinstance(op, Conv2d) for op in program.operations) == 2, "both convolutions are integer"

    want = reference.execute(program, samples[0])["y"]
    got = build_library(program, "x86:avx2").run(samples[0])["y"]
    # A float result on the edge between two integers may fall either way: one step of an int8 tensor, now and then.
    assert np.mean(got != want) < (0.02 if kinds else 1e-9)
    real = onnxruntime.InferenceSession(model.SerializeToString()).run(None, samples[0])[0]
    for values in (want, got):
        assert 10 * np.log10(np.mean(real**2) / np.mean((real - values) ** 2)) > 22
