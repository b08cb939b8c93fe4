"""Element-wise and row-wise work: add, mul, tables, softmax, layer norm, bilinear resize, embedding."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from qcompiler.codegen.npu.context import Context, Place
from qcompiler.codegen.npu.hazards import Buffer, Region
from qcompiler.sim import isa
from qcompiler.sim.integer_program import Add, LayerNorm, Mul, ResizeLinear, Softmax, Table
from qcompiler.sim.isa import Queue, Space
from qcompiler.sim.isa.post import TABLE_BYTES, RoundingCode, encode_add_record, encode_records
from qcompiler.sim.loops import MAX_WIDTH, nest
from qcompiler.sim.mapping import Mapping, cut, resize_rows
from qcompiler.sim.workload import Layer


def _slice(context: Context, place: Place, slot: str, start: int, size: int) -> Place:
    """`size` consecutive bytes of a tensor on chip."""
    return context.stage(place, slot, start, 1, size, size)[0]


def _out(context: Context, place: Place, start: int) -> Place:
    return place.at(start) if place.resident else context.slots["output"].next()


def _drain(context: Context, source: Place, target: Place, start: int, size: int) -> None:
    if not target.resident:
        context.store(source, target, start, 1, size, size)


def binary(context: Context, layer: Layer, m: Mapping) -> None:
    """Add and Mul with any broadcast: chunks of the outermost loop."""
    op, loops = layer.operations[0], list(layer.geometry.loops)
    assert isinstance(op, (Add, Mul))
    names, slots, swapped = list(op.inputs), ["image", "operand"], loops[-1][1] == 0
    if swapped:  # the instruction repeats only its second operand along the channels
        names.reverse()
        slots.reverse()
        loops = [(n, b, a) for n, a, b in loops]
    a, b = (context.places[n] for n in names)
    out = context.places[layer.output]
    if isinstance(op, Add):
        multipliers = (op.multiplier_b, op.multiplier_a) if swapped else (op.multiplier_a, op.multiplier_b)
        data = encode_add_record(*multipliers, op.bias, op.shift, op.minimum, op.maximum)
    else:
        r = op.requantize
        data = encode_records(0, r.scale, r.rounding)
    parameters = context.load_parameters(context.constant(data), len(data))
    inner = math.prod(n for n, _, _ in loops[1:])
    strides = [math.prod(n for n, _, _ in loops[i + 1 :]) for i in range(len(loops))]
    spans = [1 + sum((n - 1) * loop[k] for n, *loop in loops[1:]) for k in (0, 1)]
    for first, last in cut(0, loops[0][0], m.tile_h):
        count = last - first
        sizes = [(count - 1) * loops[0][k + 1] + spans[k] for k in (0, 1)]
        pa = _slice(context, a, slots[0], first * loops[0][1], sizes[0])
        pb = _slice(context, b, slots[1], first * loops[0][2], sizes[1])
        po, size = _out(context, out, first * inner), count * inner
        chunk = [(count, *loops[0][1:], strides[0])] + [
            (n, sa, sb, so) for (n, sa, sb), so in zip(loops[1:], strides[1:], strict=True)
        ]
        for (oa, ob, oo), rows, pixels, width in nest(chunk, context.machine.vector.lanes):
            common: dict[str, Any] = {
                "out_h": rows[0], "out_w": pixels[0], "width": width[0],
                "a_address": pa.address + oa, "a_row_pitch": rows[1], "a_pixel_pitch": pixels[1],
                "b_address": pb.address + ob, "b_row_pitch": rows[2], "b_pixel_pitch": pixels[2],
                "b_scalar": int(width[2] == 0), "out_address": po.address + oo, "out_row_pitch": rows[3],
                "out_pixel_pitch": pixels[3], "params": parameters.address,
            }  # fmt: skip
            if isinstance(op, Add):
                instruction: isa.Instruction = isa.Add(**common)
            else:
                r = op.requantize
                instruction = isa.Multiply(
                    **common, a_zero=context.zero(names[0]), b_zero=context.zero(names[1]), out_zero=r.zero_point,
                    minimum=r.minimum, maximum=r.maximum, rounding=RoundingCode[r.rounding],
                )  # fmt: skip
            reads = [pa.region(0, sizes[0]), pb.region(0, sizes[1]), parameters.all()]
            context.stream.emit(instruction, reads, [po.region(0, size)])
        _drain(context, po, out, first * inner, size)


def table(context: Context, layer: Layer, m: Mapping) -> None:
    """Stand-alone look-ups: one table over all bytes, or one a channel in groups of channels."""
    op = layer.operations[0]
    assert isinstance(op, Table)
    image, out = context.places[op.inputs[0]], context.places[layer.output]
    if op.table.size == TABLE_BYTES:
        parameters = context.load_parameters(context.constant(op.table.tobytes()), TABLE_BYTES)

        def shared(source: Place, target: Place, size: int) -> None:
            for (at, _, _), rows, pixels, width in nest([(size, 1, 1, 1)], context.machine.vector.lanes):
                look_up = isa.Table(
                    out_h=rows[0], out_w=pixels[0], width=width[0], in_address=source.address + at,
                    in_row_pitch=rows[1], in_pixel_pitch=pixels[1], out_address=target.address + at,
                    out_row_pitch=rows[3], out_pixel_pitch=pixels[3], table=parameters.address,
                )  # fmt: skip
                context.stream.emit(look_up, [source.region(0, size), parameters.all()], [target.region(0, size)])

        _chunks(context, image, out, layer.geometry.image_bytes, m.tile_h, 1, shared)
        return
    channels = op.table.shape[0]
    groups = cut(0, channels, m.group * context.machine.vector.lanes)
    addresses = [context.constant(op.table[first:last].tobytes()) for first, last in groups]
    loaded = [context.load_parameters(addresses[0], TABLE_BYTES * groups[0][1])] if len(groups) == 1 else []

    def per_channel(source: Place, target: Place, size: int) -> None:
        for address, (first, last) in zip(addresses, groups, strict=True):
            tables = loaded[0] if loaded else context.load_parameters(address, TABLE_BYTES * (last - first))
            look_up = isa.Table(
                out_h=size // channels, out_w=1, width=last - first, in_address=source.address + first,
                in_row_pitch=channels, in_pixel_pitch=0, out_address=target.address + first, out_row_pitch=channels,
                out_pixel_pitch=0, table=tables.address, per_channel=1,
            )  # fmt: skip
            written = target.region(0, size, channels, first, last)
            if (target.address - target.buffer.address) % channels:
                written = target.region(0, size)
            context.stream.emit(look_up, [source.region(0, size), tables.all()], [written])

    _chunks(context, image, out, layer.geometry.image_bytes, m.tile_h * channels, channels, per_channel)


def _chunks(context: Context, image: Place, out: Place, total: int, chunk: int, unit: int,
            work: Callable[[Place, Place, int], None]) -> None:  # fmt: skip
    """Call `work(source, target, bytes)` on pieces of at most `chunk` bytes, all on chip; pieces are whole `unit`s."""
    for start, stop in cut(0, total, min(chunk, MAX_WIDTH * unit)):
        source = _slice(context, image, "image", start, stop - start)
        target = _out(context, out, start)
        work(source, target, stop - start)
        _drain(context, target, out, start, stop - start)


def rows(context: Context, layer: Layer, m: Mapping) -> None:
    """Softmax and layer norm."""
    op, g = layer.operations[0], layer.geometry
    _, _, _, length = g.image
    image, out = context.places[op.inputs[0]], context.places[layer.output]
    if isinstance(op, Softmax):
        data = op.factors.astype("<u2").tobytes()
    else:
        assert isinstance(op, LayerNorm)
        data = op.bias.astype("<i2").tobytes() + op.gain.astype("<i2").tobytes()
    parameters = context.load_parameters(context.constant(data), len(data))

    def work(source: Place, target: Place, size: int) -> None:
        common: dict[str, Any] = {
            "rows": size // length, "length": length, "in_address": source.address, "in_pitch": length,
            "out_address": target.address, "out_pitch": length,
        }  # fmt: skip
        if isinstance(op, Softmax):
            instruction: isa.Instruction = isa.Softmax(
                **common, factors=parameters.address, fraction_bits=op.fraction_bits
            )
        else:
            instruction = isa.LayerNorm(
                **common, gain=parameters.address + 2 * length, bias=parameters.address, shift=op.shift,
                epsilon=op.epsilon, minimum=op.minimum, maximum=op.maximum,
            )  # fmt: skip
        context.stream.emit(instruction, [source.region(0, size), parameters.all()], [target.region(0, size)])

    _chunks(context, image, out, g.image_bytes, m.tile_h * length, length, work)


def resize(context: Context, layer: Layer, m: Mapping) -> None:
    """Bilinear resize: one instruction an output row, tiles of output rows."""
    op, g = layer.operations[0], layer.geometry
    assert isinstance(op, ResizeLinear)
    (n, h, w, c), (_, oh, ow, _) = g.image, g.output
    image, out, r = context.places[op.inputs[0]], context.places[layer.output], op.requantize
    coordinates = np.stack([op.low_w, op.high_w, op.weight_w], axis=1).astype("<u2").tobytes()
    data = coordinates + encode_records(0, r.scale, r.rounding)
    parameters: Buffer = context.load_parameters(context.constant(data), len(data))
    for batch in range(n):
        for y0, y1 in cut(0, oh, m.tile_h):
            low, high = resize_rows(op.low_h, op.high_h, y0, y1)
            source = _slice(context, image, "image", (batch * h + low) * w * c, (high - low) * w * c)
            start, size = (batch * oh + y0) * ow * c, (y1 - y0) * ow * c
            target = _out(context, out, start)
            for y in range(y0, y1):
                lines = [(int(v[y]) - low) * w * c for v in (op.low_h, op.high_h)]
                at = (y - y0) * ow * c
                row = isa.Interpolate(
                    out_w=ow, width=c, row_low=source.address + lines[0], row_high=source.address + lines[1],
                    pixel_pitch=c, weight_y=int(op.weight_h[y]), coordinates=parameters.address,
                    zero=context.zero(op.inputs[0]), out_address=target.address + at, out_pixel_pitch=c,
                    params=parameters.address + len(coordinates), out_zero=r.zero_point, minimum=r.minimum,
                    maximum=r.maximum, rounding=RoundingCode[r.rounding],
                )  # fmt: skip
                reads: list[Region] = [source.region(line, line + w * c) for line in lines]
                context.stream.emit(row, [*reads, parameters.all()], [target.region(at, at + ow * c)])
            _drain(context, target, out, start, size)


def embedding(context: Context, layer: Layer, m: Mapping) -> None:
    """Rows of a constant table by run-time indices: the DMA engine's row gather."""
    op = layer.operations[0]
    table_name, index_name = op.inputs
    index, (vocabulary, depth) = context.tensor(index_name), context.tensor(table_name).shape
    item = np.dtype(index.dtype).itemsize
    source, out = context.places[index_name], context.places[layer.output]
    table_place = context.places[table_name]
    for first, last in cut(0, index.elements, m.tile_h):
        staged = _slice(context, source, "image", first * item, (last - first) * item)
        target = _out(context, out, first * depth)
        gather = isa.GatherRows(
            unit=Queue.load if context.constant_queue == Queue.load else Queue.fetch, source=Space.constant,
            index_address=staged.address, index_bytes=item, count=last - first, table_address=table_place.address,
            table_rows=vocabulary, run_bytes=depth, target_address=target.address, target_pitch=depth,
        )  # fmt: skip
        size = (last - first) * depth
        context.stream.emit(gather, [staged.region(0, (last - first) * item)], [target.region(0, size)])
        _drain(context, target, out, first * depth, size)
