"""The local rewrites: each shown before and after, and equal to ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx_graphs import check, model, operators

from qcompiler.passes.base import parse_pipeline
from qcompiler.passes.canonical import canonical_pipeline
from qcompiler.passes.graph import read

RNG = np.random.default_rng(8)


def random(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def integers(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def node(op: str, inputs: str, output: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), [output], name=output, **attributes)


def test_the_pipeline_has_a_text_form() -> None:
    text = (
        "canonicalize,recognize,layout,canonicalize,fold_batch_norm,decompose_conv_transpose,fold_batch_norm,"
        "canonicalize"
    )
    assert str(canonical_pipeline()) == text
    assert parse_pipeline(text) == canonical_pipeline()


VECTOR, ROW, SCALAR = random(4), random(1, 4), np.float32(2.5)
REWRITES = {
    "subtract": ([node("Sub", "x vector", "y")], {"add": 1}, (4,)),
    "divide": ([node("Div", "x vector", "y")], {"multiply": 1}, (4,)),
    "constant-minus": ([node("Sub", "vector x", "y")], {"multiply": 1, "add": 1}, (4,)),
    "constant-left": ([node("Add", "vector x", "y")], {"add": 1}, (4,)),
    "leading-ones": ([node("Mul", "x row", "y")], {"multiply": 1}, (4,)),
    "repeated": ([node("Mul", "x same", "y")], {"multiply": 1}, ()),
    "one-element": ([node("Add", "x single", "y")], {"add": 1}, ()),
    "neutral": ([node("Mul", "x one", "a"), node("Add", "a zero", "b"), node("Relu", "b", "y")], {"nn.relu": 1}, None),
    "divide-by-zero": ([node("Div", "x zeros", "y")], {"divide": 1}, (4,)),
    "transposes": ([node("Transpose", "x", "a", perm=[1, 2, 0]), node("Transpose", "a", "b", perm=[2, 0, 1]),
                    node("Relu", "b", "y")], {"nn.relu": 1}, None),
    "reshapes": ([node("Reshape", "x flat", "a"), node("Reshape", "a back", "b"), node("Relu", "b", "y")],
                 {"nn.relu": 1}, None),
    "unit-transpose": ([node("Unsqueeze", "x axis", "a"), node("Transpose", "a", "y", perm=[1, 0, 2, 3])],
                       {"reshape": 1}, None),
    "identity": ([node("Identity", "x", "a"), node("Dropout", "a", "b"), node("Relu", "b", "y")], {"nn.relu": 1}, None),
    "sum": ([node("Sum", "x x x", "y")], {"add": 2}, None),
    "cast": ([node("Cast", "x", "a", to=1), node("Relu", "a", "y")], {"nn.relu": 1}, None),
}  # fmt: skip
CONSTANTS = {
    "vector": VECTOR, "row": ROW, "same": np.full((1, 3, 1), 2.5, np.float32), "single": np.ones((1, 1), np.float32),
    "one": np.ones((3, 1), np.float32), "zero": np.float32(0), "zeros": np.float32([1, 2, 0, 3]), "flat": integers(24),
    "back": integers(2, 3, 4), "axis": integers(0),
}  # fmt: skip


@pytest.mark.parametrize("name", REWRITES)
def test_rewrites(name: str) -> None:
    nodes, expected, constant = REWRITES[name]
    wanted = {i for n in nodes for i in n.input}
    source = model(nodes, {"x": (2, 3, 4)}, ["y"], {k: v for k, v in CONSTANTS.items() if k in wanted})
    with np.errstate(divide="ignore"):
        graph = read(check(source)) if name != "divide-by-zero" else read(canonical_pipeline().run(imported(source)))
    assert {n.op for n in graph.nodes} == set(expected) and len(graph.nodes) == sum(expected.values())
    if constant is not None:
        assert [graph.constants[n.inputs[1]].shape for n in graph.nodes][-1:] == [constant]


def imported(source: onnx.ModelProto) -> object:
    from qcompiler.frontend.onnx import import_onnx

    return import_onnx(source)


def test_the_constant_stands_on_the_right_of_a_product() -> None:
    source = model([node("MatMul", "w x", "y")], {"x": (2, 5, 3)}, ["y"], {"w": random(4, 5)})
    graph = read(check(source))
    (product,) = [n for n in graph.nodes if n.op == "matmul"]
    assert graph.constants[product.inputs[1]].shape == (5, 4)


def quantised_weight(nodes: list[onnx.NodeProto], shape: tuple[int, ...], axis: int, scales: int) -> onnx.ModelProto:
    constants = {
        "w": RNG.integers(-127, 128, shape).astype(np.int8), "s": RNG.uniform(0.01, 0.1, scales).astype(np.float32),
        "z": np.zeros(scales, np.int8), "flat": integers(6, 8),
    }  # fmt: skip
    head = node("DequantizeLinear", "w s z", "d", axis=axis)
    wanted = {i for n in (head, *nodes) for i in n.input}
    return model(
        [head, *nodes], {"x": (3, 6)}, ["y"], {k: v for k, v in constants.items() if k in (*wanted, "w", "s", "z")}
    )


@pytest.mark.parametrize(
    ("nodes", "shape", "axis"),
    [
        ([node("Transpose", "d", "t"), node("MatMul", "x t", "y")], (8, 6), 0),
        ([node("Gemm", "x d", "y", transB=1)], (8, 6), 0),
        ([node("Reshape", "d flat", "t"), node("MatMul", "x t", "y")], (2, 3, 8), 2),
    ],
)
def test_moves_of_a_quantised_weight_happen_now(nodes: list[onnx.NodeProto], shape: tuple, axis: int) -> None:
    """The weight stays a dequantised int8 constant, its scales on the output axis."""
    graph = read(check(quantised_weight(nodes, shape, axis, 8)))
    assert [n.op for n in graph.nodes] == ["dequantize", "matmul"]
    assert graph.constants[graph.nodes[0].inputs[0]].dtype == np.int8
    assert graph.nodes[0].attributes["axis"] % 2 == 1


def test_a_quantised_constant_that_is_no_weight_becomes_float() -> None:
    source = quantised_weight([node("Add", "x d", "y")], (6,), 0, 6)
    assert operators(check(source)) == {"add": 1}


def test_quantised_flatten_keeps_its_steps() -> None:
    """The order of the weights absorbs the transpose, through the quantisation in between."""
    names = {"s": np.float32(0.05), "z": np.int8(3)}
    nodes = [
        node("Conv", "x k", "c"), node("Flatten", "c", "f"), node("QuantizeLinear", "f s z", "q"),
        node("DequantizeLinear", "q s z", "r"), node("MatMul", "r w", "y"),
    ]  # fmt: skip
    source = model(nodes, {"x": (1, 3, 5, 4)}, ["y"], {**names, "k": random(8, 3, 2, 2), "w": random(8 * 4 * 3, 5)})
    found = operators(check(source, tolerance=1e-2))
    assert found == {"permute_dims": 1, "nn.conv2d": 1, "reshape": 1, "quantize": 1, "dequantize": 1, "matmul": 1}
