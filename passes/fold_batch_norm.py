"""Batch normalisation, in all its disguises, folded into the weights of the neighbouring convolution or product.

The importer writes BatchNormalization as a multiplication and an addition by per-channel constants, exporters write
them so themselves, or as Sub and Div, which `canonicalize` turns into the same: here every chain of such steps
behind or in front of a conv2d, conv2d_transpose or matmul with constant weights disappears into weight and bias.
Needs channels-last tensors (`layout`), so that a channel is always the last axis. Computed in float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import tvm
from tvm import relax
from tvm.relax import op as R

from qcompiler.passes.base import Pass, explain
from qcompiler.passes.graph import attributes_of
from qcompiler.passes.rewrite import Array, Rewriter, const, constant_value, op_name, shape_of

MATRIX = ("nn.conv2d", "nn.conv2d_transpose", "matmul")


@dataclass(frozen=True)
class FoldBatchNorm(Pass):
    def run(self, module: tvm.IRModule) -> tvm.IRModule:
        return _Fold(module).run()


class _Fold(Rewriter):
    def rewrite(self, name: str, call: relax.Call) -> relax.Expr:
        op = op_name(call)
        if op == "multiply":
            return self.multiply(name, call)
        if op == "add":
            return self.add(call)
        if op in MATRIX:
            return self.matrix(name, call)
        return call

    # -------------------------------------------------------------------------- behind a matrix operator
    def multiply(self, name: str, call: relax.Call) -> relax.Expr:
        x, factor = call.args[0], _float_constant(call.args[1])
        if factor is None:
            return call
        inner = self.call_of(x, *MATRIX, "add", "multiply")
        if inner is None:
            return call
        if op_name(inner) == "add":
            # (y + b) * c = y * c + b * c, if the product then disappears into y.
            y, addend = inner.args[0], _float_constant(inner.args[1])
            source = self.call_of(y, *MATRIX, "multiply")
            if addend is None or source is None or not _combine(addend, factor):
                return call
            if not (self.only_use(x) and self.only_use(y)):
                return self.shared(name, call)
            scaled = self.scaled(name, y, source, factor)
            return call if scaled is None else R.add(scaled, const(addend.astype(np.float64) * factor))
        if not self.only_use(x):
            return self.shared(name, call) if op_name(inner) in MATRIX else call
        scaled = self.scaled(name, x, inner, factor)
        # The product itself is that call now: it moves to the product's name.
        return call if scaled is None else self.calls.pop(scaled)

    def scaled(self, name: str, y: relax.Var, source: relax.Call, factor: Array) -> relax.Var | None:
        """y * factor with the product taken into `source`, which computes y; None where it cannot be."""
        if op_name(source) == "multiply":
            other = _float_constant(source.args[1])
            if other is None or not _combine(other, factor):
                return None
            return self.emit(
                R.multiply(source.args[0], const(other.astype(np.float64) * factor)), str(y.name), exact=True
            )
        vector = _per_channel(factor, shape_of(y))
        weight = _float_constant(source.args[1])
        if vector is None or weight is None:
            why = "the factor is not per channel" if vector is None else "the weight is not a float constant"
            explain(name, f"not folded into {y.name}: {why}")
            return None
        new = _scale_outputs(source, weight.astype(np.float64), vector)
        return self.emit(_with_weight(source, source.args[0], new), str(y.name), exact=True)

    def add(self, call: relax.Call) -> relax.Expr:
        addend = _float_constant(call.args[1])
        inner = self.call_of(call.args[0], "add")
        other = _float_constant(inner.args[1]) if inner is not None else None
        if addend is None or inner is None or other is None:
            return call
        if not _combine(addend, other) or not self.only_use(call.args[0]):
            return call
        return R.add(inner.args[0], const(addend.astype(np.float64) + other))

    def shared(self, name: str, call: relax.Call) -> relax.Expr:
        explain(name, f"not folded into {call.args[0].name}: other operators read that tensor too")
        return call

    # ---------------------------------------------------------------------- in front of a matrix operator
    def matrix(self, name: str, call: relax.Call) -> relax.Expr:
        weight = _float_constant(call.args[1])
        if weight is None or (op_name(call) == "matmul" and weight.ndim != 2):
            return call
        channels = shape_of(call.args[0])[-1]
        x, factor, shift = self.affine(call.args[0], channels)
        if x.same_as(call.args[0]):
            return call
        if not np.any(shift):
            return _with_weight(call, x, _scale_inputs(call, weight.astype(np.float64), factor))
        attributes = attributes_of(call)
        if op_name(call) == "nn.conv2d_transpose":
            explain(name, "the addition in front of it meets a different number of taps at every output")
            return call
        if any(attributes.get("padding", ())):
            explain(name, "the addition in front of it cannot be folded: the padding around it is zero, not shifted")
            return call
        wide = weight.astype(np.float64)
        bias = _summed(call, wide, shift)
        result = self.emit(_with_weight(call, x, _scale_inputs(call, wide, factor)), f"{name}.folded")
        return R.add(result, const(bias))

    def affine(self, x: relax.Expr, channels: int) -> tuple[relax.Expr, Array, Array]:
        """(y, factor, shift) with x = y * factor + shift per channel, taken from up to two steps in front of x."""
        inner = self.call_of(x, "reshape")
        if inner is not None and self.only_use(x) and shape_of(inner.args[0])[-1:] == (channels,):
            y, factor, shift = self.affine(inner.args[0], channels)
            if y.same_as(inner.args[0]):
                return x, factor, shift
            return self.emit(R.reshape(y, shape_of(x)), f"{y.name}.reshaped"), factor, shift
        factor, shift = np.ones(channels), np.zeros(channels)
        for op in ("add", "multiply"):
            step = self.call_of(x, op)
            value = _float_constant(step.args[1]) if step is not None else None
            vector = _per_channel(value, shape_of(x)) if value is not None else None
            # The tensor may not be larger than its operand: a broadcast is work of its own.
            if step is None or vector is None or shape_of(step.args[0]) != shape_of(x) or not self.only_use(x):
                continue
            x = step.args[0]
            if op == "add":
                shift = vector
            else:
                factor = vector
        return x, factor, shift


def _float_constant(expr: relax.Expr) -> Array | None:
    value = constant_value(expr)
    return value if value is not None and value.dtype == np.float32 else None


def _per_channel(value: Array, shape: tuple[int, ...]) -> Array | None:
    """A constant operand of a tensor of this shape that varies along the last axis only, as a float64 vector."""
    varies = value.size != 1 and (value.shape[-1:] != shape[-1:] or value.size != shape[-1])
    if varies or value.ndim > len(shape):
        return None
    return np.broadcast_to(value.reshape(-1).astype(np.float64), shape[-1:])


def _combine(a: Array, b: Array) -> bool:
    """Whether two constants merge into one no larger than the larger."""
    try:
        return bool(np.prod(np.broadcast_shapes(a.shape, b.shape), dtype=np.int64) <= max(a.size, b.size))
    except ValueError:
        return False


def _scale_outputs(call: relax.Call, weight: Array, factor: Array) -> Array:
    if op_name(call) == "nn.conv2d":  # OHWI
        return weight * factor[:, None, None, None]
    if op_name(call) == "matmul":
        return weight * factor
    groups = attributes_of(call)["groups"]  # IOHW, O within a group
    split = weight.reshape(groups, -1, *weight.shape[1:])
    return (split * factor.reshape(groups, 1, -1, 1, 1)).reshape(weight.shape)


def _scale_inputs(call: relax.Call, weight: Array, factor: Array) -> Array:
    if op_name(call) == "nn.conv2d":
        groups = attributes_of(call)["groups"]
        split = weight.reshape(groups, -1, *weight.shape[1:])
        return (split * factor.reshape(groups, 1, 1, 1, -1)).reshape(weight.shape)
    if op_name(call) == "matmul":
        return weight * factor[:, None]
    return weight * factor[:, None, None, None]


def _summed(call: relax.Call, weight: Array, shift: Array) -> Array:
    """What a constant input `shift` per channel adds to every output: float64 [O]."""
    if op_name(call) == "matmul":
        return shift @ weight
    return _scale_inputs(call, weight, shift).sum(axis=(1, 2, 3))


def _with_weight(call: relax.Call, x: relax.Expr, weight: Array) -> relax.Call:
    return relax.Call(call.op, [x, const(weight)], call.attrs, call.ty_args)
