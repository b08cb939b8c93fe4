"""Building integer programs for the host."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from host_library import Library

from qcompiler.codegen import aot
from qcompiler.codegen.cpu.target import CpuTarget, cpu_target
from qcompiler.sim.integer_program import IntegerProgram


@pytest.fixture
def build_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Library]:
    """build_library(program, target="x86", isa="avx2") -> Library."""

    # Every step that has two tasks is shared between threads here, however little there is to gain.
    monkeypatch.setattr(aot, "_CYCLES_PER_THREAD", 0.001)
    monkeypatch.setattr(aot, "_BYTES_PER_THREAD", 1)
    monkeypatch.setattr(aot, "_BYTES_PER_THREAD_OF", {})

    def make(program: IntegerProgram, target: str | CpuTarget = "x86", isa: str = "", prefix: str = "model") -> Library:
        folder = tmp_path / f"build{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        chosen = cpu_target(target) if isinstance(target, str) else target
        report = aot.build(program, chosen, folder, prefix)
        library = Library(folder / "model.so", program, report.workspace_bytes, isa, prefix)
        library.report, library.folder = report, folder  # type: ignore[attr-defined]
        return library

    return make
