"""`qcompiler explore`: engines, storage and results around the spaces of `qcompiler.sim.explore`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qcompiler.exploration.run import Exploration

SHOWN = 20


def print_schema() -> None:
    """The JSON Schema of a space's file."""
    import json

    from qcompiler.sim.explore.space_file import json_schema

    print(json.dumps(json_schema(), indent=2))


def cores() -> int:
    """How many processes this one may run at a time."""
    return len(os.sched_getaffinity(0))


def print_result(found: Exploration, output: Path) -> None:
    """The front as a table, and where the rest is."""
    from rich.console import Console
    from rich.table import Table

    merit, proven = found.merit, found.simulated
    varying = [a.name for a in found.space.axes]
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("machine", no_wrap=True)
    for o in merit.objectives:
        table.add_column(o.figure, justify="right")
    if proven:
        table.add_column("simulated latency_ms", justify="right")
    for name in varying:
        table.add_column(name, justify="right")
    for number in found.front[:SHOWN]:
        figures, choices = found.figures[number], found.space.choices(found.points[number])
        assert figures is not None
        cells = [f"{figures[o.figure]:.4g}" for o in merit.objectives]
        if proven:
            cells.append(f"{merit.figures(proven[number])['latency_ms']:.4g}" if number in proven else "")
        table.add_row(found.name(number), *cells, *(str(choices.get(name, "")) for name in varying))
    Console(soft_wrap=True, width=None if Console().is_terminal else 240).print(table)
    if len(found.front) > SHOWN:
        print(f"... and {len(found.front) - SHOWN} more")
    feasible = sum(f is not None and not b for f, b in zip(found.figures, found.broken, strict=True))
    if not feasible:
        print("no machine of this space is possible within the constraints; points.csv says why, one by one")
    print(f"machines  {len(found.points):,} tried, {feasible:,} feasible, {len(found.front):,} on the front")
    if proven:
        pairs = [
            (p, s) for n, o in proven.items() for p, s in zip(found.outcomes[n].costs, o.costs, strict=True)
        ]  # fmt: skip
        worst = max((abs(p.cycles / s.cycles - 1) for p, s in pairs), default=0.0)
        same = sum(p.dram_bytes == s.dram_bytes for p, s in pairs)
        print(
            f"proof     latency within {worst:.2%} of the event simulator, external bytes equal {same} of {len(pairs)}"
        )
    print(f"results   {output}: pareto.html, points.csv, summary.json; machines for --target npu: in front/")
