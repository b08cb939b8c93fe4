"""`qcompiler run --profile`: every step with its work beside the machine's measured limits."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
from command_line import TEST, Command

import qcompiler
from qcompiler import profiling
from qcompiler.artifact import file_sha256
from qcompiler.profiling import Machine, StepProfile, profile, text, write_csv
from qcompiler.sim.errors import ArtifactError

MACHINE = Machine({"avx2": 50e9}, "", 20e9, 3 << 20, 2)
STEPS = [
    StepProfile("pad", "in.padded", "avx2", 0, 4096, 1e-6),
    StepProfile("conv2d", "a", "avx2", 4_000_000, 40_000, 80e-6),
    StepProfile("dense", "b", "avx2", 1_000_000, 1_000_000, 50e-6),
    StepProfile("conv2d", "c", "other", 1000, 1000, 19e-6),
]


def test_text() -> None:
    assert (
        text(STEPS, MACHINE, 500, by_time=True)
        == """\
profile   500 inferences on the last sample, each step timed; peak of one core: avx2 50 GMAC/s
          memory: 20 GB/s of one core over the 3.0 MiB that the model touches

step              time  share  GMAC/s  of peak      moved  GB/s    bound
conv2d a       80.0 µs  53.3%    50.0      50%   39.1 KiB   0.5  compute
dense b        50.0 µs  33.3%    20.0      20%  976.6 KiB  20.0   memory
conv2d c       19.0 µs  12.7%     0.1             1.0 KiB   0.1
pad in.padded   1.0 µs   0.7%                     4.0 KiB   4.1   memory

kernel                 time   share  GMAC/s  of peak       moved  GB/s
conv2d x1 (avx2)    80.0 µs   53.3%    50.0      50%    39.1 KiB   0.5
dense x1 (avx2)     50.0 µs   33.3%    20.0      20%   976.6 KiB  20.0
conv2d x1 (other)   19.0 µs   12.7%     0.1              1.0 KiB   0.1
pad x1 (avx2)        1.0 µs    0.7%                      4.0 KiB   4.1
all steps          150.0 µs  100.0%    33.3           1020.6 KiB   7.0"""
    )


def test_without_a_compiler_there_is_no_peak(monkeypatch: pytest.MonkeyPatch, digits: Path) -> None:
    monkeypatch.setattr(profiling.importlib.util, "find_spec", lambda name: None)
    machine = profiling.measure_machine(qcompiler.load(digits), 1, ["avx2"])
    assert machine.peaks == {} and machine.bandwidth > 0
    assert text(STEPS, machine, 1, by_time=False).splitlines()[0] == (
        "profile   1 inferences on the last sample, each step timed; no peak: measuring it needs TVM, which is not "
        "installed here"
    )
    monkeypatch.undo()
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert profiling.measure_machine(qcompiler.load(digits), 1, []).why_no_peak == (
        "no peak: measuring it needs a C compiler, and there is no cc on the PATH"
    )


def test_csv(tmp_path: Path) -> None:
    write_csv(tmp_path / "p.csv", STEPS[:2], MACHINE)
    assert (tmp_path / "p.csv").read_text() == (
        "step,kernel,operation,level,seconds,macs,bytes,macs_per_second,share_of_peak,bytes_per_second,bound\n"
        "0,pad,in.padded,avx2,1e-06,0,4096,0,,4.096e+09,memory\n"
        "1,conv2d,a,avx2,8e-05,4000000,40000,5e+10,0.5000,5e+08,compute\n"
    )


def test_steps_are_those_of_the_library(digits: Path) -> None:
    """All work of the model appears once, at the level in use, under the names that the library tells."""
    model = qcompiler.load(digits)
    steps, count = profile(model)
    assert count >= 5 and all(step.seconds >= 0 for step in steps) and sum(step.seconds for step in steps) > 0
    report = json.loads((digits / "report.json").read_text())
    assert sum(step.macs for step in steps) == report["summary"]["macs"]
    assert [f"{s.kernel} {s.operation}" for s in steps] == [name for name, _ in model.profile(1)]
    assert all(step.bytes > 0 for step in steps)


def test_profile_of_an_older_artefact(digits: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(digits, out)
    report = json.loads((out / "report.json").read_text())
    del report["steps"]
    (out / "report.json").write_text(json.dumps(report))
    manifest = json.loads((out / "manifest.json").read_text())
    size = (out / "report.json").stat().st_size
    manifest["files"]["report.json"] = {"bytes": size, "sha256": file_sha256(out / "report.json")}
    (out / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError) as caught:
        profile(qcompiler.load(out))
    assert str(caught.value) == f"{out} was compiled without what a profile needs; compile it again"


def test_command(command: Command, digits: Path, tmp_path: Path) -> None:
    done = command("run", digits, "--input", TEST, "--profile-csv", tmp_path / "p.csv", "--by-time")
    assert done.code == 0, done.stderr
    rows = list(csv.DictReader((tmp_path / "p.csv").open()))
    assert [int(row["step"]) for row in rows] == list(range(len(rows)))
    shares = [float(row["share_of_peak"]) for row in rows if row["share_of_peak"]]
    assert shares and max(shares) < 1.3  # a clock that changes between the two measurements
    assert done.stdout.splitlines()[-1] == f"written   {tmp_path / 'p.csv'}"
