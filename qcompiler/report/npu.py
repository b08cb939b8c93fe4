"""simulation.html: roofline, timeline, cycles and energy of a simulated run, as one self-contained page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib import resources
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup, escape

from qcompiler.sim.isa.base import QUEUES
from qcompiler.sim.timing import Timeline
from qcompiler.simulation import CAUSES, GROUPS, LayerCost, Result, band, totals

TIMELINE_BINS = 900
GROUP_NAMES = {
    "mac": "array", "vector": "vector lanes", "sram": "on-chip memories", "dram": "external memory",
    "static": "leakage",
}  # fmt: skip


def render(result: Result) -> str:
    """The page for a simulated run."""
    templates = resources.files("qcompiler.report")
    common = templates.joinpath("report.html.j2").read_text(encoding="utf-8")
    style = common.split("<style>")[1].split("</style>")[0]  # one look for all pages
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string(templates.joinpath("npu.html.j2").read_text(encoding="utf-8"))
    return template.render(
        style=Markup(style),
        name=result.program.name,
        machine=result.machine,
        cards=_cards(result),
        totals=totals(result),
        causes=CAUSES,
        groups=GROUP_NAMES,
        cycle_bars=_stacks(result.layers, "cycles", list(CAUSES), "cycles"),
        energy_bars=_stacks(result.layers, "energy", list(GROUPS), "pJ"),
        roofline=_roofline(result),
        timeline=_timeline(result.timeline),
        units=[(q.name, result.timeline.units[q]) for q in QUEUES if _used(result.timeline, q)],
        layers=result.layers,
        area={k: band(v, "mm²") for k, v in result.area.items()},
        grouped=lambda n: f"{n:,}",
    )


def _used(timeline: Timeline, queue: Any) -> bool:
    return timeline.units[queue]["idle"] < timeline.cycles


def _cards(result: Result) -> list[dict[str, str]]:
    def card(what: str, value: str, more: str) -> dict[str, str]:
        return {"what": what, "value": value, "more": more}

    mj, mw, mm = result.millijoules, result.milliwatts, result.square_millimetres
    tops, machine = result.tops_per_watt, result.machine
    return [
        card("latency", f"{result.milliseconds:.4g} ms", f"{result.cycles:,} cycles at {machine.clock_mhz:g} MHz"),
        card("array utilisation", f"{result.utilisation:.1%}", f"{machine.matrix.macs_per_cycle} MACs a cycle"),
        card("energy", f"{mj.value:.3g} mJ", f"{mj.low:.3g} to {mj.high:.3g}"),
        card("power", f"{mw.value:.3g} mW", f"{mw.low:.3g} to {mw.high:.3g}, running without pause"),
        card("area", f"{mm.value:.3g} mm²", f"{mm.low:.3g} to {mm.high:.3g}, {machine.process_nm} nm"),
        card("efficiency", f"{tops.value:.3g} TOPS/W", f"{tops.low:.3g} to {tops.high:.3g}"),
    ]  # fmt: skip


def _stacks(layers: Sequence[LayerCost], field: str, parts: Sequence[str], unit: str) -> Markup:
    """A horizontal bar a layer, cut into parts, on a common scale."""
    longest = max((sum(getattr(y, field).values()) for y in layers), default=0) or 1
    rows = []
    for i, layer in enumerate(layers):
        values, y, x = getattr(layer, field), 20 * i, 0.0
        total = sum(values.values())
        cells = []
        for part in parts:
            width = 100 * values[part] / longest
            if width > 0:
                text = f"{layer.name}: {part} {values[part]:,.0f} {unit} ({values[part] / total:.0%})"
                cells.append(
                    f'<rect class="part {part}" x="{x:.3f}%" y="{y + 3}" width="{width:.3f}%" height="13">'
                    f"<title>{escape(text)}</title></rect>"
                )
            x += width
        label = escape(layer.name if len(layer.name) < 40 else "…" + layer.name[-38:])
        rows.append(f'<text x="-8" y="{y + 14}" text-anchor="end">{label}</text>{"".join(cells)}')
    height = 20 * len(layers) + 4
    plot = f'<svg class="plot" x="260" height="{height}" overflow="visible">{"".join(rows)}</svg>'
    title = f"{unit} of each layer"
    return Markup(
        f'<svg class="stack" role="img" aria-label="{escape(title)}" width="100%" height="{height}">{plot}</svg>'
    )


def _roofline(result: Result) -> Markup:
    """Attained MACs a cycle over MACs per external byte, logarithmic, under the roof of array and read bandwidth."""
    points = [
        (y.macs / (y.read_bytes + y.write_bytes), y.macs / y.total, y)
        for y in result.layers
        if y.macs and y.total and y.read_bytes + y.write_bytes
    ]
    machine = result.machine
    peak = machine.matrix.macs_per_cycle
    bandwidth = machine.main_memory.read_bytes_per_cycle + machine.main_memory.write_bytes_per_cycle
    if machine.constant_memory is not None:
        bandwidth += machine.constant_memory.read_bytes_per_cycle
    xs, ys = [p[0] for p in points] + [peak / bandwidth], [p[1] for p in points] + [float(peak)]
    x0, x1 = math.floor(math.log10(min(xs)) - 0.1), math.ceil(math.log10(max(xs)) + 0.1)
    y0, y1 = math.floor(math.log10(min(ys)) - 0.1), math.ceil(math.log10(max(ys)) + 0.05)
    left, top, width, height = 60, 14, 860, 300

    def at(x: float, y: float) -> tuple[float, float]:
        return (left + width * (math.log10(x) - x0) / (x1 - x0), top + height * (y1 - math.log10(y)) / (y1 - y0))

    parts = []
    for e in range(x0, x1 + 1):
        x, _ = at(10.0**e, 1)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{top + height}"/>'
                     f'<text x="{x:.1f}" y="{top + height + 16}" text-anchor="middle">{10.0**e:g}</text>')  # fmt: skip
    for e in range(y0, y1 + 1):
        _, y = at(1, 10.0**e)
        parts.append(f'<line class="grid" x1="{left}" x2="{left + width}" y1="{y:.1f}" y2="{y:.1f}"/>'
                     f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{10.0**e:g}</text>')  # fmt: skip
    start = max(10.0**x0, 10.0**y0 / bandwidth)
    roof = [at(start, start * bandwidth), at(peak / bandwidth, peak), at(10.0**x1, peak)]
    parts.append('<polyline class="roof" points="' + " ".join(f"{x:.1f},{y:.1f}" for x, y in roof) + '"/>')
    for intensity, attained, layer in points:
        x, y = at(intensity, attained)
        text = f"{layer.name}: {attained:.1f} MACs a cycle, {intensity:.2f} MACs a byte, {layer.total:,} cycles"
        parts.append(f'<circle class="point" cx="{x:.1f}" cy="{y:.1f}" r="4.5"><title>{escape(text)}</title></circle>')
    size = f'width="{left + width + 20}" height="{top + height + 40}"'
    return Markup(
        f'<svg role="img" aria-label="roofline" {size}>{"".join(parts)}'
        f'<text x="{left + width / 2:.0f}" y="{top + height + 34}" text-anchor="middle">MACs per external byte</text>'
        f'<text x="{left + 6}" y="{top + 12}">MACs a cycle</text></svg>'
    )


def _timeline(timeline: Timeline) -> Markup:
    """How busy each unit is over time: the darker, the busier; a bin names the layer that was served most."""
    total = max(timeline.cycles, 1)
    size = max(1, math.ceil(total / TIMELINE_BINS))
    bins = math.ceil(total / size)
    units = [q for q in QUEUES if _used(timeline, q)]
    layer_of, width, left = np.array(timeline.program.layer_of), 1000, 64
    parts = []
    for row, unit in enumerate(units):
        members = np.flatnonzero(timeline.queue == int(unit))
        start, end, layers = timeline.start[members], timeline.end[members], layer_of[members]
        busy = _coverage(start, end, size, bins)
        first = np.searchsorted(start, np.arange(bins) * size, side="right") - 1
        y = 26 * row
        parts.append(f'<text x="{left - 8}" y="{y + 15}" text-anchor="end">{unit.name}</text>')
        for b in np.flatnonzero(busy > 0).tolist():
            name = timeline.program.layers[int(layers[max(int(first[b]), 0)])].name
            text = f"{unit.name}, cycle {b * size:,}: {min(busy[b] / size, 1):.0%} busy, {name}"
            shade = min(0.15 + 0.85 * busy[b] / size, 1)
            parts.append(
                f'<rect class="busy" x="{left + width * b / bins:.2f}" y="{y}" width="{width / bins + 0.05:.2f}" '
                f'height="21" fill-opacity="{shade:.2f}"><title>{escape(text)}</title></rect>'
            )
    base = 26 * len(units)
    for i in range(6):
        x = left + width * i / 5
        parts.append(f'<text x="{x:.0f}" y="{base + 14}" text-anchor="middle">{round(total * i / 5):,}</text>')
    return Markup(
        f'<svg role="img" aria-label="timeline" width="{left + width + 50}" height="{base + 20}">{"".join(parts)}</svg>'
    )


def _coverage(start: np.ndarray, end: np.ndarray, size: int, bins: int) -> np.ndarray:
    """Busy cycles in each bin of `size` cycles, for intervals that do not overlap."""
    # The integral of "busy" at a bin's edges: whole intervals before it, plus the part of the one across it.
    edges = np.arange(bins + 1) * size
    done = np.concatenate(([0], np.cumsum(end - start)))
    index = np.searchsorted(start, edges, side="right")
    total = done[index].astype(np.int64)
    inside = index > 0
    over = np.zeros(bins + 1, dtype=np.int64)
    over[inside] = np.maximum(end[index[inside] - 1] - edges[inside], 0)
    return np.diff(total - over)
