"""Conv2d to kernels: geometry, packed weights, and padding as a cheap copy where the window leaves the image.

The contraction reads each kernel row of a window as one run of bytes, KW * C of them, whenever there is one group
and no horizontal dilation; an image of 1 or 3 channels then wastes at most three bytes a kernel row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from qcompiler.codegen.cpu.byte_forms import forms_step
from qcompiler.codegen.cpu.contraction import NO_BORDER, Border, Geometry
from qcompiler.codegen.cpu.depthwise import MAX_KERNEL_AREA, depthwise
from qcompiler.codegen.cpu.epilogue import fused_ops
from qcompiler.codegen.cpu.isa.base import VectorInstructionSet
from qcompiler.codegen.cpu.kernel import Group, Step
from qcompiler.codegen.cpu.matrix_work import matrix_kernel
from qcompiler.codegen.cpu.pad import padded_input
from qcompiler.codegen.cpu.paired_contraction import choose_paired_tile, own_forms, paired_kernel, pays
from qcompiler.codegen.cpu.requantize import reachable_bound
from qcompiler.codegen.cpu.winograd import applies, winograd_steps
from qcompiler.sim.integer_program import Conv2d, Operation, Shape, Tensor

Array = npt.NDArray[Any]


def conv2d(group: Group, isa: VectorInstructionSet, bordered: bool = False, border: Border = NO_BORDER) -> list[Step]:
    """The steps of a Conv2d and what is fused behind it: a padded copy of the input if needed, then the convolution.

    bordered: the input lies in memory with the border that the convolution pads it by. border: what the output is
    to be surrounded with (see `wanted_border`).
    """
    op = group.root
    assert isinstance(op, Conv2d)
    if _depthwise_template(op):
        assert not any(border)
        return depthwise(group, isa, bordered)
    x, *others = group.inputs
    if applies(op, isa):
        steps, source, shape = padded_input(isa, x, op.padding, bordered, f"{group.output.name}.padded")
        return [*steps, *winograd_steps(group, isa, source, shape, border, offset_of(x, isa))]
    steps, source, shape = padded_input(isa, x, op.padding, bordered, f"{group.output.name}.padded", isa.operand_dtype)
    merged = merge_groups(op, isa)
    geometry, weights = geometry_of(merged, shape, group.output, border, isa.storage_offset)
    if (chosen := pays(isa, geometry, weights)) is not None:
        kernel = paired_kernel(
            "conv2d", isa, geometry, chosen, weights, merged.bias, offset_of(x, isa), op.requantize,
            reachable_bound(op, x), fused_ops(group, isa),
        )  # fmt: skip
        if own_forms(choose_paired_tile(isa, geometry)):
            steps, source, _ = padded_input(isa, x, op.padding, bordered, f"{group.output.name}.padded")
        else:
            steps = [forms_step(isa, x, op.padding, bordered, f"{group.output.name}.forms")]
            source = steps[0].output
        names = (source, *(t.name for t in others))
        return [*steps, Step(kernel, names, group.output.name, geometry.output_bytes, group.names)]
    kernel = matrix_kernel(
        "conv2d", isa, geometry, weights, merged.bias, offset_of(x, isa), op.requantize, reachable_bound(op, x),
        fused_ops(group, isa),
    )  # fmt: skip
    names = (source, *(t.name for t in others))
    steps.append(Step(kernel, names, group.output.name, geometry.output_bytes, group.names))
    return steps


def _depthwise_template(op: Conv2d) -> bool:
    return op.depthwise and math.prod(op.kernel) <= MAX_KERNEL_AREA


def writes_border(root: Operation) -> bool:
    """Whether the kernel of a convolution can write its result with a border."""
    return isinstance(root, Conv2d) and not _depthwise_template(root)


def wanted_border(readers: Sequence[Operation]) -> Border:
    """The border that a result should get: what all its readers, convolutions, pad it by.

    No border where something else reads it, or the paddings differ.
    """
    paddings = {op.padding if isinstance(op, Conv2d) else NO_BORDER for op in readers}
    return paddings.pop() if len(paddings) == 1 else NO_BORDER


def offset_of(x: Tensor, isa: VectorInstructionSet) -> int:
    """What the stored bytes of a tensor exceed its centred values by: zero point plus storage offset."""
    assert x.zero_point is not None
    return x.zero_point + isa.storage_offset


def merge_groups(op: Conv2d, isa: VectorInstructionSet) -> Conv2d:
    """The same convolution with as many narrow groups in one as fill a vector, zeros between their weights.

    A vector computes `lanes` output channels whether a group has that many or not, so the zeros cost nothing.
    """
    if op.groups == 1:
        return op
    outputs, kh, kw, inputs = op.weight.shape
    per_group = outputs // op.groups
    together = max(
        (m for m in range(1, op.groups + 1) if op.groups % m == 0 and m * per_group <= isa.lanes(4)), default=1
    )
    if together == 1:
        return op
    weight = np.zeros((op.groups // together, together, per_group, kh, kw, together, inputs), dtype=np.int8)
    split = op.weight.reshape(op.groups // together, together, per_group, kh, kw, inputs)
    for m in range(together):
        weight[:, m, :, :, :, m] = split[:, m]
    merged = weight.reshape(outputs, kh, kw, together * inputs)
    return Conv2d(
        op.name, op.inputs, op.output, merged, op.bias, op.requantize, op.stride, op.dilation, op.padding,
        op.groups // together,
    )  # fmt: skip


def geometry_of(
    op: Conv2d, shape: Shape, output: Tensor, border: Border, storage_offset: int
) -> tuple[Geometry, Array]:
    """Geometry on the padded input `shape` (N, H, W, C) and weights int8 [groups, channels, window quads, 4]."""
    assert output.zero_point is not None
    n, h, w, c = shape
    _, oh, ow, o = output.shape
    kh, kw, inputs = op.weight.shape[1:]
    channels = o // op.groups
    weight = op.weight.reshape(op.groups, channels, kh, kw, inputs)
    if op.groups == 1 and op.dilation[1] == 1:  # the columns of a window row are contiguous in memory
        weight = weight.reshape(1, channels, kh, 1, kw * inputs)
    columns, run = weight.shape[3:]
    quads = -(-run // 4)
    weight = np.pad(weight, ((0, 0),) * 4 + ((0, 4 * quads - run),))
    flat = (kh, kw) == (1, 1) and op.stride == (1, 1) and not any(border)
    geometry = Geometry(
        image_axes=((1 if flat else n, h * w * c, 0),),
        lines=1 if flat else oh,
        pixels=n * oh * ow if flat else ow,
        channels=channels,
        quads=quads,
        input_elements=math.prod(shape),
        line_stride=op.stride[0] * w * c,
        pixel_stride=op.stride[1] * c,
        rows=(kh, op.dilation[0] * w * c),
        columns=(columns, op.dilation[1] * c),
        groups=op.groups,
        group_stride=inputs,
        border=border,
        fill=output.zero_point + storage_offset if any(border) else 0,
    )
    return geometry, weight.reshape(op.groups, channels, kh * columns * quads, 4)
