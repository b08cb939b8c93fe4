"""ONNX models as Relax modules: the loop over nodes, constant folding, and what cannot be compiled.

The graph is interpreted abstractly, node by node: a tensor is a NumPy array where it is known (weights, and all
shape arithmetic, since shapes are static) and a Relax variable of the same name where it is computed. Converters
live in the `onnx_*` modules beside this one; `onnx_tvm` is the fallback to TVM's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import tvm
from onnx.inliner import inline_local_functions
from onnx.reference import ReferenceEvaluator
from tvm import relax

from qcompiler.frontend import (  # noqa: F401 - importing them registers their converters
    onnx_index,
    onnx_math,
    onnx_nn,
    onnx_prepare,
    onnx_quantized,
    onnx_shape,
    onnx_tvm,
)
from qcompiler.frontend.onnx_dynamic import without_dynamic_quantisation
from qcompiler.frontend.onnx_node import CONVERTERS, STANDARD_DOMAINS, Node, Unsupported, Value, check_size
from qcompiler.passes.base import verify
from qcompiler.passes.rewrite import Builder, shape_of
from qcompiler.sim.errors import ModelError

# Floating-point types other than float32 are computed in float32.
_INPUT_DTYPES = {
    "float32": "float32", "float16": "float32", "float64": "float32", "bfloat16": "float32",
    "int8": "int8", "uint8": "uint8", "int32": "int32", "int64": "int64", "bool": "bool",
}  # fmt: skip
_NOT_DETERMINISTIC = {
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
    "Multinomial",
    "Bernoulli",
}
_LARGEST_CONSTANT = 1 << 31  # bytes that folding may make out of a few


def import_onnx(model: str | Path | onnx.ModelProto, shapes: Mapping[str, Sequence[int]] | None = None) -> tvm.IRModule:
    """The model as a module with one function "main": NCHW as in ONNX, constants inline, tensor names kept.

    model: a file or a loaded model, opset 7 to 24. shapes: sizes for dynamic inputs, by input name; an open first
    axis is otherwise 1. float16, bfloat16 and float64 tensors become float32. The function's attributes
    "input_names" and "output_names" are the user's names in the model's order.

    Raises ModelError with everything that is wrong: what, where, what to do.
    """
    if isinstance(model, onnx.ModelProto):
        name = model.graph.name if isinstance(model.graph.name, str) else ""
        return _Importer(model, name or "model").run(shapes or {})
    path = Path(model)
    return _Importer(onnx_prepare.load(path), str(path)).run(shapes or {})


class _Importer:
    def __init__(self, model: onnx.ModelProto, what: str) -> None:
        onnx_prepare.check_text(model, what)
        if model.functions:
            model = inline_local_functions(model)
        self.graph = model.graph
        self.what = what
        self.opsets = onnx_prepare.opset_versions(model, what)
        self.checker = onnx.checker.C.CheckerContext()
        self.checker.ir_version = min(max(model.ir_version, 3), onnx.IR_VERSION)
        self.checker.opset_imports = self.opsets
        self.builder = Builder()
        self.values: dict[str, Value | None] = {}  # None: beyond an unsupported node
        self.bound: set[str] = set()
        self.problems: list[str] = []

    def run(self, shapes: Mapping[str, Sequence[int]]) -> tvm.IRModule:
        outputs = [o.name for o in self.graph.output]
        if not self.graph.node or not outputs:
            raise ModelError(
                f"{self.what} has no {'outputs' if self.graph.node else 'nodes'}: there is nothing to compile"
            )
        constants = onnx_prepare.initializers(self.graph, self.what)
        self.graph = without_dynamic_quantisation(self.graph, constants)
        self.values.update(constants)
        self._declare_inputs(shapes)
        nodes = onnx_prepare.sorted_nodes(self.graph, set(self.values), self.what)
        self.builder.reserve(name for node in nodes for name in node.output if name)
        self._convert(_needed(nodes, outputs))
        if self.problems:
            count = len(self.problems)
            head = "1 operator that is" if count == 1 else f"{count} operators that are"
            raise ModelError("\n".join([f"{self.what} has {head} not supported:", *(f"  {p}" for p in self.problems)]))
        module = self.builder.finish({name: self._output(name) for name in outputs})
        verify(module, "the ONNX import")
        return module

    def _declare_inputs(self, shapes: Mapping[str, Sequence[int]]) -> None:
        names: list[str] = []
        dtypes = []
        for value in self.graph.input:
            if value.name in names:
                raise ModelError(
                    f"{self.what}: two inputs are named {value.name!r}; give every input a name of its own"
                )
            if value.name in self.values:
                continue  # before IR version 4, initialisers are listed among the inputs
            if not value.type.HasField("tensor_type"):
                raise ModelError(
                    f"{self.what}: input {value.name!r} is a {value.type.WhichOneof('value') or 'value without type'}; "
                    "only tensors can be inputs"
                )
            try:
                dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name
            except KeyError:
                dtype = "undefined"
            if dtype not in _INPUT_DTYPES:
                raise ModelError(
                    f"{self.what}: input {value.name!r} has the data type {dtype}; "
                    f"one of {', '.join(_INPUT_DTYPES)} can be compiled"
                )
            names.append(value.name)
            dtypes.append(_INPUT_DTYPES[dtype])
        if not names:
            raise ModelError(f"{self.what} has no inputs: its outputs are constants and there is nothing to compile")
        static = onnx_prepare.input_shapes(self.graph, names, shapes, self.what)
        for name, dtype in zip(names, dtypes, strict=True):
            self.values[name] = self.builder.input(name, static[name], dtype)

    def _output(self, name: str) -> relax.Var:
        if name not in self.values:
            raise ModelError(f"{self.what}: nothing computes the output {name!r}; export the model again")
        value = self.values[name]
        if not isinstance(value, relax.Var):
            raise ModelError(
                f"{self.what}: output {name!r} is a constant, the same for every input; remove it from the outputs"
            )
        return value

    # --------------------------------------------------------------------------------------- nodes
    def _convert(self, nodes: Sequence[onnx.NodeProto]) -> None:
        for proto in nodes:
            try:
                self._convert_node(proto)
            except Unsupported as error:
                advice = f"; {error.advice}" if error.advice else ""
                self.problems.append(f"{onnx_prepare.describe(proto)}: {error.reason}{advice}")
                self.values.update({name: None for name in proto.output if name})

    def _convert_node(self, proto: onnx.NodeProto) -> None:
        domain = "" if proto.domain in STANDARD_DOMAINS else proto.domain
        attributes = {a.name: _attribute(a) for a in proto.attribute}
        inputs = [self.values[name] if name else None for name in proto.input]
        broken = any(name and value is None for name, value in zip(proto.input, inputs, strict=True))
        if domain == "" and proto.op_type == "If" and not broken:
            self._choose_branch(proto, inputs[0], attributes)
            return
        convert = self._converter(domain, proto.op_type)
        if broken:
            self.values.update({name: None for name in proto.output if name})
            return
        self._check(proto, domain)
        node = Node(
            proto.op_type, domain, onnx_prepare.label(proto), self.opsets.get(domain, 1), inputs, list(proto.output),
            attributes, self.builder,
        )  # fmt: skip
        if self._is_known(node):
            self._bind(proto, self._evaluate(proto, inputs))
            return
        try:
            result = convert(node)
            self._bind(proto, result if isinstance(result, list) else [result])
        except (tvm.error.InternalError, ArithmeticError, LookupError, MemoryError, TypeError, ValueError) as error:
            shapes = ", ".join(str(node.shape(i)) for i in range(len(inputs)) if node.has(i))
            reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
            raise Unsupported(f"its inputs of shape {shapes} do not fit it ({reason})") from None

    def _converter(self, domain: str, op_type: str) -> Callable[[Node], Any]:
        if (domain, op_type) in CONVERTERS:
            return CONVERTERS[domain, op_type]
        if domain == "" and op_type in onnx_prepare.CONTROL_FLOW:
            raise Unsupported(
                "control flow that depends on data cannot become a fixed program",
                "unroll it when exporting (torch.onnx.export with tracing), or cut the model before it",
            )
        if domain == "" and op_type in _NOT_DETERMINISTIC:
            raise Unsupported("it is random", "export the model in evaluation mode, or make it an input")
        if domain == "" and op_type in onnx_tvm.convertible():
            return onnx_tvm.convert
        if domain == "":
            known = onnx.defs.has(op_type)
            reason = "no converter exists for it" if known else "ONNX has no such operator"
            raise Unsupported(reason, "express it by other operators, or cut the model before it")
        raise Unsupported(
            f"no converter exists for the domain {domain}",
            "export with standard operators, or run ONNX Runtime's optimiser at level basic only"
            if domain.startswith("com.microsoft")
            else "express it by standard operators, or cut the model before it",
        )

    def _check(self, proto: onnx.NodeProto, domain: str) -> None:
        if domain:
            return
        try:
            onnx.checker.check_node(proto, self.checker)
        except onnx.checker.ValidationError as error:
            first = str(error).strip().splitlines()[0]
            raise Unsupported(f"it is malformed: {first}", "export the model again") from None

    def _is_known(self, node: Node) -> bool:
        """Whether all its inputs are, so that its outputs can be computed now."""
        if node.domain or node.op_type in _NOT_DETERMINISTIC or node.op_type in onnx_prepare.CONTROL_FLOW:
            return False
        if node.op_type == "DequantizeLinear":
            return False  # quantised weights stay so
        return all(v is None or isinstance(v, np.ndarray) for v in node.inputs)

    def _evaluate(self, proto: onnx.NodeProto, inputs: Sequence[Value | None]) -> list[Any]:
        if proto.op_type in ("ConstantOfShape", "Expand", "Tile"):
            sizes = np.asarray(inputs[0] if proto.op_type == "ConstantOfShape" else inputs[1], dtype=np.float64)
            if np.prod(np.maximum(sizes, 1)) * 4 > _LARGEST_CONSTANT:
                raise Unsupported(f"it makes a constant of shape {tuple(sizes.astype(int).tolist())}, beyond 2 GiB")
        single = onnx.NodeProto()
        single.CopyFrom(proto)
        names = [f"{i}" if name else "" for i, name in enumerate(proto.input)]
        del single.input[:]
        single.input.extend(names)
        graph = onnx.helper.make_graph(
            [single], "constant", [onnx.ValueInfoProto(name=n) for n in names if n],
            [onnx.ValueInfoProto(name=n) for n in proto.output if n],
        )  # fmt: skip
        # ONNX's reference has QuantizeLinear from version 19 on only, which means the same as the earlier ones.
        oldest = 19 if proto.op_type == "QuantizeLinear" else 1
        imports = [onnx.helper.make_opsetid("", max(self.opsets[""], oldest))]
        evaluator = ReferenceEvaluator(onnx.helper.make_model(graph, opset_imports=imports))
        feeds = {n: v for n, v in zip(names, inputs, strict=True) if n}
        try:
            with np.errstate(all="ignore"):
                results = iter(evaluator.run(None, feeds))
        except Exception as error:  # the reference raises whatever NumPy does for inputs that do not fit
            raise Unsupported(f"its constant inputs do not fit it ({error})", "export the model again") from None
        return [np.asarray(next(results)) if name else None for name in proto.output]

    def _bind(self, proto: onnx.NodeProto, results: Sequence[Any]) -> None:
        for name, result in zip(proto.output, results, strict=False):
            if not name:
                continue
            if isinstance(result, relax.Call):
                result = self._emit(result, name)
                check_size(shape_of(result))
            elif isinstance(result, relax.Var) and result in self.builder.calls:
                result = self._renamed(result, name, proto.output[0])
            elif isinstance(result, tvm.ir.GenericConst):
                result = result.value.numpy()
            self.values[name] = result
        for name in list(proto.output)[len(results) :]:
            if name:
                raise Unsupported(f"its output {name!r} cannot be computed")

    def _renamed(self, var: relax.Var, name: str, first: str) -> relax.Var:
        """A converter's own last helper takes the tensor's name; a tensor from elsewhere keeps its own."""
        if next(reversed(self.builder.calls)).same_as(var) and str(var.name).startswith(f"{first}."):
            return self._emit(self.builder.calls.pop(var), name)
        return var

    def _emit(self, call: relax.Call, name: str) -> relax.Var:
        """Bind a tensor of the graph; its name is its own unless another branch of control flow has used it."""
        exact = name not in self.bound
        self.bound.add(name)
        return self.builder.emit(call, name, exact=exact)

    def _choose_branch(self, proto: onnx.NodeProto, condition: Value | None, attributes: dict[str, Any]) -> None:
        if not isinstance(condition, np.ndarray):
            raise Unsupported(
                "its condition is computed while the model runs",
                "export the model with that condition fixed, or cut the model before it",
            )
        body: onnx.GraphProto = attributes["then_branch" if bool(condition.reshape(-1)[0]) else "else_branch"]
        outer = dict(self.values)
        self.values.update(onnx_prepare.initializers(body, f"{self.what}, {onnx_prepare.describe(proto)}"))
        self._convert(onnx_prepare.sorted_nodes(body, set(self.values), self.what))
        results = {name: self.values[inner.name] for name, inner in zip(proto.output, body.output, strict=True)}
        self.values = {**outer, **results}  # another branch may use the same names inside


def _needed(nodes: Sequence[onnx.NodeProto], outputs: Sequence[str]) -> list[onnx.NodeProto]:
    wanted = set(outputs)
    kept = []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            wanted.update(onnx_prepare.required_tensors(node))
            kept.append(node)
    return kept[::-1]


def _attribute(attribute: onnx.AttributeProto) -> Any:
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    if isinstance(value, (list, tuple)) or hasattr(value, "append"):
        return [v.decode("utf-8", errors="replace") if isinstance(v, bytes) else v for v in value]
    return value
