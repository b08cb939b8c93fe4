"""Float operations that reduce or scan axes: matrix products, statistics, softmax, normalisations, cumulative sums."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Axes = Sequence[int] | None


def _wide(x: Array) -> Array:
    return x.astype(np.float64) if x.dtype.kind == "f" else x


def _axes(axis: Axes | int) -> tuple[int, ...] | int | None:
    return tuple(axis) if isinstance(axis, Sequence) else axis


def _statistic(function: Callable[..., Any]) -> Callable[..., Any]:
    """A reduction with Relax's attributes: axis (all of them when None) and keepdims; variance is biased."""

    def reduce(x: Array, *, axis: Axes = None, keepdims: bool = False) -> Array:
        return function(_wide(x), axis=_axes(axis), keepdims=bool(keepdims))

    return reduce


def _scan(function: Callable[..., Any], neutral: int) -> Callable[..., Any]:
    """A running sum or product along `axis` (of the flattened array when None); exclusive omits the own element."""

    def scan(x: Array, *, axis: int | None = None, dtype: str | None = None, exclusive: bool = False) -> Array:
        flat = _wide(x if axis is None else np.moveaxis(x, axis, -1))
        flat = flat.reshape(-1) if axis is None else flat
        if exclusive:
            flat = np.concatenate([np.full_like(flat[..., :1], neutral), flat[..., :-1]], axis=-1)
        out = function(flat, axis=-1).astype(dtype or x.dtype)
        return out if axis is None else np.moveaxis(out, -1, axis)

    return scan


def matmul(a: Array, b: Array, *, out_dtype: str | None = None) -> Array:
    return np.matmul(_wide(a), _wide(b))


def einsum(*operands: Array, subscripts: str) -> Array:
    return np.einsum(subscripts, *map(_wide, operands))


def _arg(function: Callable[..., Any]) -> Callable[..., Any]:
    """The first index of the extreme value along `axis` (of the flattened array when None), int64."""

    def arg(x: Array, *, axis: int | None = None, keepdims: bool = False) -> Array:
        return function(x, axis=axis, keepdims=bool(keepdims)).astype(np.int64)

    return arg


def softmax(x: Array, *, axis: int = -1) -> Array:
    wide = x.astype(np.float64)
    e = np.exp(wide - wide.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def log_softmax(x: Array, *, axis: int = -1) -> Array:
    wide = x.astype(np.float64)
    shifted = wide - wide.max(axis=axis, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True))


def _normalise(x: Array, axes: tuple[int, ...], epsilon: float) -> Array:
    wide = x.astype(np.float64)
    centred = wide - wide.mean(axis=axes, keepdims=True)
    return centred / np.sqrt(np.square(centred).mean(axis=axes, keepdims=True) + epsilon)


def _along(vector: Array, axes: Sequence[int], rank: int, shape: tuple[int, ...]) -> Array:
    """`vector`, whose axes are the given axes of a rank-`rank` array of this shape, made to broadcast against it."""
    kept = {a % rank for a in axes}
    return vector.reshape([d if i in kept else 1 for i, d in enumerate(shape)])


def layer_norm(
    x: Array, gamma: Array, beta: Array, *, axes: Axes | int, epsilon: float = 1e-5, center: bool = True,
    scale: bool = True,
) -> Array:  # fmt: skip
    """``(x - mean) / sqrt(variance + epsilon) * gamma + beta`` over `axes`; gamma, beta: those axes."""
    axes = (axes,) if isinstance(axes, int) else tuple(axes or ())
    y = _normalise(x, axes, epsilon)
    y = y * _along(gamma, axes, x.ndim, x.shape) if scale else y
    return y + _along(beta, axes, x.ndim, x.shape) if center else y


def group_norm(
    x: Array, gamma: Array, beta: Array, *, num_groups: int, channel_axis: int, axes: Sequence[int],
    epsilon: float = 1e-5, center: bool = True, scale: bool = True,
) -> Array:  # fmt: skip
    """Normalises each group of channels over its channels and `axes`; gamma and beta are [C]."""
    channel = channel_axis % x.ndim
    grouped = x.reshape(
        *x.shape[:channel], num_groups, x.shape[channel] // num_groups, *x.shape[channel + 1 :]
    )  # the group axis stands before the channel axis
    reduced = (channel + 1, *(a % x.ndim + (a % x.ndim > channel) for a in axes))
    y = _normalise(grouped, reduced, epsilon).reshape(x.shape)
    y = y * _along(gamma, [channel], x.ndim, x.shape) if scale else y
    return y + _along(beta, [channel], x.ndim, x.shape) if center else y


def instance_norm(
    x: Array, gamma: Array, beta: Array, *, channel_axis: int, axes: Sequence[int], epsilon: float = 1e-5,
    center: bool = True, scale: bool = True,
) -> Array:  # fmt: skip
    """Normalises each channel of each sample over `axes`; gamma and beta are [C]."""
    y = _normalise(x, tuple(axes), epsilon)
    y = y * _along(gamma, [channel_axis], x.ndim, x.shape) if scale else y
    return y + _along(beta, [channel_axis], x.ndim, x.shape) if center else y


def rms_norm(x: Array, weight: Array, *, axes: Axes | int = -1, epsilon: float = 1e-5) -> Array:
    """``x / sqrt(mean(x**2) + epsilon) * weight`` over `axes`."""
    axes = (axes,) if isinstance(axes, int) else tuple(axes or ())
    wide = x.astype(np.float64)
    return wide / np.sqrt(np.square(wide).mean(axis=axes, keepdims=True) + epsilon) * weight


REDUCTIONS: dict[str, Callable[..., Any]] = {
    "matmul": matmul,
    "einsum": einsum,
    "sum": _statistic(np.sum),
    "mean": _statistic(np.mean),
    "prod": _statistic(np.prod),
    "max": _statistic(np.max),
    "min": _statistic(np.min),
    "variance": _statistic(np.var),
    "std": _statistic(np.std),
    "argmax": _arg(np.argmax),
    "argmin": _arg(np.argmin),
    "cumsum": _scan(np.cumsum, 0),
    "cumprod": _scan(np.cumprod, 1),
    "nn.softmax": softmax,
    "nn.log_softmax": log_softmax,
    "nn.layer_norm": layer_norm,
    "nn.group_norm": group_norm,
    "nn.instance_norm": instance_norm,
    "nn.rms_norm": rms_norm,
}
