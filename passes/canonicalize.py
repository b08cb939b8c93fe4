"""Local clean-up to one form of everything: the rewrites that need no view beyond an operator and its producers.

x - c and x / c become x + (-c) and x * (1/c); constants stand on the right, single elements as scalars; chains of
reshapes and of transposes become one or none; a transpose that moves only axes of extent 1 becomes a reshape; a
quantised constant that is no weight becomes a float one; a transpose in front of a product with constant weights
goes into the weights; SiLU, GELU and layer normalisation are recognised in their spelled-out forms.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import tvm
from tvm import relax
from tvm.relax import op as R

from qcompiler.passes.base import Pass
from qcompiler.passes.graph import attributes_of, numpy_of
from qcompiler.passes.layout import ELEMENTWISE
from qcompiler.passes.rewrite import Array, Rewriter, const, constant_value, dtype_of, op_name, shape_of

COMMUTATIVE = {"add", "multiply", "maximum", "minimum"}
BINARY = {*COMMUTATIVE, "subtract", "divide", "power", "mod", "floor_mod"}
WEIGHTED = {"nn.conv2d", "nn.conv2d_transpose", "matmul"}


@dataclass(frozen=True)
class Canonicalize(Pass):
    def run(self, module: tvm.IRModule) -> tvm.IRModule:
        return _Canonicalize(module).run()


class _Canonicalize(Rewriter):
    def rewrite(self, name: str, call: relax.Call) -> relax.Expr:
        op = op_name(call)
        call = self.with_float_constants(call, op)
        if op in BINARY:
            result = self.binary(name, call, op)
            return self.below_reshape(name, result) if isinstance(result, relax.Call) else result
        if op == "astype" and dtype_of(call.args[0]) == attributes_of(call)["dtype"]:
            return call.args[0]
        if op in ELEMENTWISE:
            return self.below_reshape(name, call)
        if op == "permute_dims":
            return self.permute(call)
        if op in ("reshape", "squeeze", "expand_dims", "flatten"):
            return self.reshape(name, call)
        if op == "matmul":
            return self.matmul(name, call)
        return call

    # --------------------------------------------------------------------------------------- constants
    def with_float_constants(self, call: relax.Call, op: str) -> relax.Call:
        """Replace operands that dequantise a constant by float constants, where the operator has no weight."""
        if op in (*WEIGHTED, "reshape", "permute_dims", "quantize", "dequantize"):
            return call
        args = list(call.args)
        for i, arg in enumerate(args):
            value = self.dequantized_constant(arg)
            if value is not None:
                args[i] = const(value)
        if all(a.same_as(b) for a, b in zip(args, call.args, strict=True)):
            return call
        return relax.Call(call.op, args, call.attrs, call.ty_args)

    def dequantized_constant(self, arg: relax.Expr) -> Array | None:
        source = self.call_of(arg, "dequantize")
        values = [v for a in (source.args if source is not None else ()) if (v := constant_value(a)) is not None]
        if source is None or len(values) != 3:
            return None
        q, scale, zero = values
        axis = attributes_of(source)["axis"] % max(q.ndim, 1)
        shape = (-1,) + (1,) * (q.ndim - 1 - axis) if scale.size > 1 else ()
        return (q.astype(np.int32) - zero.reshape(shape).astype(np.int32)).astype(np.float32) * scale.reshape(shape)

    # ------------------------------------------------------------------------------------ element-wise
    def binary(self, name: str, call: relax.Call, op: str) -> relax.Expr:
        a, b = call.args
        if op in COMMUTATIVE and constant_value(a) is not None:
            a, b = b, a
        left, right = constant_value(a), constant_value(b)
        out = np.broadcast_shapes(shape_of(a), shape_of(b))
        if right is not None and right.dtype == np.float32:
            if op == "subtract":
                op, right = "add", -right
            elif op == "divide" and np.all(np.abs(right) >= np.finfo(np.float32).tiny):
                op, right = "multiply", (1 / right.astype(np.float64)).astype(np.float32)
            if _is_neutral(op, right) and out == shape_of(a):
                return a
            b = self.constant(b, _narrow(right, shape_of(a)))
        elif left is not None and left.dtype == np.float32:
            left = _narrow(left, shape_of(b))
            if op == "subtract":
                negated = self.emit(R.multiply(b, const(np.float32(-1))), f"{name}.negated")
                op, a, b = "add", negated, const(left)
            else:
                a = self.constant(a, left)
        if op != op_name(call) or not (a.same_as(call.args[0]) and b.same_as(call.args[1])):
            call = getattr(R, op)(a, b)
        return call

    def constant(self, old: relax.Expr, value: Array) -> relax.Expr:
        """`old` if it already holds `value`, which has at most its elements."""
        current = constant_value(old)
        same = current is not None and current.shape == value.shape and np.array_equal(current, value)
        return old if same else const(value)

    def below_reshape(self, name: str, call: relax.Call) -> relax.Expr:
        """f(reshape(x)) as reshape(f(x)), for a reshape that only adds or removes axes of extent 1 before the last.

        So the reshapes around one-dimensional layers meet and vanish.
        """
        args, shapes = list(call.args), []
        for i, arg in enumerate(args):
            value = constant_value(arg)
            if not isinstance(arg, relax.Var):
                if value is not None and value.size > 1 and value.ndim > 1:
                    return call
                continue
            inner = self.call_of(arg, "reshape")
            if inner is None or not self.only_use(arg) or not _moves_unit_axes(shape_of(inner.args[0]), shape_of(arg)):
                return call
            args[i] = inner.args[0]
            shapes.append((shape_of(arg), shape_of(inner.args[0])))
        if "axis" in attributes_of(call) or len(set(shapes)) != 1:
            return call
        result = self.emit(relax.Call(call.op, args, call.attrs, call.ty_args), name, exact=True)
        return self.emit(R.reshape(result, shapes[0][0]), f"{name}.reshaped")

    # ----------------------------------------------------------------------------------- data movement
    def permute(self, call: relax.Call) -> relax.Expr:
        x = call.args[0]
        shape = shape_of(x)
        axes = [int(i) % len(shape) for i in attributes_of(call).get("axes") or reversed(range(len(shape)))]
        inner = self.call_of(x, "permute_dims")
        if inner is not None:
            first = [int(i) for i in attributes_of(inner)["axes"]]
            x, axes = inner.args[0], [first[i] for i in axes]
            shape = shape_of(x)
        if axes == list(range(len(shape))):
            return x
        wide = [i for i in axes if shape[i] != 1]
        if wide == sorted(wide):
            return self.reshaped(x, tuple(shape[i] for i in axes))
        source, value = self.quantized_constant(x)
        if source is not None:
            axis = attributes_of(source)["axis"] % value.ndim
            return R.dequantize(const(value.transpose(axes)), source.args[1], source.args[2], axis=axes.index(axis))
        return R.permute_dims(x, axes)

    def reshape(self, name: str, call: relax.Call) -> relax.Expr:
        return self.reshaped(call.args[0], shape_of(self._infer.normalize(call)), keep=name in self.output_names)

    def reshaped(self, x: relax.Expr, shape: tuple[int, ...], keep: bool = False) -> relax.Expr:
        inner = self.call_of(x, "reshape")
        if inner is not None:
            x = inner.args[0]
        if shape_of(x) == shape and not keep:
            return x
        source, value = self.quantized_constant(x)
        if source is not None and numpy_of(source.args[1]).size == 1:
            return R.dequantize(const(value.reshape(shape)), source.args[1], source.args[2], axis=-1)
        if source is not None:
            # A vector of scales stays with its axis if the elements of that axis stay together.
            axis = attributes_of(source)["axis"] % value.ndim
            for new in range(len(shape)):
                before = math.prod(shape[:new]) == math.prod(value.shape[:axis])
                if before and shape[new] == value.shape[axis]:
                    return R.dequantize(const(value.reshape(shape)), source.args[1], source.args[2], axis=new)
        return R.reshape(x, shape)

    def quantized_constant(self, x: relax.Expr) -> tuple[relax.Call | None, Array]:
        """The dequantize of a constant that computes x, and that constant."""
        source = self.call_of(x, "dequantize")
        value = constant_value(source.args[0]) if source is not None else None
        return (None, np.zeros(0)) if value is None else (source, value)

    # --------------------------------------------------------------------------------- matrix products
    def matmul(self, name: str, call: relax.Call) -> relax.Expr:
        a, b = call.args
        weight = constant_value(a)
        if weight is not None and weight.ndim == 2 and constant_value(b) is None and len(shape_of(b)) >= 2:
            # W x = (x^T W^T)^T: the constant on the right.
            swap = [*range(len(shape_of(b)) - 2), len(shape_of(b)) - 1, len(shape_of(b)) - 2]
            turned = self.emit(R.permute_dims(b, swap), f"{name}.transposed")
            return R.permute_dims(self.emit(R.matmul(turned, const(weight.T)), f"{name}.product"), swap)
        return self.without_transpose(call)

    def without_transpose(self, call: relax.Call) -> relax.Expr:
        """matmul(flatten(transpose(x)), W) as matmul(flatten(x), W with its rows in the other order)."""
        chain: list[tuple[relax.Var, relax.Call]] = []  # quantise and dequantise steps in between
        x = call.args[0]
        while (step := self.call_of(x, "quantize", "dequantize")) is not None and self.only_use(x):
            if numpy_of(step.args[1]).size > 1:
                return call
            chain.append((x, step))
            x = step.args[0]
        flat = self.call_of(x, "reshape")
        moved = self.call_of(flat.args[0], "permute_dims") if flat is not None else None
        if flat is None or moved is None or not (self.only_use(x) and self.only_use(flat.args[0])):
            return call
        source, quantised = self.quantized_constant(call.args[1])
        weight = constant_value(call.args[1]) if source is None else quantised
        shape = shape_of(flat.args[0])
        rows = math.prod(shape[1:])
        axes = [int(i) for i in attributes_of(moved)["axes"]]
        if weight is None or axes[0] != 0 or weight.shape[0] != rows or shape_of(x) != (shape[0], rows):
            return call
        if source is not None and numpy_of(source.args[1]).size > 1 and attributes_of(source)["axis"] % 2 == 0:
            return call
        back = np.argsort(axes[1:]).tolist()
        new = weight.reshape(*shape[1:], -1).transpose(*back, len(back)).reshape(weight.shape)
        right: relax.Expr = const(new)
        if source is not None:
            requantised = R.dequantize(right, source.args[1], source.args[2], axis=attributes_of(source)["axis"])
            right = self.emit(requantised, str(call.args[1].name), exact=True)
        left = self.emit(R.reshape(moved.args[0], shape_of(x)), str(x.name), exact=True)
        for var, step in reversed(chain):
            left = self.emit(relax.Call(step.op, [left, *step.args[1:]], step.attrs), str(var.name), exact=True)
        return R.matmul(left, right)


def _moves_unit_axes(old: tuple[int, ...], new: tuple[int, ...]) -> bool:
    return old[-1:] == new[-1:] != () and [d for d in old if d != 1] == [d for d in new if d != 1]


def _is_neutral(op: str, value: Array) -> bool:
    return (op == "add" and not np.any(value)) or (op in ("multiply", "power") and bool(np.all(value == 1)))


def _narrow(value: Array, other: tuple[int, ...]) -> Array:
    """A constant without the repetition that broadcasting against `other` gives for free.

    A scalar if all elements are one and `other` alone gives the result's shape; no leading axes of extent 1.
    """
    if np.broadcast_shapes(value.shape, other) == other and value.size and np.all(value == value.reshape(-1)[0]):
        return np.asarray(value.reshape(-1)[0])
    if value.ndim > len(other):
        return value
    wide = next((i for i, d in enumerate(value.shape) if d != 1), value.ndim)
    return value.reshape(value.shape[wide:])
