"""Random integer programs, one call an operation, with scales that keep the values spread over int8."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from qcompiler.sim import numerics
from qcompiler.sim.integer_program import (
    Add,
    AveragePool2d,
    Concat,
    Conv2d,
    Dense,
    Gather,
    IntegerProgram,
    LayerNorm,
    MatMul,
    MaxPool2d,
    Mean,
    Mul,
    Operation,
    Requantize,
    Reshape,
    ResizeLinear,
    Softmax,
    Table,
    Tensor,
    Transpose,
    check,
)  # fmt: skip


class Builder:
    """Grows a program; methods take and return tensor names. Everything random comes from `seed`."""

    def __init__(self, seed: int = 0, rounding: str = "exact_half_up") -> None:
        self.rng = np.random.default_rng(seed)
        self.rounding = rounding
        self.tensors: dict[str, Tensor] = {}
        self.operations: list[Operation] = []
        self.inputs: list[str] = []
        self.constants: dict[str, Any] = {}

    def tensor(self, shape: Sequence[int], like: str | None = None, scale: float | None = None,
               zero: int | None = None) -> str:  # fmt: skip
        name = f"t{len(self.tensors)}"
        if like is not None:
            scale, zero = self.tensors[like].scale, self.tensors[like].zero_point
        if scale is None:
            scale = float(np.float32(self.rng.uniform(0.01, 0.1)))
        if zero is None:
            zero = int(self.rng.integers(-40, 41))
        self.tensors[name] = Tensor(name, tuple(int(d) for d in shape), "int8", scale, zero)
        return name

    def input(self, shape: Sequence[int]) -> str:
        name = self.tensor(shape)
        self.inputs.append(name)
        return name

    def constant(self, shape: Sequence[int]) -> str:
        name = self.tensor(shape)
        self.constants[name] = self.rng.integers(-128, 128, tuple(shape)).astype(np.int8)
        return name

    def shape(self, name: str) -> tuple[int, ...]:
        return self.tensors[name].shape

    def add_op(self, kind: type, inputs: Sequence[str], like: str | None = None, scale: float | None = None,
               zero: int | None = None, **fields: Any) -> str:  # fmt: skip
        """Append `kind`; a field `requantize` given as (scales, low, high) is made for the output."""
        probe = kind(
            f"op{len(self.operations)}",
            tuple(inputs),
            "?",
            **{k: (None if k == "requantize" else v) for k, v in fields.items()},
        )
        out = self.tensor(probe.infer_shape([self.shape(n) for n in inputs]), like=like, scale=scale, zero=zero)
        if "requantize" in fields:
            scales, low, high = fields["requantize"]
            dtype = np.float64 if self.rounding.startswith("q31") else np.float32
            fields["requantize"] = Requantize(
                np.asarray(scales, dtype=dtype), self.tensors[out].zero_point, low, high, self.rounding
            )
        self.operations.append(kind(probe.name, tuple(inputs), out, **fields))
        return out

    def clamp(self) -> tuple[int, int]:
        return (-128, 127) if self.rng.random() < 0.5 else (int(self.rng.integers(-128, -20)), 127)

    def conv(self, x: str, channels: int, kernel: Any = 3, stride: Any = 1, padding: Any = None, dilation: Any = 1,
             groups: int = 1) -> str:  # fmt: skip
        pair = lambda v: (v, v) if isinstance(v, int) else tuple(v)  # noqa: E731
        kernel, stride, dilation = pair(kernel), pair(stride), pair(dilation)
        if padding is None:
            extents = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
            padding = ((extents[0] - 1) // 2, (extents[1] - 1) // 2, extents[0] // 2, extents[1] // 2)
        per_group = self.shape(x)[3] // groups
        weight = self.rng.integers(-127, 128, (channels, *kernel, per_group)).astype(np.int8)
        bias = self.rng.integers(-3000, 3000, channels).astype(np.int32)
        spread = 73 * 73 * math.sqrt(math.prod(weight.shape[1:]))
        scales = self.rng.uniform(20, 60, channels) / spread
        return self.add_op(Conv2d, [x], weight=weight, bias=bias, requantize=(scales, *self.clamp()), stride=stride,
                           dilation=dilation, padding=tuple(padding), groups=groups)  # fmt: skip

    def depthwise(self, x: str, kernel: Any = 3, stride: Any = 1, **options: Any) -> str:
        channels = self.shape(x)[3]
        return self.conv(x, channels, kernel, stride, groups=channels, **options)

    def dense(self, x: str, units: int) -> str:
        k = self.shape(x)[-1]
        weight = self.rng.integers(-127, 128, (units, k)).astype(np.int8)
        bias = self.rng.integers(-3000, 3000, units).astype(np.int32)
        scales = self.rng.uniform(20, 60, units) / (73 * 73 * math.sqrt(k))
        return self.add_op(Dense, [x], weight=weight, bias=bias, requantize=(scales, *self.clamp()))

    def matmul(self, a: str, b: str, transpose_b: bool = False) -> str:
        scale = 40 / (74 * 74 * math.sqrt(self.shape(a)[-1]))
        return self.add_op(MatMul, [a, b], requantize=([scale], -128, 127), transpose_b=transpose_b)

    def add(self, a: str, b: str, sign: int = 1) -> str:
        ta, tb = self.tensors[a], self.tensors[b]
        scale, zero = 1.5 * max(ta.scale, tb.scale), int(self.rng.integers(-20, 20))
        scale = float(np.float32(scale))
        ma, mb, bias, shift = numerics.add_multipliers(
            ta.scale, ta.zero_point, tb.scale, tb.zero_point, scale, zero, sign
        )
        low, high = self.clamp()
        return self.add_op(Add, [a, b], scale=scale, zero=zero, multiplier_a=ma, multiplier_b=mb, bias=bias,
                           shift=shift, minimum=low, maximum=high)  # fmt: skip

    def mul(self, a: str, b: str) -> str:
        return self.add_op(Mul, [a, b], requantize=([0.012], -128, 127))

    def table(self, x: str, per_channel: bool = False) -> str:
        shape = (self.shape(x)[-1], 256) if per_channel else (256,)
        return self.add_op(Table, [x], table=self.rng.integers(-128, 128, shape).astype(np.int8), function="random")

    def max_pool(self, x: str, kernel: Any = (2, 2), stride: Any = (2, 2), padding: Any = (0, 0, 0, 0),
                 dilation: Any = (1, 1)) -> str:  # fmt: skip
        return self.add_op(MaxPool2d, [x], like=x, kernel=kernel, stride=stride, padding=padding, dilation=dilation)

    def average_pool(self, x: str, kernel: Any = (3, 3), stride: Any = (2, 2), padding: Any = (1, 1, 1, 1),
                     include_pad: bool = False, excess: Any = (0, 0)) -> str:  # fmt: skip
        taps = kernel[0] * kernel[1]
        scales = 1.3 / np.arange(1, taps + 1)
        return self.add_op(
            AveragePool2d, [x], kernel=kernel, stride=stride, padding=padding, requantize=(scales, -128, 127),
            count_include_pad=include_pad, padding_excess=excess,
        )  # fmt: skip

    def mean(self, x: str, axes: Sequence[int] = (1, 2), keepdims: bool = False) -> str:
        count = math.prod(self.shape(x)[a] for a in axes)
        return self.add_op(Mean, [x], axes=tuple(axes), keepdims=keepdims, requantize=([3.0 / count], -128, 127))

    def softmax(self, x: str) -> str:
        factors = numerics.softmax_factors(self.tensors[x].scale)
        return self.add_op(Softmax, [x], scale=1 / 256, zero=-128, factors=factors)

    def layer_norm(self, x: str) -> str:
        k = self.shape(x)[-1]
        gamma, beta = self.rng.uniform(0.5, 1.5, k), self.rng.uniform(-1, 1, k)
        gain, bias, shift = numerics.layer_norm_constants(gamma, beta, k, 0.03, 5)
        epsilon = numerics.layer_norm_epsilon(1e-5, self.tensors[x].scale, k)
        return self.add_op(
            LayerNorm, [x], scale=float(np.float32(0.03)), zero=5, gain=gain, bias=bias, shift=shift, epsilon=epsilon
        )

    def gather(self, x: str, *indices: Any, fill: int = 0) -> str:
        vectors = tuple(None if v is None else np.asarray(v, dtype=np.int64) for v in indices)
        return self.add_op(Gather, [x], like=x, indices=vectors, fill=fill)

    def concat(self, parts: Sequence[str], axis: int = -1) -> str:
        axis %= len(self.shape(parts[0]))
        return self.add_op(Concat, parts, like=parts[0], axis=axis)

    def transpose(self, x: str, permutation: Sequence[int]) -> str:
        return self.add_op(Transpose, [x], like=x, permutation=tuple(permutation))

    def reshape(self, x: str, shape: Sequence[int]) -> str:
        return self.add_op(Reshape, [x], like=x, shape=tuple(shape))

    def resize(self, x: str, height: int, width: int) -> str:
        _, h, w, _ = self.shape(x)
        low_h, low_w = self.rng.integers(0, h, height), self.rng.integers(0, w, width)
        high_h, high_w = np.minimum(low_h + 1, h - 1), np.minimum(low_w + 1, w - 1)
        weights = [self.rng.integers(0, 257, n) for n in (height, width)]
        return self.add_op(ResizeLinear, [x], low_h=low_h, high_h=high_h, weight_h=weights[0], low_w=low_w,
                           high_w=high_w, weight_w=weights[1], requantize=([1.1 / 65536], -128, 127))  # fmt: skip

    def build(self, *outputs: str) -> IntegerProgram:
        return check(
            IntegerProgram("random", tuple(self.inputs), outputs, self.tensors, tuple(self.operations), self.constants)
        )

    def feed(self) -> dict[str, np.ndarray]:
        """Random values for the inputs."""
        return {n: self.rng.integers(-128, 128, self.shape(n)).astype(np.int8) for n in self.inputs}
