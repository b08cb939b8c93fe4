"""Bar charts as small inline SVG: no script, no library, the same bytes for the same data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape


@dataclass(frozen=True)
class Bar:
    """label: under or beside the bar. value: its length. text: the tooltip. style: "", "low" or "float"."""

    label: str
    value: float
    text: str
    style: str = ""


def _ticks(top: float) -> list[float]:
    """Three to six round numbers from zero to at least `top`."""
    step = 10 ** math.floor(math.log10(top))
    step = next(step * f for f in (0.2, 0.25, 0.5, 1, 2) if top / (step * f) <= 6)
    return [step * i for i in range(math.ceil(top / step - 1e-9) + 1)]


def columns(bars: Sequence[Bar], unit: str, title: str) -> Markup:
    """Vertical bars in order, an axis in `unit` at the left; each bar says its text on hover."""
    ticks = _ticks(max(max((b.value for b in bars), default=0.0), 1e-9))
    left, top, height, bottom = 46, 26, 210, 22
    pitch = max(5.0, min(76.0, 1020 / max(len(bars), 1)))
    width = left + pitch * len(bars) + 8
    scale = height / ticks[-1]
    parts = []
    for tick in ticks:
        y = top + height - tick * scale
        parts.append(
            f'<line class="grid" x1="{left}" x2="{width:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>'
        )
    every = max(1, math.ceil(30 / pitch))  # numbers that would touch are left out
    for i, bar in enumerate(bars):
        x, h = left + pitch * i, max(bar.value, 0) * scale
        number = (
            f'<text x="{x + pitch / 2:.1f}" y="{top + height + 15}" text-anchor="middle">{escape(bar.label)}</text>'
        )
        parts.append(
            f'<g class="item"><title>{escape(bar.text)}</title>'
            f'<rect class="hit" x="{x:.1f}" y="{top}" width="{pitch:.1f}" height="{height}"/>'
            f'<rect class="bar {bar.style}" x="{x + pitch * 0.12:.1f}" y="{top + height - h:.1f}" '
            f'width="{pitch * 0.76:.1f}" height="{h:.1f}" rx="1.5"/></g>' + (number if i % every == 0 else "")
        )
    return Markup(
        f'<svg role="img" aria-label="{escape(title)}" width="{width:.0f}" height="{top + height + bottom}">'
        f'<text x="0" y="11">{escape(unit)}</text>{"".join(parts)}</svg>'
    )


def rows(bars: Sequence[Bar], title: str) -> Markup:
    """Horizontal bars with their label above and their text at the end; as wide as the page allows."""
    longest = max(max((b.value for b in bars), default=0.0), 1e-9)
    parts = []
    for i, bar in enumerate(bars):
        y, share = 40 * i, 100 * bar.value / longest
        parts.append(
            f'<text x="0" y="{y + 12}">{escape(bar.label)}: {escape(bar.text)}</text>'
            f'<rect class="bar {bar.style}" x="0" y="{y + 18}" width="{max(share, 0.3):.2f}%" height="12" rx="2"/>'
        )
    return Markup(
        f'<svg role="img" aria-label="{escape(title)}" width="100%" height="{40 * len(bars)}">{"".join(parts)}</svg>'
    )
