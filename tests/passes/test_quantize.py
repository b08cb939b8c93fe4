"""Insertion of quantize and dequantize: the module before and after, and the scales of weights and biases."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from relax_modules import conv, unary
from tvm.relax import op as R

from qcompiler.passes.base import Pipeline
from qcompiler.passes.graph import read
from qcompiler.passes.quantize import BIAS_LIMIT, Quantize, weight_scale
from qcompiler.passes.ranges import collapsed, parameters
from qcompiler.sim.numerics import decompose_scale

WEIGHT = np.array([[1.0, -0.5], [0.25, 0.125]], np.float32).reshape(2, 1, 1, 2)
BIAS = np.array([0.5, -1.0], np.float32)


def body(module) -> list[str]:
    """The bindings of a module's text."""
    return [line.strip() for line in module.script().splitlines() if " = R." in line]


def test_before_and_after():
    before = unary(lambda b, x: R.nn.relu(conv(b, x, WEIGHT, BIAS, "conv")), (1, 2, 2, 2))
    assert [line.split(" = ")[1].split("(")[0] for line in body(before)] == ["R.nn.conv2d", "R.add", "R.nn.relu"]
    after = Pipeline((Quantize({"x": (0.5, 3), "y": (0.25, -128)}),)).run(before)
    assert [(line.split(":")[0], line.split(" = ")[1].split("(")[0]) for line in body(after)] == [
        ("x_quantized", "R.quantize"),
        ("x_dequantized", "R.dequantize"),
        ("conv_conv_weight_dequantized", "R.dequantize"),
        ("conv_conv", "R.nn.conv2d"),
        ("conv_x2_dequantized", "R.dequantize"),
        ("conv", "R.add"),
        ("y_inner", "R.nn.relu"),
        ("y_quantized", "R.quantize"),
        ("y", "R.dequantize"),
    ]
    graph = read(after)
    constants = graph.constants
    weight, scale, _ = (constants[n] for n in graph.producers["conv.conv.weight.dequantized"].inputs)
    np.testing.assert_array_equal(scale, np.float32([1 / 127, 0.25 / 127]))
    np.testing.assert_array_equal(weight.reshape(2, 2), [[127, -64], [127, 64]])
    bias, bias_scale, _ = (constants[n] for n in graph.producers["conv.x2.dequantized"].inputs)
    np.testing.assert_array_equal(bias_scale, np.float32([0.5 / 127, 0.125 / 127]))
    np.testing.assert_array_equal(bias, [127, -1016])
    assert bias.dtype == np.int32


def test_one_weight_scale_per_tensor_on_request():
    before = unary(lambda b, x: conv(b, x, WEIGHT, None, "conv"), (1, 2, 2, 2))
    graph = read(Quantize({"x": (0.5, 3), "y": (0.25, 0)}, per_channel=False).run(before))
    scale = next(v for n, v in graph.constants.items() if v.dtype == np.float32 and v.size == 2)
    np.testing.assert_array_equal(scale, np.float32([1 / 127, 1 / 127]))


def test_the_text_form_leaves_the_ranges_out():
    assert str(Quantize({"x": (0.5, 3)}, per_channel=False)) == "quantize{per_channel=false}"


def test_no_ranges_no_change():
    before = unary(lambda b, x: R.nn.relu(x), (1, 2, 2, 2))
    assert Quantize(None).run(before) is before


MAGNITUDE = st.floats(-(2.0**60), 2.0**60, width=32)


@settings(max_examples=200, deadline=None)
@given(
    hnp.arrays(np.float32, (3, 1, 2, 2), elements=MAGNITUDE),
    hnp.arrays(np.float64, 3, elements=MAGNITUDE),
    st.floats(2.0**-40, 2.0**40, width=32),
)
def test_weight_scales_represent_weights_and_keep_biases_in_int32(weight, bias, x_scale):
    scale = weight_scale(weight, 0, bias, x_scale)
    assert scale.dtype == np.float32 and np.all(np.isfinite(scale)) and np.all(scale > 0)
    decompose_scale(np.minimum(scale, 1.0))
    wide = scale.astype(np.float64)
    assert np.all(np.abs(bias) / (wide * x_scale) <= BIAS_LIMIT * 1.001)
    assert np.all(np.abs(weight).max(axis=(1, 2, 3)) / wide <= 127.001)


@settings(max_examples=200, deadline=None)
@given(st.floats(-(2.0**80), 0.0), st.floats(0.0, 2.0**80))
def test_parameters_cover_the_range_and_zero_exactly(low, high):
    if collapsed(low, high) is not None:
        return
    scale, zero = parameters(low, high)
    assert np.float32(scale) == scale and -128 <= zero <= 127
    assert (-128 - zero) * scale <= low + 0.502 * scale and (127 - zero) * scale >= high - 0.502 * scale
