"""One operation as a program: lowered, run at an instruction-set level, and interpreted."""

from __future__ import annotations

import functools
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytest

from qcompiler.codegen.cpu.isa.amx import AMX
from qcompiler.codegen.cpu.isa.base import VectorInstructionSet
from qcompiler.codegen.cpu.isa.x86 import AVX2, AVX512_VNNI, AVX_VNNI
from qcompiler.codegen.cpu.kernel import Group, Step, stored
from qcompiler.codegen.cpu.measure import LoadedSteps
from qcompiler.sim.integer_program import Add, Conv2d, IntegerProgram, MatMul, Operation, Requantize, Tensor, check
from qcompiler.sim.numerics import add_multipliers
from qcompiler.sim.reference import execute

LEVELS = {level.name: level for level in (AMX, AVX512_VNNI, AVX_VNNI, AVX2)}
VECTOR_LEVELS = {name: level for name, level in LEVELS.items() if level is not AMX}


@functools.cache
def supported(level: VectorInstructionSet) -> bool:
    """Whether this CPU runs the level.

    A hypervisor may hide AVX-VNNI although the instructions work: one is tried then, in a process of its own.
    """
    flags = set(Path("/proc/cpuinfo").read_text().split())
    missing = set(level.cpu_flags) - flags
    if not missing:
        return True
    if missing != {"avx_vnni"}:
        return False
    trial = '__asm__ volatile("{vex} vpdpbusd %ymm0, %ymm0, %ymm0");'
    with tempfile.TemporaryDirectory() as folder:
        binary = f"{folder}/trial"
        source = f"int main(void) {{ {trial} return 0; }}"
        built = subprocess.run(["cc", "-x", "c", "-", "-o", binary], input=source.encode(), capture_output=True)
        return built.returncode == 0 and subprocess.run([binary]).returncode == 0


def levels() -> list:
    return [
        pytest.param(level, id=level.name, marks=pytest.mark.skipif(not supported(level), reason="CPU lacks it"))
        for level in LEVELS.values()
    ]


def program_of(operations: list[Operation], tensors: list[Tensor], inputs: list[str]) -> IntegerProgram:
    return check(
        IntegerProgram("test", tuple(inputs), (operations[-1].output,), {t.name: t for t in tensors}, tuple(operations))
    )


def assert_exact(program: IntegerProgram, lower, isa, seed: int = 0, splits: int = 3) -> list[Step]:
    """The lowered group gives the reference's bytes on random and on extreme inputs, its tasks split or not."""
    rng = np.random.default_rng(seed)
    group = Group(program.operations, program.tensors)
    steps = lower(group, isa)
    loaded = None
    for extreme in (False, True):
        values = {}
        for name in program.inputs:
            shape = program.tensors[name].shape
            drawn = rng.choice(np.array([-128, 127]), shape) if extreme else rng.integers(-128, 128, shape)
            values[name] = drawn.astype(np.int8)
        inputs = {n: stored(v, isa.storage) for n, v in values.items()}
        loaded = loaded or LoadedSteps(steps, isa, inputs)
        for name, value in inputs.items():
            loaded.write(name, value)
        expected = stored(execute(program, values)[program.outputs[0]], isa.storage).reshape(-1)
        for parts in (1, splits):
            actual = loaded.run(parts)
            wrong = np.flatnonzero(actual != expected)
            assert wrong.size == 0, f"{wrong.size} of {expected.size} differ, first at {wrong[:5]}: {steps[-1].kernel}"
    return steps


def conv_program(
    seed: int, n: int, h: int, w: int, c: int, o: int, kernel: tuple[int, int], rounding: str = "exact_half_up",
    wide: bool = False, minimum: int = -128, maximum: int = 127, add: str = "", **options,
) -> IntegerProgram:  # fmt: skip
    """A random Conv2d; wide: biases beyond the float path; add: "first" or "second", where its result stands."""
    rng = np.random.default_rng(seed)
    groups = options.get("groups", 1)
    weight = rng.integers(-127, 128, (o, *kernel, c // groups)).astype(np.int8)
    bias = rng.integers(-20000, 20000, o).astype(np.int32) * (1000 if wide else 1)
    scale = random_scales(rng, o, weight[0].size, rounding)
    zero_x, zero_y = (int(v) for v in rng.integers(-128, 128, 2))
    op = Conv2d("conv", ("x",), "y", weight, bias, Requantize(scale, zero_y, minimum, maximum, rounding), **options)
    shape = op.infer_shape([(n, h, w, c)])
    tensors = [Tensor("x", (n, h, w, c), "int8", 0.5, zero_x), Tensor("y", shape, "int8", 0.5, zero_y)]
    return with_add([op], tensors, ["x"], add)


def random_scales(rng: np.random.Generator, channels: int, terms: int, rounding: str) -> np.ndarray:
    scale = (rng.random(channels) * 3e-3 / np.sqrt(terms) + 1e-5).astype(np.float32)
    return scale.astype(np.float64) if rounding.startswith("q31") else scale


def with_add(operations: list[Operation], tensors: list[Tensor], inputs: list[str], add: str) -> IntegerProgram:
    """The program, with an addition of another tensor behind it if `add` says so."""
    y = tensors[-1]
    if add:
        other = Tensor("other", y.shape, "int8", 0.25, 7)
        scaled = [(y.scale, y.zero_point), (0.25, 7)]
        names = [y.name, "other"]
        if add == "second":
            scaled.reverse()
            names.reverse()
        multipliers = add_multipliers(*scaled[0], *scaled[1], 0.5, -3)
        operations = [*operations, Add("add", tuple(names), "sum", *multipliers, minimum=-20)]
        tensors = [*tensors, other, Tensor("sum", y.shape, "int8", 0.5, -3)]
        inputs = [*inputs, "other"]
    return program_of(operations, tensors, inputs)


def matmul_program(
    shape_a: tuple[int, ...], shape_b: tuple[int, ...], transposed: bool, zero_b: int, add: str = ""
) -> IntegerProgram:
    scale = np.array([2e-3 / np.sqrt(shape_a[-1])], dtype=np.float32)
    op = MatMul("matmul", ("a", "b"), "y", Requantize(scale, 5), transposed)
    shape = op.infer_shape([shape_a, shape_b])
    tensors = [
        Tensor("a", shape_a, "int8", 0.5, -7),
        Tensor("b", shape_b, "int8", 0.5, zero_b),
        Tensor("y", shape, "int8", 0.5, 5),
    ]
    return with_add([op], tensors, ["a", "b"], add)
