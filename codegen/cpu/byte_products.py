"""Which bytes AVX2 multiplies how: exact sums of VPMADDUBSW, as many quads as fit into 16 bits at a time.

VPMADDUBSW multiplies stored bytes by int8 weights and adds pairs of products with 16-bit saturation; VPMADDWD by ones
makes 32 bits of them. Activations are any byte 0..255, but the weights are known: what a 16-bit lane sums lies between
255 times the sum of its negative weights and 255 times that of its positive ones, and from -128 * 255 = -32640 to
128 * 255 = 32640 everything is exact. So the weights of one sign in a lane, its *height*, must not add to more
than `LIMIT`. Two quads whose heights fit together are added before they are widened: 5 instructions for both, where one
alone takes 3 and exact 16-bit pairs of a widened copy of the input take 4 a quad.

Two weights of one sign in a pair are what is in the way. With ``x = 255 - (255 - x)`` the sign of a weight is ours to
choose: a copy of the input whose odd bytes are complemented takes the odd weights negated, and the bias the rest.
For each vector of channels every quad of the window is read in the form that suits it, in an order of the vector's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
LIMIT = 128
ROUNDS = 24  # of pairing: more find few pairs more
PAIRED, ALONE, WIDE = 2.5, 3.0, 4.0  # vector instructions of a quad


@dataclass(frozen=True, eq=False)
class Products:
    """How each quad of each vector is multiplied.

    weights: int8 [vectors, quads, lanes, 4], odd ones negated where the quad is read complemented. partner: [vectors,
    quads], the quad that is added to this one in 16 bits, -1 for none. complemented, exact: [vectors, quads], the form
    of the input; whether bytes will do at all. bias: int64 [vectors, lanes], what complemented bytes leave out.
    """

    weights: Array
    partner: npt.NDArray[np.int64]
    complemented: npt.NDArray[np.bool_]
    exact: npt.NDArray[np.bool_]
    bias: npt.NDArray[np.int64]

    @property
    def instructions(self) -> float:
        """Vector instructions of a quad, on average."""
        paired, fits = float((self.partner >= 0).mean()), float(self.exact.mean())
        return PAIRED * paired + ALONE * (fits - paired) + WIDE * (1 - fits)


def heights(weights: Array) -> npt.NDArray[np.uint8]:
    """int8 [..., lanes, 4]: of the two forms, the sums of the positive and of the negative weights of each pair.

    uint8 [2, ..., 4 * lanes]. Weights of -128, whose negative is no int8, count as too many for any sum.
    """
    pairs = weights.reshape(*weights.shape[:-2], -1, 2)
    positive, negative = np.maximum(pairs, 0).view(np.uint8), np.negative(np.minimum(pairs, 0)).view(np.uint8)
    lowest = weights.min(initial=0) == -128
    if lowest:
        negative[negative == 128] = 127
    even, odd = (positive[..., 0], negative[..., 0]), (positive[..., 1], negative[..., 1])
    plain = np.concatenate([even[0] + odd[0], even[1] + odd[1]], axis=-1)
    complemented = np.concatenate([even[0] + odd[1], even[1] + odd[0]], axis=-1)
    both = np.stack([plain, complemented])
    if lowest:
        both[:, (weights == -128).any(axis=(-1, -2))] = 255
    return both


def products(weights: Array, complement: bool) -> Products:
    """The choice for weights int8 [vectors, quads, lanes, 4]. complement: a copy with complemented odd bytes exists."""
    high = heights(weights)
    if not complement:
        high = high[:1]
    largest = high.max(axis=-1)
    form = largest.argmin(axis=0)
    partner = _pair(_words(high), form)
    exact = largest.min(axis=0) <= LIMIT
    complemented = (form == 1) & exact
    signs = np.where(complemented[:, :, None, None], np.array([1, -1, 1, -1], dtype=np.int8), np.int8(1))
    odd = weights[..., 1::2].sum(axis=-1, dtype=np.int64) * complemented[:, :, None]
    return Products(weights * signs, partner, complemented, exact, 255 * odd.sum(axis=1))


def _words(high: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    """Half the heights, rounded up, eight in a word: [words, forms, vectors, quads].

    Two quads fit together only where no byte of the sum of their words exceeds LIMIT / 2, of which nothing is lost but
    pairs at the very limit. 96 is too high already, and leaves room for `_BELOW`.
    """
    halves = np.minimum((high >> 1) + (high & 1), 96)
    return np.ascontiguousarray(np.moveaxis(np.ascontiguousarray(halves).view(np.uint64), -1, 0))


_BELOW = np.uint64(0x0101010101010101 * (127 - LIMIT // 2))  # added to a byte, sets its highest bit above LIMIT / 2
_HIGHEST = np.uint64(0x8080808080808080)


def _pair(words: npt.NDArray[np.uint64], form: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Each quad's partner, [vectors, quads], -1 for none; sets `form` where a pair takes another one.

    Each round tries the disjoint pairs q, q ^ m of an m.
    """
    _, forms, vectors, quads = words.shape
    flat = words.reshape(len(words), forms, -1)
    partner, chosen = np.full(vectors * quads, -1, dtype=np.int64), form.reshape(-1)
    numbers = np.arange(quads)
    free = ((words + _BELOW) & _HIGHEST == 0).all(axis=0).any(axis=0)  # fits alone at least
    starts = np.arange(vectors)[:, None] * quads
    for mask in range(1, ROUNDS):
        lower = numbers[(numbers ^ mask < quads) & (numbers < numbers ^ mask)]
        open_pairs = free[:, lower] & free[:, lower ^ mask]
        a, b = (starts + lower)[open_pairs], (starts + (lower ^ mask))[open_pairs]
        first, second = flat[:, :, a] + _BELOW, flat[:, :, b]
        for a_form in range(forms):
            for b_form in range(forms):
                total = first[0, a_form] + second[0, b_form]
                for word in range(1, len(words)):
                    total |= first[word, a_form] + second[word, b_form]
                fit = total & _HIGHEST == 0
                partner[a[fit]], partner[b[fit]] = b[fit] % quads, a[fit] % quads
                chosen[a[fit]], chosen[b[fit]] = a_form, b_form
        free &= partner.reshape(free.shape) < 0
    return partner.reshape(vectors, quads)
