"""Register tiles: they fit, they beat the alternatives in the model, and the compiler keeps them in registers."""

from __future__ import annotations

import re

import pytest
from single_operation import VECTOR_LEVELS, conv_program

from qcompiler.codegen.cpu.compile import compile_function
from qcompiler.codegen.cpu.contraction import Geometry, task_count
from qcompiler.codegen.cpu.conv import conv2d
from qcompiler.codegen.cpu.kernel import Group
from qcompiler.codegen.cpu.packed_weights import Blocks, channel_order, pack_units
from qcompiler.codegen.cpu.tiles import choose_tile, cycles, fits

SHAPES = {  # lines, pixels, channels, quads of the window
    "resnet 3x3, 56": (56, 56, 64, 144),
    "resnet 3x3, 7": (7, 7, 512, 1152),
    "1x1, 14": (1, 196, 1024, 64),
    "vector": (1, 1, 1000, 512),
    "tiny": (2, 3, 5, 1),
    "bert": (1, 128, 3072, 192),
}


def geometry(name: str) -> Geometry:
    lines, pixels, channels, quads = SHAPES[name]
    run = 4 * quads
    return Geometry(((1, 0, 0),), lines, pixels, channels, quads, lines * pixels * run, pixels * run, run)


@pytest.mark.parametrize("level", VECTOR_LEVELS.values(), ids=list(VECTOR_LEVELS))
@pytest.mark.parametrize("name", SHAPES)
def test_the_tile_fits_and_none_is_cheaper(level, name):
    shape = geometry(name)
    tile = choose_tile(level, shape)
    assert fits(level, tile.lines * tile.pixels, tile.vectors)
    assert tile.lines <= shape.lines and tile.pixels <= shape.pixels
    best = cycles(level, shape, tile.lines, tile.pixels, tile.vectors)
    for pixels in range(1, shape.pixels + 1):
        for vectors in range(1, min(4, -(-shape.channels // level.lanes(4))) + 1):
            if fits(level, pixels, vectors):
                assert best <= cycles(level, shape, 1, pixels, vectors)


@pytest.mark.parametrize("level", VECTOR_LEVELS.values(), ids=list(VECTOR_LEVELS))
def test_large_work_comes_in_tasks_that_threads_can_share(level):
    for name in ("resnet 3x3, 56", "resnet 3x3, 7", "1x1, 14", "bert"):
        shape = geometry(name)
        assert task_count(shape, choose_tile(level, shape), level.lanes(4)) >= 16


@pytest.mark.parametrize("level", VECTOR_LEVELS.values(), ids=list(VECTOR_LEVELS))
def test_the_inner_loop_touches_no_stack(level):
    """The loop over the window holds dots, weight loads and broadcasts, and no spilled accumulator."""
    program = conv_program(1, 1, 14, 14, 64, 128, (3, 3), padding=(1, 1, 1, 1))
    kernel = conv2d(Group(program.operations, program.tensors), level)[-1].kernel
    assembly = compile_function(kernel.template(level, **kernel.parameters), "kernel", level).inspect_source("asm")
    loop = innermost_loop(assembly, r"vpdpbusd|vpmaddwd")
    assert sum(bool(re.search(r"vpdpbusd|vpmaddwd", line)) for line in loop) >= 8
    assert not [line for line in loop if "mm" in line and "%rsp" in line]


def innermost_loop(assembly: str, wanted: str) -> list[str]:
    """The instructions between a label and the first jump back to it, for the loop with most `wanted` ones."""
    lines = [line.strip() for line in assembly.splitlines() if line.strip()]
    labels: dict[str, int] = {}
    best: list[str] = []
    for i, line in enumerate(lines):
        if label := re.fullmatch(r"(\.LBB\d+_\d+):.*", line):
            labels[label[1]] = i
        jump = re.match(r"j\w+\s+(\.LBB\d+_\d+)", line)
        if jump and jump[1] in labels:
            body = lines[labels[jump[1]] + 1 : i]
            if not any(re.match(r"\.LBB", inner) for inner in body):
                best = max(best, body, key=lambda b: sum(bool(re.search(wanted, line)) for line in b))
    return best


@pytest.mark.parametrize("level", VECTOR_LEVELS.values(), ids=list(VECTOR_LEVELS))
@pytest.mark.parametrize("channels, vectors", [(1, 1), (70, 4), (130, 3), (1000, 8)])
def test_every_channel_has_one_lane(level, channels, vectors):
    lanes = level.lanes(4)
    order = channel_order(level, Blocks(lanes, channels, vectors))
    assert sorted(order[order >= 0]) == list(range(channels)) and len(order) % lanes == 0
    whole = channel_order(level, Blocks(lanes, channels, vectors, whole=True))
    assert len(whole) % (lanes * vectors) == 0 and sorted(whole[whole >= 0]) == list(range(channels))


@pytest.mark.parametrize("vectors, rows", [(1, 5), (2, 3), (3, 2), (4, 2), (8, 1), (6, 2)])
def test_accumulators_are_packed_once_and_at_most_four_together(vectors, rows):
    units = pack_units(vectors, rows)
    assert sorted(slot for unit in units for slot in unit) == [(r, v) for r in range(rows) for v in range(vectors)]
    assert all(len(unit) <= 4 for unit in units)
