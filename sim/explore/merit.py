"""Figures of merit: what the costs of the models on a machine amount to, objectives, and constraints.

With weights w, latencies t and energies e of the models: latency_ms = sum(w t) / sum(w), energy_uj = sum(w e) / sum(w),
edp = their product, power_mw = sum(w e) / sum(w t) for a machine that never pauses. Where every model has a period, the
machine leaks while it waits: power_mw = leakage + sum((e - leakage t) / period), and the models must fit their periods.
`<model>.<figure>` is one model's own.

Where the models' quality is measured, it depends on the widths of the machine's operands: sqnr_db and accuracy are
means by weight as well, and more of them is better.
"""

from __future__ import annotations

import math
from collections import ChainMap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qcompiler.sim.errors import ExplorationError, did_you_mean
from qcompiler.sim.explore.expression import Expression
from qcompiler.sim.explore.space import ModelOptions
from qcompiler.sim.hardware.machine import field_names

ALIASES = {
    "latency": "latency_ms", "energy": "energy_uj", "power": "power_mw", "area": "area_mm2", "edp": "edp_uj_ms",
    "traffic": "dram_bytes",
}  # fmt: skip
UNITS = {
    "latency_ms": "ms", "energy_uj": "µJ", "power_mw": "mW", "area_mm2": "mm²", "edp_uj_ms": "µJ·ms",
    "dram_bytes": "bytes",
}  # fmt: skip
PER_MODEL = ("latency_ms", "energy_uj", "dram_bytes")
QUALITY_ALIASES = {"sqnr": "sqnr_db", "accuracy": "accuracy"}
QUALITY = tuple(QUALITY_ALIASES.values())
"""Figures of what the quantised models compute: more is better."""
UNITS |= {"sqnr_db": "dB", "accuracy": ""}


@dataclass(frozen=True)
class Quality:
    """Of one model, quantised for some widths. sqnr_db: of its first output against the float model, in dB; accuracy:
    the fraction of samples whose largest score is at the label. None where it was not measured."""

    sqnr_db: float | None = None
    accuracy: float | None = None


@dataclass(frozen=True)
class Cost:
    """One inference of one model: cycles, pJ with the leakage of these cycles, bytes of the external memories."""

    cycles: int
    energy_pj: float
    dram_bytes: int


@dataclass(frozen=True)
class Outcome:
    """A machine with all its models, or the reason why it cannot be: then the rest is empty.

    quality: of each model where it is measured; it follows from the machine's widths, and is not kept with the costs.
    """

    reason: str = ""
    clock_mhz: float = 0.0
    area_mm2: float = 0.0
    leakage_mw: float = 0.0
    costs: tuple[Cost, ...] = ()
    quality: tuple[Quality, ...] = ()

    def to_json(self) -> list[Any]:
        """A short JSON value that `from_json` gives back exactly, but for the quality."""
        if self.reason:
            return [self.reason]
        costs = [[c.cycles, c.energy_pj, c.dram_bytes] for c in self.costs]
        return [self.clock_mhz, self.area_mm2, self.leakage_mw, costs]

    @staticmethod
    def from_json(value: list[Any]) -> Outcome:
        if len(value) == 1:
            return Outcome(str(value[0]))
        clock, area, leakage, costs = value
        return Outcome("", clock, area, leakage, tuple(Cost(*c) for c in costs))


@dataclass(frozen=True)
class Objective:
    """A figure to minimise, or one of `QUALITY` to maximise."""

    figure: str

    @property
    def maximised(self) -> bool:
        return self.figure.rpartition(".")[2] in QUALITY

    def cost(self, figures: Mapping[str, float]) -> float:
        """The figure itself, negative where more is better."""
        return -figures[self.figure] if self.maximised else figures[self.figure]

    def score(self, figures: Mapping[str, float]) -> float:
        """Its logarithm, since figures span decades; decibels are logarithms, and accuracies span none."""
        return self.cost(figures) if self.maximised else math.log(max(figures[self.figure], 1e-30))


class Merit:
    """Figures, objectives and constraints of an exploration.

    models: by name, in the order of `Outcome.costs`. measured: which of `QUALITY` is known of each model. Raises
    ExplorationError for an unknown objective or name in a constraint.
    """

    def __init__(
        self, models: Mapping[str, ModelOptions], objectives: Sequence[str], constraints: Sequence[str],
        measured: Mapping[str, Sequence[str]] | None = None,
    ) -> None:  # fmt: skip
        self.models = dict(models)
        self.measured = {name: tuple((measured or {}).get(name, ())) for name in models}
        self.common = tuple(q for q in QUALITY if all(q in own for own in self.measured.values()))
        self.aliases = ALIASES | {a: q for a, q in QUALITY_ALIASES.items() if q in self.common}
        self.periods = [m.period_ms for m in models.values()]
        if any(self.periods) and not all(self.periods):
            without = next(n for n, m in models.items() if m.period_ms is None)
            raise ExplorationError(f"models.{without}: has no period_ms, but others have; give it to all or to none")
        self.names = self._names()
        self.objectives = tuple(Objective(self._figure(name)) for name in objectives)
        if not self.objectives:
            raise ExplorationError(f"there is no objective; give any of {', '.join([*ALIASES, *QUALITY_ALIASES])}")
        if len({o.figure for o in self.objectives}) < len(self.objectives):
            raise ExplorationError(f"objectives: {', '.join(objectives)} names one of them twice")
        self.constraints = tuple(self._constraint(text) for text in constraints)
        read = {name for constraint in self.constraints for name in constraint.names}
        self.reads_fields = not read <= {*self.names, *self.aliases}

    def _names(self) -> tuple[str, ...]:
        own = (f"{m}.{n}" for m in self.models for n in (*PER_MODEL, *self.measured[m]))
        return (*ALIASES.values(), *self.common, *own)

    def _figure(self, name: str) -> str:
        found = self.aliases.get(name, name)
        if found in self.names:
            return found
        self._unmeasured(name, f"objective {name!r}")
        near = did_you_mean(name, dict.fromkeys([*ALIASES, *QUALITY_ALIASES, *self.names]))
        raise ExplorationError(f"unknown objective {name!r}{near} (one of {', '.join([*ALIASES, *QUALITY_ALIASES])})")

    def _constraint(self, text: str) -> Expression:
        expression = Expression(text, f"constraint {text!r}")
        if expression.comparison is None:
            raise ExplorationError(f"constraint {text!r}: want a comparison, such as 'area_mm2 < 2'")
        for name in expression.names:
            if name not in self.names and name not in self.aliases:
                self._unmeasured(name, f"constraint {text!r}")
        expression.require([*self.names, *self.aliases, *field_names()])
        if not any(n in self.names or n in self.aliases for n in expression.names):
            raise ExplorationError(f"constraint {text!r}: names no figure; limit fields by their choices instead")
        return expression

    def _unmeasured(self, name: str, where: str) -> None:
        """Raise where a name is that of a quality which the data given does not say."""
        model, _, last = name.rpartition(".")
        figure = QUALITY_ALIASES.get(last, last)
        if figure not in QUALITY or (model and model not in self.models):
            return
        lacking = next((m for m in ([model] if model else self.models) if figure not in self.measured[m]), model)
        need = {
            "sqnr_db": "samples and the float model; give --calibration, and --evaluation for samples held out",
            "accuracy": "labelled samples; give --labels, an array of --evaluation or else of --calibration",
        }[figure]
        raise ExplorationError(f"{where}: {last} of {lacking} needs {need}")

    # ---------------------------------------------------------------------------------------- figures
    def figures(self, outcome: Outcome) -> dict[str, float]:
        """All `names` of a feasible outcome."""
        found: dict[str, float] = {}
        times = [c.cycles / (outcome.clock_mhz * 1e3) for c in outcome.costs]
        energies = [c.energy_pj * 1e-6 for c in outcome.costs]
        weights = [m.weight for m in self.models.values()]

        def mean(values: Sequence[float]) -> float:
            return sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)

        found["latency_ms"], found["energy_uj"] = mean(times), mean(energies)
        if all(self.periods):
            leak = outcome.leakage_mw
            found["power_mw"] = leak + sum(
                (e - leak * t) / p for e, t, p in zip(energies, times, self.periods, strict=True) if p
            )
        else:
            found["power_mw"] = found["energy_uj"] / found["latency_ms"]
        found["area_mm2"] = outcome.area_mm2
        found["edp_uj_ms"] = found["energy_uj"] * found["latency_ms"]
        found["dram_bytes"] = mean([c.dram_bytes for c in outcome.costs])
        for name, t, e, c in zip(self.models, times, energies, outcome.costs, strict=True):
            own = {"latency_ms": t, "energy_uj": e, "dram_bytes": c.dram_bytes}
            found |= {f"{name}.{n}": float(own[n]) for n in PER_MODEL}
        for figure in self.common:
            found[figure] = mean([float(getattr(q, figure)) for q in outcome.quality])
        for (name, figures), quality in zip(self.measured.items(), outcome.quality, strict=False):
            found |= {f"{name}.{n}": float(getattr(quality, n)) for n in figures}
        return found

    def violations(self, outcome: Outcome, figures: Mapping[str, float], fields: Mapping[str, Any]) -> dict[str, float]:
        """The constraints that a feasible outcome breaks, and by which fraction of the larger side.

        fields: the machine's fields by dotted name.
        """
        broken: dict[str, float] = {}
        if all(self.periods):
            busy = sum(
                c.cycles / (outcome.clock_mhz * 1e3) / p for c, p in zip(outcome.costs, self.periods, strict=True) if p
            )
            if busy > 1:
                broken["the models fit their periods"] = busy - 1
        aliases = {a: figures[n] for a, n in self.aliases.items()}
        values = ChainMap[str, Any](aliases, dict(figures), fields)  # type: ignore[arg-type] # is not written to
        for constraint in self.constraints:
            if not constraint.evaluate(values):
                comparison = constraint.comparison
                assert comparison is not None
                left, sign, right = comparison
                a, b = left.evaluate(values), right.evaluate(values)
                excess = (a - b if sign in ("<", "<=") else b - a) / (max(abs(a), abs(b)) or 1)
                broken[constraint.text] = max(excess, 1e-9)  # a strict limit met exactly is still missed
        return broken
