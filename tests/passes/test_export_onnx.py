"""Export: the same function as the original model, NCHW without transposes, QDQ that other tools take."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
from relax_modules import conv, module, run_float, unary
from small_models import mobilenet_like, normal_samples, residual_cnn, transformer_block
from tvm.relax import op as R

from qcompiler.frontend.onnx import import_onnx
from qcompiler.passes.calibrate import calibrate
from qcompiler.passes.canonical import canonical_pipeline
from qcompiler.passes.export_onnx import batches, export, export_graph
from qcompiler.passes.graph import read
from qcompiler.passes.integerize import integerize
from qcompiler.passes.quantize import Quantize
from qcompiler.passes.rewrite import const
from qcompiler.sim.errors import ModelError
from qcompiler.sim.float_ops import FLOAT_OPS
from qcompiler.sim.reference import execute

RNG = np.random.default_rng(0)
MODELS = {"residual_cnn": residual_cnn, "mobilenet_like": mobilenet_like, "transformer_block": transformer_block}


def session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.fixture(params=sorted(MODELS))
def imported(request):
    original = MODELS[request.param]()
    return original, canonical_pipeline().run(import_onnx(original))


def test_float_graph_equals_the_original_and_passes_the_checker(imported):
    original, canonical = imported
    exported = export(canonical)
    onnx.checker.check_model(exported, full_check=True)
    for sample in normal_samples(original, 3):
        for a, b in zip(session(original).run(None, sample), session(exported).run(None, sample), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_images_stay_nchw():
    """Only the flattening of a 2x2 image, whose order the next weights expect, needs a transpose."""
    for build, transposes in ((residual_cnn, 1), (mobilenet_like, 0)):
        kinds = Counter(n.op_type for n in export(canonical_pipeline().run(import_onnx(build()))).graph.node)
        assert kinds["Transpose"] == transposes and kinds["Conv"] > 4


def test_qdq_graph_is_valid_and_means_the_integer_program(imported):
    original, canonical = imported
    data = normal_samples(original, 8)
    quantised = Quantize(calibrate(canonical, data)).run(canonical)
    exported = export(quantised)
    onnx.checker.check_model(exported, full_check=True)
    weights = [i for i in exported.graph.initializer if i.data_type == onnx.TensorProto.INT8 and len(i.dims) >= 2]
    assert len(weights) >= 6
    axes = [
        a.i for n in exported.graph.node if n.op_type == "DequantizeLinear" for a in n.attribute if a.name == "axis"
    ]
    assert axes  # per-channel weights
    program = integerize(quantised)
    name = program.outputs[0]
    for sample in data[:3]:
        other = session(exported).run(None, sample)[0]
        ours = execute(program, sample)[name]
        scale = program.tensors[program.producers()[name].inputs[0]].scale
        # Two definitions of rounding and of softmax differ by steps here and there, not by more.
        assert np.mean(np.abs(other - ours)) <= scale


def test_outputs_and_batches_of_any_tensor():
    original = residual_cnn()
    graph = read(canonical_pipeline().run(import_onnx(original)))
    assert batches(graph)
    exported = export_graph(graph, ["sum.relu", "logits"], "samples")
    data = normal_samples(original, 3)
    stacked = {"image": np.concatenate([s["image"] for s in data])}
    inner, logits = session(exported.model).run(None, stacked)
    assert inner.shape == (3, 16, 16, 16) and logits.shape == (3, 10)
    canonical = exported.restore("sum.relu", inner)
    np.testing.assert_array_equal(canonical, inner.transpose(0, 2, 3, 1))


def test_a_graph_that_mixes_samples_does_not_batch():
    assert not batches(read(unary(lambda b, x: R.mean(x, axis=[0, 1], keepdims=True))))
    assert not batches(read(unary(lambda b, x: R.permute_dims(x, [3, 1, 2, 0]))))
    assert batches(read(unary(lambda b, x: R.add(x, const(np.ones((4, 4, 8), np.float32))))))


def _image(operator):
    """The operator behind a convolution, so that its input is stored as NCHW."""
    weight = RNG.normal(0, 0.3, (8, 1, 1, 8)).astype(np.float32)
    return unary(lambda b, x: operator(b, conv(b, x, weight, None, "conv")))


OPERATORS = {
    "clip": lambda b, x: R.clip(x, -0.5, 0.75),
    "silu": lambda b, x: R.nn.silu(x),
    "softplus": lambda b, x: R.nn.softplus(x, 2.0),
    "rsqrt": lambda b, x: R.rsqrt(b.emit(R.add(b.emit(R.square(x), "s"), const(np.float32(1))), "p")),
    "gelu": lambda b, x: R.nn.gelu(x),
    "prelu": lambda b, x: R.nn.prelu(x, const(np.linspace(0, 1, 8).astype(np.float32)), axis=3),
    "leaky": lambda b, x: R.nn.leakyrelu(x, 0.2),
    "channel vector": lambda b, x: R.multiply(x, const(np.arange(8).astype(np.float32))),
    "row vector": lambda b, x: R.add(x, const(np.arange(4).astype(np.float32).reshape(4, 1))),
    "mean": lambda b, x: R.mean(x, axis=[1, 2], keepdims=True),
    "mean of channels": lambda b, x: R.mean(x, axis=[3]),
    "mean of rows": lambda b, x: R.mean(x, axis=[1]),
    "sum": lambda b, x: R.sum(x, axis=[1, 2, 3]),
    "softmax": lambda b, x: R.nn.softmax(x, axis=3),
    "slice": lambda b, x: R.strided_slice(x, [1, 3], [0, 1], [4, 8], [2, 3]),
    "pad": lambda b, x: R.nn.pad(x, (0, 0, 1, 2, 0, 1, 0, 0), "constant", 0.5),
    "reflect": lambda b, x: R.nn.pad(x, (0, 0, 1, 2, 0, 1, 0, 0), "reflect"),
    "concat": lambda b, x: R.concat([x, b.emit(R.nn.relu(x), "r")], axis=3),
    "permute": lambda b, x: R.permute_dims(x, [0, 3, 2, 1]),
    "take": lambda b, x: R.take(x, const(np.array([2, 0], np.int64)), axis=1),
    "tile": lambda b, x: R.tile(x, (1, 2, 1, 1)),
    "reshape": lambda b, x: R.reshape(x, (1, 16, 8)),
    "max_pool": lambda b, x: R.nn.max_pool2d(x, (3, 3), (2, 2), (1, 1, 1, 1), layout="NHWC"),
    "avg_pool": lambda b, x: R.nn.avg_pool2d(x, (3, 3), (1, 1), (1, 1, 1, 1), layout="NHWC"),
    "resize": lambda b, x: R.image.resize2d(x, (8, 6), layout="NHWC", method="linear"),
    "nearest": lambda b, x: R.image.resize2d(
        x, (8, 8), layout="NHWC", method="nearest_neighbor", coordinate_transformation_mode="asymmetric",
        rounding_method="floor",
    ),
    "layer_norm": lambda b, x: R.nn.layer_norm(
        x, const(np.ones(8, np.float32)), const(np.zeros(8, np.float32)), axes=[-1]
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(OPERATORS))
def test_operator_keeps_its_meaning(name):
    """Each operator in ONNX Runtime against its NumPy definition, evaluated from the same graph view."""
    built = _image(OPERATORS[name])
    sample = {"x": RNG.normal(0, 1, (1, 4, 4, 8)).astype(np.float32)}
    exported = run_float(built, sample)["y"]
    graph = read(built)
    values = {**graph.constants, **sample}
    for node in graph.nodes:
        values[node.name] = FLOAT_OPS[node.op](*(values[n] for n in node.inputs), **node.attributes)
    np.testing.assert_allclose(exported, values["y"].astype(np.float32), rtol=1e-4, atol=1e-5)


def test_every_operator_without_an_onnx_form_is_listed():
    def body(b, x):
        y = b.emit(R.nn.instance_norm(x, const(np.ones(8, np.float32)), const(np.ones(8, np.float32)), 3, [1, 2]), "n")
        return {"y": b.emit(R.cumprod(y, 1), "c")}

    with pytest.raises(ModelError) as error:
        export(module({"x": (1, 4, 4, 8)}, body))
    assert str(error.value) == ("no ONNX form is known for: cumprod (first at 'y'), nn.instance_norm (first at 'n')")
