"""Narrow weights side by side in bytes: value j of a row is bits j*b to j*b + b-1 of the row, counted from the lowest
bit of its first byte; every row begins at a byte, what is left of its last byte is zero."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def pack(values: Array, bits: int) -> Array:
    """int8 [..., n] to int8 [..., ceil(n * bits / 8)]; the values must fit `bits` bits."""
    single = np.unpackbits(np.ascontiguousarray(values).view(np.uint8)[..., None], axis=-1, bitorder="little")
    single = single[..., :bits].reshape(*values.shape[:-1], values.shape[-1] * bits)
    return np.packbits(single, axis=-1, bitorder="little").view(np.int8)


def unpack(rows: Array, count: int, bits: int) -> Array:
    """int8 [..., bytes] to the first `count` values of each row, int8 [..., count], sign extended."""
    single = np.unpackbits(np.ascontiguousarray(rows).view(np.uint8), axis=-1, count=count * bits, bitorder="little")
    places = 1 << np.arange(bits, dtype=np.int16)
    places[-1] = -places[-1]
    values = single.reshape(*rows.shape[:-1], count, bits).astype(np.int16) @ places
    return values.astype(np.int8)
