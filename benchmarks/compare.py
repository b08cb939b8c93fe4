"""The whole comparison in one command: eight networks, ours beside ONNX Runtime, OpenVINO and LiteRT, as a table.

  python benchmarks/compare.py -o comparison                       everything, about half an hour
  python benchmarks/compare.py -o comparison --quick --models kws  one small network, a minute after installing
  python benchmarks/compare.py -o comparison --prepare             install, generate, quantise and compile; time nothing
  python benchmarks/compare.py -o comparison --avx2                the table of AVX2 as well

In the output directory: comparison.md, comparison.svg, and what they are made of. The peers live in an environment of
their own there (a venv of some 2 GB, made once). What is done is not done again: interrupt and repeat at will, run
model by model, delete results/ to measure anew. The networks have public topologies and random weights; nothing is
downloaded but the packages.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from comparison import machine, networks, table
from comparison.environment import Environment, prepare
from comparison.race import Contender, cosine, race

import qcompiler

QUANTISE = Path(__file__).parent / "comparison" / "quantise.py"
PLOT = Path(__file__).parent / "comparison" / "plot.py"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Comparison:
    """One output directory. Layout: peers/ (venv), models/NAME/ (ONNX, data, every runtime's form), results/."""

    def __init__(self, folder: Path, target: str, tflite: Path | None, avx2: bool, rounds: int) -> None:
        self.folder, self.target, self.tflite, self.avx2, self.rounds = folder, target, tflite, avx2, rounds
        folder.mkdir(parents=True, exist_ok=True)
        self.environment: Environment = prepare(folder / "peers", say)

    # ---------------------------------------------------------------------------------------- preparing
    def prepare(self, name: str) -> tuple[Path, dict[str, str]]:
        """Everything that is timed; (the model's folder, what is missing and why)."""
        home = self.folder / "models" / name
        home.mkdir(parents=True, exist_ok=True)
        if not (home / "model.onnx").exists():
            say(f"{name}: generating")
            networks.write(name, home)
        self._compile(name, home)
        missing = {}
        for tool, file, contender, needs in (
            ("ort", "ort.onnx", "ONNX Runtime int8", ("ONNX Runtime",)),
            ("nncf", "nncf.xml", "OpenVINO (NNCF)", ("OpenVINO", "NNCF")),
            ("tflite", "int8.tflite", "LiteRT int8", ("LiteRT", "TensorFlow")),
        ):
            own = self.tflite / f"{name}_int8.tflite" if self.tflite and tool == "tflite" else None
            if own is not None and own.exists():
                shutil.copy(own, home / file)
                continue
            reason = self.environment.lacks(*needs) or self._quantise(name, tool, home, file)
            if reason:
                missing[contender] = reason
        if "ONNX Runtime int8" in missing or (reason := self.environment.lacks("OpenVINO")):
            missing["OpenVINO (QDQ)"] = missing.get("ONNX Runtime int8") or str(reason)
        return home, missing

    def _compile(self, name: str, home: Path) -> None:
        """Again when the compiler or the target changed: an artefact says what made it."""
        artefact = home / "qcompiler"
        stamp = home / "compiled.json"
        wanted = json.dumps({"target": self.target, "source": _source_state()})
        if artefact.exists() and stamp.exists() and stamp.read_text() == wanted:
            return
        say(f"{name}: compiling for {self.target}")
        qcompiler.compile(home / "model.onnx", target=self.target, calibration=home / "data.npz", output=artefact)
        stamp.write_text(wanted)

    def _quantise(self, name: str, tool: str, home: Path, file: str) -> str | None:
        """Run a peer's own tool; None, or why it failed, which is not tried again."""
        output, failure = home / file, home / f"{file}.failed"
        if output.exists():
            return None
        if failure.exists():
            return failure.read_text()
        say(f"{name}: quantising with {tool}")
        work = home / f"work-{file}"
        command = [self.environment.python, QUANTISE, tool, home / "model.onnx", home / "data.npz", work]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"})
        if done.returncode:
            reason = next(
                (x for x in reversed(done.stderr.splitlines()) if x.strip()), "it ended without a word"
            ).strip()[:300]
            failure.write_text(reason)
            return reason
        if work.with_suffix(".bin").exists():
            work.with_suffix(".bin").rename(output.with_suffix(".bin"))
        work.rename(output)
        return None

    # ------------------------------------------------------------------------------------------- timing
    def contenders(self, home: Path) -> list[Contender]:
        ours, theirs = Path(sys.executable), self.environment.python
        files = {
            table.FLOAT: ("onnxruntime", home / "model.onnx"),
            "ONNX Runtime int8": ("onnxruntime", home / "ort.onnx"),
            "OpenVINO (QDQ)": ("openvino", home / "ort.onnx"),
            "OpenVINO (NNCF)": ("openvino", home / "nncf.xml"),
            "LiteRT int8": ("litert", home / "int8.tflite"),
        }
        result = [Contender(table.OURS, "qcompiler", home / "qcompiler", ours)]
        result += [Contender(n, kind, path, theirs) for n, (kind, path) in files.items() if path.exists()]
        if self.avx2:
            for c in list(result):
                variable = {"qcompiler": "QCOMPILER_ISA", "openvino": "ONEDNN_MAX_CPU_ISA"}.get(c.kind)
                if variable:
                    held = {variable: "avx2" if c.kind == "qcompiler" else "AVX2"}
                    result.append(Contender(c.name + table.AVX2, c.kind, c.model, c.python, held, "AVX2"))
        return result

    def measure(self, name: str, threads: int) -> None:
        """Race, and write results/NAME-THREADS.json."""
        path = self.result_path(name, threads)
        if path.exists():
            return
        home, missing = self.prepare(name)
        say(f"{name}, {threads} thread{'s' if threads > 1 else ''}")
        peaks = machine.peaks(threads)
        results, failed = race(self.contenders(home), threads, home / "data.npz", home, self.rounds, _round)
        if table.OURS in failed:
            sys.exit(f"error: qcompiler itself does not run {name}: {failed[table.OURS]}")
        for contender, reason in failed.items():
            say(f"{contender} does not run: {reason}")
        for contender, row in results.items():
            row["bytes"] = _bytes(home, contender)
            exact = results.get(table.FLOAT)
            row["cosine"] = cosine(Path(row["output"]), Path(exact["output"])) if exact else None
            if contender == table.OURS + table.AVX2:
                here, there = (np.load(results[n]["output"]) for n in (contender, table.OURS))
                row["identical"] = bool(np.array_equal(here, there))
        report = qcompiler.open_artifact(home / "qcompiler").report()
        record = {
            "model": name, "threads": threads, "target": self.target, "peaks": peaks,
            "macs": sum(layer["macs"] for layer in report["layers"]),
            "model_bytes": (home / "model.onnx").stat().st_size, "contenders": results,
            "missing": {**missing, **failed},
        }  # fmt: skip
        path.parent.mkdir(exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(record, indent=1))
        partial.rename(path)
        value = table.ratio(record)
        ours = results[table.OURS]["min_s"]
        say(
            f"{name}, {threads}: {table.duration(ours)}, best peer {value:.2f} times that" if value else f"{name}: done"
        )

    def result_path(self, name: str, threads: int) -> Path:
        return self.folder / "results" / f"{name}-{threads}.json"

    # ---------------------------------------------------------------------------------------- reporting
    def report(self) -> str:
        """Write comparison.md and comparison.svg from all results that are there."""
        order = list(networks.NETWORKS)
        results = [json.loads(path.read_text()) for path in (self.folder / "results").glob("*.json")]
        results.sort(key=lambda r: (r["threads"], order.index(r["model"])))
        facts: dict[str, Any] = {
            "date": datetime.date.today().isoformat(),
            "cpu": machine.cpu_name(),
            "versions": {"qcompiler": qcompiler.__version__, **self.environment.versions()},
            "peaks": {str(r["threads"]): r["peaks"] for r in results},
        }
        text = table.render(results, facts)
        (self.folder / "comparison.md").write_text(text, encoding="utf-8")
        if (reason := self.environment.lacks("plot")) is None:
            panels = self.folder / "results" / "panels.txt"
            panels.write_text(json.dumps([_panel(results, t) for t in sorted({r["threads"] for r in results})]))
            subprocess.run([self.environment.python, PLOT, panels, self.folder / "comparison.svg"], check=True)
        else:
            say(f"no plot: {reason}")
        return text


def _panel(results: list[dict[str, Any]], threads: int) -> dict[str, Any]:
    here = [r for r in results if r["threads"] == threads]
    series = {
        name: [
            r["contenders"][name]["min_s"] / r["contenders"][table.OURS]["min_s"] if name in r["contenders"] else None
            for r in here
        ]
        for name in table.PEERS
    }
    title = f"Shortest inference of int8 runtimes over qcompiler's, {threads} thread{'s' if threads > 1 else ''}"
    return {"title": title, "models": [r["model"] for r in here], "series": series}


def _bytes(home: Path, contender: str) -> int:
    """Size on disk of what the contender loads."""
    files = {
        table.OURS: ["qcompiler/model.so"], table.FLOAT: ["model.onnx"], "ONNX Runtime int8": ["ort.onnx"],
        "OpenVINO (QDQ)": ["ort.onnx"], "OpenVINO (NNCF)": ["nncf.xml", "nncf.bin"], "LiteRT int8": ["int8.tflite"],
    }  # fmt: skip
    return sum((home / file).stat().st_size for file in files[contender.removesuffix(table.AVX2)])


def _source_state() -> str:
    """Changes whenever the installed compiler's code does."""
    from qcompiler.codegen import aot
    from qcompiler.passes import base
    from qcompiler.sim import reference

    folders = {Path(str(m.__file__)).parent for m in (qcompiler, aot, base, reference)}
    stats = [p.stat() for folder in sorted(folders) for p in sorted(folder.rglob("*.[pchi]*")) if p.suffix != ".pyc"]
    return str(max(s.st_mtime_ns for s in stats))


def _round(text: str) -> None:
    say(f"  {text}")


def _choice(known: list[str]) -> Any:
    def parse(text: str) -> list[str]:
        names = text.split(",")
        if unknown := [n for n in names if n not in known]:
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; there are {', '.join(known)}")
        return names

    return parse


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--models", type=_choice(list(networks.NETWORKS)), default=list(networks.NETWORKS),
                        metavar="A,B", help=f"of {', '.join(networks.NETWORKS)}")  # fmt: skip
    parser.add_argument("--threads", type=_choice([str(n) for n in range(1, 257)]), default=["1", "2"], metavar="1,2")
    parser.add_argument("--target", default="x86", help="what ours is compiled for")
    parser.add_argument("--avx2", action="store_true", help="also ours and OpenVINO held to AVX2 (needs target x86)")
    parser.add_argument("--tflite", type=Path, metavar="DIR", help="NAME_int8.tflite files to give LiteRT instead")
    parser.add_argument("--quick", action="store_true", help="three rounds instead of twelve")
    parser.add_argument("--prepare", action="store_true", help="stop before anything is timed")
    options = parser.parse_args()
    comparison = Comparison(
        options.output, options.target, options.tflite, options.avx2, 3 if options.quick else 12
    )  # fmt: skip
    for name in options.models:
        if options.prepare:
            comparison.prepare(name)
            continue
        for threads in options.threads:
            comparison.measure(name, int(threads))
    if not options.prepare:
        print(comparison.report())


if __name__ == "__main__":
    main()
