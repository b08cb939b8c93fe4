"""ResNet-50 on machines whose figures are published: docs/npu.md explains the differences."""

import numpy as np
import onnx
import pytest

from qcompiler.codegen.npu.lower import compile_npu
from qcompiler.passes.integerize import integerize
from qcompiler.pipeline import Options, quantise_model
from qcompiler.progress import Progress
from qcompiler.sim import energy, hardware, timing

pytestmark = pytest.mark.slow
NVDLA_FRAMES_PER_SECOND = 153
NVDLA_AREA_MM2 = 1.8


@pytest.fixture(scope="module")
def resnet50(bench_models):
    """The integer program; ranges from one random image, which is enough for cycles."""
    path = bench_models / "resnet50.onnx"
    (port,) = onnx.load(path, load_external_data=False).graph.input
    shape = [d.dim_value or 1 for d in port.type.tensor_type.shape.dim]
    image = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    quantised = quantise_model(path, [{port.name: image}], Options(), Progress())
    return integerize(quantised.module, name="resnet50")


def test_resnet50_beside_the_nvdla_primer(resnet50):
    machine = hardware.load("nvdla-1024-like")
    timeline = timing.simulate(compile_npu(resnet50, machine))
    assert 0.8 < 1 / timeline.seconds / NVDLA_FRAMES_PER_SECOND < 1.1
    area = energy.area(machine, energy.load_table()).values()
    assert sum(part.low for part in area) < NVDLA_AREA_MM2 < sum(part.high for part in area)


def test_resnet50_with_ideal_memory_keeps_the_array_busy(resnet50):
    machine = hardware.load("edge-32x32")
    program = compile_npu(resnet50, machine)
    ideal = timing.simulate(program, hardware.ideal_memory(machine))
    macs = sum(layer.macs for layer in program.layers)
    assert macs / (ideal.cycles * machine.matrix.macs_per_cycle) >= 0.88
