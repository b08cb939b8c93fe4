"""Float operations as tensor expressions where TVM has no definition, or none that compiles."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from tvm import te, tirx, topi

Definition = Callable[..., Any]  # (tensors..., **attributes) -> tensor


def _libm(function: str) -> Definition:
    """An element-wise call of the C library's float32 function."""
    return lambda x: te.compute(x.shape, lambda *i: tirx.call_pure_extern("float32", function, x(*i)), name=function)


def _floor_mod(a: Any, b: Any) -> Any:
    """fmodf moved to the sign of the divisor; TVM's ``a - floor(a / b) * b`` is NaN for infinite operands."""
    rest = topi.mod(a, b)
    divisor = topi.broadcast_to(b, rest.shape)

    def element(*i: Any) -> Any:
        r, d = rest(*i), divisor(*i)
        return tirx.if_then_else(tirx.any(tirx.all(r < 0, d > 0), tirx.all(r > 0, d < 0)), r + d, r)

    return te.compute(rest.shape, element, name="floor_mod")


def _integer_power(a: Any, b: Any) -> Any:
    return topi.cast(topi.power(topi.cast(a, "float64"), topi.cast(b, "float64")), a.dtype)


def _clip(x: Any, min: float, max: float) -> Any:  # noqa: A002 - Relax's argument names
    """The upper bound wins where the bounds cross, as in ONNX; in TVM it is the lower one."""
    low, high = (tirx.const(v, x.dtype) for v in (min, max))
    return te.compute(x.shape, lambda *i: te.min(te.max(x(*i), low), high), name="clip")


def _take(x: Any, indices: Any, axis: int | None = None, mode: str = "fast") -> Any:
    """topi's, but memory-safe by default: negative indices count from the end, what is beyond is clamped."""
    if mode == "fast":
        extent = tirx.const(math.prod(map(int, x.shape)) if axis is None else int(x.shape[axis]), indices.dtype)
        indices = te.compute(
            indices.shape, lambda *i: tirx.if_then_else(indices(*i) < 0, indices(*i) + extent, indices(*i)), name="row"
        )
        mode = "clip"
    return topi.take(x, indices, axis=axis, mode=mode)


def _of_bool(reduce: Definition) -> Definition:
    """A reduction of truth values, which have no largest or smallest one in TVM, as one of int32."""
    return lambda x, axis=None, keepdims=False: topi.cast(
        reduce(topi.cast(x, "int32"), axis=axis, keepdims=bool(keepdims)), "bool"
    )


def _rms_norm(x: Any, weight: Any, axes: Sequence[int] | int = -1, epsilon: float = 1e-5) -> Any:
    axes = [a % len(x.shape) for a in ((axes,) if isinstance(axes, int) else axes)]
    count = float(math.prod(int(x.shape[a]) for a in axes))
    power = topi.sum(x * x, axis=axes, keepdims=True)
    return te.compute(
        x.shape,
        lambda *i: (
            x(*i)
            * tirx.rsqrt(
                power(*(0 if n in axes else v for n, v in enumerate(i))) / count + tirx.const(epsilon, x.dtype)
            )
            * weight(*(i[a] for a in axes))
        ),
        name="rms_norm",
    )


_DEFINITIONS: dict[str, Definition] = {
    "clip": _clip,
    "take": _take,
    "cumsum": topi.cumsum,
    "cumprod": topi.cumprod,
    "cosh": _libm("coshf"),
    "sinh": _libm("sinhf"),
    "nn.rms_norm": _rms_norm,
}


def definition(kind: str, dtype: str) -> Definition | None:
    """Our own definition of the operation on a first operand of that dtype; None where TVM's serves."""
    if kind == "power" and dtype.startswith("int"):
        return _integer_power
    if kind == "floor_mod" and dtype.startswith("float"):
        return _floor_mod
    if kind in ("max", "min") and dtype == "bool":
        return _of_bool(getattr(topi, kind))
    return _DEFINITIONS.get(kind)
