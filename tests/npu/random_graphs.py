"""Random integer programs over all operations, and random small machines to run them on."""

from __future__ import annotations

import numpy as np
from layer_builder import Builder
from machines import EDGE, MICRO, edited

from qcompiler.sim.hardware import Machine
from qcompiler.sim.integer_program import IntegerProgram

ROUNDINGS = ("exact_half_up", "q31_single", "q31_double", "f32_half_even")


def _window(b: Builder, h: int, w: int) -> dict | None:
    """Kernel, stride, padding and dilation that fit an image."""
    r = b.rng
    kernel, stride, dilation = (tuple(r.integers(1, high, 2).tolist()) for high in (4, 3, 3))
    padding = tuple(r.integers(0, 3, 4).tolist())
    extents = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    if extents[0] > h + padding[0] + padding[2] or extents[1] > w + padding[1] + padding[3]:
        return None
    return {"kernel": kernel, "stride": stride, "padding": padding, "dilation": dilation}


def _grow(b: Builder, y: str) -> str:
    """One more random operation on a rank-4 tensor."""
    r, (n, h, w, c) = b.rng, b.shape(y)
    window, kind = _window(b, h, w), int(r.integers(17))
    half = (1, 1, 1, 1)
    if kind == 0 and window:
        return b.conv(y, int(r.integers(1, 24)), **window)
    if kind == 1 and window:
        groups = int(r.choice([g for g in range(1, c + 1) if c % g == 0]))
        return b.conv(y, groups * int(r.integers(1, 4)), **window, groups=groups)
    if kind == 2 and window:
        return b.depthwise(y, **window)
    if kind == 3:
        return b.dense(y, int(r.integers(1, 24)))
    if kind == 4 and b.rounding == "exact_half_up":
        other = y if r.random() < 0.3 else b.constant((1, 1, 1, c) if r.random() < 0.5 else (n, h, w, 1))
        return b.add(y, other, sign=int(r.choice([1, -1])))
    if kind == 5:
        return b.mul(y, b.conv(y, c, 1) if r.random() < 0.5 else b.mean(y, (1, 2), True))
    if kind == 6:
        return b.table(y, per_channel=bool(r.integers(2)))
    if kind == 7 and h > 1 and w > 1:
        return b.max_pool(y, (3, 2), (2, 1), half)
    if kind == 8:
        return b.average_pool(y, (3, 3), (1, 2), half, bool(r.integers(2)))
    if kind == 9:
        return b.mean(y, (1, 2), True)
    if kind == 10:
        return b.softmax(y)
    if kind == 11:
        return b.layer_norm(y)
    if kind == 12:
        channels = r.integers(-1, c, int(r.integers(1, 8))) if r.integers(2) else None
        return b.gather(y, None, r.integers(-1, h, int(r.integers(1, 8))), None, channels, fill=3)
    if kind == 13:
        return b.transpose(y, r.permutation(4).tolist())
    if kind == 14:
        return b.resize(y, int(r.integers(1, 9)), int(r.integers(1, 9)))
    if kind == 15:
        other = b.conv(y, c, 1)
        return b.matmul(y, other, True) if r.integers(2) else b.matmul(y, b.transpose(other, (0, 1, 3, 2)))
    return b.concat([y, y], int(r.integers(4)))


def random_program(seed: int) -> tuple[IntegerProgram, dict]:
    """Two to six operations with fan-out and one or two outputs, and inputs for them."""
    b = Builder(seed, ROUNDINGS[seed % 4] if seed % 3 == 0 else "exact_half_up")
    r = b.rng
    made = [b.input((int(r.choice([1, 1, 2])), *r.integers(1, 12, 2), int(r.integers(1, 20))))]
    for _ in range(int(r.integers(2, 7))):
        y = _grow(b, made[int(r.integers(len(made)))])
        if r.random() < 0.2:
            y = b.table(y)
        if np.prod(b.shape(y)) < 60_000:
            made.append(y)
    outputs = dict.fromkeys(made[1:][-int(r.integers(1, 3)) :])
    return b.build(*(outputs or [b.table(made[0])])), b.feed()


def random_machine(seed: int) -> Machine:
    """Odd sizes everywhere, memories so small that tensors have to be cut and leave the chip."""
    r = np.random.default_rng(seed + 1000)
    rows, columns, lanes = r.integers(2, 20, 3).tolist()
    return edited(
        MICRO if seed % 2 else EDGE, name=f"random-{seed}", matrix__rows=rows, matrix__columns=columns,
        matrix__accumulator_rows=int(r.integers(32, 300)), matrix__weight_buffers=int(r.integers(1, 3)),
        matrix__dataflows=[["weight_stationary"], ["output_stationary"],
                           ["weight_stationary", "output_stationary"]][int(r.integers(3))],
        vector__lanes=lanes, vector__parameter_bytes=int(r.integers(7000, 20000)),
        activation_memory__size_bytes=int(r.integers(4000, 40000)), activation_memory__bytes_per_cycle=32,
        weight_memory__size_bytes=int(r.integers(3000, 20000)), weight_memory__bytes_per_cycle=32,
        control__queue_entries=int(r.integers(2, 64)),
    )  # fmt: skip
