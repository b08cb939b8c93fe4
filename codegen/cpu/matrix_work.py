"""The kernel of a piece of matrix work: on tiles where the level has them and the cost model likes them better."""

from __future__ import annotations

from qcompiler.codegen.cpu import amx_contraction
from qcompiler.codegen.cpu.amx_tiles import choose_matrix_tile
from qcompiler.codegen.cpu.contraction import Geometry, contraction, contraction_kernel, task_count
from qcompiler.codegen.cpu.epilogue import FusedOp
from qcompiler.codegen.cpu.isa.amx import Amx
from qcompiler.codegen.cpu.isa.base import Array, VectorInstructionSet
from qcompiler.codegen.cpu.kernel import Kernel
from qcompiler.codegen.cpu.requantize import Rescale
from qcompiler.codegen.cpu.tiles import choose_tile
from qcompiler.sim.integer_program import Requantize


def matrix_kernel(
    name: str, isa: VectorInstructionSet, geometry: Geometry, weights: Array, bias: Array, offset: int,
    requantize: Requantize, bound: Array, fused: tuple[FusedOp, ...],
) -> Kernel:  # fmt: skip
    """The kernel for constant weights; see `contraction.contraction_kernel` for the arguments."""
    if isinstance(isa, Amx) and (tile := choose_matrix_tile(isa, geometry)) is not None:
        return amx_contraction.amx_kernel(
            name, isa, geometry, tile, weights, bias, offset, requantize, bound, fused
        )  # fmt: skip
    return contraction_kernel(
        name, isa, geometry, choose_tile(isa, geometry), weights, bias, offset, requantize, bound, fused
    )  # fmt: skip


def packed_kernel(
    name: str, isa: VectorInstructionSet, geometry: Geometry, rescale: Rescale, constants: tuple[Array, ...],
    fused: tuple[FusedOp, ...],
) -> Kernel:  # fmt: skip
    """The kernel for weights packed at run time (`operand_packing`); constants: those of the requantisation."""
    if isinstance(isa, Amx) and (matrix_tile := choose_matrix_tile(isa, geometry)) is not None:
        return amx_contraction.packed_amx_kernel(name, isa, geometry, matrix_tile, rescale, constants, fused)
    tile = choose_tile(isa, geometry)
    parameters = {"geometry": geometry, "tile": tile, "rescale": rescale, "fused": fused}
    return Kernel(name, contraction, parameters, task_count(geometry, tile, isa.lanes(4)), constants)
