"""From a model to an artefact and back, through the command line and the Python API."""

from __future__ import annotations

import gc
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from command_line import CALIBRATION, DIGITS, TEST, Command

import qcompiler
from qcompiler.sim import reference
from qcompiler.sim.errors import AccuracyGateError, ArtifactError, CalibrationError, TargetError

LEAST = "x86:avx2"  # one instruction set compiles in a third of the time of all
FILES = [
    "Makefile", "layers.csv", "libmodel.a", "main.c", "manifest.json", "model.h", "model.o", "model.so", "program.qir",
    "report.html", "report.json",
]  # fmt: skip
IMAGES, LABELS = (np.load(TEST)[key] for key in ("image", "labels"))


def test_artefact_is_whole(digits: Path) -> None:
    assert sorted(os.listdir(digits)) == FILES
    assert os.listdir(digits.parent) == ["out"]
    artifact = qcompiler.open_artifact(digits)
    assert sorted(artifact.manifest.files) == [name for name in FILES if name != "manifest.json"]
    for name in artifact.manifest.files:
        artifact.path(name)
    assert [(t.name, t.dtype, t.shape) for t in artifact.manifest.inputs] == [("image", "float32", (1, 1, 8, 8))]
    assert [(t.name, t.dtype, t.shape) for t in artifact.manifest.outputs] == [("scores", "float32", (1, 10))]


def test_same_inputs_same_bytes(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From another directory, of another length, from an iterable instead of a file, at another time."""
    monkeypatch.chdir(tmp_path)
    samples = ({"image": image} for image in np.load(CALIBRATION)["image"])
    qcompiler.compile(DIGITS, calibration=samples, output="another-name")
    for name in FILES:
        assert (digits / name).read_bytes() == (tmp_path / "another-name" / name).read_bytes(), name


def test_library_equals_the_reference(digits: Path) -> None:
    program = qcompiler.open_artifact(digits).program()
    model = qcompiler.load(digits)
    for image in IMAGES[:20]:
        expected = reference.execute(program, {"image": image[None]})["scores"]
        assert np.array_equal(model.run({"image": image})["scores"], expected)


def test_accuracy_is_that_of_the_float_model(digits: Path) -> None:
    model = qcompiler.load(digits)
    session = onnxruntime.InferenceSession(DIGITS)
    right = sum(int(model.run({"image": x})["scores"].argmax() == y) for x, y in zip(IMAGES, LABELS, strict=True))
    float_right = int((session.run(None, {"image": IMAGES})[0].argmax(1) == LABELS).sum())
    assert float_right == 355
    assert right >= 354


def test_invoke_works_in_place(digits: Path) -> None:
    model = qcompiler.load(digits)
    model.inputs["image"][...] = IMAGES[0]
    model.invoke()
    first = model.outputs["scores"].copy()
    assert np.array_equal(first, model.run({"image": IMAGES[0]})["scores"])
    model.inputs["image"][...] = IMAGES[1]
    model.invoke()
    assert not np.array_equal(first, model.outputs["scores"])


def test_invoke_alone_keeps_its_memory_alive(digits: Path) -> None:
    model = qcompiler.load(digits)
    invoke, scores = model.invoke, weakref.ref(model.outputs["scores"].base)
    del model
    gc.collect()
    assert scores() is not None
    del invoke
    gc.collect()
    assert scores() is None


def test_two_models_do_not_share_buffers(digits: Path) -> None:
    one, two = qcompiler.load(digits), qcompiler.load(digits, threads=2)
    expected = one.run({"image": IMAGES[0]})["scores"]
    assert np.array_equal(two.run({"image": IMAGES[0]})["scores"], expected)
    two.run({"image": IMAGES[1]})
    assert np.array_equal(one.outputs["scores"], expected)


def test_run_mistakes(digits: Path) -> None:
    model = qcompiler.load(digits)
    with pytest.raises(KeyError, match="input 'image' is missing; the model takes 'image'"):
        model.run({"picture": IMAGES[0]})
    with pytest.raises(CalibrationError) as caught:
        model.run({"image": IMAGES[0, 0, :4]})
    assert str(caught.value) == "input 'image' has shape 4x8; the model takes 1x8x8 or 1x1x8x8"
    with pytest.raises(ValueError, match="threads must be at least 1, not 0"):
        qcompiler.load(digits, threads=0)


def test_instruction_set_that_the_cpu_lacks(digits: Path) -> None:
    code = (
        f"import qcompiler\ntry:\n    qcompiler.load({str(digits)!r})\nexcept qcompiler.QCompilerError as e: print(e)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "QCOMPILER_ISA": "pdp-11"}, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == (
        f"{digits}, compiled for x86, cannot use QCOMPILER_ISA=pdp-11: this CPU lacks it, or it was not compiled in; "
        "unset it\n",
        "",
    )


def test_a_cpu_that_lacks_every_level(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the library answers on such a CPU (codegen tests that it does), and what the user reads."""
    model = qcompiler.load(digits)
    monkeypatch.setattr(model, "_function", lambda *_: lambda: None)
    with pytest.raises(TargetError) as caught:
        model._chosen_instruction_set()
    assert str(caught.value) == (
        f"{digits}, compiled for x86, needs instructions that this CPU lacks; compile for one of those that "
        "`qcompiler targets` says run here, or for 'x86', which chooses at load"
    )


def test_compiling_again_replaces_the_artefact_and_what_is_loaded(tmp_path: Path) -> None:
    """The loader must not hand out the old library of the same path."""
    out = tmp_path / "out"
    image = np.load(CALIBRATION)["image"]
    qcompiler.compile(DIGITS, calibration=[{"image": x} for x in image], output=out, target=LEAST)
    before = qcompiler.load(out)
    first = before.run({"image": IMAGES[0]})["scores"]
    qcompiler.compile(DIGITS, calibration=[{"image": 0.5 * x} for x in image], output=out, target=LEAST)
    after = qcompiler.load(out)
    assert not np.array_equal(after.run({"image": IMAGES[0]})["scores"], first)
    assert np.array_equal(before.run({"image": IMAGES[0]})["scores"], first)
    assert os.listdir(tmp_path) == ["out"]


# ------------------------------------------------------------------------------------- command line
def test_compile_prints_a_summary(command: Command, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = command("compile", DIGITS, "--calibration", CALIBRATION, "-o", out, "--target", LEAST)
    assert done.code == 0
    summary = dict(line.split("  ", 1) for line in done.stdout.splitlines())
    assert {k: v.strip() for k, v in summary.items()}.items() >= {
        "artefact": str(out), "model": "digits (digits.onnx)", "target": LEAST,
        "input image": "float32 1x1x8x8", "output scores": "float32 1x10",
        "work": "256.32 kMAC in 13 operations, none left in float", "report": str(out / "report.html"),
    }.items()  # fmt: skip
    stages = [line.split("  ")[0] for line in done.stderr.splitlines()]
    assert stages[:5] == ["import", "canonicalise", "calibrate", "quantise", "integerise"]
    assert stages[-1] == "measure accuracy"


def test_run_prints_accuracy_and_latency(command: Command, digits: Path, tmp_path: Path) -> None:
    done = command("run", digits, "--input", TEST, "--labels", "labels", "-o", tmp_path / "scores.npz", "--profile")
    assert done.code == 0
    scores = np.load(tmp_path / "scores.npz")["scores"]
    assert scores.shape == (360, 10)
    accuracy = (scores.argmax(1) == LABELS).mean()
    assert f"accuracy  {accuracy:.4f} (360 samples, argmax of 'scores')" in done.stdout
    assert "latency   min " in done.stdout
    assert "conv2d" in done.stdout.partition("profile")[2]


def test_run_with_wrong_labels(command: Command, digits: Path) -> None:
    done = command("run", digits, "--input", TEST, "--labels", "label")
    assert (done.code, done.error) == (
        1, f"{TEST} has no array 'label'; it holds 'image', 'labels'; did you mean 'labels'?",
    )  # fmt: skip
    done = command("run", digits, "--input", TEST, "--labels", "image")
    assert done.error == f"{TEST}: labels are float32[360, 1, 8, 8]; 360 samples want as many integers"


def test_inspect(command: Command, digits: Path) -> None:
    assert "output scores   float32 1x10" in command("inspect", digits).stdout
    layers = command("inspect", digits, "--layers").stdout
    assert "Conv2d (depthwise)" in layers
    program = command("inspect", digits, "--program").stdout
    assert program.startswith("integer_program 1\nname 'model'\n")
    model = command("inspect", DIGITS).stdout
    assert "parameters     14,810" in model
    assert "nn.conv2d       5" in model


def test_targets(command: Command) -> None:
    lines = command("targets").stdout.splitlines()
    assert {line.split()[0] for line in lines[2:]} >= {"x86", "x86:avx2", "x86:avx-vnni", "x86:avx512-vnni"}


def test_quantize_writes_onnx_that_others_run(command: Command, tmp_path: Path) -> None:
    out = tmp_path / "digits.qdq.onnx"
    done = command("quantize", DIGITS, "--calibration", CALIBRATION, "-o", out)
    assert (done.code, done.stdout) == (0, f"wrote {out}\n")
    model = onnx.load(out)
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in model.graph.node}
    session = onnxruntime.InferenceSession(out)
    scores = np.concatenate([session.run(["scores"], {"image": x[None]})[0] for x in IMAGES])
    assert (scores.argmax(1) == LABELS).mean() >= 0.98
    # And our own front door takes it back, with its scales.
    done = command("compile", out, "-o", tmp_path / "again", "--target", LEAST)
    assert done.code == 0
    assert "calibrate" not in done.stderr


def test_instruments(command: Command, tmp_path: Path) -> None:
    done = command(
        "compile", DIGITS, "--calibration", CALIBRATION, "-o", tmp_path / "out", "--target", LEAST,
        "--dump-ir", tmp_path / "ir", "--time-passes", "--explain",
    )  # fmt: skip
    assert done.code == 0
    dumped = sorted(os.listdir(tmp_path / "ir"))
    assert dumped[:2] == ["000_canonicalize.after.py", "000_canonicalize.before.py"]
    assert " s  fold_batch_norm\n" in done.stderr


def test_a_text_pipeline_replaces_canonicalisation(command: Command, tmp_path: Path) -> None:
    """Without folding, the batch normalisations stay operations of their own."""
    passes = "canonicalize,layout,canonicalize"
    data = ("--calibration", CALIBRATION, "--target", LEAST)
    done = command("compile", DIGITS, *data, "-o", tmp_path / "out", "--passes", passes)
    assert done.code == 0
    plain = qcompiler.open_artifact(tmp_path / "out").report()
    assert plain["about"]["passes"] == passes
    assert plain["summary"]["operations"] > 13


# ------------------------------------------------------------------------------------ accuracy gates
@pytest.mark.parametrize(
    ("gate", "message"),
    [
        (("--min-sqnr", "90"), "output 'scores' has an SQNR of {sqnr:.2f} dB, below the demanded 90 dB; {look}"),
        (("--min-sqnr", "20", "--min-agreement", "0.9"), None),
    ],
)
def test_gates(command: Command, tmp_path: Path, gate: tuple[str, ...], message: str | None) -> None:
    out = tmp_path / "out"
    done = command("compile", DIGITS, "--calibration", CALIBRATION, "-o", out, "--target", LEAST, *gate)
    assert (out / "report.html").exists(), "the report says why the gate failed"
    if message is None:
        assert done.code == 0
    else:
        sqnr = json.loads((out / "report.json").read_text())["accuracy"]["outputs_sqnr_db"]["scores"]
        look = f"{out}/report.html shows which layer loses it"
        assert (done.code, done.error) == (3, message.format(sqnr=sqnr, look=look))


def test_agreement_gate(tmp_path: Path) -> None:
    """Through the API a demand that nothing meets."""
    narrow = [{"image": 0.01 * x} for x in np.load(CALIBRATION)["image"][:20]]
    out = tmp_path / "out"
    with pytest.raises(AccuracyGateError) as caught:
        qcompiler.compile(DIGITS, calibration=narrow, output=out, target=LEAST, min_agreement=1.01)
    agreement = qcompiler.open_artifact(out).report()["accuracy"]["agreement"]
    assert str(caught.value) == (
        f"output 'scores' agrees with the float model on {agreement:.4f} of the samples, below the demanded 1.01; "
        f"{out}/report.html shows which layer loses it"
    )


# ------------------------------------------------------------------------------- the worst of moments
def _start(out: Path) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-m", "qcompiler.cli", "compile", str(DIGITS), "--calibration", str(CALIBRATION)]
    return subprocess.Popen([*arguments, "-o", str(out)], stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_killed_half_way(tmp_path: Path, how: signal.Signals) -> None:
    out = tmp_path / "out"
    running = _start(out)
    assert running.stderr is not None
    for line in running.stderr:
        if line.startswith("integerise"):
            break
    running.send_signal(how)
    running.wait(timeout=60)
    running.stderr.close()
    assert running.returncode != 0
    assert not out.exists()
    if how != signal.SIGKILL:
        assert os.listdir(tmp_path) == []
    qcompiler.compile(DIGITS, calibration=CALIBRATION, output=out, target=LEAST)
    assert os.listdir(tmp_path) == ["out"]


def test_full_disk(command: Command, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", disk]).returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        done = command("compile", DIGITS, "--calibration", CALIBRATION, "-o", disk / "out")
        assert (done.code, done.error) == (
            1,
            f"cannot write {disk}/out: the disk is full; nothing was left behind",
        )
        assert os.listdir(disk) == []
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_truncated_artefact_says_so(command: Command, digits: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(digits, out)
    whole = (out / "model.so").read_bytes()
    (out / "model.so").write_bytes(whole[: len(whole) // 2])
    done = command("run", out, "--input", TEST)
    assert (done.code, done.error) == (
        1,
        f"{out}/model.so is truncated or altered: {len(whole) // 2} bytes, the manifest says {len(whole)}; "
        "compile the model again",
    )
    (out / "program.qir").unlink()
    with pytest.raises(ArtifactError, match="program.qir cannot be read"):
        qcompiler.open_artifact(out).program()


def test_loading_is_light(digits: Path) -> None:
    """A process that only runs a model imports a handful of modules and reads the manifest, not the library."""
    code = f"""
import numpy, sys
before = set(sys.modules)
import qcompiler
model = qcompiler.load({str(digits)!r})
model.invoke()
print(*sorted(m for m in set(sys.modules) - before if not m.startswith(("_", "json."))))
read = lambda: int(open("/proc/self/io").readline().split()[1])
start = read()
qcompiler.load({str(digits)!r})
print(read() - start)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules, read = done.stdout.splitlines()
    # Each further one costs every start of a program that uses a model. "copy" is what dataclasses want.
    assert modules.split() == [
        "copy", "dataclasses", "json", "qcompiler", "qcompiler.artifact", "qcompiler.codegen", "qcompiler.codegen.host",
        "qcompiler.library", "qcompiler.sim", "qcompiler.sim.errors", "qcompiler.sim.tensor",
    ]  # fmt: skip
    manifest = (digits / "manifest.json").stat().st_size
    assert manifest <= int(read) < manifest + 8192 < (digits / "model.so").stat().st_size


def test_a_library_that_was_replaced_is_loaded_anew(digits: Path, tmp_path: Path) -> None:
    """The dynamic loader knows libraries by their path; a compiled model must be the one that is there now."""
    out = tmp_path / "out"
    shutil.copytree(digits, out)
    first, again = qcompiler.load(out), qcompiler.load(out)
    assert first._library._handle == again._library._handle
    shutil.rmtree(out)
    shutil.copytree(digits, out)
    assert qcompiler.load(out)._library._handle != first._library._handle


def test_memory_of_calibration_does_not_grow(tmp_path: Path) -> None:
    """A generator of 3,000 samples of 256 bytes, calibrated without being kept."""

    def samples(count: int) -> Iterator[dict[str, np.ndarray]]:
        return ({"image": np.roll(IMAGES[i % 360], i % 8, axis=-1)} for i in range(count))

    qcompiler.quantize(DIGITS, calibration=samples(300), output=tmp_path / "few.onnx")  # what is loaded and kept once
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    qcompiler.quantize(DIGITS, calibration=samples(3000), output=tmp_path / "many.onnx")
    assert time.process_time() - started < 60
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 20_000  # KiB; the tensors of 3,000 samples would be more
