"""What people install: a wheel in a fresh environment, used from a directory that knows nothing of the checkout."""

from __future__ import annotations

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from what git would hand out, so that nothing untracked slips in."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    for name in listed.decode().split("\0"):
        if name and (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run([sys.executable, "-m", "build", "--wheel", "-o", folder, source], check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.mark.slow
def test_wheel_holds_one_package_and_its_data(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"qcompiler"}
    tracked = subprocess.run(
        ["git", "ls-files", "qcompiler", "passes", "codegen", "sim"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    expected = {name if name.startswith("qcompiler/") else f"qcompiler/{name}" for name in tracked}
    assert expected - set(names) == set()


@pytest.mark.slow
def test_demo_from_the_wheel(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", wheel], check=True, timeout=900)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = subprocess.run(
        [tmp_path / "env" / "bin" / "qcompiler", "demo"], cwd=elsewhere, capture_output=True, text=True, check=True
    )
    lines = [line.split()[0] for line in done.stdout.splitlines()]
    assert lines == ["accuracy", "latency", "report"]
    accuracy = float(done.stdout.split()[1])
    assert accuracy >= 0.98
    assert (elsewhere / "qcompiler-demo" / "report.html").is_file()
