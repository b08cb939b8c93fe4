"""Runs in the peers' environment: the results as an SVG, bars of time over qcompiler's.

python plot.py RESULTS.json OUTPUT.svg      RESULTS: [{"title", "models", "series": {name: [ratio or null]}}]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402

COLOURS = ("#4477aa", "#66ccee", "#228833", "#ccbb44", "#bbbbbb")


def draw(panels: list[dict], output: Path) -> None:
    plt.rcParams["svg.hashsalt"] = "qcompiler"
    figure, axes = plt.subplots(len(panels), 1, figsize=(11, 3.4 * len(panels)), squeeze=False, layout="constrained")
    for axis, panel in zip(axes[:, 0], panels, strict=True):
        width = 0.8 / len(panel["series"])
        for i, (name, values) in enumerate(panel["series"].items()):
            there = [(x + (i + 0.5) * width - 0.4, v) for x, v in enumerate(values) if v is not None]
            bars = axis.bar([x for x, _ in there], [v for _, v in there], width, label=name, color=COLOURS[i])
            axis.bar_label(bars, [f"{v:.1f}" for _, v in there], fontsize=6, padding=1)
        axis.axhline(1, color="#aa3377", linewidth=1.2)
        axis.text(-0.5, 1.02, "qcompiler", color="#aa3377", fontsize=8, va="bottom", ha="left")
        axis.set_xticks(range(len(panel["models"])), panel["models"])
        axis.set_ylabel("time / qcompiler's")
        axis.set_title(panel["title"], fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].legend(fontsize=8, ncols=5, frameon=False)
    figure.savefig(output, metadata={"Date": None})


if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
