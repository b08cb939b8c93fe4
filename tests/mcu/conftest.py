"""Artefacts against the reference interpreter."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mcu_targets import artifact_of

from qcompiler import microcontroller
from qcompiler.sim import reference
from qcompiler.sim.integer_program import IntegerProgram


@pytest.fixture
def assert_exact(tmp_path: Path) -> Iterator[Callable[..., None]]:
    """``assert_exact(program, target, samples)``: the artefact's outputs are the reference's, bit for bit."""
    running: list[microcontroller.Model] = []

    def check(program: IntegerProgram, target: str, samples: list[dict[str, Any]]) -> None:
        model = microcontroller.Model(artifact_of(program, target, tmp_path / target))
        running.append(model)
        writer = program.producers()
        for sample in samples:
            found, wanted = model.run(sample), reference.execute(program, sample)
            for name, value in wanted.items():
                bytes_of = (np.frombuffer(v.tobytes(), np.uint8) for v in (found[name], value))
                differ = np.flatnonzero(np.not_equal(*bytes_of))
                op = writer.get(name)
                assert not differ.size, f"{target}: {op and op.name} differs at bytes {differ[:8]} of {value.nbytes}"

    yield check
    for model in running:
        model.close()
