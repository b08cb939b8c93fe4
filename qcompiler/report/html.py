"""report.html: one self-contained page, readable on a narrow window and in the dark."""

from __future__ import annotations

import math
from collections.abc import Mapping
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from qcompiler.report.collect import kernel_text
from qcompiler.report.plots import Bar, columns, rows

LOW_DB = 6.0  # a drop in SQNR worth a look: half the amplitude lost to noise in one layer
TABLE_COLUMNS = (
    ("#", True), ("operation", False), ("kind", False), ("output", False), ("SQNR", True), ("MACs", True),
    ("weight bytes", True), ("output bytes", True), ("kernel", False),
)  # fmt: skip


def render(report: Mapping[str, Any]) -> str:
    """The page for a report of `collect.collect`."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string(
        resources.files("qcompiler.report").joinpath("report.html.j2").read_text(encoding="utf-8")
    )
    return template.render(
        about=report["about"],
        summary=report["summary"],
        accuracy=report["accuracy"],
        layers=report["layers"],
        fallbacks=report["fallbacks"],
        cards=_cards(report),
        columns=TABLE_COLUMNS,
        sqnr_plot=_sqnr_plot(report),
        work_plot=_work_plot(report),
        sizes_plot=_sizes_plot(report),
        provenance=_provenance(report["about"]),
        millions=millions,
        grouped=lambda n: f"{n:,}",
        show_db=show_db,
        sort_key=lambda v: {"exact": 1e6, "no signal": -1e6, None: -2e6}.get(v, v),
        elements=math.prod,
        kernel_text=kernel_text,
    )


def show_db(value: float | str | None) -> str:
    return "" if value is None else value if isinstance(value, str) else f"{value:.1f} dB"


def size(count: float) -> str:
    """Bytes for people, in binary units."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


def millions(macs: float) -> str:
    """A number of multiply-accumulates for people."""
    for unit, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if macs >= factor:
            return f"{macs / factor:.2f} {unit}MAC"
    return f"{macs:.0f} MAC"


def _cards(report: Mapping[str, Any]) -> list[dict[str, str]]:
    summary, sizes, accuracy = report["summary"], report["sizes"], report["accuracy"]
    cards = []

    def card(what: str, value: str, more: str = "", tone: str = "") -> None:
        cards.append({"what": what, "value": value, "more": more, "tone": tone})

    if accuracy:
        name, sqnr = next(iter(accuracy["outputs_sqnr_db"].items()))
        card("output SQNR", show_db(sqnr), f"of {name!r} against float, {accuracy['output_samples']} samples")
        if accuracy["agreement"] is not None:
            card("top-1 agreement with float", f"{accuracy['agreement']:.1%}", f"{accuracy['output_samples']} samples")
        if accuracy["samples_equal_to_reference"]:
            equal = accuracy["samples_equal_to_reference"]
            card("library = reference", "bit for bit", f"checked on {equal} samples", "good")
    card("work", millions(summary["macs"]), f"{summary['operations']} operations")
    if summary["float_operations"]:
        card("left in float", str(summary["float_operations"]), f"of {summary['operations']} operations", "bad")
    else:
        card("left in float", "none", "integer from input to output", "good")
    ratio = sizes["float_weights"] / max(summary["weight_bytes"], 1)
    card("weights", size(summary["weight_bytes"]), f"{ratio:.1f}× smaller than float32")
    if "arena" in sizes:
        card("arena", size(sizes["arena"]), "working memory of a call")
    if "flash" in sizes:
        card("flash", size(sizes["flash"]), f"{size(sizes['code'])} of code")
    if "ram" in sizes:
        card("RAM", size(sizes["ram"]), "arena, inputs, outputs, stack")
    return cards


def _sqnr_plot(report: Mapping[str, Any]) -> Markup | None:
    bars: list[Bar] = []
    ceiling = max((v for v in (layer["sqnr_db"] for layer in report["layers"]) if isinstance(v, float)), default=0.0)
    known: dict[str, float] = {}
    for index, layer in enumerate(report["layers"], start=1):
        value = layer["sqnr_db"]
        if value is None or value == "no signal":
            continue
        height = ceiling if value == "exact" else value
        worst_input = min((known[n] for n in layer["inputs"] if n in known), default=None)
        known[layer["output"]] = height
        low = worst_input is not None and worst_input - height > LOW_DB
        style = "low" if low else "float" if layer["kind"].startswith("float ") else ""
        bars.append(Bar(str(index), height, f"{index}  {layer['name']} ({layer['kind']}): {show_db(value)}", style))
    return columns(bars, "dB", "SQNR of each layer") if bars else None


def _work_plot(report: Mapping[str, Any]) -> Markup | None:
    top = max((layer["macs"] for layer in report["layers"]), default=0)
    if not top:
        return None
    unit, factor = next((u, f) for u, f in (("GMAC", 1e9), ("MMAC", 1e6), ("kMAC", 1e3), ("MAC", 1)) if top >= f)
    bars = [
        Bar(str(i), layer["macs"] / factor, f"{i}  {layer['name']} ({layer['kind']}): {millions(layer['macs'])}")
        for i, layer in enumerate(report["layers"], start=1)
        if layer["macs"]
    ]
    return columns(bars, unit, "multiply-accumulates of each layer")


SIZE_LABELS = {
    "model": "model file",
    "float_weights": "weights in float32",
    "weights": "weights, biases and tables, integer",
    "library": "shared library",
    "program": "accelerator program",
    "arena": "arena",
}


def _sizes_plot(report: Mapping[str, Any]) -> Markup:
    before = ("model", "float_weights")
    bars = [
        Bar(label, report["sizes"][key], size(report["sizes"][key]), "float" if key in before else "")
        for key, label in SIZE_LABELS.items()
        if key in report["sizes"]
    ]
    return rows(bars, "sizes before and after")


def _provenance(about: Mapping[str, Any]) -> list[tuple[str, str]]:
    flat = []
    for key, value in about.items():
        if isinstance(value, Mapping):
            value = ", ".join(f"{k} {v}" for k, v in value.items())
        if value not in (None, ""):
            flat.append((key.replace("_", " "), str(value)))
    return flat
