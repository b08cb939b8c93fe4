"""Every operator on its way back: ONNX's node tests imported, made canonical, exported and run by ONNX Runtime."""

from __future__ import annotations

import onnx_nodes
import onnxruntime
import pytest
from onnx_nodes import FLOAT_OPERATORS, Case, compare, failures
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, NotImplemented

from qcompiler.frontend.onnx import import_onnx
from qcompiler.passes.canonical import canonical_pipeline
from qcompiler.passes.export_onnx import export

onnxruntime.set_default_logger_severity(4)

NO_FORM = {
    "test_lppool_1d_default": "a 1-D pool from TVM's converter",
    "test_lppool_3d_default": "a 3-D pool from TVM's converter",
    **{
        f"test_mod_float_edge_cases_fmod_0_float{bits}": "a remainder by infinity needs more than a - floor(a / b) * b"
        for bits in (16, 32, 64)
    },
}


def check(case: Case) -> None:
    exported = export(canonical_pipeline().run(import_onnx(case.model, {n: v.shape for n, v in case.inputs.items()})))
    try:
        session = onnxruntime.InferenceSession(exported.SerializeToString())
    except (NotImplemented, Fail) as error:
        if "NOT_IMPLEMENTED" in str(error) or "not a registered" in str(error):
            return  # a data type that ONNX Runtime has no kernel for
        raise
    compare(case, dict(zip(case.outputs, session.run(list(case.outputs), dict(case.inputs)), strict=True)))


@pytest.mark.slow
@pytest.mark.parametrize("operator", FLOAT_OPERATORS)
def test_round_trip(operator: str) -> None:
    failed = failures([c for c in onnx_nodes.selected(operator) if c.name not in NO_FORM], check)
    assert not failed, "\n".join(failed)
