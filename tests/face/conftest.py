"""The bundled example, compiled once."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import CALIBRATION, DIGITS

import qcompiler


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled example, compiled for this machine."""
    out = tmp_path_factory.mktemp("digits") / "out"
    qcompiler.compile(DIGITS, calibration=CALIBRATION, output=out)
    return out
