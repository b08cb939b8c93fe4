"""Errors that a user can cause. Each message says what is wrong, where, and what to do next.

The command line prints the message alone (no traceback) and exits with `exit_code`.
"""

from __future__ import annotations

from collections.abc import Iterable


class QCompilerError(Exception):
    """The input, the model or the machine description is at fault, not qcompiler."""

    exit_code = 1


class ModelError(QCompilerError):
    """A model that cannot be read, is malformed, or holds something unsupported."""


class CalibrationError(QCompilerError):
    """Calibration or input data that does not fit the model."""


class TargetError(QCompilerError):
    """An unknown target, or one that cannot do what the program asks."""


class ArtifactError(QCompilerError):
    """A compiled artefact that is truncated, foreign, or for another machine."""


class HardwareError(QCompilerError):
    """A machine description with a missing, unknown or contradictory field."""


class ExplorationError(QCompilerError):
    """A space, a storage or an option of an exploration that is wrong."""


class ProgramError(QCompilerError):
    """An integer or accelerator program that breaks its own rules."""


class AccuracyGateError(QCompilerError):
    """The compiled model misses a figure that the user demanded (`--min-sqnr`, `--min-agreement`)."""

    exit_code = 3


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`"; did you mean 'a' or 'b'?"` for the known names nearest to `name`, or an empty string."""
    import difflib

    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
