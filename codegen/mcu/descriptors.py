"""One operation to the call of a kernel: the fields of its descriptor, constants packed as the kernel reads them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from qcompiler.codegen.cpu.loops import broadcast_strides, collapse, strides_of
from qcompiler.codegen.mcu import blocks
from qcompiler.codegen.mcu.c_text import Arrays, Name
from qcompiler.codegen.mcu.target import McuTarget
from qcompiler.sim import numerics, reference
from qcompiler.sim.integer_program import (
    Add,
    AveragePool2d,
    Concat,
    Conv2d,
    Dense,
    Dequantize,
    Embedding,
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
    ResizeLinear,
    Shape,
    Softmax,
    Table,
    Tensor,
    Transpose,
)

RANK = 6  # QC_RANK
Array = npt.NDArray[Any]
Fields = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Call:
    """function, file: of the kernel. kind: of the descriptor. slots: tensors that it reads; NULL where `inputs` are
    fewer. offset: bytes into the output's buffer. in_place: the inputs whose memory the output may take."""

    function: str
    file: str
    kind: str
    fields: Mapping[str, Any]
    inputs: tuple[str, ...]
    slots: int = 1
    offset: int = 0
    scratch_bytes: int | None = None
    in_place: tuple[int, ...] = ()
    slow: bool = False


@dataclass(frozen=True, eq=False)
class Context:
    """What the descriptors of a program share. `name` is a prefix for the arrays of the operation at hand."""

    program: IntegerProgram
    target: McuTarget
    arrays: Arrays
    name: str

    def array(self, what: str, values: npt.ArrayLike, dtype: Any, packed: bool = False) -> Name:
        return self.arrays.add(f"{self.name}_{what}", values, dtype, packed)


class Unsupported(ValueError):
    """The operation has no kernel; the text says why."""


# ------------------------------------------------------------------------------------------- requantise
FAST_SHIFT = 33


def requantize_fields(c: Context, r: Requantize, channels: int | None = None) -> Fields:
    """The descriptor of a requantisation. channels: repeat a single scale so often; None: leave it."""
    scale = np.broadcast_to(r.scale, channels) if channels is not None else r.scale
    fields: Fields = {}
    if r.rounding == "f32_half_even":
        fields |= {"slow": Name("qc_round_half_even"), "scale": c.array("scale", scale, np.float32)}
    elif r.rounding == "q31_double":
        multiplier, shift = numerics.quantize_multiplier_q31(scale)
        fields |= _multipliers(c, multiplier, shift, "qc_round_q31_double")
    else:
        multiplier, shift = _fixed_point(scale, r.rounding)
        fast = bool(np.all(shift >= FAST_SHIFT))
        fields |= _multipliers(c, multiplier, shift - FAST_SHIFT if fast else shift, None if fast else "qc_round_wide")
    return fields | {"zero_point": r.zero_point, "minimum": r.minimum, "maximum": r.maximum}


def _multipliers(c: Context, multiplier: Array, shift: Array, slow: str | None) -> Fields:
    return {
        "slow": Name(slow) if slow else None,
        "multiplier": c.array("multiplier", multiplier, np.int32),
        "shift": c.array("shift", shift, np.int8),
    }


def _fixed_point(scale: Array, rounding: str) -> tuple[Array, Array]:
    """(multiplier < 2**31, shift <= 62) with ``round(acc * scale) == (acc * multiplier + 2**(shift-1)) >> shift``."""
    if rounding == "q31_single":
        multiplier, exponent = numerics.quantize_multiplier_q31(scale)
        shift = np.minimum(31 - exponent, 62)
    else:
        multiplier, shift = numerics.decompose_scale(scale)
        # Seven more bits on both sides, so that the upper half of a 64-bit product already has most of the shift.
        multiplier, shift = multiplier << 7, shift + 7
    nothing = (multiplier == 0) | (shift > 62)  # |acc * scale| < 1/2 for every int32
    return np.where(nothing, 0, multiplier), np.where(nothing, FAST_SHIFT, shift)


# ------------------------------------------------------------------------------------------- matrix work
def _matrix(c: Context, op: Conv2d | Dense, x: Tensor, geometry: Fields, groups: int, add: Add | None) -> Call:
    flat = op.weight.reshape(op.weight.shape[0], -1)
    assert x.zero_point is not None
    bias = op.bias.astype(np.int64) - x.zero_point * flat.astype(np.int64).sum(axis=1)
    reach = np.abs(op.bias.astype(np.int64)) + 256 * np.abs(flat.astype(np.int64)).sum(axis=1)
    if reach.max(initial=0) > 2**31 - 1:
        raise Unsupported("its sums may leave 32 bits")
    width = flat.shape[0] // groups
    terms = -(-flat.shape[1] // c.target.k_multiple) * c.target.k_multiple
    weight = np.pad(flat.reshape(groups, width, -1), ((0, 0), (0, 0), (0, terms - flat.shape[1])))
    quick = _blocks(c, weight, bias.reshape(groups, width), op.requantize) if c.target.blocks else {}
    rest = slice(quick.get("block_channels", 0), width)
    fields = {
        **quick,
        **(_single(c, weight[:, rest], bias.reshape(groups, width)[:, rest]) if rest.start < width else {}),
        "requantize": _requantize_of(c, op.requantize, groups, rest),
        **_fused_add(c, op, add),
        "k": terms, **geometry, "groups": groups, "input_zero": x.zero_point,
    }  # fmt: skip
    scratch = 2 * terms * c.target.column_bytes + (2 * flat.shape[0] if add is not None else 0)
    pixels = [geometry[n] for n in ("kernel_h", "kernel_w", "in_h", "in_w")]
    dense = groups == 1 and pixels == [1, 1, geometry["out_h"], geometry["out_w"]]
    return Call(
        "qc_dense" if dense else "qc_conv", "qc_conv.c", "qc_conv_t", fields, _inputs(op, add), 2,
        scratch_bytes=scratch, in_place=(1,), slow=_slow(fields, add),
    )  # fmt: skip


def _requantize_of(c: Context, r: Requantize, groups: int, rest: slice) -> Fields:
    """The descriptor of a requantisation with constants of each group's channels of `rest` alone."""
    if rest.start == rest.stop:
        return {"zero_point": r.zero_point, "minimum": r.minimum, "maximum": r.maximum}
    scale = np.broadcast_to(r.scale, groups * rest.stop).reshape(groups, -1)[:, rest]
    return requantize_fields(c, dataclasses.replace(r, scale=scale.ravel()))


def _single(c: Context, weight: Array, bias: Array) -> Fields:
    """Weights int8 [groups, O, K] as [groups][O/4][K/lanes][4][lanes], O filled up with zeros; biases [groups, O]."""
    groups, outputs, terms = weight.shape
    padded = np.pad(weight, ((0, 0), (0, -outputs % 4), (0, 0)))
    packed = padded.reshape(groups, -1, 4, terms // c.target.lanes, c.target.lanes).transpose(0, 1, 3, 2, 4)
    return {
        "weight": c.array("weight", packed, np.int8, packed=True),
        "bias": c.array("bias", np.pad(bias.ravel(), (0, 3)), np.int32),  # read by fours, whatever the group's width
    }


def _blocks(c: Context, weight: Array, bias: Array, r: Requantize) -> Fields:
    """The fields of what of each group fits blocks of four channels; none where they would not be exact."""
    groups, width, terms = weight.shape
    fours = width // 4 * 4
    if not fours or r.rounding not in ("exact_half_up", "q31_single"):
        return {}
    weight, bias = weight[:, :fours].reshape(-1, terms), bias[:, :fours].ravel()
    scale = np.broadcast_to(r.scale, groups * width).reshape(groups, width)[:, :fours].ravel()
    low, high = blocks.sums(weight.astype(np.int64), bias)
    m = blocks.multipliers(_fixed_point(scale, r.rounding), low, high)
    words = blocks.pack(weight, bias, low, high, m) if m is not None else None
    if m is None or words is None:
        return {}
    return {
        "block": c.array("block", words, np.int32, packed=True), "block_channels": fours,
        "block_offset": (2 * r.zero_point + 1) << (m.shift - 1), "block_shift": m.shift,
    }  # fmt: skip


def _inputs(op: Operation, add: Add | None) -> tuple[str, ...]:
    return op.inputs if add is None else (*op.inputs, next(n for n in add.inputs if n != op.output))


def _slow(fields: Fields, add: Add | None) -> bool:
    return fields["requantize"].get("slow") is not None or (add is not None and add.rounding != "exact_half_up")


def _fused_add(c: Context, op: Operation, add: Add | None) -> Fields:
    """The `add` field: the convolution's result is the first operand there."""
    if add is None:
        return {}
    return {"add": {"&": add_fields(c, add, swapped=add.inputs[0] != op.output)}}


def conv(c: Context, op: Conv2d, ins: list[Tensor], out: Tensor, add: Add | None = None) -> Call:
    x = ins[0]
    geometry = {
        "batch": x.shape[0], "in_h": x.shape[1], "in_w": x.shape[2], "in_c": x.shape[3],
        "out_h": out.shape[1], "out_w": out.shape[2], "out_c": out.shape[3],
        "kernel_h": op.kernel[0], "kernel_w": op.kernel[1], "stride_h": op.stride[0], "stride_w": op.stride[1],
        "dilation_h": op.dilation[0], "dilation_w": op.dilation[1], "pad_top": op.padding[0], "pad_left": op.padding[1],
    }  # fmt: skip
    if not op.depthwise:
        return _matrix(c, op, x, geometry, op.groups, add)
    fields = {
        "weight": c.array("weight", op.weight[..., 0].transpose(1, 2, 0), np.int8, packed=True),
        "bias": c.array("bias", op.bias, np.int32),
        "requantize": requantize_fields(c, op.requantize, out.shape[3]),
        **_fused_add(c, op, add),
        **geometry, "groups": op.groups, "input_zero": x.zero_point,
    }  # fmt: skip
    return Call(
        "qc_depthwise", "qc_depthwise.c", "qc_conv_t", fields, _inputs(op, add), 2, in_place=(1,),
        slow=_slow(fields, add),
    )  # fmt: skip


def dense(c: Context, op: Dense, ins: list[Tensor], out: Tensor, add: Add | None = None) -> Call:
    rows, k = ins[0].elements // ins[0].shape[-1], ins[0].shape[-1]
    geometry = {
        "batch": 1, "in_h": 1, "in_w": rows, "in_c": k, "out_h": 1, "out_w": rows, "out_c": out.shape[-1],
        "kernel_h": 1, "kernel_w": 1, "stride_h": 1, "stride_w": 1, "dilation_h": 1, "dilation_w": 1,
    }  # fmt: skip
    return _matrix(c, op, ins[0], geometry, 1, add)


def matmul(c: Context, op: MatMul, ins: list[Tensor], out: Tensor) -> Call:
    a, b = ins
    batch, m, k, n = out.shape[:-2], a.shape[-2], a.shape[-1], out.shape[-1]
    walks = [
        [s * m * k for s in broadcast_strides(a.shape[:-2], batch)],
        [s * k * n for s in broadcast_strides(b.shape[:-2], batch)],
    ]
    fields = {
        "requantize": requantize_fields(c, op.requantize),
        "batch": loops(batch, walks), "m": m, "k": k, "n": n,
        "b_step_k": 1 if op.transpose_b else n, "b_step_n": k if op.transpose_b else 1,
        "zero_a": a.zero_point, "zero_b": b.zero_point,
    }  # fmt: skip
    return Call("qc_matmul", "qc_matmul.c", "qc_matmul_t", fields, op.inputs, 2, slow=_slow(fields, None))


# ------------------------------------------------------------------------------------------ element-wise
def loops(shape: Shape, walks: Sequence[Sequence[int]]) -> Fields:
    """`qc_loops_t` over the shape, with the steps of one or two operands along each axis."""
    extents, merged = collapse(shape, walks)
    missing = RANK - len(extents)
    if missing < 0:
        raise Unsupported(f"it walks {len(extents)} axes; the kernels do {RANK}")
    return {
        "extent": [1] * missing + extents,
        "step": [[0] * missing + steps for steps in merged],
    }


def add_fields(c: Context, op: Add, swapped: bool = False) -> Fields:
    """`qc_add_t`. swapped: the kernel's first operand is the operation's second."""
    a, b = (c.program.tensors[n] for n in op.inputs)
    out = c.program.tensors[op.output]
    multipliers = (op.multiplier_a, op.multiplier_b)
    if op.rounding == "exact_half_up":
        first, second = reversed(multipliers) if swapped else multipliers
        return {
            "multiplier_a": first, "multiplier_b": second, "bias": op.bias, "shift": op.shift, "minimum": op.minimum,
            "maximum": op.maximum,
        }  # fmt: skip
    if swapped:
        raise Unsupported("a float32 addition with its operands the other way round")  # never fused: see `fuse`
    return {
        "slow": Name("qc_add_real"), "multiplier_b": -1 if op.multiplier_b < 0 else 1, "minimum": op.minimum,
        "maximum": op.maximum, "zero_a": a.zero_point, "zero_b": b.zero_point, "zero": out.zero_point,
        "scale_a": a.scale, "scale_b": b.scale, "scale": out.scale,
    }  # fmt: skip


def _broadcast(ins: list[Tensor], out: Tensor) -> tuple[Fields, tuple[int, ...]]:
    """The loops of two operands, and which of them have the output's shape."""
    walks = [broadcast_strides(t.shape, out.shape) for t in ins]
    return loops(out.shape, walks), tuple(i for i, t in enumerate(ins) if t.elements == out.elements)


def add(c: Context, op: Add, ins: list[Tensor], out: Tensor) -> Call:
    walk, in_place = _broadcast(ins, out)
    fields = {"add": add_fields(c, op), "loops": walk}
    slow = op.rounding != "exact_half_up"
    return Call("qc_add", "qc_elementwise.c", "qc_add_loops_t", fields, op.inputs, 2, in_place=in_place, slow=slow)


def mul(c: Context, op: Mul, ins: list[Tensor], out: Tensor) -> Call:
    walk, in_place = _broadcast(ins, out)
    fields = {
        "requantize": requantize_fields(c, op.requantize), "loops": walk, "zero_a": ins[0].zero_point,
        "zero_b": ins[1].zero_point,
    }  # fmt: skip
    return Call(
        "qc_mul", "qc_elementwise.c", "qc_mul_t", fields, op.inputs, 2, in_place=in_place, slow=_slow(fields, None)
    )


def table(c: Context, op: Table, ins: list[Tensor], out: Tensor) -> Call:
    fields = {
        "table": c.array("table", op.table, np.int8), "count": out.elements,
        "channels": op.table.shape[0] if op.table.ndim == 2 else 1,
    }  # fmt: skip
    return Call("qc_table", "qc_elementwise.c", "qc_table_t", fields, op.inputs, in_place=(0,))


# -------------------------------------------------------------------------------------------- reductions
def _window(op: MaxPool2d | AveragePool2d, x: Tensor, out: Tensor) -> Fields:
    return {
        "batch": x.shape[0], "in_h": x.shape[1], "in_w": x.shape[2], "channels": x.shape[3],
        "out_h": out.shape[1], "out_w": out.shape[2], "kernel_h": op.kernel[0], "kernel_w": op.kernel[1],
        "stride_h": op.stride[0], "stride_w": op.stride[1], "dilation_h": op.dilation[0], "dilation_w": op.dilation[1],
        "pad_top": op.padding[0], "pad_left": op.padding[1],
    }  # fmt: skip


def max_pool(c: Context, op: MaxPool2d, ins: list[Tensor], out: Tensor) -> Call:
    return Call("qc_max_pool", "qc_pool.c", "qc_pool_t", _window(op, ins[0], out), op.inputs)


def average_pool(c: Context, op: AveragePool2d, ins: list[Tensor], out: Tensor) -> Call:
    x, (top, left, bottom, right) = ins[0], op.padding
    counts = np.maximum(reference.pool_counts(op, x.shape, out.shape), 1)
    first, last = int(counts.min()), int(counts.max())
    r = op.requantize
    used = Requantize(r.scale[first - 1 : last], r.zero_point, r.minimum, r.maximum, r.rounding)
    inside = {"inside_h": x.shape[1], "inside_w": x.shape[2]}
    if op.count_include_pad:
        inside = {
            "inside_top": top, "inside_left": left,
            "inside_h": top + x.shape[1] + bottom - op.padding_excess[0],
            "inside_w": left + x.shape[2] + right - op.padding_excess[1],
        }  # fmt: skip
    fields = {
        "requantize": requantize_fields(c, used), "first_count": first, **_window(op, x, out), **inside,
        "input_zero": x.zero_point,
    }  # fmt: skip
    return Call("qc_average_pool", "qc_pool.c", "qc_pool_t", fields, op.inputs, slow=_slow(fields, None))


def mean(c: Context, op: Mean, ins: list[Tensor], out: Tensor) -> Call:
    x = ins[0]
    if 255 * x.elements // max(1, out.elements) > 2**31 - 1:
        raise Unsupported("its sums may leave 32 bits")
    steps = strides_of(x.shape)
    kept = [i for i in range(len(x.shape)) if i not in op.axes]
    parts = {
        which: loops(tuple(x.shape[i] for i in axes), [[steps[i] for i in axes]])
        for which, axes in (("kept", kept), ("reduced", sorted(op.axes)))
    }
    fields = {"requantize": requantize_fields(c, op.requantize), **parts, "input_zero": x.zero_point}
    return Call("qc_mean", "qc_pool.c", "qc_mean_t", fields, op.inputs, slow=_slow(fields, None))


def resize(c: Context, op: ResizeLinear, ins: list[Tensor], out: Tensor) -> Call:
    x = ins[0]
    fields = {
        "requantize": requantize_fields(c, op.requantize),
        **{n: c.array(n, getattr(op, n), np.int16)
           for n in ("low_h", "high_h", "weight_h", "low_w", "high_w", "weight_w")},
        "batch": x.shape[0], "in_h": x.shape[1], "in_w": x.shape[2], "channels": x.shape[3],
        "out_h": out.shape[1], "out_w": out.shape[2], "input_zero": x.zero_point,
    }  # fmt: skip
    return Call("qc_resize", "qc_resize.c", "qc_resize_t", fields, op.inputs, slow=_slow(fields, None))


def softmax(c: Context, op: Softmax, ins: list[Tensor], out: Tensor) -> Call:
    length = out.shape[-1]
    fields = {
        "factors": c.array("factors", op.factors, np.uint16), "rows": out.elements // length, "length": length,
        "fraction_bits": op.fraction_bits,
    }  # fmt: skip
    return Call("qc_softmax", "qc_rows.c", "qc_softmax_t", fields, op.inputs, in_place=(0,))


def layer_norm(c: Context, op: LayerNorm, ins: list[Tensor], out: Tensor) -> Call:
    length = out.shape[-1]
    fields = {
        "gain": c.array("gain", op.gain, np.int16), "bias": c.array("bias", op.bias, np.int16), "epsilon": op.epsilon,
        "exponent": 22 - (length - 1).bit_length() - numerics.layer_norm_fraction_bits(length),
        "rows": out.elements // length, "length": length, "shift": op.shift, "minimum": op.minimum,
        "maximum": op.maximum,
    }  # fmt: skip
    return Call("qc_layer_norm", "qc_rows.c", "qc_layer_norm_t", fields, op.inputs, in_place=(0,))


# ---------------------------------------------------------------------------------------------- movement
def _size(tensor: Tensor) -> int:
    return np.dtype(tensor.dtype).itemsize


def copy(shape: Shape, source: Sequence[int], target: Sequence[int], size: int, name: str, offset: int = 0) -> Call:
    """Steps of source and target in elements."""
    walks = [[s * size for s in source], [t * size for t in target]]
    return Call(
        "qc_copy", "qc_move.c", "qc_copy_t", {"loops": loops(shape, walks), "size": size}, (name,), offset=offset
    )


def transpose(c: Context, op: Transpose, ins: list[Tensor], out: Tensor) -> Call:
    steps = strides_of(ins[0].shape)
    return copy(out.shape, [steps[p] for p in op.permutation], strides_of(out.shape), _size(out), op.inputs[0])


def concat(c: Context, op: Concat, ins: list[Tensor], out: Tensor) -> list[Call]:
    calls, at, inner = [], 0, math.prod(out.shape[op.axis + 1 :])
    for x in ins:
        offset = at * inner * _size(out)
        calls.append(copy(x.shape, strides_of(x.shape), strides_of(out.shape), _size(out), x.name, offset))
        at += x.shape[op.axis]
    return calls


def gather(c: Context, op: Gather, ins: list[Tensor], out: Tensor) -> Call:
    x, size = ins[0], _size(out)
    whole = len(x.shape)
    while whole and op.indices[whole - 1] is None:
        whole -= 1
    if whole > RANK:
        raise Unsupported(f"it indexes {whole} axes; the kernel does {RANK}")
    steps, missing = [s * size for s in strides_of(x.shape)], RANK - whole
    offsets = [
        None if v is None else c.array(f"offset{axis}", np.where(v < 0, -1, v * steps[axis]), np.int32)
        for axis, v in enumerate(op.indices[:whole])
    ]
    fields = {
        "offset": [None] * missing + offsets, "extent": [1] * missing + list(out.shape[:whole]),
        "step": [0] * missing + steps[:whole], "fill": c.array("fill", np.array([op.fill]), out.dtype),
        "run": math.prod(x.shape[whole:]) * size, "size": size,
    }  # fmt: skip
    return Call("qc_gather", "qc_move.c", "qc_gather_t", fields, op.inputs)


def embedding(c: Context, op: Embedding, ins: list[Tensor], out: Tensor) -> Call:
    values, index = ins
    fields = {
        "rows": values.shape[0], "row_bytes": values.bytes // values.shape[0], "count": index.elements,
        "index_bytes": _size(index),
    }  # fmt: skip
    return Call("qc_embedding", "qc_move.c", "qc_embedding_t", fields, op.inputs, 2)


def boundary(op: Quantize | Dequantize, quantised: Tensor, name: str, planes: tuple[int, int, int] | None) -> Call:
    """planes: (rows, channels, columns) of the float side where channels and columns swap."""
    outer, channels, columns = planes or (1, 1, quantised.elements)
    function = "qc_quantize" if isinstance(op, Quantize) else "qc_dequantize"
    fields = {
        "outer": outer, "planes": channels, "inner": columns, "scale": quantised.scale,
        "zero_point": quantised.zero_point,
    }  # fmt: skip
    return Call(function, "qc_boundary.c", "qc_boundary_t", fields, (name,))


MATRIX: dict[type[Operation], Callable[..., Call]] = {Conv2d: conv, Dense: dense}
CALLS: dict[type[Operation], Callable[..., Call | list[Call]]] = {
    MatMul: matmul, Add: add, Mul: mul, Table: table, MaxPool2d: max_pool, AveragePool2d: average_pool, Mean: mean,
    ResizeLinear: resize, Softmax: softmax, LayerNorm: layer_norm, Transpose: transpose, Concat: concat,
    Gather: gather, Embedding: embedding,
}  # fmt: skip
