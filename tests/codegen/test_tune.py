"""Tuning by measurement: what it tries, what it keeps, what it remembers, and that results stay the same."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from host_library import LEVELS, Library
from program_builder import ProgramBuilder

from qcompiler.codegen import aot
from qcompiler.codegen.cache import JsonCache, cache_directory
from qcompiler.codegen.cpu import tune as tuning
from qcompiler.codegen.cpu.isa.base import VectorInstructionSet
from qcompiler.codegen.cpu.kernel import Step
from qcompiler.codegen.cpu.lower import lower
from qcompiler.codegen.cpu.matrix_work import candidate_tilings, default_tiling, tilings
from qcompiler.codegen.cpu.target import cpu_target
from qcompiler.codegen.cpu.tune import Tuned, tune
from qcompiler.sim import reference
from qcompiler.sim.integer_program import IntegerProgram

LEVEL = cpu_target("x86:avx512-vnni").levels[0]  # nothing runs: the machine is a fake


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QCOMPILER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tiles.json"


def _program() -> IntegerProgram:
    """Three shapes of convolution: the first writes its result with the border that the second wants."""
    b = ProgramBuilder()
    x = b.input((1, 12, 12, 16), "float32")
    y = b.conv(b.conv(b.quantize(x), 16, (3, 3), padding=(1, 1, 1, 1)), 16, (3, 3), padding=(1, 1, 1, 1))
    return b.program([b.dequantize(b.conv(y, 40, (1, 1)))])


class Machine:
    """A machine on which a tile's time is what `cost` says, and a clock that only measuring moves."""

    def __init__(self, cost: Any) -> None:
        self.cost, self.now, self.loads = cost, 0.0, 0

    def load(self, steps: Sequence[Step], isa: VectorInstructionSet, inputs: Mapping[str, Any]) -> Machine._Loaded:
        self.loads += 1
        assert all(name in inputs for step in steps for name in step.inputs)
        return Machine._Loaded(self, [self.cost(step.kernel.parameters["tile"]) for step in steps])

    class _Loaded:
        def __init__(self, machine: Machine, costs: list[float]) -> None:
            self.machine, self.costs = machine, costs

        def seconds(self, step: int, repeat: int = 20, least: float = 2e-4) -> float:
            self.machine.now += self.costs[step]
            return self.costs[step]


def _tune(machine: Machine, budget: float = 1e9, said: list[str] | None = None) -> Tuned:
    tell = said.append if said is not None else (lambda text: None)
    return tune(_program(), LEVEL, budget, tell, load=machine.load, clock=lambda: machine.now, cpu="test")


def test_the_fastest_candidate_of_each_shape_wins() -> None:
    machine = Machine(lambda tile: 1.0 + abs(tile.pixels - 2) + tile.vectors / 10)
    tuned = _tune(machine)
    assert tuned.measured == 3 and tuned.known == 0
    for geometry in tuning._heavy_shapes(_program(), lower(_program(), LEVEL)):
        options = candidate_tilings(LEVEL, geometry, tuning.CANDIDATES)
        chosen = tuned.chosen.get(geometry, options[0])
        assert machine.cost(chosen) <= min(map(machine.cost, options)) / (1 - tuning.LEAST_GAIN)
    assert tuned.after < tuned.before


def test_what_is_not_clearly_faster_loses() -> None:
    first = {default_tiling(LEVEL, g) for g in tuning._heavy_shapes(_program(), lower(_program(), LEVEL))}
    tuned = _tune(Machine(lambda tile: 1.0 if tile in first else 0.98))
    assert tuned.chosen == {} and tuned.before == tuned.after


def test_the_budget_ends_the_search_and_the_next_goes_on(cache: Path) -> None:
    def cost(tile: Any) -> float:
        return 1.0 + tile.pixels

    short = Machine(cost)
    _tune(short, budget=1.0)
    assert short.loads == 2  # the model's own choices and one round
    entries = json.loads(cache.read_text())["entries"]
    assert [entry["tried"] for entry in entries.values()] == [2, 2, 2]
    rest, whole = Machine(cost), Machine(cost)
    resumed = _tune(rest)
    assert resumed.known == 3 and rest.loads < 8
    again = Machine(cost)
    said: list[str] = []
    assert _tune(again, said=said).chosen == resumed.chosen
    assert again.loads == 0 and said == ["tuning avx512-vnni: 3 shapes, 3 known, at most 1e+09 s"]
    cache.unlink()
    assert _tune(whole).chosen == resumed.chosen


def test_tilings_that_lowering_does_not_follow_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lowering may replace a shape by another one for some tilings: there is nothing to measure then."""
    monkeypatch.setattr(tuning, "_steps_of", lambda program, isa, wanted: {})
    machine = Machine(lambda tile: 1.0)
    tuned = _tune(machine)
    assert machine.loads == 0 and tuned.chosen == {} and tuned.measured == 0


def test_no_time_measures_nothing() -> None:
    machine = Machine(lambda tile: 1.0)
    machine.now = 5.0
    tuned = tune(_program(), LEVEL, -1.0, print, load=machine.load, clock=lambda: machine.now, cpu="test")
    assert machine.loads == 0 and tuned.measured == 0


@pytest.mark.parametrize("damage", ["{", "[]", '{"version": 1, "entries": {"a": 3}}', '{"version": 99}', "\x00\xff"])
def test_a_damaged_cache_is_begun_anew(cache: Path, damage: str) -> None:
    cache.parent.mkdir()
    cache.write_bytes(damage.encode("latin-1"))
    said: list[str] = []
    tuned = _tune(Machine(lambda tile: 1.0 + tile.pixels), said=said)
    assert tuned.known == 0 and tuned.measured == 3
    assert said[0].startswith(f"{cache} is damaged (") and said[0].endswith(
        "begun anew: what it held is measured again"
    )
    assert len(json.loads(cache.read_text())["entries"]) == 3


def test_entries_of_other_tiles_are_not_taken(cache: Path) -> None:
    _tune(Machine(lambda tile: 1.0 + tile.pixels))
    record = json.loads(cache.read_text())
    for entry in record["entries"].values():
        entry["tile"] = "Tile(lines=99, pixels=99, vectors=99, chunk=1, channels_outer=True)"
    cache.write_text(json.dumps(record))
    assert _tune(Machine(lambda tile: 1.0 + tile.pixels)).known == 0


def test_writers_keep_each_others_entries(tmp_path: Path) -> None:
    caches = [JsonCache(tmp_path / "c.json", print) for _ in range(8)]
    threads = [threading.Thread(target=c.update, args=({f"k{i}": {"v": i}},)) for i, c in enumerate(caches)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert caches[0].read() == {f"k{i}": {"v": i} for i in range(8)}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.json", "c.lock"]


def test_a_cache_that_cannot_be_written_costs_nothing_else() -> None:
    said: list[str] = []
    cache = JsonCache(Path("/proc/no/c.json"), said.append)
    cache.update({"a": {}})
    assert cache.read() == {}
    assert len(said) == 1 and said[0].startswith("/proc/no/c.json cannot be written (")


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QCOMPILER_CACHE", "/a")
    assert cache_directory() == Path("/a")
    monkeypatch.delenv("QCOMPILER_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert cache_directory() == Path("/b/qcompiler")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/c")
    assert cache_directory() == Path("/c/.cache/qcompiler")


@pytest.mark.skipif(not LEVELS, reason="this CPU has none of the x86 levels")
def test_on_this_machine(tmp_path: Path) -> None:
    """A real search of a second, and every candidate that it could have chosen computes the same."""
    program = _program()
    level = next(lv for lv in cpu_target("x86").levels if lv.name == LEVELS[0])
    said: list[str] = []
    tuned = tune(program, level, 1.0, said.append)
    assert tuned.measured >= 1 and tuned.before > 0 and 0 < tuned.after <= tuned.before * 1.0001
    sample = {program.inputs[0]: np.random.default_rng(0).normal(0, 1, (1, 12, 12, 16)).astype(np.float32)}
    (wanted,) = reference.execute(program, sample).values()
    for pick in range(3):
        shapes = tuning._heavy_shapes(program, lower(program, level))
        chosen = {g: options[min(pick, len(options) - 1)] for g in shapes
                  for options in [candidate_tilings(level, g, tuning.CANDIDATES)]}  # fmt: skip
        with tilings(chosen):
            assert {
                s.kernel.parameters["tile"] for s in lower(program, level).steps if "tile" in s.kernel.parameters
            } >= {*chosen.values()}
        folder = tmp_path / f"tuned{pick}"
        folder.mkdir()
        report = aot.build(program, cpu_target("x86"), folder, chosen={level.name: chosen})
        library = Library(folder / "model.so", program, report.workspace_bytes, level.name, "model")
        (got,) = library.run(sample).values()
        assert np.array_equal(got, wanted)
