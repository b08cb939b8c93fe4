"""Convolutions, dense layers and matrix products: tiles, groups, steps and blocks become instructions.

Every block of a step is one MatrixMultiply into the accumulators and one Requantize out of them; the tail of the
layer (table, residual add) rides on the latter. Accumulators and all staging memories are handed out in turn, so
that loads, the array, the vector unit and stores work on different pieces at the same time.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from qcompiler.codegen.npu.context import Context, Place
from qcompiler.codegen.npu.hazards import Buffer, Region
from qcompiler.codegen.npu.output import TilePixels
from qcompiler.sim import isa, mapping
from qcompiler.sim.integer_program import Add, Conv2d, Dense, MatMul, Requantize, Table
from qcompiler.sim.isa import Queue, Space
from qcompiler.sim.isa.packing import pack
from qcompiler.sim.isa.post import (
    ADD_FLAG,
    SHARED_FLAG,
    TABLE_FLAG,
    RoundingCode,
    encode_add_record,
    encode_records,
)  # fmt: skip
from qcompiler.sim.mapping import Mapping, Part, Tile
from qcompiler.sim.workload import Geometry, Layer

ACCUMULATE, OUTPUT_STATIONARY, TRANSPOSED, PACKED = 1, 2, 8, 16
Block = tuple[int, int, int]  # group of the convolution, first output channel, channels


@dataclass(frozen=True)
class Weights:
    """A block's weights in the weight memory: w[k, n] in row k at address + k*pitch (in row n when transposed)."""

    address: int
    pitch: int
    transposed: bool
    packed: bool
    region: Region


@dataclass
class Problem:
    """One image against one set of weights. load: a part of a group of blocks into the weight memory, one a block."""

    geometry: Geometry
    image: Place
    output: Place
    operand: Place | None
    zero: int
    weight_zero: int
    load: Callable[[list[Block], int], list[Weights]]


class Tail:
    """The constants of the vector unit behind matrix work: records, add record and table, one chunk a group."""

    def __init__(self, context: Context, layer: Layer, bias: np.ndarray, requantize: Requantize) -> None:
        self.context, self.requantize, self.bias = context, requantize, bias
        self.code = RoundingCode[requantize.rounding]
        self.shared = isinstance(layer.operations[0], MatMul)
        self.table = b""
        value = layer.operations[0].output
        self.add_record = b""
        for op in layer.operations[1:]:
            if isinstance(op, Table):
                self.table = op.table.tobytes()
            elif isinstance(op, Add):
                a, b = op.multiplier_a, op.multiplier_b
                a, b = (a, b) if op.inputs[0] == value else (b, a)
                self.add_record = encode_add_record(a, b, op.bias, op.shift, op.minimum, op.maximum)
            value = op.output
        self.chunks: dict[tuple[int, int], tuple[int, int]] = {}

    def load(self, first: int, last: int) -> Buffer:
        """The chunk of channels first..last-1 into the parameter memory."""
        if (first, last) not in self.chunks:
            scale = self.requantize.scale
            part = slice(0, 1) if self.shared else slice(first, last)
            scale = scale[part] if len(scale) > 1 else np.repeat(scale, 1 if self.shared else last - first)
            data = encode_records(self.bias[part], scale, self.requantize.rounding) + self.add_record + self.table
            self.chunks[first, last] = (self.context.constant(data), len(data))
        return self.context.load_parameters(*self.chunks[first, last])

    def operands(self, chunk: Buffer, first: int, channel: int) -> dict[str, Any]:
        """Operands of the instruction for the channels from `channel` on; the chunk begins with channel `first`."""
        at = 0 if self.shared else (channel - first) * self.code.record_bytes
        rest = chunk.address + chunk.size - len(self.table) - len(self.add_record)
        r = self.requantize
        post = SHARED_FLAG * self.shared + ADD_FLAG * bool(self.add_record) + TABLE_FLAG * bool(self.table)
        return {
            "params": chunk.address + at, "rounding": self.code, "out_zero": r.zero_point, "minimum": r.minimum,
            "maximum": r.maximum, "post": post, "add_params": rest if self.add_record else 0,
            "table": rest + len(self.add_record) if self.table else 0,
        }  # fmt: skip


def constant_weights(
    context: Context, weight: np.ndarray, parts: list[Part]
) -> Callable[[list[Block], int], list[Weights]]:
    """Loader of a constant weight [O, KH, KW, I]: a part of each block, packed as [K, channels] in reading order."""
    addresses: dict[tuple[int, int], int] = {}
    array = context.machine.matrix

    def load(group: list[Block], index: int) -> list[Weights]:
        part = parts[index]
        piece = weight[:, part.row : part.row + part.rows, :, part.channel : part.channel + part.channels]
        k = math.prod(piece.shape[1:])
        buffer = context.weights.take("weights", sum(k * array.weight_row_bytes(width) for _, _, width in group))
        result, at = [], 0
        for _, first, width in group:
            pitch = array.weight_row_bytes(width)
            size = k * pitch
            if (first, index) not in addresses:
                rows = pack(piece[first : first + width].reshape(width, k).T, array.weight_bits)
                addresses[first, index] = context.constant(rows.tobytes())
            context.fetch(addresses[first, index], size, Space.weight, buffer, at)
            region = Region(buffer, at, at + size)
            result.append(Weights(buffer.address + at, pitch, False, array.weight_bits < 8, region))
            at += size
        return result

    return load


def activation_weights(
    context: Context, b: Place, k: int, n: int, transposed: bool, turn: bool
) -> Callable[[list[Block], int], list[Weights]]:
    """Loader of a matrix [K, N] ([N, K] transposed) that is itself an activation, never in parts.

    turn: transpose it on the way, byte by byte, for an array that only takes rows of w.
    """

    def load(group: list[Block], index: int) -> list[Weights]:
        assert index == 0
        first, columns = group[0][1], sum(width for _, _, width in group)
        buffer = context.weights.take("b", k * columns)
        offset = first * k if transposed else first
        if turn:
            loops: dict[str, Any] = {"run_bytes": 1, "n2": k, "source_stride2": 1, "target_stride2": columns,
                                     "n3": columns, "source_stride3": k, "target_stride3": 1}  # fmt: skip
            span = k * columns
        else:
            runs, run = (1, k * columns) if transposed or columns == n else (k, columns)
            loops = {"run_bytes": run, "n3": runs, "source_stride3": n, "target_stride3": columns}
            span = (runs - 1) * n + run
        copy = isa.Copy(
            unit=context.queue_from(b), source=b.space, target=Space.weight, source_address=b.address + offset,
            target_address=buffer.address, **loops,
        )  # fmt: skip
        context.stream.emit(copy, [b.region(offset, offset + span)], [buffer.all()])
        if transposed and not turn:
            return [Weights(buffer.address + (c - first) * k, k, True, False, buffer.all()) for _, c, _ in group]
        return [Weights(buffer.address + c - first, columns, False, False, buffer.all()) for _, c, _ in group]

    return load


def problems(context: Context, layer: Layer, m: Mapping, parts: list[Part]) -> list[Problem]:
    """The GEMMs of a layer: one, or one a batch of a matrix product."""
    op, g = layer.operations[0], layer.geometry
    image, output = context.places[op.inputs[0]], context.places[layer.output]
    others = [n for o in layer.operations[1:] for n in o.inputs if n in layer.inputs]
    operand = context.places[others[0]] if others else None
    zero = context.zero(op.inputs[0])
    if not isinstance(op, MatMul):
        assert isinstance(op, (Conv2d, Dense))
        weight = op.weight if op.weight.ndim == 4 else op.weight[:, None, None, :]
        return [Problem(g, image, output, operand, zero, 0, constant_weights(context, weight, parts))]
    (_, rows, _, k), n = g.image, g.output[3]
    shapes = [context.tensor(name).shape for name in op.inputs]
    batch = np.broadcast_shapes(shapes[0][:-2], shapes[1][:-2])
    index = [np.broadcast_to(np.arange(math.prod(s[:-2])).reshape(s[:-2]), batch).ravel() for s in shapes]
    one = dataclasses.replace(g, image=(1, rows, 1, k), output=(1, rows, 1, n))
    turn = op.transpose_b and m.output_stationary
    b, weight_zero = context.places[op.inputs[1]], context.zero(op.inputs[1])
    return [
        Problem(
            one, image.at(ia * rows * k), output.at(i * rows * n), operand.at(i * rows * n) if operand else None, zero,
            weight_zero, activation_weights(context, b.at(ib * k * n), k, n, op.transpose_b, turn),
        )
        for i, (ia, ib) in enumerate(zip(index[0].tolist(), index[1].tolist(), strict=True))
    ]  # fmt: skip


def lower(context: Context, layer: Layer, m: Mapping) -> None:
    """Emit the layer."""
    op = layer.operations[0]
    bias = getattr(op, "bias", np.zeros(layer.geometry.output[3], dtype=np.int32))
    tail = Tail(context, layer, bias, op.requantize)  # type: ignore[attr-defined]
    parts = mapping.parts(layer.geometry, m)
    for problem in problems(context, layer, m, parts):
        _Lowering(context, problem, m, tail, parts).run()


class _Lowering:
    def __init__(self, context: Context, problem: Problem, m: Mapping, tail: Tail, parts: list[Part]) -> None:
        self.parts = parts
        self.context, self.problem, self.m, self.tail = context, problem, m, tail
        self.g = problem.geometry

    def run(self) -> None:
        g, m = self.g, self.m
        blocks = mapping.blocks(g, self.context.machine)
        groups = [[b for _, b in part] for _, part in groupby(enumerate(blocks), key=lambda item: item[0] // m.group)]
        tiles = mapping.tiles(g, m)
        if m.groups_outer:
            for group in groups:
                loaded = self.load(group)  # before the image, which may have to wait for the layer before
                for tile in tiles:
                    if len(tiles) > 1 or group is groups[0]:
                        here = self.stage(tile)
                    self.body(tile, group, loaded, here)
        else:
            loaded = self.load(groups[0])
            for i, tile in enumerate(tiles):
                here = self.stage(tile)
                for group in groups:
                    if len(groups) > 1 and (i > 0 or group is not groups[0]):
                        loaded = self.load(group)
                    self.body(tile, group, loaded, here)

    def load(self, group: list[Block]) -> tuple[list[Weights], Buffer, int]:
        first, last = group[0][1], group[-1][1] + group[-1][2]
        parameters = self.tail.load(first, last)
        # The parts of a block that is too large for the weight memory come when they are needed.
        return self.problem.load(group, 0) if len(self.parts) == 1 else [], parameters, first

    def stage(self, tile: Tile) -> tuple[Place, int, tuple[int, int, int, int]]:
        """The part of the image that a tile reads: where it is, its row pitch, and the window it shows."""
        _, h, w, c = self.g.image
        y0, y1, x0, x1 = mapping.input_window(self.g, tile)
        offset = ((tile.n * h + y0) * w + x0) * c
        place, pitch = self.context.stage(self.problem.image, "image", offset, y1 - y0, (x1 - x0) * c, w * c)
        staged = (place, pitch, (y0, y1, x0, x1))
        return self.im2col(tile, staged) if self.m.im2col else staged

    def body(self, tile: Tile, group: list[Block], loaded: tuple[list[Weights], Buffer, int],
             staged: tuple[Place, int, tuple[int, int, int, int]]) -> None:  # fmt: skip
        """One group on one tile, step by step and block by block."""
        context, problem = self.context, self.problem
        weights, parameters, first = loaded
        last = group[-1][1] + group[-1][2]
        out = TilePixels(context, problem.output, self.g, tile, first, last).open("output")
        operand = None
        if problem.operand is not None:
            operand = TilePixels(context, problem.operand, self.g, tile, first, last).open("operand")
            operand.fill()
        # Ragged steps take as much: uneven pieces of a ring would wait for two that came before.
        room = self.m.step_h * self.m.step_w
        for step in mapping.steps(tile, self.m):
            for i, (conv_group, channel, width) in enumerate(group):
                accumulators = context.accumulators.take("accumulators", room)
                for index, part in enumerate(self.parts):
                    weight = weights[i] if weights else problem.load([group[i]], index)[0]
                    self.multiply(step, staged, conv_group, width, weight, part, accumulators)
                reads = [accumulators.all(), parameters.all()]
                fields: dict[str, Any] = {}
                if operand is not None:
                    address, region = operand.part(step, channel, width)
                    fields = {"add_address": address, "add_row_pitch": operand.row_pitch,
                              "add_pixel_pitch": operand.pixel_pitch}  # fmt: skip
                    reads.append(region)
                address, region = out.part(step, channel, width)
                requantize = isa.Requantize(
                    width=width, accumulator_row=accumulators.address, out_h=step.y1 - step.y0,
                    out_w=step.x1 - step.x0, out_address=address, out_row_pitch=out.row_pitch,
                    out_pixel_pitch=out.pixel_pitch, **fields, **self.tail.operands(parameters, first, channel),
                )  # fmt: skip
                context.stream.emit(requantize, reads, [region])
        out.drain()

    def im2col(self, tile: Tile, staged: tuple[Place, int, tuple[int, int, int, int]]
               ) -> tuple[Place, int, tuple[int, int, int, int]]:  # fmt: skip
        """Windows of the staged image side by side; the matrix instruction then sees a 1x1 convolution."""
        context, g = self.context, self.g
        place, row_pitch, (y0, y1, x0, x1) = staged
        target, pitch = context.slots["im2col"].next(), self.parts[0].kernel[2]
        rows, columns = tile.y1 - tile.y0, tile.x1 - tile.x0
        (kh, kw), c = g.kernel, g.image[3]
        run, kw = (kw * c, 1) if g.dilation[1] == 1 else (c, kw)
        gather = isa.Im2col(
            unit=Queue.load, source=Space.activation, address=place.address, row_pitch=row_pitch, pixel_pitch=c,
            in_h=y1 - y0, in_w=x1 - x0, y0=tile.y0 * g.stride[0] - g.padding[0] - y0,
            x0=tile.x0 * g.stride[1] - g.padding[1] - x0, stride_y=g.stride[0], stride_x=g.stride[1],
            dilation_y=g.dilation[0], dilation_x=g.dilation[1], kernel_h=kh, kernel_w=kw, out_h=rows, out_w=columns,
            run_bytes=run, target_address=target.address, target_pitch=pitch, zero=self.problem.zero,
        )  # fmt: skip
        reads = [place.region(0, (y1 - y0 - 1) * row_pitch + (x1 - x0) * c)]
        context.stream.emit(gather, reads, [target.region(0, rows * columns * pitch)])
        return target, columns * pitch, (tile.y0, tile.y1, tile.x0, tile.x1)

    def multiply(self, step: Tile, staged: tuple[Place, int, tuple[int, int, int, int]], conv_group: int, width: int,
                 weight: Weights, part: Part, accumulators: Buffer) -> None:  # fmt: skip
        """One part of one block of one step into its accumulators, the first part overwriting them."""
        context, g, m = self.context, self.g, self.m
        place, row_pitch, (y0, y1, x0, x1) = staged
        fields: dict[str, Any] = {"kernel_h": part.kernel[0], "kernel_w": part.kernel[1], "run": part.kernel[2]}
        if m.im2col:
            pixel_pitch, channel, seen = part.kernel[2], 0, (step.y0, step.y1, step.x0, step.x1)
        else:
            pixel_pitch, channel = g.image[3], conv_group * (g.image[3] // g.groups) + part.channel
            seen = mapping.input_window(g, step)
            fields |= {
                "y0": step.y0 * g.stride[0] - g.padding[0] + part.row * g.dilation[0] - seen[0],
                "x0": step.x0 * g.stride[1] - g.padding[1] - seen[2], "stride_y": g.stride[0], "stride_x": g.stride[1],
                "dilation_y": g.dilation[0], "dilation_x": g.dilation[1],
            }  # fmt: skip
        offset = (seen[0] - y0) * row_pitch + (seen[2] - x0) * pixel_pitch
        rows, columns = seen[1] - seen[0], seen[3] - seen[2]
        first = part is self.parts[0]
        multiply = isa.MatrixMultiply(
            address=place.address + offset + channel, row_pitch=row_pitch, pixel_pitch=pixel_pitch, in_h=rows,
            in_w=columns, out_h=step.y1 - step.y0, out_w=step.x1 - step.x0, zero=self.problem.zero, **fields,
            weight_address=weight.address, weight_pitch=weight.pitch, weight_zero=self.problem.weight_zero,
            columns=width, accumulator_row=accumulators.address,
            flags=ACCUMULATE * (not first) + OUTPUT_STATIONARY * m.output_stationary + TRANSPOSED * weight.transposed
            + PACKED * weight.packed,
        )  # fmt: skip
        reads = [place.region(offset, offset + (rows - 1) * row_pitch + columns * pixel_pitch), weight.region]
        context.stream.emit(multiply, reads, [accumulators.all()])
