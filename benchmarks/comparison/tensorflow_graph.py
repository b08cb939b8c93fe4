"""Runs in the peers' environment: an ONNX file of `networks.py` as a TensorFlow function, images in NHWC.

Only what those networks hold is known. Batch normalisation is folded into the convolution before it, as every
exporter to TFLite does; 1x1 matrix products stay fully connected layers. A matrix product with constant weights is one
of rows, of which the converter makes a fully connected layer; GELU is TensorFlow's own, one operation in TFLite.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import tensorflow as tf
from onnx import numpy_helper
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

Tensor = Any


def function_of(path: Path) -> tuple[Any, Callable[[np.ndarray], np.ndarray]]:
    """(concrete function of one input, what brings an ONNX input into its layout)."""
    graph = onnx.load(path).graph
    shape = [d.dim_value for d in graph.input[0].type.tensor_type.shape.dim]
    image = len(shape) == 4
    shape = [shape[0], shape[2], shape[3], shape[1]] if image else shape

    def run(x: Tensor) -> Tensor:
        return _Run(graph)(x)

    function = tf.function(run).get_concrete_function(tf.TensorSpec(shape, tf.float32))
    return (
        convert_variables_to_constants_v2(function),
        lambda value: np.ascontiguousarray(np.transpose(value, (0, 2, 3, 1)) if image else value),
    )


class _Run:
    def __init__(self, graph: Any) -> None:
        self.graph = graph
        self.constants = {w.name: numpy_helper.to_array(w) for w in graph.initializer}
        self.readers: dict[str, list[Any]] = {}
        for node in graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)

    def __call__(self, x: Tensor) -> Tensor:
        self.values: dict[str, Tensor] = {self.graph.input[0].name: x}
        for node in self.graph.node:
            if node.output[0] in self.values:
                continue
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            operation = getattr(self, f"_{node.op_type.lower()}", None)
            if operation is None:
                raise NotImplementedError(f"{node.op_type} has no TensorFlow form in this benchmark")
            inputs = [self.values.get(n, self.constants.get(n)) for n in node.input]
            self.values[node.output[0]] = operation(node, inputs, attributes)
        return self.values[self.graph.output[0].name]

    def _conv(self, node: Any, inputs: list[Any], attributes: dict[str, Any]) -> Tensor:
        x, weight = inputs[:2]
        scale, shift = np.ones(len(weight), np.float32), np.zeros(len(weight), np.float32)
        readers = self.readers.get(node.output[0], [])
        norm = readers[0] if len(readers) == 1 and readers[0].op_type == "BatchNormalization" else None
        if norm is not None:
            gamma, beta, mean, variance = (self.constants[n] for n in norm.input[1:5])
            epsilon = next((a.f for a in norm.attribute if a.name == "epsilon"), 1e-5)
            scale = gamma / np.sqrt(variance + epsilon)
            shift = beta - mean * scale
        kernel = np.transpose(weight * scale[:, None, None, None], (2, 3, 1, 0))
        top, left, bottom, right = attributes["pads"]
        strides, depthwise = attributes["strides"], attributes["group"] > 1
        padding: Any = "VALID"
        if any(attributes["pads"]):
            same = self._same(x.shape[1:3], kernel.shape[:2], strides)
            if same == (top, bottom, left, right):
                padding = "SAME"
            else:
                x = tf.pad(x, [[0, 0], [top, bottom], [left, right], [0, 0]])
        if depthwise:
            kernel = np.transpose(kernel, (0, 1, 3, 2))
            y = tf.nn.depthwise_conv2d(x, kernel, [1, *strides, 1], padding)
        else:
            y = tf.nn.conv2d(x, kernel, strides, padding)
        y = tf.nn.bias_add(y, shift.astype(np.float32))
        if norm is not None:
            self.values[norm.output[0]] = y
        return y

    @staticmethod
    def _same(size: Any, kernel: Any, strides: list[int]) -> tuple[int, ...]:
        total = [max((-(-n // s) - 1) * s + k - n, 0) for n, k, s in zip(size, kernel, strides, strict=True)]
        return tuple(part for t in total for part in (t // 2, t - t // 2))

    def _relu(self, node: Any, inputs: list[Any], attributes: dict[str, Any]) -> Tensor:
        return tf.nn.relu(inputs[0])

    def _clip(self, node: Any, inputs: list[Any], attributes: dict[str, Any]) -> Tensor:
        return tf.nn.relu6(inputs[0])

    def _add(self, node: Any, inputs: list[Any], attributes: dict[str, Any]) -> Tensor:
        return inputs[0] + inputs[1]

    def _mul(self, node: Any, inputs: list[Any], attributes: dict[str, Any]) -> Tensor:
        return inputs[0] * inputs[1]

    def _div(self, node: Any, inputs: list[Any], attributes: dict[str, Any]) -> Tensor:
        chain = self._chain(node, ["Erf", "Add", "Mul", "Mul"])
        if chain is None:
            return inputs[0] / inputs[1]
        # x / sqrt(2) -> Erf -> + 1 -> * x -> * 1/2
        for inner in chain:
            self.values[inner.output[0]] = None
        self.values[chain[-1].output[0]] = tf.nn.gelu(inputs[0])
        return None

    def _chain(self, node: Any, kinds: list[str]) -> list[Any] | None:
        """The nodes of those kinds behind one, each the only reader of the one before; None where they are others."""
        found = []
        for kind in kinds:
            readers = self.readers.get(node.output[0], [])
            if len(readers) != 1 or readers[0].op_type != kind:
                return None
            node = readers[0]
            found.append(node)
        return found

    def _matmul(self, node: Any, inputs: list[Any], attributes: dict[str, Any]) -> Tensor:
        a, b = inputs
        if not isinstance(b, np.ndarray):
            return tf.matmul(a, b)
        rows = tf.matmul(tf.reshape(a, [-1, b.shape[0]]), b)
        return tf.reshape(rows, [*a.shape[:-1], b.shape[1]])

    def _reshape(self, node: Any, inputs: list[Any], attributes: dict[str, Any]) -> Tensor:
        return tf.reshape(inputs[0], inputs[1])

    def _transpose(self, node: Any, inputs: list[Any], attributes: dict[str, Any]) -> Tensor:
        return tf.transpose(inputs[0], attributes["perm"])

    def _layernormalization(self, node: Any, inputs: list[Any], attributes: dict[str, Any]) -> Tensor:
        x, gain, shift = inputs
        centred = x - tf.reduce_mean(x, axis=-1, keepdims=True)
        variance = tf.reduce_mean(centred * centred, axis=-1, keepdims=True)
        return centred * tf.math.rsqrt(variance + attributes["epsilon"]) * gain + shift

    def _maxpool(self, node: Any, inputs: list[Any], attributes: dict[str, Any]) -> Tensor:
        top, left, bottom, right = attributes["pads"]
        # Behind a ReLU zero is the least value.
        x = tf.pad(inputs[0], [[0, 0], [top, bottom], [left, right], [0, 0]])
        return tf.nn.max_pool2d(x, attributes["kernel_shape"], attributes["strides"], "VALID")

    def _globalaveragepool(self, node: Any, inputs: list[Any], attributes: dict[str, Any]) -> Tensor:
        return tf.reduce_mean(inputs[0], axis=[1, 2])

    def _flatten(self, node: Any, inputs: list[Any], attributes: dict[str, Any]) -> Tensor:
        return inputs[0]

    def _gemm(self, node: Any, inputs: list[Any], attributes: dict[str, Any]) -> Tensor:
        return tf.nn.bias_add(tf.matmul(inputs[0], inputs[1].T), inputs[2])

    def _softmax(self, node: Any, inputs: list[Any], attributes: dict[str, Any]) -> Tensor:
        return tf.nn.softmax(inputs[0], axis=-1)
