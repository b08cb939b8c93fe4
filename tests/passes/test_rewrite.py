"""The builder of straight-line Relax code and the rewriter: names, outputs, dead code, use counts."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from onnx_graphs import evaluate
from tvm import relax
from tvm.relax import op as R

from qcompiler.passes.base import verify
from qcompiler.passes.graph import read
from qcompiler.passes.rewrite import Builder, Rewriter, const, constant_value, op_name, shape_of, shuffled

X = np.arange(24, dtype=np.float32).reshape(2, 3, 4) - 12


def network() -> tvm.IRModule:
    """relu(x) + 1, returned twice, beside a dead exp."""
    builder = Builder()
    x = builder.input("in/put:0", (2, 3, 4), "float32")
    a = builder.emit(R.nn.relu(x), "a:0")
    builder.emit(R.exp(a), "dead")
    b = builder.emit(R.add(a, const(1.0)), "b/0")
    return builder.finish({"first": b, "second": b, "same": x, "a:0": a})


def test_names_are_kept_and_every_output_is_its_own() -> None:
    module = network()
    verify(module, "the test")
    graph = read(module)
    assert graph.inputs == ("in/put:0",)
    assert graph.outputs == ("first", "second", "same", "a:0")
    assert [(n.name, n.op) for n in graph.nodes] == [
        ("a:0", "nn.relu"), ("first", "add"), ("second", "reshape"), ("same", "reshape"),
    ]  # fmt: skip
    first, second, same, a = evaluate(module, {"in/put:0": X})
    np.testing.assert_array_equal(first, np.maximum(X, 0) + 1)
    np.testing.assert_array_equal(second, first)
    np.testing.assert_array_equal(same, X)
    np.testing.assert_array_equal(a, np.maximum(X, 0))


def test_helpers_never_take_a_reserved_name() -> None:
    builder = Builder()
    builder.reserve(["y"])
    x = builder.input("x", (2,), "float32")
    names = [str(builder.emit(R.nn.relu(x), "y").name) for _ in range(2)]
    assert names == ["y_1", "y_2"]
    assert str(builder.emit(R.nn.relu(x), "y", exact=True).name) == "y"


class Keep(Rewriter):
    def rewrite(self, name: str, call: relax.Call) -> relax.Expr:
        return call


class WithoutRelu(Rewriter):
    def rewrite(self, name: str, call: relax.Call) -> relax.Expr:
        return call.args[0] if op_name(call) == "nn.relu" else call


class Constant(Rewriter):
    def rewrite(self, name: str, call: relax.Call) -> relax.Expr:
        return const(np.full(shape_of(self._infer.normalize(call)), 7.0)) if op_name(call) == "add" else call


@pytest.mark.parametrize("rewriter", [Keep, WithoutRelu, Constant])
def test_rewritten_modules_are_well_formed_and_keep_their_interface(rewriter: type[Rewriter]) -> None:
    module = rewriter(network()).run()
    verify(module, "the test")
    graph = read(module)
    assert graph.inputs == ("in/put:0",) and graph.outputs == ("first", "second", "same", "a:0")
    results = evaluate(module, {"in/put:0": X})
    rectified = X if rewriter is WithoutRelu else np.maximum(X, 0)
    sums = np.full_like(X, 7) if rewriter is Constant else rectified + 1
    for actual, expected in zip(results, [sums, sums, X, rectified], strict=True):
        np.testing.assert_array_equal(actual, expected)


def test_a_pass_that_changes_nothing_changes_no_text() -> None:
    module = network()
    assert Keep(module).run().script() == module.script()


def test_use_counts() -> None:
    """relu is read by the addition and returned; the addition is returned twice (once through its copy)."""
    rewriter = Keep(network())
    uses = {str(var.name): count for var, count in rewriter.uses.items()}
    assert uses["a:0"] == 2 and uses["first"] == 2 and uses["second"] == 1


def test_constants() -> None:
    assert constant_value(const(np.float64(1.5))).dtype == np.float32
    assert constant_value(const(np.float16([1, 2]))).dtype == np.float32
    assert constant_value(const(np.int64(3))).dtype == np.int64
    assert constant_value(const(np.int8(3))).shape == ()
    assert constant_value(relax.Var("x", relax.TensorType((1,), "float32"))) is None


@pytest.mark.parametrize(
    ("split", "axes", "steps"),
    [((2, 3, 4), (1, 0, 2), 3), ((2, 1, 3, 4), (1, 0, 2, 3), 1), ((1, 6, 2, 2), (3, 0, 1, 2), 3), ((24,), (0,), 1)],
)
def test_shuffles_have_no_axes_of_one_element(split: tuple, axes: tuple, steps: int) -> None:
    builder = Builder()
    x = builder.input("x", (2, 3, 4), "float32")
    module = builder.finish({"y": builder.emit(shuffled(builder, x, split, axes, (4, 6), "y"), "y")})
    assert len(read(module).nodes) == steps
    expected = X.reshape(split).transpose(axes).reshape(4, 6)
    np.testing.assert_array_equal(evaluate(module, {"x": X})[0], expected)
