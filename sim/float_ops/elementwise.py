"""Element-wise float operations: unary maths, activations, arithmetic, comparisons, logic, casts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_SELU_ALPHA, _SELU_SCALE = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946


def erf(x: Array) -> Array:
    """The error function, from the C library in float64."""
    return np.vectorize(math.erf, otypes=[np.float64])(x)


def sigmoid(x: Array) -> Array:
    return 1.0 / (1.0 + np.exp(-x.astype(np.float64)))


def gelu(x: Array) -> Array:
    """x times the normal distribution's cumulative function (the exact form, by erf)."""
    wide = x.astype(np.float64)
    return 0.5 * wide * (1.0 + erf(wide / math.sqrt(2.0)))


def gelu_tanh(x: Array) -> Array:
    """The tanh approximation of GELU (Hendrycks and Gimpel 2016)."""
    wide = x.astype(np.float64)
    return 0.5 * wide * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (wide + 0.044715 * wide**3)))


def softplus(x: Array, *, beta: float = 1.0, threshold: float = 20.0) -> Array:
    """``log(1 + exp(beta x)) / beta``, and x itself where ``beta x > threshold``."""
    scaled = beta * x.astype(np.float64)
    return np.where(scaled > threshold, x, np.log1p(np.exp(np.minimum(scaled, threshold))) / beta)


def selu(x: Array) -> Array:
    wide = x.astype(np.float64)
    return _SELU_SCALE * np.where(wide > 0, wide, _SELU_ALPHA * np.expm1(np.minimum(wide, 0)))


def leakyrelu(x: Array, *, alpha: float = 0.01) -> Array:
    return np.where(x > 0, x, x * np.float32(alpha))


def prelu(x: Array, slope: Array, *, axis: int = 1) -> Array:
    """``slope[c] * x`` where x is negative; slope is [C] (or [1]) along `axis`."""
    shape = [1] * x.ndim
    shape[axis] = -1
    return np.where(x > 0, x, x * slope.reshape(shape))


def clip(x: Array, *, min: float, max: float) -> Array:  # noqa: A002 - Relax's argument names
    return np.minimum(np.maximum(x, np.asarray(min, dtype=x.dtype)), np.asarray(max, dtype=x.dtype))


def astype(x: Array, *, dtype: str) -> Array:
    """A cast; float to integer truncates towards zero."""
    return x.astype(dtype)


def divide(a: Array, b: Array) -> Array:
    """a / b; integers truncate towards zero as in C."""
    if a.dtype.kind != "i":
        return np.divide(a, b)
    quotient = np.abs(a) // np.maximum(np.abs(b), 1)
    return np.where((a < 0) != (b < 0), -quotient, quotient)


ELEMENTWISE: dict[str, Callable[..., Any]] = {
    "abs": np.abs,
    "acos": np.arccos,
    "acosh": np.arccosh,
    "asin": np.arcsin,
    "asinh": np.arcsinh,
    "atan": np.arctan,
    "atanh": np.arctanh,
    "bitwise_not": np.bitwise_not,
    "ceil": np.ceil,
    "cos": np.cos,
    "cosh": np.cosh,
    "erf": erf,
    "exp": np.exp,
    "floor": np.floor,
    "isfinite": np.isfinite,
    "isinf": np.isinf,
    "isnan": np.isnan,
    "log": np.log,
    "logical_not": np.logical_not,
    "negative": np.negative,
    "round": np.rint,
    "rsqrt": lambda x: 1.0 / np.sqrt(x.astype(np.float64)),
    "sigmoid": sigmoid,
    "sign": np.sign,
    "sin": np.sin,
    "sinh": np.sinh,
    "sqrt": np.sqrt,
    "square": np.square,
    "tan": np.tan,
    "tanh": np.tanh,
    "trunc": np.trunc,
    "nn.relu": lambda x: np.maximum(x, 0),
    "nn.leakyrelu": leakyrelu,
    "nn.prelu": prelu,
    "nn.silu": lambda x: x * sigmoid(x),
    "nn.gelu": gelu,
    "nn.gelu_tanh": gelu_tanh,
    "nn.softplus": softplus,
    "nn.selu": selu,
    "clip": clip,
    "astype": astype,
    "add": np.add,
    "subtract": np.subtract,
    "multiply": np.multiply,
    "divide": divide,
    "floor_divide": np.floor_divide,
    "mod": np.fmod,
    "floor_mod": np.mod,
    "power": np.power,
    "atan2": np.arctan2,
    "log_add_exp": np.logaddexp,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "equal": np.equal,
    "not_equal": np.not_equal,
    "greater": np.greater,
    "greater_equal": np.greater_equal,
    "less": np.less,
    "less_equal": np.less_equal,
    "logical_and": np.logical_and,
    "logical_or": np.logical_or,
    "logical_xor": np.logical_xor,
    "bitwise_and": np.bitwise_and,
    "bitwise_or": np.bitwise_or,
    "bitwise_xor": np.bitwise_xor,
    "left_shift": np.left_shift,
    "right_shift": np.right_shift,
    "where": np.where,
}
