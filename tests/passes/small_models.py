"""Small float ONNX models with seeded random weights, and plausible inputs for the trained ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = np.ndarray[Any, Any]
Sample = dict[str, Array]


class Net:
    """Builds a graph node by node; every method returns the name of the tensor it made."""

    def __init__(self, seed: int, input_name: str, shape: tuple[int, ...]) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.input = helper.make_tensor_value_info(input_name, TensorProto.FLOAT, shape)

    def constant(self, value: Array, name: str) -> str:
        self.weights.append(numpy_helper.from_array(value, name))
        return name

    def random(self, name: str, *shape: int) -> str:
        fan = int(np.prod(shape[1:])) if len(shape) > 1 else 100
        return self.constant(self.rng.normal(0, np.sqrt(2 / fan), shape).astype(np.float32), name)

    def op(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def conv(self, x: str, name: str, ci: int, co: int, k: int, stride: int = 1, groups: int = 1, act: str = "") -> str:
        weights = [self.random(f"{name}.w", co, ci // groups, k, k), self.random(f"{name}.b", co)]
        y = self.op(
            "Conv", [x, *weights], name, kernel_shape=[k, k], strides=[stride] * 2, pads=[k // 2] * 4, group=groups
        )
        return self.op(act, [y], f"{name}.{act.lower()}") if act else y

    def dense(self, x: str, name: str, ci: int, co: int) -> str:
        weight = self.rng.normal(0, 1 / np.sqrt(ci), (ci, co)).astype(np.float32)
        y = self.op("MatMul", [x, self.constant(weight, f"{name}.w")], f"{name}.product")
        return self.op("Add", [y, self.random(f"{name}.b", co)], name)

    def model(self, output: str, shape: tuple[int, ...], opset: int = 17) -> onnx.ModelProto:
        result = helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)
        graph = helper.make_graph(self.nodes, "net", [self.input], [result], self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
        onnx.checker.check_model(model, full_check=True)
        return model


def residual_cnn() -> onnx.ModelProto:
    """Convolutions, a residual add with Relu, both pools joined, dense, softmax; image [1, 3, 32, 32]."""
    net = Net(0, "image", (1, 3, 32, 32))
    x = net.conv("image", "stem", 3, 16, 3, 2, act="Relu")
    y = net.conv(net.conv(x, "a", 16, 16, 3, act="Relu"), "b", 16, 16, 3)
    x = net.op("Relu", [net.op("Add", [x, y], "sum")], "sum.relu")
    x = net.conv(x, "c", 16, 24, 3, 2, act="Relu")
    pools = [
        net.op("MaxPool", [x], "max", kernel_shape=[2, 2], strides=[2, 2]),
        net.op("AveragePool", [x], "average", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    ]
    x = net.op("Concat", pools, "joined", axis=1)
    x = net.op("Flatten", [net.conv(x, "d", 48, 10, 3, 2)], "flat")
    x = net.op("Gemm", [x, net.random("fc.w", 40, 10), net.random("fc.b", 10)], "logits")
    return net.model(net.op("Softmax", [x], "scores", axis=1), (1, 10))


def mobilenet_like() -> onnx.ModelProto:
    """Inverted residuals with depthwise convolutions and Relu6, linear bottlenecks; image [1, 3, 32, 32]."""
    net = Net(1, "image", (1, 3, 32, 32))
    zero = net.constant(np.float32(0).reshape(()), "zero")
    six = net.constant(np.float32(6).reshape(()), "six")

    def relu6(x: str) -> str:
        return net.op("Clip", [x, zero, six], f"{x}.relu6")

    x = relu6(net.conv("image", "stem", 3, 16, 3, 2))
    for i, (ci, co, stride) in enumerate([(16, 24, 2), (24, 24, 1), (24, 32, 2)]):
        y = relu6(net.conv(x, f"expand{i}", ci, 4 * ci, 1))
        y = relu6(net.conv(y, f"depthwise{i}", 4 * ci, 4 * ci, 3, stride, groups=4 * ci))
        y = net.conv(y, f"project{i}", 4 * ci, co, 1)
        x = net.op("Add", [x, y], f"add{i}") if ci == co and stride == 1 else y
    x = relu6(net.conv(x, "head", 32, 64, 1))
    x = net.op("Flatten", [net.op("GlobalAveragePool", [x], "pooled")], "flat")
    x = net.op("Gemm", [x, net.random("fc.w", 64, 10), net.random("fc.b", 10)], "logits")
    return net.model(x, (1, 10))


def transformer_block(length: int = 16, width: int = 32, heads: int = 4) -> onnx.ModelProto:
    """Self-attention and a GELU feed-forward with residuals and LayerNormalization; tokens [1, length, width]."""
    net = Net(2, "tokens", (1, length, width))
    depth = width // heads

    def split(x: str, name: str, order: list[int]) -> str:
        shape = net.constant(np.array([1, length, heads, depth], np.int64), f"{name}.shape")
        return net.op("Transpose", [net.op("Reshape", [x, shape], f"{name}.split")], name, perm=order)

    def norm(x: str, name: str) -> str:
        gamma = net.constant(net.rng.uniform(0.8, 1.2, width).astype(np.float32), f"{name}.gamma")
        return net.op("LayerNormalization", [x, gamma, net.random(f"{name}.beta", width)], name, axis=-1)

    q, k, v = (net.dense("tokens", n, width, width) for n in ("q", "k", "v"))
    q, k, v = split(q, "qh", [0, 2, 1, 3]), split(k, "kh", [0, 2, 3, 1]), split(v, "vh", [0, 2, 1, 3])
    scale = net.constant(np.float32(np.sqrt(depth)).reshape(()), "scale")
    scores = net.op("Div", [net.op("MatMul", [q, k], "similarity"), scale], "scaled")
    mixed = net.op("MatMul", [net.op("Softmax", [scores], "attention", axis=-1), v], "mixed")
    merged = net.op("Transpose", [mixed], "merged", perm=[0, 2, 1, 3])
    flat = net.op("Reshape", [merged, net.constant(np.array([1, length, width], np.int64), "flat.shape")], "flat")
    x = norm(net.op("Add", ["tokens", net.dense(flat, "out", width, width)], "residual1"), "norm1")
    h = net.dense(x, "up", width, 4 * width)
    root, one, half = (net.constant(np.float32(c).reshape(()), n) for c, n in ((2**0.5, "r2"), (1, "one"), (0.5, "h")))
    erf = net.op("Erf", [net.op("Div", [h, root], "gelu.div")], "gelu.erf")
    inner = net.op("Mul", [h, net.op("Add", [erf, one], "gelu.add")], "gelu.mul")
    h = net.dense(net.op("Mul", [inner, half], "gelu"), "down", 4 * width, width)
    return net.model(norm(net.op("Add", [x, h], "residual2"), "encoded"), (1, length, width))


def normal_samples(model: onnx.ModelProto, count: int, seed: int = 3) -> list[Sample]:
    """Standard normal values for every input."""
    rng = np.random.default_rng(seed)
    shapes = {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim] for i in model.graph.input}
    return [{n: rng.normal(0, 1, s).astype(np.float32) for n, s in shapes.items()} for _ in range(count)]


def smooth_images(count: int, seed: int, size: int = 32) -> list[Array]:
    """Random images [size, size, 3] of 0..255 whose neighbouring pixels are alike, with a little noise."""
    rng = np.random.default_rng(seed)
    at = np.linspace(0, 3.999, size)
    low, part = at.astype(int), at - at.astype(int)
    mix = np.zeros((size, 5))
    mix[np.arange(size), low], mix[np.arange(size), low + 1] = 1 - part, part
    coarse = rng.uniform(0, 255, (count, 5, 5, 3))
    images = np.einsum("yi,nijc,xj->nyxc", mix, coarse, mix) + rng.normal(0, 8, (count, size, size, 3))
    return list(np.clip(images, 0, 255).astype(np.float32))


def log_mel_frames(count: int, seed: int) -> list[Array]:
    """Five consecutive log-mel frames [640] of correlated noise around a falling spectrum."""
    rng = np.random.default_rng(seed)
    kernel = np.exp(-0.5 * (np.arange(-8, 9) / 3) ** 2)
    kernel /= np.sqrt((kernel**2).sum())
    spectrum = -20 + 10 * np.cos(np.linspace(0, 3, 128))
    found = []
    for _ in range(count):
        frames = np.stack([np.convolve(row, kernel, "same") for row in rng.normal(0, 1, (5, 128))])
        for t in range(1, 5):
            frames[t] = 0.8 * frames[t - 1] + 0.6 * frames[t]
        found.append((spectrum + rng.normal(0, 3) + 4 * frames).reshape(640).astype(np.float32))
    return found
