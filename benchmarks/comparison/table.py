"""The results as Markdown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

OURS = "qcompiler"
FLOAT = "ONNX Runtime float32"
PEERS = ("ONNX Runtime int8", "OpenVINO (QDQ)", "OpenVINO (NNCF)", "LiteRT int8")
AVX2 = " on AVX2"
Results = Mapping[str, Any]


def render(results: Sequence[Results], machine: Mapping[str, Any]) -> str:
    """results: one a model and thread count, see `compare.py`."""
    parts = [_head(machine), _latency(results), *_limited(results), _footprint(results), _missing(results)]
    return "\n\n".join(part for part in parts if part) + "\n"


def ratio(result: Results, of: str = "min_s", suffix: str = "") -> float | None:
    """Best int8 peer over ours, in time."""
    rows = result["contenders"]
    best = best_peer(result, of, suffix)
    return rows[best][of] / rows[OURS + suffix][of] if best and OURS + suffix in rows else None


def best_peer(result: Results, of: str = "min_s", suffix: str = "") -> str | None:
    there = [name + suffix for name in PEERS if name + suffix in result["contenders"]]
    return min(there, key=lambda name: result["contenders"][name][of], default=None)


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def duration(seconds: float) -> str:
    return f"{seconds * 1e6:.1f} µs" if seconds < 1e-3 else f"{seconds * 1e3:.2f} ms"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _head(machine: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    peaks = ", ".join(f"{level} {value:.0f}" for level, value in machine["peaks"].get("1", {}).items())
    return (
        "# Latency beside other runtimes\n\n"
        f"{machine['date']}, {machine['cpu']}. {versions}. Measured peaks of one core in GMAC/s: {peaks or 'none'}.\n\n"
        "One inference at batch 1, shortest and (in brackets) median of interleaved bursts, one process a contender. "
        "*ratio*: best peer over qcompiler, both at their shortest. *x bound*: over what the multiply-accumulates take "
        "at the measured peak of the instruction set in use, and at VPDPBUSD's."
    )


def _latency(results: Sequence[Results]) -> str:
    rows = []
    for result in results:
        there = result["contenders"]
        cells = [_times(there.get(name)) for name in (OURS, *PEERS, FLOAT)]
        value, bound = ratio(result), _bound(result)
        rows.append([result["model"], str(result["threads"]), *cells, f"**{value:.2f}**" if value else "–", bound])
    text = _table(["model", "threads", OURS, *PEERS, FLOAT, "ratio", "x bound"], rows)
    for threads in sorted({r["threads"] for r in results}):
        for of, what in (("min_s", "shortest"), ("median_s", "median")):
            values = [v for r in results if r["threads"] == threads and (v := ratio(r, of))]
            if values:
                text += (
                    f"\n{chr(10) if of == 'min_s' else ''}Geometric mean of best peer / qcompiler, "
                    f"{threads} thread{'s' if threads > 1 else ''}, {what}: **{geometric_mean(values):.2f}** "
                    f"over {len(values)} models; least {min(values):.2f}.  "
                )
    return text


def _times(row: Results | None) -> str:
    return "–" if row is None else f"{duration(row['min_s'])} ({duration(row['median_s'])})"


def _bound(result: Results) -> str:
    row = result["contenders"].get(OURS)
    levels = dict.fromkeys((row["isa"], "avx512-vnni")) if row else {}
    bounds = [
        f"{level} {row['min_s'] * p * 1e9 / result['macs']:.2f}" for level in levels if (p := _peak(result, level))
    ]
    return ", ".join(bounds) or "–"


def _peak(result: Results, level: str) -> float | None:
    """GMAC/s of a level, as far as it was measured."""
    value = result["peaks"].get(level)
    return None if value is None else float(value)


def _limited(results: Sequence[Results]) -> list[str]:
    held = [r for r in results if OURS + AVX2 in r["contenders"]]
    if not held:
        return []
    rows = []
    for r in held:
        there, value = r["contenders"], ratio(r, suffix=AVX2)
        cells = [_times(there.get(name + AVX2)) for name in (OURS, "OpenVINO (QDQ)", "OpenVINO (NNCF)")]
        same = {True: "yes", False: "**no**"}[there[OURS + AVX2]["identical"]]
        rows.append([r["model"], str(r["threads"]), *cells, f"**{value:.2f}**" if value else "–", same])
    head = ["model", "threads", OURS, "OpenVINO (QDQ)", "OpenVINO (NNCF)", "ratio", "outputs as at the best level"]
    note = "OpenVINO held to AVX2 by ONEDNN_MAX_CPU_ISA, qcompiler by QCOMPILER_ISA."
    values = [v for r in held if (v := ratio(r, suffix=AVX2))]
    mean = (
        f" Geometric mean of the ratios: **{geometric_mean(values):.2f}**, least {min(values):.2f}." if values else ""
    )
    return [f"## Held to AVX2\n\n{note}{mean}\n\n{_table(head, rows)}"]


def _footprint(results: Sequence[Results]) -> str:
    rows = []
    for r in results:
        if r["threads"] != min(x["threads"] for x in results if x["model"] == r["model"]):
            continue
        for name in (OURS, *PEERS):
            if row := r["contenders"].get(name):
                cosine = "–" if row["cosine"] is None else f"{row['cosine']:.5f}"
                size = f"{row['bytes'] / 1e6:.2f} ({row['bytes'] / r['model_bytes']:.2f})"
                times = [f"{row[key] * 1e3:.1f}" for key in ("import_s", "load_s", "first_s")]
                rows.append([r["model"], name, cosine, size, *times, f"{row['rss_mb']:.0f}"])
    head = ["model", "runtime", "cosine to float32", "file MB (of ONNX)", "import ms", "load ms", "first call ms",
            "resident MB"]  # fmt: skip
    note = (
        "Each in a fresh process that has imported NumPy. *load*: from the call that opens the model until it is ready "
        "(qcompiler: with the import of qcompiler, which the peers' *import* column holds). *resident*: of the whole "
        "process after the timed runs. The file of qcompiler holds every instruction-set level of the target."
    )
    return f"## Accuracy, size, loading, memory\n\n{note}\n\n{_table(head, rows)}"


def _missing(results: Sequence[Results]) -> str:
    reasons: dict[str, list[str]] = {}
    for r in results:
        for name, reason in r["missing"].items():
            reasons.setdefault(f"{name}: {reason}", []).append(r["model"])
    if not reasons:
        return ""
    lines = [f"- {text} ({', '.join(dict.fromkeys(models))})" for text, models in reasons.items()]
    return "## Not measured\n\n" + "\n".join(lines)
