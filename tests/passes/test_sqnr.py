"""The per-layer report: names that the user knows, figures that equal a direct computation, a culprit that shows."""

from __future__ import annotations

import numpy as np
from small_models import normal_samples, residual_cnn

from qcompiler.frontend.onnx import import_onnx
from qcompiler.passes.calibrate import calibrate
from qcompiler.passes.canonical import canonical_pipeline
from qcompiler.passes.integerize import integerize
from qcompiler.passes.quantize import Quantize
from qcompiler.passes.ranges import Calibration
from qcompiler.passes.sqnr import float_name, layer_sqnr, sqnr_db


def test_every_layer_of_a_network():
    original = residual_cnn()
    canonical = canonical_pipeline().run(import_onnx(original))
    data = normal_samples(original, 6)
    ranges = calibrate(canonical, data)
    program = integerize(Quantize(ranges).run(canonical))
    layers = layer_sqnr(canonical, program, data, limit=3)
    assert {"image.int8", "stem.relu", "a.relu", "b", "sum.relu", "logits", "scores.int8", "scores"} <= set(layers)
    assert all(15 < value < 80 for value in layers.values())

    scale, zero = ranges["a.relu"]
    worse = Calibration({**ranges, "a.relu": (float(np.float32(scale / 8)), zero)}, ranges.means)
    broken = layer_sqnr(canonical, integerize(Quantize(worse).run(canonical)), data, limit=3)
    assert broken["stem.relu"] == layers["stem.relu"]  # in front of the culprit nothing changes
    assert broken["a.relu"] < layers["a.relu"] - 10


def test_decibels():
    assert sqnr_db(100.0, 1.0) == 20.0
    assert sqnr_db(1.0, 0.0) == np.inf and sqnr_db(0.0, 1.0) == -np.inf


def test_names_of_helpers_are_left_out():
    class Program:
        pass

    assert float_name(Program(), "x.int8", ["x"]) == "x"
    assert float_name(Program(), "x", ["x"]) == "x"
    assert float_name(Program(), "y.rescaled", ["y"]) is None
