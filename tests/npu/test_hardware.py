"""Machine descriptions: presets, round trips, and every mistake with its whole message."""

from pathlib import Path

import pytest
from machines import EDGE, edited
from pydantic import ValidationError

from qcompiler.sim import hardware
from qcompiler.sim.errors import HardwareError
from qcompiler.sim.hardware import load, loads, preset_names, to_yaml

BANDWIDTH = "want a number in 0.0625..4096, a multiple of 0.0625"


def test_presets_of_the_issue_are_there():
    assert {
        "micro-8x8", "edge-16x16", "edge-32x32", "cloud-128x128",
        "u55-128-like", "u55-256-like", "u55-128-sram", "u55-256-sram", "nvdla-1024-like",
    } <= set(preset_names())  # fmt: skip


@pytest.mark.parametrize("name", preset_names())
def test_presets_load_and_round_trip(name):
    machine = load(name)
    assert machine.name == name
    assert machine.description
    assert loads(to_yaml(machine)) == machine


def test_mac_counts_of_the_classes():
    assert load("u55-128-like").matrix.macs_per_cycle == 128
    assert load("u55-256-like").matrix.macs_per_cycle == 256
    assert load("nvdla-1024-like").matrix.macs_per_cycle == 1024


def test_hash_is_of_the_content_not_of_the_name():
    text = to_yaml(EDGE)
    assert loads(text.replace("name: edge-16x16", "name: other")).hash == EDGE.hash
    assert loads(text.replace("lanes: 16", "lanes: 8")).hash != EDGE.hash


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("rows: 16", "rows: 0", "matrix.rows: is 0; want a whole number in 2..256"),
        ("rows: 16", "rows: -4", "matrix.rows: is -4; want a whole number in 2..256"),
        ("rows: 16", "rows: 100000", "matrix.rows: is 100000; want a whole number in 2..256"),
        ("rows: 16", "rows: .inf", "matrix.rows: is inf; want a whole number in 2..256"),
        ("rows: 16", "rows: '16'", "matrix.rows: is '16'; want a whole number in 2..256"),
        ("clock_mhz: 500.0", "clock_mhz: .nan", "clock_mhz: is nan; want a number in 1..5000"),
        ("weight_buffers: 2", "weight_buffers: 3", "matrix.weight_buffers: is 3; want one of 1, 2"),
        (
            "technology: lpddr4", "technology: ddr9",
            "main_memory.technology: is 'ddr9'; want one of sram, flash, lpddr4, ddr4, hbm2",
        ),
        (
            "read_bytes_per_cycle: 16.0", "read_bytes_per_cycle: 0",
            f"main_memory.read_bytes_per_cycle: is 0; {BANDWIDTH}",
        ),
        (
            "read_bytes_per_cycle: 16.0", "read_bytes_per_cycle: 1.03",
            f"main_memory.read_bytes_per_cycle: is 1.03; {BANDWIDTH}",
        ),
        ("vector:\n", "vector: 3\nx:\n", None),
        (
            "  rows: 16", "  rows: 64",
            "activation_memory.bytes_per_cycle is 32, but matrix.rows is 64 "
            "and the array reads one byte a row and cycle",
        ),
        (
            "  lanes: 16", "  lanes: 64",
            "activation_memory.bytes_per_cycle is 32, but vector.lanes is 64 "
            "and the lanes read one byte each and cycle",
        ),
        (
            "accumulator_rows: 1024", "accumulator_rows: 8",
            "matrix.accumulator_rows is 8, but an output-stationary array drains matrix.rows = 16 at a time",
        ),
        (
            "size_bytes: 65536", "size_bytes: 300",
            "weight_memory.size_bytes is 300, but 2 weight tiles of matrix.rows x matrix.columns are 512",
        ),
        ("weight_bits: 8", "weight_bits: 1", "matrix.weight_bits: is 1; want a whole number in 2..8"),
        ("weight_bits: 8", "weight_bits: 4.0", "matrix.weight_bits: is 4.0; want a whole number in 2..8"),
        ("activation_bits: 8", "activation_bits: 16", "matrix.activation_bits: is 16; want a whole number in 4..8"),
        (
            "technology: lpddr4", "technology: flash",
            "main_memory.technology is 'flash', which cannot hold activations; make it the constant_memory",
        ),
    ],
)  # fmt: skip
def test_mistakes(old, new, message):
    text = to_yaml(EDGE)
    assert old in text
    with pytest.raises(HardwareError) as error:
        loads(text.replace(old, new, 1), "my.yaml")
    if message is None:
        message = "vector: is 3; want a mapping of lanes, parameter_bytes, roundings\nmy.yaml: x: unknown field"
    assert str(error.value) == f"my.yaml: {message}"


def test_narrow_weights_need_narrower_ports_and_smaller_memories():
    """A row of 16 weights of 3 bits is 6 bytes, of which two tiles of 16 rows are 192 bytes."""
    narrow = {"matrix__weight_bits": 3, "weight_memory__bytes_per_cycle": 6}
    machine = edited(EDGE, **narrow, weight_memory__size_bytes=256)
    assert [machine.matrix.weight_row_bytes(n) for n in (1, 2, 3, 8, 16)] == [1, 1, 2, 3, 6]
    with pytest.raises(ValidationError, match="bytes_per_cycle is 5, but matrix.columns is 16 and the array loads 3 b"):
        edited(EDGE, **narrow | {"weight_memory__bytes_per_cycle": 5})
    tall = narrow | {"matrix__rows": 32, "weight_memory__size_bytes": 300}
    with pytest.raises(
        ValidationError, match="2 weight tiles of matrix.rows x matrix.columns with 3 bits a weight are 384"
    ):
        edited(EDGE, **tall)


def test_hash_of_machines_with_eight_bits_is_what_it_was_before_there_were_widths():
    assert load("edge-16x16").hash == "0ae0f0a5e561e4162c42958affa14872db0b598d091b8b69dfccd7301ec3ded1"
    hashes = {edited(EDGE, matrix__weight_bits=w, matrix__activation_bits=a).hash for w in (4, 8) for a in (4, 8)}
    assert len(hashes) == 4
    assert EDGE.hash in hashes


def test_unknown_field_suggests_near_names_and_the_missing_one_says_its_range():
    with pytest.raises(HardwareError) as error:
        loads(to_yaml(EDGE).replace("clock_mhz", "clock_mzh"), "my.yaml")
    assert str(error.value) == (
        "my.yaml: clock_mhz: is missing (want a number in 1..5000)\n"
        "my.yaml: clock_mzh: unknown field; did you mean 'clock_mhz'?"
    )


def test_unknown_preset_and_unreadable_files(tmp_path: Path):
    with pytest.raises(HardwareError, match=r"^unknown machine 'edge-16'; did you mean 'edge-16x16'"):
        load("edge-16")
    missing = tmp_path / "none.yaml"
    with pytest.raises(HardwareError) as error:
        load(missing)
    assert str(error.value) == f"{missing}: cannot be read: No such file or directory"
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(HardwareError, match="is not a text file"):
        load(binary)
    with pytest.raises(HardwareError, match="a machine is a mapping of fields, not list"):
        loads("[1, 2]")
    with pytest.raises(HardwareError, match="is not YAML"):
        loads("a: [1")
    with pytest.raises(HardwareError, match="is not YAML"):
        loads("a: !!python/object/apply:os.system ['true']")


def test_schema_describes_every_field():
    schema = hardware.json_schema()
    assert schema["additionalProperties"] is False
    for part in ("Matrix", "Vector", "Scratchpad", "ExternalMemory"):
        assert all(p.get("description") for p in schema["$defs"][part]["properties"].values())


def test_ideal_memory_takes_a_cycle_and_no_latency():
    ideal = hardware.ideal_memory(load("u55-128-like"))
    assert ideal.main_memory.read_cycles(10**6) == 1
    assert ideal.constant_memory is not None
    assert ideal.constant_memory.latency_cycles == 0


def test_bandwidth_is_exact_in_sixteenths():
    memory = edited(EDGE, main_memory__read_bytes_per_cycle=0.0625).main_memory
    assert [memory.read_cycles(n) for n in (0, 1, 2)] == [0, 16, 32]
    memory = edited(EDGE, main_memory__read_bytes_per_cycle=2.5).main_memory
    assert [memory.read_cycles(n) for n in (1, 5, 6)] == [1, 2, 3]
