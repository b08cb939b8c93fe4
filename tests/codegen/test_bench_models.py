"""The benchmark models, calibrated, compiled for every level, against the reference interpreter, bit for bit."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from host_library import LEVELS, Library

from qcompiler.codegen import aot
from qcompiler.codegen.cpu.target import cpu_target
from qcompiler.passes.integerize import integerize
from qcompiler.pipeline import Options, quantise_model
from qcompiler.progress import Progress
from qcompiler.sim import reference
from qcompiler.sim.integer_program import IntegerProgram

MODELS = [
    "kws_dscnn", "ad_autoencoder", "ic_resnet8", "vww_mbv1_025", "mobilenet_v1", "mobilenet_v2", "resnet50",
    "bert_base_enc",
]  # fmt: skip


def samples_for(path: Path, count: int = 2) -> list[dict[str, Any]]:
    import onnx

    rng = np.random.default_rng(3)
    inputs = onnx.load(path, load_external_data=False).graph.input
    shapes = {i.name: [max(1, d.dim_value) for d in i.type.tensor_type.shape.dim] for i in inputs}
    return [{n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()} for _ in range(count)]


def integer_program(path: Path, samples: list[dict[str, Any]]) -> IntegerProgram:
    quantised = quantise_model(path, samples, Options(), Progress())
    return integerize(quantised.module, rounding="exact_half_up", name="model")


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_library_equals_reference_at_every_level(name: str, bench_models: Path, tmp_path: Path) -> None:
    path = bench_models / f"{name}.onnx"
    samples = samples_for(path)
    program = integer_program(path, samples)
    values = {n: samples[0][n].reshape(program.tensors[n].shape) for n in program.inputs}
    report = aot.build(program, cpu_target("x86"), tmp_path)
    assert report.arena_bytes <= 1.05 * report.arena_bound
    wanted = reference.execute(program, values)
    for isa in LEVELS:
        # The loader takes one path for one library; each level is chosen once in a library.
        shutil.copy(tmp_path / "model.so", tmp_path / f"{isa}.so")
        library = Library(tmp_path / f"{isa}.so", program, report.workspace_bytes, isa, "model")
        assert library.isa == isa
        for threads in (1, 2):
            assert library.call("set_threads")(threads) == 0
            found = library.run(values)
            for output, value in wanted.items():
                assert np.array_equal(found[output], value), (isa, threads, output)
