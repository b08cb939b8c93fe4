"""What a converter sees of an ONNX node, and the registry of converters.

The importer interprets the graph abstractly: a tensor is either known, a NumPy array, or computed, a Relax variable
of static shape. A converter takes a `Node` whose inputs are such values and returns one value, or a list of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from tvm import relax

from qcompiler.passes.rewrite import Builder, const, dtype_of, shape_of

Array: TypeAlias = npt.NDArray[Any]
Value: TypeAlias = Array | relax.Var
Result: TypeAlias = relax.Expr | Array | list[relax.Expr | Array]
Shape: TypeAlias = tuple[int, ...]


class Unsupported(Exception):
    """A node that cannot be compiled: `reason` says why, `advice` what the user can do."""

    def __init__(self, reason: str, advice: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.advice = advice


LARGEST_TENSOR = 1 << 31
"""Elements; what is beyond comes from a damaged file."""


def check_size(shape: Sequence[int]) -> None:
    """Refuse a result that no memory holds, before anything of its size is made."""
    if math.prod(shape) > LARGEST_TENSOR or min(shape, default=0) < 0:
        raise Unsupported(f"its result would have the shape {tuple(shape)}")


@dataclass(frozen=True, eq=False)
class Node:
    """One ONNX node with its inputs' values. `opset` is the version of its own domain; `label` names it to the user."""

    op_type: str
    domain: str
    label: str
    opset: int
    inputs: Sequence[Value | None]
    outputs: Sequence[str]
    attributes: dict[str, Any]
    builder: Builder

    # ------------------------------------------------------------------------------------- inputs
    def has(self, index: int) -> bool:
        """Whether the optional input is given."""
        return index < len(self.inputs) and self.inputs[index] is not None

    def value(self, index: int) -> Value:
        """The array or variable of a required input."""
        value = self.inputs[index] if index < len(self.inputs) else None
        if value is None:
            raise Unsupported(f"its input {index} is missing")
        return value

    def tensor(self, index: int) -> relax.Expr:
        """A required input as a Relax expression."""
        value = self.value(index)
        return const(value) if isinstance(value, np.ndarray) else value

    def constant(self, index: int, what: str) -> Array:
        """The array of a required input that must be known at compile time."""
        value = self.value(index)
        if not isinstance(value, np.ndarray):
            raise Unsupported(
                f"its {what} is computed while the model runs",
                f"export the model with a constant {what}, or run a simplifier such as onnxsim on it",
            )
        return value

    def ints(self, index: int, what: str) -> tuple[int, ...]:
        """A required constant input as plain integers."""
        return tuple(int(v) for v in np.atleast_1d(self.constant(index, what)))

    def shape(self, index: int = 0) -> Shape:
        value = self.value(index)
        return tuple(value.shape) if isinstance(value, np.ndarray) else shape_of(value)

    def dtype(self, index: int = 0) -> str:
        value = self.value(index)
        return str(value.dtype) if isinstance(value, np.ndarray) else dtype_of(value)

    def axis(self, name: str = "axis", default: int = 0, rank: int | None = None) -> int:
        """An axis attribute counted from the front."""
        rank = len(self.shape()) if rank is None else rank
        axis = int(self.attributes.get(name, default))
        if not -rank <= axis < rank:
            raise Unsupported(f"its {name} {axis} does not exist in a tensor of rank {rank}")
        return axis % rank

    def attribute(self, name: str, default: Any = None) -> Any:
        return self.attributes.get(name, default)

    def required(self, name: str) -> Any:
        if name not in self.attributes:
            raise Unsupported(f"its attribute {name} is missing")
        return self.attributes[name]

    # ------------------------------------------------------------------------------------ outputs
    def emit(self, call: relax.Call, suffix: str) -> relax.Var:
        """Bind a helper value, named after the node's first output."""
        return self.builder.emit(call, f"{self.outputs[0]}.{suffix}")

    def only_first_output(self) -> None:
        """Refuse a node whose further outputs are used."""
        extra = [name for name in self.outputs[1:] if name]
        if extra:
            raise Unsupported(f"its output {extra[0]!r} is used, and only its first output can be computed")

    def convert_as(self, op_type: str, inputs: Sequence[Value | None], suffix: str = "", **attributes: Any) -> Result:
        """Convert a standard operator in this node's place; `attributes` replace this node's.

        From another domain, whose versions count on their own, it is the newest one.
        """
        outputs = [f"{self.outputs[0]}.{suffix}"] if suffix else self.outputs
        opset = self.opset if self.domain == "" else OPSETS[-1]
        other = replace(
            self, op_type=op_type, domain="", opset=opset, inputs=inputs, outputs=outputs, attributes=attributes
        )
        return CONVERTERS["", op_type](other)


Converter: TypeAlias = Callable[[Node], Result]
CONVERTERS: dict[tuple[str, str], Converter] = {}
STANDARD_DOMAINS = ("", "ai.onnx")
OPSETS = range(7, 25)
"""Versions of the standard operators that converters understand."""


def converter(*op_types: str, domain: str = "") -> Callable[[Converter], Converter]:
    """Register a function as the converter of these operators of a domain."""

    def register(function: Converter) -> Converter:
        for op_type in op_types:
            CONVERTERS[domain, op_type] = function
        return function

    return register
