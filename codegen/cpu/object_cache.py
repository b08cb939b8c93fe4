"""Compiled kernels on disk: what LLVM made once for the same kernels is not made again.

A file holds the object code of one batch of kernels behind its SHA-256 and is named by the SHA-256 of all that the code
depends on: the level, the kernels' templates and parameters, this package's code generator and TVM. What the C compiler
makes of the small sources around them lies there, too (`codegen.aot`). A file is written
under another name and renamed, so that nobody sees half of it, and what does not match its digest is removed and
made anew. With or without the cache a program compiles to the same bytes. It lies in the user's cache directory
(`codegen.cache`) and is as trustworthy as the user's other files.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import tempfile
import time
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

from qcompiler.codegen.cache import cache_directory
from qcompiler.codegen.cpu.kernel import Kernel
from qcompiler.sim import numerics

LIMIT_VARIABLE = "QCOMPILER_KERNEL_CACHE_MIB"
LIMIT_MIB = 256
_DIGEST = hashlib.sha256().digest_size
_SUFFIX = ".kernels"
_ABANDONED_SECONDS = 3600  # a file under its temporary name that is older than this has no writer any more


class ObjectCache:
    """Files of at most `limit` bytes together in a directory; those that were used last stay.

    Many processes and threads may use one directory. A place that cannot be read or written costs only time.
    """

    def __init__(self, directory: Path, limit: int) -> None:
        self.directory, self.limit = directory, limit

    def read(self, key: str) -> bytes | None:
        """What was written under the key, or None."""
        path = self._path(key)
        try:
            content = path.read_bytes()
            if hashlib.sha256(content[_DIGEST:]).digest() != content[:_DIGEST]:
                path.unlink(missing_ok=True)
                return None
            os.utime(path)
        except OSError:
            return None
        return content[_DIGEST:]

    def write(self, key: str, data: bytes) -> None:
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self.directory, prefix="new-", delete=False) as stream:
                try:
                    stream.write(hashlib.sha256(data).digest() + data)
                    stream.flush()
                    os.replace(stream.name, self._path(key))
                except BaseException:
                    Path(stream.name).unlink(missing_ok=True)
                    raise
        except OSError:
            pass

    def trim(self) -> None:
        """Removes what was used longest ago until the rest is within the limit, and what a killed writer left."""
        with contextlib.suppress(OSError):
            files = [(path, path.stat()) for path in self.directory.iterdir()]
            old = time.time() - _ABANDONED_SECONDS
            for path, state in files:
                if path.suffix != _SUFFIX and state.st_mtime < old:
                    path.unlink(missing_ok=True)
            kept = sorted((f for f in files if f[0].suffix == _SUFFIX), key=lambda f: -f[1].st_mtime)
            total = 0
            for path, state in kept:
                total += state.st_size
                if total > self.limit:
                    path.unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self.directory / f"{key}{_SUFFIX}"


def object_cache() -> ObjectCache | None:
    """The user's cache, of QCOMPILER_KERNEL_CACHE_MIB (256) MiB; None where that is 0, or no number."""
    text = os.environ.get(LIMIT_VARIABLE, str(LIMIT_MIB))
    limit = int(text) if text.isascii() and text.isdigit() else 0
    return ObjectCache(cache_directory() / "kernels", limit << 20) if limit else None


def kernel_digest(kernel: Kernel) -> str:
    """Of template and parameters, 12 hexadecimal digits: part of the kernel's symbol.

    Parameters are hashable data whose text says all of it; an object without a text of its own would not be that.
    """
    text = repr(kernel.key)
    assert " at 0x" not in text, f"the parameters of {kernel.name!r} have no text of their own: {text}"
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def batch_key(level: Any, kernels: Iterable[tuple[str, Kernel]]) -> str:
    """Names the object code of these kernels, by symbol, for a level."""
    parts = [generator_digest(), repr(level), *(f"{symbol} {kernel.key!r}" for symbol, kernel in kernels)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


@functools.cache
def generator_digest() -> str:
    """Of everything that turns a kernel's parameters into code: our sources, and the versions of TVM."""
    digest = hashlib.sha256(f"{metadata.version('apache-tvm')} {metadata.version('apache-tvm-ffi')}".encode())
    generator, arithmetic = Path(__file__).parent, Path(numerics.__file__).parent
    for path in sorted([*generator.rglob("*.py"), *arithmetic.glob("*.py"), *arithmetic.glob("float_ops/*.py")]):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()
