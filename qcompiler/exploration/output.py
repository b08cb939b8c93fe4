"""The directory of an exploration: points.csv, front/*.yaml, summary.json, pareto.html; whole or not there at all.

Nothing in it depends on time, place, or the number of workers.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import shutil
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import qcompiler
from qcompiler.output import check_parent, new_directory
from qcompiler.sim import hardware
from qcompiler.sim.errors import ExplorationError
from qcompiler.sim.explore.merit import UNITS
from qcompiler.sim.explore.sensitivity import RESOURCES, double, gain

if TYPE_CHECKING:
    from qcompiler.exploration.run import Exploration, Request

FORMAT = "qcompiler exploration"
SUMMARY, POINTS, PAGE, JOURNAL, FRONT = "summary.json", "points.csv", "pareto.html", "exploration.journal", "front"


def check(output: Path) -> None:
    """Raise unless `output` can be made, or is an exploration already."""
    check_parent(output.absolute())
    if (output.exists() or output.is_symlink()) and not is_exploration(output) and not _empty(output):
        raise ExplorationError(
            f"{output} exists and is not an exploration of qcompiler; it will not be overwritten. Give another output "
            "directory, or remove it"
        )


def _empty(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink() and not any(path.iterdir())


def is_exploration(path: Path) -> bool:
    """Whether a directory is one of ours."""
    try:
        with (path / SUMMARY).open(encoding="utf-8") as stream:
            return FORMAT in stream.read(200)
    except (OSError, UnicodeDecodeError):
        return False


def storage_of(request: Request, identity: str) -> Path | str:
    """Where the outcomes are kept while exploring: what the user said, else a journal beside the output.

    A finished exploration of the same identity goes on from its own journal. Raises ExplorationError for another one.
    """
    output = request.output
    if is_exploration(output):
        there = json.loads((output / SUMMARY).read_text(encoding="utf-8")).get("exploration_sha256")
        if there != identity:
            raise ExplorationError(
                f"{output} holds another exploration (other models, space, objectives, sampler, seed or version); give "
                "another output directory, or remove it"
            )
    if request.storage is not None:
        return request.storage
    journal = output.absolute().parent / f"{output.name}.journal"
    if not journal.exists() and (output / JOURNAL).is_file():
        partial = journal.with_name(journal.name + ".part")
        shutil.copyfile(output / JOURNAL, partial)
        partial.replace(journal)
    return journal


def write(found: Exploration, output: Path, journal: Path | None) -> None:
    """Make the directory; a journal moves into it."""
    from qcompiler.report.pareto import render

    with new_directory(output, is_exploration) as work:
        points = to_csv(found)
        (work / POINTS).write_text(points, encoding="utf-8")
        (work / FRONT).mkdir()
        for number in found.front:
            text = hardware.to_yaml(described(found, number))
            (work / FRONT / f"{found.name(number)}.yaml").write_text(text, encoding="utf-8")
        summary = summarise(found)
        summary["files"] = {POINTS: hashlib.sha256(points.encode()).hexdigest()}
        (work / SUMMARY).write_text(json.dumps(summary, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        (work / PAGE).write_text(render(found, summary), encoding="utf-8")
        if journal is not None:
            shutil.copyfile(journal, work / JOURNAL)
    if journal is not None:
        journal.unlink()


def described(found: Exploration, number: int) -> hardware.Machine:
    """The machine of a point with what is predicted of it as its description."""
    figures = found.figures[number]
    assert figures is not None
    told = ", ".join(f"{o.figure} {figures[o.figure]:.4g}" for o in found.merit.objectives)
    models = ", ".join(found.merit.models)
    return found.machine(number).model_copy(
        update={"description": f"Point {number} of space {found.space.name!r}, explored for {models}: {told}."}
    )


def status(found: Exploration, number: int) -> str:
    """feasible, violates (a constraint), or impossible."""
    if found.figures[number] is None:
        return "impossible"
    return "violates" if found.broken[number] else "feasible"


def to_csv(found: Exploration) -> str:
    """One line a point, in the order in which the sampler chose them."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names, front = found.merit.names, set(found.front)
    writer.writerow(["point", *(a.name for a in found.space.axes), "status", "front", *names, "reason"])
    for number, point in enumerate(found.points):
        choices, figures = found.space.choices(point), found.figures[number]
        axes = [_cell(choices[a.name]) if a.name in choices else "" for a in found.space.axes]
        values = [repr(figures[n]) for n in names] if figures else [""] * len(names)
        reason = found.outcomes[number].reason or "; ".join(found.broken[number])
        writer.writerow([number, *axes, status(found, number), int(number in front), *values, reason])
    return out.getvalue()


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def summarise(found: Exploration) -> dict[str, Any]:
    """summary.json: how it was made, the front with both figures, what matters, what to change next."""
    counts = {"points": len(found.points), "feasible": 0, "violates": 0, "impossible": 0}
    for number in range(len(found.points)):
        counts[status(found, number)] += 1
    front = [_entry(found, number) for number in found.front]
    proven = [e["simulated"] for e in front if "simulated" in e]
    merit = found.merit
    return {
        "format": FORMAT,
        "exploration_sha256": found.hash,
        "space": found.space.name,
        "sampler": found.sampler,
        "seed": found.seed,
        "counts": {**counts, "front": len(front)},
        "objectives": [o.figure for o in merit.objectives],
        "constraints": [c.text for c in merit.constraints],
        "models": {
            m.name: {
                "source": m.source, "calibration": m.calibration, "weight": o.weight, "period_ms": o.period_ms,
                **_quantised(found, i),
            }
            for i, (m, o) in enumerate(zip(found.models, merit.models.values(), strict=True))
        },
        "units": {o.figure: UNITS[o.figure.rpartition(".")[2]] for o in merit.objectives},
        "simulation": {
            "machines": len(proven),
            "largest_latency_difference": max((abs(p["latency_difference"]) for p in proven), default=None),
            "dram_bytes_equal": all(p["dram_bytes_equal"] for p in proven) if proven else None,
        },
        "variance_explained": {
            figure: {
                a.name: {"main": _rounded(e.main), "total": _rounded(e.total)}
                for a, e in zip(found.space.axes, effects, strict=True)
            }
            for figure, effects in found.effects.items()
        },
        "front": front,
        "versions": {
            "qcompiler": qcompiler.__version__,
            **{p: metadata.version(p) for p in ("numpy", "optuna", "plotly")},
        },
        "identity": dict(found.identity),
    }  # fmt: skip


def _quantised(found: Exploration, index: int) -> dict[str, Any]:
    """The programs of a model, by the widths of operands, and what they are worth where that is measured."""
    model, rows = found.models[index], []
    for w, program in found.identity["models"][model.name][0].items():
        widths = next(x for x in model.cores if x.short == w)
        row: dict[str, Any] = {
            "weight_bits": widths.weight_bits, "activation_bits": widths.activation_bits, "program_sha256": program
        }  # fmt: skip
        if widths in found.quality:
            quality = found.quality[widths][index]
            row |= {n: getattr(quality, n) for n in found.merit.measured[model.name]}
        rows.append(row)
    exact = found.float_accuracy[index] if found.float_accuracy else None
    return {"quantised": rows, **({} if exact is None else {"float_accuracy": exact})}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


def _entry(found: Exploration, number: int) -> dict[str, Any]:
    figures, merit = found.figures[number], found.merit
    assert figures is not None
    entry: dict[str, Any] = {
        "point": number,
        "machine": f"{FRONT}/{found.name(number)}.yaml",
        "fields": {**found.space.choices(found.points[number]), **found.space.fields(found.points[number])},
        "figures": {n: figures[n] for n in merit.names},
    }
    if number in found.simulated:
        outcome, predicted = found.simulated[number], found.outcomes[number]
        proven = merit.figures(outcome)
        pairs = list(zip(predicted.costs, outcome.costs, strict=True))
        entry["simulated"] = {
            **{n: proven[n] for n in merit.names},
            # of the model that differs most
            "latency_difference": max((p.cycles / s.cycles - 1 for p, s in pairs), key=abs),
            "energy_difference": max((p.energy_pj / s.energy_pj - 1 for p, s in pairs), key=abs),
            "dram_bytes_equal": all(p.dram_bytes == s.dram_bytes for p, s in pairs),
        }
    entry["next"] = _next(found, number, figures)
    return entry


def _next(found: Exploration, number: int, figures: dict[str, float]) -> list[dict[str, Any]]:
    """What doubling each resource would change, the most of the first objective first."""
    rows = []
    for resource, outcome in found.next.get(number, {}).items():
        if outcome.reason:
            continue
        after = found.merit.figures(outcome)
        _, changed = double(found.machine(number), resource)
        changes = {o.figure: gain(figures, after, o.figure) for o in found.merit.objectives}
        rows.append({"double": resource, "fields": changed, "changes": {k: round(v, 6) for k, v in changes.items()}})
    first, order = found.merit.objectives[0].figure, list(RESOURCES)
    return sorted(rows, key=lambda row: (row["changes"][first], order.index(row["double"])))
