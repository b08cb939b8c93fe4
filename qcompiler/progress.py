"""What a long command says on stderr while it works: one line a stage with its time, a live bar on a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


class Progress:
    """Says nothing: what library calls use."""

    @contextmanager
    def stage(self, title: str) -> Iterator[None]:
        """A stage of work; its time is told when it ends."""
        yield

    def track(self, items: Iterable[T], total: int | None = None) -> Iterable[T]:
        """`items`, counted while they are consumed inside a stage."""
        return items

    def advance(self, done: int, total: int, text: str) -> None:
        """How far the stage is, and what else there is to say about it."""

    def note(self, text: str) -> None:
        """A line that is worth reading."""


class PlainProgress(Progress):
    """A line a stage, for pipes and logs; a long one also tells every few seconds how far it is."""

    SECONDS = 10.0
    _told = 0.0

    @contextmanager
    def stage(self, title: str) -> Iterator[None]:
        started = self._told = time.perf_counter()
        yield
        print(f"{title:<52}{time.perf_counter() - started:8.2f} s", file=sys.stderr, flush=True)

    def advance(self, done: int, total: int, text: str) -> None:
        if time.perf_counter() - self._told > self.SECONDS:
            self._told = time.perf_counter()
            self.note(f"  {done:,} of {total:,}{', ' if text else ''}{text}")

    def note(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


class LiveProgress(PlainProgress):
    """The same lines with a spinner and a bar that vanish when their stage ends."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bars

        self._bars = Bars(
            SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(),
            TextColumn("{task.fields[more]}"), TimeElapsedColumn(), console=Console(stderr=True), transient=True,
        )  # fmt: skip

    @contextmanager
    def stage(self, title: str) -> Iterator[None]:
        task = self._bars.add_task(title, total=None, more="")
        self._bars.start()
        try:
            with super().stage(title):
                yield
                self._bars.stop()
        finally:
            self._bars.stop()
            self._bars.remove_task(task)

    def track(self, items: Iterable[T], total: int | None = None) -> Iterable[T]:
        task = self._bars.task_ids[-1]
        self._bars.update(task, total=total)
        for item in items:
            yield item
            self._bars.advance(task)

    def advance(self, done: int, total: int, text: str) -> None:
        self._bars.update(self._bars.task_ids[-1], completed=done, total=total, more=text)


def for_stderr() -> Progress:
    """The progress that suits this process's stderr."""
    return LiveProgress() if sys.stderr.isatty() else PlainProgress()
