"""First and second moments of what narrow weights multiply: which rounding errors of a weight matter, and together.

A convolution's output channel is the product of its weights with the window under them, a vector of K values. With
that vector's covariance C, weights that are off by d put noise of power ``d C d`` on the output beside a shift of its
mean, ``d . E[x]``, which the bias takes out. Memory is K x K for each node, whatever the number of samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from qcompiler.passes.graph import Graph, Node
from qcompiler.passes.ranges import Parameters
from qcompiler.sim.numerics import dequantize_linear
from qcompiler.sim.widths import interval

Array = npt.NDArray[Any]
MAX_WINDOWS = 4096  # of one tensor and batch, evenly spread, so that large images do not take minutes
CHUNK_BYTES = 1 << 26


@dataclass
class Moments:
    """Of the windows that a node's weights multiply, by group [G]: as the array sees them, and as they really are.

    parameters, bits: how the tensor is rounded on its way into the array. second: keep the covariance, too.
    """

    node: Node
    parameters: Parameters
    bits: int
    second: bool = True
    count: int = 0
    sums: Array = field(default_factory=lambda: np.zeros(0))
    real_sums: Array = field(default_factory=lambda: np.zeros(0))
    products: Array = field(default_factory=lambda: np.zeros(0))

    def update(self, graph: Graph, x: Array) -> None:
        """x: float32 values of the node's input, one batch."""
        real = windows(graph, self.node, x)
        seen = windows(graph, self.node, rounded(x, self.parameters, self.bits))
        if not self.count:
            groups, _, length = real.shape
            self.sums, self.real_sums = np.zeros((groups, length)), np.zeros((groups, length))
            self.products = np.zeros((groups, length, length) if self.second else 0, np.float32)
        self.count += real.shape[1]
        self.sums += seen.sum(axis=1, dtype=np.float64)
        self.real_sums += real.sum(axis=1, dtype=np.float64)
        for group, rows in enumerate(seen if self.second else ()):
            self.products[group] += rows.T @ rows

    @property
    def mean(self) -> Array:
        """[G, K], of the rounded values."""
        return self.sums / max(self.count, 1)

    @property
    def real_mean(self) -> Array:
        """[G, K], of the float model's values."""
        return self.real_sums / max(self.count, 1)

    def covariance(self, centred: bool) -> Array:
        """[G, K, K] of the rounded values; about zero where not centred."""
        second = self.products.astype(np.float64) / max(self.count, 1)
        return second - self.mean[:, :, np.newaxis] * self.mean[:, np.newaxis, :] if centred else second


def rounded(x: Array, parameters: Parameters, bits: int) -> npt.NDArray[np.float32]:
    """x as integers of that many bits stand for it."""
    scale, zero = np.float32(parameters[0]), parameters[1]
    q = np.clip(np.rint(x / scale) + np.float32(zero), *interval(bits)).astype(np.int8)
    return dequantize_linear(q, scale, zero)


def windows(graph: Graph, node: Node, x: Array) -> npt.NDArray[np.float32]:
    """[G, positions, K]: what the weights of each group multiply, K in the order of a weight's own axes."""
    if node.op == "matmul":
        return np.ascontiguousarray(x.reshape(1, -1, x.shape[-1])[:, :: _every(x.size // max(x.shape[-1], 1))])
    a = node.attributes
    _, kernel_h, kernel_w, depth = graph.types[node.inputs[1]].shape
    padding = (tuple(int(p) for p in a["padding"]) * 4)[:4]
    stride, dilation = ((int(a[key][0]), int(a[key][-1])) for key in ("strides", "dilation"))
    padded = np.pad(x, ((0, 0), (padding[0], padding[2]), (padding[1], padding[3]), (0, 0)))
    extent = ((kernel_h - 1) * dilation[0] + 1, (kernel_w - 1) * dilation[1] + 1)
    view = np.lib.stride_tricks.sliding_window_view(padded, extent, axis=(1, 2))
    view = view[:, :: stride[0], :: stride[1], :, :: dilation[0], :: dilation[1]]  # N, OH, OW, C, KH, KW
    positions = view.reshape(-1, *view.shape[3:]) if view.size * 4 <= CHUNK_BYTES else _thinned(view)
    positions = positions[:: _every(len(positions))]
    groups = int(a["groups"])
    grouped = positions.reshape(len(positions), groups, depth, kernel_h, kernel_w).transpose(1, 0, 3, 4, 2)
    return np.ascontiguousarray(grouped.reshape(groups, len(positions), -1), dtype=np.float32)


def _every(count: int) -> int:
    return -(-count // MAX_WINDOWS)


def _thinned(view: Array) -> Array:
    """Every so many-th position of a view that is too large to copy, about `MAX_WINDOWS` in all."""
    images, height, width = view.shape[:3]
    step = max(1, int(np.sqrt(images * height * width / MAX_WINDOWS)))
    part = view[:, ::step, ::step]
    return part.reshape(-1, *part.shape[3:])


def weight_rows(node: Node, weight: Array) -> Array:
    """A weight as [O, K], K in the order of `windows`."""
    return weight.reshape(len(weight), -1) if node.op == "nn.conv2d" else weight.T


def collect(graph: Graph, moments: Sequence[Moments], values: Iterable[tuple[str, Array]]) -> dict[str, Moments]:
    """Fill the moments from pairs of a tensor and its values of one batch; the moments by the node's name."""
    by_tensor: dict[str, list[Moments]] = {}
    for m in moments:
        by_tensor.setdefault(m.node.inputs[0], []).append(m)
    for name, value in values:
        for m in by_tensor.get(name, ()):
            m.update(graph, value)
    return {m.node.name: m for m in moments}
