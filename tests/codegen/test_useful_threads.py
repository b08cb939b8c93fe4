"""How many threads a step may use: by the arithmetic of its own instructions, or by data beyond one core's cache."""

from __future__ import annotations

import numpy as np
import pytest
from single_operation import LEVELS, conv_program

from qcompiler.codegen.aot import _threads, _useful_threads
from qcompiler.codegen.cpu.isa.amx import AMX
from qcompiler.codegen.cpu.isa.base import VectorInstructionSet
from qcompiler.codegen.cpu.isa.x86 import AVX2, AVX512_VNNI, AVX_VNNI
from qcompiler.codegen.cpu.kernel import Kernel, Step
from qcompiler.codegen.cpu.lower import lower
from qcompiler.sim.integer_program import IntegerProgram


def threads(program: IntegerProgram, isa: VectorInstructionSet) -> dict[str, int]:
    return {step.kernel.name: _useful_threads(program, step, isa) for step in lower(program, isa).steps}


def test_instructions_that_do_more_in_a_cycle_want_more_work_for_a_thread():
    small = conv_program(1, 1, 14, 14, 256, 192, (1, 1))  # 9.6 M multiply-accumulates on 0.1 MB
    assert {name: threads(small, isa)["conv2d"] > 1 for name, isa in LEVELS.items()} == {
        "amx": False, "avx512-vnni": True, "avx-vnni": True, "avx2": True,
    }  # fmt: skip
    large = conv_program(1, 1, 14, 14, 256, 256, (3, 3))  # 84.9 M: 83 thousand cycles of tiles, 664 of vectors
    assert threads(large, AMX)["conv2d"] == 6
    assert threads(large, AVX512_VNNI)["conv2d"] == 45


def test_a_winograd_kernel_counts_the_multiplications_that_it_does():
    program = conv_program(1, 1, 16, 16, 16, 16, (3, 3))  # 0.45 M: 19 thousand cycles, of which Winograd saves 10
    assert threads(program, AVX2)["winograd"] == 1
    larger = conv_program(1, 1, 22, 22, 16, 16, (3, 3))  # 0.92 M
    assert threads(larger, AVX2)["winograd"] == 2


def test_what_prepares_an_input_takes_as_many_threads_as_what_reads_it():
    program = conv_program(1, 1, 22, 22, 16, 16, (3, 3), padding=(1, 1, 1, 1))
    steps = lower(program, AVX2).steps
    assert [s.kernel.name for s in steps] == ["convert", "pad", "winograd_input", "winograd", "convert"]
    assert [_useful_threads(program, s, AVX2) for s in steps] == [1, 1, 1, 2, 1]
    assert _threads(program, steps, AVX2)[1:] == [2, 2, 2, 1]


@pytest.mark.parametrize("name, kilobytes, most", [
    ("pad", 639, 1), ("pad", 640, 2), ("pad", 1300, 3), ("softmax", 192, 2), ("softmax", 191, 1),
])  # fmt: skip
def test_data_counts_where_it_is_more_than_a_core_holds(name, kilobytes, most):
    program = conv_program(1, 1, 4, 4, 4, 4, (1, 1))
    step = Step(Kernel(name, threads, {}, 8, (np.zeros(0, np.int8),)), (), "t", kilobytes * 1024)
    assert _useful_threads(program, step, AVX_VNNI) == most
