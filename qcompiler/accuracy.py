"""How far the integer program is from the float model: SQNR of every tensor, SQNR and agreement of the outputs.

SQNR is the signal-to-quantisation-noise ratio ``10 log10(sum f**2 / sum (f - q)**2)`` in dB over all elements and
samples, f the float model's value and q the integer program's, dequantised.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from qcompiler.passes.calibrate import FloatExecutor
from qcompiler.passes.graph import Graph
from qcompiler.sim.integer_program import Dequantize, IntegerProgram, Quantize, Tensor
from qcompiler.sim.numerics import dequantize_linear

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
        """In dB; infinite without noise, minus infinite for noise on a signal that is zero."""
        if self.noise == 0:
            return math.inf
        return 10 * math.log10(self.signal / self.noise) if self.signal else -math.inf


def real_values(value: Array, tensor: Tensor) -> Array:
    """What the tensor stands for: int8 dequantised by its scale and zero point, anything else as it is."""
    if tensor.scale is None or value.dtype != np.int8:
        return value
    return dequantize_linear(value, np.float32(tensor.scale), tensor.zero_point or 0)


def per_tensor_sqnr(graph: Graph, program: IntegerProgram, runs: Iterable[tuple[Values, Values]]) -> dict[str, float]:
    """SQNR in dB of every tensor that stands for one of the float graph.

    runs: samples, and for each all tensors as the reference interpreter computes them.
    """
    twins = {name: twin for name, twin in _float_twins(program).items() if twin in graph.types}
    readers: dict[str, list[str]] = {}
    for name, twin in twins.items():
        if graph.types[twin].shape == program.tensors[name].shape:
            readers.setdefault(twin, []).append(name)
    model, noise = FloatExecutor(graph, list(readers)), {n: Noise() for names in readers.values() for n in names}
    for sample, actual in runs:
        for twin, expected in model.run_canonical([sample]):
            for name in readers[twin]:
                noise[name].add(expected, real_values(actual[name], program.tensors[name]))
    return {name: n.sqnr_db for name, n in noise.items()}


def _float_twins(program: IntegerProgram) -> dict[str, str]:
    """The float tensor that each written tensor stands for: its namesake, or what it was or will be outside int8."""
    twins = {op.output: op.output for op in program.operations}
    for op in program.operations:
        if isinstance(op, Quantize):
            twins[op.output] = op.inputs[0]
        elif isinstance(op, Dequantize) and op.inputs[0] in twins:
            twins[op.inputs[0]] = op.output
    return twins


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
    graph: Graph, program: IntegerProgram, execute: Callable[[Values], Values], samples: Iterable[Values]
) -> OutputAccuracy:
    """Compare what `execute` (the compiled library, or the reference) returns with the float model's outputs."""
    model, result = FloatExecutor(graph, graph.outputs), OutputAccuracy({n: Noise() for n in program.outputs})
    pairs = list(zip(graph.outputs, program.outputs, strict=True))
    for sample in samples:
        expected, actual = dict(model.run_canonical([sample])), execute(sample)
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
