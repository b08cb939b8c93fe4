"""The package itself: cheap to import, right layers, one name for everything."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import qcompiler

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {
    "qcompiler": "qcompiler",
    "passes": "qcompiler.passes",
    "codegen": "qcompiler.codegen",
    "sim": "qcompiler.sim",
}
# Who may import whom: arrows point down only (CONTRIBUTING.md).
ALLOWED = {
    "qcompiler": set(FOLDERS.values()),
    "passes": {"qcompiler.passes", "qcompiler.sim"},
    "codegen": {"qcompiler.codegen", "qcompiler.sim"},
    "sim": {"qcompiler.sim"},
}


def test_public_names_resolve() -> None:
    for name in qcompiler.__all__:
        assert getattr(qcompiler, name).__name__ == name
    with pytest.raises(AttributeError, match="module 'qcompiler' has no attribute 'compil'"):
        qcompiler.compil  # noqa: B018


@pytest.mark.parametrize("statement", ["import qcompiler", "import qcompiler.cli", "import qcompiler.library"])
def test_importing_the_face_loads_nothing_heavy(statement: str) -> None:
    code = f"{statement}\nimport sys\nprint([m for m in ('tvm', 'onnx', 'onnxruntime', 'jinja2') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def _imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def _home(module: str) -> str:
    part = ".".join(module.split(".")[:2])
    return part if part in FOLDERS.values() else "qcompiler"


@pytest.mark.parametrize("folder", FOLDERS)
def test_imports_point_down(folder: str) -> None:
    wrong = {
        (str(path.relative_to(ROOT)), name)
        for path in (ROOT / folder).rglob("*.py")
        for name in _imports(path)
        if name.split(".")[0] == "qcompiler" and name != "qcompiler" and _home(name) not in ALLOWED[folder]
        or folder == "sim" and name.split(".")[0] == "tvm"
    }  # fmt: skip
    assert wrong == set()


def test_every_folder_with_code_is_in_the_package() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for folder, package in FOLDERS.items():
        for path in (ROOT / folder).rglob("__init__.py"):
            name = ".".join([package, *path.parent.relative_to(ROOT / folder).parts])
            assert f'"{name}"' in text, f"{name} is missing in pyproject.toml: an installed qcompiler would lack it"


@pytest.mark.slow
@pytest.mark.parametrize("folder", FOLDERS)
def test_mypy_sees_each_folder(tmp_path: Path, folder: str) -> None:
    """A type error seeded in a copy of the tree is found, whichever folder it is in."""
    package = tmp_path / "stage" / "qcompiler"
    package.mkdir(parents=True)
    for name in FOLDERS:
        source = ROOT / name
        if name == "qcompiler":
            for entry in source.iterdir():
                (package / entry.name).symlink_to(entry)
        else:
            (package / name).mkdir()
            for entry in source.iterdir():
                (package / name / entry.name).symlink_to(entry)
    seeded = package / "seeded.py" if folder == "qcompiler" else package / folder / "seeded.py"
    seeded.write_text("from qcompiler.sim.numerics import ROUNDINGS\n\nwrong: int = ROUNDINGS\n")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), "-m",
         f"{FOLDERS[folder]}.seeded"],
        cwd=tmp_path, env={"MYPYPATH": str(tmp_path / "stage"), "PATH": ""}, capture_output=True, text=True,
    )  # fmt: skip
    assert 'has type "tuple[str, ...]", variable has type "int"' in done.stdout, done.stdout + done.stderr
