"""`qcompiler compile --tune`: what the manifest records, where it is refused, and that nothing else reads the cache."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import CALIBRATION, DIGITS, TEST, Command

import qcompiler
from qcompiler.codegen.cpu.target import cpu_target, host_cpu_flags


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QCOMPILER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tiles.json"


@pytest.mark.skipif(not cpu_target("x86:avx2").supported_here(), reason="this CPU has no AVX2")
def test_tuned_artefact(command: Command, tmp_path: Path, cache: Path) -> None:
    arguments = ("compile", DIGITS, "--calibration", CALIBRATION, "--target", "x86:avx2")
    done = command(*arguments, "--tune", "--tune-seconds", "0.5", "-o", tmp_path / "tuned")
    assert done.code == 0, done.stderr
    assert "tuning avx2: " in done.stderr and "tuned: " in done.stderr
    build = qcompiler.open_artifact(tmp_path / "tuned").manifest.build
    assert build["tuning"]["level"] == "avx2"
    assert all(tile.startswith("Tile(") for tile in build["tuning"]["tiles"].values())
    assert len(json.loads(cache.read_text())["entries"]) >= 1
    # The same results, and without --tune the same bytes whatever was measured before.
    assert command(*arguments, "-o", tmp_path / "plain").code == 0
    cache.unlink()
    assert command(*arguments, "-o", tmp_path / "again").code == 0
    plain, again = (qcompiler.open_artifact(tmp_path / name).manifest for name in ("plain", "again"))
    assert plain == again and "tuning" not in plain.build
    scores = []
    for name in ("tuned", "plain"):
        file = tmp_path / f"{name}.npz"
        assert command("run", tmp_path / name, "--input", TEST, "-o", file).code == 0
        scores.append(file.read_bytes())
    assert scores[0] == scores[1]


@pytest.mark.parametrize("target", ["npu:edge-16x16", "cortex-m4"])
def test_not_for_other_machines(command: Command, tmp_path: Path, target: str) -> None:
    done = command("compile", DIGITS, "--calibration", CALIBRATION, "--target", target, "--tune", "-o", tmp_path / "o")
    assert (done.code, done.error) == (
        1, f"--tune measures on this machine, and {target} is another; leave it out",
    )  # fmt: skip


@pytest.mark.skipif("avx2" not in host_cpu_flags(), reason="this is no x86 machine")
def test_not_for_a_foreign_architecture(command: Command, tmp_path: Path) -> None:
    done = command("compile", DIGITS, "--calibration", CALIBRATION, "--target", "arm", "--tune", "-o", tmp_path / "o")
    assert (done.code, done.error) == (
        1, "--tune measures on this machine, which cannot run arm; leave it out, or compile elsewhere",
    )  # fmt: skip
