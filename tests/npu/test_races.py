"""The race detector: what it reports by hand, and that its silence means one result under every order."""

import dataclasses
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from machines import EDGE, MICRO, machines
from networks import network
from random_graphs import random_machine, random_program
from random_programs import programs

from qcompiler.codegen.npu.lower import compile_npu
from qcompiler.sim import functional, isa
from qcompiler.sim.errors import ProgramError
from qcompiler.sim.hardware import load
from qcompiler.sim.isa import Queue, Space
from qcompiler.sim.isa.base import mask
from qcompiler.sim.isa.post import encode_records
from qcompiler.sim.program import NpuProgram, Port
from qcompiler.sim.races import describe, find_races

CONSTANTS = bytes(64) + encode_records(np.zeros(4), np.ones(4, np.float32), "exact_half_up")
LOAD = {"unit": Queue.load, "source": Space.constant}


def pipeline(**changes):
    """Load, matmul, requantise, pool in place, store: two tiles through the same memory. changes: edits by name."""
    tile = {
        "weights": isa.Copy(**LOAD, target=Space.weight, target_address=0, run_bytes=16, wait=mask(5), signal=mask(0)),
        "x": isa.Copy(
            unit=0, source=Space.main, target=Space.activation, target_address=0, run_bytes=16, signal=mask(1)
        ),
        "matmul": isa.MatrixMultiply(
            address=0, row_pitch=16, pixel_pitch=4, in_h=1, in_w=4, out_h=1, out_w=4, run=4, weight_address=0,
            weight_pitch=4, columns=4, accumulator_row=0, wait=mask(0, 1, 6), signal=mask(2, 5),
        ),
        "requantize": isa.Requantize(
            accumulator_row=0, out_h=1, out_w=4, width=4, out_address=64, out_row_pitch=16, out_pixel_pitch=4,
            params=0, out_zero=0, wait=mask(2, 7), signal=mask(6),
        ),
        "pool": isa.Pool(
            address=64, row_pitch=16, pixel_pitch=4, in_h=1, in_w=4, kernel_w=2, out_h=1, out_w=3, width=4,
            out_address=80, out_row_pitch=16, out_pixel_pitch=4, params=0, out_zero=0, fence=True, signal=mask(3),
        ),
        "store": isa.Copy(
            unit=Queue.store, source=Space.activation, source_address=80, target=Space.main, target_address=16,
            run_bytes=12, wait=mask(3), signal=mask(7),
        ),
    }  # fmt: skip
    first = {n: dataclasses.replace(i, wait=i.wait & ~mask(5, 6, 7)) for n, i in tile.items()}
    body = [*first.values(), *(dataclasses.replace(i, **changes.get(n, {})) for n, i in tile.items())]
    setup = isa.Copy(**LOAD, source_address=64, target=Space.parameter, target_address=0, run_bytes=32)
    ports = (Port("x", "int8", (16,), 0),), (Port("y", "int8", (12,), 16),)
    return NpuProgram("p", EDGE, (setup, *body, isa.Halt()), CONSTANTS, 28, *ports)


def test_a_correct_program_has_none():
    assert find_races(pipeline()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"weights": {"wait": 0}},
            "instruction 7 (copy, layer 'program') overwrites what instruction 3 (matmul, layer 'program') reads in "
            "the weight memory, and no token orders them",
        ),
        (
            {"matmul": {"wait": mask(0, 6)}},
            "instruction 9 (matmul, layer 'program') reads what instruction 8 (copy, layer 'program') writes in the "
            "activation memory, and no token orders them",
        ),
        (
            {"matmul": {"wait": mask(0, 1)}},
            "instruction 9 (matmul, layer 'program') overwrites what instruction 4 (requantize, layer 'program') reads "
            "in the accumulator memory, and no token orders them",
        ),
        (
            {"pool": {"fence": False}},
            "instruction 11 (pool, layer 'program') reads what instruction 10 (requantize, layer 'program') writes in "
            "the activation memory, and no token orders them",
        ),
        (
            {"requantize": {"wait": mask(2)}},
            "instruction 11 (pool, layer 'program') overwrites what instruction 6 (copy, layer 'program') reads in the "
            "activation memory, and no token orders them",
        ),
    ],
)
def test_each_missing_order_is_named(change, message):
    program = pipeline(**change)
    assert message in [describe(program, race) for race in find_races(program)]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_without_races_every_order_gives_the_same(data):
    program = data.draw(programs(data.draw(machines()), most=10))
    x = {"x": np.random.default_rng(0).integers(-128, 128, 1024).astype(np.int8)}
    if find_races(program, x):
        return
    want = functional.execute(program, x)
    for prefer in data.draw(st.lists(st.permutations(list(Queue)[:5]), min_size=3, max_size=3)):
        got = functional.execute(program, x, prefer)
        np.testing.assert_array_equal(got["y"], want["y"])


def test_random_programs_do_race():
    """Otherwise the test above would say nothing: both outcomes occur, and racing programs differ under some order."""
    seen: Counter[str] = Counter()

    @settings(max_examples=150, deadline=None, database=None, derandomize=True)
    @given(st.data())
    def sample(data):
        program = data.draw(programs(MICRO, most=10))
        x = {"x": np.random.default_rng(0).integers(-128, 128, 1024).astype(np.int8)}
        races = find_races(program, x)
        seen["race" if races else "none"] += 1
        want = functional.execute(program, x)["y"]
        for queue in list(Queue)[:5]:
            try:
                seen["differs"] += bool((functional.execute(program, x, (queue,))["y"] != want).any())
            except ProgramError:
                seen["differs"] += 1
                assert races

    sample()
    assert min(seen["race"], seen["none"], seen["differs"]) > 5, seen


def test_compiled_programs_have_none():
    """The compiler derives its tokens from declared regions; the detector looks at every byte."""
    for seed in range(80):
        program, _ = random_program(seed)
        compiled = compile_npu(program, random_machine(seed))
        assert [describe(compiled, race) for race in find_races(compiled)] == [], seed


NETWORKS = [(n, m) for n in ("kws", "resnet8", "vww", "ad") for m in ("edge-16x16", "u55-128-like")]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "machine"), [*NETWORKS, ("mobilenet_v2", "edge-16x16")])
def test_compiled_networks_have_none(name, machine):
    compiled = compile_npu(network(name)[0], load(machine))
    assert [describe(compiled, race) for race in find_races(compiled)] == []
