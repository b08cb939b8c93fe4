"""Fronts and hypervolumes of points whose every coordinate is the better the less it is."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
CELLS = 4_000_000


def front(values: Floats) -> npt.NDArray[np.bool_]:
    """bool [n]: which rows of float64 [n, k] no other row dominates; of equal rows only the first."""
    n = len(values)
    mask = np.zeros(n, bool)
    order = np.lexsort((np.arange(n), *values.T[::-1]))  # by the first coordinate, then the second, ...
    kept = np.empty((0, values.shape[1]))
    for i in order:
        # Whatever comes before is no worse in the first coordinate: equal or better in all means dominated (or equal).
        if not (kept <= values[i]).all(axis=1).any():
            mask[i] = True
            kept = np.vstack([kept, values[i]])
    return mask


def hypervolume(values: Floats, reference: Floats) -> float:
    """The volume that rows of float64 [n, k] dominate below `reference` [k]; exact (slices along the last axis)."""
    inside = values[(values < reference).all(axis=1)]
    return _volume(inside[front(inside)], reference) if len(inside) else 0.0


def _volume(points: Floats, reference: Floats) -> float:
    if len(points) == 0:
        return 0.0
    if points.shape[1] == 1:
        return float(reference[0] - points.min())
    if points.shape[1] == 2:
        points = points[np.argsort(points[:, 0])]
        edges = np.append(points[1:, 0], reference[0])
        heights = reference[1] - np.minimum.accumulate(points[:, 1])
        return float(((edges - points[:, 0]) * heights).sum())
    order = np.argsort(points[:, -1], kind="stable")
    points = points[order]
    depths = np.append(points[1:, -1], reference[-1]) - points[:, -1]
    total, kept = 0.0, np.empty((0, points.shape[1] - 1))
    for point, depth in zip(points, depths, strict=True):
        head = point[:-1]
        if not (kept <= head).all(axis=1).any():
            kept = np.vstack([kept[~(head <= kept).all(axis=1)], head])
        if depth > 0:
            total += depth * _volume(kept, reference[:-1])
    return total


def exclusive(values: Floats, reference: Floats) -> Floats:
    """float64 [n]: the volume below `reference` [k] that each row of float64 [n, k] dominates and no other does.

    Exact, on the grid of all coordinates; 0 everywhere where that has more than `CELLS` cells. The rows are below the
    reference.
    """
    grids = [np.unique(column, return_inverse=True) for column in values.T]
    shape = tuple(len(edges) for edges, _ in grids)
    if math.prod(shape) > CELLS:
        return np.zeros(len(values))
    where = tuple(index for _, index in grids)
    count, number = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    np.add.at(count, where, 1)
    np.add.at(number, where, np.arange(len(values)))
    volumes = np.ones(())
    for axis, (edges, _) in enumerate(grids):
        # Sums over all rows that are no worse: how many dominate a cell, and which one where it is one.
        count, number = count.cumsum(axis), number.cumsum(axis)
        volumes = volumes[..., None] * np.diff(np.append(edges, reference[axis]))
    own = count == 1
    return np.asarray(np.bincount(number[own], weights=volumes[own], minlength=len(values)), np.float64)


def normalised(values: Floats, low: Floats, high: Floats) -> Floats:
    """The logarithm of positive values, scaled such that `low` is 0 and `high` is 1."""
    span = np.log(high) - np.log(low)
    return np.asarray((np.log(values) - np.log(low)) / np.where(span > 0, span, 1.0))
