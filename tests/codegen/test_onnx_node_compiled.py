"""ONNX's node tests compiled: many cases become one program, so that one library checks them all."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import onnx_nodes
import pytest
from onnx_nodes import FLOAT_OPERATORS, Case, compare, failures

from qcompiler.sim.integer_program import IntegerProgram, check

Build = Callable[..., Any]
BATCHES = 8

# log(exp(x) + 1) in float32 loses its digits near x = -10: the last bit of exp alone moves it beyond the tolerance.
ILL_CONDITIONED = {"test_mish", "test_mish_expanded"}


def selected(operator: str) -> list[Case]:
    return [c for c in onnx_nodes.selected(operator) if c.name not in ILL_CONDITIONED]


def merge(programs: Sequence[IntegerProgram]) -> IntegerProgram:
    """One program that computes all of them side by side; tensor t of program i is called ``i.t``."""

    def renamed(i: int, names: Sequence[str]) -> tuple[str, ...]:
        return tuple(f"{i}.{n}" for n in names)

    return check(
        IntegerProgram(
            "merged",
            tuple(n for i, p in enumerate(programs) for n in renamed(i, p.inputs)),
            tuple(n for i, p in enumerate(programs) for n in renamed(i, p.outputs)),
            {f"{i}.{n}": replace(t, name=f"{i}.{n}") for i, p in enumerate(programs) for n, t in p.tensors.items()},
            tuple(
                replace(op, name=f"{i}.{op.name}", inputs=renamed(i, op.inputs), output=f"{i}.{op.output}")
                for i, p in enumerate(programs)
                for op in p.operations
            ),
            {f"{i}.{n}": v for i, p in enumerate(programs) for n, v in p.constants.items()},
        )
    )


def compile_and_compare(cases: Sequence[Case], build_library: Build, target: str) -> None:
    library = build_library(merge([onnx_nodes.program_of(c) for c in cases]), target)
    results = library.run({f"{i}.{n}": v for i, c in enumerate(cases) for n, v in c.inputs.items()})

    number = {case.name: i for i, case in enumerate(cases)}
    failed = failures(cases, lambda c: compare(c, {n: results[f"{number[c.name]}.{n}"] for n in c.outputs}))
    assert not failed, "\n".join(failed)


def test_one_case_of_every_promised_operator(build_library: Build) -> None:
    chosen = random.Random(20)
    cases = [chosen.choice(selected(o)) for o in onnx_nodes.PROMISED]
    compile_and_compare(cases, build_library, "x86:avx2")


@pytest.mark.slow
@pytest.mark.parametrize("batch", range(BATCHES))
def test_all_cases(batch: int, build_library: Build) -> None:
    cases = [c for o in FLOAT_OPERATORS for c in selected(o)]
    compile_and_compare(cases[batch::BATCHES], build_library, "x86:avx2")
