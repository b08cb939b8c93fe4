"""SiLU, GELU and layer normalisation recognised where an exporter has spelled them out in elementary operators.

Needs `canonicalize`: constants on the right, divisions by constants as products.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import tvm
from tvm import relax
from tvm.relax import op as R

from qcompiler.passes.base import Pass
from qcompiler.passes.graph import attributes_of
from qcompiler.passes.rewrite import Rewriter, const, constant_value, op_name, shape_of


@dataclass(frozen=True)
class Recognize(Pass):
    def run(self, module: tvm.IRModule) -> tvm.IRModule:
        return _Recognize(module).run()


class _Recognize(Rewriter):
    def rewrite(self, name: str, call: relax.Call) -> relax.Expr:
        for recognise in (self.silu, self.gelu, self.layer_norm):
            whole = recognise(call)
            if whole is not None:  # a Relax call has no truth value
                return whole
        return call

    def silu(self, call: relax.Call) -> relax.Expr | None:
        """x * sigmoid(x)."""
        if op_name(call) != "multiply":
            return None
        for x, gate in (call.args, list(call.args)[::-1]):
            sigmoid = self.call_of(gate, "sigmoid")
            if sigmoid is not None and sigmoid.args[0].same_as(x):
                return R.nn.silu(x)
        return None

    def gelu(self, call: relax.Call) -> relax.Expr | None:
        """x * (1 + erf(x / sqrt 2)) * 0.5, the factors in any order."""
        if op_name(call) != "multiply":
            return None
        factors, scale = self.factors(call)
        if len(factors) != 2:
            return None
        for x, gate in (factors, factors[::-1]):
            total = self.call_of(gate, "add")
            erf = self.call_of(total.args[0], "erf") if total is not None else None
            inner = self.call_of(erf.args[0], "multiply") if erf is not None else None
            if total is None or inner is None or not inner.args[0].same_as(x):
                continue
            one, root = _scalar(total.args[1]), _scalar(inner.args[1])
            # Up to the rounding of the constants in the file.
            if one and root and np.allclose([scale, one, root], [0.5, 1, math.sqrt(0.5)], rtol=1e-3):
                return R.nn.gelu(x)
        return None

    def factors(self, call: relax.Call) -> tuple[list[relax.Expr], float]:
        """A product of products as its variable factors and the product of its scalars."""
        found: list[relax.Expr] = []
        scale = 1.0
        pending = list(call.args)
        while pending:
            factor = pending.pop()
            inner = self.call_of(factor, "multiply")
            value = _scalar(factor)
            if value is not None:
                scale *= value
            elif inner is not None and self.only_use(factor):
                pending += list(inner.args)
            else:
                found.append(factor)
        return found, scale

    def layer_norm(self, call: relax.Call) -> relax.Expr | None:
        """(x - mean) / sqrt(mean (x - mean)^2 + epsilon) * gain + bias over the last axis."""
        if op_name(call) != "add":
            return None
        bias = constant_value(call.args[1])
        scaled = self.call_of(call.args[0], "multiply")
        gain = constant_value(scaled.args[1]) if scaled is not None else None
        normal = self.call_of(scaled.args[0], "divide") if scaled is not None else None
        if bias is None or gain is None or normal is None:
            return None
        centred, deviation = normal.args
        root = self.call_of(deviation, "sqrt")
        stable = self.call_of(root.args[0], "add") if root is not None else None
        epsilon = _scalar(stable.args[1]) if stable is not None else None
        variance = self.call_of(stable.args[0], "mean") if stable is not None else None
        square = self.call_of(variance.args[0], "square", "multiply") if variance is not None else None
        difference = self.call_of(centred, "subtract")
        mean = self.call_of(difference.args[1], "mean") if difference is not None else None
        if epsilon is None or variance is None or square is None or difference is None or mean is None:
            return None
        x = difference.args[0]
        rank = len(shape_of(x))
        same = mean.args[0].same_as(x) and all(a.same_as(centred) for a in square.args)
        over_last = all(
            [int(i) % rank for i in attributes_of(m).get("axis", ())] == [rank - 1] and attributes_of(m)["keepdims"]
            for m in (mean, variance)
        )
        vectors = gain.shape == bias.shape == (shape_of(x)[-1],)
        if not (same and over_last and vectors):
            return None
        return R.nn.layer_norm(x, const(gain), const(bias), axes=[-1], epsilon=epsilon)


def _scalar(expr: relax.Expr) -> float | None:
    value = constant_value(expr)
    return float(value.reshape(())) if value is not None and value.size == 1 else None
