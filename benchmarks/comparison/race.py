"""Contenders in turns: short bursts in an order that rotates, so that a busy machine hurts all alike."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

CONTENDER = Path(__file__).with_name("contender.py")
BURST_SECONDS, PAUSE_SECONDS = 0.12, 0.02


@dataclass(frozen=True)
class Contender:
    """name: as the table shows it. kind: of contender.py. model: what it loads. python: the interpreter. variables:
    of its environment. limit: the instruction set that it was held to, "" for what the machine has."""

    name: str
    kind: str
    model: Path
    python: Path
    variables: Mapping[str, str] = field(default_factory=dict)
    limit: str = ""


class _Process:
    def __init__(self, contender: Contender, threads: int, data: Path, output: Path) -> None:
        # As an installed package runs: with its bytecode cached.
        ours = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        self.errors = output.with_suffix(".stderr")
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                [contender.python, CONTENDER, contender.kind, contender.model, str(threads), data, output],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
                env={**ours, **contender.variables},
            )  # fmt: skip
        self.facts = self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            said = self.errors.read_text().strip().splitlines() or ["it ended without a word"]
            raise ContenderError(said[-1][:300])
        return dict(json.loads(line))

    def burst(self, count: int) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


class ContenderError(Exception):
    """What a contender that does not run said last."""


def race(
    contenders: Sequence[Contender], threads: int, data: Path, folder: Path, rounds: int, say: Callable[[str], None]
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """(results by name, reasons of those that do not run). Outputs lie in `folder`, one file a contender."""
    results: dict[str, dict[str, Any]] = {}
    failed: dict[str, str] = {}
    with ExitStack() as stack:
        running: dict[str, _Process] = {}
        for i, contender in enumerate(contenders):
            say(f"starting {contender.name}")
            output = folder / f"output{i}.npy"
            try:
                running[contender.name] = stack.enter_context(_started(contender, threads, data, output))
            except ContenderError as error:
                failed[contender.name] = str(error)
                continue
            results[contender.name] = {**running[contender.name].facts, "output": str(output), "limit": contender.limit}
        times: dict[str, list[float]] = {name: [] for name in running}
        # Warm, and find how many inferences a burst holds.
        counts = {n: _count(p.burst(3)["times"]) for n, p in running.items()}
        order = list(running)
        for number in range(rounds):
            order = order[1:] + order[:1]
            say(f"round {number + 1} of {rounds}")
            for name in order:
                time.sleep(PAUSE_SECONDS)  # the threads of the one before go to sleep
                answer = running[name].burst(counts[name])
                times[name] += answer["times"]
                results[name]["rss_mb"] = answer["rss_mb"]
    for name, values in times.items():
        results[name] |= {"min_s": min(values), "median_s": statistics.median(values), "count": len(values)}
    return results, failed


@contextmanager
def _started(contender: Contender, threads: int, data: Path, output: Path) -> Iterator[_Process]:
    process = _Process(contender, threads, data, output)
    try:
        yield process
    finally:
        process.close()


def _count(times: Sequence[float]) -> int:
    return max(3, min(3000, int(BURST_SECONDS / min(times))))


def cosine(a: Path, b: Path) -> float | None:
    """Between two outputs, None where they have different sizes."""
    x, y = (np.load(path).astype(np.float64) for path in (a, b))
    if x.shape != y.shape:
        return None
    return float(x @ y / max(float(np.linalg.norm(x) * np.linalg.norm(y)), 1e-30))
