"""Random networks against ONNX Runtime: what single operators and hand-made graphs do not combine."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx_graphs import check, model

Shape = tuple[int, ...]


class Network:
    """Grows a graph from the input x; every step picks tensors that exist and adds one."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self.shapes: dict[str, Shape] = {"x": (int(self.rng.integers(1, 3)), 4, 8, 6)}

    def constant(self, value: np.ndarray) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = value if value.dtype == np.int64 else value.astype(np.float32)
        return name

    def weight(self, *shape: int) -> str:
        return self.constant(self.rng.normal(0, 1 / np.sqrt(max(np.prod(shape[1:]), 1)), shape))

    def add(self, op: str, inputs: list[str], shape: Shape, **attributes: object) -> None:
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=f"{op}_{name}", **attributes))
        self.shapes[name] = tuple(int(d) for d in shape)

    def pick(self, rank: int | None = None) -> str:
        """A tensor, recent ones more often."""
        names = [n for n, s in self.shapes.items() if rank is None or len(s) == rank]
        return names[-1] if self.rng.random() < 0.6 else str(self.rng.choice(names))

    # ------------------------------------------------------------------------------------- steps
    def conv(self) -> None:
        x = self.pick(4)
        n, c, h, w = self.shapes[x]
        groups = c if self.rng.random() < 0.3 else 1
        out = c if groups > 1 else int(self.rng.integers(1, 6)) * 2
        pad = [int(p) for p in self.rng.integers(0, 2, 4)]
        k = [min(3, h + pad[0] + pad[2]), min(2, w + pad[1] + pad[3])]
        stride = [int(s) for s in self.rng.integers(1, 3, 2)]
        size = [(h + pad[0] + pad[2] - k[0]) // stride[0] + 1, (w + pad[1] + pad[3] - k[1]) // stride[1] + 1]
        inputs = [x, self.weight(out, c // groups, *k), *([self.weight(out)] if self.rng.random() < 0.5 else [])]
        self.add("Conv", inputs, (n, out, *size), pads=pad, strides=stride, group=groups)

    def conv_transpose(self) -> None:
        x = self.pick(4)
        n, c, h, w = self.shapes[x]
        if h * w > 200:
            return
        k, s = (int(v) for v in self.rng.integers(1, 4, 2))
        pad = int(self.rng.integers(0, 2)) if s * (min(h, w) - 1) + k > 2 else 0
        size = [s * (d - 1) + k - 2 * pad for d in (h, w)]
        self.add("ConvTranspose", [x, self.weight(c, 4, k, k)], (n, 4, *size), strides=[s, s], pads=[pad] * 4)

    def batch_norm(self) -> None:
        x = self.pick()
        shape = self.shapes[x]
        if len(shape) < 2:
            return
        values = [self.rng.uniform(0.5, 1.5, shape[1]) for _ in range(4)]
        self.add("BatchNormalization", [x, *(self.constant(v) for v in values)], shape)

    def affine(self) -> None:
        x = self.pick()
        shape = self.shapes[x]
        axis = int(self.rng.integers(len(shape)))
        vector = [d if i == axis else 1 for i, d in enumerate(shape)]
        op = str(self.rng.choice(["Add", "Sub", "Mul", "Div"]))
        value = self.constant(self.rng.uniform(0.5, 1.5, vector[int(self.rng.integers(axis + 1)) :]))
        # A constant over a tensor has poles, where float32 means nothing.
        self.add(op, [x, value] if op == "Div" or self.rng.random() < 0.8 else [value, x], shape)

    def activation(self) -> None:
        x = self.pick()
        op = str(self.rng.choice(["Relu", "Sigmoid", "Tanh", "LeakyRelu", "Identity", "HardSwish", "Softplus"]))
        self.add(op, [x], self.shapes[x])

    def binary(self) -> None:
        x = self.pick()
        same = [n for n, s in self.shapes.items() if s == self.shapes[x]]
        self.add(str(self.rng.choice(["Add", "Mul", "Sub", "Max"])), [x, str(self.rng.choice(same))], self.shapes[x])

    def gate(self) -> None:
        x = self.pick(4)
        n, c, _, _ = self.shapes[x]
        self.add("GlobalAveragePool", [x], (n, c, 1, 1))
        self.add("Mul", [x, f"t{len(self.nodes) - 1}"], self.shapes[x])

    def pool(self) -> None:
        x = self.pick(4)
        n, c, h, w = self.shapes[x]
        if min(h, w) < 2:
            return
        size = (n, c, (h - 2) // 2 + 1, w - 1)
        self.add(str(self.rng.choice(["MaxPool", "AveragePool"])), [x], size, kernel_shape=[2, 2], strides=[2, 1])

    def concat(self) -> None:
        x = self.pick()
        axis = int(self.rng.integers(len(self.shapes[x])))
        rest = self.shapes[x][:axis] + self.shapes[x][axis + 1 :]
        same = [n for n, s in self.shapes.items() if len(s) == len(rest) + 1 and s[:axis] + s[axis + 1 :] == rest]
        y = str(self.rng.choice(same))
        shape = list(self.shapes[x])
        shape[axis] += self.shapes[y][axis]
        if np.prod(shape) < 4000:
            self.add("Concat", [x, y], tuple(shape), axis=axis)

    def slice(self) -> None:
        x = self.pick()
        shape = list(self.shapes[x])
        axis = int(self.rng.integers(len(shape)))
        if shape[axis] < 2:
            return
        shape[axis] -= 1
        bounds = [self.constant(np.array([v], np.int64)) for v in (1, shape[axis] + 1, axis)]
        self.add("Slice", [x, *bounds], tuple(shape))

    def pad(self) -> None:
        x = self.pick()
        widths = self.rng.integers(0, 2, 2 * len(self.shapes[x]))
        widths[[0, len(widths) // 2]] = 0
        shape = [d + widths[i] + widths[i + len(widths) // 2] for i, d in enumerate(self.shapes[x])]
        if np.prod(shape) < 4000:
            self.add("Pad", [x, self.constant(widths)], tuple(shape))

    def transpose(self) -> None:
        x = self.pick()
        order = self.rng.permutation(len(self.shapes[x]))
        if self.rng.random() < 0.5 and len(order) == 4:
            order = np.array([[0, 2, 3, 1], [0, 3, 1, 2]][int(self.rng.integers(2))])
        self.add("Transpose", [x], tuple(self.shapes[x][i] for i in order), perm=order.tolist())

    def reshape(self) -> None:
        x = self.pick()
        n, *rest = self.shapes[x]
        total = int(np.prod(rest))
        half = next(d for d in range(int(np.sqrt(total)), 0, -1) if total % d == 0)
        targets = [(n, total), (n, half, total // half), (n, 1, half, total // half), (n, half, -1, 1)]
        if rest:
            targets.append((n, rest[0], -1))
        target = targets[int(self.rng.integers(len(targets)))]
        known = int(np.prod([d for d in target if d > 0]))
        shape = tuple(d if d > 0 else n * total // known for d in target)
        self.add("Reshape", [x, self.constant(np.array(target, np.int64))], shape)

    def shuffle(self) -> None:
        x = self.pick(4)
        n, c, h, w = self.shapes[x]
        if c % 2:
            return
        self.add("Reshape", [x, self.constant(np.array([n, 2, c // 2, h, w], np.int64))], (n, 2, c // 2, h, w))
        self.add("Transpose", [f"t{len(self.nodes) - 1}"], (n, c // 2, 2, h, w), perm=[0, 2, 1, 3, 4])
        self.add("Reshape", [f"t{len(self.nodes) - 1}", self.constant(np.array([n, c, h, w], np.int64))], (n, c, h, w))

    def reduce(self) -> None:
        x = self.pick()
        shape = self.shapes[x]
        if len(shape) < 3:
            return
        count = int(self.rng.integers(1, 3))
        axes = sorted(int(a) for a in self.rng.choice(np.arange(1, len(shape)), size=count, replace=False))
        keep = int(self.rng.integers(2))
        result = [1 if i in axes else d for i, d in enumerate(shape) if keep or i not in axes]
        self.add(str(self.rng.choice(["ReduceMean", "ReduceMax"])), [x], tuple(result), axes=axes, keepdims=keep)

    def softmax(self) -> None:
        x = self.pick()
        self.add("Softmax", [x], self.shapes[x], axis=int(self.rng.integers(len(self.shapes[x]))))

    def dense(self) -> None:
        x = self.pick()
        shape = self.shapes[x]
        if len(shape) >= 2:
            self.add("MatMul", [x, self.weight(shape[-1], 5)], (*shape[:-1], 5))

    def resize(self) -> None:
        x = self.pick(4)
        n, c, h, w = self.shapes[x]
        if h * w < 60:
            mode = str(self.rng.choice(["nearest", "linear"]))
            scales = self.constant(np.array([1, 1, 2, 2], np.float32))
            self.add("Resize", [x, "", scales], (n, c, 2 * h, 2 * w), mode=mode)

    def grow(self, steps: int) -> onnx.ModelProto:
        """A network of about `steps` nodes; everything that nothing reads is an output."""
        kinds: list[Callable[[], None]] = [
            self.conv, self.conv, self.conv_transpose, self.batch_norm, self.affine, self.affine, self.activation,
            self.activation, self.binary, self.gate, self.pool, self.concat, self.slice, self.pad, self.transpose,
            self.reshape, self.shuffle, self.reduce, self.softmax, self.dense, self.resize,
        ]  # fmt: skip
        while len(self.nodes) < steps:
            kinds[int(self.rng.integers(len(kinds)))]()
        read = {i for n in self.nodes for i in n.input}
        return model(self.nodes, {"x": self.shapes["x"]}, [n for n in self.shapes if n not in read], self.constants)


@pytest.mark.parametrize("seed", range(40))
def test_random_networks(seed: int) -> None:
    check(Network(seed).grow(14), tolerance=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1000, 1400))
def test_many_random_networks(seed: int) -> None:
    check(Network(seed).grow(20), tolerance=1e-4)
