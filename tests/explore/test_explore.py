"""Whole explorations: the same bytes however they are computed, kills, damaged storage, and the front's proof."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from small_space import front, rows

import qcompiler
from qcompiler.exploration import engines, samplers
from qcompiler.exploration.storage import repair
from qcompiler.sim import hardware
from qcompiler.sim.errors import ExplorationError
from qcompiler.sim.explore import space_file
from qcompiler.sim.explore.space_file import loads

optuna = pytest.importorskip("optuna")
pytest.importorskip("plotly")

FILES = ["exploration.journal", "front", "pareto.html", "points.csv", "summary.json"]


def run(digits: Path, space: Path, output: Path, **options: Any) -> Any:
    return qcompiler.explore(digits, space=space, output=output, **options)


def contents(directory: Path) -> dict[str, bytes]:
    """Every file but the journal, whose chunks lie in the order in which they were done."""
    return {
        str(p.relative_to(directory)): p.read_bytes()
        for p in sorted(directory.rglob("*"))
        if p.is_file() and p.name != "exploration.journal"
    }


@pytest.fixture(scope="module")
def whole(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small space, gone through in this process."""
    from small_space import SPACE

    folder = tmp_path_factory.mktemp("whole")
    (folder / "space.yaml").write_text(SPACE)
    run(digits, folder / "space.yaml", folder / "out")
    return folder / "out"


def test_what_is_in_the_directory(whole: Path) -> None:
    assert sorted(p.name for p in whole.iterdir()) == FILES
    assert not (whole.parent / "out.journal").exists()
    summary, points = json.loads((whole / "summary.json").read_text()), rows(whole)
    assert summary["counts"]["points"] == len(points) == 3 * 2 * 3 * 2
    for status in ("feasible", "violates", "impossible"):
        assert summary["counts"][status] == sum(r["status"] == status for r in points) > 0
    impossible = next(r for r in points if r["status"] == "impossible")
    assert impossible["reason"] and impossible["latency_ms"] == ""
    violating = next(r for r in points if r["status"] == "violates")
    assert violating["reason"] == "area_mm2 < 0.65" and float(violating["area_mm2"]) >= 0.65


def test_the_front_is_the_front(whole: Path) -> None:
    points = rows(whole)
    good = [r for r in points if r["status"] == "feasible"]
    costs = {r["point"]: tuple(float(r[n]) for n in ("latency_ms", "energy_uj", "area_mm2")) for r in good}
    wanted = front(costs)
    assert {r["point"] for r in points if r["front"] == "1"} == wanted
    summary = json.loads((whole / "summary.json").read_text())
    assert {str(e["point"]) for e in summary["front"]} == wanted
    assert {p.name for p in (whole / "front").iterdir()} == {Path(e["machine"]).name for e in summary["front"]}


def test_both_figures_of_the_front_agree(whole: Path) -> None:
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["simulation"]["machines"] == len(summary["front"]) > 3
    assert summary["simulation"]["dram_bytes_equal"] is True
    assert summary["simulation"]["largest_latency_difference"] <= 0.02
    for entry in summary["front"]:
        assert entry["simulated"]["dram_bytes"] == entry["figures"]["dram_bytes"] > 0
        assert entry["simulated"]["energy_uj"] == pytest.approx(entry["figures"]["energy_uj"], rel=0.02)
        assert entry["next"] and all(set(n["changes"]) == set(summary["objectives"]) for n in entry["next"])


def test_the_worked_case_of_the_documentation(tmp_path: Path) -> None:
    """Keyword spotting on a part of the space: within 2 %, external bytes exact; the front keeps to its limits."""
    examples = Path(__file__).parents[2] / "examples" / "explore"
    subprocess.run([sys.executable, examples / "keyword_spotting.py", tmp_path / "kws.onnx"], check=True)
    space = space_file.load(examples / "always_on.yaml")
    kept = {"matrix.rows": (8, 16), "matrix.columns": (8,), "vector.lanes": (2, 4), "weight_tiles": (2, 8),
            "clock_mhz": (100, 200), "process_nm": (22,), "activation_memory.size_bytes": (16384,)}  # fmt: skip
    part = dataclasses.replace(space, axes=tuple(dataclasses.replace(a, choices=kept[a.name]) for a in space.axes))
    found = qcompiler.explore(tmp_path / "kws.onnx", space=part, output=tmp_path / "out")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["models"]["kws"]["calibration"] == "synthetic"
    assert len(found.front) == summary["simulation"]["machines"] > 2
    assert summary["simulation"]["largest_latency_difference"] <= 0.02
    assert summary["simulation"]["dram_bytes_equal"] is True
    for entry in summary["front"]:
        assert entry["simulated"]["latency_ms"] < 1 and entry["simulated"]["power_mw"] < 1


def test_a_machine_of_the_front_compiles_and_costs_what_was_promised(whole: Path, tmp_path: Path) -> None:
    from small_space import CALIBRATION, DIGITS

    entry = json.loads((whole / "summary.json").read_text())["front"][0]
    path = whole / entry["machine"]
    assert hardware.load(path).name == f"small.{path.stem}"
    qcompiler.compile(DIGITS, target=f"npu:{path}", calibration=CALIBRATION, output=tmp_path / "out")
    assert qcompiler.simulate(tmp_path / "out").milliseconds == entry["simulated"]["latency_ms"]


@pytest.mark.slow
@pytest.mark.parametrize(("sampler", "trials"), [("exhaustive", None), ("random", 30), ("tpe", 30), ("nsga2", 30)])
def test_two_workers_give_the_same_bytes(
    digits: Path, space: Path, tmp_path: Path, sampler: str, trials: int | None
) -> None:
    options = {"sampler": sampler, "trials": trials, "seed": 3, "simulate": False}
    one, two = tmp_path / "one", tmp_path / "two"
    run(digits, space, one, **options)
    run(digits, space, two, workers=2, **options)
    assert contents(one) == contents(two)
    if trials:
        assert len({tuple(r[n] for n in list(r)[1:6]) for r in rows(one)}) == len(rows(one)) == 30


@pytest.mark.slow
def test_a_longer_run_goes_on_from_a_shorter_one(digits: Path, space: Path, tmp_path: Path) -> None:
    for sampler in ("random", "nsga2"):
        options: dict[str, Any] = {"sampler": sampler, "seed": 1, "simulate": False}
        grown, at_once = tmp_path / f"{sampler}-grown", tmp_path / f"{sampler}-at-once"
        run(digits, space, grown, trials=22, **options)
        short = (grown / "points.csv").read_text()
        run(digits, space, grown, trials=33, **options)
        run(digits, space, at_once, trials=33, **options)
        assert contents(grown) == contents(at_once)
        kept = [line.split(",")[:7] for line in short.splitlines()]
        assert [line.split(",")[:7] for line in (grown / "points.csv").read_text().splitlines()][:23] == kept


def test_seeds_differ() -> None:
    from small_space import SPACE

    space = loads(SPACE)
    for sampler in ("random", "tpe", "nsga2"):
        assert next(samplers.batches(space, sampler, 0, 30, 3)) != next(samplers.batches(space, sampler, 1, 30, 3))


# ------------------------------------------------------------------------------------------- interruptions
def start(
    digits: Path, space: Path, output: Path, *options: str, code: Sequence[str] = ("-m", "qcompiler.cli")
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, *code, "explore", digits, "--space", space, "-o", output, *options],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("points", "chunk", "workers", "sizes"),
    [
        (3456, 128, 1, [896, 896, 896, 768]), (3456, 128, 2, [896, 896, 896, 768]), (6000, 128, 2, [1024] * 5 + [880]),
        (40, 20, 1, [40]), (40, 20, 2, [20, 20]), (4, 1, 2, [1, 1, 1, 1]), (0, 128, 2, []),
    ],
)  # fmt: skip
def test_workers_get_equal_loads(points: int, chunk: int, workers: int, sizes: list[int]) -> None:
    tasks = [(i, range(i, min(i + chunk, points))) for i in range(0, points, chunk)]
    found = list(engines.loads(tasks, points, workers))
    assert [task for load in found for task in load] == tasks
    assert [sum(len(own) for _, own in load) for load in found] == sizes
    # What gains nothing from company comes one by one.
    assert list(engines.loads(tasks, 0, workers)) == [[task] for task in tasks]


# Killed by itself with its workers, right after its third write: no clock and no other process decides when.
KILLED = """
import os, runpy, signal, sys
from qcompiler.exploration.storage import Storage
write, written = Storage.write, []
def write_and_die(self, *chunk):
    write(self, *chunk)
    written.append(chunk)
    if len(written) == 3:
        os.killpg(0, signal.SIGKILL)
Storage.write = write_and_die
sys.argv[0] = "qcompiler"
runpy.run_module("qcompiler.cli", run_name="__main__", alter_sys=True)
"""


LARGER = """
name: larger
base: edge-16x16
fields:
  matrix.rows: [2, 4, 8, 16]
  matrix.columns: [2, 4, 8, 16]
  vector.lanes: {low: 4, high: 32, log2: true}
  main_memory.read_bytes_per_cycle: [1, 2, 4, 8, 16]
  main_memory.latency_cycles: [20, 40, 80, 160]
objectives: [latency, area]
"""


@pytest.mark.parametrize(("sampler", "workers"), [("exhaustive", 2), pytest.param("nsga2", 1, marks=pytest.mark.slow)])
def test_killed_in_the_middle_and_resumed(digits: Path, tmp_path: Path, sampler: str, workers: int) -> None:
    space = tmp_path / "larger.yaml"
    space.write_text(LARGER)
    trials = [] if sampler == "exhaustive" else ["--trials", "200"]
    options = ["--sampler", sampler, "--workers", str(workers), "--no-simulate", *trials]
    killed, journal = tmp_path / "killed", tmp_path / "killed.journal"
    process = start(digits, space, killed, *options, code=("-c", KILLED))
    assert process.wait() == -signal.SIGKILL, process.stderr and process.stderr.read().decode()
    assert not killed.exists()
    with journal.open("ab") as stream:  # as if the kill had come in the middle of a write, if it did not anyway
        stream.write(b'{"op_code":2,"study_id":0,"user_attr":{"points:9')
    complete, _, torn = journal.read_bytes().rpartition(b"\n")
    kept = complete.count(b'"points:')
    resumed = start(digits, space, killed, *options)
    assert resumed.wait() == 0 and resumed.stderr is not None
    assert f"dropped {len(torn)} bytes of a record that was not finished" in resumed.stderr.read().decode()
    assert not journal.exists()
    once = run(digits, space, tmp_path / "once", sampler=sampler, trials=200 if trials else None, simulate=False)
    assert contents(killed) == contents(tmp_path / "once")
    assert kept == 3 < len(once.points) / samplers.chunk_size(sampler)


@pytest.mark.slow
def test_a_worker_that_dies_is_replaced(digits: Path, space: Path, tmp_path: Path, whole: Path) -> None:
    from qcompiler.exploration.engines import Pool

    original = Pool._start

    def start_and_kill(self: Pool) -> Any:
        pool = original(self)
        if not getattr(self, "killed", False):
            self.killed = True  # type: ignore[attr-defined]
            victim = pool.submit(os.getpid)
            os.kill(victim.result(), signal.SIGKILL)
        return pool

    Pool._start = start_and_kill  # type: ignore[method-assign]
    try:
        run(digits, space, tmp_path / "out", workers=2)
    finally:
        Pool._start = original  # type: ignore[method-assign]
    assert contents(tmp_path / "out") == contents(whole)


@pytest.mark.slow
def test_a_database_keeps_it_as_well(digits: Path, space: Path, tmp_path: Path, whole: Path) -> None:
    url = f"sqlite:///{tmp_path / 'kept.db'}"
    run(digits, space, tmp_path / "one", storage=url)
    begin = time.perf_counter()
    run(digits, space, tmp_path / "two", storage=url)
    assert contents(tmp_path / "one") == contents(tmp_path / "two") == contents(whole)
    assert time.perf_counter() - begin < 20 and not (tmp_path / "one" / "exploration.journal").exists()
    run(digits, space, tmp_path / "three", storage=url, objectives=["latency"], simulate=False)  # a study of its own


@pytest.mark.slow
def test_two_machines_share_a_database(digits: Path, space: Path, tmp_path: Path, whole: Path) -> None:
    url = f"sqlite:///{tmp_path / 'kept.db'}"
    options = ["--storage", url, "--workers", "1"]
    processes = [start(digits, space, tmp_path / name, *options) for name in ("one", "two")]
    for process in processes:
        assert process.wait() == 0, process.stderr and process.stderr.read().decode()
    assert contents(tmp_path / "one") == contents(tmp_path / "two") == contents(whole)


# --------------------------------------------------------------------------------------- damage, mistakes
@pytest.fixture
def journal(whole: Path, tmp_path: Path) -> Path:
    """The journal of the finished exploration, as if it had been interrupted just before its end."""
    path = tmp_path / "out.journal"
    path.write_bytes((whole / "exploration.journal").read_bytes())
    return path


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.1, 0.37, 0.6, 0.93, 0.999])
def test_a_truncated_journal_is_recovered(
    digits: Path, space: Path, tmp_path: Path, whole: Path, journal: Path, share: float
) -> None:
    data = journal.read_bytes()
    journal.write_bytes(data[: int(len(data) * share)])
    run(digits, space, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(whole)


@pytest.mark.parametrize("place", ["a line cut short", "a figure changed", "the header"])
def test_a_damaged_journal_is_refused(digits: Path, space: Path, tmp_path: Path, journal: Path, place: str) -> None:
    lines = journal.read_bytes().splitlines(keepends=True)
    at = next(i for i, line in enumerate(lines) if b'"points:' in line)
    if place == "a line cut short":
        lines[at] = lines[at][:200] + b"\n"
        wanted = f"storage {journal} is damaged: line {at + 1} is no record; remove it to begin again"
    elif place == "a figure changed":
        lines[at] = lines[at].replace(b"500.0", b"501.0", 1)
        wanted = f"storage {journal} is damaged at points:0 (its checksum is wrong); remove it to begin again"
    else:
        lines = [line for line in lines if b"qcompiler:exploration" not in line]
        wanted = f"storage {journal} is damaged (its header is missing); remove it to begin again"
    journal.write_bytes(b"".join(lines))
    with pytest.raises(ExplorationError) as error:
        run(digits, space, tmp_path / "out")
    assert str(error.value) == wanted
    assert journal.exists() and not (tmp_path / "out").exists()


def test_a_journal_of_something_else_is_refused(digits: Path, space: Path, tmp_path: Path, journal: Path) -> None:
    with pytest.raises(ExplorationError) as error:
        run(digits, space, tmp_path / "out", objectives=["latency", "edp"])
    assert str(error.value) == (
        f"storage {journal} belongs to another exploration; give another output or --storage, or remove it\n"
        '  objectives: ["latency_ms", "energy_uj", "area_mm2"] there, ["latency_ms", "edp_uj_ms"] here'
    )


def test_a_text_file_is_no_storage(digits: Path, space: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("eggs\nmilk\n")
    with pytest.raises(ExplorationError) as error:
        run(digits, space, tmp_path / "out", storage=str(tmp_path / "notes.txt"))
    assert str(error.value) == (
        f"storage {tmp_path}/notes.txt is damaged: line 1 is no record; remove it to begin again"
    )
    assert (tmp_path / "notes.txt").read_text() == "eggs\nmilk\n"


def test_an_optuna_study_of_something_else_is_refused(digits: Path, space: Path, tmp_path: Path) -> None:
    path = str(tmp_path / "study.log")
    backend = optuna.storages.journal.JournalFileBackend(path)
    optuna.create_study(storage=optuna.storages.JournalStorage(backend), study_name="mine")
    with pytest.raises(ExplorationError) as error:
        run(digits, space, tmp_path / "out", storage=path)
    assert str(error.value) == f"storage {path} holds an Optuna study of something else; give another file"


def test_a_database_that_does_not_answer(digits: Path, space: Path, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/nowhere/kept.db"
    with pytest.raises(ExplorationError) as error:
        run(digits, space, tmp_path / "out", storage=url)
    assert str(error.value) == (
        f"storage {url} cannot be opened: (sqlite3.OperationalError) unable to open database file"
    )


def test_other_directories_are_left_alone(digits: Path, space: Path, tmp_path: Path, whole: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("x")
    with pytest.raises(ExplorationError) as error:
        run(digits, space, tmp_path / "home")
    assert str(error.value) == (
        f"{tmp_path}/home exists and is not an exploration of qcompiler; it will not be overwritten. Give another "
        "output directory, or remove it"
    )
    before = contents(whole)
    with pytest.raises(ExplorationError) as error:
        run(digits, space, whole, objectives=["latency"])
    assert str(error.value) == (
        f"{whole} holds another exploration (other models, space, objectives, sampler, seed or version); give another "
        "output directory, or remove it"
    )
    run(digits, space, whole)  # the same one again: nothing is evaluated, everything is written again
    assert contents(whole) == before


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"sampler": "tpa"}, "unknown sampler 'tpa'; it is one of exhaustive, random, tpe, nsga2; did you mean 'tpe'?"),
    ({"sampler": "exhaustive", "trials": 4},
     "--trials is for samplers that choose points; exhaustive takes all of them"),
    ({"models": []}, "there is no model; give an ONNX file or an artefact, or models with a path in the space"),
    ({"models": ["a/net.onnx", "b/net.onnx"]},
     "two models have the same name; give different files, or copies with other names"),
    ({"models": ["net.onnx"]}, "model net.onnx does not exist; give an ONNX file or a compiled artefact"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "message"), MISTAKES)
def test_mistakes(digits: Path, space: Path, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    models = options.pop("models", digits)
    with pytest.raises(ExplorationError) as error:
        qcompiler.explore(models, space=space, output=tmp_path / "out", **options)
    assert str(error.value) == message
    assert [p.name for p in tmp_path.iterdir()] == ["space.yaml"]


def test_a_space_without_a_possible_machine_is_a_result(digits: Path, tmp_path: Path) -> None:
    space = tmp_path / "space.yaml"
    space.write_text("base: edge-16x16\nfields: {matrix.rows: [64, 128]}\n")
    found = run(digits, space, tmp_path / "out")
    assert found.front == [] and [f is None for f in found.figures] == [True, True]
    assert rows(tmp_path / "out")[0]["reason"] == (
        "activation_memory.bytes_per_cycle is 32, but matrix.rows is 64 and the array reads one byte a row and cycle"
    )


def test_weights_periods_and_paths_of_models_come_from_the_space(digits: Path, tmp_path: Path) -> None:
    space = tmp_path / "space.yaml"
    space.write_text(
        f"base: edge-16x16\nfields: {{matrix.rows: [4, 8]}}\nmodels: {{net: {{path: {digits}, period_ms: 10}}}}\n"
        "objectives: [power, net.latency_ms]\n"
    )
    found = qcompiler.explore([], space=space, output=tmp_path / "out", simulate=False)
    leakage = found.outcomes[0].leakage_mw
    figures = found.figures[0]
    assert figures is not None
    idle = figures["energy_uj"] - leakage * figures["latency_ms"]
    assert figures["power_mw"] == pytest.approx(leakage + idle / 10)


def test_repair_keeps_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b'{"a":1}\n{"b":2}\n{"c"')
    assert repair(path) == 4 and path.read_bytes() == b'{"a":1}\n{"b":2}\n' and repair(path) == 0
