"""Building and rewriting the one dataflow block of a module's function "main", names kept.

TVM's BlockBuilder mangles names to identifiers; here a tensor's name is the user's (any ONNX name), and it survives
every pass. `Builder` appends bindings; `Rewriter` walks an existing block in order and lets a subclass replace calls.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import tvm
from tvm import relax

from qcompiler.passes.graph import is_constant, numpy_of

Array = npt.NDArray[Any]


class Builder:
    """Straight-line code: every `emit` binds one call to one uniquely named tensor of inferred type."""

    def __init__(self) -> None:
        self.params: list[relax.Var] = []
        self.calls: dict[relax.Var, relax.Call] = {}
        self._names: set[str] = set()
        self._infer = relax.BlockBuilder()

    def fresh(self, name: str) -> str:
        """`name`, or `name` with the first free suffix; the result is taken from then on."""
        candidate, suffix = name, 1
        while candidate in self._names:
            candidate, suffix = f"{name}_{suffix}", suffix + 1
        self._names.add(candidate)
        return candidate

    def reserve(self, names: Iterable[str]) -> None:
        """Keep names from being given to helpers; `emit` of a reserved name must pass ``exact=True``."""
        self._names.update(names)

    def input(self, name: str, shape: Sequence[int], dtype: str) -> relax.Var:
        self._names.add(name)
        self.params.append(relax.Var(name, relax.TensorType(tuple(shape), dtype)))
        return self.params[-1]

    def emit(self, call: relax.Call, name: str, exact: bool = False) -> relax.Var:
        """Bind a call whose arguments are variables and constants. Raises what TVM's type inference raises."""
        call = self._infer.normalize(call)
        var = relax.DataflowVar(name if exact else self.fresh(name), call.ty)
        self._names.add(str(var.name))
        self.calls[var] = call
        return var

    def finish(self, outputs: Mapping[str, relax.Var]) -> tvm.IRModule:
        """The module that returns `outputs` under their names. Calls that nothing needs are dropped."""
        produced = dict(outputs)
        taken: set[relax.Var] = set()
        for name, var in outputs.items():
            # Each output is a binding of its own: an input, or a tensor returned twice, is copied.
            if var not in self.calls or var in taken:
                produced[name] = self.emit(relax.op.reshape(var, shape_of(var)), f"{name}.copy")
            taken.add(produced[name])
        alive = set(produced.values())
        for var in reversed(self.calls):
            if var in alive:
                alive.update(variables_of(self.calls[var]))
        renamed = {var: name for name, var in produced.items()}
        replaced: dict[relax.Var, relax.Expr] = {}
        bindings = []
        for var, call in self.calls.items():
            if var not in alive:
                continue
            if any(a in replaced for a in variables_of(call)):
                call = self._infer.normalize(substitute(call, lambda v: replaced.get(v, v)))
            bound = var
            if var in renamed:
                bound = replaced[var] = relax.Var(renamed[var], var.ty)
            elif str(var.name) in produced:  # an output took this name over
                bound = replaced[var] = relax.DataflowVar(self.fresh(f"{var.name}.inner"), var.ty)
            bindings.append(relax.VarBinding(bound, call))
        results = [replaced[produced[name]] for name in outputs]
        body = self._infer.normalize(
            relax.SeqExpr([relax.DataflowBlock(bindings)], results[0] if len(results) == 1 else relax.Tuple(results))
        )
        function = relax.Function(self.params, body).with_attr("global_symbol", "main")
        function = function.with_attr("input_names", [str(p.name) for p in self.params])
        return tvm.IRModule({"main": function.with_attr("output_names", list(outputs))})


def shuffled(
    builder: Builder, x: relax.Expr, split: Sequence[int], axes: Sequence[int], shape: Sequence[int], name: str
) -> relax.Call:
    """reshape to `split`, permute_dims by `axes`, reshape to `shape`, without the axes of extent 1 in between."""
    wide = [i for i in range(len(split)) if split[i] != 1]
    order = [wide.index(i) for i in axes if split[i] != 1]
    if order == sorted(order):
        return relax.op.reshape(x, tuple(shape))
    parts = builder.emit(relax.op.reshape(x, tuple(split[i] for i in wide)), f"{name}.split")
    return relax.op.reshape(builder.emit(relax.op.permute_dims(parts, order), f"{name}.shuffled"), tuple(shape))


class Rewriter(Builder):
    """Rebuilds a module; a subclass's `rewrite` sees each call, its arguments already rewritten.

    uses: how many calls (and outputs) of the original read a tensor, for old and new variables alike.
    """

    def __init__(self, module: tvm.IRModule) -> None:
        super().__init__()
        function = module["main"]
        self.old = [(b.var, b.value) for block in function.body.blocks for b in block.bindings]
        self.reserve(str(var.name) for var, _ in self.old)
        self.output_names = [str(n) for n in function.attrs["output_names"]]
        result = function.body.body
        self.results = list(result.fields) if isinstance(result, relax.Tuple) else [result]
        self.uses: Counter[relax.Var] = Counter(self.results)
        for _, call in self.old:
            self.uses.update(set(variables_of(call)))
        self.new: dict[relax.Var, relax.Expr] = {}
        for param in function.params:
            self.new[param] = param
            self._names.add(str(param.name))
            self.params.append(param)

    def rewrite(self, name: str, call: relax.Call) -> relax.Expr:
        """What takes the place of `call` (bound to `name`): a call, a variable, or a constant."""
        raise NotImplementedError  # pragma: no cover - abstract

    def run(self) -> tvm.IRModule:
        for var, value in self.old:
            call = substitute(value, lambda v: self.new[v])
            result = self.rewrite(str(var.name), call)
            if isinstance(var, relax.DataflowVar) and result.same_as(value):
                self.calls[var] = value  # untouched: nothing to infer
                result = var
            elif isinstance(result, relax.Call):
                result = self.emit(result, str(var.name), exact=True)
            self.new[var] = result
            if isinstance(result, relax.Var) and not result.same_as(var):
                self.uses[result] += self.uses[var]
        outputs = {}
        for name, result in zip(self.output_names, self.results, strict=True):
            value = self.new[result]
            if is_constant(value):
                value = self.emit(relax.op.reshape(value, shape_of(value)), f"{name}.constant")
            outputs[name] = value
        return self.finish(outputs)

    def call_of(self, value: relax.Expr, *ops: str) -> relax.Call | None:
        """The call that computes `value`, if it is one of these operators (names without "relax.")."""
        call = self.calls.get(value) if isinstance(value, relax.Var) else None
        return call if call is not None and (not ops or op_name(call) in ops) else None

    def only_use(self, value: relax.Expr) -> bool:
        """Whether a single call reads the tensor, so that changing it changes nothing else."""
        return self.uses[value] <= 1


def op_name(call: relax.Call) -> str:
    """The operator without "relax.", e.g. "nn.conv2d"."""
    return str(call.op.name).removeprefix("relax.")


def shape_of(value: relax.Expr) -> tuple[int, ...]:
    return tuple(int(d) for d in value.ty.shape.values)


def dtype_of(value: relax.Expr) -> str:
    return str(value.ty.dtype)


def const(value: npt.ArrayLike, dtype: str | None = None) -> relax.Expr:
    """A Relax constant; float64 and float16 values become float32."""
    array = np.asarray(value, dtype=dtype)
    if dtype is None and array.dtype in (np.float64, np.float16):
        array = array.astype(np.float32)
    return relax.const(np.ascontiguousarray(array).reshape(array.shape), str(array.dtype))


def constant_value(expr: relax.Expr) -> Array | None:
    """The NumPy value of a constant, None for anything else."""
    return numpy_of(expr) if is_constant(expr) else None


def variables_of(call: relax.Call) -> list[relax.Var]:
    """The variables among a call's arguments, tuples opened."""
    found = []
    for arg in call.args:
        for leaf in arg.fields if isinstance(arg, relax.Tuple) else (arg,):
            if isinstance(leaf, relax.Var):
                found.append(leaf)
    return found


def substitute(call: relax.Call, new: Callable[[relax.Var], relax.Expr]) -> relax.Call:
    """The call with its variables replaced."""

    def leaf(arg: relax.Expr) -> relax.Expr:
        if isinstance(arg, relax.Var):
            return new(arg)
        if isinstance(arg, relax.Tuple):
            return relax.Tuple([leaf(f) for f in arg.fields])
        return arg

    args = [leaf(a) for a in call.args]
    if all(a.same_as(b) for a, b in zip(args, call.args, strict=True)):
        return call
    return relax.Call(call.op, args, call.attrs, call.ty_args)
