"""Spaces: what a file says, which points and machines follow from it, and what is said about mistakes."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from qcompiler.sim import hardware
from qcompiler.sim.errors import ExplorationError, HardwareError
from qcompiler.sim.explore.expression import Expression
from qcompiler.sim.explore.space import INACTIVE, Space
from qcompiler.sim.explore.space_file import json_schema, load, loads

CONDITIONAL = """
base: edge-16x16
fields:
  constant_memory.read_bytes_per_cycle: {choices: [1, 2], when: {constant_memory: [{technology: flash,
    size_bytes: 65536, read_bytes_per_cycle: 4, latency_cycles: 20, burst_bytes: 16, outstanding_transfers: 2}]}}
  matrix.weight_buffers: [1, 2]
  matrix.rows: {choices: [8, 16], when: {matrix.weight_buffers: 2}}
  constant_memory: [null, {technology: flash, size_bytes: 65536, read_bytes_per_cycle: 4, latency_cycles: 20,
    burst_bytes: 16, outstanding_transfers: 2}]
"""


def space(text: str) -> Space:
    return loads(text, "space.yaml")


def test_ranges_and_choices() -> None:
    found = space(
        "base: edge-16x16\nfields:\n  matrix.rows: [8, 4, 16]\n  vector.lanes: {low: 4, high: 40, log2: true}\n"
        "  main_memory.read_bytes_per_cycle: {low: 0.5, high: 2, step: 0.5}\n"
        "  main_memory.latency_cycles: {low: 1, high: 3}"
    )
    choices = {a.name: a.choices for a in found.axes}
    assert choices == {
        "matrix.rows": (8, 4, 16), "vector.lanes": (4, 8, 16, 32),
        "main_memory.read_bytes_per_cycle": (0.5, 1, 1.5, 2), "main_memory.latency_cycles": (1, 2, 3),
    }  # fmt: skip
    assert [a.ordered for a in found.axes] == [False, True, True, True]
    assert found.size(10**6) == 144 == len(set(found.points()))


def test_points_are_the_product_in_order() -> None:
    found = space("base: edge-16x16\nfields: {matrix.rows: [8, 16], vector.lanes: [4, 8, 16]}")
    assert list(found.points()) == list(itertools.product(range(2), range(3)))


def test_conditional_fields_collapse_where_they_are_not_active() -> None:
    found = space(CONDITIONAL)
    names = [a.name for a in found.axes]
    assert names == ["matrix.weight_buffers", "constant_memory", "constant_memory.read_bytes_per_cycle", "matrix.rows"]
    points = list(found.points())
    assert (
        len(points) == len(set(points)) == found.size(100) == 3 * 3
    )  # rows: 1 + 2; the memory: none, or at two speeds
    for point in points:
        machine = found.machine(point, "m")
        choices = found.choices(point)
        assert ("matrix.rows" in choices) == (machine.matrix.weight_buffers == 2)
        assert machine.matrix.rows == choices.get("matrix.rows", 16)
        if machine.constant_memory is None:
            assert point[2] == INACTIVE
        else:
            assert machine.constant_memory.read_bytes_per_cycle == choices["constant_memory.read_bytes_per_cycle"]


def test_random_points_are_points() -> None:
    found = space(CONDITIONAL)
    points, rng = set(found.points()), np.random.default_rng(0)
    drawn = {found.draw(rng) for _ in range(200)}
    assert drawn == points
    assert {found.settle(p) for p in itertools.product(range(2), repeat=4)} == points


def test_derived_fields_follow_in_any_order() -> None:
    found = space(
        "base: edge-16x16\nfields: {matrix.rows: [8, 16]}\nvariables: {tiles: [8, 9]}\nderived:\n"
        "  weight_memory.size_bytes: tiles * matrix.rows * matrix.columns\n"
        "  matrix.columns: 'matrix.rows if matrix.rows < 12 else 8'\n  vector.lanes: ceil(matrix.rows / 3)"
    )
    sizes = [
        (m.matrix.columns, m.weight_memory.size_bytes, m.vector.lanes)
        for m in (found.machine(p, "m") for p in found.points())
    ]
    assert sizes == [(8, 8 * 64, 3), (8, 9 * 64, 3), (8, 8 * 128, 6), (8, 9 * 128, 6)]
    assert found.machine((0, 1), "m").activation_memory == hardware.load("edge-16x16").activation_memory


def test_contradictions_are_the_machines_own() -> None:
    found = space(
        "base: edge-16x16\nfields: {matrix.rows: [64]}\nderived: {weight_memory.size_bytes: 'vector.lanes * 17.3'}"
    )
    with pytest.raises(HardwareError) as error:
        found.machine((0,), "m")
    assert str(error.value) == (
        "weight_memory.size_bytes is 276.8: input should be a valid integer"
    )  # fmt: skip
    found = space("base: edge-16x16\nfields: {matrix.rows: [64]}")
    with pytest.raises(HardwareError) as error:
        found.machine((0,), "m")
    assert str(error.value) == (
        "activation_memory.bytes_per_cycle is 32, but matrix.rows is 64 and the array reads one byte a row and cycle"
    )


def test_a_base_may_be_a_file_or_in_full(tmp_path: Path) -> None:
    machine = hardware.load("micro-8x8")
    (tmp_path / "mine.yaml").write_text(hardware.to_yaml(machine))
    (tmp_path / "a.yaml").write_text("base: mine.yaml\nfields: {matrix.rows: [4]}")
    assert load(tmp_path / "a.yaml").base == machine
    (tmp_path / "b.yaml").write_text(
        yaml.safe_dump({"base": machine.model_dump(mode="json"), "fields": {"matrix.rows": [4]}})
    )
    assert load(tmp_path / "b.yaml").base == machine


MISTAKES = {
    "fields: {matrix.rows: [8]}": (
        "space.yaml: base: is missing (preset, path of a machine's YAML file, or a machine in full)"
    ),
    "base: edge-16\nfields: {matrix.rows: [8]}": (
        "space.yaml: base: unknown machine 'edge-16'; did you mean 'edge-16x16' or 'edge-32x32'? (presets: "
        "cloud-128x128, edge-16x16, edge-32x32, micro-8x8, nvdla-1024-like, u55-128-like, u55-128-sram, u55-256-like, "
        "u55-256-sram; or the path of a .yaml file)"
    ),
    "base: edge-16x16\nfields: {}": "space.yaml: fields: nothing varies; give at least one field with its choices",
    "base: edge-16x16\nfeilds: {matrix.rows: [8]}\nfields: {matrix.rows: [8]}": (
        "space.yaml: feilds: unknown field; did you mean 'fields'?"
    ),
    "base: edge-16x16\nfields: {matrix.row: [8]}": (
        "space.yaml: fields.matrix.row: unknown field of a machine; did you mean 'matrix.rows' or 'matrix' or "
        "'matrix.dataflows'?"
    ),
    "base: edge-16x16\nfields: {matrix.rows: [8, 300, 8]}": (
        "space.yaml: fields.matrix.rows: 8 is there twice\n"
        "space.yaml: fields.matrix.rows: is 300; want a whole number in 2..256"
    ),
    "base: edge-16x16\nfields: {matrix.rows: {low: 8}}": (
        "space.yaml: fields.matrix.rows: a range needs both low and high"
    ),
    "base: edge-16x16\nfields: {matrix.rows: {low: 8, high: 4}}": (
        "space.yaml: fields.matrix.rows: high is 4, below low, which is 8"
    ),
    "base: edge-16x16\nfields: {matrix.rows: {low: 8, high: 16, log2: true, step: 1}}": (
        "space.yaml: fields.matrix.rows: a log2 range has no step, and begins above 0"
    ),
    "base: edge-16x16\nfields: {matrix.rows: {low: 8, high: 1.0e+9}}": (
        "space.yaml: fields.matrix.rows: a range of more than 10000 values; make the step larger"
    ),
    "base: edge-16x16\nfields: {matrix.rows: {choices: [8], low: 4, high: 8}}": (
        "space.yaml: fields.matrix.rows: give either choices, or low and high"
    ),
    "base: edge-16x16\nfields: {matrix.rows: {choices: [8], wen: {vector.lanes: 8}}}": (
        "space.yaml: fields.matrix.rows.wen: unknown field; did you mean 'when'?"
    ),
    "base: edge-16x16\nfields: {matrix.rows: {choices: [8], when: {vector.lane: 8}}}": (
        "space.yaml: fields.matrix.rows.when: unknown field 'vector.lane'; did you mean 'vector.lanes' or 'vector' or "
        "'vector.roundings'?"
    ),
    "base: edge-16x16\nfields: {matrix.rows: {choices: [8], when: {vector.lanes: 9}}, vector.lanes: [4, 8]}": (
        "space.yaml: fields.matrix.rows.when: vector.lanes is never 9; it is one of 16, 4, 8"
    ),
    "base: edge-16x16\nfields: {matrix.rows: {choices: [8], when: {vector.lanes: 4}}, "
    "vector.lanes: {choices: [4], when: {matrix.rows: 8}}}": (
        "space.yaml: fields: the conditions (when) of matrix.rows, vector.lanes depend on each other in a circle"
    ),
    "base: edge-16x16\nfields: {matrix.rows: [8]}\nvariables: {vector.lanes: [4], max: [1], k: [[1]]}": (
        "space.yaml: variables.vector.lanes: 'vector.lanes' is a field of a machine; put it under fields\n"
        "space.yaml: variables.max: 'max' is no name for a variable\n"
        "space.yaml: variables.k: a variable's choices are numbers and texts"
    ),
    "base: edge-16x16\nfields: {matrix.rows: [8]}\n"
    "derived: {matrix.rows: 4, vector.lane: 4, vector.lanes: matrix.row}": (
        "space.yaml: derived.matrix.rows: is under fields, too; it cannot both vary and follow\n"
        "space.yaml: derived.vector.lane: unknown field of a machine; did you mean 'vector.lanes' or 'vector' or "
        "'vector.roundings'?\n"
        "space.yaml: derived.vector.lanes: unknown field 'matrix.row'; did you mean 'matrix.rows' or 'matrix' or "
        "'matrix.dataflows'?"
    ),
    "base: edge-16x16\nfields: {matrix.rows: [8]}\n"
    "derived: {vector.lanes: matrix.columns, matrix.columns: vector.lanes}": (
        "space.yaml: derived: vector.lanes, matrix.columns depend on each other in a circle"
    ),
    "base: edge-16x16\nfields: {matrix.rows: [8]}\nmodels: {kws: {weight: -1}}": (
        "space.yaml: models.kws.weight: input should be greater than 0 (it is -1)"
    ),
    "- base": "space.yaml: a space is a mapping of fields, not list",
    "base: [": (
        "space.yaml: is not YAML: while parsing a flow node expected the node content, but found '<stream end>' in "
        '"<unicode string>", line 1, column 8: base: [ ^'
    ),
}  # fmt: skip


@pytest.mark.parametrize("text", MISTAKES)
def test_mistakes_name_the_field(text: str) -> None:
    with pytest.raises(ExplorationError) as error:
        space(text)
    assert str(error.value) == MISTAKES[text]


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ExplorationError) as error:
        load(tmp_path / "none.yaml")
    assert str(error.value) == f"{tmp_path}/none.yaml: cannot be read: No such file or directory"


def test_the_schema_is_json_schema_and_describes_its_fields() -> None:
    schema = json_schema()
    assert schema["required"] == ["base", "fields"]
    json.dumps(schema)
    assert set(schema["properties"]) == {
        "name",
        "base",
        "fields",
        "variables",
        "derived",
        "models",
        "objectives",
        "constraints",
    }
    assert all("description" in p for n, p in schema["properties"].items() if n != "name" or "description" in p)


# ------------------------------------------------------------------------------------------- expressions
@pytest.mark.parametrize(
    ("text", "value"),
    [("1 + 2 * 3", 7), ("a.b // 2 - -a.c", 10), ("2 ** 10 % 1000", 24), ("max(a.b, 3, a.c) / 4", 3.5),
     ("7 if a.b == 14 else 8", 7),
     ("ceil(a.b / 4) + floor(2.5) + round(2.6) + abs(-1) + sqrt(9) + log2(8)", 16),
     ("not (a.b > 3 and a.c < 5)", False),
     ("'flash' == t or a.b < 0", True)],
)  # fmt: skip
def test_arithmetic(text: str, value: object) -> None:
    assert Expression(text, "here").evaluate({"a.b": 14, "a.c": 3, "t": "flash"}) == value


REFUSED = {
    "__import__('os').system('true')": "'__import__('os').system('true')' is not allowed; ",
    "().__class__": "'().__class__' is not allowed; ",
    "[1][0]": "'[1][0]' is not allowed; ",
    "(lambda: 1)()": "'(lambda: 1)()' is not allowed; ",
    "f'{1}'": "\"f'{1}'\" is not allowed; ",
    "1 << 9": "'1 << 9' is not allowed; ",
}  # fmt: skip


@pytest.mark.parametrize("text", REFUSED)
def test_nothing_of_python_can_be_reached(text: str) -> None:
    with pytest.raises(ExplorationError) as error:
        Expression(text, "here").evaluate({})
    assert str(error.value) == (
        f"here: {Expression(text, '').text!r} is not allowed; an expression has names, numbers, + - * / // % **, "
        "comparisons, and, or, not, `a if c else b`, and min, max, abs, ceil, floor, round, sqrt, log2"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [("maxx(1)", "here: unknown function 'maxx'; did you mean 'max'?"), ("1 +", "here: '1 +' is not an expression"),
     ("max(*a)", "here: max takes values, separated by commas"),
     ("a / 0", "here: 'a / 0' has no value for a = 2: division by zero"),
     ("a * t", "here: 'a * t' has no value for a = 2, t = 'x': a text is not a number"),
     ("9 ** 9 ** 9", "here: '9 ** 9 ** 9' has no value for : exponents go to 64"),
     ("(" * 300 + "1" + ")" * 300, "here: an expression of 601 characters is not one"),
     ("sqrt(-a)", "here: 'sqrt(-a)' has no value for a = 2: math domain error")],
)  # fmt: skip
def test_what_has_no_value_says_why(text: str, message: str) -> None:
    with pytest.raises(ExplorationError) as error:
        Expression(text, "here").evaluate({"a": 2, "t": "x"})
    assert str(error.value) == message


def test_towers_of_powers_end_early() -> None:
    tower = "9" + " ** 64" * 60
    code = (
        "from qcompiler.sim.explore.expression import Expression\n"
        f"Expression('(' * 59 + {tower!r}.replace(' ** 64', ' ** 64)', 59), 'x').evaluate({{}})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20)
    assert "a value beyond 1e300 is no size" in done.stderr
