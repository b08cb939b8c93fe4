"""docs/c.md does what it says: its program compiles, links both ways, and agrees with Python to the last digit."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from command_line import TEST

import qcompiler

GUIDE = (Path(__file__).resolve().parents[2] / "docs" / "c.md").read_text(encoding="utf-8")
PROGRAM = re.findall(r"```c\n(.*?)```", GUIDE, re.DOTALL)[0]
COMMANDS = [line for line in GUIDE.splitlines() if line.startswith("gcc ")]


def test_the_guide_has_a_program_and_two_ways_to_link() -> None:
    assert "model_run" in PROGRAM
    assert len(COMMANDS) == 2


@pytest.mark.parametrize("command", COMMANDS, ids=["static", "shared"])
def test_the_program_of_the_guide(tmp_path: Path, digits: Path, command: str) -> None:
    shutil.copytree(digits, tmp_path / "digits")
    (tmp_path / "classify.c").write_text(PROGRAM)
    subprocess.run(f"{command} -Wall -Wextra -Werror", shell=True, cwd=tmp_path, check=True)
    model = qcompiler.load(digits)
    for image in np.load(TEST)["image"][:5]:
        text = " ".join(f"{v:.9g}" for v in image.ravel())
        done = subprocess.run([tmp_path / "classify"], input=text, capture_output=True, text=True, check=True)
        scores = model.run({"image": image})["scores"][0]
        assert done.stdout == f"{scores.argmax()} {scores.max():.6f} ({model.isa})\n"


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_the_header_is_cpp_too(tmp_path: Path, digits: Path) -> None:
    (tmp_path / "main.cpp").write_text('#include "model.h"\nint main() { return model_isa() == nullptr; }\n')
    command = [
        "g++",
        "-std=c++11",
        "-Wall",
        "-Werror",
        f"-I{digits}",
        "main.cpp",
        str(digits / "libmodel.a"),
        "-o",
        "a",
    ]
    subprocess.run([*command, "-pthread", "-lm"], cwd=tmp_path, check=True)
    subprocess.run([tmp_path / "a"], check=True)


def test_products_need_nothing_of_ours(digits: Path) -> None:
    listed = subprocess.run(["ldd", digits / "model.so"], capture_output=True, text=True, check=True).stdout
    names = {line.split()[0].split("/")[-1].partition(".so")[0] for line in listed.splitlines()}
    assert names <= {"linux-vdso", "libm", "libc", "libpthread", "ld-linux-x86-64"}
    symbols = subprocess.run(["nm", "-D", digits / "model.so"], capture_output=True, text=True, check=True).stdout
    exported = {line.split()[-1] for line in symbols.splitlines() if " T " in line}
    assert exported == {
        f"model_{n}" for n in ("run", "set_threads", "isa", "error", "profile", "step_count", "step_name")
    }
    assert "TVM" not in symbols
