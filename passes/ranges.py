"""From observed ranges to int8 parameters: which tensors must share one range, and scale and zero point of a range."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from qcompiler.passes.fuse import MOVES, Fusion
from qcompiler.passes.graph import Graph, Node
from qcompiler.sim.numerics import SOFTMAX_ZERO_POINT, softmax_fraction_bits
from qcompiler.sim.widths import FULL, Widths, interval

if TYPE_CHECKING:
    from qcompiler.passes.moments import Moments

Range = tuple[float, float]
LEVELS = 255  # steps between the 256 values of int8
Parameters = tuple[float, int]
"""(scale, zero point) of an int8 tensor; the scale is a float32 value."""


class Calibration(dict[str, Parameters]):
    """What calibration found: tensor name to `Parameters`, in graph order.

    means: tensor name to the means of its channels (the last axis) over samples and positions, float64 [C], for the
    tensors that meet constant weights. widths: of the array that the parameters are for. narrow: tensor name to its
    bits, where these are fewer than 8 (`operands.narrow_tensors`). moments: by node, of what narrow weights multiply.
    """

    def __init__(
        self, parameters: Mapping[str, Parameters], means: Mapping[str, npt.NDArray[np.float64]],
        widths: Widths = FULL, narrow: Mapping[str, int] | None = None, moments: Mapping[str, Moments] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(parameters)
        self.means, self.widths, self.narrow, self.moments = means, widths, narrow or {}, moments or {}


SMALLEST_SCALE = float(np.finfo(np.float32).tiny)


def parameters(low: float, high: float, bits: int = 8) -> Parameters:
    """Scale and zero point so that signed integers of that many bits cover [low, high] and zero exactly.

    low <= 0 <= high, not both zero. Zero itself gets the nearest integer, then the ends move by less than half a step.
    """
    least, most = interval(bits)
    scale = float(np.float32((high - low) / (most - least)))
    zero = int(np.floor(least - low / scale + 0.5))
    return scale, min(max(zero, least), most)


def collapsed(low: float, high: float) -> str | None:
    """What makes a range useless, or None: it is not finite, is all zero, or too narrow for a float32 scale."""
    if not (np.isfinite(low) and np.isfinite(high)):
        return "is not finite"
    if low == high == 0.0:
        return "is zero for every sample"
    if (high - low) / LEVELS < SMALLEST_SCALE:
        return f"stays within {low:g}..{high:g}, narrower than a float32 scale can express"
    if (high - low) / LEVELS > float(np.finfo(np.float32).max) or high - low == np.inf:
        return f"reaches {low:g}..{high:g}, wider than a float32 scale can express"
    return None


def keeps_quantisation(graph: Graph, node: Node) -> bool:
    """The node's integer operation only moves or selects values: output and inputs share scale and zero point."""
    if node.op == "take":
        return node.inputs[0] not in graph.constants
    if node.op == "image.resize2d":
        return bool(node.attributes["method"] == "nearest_neighbor")
    return node.op in MOVES or node.op == "nn.max_pool2d"


def tied_groups(graph: Graph, fusion: Fusion) -> list[list[str]]:
    """The int8 tensors in groups that share one scale and zero point, each group in graph order."""
    parent = {name: name for name in fusion.quantised}

    def root(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    for node in graph.nodes:
        if node.name in fusion.reasons or node.name not in parent or not keeps_quantisation(graph, node):
            continue
        for name in graph.tensor_inputs(node):
            if name in parent:
                parent[root(name)] = root(node.name)
    groups: dict[str, list[str]] = {}
    for name in fusion.quantised:
        groups.setdefault(root(name), []).append(name)
    return list(groups.values())


def sources(graph: Graph, group: Iterable[str]) -> list[str]:
    """The tensors of a group whose values the others only repeat: those that no move of the group computes."""
    return [n for n in group if n not in graph.producers or not keeps_quantisation(graph, graph.producers[n])]


def group_parameters(graph: Graph, group: Iterable[str], low: float, high: float, bits: int = 8) -> Parameters:
    """`parameters`, or for what softmax alone computes the nearest that it can: a power of two and -128.

    A narrow softmax has any scale: a table behind the operation rounds its result once more.
    """
    if bits < 8:
        return parameters(low, high, bits)
    origin = [graph.producers.get(n) for n in sources(graph, group)]
    if origin and all(node is not None and node.op == "nn.softmax" for node in origin):
        return 2.0 ** -softmax_fraction_bits(high), SOFTMAX_ZERO_POINT
    return parameters(low, high)


def padded_values(graph: Graph, group: Iterable[str]) -> list[float]:
    """Constants that pads of the group write beside the observed values."""
    nodes = [graph.producers[n] for n in group if n in graph.producers]
    return [float(n.attributes.get("pad_value", 0.0)) for n in nodes if n.op == "nn.pad"]


def union(ranges: Mapping[str, Range], names: Iterable[str], extra: Iterable[float] = ()) -> Range:
    """The smallest range that holds the ranges of all names, the extra values and zero."""
    lows = [ranges[n][0] for n in names]
    highs = [ranges[n][1] for n in names]
    return min([*lows, *extra, 0.0]), max([*highs, *extra, 0.0])
