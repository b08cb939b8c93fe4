"""space.yaml: a space as people write it, validated with the field named in every error.

name: always-on
base: micro-8x8                          # a preset, a machine's file beside this one, or a mapping
fields:
  matrix.rows: [4, 8, 16]                # choices
  vector.lanes: {low: 4, high: 32, log2: true}
  constant_memory.read_bytes_per_cycle: {choices: [1, 2], when: {constant_memory.technology: flash}}
variables:
  tiles: [2, 4, 8]                       # no field of a machine: for derived fields
derived:
  weight_memory.size_bytes: tiles * matrix.rows * matrix.columns
models:
  kws: {weight: 3, period_ms: 20}        # path: a model's file beside this one
objectives: [latency, energy, area]
constraints: ["area_mm2 < 2"]
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from qcompiler.sim import hardware
from qcompiler.sim.errors import ExplorationError, HardwareError, did_you_mean
from qcompiler.sim.explore import merit
from qcompiler.sim.explore.expression import FUNCTIONS, Expression
from qcompiler.sim.explore.space import Axis, ModelOptions, Space, lookup
from qcompiler.sim.hardware import Machine
from qcompiler.sim.hardware.machine import field_names, field_problem

MAX_FILE_BYTES = 1 << 20
MAX_CHOICES = 10_000
NAME = r"^[A-Za-z_][A-Za-z0-9_]*$"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Choices(_Part):
    """What an axis may be: either choices, or a range with a step or over powers of two."""

    choices: list[Any] | None = Field(None, min_length=1, description="the values, one by one")
    low: float | None = Field(None, description="first value of a range")
    high: float | None = Field(None, description="last value of a range, included where a step meets it")
    step: float | None = Field(None, gt=0, description="distance of a range's values (default 1)")
    log2: bool = Field(False, description="double from low to high instead of adding a step")
    when: dict[str, Any] = Field({}, description="other fields and the value, or list of values, that activate this")

    @model_validator(mode="after")
    def _one_way(self) -> Choices:
        ranged = self.low is not None or self.high is not None
        if (self.choices is None) == (not ranged):
            raise ValueError("give either choices, or low and high")
        if ranged:
            if self.low is None or self.high is None:
                raise ValueError("a range needs both low and high")
            if self.high < self.low:
                raise ValueError(f"high is {self.high:g}, below low, which is {self.low:g}")
            if self.log2 and (self.step is not None or self.low <= 0):
                raise ValueError("a log2 range has no step, and begins above 0")
            count = math.log2(self.high / self.low) if self.log2 else (self.high - self.low) / (self.step or 1)
            if count >= MAX_CHOICES:
                raise ValueError(f"a range of more than {MAX_CHOICES} values; make the step larger")
        elif self.step is not None or self.log2:
            raise ValueError("step and log2 belong to a range of low and high")
        return self

    def values(self) -> tuple[Any, ...]:
        """The choices in order."""
        if self.choices is not None:
            return tuple(self.choices)
        assert self.low is not None and self.high is not None
        step, found, value = self.step or 1, [], self.low
        while value <= self.high * (1 + 1e-12):
            found.append(value)
            value = value * 2 if self.log2 else self.low + len(found) * step
        return tuple(int(v) if float(v).is_integer() else v for v in found)


def _short_form(value: Any) -> Any:
    return {"choices": value} if isinstance(value, list) else value


Axes = dict[str, Annotated[Choices, BeforeValidator(_short_form, json_schema_input_type=list[Any] | Choices)]]


class Model(_Part):
    """One of the networks that the machine is for."""

    weight: float = Field(1.0, gt=0, allow_inf_nan=False, description="how often it runs, relative to the others")
    period_ms: float | None = Field(
        None, gt=0, allow_inf_nan=False,
        description="one inference a period, the machine leaking in between; without it, it never pauses",
    )  # fmt: skip
    path: str | None = Field(
        None, description="model or artefact, relative to this file; or give it on the command line"
    )
    shapes: dict[str, list[int]] = Field({}, description="shapes of inputs that the model leaves open")
    calibration: str | None = Field(
        None, description="samples to quantise with, relative to this file; or --calibration"
    )
    evaluation: str | None = Field(None, description="samples held out, to measure on; or --evaluation")
    labels: str | None = Field(None, description="array of the evaluation samples with the right classes; or --labels")


class SpaceFile(_Part):
    """A space of machines, the models that they are for, and what is wanted of them."""

    name: str = Field("space", pattern=r"^[A-Za-z0-9._+-]{1,60}$", description="machines are called name.point")
    base: str | dict[str, Any] = Field(description="preset, path of a machine's YAML file, or a machine in full")
    fields: Axes = Field(description="machine fields that vary, e.g. matrix.rows: [8, 16, 32]")
    variables: Axes = Field({}, description="what varies without being a field, for derived fields")
    derived: dict[str, str | int | float] = Field({}, description="machine fields computed from others")
    models: dict[str, Model] = Field({}, description="by name: file names without suffix")
    objectives: list[str] = Field([], description=f"any of {', '.join(merit.ALIASES | merit.QUALITY_ALIASES)}")
    constraints: list[str] = Field([], description="comparisons such as area_mm2 < 2")


def json_schema() -> dict[str, Any]:
    """JSON Schema of a space's file."""
    return SpaceFile.model_json_schema()


def load(path: str | Path) -> Space:
    """A space from a YAML file. Raises ExplorationError naming file and field."""
    path = Path(path)
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ExplorationError(f"{path}: a space of {path.stat().st_size} bytes is not one")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ExplorationError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ExplorationError(f"{path}: is not a text file") from None
    return loads(text, str(path), path.parent)


def loads(text: str, source: str = "<text>", folder: Path = Path()) -> Space:
    """A space from YAML text. source: what errors call it. folder: where relative paths start."""
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ExplorationError(f"{source}: is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ExplorationError(f"{source}: a space is a mapping of fields, not {type(content).__name__}")
    try:
        file = SpaceFile.model_validate(content)
    except ValidationError as error:
        raise ExplorationError("\n".join(f"{source}: {line}" for line in _lines(error))) from None
    problems: list[str] = []
    base = _base(file.base, source, folder)
    axes = _axes(file, base, problems)
    derived = _derived(file, base, axes, source, problems)
    if problems:
        raise ExplorationError("\n".join(f"{source}: {line}" for line in problems))

    def beside(path: str | None) -> str | None:
        return None if path is None else str(folder / path)

    models = {
        name: ModelOptions(
            m.weight, m.period_ms, beside(m.path), {k: tuple(v) for k, v in m.shapes.items()},
            beside(m.calibration), beside(m.evaluation), m.labels,
        )
        for name, m in file.models.items()
    }  # fmt: skip
    return Space(
        file.name, base, axes, derived, models, tuple(file.objectives), tuple(file.constraints)
    )  # what objectives and constraints may name depends on the models: `merit.Merit` checks it


def _base(base: str | dict[str, Any], source: str, folder: Path) -> Machine:
    try:
        if isinstance(base, dict):
            return hardware.loads(yaml.safe_dump(base), f"{source}: base")
        return hardware.load(base if base in hardware.preset_names() or not _is_file(base) else folder / base)
    except HardwareError as error:
        text = str(error)
        raise ExplorationError(text if text.startswith(source) else f"{source}: base: {text}") from None


def _is_file(text: str) -> bool:
    return text.endswith((".yaml", ".yml"))


def _axes(file: SpaceFile, base: Machine, problems: list[str]) -> tuple[Axis, ...]:
    content, known = base.model_dump(mode="json"), field_names()
    given: dict[str, Axis] = {}
    for section, axes in (("fields", file.fields), ("variables", file.variables)):
        for name, choices in axes.items():
            where = f"{section}.{name}"
            if section == "fields" and name not in known:
                problems.append(f"{where}: unknown field of a machine{did_you_mean(name, known)}")
                continue
            if section == "variables" and (name in known or name in FUNCTIONS or not name.isidentifier()):
                why = "is a field of a machine; put it under fields" if name in known else "is no name for a variable"
                problems.append(f"{where}: {name!r} {why}")
                continue
            values, repeated = (
                choices.values(),
                [v for i, v in enumerate(choices.values()) if v in choices.values()[:i]],
            )
            if repeated:
                problems.append(f"{where}: {repeated[0]!r} is there twice")
            if section == "variables" and any(isinstance(v, (list, dict)) for v in values):
                problems.append(f"{where}: a variable's choices are numbers and texts")
            for value in values if section == "fields" else ():
                problem = field_problem(base, name, value)
                if problem:
                    problems.append(f"{where}: {problem}")
            when = {n: tuple(v) if isinstance(v, list) else (v,) for n, v in choices.when.items()}
            given[name] = Axis(name, values, section == "variables", when or None)
    if not given and not problems:
        problems.append("fields: nothing varies; give at least one field with its choices")
    for axis in given.values():
        section = "variables" if axis.variable else "fields"
        for name, wanted in (axis.when or {}).items():
            where = f"{section}.{axis.name}.when"
            if name not in given and name not in known:
                problems.append(f"{where}: unknown field {name!r}{did_you_mean(name, sorted({*given, *known}))}")
                continue
            possible = {str(v) for v in (given[name].choices if name in given else ())} | {str(lookup(content, name))}
            for value in wanted:
                if str(value) not in possible:
                    problems.append(f"{where}: {name} is never {value!r}; it is one of {', '.join(sorted(possible))}")
    return _ordered(given, problems)


def _ordered(given: Mapping[str, Axis], problems: list[str]) -> tuple[Axis, ...]:
    """Each axis after those that its `when` names, otherwise as given."""
    done: dict[str, Axis] = {}
    while len(done) < len(given):
        ready = [
            a for n, a in given.items() if n not in done and all(w in done or w not in given for w in a.when or {})
        ]
        if not ready:
            circle = ", ".join(n for n in given if n not in done)
            problems.append(f"fields: the conditions (when) of {circle} depend on each other in a circle")
            return tuple(given.values())
        done |= {a.name: a for a in ready}
    return tuple(done.values())


def _derived(
    file: SpaceFile, base: Machine, axes: tuple[Axis, ...], source: str, problems: list[str]
) -> tuple[tuple[str, Expression], ...]:
    known, varying = field_names(), {a.name for a in axes}
    waiting: dict[str, Expression] = {}
    for name, text in file.derived.items():
        expression = Expression(str(text), f"derived.{name}")
        if name not in known:
            problems.append(f"derived.{name}: unknown field of a machine{did_you_mean(name, known)}")
        elif name in varying:
            problems.append(f"derived.{name}: is under fields, too; it cannot both vary and follow")
        else:
            try:
                expression.require({*varying, *known}, "field")
                waiting[name] = expression
            except ExplorationError as error:
                problems.append(str(error))
    ordered: dict[str, Expression] = {}
    while waiting:
        ready = [n for n, e in waiting.items() if not any(used in waiting for used in e.names)]
        if not ready:
            problems.append(f"derived: {', '.join(waiting)} depend on each other in a circle")
            break
        ordered |= {n: waiting.pop(n) for n in ready}
    return tuple((n, Expression(e.text, f"{source}: {e.where}")) for n, e in ordered.items())


def _lines(error: ValidationError) -> list[str]:
    lines = []
    for e in error.errors(include_url=False):
        # pydantic names the members of a union, too
        where = ".".join(str(p) for p in e["loc"] if p not in ("dict[str,any]", "str", "int", "float"))
        if e["type"] == "extra_forbidden":
            holder = _holder(e["loc"])
            lines.append(f"{where}: unknown field{did_you_mean(str(e['loc'][-1]), holder.model_fields)}")
        elif e["type"] == "missing":
            description = _holder(e["loc"]).model_fields[str(e["loc"][-1])].description
            lines.append(f"{where}: is missing ({description})")
        elif e["type"] == "value_error":
            lines.append(f"{where}: {e['ctx']['error']}")
        else:
            lines.append(f"{where}: {e['msg'][:1].lower()}{e['msg'][1:]} (it is {_shown(e['input'])})")
    return list(dict.fromkeys(lines))


def _holder(location: tuple[int | str, ...]) -> type[BaseModel]:
    if len(location) == 3 and location[0] in ("fields", "variables"):
        return Choices
    return Model if len(location) == 3 and location[0] == "models" else SpaceFile


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else text[:57] + "..."
