"""The integer program: an ordered list of typed operations over typed tensors.

It is what the passes produce and what every target reads: the reference interpreter, the CPU and NPU code
generators and the workload extractor. Operations are frozen dataclasses with NumPy constants; nothing here
knows TVM. Images are NHWC, convolution weights OHWI; every operation has exactly one output. Shapes are
static. Fusion is a matter for code generators: it must never change a value that this program defines.

Text form and files: `qcompiler.sim.program_text`. Meaning: `qcompiler.sim.reference`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from qcompiler.sim.errors import ProgramError
from qcompiler.sim.numerics import INT8_MAX, INT8_MIN, ROUNDINGS, SOFTMAX_MAX_BITS, SOFTMAX_MIN_BITS, Rounding
from qcompiler.sim.tensor import Shape, Tensor

Array = npt.NDArray[Any]
DTYPES = ("int8", "int32", "int64", "float32", "bool")


@dataclass(frozen=True, eq=False)
class Requantize:
    """int32 accumulator to int8: `numerics.requantize` with these fields.

    scale: [C] or [1], float32 (float64 for the q31 roundings); a vector applies along the last axis of the output.
    """

    scale: Array
    zero_point: int
    minimum: int = INT8_MIN
    maximum: int = INT8_MAX
    rounding: Rounding = "exact_half_up"


@dataclass(frozen=True, eq=False)
class Operation:
    """name: unique in the program, the origin node's name where there is one. inputs, output: tensor names."""

    name: str
    inputs: tuple[str, ...]
    output: str

    def infer_shape(self, shapes: list[Shape]) -> Shape:
        """The output's shape for the inputs' shapes; raises ValueError when they do not fit."""
        raise NotImplementedError  # pragma: no cover - abstract

    def macs(self, shapes: list[Shape], output: Shape) -> int:
        """Multiply-accumulates of one execution (zero for anything but matrix work)."""
        return 0


# --------------------------------------------------------------------------------- the float boundary
@dataclass(frozen=True, eq=False)
class _SameShape(Operation):
    def infer_shape(self, shapes: list[Shape]) -> Shape:
        return shapes[0]


@dataclass(frozen=True, eq=False)
class Quantize(_SameShape):
    """float32 to int8 by `numerics.quantize_linear` with the output tensor's scale and zero point."""


@dataclass(frozen=True, eq=False)
class Dequantize(_SameShape):
    """int8 to float32 by `numerics.dequantize_linear` with the input tensor's scale and zero point."""


@dataclass(frozen=True, eq=False)
class FloatOp(Operation):
    """A float32 operation that stays float (CPU targets only). `kind` names an entry of `sim.float_ops`.

    inputs may be program constants; `attributes` holds the kind's options (ints, floats, strings, tuples of
    them); `shape` is the output's shape. `reason` says, for the fallback report, why it is not integer.
    """

    kind: str
    shape: Shape
    attributes: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""

    def infer_shape(self, shapes: list[Shape]) -> Shape:
        return self.shape


# -------------------------------------------------------------------------------------- matrix work
def _window(size: int, kernel: int, stride: int, dilation: int, before: int, after: int) -> int:
    extent = (kernel - 1) * dilation + 1
    span = size + before + after
    if span < extent:
        raise ValueError(f"a window of {extent} does not fit into {size} + padding {before} + {after}")
    return (span - extent) // stride + 1


@dataclass(frozen=True, eq=False)
class Conv2d(Operation):
    """int8 convolution, NHWC. ``acc = bias[o] + sum (x - zero_point_x) * weight``; padding holds zero_point_x.

    weight: int8 [O, KH, KW, I/groups] (depthwise: groups == I == O, last axis 1); bias: int32 [O];
    padding: (top, left, bottom, right). Output channel o belongs to group ``o // (O / groups)``.
    """

    weight: Array
    bias: Array
    requantize: Requantize
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    groups: int = 1

    @property
    def kernel(self) -> tuple[int, int]:
        return (self.weight.shape[1], self.weight.shape[2])

    @property
    def depthwise(self) -> bool:
        """One input channel and one output channel a group."""
        return self.groups > 1 and self.weight.shape[3] == 1 and self.groups == self.weight.shape[0]

    def infer_shape(self, shapes: list[Shape]) -> Shape:
        (n, h, w, c) = shapes[0]
        o, kh, kw, i = self.weight.shape
        if c != i * self.groups or o % self.groups:
            raise ValueError(f"{c} input channels do not fit weight {self.weight.shape} in {self.groups} groups")
        top, left, bottom, right = self.padding
        return (
            n,
            _window(h, kh, self.stride[0], self.dilation[0], top, bottom),
            _window(w, kw, self.stride[1], self.dilation[1], left, right),
            o,
        )

    def macs(self, shapes: list[Shape], output: Shape) -> int:
        return math.prod(output) * math.prod(self.weight.shape[1:])


@dataclass(frozen=True, eq=False)
class Dense(Operation):
    """x [..., K] times weight [N, K] transposed: ``acc = bias[n] + sum (x - zero_point_x) * weight[n]``."""

    weight: Array
    bias: Array
    requantize: Requantize

    def infer_shape(self, shapes: list[Shape]) -> Shape:
        if shapes[0][-1] != self.weight.shape[1]:
            raise ValueError(f"the last axis of {shapes[0]} is not K of weight {self.weight.shape}")
        return (*shapes[0][:-1], self.weight.shape[0])

    def macs(self, shapes: list[Shape], output: Shape) -> int:
        return math.prod(output) * self.weight.shape[1]


@dataclass(frozen=True, eq=False)
class MatMul(Operation):
    """a [..., M, K] times b [..., K, N] ([..., N, K] with transpose_b), both int8 activations.

    ``acc = sum (a - zero_point_a) * (b - zero_point_b)``; leading axes broadcast as in NumPy.
    """

    requantize: Requantize
    transpose_b: bool = False

    def infer_shape(self, shapes: list[Shape]) -> Shape:
        a, b = shapes
        k, n = (b[-1], b[-2]) if self.transpose_b else (b[-2], b[-1])
        if a[-1] != k:
            raise ValueError(f"inner axes of {a} and {b} differ")
        return (*np.broadcast_shapes(a[:-2], b[:-2]), a[-2], n)

    def macs(self, shapes: list[Shape], output: Shape) -> int:
        return math.prod(output) * shapes[0][-1]


# ------------------------------------------------------------------------------------- element-wise
@dataclass(frozen=True, eq=False)
class _Broadcast(Operation):
    def infer_shape(self, shapes: list[Shape]) -> Shape:
        return tuple(np.broadcast_shapes(*shapes))


@dataclass(frozen=True, eq=False)
class Add(_Broadcast):
    """a + b, or a - b with a negative multiplier_b: ``clamp((a*Ma + b*Mb + bias) >> shift)`` (`numerics.add`).

    With rounding `f32_half_even` the multipliers are unused except for their signs and `add_f32_half_even`
    applies to the tensors' scales. The q31 roundings are not defined for Add.
    """

    multiplier_a: int
    multiplier_b: int
    bias: int
    shift: int
    minimum: int = INT8_MIN
    maximum: int = INT8_MAX
    rounding: Rounding = "exact_half_up"


@dataclass(frozen=True, eq=False)
class Mul(_Broadcast):
    """``requantize((a - zero_point_a) * (b - zero_point_b))``; scale [1]."""

    requantize: Requantize


@dataclass(frozen=True, eq=False)
class Table(_SameShape):
    """Any unary int8 function: ``table[x + 128]``; table int8 [256], or [C, 256] chosen by the last axis.

    `function` names what it computes (relu, sigmoid, gelu, rescale, ...), for people.
    """

    table: Array
    function: str = ""


# ---------------------------------------------------------------------------------- pools and means
@dataclass(frozen=True, eq=False)
class _Pool(Operation):
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)

    def infer_shape(self, shapes: list[Shape]) -> Shape:
        n, h, w, c = shapes[0]
        top, left, bottom, right = self.padding
        return (
            n,
            _window(h, self.kernel[0], self.stride[0], self.dilation[0], top, bottom),
            _window(w, self.kernel[1], self.stride[1], self.dilation[1], left, right),
            c,
        )


@dataclass(frozen=True, eq=False)
class MaxPool2d(_Pool):
    """Maximum over each window, NHWC; padded positions never win (they hold -128). Scale is unchanged."""


@dataclass(frozen=True, eq=False)
class AveragePool2d(_Pool):
    """``requantize(sum (x - zero_point_x))`` with scale[count - 1], count the number of positions averaged over.

    requantize.scale: float32 [KH*KW]; entry n-1 is ``float32(scale_x / scale_y / n)``. count is the number of
    positions inside the image, or inside the image and its padding with count_include_pad (never positions
    that a ceil-mode window has beyond the padding: the importer puts those into `padding_excess`).
    padding includes the excess; padding_excess: rows and columns of (bottom, right) padding that never count.
    """

    requantize: Requantize = field(kw_only=True)
    count_include_pad: bool = False
    padding_excess: tuple[int, int] = (0, 0)


@dataclass(frozen=True, eq=False)
class Mean(Operation):
    """``requantize(sum (x - zero_point_x))`` over the axes; scale [1] = float32(scale_x / scale_y / count)."""

    axes: tuple[int, ...]
    keepdims: bool
    requantize: Requantize

    def infer_shape(self, shapes: list[Shape]) -> Shape:
        kept = [(1 if i in self.axes else d) for i, d in enumerate(shapes[0])]
        return tuple(d for i, d in enumerate(kept) if self.keepdims or i not in self.axes)


# ------------------------------------------------------------------------------------ normalisation
@dataclass(frozen=True, eq=False)
class Softmax(_SameShape):
    """`numerics.softmax` over the last axis; output scale 2**-fraction_bits, zero point -128.

    factors: uint16 [2, 16], `numerics.softmax_factors`.
    """

    factors: Array
    fraction_bits: int = SOFTMAX_MIN_BITS


@dataclass(frozen=True, eq=False)
class LayerNorm(_SameShape):
    """`numerics.layer_norm` over the last axis. gain, bias: int16 [K]."""

    gain: Array
    bias: Array
    shift: int
    epsilon: int
    minimum: int = INT8_MIN
    maximum: int = INT8_MAX


# ------------------------------------------------------------------------------------ data movement
@dataclass(frozen=True, eq=False)
class Gather(Operation):
    """Index every axis separately: ``y[i, j, ...] = x[indices[0][i], indices[1][j], ...]`` (numpy.ix_).

    indices: one int64 vector an axis, or None for the whole axis. Index -1 yields `fill` instead of an element
    (the zero point for zero padding). One operation for slice, strided slice, pad of every mode, nearest resize,
    expand/tile of an axis and gather with constant indices; `function` keeps the origin for people.
    Works on any dtype; the output has the input's dtype, scale and zero point.
    """

    indices: tuple[Array | None, ...]
    fill: int = 0
    function: str = ""

    def infer_shape(self, shapes: list[Shape]) -> Shape:
        if len(self.indices) != len(shapes[0]):
            raise ValueError(f"{len(self.indices)} index vectors for the {len(shapes[0])} axes of {shapes[0]}")
        for axis, (vector, extent) in enumerate(zip(self.indices, shapes[0], strict=True)):
            if vector is not None and (vector.min(initial=0) < -1 or vector.max(initial=0) >= extent):
                raise ValueError(f"indices of axis {axis} leave 0..{extent - 1}")
        return tuple(d if v is None else len(v) for v, d in zip(self.indices, shapes[0], strict=True))


@dataclass(frozen=True, eq=False)
class Embedding(Operation):
    """Rows of a table by run-time indices: ``y[..., :] = table[index]``; negative indices count from the end.

    inputs: (table [V, D], a constant tensor of any dtype; index [...], int32 or int64). An index outside
    -V..V-1 is clamped to the nearest row.
    """

    def infer_shape(self, shapes: list[Shape]) -> Shape:
        return (*shapes[1], *shapes[0][1:])


@dataclass(frozen=True, eq=False)
class Concat(Operation):
    """Join along an axis; all inputs and the output share dtype, scale and zero point."""

    axis: int

    def infer_shape(self, shapes: list[Shape]) -> Shape:
        out = list(shapes[0])
        for shape in shapes[1:]:
            if [d for i, d in enumerate(shape) if i != self.axis] != [d for i, d in enumerate(out) if i != self.axis]:
                raise ValueError(f"shapes {shapes} differ off axis {self.axis}")
        out[self.axis] = sum(s[self.axis] for s in shapes)
        return tuple(out)


@dataclass(frozen=True, eq=False)
class Transpose(Operation):
    """``numpy.transpose(x, permutation)``."""

    permutation: tuple[int, ...]

    def infer_shape(self, shapes: list[Shape]) -> Shape:
        if sorted(self.permutation) != list(range(len(shapes[0]))):
            raise ValueError(f"{self.permutation} does not permute the axes of {shapes[0]}")
        return tuple(shapes[0][p] for p in self.permutation)


@dataclass(frozen=True, eq=False)
class Reshape(Operation):
    """Same elements in the same order, another shape."""

    shape: Shape

    def infer_shape(self, shapes: list[Shape]) -> Shape:
        if math.prod(self.shape) != math.prod(shapes[0]):
            raise ValueError(f"{shapes[0]} cannot become {self.shape}")
        return self.shape


RESIZE_BITS = 8


@dataclass(frozen=True, eq=False)
class ResizeLinear(Operation):
    """Bilinear resize of NHWC with 8-bit weights; coordinates were resolved at compile time.

    For output row i: rows low_h[i], high_h[i] weighted ``2**8 - weight_h[i]`` and ``weight_h[i]``; columns alike;
    ``acc = sum w_h * w_w * (x - zero_point_x)`` (16 fractional bits, |acc| <= 2**24), then requantize with
    scale [1] = float32(scale_x / scale_y * 2**-16).
    """

    low_h: Array
    high_h: Array
    weight_h: Array
    low_w: Array
    high_w: Array
    weight_w: Array
    requantize: Requantize

    def infer_shape(self, shapes: list[Shape]) -> Shape:
        n, _, _, c = shapes[0]
        return (n, len(self.low_h), len(self.low_w), c)


OPERATIONS: dict[str, type[Operation]] = {
    c.__name__: c
    for c in (
        Quantize, Dequantize, FloatOp, Conv2d, Dense, MatMul, Add, Mul, Table, MaxPool2d, AveragePool2d, Mean,
        Softmax, LayerNorm, Gather, Embedding, Concat, Transpose, Reshape, ResizeLinear,
    )
}  # fmt: skip
MOVES = (Gather, Embedding, Concat, Transpose, Reshape)
KEEPS_QUANTISATION = (*MOVES, MaxPool2d)


@dataclass(frozen=True, eq=False)
class IntegerProgram:
    """operations in execution order over `tensors` (name to type). inputs, outputs: tensor names, in model order.

    constants: values of the tensors that no operation writes and that are not inputs.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    tensors: Mapping[str, Tensor]
    operations: tuple[Operation, ...]
    constants: Mapping[str, Array] = field(default_factory=dict)

    def input_tensors(self, op: Operation) -> list[Tensor]:
        return [self.tensors[n] for n in op.inputs]

    def output_tensor(self, op: Operation) -> Tensor:
        return self.tensors[op.output]

    def macs(self, op: Operation) -> int:
        return op.macs([t.shape for t in self.input_tensors(op)], self.output_tensor(op).shape)

    def consumers(self) -> dict[str, list[Operation]]:
        """Tensor name to the operations that read it."""
        readers: dict[str, list[Operation]] = {n: [] for n in self.tensors}
        for op in self.operations:
            for n in dict.fromkeys(op.inputs):
                readers[n].append(op)
        return readers

    def producers(self) -> dict[str, Operation]:
        return {op.output: op for op in self.operations}

    def replace(self, **changes: Any) -> IntegerProgram:
        return dataclasses.replace(self, **changes)


def check(program: IntegerProgram) -> IntegerProgram:
    """Verify every rule of the program; returns it. Raises ProgramError naming the operation and the rule broken."""

    def fail(what: str, where: str) -> ProgramError:
        return ProgramError(f"integer program {program.name!r}, {where}: {what}")

    known = {*program.inputs, *program.constants}
    names: set[str] = set()
    for n, t in program.tensors.items():
        where = f"tensor {n!r}"
        if n != t.name:
            raise fail(f"is filed under another name than its own, {t.name!r}", where)
        if t.dtype not in DTYPES:
            raise fail(f"dtype {t.dtype!r} is not one of {', '.join(DTYPES)}", where)
        if (t.scale is None) != (t.zero_point is None) or (t.dtype == "int8" and t.scale is None):
            raise fail("an int8 tensor needs a scale and a zero point, together", where)
        if t.scale is not None and not (
            t.scale > 0 and math.isfinite(t.scale) and float(np.float32(t.scale)) == t.scale
        ):
            raise fail(f"scale {t.scale!r} is not a positive float32", where)
        if t.zero_point is not None and not INT8_MIN <= t.zero_point <= INT8_MAX:
            raise fail(f"zero point {t.zero_point} is not an int8", where)
    for n in (*program.inputs, *program.outputs, *program.constants):
        if n not in program.tensors:
            raise fail("is not a tensor of the program", f"{n!r}")
    for n, value in program.constants.items():
        if value.shape != program.tensors[n].shape or str(value.dtype) != program.tensors[n].dtype:
            raise fail(f"its value is {value.dtype}{value.shape}, not {program.tensors[n]}", f"constant {n!r}")
    for op in program.operations:
        where = f"{type(op).__name__} {op.name!r}"
        if op.name in names:
            raise fail("another operation has this name", where)
        names.add(op.name)
        for n in op.inputs:
            if n not in known:
                raise fail(f"reads {n!r} before anything wrote it", where)
        if op.output in known:
            raise fail(f"writes {op.output!r}, which already has a value", where)
        if op.output not in program.tensors:
            raise fail(f"writes {op.output!r}, which is not a tensor of the program", where)
        known.add(op.output)
        ins, out = program.input_tensors(op), program.output_tensor(op)
        try:
            shape = op.infer_shape([t.shape for t in ins])
        except ValueError as error:
            raise fail(str(error), where) from None
        if shape != out.shape:
            raise fail(f"computes shape {shape}, but {op.output!r} is declared {out.shape}", where)
        _check_types(op, ins, out, lambda what, where=where: fail(what, where))
    for n in program.outputs:
        if n not in known:
            raise fail("no operation writes this output", f"{n!r}")
    return program


def _check_types(op: Operation, ins: list[Tensor], out: Tensor, fail: Any) -> None:
    if isinstance(op, Quantize):
        if ins[0].dtype != "float32" or out.dtype != "int8":
            raise fail(f"quantises {ins[0].dtype} to {out.dtype}; it takes float32 to int8")
    elif isinstance(op, Dequantize):
        if ins[0].dtype != "int8" or out.dtype != "float32":
            raise fail(f"dequantises {ins[0].dtype} to {out.dtype}; it takes int8 to float32")
    elif isinstance(op, (*MOVES, MaxPool2d)):
        sources = ins[:1] if isinstance(op, Embedding) else ins
        for t in sources:
            if (t.dtype, t.scale, t.zero_point) != (out.dtype, out.scale, out.zero_point):
                raise fail(f"moves {t} into {out}: dtype, scale and zero point must not change")
    elif not isinstance(op, FloatOp) and any(t.dtype != "int8" for t in [*ins, out]):
        raise fail("is integer work on something that is not int8")
    if isinstance(op, Softmax):
        if not SOFTMAX_MIN_BITS <= op.fraction_bits <= SOFTMAX_MAX_BITS:
            raise fail(f"fraction_bits {op.fraction_bits} is not in {SOFTMAX_MIN_BITS}..{SOFTMAX_MAX_BITS}")
        if (out.scale, out.zero_point) != (2.0**-op.fraction_bits, -128):
            raise fail(f"its output has scale 2**-{op.fraction_bits} and zero point -128, not {out}")
    requantize = getattr(op, "requantize", None)
    if requantize is not None:
        if requantize.zero_point != out.zero_point:
            raise fail(f"requantises to zero point {requantize.zero_point}, its output has {out.zero_point}")
        if requantize.rounding not in ROUNDINGS:
            raise fail(f"rounding {requantize.rounding!r} is not one of {', '.join(ROUNDINGS)}")
        wanted = np.float64 if requantize.rounding.startswith("q31") else np.float32
        if requantize.scale.dtype != wanted or requantize.scale.ndim != 1:
            raise fail(f"{requantize.rounding} wants a {wanted.__name__} vector of scales")
        if not (np.all(np.isfinite(requantize.scale)) and np.all(requantize.scale > 0)):
            raise fail("a requantisation scale is not finite and positive")
        if not INT8_MIN <= requantize.minimum <= requantize.maximum <= INT8_MAX:
            raise fail(f"clamps to {requantize.minimum}..{requantize.maximum}, outside int8")
    if isinstance(op, (Conv2d, Dense)):
        if op.weight.dtype != np.int8 or op.bias.dtype != np.int32 or op.bias.shape != op.weight.shape[:1]:
            raise fail(f"weight {op.weight.dtype}, bias {op.bias.dtype}{op.bias.shape}: want int8 and int32 [O]")
        bound = accumulator_bound(op)
        if bound.size and int(bound.max()) > 2**31 - 1:
            raise fail(f"its accumulator can reach {int(bound.max())}, beyond int32")


def accumulator_bound(op: Conv2d | Dense) -> npt.NDArray[np.int64]:
    """Largest possible |acc| of each output channel: ``255 * sum |w| + |bias|`` (x - zero_point is in -255..255)."""
    weight = np.abs(op.weight.astype(np.int16)).reshape(op.weight.shape[0], -1)
    return 255 * weight.sum(axis=1, dtype=np.int64) + np.abs(op.bias.astype(np.int64))
