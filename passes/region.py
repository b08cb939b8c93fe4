"""What `integerize` finds and the emitters turn into operations: regions, quantised constants, requantise scales."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from qcompiler.passes.graph import Node
from qcompiler.passes.ranges import Parameters
from qcompiler.sim.integer_program import Requantize, Tensor
from qcompiler.sim.numerics import quantize_linear

if TYPE_CHECKING:
    from qcompiler.passes.integerize import Lowering

Array = npt.NDArray[Any]
CLIPPED = ".clipped"
"""Behind the name of a tensor: itself, within the integers that its few bits hold (`quantize`)."""


class Declined(Exception):
    """A rule cannot express a region as an integer operation; the message is the reason for the fallback report."""


@dataclass(frozen=True, eq=False)
class Quantised:
    """A quantised constant: real value ``scale * (values - zero_point)``, vectors along `axis`."""

    values: Array
    scale: npt.NDArray[np.float32]
    zero_point: Array
    axis: int

    def signed(self) -> Quantised:
        """The same constant with int8 instead of uint8 values."""
        if self.values.dtype != np.uint8:
            return Quantised(self.values, self.scale, self.zero_point.astype(np.int64), self.axis)
        values = (self.values.astype(np.int16) - 128).astype(np.int8)
        return Quantised(values, self.scale, self.zero_point.astype(np.int64) - 128, self.axis)

    def real(self) -> npt.NDArray[np.float32]:
        shape = [1] * self.values.ndim
        if self.scale.size > 1:
            shape[self.axis] = -1
        zero = np.broadcast_to(self.zero_point, self.scale.shape)
        centred = self.values.astype(np.int64) - zero.reshape(shape) if zero.any() else self.values
        return np.asarray(centred.astype(np.float32) * self.scale.reshape(shape), dtype=np.float32)


@dataclass(frozen=True, eq=False)
class Region:
    """Operators that one integer operation covers.

    root: the operator that decides which; inner: the nodes of a table, or the bias and factors behind a root.
    value: the float graph tensor that is rounded; name, parameters: of the program tensor to write.
    low, high: real bounds by Relu and Clip. on_integers: the root reads int8 values, not dequantised ones.
    """

    root: Node
    inner: tuple[Node, ...]
    value: str
    name: str
    parameters: Parameters
    low: float = -np.inf
    high: float = np.inf
    is_table: bool = False
    on_integers: bool = False

    def clamp(self) -> tuple[int, int]:
        """The real bounds as int8 values."""
        scale, zero = self.parameters
        ends = np.clip(np.array([self.low, self.high]), -1e30, 1e30).astype(np.float32)
        low, high = quantize_linear(ends, np.float32(scale), zero)
        return int(low), max(int(high), int(low))


def target_of(lowering: Lowering, region: Region) -> Tensor:
    """Declare the int8 tensor that the region writes."""
    return lowering.declare(region.name, region.value, region.parameters)


def params_of(tensor: Tensor) -> Parameters:
    """(scale, zero point) of an int8 tensor."""
    assert tensor.scale is not None and tensor.zero_point is not None
    return tensor.scale, tensor.zero_point


def requantize(
    lowering: Lowering, region: Region, numerator: npt.ArrayLike, divisor: npt.ArrayLike = 1.0
) -> Requantize:
    """Requantise by ``numerator / (output scale * divisor)``, rounded once to float32.

    With `f32_half_even` every step is float32, in ONNX Runtime's order: (product of input scales) / output scale.
    """
    scale_out, zero = region.parameters
    if lowering.rounding == "f32_half_even":
        scale: Array = np.asarray(numerator, np.float32) / (np.float32(scale_out) * np.asarray(divisor, np.float32))
    else:
        scale = np.asarray(numerator, np.float64) / scale_out / np.asarray(divisor, np.float64)
    scale = scale.reshape(-1)
    if not np.all(np.isfinite(scale)) or scale.max() >= 2.0**23:
        raise Declined(f"its output scale {scale_out:g} is too small for its inputs: requantise by {scale.max():g}")
    if not lowering.rounding.startswith("q31"):
        # A scale that float32 cannot hold rounds everything to the zero point, as its smallest value does.
        scale = np.maximum(scale.astype(np.float32), np.finfo(np.float32).tiny)
    minimum, maximum = region.clamp()
    return Requantize(scale, zero, minimum, maximum, lowering.rounding)
