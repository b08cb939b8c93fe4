"""The command line in tests: what a command printed, and the bundled example that it works on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import qcompiler

DEMO = Path(qcompiler.__file__).parent / "demo"
DIGITS, CALIBRATION, TEST = DEMO / "digits.onnx", DEMO / "calibration.npz", DEMO / "test.npz"


@dataclass(frozen=True)
class Done:
    """What a command printed and its exit code."""

    code: int
    stdout: str
    stderr: str

    @property
    def error(self) -> str:
        """The message, without the lines of progress before it."""
        at = self.stderr.index("error: ")
        return self.stderr[at + len("error: ") :].rstrip("\n")


Command = Callable[..., Done]
