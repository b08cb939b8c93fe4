"""A read-only view of a Relax function as named tensors and nodes, in plain Python and NumPy.

Every analysis of the quantisation passes (export, calibration, integerise) walks this view; it spares them the
details of Relax expressions. Constants get names too ("<node>.<argument>"), so that a node's inputs are all names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import tvm
from tvm import relax

from qcompiler.sim.errors import ModelError

Shape = tuple[int, ...]
Array = npt.NDArray[Any]

# Relax registers these operators with fewer argument names than they take.
_ARGUMENT_NAMES = {"strided_slice": ("x", "axes", "begin", "end", "strides")}


@dataclass(frozen=True)
class TensorType:
    shape: Shape
    dtype: str


@dataclass(frozen=True, eq=False)
class Node:
    """One Relax call: `name` is the tensor it writes, `op` the operator without "relax.".

    inputs: names of tensors and constants, tuples flattened. attributes: the operator's attributes and the
    arguments that Relax takes as shapes or scalars, as plain Python values under the argument's name.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    attributes: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Graph:
    """inputs, outputs: tensor names in the model's order; nodes in execution order; types: of every name."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    types: Mapping[str, TensorType]
    constants: Mapping[str, Array] = field(default_factory=dict)

    @cached_property
    def producers(self) -> dict[str, Node]:
        return {n.name: n for n in self.nodes}

    @cached_property
    def consumers(self) -> dict[str, tuple[Node, ...]]:
        """Tensor name to the distinct nodes that read it."""
        readers: dict[str, list[Node]] = {name: [] for name in self.types}
        for node in self.nodes:
            for name in dict.fromkeys(node.inputs):
                readers[name].append(node)
        return {name: tuple(nodes) for name, nodes in readers.items()}

    def only_consumer(self, name: str) -> Node | None:
        """The one node that reads `name`, or None when several do, or when it is an output."""
        readers = self.consumers[name]
        return readers[0] if len(readers) == 1 and name not in self.outputs else None

    def tensor_inputs(self, node: Node) -> list[str]:
        """The node's inputs that are not constants."""
        return [n for n in node.inputs if n not in self.constants]

    def upstream(self, names: Sequence[str]) -> Graph:
        """The part of the graph that computes `names`, which become its outputs; inputs and constants stay."""
        needed = set(names)
        for node in reversed(self.nodes):
            if node.name in needed:
                needed.update(node.inputs)
        nodes = tuple(n for n in self.nodes if n.name in needed)
        return Graph(self.inputs, tuple(names), nodes, self.types, self.constants)

    def scalar(self, name: str) -> float | None:
        """The value of a constant that holds a single element, or None."""
        value = self.constants.get(name)
        return float(value.reshape(-1)[0]) if value is not None and value.size == 1 else None


def numpy_of(constant: relax.Expr) -> Array:
    """A Relax constant's value without a copy."""
    return np.asarray(np.from_dlpack(constant.value))


def is_constant(expr: relax.Expr) -> bool:
    return isinstance(expr, tvm.ir.GenericConst)


def plain(value: Any) -> Any:
    """An attribute or scalar argument as int, float, str, None or a tuple of them."""
    if isinstance(value, (tvm.tirx.IntImm, tvm.tirx.FloatImm)):
        return value.value
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, relax.ShapeExpr):
        return tuple(int(v) for v in value.values)
    if isinstance(value, relax.Tuple):
        return tuple(plain(v) for v in value.fields)
    if isinstance(value, str) or not hasattr(value, "__len__"):
        return str(value)
    return tuple(plain(v) for v in value)


def attributes_of(call: relax.Call) -> dict[str, Any]:
    """The attributes of a Relax call as plain Python values, absent (None) ones left out."""
    if call.attrs is None:
        return {}
    names = [f.name for f in type(call.attrs).__tvm_ffi_type_info__.fields]
    values = {name: plain(getattr(call.attrs, name)) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def type_of(expr: relax.Expr) -> TensorType:
    """Static shape and dtype; raises ModelError for anything else than a tensor of known shape."""
    ty = expr.ty
    if not isinstance(ty, relax.TensorType) or not isinstance(ty.shape, relax.ShapeExpr):
        raise ModelError(
            f"{expr}: {ty} is not a tensor of known shape; give the input shapes (--shape NAME=1x3x224x224)"
        )
    try:
        return TensorType(tuple(int(d) for d in ty.shape.values), str(ty.dtype))
    except (TypeError, ValueError):
        raise ModelError(f"{expr} has the shape {ty.shape}; give the input shapes (--shape NAME=1x3x224x224)") from None


class _Reader:
    def __init__(self) -> None:
        self.names: dict[Any, str] = {}
        self.types: dict[str, TensorType] = {}
        self.constants: dict[str, Array] = {}
        self.nodes: list[Node] = []

    def fresh(self, name: str) -> str:
        candidate, suffix = name, 1
        while candidate in self.types:
            candidate, suffix = f"{name}_{suffix}", suffix + 1
        return candidate

    def declare(self, var: relax.Var) -> str:
        name = self.fresh(str(var.name))
        self.types[name] = type_of(var)
        self.names[var] = name
        return name

    def constant(self, expr: relax.Expr, hint: str) -> str:
        name = self.fresh(hint)
        self.constants[name] = numpy_of(expr)
        self.types[name] = TensorType(self.constants[name].shape, str(self.constants[name].dtype))
        return name

    def tensors(self, arg: relax.Expr, hint: str) -> list[str] | None:
        """Names of the tensors an argument stands for, or None when it is a shape or scalars."""
        if is_constant(arg):
            return [self.constant(arg, hint)]
        if isinstance(arg, relax.Var):
            return [self.names[arg]]
        if isinstance(arg, relax.Tuple):
            parts = [self.tensors(a, hint) for a in arg.fields]
            return None if any(p is None for p in parts) else [name for p in parts if p for name in p]
        return None

    def call(self, var: relax.Var, call: relax.Call) -> None:
        if not isinstance(call.op, tvm.ir.Op):
            raise ModelError(f"{var.name}: a call of {call.op} is not a single operator")
        op = str(call.op.name).removeprefix("relax.")
        argument_names = _ARGUMENT_NAMES.get(op) or tuple(str(a.name) for a in call.op.arguments)
        attributes = attributes_of(call)
        inputs: list[str] = []
        name = self.declare(var)
        for i, arg in enumerate(call.args):
            argument = argument_names[i] if i < len(argument_names) else f"argument{i}"
            tensors = self.tensors(arg, f"{name}.{argument}")
            if tensors is None:
                attributes[argument] = plain(arg)
            else:
                inputs.extend(tensors)
        self.nodes.append(Node(name, op, tuple(inputs), attributes))


def read(module: tvm.IRModule) -> Graph:
    """The view of the module's function "main". Raises ModelError for dynamic shapes and non-tensor values."""
    function = module["main"]
    reader = _Reader()
    for param in function.params:
        reader.declare(param)
    inputs = tuple(reader.names[p] for p in function.params)
    body = function.body
    for block in body.blocks:
        for binding in block.bindings:
            var, value = binding.var, binding.value
            if isinstance(value, relax.Var):
                reader.names[var] = reader.names[value]
            elif is_constant(value):
                reader.names[var] = reader.constant(value, str(var.name))
            elif isinstance(value, relax.Call):
                reader.call(var, value)
            else:
                raise ModelError(f"{var.name}: {type(value).__name__} is not a tensor operation")
    result = body.body
    fields = list(result.fields) if isinstance(result, relax.Tuple) else [result]
    outputs = tuple(
        reader.constant(f, "output") if is_constant(f) else reader.names[f] for f in fields
    )  # fmt: skip
    wanted = function.attrs["output_names"] if function.attrs and "output_names" in function.attrs else outputs
    graph = Graph(inputs, outputs, tuple(reader.nodes), reader.types, reader.constants)
    return _with_output_names(graph, tuple(str(n) for n in wanted))


def _with_output_names(graph: Graph, wanted: tuple[str, ...]) -> Graph:
    """Give every output the name that the user knows: rename its tensor, or copy where that is not possible."""
    if wanted == graph.outputs:
        return graph
    taken = {*graph.inputs, *graph.constants}
    rename: dict[str, str] = {}
    copies: list[Node] = []
    types = dict(graph.types)
    for name, target in zip(graph.outputs, wanted, strict=True):
        if name == target:
            taken.add(name)
    for name, target in zip(graph.outputs, wanted, strict=True):
        if name == target:
            continue
        if target in types or name in taken or name in rename:
            copies.append(Node(target, "reshape", (name,), {"shape": types[name].shape}))
        else:
            rename[name] = target
        types[target] = types[name]
    for old in rename:
        del types[old]
    nodes = [
        Node(rename.get(n.name, n.name), n.op, tuple(rename.get(i, i) for i in n.inputs), n.attributes)
        for n in (*graph.nodes, *copies)
    ]
    return Graph(graph.inputs, wanted, tuple(nodes), types, graph.constants)
