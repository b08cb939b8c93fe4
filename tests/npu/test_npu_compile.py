"""The accelerator's compiler against the reference, bit for bit: networks on every preset, random programs anywhere."""

from __future__ import annotations

import numpy as np
import pytest
from layer_builder import Builder
from machines import EDGE, MICRO, edited
from networks import network
from random_graphs import random_machine, random_program

from qcompiler.codegen.npu.lower import compile_npu
from qcompiler.codegen.npu.partition import partition
from qcompiler.sim import functional, hardware, isa, reference
from qcompiler.sim.errors import TargetError
from qcompiler.sim.integer_program import Embedding, FloatOp, IntegerProgram, Tensor, check
from qcompiler.sim.isa import Queue
from qcompiler.sim.program import NpuProgram

# Orders in which a queue runs as far ahead as its tokens let it: a missing token would show as a wrong result.
EAGER = ((), (Queue.load, Queue.fetch, Queue.matrix), (Queue.store, Queue.vector), (Queue.matrix, Queue.load))


def run(program: IntegerProgram, compiled: NpuProgram, feed: dict, prefer: tuple = ()) -> dict:
    """All outputs of the program: host, accelerator, host."""
    parts = partition(program, host_fallback=True)
    values = dict(feed)
    values |= reference.execute(parts.before, {n: values[n] for n in parts.before.inputs})
    values |= functional.execute(compiled, {p.name: values[p.name] for p in compiled.inputs}, prefer)
    values |= reference.execute(parts.after, {n: values[n] for n in parts.after.inputs})
    return {n: values[n] for n in program.outputs}


def assert_equal(program: IntegerProgram, feed: dict, machine: hardware.Machine) -> NpuProgram:
    compiled = compile_npu(program, machine)
    wanted = reference.execute(program, feed)
    for prefer in EAGER:
        got = run(program, compiled, feed, prefer)
        for name in program.outputs:
            np.testing.assert_array_equal(got[name], wanted[name], err_msg=f"{name}, {prefer}")
    return compiled


@pytest.mark.parametrize("machine", hardware.preset_names())
@pytest.mark.parametrize("name", ["digits", "kws", "resnet8"])
def test_networks_on_every_preset(name: str, machine: str) -> None:
    program, feed = network(name)
    assert_equal(program, feed, hardware.load(machine))


@pytest.mark.parametrize("start", range(0, 90, 15))
def test_random_programs_on_random_machines(start: int) -> None:
    for seed in range(start, start + 15):
        program, feed = random_program(seed)
        machine = random_machine(seed)
        try:
            assert_equal(program, feed, machine)
        except TargetError as error:  # the only excuse of a machine this small
            assert "does not fit machine" in str(error), seed


@pytest.mark.slow
@pytest.mark.parametrize("start", range(1000, 2000, 100))
def test_many_random_programs_on_random_machines(start: int) -> None:
    refused = 0
    for seed in range(start, start + 100):
        program, feed = random_program(seed)
        try:
            assert_equal(program, feed, random_machine(seed))
        except TargetError as error:
            assert "does not fit machine" in str(error), seed
            refused += 1
    assert refused < 20


def test_both_dataflows_and_one_weight_buffer() -> None:
    program, feed = network("digits")
    for flows in (["weight_stationary"], ["output_stationary"]):
        for buffers in (1, 2):
            machine = edited(EDGE, matrix__dataflows=flows, matrix__weight_buffers=buffers)
            compiled = assert_equal(program, feed, machine)
            multiplies = [i for i in compiled.instructions if isinstance(i, isa.MatrixMultiply)]
            assert {i.output_stationary for i in multiplies} == {flows == ["output_stationary"]}


def test_a_reduction_larger_than_the_weight_memory_comes_in_parts() -> None:
    b = Builder(3)
    x = b.input((1, 6, 5, 96))
    program = b.build(b.dense(b.conv(x, 40), 700), b.dense(b.reshape(x, (1, 2880)), 9))
    machine = edited(MICRO, weight_memory__size_bytes=4096)
    compiled = assert_equal(program, b.feed(), machine)
    assert any(i.accumulate for i in compiled.instructions if isinstance(i, isa.MatrixMultiply))


def test_weight_loads_run_ahead_of_the_layer_before() -> None:
    """Double buffering across layers: the second layer's weights do not wait for the first layer's results."""
    from qcompiler.sim.timing import simulate

    b = Builder(5)
    y = b.conv(b.input((1, 16, 16, 16)), 16)
    compiled = compile_npu(b.build(b.conv(y, 16)), EDGE)
    t = simulate(compiled)
    layer = np.array(compiled.layer_of)
    second_weights = min(t.end[i] for i in np.flatnonzero(layer == 1) if t.queue[i] == Queue.load)
    assert second_weights < max(t.end[i] for i in np.flatnonzero(layer == 0) if t.queue[i] == Queue.matrix)


def test_tensors_stay_on_chip_between_layers() -> None:
    program, _ = network("kws")
    compiled = compile_npu(program, EDGE)
    outside = [i for i in compiled.instructions if isinstance(i, isa.Copy) and isa.Space.main in (i.source, i.target)]
    assert len([i for i in outside if i.unit == Queue.store]) == 1  # the result, nothing else
    assert {compiled.layer_of[compiled.instructions.index(i)] for i in outside} == {0, len(compiled.layers) - 1}


def test_embedding_and_views_as_outputs() -> None:
    b = Builder(7)
    table = b.constant((11, 6))
    b.tensors["index"] = Tensor("index", (2, 5), "int64")
    b.inputs.append("index")
    y = b.add_op(Embedding, [table, "index"], like=table)
    program = b.build(b.dense(y, 4), b.reshape(y, (10, 6)), y)
    feed = {"index": b.rng.integers(-14, 14, (2, 5))}
    for machine in (EDGE, MICRO):
        assert_equal(program, feed, machine)


def test_an_output_that_shows_an_input_and_is_read_on() -> None:
    """Transposes of axes of length one move no byte: such outputs are copies, made before who reads them."""
    b = Builder(8)
    first = b.transpose(b.input((1, 1, 2, 8)), (0, 2, 1, 3))
    second = b.reshape(first, (16,))
    read = b.transpose(first, (3, 0, 1, 2))
    for outputs in ((first, read), (read, first), (second, first, read), (first, second)):
        program = b.build(*outputs)
        assert_equal(program, b.feed(), EDGE)


def test_the_same_program_gives_the_same_instructions() -> None:
    program, _ = network("resnet8")
    first, second = compile_npu(program, EDGE), compile_npu(program, EDGE)
    assert first.instructions == second.instructions
    assert first.constants == second.constants


# ------------------------------------------------------------------------------------------ refusals
def _float_sandwich() -> IntegerProgram:
    tensors = {
        n: Tensor(n, (1, 4), d, *((0.5, 0) if d == "int8" else (None, None)))
        for n, d in (("x", "int8"), ("f", "float32"), ("g", "float32"), ("y", "float32"))
    }  # fmt: skip
    operations = (
        FloatOp("first", ("f",), "g", kind="sqrt", shape=(1, 4), reason="no calibration range"),
        FloatOp("second", ("g",), "y", kind="exp", shape=(1, 4)),
    )
    return check(IntegerProgram("net", ("f",), ("y",), {n: tensors[n] for n in "fgy"}, operations))


def test_float_operations_are_all_named() -> None:
    with pytest.raises(TargetError) as caught:
        compile_npu(_float_sandwich(), EDGE)
    assert str(caught.value) == (
        "the accelerator cannot run 2 operations of 'net':\n"
        "  float sqrt 'first': no calibration range\n"
        "  float exp 'second'\n"
        "float operations before or behind all integer work can run on the host (--host-fallback); others need "
        "quantisation"
    )
    with pytest.raises(TargetError, match="no integer operation that an accelerator could run"):
        compile_npu(_float_sandwich(), EDGE, host_fallback=True)


def test_a_rounding_that_the_machine_lacks() -> None:
    b = Builder(1, "q31_double")
    program = b.build(b.dense(b.input((1, 8)), 4))
    machine = edited(EDGE, name="plain", vector__roundings=["exact_half_up"])
    with pytest.raises(TargetError) as caught:
        compile_npu(program, machine)
    assert str(caught.value) == (
        "machine 'plain' cannot run these operations of 'random':\n"
        "  'op0': rounding q31_double (vector.roundings has exact_half_up)"
    )


def test_a_layer_that_cannot_fit_says_which_memory_and_by_how_much() -> None:
    b = Builder(1)
    program = b.build(b.depthwise(b.input((1, 9, 9, 64)), 9))
    machine = edited(MICRO, name="tiny", activation_memory__size_bytes=8192)
    with pytest.raises(TargetError) as caught:
        compile_npu(program, machine)
    # One output pixel reads 9 x 9 x 64 bytes; with the 64 that it makes, two of each.
    need = 2 * (9 * 9 * 64 + 8)
    assert str(caught.value) == (
        f"layer 'op0' does not fit machine 'tiny': the smallest double-buffered tile needs {need} bytes of activation "
        f"memory, {need - 8192} more than the 8192 that are free"
    )


def test_a_mean_that_no_window_can_do() -> None:
    b = Builder(1)
    program = b.build(b.mean(b.input((1, 3, 4, 8)), (1, 3)))
    with pytest.raises(TargetError, match=r"'op0': the mean's axes \(1, 3\) of \(1, 3, 4, 8\) are not adjacent"):
        compile_npu(program, EDGE)
