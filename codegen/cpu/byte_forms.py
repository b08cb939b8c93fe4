"""The forms in which byte products on AVX2 read an image (see `byte_products`).

One buffer of bytes: the image as stored, the same with odd bytes complemented, and its bytes widened to 16 bits. Each
begins where the planes before it end, a plane being the image's elements rounded up to cache lines.
"""

from __future__ import annotations

import math
from typing import Any

from tvm import tirx

from qcompiler.codegen.cpu.emit import Buffer, Emitter, Expr, bits, cast, splat, vector_type
from qcompiler.codegen.cpu.instruction_set import InstructionSet
from qcompiler.codegen.cpu.kernel import Kernel, Step
from qcompiler.codegen.cpu.pad import NO_PADDING, padded_lines, padded_shape
from qcompiler.sim.integer_program import Shape, Tensor

LINE = 64


def plane_bytes(elements: int) -> int:
    return -(-elements // LINE) * LINE


def forms_bytes(elements: int) -> int:
    """Of all forms together."""
    return 4 * plane_bytes(elements)


def forms_step(isa: InstructionSet, x: Tensor, padding: tuple[int, int, int, int], bordered: bool, name: str) -> Step:
    """The step that writes `name`, the forms of x with its border; bordered: x already lies in memory with it."""
    assert x.zero_point is not None
    shape = padded_shape(x.shape, padding) if bordered else x.shape
    padding = NO_PADDING if bordered else padding
    parameters = dict(shape=shape, padding=padding, fill=x.zero_point + isa.storage_offset)
    n, h, w, c = padded_shape(shape, padding)
    return Step(Kernel("forms", forms, parameters, tasks=n * h), (x.name,), name, forms_bytes(n * h * w * c))


def forms(isa: InstructionSet, shape: Shape, padding: tuple[int, int, int, int], fill: int) -> Any:
    """Buffers: x, the forms."""
    elements = math.prod(padded_shape(shape, padding))
    e = Emitter()
    x = e.buffer("x", math.prod(shape), isa.storage)
    y = e.buffer("y", forms_bytes(elements), isa.storage)

    def put(at: Expr, value: Expr, lanes: int) -> None:
        store_forms(isa, e, y, elements, at, value, lanes)

    padded_lines(e, x, isa.storage, shape, padding, fill, isa.vector_bytes, put)
    return e.function()


def store_forms(isa: InstructionSet, e: Emitter, y: Buffer, elements: int, at: Expr, value: Expr, lanes: int) -> None:
    """Store all forms of `lanes` of an image's stored bytes, from element `at` on.

    Of images with an odd number of channels, whose bytes are odd in some windows only, nobody reads the complemented.
    """
    plane = plane_bytes(elements)
    value = e.bind(value, vector_type(isa.storage, lanes))
    e.store(y, at, value, lanes)
    if lanes > 1:
        odd = bits(splat(0xFF00, "uint16", lanes // 2), vector_type(isa.storage, lanes))
        e.store(y, at + plane, tirx.bitwise_xor(value, odd), lanes)
    words = cast(value, vector_type("int16", lanes))
    e.store(y, 2 * at + 2 * plane, bits(words, vector_type(isa.storage, 2 * lanes)), 2 * lanes)
