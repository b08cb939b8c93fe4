"""Every operator of the frontend, imported and canonicalised, against ONNX Runtime on the same graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx_graphs import check, model, operators

RNG = np.random.default_rng(3)


def random(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def single(
    op: str,
    *inputs: Any,
    opset: int = 17,
    outputs: int = 1,
    domain: str = "",
    dtype: int | None = None,
    **attributes: Any,
) -> onnx.ModelProto:
    """One node; a tuple among the inputs is a model input's shape, an array a constant, None an absent input."""
    names, shapes, constants = [], {}, {}
    for i, value in enumerate(inputs):
        name = f"x{i}" if isinstance(value, tuple) else f"c{i}"
        names.append("" if value is None else name)
        if isinstance(value, tuple):
            shapes[name] = value
        elif value is not None:
            constants[name] = value
    results = [f"y{i}" for i in range(outputs)]
    node = helper.make_node(op, names, results, name="node", domain=domain, **attributes)
    return model([node], shapes, results, constants, opset, {r: dtype for r in results} if dtype else None)


I64 = lambda *v: np.array(v, dtype=np.int64)  # noqa: E731
IMAGE = (1, 4, 9, 8)
K3 = random(6, 4, 3, 3)

CONVOLUTIONS = {
    "plain": single("Conv", IMAGE, K3),
    "bias": single("Conv", IMAGE, K3, random(6), pads=[1, 1, 1, 1]),
    "asymmetric-pads": single("Conv", IMAGE, K3, random(6), pads=[0, 1, 2, 3], strides=[2, 1]),
    "dilation": single("Conv", IMAGE, K3, pads=[2, 2, 2, 2], dilations=[2, 2]),
    "same-upper": single("Conv", IMAGE, K3, strides=[2, 2], auto_pad="SAME_UPPER"),
    "same-lower": single("Conv", IMAGE, random(6, 4, 2, 2), strides=[2, 2], auto_pad="SAME_LOWER"),
    "valid": single("Conv", IMAGE, K3, auto_pad="VALID"),
    "groups": single("Conv", IMAGE, random(6, 2, 3, 3), random(6), group=2),
    "depthwise": single("Conv", IMAGE, random(4, 1, 3, 3), random(4), group=4, pads=[1, 1, 1, 1]),
    "depthwise-multiplier": single("Conv", IMAGE, random(8, 1, 3, 3), group=4),
    "1d": single("Conv", (2, 4, 12), random(6, 4, 3), random(6), strides=[2], pads=[1, 2]),
    "1d-depthwise": single("Conv", (1, 4, 12), random(4, 1, 3), group=4, dilations=[2]),
    "computed-weight": single("Conv", IMAGE, (6, 4, 3, 3)),
    "batch": single("Conv", (3, 4, 9, 8), K3),
}
TRANSPOSED = {
    "stride-1": single("ConvTranspose", IMAGE, random(4, 5, 3, 3), random(5)),
    "stride-2": single("ConvTranspose", IMAGE, random(4, 5, 3, 3), random(5), strides=[2, 2]),
    "pads": single("ConvTranspose", IMAGE, random(4, 5, 4, 4), strides=[2, 2], pads=[1, 1, 1, 1]),
    "asymmetric": single("ConvTranspose", IMAGE, random(4, 5, 3, 5), random(5), strides=[2, 3], pads=[0, 1, 2, 1]),
    "output-padding": single("ConvTranspose", IMAGE, random(4, 5, 3, 3), strides=[2, 2], output_padding=[1, 1]),
    "wide-crop": single("ConvTranspose", IMAGE, random(4, 5, 2, 2), strides=[2, 2], pads=[3, 4, 5, 2]),
    "kernel-below-stride": single("ConvTranspose", IMAGE, random(4, 5, 2, 1), random(5), strides=[3, 3]),
    "dilation": single("ConvTranspose", IMAGE, random(4, 5, 3, 3), strides=[2, 2], dilations=[2, 3]),
    "groups": single("ConvTranspose", IMAGE, random(4, 3, 3, 3), random(6), strides=[2, 2], group=2),
    "depthwise": single("ConvTranspose", IMAGE, random(4, 1, 4, 4), strides=[2, 2], pads=[1, 1, 1, 1], group=4),
    "output-shape": single("ConvTranspose", IMAGE, random(4, 5, 3, 3), strides=[2, 2], output_shape=[18, 15]),
    "same-upper": single("ConvTranspose", IMAGE, random(4, 5, 3, 3), strides=[2, 2], auto_pad="SAME_UPPER"),
    "same-lower": single("ConvTranspose", IMAGE, random(4, 5, 3, 3), strides=[2, 2], auto_pad="SAME_LOWER"),
    "1d": single("ConvTranspose", (1, 4, 7), random(4, 5, 3), random(5), strides=[2], pads=[1, 0]),
}
PRODUCTS = {
    "gemm": single("Gemm", (3, 5), random(5, 4), random(4)),
    "gemm-transposed": single("Gemm", (5, 3), random(4, 5), random(4), transA=1, transB=1, alpha=0.5, beta=2.0),
    "gemm-no-bias": single("Gemm", (3, 5), random(5, 4), alpha=0.25),
    "gemm-bias-matrix": single("Gemm", (3, 5), random(5, 4), random(3, 4), beta=0.5),
    "gemm-bias-row": single("Gemm", (3, 5), random(5, 4), random(1, 4)),
    "gemm-bias-scalar": single("Gemm", (3, 5), random(5, 4), random(1)),
    "gemm-computed": single("Gemm", (3, 5), (4, 5), (3, 4), transB=1, alpha=0.5, beta=0.25),
    "matmul": single("MatMul", (2, 3, 5), random(5, 4)),
    "matmul-left": single("MatMul", random(4, 5), (2, 5, 3)),
    "matmul-computed": single("MatMul", (2, 3, 5), (2, 5, 4)),
    "matmul-broadcast": single("MatMul", (2, 1, 3, 5), (4, 5, 2)),
    "matmul-vector": single("MatMul", (2, 3, 5), random(5)),
}
UNARY = {
    name: single(name, (2, 3, 4), opset=22)
    for name in (
        "Abs", "Atan", "Asinh", "Ceil", "Cos", "Cosh", "Erf", "Exp", "Floor", "Neg", "Relu", "Round", "Sigmoid", "Sign",
        "Sin", "Sinh", "Tan", "Tanh", "HardSwish", "HardSigmoid", "Softplus", "Softsign", "Mish", "Elu", "Selu",
        "Celu", "Gelu", "Identity", "ThresholdedRelu",
    )
}  # fmt: skip
ACTIVATIONS = {
    "clip": single("Clip", (2, 3, 4), np.float32(-0.5), np.float32(0.75)),
    "clip-low": single("Clip", (2, 3, 4), np.float32(0)),
    "clip-min": single("Clip", (2, 3, 4), np.float32(-0.5)),
    "clip-high": single("Clip", (2, 3, 4), None, np.float32(0.5)),
    "clip-none": single("Clip", (2, 3, 4)),
    "clip-computed": single("Clip", (2, 3, 4), (), ()),
    "clip-attribute": single("Clip", (2, 3, 4), opset=7, min=0.0, max=6.0),
    "leaky-relu": single("LeakyRelu", (2, 3, 4), alpha=0.2),
    "hard-sigmoid": single("HardSigmoid", (2, 3, 4), alpha=0.3, beta=0.4),
    "prelu-channel": single("PRelu", IMAGE, random(4, 1, 1)),
    "prelu-scalar": single("PRelu", IMAGE, random(1)),
    "prelu-full": single("PRelu", (2, 3, 4), random(2, 3, 4)),
    "prelu-last": single("PRelu", (2, 3, 4), random(4)),
    "elu": single("Elu", (2, 3, 4), alpha=0.7),
    "celu": single("Celu", (2, 3, 4), alpha=0.7),
    "selu": single("Selu", (2, 3, 4), alpha=1.5, gamma=0.5),
    "shrink": single("Shrink", (2, 3, 4), bias=0.25, lambd=0.5),
    "gelu-tanh": single("Gelu", (2, 3, 4), opset=20, approximate="tanh"),
}
ARITHMETIC = {
    "add": single("Add", (2, 3, 4), (3, 1)),
    "sub-constant": single("Sub", (2, 3, 4), random(4)),
    "constant-sub": single("Sub", random(3, 1), (2, 3, 4)),
    "div-constant": single("Div", (2, 3, 4), np.float32(3)),
    "constant-div": single("Div", np.float32(3), (2, 3, 4)),
    "div": single("Div", (2, 3, 4), (2, 3, 4)),
    "mul": single("Mul", (2, 3, 4), (2, 1, 4)),
    "constant-larger": single("Add", (3, 1), random(2, 3, 4)),
    "constant-mul-larger": single("Mul", (4,), random(2, 1, 1)),
    "constant-equal-larger": single("Add", (4,), np.full((2, 4), 0.5, np.float32)),
    "sum-one": single("Sum", (2, 3)),
    "sum": single("Sum", (2, 3), (2, 3), (1, 3)),
    "mean": single("Mean", (2, 3), (2, 3)),
    "max": single("Max", (2, 3), (2, 3), np.float32(0.1)),
    "min": single("Min", (2, 3), random(2, 3)),
    "pow-square": single("Pow", (2, 3), np.float32(2)),
    "pow-cube": single("Pow", (2, 3), np.int64(3)),
    "where": single("Where", RNG.random((2, 3)) < 0.5, (2, 3), (2, 3)),
    "mod": single("Mod", (2, 3), np.float32(0.7), fmod=1),
    "cast": single("Cast", (2, 3), to=TensorProto.INT32, dtype=TensorProto.INT32),
    "greater": single("Greater", (2, 3), (2, 3), dtype=TensorProto.BOOL),
    "equal": single("Equal", (2, 3), (2, 3), dtype=TensorProto.BOOL),
}
REDUCTIONS = {
    **{
        f"{name}-{keep}": single(name, (2, 3, 4, 5), axes=[1, -1], keepdims=keep)
        for name in ("ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceSumSquare",
                     "ReduceLogSumExp")
        for keep in (0, 1)
    },
    "sum-input": single("ReduceSum", (2, 3, 4), I64(1)),
    "mean-input": single("ReduceMean", (2, 3, 4), I64(-1), opset=18),
    "mean-all": single("ReduceMean", (2, 3, 4), keepdims=0),
    "sum-noop": single("ReduceSum", (2, 3, 4), noop_with_empty_axes=1),
    "argmax": single("ArgMax", (2, 3, 4), axis=1, dtype=TensorProto.INT64),
    "argmin": single("ArgMin", (2, 3, 4), axis=-1, keepdims=0, dtype=TensorProto.INT64),
}  # fmt: skip
POOLS = {
    "max": single("MaxPool", IMAGE, kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 1, 1]),
    "max-ceil": single("MaxPool", (1, 3, 10, 7), kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
    "max-ceil-outside": single("MaxPool", (1, 3, 8, 8), kernel_shape=[2, 2], strides=[3, 3], ceil_mode=1),
    "max-dilated": single("MaxPool", IMAGE, kernel_shape=[2, 2], dilations=[2, 3]),
    "max-same": single("MaxPool", IMAGE, kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER"),
    "max-1d": single("MaxPool", (2, 3, 11), kernel_shape=[3], strides=[2]),
    "average": single("AveragePool", IMAGE, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 0, 1]),
    "average-include": single("AveragePool", IMAGE, kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1),
    "average-ceil": single("AveragePool", (1, 3, 10, 7), kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1, opset=19),
    "average-ceil-include": single("AveragePool", (1, 3, 10, 7), kernel_shape=[3, 2], strides=[2, 2],
                                   pads=[1, 1, 1, 1], ceil_mode=1, count_include_pad=1, opset=19),
    "average-1d": single("AveragePool", (2, 3, 11), kernel_shape=[4], strides=[3], pads=[1, 2]),
    "global-average": single("GlobalAveragePool", IMAGE),
    "global-max": single("GlobalMaxPool", IMAGE),
    "global-average-1d": single("GlobalAveragePool", (2, 3, 11)),
}  # fmt: skip
NORMALISATION = {
    "batch-norm": single("BatchNormalization", IMAGE, random(4), random(4), random(4), np.abs(random(4))),
    "batch-norm-2d": single("BatchNormalization", (3, 4), random(4), random(4), random(4), np.abs(random(4))),
    "layer-norm": single("LayerNormalization", (2, 3, 8), random(8), random(8)),
    "layer-norm-no-bias": single("LayerNormalization", (2, 3, 8), random(8), epsilon=0.1),
    "layer-norm-two-axes": single("LayerNormalization", (2, 3, 8), random(3, 8), random(3, 8), axis=1),
    "instance-norm": single("InstanceNormalization", IMAGE, random(4), random(4)),
    "group-norm": single("GroupNormalization", IMAGE, random(4), random(4), num_groups=2, opset=21),
    "lrn": single("LRN", (1, 7, 5, 4), size=5, alpha=0.5, beta=0.75, bias=2.0),
    "softmax": single("Softmax", (2, 3, 4)),
    "softmax-channel": single("Softmax", IMAGE, axis=1),
    "softmax-rows": single("Softmax", IMAGE, axis=2),
    "softmax-11": single("Softmax", (2, 3, 4), opset=11, axis=1),
    "softmax-11-last": single("Softmax", (2, 3, 4), opset=11, axis=-1),
    "log-softmax": single("LogSoftmax", (2, 5)),
    "dropout": single("Dropout", (2, 5), np.float32(0.5)),
}
MOVES = {
    "reshape": single("Reshape", (2, 3, 4), I64(0, -1)),
    "flatten": single("Flatten", (2, 3, 4), axis=2),
    "flatten-0": single("Flatten", (2, 3, 4), axis=0),
    "transpose": single("Transpose", (2, 3, 4), perm=[1, 2, 0]),
    "transpose-reverse": single("Transpose", (2, 3, 4)),
    "squeeze": single("Squeeze", (2, 1, 4, 1), I64(1, -1)),
    "squeeze-all": single("Squeeze", (2, 1, 4, 1)),
    "squeeze-11": single("Squeeze", (2, 1, 4, 1), opset=11, axes=[1]),
    "unsqueeze": single("Unsqueeze", (2, 4), I64(0, -1)),
    "unsqueeze-11": single("Unsqueeze", (2, 4), opset=11, axes=[1]),
    "concat": single("Concat", (2, 3, 4), (2, 1, 4), random(2, 2, 4), axis=1),
    "split": single("Split", (2, 7, 4), I64(3, 4), outputs=2, axis=1),
    "split-equal": single("Split", (2, 6, 4), outputs=3, axis=1),
    "split-uneven": single("Split", (2, 7), outputs=3, axis=1, num_outputs=3, opset=18),
    "split-11": single("Split", (2, 6), outputs=2, axis=1, split=[2, 4], opset=11),
    "slice": single("Slice", (4, 9, 8), I64(1, -6), I64(100, -1), I64(0, 2), I64(1, 2)),
    "slice-reverse": single("Slice", (4, 9), I64(-1, 7), I64(-100, 2), I64(0, 1), I64(-1, -2)),
    "slice-9": single("Slice", (4, 9), opset=9, starts=[1, 2], ends=[3, -1]),
    "pad": single("Pad", (2, 3, 4), I64(0, 1, 2, 0, 0, 3), np.float32(1.5)),
    "pad-negative": single("Pad", (2, 5, 4), I64(0, -1, 2, 0, -2, 1)),
    "pad-reflect": single("Pad", (2, 5, 4), I64(0, 1, 2, 0, 3, 1), mode="reflect"),
    "pad-edge": single("Pad", (2, 5, 4), I64(0, 1, 2, 0, 3, 1), mode="edge"),
    "pad-wrap": single("Pad", (2, 5, 4), I64(0, 1, 2, 0, 3, 1), mode="wrap", opset=19),
    "pad-axes": single("Pad", (2, 5, 4), I64(1, 2), None, I64(2), opset=18),
    "pad-10": single("Pad", (2, 3), opset=10, pads=[0, 1, 0, 2], value=0.5),
    "expand": single("Expand", (3, 1), I64(2, 1, 4)),
    "tile": single("Tile", (2, 3), I64(1, 2)),
    "gather": single("Gather", (5, 3, 4), I64(0, -1, 2), axis=1),
    "gather-scalar": single("Gather", (5, 3, 4), np.int64(-2), axis=1),
    "gather-matrix": single("Gather", (5, 3), I64(0, 1, 4, 2).reshape(2, 2)),
    "depth-to-space": single("DepthToSpace", (1, 8, 3, 5), blocksize=2),
    "depth-to-space-crd": single("DepthToSpace", (1, 8, 3, 5), blocksize=2, mode="CRD"),
    "space-to-depth": single("SpaceToDepth", (1, 2, 6, 4), blocksize=2),
}
EMPTY = np.zeros(0, np.float32)
SCALES = np.float32([1, 1, 2.3, 0.7])
RESIZES = {
    **{
        f"{mode}-{transform}-{'x'.join(map(str, size))}": single(
            "Resize", (1, 3, 5, 6), EMPTY, None, I64(1, 3, *size), mode=mode, coordinate_transformation_mode=transform
        )
        for mode in ("nearest", "linear")
        for transform in ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel")
        for size in ((10, 12), (7, 4))
    },
    **{
        f"nearest-{rounding}": single(
            "Resize", (1, 3, 5, 6), EMPTY, np.float32([1, 1, 2.3, 0.7]), nearest_mode=rounding
        )
        for rounding in ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil")
    },
    "linear-fraction": single("Resize", (1, 3, 5, 6), EMPTY, np.float32([1, 1, 2.3, 0.7]), mode="linear"),
    "linear-1d": single("Resize", (1, 3, 5), EMPTY, np.float32([1, 1, 2]), mode="linear"),
    "cubic": single("Resize", (1, 3, 5, 6), EMPTY, np.float32([1, 1, 2, 2]), mode="cubic"),
    "resize-10": single("Resize", (1, 3, 5, 6), np.float32([1, 1, 2, 2]), opset=10),
    "upsample": single("Upsample", (1, 3, 5, 6), np.float32([1, 1, 2, 3]), opset=9),
    "upsample-7": single("Upsample", (1, 3, 5, 6), opset=7, scales=[1.0, 1.0, 2.0, 2.0]),
    "axes": single("Resize", (1, 3, 5, 6), EMPTY, None, I64(10, 3), axes=[2, 3], opset=18),
}
MICROSOFT = {
    "fused-conv": single("FusedConv", IMAGE, K3, random(6), domain="com.microsoft", activation="Relu"),
    "fused-conv-leaky": single("FusedConv", IMAGE, K3, random(6), domain="com.microsoft", activation="LeakyRelu",
                               activation_params=[0.3], pads=[1, 1, 1, 1]),
    "fused-conv-sum": single("FusedConv", IMAGE, K3, random(6), (1, 6, 7, 6), domain="com.microsoft",
                             activation="Relu"),
    "fused-gemm": single("FusedGemm", (3, 5), random(5, 4), random(4), domain="com.microsoft", activation="LeakyRelu",
                         activation_alpha=0.2),
    "fused-matmul": single("FusedMatMul", (2, 3, 5), (2, 4, 5), domain="com.microsoft", transB=1, alpha=0.5),
    "gelu": single("Gelu", (2, 5), domain="com.microsoft"),
    "fast-gelu": single("FastGelu", (2, 5), random(5), domain="com.microsoft"),
    "quick-gelu": single("QuickGelu", (2, 5), domain="com.microsoft"),
    "bias-gelu": single("BiasGelu", (2, 5), random(5), domain="com.microsoft"),
    "skip-layer-norm": single("SkipLayerNormalization", (1, 3, 8), (1, 3, 8), random(8), random(8), random(8),
                              domain="com.microsoft"),
}  # fmt: skip
GROUPS = {
    "conv": CONVOLUTIONS, "conv-transpose": TRANSPOSED, "product": PRODUCTS, "unary": UNARY, "activation": ACTIVATIONS,
    "arithmetic": ARITHMETIC, "reduce": REDUCTIONS, "pool": POOLS, "norm": NORMALISATION, "move": MOVES,
    "resize": RESIZES, "microsoft": MICROSOFT,
}  # fmt: skip
CASES = {f"{group}/{name}": case for group, cases in GROUPS.items() for name, case in cases.items()}


@pytest.mark.parametrize("name", CASES)
def test_equals_onnxruntime(name: str) -> None:
    check(CASES[name])


@pytest.mark.parametrize("name", TRANSPOSED)
def test_transposed_convolutions_become_dense(name: str) -> None:
    found = operators(check(TRANSPOSED[name]))
    assert "nn.conv2d_transpose" not in found
    assert found["nn.conv2d"] == 1
