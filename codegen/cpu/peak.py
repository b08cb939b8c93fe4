"""The most that a core of this machine can do at an instruction-set level: dot products on registers, nothing else."""

from __future__ import annotations

from typing import Any

from qcompiler.codegen.cpu.emit import Emitter, bits, constant, splat
from qcompiler.codegen.cpu.isa.amx import ACCUMULATORS, TILE_BYTES, TILE_ROW_BYTES, TILE_ROWS, TILES, Amx
from qcompiler.codegen.cpu.isa.base import VectorInstructionSet
from qcompiler.codegen.cpu.kernel import Kernel, Step
from qcompiler.codegen.cpu.loops import tasks
from qcompiler.codegen.cpu.measure import LoadedSteps

VECTORS, ROUNDS = 2, 10000


def _dots(isa: VectorInstructionSet, rows: int) -> Any:
    """Dot products of vectors. Each row's operand is an accumulator of another row, so that none is folded."""
    e = Emitter()
    lanes = isa.lanes(4)
    y = e.buffer("y", rows * VECTORS * lanes, "int32")
    with tasks(e) as task:
        acc = e.registers(rows * VECTORS, f"int32x{lanes}")
        for i in range(rows * VECTORS):
            acc[i] = splat(task + i, "int32", lanes)
        pattern = bits(splat(0x7F3F1F0F, "int32", lanes), f"{isa.storage}x{4 * lanes}")
        parts = isa.as_weights([pattern], lanes)
        weights = tuple(part for part, _, _ in parts)
        with e.loop(ROUNDS, "round"):
            for r in range(rows):
                other = acc[(r + 1) % rows * VECTORS]
                if isa.operand_dtype == isa.storage:
                    operand = isa.operand(bits(other, f"{isa.storage}x{4 * lanes}"), lanes)
                else:  # activations are widened before they come here
                    operand = tuple(bits(other, f"{dtype}x{count}") for _, dtype, count in parts)
                operand = tuple(e.bind(part, str(part.ty.dtype)) for part in operand)
                for i in range(r * VECTORS, (r + 1) * VECTORS):
                    acc[i] = isa.dot(acc[i], operand, weights, lanes)
        for i in range(rows * VECTORS):
            e.store(y, i * lanes, acc[i], lanes)
    return e.function()


def _tile_dots(isa: Amx) -> Any:
    """Matrix products of whole tiles: four accumulators, two tiles of each operand."""
    e = Emitter()
    configuration = e.buffer("configuration", TILE_ROW_BYTES, "uint8")
    y = e.buffer("y", TILE_BYTES // 4, "int32")
    with tasks(e):
        isa.configure(e, configuration)
        for tile in range(TILES):
            isa.tile_zero(e, tile)
        with e.loop(ROUNDS, "round"):
            for acc in range(ACCUMULATORS):
                isa.tile_dot(e, acc, ACCUMULATORS + acc % 2, ACCUMULATORS + 2 + acc // 2)
        isa.tile_store(e, 0, y, constant(0), TILE_ROW_BYTES)
        isa.release(e)
    return e.function()


def peak(isa: VectorInstructionSet, repeat: int = 50) -> float:
    """int8 multiply-accumulates a second of one core, measured in some milliseconds on a CPU that has the level."""
    if isinstance(isa, Amx):
        shapes = isa.tile_configuration([(TILE_ROWS, TILE_ROW_BYTES)] * TILES)
        kernel = Kernel("tile_dots", _tile_dots, {}, 1, (shapes,), extended=True)
        macs = ROUNDS * ACCUMULATORS * TILE_ROWS * TILE_BYTES
        step = Step(kernel, (), "y", TILE_BYTES)
    else:
        rows = isa.registers * 3 // 8
        outputs = rows * VECTORS * isa.vector_bytes
        macs, step = ROUNDS * outputs, Step(Kernel("dots", _dots, {"rows": rows}, 1), (), "y", outputs)
    return macs / LoadedSteps([step], isa, {}).seconds(0, repeat)
