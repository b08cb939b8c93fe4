"""Micro-controllers from the command line: the bundled example on every core, limits, and what is said otherwise."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from command_line import CALIBRATION, DIGITS, TEST, Command
from mcu_targets import targets

import qcompiler
from qcompiler import microcontroller
from qcompiler.codegen.mcu.target import MCU_TARGETS
from qcompiler.progress import Progress
from qcompiler.sim import reference
from qcompiler.sim.errors import ArtifactError, TargetError


def digits(target: str) -> tuple[object, ...]:
    return (
        "compile", DIGITS, "--calibration", CALIBRATION, "--target", target, "-o", "out"
    )  # fmt: skip


@pytest.fixture(autouse=True)
def _in_a_clean_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("target", targets())
def test_digits_from_model_to_emulated_outputs(target: str, command: Command) -> None:
    """Compile, run on qemu's board, and hold every score equal to the x86 library's reference run."""
    out, scores = Path("out"), Path("scores.npz")
    done = command(*digits(target))
    assert done.code == 0, done.stderr
    assert "equal to the reference on 8 samples" in done.stdout
    done = command("run", out, "--input", TEST, "--labels", "labels", "-o", scores)
    assert done.code == 0, done.stderr
    assert "accuracy  0.9889 (360 samples" in done.stdout
    emulated = (
        f"none: emulated by qemu-system-arm -M {board.machine}" if (board := MCU_TARGETS[target].board) else "none:"
    )
    assert emulated in done.stdout
    program, data = qcompiler.open_artifact(out).program(), np.load(TEST)
    for i in range(0, 360, 24):
        wanted = reference.execute(program, {"image": data["image"][i].reshape(1, 1, 8, 8)})["scores"]
        assert np.array_equal(np.load(scores)["scores"][i], wanted[0])
    sizes = json.loads((out / "report.json").read_text())["sizes"]
    assert sizes["flash"] == sizes["code"] + sizes["constants"]
    assert sizes["arena"] <= 2304 and sizes["code"] < 12 * 1024 and sizes["constants"] < 18 * 1024


@pytest.mark.parametrize("target", targets("c99", "cortex-m4"))
def test_the_example_builds_from_its_makefile_and_runs(target: str, command: Command) -> None:
    out = Path("out")
    assert command(*digits(target)).code == 0
    done = subprocess.run(["make", "-s", "-C", out, "run"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    artifact = qcompiler.open_artifact(out)
    with pytest.raises(ArtifactError) as error:
        qcompiler.load(out)
    assert str(error.value) == (
        f"out was compiled for {target}: C source and a static library, which Python does not load; `qcompiler run out "
        "--input DATA` runs it"
    )
    with microcontroller.Model(artifact) as model:
        wanted = model.run({"image": np.zeros((1, 1, 8, 8), np.float32)})["scores"]
    printed = (done.stdout + done.stderr).strip().splitlines()[-1]
    assert bytes.fromhex(printed) == wanted.tobytes()[:32]
    again = qcompiler.compile(DIGITS, calibration=CALIBRATION, target=target, output="again")
    assert again.manifest.files == artifact.manifest.files, "the same inputs should give the same bytes"


def test_limits_name_the_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_: None)  # whatever is installed: the code is not counted then

    def refused(**limit: int) -> str:
        with pytest.raises(TargetError) as error:
            qcompiler.compile(
                DIGITS, calibration=CALIBRATION, target="cortex-m4", output=tmp_path / "out",
                **limit,
            )  # fmt: skip
        assert os.listdir(tmp_path) == [], "something was left behind"
        return str(error.value)

    assert refused(ram_limit=2048) == (
        "the model needs 2,543 bytes of RAM on cortex-m4 (2,247 of working memory, 256 of inputs, 40 of outputs), 495 "
        "more than --ram-limit 2,048; the arena is fullest in conv 'residual.relu' with output 1x4x4x32, 2,240 bytes "
        "alive"
    )
    assert refused(flash_limit=8192) == (
        "the model needs 16,083 bytes of flash on cortex-m4 (16,083 of weights and tables, code not counted: no "
        "compiler), 7,891 more than --flash-limit 8,192; most of it is conv 'residual.relu' with 9,216 bytes of weights"
    )


@pytest.mark.parametrize(
    "arguments,message,code",
    [
        (("cortex-m5",), "unknown target 'cortex-m5'; `qcompiler targets` lists what there is; did you mean "
         "'cortex-m55' or 'cortex-m7' or 'cortex-m4'?", 1),
        (("x86", "--ram-limit", "64KiB"), "--flash-limit and --ram-limit are for micro-controllers (cortex-m4, "
         "cortex-m7, cortex-m33, cortex-m55, c99), not for x86", 1),
        (("cortex-m4", "--ram-limit", "64kb!"), "'64kb!' should be a number of bytes: 65536, 64KiB or 1MiB", 2),
    ],
)  # fmt: skip
def test_mistakes(arguments: tuple[str, ...], message: str, code: int, command: Command, tmp_path: Path) -> None:
    target, *options = arguments
    done = command(*digits(target), *options)
    assert done.code == code
    assert message in " ".join(done.stderr.split())
    assert os.listdir(tmp_path) == []


def test_without_a_compiler_the_source_is_the_product(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_: None)
    notes: list[str] = []

    class Notes(Progress):
        def note(self, text: str) -> None:
            notes.append(text)

    artifact = qcompiler.compile(
        DIGITS, calibration=CALIBRATION, target="cortex-m4", output=tmp_path / "out",
        progress=Notes(),
    )  # fmt: skip
    assert notes == [
        "cortex-m4: only the C source and its header were written; for model.o and libmodel.a, arm-none-eabi-gcc is "
        "not on the PATH (on Debian: apt-get install gcc-arm-none-eabi libnewlib-arm-none-eabi)"
    ]
    assert {"model.c", "model.h", "qc_conv.c", "main.c", "Makefile"} <= set(artifact.manifest.files)
    assert "libmodel.a" not in artifact.manifest.files
    with pytest.raises(TargetError) as error:
        microcontroller.Model(artifact)
    assert str(error.value) == (
        f"{tmp_path / 'out'} was compiled for cortex-m4; running it here needs qemu-system-arm, which is not on "
        "the PATH (on Debian: apt-get install gcc-arm-none-eabi libnewlib-arm-none-eabi qemu-system-arm)"
    )
