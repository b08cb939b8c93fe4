"""Outputs that appear whole or not at all: built beside the destination under a temporary name, then renamed.

A directory under construction is locked; the kernel drops the lock when the process dies, however it dies, so that the
next run into the same place recognises what a killed one left behind and removes it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from qcompiler.sim.errors import ArtifactError

_REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "a file exceeds the size limit of this process or file system",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission denied",
}


@contextmanager
def new_directory(destination: Path, replaceable: Callable[[Path], bool]) -> Iterator[Path]:
    """A fresh directory to fill; on success it becomes `destination`, on any exception it is gone.

    An existing destination is replaced only when it is an empty directory or `replaceable` says so; it stays in place,
    whole, until the new one is. Raises ArtifactError when the place cannot be written or the disk is full.
    """
    destination = Path(os.path.abspath(destination))
    check_parent(destination)
    if destination.is_symlink() or (destination.exists() and not _may_replace(destination, replaceable)):
        raise ArtifactError(
            f"{destination} exists and is not an artefact of qcompiler; it will not be overwritten. "
            "Give another output directory, or remove it"
        )
    with _workplace(destination) as work:
        built = work / destination.name
        built.mkdir()
        yield built
        if destination.exists():
            os.rename(destination, work / ".replaced")
        os.rename(built, destination)


@contextmanager
def new_file(destination: Path) -> Iterator[Path]:
    """A path to write a file to; on success it becomes `destination`, on any exception it is gone."""
    destination = Path(os.path.abspath(destination))
    check_parent(destination)
    if destination.is_dir():
        raise ArtifactError(f"{destination} is a directory; give the name of a file to write")
    with _workplace(destination) as work:
        yield work / destination.name
        os.replace(work / destination.name, destination)


@contextmanager
def _workplace(destination: Path) -> Iterator[Path]:
    """A locked temporary directory beside `destination`, removed in the end."""
    _remove_abandoned(destination)
    try:
        work = _make_directory(destination)
        try:
            lock = os.open(work, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield work
            finally:
                os.close(lock)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        reason = _REASONS.get(error.errno or 0)
        if reason is None and os.strerror(errno.ENOSPC) in str(error):  # what a compiler or linker reported
            reason = _REASONS[errno.ENOSPC]
        if reason is None:
            raise
        raise ArtifactError(f"cannot write {destination}: {reason}; nothing was left behind") from error


def _make_directory(destination: Path) -> Path:
    try:
        return Path(tempfile.mkdtemp(prefix=_prefix(destination), dir=destination.parent))
    except OSError as error:
        reason = _REASONS.get(error.errno or 0, error.strerror)
        raise ArtifactError(f"cannot create {destination}: {reason}; give another output") from None


def check_parent(destination: Path) -> None:
    """Raise ArtifactError unless something can be created at `destination`."""
    parent = destination.parent
    if not parent.is_dir():
        raise ArtifactError(f"cannot create {destination}: the folder {parent} does not exist; create it first")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise ArtifactError(f"cannot create {destination}: the folder {parent} is not writable; give another output")


def _may_replace(destination: Path, replaceable: Callable[[Path], bool]) -> bool:
    return destination.is_dir() and (not any(destination.iterdir()) or replaceable(destination))


def _prefix(destination: Path) -> str:
    return f".{destination.name}.tmp-"


def _remove_abandoned(destination: Path) -> None:
    for path in destination.parent.iterdir():
        if not path.name.startswith(_prefix(destination)):
            continue
        try:
            handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
        except OSError:
            pass  # somebody is still at work there
        finally:
            os.close(handle)
