"""The kernel of a piece of matrix work: on tiles where the level has them and the cost model likes them better."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace

from qcompiler.codegen.cpu import amx_contraction
from qcompiler.codegen.cpu.amx_contraction import MatrixTile
from qcompiler.codegen.cpu.amx_tiles import choose_matrix_tile, rank_matrix_tiles
from qcompiler.codegen.cpu.contraction import Geometry, Tile, contraction, contraction_kernel, task_count
from qcompiler.codegen.cpu.epilogue import Fused
from qcompiler.codegen.cpu.isa.amx import Amx
from qcompiler.codegen.cpu.isa.base import Array, VectorInstructionSet
from qcompiler.codegen.cpu.kernel import Kernel
from qcompiler.codegen.cpu.requantize import Rescale
from qcompiler.codegen.cpu.tiles import choose_tile, rank_tiles
from qcompiler.sim.integer_program import Requantize

Tiling = Tile | MatrixTile
_chosen: ContextVar[Mapping[Geometry, Tiling]] = ContextVar("chosen tilings", default={})  # noqa: B039 - never written


@contextmanager
def tilings(chosen: Mapping[Geometry, Tiling]) -> Iterator[None]:
    """Within, `matrix_kernel` cuts these geometries so, whatever the model says: what tuning found for the level."""
    token = _chosen.set(chosen)
    try:
        yield
    finally:
        _chosen.reset(token)


def default_tiling(isa: VectorInstructionSet, geometry: Geometry) -> Tiling:
    """What the cost model takes."""
    if isinstance(isa, Amx) and (tile := choose_matrix_tile(isa, geometry)) is not None:
        return tile
    return choose_tile(isa, geometry)


def candidate_tilings(isa: VectorInstructionSet, geometry: Geometry, count: int) -> list[Tiling]:
    """The most promising ways to cut a geometry of constant weights, the model's own choice first."""
    ranked: list[tuple[float, Tiling]] = [*rank_tiles(isa, geometry)[:count]]
    if isinstance(isa, Amx):
        ranked += rank_matrix_tiles(geometry)[:count]
    ranked.sort(key=lambda item: item[0])
    first = default_tiling(isa, geometry)
    turned: Tiling = replace(first, channels_outer=not first.channels_outer)
    return list(dict.fromkeys([first, *(tile for _, tile in ranked[: count - 2]), turned]))[:count]


def matrix_kernel(
    name: str, isa: VectorInstructionSet, geometry: Geometry, weights: Array, bias: Array, offset: int,
    requantize: Requantize, bound: Array, fused: Fused,
) -> Kernel:  # fmt: skip
    """The kernel for constant weights; see `contraction.contraction_kernel` for the arguments."""
    tile = _chosen.get().get(geometry) or default_tiling(isa, geometry)
    if isinstance(tile, MatrixTile):
        assert isinstance(isa, Amx)
        return amx_contraction.amx_kernel(name, isa, geometry, tile, weights, bias, offset, requantize, bound, fused)
    return contraction_kernel(name, isa, geometry, tile, weights, bias, offset, requantize, bound, fused)


def packed_kernel(
    name: str, isa: VectorInstructionSet, geometry: Geometry, rescale: Rescale, constants: tuple[Array, ...],
    fused: Fused,
) -> Kernel:  # fmt: skip
    """The kernel for weights packed at run time (`operand_packing`); constants: those of the requantisation."""
    if isinstance(isa, Amx) and (matrix_tile := choose_matrix_tile(isa, geometry)) is not None:
        return amx_contraction.packed_amx_kernel(name, isa, geometry, matrix_tile, rescale, constants, fused)
    tile = choose_tile(isa, geometry)
    parameters = {"geometry": geometry, "tile": tile, "rescale": rescale, "fused": fused.operations}
    tasks = task_count(geometry, tile, isa.lanes(4))
    return Kernel(name, contraction, parameters, tasks, (*constants, *fused.constants))
