"""Quantised ONNX operators as QDQ: the same integers as ONNX Runtime, and a form that `integerize` understands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx_graphs import canonical, evaluate, model, operators, random_feeds, run_onnxruntime

from qcompiler.frontend.onnx import import_onnx
from qcompiler.passes.graph import read
from qcompiler.passes.integerize import integerize
from qcompiler.sim.errors import ModelError
from qcompiler.sim.integer_program import FloatOp
from qcompiler.sim.reference import execute

RNG = np.random.default_rng(11)
TYPES = {"uint8": TensorProto.UINT8, "int8": TensorProto.INT8, "float32": TensorProto.FLOAT, "int32": TensorProto.INT32}
MICROSOFT = "com.microsoft"
FLOAT, INT8 = ("float32", (3, 5)), ("int8", (3, 5))
MODELS = ("kws/kws_ds_cnn.onnx", "mlperf_tiny/resnet8.onnx", "mlperf_tiny/ad_autoencoder.onnx")


def integers(dtype: str, *shape: int) -> np.ndarray:
    info = np.iinfo(dtype)
    return RNG.integers(info.min, info.max + 1, shape).astype(dtype)


def zero(dtype: str, value: int) -> np.ndarray:
    return np.array(value + (128 if dtype == "uint8" else 0), dtype)


def scales(n: int) -> np.ndarray:
    return RNG.uniform(0.004, 0.02, n).astype(np.float32)


def node(op: str, *inputs: Any, output: str, domain: str = "", version: int = 17, **attributes: Any) -> onnx.ModelProto:
    """One node; (dtype, shape) is a model input, an array a constant, None an absent input. `output`: its dtype."""
    names, shapes, dtypes, constants = [], {}, {"y": TYPES[output]}, {}
    for i, value in enumerate(inputs):
        name = f"x{i}" if isinstance(value, tuple) else f"c{i}"
        names.append("" if value is None else name)
        if isinstance(value, tuple):
            dtypes[name], shapes[name] = TYPES[value[0]], value[1]
        elif value is not None:
            constants[name] = value
    made = helper.make_node(op, names, ["y"], name="node", domain=domain, **attributes)
    return model([made], shapes, ["y"], constants, version, dtypes)


F = np.float32


def cases(a: str, w: str) -> dict[str, onnx.ModelProto]:
    """One case of every operator; a: type of activations, w: of weights."""
    x, small = (a, (1, 4, 7, 6)), (a, (3, 5))
    q, q2, out = (F(0.02), zero(a, 5)), (F(0.03), zero(a, -7)), (F(0.05), zero(a, 3))
    bias = RNG.integers(-2000, 2000, 6).astype(np.int32)
    conv = (x, *q, integers(w, 6, 4, 3, 3), F(0.01), zero(w, 0), *out, bias)
    per_channel = (x, *q, integers(w, 6, 4, 3, 3), scales(6), np.repeat(zero(w, 0), 6), *out, bias)
    unary = {
        "sigmoid": ("QLinearSigmoid", (small, *q, F(1 / 256), zero(a, -128)), {}),
        "leaky-relu": ("QLinearLeakyRelu", (small, *q, *out), {"alpha": 0.2}),
        "average-pool": ("QLinearAveragePool", (x, *q, *out), {"kernel_shape": [3, 2], "strides": [2, 2]}),
        "global-average-pool": ("QLinearGlobalAveragePool", (x, *q, *out), {}),
        "softmax": ("QLinearSoftmax", (small, *q, F(1 / 256), zero(a, -128)), {"axis": -1, "opset": 13}),
        "add": ("QLinearAdd", (small, *q, small, *q2, *out), {}),
        "mul": ("QLinearMul", (small, *q, (a, (5,)), *q2, *out), {}),
        "mul-constant": ("QLinearMul", (small, *q, integers(a, 5), *q2, *out), {}),
        "where": ("QLinearWhere", (RNG.random((3, 5)) < 0.5, small, *q, small, *q2, *out), {}),
        "concat": ("QLinearConcat", (*out, small, *q, small, *q2), {"axis": 1}),
        "gemm": (
            "QGemm",
            (small, *q, integers(w, 6, 5), scales(6), np.repeat(zero(w, 0), 6), bias, *out),
            {"transB": 1},
        ),
    }
    made = {
        "conv": node("QLinearConv", *conv, output=a, pads=[1, 1, 1, 1]),
        "conv-per-channel": node("QLinearConv", *per_channel, output=a, strides=[2, 1]),
        "conv-groups": node(
            "QLinearConv", x, *q, integers(w, 4, 1, 3, 3), F(0.01), zero(w, 0), *out, output=a, group=4
        ),
        "matmul": node("QLinearMatMul", small, *q, integers(w, 5, 4), F(0.01), zero(w, 9), *out, output=a),
        "matmul-computed": node("QLinearMatMul", small, *q, (a, (5, 4)), *q2, *out, output=a),
        "quantize": node("QuantizeLinear", ("float32", (3, 5)), *q, output=a),
        "dequantize": node("DequantizeLinear", small, *q, output="float32"),
        "quantize-axis": node("QuantizeLinear", ("float32", (3, 5)), scales(5), integers(a, 5), output=a),
    }
    for name, (op, inputs, attributes) in unary.items():
        made[name] = node(op, *inputs, output=a, domain=MICROSOFT, **attributes)
    return made


TYPE_PAIRS = [("uint8", "int8"), ("int8", "int8"), ("uint8", "uint8")]
CASES = {f"{n}-{a}-{w}": case for a, w in TYPE_PAIRS for n, case in cases(a, w).items()}


@pytest.mark.parametrize("name", CASES)
def test_equals_onnxruntime(name: str) -> None:
    """Never more than one step apart, and hardly ever that: rounding may differ where a value is a tie."""
    imported = import_onnx(CASES[name])
    feeds = random_feeds(read(imported))
    (expected,) = run_onnxruntime(CASES[name], feeds)
    for module in (imported, canonical(CASES[name])):
        (actual,) = evaluate(module, feeds)
        assert actual.dtype == expected.dtype and actual.shape == expected.shape
        if expected.dtype == np.float32:
            np.testing.assert_array_equal(actual, expected)
        else:
            steps = np.abs(actual.astype(np.int64) - expected)
            assert steps.max() <= 1
            assert np.count_nonzero(steps) <= 0.02 * steps.size


@pytest.mark.parametrize("x", ["uint8", "int8"])
@pytest.mark.parametrize("w", ["uint8", "int8"])
@pytest.mark.parametrize("op", ["ConvInteger", "MatMulInteger"])
def test_integer_products_are_exact(op: str, x: str, w: str) -> None:
    if (op, x, w) == ("ConvInteger", "int8", "uint8"):
        pytest.skip("ONNX Runtime has no such kernel")
    shapes = ((1, 4, 7, 6), (6, 4, 3, 3)) if op == "ConvInteger" else ((3, 5), (5, 4))
    source = node(op, (x, shapes[0]), integers(w, *shapes[1]), zero(x, 3), zero(w, 7), output="int32")
    imported = import_onnx(source)
    feeds = random_feeds(read(imported))
    (expected,) = run_onnxruntime(source, feeds)
    for module in (imported, canonical(source)):
        np.testing.assert_array_equal(evaluate(module, feeds)[0], expected)


def dynamic(weight: np.ndarray, zero: np.ndarray, scale: np.ndarray) -> onnx.ModelProto:
    """What `quantize_dynamic` makes: scales from the input itself."""
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"], name="dynamic"),
        helper.make_node("MatMulInteger", ["q", "w", "z", "wz"], ["i"], name="product"),
        helper.make_node("Cast", ["i"], ["f"], name="cast", to=TensorProto.FLOAT),
        helper.make_node("Mul", ["s", "ws"], ["scale"], name="scales"),
        helper.make_node("Mul", ["f", "scale"], ["y"], name="rescale"),
    ]
    return model(nodes, {"x": (3, 5)}, ["y"], {"w": weight, "wz": zero, "ws": scale})


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
@pytest.mark.parametrize("channels", [1, 4])
def test_dynamic_quantisation_becomes_a_float_product(dtype: str, channels: int) -> None:
    """With the weights' real values, so that calibration can quantise it statically."""
    weight, zeros, scale = integers(dtype, 5, 4), integers(dtype, channels), scales(channels)
    source = dynamic(weight, zeros if channels > 1 else zeros[0], scale if channels > 1 else scale[0])
    module = canonical(source)
    assert operators(module) == {"matmul": 1}
    feeds = random_feeds(read(module))
    exact = feeds["x"] @ ((weight.astype(np.float32) - zeros) * scale)
    np.testing.assert_allclose(evaluate(module, feeds)[0], exact, rtol=1e-5, atol=1e-5)
    (theirs,) = run_onnxruntime(source, feeds)
    step = np.ptp(np.append(feeds["x"], 0)) / 255
    bound = step / 2 * np.abs((weight.astype(np.float32) - zeros) * scale).sum(axis=0)
    assert np.all(np.abs(theirs - exact) <= bound * 1.01 + 1e-5)


def test_dynamic_quantisation_that_others_read_stays() -> None:
    source = dynamic(integers("int8", 5, 4), np.int8(0), F(0.01))
    source.graph.output.append(helper.make_tensor_value_info("q", TensorProto.UINT8, None))
    imported = import_onnx(source)
    feeds = random_feeds(read(imported))
    for actual, expected in zip(evaluate(imported, feeds), run_onnxruntime(source, feeds), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_dynamic_matmul() -> None:
    weight, bias = integers("int8", 5, 4), RNG.normal(size=4).astype(F)
    source = node(
        "DynamicQuantizeMatMul", FLOAT, weight, F(0.01), np.int8(3), bias, output="float32", domain=MICROSOFT
    )  # fmt: skip
    module = canonical(source)
    assert operators(module) == {"matmul": 1, "add": 1}
    feeds = random_feeds(read(module))
    exact = feeds["x0"] @ ((weight.astype(F) - 3) * F(0.01)) + bias
    np.testing.assert_allclose(evaluate(module, feeds)[0], exact, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(run_onnxruntime(source, feeds)[0], exact, atol=0.02 * np.abs(exact).max())


def test_an_int32_bias_becomes_a_float_constant() -> None:
    bias = np.array([100, -200, 300, -400], np.int32)
    nodes = [
        helper.make_node("DequantizeLinear", ["b", "s"], ["bias"], name="bias", axis=0),
        helper.make_node("Add", ["x", "bias"], ["y"], name="add"),
    ]
    module = import_onnx(model(nodes, {"x": (2, 4)}, ["y"], {"b": bias, "s": scales(4)}))
    assert operators(module) == {"add": 1}


@pytest.mark.parametrize("kind", [TensorProto.INT4, TensorProto.UINT4])
def test_weights_of_four_bits_are_kept_in_eight(kind: int) -> None:
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    low = 0 if kind == TensorProto.UINT4 else -8
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["d"], axis=1, name="weight"),
        helper.make_node("MatMul", ["x", "d"], ["y"], name="product"),
    ]
    weight, zeros = RNG.integers(low, low + 16, (6, 4)).astype(dtype), np.array([low, low + 3, low + 8, 7], dtype)
    source = model(nodes, {"x": (3, 6)}, ["y"], {"w": weight, "s": scales(4), "z": zeros}, opset=21)
    module = canonical(source)
    assert {t.dtype for t in read(module).types.values()} == {"float32", "int8"}
    feeds = random_feeds(read(module))
    np.testing.assert_allclose(evaluate(module, feeds)[0], run_onnxruntime(source, feeds)[0], rtol=1e-5, atol=1e-6)


REFUSED = [
    (
        node("QuantizeLinear", FLOAT, F(0.1), np.int16(0), output="int8", version=21),
        "QuantizeLinear 'node': its data type is int16; 8-bit tensors are supported; quantise it to 8 bits",
    ),
    (
        node("QuantizeLinear", FLOAT, F(0.1), output="int8", version=21, output_dtype=TensorProto.INT4),
        "QuantizeLinear 'node': its data type is int4; 8-bit tensors are supported; quantise it to 8 bits",
    ),
    (
        node("QuantizeLinear", FLOAT, F(-0.1), np.int8(0), output="int8"),
        "QuantizeLinear 'node': a scale of -0.1 is not positive and finite; quantise the model again",
    ),
    (
        node("DequantizeLinear", ("int8", (3, 4)), np.ones((3, 2), F), np.zeros((3, 2), np.int8), output="float32",
             version=21, axis=1, block_size=2),
        "DequantizeLinear 'node': it is quantised in blocks; quantise per tensor or per channel",
    ),
    (
        node("QLinearAdd", INT8, F(0.1), np.int8(0), INT8, ("float32", ()), np.int8(0), F(0.1), np.int8(0),
             output="int8", domain=MICROSOFT),
        "QLinearAdd 'node': its scale of b is computed while the model runs; export the model with a constant scale "
        "of b, or run a simplifier such as onnxsim on it",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("source", "expected"), REFUSED)
def test_refused(source: onnx.ModelProto, expected: str) -> None:
    with pytest.raises(ModelError) as error:
        import_onnx(source)
    assert str(error.value) == f"test has 1 operator that is not supported:\n  {expected}"


# ------------------------------------------------------------------------- models of ONNX Runtime's quantiser
def quantised(path: Path, tmp_path: Path, layout: str, activation: str, weight: str) -> onnx.ModelProto:
    """The model quantised by onnxruntime.quantization, per channel, calibrated on random inputs."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            rng = np.random.default_rng(0)
            entry = onnx.load(path).graph.input[0]
            shape = [d.dim_value or 1 for d in entry.type.tensor_type.shape.dim]
            self.samples = iter([{entry.name: rng.normal(size=shape).astype(np.float32)} for _ in range(4)])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.samples, None)

    quant_pre_process(str(path), tmp_path / "prepared.onnx", skip_symbolic_shape=True)
    kinds = {"u8": QuantType.QUInt8, "s8": QuantType.QInt8}
    quantize_static(
        tmp_path / "prepared.onnx", tmp_path / "quantised.onnx", Reader(), quant_format=QuantFormat[layout],
        activation_type=kinds[activation], weight_type=kinds[weight], per_channel=True,
    )  # fmt: skip
    return onnx.load(tmp_path / "quantised.onnx")


@pytest.mark.parametrize("layout", ["QDQ", "QOperator"])
@pytest.mark.parametrize("types", ["u8s8", "s8s8"])
@pytest.mark.parametrize("name", MODELS)
def test_models_of_onnxruntime(shared: Path, tmp_path: Path, name: str, types: str, layout: str) -> None:
    """Canonical values equal ONNX Runtime's, and so does the integer program, every matrix product an integer one."""
    source = quantised(shared / "data" / name, tmp_path, layout, types[:2], types[2:])
    module = canonical(source)
    feeds = random_feeds(read(module), seed=9)
    (expected,) = run_onnxruntime(source, feeds)
    np.testing.assert_allclose(evaluate(module, feeds)[0], expected, rtol=1e-5, atol=1e-6)
    program = integerize(module, rounding="f32_half_even", name="imported")
    assert not {op.kind for op in program.operations if isinstance(op, FloatOp)} & {"nn.conv2d", "matmul", "add"}
    (output,) = program.outputs
    np.testing.assert_allclose(execute(program, feeds)[output], expected, rtol=1e-5, atol=1e-6)
