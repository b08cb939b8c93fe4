"""The support matrix: each ONNX operator in a model of its own, sent through the pipeline to see what becomes of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from qcompiler.codegen.npu.lower import compile_npu
from qcompiler.passes.fuse import MOVES
from qcompiler.passes.graph import read
from qcompiler.passes.integerize import integerize
from qcompiler.pipeline import Options, quantise_model
from qcompiler.progress import Progress
from qcompiler.report.collect import kind_of
from qcompiler.sim import hardware
from qcompiler.sim.errors import QCompilerError
from qcompiler.sim.hardware import Machine
from qcompiler.sim.integer_program import Dequantize, FloatOp, IntegerProgram, Quantize
from qcompiler.targets import known_targets

IMAGE, ROWS, HEADS = (1, 4, 8, 8), (1, 6, 16), (1, 2, 6, 8)
WIDE = (1, 16, 8, 8)
ROI = np.array([], np.float32)
TWICE = np.array([1, 1, 2, 2], np.float32)

# operator: (shapes of the inputs, constants that follow them, attributes)
Example = tuple[list[tuple[int, ...]], list[Any], dict[str, Any]]


def _w(*shape: int) -> Any:
    return np.random.default_rng(0).normal(0, 0.3, shape).astype(np.float32)


def _i(*values: int) -> Any:
    return np.array(values, np.int64)


EXAMPLES: dict[str, Example] = {
    "Conv": ([IMAGE], [_w(8, 4, 3, 3), _w(8)], {"pads": [1, 1, 1, 1]}),
    "Conv (depthwise)": ([IMAGE], [_w(4, 1, 3, 3)], {"group": 4, "strides": [2, 2]}),
    "Conv (grouped)": ([WIDE], [_w(16, 4, 3, 3)], {"group": 4}),
    "Conv (1-D)": ([(1, 4, 20)], [_w(8, 4, 3)], {"dilations": [2]}),
    "ConvTranspose": ([IMAGE], [_w(4, 8, 4, 4)], {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "Gemm": ([(1, 16)], [_w(16, 10), _w(10)], {}),
    "MatMul (constant)": ([ROWS], [_w(16, 12)], {}),
    "MatMul (two activations)": ([HEADS, (1, 2, 8, 6)], [], {}),
    "BatchNormalization": ([IMAGE], [_w(4), _w(4), _w(4), np.abs(_w(4)) + 0.1], {}),
    "LayerNormalization": ([ROWS], [_w(16), _w(16)], {}),
    "InstanceNormalization": ([IMAGE], [_w(4), _w(4)], {}),
    "LRN": ([IMAGE], [], {"size": 3}),
    "Add": ([IMAGE, IMAGE], [], {}),
    "Sub": ([IMAGE, IMAGE], [], {}),
    "Mul": ([IMAGE, IMAGE], [], {}),
    "Div": ([IMAGE, IMAGE], [], {}),
    "Div (by a constant)": ([IMAGE], [np.float32(3)], {}),
    "Sum": ([IMAGE, IMAGE, IMAGE], [], {}),
    "Max": ([IMAGE, IMAGE], [], {}),
    "Min": ([IMAGE, IMAGE], [], {}),
    "Pow": ([IMAGE], [np.float32(2)], {}),
    "Relu": ([IMAGE], [], {}),
    "Clip": ([IMAGE], [np.float32(0), np.float32(6)], {}),
    "LeakyRelu": ([IMAGE], [], {"alpha": 0.1}),
    "PRelu": ([IMAGE], [_w(4, 1, 1)], {}),
    "Elu": ([IMAGE], [], {}),
    "Selu": ([IMAGE], [], {}),
    "Sigmoid": ([IMAGE], [], {}),
    "HardSigmoid": ([IMAGE], [], {}),
    "HardSwish": ([IMAGE], [], {}),
    "Tanh": ([IMAGE], [], {}),
    "Softplus": ([IMAGE], [], {}),
    "Gelu": ([IMAGE], [], {}),
    "Mish": ([IMAGE], [], {}),
    "Erf": ([IMAGE], [], {}),
    "Exp": ([IMAGE], [], {}),
    "Sqrt": ([IMAGE], [], {}),
    "Abs": ([IMAGE], [], {}),
    "Neg": ([IMAGE], [], {}),
    "Softmax": ([ROWS], [], {}),
    "LogSoftmax": ([ROWS], [], {}),
    "MaxPool": ([IMAGE], [], {"kernel_shape": [2, 2], "strides": [2, 2]}),
    "AveragePool": ([IMAGE], [], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    "GlobalAveragePool": ([IMAGE], [], {}),
    "GlobalMaxPool": ([IMAGE], [], {}),
    "ReduceMean": ([ROWS], [_i(-1)], {}),
    "ReduceSum": ([ROWS], [_i(-1)], {}),
    "ReduceMax": ([ROWS], [_i(-1)], {}),
    "Concat": ([IMAGE, IMAGE], [], {"axis": 1}),
    "Split": ([IMAGE], [], {"axis": 1, "num_outputs": 2}),
    "Slice": ([IMAGE], [_i(0, 1), _i(4, 7), _i(2, 3)], {}),
    "Pad": ([IMAGE], [_i(0, 0, 1, 1, 0, 0, 1, 1)], {}),
    "Resize (nearest)": ([IMAGE], [ROI, TWICE], {"mode": "nearest"}),
    "Resize (linear)": ([IMAGE], [ROI, TWICE], {"mode": "linear"}),
    "Resize (cubic)": ([IMAGE], [ROI, TWICE], {"mode": "cubic"}),
    "Reshape": ([IMAGE], [_i(1, -1)], {}),
    "Flatten": ([IMAGE], [], {}),
    "Transpose": ([ROWS], [], {"perm": [0, 2, 1]}),
    "Squeeze": ([IMAGE], [_i(0)], {}),
    "Unsqueeze": ([ROWS], [_i(1)], {}),
    "Expand": ([(1, 1, 16)], [_i(1, 6, 16)], {}),
    "Tile": ([ROWS], [_i(1, 2, 1)], {}),
    "Gather (constant indices)": ([ROWS], [_i(0, 2, 4)], {"axis": 1}),
    "DepthToSpace": ([WIDE], [], {"blocksize": 2}),
    "SpaceToDepth": ([IMAGE], [], {"blocksize": 2}),
    "CumSum": ([ROWS], [_i(1)], {}),
}


def example_model(title: str, after: str | None = None) -> onnx.ModelProto:
    """A model of this operator alone, opset 20; `after` puts a unary operator in front of each input."""
    operator = title.partition(" (")[0]
    shapes, constants, attributes = EXAMPLES[title]
    inputs = [f"x{i}" for i in range(len(shapes))]
    weights = [f"c{i}" for i in range(len(constants))]
    outputs = [f"y{i}" for i in range(attributes.get("num_outputs", 1))]
    nodes = [helper.make_node(after, [n], [f"{n}.{after}"]) for n in inputs] if after else []
    sources = [f"{n}.{after}" for n in inputs] if after else inputs
    graph = helper.make_graph(
        [*nodes, helper.make_node(operator, sources + weights, outputs, name=operator, **attributes)], "g",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in zip(inputs, shapes, strict=True)],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in zip(weights, constants, strict=True)],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def compiled(title: str) -> IntegerProgram:
    """The integer program of the operator; what only moves data comes behind a sigmoid, which makes its input int8."""
    random = np.random.default_rng(1)
    samples = [
        {f"x{i}": random.uniform(0.1, 2, shape).astype(np.float32) for i, shape in enumerate(EXAMPLES[title][0])}
        for _ in range(4)
    ]
    quantised = quantise_model(example_model(title), samples, Options(), Progress())
    if all(node.op in MOVES for node in read(quantised.module).nodes):
        quantised = quantise_model(example_model(title, "Sigmoid"), samples, Options(), Progress())
    return integerize(quantised.module)


def outcome(program: IntegerProgram, title: str) -> tuple[str, str]:
    """("int8", the integer operations it becomes) or ("float", why)."""
    floats = [op for op in program.operations if isinstance(op, FloatOp)]
    if floats:
        return "float", floats[0].reason
    kinds = dict.fromkeys(kind_of(op) for op in program.operations if not isinstance(op, (Quantize, Dequantize)))
    if title != "Sigmoid":
        kinds.pop("Table (sigmoid)", None)
    # NCHW at the model's edge is no matter of the operator, unless it is all there is.
    inner = [kind for kind in kinds if kind not in ("Transpose", "Reshape")]
    return "int8", ", ".join(inner or kinds)


def on_accelerator(program: IntegerProgram, machine: Machine) -> str:
    """ "int8" when the accelerator computes all of it, "no" otherwise."""
    try:
        compile_npu(program, machine)
    except QCompilerError:
        return "no"
    return "int8"


def page() -> str:
    """The matrix as Markdown."""
    machine = hardware.load("edge-16x16")
    rows = []
    for title in EXAMPLES:
        program = compiled(title)
        kind, how = outcome(program, title)
        rows.append(f"| {title} | {kind} | {on_accelerator(program, machine)} | {how} |\n")
    targets = "".join(f"- `{t.name}`: {t.description}\n" for t in known_targets())
    return (
        "# What is supported\n\n## Targets\n\n" + targets + "\n## Operators\n\n"
        "Each row was made by compiling a small model of that operator (docs/support.py). *int8*: integer arithmetic "
        "from end to end, equal on every target to the last bit. *float*: the operator computes in float32 between a "
        "dequantise and a quantise; the accelerator has no float unit,\n"
        "and micro-controllers and c99 refuse such a model.\n\n"
        "| ONNX operator | CPU | NPU | integer operations, or why not |\n|---|---|---|---|\n"
        + "".join(rows)
        + "\nQuantised models: QuantizeLinear and DequantizeLinear (QDQ), QLinearConv, QLinearMatMul, ConvInteger, "
        "MatMulInteger and ONNX Runtime's com.microsoft operators are read with the scales they carry. Operators that "
        "are not listed are converted by TVM where it can, and compute in float32.\n"
    )
