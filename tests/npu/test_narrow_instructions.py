"""Narrow operands of the array: packing, what the matrix instruction makes of it, its cycles, counts, energy, area."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from machines import EDGE, edited

from qcompiler.sim import assembler, container, energy, functional, isa, timing
from qcompiler.sim.errors import ProgramError
from qcompiler.sim.hardware import Machine, load
from qcompiler.sim.hardware.batch import Machines
from qcompiler.sim.isa import COUNTERS, Space
from qcompiler.sim.isa.packing import pack, unpack
from qcompiler.sim.machine_state import MachineState
from qcompiler.sim.program import NpuProgram, Port
from qcompiler.sim.widths import interval

TABLE = energy.load_table()
PACKED, TRANSPOSED = 16, 8


def narrow(weight_bits: int = 8, activation_bits: int = 8, base: Machine = EDGE, **fields: object) -> Machine:
    return edited(base, matrix__weight_bits=weight_bits, matrix__activation_bits=activation_bits, **fields)


# ------------------------------------------------------------------------------------------ packing
@st.composite
def rows_of_values(draw: st.DrawFn) -> tuple[int, np.ndarray]:
    bits = draw(st.integers(2, 8))
    shape = draw(st.tuples(st.integers(1, 4), st.integers(1, 40)))
    low, high = interval(bits)
    values = draw(st.lists(st.integers(low, high), min_size=math.prod(shape), max_size=math.prod(shape)))
    return bits, np.array(values, dtype=np.int8).reshape(shape)


@given(rows_of_values())
def test_a_packed_row_is_one_little_endian_number(drawn: tuple[int, np.ndarray]) -> None:
    """Against Python's own integers; unpacking gives the values back, also where only the first are asked for."""
    bits, values = drawn
    packed = pack(values, bits)
    size = EDGE.matrix.model_copy(update={"weight_bits": bits}).weight_row_bytes(values.shape[1])
    for row, data in zip(values.tolist(), packed, strict=True):
        number = sum((v & (1 << bits) - 1) << j * bits for j, v in enumerate(row))
        assert data.tobytes() == number.to_bytes(size, "little")
    np.testing.assert_array_equal(unpack(packed, values.shape[1], bits), values)
    some = values.shape[1] // 2 + 1
    np.testing.assert_array_equal(unpack(packed, some, bits), values[:, :some])


def test_eight_bits_are_bytes() -> None:
    values = np.arange(-128, 128, dtype=np.int8).reshape(2, 128)
    np.testing.assert_array_equal(pack(values, 8), values)


def test_a_batch_of_machines_packs_as_each_does() -> None:
    machines = [narrow(b) for b in range(2, 9)]
    for columns in (1, 3, 10, 16):
        each = [m.matrix.weight_row_bytes(columns) for m in machines]
        assert Machines.of(machines).weight_row_bytes(columns).tolist() == each


# ---------------------------------------------------------------------------------------- semantics
def multiply(columns: int, k: int, pixels: int, **fields: int) -> isa.MatrixMultiply:
    return isa.MatrixMultiply(
        address=0, row_pitch=4096, pixel_pitch=k, in_h=1, in_w=pixels, out_h=1, out_w=pixels, run=k,
        columns=columns, accumulator_row=0, **{"weight_address": 0, "weight_pitch": columns, **fields},
    )  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_packed_weights_multiply_as_their_values(data: st.DataObject) -> None:
    weight_bits, activation_bits = data.draw(st.integers(2, 8)), data.draw(st.integers(4, 8))
    machine = narrow(weight_bits, activation_bits)
    k, n, pixels = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 16)), data.draw(st.integers(1, 5))
    rng = np.random.default_rng(data.draw(st.integers(0, 1 << 20)))
    (wl, wh), (al, ah) = interval(weight_bits), interval(activation_bits)
    w, x = rng.integers(wl, wh + 1, (k, n)).astype(np.int8), rng.integers(al, ah + 1, (pixels, k)).astype(np.int8)
    zero, weight_zero = int(rng.integers(al, ah + 1)), int(rng.integers(wl, wh + 1))
    transposed, packed = data.draw(st.booleans()), data.draw(st.booleans())
    rows = w.T if transposed else w
    stored = pack(rows, weight_bits) if packed else np.ascontiguousarray(rows)
    pitch, at = stored.shape[1] + data.draw(st.integers(0, 3)), data.draw(st.integers(0, 9))
    state = MachineState(machine, 1, b"")
    for i, row in enumerate(stored):
        state.memory(Space.weight).preload(at + i * pitch, row.copy())
    state.memory(Space.activation).preload(0, x)
    ins = multiply(
        n, k, pixels, zero=zero, weight_zero=weight_zero, weight_address=at, weight_pitch=pitch,
        flags=TRANSPOSED * transposed + PACKED * packed,
    )  # fmt: skip
    ins.check(machine)
    ins.execute(state)
    np.testing.assert_array_equal(
        state.accumulators[:pixels, :n], (x.astype(np.int64) - zero) @ (w.astype(np.int64) - weight_zero)
    )


@pytest.mark.parametrize(
    ("w", "x", "message"),
    [
        (1, 8, "matmul: activation 8 does not fit matrix.activation_bits = 4 (-8..7)"),
        (1, -9, "matmul: activation -9 does not fit matrix.activation_bits = 4 (-8..7)"),
        (4, 1, "matmul: weight 4 does not fit matrix.weight_bits = 3 (-4..3)"),
        (-5, 1, "matmul: weight -5 does not fit matrix.weight_bits = 3 (-4..3)"),
    ],
)
def test_operands_that_are_too_wide_stop_the_simulator(w: int, x: int, message: str) -> None:
    state = MachineState(narrow(3, 4), 1, b"")
    state.memory(Space.weight).preload(0, np.full(8, w, np.int8))
    state.memory(Space.activation).preload(0, np.full(4, x, np.int8))
    with pytest.raises(ProgramError) as caught:
        multiply(2, 4, 1).execute(state)
    assert str(caught.value) == message


def test_a_trap_names_the_layer() -> None:
    """As a user sees it: an input that the quantiser did not foresee."""
    machine = narrow(4, 4)
    load_x = isa.Copy(unit=0, source=Space.main, target=Space.activation, target_address=0, run_bytes=4, signal=1)
    load_w = isa.Copy(
        unit=0, source=Space.constant, target=Space.weight, target_address=0, run_bytes=4, fence=True, signal=2
    )
    ports = (Port("x", "int8", (4,), 0),), (Port("y", "int8", (1,), 4),)
    body = (load_x, load_w, multiply(2, 4, 1, flags=PACKED, weight_pitch=1, wait=3), isa.Halt())
    program = NpuProgram("p", machine, body, bytes(8), 8, *ports)
    with pytest.raises(ProgramError) as caught:
        functional.execute(program, {"x": np.array([1, 2, 93, 4], np.int8)})
    assert str(caught.value) == (
        "program 'p', instruction 2 (matmul, layer 'program'): matmul: activation 93 does not fit "
        "matrix.activation_bits = 4 (-8..7)"
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"zero": -9}, "matmul: zero=-9 does not fit 4 bits (-8..7)"),
        ({"weight_zero": 4}, "matmul: weight_zero=4 does not fit 3 bits (-4..3)"),
        ({"flags": PACKED | 4}, "matmul: only the weight memory holds packed weights"),
        ({"flags": 32}, "matmul: flags=32 has unknown bits"),
    ],
)
def test_operands_that_no_narrow_array_takes(fields: dict[str, int], message: str) -> None:
    with pytest.raises(ProgramError) as caught:
        multiply(2, 4, 1, **fields).check(narrow(3, 4))
    assert str(caught.value) == message


def test_encoding_and_text_round_trip() -> None:
    ins = multiply(10, 4, 1, flags=PACKED | 1, weight_pitch=5)
    assert container.decode(ins.encode()) == ins
    assert ins.text().endswith("flags=17")
    port = Port("y", "int8", (1,), 0)
    program = NpuProgram("p", narrow(4), (ins, isa.Halt()), b"", 4, (), (port,))
    read = container.from_bytes(container.to_bytes(program))
    assert read.machine.matrix.weight_bits == 4
    assert assembler.disassemble(read) == assembler.disassemble(program)
    assert "flags=17" in assembler.disassemble(program)


# ------------------------------------------------------------------------------ cycles, counts, cost
def test_a_packed_row_enters_in_a_cycle_and_an_unpacked_one_in_as_many_as_the_port_needs() -> None:
    machine = narrow(4, weight_memory__bytes_per_cycle=8)  # 16 columns of 4 bits
    packed, bytewise = (multiply(16, 64, 8, flags=f).timing(machine) for f in (PACKED, 0))
    assert (packed.lead, bytewise.lead) == (16, 32)
    assert packed.occupy == 3 * 16 + 8  # four passes of 16 rows, each loading 16 rows while it streams 8
    assert bytewise.occupy == 3 * 32 + 8
    turned = multiply(16, 64, 8, flags=PACKED | TRANSPOSED).timing(edited(machine, matrix__rows=32))
    assert turned.lead == 16 * 2  # 16 columns of 32 weights, 16 bytes each


def counters(program: NpuProgram) -> dict[str, int]:
    totals = dict(zip(COUNTERS, energy.count(program).sum(axis=0).tolist(), strict=True))
    return {name: value for name, value in totals.items() if value}


def test_counts_and_energy_by_hand_of_a_layer_with_four_bit_weights() -> None:
    """3x3 convolution of 8x8x32 to 10 channels at 45 nm: rows of 10 weights are 5 bytes, 288 of them."""
    machine = narrow(4, 6, process_nm=45)
    load_w = isa.Copy(unit=0, source=Space.constant, target=Space.weight, target_address=0, run_bytes=288 * 5)
    conv = isa.MatrixMultiply(
        address=0, row_pitch=256, pixel_pitch=32, in_h=8, in_w=8, y0=-1, x0=-1, kernel_h=3, kernel_w=3, out_h=8,
        out_w=8, run=32, weight_address=0, weight_pitch=5, columns=10, accumulator_row=0, flags=PACKED,
    )  # fmt: skip
    port = Port("y", "int8", (1,), 0)
    program = NpuProgram("p", machine, (load_w, conv, isa.Halt()), bytes(4096), 1 << 16, (), (port,))
    macs, sums = 64 * 288 * 10, 64 * 10 * 4
    assert counters(program) == {
        "array_macs": macs,
        "activation_read_bytes": 64 * 288,
        "weight_read_bytes": 288 * 5,
        "weight_write_bytes": 288 * 5,
        "accumulator_read_bytes": 17 * sums,
        "accumulator_write_bytes": 18 * sums,
        "main_read_bytes": 1440,  # 45 bursts of 32
        "instruction_bytes": 3 * 64,
    }
    counts, cycles = energy.count(program).sum(axis=0), timing.simulate(program).cycles
    spent = energy.energy(counts, cycles, machine, TABLE).groups
    assert spent["mac"].value == pytest.approx(macs * (0.2 * 4 * 6 / 64 + 0.1))
    assert spent["dram"].value == pytest.approx((1440 + 192) * 56)
    # Capacities of 256, 64 and 64 KiB on the line from 10 pJ (8 KiB) to 100 pJ (1 MiB) for 8 bytes.
    byte = {kib: 10 ** (1 + math.log(kib / 8, 128)) / 8 for kib in (256, 64)}
    assert spent["sram"].value == pytest.approx(64 * 288 * byte[256] + (2 * 1440 + 35 * sums) * byte[64])


def test_a_multiplier_follows_the_product_of_its_widths() -> None:
    """At 45 nm: 282 um2 and 0.2 pJ for 8 x 8 bits, within exponents of 0.9 to 1.1; adder and partial sum stay."""
    for w, a in ((8, 8), (4, 8), (8, 4), (4, 4), (3, 5)):
        machine, ratio = narrow(w, a, process_nm=45), w * a / 64
        area, cells = energy.area(machine, TABLE)["array"], 256e-6
        registers = 2 * (w + 1) + (a + 1) + 32
        assert area.value == pytest.approx(cells * (282 * ratio + 137 + 4.5 * registers))
        assert area.low == pytest.approx(0.8 * cells * (282 * ratio**1.1 + 137 + 4.5 * registers))
        assert area.high == pytest.approx(cells * (1.3 * 282 * ratio**0.9 + 1.3 * 137 + 1.5 * 4.5 * registers))
        price = energy.prices(machine, TABLE)
        assert price["array_macs"].value == pytest.approx(0.2 * ratio + 0.1)
        assert price["array_macs"].low == pytest.approx(0.8 * (0.2 * ratio**1.1 + 0.1))
        assert price["vector_macs"] == energy.prices(edited(EDGE, process_nm=45), TABLE)["vector_macs"]
        assert energy.area(machine, TABLE)["vector"] == energy.area(edited(EDGE, process_nm=45), TABLE)["vector"]


def test_the_published_32_bit_multipliers_are_within_the_rule() -> None:
    """Horowitz's and Jouppi's own figures, 16 times the product of widths: what the exponents' bounds stand for."""
    exponent = TABLE.factors.multiplier_width.quantity
    pj, um2 = TABLE.energy_pj, TABLE.area_um2
    for small, large in ((pj.int8_multiply, pj.int32_multiply), (um2.int8_multiplier, um2.int32_multiplier)):
        for node in (45, 7):
            found = math.log(large.at(node).value / small.at(node).value, 16)
            assert exponent.low - 0.01 <= found <= exponent.high + 0.01


def test_another_machine_must_have_the_programs_widths() -> None:
    port = Port("y", "int8", (1,), 0)
    program = NpuProgram("p", narrow(4, 6), (multiply(2, 4, 1), isa.Halt()), b"", 4, (), (port,))
    timing.simulate(program, narrow(4, 8))
    for other, message in (
        (narrow(8, 6), "matrix.weight_bits is 8, its weights have 4 bits"),
        (narrow(4, 5), "matrix.activation_bits is 5, its activations have 6 bits"),
    ):
        with pytest.raises(ProgramError) as caught:
            timing.simulate(program, other)
        assert str(caught.value) == message


@pytest.mark.parametrize("name", ["edge-16x16", "u55-128-like"])
def test_narrow_operands_make_a_smaller_machine(name: str) -> None:
    sizes = [
        sum(p.value for p in energy.area(narrow(w, a, load(name)), TABLE).values()) for w, a in ((8, 8), (4, 8), (4, 4))
    ]
    assert sizes[0] > sizes[1] > sizes[2]
