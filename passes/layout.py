"""Channels-last inside: image operators become NHWC, and transposes cancel, or move to the graph's boundary.

Every tensor of rank 3 and above has two forms, as imported (channels on axis 1) and channels-last (axis 1 moved to
the end); a form is made only when an operator asks for it. Image operators ask for channels-last; element-wise
operators, joins, slices and reductions take the form that is there. Ensures: no `permute_dims` between two image
operators, softmax over the last axis.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import tvm
from tvm import relax
from tvm.relax import op as R

from qcompiler.passes.base import Pass
from qcompiler.passes.graph import attributes_of, numpy_of
from qcompiler.passes.rewrite import (
    Rewriter,
    const,
    constant_value,
    op_name,
    shape_of,
    shuffled,
    substitute,
    variables_of,
)

IMAGE = {"nn.conv2d", "nn.conv2d_transpose", "nn.max_pool2d", "nn.avg_pool2d", "image.resize2d"}
ELEMENTWISE = {
    "abs", "acos", "acosh", "asin", "asinh", "atan", "atanh", "ceil", "clip", "cos", "cosh", "erf", "exp", "floor",
    "log", "negative", "round", "rsqrt", "sigmoid", "sign", "sin", "sinh", "sqrt", "square", "tan", "tanh", "trunc",
    "add", "subtract", "multiply", "divide", "power", "maximum", "minimum", "mod", "floor_mod", "where", "astype",
    "equal", "not_equal", "greater", "greater_equal", "less", "less_equal", "logical_and", "logical_or", "logical_xor",
    "logical_not", "isnan", "isinf", "nn.relu", "nn.relu6", "nn.leakyrelu", "nn.prelu", "nn.gelu", "nn.gelu_tanh",
    "nn.silu", "nn.selu", "nn.softplus", "quantize", "dequantize",
}  # fmt: skip
REDUCTIONS = {"mean": R.mean, "sum": R.sum, "max": R.max, "min": R.min, "prod": R.prod}
MOVES = {"concat", "strided_slice", "nn.pad", "take", "nn.softmax", "nn.log_softmax", "permute_dims", "reshape"}


@dataclass(frozen=True)
class Layout(Pass):
    def run(self, module: tvm.IRModule) -> tvm.IRModule:
        return _Layout(module).run()


def to_last(rank: int) -> list[int]:
    """The permutation from channels on axis 1 to channels-last."""
    return [0, *range(2, rank), 1]


def from_last(rank: int) -> list[int]:
    return [0, rank - 1, *range(1, rank - 1)]


def last_axis(axis: int, rank: int) -> int:
    """Where an axis is in the channels-last form."""
    axis %= rank
    return rank - 1 if axis == 1 else axis - (axis > 1)


@dataclass(frozen=True)
class Shuffle:
    """reshape to `split`, permute by `axes`, reshape to `shape`: in channels-last form."""

    split: tuple[int, ...]
    axes: tuple[int, ...]
    shape: tuple[int, ...]

    @staticmethod
    def of(old: tuple[int, ...], split: tuple[int, ...], axes: list[int], new: tuple[int, ...]) -> Shuffle | None:
        """From the three steps with channels on axis 1; None if an axis is not split and merged on its own."""
        parts = _grouped(old, split)
        merged = _grouped(new, tuple(split[i] for i in axes))
        if min(len(old), len(new)) < 3 or parts is None or merged is None:
            return None
        order = [i for axis in to_last(len(old)) for i in parts[axis]]
        wanted = [axes[j] for axis in to_last(len(new)) for j in merged[axis]]
        return Shuffle(
            tuple(split[i] for i in order),
            tuple(order.index(i) for i in wanted),
            tuple(new[i] for i in to_last(len(new))),
        )

    def apply(self, builder: Rewriter, x: relax.Expr, name: str) -> relax.Call:
        return shuffled(builder, x, self.split, self.axes, self.shape, name)


def _grouped(shape: tuple[int, ...], factors: tuple[int, ...]) -> list[list[int]] | None:
    """For every axis of `shape`, the positions of the consecutive factors whose product it is."""
    groups: list[list[int]] = []
    position = 0
    for extent in shape:
        group, product = [], 1
        while product < extent and position < len(factors):
            product *= factors[position]
            group.append(position)
            position += 1
        if product != extent:
            return None
        groups.append(group)
    groups[-1].extend(range(position, len(factors)))  # what is left has extent 1
    return groups


class _Layout(Rewriter):
    def __init__(self, module: tvm.IRModule) -> None:
        super().__init__(module)
        self.plain: dict[relax.Var, relax.Expr] = {p: p for p in self.params}  # old variable to new ones
        self.last: dict[relax.Var, relax.Expr] = {}
        self.wants_last = self._backwards()
        self.shuffles, self.inside = self._shuffles()

    def _backwards(self) -> set[relax.Var]:
        """Tensors that end up in an image operator through element-wise operators and reshapes of pixels only."""
        wanted: set[relax.Var] = set()
        for var, call in reversed(self.old):
            op = op_name(call)
            if op in IMAGE:
                wanted.add(call.args[0])
            elif op in ELEMENTWISE and var in wanted:
                rank = len(shape_of(var))
                wanted.update(a for a in variables_of(call) if len(shape_of(a)) == rank)
            elif op == "reshape" and var in wanted and _keeps_channels(shape_of(call.args[0]), shape_of(var)):
                wanted.update(variables_of(call))
        return wanted

    def _shuffles(self) -> tuple[dict[relax.Var, Shuffle], set[relax.Var]]:
        """Chains of reshape, permute_dims, reshape that only split, reorder and merge axes, by their last variable.

        Channel shuffles and depth-to-space are such chains. The second result holds their inner variables.
        """
        producers = {var: call for var, call in self.old if op_name(call) in ("reshape", "permute_dims")}
        found: dict[relax.Var, Shuffle] = {}
        inside: set[relax.Var] = set()
        for var, merge in producers.items():
            moved = merge.args[0]
            move = producers.get(moved)
            split = producers.get(move.args[0]) if move is not None else None
            if move is None or split is None or [op_name(c) for c in (merge, move, split)].count("reshape") != 2:
                continue
            if op_name(move) != "permute_dims" or not (self.only_use(moved) and self.only_use(move.args[0])):
                continue
            axes = [int(i) for i in attributes_of(move)["axes"]]
            shuffle = Shuffle.of(shape_of(split.args[0]), shape_of(move.args[0]), axes, shape_of(var))
            if shuffle is not None and isinstance(split.args[0], relax.Var):
                found[var] = shuffle
                inside |= {moved, move.args[0]}
        return found, inside

    def run(self) -> tvm.IRModule:
        calls = dict(self.old)
        for var, call in self.old:
            if var in self.inside:
                continue
            if var in self.shuffles:
                split = calls[calls[call.args[0]].args[0]]
                x = split.args[0]
                if self.only_last(x) or var in self.wants_last:
                    self.bind(self.last, var, self.shuffles[var].apply(self, self.as_last(x), str(var.name)))
                    continue
                for inner in (calls[call.args[0]].args[0], call.args[0]):
                    self.as_imported(inner, calls[inner])
            op = op_name(call)
            handler: Callable[[relax.Var, relax.Call], None]
            if op in IMAGE:
                handler = self.image
            elif op in ELEMENTWISE and len(shape_of(var)) >= 3:
                handler = self.elementwise
            elif op in REDUCTIONS:
                handler = self.reduction
            elif op in MOVES:
                handler = getattr(self, op.removeprefix("nn.").replace("log_softmax", "softmax"))
            else:
                handler = self.as_imported
            handler(var, call)
        return self.finish({n: self.as_plain(r) for n, r in zip(self.output_names, self.results, strict=True)})

    # ---------------------------------------------------------------------------------- the two forms
    def as_plain(self, value: relax.Expr) -> relax.Expr:
        """The tensor as imported; constants as they are."""
        if not isinstance(value, relax.Var):
            return value
        if value not in self.plain:
            name = str(value.name)
            call = R.permute_dims(self.last[value], from_last(len(shape_of(value))))
            self.plain[value] = self.emit(call, f"{name}.nchw")
        return self.plain[value]

    def as_last(self, value: relax.Expr) -> relax.Expr:
        """The channels-last form; constants are transposed now."""
        rank = len(shape_of(value))
        if not isinstance(value, relax.Var):
            return const(np.transpose(numpy_of(value), to_last(rank)))
        if value not in self.last:
            self.last[value] = self.emit(R.permute_dims(self.plain[value], to_last(rank)), f"{value.name}.nhwc")
        return self.last[value]

    def only_last(self, value: relax.Expr) -> bool:
        return isinstance(value, relax.Var) and value in self.last and value not in self.plain

    def bind(self, form: dict[relax.Var, relax.Expr], var: relax.Var, call: relax.Expr) -> None:
        """`call` computes `var` in this form, under its name."""
        form[var] = self.emit(call, str(var.name), exact=True) if isinstance(call, relax.Call) else call

    def as_imported(self, var: relax.Var, call: relax.Call) -> None:
        self.bind(self.plain, var, substitute(call, self.as_plain))

    # ----------------------------------------------------------------------------------- operators
    def image(self, var: relax.Var, call: relax.Call) -> None:
        a = attributes_of(call)
        x = self.as_last(call.args[0])
        op = op_name(call)
        if op == "nn.conv2d":
            weight = self.weight(call.args[1], [0, 2, 3, 1])
            new = R.nn.conv2d(
                x, weight, strides=a["strides"], padding=a["padding"], dilation=a["dilation"], groups=a["groups"],
                data_layout="NHWC", kernel_layout="OHWI",
            )  # fmt: skip
        elif op == "nn.conv2d_transpose":
            new = R.nn.conv2d_transpose(
                x, self.weight(call.args[1], [0, 1, 2, 3]), strides=a["strides"], padding=a["padding"],
                output_padding=a["output_padding"], dilation=a["dilation"], groups=a["groups"],
                data_layout="NHWC", kernel_layout="IOHW",
            )  # fmt: skip
        elif op == "image.resize2d":
            new = R.image.resize2d(
                x, shape_of(var)[2:], layout="NHWC", method=a["method"], rounding_method=a["rounding_method"],
                coordinate_transformation_mode=a["coordinate_transformation_mode"],
                cubic_alpha=a["cubic_alpha"], cubic_exclude=a["cubic_exclude"],
            )  # fmt: skip
        else:
            function = R.nn.max_pool2d if op == "nn.max_pool2d" else R.nn.avg_pool2d
            new = function(
                x, a["pool_size"], strides=a["strides"], padding=a["padding"], dilation=a["dilation"],
                ceil_mode=a["ceil_mode"], count_include_pad=a["count_include_pad"], layout="NHWC",
            )  # fmt: skip
        self.bind(self.last, var, new)

    def weight(self, value: relax.Expr, axes: list[int]) -> relax.Expr:
        """A kernel permuted: a constant now, a quantised constant under its dequantize, anything else at run time."""
        if axes == sorted(axes):
            return self.as_plain(value)
        array = constant_value(value)
        if array is not None:
            return const(np.transpose(array, axes))
        plain = self.as_plain(value)
        source = self.call_of(plain, "dequantize")
        array = constant_value(source.args[0]) if source is not None else None
        if source is None or array is None:
            return self.emit(R.permute_dims(plain, axes), f"{value.name}.ohwi")
        axis = axes.index(attributes_of(source)["axis"] % array.ndim)
        call = R.dequantize(const(np.transpose(array, axes)), source.args[1], source.args[2], axis=axis)
        return self.emit(call, f"{value.name}.ohwi")

    def elementwise(self, var: relax.Var, call: relax.Call) -> None:
        rank = len(shape_of(var))
        full = [a for a in variables_of(call) if len(shape_of(a)) == rank]
        if not (any(map(self.only_last, full)) or var in self.wants_last):
            self.as_imported(var, call)
            return
        args = [self.operand(a, rank) if isinstance(a.ty, relax.TensorType) else a for a in call.args]
        attributes = attributes_of(call)
        new = relax.Call(call.op, args, call.attrs, call.ty_args)
        if "axis" in attributes:  # quantize, dequantize, prelu: their vectors keep their shape
            args[1:] = call.args[1:]
            axis = last_axis(attributes["axis"], rank)
            new = {
                "quantize": lambda: R.quantize(*args, axis=axis, out_dtype=attributes.get("out_dtype")),
                "dequantize": lambda: R.dequantize(*args, axis=axis, out_dtype=attributes.get("out_dtype")),
                "nn.prelu": lambda: R.nn.prelu(*args, axis=axis),
            }[op_name(call)]()
        self.bind(self.last, var, new)

    def operand(self, value: relax.Expr, rank: int) -> relax.Expr:
        """An operand that broadcasts to rank `rank`, for the channels-last form."""
        shape = shape_of(value)
        full = (1,) * (rank - len(shape)) + shape
        array = constant_value(value)
        if array is not None:
            moved = np.transpose(array.reshape(full), to_last(rank))
            return const(moved.reshape(_without_leading_ones(moved.shape)))
        if len(shape) == rank:
            return self.as_last(value)
        if math.prod(shape) == 1:
            return self.as_plain(value)
        wide = self.emit(R.reshape(self.as_plain(value), full), f"{value.name}.wide")
        return self.emit(R.permute_dims(wide, to_last(rank)), f"{value.name}.wide_last")

    def reduction(self, var: relax.Var, call: relax.Call) -> None:
        x = call.args[0]
        rank = len(shape_of(x))
        a = attributes_of(call)
        axes = sorted(int(i) % rank for i in (a["axis"] if a.get("axis") is not None else range(rank)))
        if not self.only_last(x):
            self.as_imported(var, call)
            return
        mapped = sorted(last_axis(i, rank) for i in axes)
        kept = [i for i in to_last(rank) if i not in axes]
        function = REDUCTIONS[op_name(call)]
        if a["keepdims"]:
            self.bind(self.last, var, function(self.as_last(x), axis=mapped, keepdims=True))
        elif kept == sorted(kept):  # what is left is in the imported order
            self.bind(self.plain, var, function(self.as_last(x), axis=mapped, keepdims=False))
        elif len(kept) >= 3 and kept == to_last(rank):
            self.bind(self.last, var, function(self.as_last(x), axis=mapped, keepdims=False))
        else:
            self.as_imported(var, call)

    def concat(self, var: relax.Var, call: relax.Call) -> None:
        rank = len(shape_of(var))
        if rank < 3 or not any(map(self.only_last, variables_of(call))):
            self.as_imported(var, call)
            return
        axis = last_axis(attributes_of(call).get("axis", 0), rank)
        self.bind(self.last, var, R.concat([self.as_last(f) for f in call.args[0].fields], axis))

    def strided_slice(self, var: relax.Var, call: relax.Call) -> None:
        x = call.args[0]
        if not self.only_last(x):
            self.as_imported(var, call)
            return
        rank = len(shape_of(x))
        axes, begin, end, strides = ([int(v) for v in t.fields] for t in call.args[1:5])
        axes = [last_axis(i, rank) for i in axes]
        self.bind(self.last, var, R.strided_slice(self.as_last(x), axes, begin, end, strides))

    def pad(self, var: relax.Var, call: relax.Call) -> None:
        x, a = call.args[0], attributes_of(call)
        if not self.only_last(x) and var not in self.wants_last:
            self.as_imported(var, call)
            return
        widths = np.reshape(a["pad_width"], (-1, 2))[to_last(len(shape_of(x)))].reshape(-1).tolist()
        self.bind(self.last, var, R.nn.pad(self.as_last(x), widths, a["pad_mode"], a["pad_value"]))

    def take(self, var: relax.Var, call: relax.Call) -> None:
        x, index = call.args
        rank = len(shape_of(x))
        axis = attributes_of(call).get("axis")
        if axis is None or len(shape_of(index)) != 1 or not self.only_last(x):
            self.as_imported(var, call)
            return
        self.bind(self.last, var, R.take(self.as_last(x), self.as_plain(index), axis=last_axis(axis, rank)))

    def softmax(self, var: relax.Var, call: relax.Call) -> None:
        function = R.nn.softmax if op_name(call) == "nn.softmax" else R.nn.log_softmax
        x, rank = call.args[0], len(shape_of(var))
        axis = attributes_of(call)["axis"] % rank
        if rank >= 3 and axis == 1:
            self.bind(self.last, var, function(self.as_last(x), -1))
        elif axis == rank - 1:
            self.bind(self.plain, var, function(self.as_plain(x), -1))
        else:
            order = [i for i in range(rank) if i != axis] + [axis]
            moved = self.emit(R.permute_dims(self.as_plain(x), order), f"{var.name}.moved")
            result = self.emit(function(moved, -1), f"{var.name}.last")
            self.bind(self.plain, var, R.permute_dims(result, np.argsort(order).tolist()))

    def permute_dims(self, var: relax.Var, call: relax.Call) -> None:
        x, rank = call.args[0], len(shape_of(var))
        axes = [int(i) % rank for i in attributes_of(call).get("axes") or reversed(range(rank))]
        if rank >= 3 and axes == to_last(rank) and (self.only_last(x) or x in self.last):
            self.plain[var] = self.as_last(x)
        elif rank >= 3 and axes == from_last(rank) and x in self.plain:
            self.last[var] = self.plain[x]
        elif self.only_last(x):
            self.bind(self.plain, var, R.permute_dims(self.as_last(x), [last_axis(i, rank) for i in axes]))
        else:
            self.as_imported(var, call)

    def reshape(self, var: relax.Var, call: relax.Call) -> None:
        x, new = call.args[0], shape_of(var)
        old = shape_of(x)
        if isinstance(x, relax.Var) and len(old) >= 3 and (self.only_last(x) or var in self.wants_last):
            if _keeps_channels(old, new):
                self.bind(self.last, var, R.reshape(self.as_last(x), (new[0], *new[2:], new[1])))
                return
            if self.only_last(x) and (old[1] == 1 or math.prod(old[2:]) == 1):  # both forms hold the same bytes
                self.bind(self.plain, var, R.reshape(self.as_last(x), new))
                return
        self.as_imported(var, call)


def _keeps_channels(old: tuple[int, ...], new: tuple[int, ...]) -> bool:
    """Whether a reshape only changes the axes of pixels."""
    return len(old) >= 3 and len(new) >= 3 and old[:2] == new[:2]


def _without_leading_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    wide = next((i for i, d in enumerate(shape) if d != 1), len(shape))
    return shape[wide:]
