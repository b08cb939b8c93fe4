"""3x3 convolutions by Winograd's algorithm where the level multiplies 16 bits: the same integers."""

from __future__ import annotations

import numpy as np
import pytest
from single_operation import assert_exact, conv_program, levels

from qcompiler.codegen.cpu.conv import conv2d
from qcompiler.codegen.cpu.isa.x86 import AVX2, AVX_VNNI
from qcompiler.codegen.cpu.winograd import applies, transformed_weights

AVX2_ONLY = [p for p in levels() if p.id == "avx2"]


@pytest.mark.parametrize("level", AVX2_ONLY)
@pytest.mark.parametrize("size, channels, options", [
    ((1, 8, 12), (16, 16), {}),
    ((2, 7, 7), (20, 48), {"add": "second"}),  # odd on both sides, batches, a fused addition
    ((1, 1, 5), (16, 16), {}),
    ((1, 5, 1), (16, 16), {"minimum": -100, "maximum": 90}),
    ((1, 130, 4), (16, 16), {}),  # several chunks of tiles
    ((1, 6, 6), (64, 32), {"wide": True}),  # 64-bit requantisation
])  # fmt: skip
def test_equals_the_reference(level, size, channels, options) -> None:
    program = conv_program(1, *size, *channels, (3, 3), padding=(1, 1, 1, 1), **options)
    steps = assert_exact(program, lambda group, isa: conv2d(group, isa), level)
    assert [s.kernel.name for s in steps[-2:]] == ["winograd_input", "winograd"]


def test_where_it_applies() -> None:
    def conv(channels: int = 32, outputs: int = 32, kernel: tuple[int, int] = (3, 3), **options):
        return conv_program(1, 1, 9, 9, channels, outputs, kernel, **options).operations[0]

    assert applies(conv(), AVX2) and not applies(conv(), AVX_VNNI)
    for other in (conv(kernel=(3, 1)), conv(stride=(2, 2)), conv(dilation=(1, 2)), conv(groups=2), conv(channels=8),
                  conv(channels=18), conv(outputs=40)):  # fmt: skip
        assert not applies(other, AVX2)
    # Four times an accumulator has to fit: 9 * 2400 inputs of weights near 127 do not.
    assert not applies(conv(channels=2400), AVX2)


def test_transforms_fit_sixteen_bits_at_their_extremes() -> None:
    """Each element of the transformed kernel is linear in the kernel: its extreme has |weight| 127 everywhere."""
    unit = np.eye(9, dtype=np.int8).reshape(9, 3, 3, 1)
    reach = np.abs(transformed_weights(unit)[..., 0]).sum(axis=0) * 127
    assert reach.max() == 9 * 127
    rows = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])
    tile = np.einsum("ai,bj->abij", rows, rows).reshape(16, -1)
    assert np.maximum(tile, 0).sum(axis=1).max() * 255 == 1020 and np.minimum(tile, 0).sum(axis=1).min() * 255 == -510
    assert 2 * 1020 * 9 * 127 < 2**31  # one VPMADDWD
