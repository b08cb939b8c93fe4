"""The nine `light_*.onnx` models of the onnx package, end to end: equal bits from the reference and every level.

Their weights come from ConstantOfShape nodes, so all channels of a layer are alike and the outputs say little. Each
graph is therefore also compiled with random weights in place of the constant ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from host_library import LEVELS
from onnx import numpy_helper

from qcompiler.frontend.onnx import import_onnx
from qcompiler.passes.calibrate import calibrate
from qcompiler.passes.canonical import canonical_pipeline
from qcompiler.passes.graph import read
from qcompiler.passes.integerize import integerize
from qcompiler.passes.quantize import Quantize
from qcompiler.sim import reference
from qcompiler.sim.integer_program import FloatOp, IntegerProgram

FOLDER = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
NAMES = (
    "bvlc_alexnet", "densenet121", "inception_v1", "inception_v2", "resnet50", "shufflenet", "squeezenet", "vgg19",
    "zfnet512",
)  # fmt: skip


def test_the_list_is_complete() -> None:
    assert {f"light_{n}.onnx" for n in NAMES} == {p.name for p in FOLDER.glob("light_*.onnx")}


def with_random_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Every ConstantOfShape of rank > 1 replaced by normal weights that keep a layer's output as large as its input.

    Vectors (biases, batch normalisation) keep a positive spread around their constant.
    """
    rng = np.random.default_rng(11)
    graph = model.graph
    values = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    kept = []
    for node in graph.node:
        if node.op_type != "ConstantOfShape":
            kept.append(node)
            continue
        shape = tuple(int(d) for d in values[node.input[0]])
        fill = numpy_helper.to_array(node.attribute[0].t).item() if node.attribute else 0.0
        if len(shape) > 1:
            value = rng.standard_normal(shape) * math.sqrt(2 / math.prod(shape[1:]))
        else:
            value = fill * rng.uniform(0.5, 1.5, shape)
        graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), node.output[0]))
    del graph.node[:]
    graph.node.extend(kept)
    return model


def quantised(model: onnx.ModelProto) -> tuple[IntegerProgram, dict[str, np.ndarray]]:
    """The integer program, calibrated on two random images, and one of them."""
    module = canonical_pipeline().run(import_onnx(model))
    graph = read(module)
    rng = np.random.default_rng(5)
    samples = [
        {n: rng.standard_normal(graph.types[n].shape).astype(np.float32) for n in graph.inputs} for _ in range(2)
    ]
    return integerize(Quantize(calibrate(module, samples)).run(module)), samples[0]


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["as shipped", "random"])
@pytest.mark.parametrize("name", NAMES)
def test_every_level_equals_the_reference(name: str, weights: str, build_library: Callable[..., Any]) -> None:
    model = onnx.load(FOLDER / f"light_{name}.onnx")
    if weights == "random":
        model = with_random_weights(model)
    program, sample = quantised(model)
    assert not [op.name for op in program.operations if isinstance(op, FloatOp)], "everything here can be integer"
    want = reference.execute(program, sample)
    if weights == "random":
        assert all(len(np.unique(v)) > 5 for v in want.values()), "the outputs should say something"
    for isa in LEVELS:
        got = build_library(program, f"x86:{isa}", isa).run(sample)
        for output, value in want.items():
            assert np.array_equal(got[output], value), f"{isa}: {output} differs"
