"""The eight networks of the comparison as ONNX files: public topologies, seeded random weights (He-normal).

Weights do not change how long an inference takes, and random ones may be shipped nowhere and downloaded never. Sources:
ResNet-50 v1.5 (He et al. 2015; the stride in the 3x3 convolution), MobileNet v1 and v2 (Howard et al. 2017, Sandler et
al. 2018), BERT-base's encoder (Devlin et al. 2018), and the four of MLPerf Tiny v1.0 (Banbury et al. 2021): keyword
spotting (DS-CNN), visual wake words (MobileNet v1, a quarter of the width, 96x96), image classification (ResNet-8) and
anomaly detection (an autoencoder).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SAMPLES = 16
Array = Any


class Builder:
    """An ONNX graph in the making; tensors are NCHW or [..., features], and known by name and shape."""

    def __init__(self, name: str, shape: list[int], seed: int) -> None:
        self.name, self.rng = name, np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.shapes: dict[str, tuple[int, ...]] = {"input": tuple(shape)}

    def constant(self, value: Array, dtype: Any = np.float32) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(value, dtype=dtype), name))
        return name

    def op(self, kind: str, inputs: list[str], shape: tuple[int, ...], **attributes: Any) -> str:
        name = f"{kind.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        self.shapes[name] = shape
        return name

    def normal(self, deviation: float, *shape: int) -> str:
        return self.constant(self.rng.normal(0, deviation, shape))

    # ------------------------------------------------------------------------------------ convolutions
    def conv(
        self, x: str, channels: int, kernel: tuple[int, int], stride: int = 1, groups: int = 1,
        activation: str = "relu", gain: float = 1.0,
    ) -> str:  # fmt: skip
        """Convolution with "same" padding, batch normalisation and activation ("relu", "relu6", "")."""
        n, c, h, w = self.shapes[x]
        (top, bottom), (left, right) = (self._same(size, k, stride) for size, k in zip((h, w), kernel, strict=True))
        out = (n, channels, (h + top + bottom - kernel[0]) // stride + 1, (w + left + right - kernel[1]) // stride + 1)
        fan_in = c // groups * kernel[0] * kernel[1]
        weight = self.normal((2 / fan_in) ** 0.5, channels, c // groups, *kernel)
        y = self.op(
            "Conv", [x, weight], out, kernel_shape=list(kernel), strides=[stride, stride],
            pads=[top, left, bottom, right], group=groups,
        )  # fmt: skip
        scale, variance = self.rng.uniform(0.8, 1.2, (2, channels))
        shift, mean = self.rng.normal(0, 0.1, (2, channels))
        statistics = [self.constant(v) for v in (gain * scale, shift, mean, variance)]
        return self.activate(self.op("BatchNormalization", [y, *statistics], out), activation)

    @staticmethod
    def _same(size: int, kernel: int, stride: int) -> tuple[int, int]:
        if kernel % 2:
            return kernel // 2, kernel // 2
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        return total // 2, total - total // 2

    def activate(self, x: str, activation: str) -> str:
        shape = self.shapes[x]
        if activation == "relu":
            return self.op("Relu", [x], shape)
        if activation == "relu6":
            return self.op("Clip", [x, self.constant(0.0), self.constant(6.0)], shape)
        return x

    def add(self, a: str, b: str, activation: str = "") -> str:
        return self.activate(self.op("Add", [a, b], self.shapes[a]), activation)

    # ---------------------------------------------------------------------------------------- the rest
    def pooled(self, x: str) -> str:
        """Mean over the image, [N, C]."""
        n, c, _, _ = self.shapes[x]
        return self.op("Flatten", [self.op("GlobalAveragePool", [x], (n, c, 1, 1))], (n, c), axis=1)

    def fully_connected(self, x: str, features: int, activation: str = "") -> str:
        n, width = self.shapes[x]
        operands = [x, self.normal((2 / width) ** 0.5, features, width), self.normal(0.05, features)]
        return self.activate(self.op("Gemm", operands, (n, features), transB=1), activation)

    def softmax(self, x: str) -> str:
        return self.op("Softmax", [x], self.shapes[x], axis=-1)

    def model(self, output: str) -> onnx.ModelProto:
        self.nodes[-1].output[0] = "output"
        graph = helper.make_graph(
            self.nodes, self.name,
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, self.shapes["input"])],
            [helper.make_tensor_value_info("output", TensorProto.FLOAT, self.shapes[output])],
            self.weights,
        )  # fmt: skip
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model)
        return model


def resnet50() -> onnx.ModelProto:
    b = Builder("resnet50", [1, 3, 224, 224], 1)
    x = b.conv("input", 64, (7, 7), 2)
    n, c, h, w = b.shapes[x]
    x = b.op("MaxPool", [x], (n, c, h // 2, w // 2), kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    for width, blocks, first in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for i in range(blocks):
            stride = first if i == 0 else 1
            shortcut = x if i else b.conv(x, 4 * width, (1, 1), stride, activation="")
            y = b.conv(x, width, (1, 1))
            y = b.conv(y, width, (3, 3), stride)
            y = b.conv(y, 4 * width, (1, 1), activation="", gain=0.3)
            x = b.add(shortcut, y, "relu")
    return b.model(b.softmax(b.fully_connected(b.pooled(x), 1000)))


def _mobilenet_v1(name: str, size: int, width: float, classes: int, seed: int) -> onnx.ModelProto:
    b = Builder(name, [1, 3, size, size], seed)
    x = b.conv("input", int(32 * width), (3, 3), 2, activation="relu6")
    plan = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]
    for channels, stride in plan:
        here = b.shapes[x][1]
        x = b.conv(x, here, (3, 3), stride, groups=here, activation="relu6")
        x = b.conv(x, int(channels * width), (1, 1), activation="relu6")
    return b.model(b.softmax(b.fully_connected(b.pooled(x), classes)))


def mobilenet_v1() -> onnx.ModelProto:
    return _mobilenet_v1("mobilenet_v1", 224, 1.0, 1000, 2)


def vww() -> onnx.ModelProto:
    return _mobilenet_v1("vww", 96, 0.25, 2, 5)


def mobilenet_v2() -> onnx.ModelProto:
    b = Builder("mobilenet_v2", [1, 3, 224, 224], 3)
    x = b.conv("input", 32, (3, 3), 2, activation="relu6")
    plan = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
    for expansion, channels, blocks, first in plan:
        for i in range(blocks):
            here = b.shapes[x][1]
            y = x if expansion == 1 else b.conv(x, expansion * here, (1, 1), activation="relu6")
            y = b.conv(y, expansion * here, (3, 3), first if i == 0 else 1, expansion * here, activation="relu6")
            y = b.conv(y, channels, (1, 1), activation="", gain=0.5)
            x = b.add(x, y) if i else y
    x = b.conv(x, 1280, (1, 1), activation="relu6")
    return b.model(b.fully_connected(b.pooled(x), 1000))


def kws() -> onnx.ModelProto:
    b = Builder("kws", [1, 1, 49, 10], 4)
    x = b.conv("input", 64, (10, 4), 2)
    for _ in range(4):
        x = b.conv(b.conv(x, 64, (3, 3), groups=64), 64, (1, 1))
    return b.model(b.softmax(b.fully_connected(b.pooled(x), 12)))


def resnet8() -> onnx.ModelProto:
    b = Builder("resnet8", [1, 3, 32, 32], 6)
    x = b.conv("input", 16, (3, 3))
    for channels, stride in ((16, 1), (32, 2), (64, 2)):
        y = b.conv(b.conv(x, channels, (3, 3), stride), channels, (3, 3), activation="")
        x = b.add(x if stride == 1 else b.conv(x, channels, (1, 1), stride, activation=""), y, "relu")
    return b.model(b.softmax(b.fully_connected(b.pooled(x), 10)))


def ad() -> onnx.ModelProto:
    b = Builder("ad", [1, 640], 7)
    x = "input"
    for features in (128, 128, 128, 128, 8, 128, 128, 128, 128):
        x = b.fully_connected(x, features, "relu")
    return b.model(b.fully_connected(x, 640))


def bert(layers: int = 12, width: int = 768, heads: int = 12, hidden: int = 3072, length: int = 128) -> onnx.ModelProto:
    """The encoder behind the embeddings: its input is [1, tokens, features]."""
    b = Builder("bert", [1, length, width], 8)
    token, per_head = (1, length, width), (1, length, heads, width // heads)

    def linear(x: str, inputs: int, outputs: int) -> str:
        shape = (1, length, outputs)
        y = b.op("MatMul", [x, b.normal(inputs**-0.5, inputs, outputs)], shape)
        return b.op("Add", [y, b.normal(0.02, outputs)], shape)

    def layer_norm(x: str) -> str:
        gain, shift = b.constant(b.rng.uniform(0.8, 1.2, width)), b.normal(0.05, width)
        return b.op("LayerNormalization", [x, gain, shift], token, axis=-1, epsilon=1e-12)

    def split(x: str, permutation: list[int]) -> str:
        shape = b.constant(per_head, np.int64)
        x = b.op("Reshape", [x, shape], per_head)
        return b.op("Transpose", [x], tuple(per_head[p] for p in permutation), perm=permutation)

    def gelu(x: str) -> str:
        shape = b.shapes[x]
        erf = b.op("Erf", [b.op("Div", [x, b.constant(2**0.5)], shape)], shape)
        return b.op(
            "Mul", [b.op("Mul", [x, b.op("Add", [erf, b.constant(1.0)], shape)], shape), b.constant(0.5)], shape
        )

    x = "input"
    for _ in range(layers):
        q, k, v = (split(linear(x, width, width), p) for p in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]))
        square = (1, heads, length, length)
        scores = b.op("Div", [b.op("MatMul", [q, k], square), b.constant((width // heads) ** 0.5)], square)
        context = b.op("MatMul", [b.softmax(scores), v], (1, heads, length, width // heads))
        context = b.op("Transpose", [context], per_head, perm=[0, 2, 1, 3])
        context = b.op("Reshape", [context, b.constant(token, np.int64)], token)
        x = layer_norm(b.add(x, linear(context, width, width)))
        x = layer_norm(b.add(x, linear(gelu(linear(x, width, hidden)), hidden, width)))
    return b.model(x)


NETWORKS: dict[str, Callable[[], onnx.ModelProto]] = {
    f.__name__: f for f in (resnet50, mobilenet_v1, mobilenet_v2, kws, vww, resnet8, ad, bert)
}
"""By name, in the order of the table."""


def write(name: str, folder: Path) -> None:
    """model.onnx, and data.npz: "input", the calibration samples, and "test", a batch of one that all are timed on."""
    model = NETWORKS[name]()
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    samples = np.random.default_rng(100).normal(0, 1, (SAMPLES + 1, *shape[1:])).astype(np.float32)
    np.savez(folder / "data.npz", input=samples[:SAMPLES], test=samples[SAMPLES:])
    onnx.save(model, folder / "model.onnx")
