"""A keyword spotter with the shapes of MLPerf Tiny's DS-CNN and random weights: python keyword_spotting.py kws.onnx

What a machine costs depends on shapes alone, so that random weights do for exploring. Input: 49 frames of 10 cepstral
coefficients; output: 12 classes. Topology: Banbury et al. 2021, after Zhang et al. 2017.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CHANNELS, CLASSES = 64, 12


def model() -> onnx.ModelProto:
    """The network as float ONNX, NCHW."""
    rng = np.random.default_rng(0)
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []

    def add(op: str, x: str, *shapes: tuple[int, ...], **attributes: Any) -> str:
        names = [x]
        for shape in shapes:
            value = rng.standard_normal(shape) * np.sqrt(2 / max(np.prod(shape[1:]), 1))
            weights.append(numpy_helper.from_array(value.astype(np.float32), f"w{len(weights)}"))
            names.append(weights[-1].name)
        output = f"{op.lower()}{len(nodes)}"
        nodes.append(helper.make_node(op, names, [output], **attributes))
        return output

    def conv(x: str, kernel: tuple[int, int], pads: tuple[int, ...], groups: int = 1, **attributes: Any) -> str:
        first = x == "input"
        shape = (CHANNELS, 1 if first or groups > 1 else CHANNELS, *kernel)
        y = add("Conv", x, shape, (CHANNELS,), kernel_shape=kernel, pads=pads, group=groups, **attributes)
        return add("Relu", y)

    y = conv("input", (10, 4), (4, 1, 5, 1), strides=(2, 2))
    for _ in range(4):
        y = conv(conv(y, (3, 3), (1, 1, 1, 1), groups=CHANNELS), (1, 1), (0, 0, 0, 0))
    y = add("Flatten", add("GlobalAveragePool", y))
    y = add("Softmax", add("Gemm", y, (CLASSES, CHANNELS), (CLASSES,), transB=1))
    graph = helper.make_graph(
        nodes, "keyword_spotting",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, (1, 1, 49, 10))],
        [helper.make_tensor_value_info(y, TensorProto.FLOAT, (1, CLASSES))],
        weights,
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(made, full_check=True)
    return made


if __name__ == "__main__":
    onnx.save(model(), sys.argv[1])
