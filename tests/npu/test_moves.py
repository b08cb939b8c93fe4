"""Boxes of data movement against NumPy's own indexing."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from layer_builder import Builder

from qcompiler.sim import moves, reference
from qcompiler.sim.moves import MAX_LOOPS, Box


def carried_out(boxes: list[Box], inputs: list[np.ndarray], size: int) -> np.ndarray:
    """What a DMA engine would leave behind, byte by byte; 99 where nothing was written."""
    out = np.full(size, 99, dtype=np.int8)
    for box in boxes:
        for index in itertools.product(*(range(n) for n, _, _ in box.loops)):
            source = box.source + sum(i * s for i, (_, s, _) in zip(index, box.loops, strict=True))
            target = box.target + sum(i * t for i, (_, _, t) in zip(index, box.loops, strict=True))
            run = slice(target, target + box.run)
            out[run] = box.fill if box.operand < 0 else inputs[box.operand].ravel()[source : source + box.run]
    return out


@pytest.mark.parametrize("seed", range(20))
def test_boxes_are_what_numpy_does(seed: int) -> None:
    b = Builder(seed)
    rows = b.rng.integers(-1, 5, 6)
    channels = [1, 2, 5] if seed % 2 else None
    y = b.gather(b.input((2, 5, 4, 6)), None, rows, [3, 2, 1, 0, -1], channels, fill=7)
    y = b.transpose(y, b.rng.permutation(4).tolist())
    program = b.build(b.concat([y, y], int(b.rng.integers(4))))
    values = reference.execute(program, b.feed(), keep=True)
    for op in program.operations:
        inputs, wanted = [values[n] for n in op.inputs], values[op.output]
        boxes = list(moves.boxes(op, [i.shape for i in inputs], wanted.shape))
        assert all(len(box.loops) <= MAX_LOOPS for box in boxes)
        assert sum(box.bytes for box in boxes) == wanted.size
        np.testing.assert_array_equal(carried_out(boxes, inputs, wanted.size), wanted.ravel())
        pieces = [piece for box in boxes for piece in moves.split(box, 13)]
        assert max(piece.bytes for piece in pieces) <= 13
        np.testing.assert_array_equal(carried_out(pieces, inputs, wanted.size), wanted.ravel())


def test_a_whole_slice_is_one_long_run() -> None:
    b = Builder()
    b.gather(b.input((1, 8, 4, 6)), None, range(2, 6), None, None)
    assert moves.boxes(b.operations[0], [(1, 8, 4, 6)], (1, 4, 4, 6)) == (Box(0, 48, 0, (), 96),)


def test_heads_of_attention_move_in_runs_of_a_head() -> None:
    b = Builder()
    b.transpose(b.input((128, 12, 64)), (1, 0, 2))
    (box,) = moves.boxes(b.operations[0], [(128, 12, 64)], (12, 128, 64))
    assert (box.run, box.loops) == (64, ((12, 64, 8192), (128, 768, 64)))


def test_a_reversed_axis_walks_backwards() -> None:
    b = Builder()
    b.gather(b.input((4, 3)), [3, 2, 1, 0], None)
    (box,) = moves.boxes(b.operations[0], [(4, 3)], (4, 3))
    assert box == Box(0, 9, 0, ((4, -3, 3),), 3)
    assert (box.source_first, box.source_span, box.target_span) == (0, 12, 12)
