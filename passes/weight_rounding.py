"""Rounding weights: what it does to the mean of each output channel, and how few bits round well.

Rounded weights ``w + d`` add ``d . x`` to an output. Its mean over the data, ``d . E[x]``, is the same for every
position, so the layers behind cannot average it out, and the bias can take it out exactly (Nagel et al.,
"Data-free quantization through weight equalization and bias correction", ICCV 2019, section 4). One channel
mean a tensor, seen during calibration, is all it takes.

SQNR of the outputs in dB without and with it, as in `calibrate`: kws 31.4 and 31.7, resnet8 22.0 and 24.9, ad 35.2
and 39.1, bert 26.5 and 28.2. Running the quantised model up to every layer in turn, to find the means that its
roundings shift beside, was tried: no better (30.9 to 32.4, 24.8, 38.5), and minutes for large networks.

Below 8 bits rounding each weight to its nearest value is not good enough: what counts is the noise ``d C d`` on the
output, C the covariance of the inputs. `round_rows` looks for a scale and integers that make it small: coordinate
descent over the integers, each taking up the error of the others (the objective of Frantar et al., "Optimal Brain
Compression", NeurIPS 2022), in turn with the scale that suits the integers best, which has a closed form.

SQNR in dB with 4-bit (3-bit) weights to the nearest value, with the best scale of that, and so: kws 19.9, 19.4, 24.0
(3.9, 8.8, 12.6), resnet8 3.8, 6.3, 11.3 (-1.5, 1.4, 6.8), ad 22.5, 22.3, 27.4 (19.0, 18.8, 24.0); 100 samples each.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from qcompiler.passes.graph import Graph, Node

Array = npt.NDArray[Any]
FACTORS = np.linspace(0.3, 1.0, 36)  # of the scale that clips nothing: where the search begins
RIDGE = 0.01  # of the mean variance, added to each: calibration data is a sample
ROUNDS, SWEEPS, BLOCK = 3, 2, 64
Vector = npt.NDArray[np.float64]


def mean_shift(graph: Graph, node: Node, difference: Array, means: Vector) -> Vector:
    """``difference . E[x]`` of every output channel [O].

    node: a convolution (NHWC, OHWI) or a matmul with a constant weight; difference: what is added to that weight, in
    its shape; means [C]: of the input's channels. Under padding a kernel position sees the input only part of the
    time; the channel's mean stands for what it sees then.
    """
    if node.op == "matmul":
        return np.asarray(means @ difference.astype(np.float64))
    _, height, width, _ = graph.types[node.inputs[0]].shape
    _, out_height, out_width, channels = graph.types[node.name].shape
    a = node.attributes
    kernel_height, kernel_width = difference.shape[1:3]
    top, left = (int(p) for p in (*a["padding"], *a["padding"])[:2])
    strides, dilation = ((int(a[key][0]), int(a[key][-1])) for key in ("strides", "dilation"))
    rows = _coverage(kernel_height, height, out_height, strides[0], dilation[0], top)
    columns = _coverage(kernel_width, width, out_width, strides[1], dilation[1], left)
    groups = int(a["groups"])
    per_group = means.reshape(groups, -1)[np.arange(channels) // (channels // groups)]
    return np.einsum("ohwi,h,w,oi->o", difference.astype(np.float64), rows, columns, per_group, optimize=True)


def _coverage(kernel: int, size: int, out: int, stride: int, dilation: int, before: int) -> Vector:
    """The share of the output positions at which each kernel position lies inside the input, along one axis."""
    at = np.arange(out)[:, None] * stride + np.arange(kernel) * dilation - before
    return np.asarray(((at >= 0) & (at < size)).mean(axis=0))


def round_rows(
    weight: Vector, covariance: Vector | None, scale: Vector, least: Vector, limit: int, fixed: bool = False
) -> tuple[Vector, Vector]:
    """Integers [O, K] within -limit..limit and scales [O] for the weights [O, K] of one group.

    covariance: [K, K] of the inputs, None where nothing is known of them. scale: the one that clips nothing; least:
    no scale may become smaller; fixed: nor change at all.
    """
    spread = np.eye(weight.shape[1]) if covariance is None else covariance
    diagonal = spread.diagonal()
    ridged = (spread + RIDGE * (float(diagonal.mean()) or 1.0) * np.eye(len(spread))).astype(np.float32)
    if not fixed:
        scale = _best_scale(weight, ridged.diagonal().astype(np.float64), scale, least, limit)
    integers = np.clip(np.rint(weight / scale[:, np.newaxis]), -limit, limit)
    if covariance is None:
        return integers, scale
    for _ in range(ROUNDS):
        integers = _descend(weight, integers, scale, ridged, limit)
        if fixed:
            break
        towards = integers @ ridged
        top, bottom = np.sum(towards * weight, axis=1), np.sum(towards * integers, axis=1)
        scale = np.where((bottom > 0) & (top > 0), np.maximum(top / np.where(bottom > 0, bottom, 1), least), scale)
    return _descend(weight, integers, scale, ridged, limit), scale


def _best_scale(weight: Vector, variance: Vector, scale: Vector, least: Vector, limit: int) -> Vector:
    """Per row, the scale of least error of plain rounding, weighted by the variance of each input."""
    best, lowest = scale, np.full(len(scale), np.inf)
    for factor in FACTORS[::-1]:
        tried = np.maximum(scale * factor, least)[:, np.newaxis]
        error = np.clip(np.rint(weight / tried), -limit, limit) * tried - weight
        cost = (error * error) @ variance
        best, lowest = np.where(cost < lowest, tried[:, 0], best), np.minimum(cost, lowest)
    return best


def _descend(weight: Vector, integers: Vector, scale: Vector, covariance: Array, limit: int) -> Vector:
    """Each integer in turn to where the noise is least, the others being what they are; a few times over.

    The gradient is kept up to date within a block of columns, and beyond it once a block.
    """
    integers, step = integers.copy(), scale[:, np.newaxis]
    gradient = (integers * step - weight).astype(np.float32) @ covariance
    variance = covariance.diagonal()
    for _ in range(SWEEPS):
        before = integers.copy()
        for start in range(0, weight.shape[1], BLOCK):
            columns = slice(start, start + BLOCK)
            near, corner = gradient[:, columns].copy(), covariance[columns, columns]
            moved = np.zeros_like(near)
            for j in range(near.shape[1]):
                k = start + j
                now = integers[:, k]
                best = np.clip(np.rint(now - near[:, j] / (variance[k] * scale)), -limit, limit)
                moved[:, j] = (best - now) * scale
                integers[:, k] = best
                near += moved[:, j, np.newaxis] * corner[j]
            gradient += moved @ covariance[columns]
        if np.array_equal(before, integers):
            break
    return integers
