"""Data movement: Gather, Embedding, Concat, Transpose and plain copies, in runs of consecutive elements."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from tvm import tirx

from qcompiler.codegen.cpu.emit import Buffer, Emitter, Expr, cast, constant, load, splat
from qcompiler.codegen.cpu.instruction_set import InstructionSet
from qcompiler.codegen.cpu.kernel import Kernel
from qcompiler.codegen.cpu.loops import collapse, dot, for_blocks, for_chunks, strides_of, tasks, unflatten
from qcompiler.sim.integer_program import Concat, Embedding, Gather, Shape, Tensor, Transpose

RUN_LIMIT = 8
"""A row with more separate runs than this is moved element by element through an index table."""
TILE = 16
"""Side of the square that a transpose moves at a time: one cache line of bytes."""


def memory_type(dtype: str, isa: InstructionSet) -> str:
    """The type that a tensor's elements have in memory."""
    return {"int8": isa.storage, "bool": "uint8"}.get(dtype, dtype)


def _lanes(dtype: str, isa: InstructionSet) -> int:
    return isa.vector_bytes // np.dtype(dtype).itemsize


def _copy(
    e: Emitter, isa: InstructionSet, x: Buffer, source: Expr, y: Buffer, target: Expr, count: int, dtype: str
) -> None:
    for_chunks(e, count, _lanes(dtype, isa), lambda i, w: e.store(y, target + i, load(x, source + i, w), w))


# --------------------------------------------------------------------------------------------------- copy
def copy_template(isa: InstructionSet, elements: int, dtype: str, block: int) -> Any:
    e = Emitter()
    x, y = e.buffer("x", elements, dtype), e.buffer("y", elements, dtype)
    with tasks(e) as task:
        for_blocks(e, task, elements, block, _lanes(dtype, isa), lambda i, w: e.store(y, i, load(x, i, w), w))
    return e.function()


def copy_kernel(tensor: Tensor, isa: InstructionSet) -> Kernel:
    """The same bytes elsewhere."""
    block = min(tensor.elements, 4096)
    parameters = {"elements": tensor.elements, "dtype": memory_type(tensor.dtype, isa), "block": block}
    return Kernel("copy", copy_template, parameters, -(-tensor.elements // block), boundary=True)


# ------------------------------------------------------------------------------------------------- gather
Run = tuple[int, int, int]
"""(target, source or -1 for fill, length) of consecutive elements of a row."""


def _runs(indices: Any) -> list[Run]:
    """Stretches of an index vector that move as one: rising by one, or all fill."""
    runs: list[Run] = []
    for target, source in enumerate(indices.tolist()):
        if runs:
            start, origin, length = runs[-1]
            if (origin == -1 and source == -1) or (origin != -1 and source == origin + length):
                runs[-1] = (start, origin, length + 1)
                continue
        runs.append((target, source, 1))
    return runs


def _normalised(op: Gather, shape: Shape) -> tuple[list[int], list[Any], list[int], int]:
    """(input extents, index vectors or None, output extents, trailing elements), whole axes merged.

    The trailing elements are those of the whole axes at the end: the unit that is moved.
    """
    extents: list[int] = []
    vectors: list[Any] = []
    results: list[int] = []
    for extent, vector in zip(shape, op.indices, strict=True):
        if vector is not None and np.array_equal(vector, np.arange(extent)):
            vector = None
        if vector is None and vectors and vectors[-1] is None:
            extents[-1] *= extent
            results[-1] *= extent
            continue
        extents.append(extent)
        vectors.append(vector)
        results.append(extent if vector is None else len(vector))
    unit = 1
    if vectors and vectors[-1] is None:
        unit = extents.pop()
        vectors.pop()
        results.pop()
    return extents, vectors, results, unit


def gather_template(
    isa: InstructionSet, extents: tuple[int, ...], outputs: tuple[int, ...], indexed: tuple[bool, ...], unit: int,
    runs: tuple[Run, ...] | None, fill: int, holes: bool, dtype: str,
) -> Any:  # fmt: skip
    """One task is one row: all of the last indexed axis times `unit`.

    Constants: int32 indices of each indexed axis; the last one's only when `runs` is None. holes: an outer index may
    be -1. fill: the value as stored.
    """
    e = Emitter()
    x = e.buffer("x", math.prod(extents) * unit, dtype)
    tables = [
        e.buffer(f"index{a}", outputs[a], "int32") if indexed[a] and not (a == len(extents) - 1 and runs is not None)
        else None
        for a in range(len(extents))
    ]  # fmt: skip
    y = e.buffer("y", math.prod(outputs) * unit, dtype)
    row = outputs[-1] * unit
    steps = strides_of([*extents, unit])

    def blank(start: Expr, count: int) -> None:
        for_chunks(
            e, count, _lanes(dtype, isa), lambda i, w: e.store(y, start + i, splat(constant(fill, dtype), dtype, w), w)
        )

    with tasks(e) as task:
        at = unflatten(e, task, outputs[:-1])
        source: Expr = constant(0)
        inside: Expr = True
        for axis, coordinate in enumerate(at):
            table = tables[axis]
            if table is not None:
                coordinate = e.bind(load(table, coordinate, 1), "int32", "index")
                if holes:
                    inside = coordinate >= 0 if inside is True else tirx.all(inside, coordinate >= 0)
            source = source + coordinate * steps[axis]
        base = e.bind(source, "int32", "base")
        target = e.bind(task * row, "int32", "target")
        with e.when(inside):
            if runs is not None:
                for start, origin, length in runs:
                    to = target + start * unit
                    if origin < 0:
                        blank(to, length * unit)
                    else:
                        _copy(e, isa, x, base + origin * unit, y, to, length * unit, dtype)
            else:
                with e.loop(outputs[-1], "j") as j:
                    index = e.bind(load(tables[-1], j, 1), "int32", "index")
                    with e.when(index >= 0):
                        _copy(e, isa, x, base + index * unit, y, target + j * unit, unit, dtype)
                    with e.when(index < 0):
                        blank(target + j * unit, unit)
        if inside is not True:
            with e.when(tirx.Not(inside)):
                blank(target, row)
    return e.function()


def gather_kernel(op: Gather, x: Tensor, isa: InstructionSet) -> Kernel:
    """Gather by constant indices of every axis."""
    dtype = memory_type(x.dtype, isa)
    fill = op.fill + (isa.storage_offset if x.dtype == "int8" else 0)
    extents, vectors, outputs, unit = _normalised(op, x.shape)
    if not extents:
        return copy_kernel(x, isa)
    # A whole axis before the last indexed one walks by itself; the last entry is indexed by construction.
    stretches = _runs(vectors[-1])
    runs = stretches if len(stretches) <= RUN_LIMIT else None
    constants = [v.astype(np.int32) for v in vectors[:-1] if v is not None]
    if runs is None:
        constants.append(vectors[-1].astype(np.int32))
    parameters = {
        "extents": tuple(extents), "outputs": tuple(outputs), "indexed": tuple(v is not None for v in vectors),
        "unit": unit, "runs": None if runs is None else tuple(runs), "fill": fill,
        "holes": any(v is not None and bool((v < 0).any()) for v in vectors[:-1]), "dtype": dtype,
    }  # fmt: skip
    return Kernel("gather", gather_template, parameters, math.prod(outputs[:-1]), tuple(constants), boundary=True)


# ---------------------------------------------------------------------------------------------- embedding
def embedding_template(isa: InstructionSet, rows: int, width: int, count: int, dtype: str, index_dtype: str) -> Any:
    e = Emitter()
    table, index = e.buffer("table", rows * width, dtype), e.buffer("index", count, index_dtype)
    y = e.buffer("y", count * width, dtype)
    with tasks(e) as task:
        limit = constant(rows, index_dtype)
        chosen = tirx.max(tirx.min(load(index, task, 1), limit - 1), constant(-rows, index_dtype))
        wrapped = tirx.Select(chosen < constant(0, index_dtype), chosen + limit, chosen)
        row = e.bind(cast(wrapped, "int32"), "int32", "row")
        _copy(e, isa, table, row * width, y, task * width, width, dtype)
    return e.function()


def embedding_kernel(op: Embedding, table: Tensor, index: Tensor, isa: InstructionSet) -> Kernel:
    """Rows of a table; one task an index."""
    parameters = {
        "rows": table.shape[0], "width": math.prod(table.shape[1:]), "count": index.elements,
        "dtype": memory_type(table.dtype, isa), "index_dtype": index.dtype,
    }  # fmt: skip
    return Kernel("embedding", embedding_template, parameters, index.elements, boundary=True)


# ------------------------------------------------------------------------------------------------- concat
def concat_template(
    isa: InstructionSet, outer: int, widths: tuple[int, ...], sources: tuple[int, ...], dtype: str
) -> Any:
    """Rows of `widths` elements side by side. sources: which distinct input each part comes from."""
    e = Emitter()
    parts = [e.buffer(f"x{i}", outer * widths[sources.index(i)], dtype) for i in range(max(sources) + 1)]
    y = e.buffer("y", outer * sum(widths), dtype)
    with tasks(e) as task:
        start = 0
        for width, source in zip(widths, sources, strict=True):
            _copy(e, isa, parts[source], task * width, y, task * sum(widths) + start, width, dtype)
            start += width
    return e.function()


def concat_kernel(op: Concat, inputs: Sequence[Tensor], isa: InstructionSet) -> Kernel:
    """Concat; the buffers read are the distinct inputs, in order of first appearance."""
    names = list(dict.fromkeys(op.inputs))
    outer = math.prod(inputs[0].shape[: op.axis])
    parameters = {
        "outer": outer, "widths": tuple(math.prod(t.shape[op.axis :]) for t in inputs),
        "sources": tuple(names.index(n) for n in op.inputs), "dtype": memory_type(inputs[0].dtype, isa),
    }  # fmt: skip
    return Kernel("concat", concat_template, parameters, outer, boundary=True)


# ---------------------------------------------------------------------------------------------- transpose
def transpose_template(isa: InstructionSet, extents: tuple[int, ...], strides: tuple[int, ...], dtype: str) -> Any:
    """Walks the output in order; `strides` are the input's. One task is a run, or TILE rows of a two-axis transpose."""
    e = Emitter()
    elements = math.prod(extents)
    x, y = e.buffer("x", elements, dtype), e.buffer("y", elements, dtype)
    with tasks(e) as task:
        if strides[-1] == 1:
            base = e.bind(dot(unflatten(e, task, extents[:-1]), strides[:-1]), "int32", "base")
            _copy(e, isa, x, base, y, task * extents[-1], extents[-1], dtype)
        else:
            *outer, rows, columns = extents
            *_, row_stride, column_stride = strides
            bands = -(-rows // TILE)
            at = unflatten(e, task, [*outer, bands])
            base = e.bind(dot(at[:-1], strides[:-2]), "int32", "base")
            first = e.bind(at[-1] * TILE, "int32", "first")
            origin = e.bind(task // bands * (rows * columns), "int32", "origin")
            with e.loop(tirx.min(constant(TILE), rows - first), "r") as r:
                row = e.bind(first + r, "int32", "row")
                source = e.bind(base + row * row_stride, "int32", "source")
                with e.loop(columns, "c") as c:
                    e.store(y, origin + row * columns + c, load(x, source + c * column_stride, 1), 1)
    return e.function()


def transpose_kernel(op: Transpose, x: Tensor, out: Tensor, isa: InstructionSet) -> Kernel:
    """Any permutation of the axes."""
    steps = strides_of(x.shape)
    extents, (strides,) = collapse(out.shape, [[steps[p] for p in op.permutation]])
    if len(extents) == 1:
        return copy_kernel(x, isa)
    bands = -(-extents[-2] // TILE) if strides[-1] != 1 else extents[-2]
    parameters = {"extents": tuple(extents), "strides": tuple(strides), "dtype": memory_type(x.dtype, isa)}
    return Kernel("transpose", transpose_template, parameters, math.prod(extents[:-2]) * bands, boundary=True)
