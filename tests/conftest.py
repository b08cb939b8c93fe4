"""Fixtures shared by all tests: optional data beside the repository and benchmark models generated from it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of trained models and real data (``../shared`` or $QCOMPILER_SHARED); skips visibly without it."""
    path = Path(os.environ.get("QCOMPILER_SHARED", ROOT.parent / "shared"))
    if not path.is_dir():
        pytest.skip(f"needs the data folder {path} (set QCOMPILER_SHARED to where it is)")
    return path


@pytest.fixture(scope="session")
def bench_models(shared: Path) -> Path:
    """A folder with the benchmark ONNX models (seeded random weights), generated once by shared/bench/make_models.py."""
    folder = ROOT / ".pytest_cache" / "bench_models"
    if not (folder / "meta.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            [sys.executable, str(shared / "bench" / "make_models.py")],
            check=True, env={**os.environ, "OUT": str(folder)}, stdout=subprocess.DEVNULL,
        )  # fmt: skip
    return folder
