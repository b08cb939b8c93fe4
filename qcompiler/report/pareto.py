"""pareto.html: the explored machines as a plot and a table, self-contained, quick with tens of thousands of points."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from importlib import resources
from typing import TYPE_CHECKING, Any

import jinja2
from markupsafe import Markup

from qcompiler.sim.errors import ExplorationError
from qcompiler.sim.explore.merit import QUALITY

if TYPE_CHECKING:
    from qcompiler.exploration.run import Exploration

DIGITS = 6


def require_plotly() -> str:
    """Plotly's script. Raises ExplorationError where the package is missing."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise ExplorationError(
            "exploring needs Plotly, which is not installed: pip install 'qcompiler[explore]'"
        ) from None
    return str(get_plotlyjs())


def render(found: Exploration, summary: Mapping[str, Any]) -> str:
    """The page of an exploration and its summary.json."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    folder = resources.files("qcompiler.report")
    style = re.search(r"<style>(.*?)</style>", folder.joinpath("report.html.j2").read_text(encoding="utf-8"), re.S)
    assert style is not None
    template = environment.from_string(folder.joinpath("pareto.html.j2").read_text(encoding="utf-8"))
    return template.render(
        style=Markup(style[1]),
        plotly=Markup(require_plotly()),
        data=Markup(_embed(_data(found, summary))),
        summary=summary,
        cards=_cards(summary),
        quality=_quality(found, summary),
        effects=[
            (figure, [(a, e) for a, e in sorted(axes.items(), key=lambda item: -item[1]["total"])])
            for figure, axes in summary["variance_explained"].items()
        ],
        percent=lambda v: "" if v is None else f"{v:.1%}",
        grouped=lambda n: f"{n:,}",
    )


def _embed(value: Any) -> str:
    """JSON that no HTML parser takes for the end of its script."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _short(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def _data(found: Exploration, summary: Mapping[str, Any]) -> dict[str, Any]:
    """Everything the page's script reads, in columns."""
    space, merit = found.space, found.merit
    status, reasons = [], dict[str, int]()
    why = []
    for number, (figures, broken) in enumerate(zip(found.figures, found.broken, strict=True)):
        status.append("i" if figures is None else "v" if broken else "f")
        reason = found.outcomes[number].reason or "; ".join(broken)
        why.append(reasons.setdefault(reason, len(reasons)))
    derived = {name: [] for name, _ in space.derived}  # type: dict[str, list[Any]]
    for point, figures in zip(found.points, found.figures, strict=True):
        fields = space.fields(point) if figures is not None else {}
        for name, column in derived.items():
            column.append(fields.get(name))
    shown = [n for n in merit.names if "." not in n or len(merit.models) > 1]
    return {
        "space": space.name,
        "digits": len(found.name(0)) - 1,
        "base": space.base.model_dump(mode="json", exclude_none=True, exclude={"name", "description"}),
        "axes": [{"name": a.name, "choices": a.choices, "variable": a.variable} for a in space.axes],
        "points": [list(column) for column in zip(*found.points, strict=True)],
        "derived": derived,
        "figures": {n: [None if f is None else _short(f[n]) for f in found.figures] for n in shown},
        "objectives": [o.figure for o in merit.objectives],
        "quality": QUALITY,
        "status": "".join(status),
        "reasons": list(reasons),
        "why": why,
        "front": found.front,
        "entries": {
            e["point"]: {
                "next": [[r["double"], *r["changes"].values()] for r in e["next"]],
                "simulated": {n: _short(e["simulated"][n]) for n in shown} if "simulated" in e else None,
            }
            for e in summary["front"]
        },
    }


def _quality(found: Exploration, summary: Mapping[str, Any]) -> dict[str, Any] | None:
    """A table of what the models are worth by widths; None where nothing is measured."""
    names = [n for n in QUALITY if any(n in own for own in found.merit.measured.values())]
    rows = []
    for name, model in summary["models"].items():
        if model.get("float_accuracy") is not None:
            rows.append(
                [
                    name,
                    "float",
                    "float",
                    *(_digits(model["float_accuracy"] if n == "accuracy" else None) for n in names),
                ]
            )
        for row in model["quantised"]:
            rows.append([name, row["weight_bits"], row["activation_bits"], *(_digits(row.get(n)) for n in names)])
    return {"names": names, "rows": rows} if names else None


def _digits(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _cards(summary: Mapping[str, Any]) -> list[dict[str, str]]:
    def card(what: str, value: str, more: str) -> dict[str, str]:
        return {"what": what, "value": value, "more": more}

    counts, proof = summary["counts"], summary["simulation"]
    rest = f"{counts['violates']:,} break a constraint, {counts['impossible']:,} are impossible"
    sampler = summary["sampler"] + ("" if summary["sampler"] == "exhaustive" else f", seed {summary['seed']}")
    cards = [
        card("machines", f"{counts['points']:,}", sampler),
        card("feasible", f"{counts['feasible']:,}", rest),
        card("on the front", f"{counts['front']:,}", "nothing is better in every objective"),
    ]
    if proof["machines"]:
        moved = "external bytes equal" if proof["dram_bytes_equal"] else "external bytes differ"
        worst = f"{proof['largest_latency_difference']:.2%}"
        cards.append(card("simulated", f"{proof['machines']:,}", f"latency at most {worst} off, {moved}"))
    return cards
