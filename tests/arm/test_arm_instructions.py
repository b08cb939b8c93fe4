"""What the dense kernels are made of, read back from the object file: their multiplications, their cost, no spills."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from arm_targets import (
    DOTPROD,
    I8MM,
    NEON,
    NEON32,
    Level,
    build,
    functions,
    innermost_loop,
    parameters,
    stack_accesses,
)
from program_builder import ProgramBuilder

from qcompiler.codegen.cpu.target import CPU_TARGETS, cpu_target
from qcompiler.sim.integer_program import IntegerProgram

# Per level: the instruction that ends a multiplication, products of one, most instructions per product.
INSTRUCTION = {
    I8MM: ("smmla", 32, 0.05),
    DOTPROD: ("sdot", 16, 0.0875),
    NEON: ("sadalp", 16, 0.25),
    NEON32: ("vpadal", 16, 0.36),  # sixteen registers leave small tiles
}
LAYERS = {
    "1x1, 64 to 64": ((1, 14, 14, 64), 64, (1, 1)),
    "3x3, 32 to 64 on 7x7": ((1, 7, 7, 32), 64, (3, 3)),
    "1x1, 32 to 32, two runs": ((1, 8, 8, 32), 32, (1, 1)),
    "1x1, 144 to 24": ((1, 14, 14, 144), 24, (1, 1)),
    "1x1, 96 to 160 on 7x7": ((1, 7, 7, 96), 160, (1, 1)),
}
FEW = {  # fewer than 32 input channels or 16 output channels: no spills either, but no limit was asked for
    "3x3, 3 to 16": ((1, 16, 16, 3), 16, (3, 3)),
    "1x1, 8 to 16": ((1, 12, 12, 8), 16, (1, 1)),
    "1x1, 33 to 8": ((1, 5, 5, 33), 8, (1, 1)),
    "1x1, 64 to 5": ((1, 7, 7, 64), 5, (1, 1)),
    "5x5, 1 to 12": ((1, 12, 12, 1), 12, (5, 5)),
}


def layer(shape: tuple[int, ...], channels: int, kernel: tuple[int, int]) -> IntegerProgram:
    b = ProgramBuilder()
    padding = (kernel[0] // 2, kernel[1] // 2) * 2
    return b.program([b.conv(b.input(shape), channels, kernel, padding=padding)])


def dense_loop(program: IntegerProgram, level: Level, directory: Path) -> tuple[list[str], int]:
    """The innermost loop of the program's one dense kernel, and how many multiplications it holds."""
    build(program, level.target, directory)
    (code,) = (c for n, c in functions(directory / "model.o", level.tools).items() if n.endswith("_conv2d"))
    loop = innermost_loop(code, INSTRUCTION[level][0])
    return loop, sum(line.startswith(INSTRUCTION[level][0]) for line in loop)


@pytest.mark.parametrize("level", parameters())
@pytest.mark.parametrize("name", LAYERS)
def test_instructions_per_mac(name: str, level: Level, tmp_path: Path) -> None:
    loop, multiplications = dense_loop(layer(*LAYERS[name]), level, tmp_path)
    _, products, limit = INSTRUCTION[level]
    macs = multiplications * products
    each = len(loop) / macs
    print(f"{level.target:12} {name:26} {len(loop):3} instructions, {macs:4} MACs: {each:.4f} per MAC")
    assert each <= limit, loop
    assert not stack_accesses(loop)


# One position uses each weight once: half of SMMLA's products are nobody's, and it is no better than SDOT.
ALONE = {I8MM: 0.09, DOTPROD: 0.0875, NEON: 0.25}


@pytest.mark.parametrize("level", parameters(*ALONE))
def test_one_position_reads_weights_by_four_registers(level: Level, tmp_path: Path) -> None:
    b = ProgramBuilder()
    build(b.program([b.dense(b.input((1, 640)), 128)]), level.target, tmp_path)
    (code,) = (c for n, c in functions(tmp_path / "model.o", level.tools).items() if n.endswith("_dense"))
    loop = innermost_loop(code, INSTRUCTION[level][0])
    products = 16 * sum(line.startswith(INSTRUCTION[level][0]) for line in loop)
    print(f"{level.target:12} one row of 640 {len(loop):3} instructions, {products:4} MACs: "
          f"{len(loop) / products:.4f} per MAC")  # fmt: skip
    assert len(loop) <= ALONE[level] * products, loop
    assert sum(line.startswith("ld1 ") for line in loop) == products / 64
    assert not stack_accesses(loop)


@pytest.mark.parametrize("level", parameters(I8MM, DOTPROD, NEON))
def test_two_activations_cost_what_constant_weights_do(level: Level, tmp_path: Path) -> None:
    b = ProgramBuilder()
    build(b.program([b.matmul(b.input((4, 32, 64)), b.input((4, 64, 32)))]), level.target, tmp_path)
    (code,) = (c for n, c in functions(tmp_path / "model.o", level.tools).items() if n.endswith("_matmul"))
    multiply, products, limit = INSTRUCTION[level]
    loop = innermost_loop(code, multiply)
    each = len(loop) / (products * sum(line.startswith(multiply) for line in loop))
    print(f"{level.target:12} two activations {len(loop):3} instructions: {each:.4f} per MAC")
    assert each <= limit, loop
    assert not stack_accesses(loop)


@pytest.mark.parametrize("level", parameters())
@pytest.mark.parametrize("name", FEW)
def test_few_channels_spill_nothing(name: str, level: Level, tmp_path: Path) -> None:
    loop, multiplications = dense_loop(layer(*FEW[name]), level, tmp_path)
    assert multiplications >= 4
    assert not stack_accesses(loop)


@pytest.mark.parametrize("level", parameters(DOTPROD))
def test_sdot_takes_its_activations_by_element(level: Level, tmp_path: Path) -> None:
    loop, multiplications = dense_loop(dense_program_64(), level, tmp_path)
    assert sum(bool(re.match(r"sdot .*\.4b\[[0-3]\]", line)) for line in loop) == multiplications


def dense_program_64() -> IntegerProgram:
    return layer((1, 14, 14, 64), 64, (1, 1))


def test_cores_have_the_level_that_gcc_says() -> None:
    cores = {n.removeprefix("arm:"): t for n, t in CPU_TARGETS.items() if re.match(r"arm:(cortex|neoverse|apple)-", n)}
    assert len(cores) == 10
    macros = {"i8mm": "__ARM_FEATURE_MATMUL_INT8", "dotprod": "__ARM_FEATURE_DOTPROD"}
    compiler = cpu_target("arm").toolchain.compiler
    for core, target in cores.items():
        (level,) = target.levels
        if core == "apple-m1":  # unknown to GCC 12: Armv8.5-A without I8MM, by LLVM's table
            assert level.name == "dotprod"
            continue
        try:
            result = subprocess.run(
                [compiler, f"-mcpu={core}", "-dM", "-E", "-x", "c", "/dev/null"],
                check=True,
                capture_output=True,
                text=True,
            )
        except FileNotFoundError:
            pytest.skip(f"needs {compiler}")
        best = next((name for name, macro in macros.items() if f"{macro} 1" in result.stdout), "neon")
        assert level.name == best, core
