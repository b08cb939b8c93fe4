"""Every operation on every ARM level under qemu, bit for bit.

Nothing here is timed: qemu translates instructions, so its speed says nothing about a core's.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from arm_targets import (
    DOTPROD,
    I8MM,
    LEVELS,
    NEON,
    NEON32,
    Level,
    assert_equal_to_reference,
    build,
    dense_program,
    parameters,
    running,
)
from operation_cases import FAMILIES, fused_cases, matrix_cases
from program_builder import ProgramBuilder

from qcompiler import emulation
from qcompiler.sim import reference
from qcompiler.sim.errors import TargetError

# Matrix work is what the AArch64 levels differ in; the rest is quick to check on the oldest level only.
FAST = [(f, level) for f in FAMILIES for level in LEVELS if f in (matrix_cases, fused_cases) or level in (NEON, NEON32)]
SLOW = [(f, level) for f in FAMILIES for level in LEVELS if (f, level) not in FAST]


def cases(pairs: list[tuple[Callable, Level]]) -> list:
    return [
        pytest.param(family, *p.values, marks=p.marks, id=f"{family.__name__}-{level}")
        for family, level in pairs
        for p in parameters(level)
    ]


def check_family(family: Callable, level: Level, directory: Path) -> None:
    b = ProgramBuilder(seed=FAMILIES.index(family))
    program = b.program(family(b))
    values = b.random_inputs(program)
    for value in values.values():
        if value.dtype == np.float32 and value.size > 4:
            value.ravel()[:4] = 3e38, -3e38, 1e-42, -0.0
    with running(program, level, directory) as run:
        assert_equal_to_reference(run, program, values, str(level))


@pytest.mark.parametrize("family, level", cases(FAST))
def test_equals_reference(family: Callable, level: Level, tmp_path: Path) -> None:
    check_family(family, level, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("family, level", cases(SLOW))
def test_equals_reference_elsewhere(family: Callable, level: Level, tmp_path: Path) -> None:
    check_family(family, level, tmp_path)


@pytest.mark.parametrize("level", parameters())
def test_extreme_products_are_exact(level: Level, tmp_path: Path) -> None:
    """neon sums two products in 16 bits: -128 * -127 twice still fits; -128 * -128 twice, of two activations, not.

    One of them is subtracted there, with a complement; sizes leave 1, 2 and 3 bytes of the last quad.
    """
    b = ProgramBuilder(seed=1)
    image, rows, columns = b.input((1, 5, 5, 40)), b.input((9, 70)), b.input((70, 19))
    program = b.program([
        b.conv(image, 20, (3, 3)), b.conv(image, 40, (3, 3), groups=40), b.dense(b.input((1, 128)), 24),
        b.matmul(rows, columns), b.matmul(rows, b.input((19, 70)), transpose_b=True),
        b.matmul(b.input((2, 3, 33)), b.input((2, 33, 16))), b.matmul(b.input((4, 23)), b.input((23, 21))),
        b.matmul(b.input((4, 23)), b.input((7, 23)), transpose_b=True),
    ])  # fmt: skip
    for op in program.operations:
        if hasattr(op, "weight"):
            op.weight[...] = np.where(op.weight % 3 == 0, 127, -127)
    rng = np.random.default_rng(2)
    with running(program, level, tmp_path) as run:
        for extremes in ([-128], [-128, 127], [127]):
            values = {n: rng.choice(np.array(extremes, np.int8), program.tensors[n].shape) for n in program.inputs}
            assert_equal_to_reference(run, program, values, f"{level} on {extremes}")


@pytest.mark.parametrize("level", parameters(I8MM, DOTPROD, NEON))
def test_one_position_streams_its_weights(level: Level, tmp_path: Path) -> None:
    """Ends of the reduction, tails of the channels, taps, groups; and the last position of a line alone."""
    b = ProgramBuilder(seed=3)
    program = b.program([
        b.dense(b.input((1, 33)), 64), b.dense(b.input((1, 7)), 32), b.dense(b.input((1, 130)), 84),
        b.conv(b.input((1, 3, 3, 20)), 32, (3, 3)), b.conv(b.input((1, 2, 2, 32)), 64, (2, 2), groups=2),
        b.dense(b.input((5, 48)), 48),
    ])  # fmt: skip
    with running(program, level, tmp_path) as run:
        for _ in range(3):
            assert_equal_to_reference(run, program, b.random_inputs(program), str(level))


@pytest.mark.parametrize("level", parameters(DOTPROD))
def test_a_library_says_what_the_core_lacks(level: Level, tmp_path: Path) -> None:
    program = dense_program()
    with emulation.Model(build(program, "arm:dotprod", tmp_path), "cortex-a53") as model:
        with pytest.raises(TargetError) as error:
            model.run({n: np.zeros(program.tensors[n].shape, np.int8) for n in program.inputs})
    assert str(error.value) == (
        f"{tmp_path}, emulated by qemu-aarch64 -cpu cortex-a53: this CPU lacks the instruction set "
        "that the model was compiled for"
    )


@pytest.mark.parametrize("level", parameters(I8MM))
def test_arm_chooses_its_level_at_load(level: Level, tmp_path: Path) -> None:
    program = dense_program()
    values = {n: np.full(program.tensors[n].shape, 7, np.int8) for n in program.inputs}
    artifact = build(program, "arm", tmp_path)
    expected = reference.execute(program, values)
    for core, chosen in (("max", "i8mm"), ("neoverse-n1", "dotprod"), ("cortex-a53", "neon")):
        with emulation.Model(artifact, core) as model:
            found = model.run(values)
            assert all(np.array_equal(found[n], v) for n, v in expected.items())
            assert model.isa == chosen
