"""A small space that goes with the demo's model, and how its outcomes are read."""

from __future__ import annotations

import csv
from pathlib import Path

import qcompiler

DEMO = Path(qcompiler.__file__).parent / "demo"
DIGITS, CALIBRATION, TEST = DEMO / "digits.onnx", DEMO / "calibration.npz", DEMO / "test.npz"

SPACE = """
name: small
base: edge-16x16
fields:
  matrix.rows: [2, 4, 8]
  matrix.columns: [4, 8]
  vector.lanes: [4, 16, 64]
  constant_memory:
    - null
    - {technology: flash, size_bytes: 1048576, read_bytes_per_cycle: 4, latency_cycles: 20, burst_bytes: 16,
       outstanding_transfers: 2}
variables:
  tiles: [4]
derived:
  weight_memory.size_bytes: max(256, tiles * matrix.rows * matrix.columns * 2)
  activation_memory.bytes_per_cycle: 32
objectives: [latency, energy, area]
constraints: ["area_mm2 < 0.65"]
"""


def rows(directory: Path) -> list[dict[str, str]]:
    """What `points.csv` says of each machine."""
    with (directory / "points.csv").open() as stream:
        return list(csv.DictReader(stream))


def front(costs: dict[str, tuple[float, ...]]) -> set[str]:
    """The front by its definition, all against all; of equal points the first."""
    return {
        p for p, c in costs.items()
        if not any(
            all(b <= a for a, b in zip(c, d, strict=True)) and (d != c or int(q) < int(p))
            for q, d in costs.items() if p != q
        )
    }  # fmt: skip
