"""Functions that exporters spell out: one operator each, and equal to ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx_graphs import check, model, operators


def spelled(op: str) -> onnx.ModelProto:
    def node(kind: str, x: list[str], y: str, **attributes: object) -> onnx.NodeProto:
        return helper.make_node(kind, x, [y], name=y, **attributes)

    scalars = {"half": np.float32(0.5), "one": np.float32(1), "root": np.float32(np.sqrt(2)), "two": np.float32(2),
               "epsilon": np.float32(1e-5)}  # fmt: skip
    rng = np.random.default_rng(4)
    vectors = {k: rng.normal(size=8).astype(np.float32) for k in ("gain", "shift")}
    gelu = [node("Div", ["x", "root"], "d"), node("Erf", ["d"], "e"), node("Add", ["e", "one"], "p")]
    graphs = {
        "silu": [node("Sigmoid", ["x"], "s"), node("Mul", ["x", "s"], "y")],
        "gelu-torch": [*gelu, node("Mul", ["x", "p"], "m"), node("Mul", ["m", "half"], "y")],
        "gelu-half-first": [node("Mul", ["half", "x"], "h"), *gelu, node("Mul", ["h", "p"], "y")],
        "gelu-half-gate": [*gelu, node("Mul", ["p", "half"], "h"), node("Mul", ["x", "h"], "y")],
        "layer-norm": [
            node("ReduceMean", ["x"], "mu", axes=[-1]), node("Sub", ["x", "mu"], "c"), node("Pow", ["c", "two"], "sq"),
            node("ReduceMean", ["sq"], "var", axes=[-1]), node("Add", ["var", "epsilon"], "ve"),
            node("Sqrt", ["ve"], "sd"), node("Div", ["c", "sd"], "n"), node("Mul", ["n", "gain"], "g"),
            node("Add", ["g", "shift"], "y"),
        ],
    }  # fmt: skip
    return model(graphs[op], {"x": (2, 3, 8)}, ["y"], {**scalars, **vectors})


@pytest.mark.parametrize(
    ("name", "operator"),
    [("silu", "nn.silu"), ("gelu-torch", "nn.gelu"), ("gelu-half-first", "nn.gelu"), ("gelu-half-gate", "nn.gelu"),
     ("layer-norm", "nn.layer_norm")],
)  # fmt: skip
def test_spelled_out_functions_are_recognised(name: str, operator: str) -> None:
    assert operators(check(spelled(name))) == {operator: 1}


def test_lookalikes_are_left_alone() -> None:
    """x * sigmoid(z), and a normalisation whose gain is not a vector over the last axis."""
    nodes = [helper.make_node("Sigmoid", ["z"], ["s"]), helper.make_node("Mul", ["x", "s"], ["y"])]
    assert operators(check(model(nodes, {"x": (2, 3), "z": (2, 3)}, ["y"]))) == {"sigmoid": 1, "multiply": 1}
    source = spelled("layer-norm")
    gain = next(t for t in source.graph.initializer if t.name == "gain")
    gain.CopyFrom(onnx.numpy_helper.from_array(np.arange(3, dtype=np.float32).reshape(3, 1), "gain"))
    assert "nn.layer_norm" not in operators(check(source))
