"""Data movement as integer operations: slices, pads, gathers, resizes, joins, reshapes; values never change.

A move's output has its input's scale and zero point. Where a model demands others, the values are rescaled by a
table on whichever side of the move holds fewer elements.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from qcompiler.passes.graph import Node
from qcompiler.passes.region import Declined, Region, params_of, requantize, target_of
from qcompiler.sim.float_ops import FLOAT_OPS
from qcompiler.sim.float_ops.windows import source_coordinates
from qcompiler.sim.integer_program import (
    RESIZE_BITS,
    Concat,
    Embedding,
    Gather,
    Operation,
    Reshape,
    ResizeLinear,
    Transpose,
)
from qcompiler.sim.numerics import quantize_linear

if TYPE_CHECKING:
    from qcompiler.passes.integerize import Lowering

Array = npt.NDArray[Any]
Indices = tuple["Array | None", ...]


def source_of(lowering: Lowering, region: Region, name: str) -> str:
    """The int8 program tensor that the move reads.

    A tensor that is still float is rounded here: moved and then rounded is the same as rounded and then moved.
    """
    if region.on_integers:
        return lowering.int8[name]
    if lowering.leaf(name) is None and name not in lowering.graph.constants:
        return lowering.rounded(name, region.parameters)
    return lowering.operand(name)


def emit_move(
    lowering: Lowering, region: Region, build: Callable[[str, str], Operation], rescale_first: bool = False
) -> str:
    """Emit ``build(target name, source name)``, with a rescaling table before or behind it where one is needed."""
    source = source_of(lowering, region, region.root.inputs[0])
    tensor = lowering.tensors[source]
    if (region.low, region.high) != (-np.inf, np.inf):
        raise Declined("a move takes no clamp")
    same = params_of(tensor) == region.parameters
    size = int(np.prod(lowering.graph.types[region.value].shape))
    if not same and (rescale_first or tensor.elements <= size):
        source, same = lowering.rescale(source, region.parameters, f"{region.name}.rescaled"), True
    if same:
        target = target_of(lowering, region)
        return lowering.emit(build(target.name, source))
    moved = lowering.declare(f"{region.name}.moved", region.value, params_of(tensor))
    lowering.emit(build(moved.name, source))
    return lowering.rescale(moved.name, region.parameters, region.name)


# ---------------------------------------------------------------------------------- whole-tensor moves
def _reshape(lowering: Lowering, region: Region) -> str:
    shape = lowering.graph.types[region.value].shape
    return emit_move(lowering, region, lambda name, x: Reshape(name, (x,), name, shape))


def _permute(lowering: Lowering, region: Region) -> str:
    rank = len(lowering.graph.types[region.value].shape)
    axes = tuple(int(i) % rank for i in region.root.attributes.get("axes") or reversed(range(rank)))
    return emit_move(lowering, region, lambda name, x: Transpose(name, (x,), name, axes))


def _concat(lowering: Lowering, region: Region) -> str:
    if (region.low, region.high) != (-np.inf, np.inf):
        raise Declined("a move takes no clamp")
    rank = len(lowering.graph.types[region.value].shape)
    axis = int(region.root.attributes.get("axis", 0)) % rank
    parts = []
    for name in region.root.inputs:
        part = source_of(lowering, region, name)
        if params_of(lowering.tensors[part]) != region.parameters:
            part = lowering.rescale(part, region.parameters, f"{part}.rescaled")
        parts.append(part)
    target = target_of(lowering, region)
    return lowering.emit(Concat(target.name, tuple(parts), target.name, axis))


# ------------------------------------------------------------------------------------ index by axis
def _gather(lowering: Lowering, region: Region, indices: Indices, function: str, fill: float | None = None) -> str:
    """A Gather; `fill` is the real value of index -1."""
    scale, zero = region.parameters
    quantised_fill = 0 if fill is None else int(quantize_linear(np.float32(fill), np.float32(scale), zero))

    def build(name: str, x: str) -> Operation:
        return Gather(name, (x,), name, indices, quantised_fill, function)

    return emit_move(lowering, region, build, rescale_first=fill is not None)


def _source_shape(lowering: Lowering, node: Node) -> tuple[int, ...]:
    return lowering.graph.types[node.inputs[0]].shape


def _axis_indices(shape: tuple[int, ...], axis: int, vector: npt.ArrayLike) -> Indices:
    vectors: list[Array | None] = [None] * len(shape)
    vectors[axis] = np.asarray(vector, dtype=np.int64).reshape(-1)
    return tuple(vectors)


def _strided_slice(lowering: Lowering, region: Region) -> str:
    shape, a = _source_shape(lowering, region.root), region.root.attributes
    strides = a.get("strides") or (1,) * len(a["axes"])
    vectors: list[Array | None] = [None] * len(shape)
    for axis, begin, end, stride in zip(a["axes"], a["begin"], a["end"], strides, strict=True):
        extent = shape[int(axis)]
        picked = FLOAT_OPS["strided_slice"](
            np.arange(extent, dtype=np.int64), axes=(0,), begin=(begin,), end=(end,), strides=(stride,)
        )
        if len(picked) != extent or stride < 0:
            vectors[int(axis) % len(shape)] = picked
    return _gather(lowering, region, tuple(vectors), "slice")


def _pad(lowering: Lowering, region: Region) -> str:
    shape, a = _source_shape(lowering, region.root), region.root.attributes
    widths = np.array(a["pad_width"], dtype=np.int64).reshape(len(shape), 2)
    mode = a["pad_mode"]
    vectors: list[Array | None] = [None] * len(shape)
    for axis, (before, after) in enumerate(widths):
        if before or after:
            vectors[axis] = FLOAT_OPS["nn.pad"](
                np.arange(shape[axis], dtype=np.int64), pad_width=(before, after), pad_mode=mode, pad_value=-1
            ).astype(np.int64)
    fill = float(a.get("pad_value", 0.0)) if mode == "constant" else None
    return _gather(lowering, region, tuple(vectors), "pad", fill)


def _broadcast_to(lowering: Lowering, region: Region) -> str:
    shape, target = _source_shape(lowering, region.root), lowering.graph.types[region.value].shape
    if len(shape) != len(target):
        raise Declined("a broadcast to a higher rank has no integer form; reshape first")
    indices = tuple(None if s == t else np.zeros(t, np.int64) for s, t in zip(shape, target, strict=True))
    return _gather(lowering, region, indices, "broadcast")


def _tile(lowering: Lowering, region: Region) -> str:
    shape = _source_shape(lowering, region.root)
    repeats = region.root.attributes["repeats"]
    repeats = (repeats,) if isinstance(repeats, int) else tuple(repeats)
    if len(repeats) > len(shape):
        raise Declined("a tile to a higher rank has no integer form; reshape first")
    counts = (1,) * (len(shape) - len(repeats)) + repeats
    indices = tuple(None if r == 1 else np.tile(np.arange(d), r) for d, r in zip(shape, counts, strict=True))
    return _gather(lowering, region, indices, "tile")


def _take(lowering: Lowering, region: Region) -> str:
    node, graph = region.root, lowering.graph
    source, index = node.inputs
    if index not in graph.constants:
        return _embedding(lowering, region)
    shape = graph.types[source].shape
    axis = int(node.attributes["axis"]) % len(shape)
    value = graph.constants[index].astype(np.int64)
    value = np.where(value < 0, value + shape[axis], value)
    indices = _axis_indices(shape, axis, value)
    if value.ndim == 1:
        return _gather(lowering, region, indices, "gather")
    picked = (*shape[:axis], 1, *shape[axis + 1 :])  # a scalar index drops its axis
    parameters = params_of(lowering.tensors[source_of(lowering, region, source)])
    inner = lowering.declare_shape(lowering.fresh(f"{region.name}.picked"), picked, parameters)
    lowering.emit(Gather(inner.name, (source_of(lowering, region, source),), inner.name, indices, 0, "gather"))
    target_shape = graph.types[region.value].shape
    same = parameters == region.parameters
    flat = lowering.declare(region.name if same else f"{region.name}.moved", region.value, parameters)
    lowering.emit(Reshape(flat.name, (inner.name,), flat.name, target_shape))
    return flat.name if same else lowering.rescale(flat.name, region.parameters, region.name)


def _embedding(lowering: Lowering, region: Region) -> str:
    """Rows of a constant table, quantised to the output's own parameters at compile time."""
    table, index = region.root.inputs
    if index not in lowering.real:
        raise Declined(f"its index {index!r} is computed at run time")
    constant = lowering.quantised.get(table)
    scale, zero = region.parameters
    if constant is not None and constant.scale.size == 1 and (
        (float(constant.scale[0]), int(constant.zero_point[0])) == region.parameters
    ):  # fmt: skip
        values = constant.values
    else:
        values = quantize_linear(lowering.graph.constants[table], np.float32(scale), zero)
    values = np.clip(values, *region.clamp())
    name = lowering.constant(f"{table}.constant", values, region.parameters)
    target = target_of(lowering, region)
    return lowering.emit(Embedding(target.name, (name, lowering.real[index]), target.name))


# ------------------------------------------------------------------------------------------ resizing
def _resize2d(lowering: Lowering, region: Region) -> str:
    a = region.root.attributes
    if a["layout"] != "NHWC":
        raise Declined("the resize is not in NHWC")
    shape, target = _source_shape(lowering, region.root), lowering.graph.types[region.value].shape
    mode = a["coordinate_transformation_mode"]
    if a["method"] == "nearest_neighbor":
        vectors: list[Array | None] = [None] * 4
        for axis in (1, 2):
            vectors[axis] = _nearest(shape[axis], target[axis], a)
        return _gather(lowering, region, tuple(vectors), "resize")
    source = lowering.operand(region.root.inputs[0])
    rows = _linear(source_coordinates(shape[1], target[1], mode), shape[1])
    columns = _linear(source_coordinates(shape[2], target[2], mode), shape[2])
    scale = requantize(lowering, region, params_of(lowering.tensors[source])[0], float(1 << (2 * RESIZE_BITS)))
    out = target_of(lowering, region)
    return lowering.emit(ResizeLinear(out.name, (source,), out.name, *rows, *columns, scale))


def _nearest(size: int, extent: int, attributes: Any) -> Array:
    """The source index of each output position along one axis, from the float definition on the indices themselves."""
    line = np.arange(size, dtype=np.float32).reshape(1, size, 1, 1)
    picked = FLOAT_OPS["image.resize2d"](line, **{**attributes, "size": (extent, 1)})
    return np.asarray(np.rint(picked), dtype=np.int64).reshape(-1)


def _linear(coordinates: npt.NDArray[np.float64], size: int) -> tuple[Array, Array, Array]:
    """(low index, high index, weight of high in 1/256), the coordinates clamped to the axis."""
    at = np.clip(coordinates, 0, size - 1)
    low = np.floor(at)
    weight = np.floor((at - low) * (1 << RESIZE_BITS) + 0.5)
    carry = weight == 1 << RESIZE_BITS
    low = low + carry
    high = np.minimum(low + 1, size - 1)
    return low.astype(np.int64), high.astype(np.int64), np.where(carry, 0, weight).astype(np.int64)


EMITTERS: dict[str, Callable[[Lowering, Region], str]] = {
    "reshape": _reshape, "squeeze": _reshape, "expand_dims": _reshape, "flatten": _reshape,
    "permute_dims": _permute, "concat": _concat, "strided_slice": _strided_slice, "nn.pad": _pad,
    "broadcast_to": _broadcast_to, "tile": _tile, "take": _take, "image.resize2d": _resize2d,
}  # fmt: skip
