"""The user's cache directory: what may be lost at any time, shared by all compilations on this machine."""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

VERSION = 1


def cache_directory() -> Path:
    """QCOMPILER_CACHE, or qcompiler/ in the user's cache directory ($XDG_CACHE_HOME, ~/.cache). Need not exist."""
    own = os.environ.get("QCOMPILER_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qcompiler"


class JsonCache:
    """A file of JSON objects by key. Readers see it whole or not at all; writers take turns and keep each other's
    entries. A damaged file is told and begun anew; a place that cannot be written costs only the memory.
    """

    def __init__(self, path: Path, tell: Callable[[str], None]) -> None:
        self.path, self.tell = path, tell

    def read(self) -> dict[str, dict[str, Any]]:
        try:
            record = json.loads(self.path.read_text(encoding="utf-8"))
            if not isinstance(record, dict) or record.get("version") != VERSION:
                raise ValueError("it is not of this version")
            entries = record["entries"]
            if not all(isinstance(value, dict) for value in entries.values()):
                raise ValueError("an entry is not an object")
            return dict(entries)
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, AttributeError) as error:
            self.tell(f"{self.path} is damaged ({error}) and begun anew: what it held is measured again")
            return {}

    def update(self, entries: Mapping[str, Mapping[str, Any]]) -> None:
        """Add or replace entries."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.with_suffix(".lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                record = {"version": VERSION, "entries": {**self.read(), **entries}}
                with tempfile.NamedTemporaryFile("w", dir=self.path.parent, delete=False, encoding="utf-8") as stream:
                    json.dump(record, stream, indent=1, sort_keys=True)
                os.replace(stream.name, self.path)
        except OSError as error:
            self.tell(f"{self.path} cannot be written ({error.strerror}): the next compilation measures again")
