"""The compiled artefact: a directory that stands alone, described by its manifest.json.

  manifest.json        what it is: inputs and outputs, target, how it was made, sizes and hashes of the files
  program.qir          the integer program (qcompiler.sim.program_text)
  model.so, libmodel.a, model.o, model.h   a CPU target's library; model.npu: an accelerator's program
  report.html, report.json, layers.csv     what happened, for people and for scripts

Nothing in it depends on the time or place of compilation: the same inputs give the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qcompiler.sim.errors import ArtifactError, ProgramError
from qcompiler.sim.tensor import Tensor

if TYPE_CHECKING:
    from qcompiler.sim.integer_program import IntegerProgram

FORMAT = "qcompiler artifact"
FORMAT_VERSION = 1
Files = Mapping[str, Mapping[str, Any]]
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
    files: Files = field(default_factory=dict)

    def to_json(self) -> str:
        record = {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(self)}
        return json.dumps(record, indent=2, allow_nan=False) + "\n"


@dataclass(frozen=True)
class Artifact:
    """A compiled model on disk. Opened by `open_artifact`, which checks that the manifest is whole and ours."""

    directory: Path
    manifest: Manifest

    def path(self, name: str, verify: bool = True) -> Path:
        """A file of the artefact after checking it against the manifest. Raises ArtifactError.

        verify: compare the SHA-256, too, which reads the whole file; the size is always compared.
        """
        path, listed = self.directory / name, self.manifest.files.get(name)
        if listed is None:
            raise ArtifactError(f"{self.directory} has no {name}: it was compiled for {self.manifest.target}")
        try:
            size = path.stat().st_size
            digest = file_sha256(path) if verify and size == listed["bytes"] else None
        except OSError as error:
            raise ArtifactError(f"{path} cannot be read ({error.strerror}); {_AGAIN}") from None
        if size != listed["bytes"]:
            raise ArtifactError(
                f"{path} is truncated or altered: {size} bytes, the manifest says {listed['bytes']}; {_AGAIN}"
            )
        if digest is not None and digest != listed["sha256"]:
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


def file_sha256(path: Path) -> str:
    """Of the file's bytes, in hexadecimal; memory does not grow with the file."""
    import hashlib  # not for those who only load: OpenSSL takes as long as everything else

    digest = hashlib.sha256()  # hashlib.file_digest would want Python 3.11
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def describe_files(directory: Path, known: Files | None = None) -> dict[str, Any]:
    """Size and SHA-256 of every file that is there, by name, for the manifest.

    known: what an earlier call returned, for files that have not changed since; they are not read again.
    """
    from concurrent.futures import ThreadPoolExecutor

    known = known or {}
    paths = sorted(path for path in directory.iterdir() if path.is_file() and path.name != MANIFEST)
    with ThreadPoolExecutor() as pool:  # OpenSSL works outside the interpreter lock
        new = {p: pool.submit(file_sha256, p) for p in paths if p.name not in known}
        return {
            p.name: {"bytes": p.stat().st_size, "sha256": new[p].result()} if p in new else known[p.name] for p in paths
        }
