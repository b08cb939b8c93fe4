"""Programs, their file and their text: round trips, damage, foreign machines, and deadlocks that say their cycle."""

import dataclasses
import hashlib
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from machines import EDGE, MICRO, edited, machines
from random_programs import programs, prologue

from qcompiler.sim import container, functional, isa, numerics, timing
from qcompiler.sim.assembler import assemble, disassemble
from qcompiler.sim.errors import ArtifactError, ProgramError
from qcompiler.sim.isa import Queue, Space
from qcompiler.sim.isa.base import mask
from qcompiler.sim.isa.post import encode_records
from qcompiler.sim.program import NpuProgram, Port
from qcompiler.sim.schedule import DeadlockError, issue_order

DENSE = """
.program "a dense layer: 'dense'"
.main_bytes 32
.input 'x' int8 (1, 16) address=0 scale=0.5 zero_point=3
.output 'y' int8 (1, 8) address=16 scale=0.25 zero_point=-5
.layer 0 'load' kind='Copy' macs=0
.layer 1 'dense 1' kind='Dense' macs=128
# weights, then one parameter record a column
copy unit=load source=main target=activation target_address=0 run_bytes=16 signal=0
copy unit=load source=constant target=weight target_address=0 run_bytes=128
copy unit=load source=constant source_address=128 target=parameter target_address=0 run_bytes=64 signal=1
.in 1
matmul address=0 row_pitch=16 pixel_pitch=16 in_h=1 in_w=1 out_h=1 out_w=1 run=16 zero=3 weight_address=0 \
weight_pitch=8 columns=8 accumulator_row=0 wait=0 signal=2
sync unit=matrix
requantize accumulator_row=0 out_h=1 out_w=1 width=8 out_address=64 out_row_pitch=8 out_pixel_pitch=8 params=0 \
out_zero=-5 wait=1,2 signal=3
copy unit=store source=activation source_address=64 target=main target_address=16 run_bytes=8 wait=3
halt
"""


def dense(text=DENSE, machine=EDGE):
    rng = np.random.default_rng(0)
    weight = rng.integers(-127, 128, (16, 8)).astype(np.int8)
    bias, scale = rng.integers(-999, 999, 8), np.full(8, 0.002, np.float32)
    constants = weight.tobytes() + encode_records(bias, scale, "exact_half_up")
    return assemble(text, machine, constants), weight, bias


def test_a_program_by_hand():
    program, weight, bias = dense(
        DENSE.replace("run_bytes=128", "run_bytes=128 signal=4").replace("wait=0", "wait=0,4")
    )
    x = np.random.default_rng(1).integers(-128, 128, (1, 16)).astype(np.int8)
    acc = (x.astype(np.int64) - 3) @ weight.astype(np.int64) + bias
    want = numerics.requantize(acc, np.full(8, 0.002, np.float32), -5)
    got = functional.execute(program, {"x": x})["y"]
    np.testing.assert_array_equal(got, want)
    assert (got.dtype, got.shape) == (np.int8, (1, 8))


def test_a_missing_token_shows_under_another_order():
    """Without waiting for the weights, the program works in program order and fails where the array runs ahead."""
    program, *_ = dense()
    x = np.zeros((1, 16), np.int8)
    functional.execute(program, {"x": x})
    with pytest.raises(ProgramError) as error:
        functional.execute(program, {"x": x}, prefer=(Queue.matrix,))
    assert str(error.value) == (
        "program \"a dense layer: 'dense'\", instruction 3 (matmul, layer 'dense 1'): "
        "matmul: reads byte 0 of the weight memory, which nothing wrote"
    )


def test_text_and_file_round_trip():
    program, *_ = dense()
    text = disassemble(program)
    again = assemble(text, EDGE, program.constants)
    assert disassemble(again) == text
    data = container.to_bytes(program)
    assert container.to_bytes(again) == data
    assert container.to_bytes(container.from_bytes(data)) == data


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_random_programs_round_trip(data):
    program = data.draw(programs(data.draw(machines())))
    content = container.to_bytes(program)
    read = container.from_bytes(content)
    assert (read.instructions, read.layer_of, read.machine) == (
        program.instructions, program.layer_of, program.machine,
    )  # fmt: skip
    assert container.to_bytes(assemble(disassemble(program), program.machine, program.constants)) == content


def test_every_flipped_byte_is_refused():
    data = container.to_bytes(dense()[0])
    for i in range(len(data)):
        damaged = bytearray(data)
        damaged[i] ^= 1 << i % 8
        with pytest.raises(ArtifactError):
            container.from_bytes(bytes(damaged))
    for length in range(0, len(data), 7):
        with pytest.raises(ArtifactError):
            container.from_bytes(data[:length])


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_an_edit_with_a_new_checksum_is_refused_or_runs_or_is_detected(data):
    """No crash and no hang, whatever byte of the content is changed."""
    content = bytearray(container.to_bytes(dense()[0])[:-32])
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        program = container.from_bytes(bytes(content) + hashlib.sha256(content).digest())
        inputs = {p.name: np.zeros(p.shape, p.dtype) for p in program.inputs}
        functional.execute(program, inputs)
        timing.simulate(program)
    except (ArtifactError, ProgramError):
        pass


def test_another_machine_is_refused(tmp_path):
    program, *_ = dense()
    path = tmp_path / "m.npu"
    container.save(program, path)
    assert container.load(path, EDGE).machine == EDGE
    with pytest.raises(ArtifactError) as error:
        container.load(path, MICRO)
    assert str(error.value) == (
        f"{path}: was compiled for machine 'edge-16x16' ({EDGE.hash[:12]}), not for 'micro-8x8' ({MICRO.hash[:12]}): "
        "compile the model again for this machine"
    )
    with pytest.raises(ArtifactError, match="cannot be read: No such file or directory"):
        container.load(tmp_path / "none.npu")


def with_header(program, change):
    """The file of a program whose JSON header was edited, under a valid checksum."""
    data = container.to_bytes(program)[:-32]
    magic, version, size, count, constants = container.PREFIX.unpack_from(data)
    header = json.loads(data[container.PREFIX.size : container.PREFIX.size + size])
    change(header)
    text = json.dumps(header).encode()
    body = data[container.PREFIX.size + size :]
    content = container.PREFIX.pack(magic, version, len(text), count, constants) + text + body
    return content + hashlib.sha256(content).digest()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h["machine"]["matrix"].update(rows=8), "its machine and the machine's hash disagree"),
        (lambda h: h["machine"]["matrix"].update(rows=-1), "its machine is not valid: Input should be greater than"),
        (lambda h: h.pop("layers"), "its header is malformed (KeyError: 'layers')"),
        (lambda h: h.update(main_bytes=2**40), "main and constant data take"),
        (lambda h: h["inputs"][0].update(address=-1), "are outside its 32"),
        (lambda h: h["inputs"][0].update(dtype="object"), "is no port; dtypes are int8, int32, int64"),
        (lambda h: h["inputs"][0].update(shape=[1e9]), "is not a int"),
        (lambda h: h["outputs"][0].update(name="x"), "are not distinct"),
        (lambda h: h["outputs"][0].update(scale=-1.0), "scale -1.0 is not positive"),
    ],
)
def test_edited_headers(change, message):
    with pytest.raises(ArtifactError) as error:
        container.from_bytes(with_header(dense()[0], change))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("halt", "", "program \"a dense layer: 'dense'\": its last instruction is not halt"),
        (".in 1", ".in 7", "program \"a dense layer: 'dense'\": a layer number is outside 0..1"),
        (".in 1", ".im 1", "line 12: unknown directive '.im'; did you mean '.in'?"),
        (".layer 1", ".layer 3", "line 7: layers are numbered from 0 on; the next one is 1"),
        ("(1, 16)", "(1, 'a'", "line 4: cannot be read: \".input 'x' int8 (1, 'a' address=0 scale=0.5 zero_point=3\""),
        (
            "wait=3", "wait=0",
            "program \"a dense layer: 'dense'\": token 0 has two waiting queues: instruction 3 (matmul, layer "
            "'dense 1') is of the matrix queue, instruction 6 (copy, layer 'dense 1') of the store queue",
        ),
        (
            "columns=8", "columns=99",
            "program \"a dense layer: 'dense'\", instruction 3 (matmul, layer 'dense 1'): matmul: columns=99 is not in "
            "1..16",
        ),
    ],
)  # fmt: skip
def test_mistakes_in_text(old, new, message):
    assert old in DENSE
    with pytest.raises(ProgramError) as error:
        dense(DENSE.replace(old, new, 1))
    assert str(error.value) == message


def test_inputs_that_do_not_fit():
    program, *_ = dense()
    with pytest.raises(ProgramError, match=r"input 'x' is missing; it reads 'x'$"):
        functional.execute(program, {})
    with pytest.raises(ProgramError, match=r"input 'x' is int8\(16,\); it should be int8\(1, 16\)$"):
        functional.execute(program, {"x": np.zeros(16, np.int8)})
    with pytest.raises(ProgramError, match=r"input 'x' is float32\(1, 16\); it should be int8\(1, 16\)$"):
        functional.execute(program, {"x": np.zeros((1, 16), np.float32)})


def test_an_output_that_nothing_writes():
    with pytest.raises(ProgramError, match="nothing wrote all of output 'y'"):
        short = DENSE.replace("run_bytes=8 wait", "run_bytes=7 wait")
        functional.execute(dense(short)[0], {"x": np.zeros((1, 16), np.int8)})


# ----------------------------------------------------------------------------------------- deadlock
def program_of(*body, machine=EDGE):
    output = Port("y", "int8", (512,), 1024)
    instructions = (*prologue(machine), *body, isa.Halt())
    return NpuProgram("p", machine, instructions, bytes(2048), 4096, (Port("x", "int8", (1024,), 0),), (output,))


def test_a_wait_that_nothing_signals():
    program = program_of(isa.Sync(unit=Queue.matrix, wait=mask(9)))
    for run in (functional.execute, lambda p, _: timing.simulate(p)):
        with pytest.raises(DeadlockError) as error:
            run(program, {"x": np.zeros(1024, np.int8)})
        assert str(error.value) == (
            "program 'p' deadlocks: instruction 7 (sync, layer 'program') waits for signal 1 of token 9, "
            "which is signalled 0 times"
        )


def test_two_queues_that_wait_for_each_other():
    program = program_of(
        isa.Sync(unit=Queue.matrix, wait=mask(9)),
        isa.Sync(unit=Queue.matrix, signal=mask(10)),
        isa.Sync(unit=Queue.vector, wait=mask(10), signal=mask(9)),
    )
    with pytest.raises(DeadlockError) as error:
        timing.simulate(program)
    assert str(error.value) == (
        "program 'p' deadlocks: instruction 7 (sync, layer 'program') waits for token 9 from instruction 9 (sync, "
        "layer 'program') waits for token 10 from instruction 8 (sync, layer 'program') is queued in the matrix queue "
        "behind instruction 7 (sync, layer 'program')"
    )


def test_a_backward_wait_is_legal_until_the_queue_is_full():
    body = (
        isa.Sync(unit=Queue.matrix, wait=mask(9)),
        *(isa.Sync(unit=Queue.matrix) for _ in range(4)),
        isa.Sync(unit=Queue.vector, signal=mask(9)),
    )
    order = list(issue_order(program_of(*body)))
    assert order.index(12) < order.index(7)
    assert timing.simulate(program_of(*body)).cycles > 0
    short = edited(EDGE, control__queue_entries=4)
    with pytest.raises(DeadlockError):
        timing.simulate(program_of(*body), short)
    with pytest.raises(DeadlockError) as error:
        timing.simulate(program_of(*body, machine=short))
    assert str(error.value) == (
        "program 'p' deadlocks: instruction 7 (sync, layer 'program') waits for token 9 from instruction 12 (sync, "
        "layer 'program') is not dispatched: the matrix queue is full behind instruction 7 (sync, layer 'program')"
    )


def test_space_numbers_are_stable():
    """They are part of the encoding."""
    assert [s.name for s in Space] == ["main", "constant", "activation", "weight", "parameter", "fill"]
    assert [q.name for q in Queue] == ["load", "fetch", "matrix", "vector", "store", "control"]


def test_programs_are_immutable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        dense()[0].name = "other"
