"""The measured peak: above what a real kernel reaches, in the order of the levels."""

from __future__ import annotations

from host_library import LEVELS

from qcompiler.codegen.cpu.peak import peak
from qcompiler.codegen.cpu.target import cpu_target


def test_wider_instructions_have_higher_peaks() -> None:
    levels = [level for level in cpu_target("x86").levels if level.name in LEVELS]
    peaks = [peak(level, repeat=20) for level in levels]
    assert all(value > 1e9 for value in peaks)
    assert peaks == sorted(peaks, reverse=True), dict(zip(LEVELS, peaks, strict=True))
