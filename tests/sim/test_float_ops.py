"""`sim.float_ops` against TVM: the same call built from kind, inputs and attributes, legalised by TVM and run."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from float_cases import CASES
from tvm import relax

from qcompiler.sim.float_ops import FLOAT_OPS, TUPLE_INPUT


def relax_call(kind: str, inputs: list[relax.Var], attributes: dict) -> relax.Expr:
    """The Relax call that the law of FloatOp names (`sim.float_ops`)."""
    function = relax.op
    for part in kind.split("."):
        function = getattr(function, part)
    if kind == "one_hot":
        attributes = {**attributes, **{k: tvm.tirx.const(attributes[k], "float32") for k in ("on_value", "off_value")}}
    return function(inputs, **attributes) if kind in TUPLE_INPUT else function(*inputs, **attributes)


@pytest.fixture(scope="module")
def tvm_machine() -> relax.VirtualMachine:
    """Every case as a function ``f<index>`` of one module, compiled once."""
    builder = relax.BlockBuilder()
    for index, (kind, values, attributes) in enumerate(CASES):
        params = [relax.Var(f"x{i}", relax.TensorType(v.shape, str(v.dtype))) for i, v in enumerate(values)]
        with builder.function(f"f{index}", params):
            builder.emit_func_output(builder.emit(relax_call(kind, params, attributes)))
    return relax.VirtualMachine(relax.build(builder.get(), tvm.target.Target({"kind": "llvm"})), tvm.cpu())


@pytest.mark.parametrize("index", range(len(CASES)), ids=[f"{i}-{c[0]}" for i, c in enumerate(CASES)])
def test_equals_tvm(index: int, tvm_machine: relax.VirtualMachine) -> None:
    kind, values, attributes = CASES[index]
    theirs = tvm_machine[f"f{index}"](*[tvm.runtime.tensor(np.ascontiguousarray(v)) for v in values]).numpy()
    ours = np.asarray(FLOAT_OPS[kind](*values, **attributes))
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours.astype(theirs.dtype), theirs, rtol=2e-5, atol=2e-5)


def test_every_kind_has_a_case() -> None:
    assert {k for k, _, _ in CASES} == set(FLOAT_OPS)
