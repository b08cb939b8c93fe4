"""Models quantised by ONNX Runtime, with their own scales: its integers from the reference and from the library."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from qcompiler.frontend.onnx import import_onnx
from qcompiler.passes.canonical import canonical_pipeline
from qcompiler.passes.integerize import integerize
from qcompiler.sim import reference
from qcompiler.sim.integer_program import FloatOp, IntegerProgram

# Trained models of the data folder, and benchmark models with random weights.
TRAINED = ("kws/kws_ds_cnn.onnx", "mlperf_tiny/resnet8.onnx", "mlperf_tiny/ad_autoencoder.onnx")
GENERATED = ("mobilenet_v1", "mobilenet_v2", "vww_mbv1_025", "resnet50")


def samples(path: Path, seed: int) -> dict[str, np.ndarray]:
    entry = onnx.load(path, load_external_data=False).graph.input[0]
    shape = [d.dim_value or 1 for d in entry.type.tensor_type.shape.dim]
    return {entry.name: np.random.default_rng(seed).standard_normal(shape).astype(np.float32)}


def quantised(path: Path, folder: Path, activations: str) -> Path:
    """The model as QDQ by onnxruntime.quantization: int8 weights per channel, activations u8 or s8."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.rest: Iterator[dict[str, np.ndarray]] = iter([samples(path, seed) for seed in range(4)])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.rest, None)

    prepared, result = folder / "prepared.onnx", folder / "quantised.onnx"
    quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
    kind = QuantType.QUInt8 if activations == "u8" else QuantType.QInt8
    quantize_static(
        str(prepared), str(result), Reader(), quant_format=QuantFormat.QDQ, activation_type=kind,
        weight_type=QuantType.QInt8, per_channel=True,
    )  # fmt: skip
    return result


def integers_of_onnxruntime(model: Path, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The int8 value (uint8 less 128) of every tensor that the model quantises, by the name of the float tensor."""
    source = onnx.load(model)
    nodes = [n for n in source.graph.node if n.op_type == "QuantizeLinear"]
    source.graph.output.extend(onnx.ValueInfoProto(name=n.output[0]) for n in nodes)
    session = onnxruntime.InferenceSession(source.SerializeToString(), providers=["CPUExecutionProvider"])
    values = session.run([n.output[0] for n in nodes], feeds)
    return {
        n.input[0]: (v.astype(np.int16) - (128 if v.dtype == np.uint8 else 0)).astype(np.int8)
        for n, v in zip(nodes, values, strict=True)
    }


def compare_operations(program: IntegerProgram, theirs: dict[str, np.ndarray], feeds: dict[str, np.ndarray]) -> None:
    """Every operation on ONNX Runtime's own operands: at most one step apart, and equal in 99.9 % of all elements.

    Whole networks would compare how differences of one step travel, not whether the arithmetic agrees.
    """
    values = {**program.constants, **feeds}
    compared = different = 0
    for op in program.operations:
        out = program.output_tensor(op)
        ins = program.input_tensors(op)
        values[op.output] = reference.EXECUTE[type(op)](op, ins, out, *(values[n] for n in op.inputs))
        want = theirs.get(op.output.removesuffix(".int8"))
        if want is None or out.dtype != "int8":
            continue
        if want.ndim == 4:
            want = want.transpose(0, 2, 3, 1)
        if want.shape != out.shape:
            continue
        apart = np.abs(values[op.output].astype(np.int16) - want)
        assert apart.max() <= 1, f"{op.name}: {apart.max()} steps apart"
        compared += apart.size
        different += np.count_nonzero(apart)
        values[op.output] = want
    elements = sum(v.size for v in theirs.values())
    # What is missing are the inputs, which have another name behind their transposition.
    assert compared > 0.8 * elements, "most of what ONNX Runtime quantises is a tensor of the program"
    assert different <= 0.001 * compared, f"{different} of {compared} elements differ"


def check(path: Path, folder: Path, activations: str, build_library: Callable[..., Any]) -> None:
    model = quantised(path, folder, activations)
    program = integerize(canonical_pipeline().run(import_onnx(model)), rounding="f32_half_even", name="imported")
    feeds = samples(path, 99)
    compare_operations(program, integers_of_onnxruntime(model, feeds), feeds)
    results = reference.execute(program, feeds)
    compiled = build_library(program, "x86:avx2").run(feeds)
    exact = not any(isinstance(op, FloatOp) for op in program.operations)
    for name, value in results.items():
        if exact:
            assert np.array_equal(compiled[name], value), name
        else:
            np.testing.assert_allclose(compiled[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("activations", ["u8", "s8"])
@pytest.mark.parametrize("name", TRAINED)
def test_trained(name: str, activations: str, shared: Path, tmp_path: Path, build_library: Callable[..., Any]) -> None:
    check(shared / "data" / name, tmp_path, activations, build_library)


@pytest.mark.slow
@pytest.mark.parametrize("activations", ["u8", "s8"])
@pytest.mark.parametrize("name", GENERATED)
def test_generated(
    name: str, activations: str, bench_models: Path, tmp_path: Path, build_library: Callable[..., Any]
) -> None:
    check(bench_models / f"{name}.onnx", tmp_path, activations, build_library)
