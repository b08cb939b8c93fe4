"""ONNX form of the operators that stay float everywhere: index work, scans, searches, tests. Merged into `EMITTERS`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from qcompiler.passes.graph import Node

if TYPE_CHECKING:
    from qcompiler.passes.export_onnx import Writer

_REDUCTION = {"update": "none", "add": "add", "mul": "mul", "min": "min", "max": "max"}


def _plain(op: str, *names: str, **fixed: Any) -> Callable[[Writer, Node], None]:
    """The operator with the node's attributes of these names (as integers) and fixed ones."""

    def emit(w: Writer, node: Node) -> None:
        kept: dict[str, Any] = {n: int(node.attributes[n]) for n in names if node.attributes.get(n) is not None}
        w.write(node, op, [w.read(n) for n in node.inputs], **kept, **fixed)

    return emit


def _arg(op: str) -> Callable[[Writer, Node], None]:
    def emit(w: Writer, node: Node) -> None:
        (x,) = node.inputs
        axis, source = node.attributes.get("axis"), w.read(x)
        if axis is None:
            flat = w.add_constant(np.array([-1], dtype=np.int64), f"{node.name}_flat")
            source, axis = w.step("Reshape", [source, flat], f"{node.name}_flattened"), 0
        w.write(node, op, [source], axis=int(axis), keepdims=int(node.attributes["keepdims"]))

    return emit


def _cumsum(w: Writer, node: Node) -> None:
    axis = w.add_constant(np.array(int(node.attributes["axis"]), dtype=np.int64), f"{node.name}_axis")
    w.write(node, "CumSum", [w.read(node.inputs[0]), axis], exclusive=int(bool(node.attributes.get("exclusive"))))


def _flip(w: Writer, node: Node) -> None:
    bounds = {"starts": -1, "ends": np.iinfo(np.int64).min, "axes": int(node.attributes["axis"]), "steps": -1}
    vectors = [w.add_constant(np.array([v], dtype=np.int64), f"{node.name}_{k}") for k, v in bounds.items()]
    w.write(node, "Slice", [w.read(node.inputs[0]), *vectors])


def _scatter(op: str, *names: str) -> Callable[[Writer, Node], None]:
    def emit(w: Writer, node: Node) -> None:
        kept: dict[str, Any] = {n: int(node.attributes[n]) for n in names}
        reduction = _REDUCTION[node.attributes["reduction"]]
        w.write(node, op, [w.read(n) for n in node.inputs], reduction=reduction, **kept)

    return emit


def _triangle(upper: int) -> Callable[[Writer, Node], None]:
    def emit(w: Writer, node: Node) -> None:
        k = w.add_constant(np.array(int(node.attributes.get("k", 0)), dtype=np.int64), f"{node.name}_k")
        w.write(node, "Trilu", [w.read(node.inputs[0]), k], upper=upper)

    return emit


def _one_hot(w: Writer, node: Node) -> None:
    a = node.attributes
    depth = w.add_constant(np.array(int(a["depth"]), dtype=np.int64), f"{node.name}_depth")
    dtype = np.dtype(w.graph.types[node.name].dtype)
    values = w.add_constant(np.array([a["off_value"], a["on_value"]], dtype=dtype), f"{node.name}_values")
    w.write(node, "OneHot", [w.read(node.inputs[0]), depth, values], axis=int(a["axis"]))


def _rms_norm(w: Writer, node: Node) -> None:
    x, weight = (w.read(n) for n in node.inputs)
    axes = w.add_constant(np.array(node.attributes["axes"], dtype=np.int64), f"{node.name}_axes")
    epsilon = w.add_constant(np.float32(node.attributes["epsilon"]), f"{node.name}_epsilon")
    squared = w.step("Mul", [x, x], f"{node.name}_squared")
    power = w.step("ReduceMean", [squared, axes], f"{node.name}_power", keepdims=1)
    root = w.step("Sqrt", [w.step("Add", [power, epsilon], f"{node.name}_stable")], f"{node.name}_root")
    w.write(node, "Mul", [w.step("Div", [x, root], f"{node.name}_normal"), weight])


def _einsum(w: Writer, node: Node) -> None:
    w.write(node, "Einsum", [w.read(n) for n in node.inputs], equation=node.attributes["subscripts"])


def _floor_mod(w: Writer, node: Node) -> None:
    """Mod for integers; for floats ONNX has only the C remainder, so ``a - floor(a / b) * b``."""
    a, b = (w.read(n) for n in node.inputs)
    if "int" in w.graph.types[node.name].dtype:
        w.write(node, "Mod", [a, b])
        return
    whole = w.step("Floor", [w.step("Div", [a, b], f"{node.name}_quotient")], f"{node.name}_whole")
    w.write(node, "Sub", [a, w.step("Mul", [whole, b], f"{node.name}_multiple")])


INDEX_EMITTERS: dict[str, Callable[[Writer, Node], None]] = {
    "argmax": _arg("ArgMax"),
    "argmin": _arg("ArgMin"),
    "bitwise_and": _plain("BitwiseAnd"),
    "bitwise_not": _plain("BitwiseNot"),
    "bitwise_or": _plain("BitwiseOr"),
    "bitwise_xor": _plain("BitwiseXor"),
    "cumsum": _cumsum,
    "einsum": _einsum,
    "flip": _flip,
    "floor_mod": _floor_mod,
    "gather_elements": _plain("GatherElements", "axis"),
    "gather_nd": _plain("GatherND", "batch_dims"),
    "isinf": _plain("IsInf"),
    "isnan": _plain("IsNaN"),
    "logical_xor": _plain("Xor"),
    "nn.rms_norm": _rms_norm,
    "one_hot": _one_hot,
    "scatter_elements": _scatter("ScatterElements", "axis"),
    "scatter_nd": _scatter("ScatterND"),
    "tril": _triangle(0),
    "triu": _triangle(1),
}
