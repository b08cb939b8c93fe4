"""What the inner loops are made of, and how many instructions a multiply-accumulate takes, counted by qemu."""

from __future__ import annotations

import dataclasses
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from mcu_targets import artifact_of, targets
from program_builder import ProgramBuilder

from qcompiler import microcontroller
from qcompiler.sim import reference
from qcompiler.sim.integer_program import IntegerProgram


def layers() -> tuple[IntegerProgram, list[str]]:
    """Dense work with 32 channels and more, clamped by int8 alone as in a network; and what each is."""
    b = ProgramBuilder(seed=2)
    wide = b.requantize
    b.requantize = lambda *fields: dataclasses.replace(wide(*fields), minimum=-128, maximum=127)  # type: ignore[method-assign]
    outputs = [
        b.conv(b.input((1, 6, 6, 32)), 32, (3, 3), padding=(1, 1, 1, 1)),
        b.conv(b.input((1, 6, 6, 64)), 64),
        b.conv(b.input((1, 6, 6, 32)), 64),
        b.conv(b.input((1, 6, 6, 32)), 32),
        b.dense(b.input((1, 640)), 128),
        b.dense(b.input((1, 128)), 128),
        b.dense(b.input((1, 64)), 64),
        b.dense(b.input((1, 32)), 32),
    ]
    names = ["3x3 of 32", "1x1 of 64", "1x1 of 32 to 64", "1x1 of 32"]
    return b.program(outputs), [*names, *(f"one row of {k}" for k in (640, 128, 64, 32))]


def _jump(line: str) -> int | None:
    """Where a branch (or the end of a low-overhead loop) goes."""
    found = re.match(r"(?:b\S*|le lr,) ([0-9a-f]+) <", line)
    return int(found[1], 16) if found else None


def inner_loops(path: Path, multiply: str) -> list[list[str]]:
    """The innermost loops of an object file that hold the instruction, each up to the branch back to its start."""
    command = ["arm-none-eabi-objdump", "-d", "--no-show-raw-insn", "-m", "armv8.1-m.main", "-M", "force-thumb"]
    text = subprocess.run([*command, str(path)], check=True, capture_output=True, text=True).stdout
    found = []
    for block in text.split("\n\n"):
        code = [(int(m[1], 16), m[2].replace("\t", " ")) for m in re.finditer(r"^ *([0-9a-f]+):\t(.+)$", block, re.M)]
        back = [(to, at) for at, line in code if (to := _jump(line)) is not None and to <= at]
        for first, last in back:
            inside = [other for other in back if first <= other[0] and other[1] <= last]
            body = [line for at, line in code if first <= at <= last]
            if len(inside) == 1 and any(line.startswith(multiply) for line in body):
                found.append(body)
    return found


@pytest.mark.parametrize("target", targets("cortex-m4", "cortex-m7", "cortex-m33"))
def test_hot_loops_are_smlad_without_spills(target: str, tmp_path: Path) -> None:
    artifact = artifact_of(layers()[0], target, tmp_path / "out")
    loops = inner_loops(artifact.path("model.o"), "smlad")
    products = [2 * sum(line.startswith("smlad") for line in body) for body in loops]
    # Two positions and two channels, written twice; one position and four channels; those behind any epilogue.
    shares = sorted(len(body) / count for body, count in zip(loops, products, strict=True))
    assert shares == [26 / 32, 26 / 32, 58 / 64, 40 / 32, 40 / 32]
    for body in loops:
        assert not any("[sp" in line or line.startswith(("str", "push", "pop")) for line in body), "a spill"


@pytest.mark.parametrize("target", targets("cortex-m55"))
def test_helium_loops(target: str, tmp_path: Path) -> None:
    artifact = artifact_of(layers()[0], target, tmp_path / "out")
    (body,) = inner_loops(artifact.path("model.o"), "vmlava.s8")
    products = 16 * sum(line.startswith("vmlava.s8") for line in body)
    assert products == 64 and len(body) <= 0.25 * products
    assert not any("[sp" in line for line in body), "a spill"


LIMITS = {
    "3x3 of 32": 1.02, "1x1 of 64": 1.0, "1x1 of 32 to 64": 1.1, "1x1 of 32": 1.15, "one row of 640": 0.95,
    "one row of 128": 1.0, "one row of 64": 1.1, "one row of 32": 1.3,
}  # fmt: skip
"""Instructions a multiply-accumulate of whole layers, gathering and requantising included."""


@pytest.mark.parametrize("target", targets("cortex-m4", "cortex-m7", "cortex-m33"))
def test_instructions_of_a_multiply_accumulate(target: str, tmp_path: Path) -> None:
    program, names = layers()
    artifact = artifact_of(program, target, tmp_path / "out")
    sample = ProgramBuilder(seed=5).random_inputs(program)
    with microcontroller.Model(artifact, count=True) as model:
        found = model.run(sample)
    for name, value in reference.execute(program, sample).items():
        assert np.array_equal(found[name], value)
    for name, op, count in zip(names, program.operations, model.steps, strict=True):
        share = count / program.macs(op)
        print(f"{target}, {name}: {share:.3f} instructions a multiply-accumulate")
        assert 0.75 < share <= LIMITS[name], name
