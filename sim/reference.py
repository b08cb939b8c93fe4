"""The NumPy reference interpreter of the integer program: the judge of every target.

Each function states one operation straight from its definition in `integer_program` and `numerics`. Sums of
int8 products run through floating-point matrix multiplication in pieces short enough to be exact (`exact_product`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from qcompiler.sim import numerics
from qcompiler.sim.errors import ProgramError
from qcompiler.sim.float_ops import FLOAT_OPS
from qcompiler.sim.integer_program import (
    Add,
    AveragePool2d,
    Concat,
    Conv2d,
    Dense,
    Dequantize,
    Embedding,
    FloatOp,
    Gather,
    IntegerProgram,
    LayerNorm,
    MatMul,
    MaxPool2d,
    Mean,
    Mul,
    Operation,
    Quantize,
    Requantize,
    Reshape,
    ResizeLinear,
    Shape,
    Softmax,
    Table,
    Tensor,
    Transpose,
)  # fmt: skip

Array = npt.NDArray[Any]


def _zero(tensor: Tensor) -> int:
    assert tensor.zero_point is not None
    return tensor.zero_point


def _requantize(acc: Array, r: Requantize) -> Array:
    # A scale vector [1] would turn a scalar accumulator into a vector.
    return numerics.requantize(acc, r.scale, r.zero_point, r.minimum, r.maximum, r.rounding).reshape(acc.shape)


def _windows(
    x: Array, kernel: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int],
    padding: tuple[int, int, int, int], fill: float, output: Shape,
) -> Iterator[tuple[int, int, Array]]:  # fmt: skip
    """For each kernel position (i, j): the strided view of the padded image that it sees, [N, OH, OW, C]."""
    top, left, bottom, right = padding
    padded = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=fill)
    oh, ow = output[1], output[2]
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            y0, x0 = i * dilation[0], j * dilation[1]
            yield (
                i,
                j,
                padded[
                    :, y0 : y0 + (oh - 1) * stride[0] + 1 : stride[0], x0 : x0 + (ow - 1) * stride[1] + 1 : stride[1]
                ],
            )


FLOAT32_EXACT = 1 << 24


def exact_product(x: Array, weight: Array) -> npt.NDArray[np.int64]:
    """``x @ weight.T`` of integers: x int [M, K] of magnitude up to 2**15, weight int8 [N, K]; int64 [M, N].

    float32 products of integers are exact in any order while no partial sum can exceed 2**24. K is cut where
    max|x| * sum|w| would, for the output with the largest weights.
    """
    largest = max(1, int(np.abs(x).max(initial=0)))
    reach = np.cumsum(np.abs(weight.astype(np.int64)), axis=1) * largest
    acc = np.zeros((x.shape[0], weight.shape[0]), dtype=np.int64)
    start, length = 0, weight.shape[1]
    while start < length:
        done = reach[:, start - 1 : start] if start else 0
        within = (reach[:, start:] - done).max(axis=0, initial=0) <= FLOAT32_EXACT
        stop = start + max(1, int(np.argmin(within)) if not within.all() else length - start)
        piece = x[:, start:stop].astype(np.float32) @ weight[:, start:stop].T.astype(np.float32)
        acc += piece.astype(np.int64)
        start = stop
    return acc


def _conv2d(op: Conv2d, ins: list[Tensor], out: Tensor, x: Array) -> Array:
    centred = x.astype(np.int16) - np.int16(_zero(ins[0]))
    views = _windows(centred, op.kernel, op.stride, op.dilation, op.padding, 0, out.shape)
    if op.depthwise:
        sums = np.zeros(out.shape, dtype=np.int32)
        for i, j, view in views:
            sums += view * op.weight[:, i, j, 0].astype(np.int32)
        return _requantize(sums.astype(np.int64) + op.bias, op.requantize)
    rows, o = out.elements // out.shape[3], op.weight.shape[0]
    columns = np.stack([view for _, _, view in views], axis=3)  # [N, OH, OW, KH*KW, C]
    parts = []
    for g in range(op.groups):
        width = op.weight.shape[3]
        part = columns[..., g * width : (g + 1) * width].reshape(rows, -1)
        weight = op.weight[g * (o // op.groups) : (g + 1) * (o // op.groups)]
        parts.append(exact_product(part, weight.reshape(weight.shape[0], -1)))
    acc = np.concatenate(parts, axis=1).reshape(out.shape)
    return _requantize(acc + op.bias, op.requantize)


def _dense(op: Dense, ins: list[Tensor], out: Tensor, x: Array) -> Array:
    centred = (x.astype(np.int16) - np.int16(_zero(ins[0]))).reshape(-1, x.shape[-1])
    return _requantize(exact_product(centred, op.weight).reshape(out.shape) + op.bias, op.requantize)


def _matmul(op: MatMul, ins: list[Tensor], out: Tensor, a: Array, b: Array) -> Array:
    right = b.astype(np.float64) - _zero(ins[1])
    acc = (a.astype(np.float64) - _zero(ins[0])) @ (np.swapaxes(right, -1, -2) if op.transpose_b else right)
    return _requantize(acc.astype(np.int64), op.requantize)


def _add(op: Add, ins: list[Tensor], out: Tensor, a: Array, b: Array) -> Array:
    if op.rounding == "exact_half_up":
        return numerics.add(a, b, op.multiplier_a, op.multiplier_b, op.bias, op.shift, op.minimum, op.maximum)
    if op.rounding != "f32_half_even":
        raise ProgramError(f"Add {op.name!r}: rounding {op.rounding!r} is not defined for additions")
    (ta, tb), sign = ins, -1 if op.multiplier_b < 0 else 1
    return numerics.add_f32_half_even(
        a, ta.scale or 0.0, _zero(ta), b, tb.scale or 0.0, _zero(tb), out.scale or 0.0, _zero(out), sign,
        op.minimum, op.maximum,
    )  # fmt: skip


def _mul(op: Mul, ins: list[Tensor], out: Tensor, a: Array, b: Array) -> Array:
    product = (a.astype(np.int64) - _zero(ins[0])) * (b.astype(np.int64) - _zero(ins[1]))
    return _requantize(product, op.requantize)


def _max_pool(op: MaxPool2d, ins: list[Tensor], out: Tensor, x: Array) -> Array:
    best = np.full(out.shape, numerics.INT8_MIN, dtype=np.int8)
    for _, _, view in _windows(x, op.kernel, op.stride, op.dilation, op.padding, numerics.INT8_MIN, out.shape):
        np.maximum(best, view, out=best)
    return best


def pool_counts(op: AveragePool2d, shape: Shape, output: Shape) -> npt.NDArray[np.int64]:
    """[1, OH, OW, 1]: over how many positions each output of an average pool averages; shape is the input's."""
    top, left, bottom, right = op.padding
    excess_h, excess_w = op.padding_excess
    inside = np.ones((1, shape[1], shape[2], 1), dtype=np.int64)
    if op.count_include_pad:
        inside = np.pad(inside, ((0, 0), (top, bottom - excess_h), (left, right - excess_w), (0, 0)), constant_values=1)
        padding = (0, 0, excess_h, excess_w)
    else:
        padding = op.padding
    counts = np.zeros((1, output[1], output[2], 1), dtype=np.int64)
    for _, _, view in _windows(inside, op.kernel, op.stride, op.dilation, padding, 0, counts.shape):
        counts += view
    return counts


def _average_pool(op: AveragePool2d, ins: list[Tensor], out: Tensor, x: Array) -> Array:
    acc = np.zeros(out.shape, dtype=np.int64)
    centred = x.astype(np.int64) - _zero(ins[0])
    for _, _, view in _windows(centred, op.kernel, op.stride, op.dilation, op.padding, 0, out.shape):
        acc += view
    counts = pool_counts(op, ins[0].shape, out.shape)
    r = op.requantize
    scale = r.scale[np.maximum(counts, 1) - 1]
    return numerics.requantize(acc, scale, r.zero_point, r.minimum, r.maximum, r.rounding)


def _mean(op: Mean, ins: list[Tensor], out: Tensor, x: Array) -> Array:
    acc = (x.astype(np.int64) - _zero(ins[0])).sum(axis=op.axes, keepdims=op.keepdims)
    return _requantize(acc, op.requantize)


def _gather(op: Gather, ins: list[Tensor], out: Tensor, x: Array) -> Array:
    y = x
    for axis, vector in enumerate(op.indices):
        if vector is None:
            continue
        y = np.take(y, np.maximum(vector, 0), axis=axis)
        if (vector < 0).any():
            where = (vector < 0).reshape([-1 if a == axis else 1 for a in range(y.ndim)])
            y = np.where(where, np.array(op.fill, dtype=y.dtype), y)
    return y


def _embedding(op: Embedding, ins: list[Tensor], out: Tensor, table: Array, index: Array) -> Array:
    rows = table.shape[0]
    index = np.clip(index.astype(np.int64), -rows, rows - 1)
    return table[np.where(index < 0, index + rows, index)]


def _resize_linear(op: ResizeLinear, ins: list[Tensor], out: Tensor, x: Array) -> Array:
    centred = x.astype(np.int64) - _zero(ins[0])
    wh, ww = op.weight_h.astype(np.int64)[:, None, None], op.weight_w.astype(np.int64)[:, None]
    rows = centred[:, op.low_h] * (256 - wh) + centred[:, op.high_h] * wh
    acc = rows[:, :, op.low_w] * (256 - ww) + rows[:, :, op.high_w] * ww
    return _requantize(acc, op.requantize)


def _float_op(op: FloatOp, ins: list[Tensor], out: Tensor, *values: Array) -> Array:
    if op.kind not in FLOAT_OPS:
        raise ProgramError(f"FloatOp {op.name!r}: unknown kind {op.kind!r}")
    with np.errstate(all="ignore"):
        return np.asarray(FLOAT_OPS[op.kind](*values, **op.attributes)).astype(out.dtype).reshape(out.shape)


EXECUTE: dict[type[Operation], Callable[..., Array]] = {
    Quantize: lambda op, ins, out, x: numerics.quantize_linear(x, np.float32(out.scale), _zero(out)),
    Dequantize: lambda op, ins, out, x: numerics.dequantize_linear(x, np.float32(ins[0].scale), _zero(ins[0])),
    Conv2d: _conv2d,
    Dense: _dense,
    MatMul: _matmul,
    Add: _add,
    Mul: _mul,
    Table: lambda op, ins, out, x: numerics.look_up(x, op.table),
    MaxPool2d: _max_pool,
    AveragePool2d: _average_pool,
    Mean: _mean,
    Softmax: lambda op, ins, out, x: numerics.softmax(x, op.factors, op.fraction_bits),
    LayerNorm: lambda op, ins, out, x: numerics.layer_norm(
        x, op.gain, op.bias, op.shift, op.epsilon, op.minimum, op.maximum
    ),
    Gather: _gather,
    Embedding: _embedding,
    Concat: lambda op, ins, out, *xs: np.concatenate(xs, axis=op.axis),
    Transpose: lambda op, ins, out, x: np.transpose(x, op.permutation),
    Reshape: lambda op, ins, out, x: x.reshape(op.shape),
    ResizeLinear: _resize_linear,
    FloatOp: _float_op,
}


def execute(program: IntegerProgram, inputs: Mapping[str, Array], keep: bool = False) -> dict[str, Array]:
    """Run the program on one set of inputs (name to array of exactly the declared shape and dtype).

    Returns the outputs by name, or every tensor with keep=True. Raises ProgramError for missing or misfitting inputs.
    """
    values: dict[str, Array] = dict(program.constants)
    for name in program.inputs:
        tensor = program.tensors[name]
        if name not in inputs:
            raise ProgramError(f"input {name!r} is missing; the program reads {', '.join(map(repr, program.inputs))}")
        value = np.asarray(inputs[name])
        if value.shape != tensor.shape or str(value.dtype) != tensor.dtype:
            raise ProgramError(
                f"input {name!r} is {value.dtype}{value.shape}; it should be {tensor.dtype}{tensor.shape}"
            )
        values[name] = value
    last_use = {n: i for i, op in enumerate(program.operations) for n in op.inputs}
    for i, op in enumerate(program.operations):
        ins, out = program.input_tensors(op), program.output_tensor(op)
        value = EXECUTE[type(op)](op, ins, out, *(values[n] for n in op.inputs))
        assert value.shape == out.shape and str(value.dtype) == out.dtype, (op.name, value.shape, value.dtype, out)
        values[op.output] = value
        if not keep:
            for n in op.inputs:
                if last_use[n] == i and n not in program.outputs:
                    values.pop(n, None)
    return values if keep else {n: values[n] for n in program.outputs}
