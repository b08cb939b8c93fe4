"""A copy of an image with its border: a convolution's window then never leaves memory.

One task writes one padded line. It costs one read and one write of the image, about a hundredth of a 3x3 convolution.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx

from qcompiler.codegen.cpu.emit import Emitter, Expr, constant, load, splat
from qcompiler.codegen.cpu.instruction_set import InstructionSet
from qcompiler.codegen.cpu.kernel import Kernel, Step
from qcompiler.codegen.cpu.loops import for_chunks, tasks
from qcompiler.sim.integer_program import Shape, Tensor


def pad_step(isa: InstructionSet, x: Tensor, padding: tuple[int, int, int, int], name: str) -> tuple[Step, Shape]:
    """The step that writes `name`, x (NHWC) bordered by its zero point, and the padded shape."""
    assert x.zero_point is not None
    n, h, w, c = x.shape
    top, left, bottom, right = padding
    shape = (n, h + top + bottom, w + left + right, c)
    parameters = dict(shape=x.shape, padding=padding, fill=x.zero_point + isa.storage_offset)
    kernel = Kernel("pad", pad, parameters, tasks=n * shape[1])
    return Step(kernel, (x.name,), name, shape[0] * shape[1] * shape[2] * shape[3]), shape


def pad(isa: InstructionSet, shape: Shape, padding: tuple[int, int, int, int], fill: int) -> Any:
    """Buffers: x, the padded image."""
    n, h, w, c = shape
    top, left, bottom, right = padding
    lines, width = h + top + bottom, (w + left + right) * c
    e = Emitter()
    x = e.buffer("x", n * h * w * c, "uint8")
    y = e.buffer("y", n * lines * width, "uint8")

    def border(at: Expr, count: int) -> None:
        for_chunks(e, count, isa.vector_bytes, lambda i, lanes: e.store(y, at + i, splat(fill, "uint8", lanes), lanes))

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
