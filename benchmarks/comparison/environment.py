"""The peers' own Python environment: made once; what cannot be installed is missing, and its column says why."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

REQUIREMENTS = {
    "onnx": ["onnx", "numpy"],
    "ONNX Runtime": ["onnxruntime", "onnx", "sympy"],
    "OpenVINO": ["openvino"],
    "NNCF": ["nncf", "openvino"],
    "LiteRT": ["ai-edge-litert"],
    "TensorFlow": ["tensorflow-cpu"],  # converts models for LiteRT
    "plot": ["matplotlib"],
}
"""What is installed for what; each entry by itself, so that one that fails costs only its own column."""


@dataclass(frozen=True)
class Environment:
    """python: its interpreter. missing: entry of REQUIREMENTS to the reason why it is not there."""

    python: Path
    missing: dict[str, str]

    def lacks(self, *entries: str) -> str | None:
        """Why one of the entries is not there, or None."""
        return next((f"{e} could not be installed: {self.missing[e]}" for e in entries if e in self.missing), None)

    def versions(self) -> dict[str, str]:
        done = subprocess.run(
            [self.python, "-m", "pip", "list", "--format=json", "--disable-pip-version-check"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        installed = {row["name"].lower().replace("_", "-"): row["version"] for row in json.loads(done.stdout)}
        names = ("onnxruntime", "openvino", "nncf", "ai-edge-litert", "tensorflow-cpu")
        return {name: installed[name] for name in names if name in installed}


def prepare(folder: Path, say: Callable[[str], None]) -> Environment:
    """The environment in `folder`, made or completed. `say` is told what takes long."""
    python = folder / "bin" / "python"
    if not python.exists():
        say(f"making the peers' environment in {folder}")
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    record = folder / "installed.json"
    state: dict[str, str] = json.loads(record.read_text()) if record.exists() else {}
    for entry, packages in REQUIREMENTS.items():
        if state.get(entry) == "":
            continue
        say(f"installing {', '.join(packages)}")
        command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages]
        done = subprocess.run(command, capture_output=True, text=True)
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        state[entry] = "" if done.returncode == 0 else (lines[0] if lines else f"pip ended with {done.returncode}")
        if state[entry]:
            say(f"{entry} is missing: {state[entry]}")
        record.write_text(json.dumps(state, indent=1))
    return Environment(python, {entry: reason for entry, reason in state.items() if reason})
