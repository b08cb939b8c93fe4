"""ONNX arithmetic: element-wise functions, reductions, matrix products."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from tvm import relax
from tvm.relax import op as R

from qcompiler.frontend.onnx_node import CONVERTERS, Node, Result, Unsupported, converter
from qcompiler.passes.rewrite import const, dtype_of, shape_of

# ------------------------------------------------------------------------------------- element-wise
UNARY: dict[str, Callable[[relax.Expr], relax.Call]] = {
    "Abs": R.abs, "Acos": R.acos, "Acosh": R.acosh, "Asin": R.asin, "Asinh": R.asinh, "Atan": R.atan,
    "Atanh": R.atanh, "Ceil": R.ceil, "Cos": R.cos, "Cosh": R.cosh, "Erf": R.erf, "Exp": R.exp, "Floor": R.floor,
    "Log": R.log, "Neg": R.negative, "Not": R.logical_not, "Relu": R.nn.relu, "Round": R.round,
    "Sigmoid": R.sigmoid, "Sign": R.sign, "Sin": R.sin, "Sinh": R.sinh, "Sqrt": R.sqrt, "Tan": R.tan, "Tanh": R.tanh,
}  # fmt: skip
BINARY: dict[str, Callable[[relax.Expr, relax.Expr], relax.Call]] = {
    "Add": R.add, "Sub": R.subtract, "Mul": R.multiply, "And": R.logical_and, "Or": R.logical_or,
    "Xor": R.logical_xor, "Equal": R.equal, "Greater": R.greater, "GreaterOrEqual": R.greater_equal,
    "Less": R.less, "LessOrEqual": R.less_equal,
}  # fmt: skip
VARIADIC: dict[str, Callable[[relax.Expr, relax.Expr], relax.Call]] = {
    "Sum": R.add, "Mean": R.add, "Max": R.maximum, "Min": R.minimum,
}  # fmt: skip


@converter(*UNARY)
def unary(node: Node) -> Result:
    return UNARY[node.op_type](node.tensor(0))


@converter(*BINARY)
def binary(node: Node) -> Result:
    return BINARY[node.op_type](node.tensor(0), node.tensor(1))


@converter(*VARIADIC)
def variadic(node: Node) -> Result:
    function = VARIADIC[node.op_type]
    total: relax.Expr = node.tensor(0)
    for i in range(1, len(node.inputs)):
        call = function(total, node.tensor(i))
        total = call if i == len(node.inputs) - 1 else node.emit(call, f"partial{i}")
    if node.op_type != "Mean" or len(node.inputs) == 1:
        return total
    return R.multiply(node.emit(total, "sum"), scalar(1 / len(node.inputs), dtype_of(node.tensor(0))))


@converter("Div")
def div(node: Node) -> Result:
    return R.divide(node.tensor(0), node.tensor(1))


@converter("Mod")
def mod(node: Node) -> Result:
    return (R.mod if node.attribute("fmod", 0) else R.floor_mod)(node.tensor(0), node.tensor(1))


@converter("Pow")
def power(node: Node) -> Result:
    x, exponent = node.tensor(0), node.value(1)
    if isinstance(exponent, np.ndarray):
        if exponent.size == 1 and exponent.ndim <= len(node.shape()):
            value = float(exponent.reshape(()))
            if value == 2:
                return R.square(x)
            if value == 0.5:
                return R.sqrt(x)
            return R.power(x, scalar(value, node.dtype()))
        exponent = exponent.astype(node.dtype())
        return R.power(x, const(exponent))
    return R.power(x, as_type(node, exponent, node.dtype()))


@converter("Reciprocal")
def reciprocal(node: Node) -> Result:
    return R.divide(scalar(1, node.dtype()), node.tensor(0))


@converter("Where")
def where(node: Node) -> Result:
    return R.where(node.tensor(0), node.tensor(1), node.tensor(2))


@converter("Cast", "CastLike")
def cast(node: Node) -> Result:
    from onnx import TensorProto, helper

    if node.op_type == "CastLike":
        dtype = node.dtype(1)
    else:
        kind = int(node.required("to"))
        if kind not in _CASTS:
            raise Unsupported(
                f"it casts to {TensorProto.DataType.Name(kind).lower()}, which nothing here computes with"
            )
        dtype = str(helper.tensor_dtype_to_np_dtype(kind)) if kind != TensorProto.BFLOAT16 else "float32"
    dtype = {"float64": "float32", "float16": "float32"}.get(dtype, dtype)
    return node.tensor(0) if node.dtype() == dtype else R.astype(node.tensor(0), dtype)


_CASTS = (1, 2, 3, 6, 7, 9, 10, 11, 16)  # float, uint8, int8, int32, int64, bool, float16, double, bfloat16


# --------------------------------------------------------------------------------------- activations
@converter("Clip")
def clip(node: Node) -> Result:
    x = node.tensor(0)
    if node.opset < 11:
        low, high = node.attribute("min", -math.inf), node.attribute("max", math.inf)
    else:
        bounds = [node.inputs[i] if node.has(i) else None for i in (1, 2)]
        if not all(b is None or isinstance(b, np.ndarray) for b in bounds):
            if bounds[0] is not None:
                x = (
                    node.emit(R.maximum(x, node.tensor(1)), "low")
                    if bounds[1] is not None
                    else R.maximum(x, node.tensor(1))
                )
            return R.minimum(x, node.tensor(2)) if bounds[1] is not None else x
        low = float(bounds[0].reshape(())) if isinstance(bounds[0], np.ndarray) else -math.inf
        high = float(bounds[1].reshape(())) if isinstance(bounds[1], np.ndarray) else math.inf
    return clipped(x, low, high)


def clipped(x: relax.Expr, low: float, high: float) -> relax.Expr:
    """min(max(x, low), high) by the simplest operator; infinite (or float32-extreme) bounds are none."""
    dtype = dtype_of(x)
    limit = float(np.finfo(np.float32).max)
    if low <= -limit and high >= limit:
        return x
    if high >= limit:
        return R.nn.relu(x) if low == 0 else R.maximum(x, scalar(low, dtype))
    if low <= -limit:
        return R.minimum(x, scalar(high, dtype))
    if "int" in dtype:
        return R.clip(x, int(low), int(high))
    return R.clip(x, low, high)


@converter("LeakyRelu")
def leaky_relu(node: Node) -> Result:
    return R.nn.leakyrelu(node.tensor(0), float(node.attribute("alpha", 0.01)))


@converter("PRelu")
def prelu(node: Node) -> Result:
    shape, x = node.shape(), node.tensor(0)
    slope = node.value(1)
    if isinstance(slope, np.ndarray):
        if slope.size == 1:
            return R.nn.leakyrelu(x, float(slope.reshape(())))
        full = (1,) * (len(shape) - slope.ndim) + slope.shape
        wide = [i for i, d in enumerate(full) if d != 1]
        if len(wide) == 1 and full[wide[0]] == shape[wide[0]]:
            return R.nn.prelu(x, const(slope.reshape(-1)), axis=wide[0])
    positive = node.emit(R.nn.relu(x), "positive")
    negative = node.emit(R.minimum(x, scalar(0, node.dtype())), "negative")
    return R.add(positive, node.emit(R.multiply(negative, node.tensor(1)), "scaled"))


@converter("HardSigmoid")
def hard_sigmoid(node: Node) -> Result:
    return _hard_sigmoid(node, float(node.attribute("alpha", 0.2)), float(node.attribute("beta", 0.5)))


def _hard_sigmoid(node: Node, alpha: float, beta: float) -> relax.Expr:
    scaled = node.emit(R.multiply(node.tensor(0), scalar(alpha)), "scaled")
    return R.clip(node.emit(R.add(scaled, scalar(beta)), "shifted"), 0.0, 1.0)


@converter("HardSwish")
def hard_swish(node: Node) -> Result:
    return R.multiply(node.tensor(0), node.emit(_hard_sigmoid(node, 1 / 6, 0.5), "gate"))


@converter("Gelu")
def gelu(node: Node) -> Result:
    approximate = node.attribute("approximate", "none")
    return R.nn.gelu_tanh(node.tensor(0)) if approximate == "tanh" else R.nn.gelu(node.tensor(0))


@converter("Swish")
def swish(node: Node) -> Result:
    alpha = float(node.attribute("alpha", 1.0))
    x = node.tensor(0)
    if alpha == 1.0:
        return R.nn.silu(x)
    return R.multiply(x, node.emit(R.sigmoid(node.emit(R.multiply(x, scalar(alpha)), "scaled")), "gate"))


@converter("Softplus")
def softplus(node: Node) -> Result:
    """log(1 + e^x) as relu(x) + log(1 + e^-|x|), which never overflows."""
    x = node.tensor(0)
    small = node.emit(R.exp(node.emit(R.negative(node.emit(R.abs(x), "abs")), "negative")), "exp")
    tail = node.emit(R.log(node.emit(R.add(small, scalar(1)), "sum")), "log")
    return R.add(node.emit(R.nn.relu(x), "positive"), tail)


@converter("Softsign")
def softsign(node: Node) -> Result:
    x = node.tensor(0)
    return R.divide(x, node.emit(R.add(node.emit(R.abs(x), "abs"), scalar(1)), "sum"))


@converter("Mish")
def mish(node: Node) -> Result:
    x = node.tensor(0)
    plus = node.convert_as("Softplus", node.inputs, "softplus")
    return R.multiply(x, node.emit(R.tanh(node.emit(plus, "plus")), "tanh"))


@converter("Elu", "Celu", "Selu", "ThresholdedRelu", "Shrink")
def piecewise(node: Node) -> Result:
    """Activations in two pieces, written with a comparison: a table, once quantised."""
    x, a = node.tensor(0), node.attributes
    if node.op_type == "ThresholdedRelu":
        return R.where(node.emit(R.greater(x, scalar(a.get("alpha", 1.0))), "above"), x, scalar(0))
    if node.op_type == "Shrink":
        lambd, bias = a.get("lambd", 0.5), a.get("bias", 0.0)
        high = node.emit(R.subtract(x, scalar(bias)), "high")
        low = node.emit(R.add(x, scalar(bias)), "low")
        below = node.emit(R.less(x, scalar(-lambd)), "below")
        above = node.emit(R.greater(x, scalar(lambd)), "above")
        return R.where(above, high, node.emit(R.where(below, low, scalar(0)), "inner"))
    alpha = a.get("alpha", 1.67326319217681884765625 if node.op_type == "Selu" else 1.0)
    gamma = a.get("gamma", 1.05070102214813232421875) if node.op_type == "Selu" else 1.0
    negative = node.emit(R.minimum(x, scalar(0)), "negative")
    if node.op_type == "Celu":
        negative = node.emit(R.multiply(negative, scalar(1 / alpha)), "unit")
    curve = node.emit(R.subtract(node.emit(R.exp(negative), "exp"), scalar(1)), "expm1")
    lower = node.emit(R.multiply(curve, scalar(alpha * gamma)), "lower")
    upper = node.emit(R.nn.relu(x), "positive")
    if gamma != 1.0:
        upper = node.emit(R.multiply(upper, scalar(gamma)), "upper")
    return R.add(upper, lower)


# --------------------------------------------------------------------------------------- reductions
def reduced_axes(node: Node) -> tuple[int, ...] | None:
    """Axes of a Reduce operator, from the attribute or the second input; None means that it does nothing."""
    rank = len(node.shape())
    axes = tuple(node.attribute("axes", ())) or (node.ints(1, "axes") if node.has(1) else ())
    if not axes:
        return None if node.attribute("noop_with_empty_axes", 0) else tuple(range(rank))
    return tuple(sorted({int(a) % rank for a in axes}))


REDUCTIONS: dict[str, Callable[..., relax.Call]] = {
    "ReduceMean": R.mean, "ReduceSum": R.sum, "ReduceMax": R.max, "ReduceMin": R.min, "ReduceProd": R.prod,
}  # fmt: skip
_BEFORE = {"ReduceL1": R.abs, "ReduceL2": R.square, "ReduceSumSquare": R.square, "ReduceLogSumExp": R.exp}
_AFTER = {"ReduceL2": R.sqrt, "ReduceLogSum": R.log, "ReduceLogSumExp": R.log}


@converter(*REDUCTIONS, "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSum", "ReduceLogSumExp")
def reduce(node: Node) -> Result:
    x, axes, keepdims = node.tensor(0), reduced_axes(node), bool(node.attribute("keepdims", 1))
    kind = node.op_type
    if kind in REDUCTIONS:
        return x if axes is None else REDUCTIONS[kind](x, axis=list(axes), keepdims=keepdims)
    largest = None
    if kind == "ReduceLogSumExp" and axes is not None:  # shifted by the maximum, so that exp cannot overflow
        largest = node.emit(R.max(x, axis=list(axes), keepdims=True), "max")
        x = node.emit(R.subtract(x, largest), "shifted")
    if kind in _BEFORE:
        x = node.emit(_BEFORE[kind](x), "mapped")
    total: relax.Expr = x
    if axes is not None:
        call = R.sum(x, axis=list(axes), keepdims=keepdims)
        total = node.emit(call, "total") if kind in _AFTER else call
    result = _AFTER[kind](total) if kind in _AFTER else total
    if largest is None:
        return result
    logarithm = node.emit(result, "log")
    return R.add(logarithm, node.emit(R.reshape(largest, shape_of(logarithm)), "offset"))


@converter("ArgMax", "ArgMin")
def arg_reduce(node: Node) -> Result:
    if node.attribute("select_last_index", 0):
        raise Unsupported("select_last_index=1 is not supported", "flip the input along the axis first")
    function = R.argmax if node.op_type == "ArgMax" else R.argmin
    return function(node.tensor(0), axis=node.axis(), keepdims=bool(node.attribute("keepdims", 1)))


# ---------------------------------------------------------------------------------- matrix products
@converter("MatMul")
def matmul(node: Node) -> Result:
    return R.matmul(node.tensor(0), node.tensor(1))


@converter("Gemm")
def gemm(node: Node) -> Result:
    alpha, beta = float(node.attribute("alpha", 1.0)), float(node.attribute("beta", 1.0))
    a, b = node.tensor(0), node.value(1)
    if node.attribute("transA", 0):
        a = node.emit(R.permute_dims(a, [1, 0]), "transposed")
    right: relax.Expr
    if isinstance(b, np.ndarray):
        b = b.T if node.attribute("transB", 0) else b
        right, alpha = const(b if alpha == 1 else b * np.asarray(alpha, b.dtype)), 1.0
    else:
        right = node.emit(R.permute_dims(b, [1, 0]), "weight") if node.attribute("transB", 0) else b
    product: relax.Expr = R.matmul(a, right)
    if alpha != 1:
        product = R.multiply(node.emit(product, "product"), scalar(alpha))
    if not node.has(2) or beta == 0:
        return product
    addend = node.value(2)
    product = node.emit(product, "scaled" if alpha != 1 else "matmul")
    if isinstance(addend, np.ndarray):
        if addend.size == shape_of(product)[-1] and addend.shape[-1:] == shape_of(product)[-1:]:
            addend = addend.reshape(-1)
        return R.add(product, const(addend if beta == 1 else addend * np.asarray(beta, addend.dtype)))
    return R.add(product, addend if beta == 1 else node.emit(R.multiply(addend, scalar(beta)), "addend"))


# ------------------------------------------------------------------------------------------ helpers
def scalar(value: float, dtype: str = "float32") -> relax.Expr:
    """A rank-0 constant."""
    return const(np.asarray(value, dtype=dtype))


def as_type(node: Node, value: relax.Var, dtype: str) -> relax.Var:
    return value if dtype_of(value) == dtype else node.emit(R.astype(value, dtype), dtype)


def activated(node: Node, value: relax.Expr, name: str, parameters: tuple[float, ...] = ()) -> relax.Expr:
    """The activation that ONNX Runtime's fused operators carry as an attribute."""
    if name in ("", "None"):
        return value
    if not isinstance(value, relax.Var):
        value = node.emit(value, "linear")
    if name == "Clip":
        return clipped(value, *parameters)
    keys = {"LeakyRelu": ("alpha",), "HardSigmoid": ("alpha", "beta")}.get(name, ())
    if ("", name) not in CONVERTERS or len(keys) != len(parameters):
        raise Unsupported(f"it carries the activation {name}, which is not known")
    return node.convert_as(name, [value], "", **dict(zip(keys, parameters, strict=True)))  # type: ignore[return-value]


# ----------------------------------------------------------------------------------- scans and sums
@converter("CumSum")
def cumulative_sum(node: Node) -> Result:
    axis = int(node.constant(1, "axis").reshape(()))
    reverse = bool(node.attribute("reverse", 0))
    x = node.tensor(0)
    if reverse:
        x = node.emit(R.flip(x, axis), "flipped")
    total = R.cumsum(x, axis=axis, exclusive=bool(node.attribute("exclusive", 0)))
    return R.flip(node.emit(total, "total"), axis) if reverse else total


@converter("Einsum")
def einsum(node: Node) -> Result:
    subscripts = str(node.required("equation")).replace(" ", "")
    return R.einsum([node.tensor(i) for i in range(len(node.inputs))], subscripts)
