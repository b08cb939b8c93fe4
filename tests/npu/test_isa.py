"""Encoding, text and documentation of the instruction set."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from machines import EDGE

from qcompiler.sim.assembler import parse_instruction
from qcompiler.sim.container import decode
from qcompiler.sim.errors import ProgramError
from qcompiler.sim.isa import COUNTERS, INSTRUCTIONS, MNEMONICS, Copy, Instruction, MatrixMultiply, Sync
from qcompiler.sim.isa.base import INSTRUCTION_BYTES, limits, mask, tokens_of
from qcompiler.sim.isa.reference import markdown


@st.composite
def instructions(draw: st.DrawFn) -> Instruction:
    kind = draw(st.sampled_from(INSTRUCTIONS))
    values = {}
    for f in kind.operands():
        enum = f.metadata["enum"]
        values[f.name] = draw(
            st.sampled_from(list(map(int, enum))) if enum else st.integers(*limits(f.metadata["kind"]))
        )
    masks = st.integers(0, 2**32 - 1)
    return kind(wait=draw(masks), signal=draw(masks), fence=draw(st.booleans()), **values)


@given(instructions())
def test_encoding_and_text_round_trip(ins):
    data = ins.encode()
    assert len(data) == INSTRUCTION_BYTES
    assert decode(data) == ins
    assert parse_instruction(ins.text().split()) == ins


@given(st.binary(min_size=64, max_size=64))
def test_decoding_noise_gives_an_instruction_or_an_error(data):
    try:
        ins = decode(data)
    except ProgramError:
        return
    assert ins.encode() == data


@given(instructions())
def test_any_operands_are_checked_without_a_crash(ins):
    try:
        ins.check(EDGE)
    except ProgramError:
        return
    timing = ins.timing(EDGE)
    assert 0 <= timing.active <= timing.occupy
    assert min(timing.lead, timing.tail) >= 0
    assert all(v >= 0 for v in ins.counts(EDGE).values())
    assert ins.counts(EDGE).keys() <= COUNTERS.keys()


def test_masks():
    assert tokens_of(mask(0, 5, 31)) == (0, 5, 31)
    with pytest.raises(ProgramError, match=r"token 32 does not exist; tokens are 0\.\.31"):
        mask(32)


def test_operand_out_of_range_is_named():
    with pytest.raises(ProgramError) as error:
        Copy(unit=0, source=0, target=2, target_address=-1, run_bytes=4).encode()
    assert str(error.value) == "copy: target_address=-1 is outside 0..4294967295"
    with pytest.raises(ProgramError, match="is no mask"):
        Sync(unit=0, wait=1 << 32).encode()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("matmull run=3", "unknown instruction 'matmull'; did you mean 'matmul' or 'multiply'?"),
        ("sync unit=lod", "sync: unit=lod is not one of load, fetch, matrix, vector, store, control"
         "; did you mean 'load'?"),
        ("sync unit=9", "sync: unit=9 is not one of load, fetch, matrix, vector, store, control"),
        ("copy unit=0 run_bytes=-1", "copy: run_bytes=-1 is outside 0..4294967295"),
        ("sync unt=0", "unknown operand 'unt'; did you mean 'unit'?"),
        ("sync unit=0 unit=1", "operand 'unit' is given twice"),
        ("sync", "sync: unit missing"),
        ("sync unit=0 wait=40", "token 40 does not exist; tokens are 0..31"),
        ("sync unit=0 wait=a", "'a' is not a list of tokens 0..31"),
    ],
)  # fmt: skip
def test_assembler_mistakes(line, message):
    with pytest.raises(ProgramError) as error:
        parse_instruction(line.split())
    assert str(error.value) == message


@pytest.mark.parametrize("kind", INSTRUCTIONS, ids=lambda k: k.mnemonic)
def test_every_instruction_documents_meaning_timing_and_counts(kind):
    assert all(f"    {section}" in kind.__doc__ for section in ("Semantics:", "Timing", "Counts:"))


def test_reference_is_up_to_date(golden):
    golden(Path(__file__).parents[2] / "docs" / "npu-isa.md", markdown())
    assert all(f"### `{name}`" in markdown() for name in MNEMONICS)


def matmul(**fields):
    defaults = {
        "address": 0, "row_pitch": 64, "pixel_pitch": 16, "in_h": 4, "in_w": 4, "out_h": 4, "out_w": 4, "run": 16,
        "weight_address": 0, "weight_pitch": 16, "columns": 16, "accumulator_row": 0,
    }  # fmt: skip
    return MatrixMultiply(**(defaults | fields))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"columns": 17}, "matmul: columns=17 is not in 1..16"),
        ({"accumulator_row": 1020}, "matmul: 16 pixels from accumulator row 1020 exceed the 1024 rows"),
        ({"flags": 32}, "matmul: flags=32 has unknown bits"),
        ({"out_h": 0}, "matmul: out_h must be at least 1"),
        ({"run": 0}, "matmul: nothing to read"),
    ],
)
def test_matmul_refuses_what_the_machine_cannot_do(fields, message):
    with pytest.raises(ProgramError) as error:
        matmul(**fields).check(EDGE)
    assert str(error.value) == message
