"""The scripts behind the figures of docs/explore.md and docs/npu.md run, and print the tables they promise."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from command_line import DIGITS

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
SPACE = """
name: small
base: edge-16x16
fields:
  matrix.rows: [4, 8, 16]
  matrix.columns: [4, 8, 16]
  main_memory.read_bytes_per_cycle: [1, 4]
objectives: [latency, energy, area]
"""


def printed(*command: str | Path) -> list[str]:
    """The lines that a script prints."""
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_samplers(tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text(SPACE)
    options = ["--space", tmp_path / "space.yaml", "--seeds", "2", "--share", "0.5", "--cache", tmp_path / "cache"]
    lines = printed(BENCHMARKS / "samplers.py", DIGITS, "--samplers", "random,nsga2", *options)
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert [row[1:3] for row in table[-2:]] == [["random", "9 of 18"], ["nsga2", "9 of 18"]]
    assert all(0 < float(seed) <= 100 for row in table[-2:] for seed in row[4].split(","))


@pytest.mark.parametrize(
    ("script", "options", "figures"),
    [("explore.py", ["--machines", "8", "--repeats", "1"], 5),
     ("widths.py", ["--machines", "edge-16x16", "--widths", "8x8", "4x8"], 7)],
)  # fmt: skip
def test_the_others(script: str, options: list[str], figures: int) -> None:
    lines = [line.split() for line in printed(BENCHMARKS / script, "digits", *options)]
    table = [line[1:] for line in lines if line[0] == "digits"]
    assert table and all(len(line) == figures for line in table)
