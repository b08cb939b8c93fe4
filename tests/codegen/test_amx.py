"""Matrix work on AMX tiles equals the reference to the last bit, and its inner loop is what it should be."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

import numpy as np
import pytest
from single_operation import assert_exact, conv_program, matmul_program, program_of, random_scales, supported, with_add

from qcompiler.codegen.cpu import amx_tiles
from qcompiler.codegen.cpu.amx_contraction import MatrixTile, amx_contraction, task_count
from qcompiler.codegen.cpu.compile import compile_function
from qcompiler.codegen.cpu.contraction import Geometry
from qcompiler.codegen.cpu.conv import conv2d
from qcompiler.codegen.cpu.gemm import dense, matmul
from qcompiler.codegen.cpu.isa.amx import AMX
from qcompiler.codegen.cpu.kernel import Group
from qcompiler.codegen.cpu.requantize import Rescale
from qcompiler.sim.integer_program import Dense, Requantize, Tensor

runs = pytest.mark.skipif(not supported(AMX), reason="CPU lacks AMX")


@pytest.fixture
def always_tiles(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Take tiles however much cheaper vectors are."""
    monkeypatch.setattr(amx_tiles, "GAIN", float("inf"))
    amx_tiles.rank_matrix_tiles.cache_clear()
    yield
    amx_tiles.rank_matrix_tiles.cache_clear()


@pytest.fixture
def joined_lines(monkeypatch: pytest.MonkeyPatch, always_tiles: None) -> None:
    """Compute all lines of an image as one wherever that is possible."""
    cycles = amx_tiles._cycles
    monkeypatch.setattr(amx_tiles, "JOINED_TASKS", 1)
    monkeypatch.setattr(amx_tiles, "_cycles", lambda geometry, block: cycles(geometry, block) * (not block.joined))


CONVOLUTIONS = {
    "3x3, 7 wide": dict(n=1, h=7, w=7, c=16, o=32, kernel=(3, 3), padding=(1, 1, 1, 1)),
    "three channels, two images, strides, uneven padding": dict(
        n=2, h=9, w=11, c=3, o=24, kernel=(5, 3), stride=(2, 1), padding=(2, 1, 1, 0)
    ),
    "one channel": dict(n=1, h=12, w=9, c=1, o=17, kernel=(10, 4), stride=(2, 2), padding=(4, 1, 5, 1)),
    "dilation": dict(n=1, h=12, w=12, c=10, o=21, kernel=(3, 3), dilation=(2, 3), padding=(1, 0, 2, 3)),
    "groups": dict(n=1, h=6, w=6, c=24, o=36, kernel=(3, 3), groups=3, padding=(1, 1, 1, 1)),
    "1x1, ragged": dict(n=2, h=5, w=5, c=33, o=130, kernel=(1, 1), add="first"),
    "1x1, stride": dict(n=1, h=6, w=7, c=20, o=100, kernel=(1, 1), stride=(2, 2), padding=(1, 1, 1, 1), add="second"),
    "1x1, many tasks, 96 channels": dict(n=1, h=40, w=41, c=96, o=48, kernel=(1, 1)),
    "wide lines, channels outside": dict(n=1, h=5, w=37, c=64, o=96, kernel=(3, 3), padding=(1, 1, 1, 1), maximum=90),
    "one channel tile": dict(n=1, h=9, w=23, c=40, o=10, kernel=(2, 3), minimum=-20),
    "accumulators beyond 2**24": dict(n=1, h=8, w=8, c=80, o=20, kernel=(3, 3), wide=True),
}


@runs
@pytest.mark.usefixtures("always_tiles")
@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_convolution_is_exact(case):
    steps = assert_exact(conv_program(7, **CONVOLUTIONS[case]), conv2d, AMX)
    assert steps[-1].kernel.template is amx_contraction


@runs
@pytest.mark.usefixtures("always_tiles")
@pytest.mark.parametrize("kernel, images", [((1, 1), 1), ((3, 3), 2)])
def test_the_border_that_the_reader_pads_by_is_written(kernel, images):
    check_border(kernel, images, 9, 23, (0, 0, 0, 0))


@runs
@pytest.mark.usefixtures("joined_lines")
@pytest.mark.parametrize("add", ["", "second"])
@pytest.mark.parametrize("h, w, kernel", [(7, 7, (3, 3)), (2, 4, (1, 2)), (6, 11, (3, 1))])
def test_joined_lines_are_exact(h, w, kernel, add):
    """With and without a border around the output; nothing that lies between the lines of the input is left there."""
    padding = (kernel[0] // 2, kernel[1] // 2, (kernel[0] - 1) // 2, 2)
    program = conv_program(3, 2, h, w, 20, 70, kernel, padding=padding, add=add)
    steps = assert_exact(program, conv2d, AMX)
    assert steps[-1].kernel.parameters["tile"].joined
    check_border(kernel, 2, h, w, padding)


def check_border(kernel: tuple[int, int], images: int, h: int, w: int, padding: tuple[int, ...]) -> None:
    """A convolution that writes the border which its reader pads by, and the reader."""
    first = conv_program(1, images, h, w, 13, 70, kernel, padding=padding)
    second = conv_program(2, *first.tensors["y"].shape, 20, (3, 3), padding=(2, 1, 1, 3))
    reader = dataclasses.replace(second.operations[0], name="reader", inputs=("y",), output="z")
    tensors = [*first.tensors.values(), dataclasses.replace(second.tensors["y"], name="z")]
    program = program_of([*first.operations, reader], tensors, ["x"])

    def lower(whole, isa):
        steps = conv2d(Group(whole.operations[:1], whole.tensors), isa, border=reader.padding)
        steps += conv2d(Group((reader,), whole.tensors), isa, bordered=True)
        assert [step.kernel.template for step in steps if step.kernel.name == "conv2d"] == [amx_contraction] * 2
        return steps

    assert_exact(program, lower, AMX)


@runs
@pytest.mark.usefixtures("always_tiles")
@pytest.mark.parametrize("m, n, k", [(49, 75, 200), (4, 10, 3), (13, 64, 1025)])
def test_dense_is_exact(m, n, k):
    rng = np.random.default_rng(m * n * k)
    weight = rng.integers(-127, 128, (n, k)).astype(np.int8)
    bias = rng.integers(-20000, 20000, n).astype(np.int32)
    op = Dense("dense", ("x",), "y", weight, bias, Requantize(random_scales(rng, n, k, ""), 9))
    tensors = [Tensor("x", (m, k), "int8", 0.5, -77), Tensor("y", (m, n), "int8", 0.5, 9)]
    assert_exact(with_add([op], tensors, ["x"], "first"), dense, AMX)


@runs
@pytest.mark.usefixtures("always_tiles")
@pytest.mark.parametrize(
    "shape_a, shape_b, transposed, zero_b",
    [
        ((2, 20, 64), (2, 33, 64), True, 0),
        ((3, 2, 17, 32), (2, 32, 70), False, 5),
        ((7, 100), (100, 64), False, -3),
    ],
)
def test_product_of_activations_is_exact(shape_a, shape_b, transposed, zero_b):
    steps = assert_exact(matmul_program(shape_a, shape_b, transposed, zero_b), matmul, AMX)
    assert steps[-1].kernel.template is amx_contraction


BIG = Geometry(((1, 0, 0),), 14, 14, 256, 384, 16 * 16 * 512, 16 * 512, 512, rows=(3, 16 * 512))


def test_the_inner_loop_is_products_and_tile_loads():
    """Four products on four loads a step; no tile is ever spilled."""
    tile = MatrixTile(rows=14, row_tiles=2, vectors=2, step_quads=16, blocks=7, channels_outer=True)
    function = amx_contraction(AMX, BIG, tile, Rescale("fma", -128, 127, True))
    assembly = compile_function(function, "kernel", AMX).inspect_source("asm")
    body = assembly[: assembly.index(".Lfunc_end0")]
    blocks = re.split(r"^\.LBB\w+:$", body, flags=re.MULTILINE)
    loops = [b for b in blocks if "tdpbusd" in b and not re.search("vpack|tilezero|tilestored", b)]
    assert loops
    for loop in loops:
        assert loop.count("tdpbusd") == loop.count("tileloadd") and "zmm" not in loop
    assert body.count("tilestored") == 2 * 4  # at the next block's first step, and at the end of a task
    assert body.count("ldtilecfg") == body.count("tilerelease") == 1


def test_the_model_takes_tiles_for_large_work_only():
    def chosen(pixels: int, channels: int, quads: int) -> MatrixTile | None:
        return amx_tiles.choose_matrix_tile(
            AMX, Geometry(((1, 0, 0),), 1, pixels, channels, quads, pixels * quads * 4, 0, quads * 4)
        )

    assert chosen(196, 1024, 64) and chosen(128, 768, 192)
    assert chosen(1, 1000, 512) is None  # a fully connected layer on one vector: weight bandwidth
    assert chosen(3, 16, 4) is None


@pytest.mark.parametrize("pixels", [16, 49, 196, 784])
def test_the_chosen_block_fits(pixels):
    geometry = Geometry(((1, 0, 0),), 1, pixels, 512, 128, pixels * 512, 0, 512)
    tile = amx_tiles.choose_matrix_tile(AMX, geometry)
    assert tile.rows <= min(16, pixels) and tile.row_tiles * tile.vectors <= 4
    assert len(tile.tile_shapes) == 8 and AMX.tile_configuration(tile.tile_shapes).shape == (64,)
    assert task_count(geometry, tile) >= 8
