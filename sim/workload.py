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

import numpy as np
import numpy.typing as npt

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
from qcompiler.sim.isa.post import ADD_RECORD_BYTES, RoundingCode
from qcompiler.sim.moves import Box, boxes
from qcompiler.sim.reference import pool_counts

MATRIX_KINDS = ("conv", "matmul")
MAX_WINDOW = 255  # taps of a window along an axis
NO_BREAKS: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())


@dataclass(frozen=True)
class Geometry:
    """Sizes of one layer; nothing else decides its cost.

    image, output: NHWC. conv and depthwise: the convolution's own; a dense layer is a 1x1 convolution over
    M positions, (1, M, 1, K) to (1, M, 1, N); matmul: (B, M, 1, K) to (B, M, 1, N). pool: the window's; a mean is a
    pool over everything it sums. elementwise, table, softmax, layer_norm: (1, rows, 1, length).
    tables, operands: look-ups fused (tables of a table layer), and tensors read beside the image (a residual, an
    addend, matmul's b).
    loops: of an element-wise operation (`broadcast_loops`), or the two image rows under each row of a resize.
    boxes: of a move (`moves.boxes`). records: different scales of a pool (one for each count it averages over); of an
    element-wise operation, 1 where it is a product. breaks: output rows and columns of a pool before which the count
    changes.
    record_bytes: of the vector unit's parameters for one channel. transposed: matmul's b is [N, K].
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
    loops: tuple[tuple[int, int, int], ...] = ()
    boxes: tuple[Box, ...] = ()
    records: int = 0
    record_bytes: int = 8
    transposed: bool = False
    breaks: tuple[tuple[int, ...], tuple[int, ...]] = NO_BREAKS

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
    """Whether the operation belongs to the float boundary, which no integer accelerator runs."""
    return isinstance(op, (Quantize, Dequantize, FloatOp))


def _rows(shape: Shape) -> Shape:
    """[..., K] as (1, rows, 1, K)."""
    return (1, math.prod(shape[:-1]), 1, shape[-1]) if shape else (1, 1, 1, 1)


def nhwc(shape: Shape) -> Shape:
    """Any shape as NHWC with the trailing axes kept and the leading ones merged."""
    padded = (1,) * (4 - len(shape)) + tuple(shape)
    return (math.prod(padded[:-3]), *padded[-3:])


def mean_as_pool(axes: Iterable[int], shape: Shape) -> tuple[Shape, Shape, tuple[int, int]]:
    """A mean as a pool: ``(image, output, kernel)``, stride ``(kernel[0], 1)``; reduced axes must be adjacent.

    The image is (1, outer * kernel_h, kernel_w, inner) with kernel_h * kernel_w positions to sum, both at most 255.
    Raises ValueError where kept axes lie between the reduced ones, or the count has no such factors.
    """
    axes = sorted(a % len(shape) for a in axes)
    if not axes or axes != list(range(axes[0], axes[-1] + 1)):
        raise ValueError(f"the mean's axes {tuple(axes)} of {shape} are not adjacent")
    outer, inner = math.prod(shape[: axes[0]]), math.prod(shape[axes[-1] + 1 :])
    count = math.prod(shape[axes[0] : axes[-1] + 1])
    widths = [w for w in range(MAX_WINDOW, 0, -1) if count % w == 0]
    if count // widths[0] > MAX_WINDOW:
        raise ValueError(f"a mean over {count} positions has no factors of at most {MAX_WINDOW}")
    kernel = (count // widths[0], widths[0])
    return (1, outer * kernel[0], kernel[1], inner), (1, outer, 1, inner), kernel


def broadcast_loops(shapes: list[Shape], output: Shape) -> tuple[tuple[int, int, int], ...]:
    """Loops ``(trips, stride of a, stride of b)`` of an element-wise operation, outermost first, merged.

    Strides are in elements, zero where the operand repeats; the output's own stride is that of C order.
    """
    merged: list[tuple[int, int, int]] = []
    padded = [(1,) * (len(output) - len(s)) + tuple(s) for s in shapes]
    for axis, n in enumerate(output):
        if n == 1:
            continue
        a, b = (0 if s[axis] == 1 else math.prod(s[axis + 1 :]) for s in (padded[0], padded[-1]))
        if merged and merged[-1][1:] == (n * a, n * b):
            merged[-1] = (merged[-1][0] * n, a, b)
        else:
            merged.append((n, a, b))
    return tuple(merged) or ((1, 1, 1),)


def geometry(op: Operation, shapes: list[Shape], output: Shape) -> Geometry:
    """The geometry of one operation on inputs of these shapes. Raises ValueError for a mean that no pool can do."""
    g = _geometry(op, shapes, output)
    requantize = getattr(op, "requantize", None)
    if requantize is None:
        return g
    return dataclasses.replace(g, record_bytes=RoundingCode[requantize.rounding].record_bytes)


def _changes(counts: npt.NDArray[np.int64]) -> tuple[int, ...]:
    """Rows that differ from the one before."""
    return tuple((np.flatnonzero((counts[1:] != counts[:-1]).any(axis=1)) + 1).tolist())


def _geometry(op: Operation, shapes: list[Shape], output: Shape) -> Geometry:
    if isinstance(op, Conv2d):
        image, out = nhwc(shapes[0]), nhwc(output)
        kind = "depthwise" if op.depthwise else "conv"
        if kind == "conv" and op.kernel == (1, 1) and op.stride == (1, 1) and not any(op.padding):
            image, out = _rows(shapes[0]), _rows(output)
        return Geometry(kind, image, out, op.kernel, op.stride, op.dilation, op.padding, op.groups)
    if isinstance(op, Dense):
        return Geometry("conv", _rows(shapes[0]), _rows(output))
    if isinstance(op, MatMul):
        (*batch, m, n), k = output, shapes[0][-1]
        return Geometry("matmul", (math.prod(batch), m, 1, k), (math.prod(batch), m, 1, n), operands=1,
                        transposed=op.transpose_b)  # fmt: skip
    if isinstance(op, (MaxPool2d, AveragePool2d)):
        records, breaks = 0, NO_BREAKS
        if isinstance(op, AveragePool2d):
            counts = np.maximum(pool_counts(op, nhwc(shapes[0]), nhwc(output))[0, :, :, 0], 1)
            records, breaks = len(np.unique(counts)), (_changes(counts), _changes(counts.T))
        return Geometry("pool", nhwc(shapes[0]), nhwc(output), op.kernel, op.stride, op.dilation, op.padding,
                        records=records, breaks=breaks)  # fmt: skip
    if isinstance(op, Mean):
        image, out, kernel = mean_as_pool(op.axes, shapes[0])
        return Geometry("pool", image, out, kernel, (kernel[0], 1), records=1)
    if isinstance(op, Table):
        return Geometry("table", _rows(output), _rows(output), tables=op.table.size // 256)
    if isinstance(op, (Add, Mul)):
        loops = broadcast_loops(shapes, output)
        return Geometry("elementwise", _rows(output), _rows(output), operands=1, loops=loops,
                        records=int(isinstance(op, Mul)), record_bytes=ADD_RECORD_BYTES)  # fmt: skip
    if isinstance(op, (Softmax, LayerNorm)):
        return Geometry("softmax" if isinstance(op, Softmax) else "layer_norm", _rows(shapes[0]), _rows(output))
    if isinstance(op, ResizeLinear):
        rows = tuple((int(a), int(b), 0) for a, b in zip(op.low_h, op.high_h, strict=True))
        return Geometry("resize", nhwc(shapes[0]), nhwc(output), loops=rows)
    if isinstance(op, Embedding):
        return Geometry("embedding", (1, math.prod(shapes[1]), 1, 8), (1, math.prod(shapes[1]), 1, output[-1]))
    return Geometry("move", nhwc(shapes[0]), nhwc(output), operands=len(op.inputs) - 1,
                    boxes=boxes(op, shapes, output))  # fmt: skip


def _tail(chain: list[Operation], op: Operation) -> bool:
    """Whether the vector unit can apply `op` in the pass that finishes `chain`: a table, then one exact add."""
    head, added = chain[0], any(isinstance(o, Add) for o in chain)
    if isinstance(op, Table):
        return len(chain) == 1 and op.table.ndim == 1
    matrix = isinstance(head, (Dense, MatMul)) or (isinstance(head, Conv2d) and not head.depthwise)
    return isinstance(op, Add) and matrix and not added and op.rounding == "exact_half_up"


def chains(program: IntegerProgram) -> list[tuple[Operation, ...]]:
    """Operations in groups, in execution order: convolutions, products and pools with their element-wise tails.

    A tail is a 256-entry table and, behind matrix work, an exact Add of a tensor of the same shape, each the only
    reader of what comes before it. A group stands where its last operation stood, when all its inputs exist.
    """
    consumers, producers = program.consumers(), program.producers()
    position = {op.name: i for i, op in enumerate(program.operations)}
    taken: set[str] = set()
    groups: dict[int, tuple[Operation, ...]] = {}
    # Last heads first: of the two producers of an add, the later one takes it (the earlier is ready by then).
    for head in reversed(program.operations):
        if head.name in taken or not isinstance(head, (Conv2d, Dense, MatMul, MaxPool2d, AveragePool2d, Mean)):
            continue
        chain: list[Operation] = [head]
        while True:
            tail = chain[-1].output
            if len(consumers[tail]) != 1 or tail in program.outputs:
                break
            op = consumers[tail][0]
            others = [n for n in op.inputs if n != tail]
            ready = all(n not in producers or position[producers[n].name] < position[op.name] for n in others)
            same = all(program.tensors[n].shape == program.tensors[tail].shape for n in op.inputs)
            if op.name in taken or not (_tail(chain, op) and len(others) == len(op.inputs) - 1 and ready and same):
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
