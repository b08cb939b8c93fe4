"""Element-wise loops as vector instructions: which three loops each of them runs."""

from __future__ import annotations

import numpy as np

MAX_WIDTH = 65535  # elements of an instruction's innermost loop, and the largest pitch of a pixel
Loop = tuple[int, int, int, int]  # trips, strides of a, b and the output


def nest(loops: list[Loop], lanes: int) -> list[tuple[tuple[int, int, int], Loop, Loop, Loop]]:
    """Loops as instructions: ``(start offsets of a, b, out; row loop, pixel loop, width loop)``.

    Outer loops beyond two, and widths beyond an operand's range, become several instructions.
    """
    *outer, inner = loops
    pieces: list[tuple[tuple[int, int, int], list[Loop]]] = []
    if inner[0] > MAX_WIDTH:
        width = MAX_WIDTH // lanes * lanes
        whole = inner[0] // width
        (n, a, b, o) = inner
        pieces.append(((0, 0, 0), [*outer, (whole, width * a, width * b, width * o), (width, a, b, o)]))
        if n % width:
            done = whole * width
            pieces.append(((done * a, done * b, done * o), [*outer, (n % width, a, b, o)]))
    else:
        pieces.append(((0, 0, 0), loops))
    found = []
    for start, nest in pieces:
        if len(nest) > 1 and max(nest[-2][1:]) > MAX_WIDTH:  # the pitch of a pixel is short, that of a row long
            nest = [*nest[:-1], (1, 0, 0, 0), nest[-1]]
        nest = [(1, 0, 0, 0)] * (3 - len(nest)) + nest
        extra, kept = nest[:-3], nest[-3:]
        for index in np.ndindex(*(loop[0] for loop in extra)):
            at = tuple(s + sum(i * loop[k + 1] for i, loop in zip(index, extra, strict=True))
                       for k, s in enumerate(start))  # fmt: skip
            found.append(((at[0], at[1], at[2]), kept[0], kept[1], kept[2]))
    return found
