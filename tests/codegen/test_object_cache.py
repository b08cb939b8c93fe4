"""The cache of compiled kernels: the same bytes with and without, and what happens to it when something is wrong."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from program_builder import ProgramBuilder

from qcompiler.codegen import aot
from qcompiler.codegen.cpu import compile as kernels_to_objects
from qcompiler.codegen.cpu.object_cache import ObjectCache, object_cache
from qcompiler.codegen.cpu.target import cpu_target
from qcompiler.sim.integer_program import IntegerProgram


def network() -> IntegerProgram:
    b = ProgramBuilder(3)
    x = b.input((1, 6, 6, 16))
    y = b.add(b.conv(x, 16, (1, 1)), x)
    return b.program([b.add(b.conv(y, 16, (1, 1)), y)])


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QCOMPILER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "kernels"


def build(folder: Path, target: str = "x86:avx2") -> bytes:
    folder.mkdir()
    aot.build(network(), cpu_target(target), folder)
    return (folder / "model.so").read_bytes()


def count_llvm(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many kernels each later call of LLVM compiles."""
    calls: list[int] = []
    original = kernels_to_objects.compile_functions

    def counted(functions: Any, isa: Any, quick: bool) -> Any:
        calls.append(len(functions))
        return original(functions, isa, quick)

    monkeypatch.setattr(kernels_to_objects, "compile_functions", counted)
    return calls


def compiled_sources(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What later calls of the C compiler compile or assemble."""
    sources: list[str] = []
    original = aot._run

    def recorded(arguments: Sequence[str], work: Path) -> None:
        sources.extend(name for name in arguments if name.endswith((".c", ".S")))
        original(arguments, work)

    monkeypatch.setattr(aot, "_run", recorded)
    return sources


def test_the_second_compilation_needs_no_llvm_and_gives_the_same_bytes(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cold = build(tmp_path / "cold")
    calls, sources = count_llvm(monkeypatch), compiled_sources(monkeypatch)
    assert build(tmp_path / "warm") == cold and calls == [] and sources == ["constants.S"]
    assert build(tmp_path / "other", "x86:avx-vnni") != cold and calls  # another level is other code
    monkeypatch.setenv("QCOMPILER_KERNEL_CACHE_MIB", "0")
    calls.clear()
    files = sorted(cache.iterdir())
    assert build(tmp_path / "without") == cold and calls
    assert sorted(cache.iterdir()) == files


def test_damaged_entries_are_made_anew(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cold = build(tmp_path / "cold")
    whole = {path: path.read_bytes() for path in cache.iterdir()}
    for i, (path, data) in enumerate(whole.items()):
        damaged = (b"", data[:20], data[:-1], data[:100] + bytes([data[100] ^ 1]) + data[101:])[i % 4]
        path.write_bytes(damaged)
    calls = count_llvm(monkeypatch)
    assert build(tmp_path / "again") == cold and calls
    assert {path: path.read_bytes() for path in cache.iterdir()} == whole


def test_a_place_that_cannot_be_written_costs_time_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.write_text("not a folder")
    monkeypatch.setenv("QCOMPILER_CACHE", str(file))
    first = build(tmp_path / "first")
    assert build(tmp_path / "second") == first


def test_every_kind_of_damage_is_seen(tmp_path: Path) -> None:
    cache = ObjectCache(tmp_path, 1000)
    assert cache.read("a") is None
    cache.write("a", b"code")
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    assert cache.read("a") == b"code"
    for damaged in (b"", whole[:10], whole[:-1], whole + b"x", *(_flipped(whole, i) for i in range(len(whole)))):
        path.write_bytes(damaged)
        assert cache.read("a") is None and not path.exists()


def _flipped(data: bytes, i: int) -> bytes:
    return data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :]


def test_what_was_used_last_stays(tmp_path: Path) -> None:
    cache = ObjectCache(tmp_path, 3 * 132)
    for i in range(5):
        cache.write(str(i), bytes(100))
        os.utime(tmp_path / f"{i}.kernels", (1000 + i, 1000 + i))
    (tmp_path / "new-left").write_bytes(b"by a killed writer")
    os.utime(tmp_path / "new-left", (1000, 1000))
    (tmp_path / "new-busy").write_bytes(b"being written")
    assert cache.read("0") is not None  # used just now
    cache.trim()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.kernels", "3.kernels", "4.kernels", "new-busy"]


def test_the_limit_is_an_environment_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("QCOMPILER_CACHE", str(tmp_path))
    for text, limit in (("12", 12 << 20), ("0", None), ("none", None)):
        monkeypatch.setenv("QCOMPILER_KERNEL_CACHE_MIB", text)
        cache = object_cache()
        assert (cache and cache.limit) == limit
    monkeypatch.delenv("QCOMPILER_KERNEL_CACHE_MIB")
    cache = object_cache()
    assert cache is not None and cache.limit == 256 << 20 and cache.directory == tmp_path / "kernels"
