"""Blocks of four channels: sums that share words and the cheap requantisation are exact; what is not, is refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from mcu_targets import targets
from program_builder import ProgramBuilder

from qcompiler.codegen.mcu import blocks
from qcompiler.codegen.mcu.lower import lower
from qcompiler.codegen.mcu.target import MCU_TARGETS
from qcompiler.sim import numerics
from qcompiler.sim.integer_program import Dense, IntegerProgram, Tensor

Array = npt.NDArray[Any]


def _fixed(scale: Array) -> tuple[Array, Array]:
    multiplier, shift = numerics.decompose_scale(scale)
    return multiplier << 7, shift + 7


def _outputs(acc: Array, m: blocks.Multipliers, channel: int, zero_point: int) -> Array:
    """What the kernel's SMMLA, ASR and SSAT make of sums, in 64 bits; asserts that 32 would hold them."""
    value = (acc * m.multiplier[channel] >> 32) + ((2 * zero_point + 1) << (m.shift - 1))
    assert np.abs(value).max() < 2**31
    return np.clip(value >> m.shift, -128, 127)


def _interesting(scale: np.float32, low: int, high: int, rng: np.random.Generator) -> Array:
    """The ends of the interval, sums around every place where the output steps (ties among them), and random ones."""
    steps = np.arange(-300, 300) - 0.5
    around = np.rint(steps / np.float64(scale)).astype(np.int64)[:, None] + np.arange(-2, 3)
    values = np.concatenate([around.ravel(), rng.integers(low, high + 1, 500), [low, high, 0, -1, 1]])
    return values[(low <= values) & (values <= high)]


@pytest.mark.parametrize("seed", range(40))
def test_shared_shift_is_the_exact_requantisation(seed: int) -> None:
    rng = np.random.default_rng(seed)
    spread = rng.integers(0, 8)
    scale = np.ldexp(rng.uniform(0.5, 1, 16), -rng.integers(3, 20) - rng.integers(0, spread + 1, 16)).astype(np.float32)
    if seed % 2:  # few bits, so that many sums lie exactly between two outputs
        scale = np.ldexp(np.ldexp(scale, 24).astype(np.int64) & 0xF00000 | 0x800000, -24).astype(np.float32)
    high = rng.integers(1, 2**31 if seed % 4 == 0 else 2**23, 16)
    low = -high
    m = blocks.multipliers(_fixed(scale), low, high)
    assert m is not None or np.ptp(numerics.decompose_scale(scale)[1]) > 7 or scale.max() > 0.12
    for channel in range(16) if m is not None else ():
        zero_point = int(rng.integers(-128, 128))
        acc = _interesting(scale[channel], int(low[channel]), int(high[channel]), rng)
        wanted = numerics.requantize(acc, scale[channel], zero_point)
        assert np.array_equal(_outputs(acc, m, channel, zero_point), wanted)


def test_scales_too_far_apart_are_refused_unless_the_small_ones_never_show() -> None:
    scale = np.array([0.01, 0.01 / 2**12], dtype=np.float32)
    reach = np.array([100_000, 1_000_000])
    assert blocks.multipliers(_fixed(scale), -reach, reach) is None
    m = blocks.multipliers(_fixed(scale), -reach, np.array([100_000, 100_000]))
    assert m is None  # 100,000 * 0.01 / 2**12 is still a quarter, but -1,000,000 is in the interval
    m = blocks.multipliers(_fixed(scale), -np.array([100_000] * 2), np.array([100_000] * 2))
    assert m is not None and m.multiplier[1] == 0


def _sums_of_words(words: Array, x: Array) -> Array:
    """The sums of one block as the kernel forms them, modulo 2**32."""
    k = len(x)
    words = words.astype(np.int64)
    weights = words[4 : 4 + k].reshape(k // 4, 2, 2)  # four terms, pair, odd
    out = []
    for pair in range(2):
        single, joined = (int(v) for v in words[2 * pair : 2 * pair + 2])
        for odd in range(2):
            for half in range(2):
                value = (weights[:, pair, odd] >> (16 * half)).astype(np.int16).astype(np.int64)
                terms = x[odd + 2 * half :: 4]
                joined += int(value @ terms)
                single += int(value.astype(np.int8).astype(np.int64) @ terms)
        difference = np.int64((joined - single) & 0xFFFFFFFF).astype(np.int32)
        out += [single, (int(difference) >> 8) + int(words[4 + k + 2 + pair])]
    return np.array(out)


@pytest.mark.parametrize("seed", range(30))
def test_two_channels_of_a_word_keep_their_sums(seed: int) -> None:
    """At both ends of every channel's interval and at random; up to the widest interval that is accepted."""
    rng = np.random.default_rng(seed)
    k = int(rng.choice([8, 24, 40, 256, 512]))
    weight = rng.integers(-127, 128, (4, k)).astype(np.int8)
    if seed % 3 == 0:
        weight = rng.choice([-127, 127], (4, k)).astype(np.int8)
    bias = rng.integers(-(2**24), 2**24, 4) if seed % 2 else rng.integers(-1000, 1000, 4)
    low, high = blocks.sums(weight.astype(np.int64), bias)
    words = blocks.pack(weight, bias, low, high, blocks.Multipliers(np.arange(4), 1))
    assert words is not None and words.shape == (1, k + blocks.CONSTANTS)
    columns = [np.where(s * row > 0, 127, -128) for row in weight for s in (1, -1)]
    for x in (*columns, rng.integers(-128, 128, k)):
        assert np.array_equal(_sums_of_words(words[0], x.astype(np.int64)), bias + weight.astype(np.int64) @ x)


def test_what_does_not_fit_a_word_is_refused() -> None:
    ones, none = np.full((4, 8), 1, np.int8), np.zeros(4, dtype=np.int64)
    m = blocks.Multipliers(np.arange(4), 1)

    def packed(weight: Array) -> Array | None:
        return blocks.pack(weight, none, *blocks.sums(weight.astype(np.int64), none), m)

    assert packed(ones) is not None
    lowest = ones.copy()
    lowest[:2, 0] = -1, -128  # -1 - 256 * 128 leaves 16 bits
    assert packed(lowest) is None
    assert packed(np.full((4, 512), 127, np.int8)) is not None
    assert packed(np.full((4, 520), 127, np.int8)) is None  # 520 * 127 * 255 >= 2**24


# ------------------------------------------------------------------------------------------------- emulated
def _extreme(b: ProgramBuilder) -> tuple[IntegerProgram, dict[str, bool]]:
    """Matrix work at the limits of blocks, and whether each may have them."""
    in_blocks: dict[str, bool] = {}
    outputs = []

    def add(output: Tensor, expected: bool, scale: Array | float | None = None, **changes: Any) -> None:
        op = b.operations[-1]
        assert isinstance(op, Dense)
        r = dataclasses.replace(op.requantize, minimum=-128, maximum=127)
        if scale is not None:
            r = dataclasses.replace(r, scale=np.broadcast_to(np.asarray(scale, r.scale.dtype), r.scale.shape).copy())
        b.operations[-1] = dataclasses.replace(op, requantize=r, **changes)
        in_blocks[op.name] = expected
        outputs.append(output)

    for terms in (8, 24, 40, 72):  # odd and even multiples of eight, one position and several
        add(b.dense(b.input((1, terms)), 8), True)
        add(b.dense(b.input((3, terms)), 8), True)
    signs = b.rng.choice([-127, 127], (8, 512)).astype(np.int8)
    add(b.dense(b.input((3, 512)), 8), True, 2.0**-15, weight=signs)
    add(b.dense(b.input((3, 520)), 8), False, 2.0**-15, weight=np.full((8, 520), 127, np.int8))
    add(b.dense(b.input((3, 64)), 8), True, 2.0**-18, bias=b.rng.integers(-(2**25), 2**25, 8).astype(np.int32))
    add(b.dense(b.input((2, 64)), 8), False, 0.01 * 2.0 ** (-1.3 * np.arange(8)))
    add(b.dense(b.input((2, 64)), 8, rounding="q31_single"), False)
    add(b.dense(b.input((2, 64)), 8, rounding="q31_single"), True, 0.0012345)
    return b.program(outputs), in_blocks


@pytest.mark.parametrize("target", targets("cortex-m4", "c99"))
def test_extreme_layers(target: str, assert_exact: Any) -> None:
    b = ProgramBuilder(seed=9)
    program, expected = _extreme(b)
    steps = lower(program, MCU_TARGETS[target]).steps
    in_blocks = {step.operations[0].name: "block" in step.call.fields for step in steps}
    assert in_blocks == {name: value and MCU_TARGETS[target].blocks for name, value in expected.items()}
    samples = [b.random_inputs(program) for _ in range(3)]
    samples.append({n: np.full_like(v, -128) for n, v in samples[0].items()})
    for channel in (1, 2):  # each sum of these at its upper end
        weights = {op.inputs[0]: op.weight[channel] for op in program.operations if isinstance(op, Dense)}
        samples.append({
            n: np.broadcast_to(np.where(weights[n] > 0, 127, -128).astype(np.int8), v.shape).copy()
            for n, v in samples[0].items()
        })  # fmt: skip
    assert_exact(program, target, samples)
