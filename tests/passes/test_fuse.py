"""Fusion analysis: which tensors become int8, and why others do not."""

from __future__ import annotations

import numpy as np
from relax_modules import conv, module, unary
from tvm.relax import op as R

from qcompiler.passes.fuse import analyse
from qcompiler.passes.graph import read
from qcompiler.passes.rewrite import const

RNG = np.random.default_rng(0)
WEIGHT = RNG.normal(0, 0.3, (8, 1, 1, 8)).astype(np.float32)
BIAS = np.ones(8, np.float32)
SHAPE = (1, 4, 4, 8)


def scalar(value: float):
    return const(np.float32(value))


def test_bias_and_relu_stay_inside_the_convolution():
    fusion = analyse(read(unary(lambda b, x: R.clip(conv(b, x, WEIGHT, BIAS, "conv"), 0, 6))))
    assert fusion.quantised == ("x", "y")
    assert fusion.interior == {"conv.conv", "conv"}
    assert fusion.reasons == {}


def test_a_relu_that_others_bypass_is_not_absorbed():
    def body(b, x):
        raw = conv(b, x, WEIGHT, BIAS, "raw")
        return {"y": b.emit(R.nn.relu(raw), "relu"), "z": b.emit(R.tanh(raw), "tanh")}

    assert analyse(read(module({"x": SHAPE}, body))).quantised == ("x", "raw", "y", "z")


def test_hard_swish_is_one_table_behind_its_convolution():
    def hard_swish(b, x):
        v = conv(b, x, WEIGHT, BIAS, "conv")
        gate = b.emit(R.clip(b.emit(R.add(v, scalar(3)), "plus"), 0, 6), "gate")
        return R.multiply(b.emit(R.multiply(v, gate), "product"), scalar(1 / 6))

    fusion = analyse(read(unary(hard_swish)))
    assert fusion.quantised == ("x", "conv", "y")


def test_a_table_ends_where_something_else_reads_it():
    def body(b, x):
        inner = b.emit(R.exp(b.emit(R.negative(x), "negative")), "inner")
        pooled = b.emit(R.nn.max_pool2d(inner, (2, 2), layout="NHWC"), "pooled")
        return {"p": pooled, "y": b.emit(R.log(inner), "log")}

    fusion = analyse(read(module({"x": SHAPE}, body)))
    assert fusion.quantised == ("x", "inner", "p", "y") and fusion.interior == {"negative"}


def test_a_factor_of_attention_scores_is_absorbed():
    def body(b, q, k):
        scores = b.emit(R.matmul(q, k), "scores")
        return {"y": b.emit(R.nn.softmax(b.emit(R.multiply(scores, scalar(0.25)), "scaled")), "attention")}

    fusion = analyse(read(module({"q": (1, 2, 4, 8), "k": (1, 2, 8, 4)}, body)))
    assert fusion.quantised == ("q", "k", "scaled", "y")


def test_operators_between_float_ones_stay_float():
    def body(b, x):
        raw = conv(b, x, WEIGHT, BIAS, "conv")
        total = b.emit(R.cumsum(raw, 3), "total")
        moved = b.emit(R.reshape(b.emit(R.tanh(total), "tanh"), (1, 16, 8)), "moved")
        return {"y": b.emit(R.cumsum(moved, 1), "again")}

    fusion = analyse(read(module({"x": SHAPE}, body)))
    assert fusion.quantised == ("x", "conv")
    assert fusion.reasons == {
        "total": "cumsum has no integer form",
        "tanh": "sits between operators that stay float",
        "moved": "sits between operators that stay float",
        "y": "cumsum has no integer form",
    }


def test_reasons_name_the_rule():
    def reason(operator, shape=SHAPE):
        return analyse(read(unary(operator, shape))).reasons["y"]

    assert reason(lambda b, x: R.nn.softmax(x, axis=1)) == "the integer softmax works along the last axis only"
    cubic = {"layout": "NHWC", "method": "cubic"}
    assert reason(lambda b, x: R.image.resize2d(x, (8, 8), **cubic)) == (
        "no integer form of a resize with cubic and half_pixel"
    )
    assert reason(
        lambda b, x: R.nn.layer_norm(x, const(np.ones(1, np.float32)), const(np.ones(1, np.float32)), [-1]), (4, 1)
    ) == ("the integer layer norm takes 2 to 16384 elements")
