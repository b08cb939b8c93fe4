"""`--weight-bits` and `--activation-bits`: an accelerator's own, an experiment on CPUs, and every mistake."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from command_line import CALIBRATION, DIGITS, TEST, Command

import qcompiler
from qcompiler.npu import backend
from qcompiler.sim.widths import Widths, misfit

NARROW = ("--weight-bits", 4, "--activation-bits", 6)
SAID = "4-bit weights, 6-bit activations"


@pytest.fixture(scope="module")
def qdq(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example with 4-bit weights and 6-bit activations as QDQ ONNX."""
    path = tmp_path_factory.mktemp("narrow") / "narrow.onnx"
    qcompiler.quantize(DIGITS, calibration=CALIBRATION, output=path, weight_bits=4, activation_bits=6)
    return path


def test_on_a_cpu(command: Command, tmp_path: Path) -> None:
    """Every sample that compile checks equals the reference; accuracy stays what few bits can give."""
    out = tmp_path / "out"
    done = command("compile", DIGITS, "--calibration", CALIBRATION, *NARROW, "--target", "x86:avx2", "-o", out)
    assert done.code == 0
    artifact = qcompiler.open_artifact(out)
    assert (artifact.manifest.build["weight_bits"], artifact.manifest.build["activation_bits"]) == (4, 6)
    assert artifact.report()["accuracy"]["samples_equal_to_reference"] > 0
    assert misfit(artifact.program(), Widths(4, 6)) is None
    done = command("run", out, "--input", TEST, "--labels", "labels")
    accuracy = next(float(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("accuracy"))
    assert accuracy >= 0.97


def test_a_quantised_model_keeps_its_scales(command: Command, qdq: Path, tmp_path: Path) -> None:
    """What fits is compiled; what does not is refused, and so is quantising again."""
    assert command("compile", qdq, *NARROW, "--target", "x86:avx2", "-o", tmp_path / "out").code == 0
    done = command("compile", qdq, "--weight-bits", 3, "-o", tmp_path / "less")
    assert (done.code, done.error) == (
        1,
        "the weights of 'stem.relu' do not fit 3 bits: the model carries its own scales, which were not made for "
        "3-bit weights, 8-bit activations; give the float model with --calibration",
    )
    done = command("quantize", qdq, *NARROW, "--calibration", CALIBRATION, "-o", tmp_path / "again.onnx")
    assert (done.code, done.error) == (
        2, "the model carries its own scales, which --weight-bits and --activation-bits cannot change"
    )  # fmt: skip
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


def test_an_accelerator_has_its_own(command: Command, tmp_path: Path) -> None:
    done = command(
        "compile", DIGITS, "--calibration", CALIBRATION, *NARROW, "--target", "npu:edge-16x16", "-o", tmp_path / "out"
    )
    assert (done.code, done.error) == (
        1,
        "npu:edge-16x16 takes 8-bit weights, 8-bit activations; leave --weight-bits and --activation-bits out, or "
        "change matrix.weight_bits and matrix.activation_bits of the machine",
    )
    assert not list(tmp_path.iterdir())
    assert backend("npu:edge-16x16").widths == Widths(8, 8)


def test_widths_that_do_not_exist(command: Command, tmp_path: Path) -> None:
    done = command("compile", DIGITS, "--weight-bits", 9, "-o", tmp_path / "out")
    assert done.code == 2 and "Invalid value for '--weight-bits'" in done.stderr
    with pytest.raises(qcompiler.QCompilerError) as raised:
        qcompiler.compile(DIGITS, calibration=CALIBRATION, output=tmp_path / "out", activation_bits=3)
    assert str(raised.value) == "activation_bits is 3; it may be 4 to 8"
    assert not list(tmp_path.iterdir())


def test_the_default_is_eight(tmp_path: Path) -> None:
    """Asking for 8 changes nothing."""
    for name, bits in (("plain", None), ("eight", 8)):
        qcompiler.quantize(DIGITS, calibration=CALIBRATION, output=tmp_path / name, weight_bits=bits)
    assert (tmp_path / "plain").read_bytes() == (tmp_path / "eight").read_bytes()
    qcompiler.quantize(DIGITS, calibration=CALIBRATION, output=tmp_path / "four", weight_bits=4)
    assert (tmp_path / "plain").read_bytes() != (tmp_path / "four").read_bytes()


def test_calibration_from_a_generator(tmp_path: Path) -> None:
    """Samples that can be read once only are good for both passes over them."""
    with np.load(CALIBRATION) as data:
        images = data["image"]
    qcompiler.quantize(
        DIGITS, calibration=({"image": x} for x in images), output=tmp_path / "once", weight_bits=4, activation_bits=6
    )
    qcompiler.quantize(DIGITS, calibration=CALIBRATION, output=tmp_path / "file", weight_bits=4, activation_bits=6)
    assert (tmp_path / "once").read_bytes() == (tmp_path / "file").read_bytes()
