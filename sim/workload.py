"""The work of an integer program, layer by layer: what the cost model prices and what the NPU compiler schedules.

A layer is one operation, or a matrix operation with the element-wise tail that a vector unit can apply while it
requantises (tables, one residual add). Layers of equal `Geometry` cost the same on every machine, so that the
mapping search and the explorer look at each geometry once. Views (Reshape, moves that keep the order of bytes)
are no work and vanish; the float boundary runs on the host.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass

from qcompiler.sim.integer_program import (
    Add,
    AveragePool2d,
    Concat,
    Conv2d,
    Dense,
    Dequantize,
    Embedding,
    FloatOp,
    Gather,
    IntegerProgram,
    LayerNorm,
    MatMul,
    MaxPool2d,
    Mean,
    Mul,
    Operation,
    Quantize,
    Reshape,
    ResizeLinear,
    Shape,
    Softmax,
    Table,
    Transpose,
)  # fmt: skip

KINDS = ("conv", "depthwise", "matmul", "pool", "elementwise", "move", "softmax", "layer_norm", "resize")
MATRIX_KINDS = ("conv", "matmul")


@dataclass(frozen=True)
class Geometry:
    """Sizes of one layer; nothing else decides its cost.

    image, output: NHWC. conv and depthwise: the convolution's own; a dense layer is a 1x1 convolution over
    M positions, (1, M, 1, K) to (1, M, 1, N); matmul: (B, M, 1, K) to (B, M, 1, N). pool: the window's; a mean is a
    pool over everything it sums. elementwise, softmax, layer_norm: (1, rows, 1, length); move, resize: as they are.
    tables, operands: fused look-ups, and tensors read beside the image (a residual, an addend, matmul's b).
    """

    kind: str
    image: Shape
    output: Shape
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    groups: int = 1
    tables: int = 0
    operands: int = 0

    @property
    def reduction(self) -> int:
        """K of the GEMM that a conv or matmul is; taps of a window otherwise."""
        taps = self.kernel[0] * self.kernel[1]
        return taps * self.image[3] // self.groups if self.kind in MATRIX_KINDS else taps

    @property
    def macs(self) -> int:
        """Multiply-accumulates, zero where nothing is multiplied by a weight or a second matrix."""
        return math.prod(self.output) * self.reduction if self.kind in (*MATRIX_KINDS, "depthwise") else 0

    @property
    def weight_bytes(self) -> int:
        """int8 weights, without bias and scales (zero for matmul, whose second operand is an activation)."""
        return self.output[3] * self.reduction if self.kind in ("conv", "depthwise") else 0

    @property
    def image_bytes(self) -> int:
        return math.prod(self.image)

    @property
    def output_bytes(self) -> int:
        return math.prod(self.output)


@dataclass(frozen=True, eq=False)
class Layer:
    """A geometry with the operations it stands for (in program order; the first names the layer)."""

    name: str
    geometry: Geometry
    operations: tuple[Operation, ...]

    @property
    def output(self) -> str:
        """The tensor that the layer leaves behind."""
        return self.operations[-1].output

    @property
    def inputs(self) -> tuple[str, ...]:
        """Tensors that the layer reads, without those that it makes itself; the image first."""
        made = {op.output for op in self.operations}
        return tuple(dict.fromkeys(n for op in self.operations for n in op.inputs if n not in made))


def is_view(op: Operation, shapes: list[Shape], output: Shape) -> bool:
    """Whether the output has the bytes of the input in the same order: a change of shape, not of data."""
    if isinstance(op, Reshape):
        return True
    if isinstance(op, Transpose):
        kept = [p for p in op.permutation if shapes[0][p] != 1]
        return kept == sorted(kept)
    if isinstance(op, Gather):
        return all(
            v is None or (len(v) == d and all(v == range(d))) for v, d in zip(op.indices, shapes[0], strict=True)
        )
    return isinstance(op, Concat) and len(op.inputs) == 1


def is_host(op: Operation) -> bool:
    """Whether the operation belongs to the float or index boundary, which no integer accelerator runs."""
    return isinstance(op, (Quantize, Dequantize, FloatOp, Embedding))


def _rows(shape: Shape) -> Shape:
    """[..., K] as (1, rows, 1, K)."""
    return (1, math.prod(shape[:-1]), 1, shape[-1]) if shape else (1, 1, 1, 1)


def _nhwc(shape: Shape) -> Shape:
    """Any shape as NHWC with the trailing axes kept and the leading ones merged."""
    padded = (1,) * (4 - len(shape)) + tuple(shape)
    return (math.prod(padded[:-3]), *padded[-3:])


def mean_as_pool(axes: Iterable[int], shape: Shape) -> tuple[Shape, Shape]:
    """A mean as a pool over ``(1, outer, reduced, inner)``: that image and its output; reduced axes must be adjacent.

    Raises ValueError when kept axes lie between the reduced ones.
    """
    axes = sorted(a % len(shape) for a in axes)
    if not axes or axes != list(range(axes[0], axes[-1] + 1)):
        raise ValueError(f"axes {tuple(axes)} of {shape} are not adjacent")
    outer, inner = math.prod(shape[: axes[0]]), math.prod(shape[axes[-1] + 1 :])
    reduced = math.prod(shape[axes[0] : axes[-1] + 1])
    return (1, outer, reduced, inner), (1, outer, 1, inner)


def geometry(op: Operation, shapes: list[Shape], output: Shape) -> Geometry:
    """The geometry of one operation on inputs of these shapes."""
    if isinstance(op, Conv2d):
        image, out = _nhwc(shapes[0]), _nhwc(output)
        kind = "depthwise" if op.depthwise else "conv"
        if kind == "conv" and op.kernel == (1, 1) and op.stride == (1, 1) and not any(op.padding):
            image, out = _rows(shapes[0]), _rows(output)
        return Geometry(kind, image, out, op.kernel, op.stride, op.dilation, op.padding, op.groups)
    if isinstance(op, Dense):
        return Geometry("conv", _rows(shapes[0]), _rows(output))
    if isinstance(op, MatMul):
        (*batch, m, n), k = output, shapes[0][-1]
        return Geometry("matmul", (math.prod(batch), m, 1, k), (math.prod(batch), m, 1, n), operands=1)
    if isinstance(op, (MaxPool2d, AveragePool2d)):
        return Geometry("pool", _nhwc(shapes[0]), _nhwc(output), op.kernel, op.stride, op.dilation, op.padding)
    if isinstance(op, Mean):
        try:
            image, out = mean_as_pool(op.axes, shapes[0])
        except ValueError:
            image, out = _nhwc(shapes[0]), _nhwc(output)
        return Geometry("pool", image, out, kernel=(1, math.prod(shapes[0]) // max(math.prod(output), 1)))
    if isinstance(op, (Add, Mul, Table)):
        return Geometry("elementwise", _rows(output), _rows(output), operands=len(op.inputs) - 1,
                        tables=int(isinstance(op, Table)))  # fmt: skip
    if isinstance(op, (Softmax, LayerNorm)):
        return Geometry("softmax" if isinstance(op, Softmax) else "layer_norm", _rows(shapes[0]), _rows(output))
    if isinstance(op, ResizeLinear):
        return Geometry("resize", _nhwc(shapes[0]), _nhwc(output))
    return Geometry("move", _nhwc(shapes[0]), _nhwc(output), operands=len(op.inputs) - 1)


def _fusable(head: Operation) -> bool:
    return isinstance(head, (Conv2d, Dense, MatMul))


def chains(program: IntegerProgram) -> list[tuple[Operation, ...]]:
    """Operations in groups, in execution order: matrix operations with their element-wise tails, others alone.

    A tail is a 256-entry table (any number, but none after an add has two) or one exact Add of a tensor of the same
    shape, each the only reader of what comes before it. A group stands where its last operation stood, when
    all its inputs exist.
    """
    consumers, producers = program.consumers(), program.producers()
    position = {op.name: i for i, op in enumerate(program.operations)}
    taken: set[str] = set()
    groups: dict[int, tuple[Operation, ...]] = {}
    # Last heads first: of the two producers of an add, the later one takes it (the earlier is ready by then).
    for head in reversed(program.operations):
        if not _fusable(head) or head.name in taken:
            continue
        chain, added, tables = [head], False, 0
        while True:
            tail = chain[-1].output
            readers = consumers[tail]
            if len(readers) != 1 or tail in program.outputs:
                break
            op = readers[0]
            same = all(program.tensors[n].shape == program.tensors[tail].shape for n in op.inputs)
            if isinstance(op, Table) and op.table.ndim == 1 and tables == int(added):
                tables += 1
            elif isinstance(op, Add) and not added and same and op.rounding == "exact_half_up":
                other = [n for n in op.inputs if n != tail]
                if len(other) != 1 or op.name in taken:
                    break
                made_by = producers.get(other[0])
                if made_by is not None and position[made_by.name] > position[op.name]:
                    break
                added = True
            else:
                break
            chain.append(op)
        taken.update(op.name for op in chain)
        groups[position[chain[-1].name]] = tuple(chain)
    for op in program.operations:
        if op.name not in taken:
            groups[position[op.name]] = (op,)
    return [groups[i] for i in sorted(groups)]


def extract(program: IntegerProgram) -> list[Layer]:
    """The layers in execution order, without views and without what runs on the host."""
    layers = []
    for chain in chains(program):
        head, tail = chain[0], chain[1:]
        shapes, output = [t.shape for t in program.input_tensors(head)], program.output_tensor(head).shape
        if is_host(head) or is_view(head, shapes, output):
            continue
        g = geometry(head, shapes, output)
        if tail:
            added = sum(isinstance(op, Add) for op in tail)
            g = dataclasses.replace(g, tables=len(tail) - added, operands=g.operands + added)
        layers.append(Layer(head.name, g, chain))
    return layers


def unique(layers: Iterable[Layer]) -> dict[Geometry, list[int]]:
    """Each geometry with the positions of the layers that have it, in order of first appearance."""
    found: dict[Geometry, list[int]] = {}
    for i, layer in enumerate(layers):
        found.setdefault(layer.geometry, []).append(i)
    return found
