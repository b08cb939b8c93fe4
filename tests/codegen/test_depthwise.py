"""Depthwise convolutions equal the reference: channels that fill a vector, share it or leave a rest."""

from __future__ import annotations

import pytest
from single_operation import assert_exact, conv_program, levels

from qcompiler.codegen.cpu.conv import conv2d

SAME = (1, 1, 1, 1)
CASES = {
    "a vector of channels": dict(h=7, w=8, c=64, kernel=(3, 3), padding=SAME),
    "several vectors and a rest": dict(h=4, w=5, c=147, kernel=(3, 3), padding=SAME),
    "two pixels a vector": dict(h=5, w=7, c=32, kernel=(3, 3), padding=SAME),
    "four pixels a vector, stride": dict(h=9, w=11, c=16, kernel=(3, 3), padding=(0, 0, 1, 1), stride=(2, 2)),
    "odd channels, stride": dict(h=9, w=10, c=24, kernel=(3, 3), padding=SAME, stride=(2, 2)),
    "5x5": dict(h=6, w=9, c=40, kernel=(5, 5), padding=(2, 2, 2, 2)),
    "one dimension": dict(h=1, w=30, c=8, kernel=(1, 9), padding=(0, 8, 0, 0)),
    "dilation": dict(h=9, w=13, c=72, kernel=(3, 3), dilation=(2, 3)),
    "few pixels": dict(h=2, w=2, c=4, kernel=(2, 2), padding=(0, 0, 1, 1)),
    "large kernel": dict(h=14, w=11, c=20, kernel=(10, 9), padding=(5, 4, 4, 4)),
    "clamp and add": dict(h=4, w=4, c=96, kernel=(3, 3), padding=SAME, minimum=0, maximum=50, add="first"),
}


@pytest.mark.parametrize("level", levels())
@pytest.mark.parametrize("case", CASES)
def test_depthwise_is_exact(level, case):
    options = dict(CASES[case])
    channels = options["c"]
    images = 2 if channels == 40 else 1
    assert_exact(conv_program(5, images, o=channels, groups=channels, **options), conv2d, level)
