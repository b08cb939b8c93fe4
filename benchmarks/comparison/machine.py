"""What the machine is and how fast it could be: names for the table, peaks by a small C program."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("peak.c")


def cpu_name() -> str:
    """As Linux tells it: name, family and model, processors in use."""
    facts: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition(":")
        facts.setdefault(key.strip(), value.strip())
    name, family, model = (facts.get(k, "?") for k in ("model name", "cpu family", "model"))
    return f"{name}, family {family} model {model}, {len(os.sched_getaffinity(0))} processors"


def peaks(threads: int) -> dict[str, float]:
    """GMAC/s of that many cores at work together, by instruction-set level; empty without a C compiler or off x86."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or os.uname().machine != "x86_64":
        return {}
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "peak"
        subprocess.run([compiler, "-O2", "-o", str(program), str(SOURCE)], check=True)
        running = [subprocess.Popen([program], stdout=subprocess.PIPE, text=True) for _ in range(threads)]
        parts = [json.loads(process.communicate()[0]) for process in running]
    return {level: sum(part[level] for part in parts) for level in parts[0]}
