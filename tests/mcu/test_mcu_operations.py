"""Every integer operation, bit for bit: as portable C on this machine, and on emulated Cortex-M boards."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from mcu_targets import targets
from operation_cases import FAMILIES
from program_builder import ProgramBuilder


@pytest.mark.parametrize("target", targets("c99", "cortex-m4", "cortex-m55"))
@pytest.mark.parametrize("cases", FAMILIES)
def test_equals_reference(cases: Callable, target: str, assert_exact: Callable) -> None:
    b = ProgramBuilder(seed=FAMILIES.index(cases))
    program = b.program(cases(b))
    values = b.random_inputs(program)
    for value in values.values():
        if value.dtype == np.float32 and value.size > 4:
            value.ravel()[:4] = 3e38, -3e38, 1e-42, -0.0
    assert_exact(program, target, [values])
