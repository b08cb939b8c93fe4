"""Bias correction: the channel means of the quantised model return to the float ones, and accuracy gains."""

from __future__ import annotations

import numpy as np
import pytest
from relax_modules import conv, run_float, unary
from test_accuracy import keyword_spotting, run_onnx, sqnr
from tvm.relax import op as R

from qcompiler.frontend.onnx import import_onnx
from qcompiler.passes.calibrate import calibrate
from qcompiler.passes.canonical import canonical_pipeline
from qcompiler.passes.correct_bias import CorrectBias, bias_shifts
from qcompiler.passes.integerize import integerize
from qcompiler.passes.quantize import Quantize
from qcompiler.sim.reference import execute

RNG = np.random.default_rng(0)
SHAPE = (1, 6, 6, 8)


def two_layers():
    first, second = (RNG.normal(0, 0.3, (8, 3, 3, 8)).astype(np.float32) for _ in range(2))
    bias = RNG.normal(0, 0.1, 8).astype(np.float32)

    def body(b, x):
        y = b.emit(R.nn.relu(conv(b, x, first, bias, "first")), "first.relu")
        return conv(b, y, second, bias, "second")

    return unary(body, SHAPE)


def test_channel_means_return():
    module = two_layers()
    samples = [{"x": RNG.normal(0.5, 1, SHAPE).astype(np.float32)} for _ in range(8)]
    # The first layer's Relu is rounded coarsely and clipped: an error with a mean, which the second layer can undo.
    ranges = calibrate(module, samples)
    scale, zero = ranges["first.relu"]
    ranges["first.relu"] = (float(np.float32(scale / 2)), zero)
    seen: list[int] = []
    shifts = bias_shifts(module, ranges, samples, progress=seen.append)
    assert seen == [1, 2] and set(shifts) == {"first", "y"}

    def mean_error(of) -> float:
        program = integerize(Quantize(ranges).run(of))
        exact = np.concatenate([run_float(module, s)["y"] for s in samples])
        ours = np.concatenate([execute(program, s)["y"] for s in samples])
        return float(np.abs((exact - ours).mean(axis=(0, 1, 2))).max())

    assert mean_error(CorrectBias(shifts).run(module)) < 0.5 * mean_error(module)


def test_without_shifts_nothing_changes():
    module = two_layers()
    sample = {"x": RNG.normal(0, 1, SHAPE).astype(np.float32)}
    np.testing.assert_array_equal(run_float(module, sample)["y"], run_float(CorrectBias().run(module), sample)["y"])


@pytest.mark.slow
def test_keyword_spotting_gains(shared):
    model, calibration, test, _ = keyword_spotting(shared)
    exact = run_onnx(model, test)
    module = canonical_pipeline().run(import_onnx(model))
    ranges = calibrate(module, calibration)
    corrected = CorrectBias(bias_shifts(module, ranges, calibration)).run(module)
    scores = []
    for candidate in (module, corrected):
        program = integerize(Quantize(ranges).run(candidate))
        scores.append(sqnr(exact, np.concatenate([execute(program, s)["scores"] for s in test])))
    assert scores[1] > scores[0] + 0.3
