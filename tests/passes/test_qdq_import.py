"""Models quantised by ONNX Runtime, imported without calibration: `f32_half_even` follows their origin.

What ONNX Runtime computes for a QDQ graph depends on its optimiser: by default it runs convolutions, products and
sums in integers (QLinearConv, QGemm, QLinearMatMul, QLinearAdd), otherwise in float32 between quantise and
dequantise. The integer kernels are the definition that `f32_half_even` follows, because it has one result: the float
path adds in an order that depends on the machine, and its rounding noise decides near ties. Softmax and layer
normalisation have no integer form equal to it and stay float, as they do in the models here.

ONNX Runtime leaves a convolution with Relu on *signed* activations in float even by default. Networks where that
noise reaches the output are compared operation by operation, each on the very integers that ONNX Runtime had.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from small_models import Sample, log_mel_frames, mobilenet_like, normal_samples, residual_cnn, smooth_images
from small_models import transformer_block as transformer

from qcompiler.frontend.onnx import import_onnx
from qcompiler.passes.canonical import canonical_pipeline
from qcompiler.passes.integerize import integerize
from qcompiler.sim.integer_program import FloatOp, IntegerProgram, Reshape
from qcompiler.sim.reference import EXECUTE, execute

TYPES = {"u8s8": QuantType.QUInt8, "s8s8": QuantType.QInt8}
OPERATORS = [
    "Conv", "Gemm", "MatMul", "Add", "Mul", "Relu", "Clip", "MaxPool", "AveragePool", "GlobalAveragePool", "Concat",
    "Reshape", "Flatten", "Transpose",
]  # fmt: skip


class Reader(CalibrationDataReader):
    def __init__(self, samples: list[Sample]) -> None:
        self.samples = iter(samples)

    def get_next(self) -> Sample | None:
        return next(self.samples, None)


def quantise(model: Path, folder: Path, samples: list[Sample], kind: str, operators: list[str] | None = None) -> Path:
    """ONNX Runtime's static QDQ quantisation, per channel."""
    logging.disable(logging.WARNING)
    prepared, result = folder / "prepared.onnx", folder / f"{kind}.onnx"
    quant_pre_process(model, prepared, skip_symbolic_shape=True)
    quantize_static(
        prepared, result, Reader(samples), quant_format=QuantFormat.QDQ, per_channel=True, activation_type=TYPES[kind],
        weight_type=QuantType.QInt8, op_types_to_quantize=operators or OPERATORS,
    )  # fmt: skip
    return result


def imported(model: Path) -> IntegerProgram:
    return integerize(canonical_pipeline().run(import_onnx(model)), rounding="f32_half_even")


def equality(model: Path, program: IntegerProgram, samples: list[Sample], optimised: bool) -> tuple[float, float]:
    """(share of equal output elements, largest difference in steps of the last int8 tensor of the program)."""
    options = onnxruntime.SessionOptions()
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    name = program.outputs[0]
    scale = [t.scale for t in program.tensors.values() if t.scale is not None][-1]
    other = np.concatenate([session.run([name], s)[0] for s in samples])
    ours = np.concatenate([execute(program, s)[name] for s in samples])
    # A float operator at the end (softmax, layer norm) adds noise of float32, far below a step.
    noise = 1e-6 * float(np.abs(other).max())
    steps = np.abs(ours - other) / scale
    return float(np.mean(np.abs(ours - other) <= max(noise, 1e-3 * scale))), float(steps.max())


def _small(build: Callable[[], onnx.ModelProto], folder: Path) -> tuple[Path, list[Sample], list[Sample]]:
    model = build()
    onnx.save(model, folder / "float.onnx")
    return folder / "float.onnx", normal_samples(model, 20), normal_samples(model, 60, seed=9)


@pytest.mark.parametrize(
    "build, kind",
    [
        (mobilenet_like, "u8s8"),
        (transformer, "u8s8"),
        (transformer, "s8s8"),
        (residual_cnn, "u8s8"),
    ],
)
def test_outputs_equal_onnx_runtimes(build, kind, tmp_path):
    model, calibration, test = _small(build, tmp_path)
    quantised = quantise(model, tmp_path, calibration, kind)
    program = imported(quantised)
    share, steps = equality(quantised, program, test, optimised=True)
    assert share >= 0.999 and steps <= 1.01
    stays_float = {"nn.softmax", "nn.layer_norm", "nn.avg_pool2d", "erf", "add", "multiply", "divide"}
    assert {o.kind for o in program.operations if isinstance(o, FloatOp)} <= stays_float


def of_shared(shared: Path, name: str) -> tuple[Path, list[Sample], list[Sample]]:
    """A trained model with calibration and test samples."""
    if name == "kws":
        folder = shared / "data" / "kws"
        with np.load(folder / "calibration.npz") as c, np.load(folder / "dev.npz") as d:
            values = [x.reshape(1, 1, 49, 10).astype(np.float32) for x in (*c["mfcc"], *d["mfcc"][:200])]
        return folder / "kws_ds_cnn.onnx", [{"mfcc": v} for v in values[:100]], [{"mfcc": v} for v in values[100:]]
    model = shared / "data" / "mlperf_tiny" / f"{name}.onnx"
    wanted = onnxruntime.InferenceSession(model).get_inputs()[0]
    shape = [d if isinstance(d, int) else 1 for d in wanted.shape]
    values = smooth_images(150, 5) if name == "resnet8" else log_mel_frames(150, 5)
    if len(shape) == 4 and shape[1] == 3:
        values = [v.transpose(2, 0, 1) for v in values]
    samples = [{wanted.name: v.reshape(shape)} for v in values]
    return model, samples[:50], samples[50:]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, kind, optimised",
    [
        ("kws", "u8s8", True),
        ("kws", "s8s8", True),
        ("resnet8", "u8s8", True),
        ("ad_autoencoder", "s8s8", True),
        # QLinearAdd multiplies out the zero points first, which moves near ties; the graph as written does not.
        ("ad_autoencoder", "u8s8", False),
    ],
)
def test_trained_models_equal_onnx_runtimes(shared, tmp_path, name, kind, optimised):
    model, calibration, test = of_shared(shared, name)
    quantised = quantise(model, tmp_path, calibration, kind)
    share, steps = equality(quantised, imported(quantised), test, optimised)
    assert share >= 0.999 and steps <= 1.01


# ------------------------------------------------------------------------- operation by operation
def _integers(model: Path, samples: list[Sample]) -> tuple[dict[str, str], list[dict[str, np.ndarray]]]:
    """({float tensor: its quantised tensor}, per sample every quantised tensor as int8) of the graph as written."""
    proto = onnx.load(model)
    quantisers = [n for n in proto.graph.node if n.op_type == "QuantizeLinear"]
    proto.graph.output.extend(onnx.helper.make_empty_tensor_value_info(n.output[0]) for n in quantisers)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options)
    names = [n.output[0] for n in quantisers]
    found = []
    for sample in samples:
        values = dict(zip(names, session.run(names, sample), strict=True))
        found.append({
            n: v if v.dtype == np.int8 else (v.astype(np.int16) - 128).astype(np.int8) for n, v in values.items()
        })  # fmt: skip
    return {n.input[0]: n.output[0] for n in quantisers}, found


def _as_ours(value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """An ONNX tensor in the program's axis order (images are NHWC there), or None where the order is not known."""
    if value.shape == shape and value.ndim != 4:
        return value
    return value.transpose(0, 2, 3, 1) if value.ndim == 4 and value.transpose(0, 2, 3, 1).shape == shape else None


@pytest.mark.parametrize("kind", sorted(TYPES))
@pytest.mark.parametrize("build", [residual_cnn, mobilenet_like])
def test_each_operation_on_onnx_runtimes_own_integers(build, kind, tmp_path):
    model, calibration, test = _small(build, tmp_path)
    without_pools = [o for o in OPERATORS if "Average" not in o]
    quantised = quantise(model, tmp_path, calibration, kind, without_pools)
    program = imported(quantised)
    where, samples = _integers(quantised, test[:20])
    # A flattened image is in another order here; its readers' weights are permuted to match.
    reordered = {o.output for o in program.operations if isinstance(o, Reshape)}
    compared = 0
    for operation in program.operations:
        out = program.output_tensor(operation)
        tensors = program.input_tensors(operation)
        if reordered & {*operation.inputs, operation.output}:
            continue
        if operation.output not in where or not all(t.name in where and t.dtype == "int8" for t in tensors):
            continue
        equal = total = 0
        for values in samples:
            given = [_as_ours(values[where[t.name]], t.shape) for t in tensors]
            wanted = _as_ours(values[where[out.name]], out.shape)
            if wanted is None or any(g is None for g in given):
                break
            ours = EXECUTE[type(operation)](operation, tensors, out, *given)
            difference = np.abs(ours.astype(int) - wanted)
            assert difference.max() <= 1
            equal, total = equal + int(np.sum(difference == 0)), total + difference.size
        else:
            assert equal / total >= 0.999, operation.name
            compared += 1
    assert compared >= 6
