"""Quantised ONNX operators as dequantise, float operator, quantise (QDQ): the form that integerising reads.

Covers QuantizeLinear and DequantizeLinear themselves, the QOperator set (QLinearConv, ConvInteger, …) and its
com.microsoft extensions. Values keep their ONNX types here; the `signed` pass makes uint8 tensors int8.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from tvm import relax
from tvm.relax import op as R

from qcompiler.frontend.onnx_math import as_type, scalar
from qcompiler.frontend.onnx_node import Array, Node, Result, Unsupported, Value, converter
from qcompiler.passes.rewrite import const, dtype_of, shape_of

MICROSOFT = "com.microsoft"
_EIGHT_BITS = ("int8", "uint8")
_FOUR_BITS = ("int4", "uint4")


# --------------------------------------------------------------------------- quantise and dequantise
@converter("QuantizeLinear")
@converter("QuantizeLinear", domain=MICROSOFT)
def quantize_linear(node: Node) -> Result:
    zero = _zero_point(node, 2, str(np.dtype(_output_dtype(node))))
    return quantized(node, node.tensor(0), node.constant(1, "scale"), zero)


def _output_dtype(node: Node) -> str:
    from onnx import helper

    if node.has(2):
        return node.dtype(2)
    kind = node.attribute("output_dtype", 0)
    return str(helper.tensor_dtype_to_np_dtype(kind)) if kind else "uint8"


@converter("DequantizeLinear")
@converter("DequantizeLinear", domain=MICROSOFT)
def dequantize_linear(node: Node) -> Result:
    node = _widened(node)
    zero = _zero_point(node, 2, node.dtype(0))
    value, scale = node.value(0), node.constant(1, "scale").astype(np.float32)
    if node.dtype(0) == "int32":  # a bias, or an accumulator: its zero point is 0
        if np.any(zero):
            raise Unsupported("an int32 tensor has a zero point that is not 0")
        vector: Array = scale.reshape(()) if scale.size == 1 else scale
        if scale.size > 1:
            axis = node.axis(default=1 if len(node.shape()) > 1 else 0)
            vector = scale.reshape((-1,) + (1,) * (len(node.shape()) - 1 - axis))
        if isinstance(value, np.ndarray):
            return value.astype(np.float32) * vector
        return R.multiply(node.emit(R.astype(value, "float32"), "float"), const(vector))
    return dequantized(node, node.tensor(0), scale, zero)


def _widened(node: Node) -> Node:
    """Constants of 4 bits as int8 ones of the same values."""
    inputs = [v.astype(np.int8) if isinstance(v, np.ndarray) and v.dtype.name in _FOUR_BITS else v for v in node.inputs]
    return replace(node, inputs=inputs)


def _zero_point(node: Node, index: int, dtype: str) -> Array:
    zero = node.constant(index, "zero point") if node.has(index) else np.zeros((), dtype=dtype)
    if str(zero.dtype) not in (*_EIGHT_BITS, "int32"):
        raise Unsupported(f"its data type is {zero.dtype}; 8-bit tensors are supported", "quantise it to 8 bits")
    return zero


def _blocks(node: Node) -> None:
    if node.attribute("block_size", 0):
        raise Unsupported("it is quantised in blocks", "quantise per tensor or per channel")


def _parameters(node: Node, x: relax.Expr, scale: Array, zero: Array) -> tuple[relax.Expr, relax.Expr, int]:
    """Scale and zero point as Relax wants them, rank 0 or 1, and the axis they belong to."""
    _blocks(node)
    scale = scale.astype(np.float32)
    if not np.all(np.isfinite(scale)) or np.any(scale <= 0):
        raise Unsupported(f"a scale of {float(scale.min()):g} is not positive and finite", "quantise the model again")
    if scale.size == 1:
        return const(scale.reshape(())), const(zero.reshape(-1)[:1].reshape(())), -1
    rank = len(shape_of(x))
    axis = int(node.attribute("axis", 1)) % rank if rank > 1 else 0
    if scale.shape != (shape_of(x)[axis],):
        raise Unsupported(
            f"its scale has the shape {scale.shape}, axis {axis} of its input {shape_of(x)[axis]} elements"
        )
    return const(scale), const(np.broadcast_to(zero.reshape(-1), scale.shape).astype(zero.dtype)), axis


def quantized(node: Node, x: relax.Expr, scale: Array, zero: Array) -> relax.Call:
    s, z, axis = _parameters(node, x, scale, zero)
    return R.quantize(x, s, z, axis=axis, out_dtype=str(zero.dtype))


def dequantized(node: Node, x: relax.Expr, scale: Array, zero: Array) -> relax.Call:
    s, z, axis = _parameters(node, x, scale, zero)
    return R.dequantize(x, s, z, axis=axis, out_dtype="float32")


# --------------------------------------------------------------------------------- QOperator to QDQ
def real_input(node: Node, index: int, name: str, axis: int | None = None) -> relax.Var:
    """The float value of the quantised input at `index`, its scale and zero point behind it; `axis` if per channel."""
    x = node.tensor(index)
    scale = node.constant(index + 1, f"scale of {name}")
    zero = node.constant(index + 2, "zero point") if node.has(index + 2) else np.zeros((), dtype=dtype_of(x))
    return _real(node, x, scale, zero, name, axis)


def _real(node: Node, x: relax.Expr, scale: Array, zero: Array, name: str, axis: int | None = None) -> relax.Var:
    if dtype_of(x) not in _EIGHT_BITS:
        raise Unsupported(f"its input {name} is {dtype_of(x)}; 8-bit tensors are supported", "quantise it to 8 bits")
    rank = len(shape_of(x))
    scale, zero = scale.astype(np.float32).reshape(-1), zero.reshape(-1)
    if scale.size == 1:
        parameters = const(scale.reshape(())), const(zero[:1].reshape(()))
        axis = -1
    else:
        axis = (1 if axis is None else axis) % rank
        if scale.size != shape_of(x)[axis]:
            raise Unsupported(f"its {name} has {scale.size} scales for {shape_of(x)[axis]} channels")
        parameters = const(scale), const(np.broadcast_to(zero, scale.shape).astype(zero.dtype))
    return node.emit(R.dequantize(x, *parameters, axis=axis, out_dtype="float32"), f"{name}.real")


def quantize_result(node: Node, result: Result, scale_index: int) -> Result:
    """The float result quantised with the scale at `scale_index` and the zero point behind it."""
    assert not isinstance(result, (list, np.ndarray))
    value = result if isinstance(result, relax.Var) else node.emit(result, "real")
    scale = node.constant(scale_index, "output scale")
    if node.has(scale_index + 1):
        zero = node.constant(scale_index + 1, "output zero point")
    else:
        zero = np.zeros((), dtype=np.uint8)
    if scale.size != 1:
        raise Unsupported("its output is quantised per channel", "quantise activations per tensor")
    return R.quantize(value, const(scale.astype(np.float32).reshape(())), const(zero.reshape(())),
                      axis=-1, out_dtype=str(zero.dtype))  # fmt: skip


@converter("QLinearConv")
@converter("QLinearConv", domain=MICROSOFT)
def qlinear_conv(node: Node) -> Result:
    if node.attribute("channels_last", 0):
        raise Unsupported("its tensors are channels-last", "run ONNX Runtime's optimiser at level basic only")
    inputs: list[Value | None] = [real_input(node, 0, "x"), real_input(node, 3, "w", axis=0)]
    if node.has(8):
        scale = node.constant(1, "scale of x") * node.constant(4, "scale of w").reshape(-1)
        inputs.append(node.constant(8, "bias").astype(np.float32) * scale.astype(np.float32))
    return quantize_result(node, node.convert_as("Conv", inputs, "conv", **node.attributes), 6)


@converter("QLinearMatMul")
@converter("QLinearMatMul", domain=MICROSOFT)
def qlinear_matmul(node: Node) -> Result:
    product = R.matmul(real_input(node, 0, "a"), real_input(node, 3, "b", axis=-1))
    return quantize_result(node, product, 6)


@converter("QGemm", domain=MICROSOFT)
def qgemm(node: Node) -> Result:
    column = 0 if node.attribute("transB", 0) else 1
    inputs: list[Value | None] = [real_input(node, 0, "a"), real_input(node, 3, "b", axis=column)]
    if node.has(6):
        scale = node.constant(1, "scale of a") * node.constant(4, "scale of b").reshape(-1)
        scale = scale * np.float32(node.attribute("alpha", 1.0))
        inputs.append(node.constant(6, "bias").astype(np.float32) * scale.astype(np.float32))
    product = node.convert_as("Gemm", inputs, "gemm", **node.attributes)
    return quantize_result(node, product, 7) if node.has(7) else product


@converter("QLinearAdd", "QLinearMul", domain=MICROSOFT)
def qlinear_binary(node: Node) -> Result:
    function = R.add if node.op_type == "QLinearAdd" else R.multiply
    return quantize_result(node, function(real_input(node, 0, "a"), real_input(node, 3, "b")), 6)


@converter("QLinearConcat", domain=MICROSOFT)
def qlinear_concat(node: Node) -> Result:
    parts = [real_input(node, i, f"x{i // 3}") for i in range(2, len(node.inputs), 3)]
    return quantize_result(node, R.concat(parts, int(node.required("axis"))), 0)


_UNARY = {
    "QLinearSigmoid": "Sigmoid", "QLinearLeakyRelu": "LeakyRelu", "QLinearAveragePool": "AveragePool",
    "QLinearGlobalAveragePool": "GlobalAveragePool", "QLinearSoftmax": "Softmax",
}  # fmt: skip


@converter(*_UNARY, domain=MICROSOFT)
def qlinear_unary(node: Node) -> Result:
    if node.attribute("channels_last", 0):
        raise Unsupported("its tensors are channels-last", "run ONNX Runtime's optimiser at level basic only")
    attributes: dict[str, Any] = dict(node.attributes)
    if node.op_type == "QLinearSoftmax":
        coerced, rank = attributes.pop("opset", 13) < 13, len(node.shape())
        attributes.setdefault("axis", 1 if coerced else -1)
        if coerced and int(attributes["axis"]) % rank != rank - 1:
            raise Unsupported("its axis is not the last one")
    real = real_input(node, 0, "x")
    return quantize_result(node, node.convert_as(_UNARY[node.op_type], [real], "float", **attributes), 3)


@converter("QLinearWhere", domain=MICROSOFT)
def qlinear_where(node: Node) -> Result:
    return quantize_result(node, R.where(node.tensor(0), real_input(node, 1, "x"), real_input(node, 4, "y")), 7)


# ------------------------------------------------------------------ integer accumulators, dynamic scales
def _centred(node: Node, index: int, zero_index: int, name: str, axis: int) -> relax.Var:
    """x - zero point as float32: exact, and so are sums of products below 2**24."""
    x = node.tensor(index)
    zero = node.value(zero_index) if node.has(zero_index) else np.zeros((), dtype=dtype_of(x))
    if isinstance(zero, np.ndarray) and (zero.size == 1 or zero.size == shape_of(x)[axis]):
        return _real(node, x, np.ones(zero.size, np.float32), zero, name, axis)
    wide = node.emit(R.astype(x, "float32"), f"{name}.wide")
    offset: relax.Expr
    if isinstance(zero, np.ndarray):
        offset = const(zero.astype(np.float32))
    else:
        offset = as_type(node, zero, "float32")
    return node.emit(R.subtract(wide, offset), f"{name}.real")


@converter("ConvInteger")
def conv_integer(node: Node) -> Result:
    inputs: Sequence[Value] = [_centred(node, 0, 2, "x", 1), _centred(node, 1, 3, "w", 0)]
    result = node.convert_as("Conv", inputs, "conv", **node.attributes)
    return R.astype(result if isinstance(result, relax.Var) else node.emit(result, "real"), "int32")


@converter("MatMulInteger")
def matmul_integer(node: Node) -> Result:
    product = R.matmul(_centred(node, 0, 2, "a", -2), _centred(node, 1, 3, "b", -1))
    return R.astype(node.emit(product, "real"), "int32")


@converter("DynamicQuantizeLinear")
def dynamic_quantize_linear(node: Node) -> Result:
    """Scale and zero point from the range of this very input, uint8; all in float32 until the last step."""
    x = node.tensor(0)
    high = node.emit(R.maximum(node.emit(R.max(x), "max"), scalar(0)), "high")
    low = node.emit(R.minimum(node.emit(R.min(x), "min"), scalar(0)), "low")
    scale = node.emit(R.divide(node.emit(R.subtract(high, low), "range"), scalar(255)), "scale")
    offset = node.emit(R.divide(node.emit(R.negative(low), "negative"), scale), "offset")
    zero = node.emit(R.round(node.emit(R.clip(offset, 0.0, 255.0), "clipped")), "zero")
    steps = node.emit(R.round(node.emit(R.divide(x, scale), "steps")), "rounded")
    y = node.emit(R.clip(node.emit(R.add(steps, zero), "shifted"), 0.0, 255.0), "saturated")
    return [R.astype(y, "uint8"), scale, R.astype(zero, "uint8")]


@converter("MatMulIntegerToFloat", domain=MICROSOFT)
def matmul_integer_to_float(node: Node) -> Result:
    product = node.emit(R.matmul(_centred(node, 0, 4, "a", -2), _centred(node, 1, 5, "b", -1)), "product")
    scaled = node.emit(R.multiply(node.emit(R.multiply(product, node.tensor(2)), "scaled_a"), node.tensor(3)), "scaled")
    return R.add(scaled, node.tensor(6)) if node.has(6) else scaled


@converter("DynamicQuantizeMatMul", domain=MICROSOFT)
def dynamic_quantize_matmul(node: Node) -> Result:
    """A float product with the weight's real values (see `onnx_dynamic`)."""
    weight = node.constant(1, "weight").astype(np.float32)
    if node.has(3):
        weight = weight - node.constant(3, "zero point").astype(np.float32)
    product = R.matmul(node.tensor(0), const(weight * node.constant(2, "scale")))
    return R.add(node.emit(product, "product"), node.tensor(4)) if node.has(4) else product
