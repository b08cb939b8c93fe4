"""ONNX layers of neural networks: convolutions, pools, normalisations, softmax.

Images are NCHW here, as in ONNX. One-dimensional layers become two-dimensional ones with H = 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from tvm import relax
from tvm.relax import op as R

from qcompiler.frontend.onnx_math import activated, scalar
from qcompiler.frontend.onnx_node import Array, Node, Result, Shape, Unsupported, converter
from qcompiler.passes.rewrite import const, constant_value, shape_of


@dataclass(frozen=True)
class Window:
    """Sliding window over the spatial axes: one entry an axis. `padding` is (before, after) per axis."""

    kernel: Shape
    stride: Shape
    dilation: Shape
    padding: tuple[tuple[int, int], ...]

    @property
    def flat_padding(self) -> list[int]:
        """All the before's, then all the after's: (top, left, bottom, right)."""
        return [p[0] for p in self.padding] + [p[1] for p in self.padding]

    def in_2d(self) -> Window:
        """The same window with an axis H of extent 1 in front."""
        return Window((1, *self.kernel), (1, *self.stride), (1, *self.dilation), ((0, 0), *self.padding))


def window_of(node: Node, spatial: Shape, kernel: Shape) -> Window:
    """The window that kernel_shape, strides, dilations, pads, auto_pad and ceil_mode describe.

    ceil_mode becomes explicit padding after the last window position that starts inside the padded input.
    """
    rank = len(spatial)
    if rank not in (1, 2):
        raise Unsupported(f"it slides over {rank} spatial axes; 1 and 2 are supported")
    stride = tuple(node.attribute("strides") or (1,) * rank)
    dilation = tuple(node.attribute("dilations") or (1,) * rank)
    extent = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    auto = node.attribute("auto_pad", "NOTSET")
    if auto in ("NOTSET", ""):
        pads = tuple(node.attribute("pads") or (0,) * (2 * rank))
        padding = [(pads[i], pads[i + rank]) for i in range(rank)]
    elif auto == "VALID":
        padding = [(0, 0)] * rank
    elif auto in ("SAME_UPPER", "SAME_LOWER"):
        padding = []
        for size, step, span in zip(spatial, stride, extent, strict=True):
            total = max((math.ceil(size / step) - 1) * step + span - size, 0)
            less, more = total // 2, total - total // 2
            padding.append((less, more) if auto == "SAME_UPPER" else (more, less))
    else:
        raise Unsupported(f"its auto_pad {auto!r} is not one of NOTSET, VALID, SAME_UPPER, SAME_LOWER")
    if node.attribute("ceil_mode", 0):
        for i in range(rank):
            padded = spatial[i] + sum(padding[i])
            count = math.ceil((padded - extent[i]) / stride[i]) + 1
            if (count - 1) * stride[i] >= spatial[i] + padding[i][0]:
                count -= 1  # a window must not start in the padding behind the input
            excess = max((count - 1) * stride[i] + extent[i] - padded, 0)
            padding[i] = (padding[i][0], padding[i][1] + excess)
    for size, span, (before, after) in zip(spatial, extent, padding, strict=True):
        if size + before + after < span:
            raise Unsupported(f"its window of {span} does not fit into {size} + padding {before} + {after}")
    return Window(tuple(kernel), stride, dilation, tuple(padding))


def as_image(node: Node, x: relax.Expr, suffix: str) -> relax.Expr:
    """[N, C, W] as [N, C, 1, W]; an image as it is."""
    shape = shape_of(x)
    if len(shape) != 3:
        return x
    value, image = constant_value(x), (*shape[:2], 1, *shape[2:])
    return const(value.reshape(image)) if value is not None else node.emit(R.reshape(x, image), suffix)


def from_image(node: Node, y: relax.Expr, rank: int, suffix: str) -> relax.Expr:
    """The inverse of `as_image` for a call `y`; the helper in front gets `suffix`."""
    if rank == 4:
        return y
    var = y if isinstance(y, relax.Var) else node.emit(y, suffix)
    n, c, _, w = shape_of(var)
    return R.reshape(var, (n, c, w))


# ------------------------------------------------------------------------------------- convolutions
@converter("Conv")
def conv(node: Node) -> Result:
    x, weight = node.tensor(0), node.tensor(1)
    shape, kernel_shape = shape_of(x), shape_of(weight)
    if len(shape) != len(kernel_shape) or len(shape) < 3:
        raise Unsupported(f"its input has the shape {shape} and its weight {kernel_shape}")
    groups = int(node.attribute("group", 1))
    if shape[1] != kernel_shape[1] * groups or kernel_shape[0] % groups:
        raise Unsupported(f"{shape[1]} input channels do not fit a weight of shape {kernel_shape} in {groups} groups")
    window = window_of(node, shape[2:], kernel_shape[2:])
    if len(shape) == 3:
        window = window.in_2d()
    call = R.nn.conv2d(
        as_image(node, x, "image"), as_image(node, weight, "kernel"),
        strides=window.stride, padding=window.flat_padding, dilation=window.dilation, groups=groups,
    )  # fmt: skip
    return _finished(node, call, len(shape))


@converter("ConvTranspose")
def conv_transpose(node: Node) -> Result:
    x, weight = node.tensor(0), node.tensor(1)
    shape, kernel_shape = shape_of(x), shape_of(weight)
    spatial, kernel = shape[2:], kernel_shape[2:]
    rank = len(spatial)
    if rank not in (1, 2):
        raise Unsupported(f"it slides over {rank} spatial axes; 1 and 2 are supported")
    stride = tuple(node.attribute("strides") or (1,) * rank)
    dilation = tuple(node.attribute("dilations") or (1,) * rank)
    extra = list(node.attribute("output_padding") or (0,) * rank)
    pads = list(node.attribute("pads") or (0,) * (2 * rank))
    auto = node.attribute("auto_pad", "NOTSET")
    wanted = node.attribute("output_shape")
    if wanted is not None or auto in ("SAME_UPPER", "SAME_LOWER"):
        target = list(wanted)[-rank:] if wanted is not None else [s * d for s, d in zip(stride, spatial, strict=True)]
        for i in range(rank):
            natural = stride[i] * (spatial[i] - 1) + extra[i] + (kernel[i] - 1) * dilation[i] + 1
            total = natural - target[i]
            if total < 0:  # the output is longer than the windows reach: it is padded with zeros behind
                extra[i] -= total
                total = 0
            less, more = total // 2, total - total // 2
            pads[i], pads[i + rank] = (less, more) if auto == "SAME_UPPER" else (more, less)
    elif auto == "VALID":
        pads = [0] * (2 * rank)
    if rank == 1:
        stride, dilation, extra, pads = (1, *stride), (1, *dilation), [0, *extra], [0, pads[0], 0, pads[1]]
    call = R.nn.conv2d_transpose(
        as_image(node, x, "image"), as_image(node, weight, "kernel"),
        strides=stride, padding=pads, output_padding=extra, dilation=dilation, groups=int(node.attribute("group", 1)),
    )  # fmt: skip
    return _finished(node, call, len(shape))


def _finished(node: Node, call: relax.Call, rank: int) -> Result:
    """Bias behind a convolution, back to its rank."""
    if not node.has(2):
        return from_image(node, call, rank, "conv")
    result = node.emit(call, "conv")
    bias = node.value(2)
    if isinstance(bias, np.ndarray):
        addend: relax.Expr = const(bias.reshape(-1, 1, 1))
    else:
        addend = node.emit(R.reshape(bias, (1, shape_of(bias)[0], 1, 1)), "bias")
    return from_image(node, R.add(result, addend), rank, "biased")


@converter("FusedConv", domain="com.microsoft")
def fused_conv(node: Node) -> Result:
    """Conv, an optional addend Z, an activation: what ONNX Runtime's optimiser makes."""
    result = node.convert_as("Conv", node.inputs[:3], "", **node.attributes)
    if node.has(3):
        result = R.add(node.emit(result, "biased"), node.tensor(3))
    return activated(node, result, node.attribute("activation", ""), tuple(node.attribute("activation_params", ())))


@converter("FusedGemm", domain="com.microsoft")
def fused_gemm(node: Node) -> Result:
    result = node.convert_as("Gemm", node.inputs, "", **node.attributes)
    parameters = [node.attribute(f"activation_{key}") for key in ("alpha", "beta")]
    return activated(node, result, node.attribute("activation", ""), tuple(p for p in parameters if p is not None))


# -------------------------------------------------------------------------------------------- pools
@converter("MaxPool")
def max_pool(node: Node) -> Result:
    node.only_first_output()
    return pooled(node, R.nn.max_pool2d)


@converter("AveragePool")
def average_pool(node: Node) -> Result:
    include = bool(node.attribute("count_include_pad", 0))
    result = pooled(node, R.nn.avg_pool2d, count_include_pad=include)
    if not include or not node.attribute("ceil_mode", 0):
        return result
    # Positions beyond the padding, where only a ceil-mode window reaches, never count.
    correction = _ceil_mode_correction(node)
    return result if np.all(correction == 1) else R.multiply(node.emit(result, "pool"), const(correction))


def pooled(node: Node, pool: Callable[..., relax.Call], **options: bool) -> relax.Expr:
    x = node.tensor(0)
    shape = shape_of(x)
    window = window_of(node, shape[2:], tuple(node.required("kernel_shape")))
    if len(shape) == 3:
        window = window.in_2d()
    call = pool(
        as_image(node, x, "image"), window.kernel, strides=window.stride, padding=window.flat_padding,
        dilation=window.dilation, **options,
    )  # fmt: skip
    return from_image(node, call, len(shape), "pool")


def _ceil_mode_correction(node: Node) -> Array:
    """Window size over positions inside the declared padding, [1, 1, *output]."""
    spatial = node.shape()[2:]
    window = window_of(node, spatial, tuple(node.required("kernel_shape")))
    pads = tuple(node.attribute("pads") or (0,) * (2 * len(spatial)))
    factors = np.ones((1, 1), dtype=np.float64)
    for i, size in enumerate(spatial):
        end = size + pads[i] + pads[i + len(spatial)]
        extent = (window.kernel[i] - 1) * window.dilation[i] + 1
        count = (size + sum(window.padding[i]) - extent) // window.stride[i] + 1
        taps = np.arange(window.kernel[i]) * window.dilation[i]
        inside = ((np.arange(count) * window.stride[i])[:, None] + taps < end).sum(axis=1)
        factors = factors[..., None] * (window.kernel[i] / inside)
    return factors.astype(np.float32)


@converter("GlobalAveragePool", "GlobalMaxPool")
def global_pool(node: Node) -> Result:
    function = R.mean if node.op_type == "GlobalAveragePool" else R.max
    return function(node.tensor(0), axis=list(range(2, len(node.shape()))), keepdims=True)


# ------------------------------------------------------------------------------------ normalisation
@converter("BatchNormalization")
def batch_normalization(node: Node) -> Result:
    """Inference form, as one multiplication and one addition per channel."""
    if node.attribute("training_mode", 0) or [n for n in node.outputs[1:] if n]:
        raise Unsupported("it is in training mode", "export the model in evaluation mode: model.eval()")
    if node.attribute("spatial", 1) == 0:
        raise Unsupported("spatial=0 normalises every element on its own, which is not supported")
    scale, bias, mean, variance = (
        node.constant(i, what).astype(np.float64) for i, what in enumerate(("scale", "bias", "mean", "variance"), 1)
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        factor = scale / np.sqrt(variance + float(node.attribute("epsilon", 1e-5)))
    if not np.all(np.isfinite(factor)):
        raise Unsupported("its variance + epsilon is not positive everywhere", "check the training of the model")
    shape = (-1,) + (1,) * max(len(node.shape()) - 2, 0)
    product = node.emit(R.multiply(node.tensor(0), const(factor.reshape(shape))), "scaled")
    return R.add(product, const((bias - mean * factor).reshape(shape)))


@converter("LayerNormalization")
def layer_normalization(node: Node) -> Result:
    node.only_first_output()
    shape = node.shape()
    axis = node.axis(default=-1)
    normalized = shape[axis:]
    gain = _broadcast(node, 1, normalized)
    bias = _broadcast(node, 2, normalized) if node.has(2) else const(np.zeros(normalized, np.float32))
    epsilon = float(node.attribute("epsilon", 1e-5))
    return R.nn.layer_norm(node.tensor(0), gain, bias, axes=list(range(axis, len(shape))), epsilon=epsilon)


def _broadcast(node: Node, index: int, shape: Shape) -> relax.Expr:
    value = node.value(index)
    if isinstance(value, np.ndarray):
        return const(np.broadcast_to(value.reshape(value.shape[-len(shape) :]), shape).astype(np.float32))
    if shape_of(value) != shape:
        raise Unsupported(f"its input {index} has the shape {shape_of(value)}, not {shape}")
    return value


@converter("SkipLayerNormalization", domain="com.microsoft")
def skip_layer_normalization(node: Node) -> Result:
    """LayerNormalization(input + skip + bias); its fourth output is that sum."""
    if any(node.outputs[1:3]):
        raise Unsupported("its mean or variance output is used")
    total = node.emit(R.add(node.tensor(0), node.tensor(1)), "skip")
    if node.has(4):
        total = node.emit(R.add(total, node.tensor(4)), "sum")
    inputs = [total, node.value(2), node.value(3) if node.has(3) else None]
    attributes = {"axis": -1, "epsilon": node.attribute("epsilon", 1e-12)}
    normal = node.convert_as("LayerNormalization", inputs, "normal", **attributes)
    if len(node.outputs) < 4:
        return normal
    unused = np.zeros(0, np.float32)
    return [normal, unused, unused, total]  # type: ignore[list-item]


@converter("InstanceNormalization")
def instance_normalization(node: Node) -> Result:
    x = node.tensor(0)
    rank = len(node.shape())
    vector = (-1,) + (1,) * (rank - 2)
    gain, bias = (node.constant(i, what).reshape(vector) for i, what in ((1, "scale"), (2, "bias")))
    normal = _normalized(node, x, list(range(2, rank)), float(node.attribute("epsilon", 1e-5)))
    return R.add(node.emit(R.multiply(normal, const(gain)), "scaled"), const(bias))


@converter("GroupNormalization")
def group_normalization(node: Node) -> Result:
    x, shape = node.tensor(0), node.shape()
    groups = int(node.required("num_groups"))
    split = (shape[0], groups, shape[1] // groups * math.prod(shape[2:]))
    normal = _normalized(node, node.emit(R.reshape(x, split), "groups"), [2], float(node.attribute("epsilon", 1e-5)))
    image = node.emit(R.reshape(normal, shape), "image")
    gain, bias = (node.constant(i, what) for i, what in ((1, "scale"), (2, "bias")))
    if gain.size == groups != shape[1]:  # before opset 21 there is one of each a group
        gain, bias = (np.repeat(v, shape[1] // groups) for v in (gain, bias))
    vector = (-1,) + (1,) * (len(shape) - 2)
    return R.add(node.emit(R.multiply(image, const(gain.reshape(vector))), "scaled"), const(bias.reshape(vector)))


def _normalized(node: Node, x: relax.Expr, axes: Sequence[int], epsilon: float) -> relax.Var:
    """(x - mean) / sqrt(variance + epsilon) over the axes."""
    mean = node.emit(R.mean(x, axis=list(axes), keepdims=True), "mean")
    centred = node.emit(R.subtract(x, mean), "centred")
    variance = node.emit(R.mean(node.emit(R.square(centred), "square"), axis=list(axes), keepdims=True), "variance")
    deviation = node.emit(R.sqrt(node.emit(R.add(variance, scalar(epsilon)), "stable")), "deviation")
    return node.emit(R.divide(centred, deviation), "normal")


@converter("LRN")
def local_response_normalization(node: Node) -> Result:
    """x / (bias + alpha/size * sum of squares over neighbouring channels) ** beta.

    The windowed mean is an average pool whose image has the channels along its width.
    """
    x, shape = node.tensor(0), node.shape()
    size = int(node.required("size"))
    n, c, pixels = shape[0], shape[1], math.prod(shape[2:])
    rank = len(shape)
    last = [0, *range(2, rank), 1]
    square = node.emit(R.permute_dims(node.emit(R.square(x), "square"), last), "square_last")
    rows = node.emit(R.reshape(square, (n, 1, pixels, c)), "rows")
    padding = [0, (size - 1) // 2, 0, size - 1 - (size - 1) // 2]
    mean = node.emit(R.nn.avg_pool2d(rows, (1, size), strides=(1, 1), padding=padding, count_include_pad=True), "mean")
    image = node.emit(R.reshape(mean, (n, *shape[2:], c)), "mean_last")
    mean = node.emit(R.permute_dims(image, [0, rank - 1, *range(1, rank - 1)]), "mean_first")
    scaled = node.emit(R.multiply(mean, scalar(float(node.attribute("alpha", 1e-4)))), "scaled")
    base = node.emit(R.add(scaled, scalar(float(node.attribute("bias", 1.0)))), "base")
    factor = node.emit(R.power(base, scalar(-float(node.attribute("beta", 0.75)))), "factor")
    return R.multiply(x, factor)


# ------------------------------------------------------------------------------------------ softmax
@converter("Softmax", "LogSoftmax")
def softmax(node: Node) -> Result:
    function = R.nn.softmax if node.op_type == "Softmax" else R.nn.log_softmax
    x, shape = node.tensor(0), node.shape()
    if node.opset >= 13:
        return function(x, node.axis(default=-1))
    axis = node.axis(default=1)
    if math.prod(shape[axis + 1 :]) == 1:
        return function(x, axis)
    # Until opset 12 the axes from `axis` on were taken together.
    flat = node.emit(R.reshape(x, (math.prod(shape[:axis]), math.prod(shape[axis:]))), "flat")
    return R.reshape(node.emit(function(flat, 1), "softmax"), shape)


@converter("Dropout")
def dropout(node: Node) -> Result:
    if node.has(2) and bool(node.constant(2, "training_mode").any()):
        raise Unsupported("it is in training mode", "export the model in evaluation mode: model.eval()")
    if len(node.outputs) > 1 and node.outputs[1]:
        return [node.tensor(0), np.ones(node.shape(), dtype=np.bool_)]
    return node.tensor(0)


# --------------------------------------------------------------------- com.microsoft float operators
@converter("FusedMatMul", "TransposeMatMul", domain="com.microsoft")
def fused_matmul(node: Node) -> Result:
    if node.attribute("transBatchA", 0) or node.attribute("transBatchB", 0):
        raise Unsupported("it transposes batch axes")
    sides = []
    for i, key in enumerate(("transA", "transB")):
        value, rank = node.tensor(i), len(node.shape(i))
        if node.attribute(key, 0) and rank > 1:
            order = [*range(rank - 2), rank - 1, rank - 2]
            value = node.emit(R.permute_dims(value, order), f"transposed{i}")
        sides.append(value)
    alpha = float(node.attribute("alpha", 1.0))
    product = R.matmul(*sides)
    return product if alpha == 1 else R.multiply(node.emit(product, "product"), scalar(alpha))


@converter("Gelu", domain="com.microsoft")
def microsoft_gelu(node: Node) -> Result:
    return R.nn.gelu(node.tensor(0))


@converter("QuickGelu", domain="com.microsoft")
def quick_gelu(node: Node) -> Result:
    return node.convert_as("Swish", node.inputs, "", alpha=float(node.attribute("alpha", 1.702)))


@converter("FastGelu", domain="com.microsoft")
def fast_gelu(node: Node) -> Result:
    x = node.emit(R.add(node.tensor(0), node.tensor(1)), "biased") if node.has(1) else node.tensor(0)
    return R.nn.gelu_tanh(x)


@converter("BiasGelu", domain="com.microsoft")
def bias_gelu(node: Node) -> Result:
    return R.nn.gelu(node.emit(R.add(node.tensor(0), node.tensor(1)), "biased"))
