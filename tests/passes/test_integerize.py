"""Integerise: every operator against its float meaning, the fallbacks' reasons, roundings, and what it refuses."""

from __future__ import annotations

from math import erf

import numpy as np
import pytest
from relax_modules import conv, module, run_float, unary
from tvm.relax import op as R

from qcompiler.passes.calibrate import calibrate
from qcompiler.passes.integerize import integerize
from qcompiler.passes.quantize import Quantize
from qcompiler.passes.rewrite import Builder, const
from qcompiler.sim.errors import ModelError
from qcompiler.sim.integer_program import Conv2d, Dequantize, FloatOp, MatMul, Table
from qcompiler.sim.integer_program import Quantize as QuantizeOp
from qcompiler.sim.numerics import ROUNDINGS
from qcompiler.sim.reference import execute

RNG = np.random.default_rng(0)
SHAPE = (1, 6, 6, 8)
TOKENS = (1, 5, 16)


def weights(*shape: int):
    return RNG.normal(0, 1 / np.sqrt(np.prod(shape[1:])), shape).astype(np.float32)


def constant(*shape: int):
    return const(RNG.normal(0, 1, shape).astype(np.float32))


def scalar(value: float):
    return const(np.float32(value))


def quantised(built, samples, observer: str = "min_max"):
    return Quantize(calibrate(built, samples, observer)).run(built)


def kinds(program) -> list[str]:
    """Operations between the float boundary."""
    inner = [o for o in program.operations if not isinstance(o, (QuantizeOp, Dequantize))]
    return [type(o).__name__ for o in inner]


def _hard_swish(b, x):
    gate = b.emit(R.clip(b.emit(R.add(x, scalar(3)), "plus"), 0, 6), "gate")
    return R.multiply(b.emit(R.multiply(x, gate), "product"), scalar(1 / 6))


def _gelu_by_erf(b, x):
    inner = b.emit(R.add(b.emit(R.erf(b.emit(R.multiply(x, scalar(0.5**0.5)), "m")), "e"), scalar(1)), "a")
    return R.multiply(b.emit(R.multiply(x, inner), "p"), scalar(0.5))


def _swish(b, x):
    return R.multiply(x, b.emit(R.sigmoid(x), "gate"))


def _log_chain(b, x):
    return R.log(b.emit(R.add(b.emit(R.exp(x), "e"), scalar(1)), "a"))


def _dense(b, x):
    return R.add(b.emit(R.matmul(x, const(weights(8, 16).T.copy().T)), "product"), constant(16))


NHWC = {"layout": "NHWC"}
NEAREST = {"method": "nearest_neighbor", "coordinate_transformation_mode": "asymmetric", "rounding_method": "floor"}
CORNERS = {"method": "linear", "coordinate_transformation_mode": "align_corners"}


def _detail(b, x):
    """What a local average leaves over, if positive."""
    average = b.emit(R.nn.avg_pool2d(x, (3, 3), (1, 1), (1, 1, 1, 1), **NHWC), "average")
    return R.nn.relu(b.emit(R.subtract(x, average), "difference"))


def _gated(b, x):
    gate = b.emit(R.sigmoid(b.emit(R.mean(x, [1, 2], True), "mean")), "gate")
    return R.multiply(x, gate)


UNARY = {
    "conv": (
        lambda b, x: conv(b, x, weights(12, 3, 3, 8), weights(12), "c", padding=(1, 0, 1, 2), strides=(2, 1)),
        "Conv2d",
    ),
    "conv without bias": (lambda b, x: conv(b, x, weights(12, 1, 1, 8), None, "c"), "Conv2d"),
    "depthwise, relu6": (
        lambda b, x: R.clip(conv(b, x, weights(8, 3, 3, 1), weights(8), "c", groups=8), 0, 6),
        "Conv2d",
    ),
    "grouped, dilated": (lambda b, x: conv(b, x, weights(8, 2, 2, 4), None, "c", groups=2, dilation=(2, 2)), "Conv2d"),
    "scaled conv": (lambda b, x: R.multiply(conv(b, x, weights(4, 1, 1, 8), weights(4), "c"), scalar(0.3)), "Conv2d"),
    "dense": (_dense, "Dense"),
    "hard swish": (_hard_swish, "Table"),
    "gelu by erf": (_gelu_by_erf, "Table"),
    "swish": (_swish, "Table"),
    "log of exp": (_log_chain, "Table"),
    "leaky relu": (lambda b, x: R.nn.leakyrelu(x, 0.1), "Table"),
    "prelu": (lambda b, x: R.nn.prelu(x, const(np.linspace(0, 1, 8).astype(np.float32)), axis=3), "Table"),
    "channel scale": (lambda b, x: R.multiply(x, const(np.linspace(0.5, 2, 8).astype(np.float32))), "Table"),
    "square": (lambda b, x: R.multiply(x, x), "Table"),
    "constant tensor": (lambda b, x: R.add(x, constant(1, 6, 6, 8)), "Add"),
    "subtract, relu": (_detail, "AveragePool2d Add"),
    "gate": (_gated, "Mean Table Mul"),
    "mean": (lambda b, x: R.mean(x, [1, 2]), "Mean"),
    "max pool": (lambda b, x: R.nn.max_pool2d(x, (3, 3), (2, 2), (1, 1, 1, 1), **NHWC), "MaxPool2d"),
    "max pool, ceil": (lambda b, x: R.nn.max_pool2d(x, (3, 3), (2, 2), ceil_mode=True, **NHWC), "MaxPool2d"),
    "average pool": (lambda b, x: R.nn.avg_pool2d(x, (3, 3), (2, 2), (1, 1, 1, 1), **NHWC), "AveragePool2d"),
    "average pool, padded": (
        lambda b, x: R.nn.avg_pool2d(x, (2, 2), (2, 2), (1, 1, 1, 1), count_include_pad=True, **NHWC),
        "AveragePool2d",
    ),
    "softmax": (lambda b, x: R.nn.softmax(x, axis=3), "Softmax"),
    "layer norm": (lambda b, x: R.nn.layer_norm(x, constant(8), constant(8), axes=[-1]), "LayerNorm"),
    "slice": (lambda b, x: R.nn.relu(b.emit(R.strided_slice(x, [1, 3], [5, 1], [0, 8], [-2, 3]), "s")), "Gather Table"),
    "pad": (lambda b, x: R.tanh(b.emit(R.nn.pad(x, (0, 0, 1, 2, 0, 1, 0, 0), "constant", 0.5), "s")), "Gather Table"),
    "reflect pad": (lambda b, x: R.tanh(b.emit(R.nn.pad(x, (0, 0, 1, 2, 0, 1, 0, 0), "reflect"), "s")), "Gather Table"),
    "take": (lambda b, x: R.tanh(b.emit(R.take(x, const(np.array([2, 0, 2])), axis=3), "s")), "Gather Table"),
    "take one": (lambda b, x: R.tanh(b.emit(R.take(x, const(np.array(-1)), axis=1), "s")), "Gather Reshape Table"),
    "concat": (lambda b, x: R.concat([x, b.emit(R.tanh(x), "t")], axis=1), "Table Concat"),
    "transpose": (lambda b, x: R.tanh(b.emit(R.permute_dims(x, [0, 3, 1, 2]), "s")), "Transpose Table"),
    "tile": (lambda b, x: R.tanh(b.emit(R.tile(x, (1, 2, 1, 1)), "s")), "Gather Table"),
    "nearest": (lambda b, x: R.tanh(b.emit(R.image.resize2d(x, (12, 9), **NHWC, **NEAREST), "s")), "Gather Table"),
    "linear": (lambda b, x: R.image.resize2d(x, (11, 13), **NHWC, method="linear"), "ResizeLinear"),
    "align corners": (lambda b, x: R.image.resize2d(x, (4, 13), **NHWC, **CORNERS), "ResizeLinear"),
}


def _sample(shape=SHAPE, names=("x",)):
    return {n: RNG.normal(0, 1, shape).astype(np.float32) for n in names}


def _steps(program, sample, expected) -> np.ndarray:
    """|integer - float| in steps of the output's scale."""
    name = program.outputs[0]
    scale = program.tensors[program.producers()[name].inputs[0]].scale
    return np.abs(execute(program, sample)[name] - expected) / scale


@pytest.mark.parametrize("name", sorted(UNARY))
def test_operator_is_integer_and_close_to_float(name):
    operator, expected_kinds = UNARY[name]
    built = unary(operator, SHAPE)
    samples = [_sample() for _ in range(4)]
    program = integerize(quantised(built, samples))
    assert kinds(program) == expected_kinds.split()
    for sample in samples:
        # The input's rounding passes through; every other error is about one step of some int8 tensor.
        steps = _steps(program, sample, run_float(built, sample)["y"])
        assert np.median(steps) <= 1.5 and steps.max() <= 8


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_every_rounding_is_within_a_step_of_the_default(rounding):
    def body(b, x):
        y = conv(b, x, weights(8, 3, 3, 8), weights(8), "a", padding=(1, 1, 1, 1))
        return R.mean(b.emit(R.add(x, y), "sum"), [1, 2])

    built = unary(body, SHAPE)
    samples = [_sample() for _ in range(3)]
    module_ = quantised(built, samples)
    reference, other = integerize(module_), integerize(module_, rounding=rounding)
    convolution = next(o for o in other.operations if isinstance(o, Conv2d))
    assert convolution.requantize.rounding == rounding
    for sample in samples:
        a, b = execute(reference, sample)["y"], execute(other, sample)["y"]
        assert np.abs(a - b).max() <= 1.01 * reference.tensors[reference.producers()["y"].inputs[0]].scale


def test_attention_reads_keys_by_rows_and_folds_the_factor():
    def body(b, q, k):
        scores = b.emit(R.matmul(q, b.emit(R.permute_dims(k, [0, 1, 3, 2]), "kt")), "scores")
        return {"y": b.emit(R.nn.softmax(b.emit(R.multiply(scores, scalar(0.25)), "scaled")), "attention")}

    built = module({"q": (1, 2, 5, 16), "k": (1, 2, 7, 16)}, body)
    samples = [_sample((1, 2, 5, 16), "q") | _sample((1, 2, 7, 16), "k") for _ in range(4)]
    program = integerize(quantised(built, samples))
    matmul = next(o for o in program.operations if isinstance(o, MatMul))
    assert matmul.transpose_b and "Transpose" not in kinds(program)
    for sample in samples:
        assert _steps(program, sample, run_float(built, sample)["y"]).max() <= 4


def test_an_embedding_reads_a_quantised_table():
    builder = Builder()
    index = builder.input("index", (1, 4), "int64")
    rows = builder.emit(R.take(constant(10, 16), index, axis=0), "rows")
    built = builder.finish({"y": builder.emit(R.nn.relu(rows), "relu")})
    samples = [{"index": RNG.integers(0, 10, (1, 4))} for _ in range(4)]
    program = integerize(quantised(built, samples))
    assert kinds(program) == ["Embedding", "Table"]
    for sample in samples:
        assert _steps(program, sample, run_float(built, sample)["y"]).max() <= 2


def test_a_fallback_says_which_rule_declined_and_only_its_part_is_float():
    def body(b, x):
        y = conv(b, x, weights(8, 1, 1, 8), None, "a")
        y = b.emit(R.nn.softmax(y, axis=1), "across")
        return conv(b, y, weights(8, 1, 1, 8), None, "c")

    built = unary(body, SHAPE)
    samples = [_sample() for _ in range(2)]
    program = integerize(quantised(built, samples))
    kept = [o for o in program.operations if isinstance(o, FloatOp)]
    assert [(o.kind, o.reason) for o in kept] == [("nn.softmax", "the integer softmax works along the last axis only")]
    assert [type(o).__name__ for o in program.operations] == [
        "Quantize", "Conv2d", "Dequantize", "FloatOp", "Quantize", "Conv2d", "Dequantize",
    ]  # fmt: skip


def test_without_ranges_everything_is_float_and_equal_to_onnx_runtime():
    built = unary(lambda b, x: R.nn.relu(conv(b, x, weights(8, 3, 3, 8), weights(8), "a")), SHAPE)
    program = integerize(Quantize(None).run(built))
    assert {type(o) for o in program.operations} == {FloatOp}
    sample = _sample()
    np.testing.assert_allclose(execute(program, sample)["y"], run_float(built, sample)["y"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dead", ["all channels", "one channel", "faint"])
def test_channels_of_zeros_keep_their_bias(dead):
    weight, bias = weights(4, 1, 1, 8), np.array([0.5, -0.25, 0.125, 1e-3], np.float32)
    if dead == "all channels":
        weight[:] = 0
    elif dead == "one channel":
        weight[2] = 0
    else:
        weight[2] *= 1e-12
    built = unary(lambda b, x: conv(b, x, weight, bias, "a"), SHAPE)
    samples = [_sample() for _ in range(2)]
    program = integerize(quantised(built, samples))
    for sample in samples:
        assert _steps(program, sample, run_float(built, sample)["y"])[..., 2].max() <= 0.51


def test_a_bias_beyond_the_accumulator_widens_the_weight_scale():
    weight, bias = weights(2, 1, 1, 8) * np.float32(1e-7), np.array([3000.0, -1000.0], np.float32)
    built = unary(lambda b, x: conv(b, x, weight, bias, "a"), SHAPE)
    samples = [_sample()]
    program = integerize(quantised(built, samples))
    convolution = next(o for o in program.operations if isinstance(o, Conv2d))
    assert np.abs(convolution.bias.astype(np.int64)).max() <= 1 << 30
    assert _steps(program, samples[0], run_float(built, samples[0])["y"]).max() <= 0.51


def test_tables_are_exact_to_half_a_step():
    built = unary(_gelu_by_erf, SHAPE)
    samples = [_sample() for _ in range(2)]
    program = integerize(quantised(built, samples))
    table = next(o for o in program.operations if isinstance(o, Table))
    source, target = program.tensors[table.inputs[0]], program.tensors[table.output]
    for q in range(-128, 128):
        x = (q - source.zero_point) * source.scale
        exact = 0.5 * x * (1 + erf(x / 2**0.5)) / target.scale + target.zero_point
        assert abs(table.table[q + 128] - np.clip(exact, -128, 127)) <= 0.5 + 1e-6
    assert table.function == "multiply+erf+add+multiply+multiply"


def _qdq(scale, zero, dtype="int8", axis=-1):
    def operator(b, x):
        arguments = const(np.asarray(scale, np.float32)), const(np.asarray(zero, dtype))
        q = b.emit(R.quantize(x, *arguments, axis=axis, out_dtype=dtype), "q")
        return R.nn.relu(b.emit(R.dequantize(q, *arguments, axis=axis), "d"))

    return operator


def test_uint8_activations_become_int8():
    program = integerize(unary(_qdq(0.1, 128, "uint8"), SHAPE))
    tensor = next(t for t in program.tensors.values() if t.dtype == "int8")
    assert (tensor.scale, tensor.zero_point) == (np.float32(0.1), 0)
    sample = _sample()
    expected = np.maximum(np.clip(np.rint(sample["x"] / np.float32(0.1)), -128, 127) * np.float32(0.1), 0)
    np.testing.assert_array_equal(execute(program, sample)["y"], expected)


@pytest.mark.parametrize(
    "operator, message",
    [
        (_qdq(0.1, 0, "int16"), "'q' quantises to int16; only int8 and uint8 are supported"),
        (
            _qdq(np.full(8, 0.1), np.zeros(8)),
            "'q' quantises an activation per channel; quantise activations per tensor",
        ),
        (_qdq(np.inf, 0), "'q' has the scale inf; a scale must be finite and positive"),
    ],
)
def test_quantisation_that_int8_cannot_express_is_refused(operator, message):
    with pytest.raises(ModelError) as error:
        integerize(unary(operator, SHAPE))
    assert str(error.value) == message


def test_an_unknown_rounding_is_refused():
    with pytest.raises(ValueError) as error:
        integerize(unary(_qdq(0.1, 0), SHAPE), rounding="up")
    assert str(error.value) == ("unknown rounding 'up'; known: exact_half_up, f32_half_even, q31_single, q31_double")


def test_tensors_keep_the_users_names():
    built = unary(lambda b, x: R.nn.relu(conv(b, x, weights(8, 1, 1, 8), weights(8), "layer/1:0")), SHAPE)
    program = integerize(quantised(built, [_sample()]))
    assert program.inputs == ("x",) and program.outputs == ("y",)
    assert [o.output for o in program.operations] == ["x.int8", "y.int8", "y"]


def _typed(dtype: str, body):
    builder = Builder()
    x = builder.input("x", (1, 4), dtype)
    return builder.finish(body(builder, x))


def test_an_int8_input_is_the_quantised_tensor_itself():
    def body(b, x):
        real = b.emit(R.dequantize(x, scalar(0.5), const(np.int8(3))), "real")
        return {"y": b.emit(R.nn.relu(real), "relu")}

    program = integerize(_typed("int8", body))
    tensor = program.tensors["x"]
    assert (tensor.dtype, tensor.scale, tensor.zero_point) == ("int8", 0.5, 3)
    x = np.array([[-128, 0, 3, 127]], np.int8)
    np.testing.assert_array_equal(execute(program, {"x": x})["y"], np.maximum((x - np.float32(3)) / 2, 0))


def test_int8_values_may_stand_for_themselves():
    program = integerize(_typed("int8", lambda b, x: {"y": b.emit(R.astype(x, "float32"), "wide")}))
    x = np.array([[-128, 0, 3, 127]], np.int8)
    np.testing.assert_array_equal(execute(program, {"x": x})["y"], x.astype(np.float32))


def test_uint8_at_the_boundary_is_refused():
    parameters = scalar(0.5), const(np.uint8(3))
    with pytest.raises(ModelError) as error:
        integerize(_typed("uint8", lambda b, x: {"y": b.emit(R.dequantize(x, *parameters), "real")}))
    assert str(error.value) == "input 'x' is uint8; quantised inputs are int8 (or keep the input float)"
    with pytest.raises(ModelError) as error:
        integerize(_typed("float32", lambda b, x: {"y": b.emit(R.quantize(x, *parameters, out_dtype="uint8"), "q")}))
    assert str(error.value) == "output 'y' is uint8; quantised outputs are int8 (or end the model in a dequantise)"
