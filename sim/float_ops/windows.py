"""Float operations over windows of an image: convolutions, pools, resizing. One to three spatial axes.

Layouts are Relax's strings: N, the spatial axes (of D, H, W) and C for data; O, I and the spatial axes for weights.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_SPATIAL = {1: "W", 2: "HW", 3: "DHW"}


def _to(x: Array, source: str, target: str) -> Array:
    return x.transpose([source.index(letter) for letter in target])


def _output_extent(size: int, kernel: int, stride: int, dilation: int, ceil_mode: bool = False) -> int:
    """How many windows fit into `size` (padding included); ceil_mode counts a last one that leaves it."""
    span = size - ((kernel - 1) * dilation + 1)
    return (-(-span // stride) if ceil_mode else span // stride) + 1


def _views(
    padded: Array, kernel: Sequence[int], strides: Sequence[int], dilation: Sequence[int], output: Sequence[int]
) -> Iterator[tuple[tuple[int, ...], Array]]:
    """For each kernel position: the strided view [N, *output, C] of the padded image that it sees."""
    for position in itertools.product(*map(range, kernel)):
        inner = [
            slice(k * d, k * d + (o - 1) * s + 1, s)
            for k, d, o, s in zip(position, dilation, output, strides, strict=True)
        ]
        window = (slice(None), *inner)
        yield position, padded[window]


def _conv(rank: int) -> Callable[..., Any]:
    def conv(
        x: Array, weight: Array, *, strides: Sequence[int] = (1,) * rank, padding: Sequence[int] = (0,) * (2 * rank),
        dilation: Sequence[int] = (1,) * rank, groups: int = 1, data_layout: str = "NC" + _SPATIAL[rank],
        kernel_layout: str = "OI" + _SPATIAL[rank], out_layout: str | None = None, out_dtype: str | None = None,
    ) -> Array:  # fmt: skip
        """Zero padding: before every axis, then after. Output channel o is in group o // (O / groups)."""
        image = f"N{_SPATIAL[rank]}C"
        data = _to(x, data_layout, image).astype(np.float64)
        kernel = _to(weight, kernel_layout, f"{_SPATIAL[rank]}OI").astype(np.float64)
        widths = [(0, 0), *zip(padding[:rank], padding[rank:], strict=True), (0, 0)]
        padded = np.pad(data, widths)
        extents = [
            _output_extent(*a) for a in zip(padded.shape[1:-1], kernel.shape[:rank], strides, dilation, strict=True)
        ]
        outs, ins = kernel.shape[rank] // groups, kernel.shape[rank + 1]
        y = np.zeros((data.shape[0], *extents, kernel.shape[rank]))
        for position, view in _views(padded, kernel.shape[:rank], strides, dilation, extents):
            for g in range(groups):
                o = slice(g * outs, (g + 1) * outs)
                y[..., o] += view[..., g * ins : (g + 1) * ins] @ kernel[position][o].T
        return _to(y, image, out_layout or data_layout)

    return conv


def _pool(rank: int, average: bool) -> Callable[..., Any]:
    def pool(
        x: Array, *, pool_size: Sequence[int], strides: Sequence[int] = (1,) * rank,
        padding: Sequence[int] = (0,) * (2 * rank), dilation: Sequence[int] = (1,) * rank, ceil_mode: bool = False,
        count_include_pad: bool = rank != 2, layout: str = "NC" + _SPATIAL[rank], out_layout: str | None = None,
    ) -> Array:  # fmt: skip
        """Maximum or mean of each window; a mean counts the positions inside the image, or the whole window."""
        image = f"N{_SPATIAL[rank]}C"
        data = _to(x, layout, image)
        before, after = padding[:rank], padding[rank:]
        extents = [
            _output_extent(n + b + a, k, s, d, ceil_mode)
            for n, b, a, k, s, d in zip(data.shape[1:-1], before, after, pool_size, strides, dilation, strict=True)
        ]
        reach = [
            (o - 1) * s + (k - 1) * d + 1 for o, s, k, d in zip(extents, strides, pool_size, dilation, strict=True)
        ]
        widths = [
            (0, 0),
            *((b, max(r - b - n, 0)) for b, r, n in zip(before, reach, data.shape[1:-1], strict=True)),
            (0, 0),
        ]
        neutral = 0 if average else -np.inf if data.dtype.kind == "f" else np.iinfo(data.dtype).min
        windows = [
            v for _, v in _views(np.pad(data, widths, constant_values=neutral), pool_size, strides, dilation, extents)
        ]
        if not average:
            return _to(np.maximum.reduce(windows), image, out_layout or layout)
        # In the data's own precision, position by position, as ONNX Runtime's quantised average pool adds: where
        # the result is rounded to int8 next, it decides ties.
        total = windows[0].copy()
        for window in windows[1:]:
            total += window
        if count_include_pad:
            return _to(total / total.dtype.type(math.prod(pool_size)), image, out_layout or layout)
        inside = np.pad(np.ones((1, *data.shape[1:-1], 1), dtype=total.dtype), widths)
        count = np.sum([w for _, w in _views(inside, pool_size, strides, dilation, extents)], axis=0)
        return _to(total / np.maximum(count, 1), image, out_layout or layout)

    return pool


def adaptive_avg_pool2d(
    x: Array, *, output_size: Sequence[int] | None = None, layout: str = "NCHW", out_layout: str | None = None
) -> Array:
    """Mean over windows floor(i * H / OH) .. ceil((i + 1) * H / OH) of each axis."""
    data = _to(x, layout, "NHWC").astype(np.float64)
    for axis, extent in enumerate(output_size or data.shape[1:3], start=1):
        size = data.shape[axis]
        cells = [
            data.take(range(i * size // extent, -(-(i + 1) * size // extent)), axis=axis).mean(axis=axis, keepdims=True)
            for i in range(extent)
        ]
        data = np.concatenate(cells, axis=axis)
    return _to(data, "NHWC", out_layout or layout)


# ------------------------------------------------------------------------------------------ resizing
def source_coordinates(
    size: int, extent: int, mode: str, roi: tuple[float, float] = (0.0, 1.0)
) -> npt.NDArray[np.float64]:
    """[extent]: where in an axis of `size` each of `extent` output positions lies (ONNX Resize's coordinate modes)."""
    x = np.arange(extent, dtype=np.float64)
    ratio = size / extent
    if mode == "half_pixel" or (mode == "pytorch_half_pixel" and extent > 1):
        return (x + 0.5) * ratio - 0.5
    if mode == "pytorch_half_pixel":
        return np.zeros(1)
    if mode == "align_corners":
        return x * ((size - 1) / max(extent - 1, 1))
    if mode == "asymmetric":
        return x * ratio
    if mode == "tf_half_pixel_for_nn":
        return (x + 0.5) * ratio
    if mode == "tf_crop_and_resize":
        start, end = roi
        if extent == 1:
            return np.array([0.5 * (start + end) * (size - 1)])
        return start * (size - 1) + x * (end - start) * (size - 1) / (extent - 1)
    raise ValueError(f"unknown coordinate transformation mode {mode!r}")


_NEAREST: dict[str, Callable[[Array], Array]] = {
    "round": np.rint,
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    # Positions are ratios of small integers: the margin keeps an integer from falling to its neighbour.
    "floor": lambda x: np.floor(x + 1e-5),
    "ceil": lambda x: np.ceil(x - 1e-5),
}


def _interpolation(
    size: int, coordinates: Array, method: str, rounding: str, cubic_alpha: float, exclude: bool
) -> Array:
    """[extent, size]: the weights with which each output position mixes the input positions (edges are repeated)."""
    if method == "nearest_neighbor":
        low, weights = _NEAREST[rounding](coordinates), np.ones((1, len(coordinates)))
    elif method == "linear":
        low = np.floor(coordinates)
        t = coordinates - low
        weights = np.stack([1 - t, t])
    elif method == "cubic":
        low = np.floor(coordinates) - 1
        t, a = coordinates - low - 1, cubic_alpha
        weights = np.stack([
            a * (t**3 - 2 * t**2 + t),
            (a + 2) * t**3 - (a + 3) * t**2 + 1,
            -(a + 2) * t**3 + (2 * a + 3) * t**2 - a * t,
            -a * t**3 + a * t**2,
        ])  # fmt: skip
    else:
        raise ValueError(f"unknown resize method {method!r}")
    positions = low + np.arange(len(weights))[:, None]
    if exclude:
        weights = np.where((positions < 0) | (positions >= size), 0.0, weights)
        weights = weights / weights.sum(axis=0)
    matrix = np.zeros((len(coordinates), size))
    for w, p in zip(weights, positions.clip(0, size - 1).astype(np.int64), strict=True):
        np.add.at(matrix, (np.arange(len(p)), p), w)
    return matrix


def resize2d(
    x: Array, *, size: Sequence[int], roi: Sequence[float] | None = None, layout: str = "NCHW", method: str = "linear",
    coordinate_transformation_mode: str = "half_pixel", rounding_method: str = "round", cubic_alpha: float = -0.75,
    cubic_exclude: int = 0, extrapolation_value: float = 0.0, out_dtype: str | None = None,
) -> Array:  # fmt: skip
    """Resize to `size` (height, width); nearest_neighbor, linear or cubic. roi: (y0, x0, y1, x1) of the crop mode."""
    data = _to(x, layout, "NHWC").astype(np.float64)
    y0, x0, y1, x1 = roi or (0.0, 0.0, 1.0, 1.0)
    mode = coordinate_transformation_mode
    default = "round" if mode == "align_corners" else "floor"
    outside = np.zeros(tuple(size), dtype=bool)
    matrices = []
    for axis, (extent, region) in enumerate(zip(size, ((y0, y1), (x0, x1)), strict=True)):
        source = data.shape[1 + axis]
        at = source_coordinates(source, extent, mode, region)
        matrices.append(
            _interpolation(
                source, at, method, rounding_method or default, cubic_alpha, bool(cubic_exclude) and method == "cubic"
            )
        )
        if mode == "tf_crop_and_resize":
            beyond = (at < 0) | (at > source - 1)
            outside |= beyond[:, None] if axis == 0 else beyond[None, :]
    y = np.einsum("yh,nhwc,xw->nyxc", matrices[0], data, matrices[1], optimize=True)
    return _to(np.where(outside[:, :, None], extrapolation_value, y), "NHWC", layout)


WINDOWS: dict[str, Callable[..., Any]] = {
    "nn.conv1d": _conv(1),
    "nn.conv2d": _conv(2),
    "nn.conv3d": _conv(3),
    "nn.max_pool1d": _pool(1, average=False),
    "nn.max_pool2d": _pool(2, average=False),
    "nn.max_pool3d": _pool(3, average=False),
    "nn.avg_pool1d": _pool(1, average=True),
    "nn.avg_pool2d": _pool(2, average=True),
    "nn.avg_pool3d": _pool(3, average=True),
    "nn.adaptive_avg_pool2d": adaptive_avg_pool2d,
    "image.resize2d": resize2d,
}
