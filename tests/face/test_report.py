"""The report: complete, deterministic, self-contained, and quiet in a browser's console."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qcompiler.report.collect import Accuracy, collect, decibels, to_csv, to_json
from qcompiler.report.html import render, size
from qcompiler.report.plots import Bar, columns
from qcompiler.sim.integer_program import (
    Conv2d,
    Dequantize,
    FloatOp,
    IntegerProgram,
    Quantize,
    Requantize,
    Tensor,
    check,
)  # fmt: skip

SECTIONS = ("summary", "accuracy", "work", "sizes", "fallback", "layers", "provenance")


def _program() -> IntegerProgram:
    tensors = {
        "x": Tensor("x", (1, 4, 4, 2), "float32"),
        "xq": Tensor("xq", (1, 4, 4, 2), "int8", 0.5, 0),
        "conv": Tensor("conv", (1, 4, 4, 3), "int8", 0.25, 1),
        "real": Tensor("real", (1, 4, 4, 3), "float32"),
        "y": Tensor("y", (1, 4, 4, 3), "float32"),
    }
    conv = Conv2d(
        "conv/Conv", ("xq",), "conv", np.ones((3, 1, 1, 2), np.int8), np.zeros(3, np.int32),
        Requantize(np.full(3, 0.5, np.float32), 1),
    )  # fmt: skip
    operations = (
        Quantize("in", ("x",), "xq"),
        conv,
        Dequantize("out", ("conv",), "real"),
        FloatOp("norm <script>alert(1)</script>", ("real",), "y", "nn.lrn", (1, 4, 4, 3), {}, "no integer form"),
    )
    return check(IntegerProgram("model", ("x",), ("y",), tensors, operations))


def _report(accuracy: bool = True) -> dict[str, Any]:
    sqnr = {"conv": 31.234, "real": 20.0, "y": float("inf")}
    measured = Accuracy(sqnr, 4, {"y": 19.5}, 100, 0.97, 4) if accuracy else None
    about = {"name": "toy", "source": "toy.onnx", "target": "x86", "passes": None, "versions": {"onnx": "1"}}
    sizes = {"model": 5000, "float_weights": 24, "library": 16384, "arena": 4096}
    return collect(_program(), measured, {"conv/Conv": ("gemm", "conv")}, about, sizes)


def test_layers_carry_what_people_look_for() -> None:
    conv = _report()["layers"][1]
    assert conv == {
        "name": "conv/Conv", "kind": "Conv2d", "inputs": ["xq"], "output": "conv", "shape": [1, 4, 4, 3],
        "dtype": "int8", "scale": 0.25, "zero_point": 1, "macs": 96, "weight_bytes": 18, "activation_bytes": 48,
        "sqnr_db": 31.23, "kernel": "gemm", "group": "conv",
    }  # fmt: skip


def test_totals_and_fallbacks() -> None:
    report = _report()
    assert report["summary"] == {"operations": 4, "float_operations": 1, "macs": 96, "weight_bytes": 18}
    assert [f["operator"] for f in report["fallbacks"]] == ["nn.lrn"]
    assert report["accuracy"] == {
        "outputs_sqnr_db": {"y": 19.5}, "output_samples": 100, "layer_samples": 4, "agreement": 0.97,
        "samples_equal_to_reference": 4,
    }  # fmt: skip


def test_json_and_csv_say_the_same() -> None:
    report = _report()
    assert json.loads(to_json(report)) == report
    rows = list(csv.DictReader(to_csv(report).splitlines()))
    assert [row["name"] for row in rows] == [layer["name"] for layer in report["layers"]]
    assert rows[1]["shape"] == "1x4x4x3"
    assert rows[3]["sqnr_db"] == "exact"


@pytest.mark.parametrize(
    ("value", "shown"), [(None, None), (12.3456, 12.35), (float("inf"), "exact"), (float("-inf"), "no signal")]
)
def test_decibels_are_json(value: float | None, shown: object) -> None:
    assert decibels(value) == shown


def test_sizes_for_people() -> None:
    assert [size(n) for n in (0, 1023, 1536, 5 << 20, 3 << 30)] == ["0 B", "1023 B", "1.5 KiB", "5.0 MiB", "3.00 GiB"]


def test_equal_reports_give_equal_bytes() -> None:
    assert render(_report()) == render(_report())


class _Elements(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.ids: set[str | None] = set()
        self.tags: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.ids.add(dict(attrs).get("id"))
        self.links += [value for key, value in attrs if key in ("src", "href") and value]


def _elements(page: str) -> _Elements:
    parser = _Elements()
    parser.feed(page)
    return parser


def test_every_section_is_there_and_nothing_is_loaded() -> None:
    found = _elements(render(_report()))
    assert found.ids >= set(SECTIONS)
    assert found.links == ["data:,"]
    assert found.tags.count("script") == 1  # the operation's name is text, not markup
    assert found.tags.count("svg") == 3


def test_without_calibration_the_page_says_so() -> None:
    page = render(_report(accuracy=False))
    assert "Not measured: there was no calibration data to run the model on." in page
    assert _elements(page).tags.count("svg") == 2


def test_a_layer_far_below_its_input_stands_out() -> None:
    page = render(_report())
    assert page.count('class="bar low"') == 1  # "real" is 11 dB below "conv"


def test_bars_are_as_tall_as_their_values() -> None:
    svg = columns([Bar("1", 10, "a"), Bar("2", 5, "b"), Bar("3", 0, "c")], "dB", "t")
    heights = [float(h) for h in re.findall(r'class="bar [^>]* height="([\d.]+)"', svg)]
    assert heights == [210.0, 105.0, 0.0]


BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.skipif(BROWSER is None, reason="needs chromium (.ci/run installs it)")
@pytest.mark.parametrize("window", ["1280,900", "380,800"])
def test_a_browser_draws_it_without_a_console_message(tmp_path: Path, window: str) -> None:
    page = render(_report()).replace(
        "</body>",
        # What the page does by itself, done by hand: sort by SQNR, filter; and how wide it became.
        """<script>document.querySelectorAll("th")[4 + 3].firstElementChild.click();
        const box = document.getElementById("filter"); box.value = "conv"; box.dispatchEvent(new Event("input"));
        const wide = document.documentElement.scrollWidth > innerWidth;
        const shown = [...document.querySelectorAll("#table tbody tr")].filter(r => !r.hidden).length;
        const drawn = [...document.querySelectorAll("svg")].every(s => s.getBoundingClientRect().height > 50);
        document.title = `shown ${shown} wide ${wide} drawn ${drawn}`;</script></body>""",
    )
    (tmp_path / "report.html").write_text(page, encoding="utf-8")
    done = subprocess.run(
        [
            str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
            "--disable-background-networking", "--disable-dev-shm-usage", "--enable-logging=stderr", "--log-level=0",
            f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={window}", "--dump-dom",
            (tmp_path / "report.html").as_uri(),
        ],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert "<title>shown 1 wide false drawn true</title>" in done.stdout
    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []
