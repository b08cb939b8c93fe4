"""The compiled artefact: a directory that stands alone, described by its manifest.json.

  manifest.json        what it is: inputs and outputs, target, how it was made, sizes and hashes of the files
  program.qir          the integer program (qcompiler.sim.program_text)
  model.so, libmodel.a, model.o, model.h   a CPU target's library; model.npu: an accelerator's program
  report.html, report.json, layers.csv     what happened, for people and for scripts

Nothing in it depends on the time or place of compilation: the same inputs give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from qcompiler.sim.errors import ArtifactError, ProgramError
from qcompiler.sim.integer_program import IntegerProgram, Tensor

FORMAT = "qcompiler artifact"
FORMAT_VERSION = 1
MANIFEST, PROGRAM = "manifest.json", "program.qir"


@dataclass(frozen=True)
class Manifest:
    """name: prefix of the C symbols. target: as asked for. architecture: the machine word of `uname -m`, or "" for an
    accelerator. workspace_bytes: what `<name>_run` needs. files: name to {"bytes", "sha256"}. build: how it was made
    (versions, options, hashes of model and data)."""

    name: str
    target: str
    architecture: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    workspace_bytes: int
    program_sha256: str
    build: dict[str, Any] = field(default_factory=dict)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)

    def to_json(self) -> str:
        record = {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(self)}
        return json.dumps(record, indent=2, allow_nan=False) + "\n"


@dataclass(frozen=True)
class Artifact:
    """A compiled model on disk. Opened by `open_artifact`, which checks that the manifest is whole and ours."""

    directory: Path
    manifest: Manifest

    def path(self, name: str) -> Path:
        """A file of the artefact after checking size and hash against the manifest. Raises ArtifactError."""
        path, listed = self.directory / name, self.manifest.files.get(name)
        if listed is None:
            raise ArtifactError(f"{self.directory} has no {name}: it was compiled for {self.manifest.target}")
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ArtifactError(f"{path} cannot be read ({error.strerror}); {_AGAIN}") from None
        if len(data) != listed["bytes"]:
            raise ArtifactError(
                f"{path} is truncated or altered: {len(data)} bytes, the manifest says {listed['bytes']}; {_AGAIN}"
            )
        if hashlib.sha256(data).hexdigest() != listed["sha256"]:
            raise ArtifactError(f"{path} was altered: its SHA-256 is not the manifest's; {_AGAIN}")
        return path

    def program(self) -> IntegerProgram:
        """The integer program that every target of this artefact computes."""
        from qcompiler.sim.program_text import load

        path = self.path(PROGRAM)
        try:
            return load(path.read_bytes())
        except ProgramError as error:
            raise ArtifactError(f"{path}: {error}; {_AGAIN}") from None

    def report(self) -> dict[str, Any]:
        """The contents of report.json."""
        report: dict[str, Any] = json.loads(self.path("report.json").read_text(encoding="utf-8"))
        return report


_AGAIN = "compile the model again"


def is_artifact(directory: Path) -> bool:
    """Whether a directory is one of ours, whole or not."""
    try:
        with (directory / MANIFEST).open(encoding="utf-8") as stream:
            return FORMAT in stream.read(200)
    except (OSError, UnicodeDecodeError):
        return False


def open_artifact(directory: str | Path) -> Artifact:
    """Read and check the manifest. Raises ArtifactError for a missing, truncated, foreign or newer artefact."""
    directory = Path(directory)
    if not directory.exists():
        raise ArtifactError(f"{directory} does not exist; `qcompiler compile ... -o {directory}` makes it")
    path = directory / MANIFEST
    if not path.is_file():
        raise ArtifactError(f"{directory} is not an artefact of qcompiler: it has no {MANIFEST}")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ArtifactError(f"{path} is truncated or not JSON; {_AGAIN}") from None
    if not isinstance(record, dict) or record.pop("format", None) != FORMAT:
        raise ArtifactError(f"{directory} is not an artefact of qcompiler: its {MANIFEST} is somebody else's")
    version = record.pop("format_version", None)
    if version != FORMAT_VERSION:
        raise ArtifactError(
            f"{directory} has artefact format {version}, this qcompiler reads {FORMAT_VERSION}; {_AGAIN}, "
            "or use the version that made it"
        )
    try:
        for key in ("inputs", "outputs"):
            record[key] = tuple(Tensor(**{**t, "shape": tuple(t["shape"])}) for t in record[key])
        return Artifact(directory, Manifest(**record))
    except (TypeError, KeyError) as error:
        raise ArtifactError(f"{path} is damaged ({error}); {_AGAIN}") from None


def describe_files(directory: Path) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of every file that is there, by name, for the manifest."""
    return {
        path.name: {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in sorted(directory.iterdir())
        if path.is_file() and path.name != MANIFEST
    }
