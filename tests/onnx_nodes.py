"""ONNX's own node tests as models for this compiler: which are selected, which excluded and why, and how they run.

The standard's cases give every tensor as a graph input. A compiler takes weights and shapes as constants, so the
inputs named in CONSTANT_INPUTS become initialisers with the case's values; the rest stay inputs.
"""

from __future__ import annotations

import fnmatch
import functools
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from qcompiler.frontend.onnx import import_onnx
from qcompiler.passes.canonical import canonical_pipeline
from qcompiler.passes.integerize import integerize
from qcompiler.sim.integer_program import IntegerProgram
from qcompiler.sim.numerics import Rounding

PROMISED = (
    "Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Sub", "Mul", "Div", "Concat", "Split", "Slice", "Pad", "MaxPool",
    "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "Relu", "Clip", "LeakyRelu", "PRelu", "Sigmoid",
    "Tanh", "HardSwish", "HardSigmoid", "Swish", "Gelu", "Erf", "Softmax", "LayerNormalization", "Resize", "Upsample",
    "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Expand", "Gather", "LRN",
)  # fmt: skip
"""What the support matrix promises."""

FLOAT_OPERATORS = (
    *PROMISED,
    "Abs", "Acos", "Acosh", "And", "ArgMax", "ArgMin", "Asin", "Asinh", "Atan", "Atanh", "BatchNormalization",
    "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", "MeanVarianceNormalization", "Cast",
    "Ceil", "Celu", "Cos", "Cosh", "CumSum", "DepthToSpace", "Dropout", "Einsum", "Elu", "Equal", "Exp", "Floor",
    "GatherElements", "GatherND", "Greater", "GreaterOrEqual", "GroupNormalization", "Hardmax", "Identity",
    "InstanceNormalization", "IsInf", "IsNaN", "Less", "LessOrEqual", "Log", "LogSoftmax", "LpPool", "Max", "Mean",
    "Min", "Mish", "Mod", "Neg", "Not", "OneHot", "Or", "Pow", "RMSNormalization", "Reciprocal", "ReduceL1", "ReduceL2",
    "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare", "Round",
    "ScatterElements", "ScatterND", "Selu", "Shrink", "Sign", "Sin", "Sinh", "Softplus", "Softsign", "SpaceToDepth",
    "Sqrt", "Sum", "Tan", "ThresholdedRelu", "Tile", "TopK", "Trilu", "Where", "Xor",
)  # fmt: skip
"""Everything that the importer converts and the standard has cases for."""

QUANTISED_OPERATORS = (
    "QuantizeLinear", "DequantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger",
)  # fmt: skip

CONSTANT_INPUTS: dict[str, tuple[int, ...]] = {
    "BatchNormalization": (1, 2, 3, 4), "Clip": (1, 2), "Conv": (1, 2), "ConvTranspose": (1, 2), "CumSum": (1,),
    "Dropout": (1, 2), "Expand": (1,), "Gemm": (1, 2), "GroupNormalization": (1, 2), "InstanceNormalization": (1, 2),
    "LayerNormalization": (1, 2), "OneHot": (1, 2), "PRelu": (1,), "Pad": (1, 2, 3), "RMSNormalization": (1,),
    **{o: (1,) for o in FLOAT_OPERATORS if o.startswith("Reduce")},
    "Reshape": (1,), "Resize": (1, 2, 3), "Slice": (1, 2, 3, 4), "Split": (1,), "Squeeze": (1,), "Tile": (1,),
    "TopK": (1,), "Trilu": (1,), "Unsqueeze": (1,), "Upsample": (1,),
    "QuantizeLinear": (1, 2), "DequantizeLinear": (1, 2), "QLinearConv": (1, 2, 3, 4, 5, 6, 7, 8),
    "QLinearMatMul": (1, 2, 4, 5, 6, 7), "ConvInteger": (1, 2, 3), "MatMulInteger": (2, 3),
}  # fmt: skip

OPTIONAL_OUTPUTS = {"LayerNormalization"}  # Mean and InvStdDev exist for training only; the first output is compiled

FLOAT_AS = {"float64": "float32", "float16": "float32"}  # what the importer computes them in
PROGRAM_DTYPES = ("bool", "float32", "int32", "int64")
OPSETS = (7, 24)

VOLUMES = "three spatial axes; convolutions and pools take one or two"
RESIZE = "not a plain resize; the importer names the attribute"

EXCLUDED: dict[str, str] = {
    "test_argm*_select_last_index": "the last of equal extremes",
    "test_averagepool_3d_*": VOLUMES,
    "test_batchnorm_*_training_mode": "training",
    "test_convtranspose_3d": VOLUMES,
    "test_dropout_default_mask*": "the mask is a constant outside training",
    "test_identity_opt": "optional tensors",
    "test_identity_sequence": "sequences of tensors",
    "test_maxpool_3d_*": VOLUMES,
    "test_maxpool_with_argmax_*": "the indices of maxima serve training",
    "test_resize_*_antialias": RESIZE,
    "test_resize_*_not_larger": RESIZE,
    "test_resize_*_not_smaller": RESIZE,
    "test_resize_downsample_scales_cubic*": RESIZE,
    "test_resize_downsample_scales_linear_align_corners":
        "the standard aligns to a corner at a fractional size; ONNX Runtime, PyTorch and we to the last element",
    "test_resize_tf_crop_and_resize*": RESIZE,
    "test_spacetodepth_*_mode_example": "an attribute newer than opset 24",
    "test_top_k*": "sorting",
    "test_training_dropout*": "training",
    # Quantised operators.
    "test_*quantizelinear_axis": "an activation quantised per channel",
    "test_*quantizelinear_blocked*": "quantised in blocks",
}  # fmt: skip
"""Cases that the compiler refuses, by name pattern, each with the reason."""


@dataclass(frozen=True)
class Case:
    """One case of the standard. inputs: the run-time inputs by name; outputs: all expected outputs by name."""

    name: str
    operator: str
    model: onnx.ModelProto
    inputs: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]
    rtol: float
    atol: float


@functools.cache
def cases() -> dict[str, list[Case]]:
    """Operator to its cases: those of one node, and their expansions into other operators."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases

        found: list[Any] = collect_testcases()
    operators = {c.name: c.model.graph.node[0].op_type for c in found if len(c.model.graph.node) == 1}
    grouped: dict[str, list[Case]] = {o: [] for o in (*FLOAT_OPERATORS, *QUANTISED_OPERATORS)}
    for case in found:
        operator = operators.get(re.sub(r"_expanded.*", "", case.name))
        if operator in grouped:
            (data,) = case.data_sets
            grouped[operator].append(_case(case, operator, *data))
    return grouped


def _case(case: Any, operator: str, inputs: Sequence[Any], outputs: Sequence[Any]) -> Case:
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    for opset in model.opset_import:
        if opset.domain == "":  # a case uses the version that defined its operator, or last widened its types
            opset.version = min(max(opset.version, OPSETS[0]), OPSETS[1])
    graph = model.graph
    values = {v.name: _array(x) for v, x in zip(graph.input, inputs, strict=True)}
    single = len(graph.node) == 1 and graph.node[0].op_type == operator
    if single and operator in OPTIONAL_OUTPUTS:
        outputs = outputs[:1]
        del graph.node[0].output[1:], graph.output[1:]
    positions = list(graph.node[0].input) if single else [v.name for v in graph.input]
    constant = {positions[i] for i in CONSTANT_INPUTS.get(operator, ()) if i < len(positions)} - {""}
    kept = [v for v in graph.input if v.name not in constant]
    del graph.input[:]
    graph.input.extend(kept)
    graph.initializer.extend(numpy_helper.from_array(values[n], n) for n in sorted(constant))
    return Case(
        case.name, operator, model, {v.name: _narrowed(values[v.name]) for v in kept},
        {v.name: _narrowed(_array(x)) for v, x in zip(graph.output, outputs, strict=True)}, case.rtol, case.atol,
    )  # fmt: skip


def _array(value: Any) -> np.ndarray:
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)


def _narrowed(value: np.ndarray) -> np.ndarray:
    return value.astype(FLOAT_AS.get(str(value.dtype), value.dtype))


def excluded(case: Case) -> str | None:
    """Why the table leaves a case out, or None."""
    return next((reason for pattern, reason in EXCLUDED.items() if fnmatch.fnmatchcase(case.name, pattern)), None)


def outside(case: Case, dtypes: Sequence[str] = PROGRAM_DTYPES) -> str | None:
    """Why a case has values that no program of qcompiler holds, or None."""
    for value in (*case.inputs.values(), *case.outputs.values()):
        if str(value.dtype) not in dtypes:
            return f"{value.dtype} tensors"
        if value.size == 0:
            return "empty tensors"
    return None


def selected(operator: str) -> list[Case]:
    """The cases of a float operator that must pass."""
    return [c for c in cases()[operator] if outside(c) is None and excluded(c) is None]


def program_of(case: Case, rounding: Rounding = "exact_half_up") -> IntegerProgram:
    """The program of a case: float, unless its operators are quantised ones."""
    module = import_onnx(case.model, {n: v.shape for n, v in case.inputs.items()})
    return integerize(canonical_pipeline().run(module), rounding, name=case.name)


def compare(case: Case, results: Mapping[str, np.ndarray]) -> None:
    """Shapes and dtypes equal, values within the standard's tolerance of the case."""
    for name, want in case.outputs.items():
        got = results[name]
        assert (got.shape, got.dtype) == (want.shape, want.dtype), f"{name}: {got.dtype}{got.shape}"
        np.testing.assert_allclose(got, want, rtol=case.rtol, atol=case.atol)


def failures(cases: Iterable[Case], check: Callable[[Case], None]) -> list[str]:
    """Run the check on every case; a line for each that raised."""
    lines = []
    for case in cases:
        try:
            check(case)
        except Exception as error:  # a test collects whatever goes wrong
            lines.append(f"{case.name}: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
    return lines
