"""A transposed convolution as one dense convolution and a depth-to-space shuffle.

With stride s, output row s*q + r only meets kernel rows r, r + s, r + 2s, …: s interleaved convolutions with
ceil(k/s) rows each, over the same input. So one convolution computes O*s*s channels at the input's resolution,
and a reshape, a transpose and a reshape interleave them; a slice crops. No multiplication by an inserted zero is
left, and every target needs only its ordinary convolution. Needs `layout` (NHWC, kernel IOHW). What is
element-wise directly behind, the bias and an activation, stays directly behind the new convolution.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import tvm
from tvm import relax
from tvm.relax import op as R

from qcompiler.passes.base import Pass, explain
from qcompiler.passes.graph import attributes_of
from qcompiler.passes.layout import ELEMENTWISE
from qcompiler.passes.rewrite import Array, Rewriter, const, constant_value, op_name, shape_of, shuffled


@dataclass(frozen=True)
class DecomposeConvTranspose(Pass):
    def run(self, module: tvm.IRModule) -> tvm.IRModule:
        return _Decompose(module).run()


@dataclass(frozen=True)
class _Axis:
    """One spatial axis: `taps` rows a phase; the convolution's padding; what to keep of the shuffled result."""

    stride: int
    taps: int
    padding: tuple[int, int]
    crop: range

    @staticmethod
    def of(size: int, kernel: int, stride: int, dilation: int, before: int, out: int) -> _Axis:
        extent = (kernel - 1) * dilation + 1
        taps = math.ceil(extent / stride)
        # Shuffled row p holds output row p - before + stride * skipped; leading rows that are cropped are not computed.
        skipped = min(before // stride, taps - 1)
        start = before - stride * skipped
        rows = math.ceil((start + out) / stride)
        front = taps - 1 - skipped
        back = max(rows - (size + front - taps + 1), 0)
        return _Axis(stride, taps, (front, back), range(start, start + out))


@dataclass(frozen=True)
class _Plan:
    """A transposed convolution and the element-wise steps behind it that run before the shuffle."""

    call: relax.Call
    steps: tuple[relax.Call, ...] = ()


class _Decompose(Rewriter):
    def __init__(self, module: tvm.IRModule) -> None:
        super().__init__(module)
        self.plans: dict[relax.Var, _Plan] = {}

    def rewrite(self, name: str, call: relax.Call) -> relax.Expr:
        if op_name(call) == "nn.conv2d_transpose":
            return self.decomposed(name, _Plan(call))
        plan = self.plans.get(call.args[0]) if isinstance(call.args[0], relax.Var) else None
        if plan is not None and self.only_use(call.args[0]) and _is_step(call):
            return self.decomposed(name, _Plan(plan.call, (*plan.steps, call)))
        return call

    def decomposed(self, name: str, plan: _Plan) -> relax.Expr:
        call = plan.call
        x, a = call.args[0], attributes_of(call)
        source = self.call_of(call.args[1], "dequantize")
        weight = constant_value(source.args[0] if source is not None else call.args[1])
        if weight is None:
            explain(name, "its weight is not a constant")
            return call
        n, height, width, _ = shape_of(x)
        groups = a["groups"]
        channels = weight.shape[1]
        _, out_h, out_w, _ = self.output_shape(call)
        h = _Axis.of(height, weight.shape[2], a["strides"][0], a["dilation"][0], a["padding"][0], out_h)
        w = _Axis.of(width, weight.shape[3], a["strides"][1], a["dilation"][1], a["padding"][1], out_w)
        zero = constant_value(source.args[2]) if source is not None else None
        if zero is not None and zero.size > 1 and len(set(zero.tolist())) > 1:
            explain(name, "its weight has more than one zero point")
            return call
        fill = 0 if zero is None else int(zero.reshape(-1)[0])
        dense = phases(weight, groups, (h.stride, w.stride), a["dilation"], fill)
        kernel: relax.Expr = const(dense)
        if source is not None:
            kernel = self.quantized_kernel(name, source, dense, groups, h.stride * w.stride)
        padding = [h.padding[0], w.padding[0], h.padding[1], w.padding[1]]
        result: relax.Expr = self.emit(
            R.nn.conv2d(x, kernel, padding=padding, groups=groups, data_layout="NHWC", kernel_layout="OHWI"),
            f"{name}.conv",
        )
        for i, step in enumerate(plan.steps):
            args = [result, *(_for_phases(v, groups, h.stride * w.stride, channels) for v in list(step.args)[1:])]
            result = self.emit(relax.Call(step.op, args, step.attrs, step.ty_args), f"{name}.step{i}")
        _, rows, columns, _ = shape_of(result)
        # [N, H, W, (group, phase h, phase w, channel)] to [N, (H, phase h), (W, phase w), (group, channel)]
        split = (n, rows, columns, groups, h.stride, w.stride, channels)
        shape = (n, rows * h.stride, columns * w.stride, groups * channels)
        image = shuffled(self, result, split, (0, 1, 4, 2, 5, 3, 6), shape, name)
        if (len(h.crop), len(w.crop)) != shape[1:3]:
            image = R.strided_slice(
                self.emit(image, f"{name}.uncropped"), axes=[1, 2], begin=[h.crop.start, w.crop.start],
                end=[h.crop.stop, w.crop.stop], strides=[1, 1],
            )  # fmt: skip
        var = self.emit(image, name, exact=True)
        self.plans[var] = plan
        return var

    def output_shape(self, call: relax.Call) -> tuple[int, ...]:
        return shape_of(self._infer.normalize(call))

    def quantized_kernel(
        self, name: str, source: relax.Call, dense: Array, groups: int, phase_count: int
    ) -> relax.Expr:
        """The int8 kernel's dequantize, with its per-channel scales repeated for every phase."""
        scale, zero = constant_value(source.args[1]), constant_value(source.args[2])
        assert scale is not None and zero is not None
        if scale.size == 1:
            return self.emit(R.dequantize(const(dense), source.args[1], source.args[2]), f"{name}.weight")
        # Scales belong to the axis O of IOHW, which counts within a group.
        repeated = np.tile(scale, groups * phase_count)
        zeros = np.tile(np.broadcast_to(zero.reshape(-1), scale.shape), groups * phase_count)
        return self.emit(R.dequantize(const(dense), const(repeated), const(zeros), axis=0), f"{name}.weight")


def _is_step(call: relax.Call) -> bool:
    """An element-wise operator of one tensor, with scalars or, for a bias, one constant vector over the channels."""
    op = op_name(call)
    if op not in ELEMENTWISE or op == "nn.prelu":
        return False
    for arg in list(call.args)[1:]:
        value = constant_value(arg)
        if isinstance(arg, relax.Var) or (value is not None and value.size > 1 and (op != "add" or value.ndim != 1)):
            return False
    return True


def _for_phases(value: relax.Expr, groups: int, phase_count: int, channels: int) -> relax.Expr:
    """A vector over the channels repeated for every phase; anything else as it is."""
    vector = constant_value(value)
    if vector is None or vector.size == 1:
        return value
    return const(np.broadcast_to(vector.reshape(groups, 1, channels), (groups, phase_count, channels)).reshape(-1))


def phases(weight: Array, groups: int, stride: tuple[int, int], dilation: tuple[int, int], fill: int = 0) -> Array:
    """Kernel [I, O, KH, KW] of a transposed convolution to [groups*SH*SW*O, TH, TW, I/groups] of the dense one.

    Taps that no kernel row meets hold `fill`, the code of zero.
    """
    inputs, channels, kh, kw = weight.shape
    extents = [(k - 1) * d + 1 for k, d in zip((kh, kw), dilation, strict=True)]
    taps = [math.ceil(e / s) for e, s in zip(extents, stride, strict=True)]
    full = np.full((inputs, channels, taps[0] * stride[0], taps[1] * stride[1]), fill, dtype=weight.dtype)
    full[:, :, : extents[0] : dilation[0], : extents[1] : dilation[1]] = weight
    split = full.reshape(groups, inputs // groups, channels, taps[0], stride[0], taps[1], stride[1])
    split = split[:, :, :, ::-1, :, ::-1, :]  # a convolution slides the kernel the other way round
    ordered = split.transpose(0, 4, 6, 2, 3, 5, 1)  # group, phase h, phase w, O, tap h, tap w, I
    return np.ascontiguousarray(ordered.reshape(-1, taps[0], taps[1], inputs // groups))
