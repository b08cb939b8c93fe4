"""One case or more of every float operation: (kind, inputs, attributes), for the tests of its meaning and its code."""

from __future__ import annotations

import numpy as np

SEED = np.random.default_rng(7)
F = SEED.normal(size=(2, 8, 7, 4)).astype(np.float32)
P = (np.abs(F) + 0.1).astype(np.float32)
U = (F / (np.abs(F).max() * 1.01)).astype(np.float32)
B = F > 0
I = SEED.integers(-50, 50, size=(3, 5), dtype=np.int64)  # noqa: E741
J = SEED.integers(1, 6, size=(3, 5), dtype=np.int64)
W = SEED.normal(size=(6, 3, 2, 4)).astype(np.float32)
V = SEED.normal(size=(4,)).astype(np.float32)
NHWC = {"layout": "NHWC", "out_layout": "NHWC"}
CONV = {"data_layout": "NHWC", "kernel_layout": "OHWI", "out_layout": "NHWC"}

UNARY = {
    **{k: F for k in (
        "abs", "asinh", "atan", "ceil", "cos", "cosh", "erf", "exp", "floor", "isfinite", "isinf", "isnan", "negative",
        "round", "sigmoid", "sign", "sin", "sinh", "square", "tan", "tanh", "trunc", "nn.relu", "nn.silu", "nn.gelu",
        "nn.gelu_tanh", "nn.selu", "nn.softplus", "nn.leakyrelu",
    )},
    **{k: P for k in ("log", "rsqrt", "sqrt")},
    **{k: U for k in ("acos", "asin", "atanh")},
    "acosh": P + 1, "logical_not": B, "bitwise_not": I,
}  # fmt: skip
BINARY = {
    **{k: (F, P) for k in (
        "add", "subtract", "multiply", "divide", "mod", "floor_mod", "floor_divide", "atan2", "log_add_exp", "maximum",
        "minimum", "equal", "not_equal", "greater", "greater_equal", "less", "less_equal",
    )},
    "power": (P, F),
    **{k: (B, B[:, ::-1]) for k in ("logical_and", "logical_or", "logical_xor")},
    **{k: (I, J) for k in ("bitwise_and", "bitwise_or", "bitwise_xor", "left_shift", "right_shift")},
}  # fmt: skip
RESIZES: list[dict] = [
    {"size": size, "method": method, "coordinate_transformation_mode": mode, "layout": "NHWC"}
    for size in ((16, 14), (5, 9))
    for method in ("nearest_neighbor", "linear", "cubic")
    for mode in ("half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel")
]
POOLS: list[dict] = [
    {"pool_size": (3, 2), "strides": (2, 1), "padding": (1, 0, 1, 1), **NHWC},
    {"pool_size": (2, 2), "strides": (2, 2), "padding": (0, 0, 0, 0), **NHWC},
    {"pool_size": (3, 3), "strides": (2, 2), "padding": (1, 1, 1, 1), "count_include_pad": True, **NHWC},
    {"pool_size": (2, 2), "strides": (1, 1), "dilation": (2, 3), "padding": (0, 1, 0, 1), **NHWC},
    {"pool_size": (2, 2), "strides": (2, 2), "padding": (0, 0, 0, 0), "ceil_mode": True, **NHWC},
]
CASES: list[tuple[str, tuple[np.ndarray, ...], dict]] = [
    *((k, (x,), {}) for k, x in UNARY.items()),
    *((k, xs, {}) for k, xs in BINARY.items()),
    ("divide", (I, J), {}),
    ("add", (F, V), {}),
    ("where", (B, F, P), {}),
    ("clip", (F,), {"min": -0.5, "max": 0.25}),
    ("clip", (I,), {"min": -5, "max": 7}),
    ("astype", (F * 10,), {"dtype": "int32"}),
    ("astype", (B,), {"dtype": "float32"}),
    ("nn.leakyrelu", (F,), {"alpha": 0.2}),
    ("nn.softplus", (F,), {"beta": 3.0, "threshold": 2.0}),
    ("nn.prelu", (F, V), {"axis": 3}),
    ("matmul", (F[0], F[1].transpose(0, 2, 1).copy()), {"out_dtype": None}),
    ("matmul", (F, SEED.normal(size=(4, 19)).astype(np.float32)), {}),
    ("einsum", (F[0, 0], F[1, 0]), {"subscripts": "ij,kj->ki"}),
    *((k, (F,), {"axis": a, "keepdims": d}) for k in ("sum", "mean", "prod", "max", "min", "variance", "std")
      for a, d in (((1, 2), True), ((-1,), False), (None, False))),
    *((k, (F,), {"axis": a, "keepdims": True}) for k in ("argmax", "argmin") for a in (0, 3)),
    *((k, (F,), {"axis": 1, "dtype": None, "exclusive": e}) for k in ("cumsum", "cumprod") for e in (False, True)),
    *((k, (F,), {"axis": a}) for k in ("nn.softmax", "nn.log_softmax") for a in (-1, 1)),
    ("nn.layer_norm", (F, V, V), {"axes": (-1,), "epsilon": 1e-3, "center": True, "scale": True}),
    ("nn.layer_norm", (F, F[0, 0], P[0, 0]), {"axes": (2, 3)}),
    ("nn.group_norm", (F, V, V), {"num_groups": 2, "channel_axis": 3, "axes": (1, 2)}),
    ("nn.instance_norm", (F, V, V), {"channel_axis": 3, "axes": (1, 2), "epsilon": 1e-2}),
    ("nn.rms_norm", (F, V), {"axes": (-1,)}),
    ("nn.conv2d", (F, W), {"strides": (2, 1), "padding": (1, 0, 2, 1), "dilation": (1, 2), "groups": 1, **CONV}),
    ("nn.conv2d", (F, W[..., :2].copy()), {"padding": (1, 1, 1, 1), "groups": 2, **CONV}),
    ("nn.conv2d", (F, W[:4, ..., :1].copy()), {"padding": (1, 1, 1, 1), "groups": 4, **CONV}),
    ("nn.conv1d", (F[0], W[:, 0, :, :].transpose(0, 2, 1).repeat(2, 1)[:, :7].copy()), {"padding": (1, 1)}),
    ("nn.conv3d", (F[:, None], W[None, :2, :2].transpose(1, 0, 2, 3, 4).copy()), {}),
    *((k, (F,), a) for k in ("nn.max_pool2d", "nn.avg_pool2d") for a in POOLS),
    *((k, (F[0],), {"pool_size": (3,), "strides": (2,), "padding": (1, 1)})
      for k in ("nn.max_pool1d", "nn.avg_pool1d")),
    *((k, (F[None],), {"pool_size": (2, 3, 1)}) for k in ("nn.max_pool3d", "nn.avg_pool3d")),
    ("nn.adaptive_avg_pool2d", (F,), {"output_size": (3, 2), **NHWC}),
    *(("image.resize2d", (F,), a) for a in RESIZES),
    ("image.resize2d", (F,), {**RESIZES[0], "method": "cubic", "cubic_alpha": -0.5, "cubic_exclude": 1}),
    ("image.resize2d", (F,), {"size": (5, 6), "method": "linear", "roi": (0.1, -0.2, 0.7, 1.3), "layout": "NHWC",
                              "coordinate_transformation_mode": "tf_crop_and_resize", "extrapolation_value": 9.0}),
    *(("image.resize2d", (F,), {**RESIZES[0], "rounding_method": r}) for r in ("round_prefer_floor", "floor", "ceil")),
    ("reshape", (F,), {"shape": (16, 28)}),
    ("flatten", (F,), {}),
    ("expand_dims", (F,), {"axis": (0, 3)}),
    ("squeeze", (F[:1],), {"axis": (0,)}),
    ("permute_dims", (F,), {"axes": (0, 3, 1, 2)}),
    ("broadcast_to", (V,), {"shape": (3, 2, 4)}),
    ("tile", (F,), {"repeats": (1, 2, 1, 3)}),
    ("repeat", (F,), {"repeats": 3, "axis": 1}),
    ("flip", (F,), {"axis": 2}),
    ("concat", (F, P, U), {"axis": 2}),
    ("stack", (F, P), {"axis": 1}),
    ("strided_slice", (F,), {"axes": (1, 2), "begin": (1, -1), "end": (7, -100), "strides": (2, -1)}),
    *(("nn.pad", (F,), {"pad_width": (0, 0, 1, 2, 3, 1, 0, 0), "pad_mode": m, "pad_value": v})
      for m, v in (("constant", 1.5), ("reflect", 0.0), ("replicate", 0.0), ("circular", 0.0))),
    ("take", (F, J % 7), {"axis": 2, "mode": "fast"}),
    ("take", (F, (J % 7).astype(np.int32)), {"axis": 2, "mode": "fast"}),
    ("take", (F, J * 3), {"axis": 2, "mode": "wrap"}),
    ("take", (F, J * 3), {"axis": 2, "mode": "clip"}),
    ("gather_elements", (I, J[:2] % 3), {"axis": 0}),
    ("gather_nd", (F, np.array([[0, 1], [1, 7]])), {"batch_dims": 0}),
    ("gather_nd", (F, np.array([[[0, 1]], [[7, 6]]])), {"batch_dims": 1}),
    ("scatter_elements", (F[0, 0], J[:2, :4] % 7, F[1, 0, :2]), {"axis": 0, "reduction": "update"}),
    ("scatter_elements", (F[0, 0], np.array([[1, 2, 2, -1]]), F[1, 0, :1]), {"axis": 1, "reduction": "add"}),
    ("scatter_nd", (F[0], np.array([[1], [6]]), F[1, :2]), {"reduction": "update"}),
    ("scatter_nd", (F[0], np.array([[1], [1]]), F[1, :2]), {"reduction": "add"}),
    ("one_hot", (J % 5,), {"on_value": 2.0, "off_value": -1.0, "depth": 5, "axis": 1}),
    ("tril", (F,), {"k": 1}),
    ("triu", (F,), {"k": -1}),
]  # fmt: skip
