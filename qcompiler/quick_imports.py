"""Importing TVM and what stands on it in two thirds of the time: every command pays for it."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# An optional part of TVM that its wheel has no C++ types for. TVM catches the error and goes on without it, after a
# quarter of a second that a backtrace through its 250 MB takes.
_MISSING = "tvm.runtime.disco"


@contextmanager
def quick_imports(freeze: bool = False) -> Iterator[None]:
    """Within, the garbage collector does not look at thousands of new classes again and again, and TVM does not try to
    import what it lacks. freeze: nor does the collector look at them later, at the end of the process for instance.
    """
    modules: dict[str, Any] = sys.modules
    collecting, skipped = gc.isenabled(), _MISSING not in modules
    gc.disable()
    if skipped:
        modules[_MISSING] = None  # an import of it raises ImportError
    try:
        yield
    finally:
        if skipped:
            del modules[_MISSING]
        if freeze:
            gc.freeze()
        if collecting:
            gc.enable()
