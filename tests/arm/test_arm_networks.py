"""Whole networks on every ARM Linux level under qemu, equal to the reference bit for bit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from arm_targets import DOTPROD, I8MM, NEON, Level, parameters, running

import qcompiler
from qcompiler.passes.integerize import integerize
from qcompiler.pipeline import Options, quantise_model
from qcompiler.progress import Progress
from qcompiler.sim import reference
from qcompiler.sim.integer_program import IntegerProgram

Sample = Mapping[str, Any]
DEMO = Path(qcompiler.__file__).parent / "demo"
KWS_SAMPLES = 50


def integer_program(model: Path, calibration: Any) -> IntegerProgram:
    return integerize(quantise_model(model, calibration, Options(), Progress()).module, name="model")


def check(program: IntegerProgram, samples: Iterable[Sample], level: Level, directory: Path) -> None:
    """Every sample through one emulated process and through the reference."""
    with running(program, level, directory) as run:
        for i, sample in enumerate(samples):
            values = {n: np.asarray(sample[n]).reshape(program.tensors[n].shape) for n in program.inputs}
            found = run(values)
            for name, wanted in reference.execute(program, values).items():
                assert np.array_equal(found[name], wanted), f"{level}: {name} of sample {i}"


@pytest.mark.parametrize("level", parameters())
def test_digits(level: Level, tmp_path: Path) -> None:
    program = integer_program(DEMO / "digits.onnx", DEMO / "calibration.npz")
    with np.load(DEMO / "test.npz") as data:
        check(program, [{"image": image} for image in data["image"][:40]], level, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("level", parameters())
def test_keyword_spotting(level: Level, shared: Path, tmp_path: Path) -> None:
    folder = shared / "data" / "kws"
    with np.load(folder / "calibration.npz") as calibration, np.load(folder / "dev.npz") as dev:
        samples = [{"mfcc": x.reshape(1, 1, 49, 10).astype(np.float32)} for x in calibration["mfcc"]]
        test = [{"mfcc": x.astype(np.float32)} for x in dev["mfcc"][:KWS_SAMPLES]]
    check(integer_program(folder / "kws_ds_cnn.onnx", samples), test, level, tmp_path)


def check_benchmark(name: str, level: Level, bench_models: Path, directory: Path, calibration: int, test: int) -> None:
    import onnx

    path, rng = bench_models / f"{name}.onnx", np.random.default_rng(3)
    inputs = onnx.load(path, load_external_data=False).graph.input
    shapes = {i.name: [max(1, d.dim_value) for d in i.type.tensor_type.shape.dim] for i in inputs}
    samples = [{n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()} for _ in range(calibration)]
    check(integer_program(path, samples), samples[:test], level, directory)


@pytest.mark.slow
@pytest.mark.parametrize("level", parameters())
@pytest.mark.parametrize("name", ["ic_resnet8", "ad_autoencoder", "vww_mbv1_025"])
def test_small_networks(name: str, level: Level, bench_models: Path, tmp_path: Path) -> None:
    check_benchmark(name, level, bench_models, tmp_path, 4, 4)


@pytest.mark.slow
@pytest.mark.parametrize("level", parameters(I8MM, DOTPROD, NEON))
@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet50"])
def test_large_networks(name: str, level: Level, bench_models: Path, tmp_path: Path) -> None:
    check_benchmark(name, level, bench_models, tmp_path, 2, 1)
