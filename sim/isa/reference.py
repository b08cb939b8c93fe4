"""docs/npu-isa.md, generated: the shared rules, then every instruction's encoding, meaning, timing and counts."""

from __future__ import annotations

import inspect
import re

from qcompiler.sim import timing
from qcompiler.sim.isa import COUNTERS, INSTRUCTIONS, Instruction, base, dma, matrix, post, vector, vector_rows, window
from qcompiler.sim.isa.base import HEADER, limits

FAMILIES = (
    ("Sequencing", "control", ""),
    ("Data movement", "dma", dma.__doc__),
    ("Matrix unit", "matrix", matrix.__doc__),
    ("Vector unit", "vector", vector.__doc__),
    ("Vector unit, rows", "vector_rows", vector_rows.__doc__),
)


def markdown() -> str:
    """The reference as Markdown."""
    parts = [
        "# The accelerator's instruction set\n",
        "Generated from `sim/isa` by docs/generate.py (`make docs`). Do not edit.\n",
        "## Common rules\n",
        _prose(base.__doc__),
        "## Timing\n",
        _prose(timing.__doc__),
        _prose(base.Timing.__doc__),
        "Every cycle of every unit has one cause:\n",
        "| cause | meaning |\n|---|---|\n" + "".join(f"| `{n}` | {d} |\n" for n, d in timing.CAUSES.items()),
        "## Energy counters\n",
        "| counter | meaning |\n|---|---|\n" + "".join(f"| `{n}` | {d} |\n" for n, d in COUNTERS.items()),
        "## Windows\n",
        _prose(window.__doc__),
        "## Output stages\n",
        _prose(post.__doc__),
    ]
    for title, module, doc in FAMILIES:
        parts += [f"## {title}\n", _prose(doc)]
        parts += [_instruction(c) for c in INSTRUCTIONS if c.__module__.endswith(f".{module}")]
    return "\n".join(p for p in parts if p).rstrip() + "\n"


def _prose(doc: str | None) -> str:
    """A docstring as Markdown: double backquotes become single ones."""
    return inspect.cleandoc(doc or "").replace("``", "`") + "\n" if doc else ""


def _instruction(kind: type[Instruction]) -> str:
    doc = _prose(kind.__doc__)
    for section in ("Semantics", "Timing", "Counts"):
        # A section may come twice with a qualifier ("Timing, output stationary:").
        doc = re.sub(rf"\n+({section}[^:\n]*):", r"\n\n**\1:**", doc)
    rows = [
        "| byte | operand | encoding | default | meaning |",
        "|---|---|---|---|---|",
    ]
    offset = HEADER.size
    for f in kind.operands():
        encoding, enum = f.metadata["kind"], f.metadata["enum"]
        default = "" if not isinstance(f.default, int) else f"{f.default}"
        meaning = f.metadata["doc"] + (f" ({', '.join(f'{m.value} {m.name}' for m in enum)})" if enum else "")
        rows.append(f"| {offset} | `{f.name}` | {encoding} | {default} | {meaning} |")
        low, high = limits(encoding)
        offset += (high - low).bit_length() // 8
    table = "\n".join(rows) + "\n" if kind.operands() else ""
    return f"### `{kind.mnemonic}` (opcode {kind.opcode:#04x})\n\n{doc}\n{table}"
