"""How far a compiled model's outputs are from the float model's: SQNR and agreement (layer by layer: `passes.sqnr`).

SQNR is the signal-to-quantisation-noise ratio ``10 log10(sum f**2 / sum (f - q)**2)`` in dB over all elements and
samples, f the float model's value and q the integer program's, dequantised.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from qcompiler.passes.calibrate import FloatExecutor
from qcompiler.passes.graph import Graph
from qcompiler.passes.sqnr import real_values, sqnr_db
from qcompiler.sim.integer_program import IntegerProgram

Array = npt.NDArray[Any]
Values = Mapping[str, Array]


@dataclass
class Noise:
    """Running sums of one tensor's signal and noise power."""

    signal: float = 0.0
    noise: float = 0.0

    def add(self, expected: Array, actual: Array) -> None:
        wanted = expected.astype(np.float64)
        self.signal += float(np.sum(wanted**2))
        self.noise += float(np.sum((wanted - actual.astype(np.float64)) ** 2))

    @property
    def sqnr_db(self) -> float:
        """In dB, see `passes.sqnr.sqnr_db`."""
        return sqnr_db(self.signal, self.noise)


@dataclass
class OutputAccuracy:
    """noise: of each output. agreement: the fraction of samples whose first output has its largest score (along the
    last axis; along axis 1 of an image) where the float model has it; for images, of positions."""

    noise: dict[str, Noise] = field(default_factory=dict)
    samples: int = 0
    agreeing: float = 0.0

    @property
    def sqnr_db(self) -> dict[str, float]:
        return {name: n.sqnr_db for name, n in self.noise.items()}

    @property
    def agreement(self) -> float:
        return self.agreeing / self.samples if self.samples else math.nan


def output_accuracy(
    graph: Graph, program: IntegerProgram, execute: Callable[[Values], Values], samples: Iterable[Values],
    known: Sequence[Values] = (),
) -> OutputAccuracy:  # fmt: skip
    """Compare what `execute` (the compiled library, or the reference) returns with the float model's outputs.

    known: these, of the first samples.
    """
    model, result = None, OutputAccuracy({n: Noise() for n in program.outputs})
    pairs = list(zip(graph.outputs, program.outputs, strict=True))
    for i, sample in enumerate(samples):
        if i < len(known):
            expected = known[i]
        else:
            model = model or FloatExecutor(graph, graph.outputs)
            expected = dict(model.run_canonical([sample]))
        actual = execute(sample)
        for float_name, name in pairs:
            result.noise[name].add(expected[float_name], real_values(actual[name], program.tensors[name]))
        float_name, name = pairs[0]
        result.samples += 1
        axis = 1 if actual[name].ndim == 4 else -1
        same = np.argmax(expected[float_name], axis=axis) == np.argmax(actual[name], axis=axis)
        result.agreeing += float(np.mean(same))
    return result


def within_budget(program: IntegerProgram, samples: Iterable[Values], macs: float, most: int) -> Iterator[Values]:
    """As many samples as the reference interpreter handles for that many multiply-accumulates, at least one."""
    cost = max(1, sum(program.macs(op) for op in program.operations))
    count = max(1, min(most, int(macs / cost)))
    return (sample for sample, _ in zip(samples, range(count), strict=False))
