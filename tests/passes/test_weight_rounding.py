"""The mean error of rounded weights: exact for constant channels, and gone from the outputs of a quantised model."""

from __future__ import annotations

import numpy as np
import pytest
from relax_modules import conv, run_float, unary

from qcompiler.passes.calibrate import calibrate
from qcompiler.passes.graph import read
from qcompiler.passes.integerize import integerize
from qcompiler.passes.quantize import Quantize
from qcompiler.passes.ranges import Calibration
from qcompiler.passes.weight_rounding import mean_shift
from qcompiler.sim.reference import execute

RNG = np.random.default_rng(0)


def text_of(module) -> list[str]:
    return [line.strip() for line in module.script().splitlines() if " = R." in line]


@pytest.mark.parametrize(
    "kernel, options",
    [
        ((8, 3, 3, 6), dict(padding=(1, 1, 1, 1))),
        ((8, 3, 2, 6), dict(padding=(0, 1, 2, 0), strides=(2, 1))),
        ((6, 3, 3, 1), dict(padding=(2, 2, 2, 2), dilation=(2, 2), groups=6)),
        ((8, 1, 1, 3), dict(groups=2, strides=(2, 2))),
    ],
)
def test_exact_for_channels_that_do_not_vary(kernel, options):
    added = RNG.normal(0, 1, kernel).astype(np.float32)
    shape, means = (1, 7, 9, 6), RNG.normal(0, 1, 6)
    module = unary(lambda b, x: conv(b, x, added, None, "only", **options), shape)
    graph = read(module)
    x = np.broadcast_to(means.astype(np.float32), shape)
    wanted = run_float(module, {"x": np.ascontiguousarray(x)})["y"].mean(axis=(0, 1, 2))
    node = next(n for n in graph.nodes if n.op == "nn.conv2d")
    np.testing.assert_allclose(mean_shift(graph, node, added, means), wanted, atol=1e-5)


def test_before_and_after():
    """One weight that rounds down by 0.25 steps, an input with mean 4: the bias takes 4 x 0.25 steps back."""
    weight = np.array([[127.0, 0.25]], np.float32).reshape(1, 1, 1, 2)
    before = unary(lambda b, x: conv(b, x, weight, np.float32([10.0]), "conv"), (1, 2, 2, 2))
    means = {"x": np.array([1.0, 4.0])}
    ranges = {"x": (1.0, 0), "y": (2.0, 0)}
    found, bodies = [], []
    for candidate in (ranges, Calibration(ranges, means)):
        after = Quantize(candidate).run(before)
        graph = read(after)
        found.append(next(int(v[0]) for v in graph.constants.values() if v.dtype == np.int32))
        bodies.append([line.split(" = ")[1].split("(")[0] for line in text_of(after)])
    assert found == [10, 11]
    assert bodies[0] == bodies[1]
    assert text_of(Quantize(Calibration(ranges, means), correct_means=False).run(before)) == text_of(
        Quantize(ranges).run(before)
    )


def test_the_mean_error_of_a_layer_goes():
    weight = RNG.normal(0, 0.3, (8, 3, 3, 16)).astype(np.float32)
    module = unary(lambda b, x: conv(b, x, weight, RNG.normal(0, 0.1, 8).astype(np.float32), "conv"), (1, 6, 6, 16))
    channel = RNG.normal(2, 1, 16)
    samples = [{"x": (channel + RNG.normal(0, 0.2, (1, 6, 6, 16))).astype(np.float32)} for _ in range(16)]
    exact = np.concatenate([run_float(module, s)["y"] for s in samples])
    calibration = calibrate(module, samples)
    np.testing.assert_allclose(calibration.means["x"], np.mean([s["x"] for s in samples], axis=(0, 1, 2, 3)), rtol=1e-5)

    def error(corrected: bool) -> float:
        program = integerize(Quantize(calibration, correct_means=corrected).run(module))
        ours = np.concatenate([execute(program, s)["y"] for s in samples])
        return float(np.abs((exact - ours).mean(axis=(0, 1, 2))).max())

    assert error(True) < 0.3 * error(False)
