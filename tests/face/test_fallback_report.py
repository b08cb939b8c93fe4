"""What a user learns about the operations that stay float: which, why, and what share of the time they take."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def model() -> onnx.ModelProto:
    """A convolution, a running sum over its channels (no integer form), a convolution."""
    rng = np.random.default_rng(0)
    weights = {n: rng.standard_normal((4, 4, 3, 3)).astype(np.float32) / 6 for n in ("w1", "w2")}
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w1"], ["a"], pads=[1] * 4),
            helper.make_node("CumSum", ["a", "axis"], ["running"]),
            helper.make_node("Conv", ["running", "w2"], ["y"], pads=[1] * 4),
        ],
        "running_sum",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 12, 12])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(v, n) for n, v in {**weights, "axis": np.array(1)}.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_reason_and_share_of_time(command: Callable[..., Any], tmp_path: Path) -> None:
    onnx.save(model(), tmp_path / "running_sum.onnx")
    samples = tmp_path / "samples.npz"
    np.savez(samples, x=np.random.default_rng(1).standard_normal((4, 1, 4, 12, 12)).astype(np.float32))
    out = tmp_path / "out"
    arguments = ("--target", "x86:avx2", "--calibration", samples, "-o", out)
    assert command("compile", tmp_path / "running_sum.onnx", *arguments).code == 0
    (fallback,) = json.loads((out / "report.json").read_text())["fallbacks"]
    assert (fallback["name"], fallback["operator"]) == ("running", "cumsum")
    assert fallback["reason"] == "cumsum has no integer form"
    done = command("run", out, "--input", samples, "--profile")
    assert done.code == 0
    line = re.search(r"1 float operation takes ([\d.]+)% of the time; report.html says why", done.stdout)
    assert line and 0 < float(line[1]) < 100
