"""TVM's own converters, for ONNX operators that this frontend does not write itself.

A converter runs in a scratch function over parameters of the input's types; the calls it makes are then replayed
into the module with names of ours. Only plain Relax operators on static shapes are accepted: anything else (a
compiled kernel inside, a shape that is data) would not survive the later passes.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from functools import cache
from typing import Any

import tvm
from tvm import relax
from tvm.relax.frontend.onnx import onnx_frontend as tvm_onnx

from qcompiler.frontend.onnx_node import STANDARD_DOMAINS, Node, Result, Unsupported
from qcompiler.passes.rewrite import const, substitute
from qcompiler.sim.float_ops import FLOAT_OPS


@cache
def convertible() -> frozenset[str]:
    """Standard operators that TVM converts."""
    return frozenset(tvm_onnx._get_convert_map()) - {"If"}  # noqa: SLF001 - the map has no public name


def convert(node: Node) -> Result:
    """The node by TVM's converter. Raises Unsupported where it fails or makes more than plain operators."""
    if node.domain not in STANDARD_DOMAINS or node.op_type not in convertible():
        raise Unsupported("the operator is unknown")
    scratch = relax.BlockBuilder()
    values: dict[relax.Var, relax.Expr] = {}
    inputs = tvm_onnx.onnx_input()
    for i, value in enumerate(node.inputs):
        if isinstance(value, relax.Var):
            parameter = relax.Var(f"p{i}", value.ty)
            values[parameter] = value
            inputs.append(parameter)
        else:
            inputs.append(None if value is None else const(value))
    # As in the file: TVM's converters decode strings themselves.
    attributes: dict[str, Any] = {k: v.encode() if isinstance(v, str) else v for k, v in node.attributes.items()}
    attributes["tvm_custom"] = {"name": node.label, "num_outputs": len(node.outputs)}
    convert_class = tvm_onnx._get_convert_map()[node.op_type]  # noqa: SLF001
    silent = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(silent):
            warnings.simplefilter("ignore")
            with scratch.function("main", params=list(values)):
                with scratch.dataflow():
                    result = convert_class.get_converter(node.opset)(scratch, inputs, attributes, [{}, {}])
                    result = scratch.emit_output(scratch.normalize(result))
                scratch.emit_func_output(result)
    except Exception as error:  # TVM raises whatever comes to hand; any of it means that this node does not work
        raise Unsupported(f"TVM does not convert it: {str(error).strip().splitlines()[-1]}") from None
    function = scratch.get()["main"]
    for block in function.body.blocks:
        for binding in block.bindings:
            values[binding.var] = _replay(node, binding.value, values)
    final = values[function.body.body] if isinstance(function.body.body, relax.Var) else function.body.body
    if isinstance(final, relax.Tuple):
        return [values.get(f, f) if isinstance(f, relax.Var) else f for f in final.fields]
    return final


def _replay(node: Node, value: relax.Expr, values: dict[relax.Var, relax.Expr]) -> relax.Expr:
    if isinstance(value, relax.Var):
        return values[value]
    if isinstance(value, tvm.ir.GenericConst):
        return value
    if isinstance(value, relax.Tuple):
        return relax.Tuple([values[f] if isinstance(f, relax.Var) else f for f in value.fields])
    if not isinstance(value, relax.Call) or not isinstance(value.op, tvm.ir.Op) or "call_tir" in str(value.op.name):
        raise Unsupported("TVM converts it to something else than plain tensor operators")
    kind = str(value.op.name).removeprefix("relax.")
    if kind not in FLOAT_OPS:
        raise Unsupported(f"it needs the operation {kind}, which no target has code for", "cut the model before it")
    name = kind.replace(".", "_")
    var = node.emit(substitute(value, lambda v: values[v]), name)
    if not isinstance(var.ty, relax.TensorType) or not isinstance(var.ty.shape, relax.ShapeExpr):
        raise Unsupported("the shape of its result depends on the data", "cut the model before it")
    return var
