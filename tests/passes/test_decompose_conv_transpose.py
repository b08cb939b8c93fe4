"""Transposed convolutions as dense ones: the weights of each phase, and what runs before the shuffle.

The numbers against ONNX Runtime are in tests/frontend/test_onnx_operators.py.
"""

from __future__ import annotations

import numpy as np
from onnx import helper
from onnx_graphs import check, model

from qcompiler.passes.decompose_conv_transpose import phases
from qcompiler.passes.graph import read

RNG = np.random.default_rng(12)


def test_phases_by_hand() -> None:
    """Kernel a b c, stride 2: even outputs meet a and c (newest first), odd ones b alone."""
    kernel = np.array([1, 2, 3], np.float32).reshape(1, 1, 1, 3)
    dense = phases(kernel, 1, (1, 2), (1, 1))
    assert dense.shape == (2, 1, 2, 1)
    np.testing.assert_array_equal(dense[:, 0, :, 0], [[3, 1], [0, 2]])


def test_missing_taps_hold_the_code_of_zero() -> None:
    dense = phases(np.full((1, 1, 1, 3), 200, np.uint8), 1, (1, 2), (1, 1), fill=128)
    np.testing.assert_array_equal(dense[:, 0, :, 0], [[200, 200], [128, 200]])


def test_bias_and_activation_run_before_the_shuffle() -> None:
    nodes = [
        helper.make_node("ConvTranspose", ["x", "w", "b"], ["c"], strides=[2, 2], pads=[1, 1, 1, 1], name="up"),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("Conv", ["r", "k"], ["y"], name="next"),
    ]
    constants = {"w": RNG.normal(size=(3, 5, 4, 4)), "b": RNG.normal(size=5), "k": RNG.normal(size=(2, 5, 1, 1))}
    source = model(nodes, {"x": (1, 3, 4, 6)}, ["y"], {k: v.astype(np.float32) for k, v in constants.items()})
    graph = read(check(source))
    assert [n.op for n in graph.nodes] == [
        "permute_dims", "nn.conv2d", "add", "nn.relu", "reshape", "permute_dims", "reshape", "strided_slice",
        "nn.conv2d", "permute_dims",
    ]  # fmt: skip
    bias = graph.constants[graph.nodes[2].inputs[1]]
    np.testing.assert_array_equal(bias, np.tile(constants["b"].astype(np.float32), 4))


def test_a_quantised_kernel_stays_quantised() -> None:
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["d"], axis=1, name="weight"),
        helper.make_node("ConvTranspose", ["x", "d"], ["y"], strides=[2, 2], name="up"),
    ]
    constants = {
        "w": RNG.integers(-127, 128, (3, 5, 3, 3)).astype(np.int8),
        "s": RNG.uniform(0.01, 0.1, 5).astype(np.float32),
        "z": np.zeros(5, np.int8),
    }
    graph = read(check(model(nodes, {"x": (1, 3, 4, 6)}, ["y"], constants)))
    (weight,) = [n for n in graph.nodes if n.op == "dequantize"]
    assert graph.constants[weight.inputs[0]].dtype == np.int8 and weight.attributes["axis"] % 4 == 0
    assert graph.constants[weight.inputs[1]].shape == (20,)
