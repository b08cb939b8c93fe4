"""ONNX operators that pick or place elements by index, and tests of single elements."""

from __future__ import annotations

import numpy as np
from tvm import relax
from tvm.relax import op as R

from qcompiler.frontend.onnx_node import Node, Result, Unsupported, converter
from qcompiler.passes.rewrite import const, dtype_of, shape_of

_SCATTER = {"none": "update", "add": "add", "mul": "mul", "min": "min", "max": "max"}


def _counted_from_front(node: Node, index: int, extents: tuple[int, ...]) -> relax.Expr:
    """The int64 indices of an input, negative ones counted from the end; at run time clamped to 0..extent-1.

    extents: of the axis they all index, or one for each element of the last axis (index vectors). The standard leaves
    indices beyond undefined; clamping keeps a library from reading or writing outside its tensors.
    """
    value = node.value(index)
    size = np.array(extents, dtype=np.int64) if len(extents) != 1 else np.int64(extents[0])
    if isinstance(value, np.ndarray):
        value = value.astype(np.int64)
        if value.size and not np.all((-size <= value) & (value < size)):
            raise Unsupported(f"its indices leave the axes of extent {extents}")
        return const(np.where(value < 0, value + size, value))
    if dtype_of(value) != "int64":
        value = node.emit(R.astype(value, "int64"), "indices")
    wrapped = node.emit(R.add(value, const(size)), "wrapped")
    negative = node.emit(R.less(value, const(np.int64(0))), "negative")
    positive = node.emit(R.where(negative, wrapped, value), "positive")
    at_least = node.emit(R.maximum(positive, const(np.int64(0))), "at_least")
    return node.emit(R.minimum(at_least, const(size - 1)), "inside")


@converter("GatherElements")
def gather_elements(node: Node) -> Result:
    axis = node.axis()
    return R.gather_elements(node.tensor(0), _counted_from_front(node, 1, node.shape()[axis : axis + 1]), axis=axis)


@converter("GatherND")
def gather_nd(node: Node) -> Result:
    batch = int(node.attribute("batch_dims", 0))
    depth = node.shape(1)[-1]
    indices = _counted_from_front(node, 1, node.shape()[batch : batch + depth])
    return R.gather_nd(node.tensor(0), indices, batch_dims=batch)


@converter("ScatterElements", "Scatter")
def scatter_elements(node: Node) -> Result:
    axis = node.axis()
    indices = _counted_from_front(node, 1, node.shape()[axis : axis + 1])
    return R.scatter_elements(node.tensor(0), indices, node.tensor(2), axis=axis, reduction=_reduction(node))


@converter("ScatterND")
def scatter_nd(node: Node) -> Result:
    indices = _counted_from_front(node, 1, node.shape()[: node.shape(1)[-1]])
    return R.scatter_nd(node.tensor(0), indices, node.tensor(2), reduction=_reduction(node))


def _reduction(node: Node) -> str:
    name = node.attribute("reduction", "none")
    if name not in _SCATTER:
        raise Unsupported(f"its reduction {name!r} is unknown")
    return _SCATTER[name]


@converter("OneHot")
def one_hot(node: Node) -> Result:
    depth = int(node.constant(1, "depth").reshape(()))
    off, on = node.constant(2, "values").reshape(-1)
    indices = node.tensor(0)
    rank = len(shape_of(indices)) + 1
    axis = node.axis(default=-1, rank=rank)
    if dtype_of(indices) != "int64":
        indices = node.emit(R.astype(indices, "int64"), "indices")
    # Indices in -depth..-1 count from the end; what is outside both ranges hits nothing, as it should.
    column = node.emit(R.expand_dims(indices, axis), "column")
    wrapped = node.emit(R.add(column, const(np.int64(depth))), "wrapped")
    negative = node.emit(R.less(column, const(np.int64(0))), "negative")
    positive = node.emit(R.where(negative, wrapped, column), "positive")
    places = np.arange(depth, dtype=np.int64).reshape([-1 if i == axis else 1 for i in range(rank)])
    hit = node.emit(R.equal(positive, const(places)), "hit")
    return R.where(hit, const(np.asarray(on)), const(np.asarray(off)))


@converter("TopK")
def top_k(node: Node) -> Result:
    raise Unsupported("it sorts, which no target has code for", "cut the model before it and sort in the application")


@converter("IsNaN")
def is_nan(node: Node) -> Result:
    return R.isnan(node.tensor(0))


@converter("IsInf")
def is_inf(node: Node) -> Result:
    x = node.tensor(0)
    positive, negative = bool(node.attribute("detect_positive", 1)), bool(node.attribute("detect_negative", 1))
    if positive and negative:
        return R.isinf(x)
    if not (positive or negative):
        raise Unsupported("it detects neither positive nor negative infinity, so it is constant", "remove it")
    return R.equal(x, const(np.asarray(np.inf if positive else -np.inf, dtype=dtype_of(x))))
