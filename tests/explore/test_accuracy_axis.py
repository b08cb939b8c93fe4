"""Bit widths as axes: what they cost in accuracy, measured once each, as an objective and as a limit; every mistake."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_space import CALIBRATION, DIGITS, TEST, front, rows

import qcompiler
from qcompiler.exploration import quality as qualities
from qcompiler.exploration.quality import Data, Measurement
from qcompiler.exploration.storage import Storage
from qcompiler.progress import Progress
from qcompiler.sim import hardware, reference
from qcompiler.sim.errors import QCompilerError
from qcompiler.sim.explore.merit import Cost, Merit, Outcome, Quality
from qcompiler.sim.explore.space import ModelOptions
from qcompiler.sim.explore.space_file import load, loads
from qcompiler.sim.widths import FULL, Widths

pytest.importorskip("optuna")
pytest.importorskip("plotly")

BITS = """
name: bits
base: micro-8x8
fields:
  matrix.weight_bits: [3, 8]
  matrix.columns: [4, 8]
derived:
  matrix.activation_bits: 8 if matrix.weight_bits == 8 else 6
  weight_memory.size_bytes: 1024
objectives: [latency, accuracy]
"""
COUNT = 60  # of the 360 test images
EXAMPLE = Path(__file__).parents[2] / "examples" / "explore" / "bits.yaml"


class Notes(Progress):
    """Keeps what is worth reading."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some of the test images, with labels."""
    path = tmp_path_factory.mktemp("data") / "held_out.npz"
    with np.load(TEST) as data:
        np.savez(path, image=data["image"][:COUNT], labels=data["labels"][:COUNT], few=data["labels"][:9])
    return path


def explore(output: Path, held_out: Path | None, text: str = BITS, **options: Any) -> Any:
    data = {} if held_out is None else {"calibration": CALIBRATION, "evaluation": held_out, "labels": "labels"}
    return qcompiler.explore(DIGITS, space=loads(text), output=output, **{**data, **options})


@pytest.fixture(scope="module")
def whole(held_out: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("bits") / "out"
    explore(output, held_out)
    return output


def test_each_width_has_the_accuracy_that_compiling_for_it_gives(whole: Path, held_out: Path, tmp_path: Path) -> None:
    """Measured independently: a program compiled with these widths, executed on the same images."""
    points = rows(whole)
    by_widths = {r["matrix.weight_bits"]: r for r in points}
    assert len(points) == 4 and len(by_widths) == 2
    for r in points:
        same = by_widths[r["matrix.weight_bits"]]
        assert (r["accuracy"], r["sqnr_db"], r["digits.accuracy"]) == (
            same["accuracy"], same["sqnr_db"], same["accuracy"]
        )  # fmt: skip
    row = by_widths["3"]
    artifact = qcompiler.compile(
        DIGITS, calibration=CALIBRATION, output=tmp_path / "out", target="x86:avx2", weight_bits=3, activation_bits=6
    )
    with np.load(held_out) as data:
        right = [
            int(np.argmax(reference.execute(artifact.program(), {"image": x.reshape(1, 1, 8, 8)})["scores"])) == y
            for x, y in zip(data["image"], data["labels"], strict=True)
        ]
    assert float(row["accuracy"]) == np.mean(right)
    summary = json.loads((whole / "summary.json").read_text())
    told = {(q["weight_bits"], q["activation_bits"]): q for q in summary["models"]["digits"]["quantised"]}
    assert told[3, 6]["program_sha256"] == summary["identity"]["models"]["digits"][0]["w3a6"]
    assert told[3, 6]["accuracy"] == float(row["accuracy"]) and told[3, 6]["sqnr_db"] == float(row["sqnr_db"])
    assert set(told) == {(8, 8), (3, 6)} and told[8, 8]["sqnr_db"] > told[3, 6]["sqnr_db"] + 6
    assert 0.9 < summary["models"]["digits"]["float_accuracy"] <= 1


def test_more_accuracy_is_better(whole: Path) -> None:
    """The front by definition; narrow weights are on it because they are quicker."""
    points = rows(whole)
    costs = {r["point"]: (float(r["latency_ms"]), -float(r["accuracy"])) for r in points}
    wanted = front(costs)
    assert {r["point"] for r in points if r["front"] == "1"} == wanted
    assert "3" in {r["matrix.weight_bits"] for r in points if r["front"] == "1"}


def test_the_front_is_simulated_with_its_own_widths(whole: Path, tmp_path: Path) -> None:
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["simulation"]["machines"] == len(summary["front"]) > 0
    assert summary["simulation"]["dram_bytes_equal"] is True
    for entry in summary["front"]:
        machine = hardware.load(whole / entry["machine"])
        assert machine.matrix.weight_bits == entry["fields"]["matrix.weight_bits"]
        assert entry["simulated"]["accuracy"] == entry["figures"]["accuracy"]
        assert all(n["changes"]["accuracy"] == 0 for n in entry["next"])
    entry = next(e for e in summary["front"] if e["fields"]["matrix.weight_bits"] == 3)
    out = tmp_path / "out"
    qcompiler.compile(DIGITS, target=f"npu:{whole / entry['machine']}", calibration=CALIBRATION, output=out)
    assert qcompiler.simulate(out).milliseconds == entry["simulated"]["latency_ms"]


def stop(*_: object) -> Any:
    raise KeyboardInterrupt


def test_measured_once_and_kept(whole: Path, held_out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that was stopped goes on without executing anything again, to the same bytes."""
    output = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("qcompiler.exploration.output.write", stop)
        with pytest.raises(KeyboardInterrupt):
            explore(output, held_out)
    with monkeypatch.context() as patch:
        patch.setattr(Measurement, "measure", stop)
        explore(output, held_out)
    for name in ("points.csv", "summary.json", "pareto.html"):
        assert (output / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["exhaustive", "nsga2"])
def test_two_workers_give_the_same_bytes_with_accuracy(held_out: Path, tmp_path: Path, sampler: str) -> None:
    text = BITS.replace("[3, 8]", "[2, 3, 4, 8]").replace("columns: [4, 8]", "columns: [2, 4, 8]")
    options: dict[str, Any] = {"sampler": sampler, "trials": None if sampler == "exhaustive" else 9}
    explore(tmp_path / "one", held_out, text, **options)
    explore(tmp_path / "two", held_out, text, workers=2, **options)
    for name in ("points.csv", "summary.json", "pareto.html"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_damaged_measurements_are_refused(tmp_path: Path) -> None:
    journal = tmp_path / "some.journal"
    Storage(journal, {"what": "some"}).keep("quality-net-w4a8", [20.25, 0.875])
    assert Storage(journal, {"what": "some"}).value("quality-net-w4a8") == [20.25, 0.875]
    assert Storage(journal, {"what": "some"}).value("quality-net-w8a8") is None
    journal.write_text(journal.read_text().replace("0.875", "0.975"))
    with pytest.raises(QCompilerError) as raised:
        Storage(journal, {"what": "some"}).value("quality-net-w4a8")
    assert str(raised.value) == (
        f"storage {journal} is damaged at quality-net-w4a8 (its checksum is wrong); remove it to begin again"
    )


@pytest.mark.slow
def test_a_limit_on_accuracy(whole: Path, held_out: Path, tmp_path: Path) -> None:
    best = max(float(r["accuracy"]) for r in rows(whole))
    text = BITS.replace("[latency, accuracy]", "[latency, area]")
    limits = [f"accuracy >= {best!r}", "digits.sqnr_db > 1"]
    found = explore(tmp_path / "out", held_out, text, constraints=limits, simulate=False)
    for r, before in zip(rows(tmp_path / "out"), rows(whole), strict=True):
        assert r["status"] == ("feasible" if float(before["accuracy"]) >= best else "violates")
    assert all(found.figures[n]["accuracy"] == best for n in found.front)


def test_a_library_stands_in_for_the_reference(held_out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qcompiler.exploration.models import load as load_model

    model = load_model(DIGITS, "digits", {}, CALIBRATION, False, Progress(), [Widths(4, 6)])
    data = Data(CALIBRATION, held_out, "labels")
    slow = Measurement(model, data, ("sqnr_db", "accuracy")).measure(Widths(4, 6), Progress())
    monkeypatch.setattr(qualities, "INTERPRETED_MACS", 0)
    monkeypatch.setattr(reference, "execute", None)
    assert Measurement(model, data, ("sqnr_db", "accuracy")).measure(Widths(4, 6), Progress()) == slow


def test_random_samples_say_nothing_of_accuracy(tmp_path: Path) -> None:
    """Without data widths are still axes: costs are right, and a note says what is missing."""
    progress = Notes()
    text = BITS.replace("[latency, accuracy]", "[latency, area]")
    found = explore(tmp_path / "out", None, text, simulate=False, progress=progress)
    assert progress.notes[0] == (
        "the widths of operands vary, and nothing says what narrow ones cost in accuracy: give --calibration samples, "
        "--evaluation for samples held out, and their --labels where the model tells classes apart"
    )
    assert "accuracy" not in rows(tmp_path / "out")[0] and len(found.points) == 4
    assert found.front and not found.quality


def test_a_quantised_model_runs_only_where_it_fits(digits: Path, tmp_path: Path) -> None:
    text = BITS.replace("[latency, accuracy]", "[latency, area]")
    qcompiler.explore(digits, space=loads(text), output=tmp_path / "out", simulate=False)
    for r in rows(tmp_path / "out"):
        eight = r["matrix.weight_bits"] == "8"
        assert r["status"] == ("feasible" if eight else "impossible")
        assert eight or r["reason"].startswith("digits: ")
    narrow = BITS.replace("[3, 8]", "[3, 4]").replace("[latency, accuracy]", "[latency]")
    with pytest.raises(QCompilerError) as raised:
        qcompiler.explore(digits, space=loads(narrow), output=tmp_path / "none")
    assert str(raised.value) == (
        "digits: the weights of 'stem.relu' do not fit 4 bits: the model is quantised already, and not for the "
        "machines of this space; give the float model"
    )


@pytest.mark.parametrize(
    "options, message",
    [
        (
            dict(labels=None),
            "objective 'accuracy': accuracy of digits needs labelled samples; give --labels, an array of --evaluation "
            "or else of --calibration",
        ),
        (
            dict(labels=None, evaluation=None, calibration=None, objectives=["sqnr"]),
            "objective 'sqnr': sqnr of digits needs samples and the float model; give --calibration, and --evaluation "
            "for samples held out",
        ),
        (
            dict(labels=None, objectives=["latency"], constraints=["accuracy > 0.9"]),
            "constraint 'accuracy > 0.9': accuracy of digits needs labelled samples; give --labels, an array of "
            "--evaluation or else of --calibration",
        ),
        (
            dict(evaluation=None, calibration=None),
            f"{DIGITS}: labels belong to samples, and there are none; give --evaluation or --calibration",
        ),
        (dict(labels="few"), "{held_out}: labels are int64[9]; 60 samples want as many integers"),
        (dict(labels=[1, 2]), "{held_out}: labels are int64[2]; 60 samples want as many integers"),
        (
            dict(labels="label"),
            "{held_out} has no array 'label'; it holds 'image', 'labels', 'few'; did you mean 'labels'?",
        ),
        (
            dict(objectives=["acuracy"]),
            "unknown objective 'acuracy'; did you mean 'accuracy' or 'digits.accuracy' or 'area'? (one of latency, "
            "energy, power, area, edp, traffic, sqnr, accuracy)",
        ),
    ],
)  # fmt: skip
def test_mistakes(options: dict[str, Any], message: str, held_out: Path, tmp_path: Path) -> None:
    with pytest.raises(QCompilerError) as raised:
        explore(tmp_path / "out", held_out, **options)
    wanted = message.replace("{held_out}", str(held_out))
    assert str(raised.value) == wanted
    assert not (tmp_path / "out").exists()


def test_labels_of_samples_in_memory(held_out: Path, tmp_path: Path) -> None:
    with np.load(held_out) as data:
        images, labels = [{"image": x} for x in data["image"]], data["labels"]
    text = BITS.replace("[3, 8]", "[8]")
    found = explore(tmp_path / "out", held_out, text, evaluation=images, labels=labels, simulate=False)
    assert 0.9 < found.quality[FULL][0].accuracy <= 1
    with pytest.raises(QCompilerError) as raised:
        explore(tmp_path / "no", held_out, text, evaluation=images, labels="labels")
    assert str(raised.value) == (
        "labels 'labels' name an array of a file, but the samples are in none; give the labels themselves"
    )


# ------------------------------------------------------------------------------------------- without a model
def test_widths_of_a_space() -> None:
    assert loads(BITS).widths == (Widths(8, 8), Widths(3, 6))
    assert loads("base: micro-8x8\nfields: {matrix.rows: [4, 8]}").widths == (FULL,)
    text = """
base: micro-8x8
fields:
  matrix.rows: [4, 8]
  matrix.activation_bits: {choices: [5, 7], when: {narrow: 1}}
variables: {narrow: [0, 1], other: [1, 2]}
derived: {matrix.weight_bits: 8 - 3 * narrow * (matrix.rows / 4)}
"""
    space = loads(text)
    assert space.widths == (Widths(8, 8), Widths(5, 7), Widths(5, 5), Widths(2, 7), Widths(2, 5))
    for point in space.points():
        matrix = space.machine(point, "m").matrix
        assert space.widths_of(point) == Widths(matrix.weight_bits, matrix.activation_bits)


def test_quality_is_a_mean_by_weight() -> None:
    models = {"a": ModelOptions(3.0), "b": ModelOptions(1.0)}
    both = {"a": ("sqnr_db", "accuracy"), "b": ("sqnr_db", "accuracy")}
    outcome = Outcome("", 100.0, 2.0, 0.5, (Cost(1, 1.0, 0), Cost(1, 1.0, 0)), (Quality(20.0, 0.9), Quality(40.0, 0.5)))
    merit = Merit(models, ["sqnr", "b.accuracy"], ["accuracy > 0.85"], both)
    figures = merit.figures(outcome)
    assert (figures["sqnr_db"], figures["accuracy"], figures["b.accuracy"]) == (25.0, pytest.approx(0.8), 0.5)
    assert [o.cost(figures) for o in merit.objectives] == [-25.0, -0.5]
    assert [o.score(figures) for o in merit.objectives] == [-25.0, -0.5]
    assert merit.violations(outcome, figures, {}) == {"accuracy > 0.85": pytest.approx(0.05 / 0.85)}
    some = Merit(models, ["sqnr"], [], {"a": ("sqnr_db", "accuracy"), "b": ("sqnr_db",)})
    assert "accuracy" not in some.names and "a.accuracy" in some.names and "sqnr_db" in some.names
    with pytest.raises(QCompilerError) as raised:
        Merit(models, ["accuracy"], [], {"a": ("sqnr_db", "accuracy"), "b": ("sqnr_db",)})
    assert str(raised.value) == (
        "objective 'accuracy': accuracy of b needs labelled samples; give --labels, an array of --evaluation or else "
        "of --calibration"
    )


def test_the_example_finds_its_files() -> None:
    space = load(EXAMPLE)
    assert space.models is not None
    digits = space.models["digits"]
    for path in (digits.path, digits.calibration, digits.evaluation):
        assert path is not None and Path(path).is_file()
    assert len(space.widths) == 15
