"""Whole networks on every core, emulated, bit for bit; and the memory that they take on the device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from mcu_targets import targets

from qcompiler.codegen.mcu.build import build
from qcompiler.codegen.mcu.target import MCU_TARGETS
from qcompiler.passes.integerize import integerize
from qcompiler.pipeline import Options, quantise_model
from qcompiler.progress import Progress
from qcompiler.sim.integer_program import IntegerProgram

KIB = 1024
# name: arena and code at most, in bytes; the keyword spotter's are those of the issue, as is every arena.
NETWORKS = {
    "kws": (24 * KIB, 40 * KIB), "resnet8": (52 * KIB, 40 * KIB), "ad": (8 * KIB, 40 * KIB),
    "vww": (100 * KIB, 40 * KIB),
}  # fmt: skip
_programs: dict[str, tuple[IntegerProgram, list[dict[str, Any]]]] = {}


def network(name: str, shared: Path, bench_models: Path) -> tuple[IntegerProgram, list[dict[str, Any]]]:
    """The integer program and samples to run: 50 of the development set for the keyword spotter, random ones else."""
    if name not in _programs:
        files = {
            "kws": shared / "data/kws/kws_ds_cnn.onnx", "resnet8": shared / "data/mlperf_tiny/resnet8.onnx",
            "ad": shared / "data/mlperf_tiny/ad_autoencoder.onnx", "vww": bench_models / "vww_mbv1_025.onnx",
        }  # fmt: skip
        inputs = onnx.load(files[name]).graph.input
        shapes = {i.name: [max(1, d.dim_value) for d in i.type.tensor_type.shape.dim] for i in inputs}
        rng = np.random.default_rng(3)
        samples = [{n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()} for _ in range(3)]
        calibration: Any = samples
        if name == "kws":
            calibration = shared / "data/kws/calibration.npz"
            (key,) = shapes
            data = np.load(shared / "data/kws/dev.npz")[key][:50]
            samples = [{key: x.reshape(shapes[key]).astype(np.float32)} for x in data]
        module = quantise_model(files[name], calibration, Options(), Progress()).module
        _programs[name] = (integerize(module, rounding="exact_half_up", name="model"), samples)
    return _programs[name]


@pytest.mark.slow
@pytest.mark.parametrize("target", targets())
@pytest.mark.parametrize("name", NETWORKS)
def test_equals_reference(name: str, target: str, shared: Path, bench_models: Path, assert_exact: Callable) -> None:
    program, samples = network(name, shared, bench_models)
    assert_exact(program, target, samples)


@pytest.mark.slow
@pytest.mark.parametrize("target", targets())
@pytest.mark.parametrize("name", NETWORKS)
def test_memory_on_the_device(name: str, target: str, shared: Path, bench_models: Path, tmp_path: Path) -> None:
    program, _ = network(name, shared, bench_models)
    report = build(program, MCU_TARGETS[target], tmp_path)
    arena, code = NETWORKS[name]
    assert report.code_bytes is not None
    sizes = report.code_bytes, report.constant_bytes, report.arena_bytes
    print(f"{name} on {target}: code, constants, arena {', '.join(f'{size / KIB:.1f}' for size in sizes)} KiB")
    assert report.arena_bytes <= arena
    assert report.arena_bytes <= 1.05 * report.arena_bound
    assert report.code_bytes <= code
    assert report.stack_bytes is not None and report.stack_bytes <= KIB
    weights = sum(getattr(op, "weight", np.empty(0)).nbytes for op in program.operations)
    assert report.constant_bytes <= 1.3 * weights + 8 * KIB
