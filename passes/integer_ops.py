"""The integer operation of each region: what `integerize` found, written as an operation of `sim.integer_program`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from qcompiler.passes import move_ops
from qcompiler.passes.graph import Node
from qcompiler.passes.region import Declined, Region, params_of, requantize, target_of
from qcompiler.sim.float_ops import FLOAT_OPS
from qcompiler.sim.integer_program import (
    Add,
    AveragePool2d,
    Conv2d,
    Dense,
    LayerNorm,
    MatMul,
    MaxPool2d,
    Mean,
    Mul,
    Operation,
    Reshape,
    Softmax,
    Table,
    accumulator_bound,
)
from qcompiler.sim.numerics import (
    SOFTMAX_ZERO_POINT,
    Rounding,
    add_multipliers,
    layer_norm_constants,
    layer_norm_epsilon,
    softmax_factors,
    softmax_fraction_bits,
)

if TYPE_CHECKING:
    from qcompiler.passes.integerize import Lowering

Array = npt.NDArray[Any]


def emit(lowering: Lowering, region: Region) -> str:
    """Append the region's operation; returns the int8 tensor it writes. Raises Declined with the reason."""
    if region.is_table:
        return _table(lowering, region)
    if region.root.op not in EMITTERS:
        raise Declined(f"{region.root.op} has no integer form")
    return EMITTERS[region.root.op](lowering, region)


def copy_of(name: str, source: str, shape: tuple[int, ...]) -> Operation:
    return Reshape(name, (source,), name, shape)


# ------------------------------------------------------------------------------------------- tables
def _table(lowering: Lowering, region: Region) -> str:
    graph = lowering.graph
    members = {n.name for n in region.inner}
    leaf = next(n for m in region.inner for n in graph.tensor_inputs(m) if n not in members)
    source = lowering.operand(leaf)
    channels = graph.types[leaf].shape[-1] if graph.types[leaf].shape else 1

    def function(x: Array) -> Array:
        """x: [256]; the subgraph's result [256], or [C, 256] where a constant differs by channel."""
        values: dict[str, Array] = {leaf: x[:, np.newaxis]}
        for node in region.inner:
            inputs = [
                graph.constants[n].reshape(-1).astype(x.dtype) if n in graph.constants else values[n]
                for n in node.inputs
            ]
            attributes = {**node.attributes, "axis": -1} if node.op == "nn.prelu" else node.attributes
            values[node.name] = np.asarray(FLOAT_OPS[node.op](*inputs, **attributes))
        result = values[region.root.name]
        return result[:, 0] if result.shape[1] == 1 else np.broadcast_to(result, (x.size, channels)).T

    table = lowering.table_of(function, params_of(lowering.tensors[source]), region.parameters)
    target = target_of(lowering, region)
    name = "+".join(n.op.removeprefix("nn.") for n in region.inner)
    return lowering.emit(Table(target.name, (source,), target.name, table, name))


# -------------------------------------------------------------------------------------- matrix work
def _weight(lowering: Lowering, name: str, axis: int) -> tuple[Array, npt.NDArray[np.float32]]:
    """(int8 weight, scales [O]) of a constant whose output channels lie on `axis`."""
    constant = lowering.quantised.get(name)
    if constant is None:
        raise Declined(f"its weight {name!r} is not quantised")
    if constant.values.dtype != np.int8:
        raise Declined(f"its weight {name!r} is {constant.values.dtype}, not int8")
    if constant.zero_point.any():
        raise Declined(f"its weight {name!r} is asymmetric (zero point {int(constant.zero_point.max())})")
    if constant.scale.size > 1 and constant.axis % constant.values.ndim != axis:
        raise Declined(f"the scales of its weight {name!r} do not follow the output channels")
    if not np.all(constant.scale > 0):
        raise Declined(f"a scale of its weight {name!r} is not positive")
    return constant.values, np.broadcast_to(constant.scale, constant.values.shape[axis])


def _affine(
    lowering: Lowering, region: Region, product: npt.NDArray[np.float64], outputs: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float64]]:
    """(bias int32 [O], real scale of the accumulator [O]) of matrix work with `product` = input scales' product.

    The nodes behind the root compute ``dot * factor + bias``; the bias is rounded to the accumulator's scale.
    """
    graph = lowering.graph
    factor, offset = 1.0, np.zeros(outputs)
    exact: Array | None = None  # an int32 bias that already has the accumulator's scale
    for node in region.inner:
        inner = graph.tensor_inputs(node)[0]
        name = next(n for n in node.inputs if n != inner)
        value = graph.constants[name].reshape(-1).astype(np.float64)
        if node.op == "add":
            constant = lowering.quantised.get(name)
            scale = product * factor
            if (
                constant is not None and constant.values.dtype == np.int32 and not offset.any()
                and not constant.zero_point.any() and constant.values.size == outputs
                and np.allclose(constant.scale, scale, rtol=1e-4)
            ):  # fmt: skip
                exact = constant.values.reshape(-1)
            else:
                exact = None
            offset = offset + value
        else:
            exact = None
            if value.size != 1 or not (value[0] > 0 and np.isfinite(value[0])):
                raise Declined(f"{node.name!r} scales the channels one by one; fold it into the weight")
            if node.op == "divide" and node.inputs[0] == name:
                raise Declined(f"{node.name!r} divides by the result of matrix work")
            step = float(value[0]) if node.op == "multiply" else 1.0 / float(value[0])
            factor, offset = factor * step, offset * step
    scale = product * factor
    if exact is not None:
        return exact, scale
    bias = np.rint(offset / scale)
    if not np.all(np.abs(bias) < 2**31):
        raise Declined(f"its bias needs {np.abs(bias).max():.3g} steps of the accumulator, more than int32 has")
    return bias.astype(np.int32), scale


def _product(lowering: Lowering, a: float, b: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """The product of two scales: in float32 where the rounding follows a float32 origin."""
    if lowering.rounding == "f32_half_even":
        return (np.float32(a) * np.asarray(b, np.float32)).astype(np.float64)
    return a * np.asarray(b, np.float64)


def _four(padding: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Relax padding as (top, left, bottom, right)."""
    values = tuple(padding) * {1: 4, 2: 2, 4: 1}[len(padding)]
    return (values[0], values[1], values[2], values[3])


def _pair(values: tuple[int, ...]) -> tuple[int, int]:
    return (int(values[0]), int(values[-1]))


def _conv2d(lowering: Lowering, region: Region) -> str:
    node, a = region.root, region.root.attributes
    source = lowering.operand(node.inputs[0])
    weight, scales = _weight(lowering, node.inputs[1], 0)
    product = _product(lowering, params_of(lowering.tensors[source])[0], scales)
    bias, scale = _affine(lowering, region, product, weight.shape[0])
    target = target_of(lowering, region)
    operation = Conv2d(
        target.name, (source,), target.name, weight, bias, requantize(lowering, region, scale),
        _pair(a["strides"]), _pair(a["dilation"]), _four(a["padding"]), int(a["groups"]),
    )  # fmt: skip
    return lowering.emit(_within_int32(operation))


def _within_int32(operation: Conv2d | Dense) -> Conv2d | Dense:
    rows = operation.weight.shape[0]
    if operation.weight.size // max(rows, 1) * 255 * 128 + int(np.abs(operation.bias).max(initial=0)) < 2**31:
        return operation  # whatever the weights are
    bound = int(accumulator_bound(operation).max(initial=0))
    if bound > 2**31 - 1:
        raise Declined(f"its accumulator could reach {bound}, beyond int32")
    return operation


def _matmul(lowering: Lowering, region: Region) -> str:
    graph, (left, right) = lowering.graph, region.root.inputs
    a = lowering.operand(left)
    scale_a = params_of(lowering.tensors[a])[0]
    if right in graph.constants and len(graph.types[right].shape) == 2:
        weight, scales = _weight(lowering, right, 1)
        bias, scale = _affine(lowering, region, _product(lowering, scale_a, scales), weight.shape[1])
        target = target_of(lowering, region)
        packed = np.ascontiguousarray(weight.T)
        requantise = requantize(lowering, region, scale)
        return lowering.emit(_within_int32(Dense(target.name, (a,), target.name, packed, bias, requantise)))
    b = lowering.operand(right)
    product = _product(lowering, scale_a, [params_of(lowering.tensors[b])[0]])
    bias, scale = _affine(lowering, region, product, 1)
    if bias.any():
        raise Declined("a product of two activations takes no bias")
    target = target_of(lowering, region)
    return lowering.emit(MatMul(target.name, (a, b), target.name, requantize(lowering, region, scale)))


# ------------------------------------------------------------------------------------- element-wise
def _add(lowering: Lowering, region: Region) -> str:
    sign = -1 if region.root.op == "subtract" else 1
    a, b = (lowering.operand(n) for n in region.root.inputs)
    (sa, za), (sb, zb) = (params_of(lowering.tensors[n]) for n in (a, b))
    rounding: Rounding = "f32_half_even" if lowering.rounding == "f32_half_even" else "exact_half_up"
    try:
        ma, mb, bias, shift = add_multipliers(sa, za, sb, zb, *region.parameters, sign)
    except ValueError as error:
        raise Declined(str(error)) from None
    if rounding == "f32_half_even" and mb == 0:
        mb = sign  # only the sign counts there
    target = target_of(lowering, region)
    return lowering.emit(Add(target.name, (a, b), target.name, ma, mb, bias, shift, *region.clamp(), rounding))


def _multiply(lowering: Lowering, region: Region) -> str:
    a, b = (lowering.operand(n) for n in region.root.inputs)
    product = _product(lowering, params_of(lowering.tensors[a])[0], [params_of(lowering.tensors[b])[0]])
    target = target_of(lowering, region)
    return lowering.emit(Mul(target.name, (a, b), target.name, requantize(lowering, region, product)))


# ---------------------------------------------------------------------------------- pools and means
def _excess(size: int, out: int, kernel: int, stride: int, dilation: int, before: int, after: int) -> int:
    """How far the last window reaches beyond the padded image (ceil mode)."""
    return max(0, (out - 1) * stride + (kernel - 1) * dilation + 1 - (size + before + after))


def _window_of(lowering: Lowering, node: Node) -> tuple[dict[str, Any], tuple[int, int]]:
    """Window options of a pool with ceil mode turned into padding, and how much padding that added."""
    a = node.attributes
    if a["layout"] != "NHWC":
        raise Declined("the pool is not in NHWC")
    kernel, stride, dilation = _pair(a["pool_size"]), _pair(a["strides"]), _pair(a["dilation"])
    top, left, bottom, right = _four(a["padding"])
    _, h, w, _ = lowering.graph.types[node.inputs[0]].shape
    _, oh, ow, _ = lowering.graph.types[node.name].shape
    down = _excess(h, oh, kernel[0], stride[0], dilation[0], top, bottom)
    across = _excess(w, ow, kernel[1], stride[1], dilation[1], left, right)
    padding = (top, left, bottom + down, right + across)
    return {"kernel": kernel, "stride": stride, "padding": padding, "dilation": dilation}, (down, across)


def _max_pool(lowering: Lowering, region: Region) -> str:
    window, _ = _window_of(lowering, region.root)

    def pool(name: str, source: str) -> Operation:
        return MaxPool2d(name, (source,), name, **window)

    return move_ops.emit_move(lowering, region, pool)


def _average_pool(lowering: Lowering, region: Region) -> str:
    window, excess = _window_of(lowering, region.root)
    if window["kernel"] != lowering.graph.types[region.root.inputs[0]].shape[1:3]:
        # ONNX Runtime adds integers only where the window is the whole image.
        _float_origin(lowering, "average pool")
    source = lowering.operand(region.root.inputs[0])
    counts = np.arange(1, window["kernel"][0] * window["kernel"][1] + 1)
    scale = requantize(lowering, region, params_of(lowering.tensors[source])[0], counts)
    target = target_of(lowering, region)
    include = bool(region.root.attributes["count_include_pad"])
    return lowering.emit(
        AveragePool2d(
            target.name, (source,), target.name, **window, requantize=scale, count_include_pad=include,
            padding_excess=excess,
        )
    )  # fmt: skip


def _mean(lowering: Lowering, region: Region) -> str:
    node = region.root
    source = lowering.operand(node.inputs[0])
    shape = lowering.tensors[source].shape
    axes = tuple(sorted(int(i) % len(shape) for i in node.attributes.get("axis") or range(len(shape))))
    count = int(np.prod([shape[i] for i in axes]))
    scale = requantize(lowering, region, params_of(lowering.tensors[source])[0], count)
    target = target_of(lowering, region)
    return lowering.emit(Mean(target.name, (source,), target.name, axes, bool(node.attributes["keepdims"]), scale))


# ------------------------------------------------------------------------------------ normalisation
def _float_origin(lowering: Lowering, what: str) -> None:
    if lowering.rounding == "f32_half_even":
        raise Declined(f"f32_half_even follows a float origin, and an integer {what} is not equal to it")


def _softmax(lowering: Lowering, region: Region) -> str:
    _float_origin(lowering, "softmax")
    source = lowering.operand(region.root.inputs[0])
    factors = softmax_factors(params_of(lowering.tensors[source])[0])
    bits = softmax_fraction_bits(min(255 * region.parameters[0], region.high))
    natural = (2.0**-bits, SOFTMAX_ZERO_POINT)
    fits = region.parameters == natural and (region.low, region.high) == (-np.inf, np.inf)
    name = region.name if fits else f"{region.name}.softmax"
    target = lowering.declare(name, region.value, natural)
    lowering.emit(Softmax(target.name, (source,), target.name, factors, bits))
    if fits:
        return target.name

    def rescale(x: Array) -> Array:
        return np.clip(x, region.low, region.high)

    scaled = target_of(lowering, region)
    entries = lowering.table_of(rescale, natural, region.parameters)
    return lowering.emit(Table(scaled.name, (target.name,), scaled.name, entries, "rescale"))


def _layer_norm(lowering: Lowering, region: Region) -> str:
    _float_origin(lowering, "layer norm")
    graph, (x, gamma, beta) = lowering.graph, region.root.inputs
    source = lowering.operand(x)
    length = graph.types[x].shape[-1]
    scale, zero = region.parameters
    gain, bias, shift = layer_norm_constants(graph.constants[gamma], graph.constants[beta], length, scale, zero)
    epsilon = layer_norm_epsilon(
        float(region.root.attributes["epsilon"]), params_of(lowering.tensors[source])[0], length
    )
    target = target_of(lowering, region)
    operation = LayerNorm(target.name, (source,), target.name, gain, bias, shift, epsilon, *region.clamp())
    return lowering.emit(operation)


EMITTERS: dict[str, Callable[[Lowering, Region], str]] = {
    "nn.conv2d": _conv2d, "matmul": _matmul, "add": _add, "subtract": _add, "multiply": _multiply,
    "nn.max_pool2d": _max_pool, "nn.avg_pool2d": _average_pool, "mean": _mean, "nn.softmax": _softmax,
    "nn.layer_norm": _layer_norm, **move_ops.EMITTERS,
}  # fmt: skip
