"""Which float operators become one integer operation together, and so which tensors exist as int8.

An integer operation of the program covers a root operator and what it absorbs:

- behind a root with a requantise step (convolution, matmul, add, mul, mean, ...): a constant bias vector and
  positive constant factors (matrix work only), then Relu and Clip, which become its clamp;
- any connected element-wise subgraph that reads one tensor (HardSwish, SiLU, GELU by Erf, exp/log chains, ...):
  one table.

Tensors between the operators of such a group are never rounded to int8: rounding them would cost accuracy and a
pass over memory. `analyse` finds the groups of a float graph; it changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from qcompiler.passes.graph import Graph, Node

UNARY = frozenset({
    "abs", "negative", "exp", "log", "sqrt", "rsqrt", "square", "erf", "sigmoid", "tanh", "sin", "cos", "tan", "asin",
    "acos", "atan", "sinh", "cosh", "asinh", "acosh", "atanh", "floor", "ceil", "round", "sign", "trunc", "clip",
    "nn.relu", "nn.leakyrelu", "nn.silu", "nn.gelu", "nn.gelu_tanh", "nn.selu", "nn.softplus",
})  # fmt: skip
BINARY = frozenset({"add", "subtract", "multiply", "divide", "power", "maximum", "minimum", "nn.prelu", "mod"})
POINTWISE = UNARY | BINARY
CLAMPS = frozenset({"nn.relu", "clip"})
MOVES = frozenset({
    "reshape", "squeeze", "expand_dims", "flatten", "permute_dims", "strided_slice", "concat", "nn.pad", "take",
    "broadcast_to", "tile",
})  # fmt: skip
MATRIX = frozenset({"nn.conv2d", "matmul"})
CLAMPED = MATRIX | {"add", "subtract", "multiply", "mean", "nn.avg_pool2d", "nn.layer_norm", "image.resize2d"}
"""Roots whose integer operation ends in a clamp."""

SOFTMAX_MAX_LENGTH = 1 << 16
LAYER_NORM_MAX_LENGTH = 1 << 14


# --------------------------------------------------------------------- rules: None, or why it stays float
Rule = Callable[[Graph, Node], "str | None"]


def _rank(graph: Graph, name: str) -> int:
    return len(graph.types[name].shape)


def _conv2d(graph: Graph, node: Node) -> str | None:
    if node.inputs[1] not in graph.constants:
        return "the weight is computed at run time"
    if (node.attributes["data_layout"], node.attributes["kernel_layout"]) != ("NHWC", "OHWI"):
        return "the convolution is not in NHWC"
    return None


def _matmul(graph: Graph, node: Node) -> str | None:
    a, b = node.inputs
    if _rank(graph, a) < 2 or _rank(graph, b) < 2:
        return "a matmul with a vector operand has no integer form"
    return None


def _broadcasts(graph: Graph, node: Node) -> str | None:
    if len(graph.tensor_inputs(node)) < 1:
        return "both operands are constants"
    return None


def _softmax(graph: Graph, node: Node) -> str | None:
    rank = _rank(graph, node.inputs[0])
    if int(node.attributes.get("axis", -1)) % rank != rank - 1:
        return "the integer softmax works along the last axis only"
    if graph.types[node.inputs[0]].shape[-1] >= SOFTMAX_MAX_LENGTH:
        return f"the integer softmax takes at most {SOFTMAX_MAX_LENGTH - 1} elements"
    return None


def _layer_norm(graph: Graph, node: Node) -> str | None:
    x, gamma, beta = node.inputs
    rank, length = _rank(graph, x), graph.types[x].shape[-1]
    if [int(i) % rank for i in node.attributes["axes"]] != [rank - 1]:
        return "the integer layer norm works along the last axis only"
    if gamma not in graph.constants or beta not in graph.constants:
        return "gamma or beta is computed at run time"
    if length > LAYER_NORM_MAX_LENGTH or length < 2:
        return f"the integer layer norm takes 2 to {LAYER_NORM_MAX_LENGTH} elements"
    return None


def _resize(graph: Graph, node: Node) -> str | None:
    a = node.attributes
    if a["method"] == "cubic" or a["coordinate_transformation_mode"] == "tf_crop_and_resize":
        return f"no integer form of a resize with {a['method']} and {a['coordinate_transformation_mode']}"
    return None


def _take(graph: Graph, node: Node) -> str | None:
    x, index = node.inputs
    axis = node.attributes.get("axis")
    if index in graph.constants:
        if axis is None or graph.constants[index].ndim > 1:
            return "gather with an index of several axes has no integer form"
        return None
    if x in graph.constants and _rank(graph, x) == 2 and axis is not None and int(axis) % 2 == 0:
        return None
    return "gather by a run-time index has an integer form for rows of a constant table only"


def _pad(graph: Graph, node: Node) -> str | None:
    if node.attributes["pad_mode"] == "constant" and not np.isfinite(float(node.attributes.get("pad_value", 0.0))):
        return "pads with a value that is not finite"
    return None


def _accept(graph: Graph, node: Node) -> str | None:
    return None


RULES: dict[str, Rule] = {
    "nn.conv2d": _conv2d, "matmul": _matmul, "add": _broadcasts, "subtract": _broadcasts, "multiply": _broadcasts,
    "mean": _accept, "nn.avg_pool2d": _accept, "nn.max_pool2d": _accept, "nn.softmax": _softmax,
    "nn.layer_norm": _layer_norm, "image.resize2d": _resize, "take": _take, "nn.pad": _pad,
    **{op: _accept for op in sorted(MOVES - {"take", "nn.pad"})},
}  # fmt: skip


def declines(graph: Graph, node: Node) -> str | None:
    """Why the operator has no integer form of its own (tables apart), or None when it has one."""
    kinds = {graph.types[n].dtype for n in (*graph.tensor_inputs(node), node.name)}
    if node.op == "take" and node.inputs[1] not in graph.constants:
        kinds -= {graph.types[node.inputs[1]].dtype}
    if kinds - {"float32"}:
        return f"works on {', '.join(sorted(kinds - {'float32'}))}"
    if node.op not in RULES:
        return f"{node.op} has no integer form"
    return RULES[node.op](graph, node)


# --------------------------------------------------------------------------------------- absorption
def is_bias(graph: Graph, root: Node, node: Node) -> bool:
    """`node` adds a constant vector over the last axis (or a scalar) to the result of matrix work."""
    if node.op != "add" or root.op not in MATRIX or not has_weight(graph, root):
        return False
    return any(
        n in graph.constants
        and graph.types[n].shape[-1:] in ((graph.types[root.name].shape[-1],), (1,), ())
        and all(d == 1 for d in graph.types[n].shape[:-1])
        and graph.types[node.name].shape == graph.types[root.name].shape
        for n in node.inputs
    )


def is_factor(graph: Graph, root: Node, node: Node) -> bool:
    """`node` scales the result of matrix work by a positive constant scalar."""
    if root.op not in MATRIX or node.op not in ("multiply", "divide") or not graph.tensor_inputs(node)[:1]:
        return False
    left, right = node.inputs
    name = right if right in graph.constants else left
    value = graph.scalar(name) if name in graph.constants else None
    if value is None or not value > 0 or not np.isfinite(value):
        return False
    return (node.op == "multiply" or name == right) and graph.types[node.name].shape == graph.types[root.name].shape


def has_weight(graph: Graph, root: Node) -> bool:
    """Matrix work by a constant: a convolution's weight, or a matrix that a matmul has on its right."""
    return root.inputs[1] in graph.constants and (root.op != "matmul" or _rank(graph, root.inputs[1]) == 2)


def epilogue(graph: Graph, root: Node) -> list[Node]:
    """The nodes that the root's integer operation absorbs, in order."""
    absorbed: list[Node] = []
    current, stage = root.name, 0
    while (reader := graph.only_consumer(current)) is not None:
        if stage == 0 and is_bias(graph, root, reader):
            stage = 1
        elif stage <= 1 and is_factor(graph, root, reader):
            stage = 1
        elif reader.op in CLAMPS:
            stage = 2
        else:
            break
        absorbed.append(reader)
        current = reader.name
    return absorbed


def is_lane_constant(graph: Graph, name: str) -> bool:
    """A constant that is a scalar or a vector along the last axis: what a (per-channel) table can take in."""
    return name in graph.constants and all(d == 1 for d in graph.types[name].shape[:-1])


def pointwise_source(graph: Graph, node: Node, source: dict[str, str]) -> str | None:
    """The one tensor that an element-wise node depends on, through other nodes of the same table; or None.

    source: for nodes already known to belong to a table, the tensor that the table reads.
    """
    tensors = graph.tensor_inputs(node)
    if node.op not in POINTWISE or not tensors or graph.types[node.name].dtype != "float32":
        return None
    if node.op == "nn.prelu" and int(node.attributes["axis"]) % _rank(graph, node.inputs[0]) + 1 != _rank(
        graph, node.inputs[0]
    ):
        return None
    leaves = {source.get(n, n) for n in tensors}
    if len(leaves) != 1 or not all(n in tensors or is_lane_constant(graph, n) for n in node.inputs):
        return None
    leaf = leaves.pop()
    same = graph.types[leaf] == graph.types[node.name]
    return leaf if same and all(graph.types[n].shape == graph.types[leaf].shape for n in tensors) else None


# ------------------------------------------------------------------------------------------ analysis
@dataclass(frozen=True)
class Fusion:
    """quantised: tensors that exist as int8, in graph order. interior: tensors inside a group.

    reasons: node name to why it stays float (moves and tables that merely sit between float operators included).
    """

    quantised: tuple[str, ...]
    interior: frozenset[str]
    reasons: dict[str, str]


def analyse(graph: Graph) -> Fusion:
    """Group the operators of a float graph and decide which tensors become int8."""
    interior, absorbed = _epilogues(graph)
    source, inside = _tables(graph, absorbed)
    interior |= inside
    reasons = {
        n.name: reason
        for n in graph.nodes
        if n.name not in absorbed and n.name not in source and (reason := declines(graph, n)) is not None
    }
    _demote(graph, source, interior, reasons)
    quantised = []
    for name in (*graph.inputs, *(n.name for n in graph.nodes)):
        if graph.types[name].dtype != "float32" or name in interior:
            continue
        produced = name in graph.producers and name not in reasons
        if produced or any(c.name not in reasons for c in graph.consumers[name]):
            quantised.append(name)
    return Fusion(tuple(quantised), frozenset(interior), reasons)


def _epilogues(graph: Graph) -> tuple[set[str], set[str]]:
    """(interior tensors, absorbed nodes) of every root that ends in a clamp."""
    interior: set[str] = set()
    absorbed: set[str] = set()
    for node in graph.nodes:
        if node.name in absorbed or node.op not in CLAMPED or declines(graph, node) is not None:
            continue
        if node.op not in MATRIX and pointwise_source(graph, node, {}) is not None:
            continue  # x + constant is a table
        if node.op == "image.resize2d" and node.attributes["method"] != "linear":
            continue
        chain = epilogue(graph, node)
        absorbed.update(n.name for n in chain)
        interior.update(n.name for n in [node, *chain][:-1] if chain)
    return interior, absorbed


def _tables(graph: Graph, absorbed: set[str]) -> tuple[dict[str, str], set[str]]:
    """(table node to the tensor that its table reads, interior tensors): nothing interior is read from outside."""
    cut: set[str] = set()
    while True:
        source: dict[str, str] = {}
        for node in graph.nodes:
            if node.name in absorbed:
                continue
            leaf = pointwise_source(graph, node, {k: v for k, v in source.items() if k not in cut})
            if leaf is not None and graph.types[leaf].dtype == "float32":
                source[node.name] = leaf
        outside = {
            name
            for name in source
            if name not in cut
            and (name in graph.outputs or any(source.get(c.name) != source[name] for c in graph.consumers[name]))
        }
        # A tensor that something else reads exists as int8 anyway: tables behind it start there.
        exposed = {name for name in outside if any(c.name in source for c in graph.consumers[name])}
        if not exposed:
            return source, {name for name in source if name not in outside and name not in cut}
        cut |= exposed


def _demote(graph: Graph, source: dict[str, str], interior: set[str], reasons: dict[str, str]) -> None:
    """Tables and moves with float operators on both sides stay float: int8 between would only lose accuracy.

    A model's output counts as such a side, and for moves its input does, but one side must be a float operator.
    """
    between = {n.name for n in graph.nodes if n.name not in reasons and (n.name in source or n.op in MOVES)}
    neighbours = {
        name: [*graph.tensor_inputs(graph.producers[name]), *(c.name for c in graph.consumers[name])]
        for name in between
    }
    while True:  # the greatest set whose every neighbour stays float or is in the set
        kept = set()
        for name in between:
            floating = {*reasons, *between, *(graph.inputs if graph.producers[name].op in MOVES else ())}
            if all(n in floating for n in neighbours[name]):
                kept.add(name)
        if kept == between:
            break
        between = kept
    pending = [name for name in between if any(n in reasons for n in neighbours[name])]
    demoted: set[str] = set()
    while pending:
        name = pending.pop()
        if name in between and name not in demoted:
            demoted.add(name)
            pending.extend(neighbours[name])
    interior -= demoted
    reasons.update((name, "sits between operators that stay float") for name in sorted(demoted))
