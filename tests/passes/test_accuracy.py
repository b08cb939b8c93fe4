"""Accuracy on trained models against ONNX Runtime's static quantisation of the same model and data."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from small_models import Sample, log_mel_frames, smooth_images

from qcompiler.frontend.onnx import import_onnx
from qcompiler.passes.calibrate import calibrate
from qcompiler.passes.canonical import canonical_pipeline
from qcompiler.passes.integerize import integerize
from qcompiler.passes.quantize import Quantize
from qcompiler.passes.sqnr import sqnr_db
from qcompiler.sim.reference import execute

METHODS = (CalibrationMethod.MinMax, CalibrationMethod.Entropy, CalibrationMethod.Percentile)
TYPES = (QuantType.QUInt8, QuantType.QInt8)


class Reader(CalibrationDataReader):
    def __init__(self, samples: list[Sample]) -> None:
        self.samples = iter(samples)

    def get_next(self) -> Sample | None:
        return next(self.samples, None)


def run_onnx(model: Path, samples: list[Sample]) -> np.ndarray:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, s)[0] for s in samples])


def sqnr(exact: np.ndarray, other: np.ndarray) -> float:
    return sqnr_db(float(np.sum(exact.astype(float) ** 2)), float(np.sum((exact.astype(float) - other) ** 2)))


def best_of_onnx_runtime(model: Path, calibration: list[Sample], test: list[Sample], folder: Path) -> float:
    """The best SQNR in dB of all static settings, per channel."""
    logging.disable(logging.WARNING)
    prepared = folder / "prepared.onnx"
    quant_pre_process(model, prepared, skip_symbolic_shape=True)
    exact = run_onnx(model, test)
    found = []
    for method in METHODS:
        for kind in TYPES:
            quantised = folder / f"{method.name}_{kind.name}.onnx"
            quantize_static(
                prepared, quantised, Reader(calibration), quant_format=QuantFormat.QDQ, per_channel=True,
                activation_type=kind, weight_type=QuantType.QInt8, calibrate_method=method,
            )  # fmt: skip
            found.append(sqnr(exact, run_onnx(quantised, test)))
    return max(found)


def ours(model: Path, calibration: list[Sample], test: list[Sample]) -> np.ndarray:
    """Outputs by the default settings, from the reference interpreter."""
    canonical = canonical_pipeline().run(import_onnx(model))
    program = integerize(Quantize(calibrate(canonical, calibration)).run(canonical))
    assert not any(type(o).__name__ == "FloatOp" for o in program.operations)
    return np.concatenate([execute(program, s)[program.outputs[0]] for s in test])


def keyword_spotting(shared: Path):
    folder = shared / "data" / "kws"
    with np.load(folder / "calibration.npz") as c, np.load(folder / "dev.npz") as d:
        calibration, test, labels = c["mfcc"], d["mfcc"], d["labels"]
    as_samples = [[{"mfcc": x.reshape(1, 1, 49, 10).astype(np.float32)} for x in a] for a in (calibration, test)]
    return folder / "kws_ds_cnn.onnx", *as_samples, labels


def of_inputs(model: Path, values: list[np.ndarray]) -> list[Sample]:
    """Samples for the single input of a model; images as its axis order wants them."""
    wanted = onnxruntime.InferenceSession(model).get_inputs()[0]
    shape = [d if isinstance(d, int) else 1 for d in wanted.shape]
    images_first = len(shape) == 4 and shape[1] == 3
    return [{wanted.name: (v.transpose(2, 0, 1) if images_first else v).reshape(shape)} for v in values]


def test_keyword_spotting_accuracy(shared):
    model, calibration, test, labels = keyword_spotting(shared)
    scores = ours(model, calibration, test)
    assert np.mean(scores.argmax(axis=1) == labels) >= 0.9225
    assert sqnr(run_onnx(model, test), scores) >= 29.8


@pytest.mark.slow
def test_keyword_spotting_against_onnx_runtime(shared, tmp_path):
    model, calibration, test, _ = keyword_spotting(shared)
    best = best_of_onnx_runtime(model, calibration, test, tmp_path)
    assert sqnr(run_onnx(model, test), ours(model, calibration, test)) >= best


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, inputs", [("resnet8.onnx", smooth_images(200, 5)), ("ad_autoencoder.onnx", log_mel_frames(200, 5))]
)
def test_tiny_models_against_onnx_runtime(shared, tmp_path, name, inputs):
    model = shared / "data" / "mlperf_tiny" / name
    samples = of_inputs(model, inputs)
    calibration, test = samples[:100], samples[100:]
    best = best_of_onnx_runtime(model, calibration, test, tmp_path)
    assert sqnr(run_onnx(model, test), ours(model, calibration, test)) >= best


@pytest.mark.slow
def test_encoder_stays_close_to_float(bench_models):
    """bert-base, 128 tokens: integer throughout, cosine to float at least 0.999 on unseen inputs."""
    model = bench_models / "bert_base_enc.onnx"
    samples = [{"input": np.random.default_rng(i).normal(0, 1, (1, 128, 768)).astype(np.float32)} for i in range(9)]
    exact, scores = run_onnx(model, samples[8:]).astype(float), ours(model, samples[:8], samples[8:]).astype(float)
    assert np.sum(exact * scores) / np.sqrt(np.sum(exact * exact) * np.sum(scores * scores)) >= 0.999
