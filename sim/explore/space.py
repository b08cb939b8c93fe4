"""The space: which fields of a machine vary, what follows from them, and the machine of each point.

A point is one choice an axis: a tuple of indices in the order of `Space.axes`, -1 where the axis is not active there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from pydantic import ValidationError

from qcompiler.sim.errors import ExplorationError, HardwareError
from qcompiler.sim.explore.expression import Expression
from qcompiler.sim.hardware import Machine
from qcompiler.sim.widths import Widths

WIDTH_FIELDS = ("weight_bits", "activation_bits")
Point = tuple[int, ...]
INACTIVE = -1


@dataclass(frozen=True)
class Axis:
    """A machine's field (dotted) or a variable, with its choices in order.

    when: other axes or fields of the base, and the values with which this axis is active; else the base's value stands.
    """

    name: str
    choices: tuple[Any, ...]
    variable: bool = False
    when: Mapping[str, tuple[Any, ...]] | None = None

    @property
    def ordered(self) -> bool:
        """Whether the choices are numbers in increasing order: neighbours are alike."""
        numbers = all(isinstance(c, (int, float)) and not isinstance(c, bool) for c in self.choices)
        return numbers and all(a < b for a, b in zip(self.choices, self.choices[1:], strict=False))


@dataclass(frozen=True)
class ModelOptions:
    """weight: how often it runs, relative to the others. period_ms: one inference a period, the machine waits in
    between; None: it runs without pause. path, shapes: where the model is, for spaces that bring their own.
    calibration, evaluation: paths of samples to quantise with and of samples held out; labels: the array of these (or
    else of those) with the right classes."""

    weight: float = 1.0
    period_ms: float | None = None
    path: str | None = None
    shapes: Mapping[str, tuple[int, ...]] | None = None
    calibration: str | None = None
    evaluation: str | None = None
    labels: str | None = None


@dataclass(frozen=True)
class Space:
    """axes in an order in which each comes after those that its `when` names. derived: in order of evaluation."""

    name: str
    base: Machine
    axes: tuple[Axis, ...]
    derived: tuple[tuple[str, Expression], ...] = ()
    models: Mapping[str, ModelOptions] | None = None
    objectives: tuple[str, ...] = ()
    constraints: tuple[str, ...] = ()

    # ------------------------------------------------------------------------------------------ points
    @cached_property
    def _base(self) -> dict[str, Any]:
        return self.base.model_dump(mode="json", exclude={"name", "description"})

    @cached_property
    def _conditions(self) -> tuple[tuple[tuple[int, frozenset[int]], ...] | None, ...]:
        """Of each axis: (axis, indices of its choices) that must hold; None where it is never active."""
        positions = {axis.name: i for i, axis in enumerate(self.axes)}
        found: list[tuple[tuple[int, frozenset[int]], ...] | None] = []
        for axis in self.axes:
            conditions: list[tuple[int, frozenset[int]]] | None = []
            for name, wanted in (axis.when or {}).items():
                if name in positions:
                    choices = self.axes[positions[name]].choices
                    allowed = {i for i, c in enumerate(choices) if c in wanted}
                    if lookup(self._base, name) in wanted:
                        allowed.add(INACTIVE)
                    if conditions is not None:
                        conditions.append((positions[name], frozenset(allowed)))
                elif lookup(self._base, name) not in wanted:
                    conditions = None
            found.append(None if conditions is None else tuple(conditions))
        return tuple(found)

    def active(self, axis: int, before: Sequence[int]) -> bool:
        """Whether an axis is active, given the choices of all axes before it."""
        conditions = self._conditions[axis]
        return conditions is not None and all(before[i] in allowed for i, allowed in conditions)

    def points(self) -> Iterator[Point]:
        """All points, the last axis fastest."""

        def extend(head: list[int]) -> Iterator[Point]:
            axis = len(head)
            if axis == len(self.axes):
                yield tuple(head)
                return
            active = self.active(axis, head)
            for choice in range(len(self.axes[axis].choices)) if active else (INACTIVE,):
                head.append(choice)
                yield from extend(head)
                head.pop()

        return extend([])

    def size(self, limit: int) -> int:
        """How many points there are; anything beyond `limit` where there are more."""
        if all(not axis.when for axis in self.axes):
            return math.prod(len(axis.choices) for axis in self.axes)
        count = 0
        for _ in self.points():
            count += 1
            if count > limit:
                break
        return count

    def draw(self, rng: np.random.Generator) -> Point:
        """A random point: each active axis uniformly."""
        head: list[int] = []
        for axis in range(len(self.axes)):
            choice = int(rng.integers(len(self.axes[axis].choices)))  # drawn anyway, so that later axes do not shift
            head.append(choice if self.active(axis, head) else INACTIVE)
        return tuple(head)

    def settle(self, choices: Sequence[int]) -> Point:
        """The point of any choice an axis: inactive ones are marked."""
        head: list[int] = []
        for axis, choice in enumerate(choices):
            head.append(max(choice, 0) if self.active(axis, head) else INACTIVE)
        return tuple(head)

    @property
    def widths(self) -> tuple[Widths, ...]:
        """All widths of operands that machines of the space may have, the widest first."""
        return tuple(sorted(set(self._widths[1].values()), reverse=True))

    def widths_of(self, point: Point) -> Widths:
        """The widths of a point's operands. Raises KeyError where no machine has such widths."""
        axes, found = self._widths
        return found[tuple(point[i] for i in axes)]

    @cached_property
    def _widths(self) -> tuple[tuple[int, ...], dict[Point, Widths]]:
        """The axes that decide the widths, and the widths for their choices."""
        needed, derived = {f"matrix.{name}" for name in WIDTH_FIELDS}, dict(self.derived)
        while True:
            axes = tuple(i for i, a in enumerate(self.axes) if a.name in needed)
            more = {n for name in needed if name in derived for n in derived[name].names}
            more |= {n for i in axes for n in self.axes[i].when or {}}
            if more <= needed:
                break
            needed |= more
        part = replace(
            self, axes=tuple(self.axes[i] for i in axes), derived=tuple((n, e) for n, e in self.derived if n in needed)
        )
        found = {}
        for point in part.points():
            with suppress(HardwareError, ValueError, TypeError):  # no machine has such widths
                fields = part.fields(point)
                names = (f"matrix.{name}" for name in WIDTH_FIELDS)
                found[point] = Widths(*(fields.get(n, lookup(self._base, n)) for n in names))
        return axes, found

    # ---------------------------------------------------------------------------------------- machines
    def choices(self, point: Point) -> dict[str, Any]:
        """Name to value of the active axes."""
        return {a.name: a.choices[i] for a, i in zip(self.axes, point, strict=True) if i != INACTIVE}

    def fields(self, point: Point) -> dict[str, Any]:
        """The machine's fields that this point sets, derived ones included. Raises HardwareError where a derived field
        has no value."""
        variables: dict[str, Any] = {}
        fields: dict[str, Any] = {}
        for axis, i in zip(self.axes, point, strict=True):
            if i != INACTIVE:
                (variables if axis.variable else fields)[axis.name] = axis.choices[i]
        for name, expression in self.derived:
            values = {n: self._read(n, variables, fields) for n in expression.names}
            try:
                value = expression.evaluate(values)
            except ExplorationError as error:
                raise HardwareError(str(error)) from None
            whole = isinstance(value, float) and value.is_integer()
            fields[name] = int(value) if whole else value
        return fields

    def _read(self, name: str, variables: Mapping[str, Any], fields: Mapping[str, Any]) -> Any:
        for known in (variables, fields):
            if name in known:
                return known[name]
        return lookup(self._base, name)

    def machine(self, point: Point, name: str) -> Machine:
        """The machine of a point. Raises HardwareError with every contradiction, a line each."""
        content = dict(self._base, name=name)
        copied: set[tuple[str, ...]] = set()
        # A whole memory comes before its fields.
        for dotted, value in sorted(self.fields(point).items(), key=lambda item: item[0].count(".")):
            *parts, last = dotted.split(".")
            at = content
            for depth, part in enumerate(parts):
                path = tuple(parts[: depth + 1])
                if at.get(part) is None:
                    raise HardwareError(f"{dotted} is set, but this machine has no {'.'.join(path)}")
                if path not in copied:
                    at[part] = dict(at[part])
                    copied.add(path)
                at = at[part]
            at[last] = value
            if isinstance(value, dict):
                copied.discard((*parts, last))
        try:
            return Machine.model_validate(content)
        except ValidationError as error:
            raise HardwareError("\n".join(_problems(error))) from None


def _problems(error: ValidationError) -> Iterator[str]:
    for e in error.errors(include_url=False):
        if e["type"] == "value_error":
            yield from str(e["ctx"]["error"]).splitlines()
        else:
            yield f"{'.'.join(map(str, e['loc']))} is {e['input']!r}: {e['msg'].lower()}"


def lookup(content: Mapping[str, Any], dotted: str) -> Any:
    """The value of a dotted name in nested mappings; None where a part is missing."""
    at: Any = content
    for part in dotted.split("."):
        at = at.get(part) if isinstance(at, Mapping) else None
    return at
