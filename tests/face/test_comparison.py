"""benchmarks/compare.py: networks, the race with our own contender, the table, and what is missing. Peers: run it."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from command_line import DIGITS, TEST

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def _module(name: str) -> Any:
    return importlib.import_module(f"comparison.{name}")


# Multiply-accumulates as the papers and MLPerf Tiny give them.
MACS = {"mobilenet_v2": 300e6, "kws": 2.7e6, "vww": 7.5e6, "resnet8": 12.5e6, "ad": 0.264e6}


@pytest.mark.parametrize("name", MACS)
def test_networks_have_the_published_work(name: str) -> None:
    model = onnx.shape_inference.infer_shapes(_module("networks").NETWORKS[name]())
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in
              [*model.graph.value_info, *model.graph.output]}  # fmt: skip
    weights = {w.name: list(w.dims) for w in model.graph.initializer}
    macs = sum(
        np.prod(shapes[n.output[0]]) * np.prod(weights[n.input[1]][1:])
        for n in model.graph.node
        if n.op_type in ("Conv", "Gemm")
    )
    assert macs == pytest.approx(MACS[name], rel=0.04)


def test_race(digits: Path, tmp_path: Path) -> None:
    """Contenders that run are timed and leave their outputs; one that does not says why and stops nobody."""
    race, table = _module("race"), _module("table")
    with np.load(TEST) as data:
        np.savez(tmp_path / "data.npz", test=data["image"][:1])
    python = Path(sys.executable)
    contenders = [
        race.Contender(table.OURS, "qcompiler", digits, python),
        race.Contender(table.FLOAT, "onnxruntime", DIGITS, python),
        race.Contender("broken", "onnxruntime", tmp_path / "none.onnx", python),
    ]
    results, failed = race.race(contenders, 1, tmp_path / "data.npz", tmp_path, 2, lambda text: None)
    assert set(results) == {table.OURS, table.FLOAT} and set(failed) == {"broken"}
    assert "none.onnx" in failed["broken"]
    ours = results[table.OURS]
    assert 0 < ours["min_s"] <= ours["median_s"] and ours["count"] >= 6
    assert 5 < ours["rss_mb"] < 200 and 0 < ours["load_s"] < 5
    assert race.cosine(Path(ours["output"]), Path(results[table.FLOAT]["output"])) > 0.98


def _row(seconds: float, **more: Any) -> dict[str, Any]:
    return {
        "min_s": seconds, "median_s": 1.5 * seconds, "load_s": 0.002, "import_s": 0.0, "first_s": 0.001, "rss_mb": 30.2,
        "bytes": 500_000, "cosine": 0.99912, **more,
    }  # fmt: skip


def test_table() -> None:
    table = _module("table")
    contenders = {
        "qcompiler": _row(10e-6, isa="avx2"),
        "ONNX Runtime int8": _row(20e-6),
        "OpenVINO (QDQ)": _row(15e-6),
        "ONNX Runtime float32": _row(4e-3, cosine=1.0),
        "qcompiler on AVX2": _row(10e-6, identical=True),
        "OpenVINO (QDQ) on AVX2": _row(30e-6),
    }
    result = {
        "model": "kws", "threads": 1, "peaks": {"avx2": 50.0}, "macs": 100_000, "model_bytes": 1_000_000,
        "contenders": contenders, "missing": {"LiteRT int8": "TensorFlow could not be installed: no wheel"},
    }  # fmt: skip
    machine = {"date": "2026-01-02", "cpu": "a CPU", "versions": {"qcompiler": "1"}, "peaks": {"1": {"avx2": 50.0}}}
    text = table.render([result], machine)
    assert (
        "| kws | 1 | 10.0 µs (15.0 µs) | 20.0 µs (30.0 µs) | 15.0 µs (22.5 µs) | – | – | 4.00 ms (6.00 ms) | "
        "**1.50** | avx2 5.00 |"
    ) in text
    assert "Geometric mean of best peer / qcompiler, 1 thread, shortest: **1.50** over 1 models; least 1.50." in text
    assert "| kws | 1 | 10.0 µs (15.0 µs) | 30.0 µs (45.0 µs) | – | **3.00** | yes |" in text
    assert "| kws | qcompiler | 0.99912 | 0.50 (0.50) | 0.0 | 2.0 | 1.0 | 30 |" in text
    assert "- LiteRT int8: TensorFlow could not be installed: no wheel (kws)" in text


def test_what_cannot_be_installed_is_told_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = _module("environment")
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text("")
    refused = "ERROR: No matching distribution found for openvino"

    def pip(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        fails = command[-1] == "openvino"
        return subprocess.CompletedProcess(command, int(fails), "", refused if fails else "")

    monkeypatch.setattr(environment.subprocess, "run", pip)
    said: list[str] = []
    made = environment.prepare(tmp_path, said.append)
    assert made.lacks("ONNX Runtime") is None
    assert made.lacks("ONNX Runtime", "OpenVINO") == f"OpenVINO could not be installed: {refused}"
    assert f"OpenVINO is missing: {refused}" in said
    state = json.loads((tmp_path / "installed.json").read_text())
    assert state["LiteRT"] == "" and state["OpenVINO"] == refused
    said.clear()
    environment.prepare(tmp_path, said.append)
    assert [line for line in said if line.startswith("installing")] == [
        "installing openvino", "installing nncf, openvino",
    ]  # fmt: skip


def test_help_and_mistakes() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "compare.py")]
    done = subprocess.run([*command, "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "The whole comparison in one command" in done.stdout
    done = subprocess.run([*command, "-o", "x", "--models", "kws,alexnet"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "compare.py: error: argument --models: unknown: alexnet; there are resnet50, mobilenet_v1, mobilenet_v2, kws, "
        "vww, resnet8, ad, bert"
    )
