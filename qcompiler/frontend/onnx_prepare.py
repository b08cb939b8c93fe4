"""Reading an ONNX file and checking it before anything is converted: one clear ModelError for each way to be wrong.

External data is only taken from files beside the model, and its declared size is compared with the file's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, external_data_helper, numpy_helper

from qcompiler.frontend.onnx_node import OPSETS
from qcompiler.sim.errors import ModelError, did_you_mean

CONTROL_FLOW = {"If", "Loop", "Scan", "SequenceMap"}


def load(path: Path) -> onnx.ModelProto:
    """Read a model with its external data. Raises ModelError saying what is wrong with the file."""
    if not path.exists():
        near = did_you_mean(path.name, [p.name for p in path.parent.glob("*.onnx")]) if path.parent.is_dir() else ""
        raise ModelError(f"{path}: no such file{near}")
    if path.is_dir():
        inside = sorted(p.name for p in path.glob("*.onnx"))
        hint = f"; give the file, for example {path / inside[0]}" if inside else "; give an ONNX file"
        raise ModelError(f"{path} is a directory{hint}")
    if path.stat().st_size == 0:
        raise ModelError(f"{path} is empty; export or copy the model again")
    model = onnx.ModelProto()
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from None
    try:
        model.ParseFromString(data)
    except DecodeError:
        raise ModelError(
            f"{path} is not an ONNX model, or is truncated ({len(data)} bytes do not parse); "
            "export or copy the model again"
        ) from None
    if not model.HasField("graph"):
        raise ModelError(f"{path} is not an ONNX model: it has no graph; export or copy the model again")
    _load_external_data(model, path)
    return model


def check_text(model: onnx.ModelProto, what: str) -> None:
    """Refuse names that are not UTF-8: protobuf returns such strings as bytes."""
    graph = model.graph
    names: list[object] = [graph.name, *(e.domain for e in model.opset_import)]
    for value in (*graph.input, *graph.output):
        names += [value.name, *(d.dim_param for d in value.type.tensor_type.shape.dim)]
    names += [tensor.name for tensor in graph.initializer]
    for node in graph.node:
        names += [node.name, node.op_type, node.domain, *node.input, *node.output, *(a.name for a in node.attribute)]
    if not all(isinstance(name, str) for name in names):
        raise ModelError(f"{what} is damaged: its names are not text; export or copy the model again")


def _load_external_data(model: onnx.ModelProto, path: Path) -> None:
    folder = path.parent.resolve()
    for tensor in external_data_helper._get_all_tensors(model):  # noqa: SLF001 - there is no public iterator
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        info = external_data_helper.ExternalDataInfo(tensor)
        where = f"{path}: initializer {tensor.name!r} is stored in {info.location!r}"
        file = (folder / info.location).resolve()
        if not file.is_relative_to(folder):
            raise ModelError(
                f"{where}, outside the model's folder; move the data file beside the model and export again"
            )
        if not file.is_file():
            raise ModelError(f"{where}, which is missing; copy that file beside the model")
        wanted = _byte_count(tensor)
        offset = info.offset or 0
        length = wanted if info.length is None else info.length
        if length != wanted or offset + length > file.stat().st_size:
            raise ModelError(
                f"{where}, which does not hold the {wanted} bytes at offset {offset} that {list(tensor.dims)} needs; "
                "export or copy the model again"
            )
        with file.open("rb") as stream:
            stream.seek(offset)
            tensor.raw_data = stream.read(length)
        tensor.data_location = TensorProto.DEFAULT
        del tensor.external_data[:]


def _byte_count(tensor: TensorProto) -> int:
    count = 1
    for d in tensor.dims:
        count *= d
    if tensor.data_type in (TensorProto.INT4, TensorProto.UINT4):
        return (count + 1) // 2
    try:
        return count * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    except KeyError:
        raise ModelError(f"initializer {tensor.name!r} has the unknown data type {tensor.data_type}") from None


def opset_versions(model: onnx.ModelProto, what: str) -> dict[str, int]:
    """Domain to version. Raises ModelError for a standard opset outside 7 to 24."""
    versions = {("" if e.domain == "ai.onnx" else e.domain): int(e.version) for e in model.opset_import}
    if not all(0 <= version < 1 << 31 for version in versions.values()):
        raise ModelError(f"{what} is damaged: it imports {versions}; export or copy the model again")
    if "" not in versions:
        if any(n.domain in ("", "ai.onnx") for n in model.graph.node):
            raise ModelError(f"{what} does not say which ONNX opset it uses; export the model again")
        versions[""] = OPSETS[-1]
    if versions[""] not in OPSETS:
        raise ModelError(
            f"{what} uses ONNX opset {versions['']}; opsets {OPSETS[0]} to {OPSETS[-1]} are supported: export it with "
            "one of these, or convert it with onnx.version_converter"
        )
    return versions


def initializers(graph: onnx.GraphProto, what: str) -> dict[str, npt.NDArray[Any]]:
    """Name to value of the graph's constants. Raises ModelError for a duplicate, malformed or non-finite one."""
    values: dict[str, npt.NDArray[Any]] = {}
    if graph.sparse_initializer:
        name = graph.sparse_initializer[0].values.name
        raise ModelError(f"{what}: initializer {name!r} is sparse; store it as a dense tensor")
    for tensor in graph.initializer:
        if tensor.name in values:
            raise ModelError(f"{what}: two initializers are named {tensor.name!r}; give every tensor a name of its own")
        values[tensor.name] = array_of(tensor, f"{what}: initializer {tensor.name!r}")
    return values


def array_of(tensor: TensorProto, where: str) -> npt.NDArray[Any]:
    """The tensor's values; ModelError when they do not fit its shape or are not finite."""
    if any(d < 0 for d in tensor.dims):
        raise ModelError(f"{where} has the shape {list(tensor.dims)}; export the model again")
    if tensor.HasField("raw_data") and len(tensor.raw_data) != _byte_count(tensor):
        raise ModelError(
            f"{where} holds {len(tensor.raw_data)} bytes where its shape {list(tensor.dims)} needs "
            f"{_byte_count(tensor)}; export or copy the model again"
        )
    try:
        value = numpy_helper.to_array(tensor)
    except (ValueError, TypeError, KeyError) as error:
        raise ModelError(f"{where} cannot be read ({error}); export the model again") from None
    if value.dtype.kind == "f" and not np.all(np.isfinite(value)):
        bad = "NaN" if np.any(np.isnan(value)) else "infinite values"
        count = int(np.size(value) - np.count_nonzero(np.isfinite(value)))
        # An attention mask of -inf is legitimate as a scalar or a vector of 0 and -inf; weights never are.
        if np.any(np.isnan(value)) or value.size > 1 and not set(np.unique(value)) <= {0.0, -np.inf}:
            raise ModelError(
                f"{where} has {count} of {value.size} elements that are {bad}; the training diverged or the export "
                "went wrong: export the model again from a good checkpoint"
            )
    return value


def input_shapes(
    graph: onnx.GraphProto, names: Sequence[str], shapes: Mapping[str, Sequence[int]], what: str
) -> dict[str, tuple[int, ...]]:
    """Static shape of every input: as declared, from `shapes`, a dynamic first axis otherwise 1.

    A dimension that `shapes` settles by its symbol in one input is settled in all. Raises ModelError with the
    `--shape` to give for whatever stays open.
    """
    for name, shape in shapes.items():
        if name not in names:
            known = did_you_mean(name, names) or f"; the inputs are {', '.join(map(repr, names))}"
            raise ModelError(f"{what} has no input {name!r}{known}")
        if any(int(d) < 1 for d in shape):
            raise ModelError(f"{what}: the shape {_print(shape)} given for input {name!r} is not positive")
    declared = {v.name: v.type.tensor_type for v in graph.input if v.name in names}
    symbols: dict[str, int] = {}
    for name, shape in shapes.items():
        dims = declared[name].shape.dim if declared[name].HasField("shape") else None
        if dims is None:
            continue
        if len(dims) != len(shape):
            raise ModelError(
                f"{what}: input {name!r} has rank {len(dims)} ({_print(map(_dim, dims))}), "
                f"but the shape {_print(shape)} was given"
            )
        for dim, size in zip(dims, shape, strict=True):
            if dim.HasField("dim_value") and dim.dim_value not in (0, size):
                raise ModelError(
                    f"{what}: input {name!r} is {_print(map(_dim, dims))}, but the shape {_print(shape)} was given"
                )
            if dim.dim_param:
                symbols[dim.dim_param] = int(size)
    result = {}
    for name in names:
        if name in shapes:
            result[name] = tuple(int(d) for d in shapes[name])
            continue
        if not declared[name].HasField("shape"):
            raise ModelError(f"{what}: input {name!r} has no shape; give it with --shape {name}=1x3x224x224")
        dims = declared[name].shape.dim
        sizes = [
            dim.dim_value if dim.dim_value > 0 else symbols.get(dim.dim_param, 1 if axis == 0 else None)
            for axis, dim in enumerate(dims)
        ]
        if None in sizes:
            example = "x".join(str(s) if s is not None else "<size>" for s in sizes)
            raise ModelError(
                f"{what}: input {name!r} has the dynamic shape {_print(map(_dim, dims))}; "
                f"fix it with --shape {name}={example}"
            )
        result[name] = tuple(int(s) for s in sizes if s is not None)
    return result


def _dim(dim: Any) -> str:
    return str(dim.dim_value) if dim.dim_value > 0 else dim.dim_param or "?"


def _print(shape: Any) -> str:
    return "x".join(map(str, shape)) or "scalar"


def sorted_nodes(graph: onnx.GraphProto, known: set[str], what: str) -> list[onnx.NodeProto]:
    """The nodes in an order in which every input is computed first.

    Raises ModelError for a tensor with two origins, one with none, and a cycle.
    """
    producer: dict[str, onnx.NodeProto] = {}
    for node in graph.node:
        for name in filter(None, node.output):
            if name in producer or name in known:
                raise ModelError(
                    f"{what}: two nodes or initializers write the tensor {name!r}; give every tensor a name of its own"
                )
            producer[name] = node
    order: list[onnx.NodeProto] = []
    state: dict[int, bool] = {}  # node id to finished
    for root in graph.node:
        stack = [(root, iter(required_tensors(root)))] if id(root) not in state else []
        if stack:
            state[id(root)] = False
        while stack:
            node, names = stack[-1]
            name = next(names, None)
            if name is None:
                state[id(node)] = True
                order.append(node)
                stack.pop()
                continue
            if name in known:
                continue
            if name not in producer:
                raise ModelError(
                    f"{what}: {describe(node)} reads the tensor {name!r}, which nothing computes; export it again"
                )
            source = producer[name]
            if id(source) not in state:
                state[id(source)] = False
                stack.append((source, iter(required_tensors(source))))
            elif not state[id(source)]:
                ring = [n for n, _ in stack]
                ring = ring[next(i for i, n in enumerate(ring) if n is source) :]
                raise ModelError(f"{what}: the graph has a cycle through {', '.join(map(describe, ring))}")
    return order


def required_tensors(node: onnx.NodeProto) -> list[str]:
    """Names that a node reads, those its branches capture included."""
    names = [n for n in node.input if n]
    for attribute in node.attribute:
        for body in [attribute.g] if attribute.HasField("g") else attribute.graphs:
            inner = {t.name for t in body.initializer} | {v.name for v in body.input}
            inner |= {n for child in body.node for n in child.output}
            captured = [n for child in body.node for n in required_tensors(child)] + [o.name for o in body.output]
            names += [n for n in captured if n not in inner]
    return names


def describe(node: onnx.NodeProto) -> str:
    """``Conv 'conv1'``, or by its output where it has no name."""
    return f"{node.op_type} {label(node)!r}"


def label(node: onnx.NodeProto) -> str:
    return node.name or next((n for n in node.output if n), "")
