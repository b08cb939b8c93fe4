"""Whole models from ONNX to the accelerator, bit for bit: real ones where the data is there, benchmark ones else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from machines import edited

from qcompiler.codegen.npu.lower import compile_npu
from qcompiler.frontend.onnx import import_onnx
from qcompiler.npu import Executor
from qcompiler.passes.calibrate import calibrate
from qcompiler.passes.canonical import canonical_pipeline
from qcompiler.passes.integerize import integerize
from qcompiler.passes.quantize import Quantize
from qcompiler.sim import hardware, reference, timing
from qcompiler.sim.integer_program import IntegerProgram
from qcompiler.sim.widths import FULL, Widths

pytestmark = pytest.mark.slow

MODELS = {
    "kws_dscnn": (1, 1, 49, 10), "ic_resnet8": (1, 3, 32, 32), "vww_mbv1_025": (1, 3, 96, 96),
    "ad_autoencoder": (1, 640), "mobilenet_v2": (1, 3, 224, 224), "resnet50": (1, 3, 224, 224),
}  # fmt: skip
_programs: dict[tuple[str, Widths], IntegerProgram] = {}


def quantised(path: Path, samples: list[dict[str, np.ndarray]] | None = None, widths: Widths = FULL) -> IntegerProgram:
    """The integer program of a float model, calibrated on the samples or on noise."""
    if (path.stem, widths) in _programs:
        return _programs[path.stem, widths]
    module = canonical_pipeline().run(import_onnx(path, None))
    if samples is None:
        rng = np.random.default_rng(0)
        name, shape = input_of(path)
        samples = [{name: rng.standard_normal(shape).astype(np.float32)} for _ in range(2)]
    program = integerize(Quantize(calibrate(module, samples, widths=widths)).run(module), name=path.stem)
    return _programs.setdefault((path.stem, widths), program)


def input_of(path: Path) -> tuple[str, tuple[int, ...]]:
    import onnx

    tensor = onnx.load(path, load_external_data=False).graph.input[0]
    return tensor.name, tuple(d.dim_value or 1 for d in tensor.type.tensor_type.shape.dim)


def assert_equal(program: IntegerProgram, machine: hardware.Machine, samples: list[dict[str, np.ndarray]]) -> None:
    compiled = compile_npu(program, machine)
    assert timing.simulate(compiled).cycles > 0
    executor = Executor(program, compiled)
    for sample in samples:
        got, wanted = executor.run(sample), reference.execute(program, sample)
        for name in program.outputs:
            np.testing.assert_array_equal(got[name], wanted[name])


@pytest.mark.parametrize("model", MODELS)
def test_benchmark_models_on_edge_16x16(model: str, bench_models: Path) -> None:
    path = bench_models / f"{model}.onnx"
    name, shape = input_of(path)
    noise = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    assert_equal(quantised(path), hardware.load("edge-16x16"), [{name: noise}])


@pytest.mark.parametrize("machine", hardware.preset_names())
@pytest.mark.parametrize("model", ["kws_dscnn", "ic_resnet8"])
def test_small_models_on_every_preset(model: str, machine: str, bench_models: Path) -> None:
    path = bench_models / f"{model}.onnx"
    name, shape = input_of(path)
    noise = np.random.default_rng(2).standard_normal(shape).astype(np.float32)
    assert_equal(quantised(path), hardware.load(machine), [{name: noise}])


@pytest.mark.parametrize("widths", [Widths(4, 8), Widths(3, 6)], ids=str)
@pytest.mark.parametrize("machine", ["edge-16x16", "u55-128-like"])
@pytest.mark.parametrize("model", ["kws_dscnn", "ic_resnet8"])
def test_small_models_on_narrow_arrays(model: str, machine: str, widths: Widths, bench_models: Path) -> None:
    path = bench_models / f"{model}.onnx"
    name, shape = input_of(path)
    rng = np.random.default_rng(3)
    samples = [{name: (k * rng.standard_normal(shape)).astype(np.float32)} for k in (1, 9)]  # and beyond its range
    fields = {"matrix__weight_bits": widths.weight_bits, "matrix__activation_bits": widths.activation_bits}
    assert_equal(quantised(path, widths=widths), edited(hardware.load(machine), **fields), samples)


def test_trained_keyword_spotting_on_all_dev_samples(shared: Path) -> None:
    path = shared / "data" / "kws" / "kws_ds_cnn.onnx"
    name, _ = input_of(path)

    def samples(archive: str) -> list[dict[str, np.ndarray]]:
        with np.load(path.parent / archive) as data:
            values = next(data[k] for k in data.files if data[k].dtype == np.float32)
        return [{name: v[None]} for v in values]

    program = quantised(path, samples("calibration.npz"))
    assert_equal(program, hardware.load("edge-16x16"), samples("dev.npz"))
