"""What a pass is: a frozen dataclass that maps one Relax module to another, and the pipeline that runs them.

A pass's fields are its options and its name is the name of the file that defines it, one pass a file. A pipeline
has a text form, ``fold_batch_norm,layout{keep_inputs=true}``, that parses back to an equal pipeline. After each
pass the module is verified: a broken module is reported against the pass that broke it, not three passes later.

Instruments watch a pipeline run: `DumpIR` writes numbered TVMScript files, `PassTimes` measures, and
`Explanations` collects why rewrites declined (a rewrite says so by calling `explain`).
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import re
import time
import types
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

import tvm
from tvm import relax

from qcompiler.sim.errors import QCompilerError, did_you_mean


class PipelineTextError(QCompilerError):
    """A text pipeline that does not parse, or names an unknown pass or option."""

    exit_code = 2


class PassError(RuntimeError):
    """A pass broke the module: a bug in the pass, never the user's fault."""


@dataclass(frozen=True)
class Pass(ABC):
    """One rewrite of a module. Subclasses are frozen dataclasses; their fields are the options."""

    name: ClassVar[str]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" not in cls.__dict__:
            cls.name = cls.__module__.rpartition(".")[2]

    @abstractmethod
    def run(self, module: tvm.IRModule) -> tvm.IRModule:
        """The rewritten module; the argument is not changed."""

    def __str__(self) -> str:
        """Text form with the options that differ from their defaults and can be written as text."""
        options = [
            f"{f.name}={_print_value(getattr(self, f.name))}"
            for f in dataclasses.fields(self)
            if getattr(self, f.name) != f.default
            and isinstance(getattr(self, f.name), (bool, int, float, str, type(None)))
        ]
        return self.name + (f"{{{','.join(options)}}}" if options else "")


# ------------------------------------------------------------------------------------ explanations
@dataclass(frozen=True)
class Explanation:
    """A rewrite of `pass_name` left the binding `where` alone, for `reason`."""

    pass_name: str
    where: str
    reason: str

    def __str__(self) -> str:
        return f"{self.pass_name}: {self.where}: {self.reason}"


_running: ContextVar[tuple[Pass, Sequence[Instrument]] | None] = ContextVar("running pass", default=None)


def explain(where: str, reason: str) -> None:
    """Say why a rewrite declined at the tensor `where`; heard by the instruments of the running pipeline."""
    running = _running.get()
    if running is not None:
        note = Explanation(running[0].name, where, reason)
        for instrument in running[1]:
            instrument.explained(note)


# ------------------------------------------------------------------------------------- instruments
class Instrument:
    """Watches a pipeline; every method may be left out."""

    def before(self, step: Pass, module: tvm.IRModule) -> None:
        """Called with the module that `step` is about to rewrite."""

    def after(self, step: Pass, module: tvm.IRModule, seconds: float) -> None:
        """Called with the verified result and the time that `step` alone took."""

    def explained(self, explanation: Explanation) -> None:
        """Called when a rewrite declines."""


@dataclass
class DumpIR(Instrument):
    """Writes ``NNN_<pass>.before.py`` and ``.after.py`` (TVMScript, constants elided) into `directory`.

    One instance may watch several pipelines; the numbers go on.
    """

    directory: Path
    count: int = 0

    def before(self, step: Pass, module: tvm.IRModule) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self._write(step, "before", module)

    def after(self, step: Pass, module: tvm.IRModule, seconds: float) -> None:
        self._write(step, "after", module)
        self.count += 1

    def _write(self, step: Pass, when: str, module: tvm.IRModule) -> None:
        (self.directory / f"{self.count:03d}_{step.name}.{when}.py").write_text(module.script(), encoding="utf-8")


@dataclass
class PassTimes(Instrument):
    """Seconds of each pass, in order, verification excluded."""

    seconds: list[tuple[str, float]] = field(default_factory=list)

    def after(self, step: Pass, module: tvm.IRModule, seconds: float) -> None:
        self.seconds.append((str(step), seconds))


@dataclass
class Explanations(Instrument):
    """Everything that rewrites declined, in order."""

    notes: list[Explanation] = field(default_factory=list)

    def explained(self, explanation: Explanation) -> None:
        self.notes.append(explanation)


# ---------------------------------------------------------------------------------------- pipeline
@dataclass(frozen=True)
class Pipeline:
    """Passes in order. ``str(pipeline)`` is its text form; `parse_pipeline` reads it back."""

    passes: tuple[Pass, ...]

    def run(self, module: tvm.IRModule, instruments: Sequence[Instrument] = ()) -> tvm.IRModule:
        """Run every pass and verify after each. Raises PassError when a pass leaves a broken module behind."""
        for step in self.passes:
            for instrument in instruments:
                instrument.before(step, module)
            with _as_running(step, instruments):
                started = time.perf_counter()
                module = step.run(module)
                seconds = time.perf_counter() - started
            verify(module, f"pass {step.name!r}")
            for instrument in instruments:
                instrument.after(step, module, seconds)
        return module

    def __add__(self, other: Pipeline) -> Pipeline:
        return Pipeline(self.passes + other.passes)

    def __str__(self) -> str:
        return ",".join(map(str, self.passes))


@contextmanager
def _as_running(step: Pass, instruments: Sequence[Instrument]) -> Iterator[None]:
    token = _running.set((step, instruments))
    try:
        yield
    finally:
        _running.reset(token)


def verify(module: tvm.IRModule, culprit: str) -> None:
    """Check well-formedness and that every tensor's name is unique in its function; raises PassError."""
    try:
        relax.analysis.well_formed(module)
    except Exception as error:  # TVM raises several unrelated classes here
        raise PassError(f"{culprit} made a module that is not well formed: {error}") from error
    for variable, function in module.functions_items():
        if not isinstance(function, relax.Function):
            continue
        seen = {p.name for p in function.params}
        for block in getattr(function.body, "blocks", ()):
            for binding in block.bindings:
                if binding.var.name in seen:
                    raise PassError(f"{culprit} made two tensors named {binding.var.name!r} in {variable.name_hint!r}")
                seen.add(binding.var.name)


# --------------------------------------------------------------------------------------- text form
_ITEM = re.compile(r"\s*(?P<name>[A-Za-z_]\w*)\s*(?:\{(?P<options>[^{}]*)\})?\s*(?:,|$)")


def known_passes() -> dict[str, type[Pass]]:
    """Name to class of every pass in the package `qcompiler.passes`."""
    package = importlib.import_module("qcompiler.passes")
    for info in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{info.name}")
    found: dict[str, type[Pass]] = {}
    pending = list(Pass.__subclasses__())
    while pending:
        cls = pending.pop()
        pending += cls.__subclasses__()
        if cls.__module__ == f"{package.__name__}.{cls.name}":
            found[cls.name] = cls
    return dict(sorted(found.items()))


def parse_pipeline(text: str) -> Pipeline:
    """Read ``name,name{option=value,…}``. Raises PipelineTextError with the place and the nearest known name."""
    known = known_passes()
    passes = []
    position = 0
    while position < len(text.rstrip()):
        item = _ITEM.match(text, position)
        if item is None:
            raise PipelineTextError(
                f"pass pipeline {text!r}: cannot read {text[position:]!r}; write name,name{{option=value,...}}"
            )
        name = item["name"]
        if name not in known:
            raise PipelineTextError(f"pass pipeline {text!r}: no pass is called {name!r}{did_you_mean(name, known)}")
        passes.append(_parse_pass(known[name], item["options"] or ""))
        position = item.end()
    return Pipeline(tuple(passes))


def _parse_pass(cls: type[Pass], text: str) -> Pass:
    fields = {f.name: f for f in dataclasses.fields(cls)}
    hints = get_type_hints(cls)
    options = {}
    for part in filter(None, map(str.strip, text.split(","))):
        key, equals, value = (s.strip() for s in part.partition("="))
        if key not in fields:
            raise PipelineTextError(f"pass {cls.name!r} has no option {key!r}{did_you_mean(key, fields)}")
        if not equals:
            raise PipelineTextError(f"pass {cls.name!r}: option {key!r} needs a value, {key}=...")
        options[key] = _parse_value(cls.name, key, value, hints[key])
    missing = [
        n
        for n, f in fields.items()
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING and n not in options
    ]
    if missing:
        raise PipelineTextError(f"pass {cls.name!r} needs {', '.join(map(repr, missing))}")
    return cls(**options)


def _parse_value(name: str, key: str, text: str, hint: Any) -> Any:
    origin = get_origin(hint)
    kinds = get_args(hint) if origin in (Union, types.UnionType) else (hint,)
    for kind in kinds:
        if get_origin(kind) is Literal and text in get_args(kind):
            return text
        if kind is bool and text in ("true", "false"):
            return text == "true"
        if kind is type(None) and text == "none":
            return None
        if kind in (int, float):
            try:
                return kind(text)
            except ValueError:
                continue
        if kind is str:
            return text
    allowed = " or ".join(
        ", ".join(map(repr, get_args(k))) if get_origin(k) is Literal else getattr(k, "__name__", str(k)) for k in kinds
    )
    raise PipelineTextError(f"pass {name!r}: option {key}={text} is not {allowed}")


def _print_value(value: Any) -> str:
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)
