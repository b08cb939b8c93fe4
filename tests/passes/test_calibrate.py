"""Calibration: ties and fixed parameters, streaming, and every mistake with its whole message."""

from __future__ import annotations

import numpy as np
import pytest
from relax_modules import conv, module, unary
from tvm.relax import op as R

from qcompiler.passes.calibrate import FloatExecutor, FloatRuns, calibrate
from qcompiler.passes.graph import read
from qcompiler.passes.quantize import Quantize
from qcompiler.passes.rewrite import const
from qcompiler.sim.errors import CalibrationError

RNG = np.random.default_rng(0)
SHAPE = (1, 4, 4, 8)


def samples(count: int = 3, shape: tuple[int, ...] = SHAPE, **more):
    return [{"x": RNG.normal(0, 1, shape).astype(np.float32), **more} for _ in range(count)]


def relu_module():
    weight = RNG.normal(0, 0.3, (8, 3, 3, 8)).astype(np.float32)
    return unary(
        lambda b, x: R.nn.relu(conv(b, x, weight, np.ones(8, np.float32), "conv", padding=(1, 1, 1, 1)))
    )  # fmt: skip


def test_only_tensors_that_become_int8_get_parameters():
    ranges = calibrate(relu_module(), samples())
    assert list(ranges) == ["x", "y"]  # neither the convolution nor its biased result
    assert ranges["y"][1] == -128  # relu: zero is the lowest value
    scale, zero = ranges["x"]
    assert isinstance(scale, float) and np.float32(scale) == scale and -128 <= zero <= 127


def test_moves_joins_and_max_pools_share_parameters():
    def body(b, x):
        weight = RNG.normal(0, 0.3, (8, 1, 1, 8)).astype(np.float32)
        a = conv(b, x, weight, None, "a")
        c = conv(b, x, 4 * weight, None, "c")
        joined = b.emit(R.concat([a, c], 3), "joined")
        pooled = b.emit(R.nn.max_pool2d(joined, (2, 2), (2, 2), layout="NHWC"), "pooled")
        return {"y": b.emit(R.reshape(pooled, (1, 64)), "flat")}

    ranges = calibrate(module({"x": SHAPE}, body), samples())
    assert ranges["a.conv"] == ranges["c.conv"] == ranges["joined"] == ranges["pooled"] == ranges["y"]
    assert ranges["x"] != ranges["joined"]


def test_a_one_shot_generator_is_streamed_and_progress_counts_samples():
    alive = 0

    def stream():
        nonlocal alive
        for sample in samples(70):
            alive += 1
            yield sample

    seen: list[int] = []
    calibrate(relu_module(), stream(), progress=seen.append)
    assert alive == 70 and seen[-1] == 70 and seen == sorted(seen) and len(seen) > 1


def test_batches_observe_what_single_samples_do():
    graph = read(relu_module())
    data = samples(5)
    together, alone = FloatExecutor(graph, ["y"]), FloatExecutor(graph, ["y"], batch=1)
    assert together.batch > 1
    a = np.concatenate([v for _, v in together.run_canonical(data)])
    b = np.concatenate([v for _, v in alone.run_canonical(data)])
    assert a.shape == (5, 4, 4, 8)
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_outputs_of_the_first_samples_are_kept_and_the_executor_is_left():
    model, data = relu_module(), samples(5)
    floats = FloatRuns(3)
    calibrate(model, data, floats=floats)
    alone = FloatExecutor(read(model), ["y"], batch=1)
    assert len(floats.outputs) == 3 and floats.executor is not None and floats.executor.batch > 1
    for kept, sample in zip(floats.outputs, data, strict=False):
        assert list(kept) == ["y"] and kept["y"].shape == (1, 4, 4, 8)
        np.testing.assert_allclose(kept["y"], dict(alone.run_canonical([sample]))["y"], rtol=1e-5, atol=1e-6)
    assert floats.executor.covers(["x", "y"]) and not floats.executor.covers(["y", "conv"])


def test_only_so_many_bytes_of_outputs_are_kept(monkeypatch):
    monkeypatch.setattr("qcompiler.passes.calibrate.KEPT_BYTES", 2 * 4 * 4 * 4 * 8)
    floats = FloatRuns(100)
    calibrate(relu_module(), samples(40), floats=floats)
    assert len(floats.outputs) == 2


def test_the_leading_axis_of_one_may_be_left_out():
    data = samples(2)
    short = [{"x": s["x"][0].astype(np.float64)} for s in data]
    model = relu_module()
    assert calibrate(model, short) == calibrate(model, data)


@pytest.mark.parametrize(
    "data, message",
    [
        ([], "the calibration data holds no sample; give at least one, better 100 typical ones"),
        ([{"z": np.zeros(SHAPE)}], "calibration sample 0 has an input 'z', the model does not; its inputs are 'x'"),
        ([{}], "calibration sample 0 lacks the input 'x' (float32[1, 4, 4, 8])"),
        (
            [{"x": np.ones(SHAPE)}, {"x": np.ones((1, 8, 4, 4))}],
            "calibration sample 1: input 'x' has shape [1, 8, 4, 4], expected [1, 4, 4, 8]",
        ),
        ([{"x": np.full(SHAPE, "a")}], "calibration sample 0: input 'x' is <U1, expected float32"),
        (
            [{"x": np.where(np.arange(128).reshape(SHAPE) == 9, np.nan, 1.0)}],
            "calibration sample 0: input 'x' holds nan at [0, 0, 1, 1]; remove or repair it",
        ),
        ([np.zeros(SHAPE)], "calibration sample 0 is ndarray; each must map input names to arrays"),
    ],
)
def test_samples_that_do_not_fit(data, message):
    with pytest.raises(CalibrationError) as error:
        calibrate(relu_module(), data)
    assert str(error.value) == message


ADVICE = (
    "; calibrate with samples like those the model will see (same preprocessing), "
    "and check that the float model itself gives sensible outputs on them"
)


@pytest.mark.parametrize(
    "factor, problem",
    [(0.0, "is zero for every sample"), (1e-42, "is too narrow"), (3e38, "is not finite")],
)
def test_a_collapsed_tensor_is_refused_by_name(factor, problem):
    weight = (np.ones((4, 1, 1, 8)) * factor).astype(np.float32)
    broken = unary(lambda b, x: R.nn.relu(conv(b, x, weight, None, "conv")))
    with pytest.raises(CalibrationError) as error:
        calibrate(broken, [{"x": np.full(SHAPE, 1.0)}])
    message = str(error.value)
    assert message.startswith("tensor 'y' ") and message.endswith(ADVICE)
    if factor == 1e-42:
        problem = "stays within 0..8.00422e-42, narrower than a float32 scale can express"
    assert message == f"tensor 'y' {problem}{ADVICE}"


def test_a_constant_tensor_is_exact_and_a_zero_mask_is_harmless():
    masked = module({"x": SHAPE, "mask": (1, 1, 1, 8)}, lambda b, x, m: {"y": b.emit(R.add(x, m), "y.value")})
    ranges = calibrate(masked, samples(2, mask=np.zeros((1, 1, 1, 8))))
    assert ranges["mask"] == ranges["y"]
    constant = calibrate(unary(lambda b, x: R.tanh(x)), [{"x": np.full(SHAPE, 3.0)}])
    assert constant["x"] == (np.float32(3 / 255), -128)


def test_quantise_wants_ranges_of_this_very_module():
    with pytest.raises(CalibrationError) as error:
        Quantize({"x": (0.1, 0)}).run(relu_module())
    assert str(error.value) == "no range is known for tensor 'y' and 0 others; calibrate this very module"


def test_padding_with_a_value_widens_the_range():
    def body(b, x):
        padded = b.emit(R.nn.pad(x, (0, 0, 1, 1, 1, 1, 0, 0), "constant", -50.0), "padded")
        return R.nn.max_pool2d(padded, (2, 2), layout="NHWC")

    scale, zero = calibrate(unary(body), samples())["padded"]
    assert (-128 - zero) * scale == pytest.approx(-50, abs=scale)


def test_constants_need_no_range():
    added = unary(lambda b, x: R.add(x, const(RNG.normal(0, 1, SHAPE).astype(np.float32))))
    assert list(calibrate(added, samples())) == ["x", "y"]
