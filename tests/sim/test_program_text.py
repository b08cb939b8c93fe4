"""The program's text: printed, parsed back, hashed, saved; and what is said when it is damaged."""

from __future__ import annotations

import numpy as np
import pytest

from qcompiler.sim import program_text
from qcompiler.sim.errors import ProgramError
from qcompiler.sim.integer_program import (
    Conv2d,
    Dequantize,
    FloatOp,
    Gather,
    IntegerProgram,
    Quantize,
    Requantize,
    Tensor,
    check,
)  # fmt: skip


def sample() -> IntegerProgram:
    rng = np.random.default_rng(0)
    tensors = [
        Tensor("in put: 'odd' \\ name", (1, 4, 4, 3), "float32"), Tensor("q", (1, 4, 4, 3), "int8", 0.0625, 3),
        Tensor("c", (1, 2, 2, 16), "int8", 0.125, -5), Tensor("g", (1, 2, 3, 16), "int8", 0.125, -5),
        Tensor("d", (1, 2, 3, 16), "float32"), Tensor("k", (16,), "float32"), Tensor("y", (1, 2, 3, 16), "float32"),
    ]  # fmt: skip
    conv = Conv2d(
        "conv = (1)", ("q",), "c", rng.integers(-127, 128, (16, 3, 3, 3)).astype(np.int8),
        np.arange(16, dtype=np.int32),
        Requantize(np.full(16, 0.003, np.float32), -5, minimum=-5), (2, 2), padding=(1, 1, 1, 1),
    )  # fmt: skip
    ops = (
        Quantize("quantise", (tensors[0].name,), "q"), conv,
        Gather("pad", ("c",), "g", (None, None, np.array([-1, 0, 1]), None), fill=-5, function="pad"),
        Dequantize("dequantise", ("g",), "d"),
        FloatOp("f <- :", ("d", "k"), "y", kind="add", shape=(1, 2, 3, 16),
                attributes={"axes": (1, 2), "mode": "x"}, reason="test"),
    )  # fmt: skip
    constants = {"k": rng.normal(size=16).astype(np.float32)}
    return check(IntegerProgram("net", (tensors[0].name,), ("y",), {t.name: t for t in tensors}, ops, constants))


def test_the_text_is_readable() -> None:
    text = program_text.print_program(sample())
    assert "tensor 'q' int8 (1, 4, 4, 3) scale=0.0625 zero_point=3" in text.splitlines()
    assert (
        "op 'pad': 'g' = Gather(indices=(None, None, array('int64', (3,), [-1, 0, 1]), None), fill=-5, "
        "function='pad') <- ('c',)"
    ) in text.splitlines()


def test_parsing_the_text_gives_the_same_program() -> None:
    program = sample()
    again = program_text.parse(program_text.print_program(program), program_text.constants(program))
    assert program_text.print_program(again) == program_text.print_program(program)
    assert program_text.digest(again) == program_text.digest(program)


def test_saving_is_deterministic_and_loads_back() -> None:
    data = program_text.save(sample())
    assert data == program_text.save(sample())
    assert program_text.digest(program_text.load(data)) == program_text.digest(sample())


def test_the_digest_sees_one_changed_weight() -> None:
    program = sample()
    conv = program.operations[1]
    assert isinstance(conv, Conv2d)
    before = program_text.digest(program)
    conv.weight[0, 0, 0, 0] ^= 1
    assert program_text.digest(program) != before


@pytest.mark.parametrize("edit,message", [
    (lambda t: "nonsense", "line 1: this is not an integer program (it should begin with 'integer_program 1')"),
    (lambda t: t.replace("Quantize()", "Quantise()"), "line 13: not an operation: 'Quantise()'"),
    (lambda t: t.replace("'pad': 'g'", "'pad' 'g'"), "line 15: no ':' after a literal in"),
    (lambda t: t + "surprise 1\n",
     "line 18: a line begins with name, inputs, outputs, tensor, constant or op, not 'surprise'"),
    (lambda t: t.replace("stride=(2, 2)", "stride=__import__('os')"), "line 14: unknown value '__import__'"),
])  # fmt: skip
def test_damage_is_refused_by_line(edit, message: str) -> None:
    program = sample()
    text = edit(program_text.print_program(program))
    with pytest.raises(ProgramError) as error:
        program_text.parse(text, program_text.constants(program))
    assert str(error.value).startswith(message)


def test_every_truncation_of_a_file_is_refused() -> None:
    data = program_text.save(sample())
    for length in range(0, len(data), 37):
        with pytest.raises(ProgramError, match="not a saved integer program"):
            program_text.load(data[:length])


def test_every_flipped_byte_is_refused_or_harmless() -> None:
    program = sample()
    data, want = program_text.save(program), program_text.digest(program)
    rng = np.random.default_rng(1)
    for at in rng.choice(len(data), 200, replace=False):
        broken = bytearray(data)
        broken[at] ^= 1 << int(rng.integers(8))
        try:
            assert program_text.digest(program_text.load(bytes(broken))) == want
        except ProgramError:
            pass


def test_infinite_and_missing_numbers_are_parsed_back() -> None:
    """A clip that is open on one side, a mask of minus infinity."""
    tensors = {n: Tensor(n, (3,), "float32") for n in ("x", "mask", "masked", "y")}
    mask = np.array([0.0, -np.inf, np.nan], np.float32)
    operations = (
        FloatOp("masked", ("x", "mask"), "masked", kind="add", shape=(3,)),
        FloatOp("y", ("masked",), "y", kind="clip", shape=(3,), attributes={"min": -float("inf"), "max": float("inf")}),
    )
    program = check(IntegerProgram("open", ("x",), ("y",), tensors, operations, {"mask": mask}))
    again = program_text.load(program_text.save(program))
    assert program_text.print_program(again) == program_text.print_program(program)
    np.testing.assert_array_equal(again.constants["mask"], mask)
