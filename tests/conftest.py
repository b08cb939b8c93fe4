"""Fixtures shared by all tests: optional data beside the repository and benchmark models generated from it."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from command_line import Command, Done
from hypothesis import settings

# Wall time says nothing about correctness on a busy machine. The same examples each time, so that a failure is the
# change's and not luck's; HYPOTHESIS_PROFILE=random looks for new ones.
settings.register_profile("qcompiler", deadline=None, derandomize=True)
settings.register_profile("random", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "qcompiler"))

ROOT = Path(__file__).resolve().parent.parent

# The tests' own cache of compiled kernels, not the user's.
os.environ["QCOMPILER_CACHE"] = str(ROOT / ".pytest_cache" / "qcompiler")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of trained models and real data (``../shared`` or $QCOMPILER_SHARED); skips visibly without it."""
    path = Path(os.environ.get("QCOMPILER_SHARED", ROOT.parent / "shared"))
    if not path.is_dir():
        pytest.skip(f"needs the data folder {path} (set QCOMPILER_SHARED to where it is)")
    return path


@pytest.fixture(scope="session")
def bench_models(shared: Path) -> Path:
    """A folder of benchmark ONNX models (seeded random weights), generated once by shared/bench/make_models.py."""
    folder = ROOT / ".pytest_cache" / "bench_models"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:  # pytest-xdist: one worker makes them, the others wait
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "meta.json").exists():
            subprocess.run(
                [sys.executable, str(shared / "bench" / "make_models.py")],
                check=True, env={**os.environ, "OUT": str(folder)}, stdout=subprocess.DEVNULL,
            )  # fmt: skip
    return folder


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """``command("compile", model, ...)`` runs the command line and says how it ended; a traceback fails the test."""
    from qcompiler.cli import main

    before = signal.getsignal(signal.SIGTERM)

    def run(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["qcompiler", *map(str, arguments)])
        capfd.readouterr()
        code = 0
        try:
            main()
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        captured = capfd.readouterr()
        return Done(code, captured.out, captured.err)

    yield run
    signal.signal(signal.SIGTERM, before)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-goldens", action="store_true", help="rewrite golden files with what the code gives now")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[Path, str], None]:
    """``golden(path, text)`` asserts that the file holds the text, or writes it under --update-goldens."""

    def check(path: Path, text: str) -> None:
        if request.config.getoption("--update-goldens"):
            path.write_text(text, encoding="utf-8")
        assert path.read_text(encoding="utf-8") == text, f"{path} is out of date: pytest --update-goldens rewrites it"

    return check
