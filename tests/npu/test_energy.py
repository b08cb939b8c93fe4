"""Energy and area: counts by hand, the sum of counts times prices, node scaling, and bad tables."""

import dataclasses
from fractions import Fraction

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from machines import EDGE, edited, machines
from random_programs import programs

from qcompiler.sim import energy, isa, timing
from qcompiler.sim.errors import HardwareError
from qcompiler.sim.hardware import load, preset_names
from qcompiler.sim.isa import COUNTERS, Space
from qcompiler.sim.program import NpuProgram, Port

TABLE = energy.load_table()


def program_of(*body, machine=EDGE):
    return NpuProgram(
        "p", machine, (*body, isa.Halt()), bytes(1 << 16), 1 << 16, (), (Port("y", "int8", (1,), 0),)
    )  # fmt: skip


def counters(program):
    totals = dict(zip(COUNTERS, energy.count(program).sum(axis=0).tolist(), strict=True))
    return {name: value for name, value in totals.items() if value}


def test_counts_of_a_hand_counted_layer():
    """3x3 convolution of an 8x8x32 tile to 16 channels, weights and input loaded, requantised, stored."""
    load_x = isa.Copy(unit=0, source=Space.main, target=Space.activation, target_address=0, run_bytes=2048)
    load_w = isa.Copy(unit=0, source=Space.constant, target=Space.weight, target_address=0, run_bytes=9 * 32 * 16)
    conv = isa.MatrixMultiply(
        address=0, row_pitch=256, pixel_pitch=32, in_h=8, in_w=8, y0=-1, x0=-1, kernel_h=3, kernel_w=3, out_h=8,
        out_w=8, run=32, weight_address=0, weight_pitch=16, columns=16, accumulator_row=0,
    )  # fmt: skip
    requantize = isa.Requantize(
        accumulator_row=0, out_h=8, out_w=8, width=16, out_address=4096, out_row_pitch=128, out_pixel_pitch=16,
        params=0, out_zero=0,
    )  # fmt: skip
    store = isa.Copy(
        unit=4, source=Space.activation, source_address=4096, target=Space.main, target_address=0, run_bytes=1000
    )
    passes = 9 * 2
    assert counters(program_of(load_x, load_w, conv, requantize, store)) == {
        "array_macs": 64 * 9 * 32 * 16,
        "requantizations": 64 * 16,
        "activation_read_bytes": 64 * 9 * 32 + 1000,
        "activation_write_bytes": 2048 + 64 * 16,
        "weight_read_bytes": 9 * 32 * 16,
        "weight_write_bytes": 9 * 32 * 16,
        "parameter_read_bytes": 16 * 8,
        "accumulator_read_bytes": (passes - 1) * 64 * 16 * 4 + 64 * 16 * 4,
        "accumulator_write_bytes": passes * 64 * 16 * 4,
        "main_read_bytes": 2048 + 4608,
        "main_write_bytes": 1024,  # 1000 bytes are 32 bursts of 32
        "instruction_bytes": 6 * 64,
    }


def test_output_stationary_saves_accumulator_traffic_and_repeats_weights():
    fields = {
        "address": 0, "row_pitch": 4096, "pixel_pitch": 64, "in_h": 1, "in_w": 40, "out_h": 1, "out_w": 40, "run": 64,
        "weight_address": 0, "weight_pitch": 16, "columns": 16, "accumulator_row": 0,
    }  # fmt: skip
    stationary = counters(program_of(isa.MatrixMultiply(**fields, flags=2)))
    assert stationary["weight_read_bytes"] == 3 * 64 * 16  # 40 pixels are three groups of 16
    assert stationary["accumulator_write_bytes"] == 40 * 16 * 4
    assert "accumulator_read_bytes" not in stationary
    assert counters(program_of(isa.MatrixMultiply(**fields)))["accumulator_read_bytes"] == 3 * 40 * 16 * 4


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_energy_is_the_sum_of_counts_times_the_table(data):
    program = data.draw(programs(data.draw(machines())))
    machine, counts = program.machine, energy.count(program).sum(axis=0)
    cycles = timing.simulate(program).cycles
    result = energy.energy(counts, cycles, machine, TABLE)
    price = energy.prices(machine, TABLE)
    static = Fraction(energy.static_power(machine, TABLE).value) * cycles / Fraction(machine.clock_mhz) * 1000
    exact = sum(Fraction(price[n].value) * int(c) for n, c in zip(COUNTERS, counts, strict=True)) + static
    assert result.total.value == pytest.approx(float(exact), rel=1e-12)
    assert result.total.low <= result.total.value <= result.total.high
    assert sorted(n for names in energy.GROUPS.values() for n in names) == sorted(COUNTERS)


def test_layers_add_up():
    sync = isa.Sync(unit=2)
    program = program_of(sync, sync)
    split = dataclasses.replace(
        program, layers=(*program.layers, dataclasses.replace(program.layers[0], name="b")), layer_of=(0, 1, 1)
    )
    np.testing.assert_array_equal(energy.count(split).sum(axis=0), energy.count(program)[0])
    assert energy.count(split)[:, list(COUNTERS).index("instruction_bytes")].tolist() == [64, 128]


def test_prices_at_the_published_nodes():
    """Horowitz's figures come back at 45 nm, Jouppi's at 7 nm, and 16 nm lies between."""
    at = {node: energy.prices(edited(EDGE, process_nm=node), TABLE) for node in (45, 16, 7)}
    assert at[45]["array_macs"].value == pytest.approx(0.3)
    assert at[7]["array_macs"].value == pytest.approx(0.1)
    assert at[7]["array_macs"].value < at[16]["array_macs"].value < at[45]["array_macs"].value
    assert TABLE.at(45).sram_byte(8 << 10).value == pytest.approx(10 / 8)
    assert TABLE.at(45).sram_byte(32 << 10).value == pytest.approx(20 / 8, rel=0.05)  # published, not fitted
    assert TABLE.at(7).sram_byte(32 << 10).value == pytest.approx(8.5 / 8, rel=0.06)
    assert TABLE.at(45).sram_byte(1 << 20).value == pytest.approx(100 / 8)
    # External memories do not follow the accelerator's node.
    assert at[45]["main_read_bytes"] == at[7]["main_read_bytes"]
    assert at[7]["main_read_bytes"].value == pytest.approx(56)


def test_scaling_is_a_power_law_through_the_points():
    entry = energy.Scaled(points={40: 8.0, 10: 2.0}, low=0.5, high=2, scope="", source="")
    assert [entry.at(n).value for n in (40, 20, 10, 5)] == pytest.approx([8, 4, 2, 1])
    assert entry.at(20) == (pytest.approx(4), pytest.approx(2), pytest.approx(8))


@pytest.mark.parametrize("name", preset_names())
def test_area_has_bounds_and_grows_with_the_machine(name):
    machine = load(name)
    parts = energy.area(machine, TABLE)
    assert all(0 < p.low <= p.value <= p.high for p in parts.values())
    larger = edited(machine, activation_memory__size_bytes=2 * machine.activation_memory.size_bytes)
    assert energy.area(larger, TABLE)["activation"].value == pytest.approx(2 * parts["activation"].value)
    smaller = edited(machine, process_nm=3)
    assert energy.area(smaller, TABLE)["array"].value < parts["array"].value
    power = energy.static_power(machine, TABLE)
    assert 0 < power.low < power.value < power.high


def test_bad_tables(tmp_path):
    content = yaml.safe_load(energy.DEFAULT_TABLE.read_text())
    path = tmp_path / "energy.yaml"

    def message(edit):
        changed = yaml.safe_load(yaml.safe_dump(content))
        edit(changed)
        path.write_text(yaml.safe_dump(changed))
        with pytest.raises(HardwareError) as error:
            energy.load_table(path)
        return str(error.value)

    assert message(lambda t: t["energy_pj"].pop("int32_add")) == f"{path}: energy_pj.int32_add: Field required"
    assert "energy_pj.int8_multiply.points.45: Input should be greater than 0" in message(
        lambda t: t["energy_pj"]["int8_multiply"]["points"].update({45: -1})
    )
    assert "low: Input should be less than or equal to 1" in message(
        lambda t: t["energy_pj"]["int32_add"].update(low=3)
    )
    assert "energy_pj.warp_drive: Extra inputs are not permitted" in message(
        lambda t: t["energy_pj"].update(warp_drive={})
    )
    with pytest.raises(HardwareError, match="cannot be read: No such file or directory"):
        energy.load_table(tmp_path / "none.yaml")


def test_every_figure_states_its_source_and_scope():
    for section in ("energy_pj", "leakage", "area_um2", "factors"):
        for name, entry in getattr(TABLE, section):
            assert entry.source, name
            assert entry.scope, name
            if section in ("energy_pj", "leakage"):
                assert entry.voltage_v.keys() == entry.points.keys(), name
