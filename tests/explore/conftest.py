"""One compiled model, and a small space as a file."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_space import CALIBRATION, DIGITS, SPACE

import qcompiler


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's model, compiled once: exploring an artefact needs neither import nor calibration."""
    pytest.importorskip("optuna")
    output = tmp_path_factory.mktemp("explore") / "digits"
    qcompiler.compile(DIGITS, target="npu:edge-16x16", calibration=CALIBRATION, output=output)
    return output


@pytest.fixture
def space(tmp_path: Path) -> Path:
    """`SPACE` as a file."""
    path = tmp_path / "space.yaml"
    path.write_text(SPACE)
    return path
