"""Batch normalisation in its disguises: what folds disappears and nothing changes; what cannot says why."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx_graphs import check, model, operators

from qcompiler.frontend.onnx import import_onnx
from qcompiler.passes.base import Explanations, Pipeline
from qcompiler.passes.canonicalize import Canonicalize
from qcompiler.passes.fold_batch_norm import FoldBatchNorm
from qcompiler.passes.layout import Layout

RNG = np.random.default_rng(5)
I, O = 4, 6  # noqa: E741


def random(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def batch_norm(name: str, x: str, y: str, channels: int) -> tuple[list[onnx.NodeProto], dict[str, np.ndarray]]:
    names = [f"{name}_{k}" for k in ("scale", "bias", "mean", "variance")]
    values = [random(channels), random(channels), random(channels), np.abs(random(channels)) + 0.1]
    return [helper.make_node("BatchNormalization", [x, *names], [y], name=name)], dict(zip(names, values, strict=True))


def steps(x: str, *operations: tuple[str, np.ndarray]) -> tuple[list[onnx.NodeProto], dict[str, np.ndarray], str]:
    """x op constant op constant …"""
    nodes, constants = [], {}
    for i, (op, value) in enumerate(operations):
        constants[f"{op}{i}"] = value
        nodes.append(helper.make_node(op, [x, f"{op}{i}"], [f"{x}_{i}"], name=f"{op}_{i}"))
        x = f"{x}_{i}"
    return nodes, constants, x


LAYERS = {
    "conv": ("Conv", (1, I, 7, 6), random(O, I, 3, 3), {"pads": [1, 1, 1, 1]}, (O, 1, 1)),
    "grouped": ("Conv", (1, I, 7, 6), random(O, I // 2, 3, 3), {"group": 2}, (O, 1, 1)),
    "depthwise": ("Conv", (1, I, 7, 6), random(I, 1, 3, 3), {"group": I, "strides": [2, 2]}, (I, 1, 1)),
    "conv1d": ("Conv", (2, I, 9), random(O, I, 3), {}, (O, 1)),
    "transposed": ("ConvTranspose", (1, I, 5, 6), random(I, O, 3, 3), {"strides": [2, 2]}, (O, 1, 1)),
    "up-grouped": ("ConvTranspose", (1, I, 5, 6), random(I, O // 2, 2, 2), {"strides": [2, 2], "group": 2}, (O, 1, 1)),
    "gemm": ("Gemm", (3, I), random(I, O), {}, (O,)),
    "matmul": ("MatMul", (2, 3, I), random(I, O), {}, (O,)),
}  # fmt: skip
BEHIND = {
    "mul": lambda s: [("Mul", random(*s))],
    "mul-add": lambda s: [("Mul", random(*s)), ("Add", random(*s))],
    "add-mul": lambda s: [("Add", random(*s)), ("Mul", random(*s))],
    "sub-div": lambda s: [("Sub", random(*s)), ("Div", np.abs(random(*s)) + 0.5)],
    "sub-div-mul-add": lambda s: [
        ("Sub", random(*s)), ("Div", np.abs(random(*s)) + 0.5), ("Mul", random(*s)), ("Add", random(*s)),
    ],
    "scalars": lambda s: [("Mul", np.float32(1.5)), ("Add", np.float32(-0.25)), ("Div", random(1)[0] + np.float32(3))],
    "leading-one": lambda s: [("Mul", random(1, *s)), ("Add", random(1, *s))],
}  # fmt: skip


@pytest.mark.parametrize("disguise", BEHIND)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("layer", LAYERS)
def test_behind_a_layer(layer: str, bias: bool, disguise: str) -> None:
    op, shape, weight, attributes, channels = LAYERS[layer]
    if op == "MatMul" and bias:
        pytest.skip("a MatMul has no bias")
    constants = {"w": weight, **({"b": random(channels[0])} if bias else {})}
    layer_node = helper.make_node(op, ["x", *constants], ["y"], name="layer", **attributes)
    nodes, more, last = steps("y", *BEHIND[disguise](channels))
    found = operators(check(model([layer_node, *nodes], {"x": shape}, [last], {**constants, **more})))
    assert "multiply" not in found
    assert found.get("add", 0) <= 1
    assert found.get("nn.conv2d", 0) + found.get("matmul", 0) == 1


@pytest.mark.parametrize("layer", LAYERS)
def test_batch_normalization_behind_a_layer(layer: str) -> None:
    op, shape, weight, attributes, channels = LAYERS[layer]
    if op == "MatMul":
        pytest.skip("BatchNormalization normalises axis 1, not a MatMul's last axis")
    node = helper.make_node(op, ["x", "w"], ["y"], name="layer", **attributes)
    nodes, constants = batch_norm("bn", "y", "z", channels[0])
    relu = helper.make_node("Relu", ["z"], ["r"], name="relu")
    found = operators(check(model([node, *nodes, relu], {"x": shape}, ["r"], {"w": weight, **constants})))
    assert "multiply" not in found and found["add"] == 1 and found["nn.relu"] == 1


@pytest.mark.parametrize("layer", ["grouped", "depthwise", "conv1d", "gemm"])
def test_in_front_of_an_unpadded_layer(layer: str) -> None:
    op, shape, weight, attributes, _ = LAYERS[layer]
    nodes, constants = batch_norm("bn", "x", "n", I)
    node = helper.make_node(op, ["n", "w", "b"], ["y"], name="layer", **attributes)
    bias = random(weight.shape[1] if op == "Gemm" else weight.shape[0])
    found = operators(check(model([*nodes, node], {"x": shape}, ["y"], {"w": weight, "b": bias, **constants})))
    assert "multiply" not in found and found["add"] == 1


def test_only_a_factor_in_front_of_a_padded_layer() -> None:
    _, shape, weight, attributes, _ = LAYERS["conv"]
    nodes, constants, last = steps("x", ("Mul", random(I, 1, 1)))
    node = helper.make_node("Conv", [last, "w"], ["y"], name="layer", **attributes)
    found = operators(check(model([*nodes, node], {"x": shape}, ["y"], {"w": weight, **constants})))
    assert "multiply" not in found


def test_both_sides_of_a_transposed_convolution() -> None:
    """With a kernel no larger than the stride every output has one tap, and even the addition in front folds."""
    weight = random(I, O, 2, 2)
    before, first = batch_norm("before", "x", "n", I)
    after, second = batch_norm("after", "y", "z", O)
    node = helper.make_node("ConvTranspose", ["n", "w"], ["y"], name="up", strides=[2, 2])
    source = model([*before, node, *after], {"x": (1, I, 5, 6)}, ["z"], {"w": weight, **first, **second})
    found = operators(check(source))
    assert "multiply" not in found and found["add"] == 1


def explanations(source: onnx.ModelProto) -> list[str]:
    notes = Explanations()
    Pipeline((Canonicalize(), Layout(), Canonicalize(), FoldBatchNorm())).run(import_onnx(source), [notes])
    return [str(n) for n in notes.notes]


def test_declines_an_addition_in_front_of_padding() -> None:
    _, shape, weight, attributes, _ = LAYERS["conv"]
    nodes, constants = batch_norm("bn", "x", "n", I)
    node = helper.make_node("Conv", ["n", "w"], ["y"], name="layer", **attributes)
    source = model([*nodes, node], {"x": shape}, ["y"], {"w": weight, **constants})
    assert operators(check(source))["multiply"] == 1
    assert explanations(source) == [
        "fold_batch_norm: y.inner: the addition in front of it cannot be folded: the padding around it is zero, "
        "not shifted"
    ]


def test_declines_a_tensor_that_others_read() -> None:
    _, shape, weight, attributes, _ = LAYERS["conv"]
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="layer", **attributes)
    nodes, constants = batch_norm("bn", "y", "z", O)
    total = helper.make_node("Add", ["y", "z"], ["s"], name="sum")
    source = model([node, *nodes, total], {"x": shape}, ["s"], {"w": weight, **constants})
    assert operators(check(source))["multiply"] == 1
    assert explanations(source) == [
        "fold_batch_norm: z.scaled: not folded into y: other operators read that tensor too"
    ]


def test_declines_a_factor_that_adds_axes() -> None:
    node = helper.make_node("Gemm", ["x", "w"], ["y"], name="layer")
    nodes, constants, last = steps("y", ("Mul", random(1, 1, O)))
    source = model([node, *nodes], {"x": (3, I)}, [last], {"w": random(I, O), **constants})
    assert operators(check(source)) == {"matmul": 1, "multiply": 1}


def test_declines_a_factor_along_another_axis() -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="layer")
    nodes, constants, last = steps("y", ("Mul", random(O, 1)))
    source = model([node, *nodes], {"x": (O, I)}, [last], {"w": random(I, O), **constants})
    assert operators(check(source)) == {"matmul": 1, "multiply": 1}


def test_shown_as_text() -> None:
    """The IR before and after, as the dump shows it."""
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="layer")
    nodes, constants = batch_norm("bn", "y", "z", 2)
    source = model([node, *nodes], {"x": (1, 2, 4, 4)}, ["z"], {"w": random(2, 2, 1, 1), **constants})
    before = Pipeline((Canonicalize(), Layout(), Canonicalize())).run(import_onnx(source))
    assert body(before) == [
        "x_nhwc = R.permute_dims(x, axes=[0, 2, 3, 1])",
        'y = R.nn.conv2d(x_nhwc, metadata["ir.GenericConst"][0])',
        'z_scaled = R.multiply(y, metadata["ir.GenericConst"][1])',
        'z_inner = R.add(z_scaled, metadata["ir.GenericConst"][2])',
        "z = R.permute_dims(z_inner, axes=[0, 3, 1, 2])",
    ]
    after = FoldBatchNorm().run(before)
    assert body(after) == [
        "x_nhwc = R.permute_dims(x, axes=[0, 2, 3, 1])",
        'z_scaled = R.nn.conv2d(x_nhwc, metadata["ir.GenericConst"][0])',
        'z_inner = R.add(z_scaled, metadata["ir.GenericConst"][1])',
        "z = R.permute_dims(z_inner, axes=[0, 3, 1, 2])",
    ]


def body(module: object) -> list[str]:
    """The bindings of the dataflow block, types and layout attributes left out."""
    import re

    lines = [line.strip() for line in module.script().splitlines()]  # type: ignore[attr-defined]
    lines = lines[lines.index("with R.dataflow():") + 1 :]
    lines = lines[: next(i for i, line in enumerate(lines) if line.startswith("R.output"))]
    lines = [re.sub(r": R\.Tensor\(.*?\"\) =", " =", line) for line in lines]
    return [re.sub(r"(R\.nn\.conv2d\(\w+, metadata\[.*?\]\[\d+\]).*\)", r"\1)", line) for line in lines]
