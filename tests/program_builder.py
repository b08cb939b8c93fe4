"""Integer programs by hand: each method adds one operation with seeded random constants and returns its output."""

from __future__ import annotations

from typing import Any

import numpy as np

from qcompiler.sim import integer_program as ip
from qcompiler.sim import numerics
from qcompiler.sim.integer_program import IntegerProgram, Requantize, Shape, Tensor

Pair = tuple[int, int]


def float32(value: float) -> float:
    return float(np.float32(value))


class ProgramBuilder:
    """Tensors are passed around as objects; `program(outputs)` checks and returns the result."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.tensors: dict[str, Tensor] = {}
        self.operations: list[ip.Operation] = []
        self.inputs: list[str] = []
        self.constants: dict[str, Any] = {}

    # -------------------------------------------------------------------------------------- plumbing
    def tensor(self, shape: Shape, dtype: str = "int8", like: Tensor | None = None) -> Tensor:
        name = f"t{len(self.tensors)}"
        scale = zero = None
        if dtype == "int8":
            scale, zero = float32(self.rng.uniform(0.01, 0.1)), int(self.rng.integers(-128, 128))
            if like is not None:
                scale, zero = like.scale, like.zero_point
        self.tensors[name] = Tensor(name, shape, dtype, scale, zero)
        return self.tensors[name]

    def input(self, shape: Shape, dtype: str = "int8", like: Tensor | None = None) -> Tensor:
        tensor = self.tensor(shape, dtype, like)
        self.inputs.append(tensor.name)
        return tensor

    def constant(self, value: Any) -> Tensor:
        tensor = self.tensor(value.shape, str(value.dtype))
        self.constants[tensor.name] = value
        return tensor

    def add_operation(self, kind: type[ip.Operation], ins: list[Tensor], out: Tensor, **fields: Any) -> Tensor:
        name = f"{kind.__name__.lower()}{len(self.operations)}"
        self.operations.append(kind(name=name, inputs=tuple(t.name for t in ins), output=out.name, **fields))
        return out

    def requantize(self, out: Tensor, scale: float, channels: int = 1, rounding: str = "exact_half_up") -> Requantize:
        """Scales around `scale`; now and then a narrower clamp."""
        dtype = np.float64 if rounding.startswith("q31") else np.float32
        scales = (scale * self.rng.uniform(0.3, 1.7, channels)).astype(dtype)
        low, high = (-128, 127) if self.rng.random() < 0.6 else (int(self.rng.integers(-128, 0)), 100)
        assert out.zero_point is not None
        return Requantize(scales, out.zero_point, low, high, rounding)  # type: ignore[arg-type]

    def program(self, outputs: list[Tensor]) -> IntegerProgram:
        return ip.check(
            IntegerProgram(
                "built", tuple(self.inputs), tuple(t.name for t in outputs), self.tensors, tuple(self.operations),
                self.constants,
            )
        )  # fmt: skip

    def random_inputs(self, program: IntegerProgram) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for name in program.inputs:
            t = program.tensors[name]
            if t.dtype == "float32":
                values[name] = (self.rng.standard_normal(t.shape) * 3).astype(np.float32)
            elif t.dtype == "bool":
                values[name] = self.rng.random(t.shape) < 0.5
            else:
                limits = {"int8": (-128, 128), "int32": (-9, 9), "int64": (-9, 9)}[t.dtype]
                values[name] = self.rng.integers(*limits, t.shape).astype(t.dtype)
        return values

    # ------------------------------------------------------------------------------------ operations
    def quantize(self, x: Tensor) -> Tensor:
        return self.add_operation(ip.Quantize, [x], self.tensor(x.shape))

    def dequantize(self, x: Tensor) -> Tensor:
        return self.add_operation(ip.Dequantize, [x], self.tensor(x.shape, "float32"))

    def conv(
        self, x: Tensor, channels: int, kernel: Pair = (1, 1), stride: Pair = (1, 1), dilation: Pair = (1, 1),
        padding: tuple[int, int, int, int] = (0, 0, 0, 0), groups: int = 1, rounding: str = "exact_half_up",
        like: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        weight = self.rng.integers(-127, 128, (channels, *kernel, x.shape[3] // groups)).astype(np.int8)
        fields: dict[str, Any] = {
            "weight": weight, "bias": self.rng.integers(-2000, 2000, channels).astype(np.int32), "stride": stride,
            "dilation": dilation, "padding": padding, "groups": groups,
        }  # fmt: skip
        probe = ip.Conv2d("", (), "", requantize=Requantize(np.ones(1, np.float32), 0), **fields)
        out = self.tensor(probe.infer_shape([x.shape]), like=like)
        spread = 0.4 / np.sqrt(weight[0].size) / 70
        return self.add_operation(
            ip.Conv2d, [x], out, requantize=self.requantize(out, spread, channels, rounding), **fields
        )

    def dense(self, x: Tensor, outputs: int, rounding: str = "exact_half_up") -> Tensor:
        weight = self.rng.integers(-127, 128, (outputs, x.shape[-1])).astype(np.int8)
        bias = self.rng.integers(-2000, 2000, outputs).astype(np.int32)
        out = self.tensor((*x.shape[:-1], outputs))
        r = self.requantize(out, 0.4 / np.sqrt(x.shape[-1]) / 70, outputs, rounding)
        return self.add_operation(ip.Dense, [x], out, weight=weight, bias=bias, requantize=r)

    def matmul(self, a: Tensor, b: Tensor, transpose_b: bool = False, rounding: str = "exact_half_up") -> Tensor:
        lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        out = self.tensor((*lead, a.shape[-2], b.shape[-2] if transpose_b else b.shape[-1]))
        r = self.requantize(out, 0.4 / np.sqrt(a.shape[-1]) / 70, 1, rounding)
        return self.add_operation(ip.MatMul, [a, b], out, requantize=r, transpose_b=transpose_b)

    def add(self, a: Tensor, b: Tensor, sign: int = 1, rounding: str = "exact_half_up") -> Tensor:
        out = self.tensor(tuple(np.broadcast_shapes(a.shape, b.shape)))
        assert a.scale and b.scale and out.scale
        assert a.zero_point is not None and b.zero_point is not None and out.zero_point is not None
        ma, mb, bias, shift = numerics.add_multipliers(
            a.scale, a.zero_point, b.scale, b.zero_point, out.scale, out.zero_point, sign
        )
        r = self.requantize(out, 1.0)
        return self.add_operation(
            ip.Add, [a, b], out, multiplier_a=ma, multiplier_b=mb, bias=bias, shift=shift, minimum=r.minimum,
            maximum=r.maximum, rounding=rounding,
        )  # fmt: skip

    def mul(self, a: Tensor, b: Tensor, rounding: str = "exact_half_up") -> Tensor:
        out = self.tensor(tuple(np.broadcast_shapes(a.shape, b.shape)))
        return self.add_operation(ip.Mul, [a, b], out, requantize=self.requantize(out, 0.01, 1, rounding))

    def table(self, x: Tensor, per_channel: bool = False) -> Tensor:
        shape = (x.shape[-1], 256) if per_channel else (256,)
        return self.add_operation(
            ip.Table, [x], self.tensor(x.shape), table=self.rng.integers(-128, 128, shape).astype(np.int8)
        )

    def _pool(self, kind: Any, x: Tensor, like: Tensor | None, fields: dict[str, Any]) -> Tensor:
        return self.add_operation(
            kind, [x], self.tensor(kind("", (), "", **fields).infer_shape([x.shape]), like=like), **fields
        )

    def max_pool(self, x: Tensor, kernel: Pair, stride: Pair, **fields: Any) -> Tensor:
        return self._pool(ip.MaxPool2d, x, x, {"kernel": kernel, "stride": stride, **fields})

    def average_pool(
        self, x: Tensor, kernel: Pair, stride: Pair, rounding: str = "exact_half_up", **fields: Any
    ) -> Tensor:
        probe: dict[str, Any] = {"kernel": kernel, "stride": stride, **fields}
        shape = ip.MaxPool2d(
            "", (), "", **{k: probe[k] for k in probe if k in ("kernel", "stride", "padding", "dilation")}
        )
        out = self.tensor(shape.infer_shape([x.shape]))
        base = self.requantize(out, 1.0, 1, rounding)
        taps = kernel[0] * kernel[1]
        scales = (base.scale[0] / np.arange(1, taps + 1)).astype(base.scale.dtype)
        r = Requantize(scales, base.zero_point, base.minimum, base.maximum, base.rounding)
        return self.add_operation(ip.AveragePool2d, [x], out, requantize=r, **probe)

    def mean(self, x: Tensor, axes: tuple[int, ...], keepdims: bool, rounding: str = "exact_half_up") -> Tensor:
        count = int(np.prod([x.shape[a] for a in axes]))
        kept = tuple(1 if i in axes else d for i, d in enumerate(x.shape))
        shape = kept if keepdims else tuple(d for i, d in enumerate(x.shape) if i not in axes)
        out = self.tensor(shape)
        r = self.requantize(out, 1.0 / count, 1, rounding)
        return self.add_operation(ip.Mean, [x], out, axes=axes, keepdims=keepdims, requantize=r)

    def softmax(self, x: Tensor, fraction_bits: int = 8) -> Tensor:
        out = self.tensor(x.shape)
        del self.tensors[out.name]
        self.tensors[out.name] = out = Tensor(out.name, x.shape, "int8", 2.0**-fraction_bits, -128)
        assert x.scale
        return self.add_operation(
            ip.Softmax, [x], out, factors=numerics.softmax_factors(x.scale), fraction_bits=fraction_bits
        )

    def layer_norm(self, x: Tensor, epsilon: float = 1e-5) -> Tensor:
        length, out = x.shape[-1], self.tensor(x.shape)
        assert x.scale and out.scale and out.zero_point is not None
        gain, bias, shift = numerics.layer_norm_constants(
            self.rng.standard_normal(length), self.rng.standard_normal(length), length, out.scale, out.zero_point
        )
        r = self.requantize(out, 1.0)
        return self.add_operation(
            ip.LayerNorm, [x], out, gain=gain, bias=bias, shift=shift, minimum=r.minimum, maximum=r.maximum,
            epsilon=numerics.layer_norm_epsilon(epsilon, x.scale, length),
        )  # fmt: skip

    def gather(self, x: Tensor, indices: list[Any], fill: int = 0) -> Tensor:
        vectors = tuple(None if v is None else np.asarray(v, dtype=np.int64) for v in indices)
        shape = tuple(d if v is None else len(v) for v, d in zip(vectors, x.shape, strict=True))
        return self.add_operation(ip.Gather, [x], self.tensor(shape, x.dtype, x), indices=vectors, fill=fill)

    def embedding(self, table: Tensor, index: Tensor) -> Tensor:
        return self.add_operation(
            ip.Embedding, [table, index], self.tensor((*index.shape, *table.shape[1:]), table.dtype, table)
        )

    def concat(self, parts: list[Tensor], axis: int) -> Tensor:
        shape = list(parts[0].shape)
        shape[axis] = sum(p.shape[axis] for p in parts)
        return self.add_operation(ip.Concat, parts, self.tensor(tuple(shape), parts[0].dtype, parts[0]), axis=axis)

    def transpose(self, x: Tensor, permutation: tuple[int, ...]) -> Tensor:
        shape = tuple(x.shape[p] for p in permutation)
        return self.add_operation(ip.Transpose, [x], self.tensor(shape, x.dtype, x), permutation=permutation)

    def reshape(self, x: Tensor, shape: Shape) -> Tensor:
        return self.add_operation(ip.Reshape, [x], self.tensor(shape, x.dtype, x), shape=shape)

    def resize_linear(self, x: Tensor, size: Pair) -> Tensor:
        fields: dict[str, Any] = {}
        for axis, extent in zip("hw", size, strict=True):
            limit = x.shape[1 if axis == "h" else 2]
            low = self.rng.integers(0, limit, extent)
            fields |= {f"low_{axis}": low, f"high_{axis}": np.minimum(low + 1, limit - 1),
                       f"weight_{axis}": self.rng.integers(0, 257, extent)}  # fmt: skip
        out = self.tensor((x.shape[0], *size, x.shape[3]))
        return self.add_operation(ip.ResizeLinear, [x], out, requantize=self.requantize(out, 2.0**-16), **fields)

    def float_op(self, kind: str, ins: list[Tensor], shape: Shape, **attributes: Any) -> Tensor:
        return self.add_operation(
            ip.FloatOp, ins, self.tensor(shape, "float32"), kind=kind, shape=shape, attributes=attributes
        )
