"""ONNX's node tests of quantised operators: the same integers out, through import, integer program and interpreter.

A program takes and gives int8 (uint8 values less 128) or float. An 8-bit input therefore enters as the real numbers
that a QuantizeLinear with its own scale and zero point turns into exactly the case's integers.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx_nodes
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_nodes import QUANTISED_OPERATORS, Case, excluded, outside

from qcompiler.sim import reference
from qcompiler.sim.errors import QCompilerError
from qcompiler.sim.integer_program import FloatOp, IntegerProgram
from qcompiler.sim.numerics import Rounding

DTYPES = ("float32", "int8", "uint8", "int32")

# Operator to, for each 8-bit input: its position, and those of its scale (None: 1) and zero point.
PARAMETERS: dict[str, list[tuple[int, int | None, int]]] = {
    "DequantizeLinear": [(0, 1, 2)],
    "QLinearConv": [(0, 1, 2)],
    "QLinearMatMul": [(0, 1, 2), (3, 4, 5)],
    "ConvInteger": [(0, None, 2)],
    "MatMulInteger": [(0, None, 2), (1, None, 3)],
}


def selected(operator: str) -> list[Case]:
    return [c for c in onnx_nodes.cases()[operator] if outside(c, DTYPES) is None and excluded(c) is None]


def with_real_inputs(case: Case) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """The case's model behind QuantizeLinear nodes, and the real numbers to feed.

    A program has no uint8 at its ends: such an output is read as real numbers, its codes.
    """
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    graph = model.graph
    (node,) = graph.node
    values = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    feeds = dict(case.inputs)
    for position, scale_at, zero_at in PARAMETERS.get(case.operator, []):
        name = node.input[position]
        scale = np.ones((), np.float32) if scale_at is None else values[node.input[scale_at]].astype(np.float32)
        if scale.ndim > 1:
            continue  # quantised in blocks: no QuantizeLinear of ours makes that
        integers = feeds.pop(name)
        given = zero_at < len(node.input) and node.input[zero_at]
        zero = values[node.input[zero_at]] if given else np.zeros((), integers.dtype)
        column = [-1 if axis == 1 else 1 for axis in range(integers.ndim)] if scale.size > 1 else ()
        offset = zero.astype(np.float32).reshape(column)
        feeds[f"{name}_real"] = (integers.astype(np.float32) - offset) * scale.reshape(column)
        names = [f"{name}_real", f"{name}_real_scale", f"{name}_real_zero"]
        graph.initializer.extend(numpy_helper.from_array(v, n) for v, n in zip((scale, zero), names[1:], strict=True))
        graph.node.insert(0, helper.make_node("QuantizeLinear", names, [name]))
        for value in graph.input:
            if value.name == name:
                value.name = f"{name}_real"
                value.type.tensor_type.elem_type = TensorProto.FLOAT
    for value in graph.output:
        if value.type.tensor_type.elem_type != TensorProto.UINT8:
            continue
        code = f"{value.name}_code"
        for i, name in enumerate(node.output):
            if name == value.name:
                node.output[i] = code
        constants = {f"{code}_scale": np.ones((), np.float32), f"{code}_zero": np.zeros((), np.uint8)}
        graph.initializer.extend(numpy_helper.from_array(v, n) for n, v in constants.items())
        graph.node.append(helper.make_node("DequantizeLinear", [code, *constants], [value.name]))
        value.type.tensor_type.elem_type = TensorProto.FLOAT
    # The operators of these cases are old; QuantizeLinear with any of their types is there from opset 13 on.
    model.opset_import[0].version = max(model.opset_import[0].version, 13)
    return model, feeds


def results(case: Case, rounding: Rounding) -> tuple[IntegerProgram, list[tuple[np.ndarray, np.ndarray]]]:
    """The program, and (computed, expected) of every output, both as wide integers (or floats)."""
    model, feeds = with_real_inputs(case)
    model.graph.name = case.name
    program = onnx_nodes.program_of(Case(case.name, case.operator, model, feeds, {}, 0, 0), rounding)
    computed = reference.execute(program, feeds)
    pairs = []
    for name, want in case.outputs.items():
        got = computed[name]
        if program.tensors[name].dtype == "int8":
            got = got.astype(np.int64)
        pairs.append((got, want if want.dtype.kind == "f" else want.astype(np.int64)))
    return program, pairs


@pytest.mark.parametrize("operator", QUANTISED_OPERATORS)
def test_equal_integers(operator: str) -> None:
    """With the standard's rounding, exactly."""
    cases = selected(operator)
    assert cases
    for case in cases:
        for got, want in results(case, "f32_half_even")[1]:
            np.testing.assert_array_equal(got, want, err_msg=case.name)


@pytest.mark.parametrize("operator", ["QLinearConv", "QLinearMatMul"])
def test_default_rounding_is_within_one_step(operator: str) -> None:
    for case in selected(operator):
        program, pairs = results(case, "exact_half_up")
        left = {op.reason for op in program.operations if isinstance(op, FloatOp)}
        # The weight of QLinearConv's case has a zero point; what follows the float convolution is float too.
        assert not left or any("asymmetric" in reason for reason in left), left
        for got, want in pairs:
            assert np.abs(got - want).max() <= 1, case.name


def test_what_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    """The excluded 8-bit cases are refused by the compiler; prints the coverage."""
    reasons: Counter[str] = Counter()
    run = 0
    for case in (c for o in QUANTISED_OPERATORS for c in onnx_nodes.cases()[o]):
        reason = outside(case, DTYPES) or excluded(case)
        run += reason is None
        if reason:
            reasons[reason] += 1
        if outside(case, DTYPES) is None and excluded(case):
            with pytest.raises(QCompilerError):
                results(case, "f32_half_even")
    with capsys.disabled():
        print(f"\nONNX node tests: {run} cases of {len(QUANTISED_OPERATORS)} quantised operators run;")
        print("".join(f"  {count:4} left out: {reason}\n" for reason, count in reasons.most_common()))
    assert run >= 13
