"""Every integer operation on every instruction-set level, bit for bit against the reference interpreter.

Each test builds one library with many cases of a family (odd sizes, tails, every rounding) side by side; the
cases are outputs of one program, so that one build covers them all at all levels.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from host_library import LEVELS, Library
from operation_cases import FAMILIES
from program_builder import ProgramBuilder

from qcompiler.sim import reference


@pytest.mark.parametrize("cases", FAMILIES)
def test_equals_reference_at_every_level(cases: Callable, build_library: Callable[..., Library]) -> None:
    b = ProgramBuilder(seed=FAMILIES.index(cases))
    program = b.program(cases(b))
    inputs = [b.random_inputs(program) for _ in range(2)]
    for values in inputs[:1]:  # what rounds and saturates specially
        for value in values.values():
            if value.dtype == np.float32 and value.size > 4:
                value.ravel()[:4] = np.nan, np.inf, -np.inf, -0.0
    expected = [reference.execute(program, values) for values in inputs]
    writer = program.producers()
    for isa in LEVELS:
        library = build_library(program, f"x86:{isa}", isa)
        for threads in (1, 2):
            assert library.call("set_threads")(threads) == 0
            for values, wanted in zip(inputs, expected, strict=True):
                found = library.run(values)
                for name, value in wanted.items():
                    same = np.array_equal(found[name], value, equal_nan=value.dtype == np.float32)
                    assert same, f"{isa}, {threads} threads: {writer[name].name} {program.tensors[name]}"
