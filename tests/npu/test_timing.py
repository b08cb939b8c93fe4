"""The timing simulator: hand-counted cases, a cycle-stepped second model, published forms, and the laws."""

import dataclasses
import math
import time

import cycle_model
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from machines import EDGE, MICRO, edited, machines
from random_programs import programs

from qcompiler.sim import energy, functional, isa, timing
from qcompiler.sim.assembler import assemble
from qcompiler.sim.errors import ProgramError
from qcompiler.sim.hardware import ideal_memory
from qcompiler.sim.isa import COUNTERS, Queue, Space
from qcompiler.sim.isa.base import mask
from qcompiler.sim.program import NpuProgram, Port
from qcompiler.sim.schedule import DeadlockError, dependencies, issue_order

PORT = (Port("y", "int8", (1,), 0),)


def program_of(*body, machine=EDGE):
    return NpuProgram("p", machine, (*body, isa.Halt()), bytes(1 << 16), 1 << 16, (), PORT)


def matmul(pixels, depth, columns, **fields):
    defaults = {
        "address": 0, "row_pitch": depth * pixels, "pixel_pitch": depth, "in_h": 1, "in_w": pixels, "out_h": 1,
        "out_w": pixels, "run": depth, "weight_address": 0, "weight_pitch": columns, "columns": columns,
        "accumulator_row": 0,
    }  # fmt: skip
    return isa.MatrixMultiply(**(defaults | fields))


# -------------------------------------------------------------------------------------- hand-counted
def test_a_transfer_waits_for_the_memory_and_then_moves():
    """Dispatched in cycle 0, issued in 1, data from 1 + 80 on, 100 bytes in bursts of 32 at 16 bytes a cycle."""
    t = timing.simulate(program_of(isa.Copy(unit=0, source=0, target=2, target_address=0, run_bytes=100)))
    assert (t.issue[0], t.start[0], t.end[0], t.complete[0]) == (1, 81, 89, 89)
    assert t.units[Queue.load] == dict.fromkeys(timing.CAUSES, 0) | {"dispatch": 1, "latency": 80, "busy": 8}


def test_latency_of_the_next_transfer_hides_behind_the_data_of_this_one():
    copy = isa.Copy(unit=0, source=0, target=2, target_address=0, run_bytes=1600)
    t = timing.simulate(program_of(copy, copy, copy))
    assert t.start.tolist()[:3] == [81, 181, 281]
    alone = edited(EDGE, main_memory__outstanding_transfers=1)
    t = timing.simulate(program_of(copy, copy, copy, machine=alone))
    assert t.start.tolist()[:3] == [81, 81 + 100 + 80, 81 + 2 * 180]


def test_stores_complete_a_latency_later():
    store = isa.Copy(unit=Queue.store, source=Space.fill, target=0, target_address=0, run_bytes=64)
    t = timing.simulate(program_of(store, store))
    assert t.end.tolist()[:2] == [9, 17]
    assert t.complete.tolist()[:2] == [89, 97]


def test_weight_load_hides_behind_the_stream_and_the_drain_behind_the_next_instruction():
    """100 rows, 64 deep: four passes. The second instruction streams right behind the first."""
    first, second = matmul(100, 64, 16), matmul(100, 64, 16, accumulator_row=100)
    t = timing.simulate(program_of(first, second))
    assert t.start.tolist()[:2] == [1 + 16, 1 + 16 + 400]
    assert t.complete.tolist()[:2] == [417 + 30, 817 + 30]
    unit = t.units[Queue.matrix]
    assert (unit["busy"], unit["weight_load"], unit["drain"]) == (800, 16, 30)


def test_few_rows_wait_for_weights():
    """Ten rows against a 16-cycle load: passes start 16 cycles apart."""
    t = timing.simulate(program_of(matmul(10, 64, 16)))
    assert t.end[0] - t.start[0] == 3 * 16 + 10
    assert t.units[Queue.matrix]["weight_load"] == 16 + 3 * 6


def test_weights_from_the_activation_memory_share_its_port():
    t = timing.simulate(program_of(matmul(10, 64, 16), matmul(10, 64, 16, flags=4)))
    assert t.start.tolist()[:2] == [17, t.end[0]]
    assert t.end[1] - t.start[1] == 4 * (16 + 10)


@pytest.mark.parametrize(
    ("flags", "start", "duration"),
    [
        (0, 17, 4 * 20), (4, 1, 4 * (16 + 20)), (8, 1 + 16, 4 * 20), (12, 1, 4 * (16 + 20)),
        (2, 1, 2 * 64), (6, 1, 2 * 4 * 32), (10, 1, 2 * 64), (14, 1, 2 * 4 * 32),
    ],
)  # fmt: skip
def test_every_source_of_weights(flags, start, duration):
    """20 pixels, 64 deep: four chunks, two groups of pixels."""
    t = timing.simulate(program_of(matmul(20, 64, 16, flags=flags)))
    assert (t.start[0], t.end[0] - t.start[0]) == (start, duration)


def test_a_port_narrower_than_the_tile_takes_several_cycles_a_row():
    machine = edited(EDGE, matrix__rows=4, vector__lanes=4, activation_memory__bytes_per_cycle=4)
    assert matmul(100, 8, 16).timing(machine).lead == 4
    assert matmul(100, 8, 16, flags=4).timing(machine).occupy == 2 * (4 * 4 + 100)
    assert matmul(100, 8, 16, flags=12).timing(machine).occupy == 2 * (16 + 100)


def test_requantisation_overlaps_the_next_tile():
    """Two halves of the accumulators: the vector unit works on one while the array fills the other."""
    body = []
    for i in range(8):
        half = 512 * (i % 2)
        body.append(matmul(400, 64, 16, accumulator_row=half, wait=mask(1) if i > 1 else 0, signal=mask(0)))
        body.append(
            isa.Requantize(
                accumulator_row=half, out_h=20, out_w=20, width=16, out_address=0, out_row_pitch=320,
                out_pixel_pitch=16, params=0, out_zero=0, wait=mask(0), signal=mask(1) if i < 6 else 0,
            )
        )  # fmt: skip
    t = timing.simulate(program_of(*body))
    assert t.units[Queue.matrix]["busy"] == 8 * 1600
    assert t.cycles == 1 + 16 + 8 * 1600 + 30 + 400 + 8


@pytest.mark.parametrize(
    ("source_stride", "target_stride", "cycles"),
    [(1, 3, 4), (1, 1, 4), (3, 2, 7), (32, 1, 100), (1, 64, 100), (0, 1, 4), (1, 0, 100), (-1, 5, 4), (12, 1, 13)],
)
def test_single_bytes_move_together_unless_their_banks_conflict(source_stride, target_stride, cycles):
    """100 bytes over 32 banks, five times."""
    copy = isa.Copy(
        unit=0, source=2, target=2, source_address=10_000, target_address=50_000, run_bytes=1, n2=5, n3=100,
        source_stride2=1, source_stride3=source_stride, target_stride3=target_stride,
    )  # fmt: skip
    assert copy.timing(EDGE).occupy == 5 * cycles


def test_a_fence_waits_for_the_pipeline():
    pool = isa.Pool(
        address=0, row_pitch=64, pixel_pitch=8, in_h=8, in_w=8, out_h=2, out_w=5, width=8, out_address=0,
        out_row_pitch=64, out_pixel_pitch=8, params=0, out_zero=0,
    )  # fmt: skip
    t = timing.simulate(program_of(pool, pool, dataclasses.replace(pool, fence=True)))
    assert t.start.tolist()[:3] == [1, 11, 21 + 8]


def test_a_full_queue_stops_dispatch():
    syncs = [isa.Copy(unit=0, source=0, target=2, target_address=0, run_bytes=16)] * 5
    machine = edited(EDGE, control__queue_entries=2, main_memory__outstanding_transfers=1)
    t = timing.simulate(program_of(*syncs, isa.Sync(unit=Queue.vector), machine=machine))
    assert t.dispatch.tolist()[3:6] == [t.issue[1] + 1, t.issue[2] + 1, t.issue[2] + 2]
    assert t.units[Queue.vector]["dispatch"] == t.issue[5]


# ------------------------------------------------------------------------------------ published forms
@pytest.mark.parametrize("flags", [0, 2])
@pytest.mark.parametrize(("m", "k", "n"), [(100, 64, 48), (7, 16, 16), (33, 40, 20), (16, 128, 16), (64, 9, 5)])
def test_gemm_without_overlap_costs_the_published_form(m, k, n, flags):
    """SCALE-Sim's weight-stationary ceil(K/R)ceil(N/C)(2R+C+M-2) and output-stationary
    ceil(M/R)ceil(N/C)(2R+C+K-2), from the first issue to the last completion. The constant is zero: only the
    dispatch cycle lies outside. K is rounded up to R in the output-stationary form."""
    machine = ideal_memory(edited(EDGE, matrix__weight_buffers=1))
    r, c = machine.matrix.rows, machine.matrix.columns
    tiles = [min(c, n - start) for start in range(0, n, c)]
    body = [matmul(m, k, columns, flags=flags, fence=True) for columns in tiles]
    t = timing.simulate(program_of(*body, machine=machine))
    if flags:
        form = math.ceil(m / r) * len(tiles) * (2 * r + c + math.ceil(k / r) * r - 2)
    else:
        form = math.ceil(k / r) * len(tiles) * (2 * r + c + m - 2)
    assert t.complete[len(tiles) - 1] - t.issue[0] == form


# --------------------------------------------------------------------------------------- second model
@settings(max_examples=100, deadline=None)
@given(st.data())
def test_equal_to_the_cycle_stepped_model(data):
    machine = data.draw(machines())
    program = data.draw(programs(machine, forward=data.draw(st.booleans())))
    cycles, complete = cycle_model.run(program, limit=60_000)
    try:
        t = timing.simulate(program)
    except DeadlockError:
        assert cycles == -1
        return
    assert t.complete.tolist() == complete
    assert t.cycles == cycles


# ----------------------------------------------------------------------------------------------- laws
@settings(max_examples=80, deadline=None)
@given(st.data())
def test_every_cycle_has_exactly_one_cause(data):
    t = timing.simulate(data.draw(programs(data.draw(machines()))))
    for causes in t.units.values():
        assert causes.keys() == timing.CAUSES.keys()
        assert min(causes.values()) >= 0
        assert sum(causes.values()) == t.cycles
    assert (t.dispatch <= t.issue).all()
    assert (t.issue <= t.start).all()
    assert (t.start <= t.end).all()
    assert (t.end <= t.complete).all()
    assert sum(t.layer_cycles()) == t.cycles
    assert sum(sum(layer.values()) for layer in timing.critical_path(t)) == t.cycles


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_a_faster_memory_never_makes_a_fixed_program_slower(data):
    machine = data.draw(machines())
    program = data.draw(programs(machine))
    change = {}
    for memory in ("main_memory", "constant_memory"):
        old = getattr(machine, memory)
        if old is None:
            continue
        change[f"{memory}__read_bytes_per_cycle"] = old.read_bytes_per_cycle * data.draw(st.sampled_from([1, 2, 3]))
        change[f"{memory}__write_bytes_per_cycle"] = old.write_bytes_per_cycle * data.draw(st.sampled_from([1, 2, 3]))
        change[f"{memory}__latency_cycles"] = data.draw(st.integers(0, old.latency_cycles))
        change[f"{memory}__outstanding_transfers"] = old.outstanding_transfers + data.draw(st.integers(0, 2))
    change["control__queue_entries"] = machine.control.queue_entries + data.draw(st.integers(0, 3))
    faster = edited(machine, **change)
    base, better = timing.simulate(program), timing.simulate(program, faster)
    assert (better.complete <= base.complete).all()
    ideal = timing.simulate(program, ideal_memory(faster))
    assert ideal.cycles <= better.cycles <= base.cycles


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_traffic_does_not_depend_on_bandwidth_and_covers_the_bytes_touched(data):
    machine = data.draw(machines())
    program = data.draw(programs(machine))
    changed = edited(machine, main_memory__read_bytes_per_cycle=0.25, main_memory__latency_cycles=77)
    counts = energy.count(program)
    np.testing.assert_array_equal(counts, energy.count(program, changed))
    touched = {Space.main: set(), Space.constant: set(), "written": set()}
    for ins in program.instructions:
        if not isinstance(ins, isa.Copy):
            continue
        steps = [
            (i * ins.source_stride1 + j * ins.source_stride2, i * ins.target_stride1 + j * ins.target_stride2)
            for i in range(ins.n1)
            for j in range(ins.n2)
        ]
        for source, target in steps:
            if ins.source in touched:
                touched[ins.source].update(
                    range(ins.source_address + source, ins.source_address + source + ins.run_bytes)
                )
            if ins.target == Space.main:
                touched["written"].update(
                    range(ins.target_address + target, ins.target_address + target + ins.run_bytes)
                )
    total = dict(zip(COUNTERS, counts.sum(axis=0).tolist(), strict=True))
    if machine.constant_memory is None:
        assert total["main_read_bytes"] >= len(touched[Space.main]) + len(touched[Space.constant])
    else:
        assert total["main_read_bytes"] >= len(touched[Space.main])
        assert total["constant_read_bytes"] >= len(touched[Space.constant])
    assert total["main_write_bytes"] >= len(touched["written"])


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_every_wait_ends_or_a_deadlock_names_a_cycle(data):
    program = data.draw(programs(data.draw(machines()), forward=False))
    try:
        order = list(issue_order(program))
    except DeadlockError as error:
        text = str(error)
        assert "deadlocks: instruction " in text
        named = text.split("deadlocks: ")[1]
        # A cycle ends where it began.
        assert named.rsplit("instruction ", 1)[1].split(" ")[0] == named.split(" ")[1]
        with pytest.raises(DeadlockError):
            functional.execute(program, {"x": np.zeros(1024, np.int8)})
        return
    position = {i: n for n, i in enumerate(order)}
    assert sorted(order) == list(range(len(program.instructions)))
    for i, pairs in enumerate(dependencies(program).waits):
        assert all(position[source] < position[i] for _, source in pairs)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_order_that_obeys_the_queues_is_legal(data):
    program = data.draw(programs(data.draw(machines())))
    prefer = data.draw(st.permutations([Queue.load, Queue.fetch, Queue.matrix, Queue.vector, Queue.store]))
    order = list(issue_order(program, prefer))
    assert sorted(order) == list(range(len(program.instructions)))
    for q in Queue:
        mine = [i for i in order if program.instructions[i].queue == q]
        assert mine == sorted(mine)


def test_another_array_cannot_run_the_program():
    program = program_of(matmul(10, 64, 16))
    with pytest.raises(ProgramError, match=r"columns=16 is not in 1\.\.8"):
        timing.simulate(program, MICRO)


def test_critical_path_of_a_chain_names_every_stage():
    text = """
.main_bytes 4096
.output 'y' int8 (1,) address=0
.layer 0 'in'
.layer 1 'work'
.in 0
copy unit=load source=main target=activation target_address=0 run_bytes=1600 signal=0
.in 1
matmul address=0 row_pitch=1600 pixel_pitch=16 in_h=1 in_w=100 out_h=1 out_w=100 run=16 weight_address=0 \
weight_pitch=16 columns=16 accumulator_row=0 wait=0 signal=1
requantize accumulator_row=0 out_h=10 out_w=10 width=16 out_address=0 out_row_pitch=160 out_pixel_pitch=16 params=0 \
out_zero=0 wait=1 signal=2
copy unit=store source=activation target=main target_address=0 run_bytes=1600 wait=2
halt
"""
    t = timing.simulate(assemble(text, EDGE))
    assert timing.critical_path(t) == [
        {"load_busy": 100, "load_latency": 80, "dispatch": 1},
        {
            "store_latency": 80, "store_busy": 200, "vector_drain": 8, "vector_busy": 100,
            "matrix_drain": 30, "matrix_busy": 100, "matrix_weight_load": 16,
        },
    ]  # fmt: skip
    assert t.layer_cycles() == [181, 534]
    assert t.seconds == pytest.approx(715 / 500e6)


@pytest.mark.slow
def test_speed():
    """100,000 instructions within the 5 s that the largest network may take."""
    body = []
    for i in range(25_000):
        body += [
            isa.Copy(
                unit=0, source=0, target=3, target_address=0, run_bytes=1024, wait=mask(4) if i > 1 else 0, signal=1
            ),
            matmul(64, 64, 16, wait=mask(0), signal=mask(1, 4) if i < 24_998 else mask(1)),
            isa.Requantize(
                accumulator_row=0, out_h=8, out_w=8, width=16, out_address=0, out_row_pitch=128, out_pixel_pitch=16,
                params=0, out_zero=0, wait=mask(1), signal=mask(2),
            ),
            isa.Copy(unit=4, source=2, target=0, target_address=0, run_bytes=512, wait=mask(2)),
        ]  # fmt: skip
    program = program_of(*body)
    begin = time.process_time()
    timing.simulate(program)
    assert time.process_time() - begin < 5
