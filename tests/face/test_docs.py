"""The committed pages are what the code generates, and what they point at exists."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from qcompiler.passes.observers import OBSERVERS
from qcompiler.sim.numerics import ROUNDINGS

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_docs", DOCS / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_command_line_page(generate: ModuleType, golden: Callable[[Path, str], None]) -> None:
    golden(DOCS / "cli.md", generate.cli_page())


def test_support_matrix(generate: ModuleType, golden: Callable[[Path, str], None]) -> None:
    golden(DOCS / "support.md", generate.support_page())


def test_help_names_every_choice(generate: ModuleType) -> None:
    """The help is written without importing what it names, so that --help is fast."""
    page = generate.cli_page()
    for name in (*OBSERVERS, *ROUNDINGS):
        assert re.search(rf"\b{name}\b", page), name


@pytest.mark.parametrize("page", [p.relative_to(ROOT) for p in (*ROOT.glob("*.md"), *DOCS.rglob("*.md"))], ids=str)
def test_links_lead_somewhere(page: Path) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    targets = [t.partition("#")[0] for t in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in t]
    assert [t for t in targets if t and not (ROOT / page.parent / t).exists()] == []
