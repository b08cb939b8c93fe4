"""Depthwise convolutions, pools and means on the vector lanes, tile by tile."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np

from qcompiler.codegen.npu.context import Context, Place
from qcompiler.codegen.npu.hazards import Buffer
from qcompiler.codegen.npu.output import TilePixels
from qcompiler.sim import isa, mapping
from qcompiler.sim.integer_program import AveragePool2d, Conv2d, MaxPool2d, Mean, Requantize, Table
from qcompiler.sim.isa.post import SHARED_FLAG, TABLE_BYTES, TABLE_FLAG, RoundingCode, encode_records
from qcompiler.sim.isa.vector import MAXIMUM, SUM
from qcompiler.sim.isa.window import MAX_WINDOW_BYTES
from qcompiler.sim.mapping import Mapping, Tile
from qcompiler.sim.reference import pool_counts
from qcompiler.sim.workload import Geometry, Layer


def _table(layer: Layer) -> bytes:
    return b"".join(op.table.tobytes() for op in layer.operations[1:] if isinstance(op, Table))


def _window_fields(g: Geometry, step: Tile) -> tuple[dict[str, Any], tuple[int, int, int, int]]:
    """Window operands of an instruction on a step, and the part of the image that it sees."""
    part = mapping.input_window(g, step)
    return {
        "in_h": part[1] - part[0], "in_w": part[3] - part[2],
        "y0": step.y0 * g.stride[0] - g.padding[0] - part[0], "x0": step.x0 * g.stride[1] - g.padding[1] - part[2],
        "stride_y": g.stride[0], "stride_x": g.stride[1], "dilation_y": g.dilation[0], "dilation_x": g.dilation[1],
        "kernel_h": g.kernel[0], "kernel_w": g.kernel[1], "out_h": step.y1 - step.y0, "out_w": step.x1 - step.x0,
    }, part  # fmt: skip


class _Windows:
    """What depthwise and pool share: staging, the part of the image under a step, the output."""

    def __init__(self, context: Context, layer: Layer, m: Mapping) -> None:
        self.context, self.g, self.m = context, layer.geometry, m
        op = layer.operations[0]
        self.image, self.output = context.places[op.inputs[0]], context.places[layer.output]
        self.zero = context.zero(op.inputs[0])

    def stage(self, tile: Tile) -> None:
        _, h, w, c = self.g.image
        y0, y1, x0, x1 = self.window = mapping.input_window(self.g, tile)
        offset = ((tile.n * h + y0) * w + x0) * c
        self.here, self.row_pitch = self.context.stage(self.image, "image", offset, y1 - y0, (x1 - x0) * c, w * c)

    def under(self, part: tuple[int, int, int, int], channel: int, width: int) -> tuple[Place, dict[str, Any]]:
        c = self.g.image[3]
        offset = (part[0] - self.window[0]) * self.row_pitch + (part[2] - self.window[2]) * c
        place = self.here.at(offset + channel)
        return place, {"address": place.address, "row_pitch": self.row_pitch, "pixel_pitch": c}

    def emit(self, kind: type[isa.Depthwise] | type[isa.Pool], step: Tile, out: TilePixels, parameters: Buffer | None,
             channel: int, width: int, pixels: int, fields: dict[str, Any]) -> None:  # fmt: skip
        """One instruction; `pixels` neighbouring output pixels are treated as one."""
        window, part = _window_fields(self.g, step)
        place, source = self.under(part, channel, width)
        address, written = out.part(step, channel, width)
        read = place.region(0, (part[1] - part[0] - 1) * self.row_pitch + (part[3] - part[2]) * self.g.image[3])
        if pixels > 1:
            window |= {"stride_x": pixels, "out_w": window["out_w"] // pixels}
        instruction = kind(
            **source, **window, width=width * pixels, zero=self.zero, out_address=address,
            out_row_pitch=out.row_pitch, out_pixel_pitch=out.pixel_pitch * pixels, **fields,
        )  # fmt: skip
        reads = [read] if parameters is None else [read, parameters.all()]
        self.context.stream.emit(instruction, reads, [written])


def depthwise(context: Context, layer: Layer, m: Mapping) -> None:
    """A convolution with one input and one output channel a group."""
    op, g, work = layer.operations[0], layer.geometry, _Windows(context, layer, m)
    assert isinstance(op, Conv2d)
    r, table, record = op.requantize, _table(layer), RoundingCode[op.requantize.rounding].record_bytes
    scale = np.broadcast_to(r.scale, op.bias.shape)
    together = mapping.merged_pixels(g, m, context.machine)
    groups = mapping.cut(0, g.output[3], m.group * context.machine.vector.lanes)
    addresses = []
    for first, last in groups:
        weight = op.weight[first:last, :, :, 0].transpose(1, 2, 0).reshape(-1, last - first)
        records = encode_records(op.bias[first:last], scale[first:last], r.rounding) * together
        addresses.append(context.constant(np.tile(weight, (1, together)).tobytes() + records + table))
    taps = g.kernel[0] * g.kernel[1]

    def load(index: int) -> Buffer:
        first, last = groups[index]
        size = (taps + record) * (last - first) * together + len(table)
        return context.load_parameters(addresses[index], size)

    def body(tile: Tile, index: int, parameters: Buffer) -> None:
        first, last = groups[index]
        width = last - first
        at = parameters.address + taps * width * together
        fields = {
            "weights": parameters.address, "params": at, "rounding": RoundingCode[r.rounding],
            "out_zero": r.zero_point, "minimum": r.minimum, "maximum": r.maximum,
            "post": TABLE_FLAG * bool(table), "table": at + record * width * together if table else 0,
        }  # fmt: skip
        out = TilePixels(context, work.output, g, tile, first, last).open("output")
        for step in mapping.steps(tile, m):
            for piece in mapping.merged_pieces(step, together):
                work.emit(isa.Depthwise, piece, out, parameters, first, width, together, fields)
        out.drain()

    tiles = mapping.tiles(g, m)
    if m.groups_outer:
        for index in range(len(groups)):
            parameters = load(index)
            for tile in tiles:
                if len(tiles) > 1 or index == 0:
                    work.stage(tile)
                body(tile, index, parameters)
        return
    parameters = load(0)
    for i, tile in enumerate(tiles):
        work.stage(tile)
        for index in range(len(groups)):
            if len(groups) > 1 and i + index > 0:
                parameters = load(index)
            body(tile, index, parameters)


def pool(context: Context, layer: Layer, m: Mapping) -> None:
    """Maximum and average pools, and means."""
    op, g, work = layer.operations[0], layer.geometry, _Windows(context, layer, m)
    table, channels = _table(layer), layer.geometry.output[3]
    requantize: Requantize | None = getattr(op, "requantize", None)
    counts = np.zeros(g.output[1:3], dtype=np.int64)
    if isinstance(op, AveragePool2d):
        counts = np.maximum(pool_counts(op, g.image, g.output)[0, :, :, 0], 1)
    distinct = np.unique(counts).tolist()
    data, record = b"", 0
    if requantize is not None:
        assert isinstance(op, (AveragePool2d, Mean))
        scale = requantize.scale[[n - 1 for n in distinct]] if isinstance(op, AveragePool2d) else requantize.scale
        record = RoundingCode[requantize.rounding].record_bytes
        data = encode_records(np.zeros(len(scale), dtype=np.int32), scale, requantize.rounding)
    data += table
    parameters = context.load_parameters(context.constant(data), len(data)) if data else None
    base = parameters.address if parameters else 0
    spans = mapping.cut(0, channels, max(MAX_WINDOW_BYTES // math.prod(g.kernel), 1))
    for tile in mapping.tiles(g, m):
        work.stage(tile)
        out = TilePixels(context, work.output, g, tile, 0, channels).open("output")
        for step in mapping.steps(tile, m):
            for piece, (first, last) in product(mapping.uniform_pieces(step, counts), spans):
                fields = {"mode": MAXIMUM, "params": 0, "out_zero": 0, "post": TABLE_FLAG * bool(table),
                          "table": base + len(data) - TABLE_BYTES if table else 0}  # fmt: skip
                if requantize is not None:
                    index = distinct.index(int(counts[piece.y0, piece.x0]))
                    fields |= {
                        "mode": SUM, "params": base + index * record, "out_zero": requantize.zero_point,
                        "rounding": RoundingCode[requantize.rounding], "minimum": requantize.minimum,
                        "maximum": requantize.maximum, "post": fields["post"] | SHARED_FLAG,
                    }  # fmt: skip
                else:
                    assert isinstance(op, MaxPool2d)
                work.emit(isa.Pool, piece, out, parameters, first, last - first, 1, fields)
        out.drain()
