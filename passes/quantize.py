"""Insert quantize and dequantize: every tensor that `fuse.analyse` calls int8 is rounded to its calibrated parameters.

The result is a QDQ module: activations pass through ``quantize → dequantize``, weights are dequantised int8
constants, biases dequantised int32 constants. It means the same to TVM, to ONNX (`export_onnx`) and to `integerize`.

A tensor of fewer than 8 bits (`Calibration.narrow`) passes through ``clip → quantize → dequantize``: the clip has the
ends of the narrow integers, and becomes the clamp of the integer operation that computes the tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import tvm
from tvm import relax

from qcompiler.passes.base import Pass, explain
from qcompiler.passes.fuse import MATRIX, Fusion, analyse, epilogue, has_weight, is_bias, is_factor, is_lane_constant
from qcompiler.passes.graph import Array, Graph, Node, numpy_of, read
from qcompiler.passes.moments import weight_rows
from qcompiler.passes.operands import on_array, port_bits
from qcompiler.passes.ranges import Calibration, Parameters, keeps_quantisation, parameters
from qcompiler.passes.region import CLIPPED
from qcompiler.passes.rewrite import Rewriter, const
from qcompiler.passes.weight_rounding import mean_shift, round_rows
from qcompiler.sim.errors import CalibrationError
from qcompiler.sim.numerics import WEIGHT_MAX, quantize_linear
from qcompiler.sim.widths import interval

BIAS_LIMIT = 1 << 30
"""A bias is kept within half of int32, so that it cannot overflow the accumulator alone."""
FAINT = 2.0**-24
"""Weights of a channel this far below the largest channel's cannot move an int8 output that both share."""


@dataclass(frozen=True)
class Quantize(Pass):
    """ranges: tensor name to (scale, zero point) from `calibrate`; none: the module stays a float program.

    A `Calibration` also says for which widths of an array it is.

    per_channel: one weight scale per output channel (otherwise one per tensor).
    correct_means: with the channel means of a `Calibration`, take the mean error of rounded weights out of the biases.
    Raises CalibrationError when the ranges do not cover the tensors of this module.
    """

    ranges: Mapping[str, Parameters] | None = None
    per_channel: bool = True
    correct_means: bool = True

    def run(self, module: tvm.IRModule) -> tvm.IRModule:
        if self.ranges is None:
            return module
        graph = read(module)
        fusion = analyse(graph)
        missing = [name for name in fusion.quantised if name not in self.ranges]
        if missing:
            raise CalibrationError(
                f"no range is known for tensor {missing[0]!r} and {len(missing) - 1} others; calibrate this very module"
            )
        for name, reason in fusion.reasons.items():
            explain(name, f"stays float: {reason}")
        known = self.ranges if isinstance(self.ranges, Calibration) else Calibration(self.ranges, {})
        return _Inserter(module, _Plan(graph, fusion, known, self.per_channel, self.correct_means)).run()


@dataclass(frozen=True)
class ConstantParameters:
    """How a constant is quantised: values = round(real / scale) + zero_point along `axis`."""

    values: Array
    scale: npt.NDArray[np.float32]
    zero_point: int
    axis: int


@dataclass
class _Plan:
    """Which constants of which node become quantised constants."""

    graph: Graph
    fusion: Fusion
    ranges: Calibration
    per_channel: bool
    correct_means: bool
    constants: dict[str, ConstantParameters] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for node in self.graph.nodes:
            if node.name in self.fusion.reasons:
                continue
            if node.op in MATRIX and has_weight(self.graph, node):
                self._weight(node)
            elif node.op in ("add", "subtract", "multiply", "matmul", "take"):
                self._operand(node)

    def _weight(self, node: Node) -> None:
        """Weight and bias of a convolution or matmul."""
        graph = self.graph
        weight = graph.constants[node.inputs[1]]
        axis = 0 if node.op == "nn.conv2d" else 1
        x_scale = self.ranges[node.inputs[0]][0]
        bias_name, factor, bias = None, 1.0, np.zeros(weight.shape[axis])
        for reader in epilogue(graph, node):
            if is_factor(graph, node, reader) and bias_name is None:
                value = next(v for v in map(graph.scalar, reader.inputs) if v is not None)
                factor *= value if reader.op == "multiply" else 1.0 / value
            elif is_bias(graph, node, reader):
                bias_name = next(n for n in reader.inputs if n in graph.constants)
                bias = np.broadcast_to(graph.constants[bias_name].reshape(-1), bias.shape).astype(np.float64)
        narrow = on_array(graph, node) and self.ranges.widths.weight_bits < 8
        limit = self.ranges.widths.weight_max if narrow else WEIGHT_MAX
        scale = weight_scale(weight, axis, bias / factor, x_scale, self.per_channel, limit)
        if narrow:
            corrected = self.correct_means and bias_name is not None
            values, scale = self._narrow(node, weight, scale, bias / (factor * x_scale), limit, corrected)
        else:
            values = np.clip(np.rint(weight / _along(scale, axis, weight.ndim)), -limit, limit).astype(np.int8)
        self.constants[node.inputs[1]] = ConstantParameters(values, scale, 0, axis)
        if bias_name is not None:
            if self.correct_means:
                bias = bias - factor * self._shift(node, weight, values * _along(scale, axis, weight.ndim))
            bias_scale = (scale.astype(np.float64) * x_scale * factor).astype(np.float32)
            quantised = np.rint(bias / bias_scale.astype(np.float64)).astype(np.int32)
            self.constants[bias_name] = ConstantParameters(quantised, bias_scale, 0, 0)

    def _narrow(
        self, node: Node, weight: Array, scale: npt.NDArray[np.float32], bias: npt.NDArray[np.float64], limit: int,
        centred: bool,
    ) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:  # fmt: skip
        """Integers in the weight's shape and scales [O]; bias: [O], in steps of the input. See `round_rows`."""
        rows, moments = weight_rows(node, weight).astype(np.float64), self.ranges.moments.get(node.name)
        least = np.maximum(np.abs(bias) / BIAS_LIMIT, float(np.abs(rows).max(initial=0.0)) * FAINT / limit)
        groups = int(node.attributes["groups"]) if node.op == "nn.conv2d" else 1
        covariance = moments.covariance(centred) if moments is not None and moments.count else [None] * groups
        parts = [
            round_rows(*part, limit, not self.per_channel)
            for part in zip(
                np.split(rows, groups), covariance, np.split(scale.astype(np.float64), groups),
                np.split(least, groups), strict=True,
            )
        ]  # fmt: skip
        scales = np.concatenate([s for _, s in parts]).astype(np.float32)
        integers = np.concatenate([q for q, _ in parts]).astype(np.int8)
        values = integers.reshape(weight.shape) if node.op == "nn.conv2d" else integers.T
        return np.ascontiguousarray(values), scales

    def _shift(self, node: Node, weight: Array, rounded: Array) -> npt.NDArray[np.float64]:
        """What rounding does to the mean of each output channel [O], the bias apart."""
        moments, means = self.ranges.moments.get(node.name), self.ranges.means.get(node.inputs[0])
        if moments is not None and moments.count:
            now, then = (
                np.einsum("gok,gk->go", weight_rows(node, w).reshape(len(m), -1, m.shape[1]).astype(np.float64), m)
                for w, m in ((rounded, moments.mean), (weight, moments.real_mean))
            )
            return np.asarray((now - then).reshape(-1))
        if means is None:
            return np.zeros(weight.shape[0 if node.op == "nn.conv2d" else 1])
        return mean_shift(self.graph, node, rounded - weight, means)

    def _operand(self, node: Node) -> None:
        """A constant tensor that takes part in integer arithmetic with another tensor: asymmetric, per tensor."""
        for name in node.inputs:
            value = self.graph.constants.get(name)
            if value is None or value.dtype != np.float32 or not self.graph.tensor_inputs(node):
                continue
            if name in self.constants or (node.op != "matmul" and is_lane_constant(self.graph, name)):
                continue
            if node.op == "take":
                scale, zero = self.ranges[node.name]
                bits = self.ranges.narrow.get(node.name, 8)
            else:
                bits = port_bits(self.graph, node, name, self.ranges.widths) if node.op == "matmul" else 8
                low, high = min(float(value.min()), 0.0), max(float(value.max()), 0.0)
                scale, zero = parameters(low, high if high > low else 1.0, bits)
            quantised = np.clip(quantize_linear(value, np.float32(scale), zero), *interval(bits))
            self.constants[name] = ConstantParameters(quantised, np.array(scale, np.float32), zero, 0)


def weight_scale(
    weight: Array, axis: int, bias: npt.NDArray[np.float64], x_scale: float, per_channel: bool = True,
    limit: int = WEIGHT_MAX,
) -> npt.NDArray[np.float32]:  # fmt: skip
    """Symmetric weight scales [O]: the largest magnitude of each channel maps to `limit`.

    A scale grows where the bias would not fit the accumulator otherwise; a channel of zeros (or of weights too
    faint to move any output) takes the scale at which its bias has 20 bits.
    """
    others = tuple(i for i in range(weight.ndim) if i != axis)
    largest = np.abs(weight).max(axis=others).astype(np.float64) if weight.size else np.zeros(weight.shape[axis])
    overall = float(largest.max(initial=0.0))
    if not per_channel:
        largest = np.full_like(largest, overall)
    faint = largest <= overall * FAINT
    from_bias = np.where(bias == 0, 1.0, np.abs(bias) / (x_scale * (1 << 20)))
    scale = np.where(faint, from_bias, largest / limit)
    scale = np.maximum(scale, (overall or 1.0) * FAINT / limit)
    scale = np.maximum(scale, np.abs(bias) / (x_scale * BIAS_LIMIT))
    return np.asarray(scale, dtype=np.float32)


def _along(scale: npt.NDArray[np.float32], axis: int, rank: int) -> npt.NDArray[np.float32]:
    """Scales [O] in a shape that multiplies a weight of that rank along `axis`."""
    return scale.reshape([-1 if i == axis else 1 for i in range(rank)])


class _Inserter(Rewriter):
    def __init__(self, module: tvm.IRModule, plan: _Plan) -> None:
        super().__init__(module)
        self.plan = plan
        # Constants by the node and the argument position that read them, as the graph names them.
        self.nodes = {n.name: n for n in plan.graph.nodes}
        for param in module["main"].params:
            self.new[param] = self._rounded(param, str(param.name))

    def _rounded(self, value: relax.Expr, name: str) -> relax.Expr:
        """`value` rounded to the int8 parameters of `name`, if it has any."""
        if name not in self.plan.fusion.quantised:
            return value
        bits = self.plan.ranges.narrow.get(name, 8)
        if bits < 8 and not self._repeats(name):
            if isinstance(value, relax.Var) and name in self.plan.graph.inputs:
                # A model's input becomes int8 as it comes; a table cuts off what the narrow integers do not hold.
                value = self._quantised(value, name)
            low, high = self._ends(name, bits)
            value = self.emit(relax.op.clip(value, low, high), f"{name}{CLIPPED}")
        return self._quantised(value, name)

    def _quantised(self, value: relax.Expr, name: str) -> relax.Expr:
        scale, zero = self.plan.ranges[name]
        arguments = const(np.float32(scale)), const(np.int8(zero))
        quantised = self.emit(relax.op.quantize(value, *arguments, out_dtype="int8"), f"{name}.quantized")
        return self.emit(relax.op.dequantize(quantised, *arguments), f"{name}.dequantized")

    def _joined(self, parts: relax.Tuple, name: str) -> relax.Tuple:
        """The parts of a concatenation, the constants within what `name` can hold."""
        bits = self.plan.ranges.narrow.get(name, 8)
        if bits == 8 or all(isinstance(part, relax.Var) for part in parts.fields):
            return parts
        ends = self._ends(name, bits)
        return relax.Tuple(
            [p if isinstance(p, relax.Var) else const(np.clip(numpy_of(p), *ends)) for p in parts.fields]
        )

    def _repeats(self, name: str) -> bool:
        """Whether the tensor only repeats values of tensors that are as narrow."""
        node, graph = self.nodes.get(name), self.plan.graph
        return node is not None and name not in self.plan.fusion.reasons and keeps_quantisation(graph, node)

    def _ends(self, name: str, bits: int) -> tuple[float, float]:
        """The real values of the least and the greatest integer."""
        scale, zero = self.plan.ranges[name]
        low, high = (float(np.float32((q - zero) * scale)) for q in interval(bits))
        return low, high

    def _constant(self, name: str) -> relax.Expr:
        chosen = self.plan.constants[name]
        zero = np.full(chosen.scale.shape, chosen.zero_point, np.int8)
        call = relax.op.dequantize(const(chosen.values), const(chosen.scale), const(zero), axis=chosen.axis)
        return self.emit(call, f"{name}.dequantized")

    def rewrite(self, name: str, call: relax.Call) -> relax.Expr:
        node = self.nodes.get(name)
        if node is None:
            return call
        names = iter(node.inputs)
        args = []
        for arg in call.args:  # tuples hold tensors, and constants that are joined to them
            if isinstance(arg, relax.Tuple) and all(
                isinstance(f, (relax.Var, tvm.ir.GenericConst)) for f in arg.fields
            ):
                for _ in arg.fields:
                    next(names)
                args.append(self._joined(arg, name))
            elif isinstance(arg, relax.Var) or isinstance(arg, tvm.ir.GenericConst):
                tensor = next(names)
                args.append(self._constant(tensor) if tensor in self.plan.constants else arg)
            else:
                args.append(arg)
        result = self.emit(relax.Call(call.op, args, call.attrs, call.ty_args), name, exact=True)
        return self._rounded(result, name)
