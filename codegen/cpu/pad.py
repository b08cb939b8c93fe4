"""A copy of an image with its border: a convolution's window then never leaves memory.

One task writes one padded line. It costs one read and one write of the image, about a hundredth of a 3x3 convolution.
"""

from __future__ import annotations

import math
from typing import Any

from tvm import tirx

from qcompiler.codegen.cpu.emit import Emitter, Expr, constant, load, splat
from qcompiler.codegen.cpu.instruction_set import InstructionSet
from qcompiler.codegen.cpu.kernel import Kernel, Step
from qcompiler.codegen.cpu.loops import for_chunks, tasks
from qcompiler.sim.integer_program import Shape, Tensor


def padded_shape(shape: Shape, padding: tuple[int, int, int, int]) -> Shape:
    n, h, w, c = shape
    top, left, bottom, right = padding
    return (n, h + top + bottom, w + left + right, c)


def padded_input(
    isa: InstructionSet, x: Tensor, padding: tuple[int, int, int, int], bordered: bool, name: str
) -> tuple[list[Step], str, Shape]:
    """What a padding operation reads: the steps that make it, its name and shape.

    Nothing needs to be done without padding, or where x already lies in memory with its border (`bordered`).
    """
    if not any(padding):
        return [], x.name, x.shape
    if bordered:
        return [], x.name, padded_shape(x.shape, padding)
    step, shape = pad_step(isa, x, padding, name)
    return [step], name, shape


def pad_step(isa: InstructionSet, x: Tensor, padding: tuple[int, int, int, int], name: str) -> tuple[Step, Shape]:
    """The step that writes `name`, x (NHWC) bordered by its zero point, and the padded shape."""
    assert x.zero_point is not None
    shape = padded_shape(x.shape, padding)
    parameters = dict(shape=x.shape, padding=padding, fill=x.zero_point + isa.storage_offset)
    kernel = Kernel("pad", pad, parameters, tasks=shape[0] * shape[1])
    return Step(kernel, (x.name,), name, math.prod(shape)), shape


def pad(isa: InstructionSet, shape: Shape, padding: tuple[int, int, int, int], fill: int) -> Any:
    """Buffers: x, the padded image."""
    n, h, w, c = shape
    top, left, bottom, right = padding
    lines, width = h + top + bottom, (w + left + right) * c
    e = Emitter()
    x = e.buffer("x", n * h * w * c, isa.storage)
    y = e.buffer("y", n * lines * width, isa.storage)

    def border(at: Expr, count: int) -> None:
        def write(i: Expr, lanes: int) -> None:
            e.store(y, at + i, splat(fill, isa.storage, lanes), lanes)

        for_chunks(e, count, isa.vector_bytes, write)

    with tasks(e) as t:
        image = tirx.truncdiv(t, constant(lines))
        line = e.bind(t - image * lines - top, "int32", "line")
        to = e.bind(t * width, "int32", "to")
        source = e.bind((image * h + line) * (w * c), "int32", "from")
        inside = tirx.all(line >= 0, line < h)
        with e.when(inside):
            border(to, left * c)
            to_inside = e.bind(to + left * c, "int32", "to")
            for_chunks(
                e,
                w * c,
                isa.vector_bytes,
                lambda i, lanes: e.store(y, to_inside + i, load(x, source + i, lanes), lanes),
            )
            border(to + (left + w) * c, right * c)
        with e.when(tirx.Not(inside)):
            border(to, width)
    return e.function()
