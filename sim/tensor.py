"""A value of the integer program: all that a caller of a compiled model needs to know about its inputs and outputs.

Apart from `integer_program`, so that loading an artefact does not have to define every operation first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Tensor:
    """A value of the program. Quantised (int8) tensors carry scale (float32) and zero point; others carry None."""

    name: str
    shape: Shape
    dtype: str
    scale: float | None = None
    zero_point: int | None = None

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.elements * np.dtype(self.dtype).itemsize
