"""Canonical Relax back to ONNX: the float executor of calibration, QDQ models for others, and graphs for viewers.

Canonical modules are NHWC inside and ONNX is NCHW. The exporter keeps every image tensor in NCHW as long as its
readers can work there, so that the transposes of the import vanish again: per canonical tensor it remembers the
ONNX tensor that stores it and in which order (`Stored`). What each operator becomes: `export_onnx_ops`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import tvm
from onnx import helper, numpy_helper

from qcompiler.passes import export_onnx_ops
from qcompiler.passes.graph import Graph, Node, read
from qcompiler.sim.errors import ModelError

OPSET = 20  # the first with Gelu
IR_VERSION = 9
NCHW = (0, 3, 1, 2)  # stored = transpose(canonical, NCHW)
NHWC = (0, 2, 3, 1)

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Stored:
    """The ONNX tensor that holds a canonical tensor, permuted to NCHW or (permuted=False) as it is."""

    name: str
    permuted: bool = False


@dataclass(frozen=True)
class Exported:
    """model: a checked ONNX model. stored: for every canonical tensor, where it is in the ONNX graph."""

    model: onnx.ModelProto
    stored: Mapping[str, Stored]

    def restore(self, name: str, value: Array) -> Array:
        """A value of the ONNX tensor that stores `name`, in the canonical tensor's order."""
        return np.transpose(value, NHWC) if self.stored[name].permuted else value


@dataclass
class Writer:
    """Collects ONNX nodes and initialisers; the emitters of `export_onnx_ops` write through it."""

    graph: Graph
    batch: str | None = None
    canonical_outputs: frozenset[str] = frozenset()
    """Names that the ONNX model returns in canonical order."""
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: dict[str, onnx.TensorProto] = field(default_factory=dict)
    stored: dict[str, Stored] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)
    permutes: dict[tuple[str, bool], str] = field(default_factory=dict)

    def fresh(self, hint: str) -> str:
        name, suffix = hint, 1
        while name in self.names or name in self.graph.types:
            name, suffix = f"{hint}_{suffix}", suffix + 1
        self.names.add(name)
        return name

    def add_constant(self, value: Array, hint: str) -> str:
        """A new initialiser."""
        name = self.fresh(hint)
        self.initializers[name] = numpy_helper.from_array(np.asarray(value, order="C"), name)
        return name

    def emit(self, op: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, list(inputs), [output], name=output, **attributes))
        return output

    def step(self, op: str, inputs: Sequence[str], hint: str, **attributes: Any) -> str:
        """An intermediate value that no canonical tensor stands for."""
        return self.emit(op, inputs, self.fresh(hint), **attributes)

    def constant(self, name: str) -> str:
        """A constant of the canonical graph as an initialiser of its own name, in canonical order."""
        if name not in self.initializers:
            self.initializers[name] = numpy_helper.from_array(np.asarray(self.graph.constants[name], order="C"), name)
        return name

    def is_permuted(self, name: str) -> bool:
        return name in self.stored and self.stored[name].permuted

    def read(self, name: str, permuted: bool = False) -> str:
        """The ONNX tensor with the canonical tensor's value, in NCHW (permuted) or canonical order."""
        if name in self.graph.constants:
            if not permuted:
                return self.constant(name)
            value = self.graph.constants[name]
            value = value.reshape((1,) * (4 - value.ndim) + value.shape)
            key = (name, True)
            if key not in self.permutes:
                self.permutes[key] = self.add_constant(np.transpose(value, NCHW), f"{name}_nchw")
            return self.permutes[key]
        if name not in self.stored and export_onnx_ops.is_dequantized_constant(self.graph, name):
            self.stored[name] = Stored(export_onnx_ops.dequantized_constant(self, name))
        stored = self.stored[name]
        if stored.permuted == permuted:
            return stored.name
        key = (stored.name, permuted)
        if key not in self.permutes:
            hint = f"{name}_nchw" if permuted else f"{name}_nhwc"
            self.permutes[key] = self.step("Transpose", [stored.name], hint, perm=NCHW if permuted else NHWC)
        return self.permutes[key]

    def write(self, node: Node, op: str, inputs: Sequence[str], permuted: bool = False, **attributes: Any) -> None:
        """The node that computes the canonical tensor `node.name`, under its own name."""
        name = self.fresh(f"{node.name}_nchw") if permuted and node.name in self.canonical_outputs else node.name
        self.emit(op, inputs, name, **attributes)
        self.stored[node.name] = Stored(name, permuted)

    def alias(self, node: Node, stored: Stored) -> None:
        self.stored[node.name] = stored


def export(module: tvm.IRModule) -> onnx.ModelProto:
    """The module as a checked ONNX model: a float graph, or QDQ where it holds quantize and dequantize.

    Raises ModelError listing every operator that has no ONNX form.
    """
    return export_graph(read(module)).model


def export_graph(graph: Graph, outputs: Iterable[str] | None = None, batch: str | None = None) -> Exported:
    """The graph as ONNX. outputs: canonical tensors to return instead of the model's own (as they are stored).

    batch: name of a symbolic leading dimension that replaces the 1 of every input; the caller has checked
    `batches` first.
    """
    unknown = sorted({n.op for n in graph.nodes if n.op not in export_onnx_ops.EMITTERS})
    if unknown:
        where = ", ".join(f"{op} (first at {next(n.name for n in graph.nodes if n.op == op)!r})" for op in unknown)
        raise ModelError(f"no ONNX form is known for: {where}")
    wanted = list(dict.fromkeys(graph.outputs if outputs is None else outputs))
    writer = Writer(graph, batch, frozenset(graph.outputs) if outputs is None else frozenset())
    for name in graph.inputs:
        writer.stored[name] = Stored(name)
    for node in graph.nodes:
        export_onnx_ops.EMITTERS[node.op](writer, node)
    infos = []
    for name in wanted:
        if outputs is None and writer.stored.get(name) != Stored(name):
            stored = writer.stored.get(name)
            if stored is not None and stored.permuted:
                writer.emit("Transpose", [stored.name], name, perm=NHWC)
            else:
                writer.emit("Identity", [writer.read(name)], name)
            writer.stored[name] = Stored(name)
        infos.append(_output_info(writer, name))
    inputs = [_value_info(name, graph, batch) for name in graph.inputs]
    used = {i for n in writer.nodes for i in n.input}
    model = helper.make_model(
        helper.make_graph(
            writer.nodes, "main", inputs, infos, [t for name, t in writer.initializers.items() if name in used]
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="qcompiler",
    )
    return Exported(model, writer.stored)


def _onnx_dtype(dtype: str) -> int:
    return int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


def _value_info(name: str, graph: Graph, batch: str | None) -> onnx.ValueInfoProto:
    shape: list[int | str] = list(graph.types[name].shape)
    if batch:
        shape[0] = batch
    return helper.make_tensor_value_info(name, _onnx_dtype(graph.types[name].dtype), shape)


def _output_info(writer: Writer, name: str) -> onnx.ValueInfoProto:
    """The declared type of a returned tensor, under the name and in the order in which it is stored."""
    stored, kind = writer.stored[name], writer.graph.types[name]
    shape: list[int | str] = [kind.shape[i] for i in NCHW] if stored.permuted else list(kind.shape)
    if writer.batch and shape:
        shape[0] = writer.batch
    return helper.make_tensor_value_info(stored.name, _onnx_dtype(kind.dtype), shape)


def batches(graph: Graph) -> bool:
    """Whether axis 0 is a batch axis of size 1 throughout, so that many samples can run as one batch.

    Conservative: an operator that is not known to treat the samples apart says no.
    """
    shapes = {name: kind.shape for name, kind in graph.types.items()}
    if not all(shapes[n] and shapes[n][0] == 1 for n in graph.inputs):
        return False
    for node in graph.nodes:
        tensors = [n for n in graph.tensor_inputs(node)]
        out = shapes[node.name]
        if not tensors or not out or out[0] != 1 or any(not shapes[n] or shapes[n][0] != 1 for n in tensors):
            return False
        if not export_onnx_ops.keeps_batch(node, shapes, graph):
            return False
    return True
