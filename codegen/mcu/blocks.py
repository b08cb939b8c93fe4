"""Matrix work in blocks of four output channels, as `qc_blocks.h` reads them: who may have them, and their words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
CONSTANTS = 10
"""Words of a block beside its weights."""
LARGEST_SHIFT = 22  # (2 * zero point + 1) << (shift - 1) and the product's upper half then sum up in 32 bits


@dataclass(frozen=True, eq=False)
class Multipliers:
    """``floor(acc * scale + 1/2) == (floor(acc * multiplier / 2**32) + 2**(shift-1)) >> shift``, one shift for all."""

    multiplier: Array
    shift: int


def sums(weight: Array, bias: Array) -> tuple[Array, Array]:
    """Least and greatest of ``bias + sum(weight * x)`` over int8 x. weight: int64 [O, K]; bias: int64 [O]."""
    low, high = np.minimum(-128 * weight, 127 * weight), np.maximum(-128 * weight, 127 * weight)
    return bias + low.sum(axis=1), bias + high.sum(axis=1)


def multipliers(fixed: tuple[Array, Array], low: Array, high: Array) -> Multipliers | None:
    """None where the channels' scales lie too far apart to share a shift without losing a bit.

    fixed: (multiplier < 2**31, shift) with ``round(acc * scale) == (acc * multiplier + 2**(shift-1)) >> shift``.
    low, high: interval of each channel's sum. A channel whose sums all round to zero has a multiplier of zero.
    """
    multiplier, shift = (v.astype(np.int64) for v in fixed)
    reach = np.maximum(np.abs(low), np.abs(high)).astype(np.float64)
    multiplier = np.where(np.ldexp(reach * multiplier, -shift.astype(np.int32)) < 0.499, 0, multiplier)
    used = multiplier > 0
    if not used.any():
        return Multipliers(multiplier, 1)
    m, s = multiplier[used], shift[used]
    even = np.array([(int(v) & -int(v)).bit_length() - 1 for v in m])  # factors of two
    bits = np.array([int(v).bit_length() for v in m])
    common = max(1, int((s - even).max()) - 32)
    if common > min(LARGEST_SHIFT, int((s - bits).min()) - 1):
        return None
    change = 32 + common - s
    multiplier[used] = np.where(change >= 0, m << np.maximum(change, 0), m >> np.maximum(-change, 0))
    return Multipliers(multiplier, common)


def pack(weight: Array, bias: Array, low: Array, high: Array, m: Multipliers) -> Array | None:
    """int32 words of channels in blocks of four, [O/4, K + CONSTANTS]; None where a sum or a pair of weights does not
    fit its word. weight: int8 [O, K], O a multiple of 4, K of 8; bias, low, high: int64 [O]."""
    first, second = (weight[i::2].astype(np.int64) for i in (0, 1))
    joined = first + 256 * second
    if joined.min(initial=0) < -(2**15) or (high - low)[1::2].max(initial=0) >= 2**24 - 2:
        return None
    middle = (low + high)[1::2] >> 1
    bias_first = bias[0::2]
    bias_joined = bias_first + 256 * (bias[1::2] - middle)
    blocks, terms = weight.shape[0] // 4, weight.shape[1]
    halves = joined.reshape(blocks, 2, terms // 4, 2, 2) & 0xFFFF  # pair, four terms, half of a word, odd
    words = (halves[:, :, :, 0] | halves[:, :, :, 1] << 16).transpose(0, 2, 1, 3)  # four terms, pair, odd
    head = np.stack([bias_first, bias_joined], axis=1).reshape(blocks, 4)
    scale, centre = m.multiplier.reshape(blocks, 4), middle.reshape(blocks, 2)
    parts = [head, words.reshape(blocks, terms), scale[:, :2], centre, scale[:, 2:]]
    return (np.concatenate(parts, axis=1) & 0xFFFFFFFF).astype(np.uint32).view(np.int32)
