"""ONNX form of each canonical Relax operator: `EMITTERS`, one function a family.

An emitter reads its inputs through the writer in whichever order (canonical or NCHW) suits the operator and
writes the node's tensor under its own name. `keeps_batch` says which operators treat the samples of axis 0 apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from qcompiler.passes.export_onnx_index import INDEX_EMITTERS
from qcompiler.passes.graph import Graph, Node, Shape
from qcompiler.sim.errors import ModelError

if TYPE_CHECKING:
    from qcompiler.passes.export_onnx import Writer

Emitter = Callable[["Writer", Node], None]
NCHW = (0, 3, 1, 2)  # stored = transpose(canonical, NCHW)
NHWC = (0, 2, 3, 1)
CHANNEL_TO_NCHW = (0, 2, 3, 1)  # canonical axis -> axis of the NCHW tensor


def _permutable(w: Writer, node: Node) -> bool:
    """Element-wise work can stay in NCHW: some input is, and all are images or broadcast to them."""
    rank = len(w.graph.types[node.name].shape)
    if rank != 4 or not any(w.is_permuted(n) for n in node.inputs):
        return False
    return all(n in w.graph.constants or len(w.graph.types[n].shape) == 4 for n in node.inputs)


def _axis(axis: int, rank: int, permuted: bool) -> int:
    axis = axis % rank
    return CHANNEL_TO_NCHW[axis] if permuted else axis


# ----------------------------------------------------------------------------------- element-wise
def _pointwise(op: str, **fixed: Any) -> Emitter:
    def emit(w: Writer, node: Node) -> None:
        permuted = _permutable(w, node)
        w.write(node, op, [w.read(n, permuted) for n in node.inputs], permuted, **fixed)

    return emit


def _clip(w: Writer, node: Node) -> None:
    permuted = _permutable(w, node)
    bounds = [
        w.add_constant(np.float32(node.attributes[k]), f"{node.name}_{k}")
        if np.isfinite(float(node.attributes[k]))
        else ""
        for k in ("min", "max")
    ]
    w.write(node, "Clip", [w.read(node.inputs[0], permuted), *bounds], permuted)


def _silu(w: Writer, node: Node) -> None:
    permuted = _permutable(w, node)
    x = w.read(node.inputs[0], permuted)
    w.write(node, "Mul", [x, w.step("Sigmoid", [x], f"{node.name}_sigmoid")], permuted)


def _square(w: Writer, node: Node) -> None:
    permuted = _permutable(w, node)
    x = w.read(node.inputs[0], permuted)
    w.write(node, "Mul", [x, x], permuted)


def _rsqrt(w: Writer, node: Node) -> None:
    permuted = _permutable(w, node)
    root = w.step("Sqrt", [w.read(node.inputs[0], permuted)], f"{node.name}_sqrt")
    w.write(node, "Reciprocal", [root], permuted)


def _softplus(w: Writer, node: Node) -> None:
    permuted = _permutable(w, node)
    x, beta = w.read(node.inputs[0], permuted), float(node.attributes.get("beta", 1.0))
    if beta == 1.0:
        w.write(node, "Softplus", [x], permuted)
        return
    factor = w.add_constant(np.float32(beta), f"{node.name}_beta")
    inner = w.step("Softplus", [w.step("Mul", [x, factor], f"{node.name}_scaled")], f"{node.name}_softplus")
    w.write(node, "Div", [inner, factor], permuted)


def _leaky_relu(w: Writer, node: Node) -> None:
    permuted = _permutable(w, node)
    w.write(node, "LeakyRelu", [w.read(node.inputs[0], permuted)], permuted, alpha=float(node.attributes["alpha"]))


def _prelu(w: Writer, node: Node) -> None:
    x, alpha = node.inputs
    permuted = w.is_permuted(x)
    rank = len(w.graph.types[x].shape)
    axis = _axis(int(node.attributes["axis"]), rank, permuted)
    slope = w.graph.constants[alpha].reshape([-1 if i == axis else 1 for i in range(rank)])
    w.write(node, "PRelu", [w.read(x, permuted), w.add_constant(slope, f"{node.name}_slope")], permuted)


def _selu(w: Writer, node: Node) -> None:
    permuted = _permutable(w, node)
    w.write(node, "Selu", [w.read(node.inputs[0], permuted)], permuted)


def _gelu(approximate: str) -> Emitter:
    def emit(w: Writer, node: Node) -> None:
        permuted = _permutable(w, node)
        w.write(node, "Gelu", [w.read(node.inputs[0], permuted)], permuted, approximate=approximate)

    return emit


def _cast(w: Writer, node: Node) -> None:
    from onnx import helper

    permuted = _permutable(w, node)
    to = int(helper.np_dtype_to_tensor_dtype(np.dtype(w.graph.types[node.name].dtype)))
    w.write(node, "Cast", [w.read(node.inputs[0], permuted)], permuted, to=to)


def _quantisation(op: str) -> Emitter:
    """QuantizeLinear and DequantizeLinear; a zero point of another dtype than ONNX wants is converted."""

    def emit(w: Writer, node: Node) -> None:
        x, scale, zero = node.inputs
        if x in w.graph.constants and op == "DequantizeLinear":
            return  # written where it is read, in the order that its reader wants
        rank = len(w.graph.types[x].shape)
        permuted = w.is_permuted(x)
        vector = w.graph.constants[scale].size > 1
        dtype = w.graph.types[node.name if op == "QuantizeLinear" else x].dtype
        inputs = [w.read(x, permuted), _parameter(w, scale, vector), _parameter(w, zero, vector, dtype)]
        attributes = {"axis": _axis(int(node.attributes["axis"]), rank, permuted)} if vector else {}
        w.write(node, op, inputs, permuted, **attributes)

    return emit


def _parameter(w: Writer, name: str, vector: bool, dtype: str | None = None) -> str:
    """A scale or zero point: a scalar, or a vector along the axis; the same name for a value that fits as it is."""
    value = w.graph.constants[name]
    wanted = value.reshape(-1 if vector else ()).astype(dtype or value.dtype)
    if wanted.shape == value.shape and wanted.dtype == value.dtype:
        return w.constant(name)
    return w.add_constant(wanted, f"{name}_onnx")


# ---------------------------------------------------------------------------------------- matrices
def _pads(padding: tuple[int, ...]) -> list[int]:
    """Relax padding (1, 2 or 4 values; top, left, bottom, right) as ONNX pads."""
    if len(padding) == 1:
        return [padding[0]] * 4
    return list(padding * 2) if len(padding) == 2 else list(padding)


def _weight(w: Writer, name: str, permutation: tuple[int, ...]) -> str:
    """A weight with its axes in ONNX's order, dequantised or not."""
    if name in w.graph.constants:
        return w.add_constant(np.transpose(w.graph.constants[name], permutation), f"{name}_onnx")
    if is_dequantized_constant(w.graph, name):
        return dequantized_constant(w, name, permutation)
    return w.step("Transpose", [w.read(name)], f"{name}_onnx", perm=permutation)


def is_dequantized_constant(graph: Graph, name: str) -> bool:
    producer = graph.producers.get(name)
    return producer is not None and producer.op == "dequantize" and producer.inputs[0] in graph.constants


def dequantized_constant(w: Writer, name: str, permutation: tuple[int, ...] | None = None) -> str:
    """DequantizeLinear of constant integers whose axes are permuted (all in order: None)."""
    producer = w.graph.producers[name]
    values, scale, zero = (w.graph.constants[n] for n in producer.inputs)
    order = tuple(range(values.ndim)) if permutation is None else permutation
    vector = scale.size > 1
    shape = (-1,) if vector else ()
    zeros = np.broadcast_to(zero.reshape(-1), scale.size).reshape(shape).astype(values.dtype)
    inputs = [
        w.add_constant(np.transpose(values, order), f"{name}_values"),
        w.add_constant(scale.reshape(shape), f"{name}_scale"),
        w.add_constant(zeros, f"{name}_zero_point"),
    ]
    attributes = {"axis": order.index(int(producer.attributes["axis"]) % values.ndim)} if vector else {}
    return w.step("DequantizeLinear", inputs, f"{name}_onnx", **attributes)


def _is_constant(graph: Graph, name: str) -> bool:
    return name in graph.constants or is_dequantized_constant(graph, name)


def _bias(w: Writer, node: Node) -> Node | None:
    """The addition of a constant vector behind a convolution or matmul, when nothing else reads that."""
    reader = w.graph.only_consumer(node.name)
    if reader is None or reader.op != "add" or reader.inputs[0] != node.name:
        return None
    vector = w.graph.types[reader.inputs[1]].shape
    channels = w.graph.types[node.name].shape[-1]
    if vector != (channels,) or not _is_constant(w.graph, reader.inputs[1]):
        return None
    return reader


def _conv2d(w: Writer, node: Node) -> None:
    a = node.attributes
    if (a["data_layout"], a["kernel_layout"]) != ("NHWC", "OHWI"):
        raise ModelError(f"{node.name}: a {a['data_layout']} {a['kernel_layout']} convolution is not canonical")
    weight_shape = w.graph.types[node.inputs[1]].shape
    inputs = [w.read(node.inputs[0], True), _weight(w, node.inputs[1], NCHW)]
    attributes = {
        "kernel_shape": list(weight_shape[1:3]), "strides": list(a["strides"]), "dilations": list(a["dilation"]),
        "pads": _pads(a["padding"]), "group": int(a["groups"]),
    }  # fmt: skip
    bias = _bias(w, node)
    if bias is None:
        w.write(node, "Conv", inputs, True, **attributes)
        return
    # The convolution's own tensor does not exist in ONNX then: the bias belongs to Conv.
    w.write(bias, "Conv", [*inputs, w.read(bias.inputs[1])], True, **attributes)


def _add(w: Writer, node: Node) -> None:
    if node.name not in w.stored:  # otherwise the matrix operator in front has taken it as its bias
        _pointwise("Add")(w, node)


def _matmul(w: Writer, node: Node) -> None:
    inputs = [w.read(n) for n in node.inputs]
    bias = _bias(w, node)
    if bias is not None and len(w.graph.types[node.name].shape) == 2:
        w.write(bias, "Gemm", [*inputs, w.read(bias.inputs[1])])
    else:
        w.write(node, "MatMul", inputs)


# ------------------------------------------------------------------------------ windows and resizing
def _pool(op: str) -> Emitter:
    def emit(w: Writer, node: Node) -> None:
        a = node.attributes
        extra: dict[str, Any] = {"count_include_pad": int(a["count_include_pad"])} if op == "AveragePool" else {}
        if any(d != 1 for d in a["dilation"]):  # ONNX Runtime's fusion of a quantised pool trips over the attribute
            extra["dilations"] = list(a["dilation"])
        w.write(
            node, op, [w.read(node.inputs[0], True)], True,
            kernel_shape=list(a["pool_size"]), strides=list(a["strides"]),
            pads=_pads(a["padding"]), ceil_mode=int(a["ceil_mode"]), **extra,
        )  # fmt: skip

    return emit


_NEAREST = {"round": "round_prefer_ceil", "": "round_prefer_floor"}


def _resize2d(w: Writer, node: Node) -> None:
    a = node.attributes
    n, h, width, c = w.graph.types[node.name].shape
    sizes = w.add_constant(np.array([n, c, h, width], dtype=np.int64), f"{node.name}_sizes")
    mode = {"nearest_neighbor": "nearest", "linear": "linear", "cubic": "cubic"}[a["method"]]
    attributes: dict[str, Any] = {"mode": mode, "coordinate_transformation_mode": a["coordinate_transformation_mode"]}
    if mode == "nearest":
        rounding = a.get("rounding_method", "")
        attributes["nearest_mode"] = _NEAREST.get(rounding, rounding)
    if mode == "cubic":
        attributes.update(cubic_coeff_a=float(a["cubic_alpha"]), exclude_outside=int(a["cubic_exclude"]))
    w.write(node, "Resize", [w.read(node.inputs[0], True), "", "", sizes], True, **attributes)


# ------------------------------------------------------------------------------------ along an axis
def _reduce(op: str, global_pool: str = "") -> Emitter:
    def emit(w: Writer, node: Node) -> None:
        x, a = node.inputs[0], node.attributes
        rank = len(w.graph.types[x].shape)
        axes = sorted(i % rank for i in (a.get("axis") or range(rank)))
        keepdims = bool(a["keepdims"])
        # Without H and W, or without C, what is left of an NCHW tensor is in canonical order.
        permuted = w.is_permuted(x) and (keepdims or axes in ([1, 2], [3], [1, 2, 3], [0, 1, 2, 3]))
        inputs = [w.read(x, permuted)]
        stays_permuted = permuted and keepdims
        if global_pool and stays_permuted and axes == [1, 2]:
            w.write(node, global_pool, inputs, True)
            return
        mapped = w.add_constant(np.array([_axis(i, rank, permuted) for i in axes], dtype=np.int64), f"{node.name}_axes")
        w.write(node, op, [*inputs, mapped], stays_permuted, keepdims=int(keepdims))

    return emit


def _along(op: str) -> Emitter:
    """Operators that keep the shape and have one axis attribute."""

    def emit(w: Writer, node: Node) -> None:
        x = node.inputs[0]
        permuted = w.is_permuted(x)
        rank = len(w.graph.types[x].shape)
        axis = _axis(int(node.attributes.get("axis", -1)), rank, permuted)
        w.write(node, op, [w.read(x, permuted)], permuted, axis=axis)

    return emit


def _layer_norm(w: Writer, node: Node) -> None:
    x, gamma, beta = node.inputs
    rank = len(w.graph.types[x].shape)
    axes = [i % rank for i in node.attributes["axes"]]
    if axes != list(range(rank - len(axes), rank)):
        raise ModelError(f"{node.name}: a layer norm over the axes {axes} of rank {rank} has no ONNX form")
    w.write(
        node, "LayerNormalization", [w.read(x), w.read(gamma), w.read(beta)],
        axis=axes[0], epsilon=float(node.attributes["epsilon"]),
    )  # fmt: skip


# ------------------------------------------------------------------------------------ data movement
def _concat(w: Writer, node: Node) -> None:
    rank = len(w.graph.types[node.name].shape)
    permuted = rank == 4 and any(w.is_permuted(n) for n in node.inputs)
    axis = _axis(int(node.attributes.get("axis", 0)), rank, permuted)
    w.write(node, "Concat", [w.read(n, permuted) for n in node.inputs], permuted, axis=axis)


def _permute_dims(w: Writer, node: Node) -> None:
    from qcompiler.passes.export_onnx import Stored

    x = node.inputs[0]
    rank = len(w.graph.types[x].shape)
    axes = tuple(int(i) % rank for i in node.attributes.get("axes") or reversed(range(rank)))
    if x in w.graph.constants:
        w.write(node, "Transpose", [w.read(x)], perm=axes)
        return
    stored = w.stored[x]
    if stored.permuted and axes == NCHW:
        w.alias(node, Stored(stored.name))
    elif not stored.permuted and axes == NHWC:
        w.alias(node, Stored(stored.name, True))
    else:  # one transpose from the tensor as it is stored
        perm = tuple(CHANNEL_TO_NCHW[i] for i in axes) if stored.permuted else axes
        w.write(node, "Transpose", [stored.name], perm=perm)


def _reshape(w: Writer, node: Node) -> None:
    shape = list(w.graph.types[node.name].shape)
    if w.batch:
        shape[0] = 0 if len(shape) and w.graph.types[node.inputs[0]].shape[0] == 1 else shape[0]
    target = w.add_constant(np.array(shape, dtype=np.int64), f"{node.name}_shape")
    x = node.inputs[0]
    one_pixel = w.is_permuted(x) and w.graph.types[x].shape[1:3] == (1, 1)  # then both orders are the same
    inputs = [w.read(x, one_pixel), target]
    attributes: dict[str, Any] = {} if 0 in shape else {"allowzero": 1}
    w.write(node, "Reshape", inputs, **attributes)


def _broadcast_to(w: Writer, node: Node) -> None:
    shape = w.add_constant(np.array(w.graph.types[node.name].shape, dtype=np.int64), f"{node.name}_shape")
    w.write(node, "Expand", [w.read(node.inputs[0]), shape])


def _strided_slice(w: Writer, node: Node) -> None:
    x, a = node.inputs[0], node.attributes
    permuted = w.is_permuted(x)
    rank = len(w.graph.types[x].shape)
    axes = [_axis(int(i), rank, permuted) for i in a["axes"]]
    strides = a.get("strides") or (1,) * len(axes)
    vectors = [
        w.add_constant(np.array(v, dtype=np.int64), f"{node.name}_{k}")
        for k, v in (("begin", a["begin"]), ("end", a["end"]), ("axes", axes), ("strides", strides))
    ]
    w.write(node, "Slice", [w.read(x, permuted), *vectors], permuted)


def _pad(w: Writer, node: Node) -> None:
    x, a = node.inputs[0], node.attributes
    permuted = w.is_permuted(x)
    rank = len(w.graph.types[x].shape)
    widths = np.array(a["pad_width"], dtype=np.int64).reshape(rank, 2)
    if permuted:
        widths = widths[list(NCHW)]
    pads = w.add_constant(np.concatenate([widths[:, 0], widths[:, 1]]), f"{node.name}_pads")
    mode = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}[a["pad_mode"]]
    value = [] if mode != "constant" else [w.add_constant(np.float32(a.get("pad_value", 0.0)), f"{node.name}_value")]
    w.write(node, "Pad", [w.read(x, permuted), pads, *value], permuted, mode=mode)


def _take(w: Writer, node: Node) -> None:
    x, index = node.inputs
    axis = node.attributes.get("axis")
    inputs = [w.read(x), w.read(index)]
    if axis is None:
        flat = w.add_constant(np.array([-1], dtype=np.int64), f"{node.name}_flat")
        inputs[0] = w.step("Reshape", [inputs[0], flat], f"{node.name}_flattened")
        axis = 0
    w.write(node, "Gather", inputs, axis=int(axis))


def _repeat_or_tile(w: Writer, node: Node) -> None:
    repeats = w.add_constant(np.array(node.attributes["repeats"], dtype=np.int64), f"{node.name}_repeats")
    w.write(node, "Tile", [w.read(node.inputs[0]), repeats])


EMITTERS: dict[str, Emitter] = {
    "add": _add, "subtract": _pointwise("Sub"), "multiply": _pointwise("Mul"), "divide": _pointwise("Div"),
    "power": _pointwise("Pow"), "maximum": _pointwise("Max"), "minimum": _pointwise("Min"),
    "equal": _pointwise("Equal"), "greater": _pointwise("Greater"), "greater_equal": _pointwise("GreaterOrEqual"),
    "less": _pointwise("Less"), "less_equal": _pointwise("LessOrEqual"), "logical_and": _pointwise("And"),
    "logical_or": _pointwise("Or"), "logical_not": _pointwise("Not"), "where": _pointwise("Where"),
    "mod": _pointwise("Mod", fmod=1),
    "abs": _pointwise("Abs"), "negative": _pointwise("Neg"), "exp": _pointwise("Exp"), "log": _pointwise("Log"),
    "sqrt": _pointwise("Sqrt"), "rsqrt": _rsqrt, "square": _square, "erf": _pointwise("Erf"),
    "sigmoid": _pointwise("Sigmoid"), "tanh": _pointwise("Tanh"), "sin": _pointwise("Sin"), "cos": _pointwise("Cos"),
    "tan": _pointwise("Tan"), "asin": _pointwise("Asin"), "acos": _pointwise("Acos"), "atan": _pointwise("Atan"),
    "sinh": _pointwise("Sinh"), "cosh": _pointwise("Cosh"), "asinh": _pointwise("Asinh"),
    "acosh": _pointwise("Acosh"), "atanh": _pointwise("Atanh"), "floor": _pointwise("Floor"),
    "ceil": _pointwise("Ceil"), "round": _pointwise("Round"), "sign": _pointwise("Sign"),
    "nn.relu": _pointwise("Relu"), "nn.leakyrelu": _leaky_relu, "nn.prelu": _prelu, "nn.silu": _silu,
    "nn.gelu": _gelu("none"), "nn.gelu_tanh": _gelu("tanh"), "nn.selu": _selu, "nn.softplus": _softplus,
    "clip": _clip, "astype": _cast,
    "quantize": _quantisation("QuantizeLinear"), "dequantize": _quantisation("DequantizeLinear"),
    "nn.conv2d": _conv2d, "matmul": _matmul,
    "nn.max_pool2d": _pool("MaxPool"), "nn.avg_pool2d": _pool("AveragePool"), "image.resize2d": _resize2d,
    "mean": _reduce("ReduceMean", "GlobalAveragePool"), "sum": _reduce("ReduceSum"), "max": _reduce("ReduceMax"),
    "min": _reduce("ReduceMin"), "prod": _reduce("ReduceProd"),
    "nn.softmax": _along("Softmax"), "nn.log_softmax": _along("LogSoftmax"), "nn.layer_norm": _layer_norm,
    "concat": _concat, "permute_dims": _permute_dims, "reshape": _reshape, "squeeze": _reshape,
    "expand_dims": _reshape, "flatten": _reshape, "broadcast_to": _broadcast_to, "strided_slice": _strided_slice,
    "nn.pad": _pad, "take": _take, "tile": _repeat_or_tile,
    **INDEX_EMITTERS,
}  # fmt: skip

_ROWWISE = {"nn.conv2d", "nn.max_pool2d", "nn.avg_pool2d"}
_NOT_BATCHED = {"broadcast_to", "take", "tile", "where", "image.resize2d", *INDEX_EMITTERS}


def keeps_batch(node: Node, shapes: Mapping[str, Shape], graph: Graph) -> bool:
    """Whether the node treats the samples along axis 0 (of extent 1 in the graph) independently."""
    rank = len(shapes[node.inputs[0]]) if node.inputs else 0
    a = node.attributes
    if node.op in _ROWWISE:
        return True
    if node.op in _NOT_BATCHED or node.op not in EMITTERS:
        return False
    if node.op == "matmul":
        right = node.inputs[1]
        return rank >= 2 and (right in graph.constants and len(shapes[right]) == 2 or len(shapes[right]) == rank >= 3)
    if node.op in ("reshape", "squeeze", "expand_dims", "flatten"):
        return True  # the caller has checked that axis 0 is 1 before and after
    if node.op == "permute_dims":
        axes = a.get("axes") or tuple(reversed(range(rank)))
        return int(axes[0]) % rank == 0
    if node.op == "concat" and any(n in graph.constants for n in node.inputs):
        return False  # a constant has one sample's extent
    if node.op in ("concat", "nn.softmax", "nn.log_softmax"):
        return int(a.get("axis", 0)) % rank != 0
    if node.op in ("mean", "sum", "max", "min", "prod"):
        return bool(a.get("axis")) and all(int(i) % rank != 0 for i in a["axis"])
    if node.op == "nn.layer_norm":
        return all(int(i) % rank != 0 for i in a["axes"])
    if node.op == "strided_slice":
        return all(int(i) % rank != 0 for i in a["axes"])
    if node.op == "nn.pad":
        return tuple(a["pad_width"])[:2] == (0, 0)
    # Element-wise: operands of the output's rank, or constants, whose axis 0 is 1 or which do not reach axis 0.
    out = len(shapes[node.name])
    return all(len(shapes[n]) == out or n in graph.constants for n in node.inputs) and all(
        len(shapes[n]) < out or shapes[n][0] == 1 for n in node.inputs
    )
