"""Convolutions and fully connected layers equal the reference to the last bit, at every instruction-set level."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from single_operation import assert_exact, conv_program, levels, program_of, random_scales, with_add

from qcompiler.codegen.cpu.conv import conv2d, wanted_border, writes_border
from qcompiler.codegen.cpu.gemm import dense
from qcompiler.codegen.cpu.kernel import Group
from qcompiler.sim.integer_program import Dense, Requantize, Tensor

CONVOLUTIONS = {
    "3x3": dict(n=1, h=7, w=7, c=16, o=32, kernel=(3, 3), padding=(1, 1, 1, 1)),
    "three channels, two images, strides, uneven padding": dict(
        n=2, h=9, w=11, c=3, o=24, kernel=(5, 3), stride=(2, 1), padding=(2, 1, 1, 0)
    ),
    "one channel": dict(n=1, h=12, w=9, c=1, o=17, kernel=(10, 4), stride=(2, 2), padding=(4, 1, 5, 1)),
    "dilation": dict(n=1, h=12, w=12, c=10, o=21, kernel=(3, 3), dilation=(2, 3), padding=(1, 0, 2, 3)),
    "groups": dict(n=1, h=6, w=6, c=24, o=36, kernel=(3, 3), groups=3, padding=(1, 1, 1, 1)),
    "narrow groups": dict(n=1, h=5, w=5, c=32, o=64, kernel=(3, 3), groups=16, padding=(1, 1, 1, 1)),
    "1x1, ragged": dict(n=2, h=5, w=5, c=33, o=130, kernel=(1, 1), add="first"),
    "1x1, stride": dict(n=1, h=6, w=7, c=20, o=100, kernel=(1, 1), stride=(2, 2), add="second"),
    "1x1, many tasks": dict(n=1, h=40, w=41, c=64, o=48, kernel=(1, 1)),
    "one position, clamp": dict(n=1, h=1, w=1, c=77, o=70, kernel=(1, 1), minimum=-20, maximum=100),
    "accumulators beyond 2**24": dict(n=1, h=4, w=4, c=80, o=20, kernel=(3, 3), wide=True),
}


@pytest.mark.parametrize("level", levels())
@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_convolution_is_exact(level, case):
    assert_exact(conv_program(7, **CONVOLUTIONS[case]), conv2d, level)


@pytest.mark.parametrize("level", levels())
@pytest.mark.parametrize("rounding", ["f32_half_even", "q31_single", "q31_double"])
def test_every_rounding_is_exact(level, rounding):
    assert_exact(conv_program(3, 1, 3, 3, 8, 20, (1, 1), rounding), conv2d, level)


@pytest.mark.parametrize("level", levels())
@pytest.mark.parametrize("m, n, k", [(1, 75, 200), (1, 10, 3), (13, 64, 50)])
def test_dense_is_exact(level, m, n, k):
    rng = np.random.default_rng(m * n * k)
    weight = rng.integers(-127, 128, (n, k)).astype(np.int8)
    bias = rng.integers(-20000, 20000, n).astype(np.int32)
    op = Dense("dense", ("x",), "y", weight, bias, Requantize(random_scales(rng, n, k, ""), 9))
    tensors = [Tensor("x", (m, k), "int8", 0.5, -77), Tensor("y", (m, n), "int8", 0.5, 9)]
    assert_exact(with_add([op], tensors, ["x"], "first" if m > 1 else ""), dense, level)


@pytest.mark.parametrize("level", levels())
@pytest.mark.parametrize("kernel, images, depthwise", [((1, 1), 1, False), ((3, 3), 2, False), ((1, 1), 1, True)])
def test_a_result_is_written_with_the_border_that_its_reader_pads_by(level, kernel, images, depthwise):
    """No copy stands between the two convolutions, and the border holds the zero point."""
    first = conv_program(1, images, 9, 7, 13, 70, kernel)
    groups, outputs = (70, 70) if depthwise else (1, 20)
    shape = first.tensors["y"].shape
    second = conv_program(2, *shape, outputs, (3, 3), padding=(2, 1, 1, 3), groups=groups)
    reader = dataclasses.replace(second.operations[0], name="reader", inputs=("y",), output="z")
    tensors = [*first.tensors.values(), dataclasses.replace(second.tensors["y"], name="z")]
    program = program_of([*first.operations, reader], tensors, ["x"])

    def lower(whole, isa):
        producer = Group(whole.operations[:1], whole.tensors)
        assert writes_border(producer.root)
        border = wanted_border([reader])
        assert border == reader.padding
        steps = conv2d(producer, isa, border=border)
        steps += conv2d(Group((reader,), whole.tensors), isa, bordered=True)
        assert len([s for s in steps if s.kernel.name != "widen"]) == 2
        return steps

    assert_exact(program, lower, level)


def test_no_border_unless_every_reader_pads_alike():
    padded = conv_program(1, 1, 5, 5, 4, 8, (3, 3), padding=(1, 1, 1, 1)).operations[0]
    other = conv_program(1, 1, 5, 5, 4, 8, (3, 3), padding=(0, 0, 1, 1)).operations[0]
    add = conv_program(1, 1, 5, 5, 4, 8, (3, 3), add="first").operations[1]
    assert wanted_border([padded, padded]) == (1, 1, 1, 1)
    for readers in [[padded, other], [padded, add]]:
        assert wanted_border(readers) == (0, 0, 0, 0)
    assert writes_border(padded) and not writes_border(add)
