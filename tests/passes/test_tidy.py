"""Tidying a program changes no output and leaves nothing that no output needs."""

from __future__ import annotations

import numpy as np

from qcompiler.passes.tidy import drop_dead, tidy
from qcompiler.sim.integer_program import IntegerProgram, MatMul, Requantize, Reshape, Tensor, Transpose, check
from qcompiler.sim.reference import execute

RNG = np.random.default_rng(0)


def int8(name: str, *shape: int) -> Tensor:
    return Tensor(name, shape, "int8", 0.5, 3)


def program(tensors, operations, inputs, outputs) -> IntegerProgram:
    return check(IntegerProgram("p", inputs, outputs, {t.name: t for t in tensors}, tuple(operations)))


def test_unit_transposes_and_chains_of_reshapes_become_one_reshape():
    before = program(
        [int8("x", 1, 1, 6, 4), int8("a", 1, 6, 4, 1), int8("b", 24), int8("y", 4, 6)],
        [
            Transpose("a", ("x",), "a", (0, 2, 3, 1)),
            Reshape("b", ("a",), "b", (24,)),
            Reshape("y", ("b",), "y", (4, 6)),
        ],
        ("x",), ("y",),
    )  # fmt: skip
    after = check(tidy(before))
    assert [(type(o), o.inputs, o.output) for o in after.operations] == [(Reshape, ("x",), "y")]
    assert set(after.tensors) == {"x", "y"}
    x = RNG.integers(-128, 128, (1, 1, 6, 4)).astype(np.int8)
    np.testing.assert_array_equal(execute(before, {"x": x})["y"], execute(after, {"x": x})["y"])


def test_a_transposed_operand_is_read_by_rows():
    requantize = Requantize(np.array([0.01], np.float32), 3)
    before = program(
        [int8("a", 2, 4, 8), int8("b", 6, 2, 8), int8("t", 2, 8, 6), int8("y", 2, 4, 6)],
        [Transpose("t", ("b",), "t", (1, 2, 0)), MatMul("y", ("a", "t"), "y", requantize)],
        ("a", "b"), ("y",),
    )  # fmt: skip
    after = check(tidy(before))
    transpose, matmul = after.operations
    assert isinstance(transpose, Transpose) and transpose.permutation == (1, 0, 2)
    assert isinstance(matmul, MatMul) and matmul.transpose_b
    values = {n: RNG.integers(-128, 128, after.tensors[n].shape).astype(np.int8) for n in ("a", "b")}
    np.testing.assert_array_equal(execute(before, values)["y"], execute(after, values)["y"])


def test_a_transpose_that_others_read_stays():
    requantize = Requantize(np.array([0.01], np.float32), 3)
    before = program(
        [int8("a", 4, 8), int8("b", 6, 8), int8("t", 8, 6), int8("y", 4, 6)],
        [Transpose("t", ("b",), "t", (1, 0)), MatMul("y", ("a", "t"), "y", requantize)],
        ("a", "b"), ("y", "t"),
    )  # fmt: skip
    after = tidy(before)
    assert [type(o) for o in after.operations] == [Transpose, MatMul]
    assert not after.operations[1].transpose_b


def test_dead_operations_and_constants_go_and_inputs_stay():
    dead = program(
        [int8("x", 4), int8("unused", 4), int8("d", 2, 2), int8("y", 4, 1)],
        [Reshape("d", ("x",), "d", (2, 2)), Reshape("y", ("x",), "y", (4, 1))], ("x", "unused"), ("y",),
    )  # fmt: skip
    kept = drop_dead(dead)
    assert [o.name for o in kept.operations] == ["y"] and set(kept.tensors) == {"x", "unused", "y"}
