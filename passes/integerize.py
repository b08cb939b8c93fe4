"""From a QDQ module to the integer program: each dequantise → operators → quantise region is one integer operation.

For every `quantize` the pass looks back to the operators in front of it. An element-wise subgraph over one int8
tensor becomes a table; a root operator (convolution, matmul, add, ...) whose inputs are dequantised, with the bias,
factors and clamps behind it, becomes that root's integer operation (`integer_ops`). Whatever is left stays float:
dequantise → float operation → quantise, each with the reason why. Models quantised by others arrive in the same
form, so nothing here knows who chose the scales.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import tvm

from qcompiler.passes import integer_ops
from qcompiler.passes.fuse import CLAMPS, MATRIX, declines, is_lane_constant, pointwise_source
from qcompiler.passes.graph import Graph, Node, TensorType, read
from qcompiler.passes.ranges import Parameters, collapsed, parameters
from qcompiler.passes.region import CLIPPED, Declined, Quantised, Region, params_of
from qcompiler.passes.tidy import tidy
from qcompiler.sim.errors import ModelError
from qcompiler.sim.float_ops import FLOAT_OPS
from qcompiler.sim.integer_program import (
    DTYPES,
    Dequantize,
    FloatOp,
    IntegerProgram,
    Operation,
    Quantize,
    Table,
    Tensor,
    check,
)
from qcompiler.sim.numerics import ROUNDINGS, Rounding, build_table, quantize_linear

Array = npt.NDArray[Any]


def integerize(module: tvm.IRModule, rounding: Rounding = "exact_half_up", name: str = "model") -> IntegerProgram:
    """The checked integer program of a QDQ module, or of a float module (then all its operations are float).

    rounding: the requantise rule of every operation. Raises ModelError for quantisation that int8 programs cannot
    express (16-bit types, activations quantised per channel), ProgramError never (that would be a bug here).
    """
    if rounding not in ROUNDINGS:
        raise ValueError(f"unknown rounding {rounding!r}; known: {', '.join(ROUNDINGS)}")
    graph, constants = fold_constants(read(module))
    return check(tidy(Lowering(graph, constants, rounding).run(name)))


# ------------------------------------------------------------------------------- quantised constants
def fold_constants(graph: Graph) -> tuple[Graph, dict[str, Quantised]]:
    """Evaluate quantize and dequantize of constants; returns the graph without them and what was quantised.

    In the new graph a dequantised constant is a float constant; the second result keeps its integers.
    """
    values = dict(graph.constants)
    types = dict(graph.types)
    quantised: dict[str, Quantised] = {}
    nodes = []
    for node in graph.nodes:
        if node.op == "quantize" and node.inputs[0] in values:
            values[node.name] = _quantize_constant(node, values)
            types[node.name] = TensorType(values[node.name].shape, str(values[node.name].dtype))
        elif node.op == "dequantize" and node.inputs[0] in values:
            integers, scale, zero = (values[n] for n in node.inputs)
            constant = Quantised(integers, scale.reshape(-1), zero.reshape(-1), int(node.attributes["axis"])).signed()
            quantised[node.name] = constant
        else:
            nodes.append(node)
    constants = _Dequantized(values, quantised)
    return replace(graph, nodes=tuple(nodes), constants=constants, types=types), quantised


class _Dequantized(Mapping[str, Array]):
    """Constants by name; a dequantised one is computed when asked for (the weights of a large model never are)."""

    def __init__(self, values: Mapping[str, Array], quantised: Mapping[str, Quantised]) -> None:
        self.floats, self.quantised = values, quantised

    def __getitem__(self, name: str) -> Array:
        return self.quantised[name].real() if name in self.quantised else self.floats[name]

    def __contains__(self, name: object) -> bool:
        return name in self.quantised or name in self.floats

    def __iter__(self) -> Iterator[str]:
        return iter({**self.floats, **self.quantised})

    def __len__(self) -> int:
        return len({**self.floats, **self.quantised})


def _own_parameters(value: Array) -> Quantised | None:
    """A float constant operand, quantised over its own range; None for other dtypes and useless ranges."""
    low, high = min(float(value.min(initial=0)), 0.0), max(float(value.max(initial=0)), 0.0)
    if value.dtype != np.float32 or not np.isfinite([low, high]).all():
        return None
    scale, zero = parameters(low, high if collapsed(low, high) is None else low + 1.0)
    return Quantised(
        quantize_linear(value, np.float32(scale), zero), np.array([scale], np.float32), np.array([zero]), 0
    )


def _quantize_constant(node: Node, values: Mapping[str, Array]) -> Array:
    x, scale, zero = (values[n] for n in node.inputs)
    info = np.iinfo(node.attributes["out_dtype"])
    shape = [1] * x.ndim
    if scale.size > 1:
        shape[int(node.attributes["axis"])] = -1
        scale, zero = scale.reshape(shape), zero.reshape(shape)
    q = np.rint(x / scale).astype(np.float64) + zero.astype(np.float64)
    return np.clip(q, info.min, info.max).astype(info.dtype)


# -------------------------------------------------------------------------------------- the lowering
@dataclass
class Lowering:
    """Walks the graph once; `operations` and `tensors` grow into the program.

    int8: quantised graph tensor to the program tensor that holds it. real: float (or index) graph tensor to the
    program tensor that holds it. tables: element-wise graph tensor to the graph tensor that its table reads.
    """

    graph: Graph
    quantised: Mapping[str, Quantised]
    rounding: Rounding
    tensors: dict[str, Tensor] = field(default_factory=dict)
    operations: list[Operation] = field(default_factory=list)
    constants: dict[str, Array] = field(default_factory=dict)
    int8: dict[str, str] = field(default_factory=dict)
    real: dict[str, str] = field(default_factory=dict)
    position: dict[str, int] = field(default_factory=dict)

    def run(self, name: str) -> IntegerProgram:
        graph = self.graph
        self.position = {n.name: i for i, n in enumerate(graph.nodes)}
        for tensor in graph.inputs:
            self._input(tensor)
        for node in graph.nodes:
            if node.op == "quantize":
                self.int8[node.name] = self.rounded(node.inputs[0], self.parameters(node))
            elif node.op != "dequantize" and graph.types[node.name].dtype in ("int8", "uint8"):
                self.int8[node.name] = self._moved(node)
        outputs = tuple(self._output(n) for n in graph.outputs)
        return IntegerProgram(name, graph.inputs, outputs, self.tensors, tuple(self.operations), self.constants)

    # --------------------------------------------------------------------------------- tensors
    def fresh(self, name: str) -> str:
        candidate, suffix = name, 1
        reserved = {*self.graph.inputs, *self.graph.outputs}
        while candidate in self.tensors or candidate in reserved:
            candidate, suffix = f"{name}.{suffix}", suffix + 1
        return candidate

    def declare(self, name: str, like: str, parameters: Parameters | None = None, dtype: str = "int8") -> Tensor:
        """A new program tensor with the shape of the graph tensor `like`."""
        return self.declare_shape(self.fresh(name), self.graph.types[like].shape, parameters, dtype)

    def declare_shape(
        self, name: str, shape: tuple[int, ...], parameters: Parameters | None = None, dtype: str = "int8"
    ) -> Tensor:
        if dtype not in DTYPES:
            raise ModelError(f"tensor {name!r} is {dtype}; a program holds {', '.join(DTYPES)} only")
        scale, zero = parameters if parameters is not None else (None, None)
        self.tensors[name] = Tensor(name, shape, dtype, scale, zero)
        return self.tensors[name]

    def emit(self, operation: Operation) -> str:
        self.operations.append(operation)
        return operation.output

    def constant(self, name: str, value: Array, parameters: Parameters | None = None) -> str:
        """A program constant; the same value is stored once per name."""
        name = self.fresh(name)
        self.declare_shape(name, value.shape, parameters, str(value.dtype))
        self.constants[name] = np.ascontiguousarray(value).reshape(value.shape)
        return name

    def _input(self, name: str) -> None:
        kind = self.graph.types[name]
        if kind.dtype not in ("int8", "uint8"):
            self.declare_shape(name, kind.shape, None, kind.dtype)
            self.real[name] = name
            return
        if kind.dtype == "uint8":
            raise ModelError(f"input {name!r} is uint8; quantised inputs are int8 (or keep the input float)")
        reader = next((c for c in self.graph.consumers[name] if c.op == "dequantize"), None)
        # Without a reader that says otherwise the integers stand for themselves.
        self.declare_shape(name, kind.shape, (1.0, 0) if reader is None else self.parameters(reader), "int8")
        self.int8[name] = name

    def parameters(self, node: Node) -> Parameters:
        """(scale, int8 zero point) of a quantize or dequantize node."""
        scale, zero = (self.graph.constants.get(n) for n in node.inputs[1:3])
        kind = self.graph.types[node.name if node.op == "quantize" else node.inputs[0]].dtype
        if scale is None or zero is None:
            raise ModelError(f"{node.name!r}: a scale or zero point is computed at run time; export a static model")
        if scale.size != 1 or zero.size != 1:
            raise ModelError(f"{node.name!r} quantises an activation per channel; quantise activations per tensor")
        if kind not in ("int8", "uint8"):
            raise ModelError(f"{node.name!r} quantises to {kind}; only int8 and uint8 are supported")
        value = float(np.float32(scale.reshape(-1)[0]))
        if not (np.isfinite(value) and value > 0):
            raise ModelError(f"{node.name!r} has the scale {value:g}; a scale must be finite and positive")
        return value, int(zero.reshape(-1)[0]) - (128 if kind == "uint8" else 0)

    def leaf(self, name: str) -> str | None:
        """The int8 program tensor that a float graph tensor dequantises, or None."""
        node = self.graph.producers.get(name)
        if node is None or node.op != "dequantize" or node.inputs[0] not in self.int8:
            return None
        tensor = self.tensors[self.int8[node.inputs[0]]]
        wanted = self.parameters(node)
        if (tensor.scale, tensor.zero_point) == wanted:
            return tensor.name
        # The same integers read with another scale: an identity table between differently scaled tensors.
        target = self.declare(f"{tensor.name}.read", name, wanted)
        table = np.arange(-128, 128).astype(np.int8)
        return self.emit(Table(target.name, (tensor.name,), target.name, table, "reinterpret"))

    def operand(self, name: str) -> str:
        """The int8 program tensor of a region's input: a dequantised tensor or constant. Raises Declined."""
        tensor = self.leaf(name)
        if tensor is not None:
            return tensor
        constant = self.quantised.get(name)
        if constant is None and name in self.graph.constants:
            constant = _own_parameters(self.graph.constants[name])
        if constant is None:
            raise Declined(f"it reads {name!r}, which is not quantised")
        if constant.scale.size != 1 or constant.values.dtype != np.int8:
            raise Declined(f"its constant operand {name!r} is not int8 with one scale")
        return self.constant(
            f"{name}.constant", constant.values, (float(constant.scale[0]), int(constant.zero_point[0]))
        )

    # ----------------------------------------------------------------------------- int8 results
    def _name_of(self, value: str) -> str:
        """The user's name for a quantised tensor: that of the float tensor it stands for."""
        name = value.removesuffix(CLIPPED).removesuffix(".inner")
        return f"{name}.int8" if name in self.tensors or name in (*self.graph.inputs, *self.graph.outputs) else name

    def rounded(self, value: str, parameters: Parameters) -> str:
        """The int8 program tensor that holds a float graph tensor rounded to `parameters`: what `quantize` means."""
        leaf = self.leaf(value)
        if leaf is not None:
            same = params_of(self.tensors[leaf]) == parameters
            return leaf if same else self.rescale(leaf, parameters, self._name_of(value))
        reason = "it is an input of the model"
        if value in self.graph.producers:
            written = len(self.operations), len(self.tensors), len(self.constants)
            try:
                region = self._table(value, parameters) or self._root(value, parameters)
                return integer_ops.emit(self, region)
            except Declined as declined:
                self._undo(*written)
                reason = str(declined)
        source = self._float(value, reason)
        target = self.declare(self._name_of(value), value, parameters)
        return self.emit(Quantize(target.name, (source,), target.name))

    def _undo(self, operations: int, tensors: int, constants: int) -> None:
        """Forget what a declined region had begun to write."""
        del self.operations[operations:]
        while len(self.tensors) > tensors:
            self.tensors.popitem()
        while len(self.constants) > constants:
            self.constants.popitem()

    def rescale(self, source: str, parameters: Parameters, name: str) -> str:
        """`source` with other quantisation parameters, by a table."""
        tensor = self.tensors[source]
        target = self.declare_shape(self.fresh(name), tensor.shape, parameters)
        table = self.table_of(lambda x: x, params_of(tensor), parameters)
        return self.emit(Table(target.name, (source,), target.name, table, "rescale"))

    def table_of(self, function: Any, source: Parameters, target: Parameters) -> Array:
        """256 entries of a unary function; by `f32_half_even` as the float32 graph itself computes them."""
        if self.rounding != "f32_half_even":
            return build_table(function, source[0], source[1], target[0], target[1])
        q = np.arange(-128, 128)
        real = (q - source[1]).astype(np.float32) * np.float32(source[0])
        with np.errstate(all="ignore"):
            return quantize_linear(np.asarray(function(real), dtype=np.float32), np.float32(target[0]), target[1])

    def _table(self, value: str, parameters: Parameters) -> Region | None:
        """The element-wise subgraph that computes `value`, if it reads a single int8 tensor."""
        members: dict[str, Node] = {}
        pending = [value]
        leaves: list[str] = []
        while pending:
            name = pending.pop()
            if name in self.graph.constants or name in members or name in leaves:
                continue
            producer = self.graph.producers.get(name)
            if producer is None or producer.op == "dequantize":
                leaves.append(name)
                continue
            members[name] = producer
            pending.extend(producer.inputs)
        if len(leaves) != 1 or not members:
            return None
        source: dict[str, str] = {}
        for name in sorted(members, key=self.position.__getitem__):
            if pointwise_source(self.graph, members[name], source) != leaves[0]:
                return None
            source[name] = leaves[0]
        ordered = tuple(members[n] for n in source)
        return Region(ordered[-1], ordered, value, self._name_of(value), parameters, is_table=True)

    def _root(self, value: str, parameters: Parameters) -> Region:
        """The root operator that computes `value` and what its integer operation absorbs. Raises Declined."""
        low, high = -np.inf, np.inf
        current = self.graph.producers[value]
        while current.op in CLAMPS and current.inputs[0] in self.graph.producers:
            a = current.attributes
            low = max(low, 0.0 if current.op == "nn.relu" else float(a["min"]))
            high = min(high, np.inf if current.op == "nn.relu" else float(a["max"]))
            current = self.graph.producers[current.inputs[0]]
        affine: list[Node] = []
        while current.op in ("add", "multiply", "divide") and len(self.graph.tensor_inputs(current)) == 1:
            inner = self.graph.tensor_inputs(current)[0]
            constant = next(n for n in current.inputs if n != inner)
            below = self.graph.producers.get(inner)
            if below is None or below.op == "dequantize" or not is_lane_constant(self.graph, constant):
                break
            affine.insert(0, current)
            current = below
        if affine and current.op not in MATRIX:
            current, affine = affine[-1], []
        reason = declines(self.graph, current)
        if reason is not None:
            raise Declined(reason)
        return Region(current, tuple(affine), value, self._name_of(value), parameters, low, high)

    def _moved(self, node: Node) -> str:
        """An operator directly on int8 values (as in models whose reshapes sit between quantize and dequantize)."""
        source = self.int8.get(node.inputs[0]) if node.inputs else None
        if source is None:
            raise ModelError(f"{node.name!r}: {node.op} on {self.graph.types[node.name].dtype} values is not supported")
        parameters = params_of(self.tensors[source])
        region = Region(node, (), node.name, node.name, parameters, on_integers=True)
        try:
            return integer_ops.emit(self, region)
        except Declined as declined:
            raise ModelError(f"{node.name!r}: {node.op} on quantised values is not supported: {declined}") from None

    # ---------------------------------------------------------------------------- float results
    def _float(self, name: str, reason: str) -> str:
        """The program tensor that holds a float (or index) graph tensor, computing it by float operations."""
        if name in self.real:
            return self.real[name]
        needed: dict[str, Node] = {}
        pending = [name]
        while pending:
            wanted = pending.pop()
            node = self.graph.producers.get(wanted)
            if node is None or wanted in needed or wanted in self.real or wanted in self.int8:
                continue
            needed[wanted] = node
            if node.op != "dequantize":
                pending.extend(self.graph.tensor_inputs(node))
        for wanted in sorted(needed, key=self.position.__getitem__):
            self.real[wanted] = self._float_op(needed[wanted], reason)
        if name not in self.real:  # a constant
            self.real[name] = self._float_constant(name)
        return self.real[name]

    def _float_op(self, node: Node, reason: str) -> str:
        kind = self.graph.types[node.name]
        name = node.name if node.name in self.graph.outputs else self.fresh(node.name)
        if node.op == "dequantize":
            tensor = self.leaf(node.name)
            if tensor is None:
                raise ModelError(f"{node.name!r} dequantises something that was never quantised")
            name = node.name if node.name in self.graph.outputs else self.fresh(f"{tensor}.float")
            self.declare_shape(name, kind.shape, None, "float32")
            return self.emit(Dequantize(name, (tensor,), name))
        if node.op not in FLOAT_OPS:
            raise ModelError(f"{node.name!r}: the operator {node.op} is not supported")
        inputs = tuple(self._float_input(n) for n in node.inputs)
        self.declare_shape(name, kind.shape, None, kind.dtype)
        why = declines(self.graph, node) or reason
        return self.emit(FloatOp(name, inputs, name, node.op, kind.shape, dict(node.attributes), why))

    def _float_input(self, name: str) -> str:
        """The program tensor of a float operation's operand: float, index, constant, or int8 read as integers."""
        if name in self.graph.constants:
            return self._float_constant(name)
        if name in self.int8:
            if self.graph.types[name].dtype != "int8":
                raise ModelError(
                    f"{name!r}: {self.graph.types[name].dtype} values are supported only where dequantised"
                )
            return self.int8[name]
        return self.real[name]

    def _float_constant(self, name: str) -> str:
        if name not in self.real:
            value = self.graph.constants[name]
            narrow = {"float64": "float32", "float16": "float32", "uint8": "int32", "int16": "int32"}
            self.real[name] = self.constant(name, value.astype(narrow.get(str(value.dtype), value.dtype)))
        return self.real[name]

    def _output(self, name: str) -> str:
        """The program tensor of a model output, under the output's own name."""
        if self.graph.types[name].dtype == "uint8":
            raise ModelError(f"output {name!r} is uint8; quantised outputs are int8 (or end the model in a dequantise)")
        if name in self.int8 and self.int8[name] == name:
            return name
        tensor = self.int8[name] if name in self.int8 else self._float(name, "the module is not quantised")
        if tensor == name or name in self.tensors:
            return tensor
        old = self.tensors[tensor]
        self.declare_shape(name, old.shape, None if old.scale is None else (old.scale, old.zero_point or 0), old.dtype)
        return self.emit(integer_ops.copy_of(name, tensor, old.shape))
