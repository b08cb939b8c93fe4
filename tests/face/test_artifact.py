"""Opening artefacts: whole ones, and every way in which one can be broken or not ours."""

from __future__ import annotations

import hashlib
import json
import platform
from pathlib import Path

import pytest

from qcompiler.artifact import Artifact, Manifest, describe_files, is_artifact, open_artifact
from qcompiler.library import Model
from qcompiler.sim.errors import ArtifactError
from qcompiler.sim.integer_program import Tensor

MANIFEST = Manifest(
    name="model",
    target="x86",
    architecture=platform.machine(),
    inputs=(Tensor("x", (1, 4), "float32"),),
    outputs=(Tensor("y", (1, 2), "int8", 0.5, -3),),
    workspace_bytes=64,
    program_sha256="0" * 64,
)


@pytest.fixture
def artefact(tmp_path: Path) -> Path:
    """A directory with a manifest and one file, model.so, that no loader would take."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "model.so").write_bytes(b"not a library")
    manifest = Manifest(**{**MANIFEST.__dict__, "files": describe_files(out)})
    (out / "manifest.json").write_text(manifest.to_json())
    return out


def _edit(artefact: Path, **changes: object) -> None:
    path = artefact / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _message(directory: Path, verify: bool = False) -> str:
    with pytest.raises(ArtifactError) as caught:
        Model(open_artifact(directory), verify=verify)
    return str(caught.value)


def test_manifest_reads_back_equal(artefact: Path) -> None:
    opened = open_artifact(artefact)
    assert opened == Artifact(artefact, opened.manifest)
    assert opened.manifest.inputs == MANIFEST.inputs
    assert opened.manifest.outputs == MANIFEST.outputs
    assert opened.manifest.files["model.so"]["bytes"] == 13


def test_missing(tmp_path: Path) -> None:
    assert (
        _message(tmp_path / "no") == f"{tmp_path}/no does not exist; `qcompiler compile ... -o {tmp_path}/no` makes it"
    )


def test_foreign_directory(tmp_path: Path) -> None:
    assert not is_artifact(tmp_path)
    assert _message(tmp_path) == f"{tmp_path} is not an artefact of qcompiler: it has no manifest.json"


def test_foreign_manifest(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"format": "web extension"}')
    assert not is_artifact(tmp_path)
    assert _message(tmp_path) == f"{tmp_path} is not an artefact of qcompiler: its manifest.json is somebody else's"


def test_truncated_manifest(artefact: Path) -> None:
    path = artefact / "manifest.json"
    path.write_text(path.read_text()[:50])
    assert is_artifact(artefact)  # ours, so that compiling again may replace it
    assert _message(artefact) == f"{path} is truncated or not JSON; compile the model again"


def test_newer_format(artefact: Path) -> None:
    _edit(artefact, format_version=99)
    assert _message(artefact) == (
        f"{artefact} has artefact format 99, this qcompiler reads 1; compile the model again, "
        "or use the version that made it"
    )


def test_damaged_manifest(artefact: Path) -> None:
    _edit(artefact, inputs=[{"name": "x"}])
    assert _message(artefact) == f"{artefact}/manifest.json is damaged ('shape'); compile the model again"


def test_other_architecture(artefact: Path) -> None:
    _edit(artefact, architecture="aarch64", target="arm:cortex-a76")
    assert _message(artefact) == (
        f"{artefact} was compiled for aarch64 (target arm:cortex-a76); this machine is {platform.machine()}. "
        "Compile with a target of this machine (`qcompiler targets`) to run it here, or emulate it: "
        f"`qcompiler run {artefact} --input DATA`"
    )


def test_accelerator(artefact: Path) -> None:
    _edit(artefact, architecture="", target="npu:edge-16x16")
    assert _message(artefact) == (
        f"{artefact} was compiled for npu:edge-16x16, which is simulated; "
        f"`qcompiler simulate {artefact} --input DATA` runs it"
    )


def test_missing_library(artefact: Path) -> None:
    (artefact / "model.so").unlink()
    assert _message(artefact) == (
        f"{artefact}/model.so cannot be read (No such file or directory); compile the model again"
    )


def test_truncated_library(artefact: Path) -> None:
    (artefact / "model.so").write_bytes(b"not a")
    assert _message(artefact) == (
        f"{artefact}/model.so is truncated or altered: 5 bytes, the manifest says 13; compile the model again"
    )


def test_altered_library(artefact: Path) -> None:
    (artefact / "model.so").write_bytes(b"not a librarY")
    assert _message(artefact, verify=True) == (
        f"{artefact}/model.so was altered: its SHA-256 is not the manifest's; compile the model again"
    )


def test_files_that_are_known_are_not_read_again(artefact: Path) -> None:
    known = {"model.so": {"bytes": 13, "sha256": "as it was"}}
    (artefact / "model.h").write_bytes(b"")
    files = describe_files(artefact, known)
    assert files["model.so"] == known["model.so"]
    assert files["model.h"] == {"bytes": 0, "sha256": hashlib.sha256().hexdigest()}


def test_what_the_loader_refuses(artefact: Path) -> None:
    assert _message(artefact) == (
        f"{artefact}/model.so cannot be loaded: {artefact}/model.so: file too short"
    )  # fmt: skip


def test_file_that_this_target_does_not_have(artefact: Path) -> None:
    with pytest.raises(ArtifactError) as caught:
        open_artifact(artefact).path("model.npu")
    assert str(caught.value) == f"{artefact} has no model.npu: it was compiled for x86"
