"""Output directories appear whole or not at all, whatever happens half-way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from qcompiler.output import new_directory, new_file
from qcompiler.sim.errors import ArtifactError


def _never(_: Path) -> bool:
    return False


def _fill(destination: Path, replaceable=_never, text: str = "new") -> None:
    with new_directory(destination, replaceable) as work:
        (work / "file").write_text(text)


def test_appears_when_done(tmp_path: Path) -> None:
    with new_directory(tmp_path / "out", _never) as work:
        (work / "file").write_text("x")
        assert not (tmp_path / "out").exists()
    assert (tmp_path / "out" / "file").read_text() == "x"
    assert os.listdir(tmp_path) == ["out"]
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o777 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_an_exception_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), new_directory(tmp_path / "out", _never) as work:
        (work / "file").write_text("x")
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == []


def test_an_empty_directory_and_a_replaceable_one_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    _fill(tmp_path / "out", text="first")
    _fill(tmp_path / "out", replaceable=lambda path: (path / "file").exists(), text="second")
    assert (tmp_path / "out" / "file").read_text() == "second"
    assert os.listdir(tmp_path) == ["out"]


def test_the_old_one_survives_a_failure(tmp_path: Path) -> None:
    _fill(tmp_path / "out", text="first")
    with pytest.raises(ZeroDivisionError), new_directory(tmp_path / "out", lambda _: True):
        raise ZeroDivisionError
    assert (tmp_path / "out" / "file").read_text() == "first"


@pytest.mark.parametrize("kind", ["directory", "file", "link"])
def test_anything_else_is_not_overwritten(tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out"
    if kind == "directory":
        out.mkdir()
        (out / "thesis.tex").touch()
    elif kind == "file":
        out.touch()
    else:
        out.symlink_to(tmp_path)
    before = os.lstat(out)
    with pytest.raises(ArtifactError) as caught:
        _fill(out)
    assert str(caught.value) == (
        f"{out} exists and is not an artefact of qcompiler; it will not be overwritten. "
        "Give another output directory, or remove it"
    )
    assert os.lstat(out).st_ino == before.st_ino


def test_missing_parent(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError) as caught:
        _fill(tmp_path / "a" / "out")
    assert str(caught.value) == (
        f"cannot create {tmp_path}/a/out: the folder {tmp_path}/a does not exist; create it first"
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_unwritable_parent(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ArtifactError) as caught:
        _fill(tmp_path / "out")
    assert str(caught.value) == (
        f"cannot create {tmp_path}/out: the folder {tmp_path} is not writable; give another output"
    )


def test_a_file_system_that_refuses(tmp_path: Path) -> None:
    """/proc refuses everybody, root too."""
    with pytest.raises(ArtifactError) as caught:
        _fill(Path("/proc/out"))
    reason = "No such file or directory" if os.geteuid() == 0 else "the folder /proc is not writable"
    assert str(caught.value) == f"cannot create /proc/out: {reason}; give another output"


KILLED = """
import sys, time
from pathlib import Path
from qcompiler.output import new_directory
with new_directory(Path(sys.argv[1]), lambda _: False) as work:
    (work / "file").write_text("half")
    print("ready", flush=True)
    time.sleep(60)
"""


def test_what_a_killed_run_leaves_is_removed_by_the_next(tmp_path: Path) -> None:
    out = tmp_path / "out"
    running = subprocess.Popen([sys.executable, "-c", KILLED, str(out)], stdout=subprocess.PIPE, text=True)
    assert running.stdout is not None
    assert running.stdout.readline() == "ready\n"
    _fill(out, text="meanwhile")  # must not disturb the one that is still at work
    assert len(os.listdir(tmp_path)) == 2
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert (out / "file").read_text() == "meanwhile"
    _fill(out, replaceable=lambda _: True)
    assert os.listdir(tmp_path) == ["out"]


FULL = """
import resource, sys
from pathlib import Path
from qcompiler.output import new_directory
from qcompiler.sim.errors import QCompilerError
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    with new_directory(Path(sys.argv[1]), lambda _: False) as work:
        (work / "file").write_bytes(bytes(5000))
except QCompilerError as error:
    print(error)
"""


def test_a_file_that_does_not_fit(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FULL, str(tmp_path / "out")], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (
        f"cannot write {tmp_path}/out: a file exceeds the size limit of this process or file system; "
        "nothing was left behind\n",
        "",
    )
    assert os.listdir(tmp_path) == []


def test_one_file(tmp_path: Path) -> None:
    with new_file(tmp_path / "model.onnx") as work:
        work.write_text("x")
        assert not (tmp_path / "model.onnx").exists()
    assert (tmp_path / "model.onnx").read_text() == "x"
    with pytest.raises(ZeroDivisionError), new_file(tmp_path / "model.onnx") as work:
        work.write_text("y")
        raise ZeroDivisionError
    assert (tmp_path / "model.onnx").read_text() == "x"
    assert os.listdir(tmp_path) == ["model.onnx"]
