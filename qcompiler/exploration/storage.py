"""What was evaluated, kept in an Optuna storage: a journal file by default, a database by URL.

An exploration is one study. Each finished chunk of consecutive points is one attribute of it, written in one step and
carrying a checksum over its content and its exploration; so a kill loses nothing that was finished, several machines
may fill the same storage (each looks there before it evaluates a chunk), and damage is found. A journal whose last
line is torn is cut back to the line before.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qcompiler.sim.errors import ExplorationError
from qcompiler.sim.explore.merit import Outcome

HEADER = "qcompiler:exploration"
LOCK_SUFFIX = ".lock"


def require_optuna() -> Any:
    """The module, quiet. Raises ExplorationError where it is not installed."""
    try:
        import optuna
    except ImportError:
        raise ExplorationError(
            "exploring needs Optuna, which is not installed: pip install 'qcompiler[explore]'"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    return optuna


class _Lock:
    """A lock that the kernel drops with its process, however that ends."""

    def __init__(self, path: Path) -> None:
        self._path, self._handle = path, -1

    def acquire(self) -> bool:
        self._handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        fcntl.flock(self._handle, fcntl.LOCK_EX)
        return True

    def release(self) -> None:
        os.close(self._handle)


@dataclass(frozen=True)
class Chunk:
    """Consecutive items (points, as JSON has them) and their outcomes."""

    items: list[Any]
    outcomes: list[Outcome]

    def head(self, items: Sequence[Any]) -> list[Outcome] | None:
        """The outcomes of `items` where this chunk begins with them, None where it ends too early.

        A run with fewer trials leaves a last chunk that is shorter. Raises ValueError where they are others.
        """
        count = min(len(items), len(self.items))
        if json.loads(json.dumps(items[:count])) != self.items[:count]:
            raise ValueError("these are other points")
        return self.outcomes[:count] if count == len(items) else None


class Storage:
    """The chunks of one exploration.

    where: a file, or a database URL. identity: what makes the exploration what it is, JSON values by name; another
    identity in a file is refused, in a database it is another study. Raises ExplorationError.
    """

    def __init__(self, where: str | Path, identity: Mapping[str, Any]) -> None:
        optuna = require_optuna()
        self.where, self.identity = str(where), dict(identity)
        self.hash = digest(identity)
        self.repaired = 0  # bytes of a torn last line that were dropped
        self.shared = is_url = "://" in self.where
        try:
            backend = _database(optuna, self.where) if is_url else self._journal(optuna, Path(where))
        except ExplorationError:
            raise
        except Exception as error:  # whatever the database's driver raises
            raise ExplorationError(f"storage {self.where} cannot be opened: {_first_line(error)}") from None
        try:
            self._open(optuna, backend, f"qcompiler-{self.hash[:16]}" if is_url else "qcompiler")
        except (KeyError, TypeError, ValueError, AssertionError) as error:
            raise ExplorationError(
                f"storage {self.where} is damaged ({_first_line(error)}); remove it to begin again"
            ) from None
        if not is_url:
            Path(self.where + LOCK_SUFFIX).unlink(missing_ok=True)

    def _journal(self, optuna: Any, path: Path) -> Any:
        lock = _Lock(Path(str(path) + LOCK_SUFFIX))
        if path.exists():
            lock.acquire()
            self.repaired = repair(path)
            lock.release()
        from optuna.storages.journal import JournalFileBackend

        backend = JournalFileBackend(str(path), lock_obj=lock)  # type: ignore[arg-type] # acquire and release are all
        return optuna.storages.JournalStorage(backend)

    def _open(self, optuna: Any, backend: Any, name: str) -> None:
        self._backend = backend
        studies = backend.get_all_studies()
        mine = [s for s in studies if s.study_name == name]
        if not mine and studies and not self.shared:
            raise ExplorationError(f"storage {self.where} holds an Optuna study of something else; give another file")
        if not mine:
            try:
                backend.create_new_study([optuna.study.StudyDirection.MINIMIZE], study_name=name)
            except optuna.exceptions.DuplicatedStudyError:
                pass  # by another machine, just now
        self._study = backend.get_study_id_from_name(name)
        attributes = backend.get_study_user_attrs(self._study)
        header = attributes.get(HEADER)
        if header is None:  # new, or killed in between
            if attributes:
                raise ValueError("its header is missing")
            backend.set_study_user_attr(self._study, HEADER, {"identity": self.identity, "sha256": self.hash})
        elif header["sha256"] != self.hash:
            raise ExplorationError(self._foreign(header["identity"]))

    def _foreign(self, other: Mapping[str, Any]) -> str:
        changed = [k for k in {**other, **self.identity} if other.get(k) != self.identity.get(k)]
        lines = [f"\n  {k}: {_shown(other.get(k))} there, {_shown(self.identity.get(k))} here" for k in sorted(changed)]
        return (
            f"storage {self.where} belongs to another exploration; give another output or --storage, or remove it"
            + "".join(lines)
        )

    # ------------------------------------------------------------------------------------------ chunks
    def read(self, kind: str) -> dict[int, Chunk]:
        """Chunks by the number of their first item. Raises ExplorationError for damage."""
        found = {}
        for key, record in self._backend.get_study_user_attrs(self._study).items():
            prefix, _, first = key.rpartition(":")
            if prefix != kind:
                continue
            try:
                if record["sha256"] != self._sum(key, record["items"], record["outcomes"]):
                    raise ValueError("its checksum is wrong")
                found[int(first)] = Chunk(record["items"], [Outcome.from_json(o) for o in record["outcomes"]])
            except (KeyError, TypeError, ValueError) as error:
                raise ExplorationError(
                    f"storage {self.where} is damaged at {key} ({_first_line(error)}); remove it to begin again"
                ) from None
        return found

    def write(self, kind: str, first: int, items: Sequence[Any], outcomes: Sequence[Outcome]) -> None:
        """Keep a chunk; on return it is on disk."""
        key, rows, plain = f"{kind}:{first}", [o.to_json() for o in outcomes], json.loads(json.dumps(items))
        record = {"items": plain, "outcomes": rows, "sha256": self._sum(key, plain, rows)}
        self._backend.set_study_user_attr(self._study, key, record)

    # ------------------------------------------------------------------------------------------ single values
    def value(self, key: str) -> Any:
        """A JSON value that was kept, None where there is none. Raises ExplorationError for damage."""
        record = self._backend.get_study_user_attrs(self._study).get(key)
        if record is None:
            return None
        try:
            if record["sha256"] != digest([self.hash, key, record["value"]]):
                raise ValueError("its checksum is wrong")
            return record["value"]
        except (KeyError, TypeError, ValueError) as error:
            raise ExplorationError(
                f"storage {self.where} is damaged at {key} ({_first_line(error)}); remove it to begin again"
            ) from None

    def keep(self, key: str, value: Any) -> None:
        """Keep a JSON value; on return it is on disk."""
        self._backend.set_study_user_attr(self._study, key, {"value": value, "sha256": digest([self.hash, key, value])})

    def close(self) -> None:
        """Give the file or the connection back."""
        self._backend.remove_session() if hasattr(self._backend, "remove_session") else None
        if not self.shared:
            Path(self.where + LOCK_SUFFIX).unlink(missing_ok=True)

    def _sum(self, key: str, items: Any, rows: list[Any]) -> str:
        return digest([self.hash, key, items, rows])


def _database(optuna: Any, url: str) -> Any:
    """The database; a second try where another machine was making its tables just then."""
    try:
        return optuna.storages.RDBStorage(url)
    except Exception:  # whatever the database's driver raises
        time.sleep(1)
        return optuna.storages.RDBStorage(url)


def repair(path: Path) -> int:
    """Drop a torn last line of a journal; the number of bytes dropped. Raises ExplorationError for other damage."""
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    for number, line in enumerate(data[:whole].splitlines(), 1):
        try:
            if not isinstance(json.loads(line), dict):
                raise ValueError
        except ValueError:
            raise ExplorationError(
                f"storage {path} is damaged: line {number} is no record; remove it to begin again"
            ) from None
    if whole < len(data):
        with path.open("r+b") as stream:
            stream.truncate(whole)
            os.fsync(stream.fileno())
    return len(data) - whole


def digest(value: Any) -> str:
    """sha256 of a JSON value, tuples as lists, keys sorted."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 70 else text[:50] + "... sha256 " + digest(value)[:12]
