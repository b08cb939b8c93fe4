"""Operations that move values: slices, joins, permutations, padding, gathers and scatters. They take any dtype."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_REDUCTIONS: dict[str, Any] = {"add": np.add, "mul": np.multiply, "min": np.minimum, "max": np.maximum}


def strided_slice(
    x: Array, *, axes: Sequence[int], begin: Sequence[int], end: Sequence[int],
    strides: Sequence[int] | None = None, assume_inbound: bool = False,
) -> Array:  # fmt: skip
    """Python's slices on the given axes (negative bounds count from the end, bounds are clamped)."""
    slices = [slice(None)] * x.ndim
    for axis, b, e, s in zip(axes, begin, end, strides or [1] * len(axes), strict=True):
        slices[axis] = slice(b, e, s)
    return x[tuple(slices)]


def expand_dims(x: Array, *, axis: Sequence[int] | int) -> Array:
    return np.expand_dims(x, axis if isinstance(axis, int) else tuple(axis))


def squeeze(x: Array, *, axis: Sequence[int] | None = None) -> Array:
    return np.squeeze(x, None if axis is None else tuple(axis))


def tile(x: Array, *, repeats: Sequence[int]) -> Array:
    return np.tile(x, tuple(repeats))


def pad(x: Array, *, pad_width: Sequence[int], pad_mode: str = "constant", pad_value: float = 0.0) -> Array:
    """pad_width: (before, after) per axis, flat. pad_mode: constant, reflect (edge excluded), replicate, circular."""
    widths = list(zip(pad_width[::2], pad_width[1::2], strict=True))
    if pad_mode == "constant":
        return np.pad(x, widths, constant_values=pad_value)
    modes: dict[str, Literal["reflect", "edge", "wrap"]] = {
        "reflect": "reflect",
        "replicate": "edge",
        "circular": "wrap",
    }
    return np.pad(x, widths, mode=modes[pad_mode])


def take(x: Array, indices: Array, *, axis: int | None = None, mode: str = "fast") -> Array:
    """Rows of x by index. mode "fast": negative indices count from the end, others are clamped; "clip": all are
    clamped; "wrap": taken modulo the extent."""
    indices = indices.astype(np.int64)
    if mode == "fast":
        indices = np.where(indices < 0, indices + (x.size if axis is None else x.shape[axis]), indices)
    return np.take(x, indices, axis=axis, mode="wrap" if mode == "wrap" else "clip")


def gather_elements(x: Array, indices: Array, *, axis: int = 0) -> Array:
    return np.take_along_axis(x, indices.astype(np.int64), axis=axis)


def gather_nd(x: Array, indices: Array, *, batch_dims: int = 0) -> Array:
    """The slices of x at the index vectors on the last axis of `indices`; the first batch_dims axes go in step."""
    batch = x.shape[:batch_dims]
    flat = x.reshape(math.prod(batch), *x.shape[batch_dims:])
    index = indices.astype(np.int64).reshape(math.prod(batch), *indices.shape[batch_dims:])
    rows = [flat[b][tuple(np.moveaxis(index[b], -1, 0))] for b in range(len(flat))]
    return np.stack(rows).reshape(*batch, *rows[0].shape)


def scatter_elements(x: Array, indices: Array, updates: Array, *, axis: int = 0, reduction: str = "update") -> Array:
    """``y[..., indices[i, j], ...] = updates[i, j]`` along `axis`, or combined with add, mul, min or max."""
    y = x.copy()
    place: list[Array] = list(np.indices(indices.shape))
    place[axis] = np.where(indices < 0, indices + x.shape[axis], indices)
    return _scatter(y, tuple(place), updates, reduction)


def scatter_nd(x: Array, indices: Array, updates: Array, *, reduction: str = "update") -> Array:
    """The slices of x at the index vectors on the last axis of `indices`, replaced by or combined with `updates`."""
    return _scatter(x.copy(), tuple(np.moveaxis(indices.astype(np.int64), -1, 0)), updates, reduction)


def _scatter(y: Array, place: tuple[Array, ...], updates: Array, reduction: str) -> Array:
    if reduction == "update":
        y[place] = updates
    else:
        _REDUCTIONS[reduction].at(y, place, updates)
    return y


def one_hot(indices: Array, *, on_value: float, off_value: float, depth: int, axis: int = -1) -> Array:
    """A new axis of extent `depth` that holds on_value at the index and off_value elsewhere."""
    hot = np.expand_dims(indices, axis % (indices.ndim + 1))
    shape = [1] * hot.ndim
    shape[axis] = depth
    return np.where(hot == np.arange(depth).reshape(shape), on_value, off_value)


MOVEMENT: dict[str, Callable[..., Any]] = {
    "reshape": lambda x, *, shape: np.reshape(x, shape),
    "flatten": np.ravel,
    "expand_dims": expand_dims,
    "squeeze": squeeze,
    "permute_dims": lambda x, *, axes=None: np.transpose(x, axes),
    "broadcast_to": lambda x, *, shape: np.broadcast_to(x, shape),
    "tile": tile,
    "repeat": lambda x, *, repeats, axis=None: np.repeat(x, repeats, axis=axis),
    "flip": lambda x, *, axis: np.flip(x, axis),
    "concat": lambda *xs, axis=0: np.concatenate([x.reshape(-1) for x in xs] if axis is None else xs, axis=axis or 0),
    "stack": lambda *xs, axis=0: np.stack(xs, axis=axis or 0),
    "strided_slice": strided_slice,
    "nn.pad": pad,
    "take": take,
    "gather_elements": gather_elements,
    "gather_nd": gather_nd,
    "scatter_elements": scatter_elements,
    "scatter_nd": scatter_nd,
    "one_hot": one_hot,
    "tril": lambda x, *, k=0: np.tril(x, k),
    "triu": lambda x, *, k=0: np.triu(x, k),
}
