"""Quick imports: TVM is whole afterwards, and nothing is left changed."""

from __future__ import annotations

import gc
import subprocess
import sys

from qcompiler.quick_imports import quick_imports

CHECK = """
import gc, sys
from qcompiler.quick_imports import quick_imports
with quick_imports(freeze=True):
    assert not gc.isenabled()
    import qcompiler.pipeline
import tvm
assert gc.isenabled() and gc.get_freeze_count() > 100_000
assert sys.modules.get("tvm.runtime.disco", "absent") is not None
print(tvm.runtime.disco)
"""


def test_tvm_lacks_what_it_lacks_anyway() -> None:
    plain = "import tvm\nprint(tvm.runtime.disco)"
    done = [subprocess.run([sys.executable, "-c", c], capture_output=True, text=True) for c in (CHECK, plain)]
    assert [(d.returncode, d.stderr) for d in done] == [(0, "")] * 2
    assert done[0].stdout == done[1].stdout


def test_nothing_is_left_changed() -> None:
    before = "tvm.runtime.disco" in sys.modules
    for collecting in (False, True):
        (gc.enable if collecting else gc.disable)()
        try:
            with quick_imports():
                raise LookupError
        except LookupError:
            pass
        assert gc.isenabled() is collecting
    assert ("tvm.runtime.disco" in sys.modules) is before
