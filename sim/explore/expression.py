"""Arithmetic over named values, for derived fields and constraints: parsed by `ast`, each node made a closure.

Only what is listed here exists: + - * / // % **, comparisons, `a if c else b`, and/or/not, numbers, quoted texts,
dotted names, and the functions of `FUNCTIONS`. Nothing of Python can be reached from an expression.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from qcompiler.sim.errors import ExplorationError, did_you_mean

Value = Any  # int, float, str, bool, or None
Closure = Callable[[Mapping[str, Value]], Value]
MAX_TEXT = 500
MAX_EXPONENT = 64
LARGEST = 10**300  # nothing that grows further can be built from one step of what is smaller

_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.Pow: operator.pow,
}  # fmt: skip
_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge,
    ast.Eq: operator.eq, ast.NotEq: operator.ne,
}  # fmt: skip
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "min": min, "max": max, "abs": abs, "ceil": math.ceil, "floor": math.floor, "round": round, "sqrt": math.sqrt,
    "log2": math.log2,
}  # fmt: skip


@dataclass(frozen=True)
class Expression:
    """text: as written. where: what the user calls it, for errors (``space.yaml: derived.vector.lanes``)."""

    text: str
    where: str

    @cached_property
    def tree(self) -> ast.expr:
        if len(self.text) > MAX_TEXT:
            raise ExplorationError(f"{self.where}: an expression of {len(self.text)} characters is not one")
        try:
            tree = ast.parse(self.text, mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise ExplorationError(f"{self.where}: {self.text!r} is not an expression") from None
        self._check(tree)
        return tree

    @cached_property
    def _function(self) -> Closure:
        return _closure(self.tree)

    def __getstate__(self) -> dict[str, str]:
        return {"text": self.text, "where": self.where}  # closures do not travel to other processes

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The names it reads, in order of appearance."""
        found: dict[str, None] = {}

        def visit(node: ast.AST) -> None:
            if isinstance(node, (ast.Name, ast.Attribute)):
                found[_dotted(node)] = None
                return
            for child in ast.iter_child_nodes(node):
                if not (isinstance(node, ast.Call) and child is node.func):
                    visit(child)

        visit(self.tree)
        return tuple(found)

    def require(self, known: Mapping[str, Any] | set[str] | list[str], what: str = "name") -> None:
        """Raise ExplorationError for a name that is not `known`."""
        for name in self.names:
            if name not in known:
                raise ExplorationError(f"{self.where}: unknown {what} {name!r}{did_you_mean(name, sorted(known))}")

    def evaluate(self, values: Mapping[str, Value]) -> Value:
        """Its value; `values` holds every one of `names`. Raises ExplorationError (division by zero, a text added)."""
        try:
            return self._function(values)
        except (ArithmeticError, TypeError, ValueError) as error:
            used = ", ".join(f"{n} = {values[n]!r}" for n in self.names)
            raise ExplorationError(f"{self.where}: {self.text!r} has no value for {used}: {error}") from None

    @cached_property
    def comparison(self) -> tuple[Expression, str, Expression] | None:
        """``(left, operator, right)`` of a single ``left < right``."""
        tree = self.tree
        if not isinstance(tree, ast.Compare) or len(tree.ops) != 1:
            return None
        sign = {ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">="}.get(type(tree.ops[0]))
        if sign is None:
            return None
        left, right = (Expression(ast.unparse(side), self.where) for side in (tree.left, tree.comparators[0]))
        return left, sign, right

    def _check(self, node: ast.AST) -> None:
        children: list[ast.AST]
        if isinstance(node, ast.Constant) and (node.value is None or isinstance(node.value, (int, float, str))):
            return
        if isinstance(node, (ast.Name, ast.Attribute)) and _dotted(node):
            return
        if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
            children = [node.left, node.right]
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd, ast.Not)):
            children = [node.operand]
        elif isinstance(node, ast.Compare) and all(type(op) in _COMPARE for op in node.ops):
            children = [node.left, *node.comparators]
        elif isinstance(node, ast.BoolOp):
            children = list(node.values)
        elif isinstance(node, ast.IfExp):
            children = [node.test, node.body, node.orelse]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id not in FUNCTIONS:
                near = did_you_mean(node.func.id, FUNCTIONS)
                raise ExplorationError(f"{self.where}: unknown function {node.func.id!r}{near}")
            if node.keywords or not node.args or any(isinstance(a, ast.Starred) for a in node.args):
                raise ExplorationError(f"{self.where}: {node.func.id} takes values, separated by commas")
            children = list(node.args)
        else:
            raise ExplorationError(
                f"{self.where}: {ast.unparse(node)!r} is not allowed; an expression has names, numbers, + - * / // % "
                f"**, comparisons, and, or, not, `a if c else b`, and {', '.join(FUNCTIONS)}"
            )
        for child in children:
            self._check(child)


def _dotted(node: ast.AST) -> str:
    """``a.b.c`` of a name or a chain of attributes, or ""."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        inner = _dotted(node.value)
        return f"{inner}.{node.attr}" if inner else ""
    return ""


def _closure(node: ast.AST) -> Closure:
    """The function of a node: a tree is walked once, not for every machine."""
    if isinstance(node, ast.Constant):
        constant = node.value
        return lambda values: constant
    if isinstance(node, (ast.Name, ast.Attribute)):
        return operator.itemgetter(_dotted(node))
    if isinstance(node, ast.BinOp):
        return _binary(node.op, _closure(node.left), _closure(node.right))
    if isinstance(node, ast.UnaryOp):
        operand = _closure(node.operand)
        if isinstance(node.op, ast.Not):
            return lambda values: not operand(values)
        return (lambda values: -operand(values)) if isinstance(node.op, ast.USub) else operand
    if isinstance(node, ast.Compare):
        sides, signs = (
            [_closure(side) for side in (node.left, *node.comparators)],
            [_COMPARE[type(o)] for o in node.ops],
        )
        return lambda values: _compare(signs, [side(values) for side in sides])
    if isinstance(node, ast.BoolOp):
        parts, join = [_closure(v) for v in node.values], all if isinstance(node.op, ast.And) else any
        return lambda values: join([bool(part(values)) for part in parts])
    if isinstance(node, ast.IfExp):
        test, then, otherwise = _closure(node.test), _closure(node.body), _closure(node.orelse)
        return lambda values: then(values) if test(values) else otherwise(values)
    assert isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    function, arguments = FUNCTIONS[node.func.id], [_closure(a) for a in node.args]
    return lambda values: function(*[argument(values) for argument in arguments])


def _binary(sign: ast.operator, left: Closure, right: Closure) -> Closure:
    function, power = _BINARY[type(sign)], isinstance(sign, ast.Pow)

    def value(values: Mapping[str, Value]) -> Value:
        a, b = left(values), right(values)
        if isinstance(a, str) or isinstance(b, str):
            raise TypeError("a text is not a number")
        if power and abs(b) > MAX_EXPONENT:
            raise ValueError(f"exponents go to {MAX_EXPONENT}")
        result = function(a, b)
        if isinstance(result, complex) or abs(result) > LARGEST:
            raise ValueError(f"{result if isinstance(result, complex) else 'a value beyond 1e300'} is no size")
        return result

    return value


def _compare(signs: list[Callable[[Any, Any], bool]], sides: list[Value]) -> bool:
    return all(sign(a, b) for sign, a, b in zip(signs, sides, sides[1:], strict=False))
