"""ARM from the command line: compile, run emulated, the example, and what is said when something is missing."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from arm_targets import DOTPROD, NEON, NEON32, Level, parameters
from command_line import CALIBRATION, DIGITS, TEST, Command, Done

import qcompiler
from qcompiler import emulation
from qcompiler.codegen import host, toolchain
from qcompiler.sim.errors import ArtifactError, TargetError


@pytest.fixture(autouse=True)
def _in_a_clean_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def compile_digits(command: Command, target: str) -> Done:
    return command("compile", DIGITS, "--calibration", CALIBRATION, "--target", target, "-o", "out")


@pytest.mark.parametrize("level", parameters(NEON, NEON32))
def test_digits_from_model_to_emulated_outputs(level: Level, command: Command) -> None:
    target = "arm:cortex-a53" if level is NEON else level.target
    done = compile_digits(command, target)
    assert done.code == 0, done.stderr
    assert "equal to the reference on" in done.stdout
    done = command("run", "out", "--input", TEST, "--labels", "labels")
    assert done.code == 0, done.stderr
    assert "accuracy  0.9889 (360 samples" in done.stdout
    emulator = "qemu-aarch64 -cpu max" if level is NEON else "qemu-arm -cpu cortex-a15"
    assert f"none: emulated by {emulator}, which says nothing of it" in done.stdout


@pytest.mark.parametrize("level", parameters(DOTPROD, NEON32))
def test_the_example_builds_from_its_makefile_and_runs(level: Level, command: Command) -> None:
    assert compile_digits(command, level.target).code == 0
    assert run_example() == scores_of_zeros()


def run_example() -> bytes:
    done = subprocess.run(["make", "-s", "-C", "out", "run"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return bytes(int(byte, 16) for byte in done.stdout.split())


def scores_of_zeros() -> bytes:
    with emulation.Model(qcompiler.open_artifact("out")) as model:
        return model.run({"image": np.zeros((1, 1, 8, 8), np.float32)})["scores"].tobytes()[:32]


@pytest.mark.parametrize("level", parameters(NEON32))
def test_without_its_compiler_a_target_s_library_comes_in_parts(
    level: Level, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as without:
        without.setattr(toolchain.shutil, "which", lambda name: None)
        done = compile_digits(command, level.target)
    assert done.code == 0, done.stderr
    assert " ".join(done.stderr.split()).count(
        "armv7:neon: only the kernels' object files, model.h and the C sources around them were written; "
        "arm-linux-gnueabihf-gcc is not on the PATH. Install it (on Debian: apt-get install gcc-arm-linux-gnueabihf "
        "libc6-dev-armhf-cross qemu-user), then compile again, or run `make library` in the output"
    ), done.stderr
    out = Path("out")
    assert {"kernels_0.o", "driver.c", "constants.bin", "model.h", "Makefile"} <= {p.name for p in out.iterdir()}
    assert not (out / "libmodel.a").exists()
    done = subprocess.run(["make", "-s", "-C", out, "library"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (out / "model.so").exists()
    made = run_example()
    shutil.rmtree(out)
    assert compile_digits(command, level.target).code == 0
    assert made == scores_of_zeros()


def test_an_unknown_core_gets_near_names(command: Command) -> None:
    done = compile_digits(command, "arm:cortex-a77")
    assert done.code != 0 and not Path("out").exists()
    said = " ".join(done.stderr.split())
    assert "unknown target 'arm:cortex-a77'; `qcompiler targets` lists what there is" in said
    assert "did you mean" in said and "arm:cortex-a7" in said


@pytest.mark.parametrize("level", parameters(NEON32))
def test_an_arm_artefact_is_not_loaded_elsewhere(
    level: Level, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert compile_digits(command, level.target).code == 0
    with pytest.raises(ArtifactError) as error:
        qcompiler.load("out")
    assert str(error.value) == (
        f"out was compiled for armv7l (target armv7:neon); this machine is {platform.machine()}. Compile with a target "
        "of this machine (`qcompiler targets`) to run it here, or emulate it: `qcompiler run out --input DATA`"
    )
    monkeypatch.setattr(emulation.shutil, "which", lambda name: None)
    with pytest.raises(TargetError) as missing:
        emulation.Model(qcompiler.open_artifact("out"))
    assert str(missing.value) == (
        f"out was compiled for armv7l (target armv7:neon); running it on {platform.machine()} needs qemu-arm, which is "
        "not on the PATH (on Debian: apt-get install gcc-arm-linux-gnueabihf libc6-dev-armhf-cross qemu-user)"
    )


@pytest.mark.parametrize(
    "machine, pointer_bits, architecture",
    [
        ("aarch64", 64, "aarch64"), ("aarch64", 32, "armv7l"), ("armv8l", 32, "armv7l"), ("armv7l", 32, "armv7l"),
        ("aarch64_be", 64, "aarch64_be"), ("x86_64", 64, "x86_64"), ("x86_64", 32, "i686"),
    ],
)  # fmt: skip
def test_a_process_loads_what_it_has_the_word_size_and_byte_order_for(
    machine: str, pointer_bits: int, architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A 32-bit Python on a 64-bit kernel loads 32-bit libraries; a big-endian machine none of ours."""
    monkeypatch.setattr(host.platform, "machine", lambda: machine)
    monkeypatch.setattr(host, "sys", SimpleNamespace(maxsize=(1 << (pointer_bits - 1)) - 1))
    assert host.host_architecture() == architecture
