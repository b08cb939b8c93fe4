"""Fewer than 8 bits: what becomes narrow, that nothing exceeds it, and that the rounding is better than the nearest."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from relax_modules import const, conv, module, run_float, unary
from small_models import mobilenet_like, residual_cnn, transformer_block
from tvm.relax import op as R

from qcompiler.frontend.onnx import import_onnx
from qcompiler.passes.calibrate import FloatExecutor, calibrate
from qcompiler.passes.canonical import canonical_pipeline
from qcompiler.passes.export_onnx import export
from qcompiler.passes.graph import read
from qcompiler.passes.integerize import integerize
from qcompiler.passes.moments import Moments, collect, weight_rows, windows
from qcompiler.passes.operands import on_array
from qcompiler.passes.quantize import Quantize
from qcompiler.passes.ranges import Calibration, parameters
from qcompiler.passes.weight_rounding import round_rows
from qcompiler.sim.integer_program import IntegerProgram
from qcompiler.sim.reference import execute
from qcompiler.sim.widths import FULL, Widths, interval, intervals, misfit

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same numbers whichever tests ran before."""
    global RNG
    RNG = np.random.default_rng(0)


NETWORKS = {"residual": residual_cnn, "mobilenet": mobilenet_like, "transformer": transformer_block}


def weights(*shape: int) -> np.ndarray:
    return RNG.normal(0, 0.3, shape).astype(np.float32)


def program_of(float_module: Any, samples: list[dict[str, np.ndarray]], widths: Widths) -> IntegerProgram:
    return integerize(Quantize(calibrate(float_module, samples, widths=widths)).run(float_module))


def samples_of(graph: Any, count: int) -> list[dict[str, np.ndarray]]:
    return [{n: RNG.normal(0, 1, graph.types[n].shape).astype(np.float32) for n in graph.inputs} for _ in range(count)]


def test_before_and_after():
    """A clip around what the array reads; the input is cut off behind its quantisation, the result keeps 8 bits."""
    before = unary(lambda b, x: R.nn.relu(conv(b, x, weights(2, 1, 1, 2), None, "only")), (1, 2, 2, 2))
    ranges = Calibration({"x": (0.5, 3), "y": (0.25, -128)}, {}, Widths(4, 5), {"x": 5})
    after = Quantize(ranges).run(before)
    lines = [line.strip() for line in after.script().splitlines() if " = R." in line]
    assert [(line.split(":")[0], line.split(" = ")[1].split("(")[0]) for line in lines] == [
        ("x_quantized", "R.quantize"),
        ("x_dequantized", "R.dequantize"),
        ("x_clipped", "R.clip"),
        ("x_quantized_1", "R.quantize"),
        ("x_dequantized_1", "R.dequantize"),
        ("only_conv_weight_dequantized", "R.dequantize"),
        ("only_conv", "R.nn.conv2d"),
        ("y_inner", "R.nn.relu"),
        ("y_quantized", "R.quantize"),
        ("y", "R.dequantize"),
    ]
    clip = next(n for n in read(after).nodes if n.op == "clip")
    assert (clip.attributes["min"], clip.attributes["max"]) == ((-16 - 3) * 0.5, (15 - 3) * 0.5)
    program = integerize(after)
    assert [type(op).__name__ for op in program.operations] == ["Quantize", "Table", "Conv2d", "Dequantize"]
    table, convolution = program.operations[1:3]
    assert table.table.min() == -16 and table.table.max() == 15
    assert np.abs(convolution.weight).max() <= 7 and convolution.requantize.maximum == 127


def test_what_is_narrow():
    """Operands of the array and what is only moved to them: no depthwise input, no sum, no result."""

    def body(b: Any, x: Any) -> dict[str, Any]:
        a = b.emit(R.nn.relu(conv(b, x, weights(8, 1, 1, 4), weights(8), "a")), "relu")
        d = conv(b, a, weights(8, 3, 3, 1), weights(8), "depthwise", groups=8, padding=(1, 1, 1, 1))
        s = b.emit(R.add(d, a), "sum")
        pool = b.emit(R.nn.max_pool2d(s, (2, 2), (2, 2), layout="NHWC"), "pool")
        return {"y": conv(b, b.emit(R.reshape(pool, (1, 1, 4, 8)), "flat"), weights(8, 1, 1, 8), None, "y")}

    float_module = module({"x": (1, 4, 4, 4)}, body)
    found = calibrate(float_module, samples_of(read(float_module), 4), widths=Widths(8, 6))
    assert found.narrow == {"x": 6, "sum": 6, "pool": 6, "flat": 6}
    assert set(found) - set(found.narrow) == {"relu", "depthwise", "y"}
    for name, bits in found.narrow.items():
        assert interval(bits)[0] <= found[name][1] <= interval(bits)[1]


def test_the_second_activation_of_a_product_has_the_weights_bits():
    def body(b: Any, x: Any, z: Any) -> dict[str, Any]:
        return {"y": b.emit(R.matmul(b.emit(R.tanh(x), "t"), b.emit(R.nn.softmax(z, axis=-1), "p")), "product")}

    float_module = module({"x": (2, 3, 4), "z": (2, 4, 5)}, body)
    samples = samples_of(read(float_module), 4)
    assert calibrate(float_module, samples, widths=Widths(5, 7)).narrow == {"t": 7, "p": 5}
    program = program_of(float_module, samples, Widths(5, 7))
    assert misfit(program, Widths(5, 7)) is None and misfit(program, Widths(4, 7)) is not None


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("widths", [Widths(4, 8), Widths(8, 6), Widths(3, 4)], ids=str)
def test_nothing_exceeds_its_bits(name: str, widths: Widths):
    """Statically, and on wild inputs; no operation fell back to float."""
    float_module = canonical_pipeline().run(import_onnx(NETWORKS[name]()))
    graph = read(float_module)
    program = program_of(float_module, samples_of(graph, 4), widths)
    assert misfit(program, widths) is None
    assert not any(type(op).__name__ == "FloatOp" for op in program.operations)
    wild = {n: v * 100 for n, v in samples_of(graph, 1)[0].items()}
    values, known = execute(program, wild, keep=True), intervals(program)
    for tensor, value in values.items():
        if value.dtype == np.int8:
            assert known[tensor][0] <= value.min() and value.max() <= known[tensor][1]


def test_more_bits_are_closer():
    float_module = canonical_pipeline().run(import_onnx(residual_cnn()))
    samples = samples_of(read(float_module), 40)
    exact = [run_float(float_module, s)["scores"] for s in samples[20:]]

    def noise(widths: Widths) -> float:
        program = program_of(float_module, samples[:20], widths)
        return sum(
            float(np.sum((execute(program, s)["scores"] - e) ** 2)) for s, e in zip(samples[20:], exact, strict=True)
        )

    best = noise(FULL)
    assert best < noise(Widths(4, 8)) < 0.5 * noise(Widths(2, 8))
    assert best < noise(Widths(8, 6)) < 0.5 * noise(Widths(8, 4))


def test_qdq_onnx_means_the_same():
    """The exported model has the clips; imported, it is the same program to the last bit."""
    widths, float_module = Widths(4, 6), canonical_pipeline().run(import_onnx(residual_cnn()))
    samples = samples_of(read(float_module), 4)
    quantised = Quantize(calibrate(float_module, samples, widths=widths)).run(float_module)
    onnx.checker.check_model(export(quantised), full_check=True)
    again = integerize(canonical_pipeline().run(import_onnx(export(quantised))))
    assert misfit(again, widths) is None
    np.testing.assert_array_equal(
        execute(again, samples[0])["scores"], execute(integerize(quantised), samples[0])["scores"]
    )


# ------------------------------------------------------------------------------------------- rounding
def correlated(size: int) -> np.ndarray:
    mix = RNG.normal(0, 1, (size, size))
    return mix @ np.diag(np.linspace(0.01, 1, size) ** 2) @ mix.T


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("size", [5, 150])
def test_rounding_for_what_is_multiplied(bits: int, size: int):
    limit, covariance, rows = (1 << (bits - 1)) - 1, correlated(size), RNG.normal(0, 1, (6, size))
    widest = np.abs(rows).max(axis=1) / limit

    def noise(integers: np.ndarray, scale: np.ndarray) -> np.ndarray:
        d = integers * scale[:, np.newaxis] - rows
        return np.einsum("ok,kl,ol->o", d, covariance, d)

    nearest = np.clip(np.rint(rows / widest[:, np.newaxis]), -limit, limit)
    integers, scale = round_rows(rows, covariance, widest, np.zeros(6), limit)
    assert np.abs(integers).max() <= limit and (integers == np.rint(integers)).all() and (scale > 0).all()
    assert noise(integers, scale).sum() < (0.5 if size > 5 else 1.0) * noise(nearest, widest).sum()
    alone, chosen = round_rows(rows, None, widest, np.zeros(6), limit)
    assert np.sum((alone * chosen[:, None] - rows) ** 2) <= np.sum((nearest * widest[:, None] - rows) ** 2)
    fixed, same = round_rows(rows, covariance, widest, np.zeros(6), limit, fixed=True)
    np.testing.assert_array_equal(same, widest)
    assert noise(fixed, widest).sum() < noise(nearest, widest).sum()


def test_no_scale_below_what_the_bias_needs():
    rows = RNG.normal(0, 1, (3, 20))
    least = np.array([0.0, 5.0, 0.0])
    _, scale = round_rows(rows, correlated(20), np.abs(rows).max(axis=1) / 7, least, 7)
    assert scale[1] == 5.0 and (scale[[0, 2]] < 1.0).all()


@pytest.mark.parametrize(
    "kernel, options",
    [
        ((8, 3, 2, 6), dict(padding=(0, 1, 2, 0), strides=(2, 1))),
        ((6, 3, 3, 3), dict(padding=(2, 2, 2, 2), dilation=(2, 2), groups=2)),
    ],
)
def test_windows_are_what_the_weights_multiply(kernel: tuple[int, ...], options: dict[str, Any]):
    weight = weights(*kernel)
    float_module = unary(lambda b, x: conv(b, x, weight, None, "only", **options), (1, 7, 9, 6))
    graph = read(float_module)
    node = next(n for n in graph.nodes if n.op == "nn.conv2d")
    x = samples_of(graph, 1)[0]["x"]
    wanted = run_float(float_module, {"x": x})["y"]
    seen = windows(graph, node, x)
    grouped = weight_rows(node, weight).reshape(len(seen), -1, seen.shape[2])
    products = np.einsum("gpk,gok->pgo", seen, grouped).reshape(wanted.shape)
    np.testing.assert_allclose(products, wanted, rtol=1e-4, atol=1e-5)


def test_moments_are_streamed():
    """Batch by batch the same as at once."""
    float_module = unary(lambda b, x: conv(b, x, weights(4, 2, 2, 3), None, "only"), (1, 5, 5, 3))
    graph = read(float_module)
    node, samples = next(n for n in graph.nodes if n.op == "nn.conv2d"), samples_of(graph, 6)
    found = collect(graph, [Moments(node, parameters(-3, 3, 6), 6)], FloatExecutor(graph, ["x"]).run_canonical(samples))
    rows = np.concatenate([windows(graph, node, np.asarray(s["x"])) for s in samples], axis=1)[0]
    scale, zero = parameters(-3, 3, 6)
    q = np.clip(np.rint(rows / np.float32(scale)) + zero, -32, 31)
    real = (q - zero) * scale
    m = found["only.conv"] if "only.conv" in found else next(iter(found.values()))
    np.testing.assert_allclose(m.mean[0], real.mean(axis=0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(m.real_mean[0], rows.mean(axis=0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(m.covariance(True)[0], np.cov(real.T, bias=True), rtol=1e-3, atol=1e-3)


def test_depthwise_is_not_the_arrays():
    float_module = unary(lambda b, x: conv(b, x, weights(8, 3, 3, 1), None, "d", groups=8), (1, 4, 4, 8))
    graph = read(float_module)
    assert not any(on_array(graph, n) for n in graph.nodes)
    program = program_of(float_module, samples_of(graph, 2), Widths(2, 4))
    assert np.abs(program.operations[1].weight).max() == 127
    assert misfit(program, Widths(2, 4)) is None


def test_misfit_names_the_operand():
    float_module = unary(lambda b, x: conv(b, x, weights(8, 1, 1, 8), None, "c"), (1, 4, 4, 8))
    program = program_of(float_module, samples_of(read(float_module), 2), FULL)
    name = next(op for op in program.operations if type(op).__name__ == "Conv2d").name
    assert misfit(program, Widths(4, 8)) == f"the weights of {name!r} do not fit 4 bits"
    assert misfit(program, Widths(8, 7)) == (
        f"operand 'x.int8' of {name!r} may be anything from -128 to 127, which 7 bits do not hold"
    )


@pytest.mark.parametrize("given, message", [
    (dict(weight_bits=1), "weight_bits is 1; it may be 2 to 8"),
    (dict(weight_bits=9), "weight_bits is 9; it may be 2 to 8"),
    (dict(activation_bits=3), "activation_bits is 3; it may be 4 to 8"),
])  # fmt: skip
def test_widths_have_limits(given: dict[str, int], message: str):
    with pytest.raises(ValueError) as raised:
        Widths(**given)
    assert str(raised.value) == message


def test_constants_of_a_concatenation_are_kept_within():
    def body(b: Any, x: Any) -> dict[str, Any]:
        joined = b.emit(R.concat([b.emit(R.tanh(x), "t"), const(np.full((1, 2, 2, 1), 9.0, np.float32))], axis=3), "j")
        return {"y": conv(b, joined, weights(4, 1, 1, 4), None, "c")}

    float_module = module({"x": (1, 2, 2, 3)}, body)
    program = program_of(float_module, samples_of(read(float_module), 3), Widths(8, 5))
    assert misfit(program, Widths(8, 5)) is None
