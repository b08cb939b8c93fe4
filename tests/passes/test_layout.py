"""Channels-last layout: where transposes go, and that nothing changes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx_graphs import check, model, operators

from qcompiler.frontend.onnx import import_onnx
from qcompiler.passes.canonicalize import Canonicalize
from qcompiler.passes.graph import read
from qcompiler.passes.layout import Layout, from_last, last_axis, to_last

RNG = np.random.default_rng(6)


def random(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def integers(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def node(op: str, inputs: str, output: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), [output], name=output, **attributes)


K = {"k": random(8, 4, 3, 3), "k2": random(4, 8, 1, 1), "k1": random(8, 4, 1, 1)}
SAME = {"pads": [1, 1, 1, 1]}


@pytest.mark.parametrize("rank", [3, 4, 5])
def test_permutations_are_inverse(rank: int) -> None:
    assert [to_last(rank)[i] for i in from_last(rank)] == list(range(rank))
    assert [to_last(rank).index(i) for i in range(rank)] == [last_axis(i, rank) for i in range(rank)]


def test_shown_as_nodes() -> None:
    """Before and after: weights are transposed at once, the graph's ends at run time."""
    source = model([node("Conv", "x k", "c", strides=[2, 1], pads=[0, 1, 2, 3]), node("Relu", "c", "y")],
                   {"x": (1, 4, 6, 5)}, ["y"], K)  # fmt: skip
    before = read(import_onnx(source))
    assert [(n.name, n.op, before.types[n.name].shape) for n in before.nodes] == [
        ("c", "nn.conv2d", (1, 8, 3, 7)), ("y", "nn.relu", (1, 8, 3, 7)),
    ]  # fmt: skip
    after = read(Layout().run(import_onnx(source)))
    assert [(n.name, n.op, after.types[n.name].shape) for n in after.nodes] == [
        ("x.nhwc", "permute_dims", (1, 6, 5, 4)),
        ("c", "nn.conv2d", (1, 3, 7, 8)),
        ("y.inner", "nn.relu", (1, 3, 7, 8)),
        ("y", "permute_dims", (1, 8, 3, 7)),
    ]
    conv = after.nodes[1]
    assert (conv.attributes["data_layout"], conv.attributes["kernel_layout"]) == ("NHWC", "OHWI")
    assert conv.attributes["padding"] == (0, 1, 2, 3) and conv.attributes["strides"] == (2, 1)
    np.testing.assert_array_equal(after.constants[conv.inputs[1]], K["k"].transpose(0, 2, 3, 1))


NETWORKS = {
    "residual": [node("Conv", "x k", "a", **SAME), node("Conv", "a k2", "b"), node("Add", "b x", "y")],
    "pools": [node("MaxPool", "x", "a", kernel_shape=[2, 2]), node("AveragePool", "a", "y", kernel_shape=[2, 2])],
    "constants": [node("Conv", "x k", "a"), node("Mul", "a channel", "b"), node("Add", "b image", "y")],
    "prelu": [node("Conv", "x k", "a"), node("PRelu", "a channel", "y")],
    "concat": [node("Conv", "x k1", "a"), node("Concat", "a x", "b", axis=1),
               node("MaxPool", "b", "y", kernel_shape=[2, 2])],
    "slice": [node("Conv", "x k", "a"), node("Slice", "a starts ends axes", "b"), node("Relu", "b", "y")],
    "pad": [node("Pad", "x pads", "a"), node("Conv", "a k", "b"), node("Pad", "b pads", "y")],
    "gather": [node("Conv", "x k", "a"), node("Gather", "a picked", "b", axis=1), node("Relu", "b", "y")],
    "softmax-channels": [node("Conv", "x k", "a"), node("Softmax", "a", "b", axis=1), node("Relu", "b", "y")],
    "reduce-keep": [node("Conv", "x k", "a"), node("ReduceMax", "a", "b", axes=[1]), node("Mul", "a b", "y")],
    "squeeze-excite": [node("Conv", "x k", "a"), node("GlobalAveragePool", "a", "m"), node("Conv", "m square", "s"),
                       node("Sigmoid", "s", "g"), node("Mul", "a g", "y")],
    "resize": [node("Conv", "x k", "a"), node("Resize", "a no scales", "b", mode="linear"), node("Conv", "b k2", "y")],
    "shuffle": [node("Conv", "x k", "a"), node("Reshape", "a five", "r"),
                node("Transpose", "r", "t", perm=[0, 2, 1, 3, 4]), node("Reshape", "t four", "s"),
                    node("Conv", "s k2", "y")],
    "depth-to-space": [node("Conv", "x k", "a"), node("DepthToSpace", "a", "d", blocksize=2),
                    node("Conv", "d two", "y")],
    "space-to-depth": [node("Conv", "x k1", "a"), node("SpaceToDepth", "a", "d", blocksize=2), node("Relu", "d", "y")],
    "transpose-cancels": [node("Conv", "x k", "a"), node("Transpose", "a", "t", perm=[0, 2, 3, 1]),
                          node("LayerNormalization", "t last last", "n"),
                    node("Transpose", "n", "u", perm=[0, 3, 1, 2]),
                          node("Conv", "u k2", "y")],
}  # fmt: skip
CONSTANTS = {
    **K, "channel": random(8, 1, 1), "image": random(1, 1, 4, 4), "starts": integers(1, 2), "ends": integers(4, 8),
    "axes": integers(2, 1), "pads": integers(0, 1, 2, 0, 0, 1, 1, 2), "picked": integers(3, 0, 7), "no": random(0),
    "square": random(8, 8, 1, 1), "scales": np.float32([1, 1, 2, 2]), "five": integers(1, 2, 4, 4, 4),
    "four": integers(1, 8, 4, 4), "two": random(3, 2, 3, 3), "last": random(8),
}  # fmt: skip


def used(nodes: list[onnx.NodeProto], shape: tuple[int, ...]) -> onnx.ModelProto:
    constants = dict(CONSTANTS)
    if nodes[0].op_type == "Pad":  # four channels become six
        constants["k"] = random(8, 6, 3, 3)
    wanted = {name for n in nodes for name in n.input}
    return model(nodes, {"x": shape}, ["y"], {k: v for k, v in constants.items() if k in wanted})


@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name: str) -> None:
    """Computes the same; the only transposes of images are at the two ends, but for those that shuffle channels."""
    module = check(used(NETWORKS[name], (1, 4, 6, 6)))
    graph = read(module)
    transposes = [n for n in graph.nodes if n.op == "permute_dims" and not n.name.endswith(".shuffled")]
    assert all(n.inputs[0] in graph.inputs or n.name in graph.outputs for n in transposes)


def test_flatten_of_an_image_costs_nothing() -> None:
    """The transpose back to NCHW in front of a fully connected layer goes into the order of its weights."""
    nodes = [node("Conv", "x k", "a"), node("Flatten", "a", "f"), node("Gemm", "f w", "y")]
    source = model(nodes, {"x": (2, 4, 6, 5)}, ["y"], {"k": K["k"], "w": random(8 * 4 * 3, 7)})
    assert operators(check(source)) == {"permute_dims": 1, "nn.conv2d": 1, "reshape": 1, "matmul": 1}


def test_a_chain_of_one_dimensional_layers_has_no_reshape_inside() -> None:
    nodes = [
        node("Conv", "x k", "a"),
        node("Relu", "a", "b"),
        node("Conv", "b k2", "c"),
        node("Clip", "c lo hi", "y"),
    ]
    constants = {"k": random(8, 4, 3), "k2": random(4, 8, 3), "lo": np.float32(0), "hi": np.float32(6)}
    found = operators(check(model(nodes, {"x": (1, 4, 12)}, ["y"], constants)))
    assert found["reshape"] == 2 and found["permute_dims"] == 2


def test_an_image_that_no_operator_wants_channels_last_stays() -> None:
    source = model(
        [node("Relu", "x", "a"), node("Add", "a c", "y")], {"x": (1, 4, 3, 3)}, ["y"], {"c": random(4, 1, 1)}
    )
    assert operators(check(source)) == {"nn.relu": 1, "add": 1}


def test_layout_needs_no_second_run() -> None:
    source = used(NETWORKS["residual"], (1, 4, 6, 6))
    once = Canonicalize().run(Layout().run(import_onnx(source)))
    assert operators(once) == operators(Canonicalize().run(once))
