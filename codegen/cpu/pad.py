"""A copy of an image with its border: a convolution's window then never leaves memory.

One task writes one padded line. It costs one read and one write of the image, about a hundredth of a 3x3 convolution.
Where dense work wants wider elements than stored bytes (`operand_dtype`), the copy widens them too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tvm import tirx

from qcompiler.codegen.cpu.emit import Buffer, Emitter, Expr, cast, constant, load, splat, vector_type
from qcompiler.codegen.cpu.instruction_set import InstructionSet
from qcompiler.codegen.cpu.kernel import Kernel, Step
from qcompiler.codegen.cpu.loops import for_chunks, tasks
from qcompiler.sim.integer_program import Shape, Tensor

NO_PADDING = (0, 0, 0, 0)


def padded_shape(shape: Shape, padding: tuple[int, int, int, int]) -> Shape:
    n, h, w, c = shape
    top, left, bottom, right = padding
    return (n, h + top + bottom, w + left + right, c)


def padded_input(
    isa: InstructionSet, x: Tensor, padding: tuple[int, int, int, int], bordered: bool, name: str, dtype: str = ""
) -> tuple[list[Step], str, Shape]:
    """What a padding operation reads: the steps that make it, its name and shape.

    dtype: the element type that it reads, the storage type if empty. Nothing needs to be done without padding, or
    where x already lies in memory with its border (`bordered`), unless that type is another one.
    """
    wide = dtype not in ("", isa.storage)
    if bordered:
        shape, padding = padded_shape(x.shape, padding), NO_PADDING
    else:
        shape = x.shape
    if not any(padding) and not wide:
        return [], x.name, shape
    step = pad_step(isa, x, shape, padding, name, dtype if wide else isa.storage)
    return [step], name, padded_shape(shape, padding)


def pad_step(
    isa: InstructionSet, x: Tensor, shape: Shape, padding: tuple[int, int, int, int], name: str, dtype: str
) -> Step:
    """The step that writes `name`: x, which lies in memory as `shape` (NHWC), bordered by its zero point."""
    assert x.zero_point is not None
    parameters = dict(shape=shape, padding=padding, fill=x.zero_point + isa.storage_offset, dtype=dtype)
    out = padded_shape(shape, padding)
    kernel = Kernel("pad" if any(padding) else "widen", pad, parameters, tasks=out[0] * out[1])
    return Step(kernel, (x.name,), name, math.prod(out) * (2 if dtype == "int16" else 1))


def pad(isa: InstructionSet, shape: Shape, padding: tuple[int, int, int, int], fill: int, dtype: str) -> Any:
    """Buffers: x, the padded image with elements of `dtype`."""
    vector = isa.vector_bytes // (2 if dtype == "int16" else 1)
    e = Emitter()
    x = e.buffer("x", math.prod(shape), isa.storage)
    y = e.buffer("y", math.prod(padded_shape(shape, padding)), dtype)

    def put(at: Expr, value: Expr, lanes: int) -> None:
        e.store(y, at, value if dtype == isa.storage else cast(value, vector_type(dtype, lanes)), lanes)

    padded_lines(e, x, isa.storage, shape, padding, fill, vector, put)
    return e.function()


def padded_lines(
    e: Emitter, x: Buffer, storage: str, shape: Shape, padding: tuple[int, int, int, int], fill: int, vector: int,
    put: Callable[[Expr, Expr, int], None],
) -> None:  # fmt: skip
    """Emit ``put(index, value, lanes)`` for all elements of the padded image, at most `vector` at a time.

    A task is one line.
    """
    n, h, w, c = shape
    top, left, bottom, right = padding
    lines, width = h + top + bottom, (w + left + right) * c

    def border(at: Expr, count: int) -> None:
        for_chunks(e, count, vector, lambda i, lanes: put(at + i, splat(fill, storage, lanes), lanes))

    with tasks(e) as t:
        image = tirx.truncdiv(t, constant(lines))
        line = e.bind(t - image * lines - top, "int32", "line")
        to = e.bind(t * width, "int32", "to")
        source = e.bind((image * h + line) * (w * c), "int32", "from")
        to_inside = e.bind(to + left * c, "int32", "to")
        inside = tirx.all(line >= 0, line < h) if top or bottom else True
        with e.when(inside):
            border(to, left * c)
            for_chunks(e, w * c, vector, lambda i, lanes: put(to_inside + i, load(x, source + i, lanes), lanes))
            border(to + (left + w) * c, right * c)
        if top or bottom:
            with e.when(tirx.Not(inside)):
                border(to, width)
