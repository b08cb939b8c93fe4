"""Bias correction: take the mean error that rounding causes in each output channel out of the layer's bias.

Rounded weights shift the mean of a channel, and the shifts of one layer feed the next. Layer by layer, in order, the
quantised model runs up to the layer on calibration samples, and the difference between the float mean and the
quantised mean of every channel is added to its bias (Nagel et al., "Data-free quantization through weight
equalization and bias correction", ICCV 2019, section 4.2, the empirical form). One float and one quantised run a
layer: for small networks a matter of seconds, for large ones of minutes, and so not part of the default.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import tvm
from tvm import relax

from qcompiler.passes.base import Pass
from qcompiler.passes.calibrate import FloatExecutor, Progress, Samples
from qcompiler.passes.fuse import MATRIX, analyse, epilogue, is_bias
from qcompiler.passes.graph import Graph, read
from qcompiler.passes.quantize import Quantize
from qcompiler.passes.ranges import Parameters
from qcompiler.passes.rewrite import Rewriter, const

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True)
class CorrectBias(Pass):
    """Adds `shifts` to biases: name of the biased tensor to a vector over its channels, from `bias_shifts`."""

    shifts: Mapping[str, Vector] | None = None

    def run(self, module: tvm.IRModule) -> tvm.IRModule:
        return _Shift(module, self.shifts or {}).run()


class _Shift(Rewriter):
    def __init__(self, module: tvm.IRModule, shifts: Mapping[str, Vector]) -> None:
        super().__init__(module)
        self.shifts = shifts
        self.biases = {name: bias for name, bias in _biases(read(module)).items() if name in shifts}

    def rewrite(self, name: str, call: relax.Call) -> relax.Expr:
        if name not in self.biases:
            return call
        bias = self.biases[name].astype(np.float64) + self.shifts[name]
        x = next(a for a in call.args if isinstance(a, relax.Var))
        return relax.Call(call.op, [x, const(bias.astype(np.float32))], call.attrs, call.ty_args)


def bias_shifts(
    module: tvm.IRModule,
    ranges: Mapping[str, Parameters],
    samples: Samples,
    limit: int = 64,
    progress: Progress | None = None,
) -> dict[str, Vector]:
    """The correction of every bias of a canonical float module that `Quantize(ranges)` rounds.

    At most `limit` samples are kept and run once a layer. progress: called with the number of layers done.
    Raises CalibrationError for samples that do not fit the model.
    """
    kept = list(islice(samples, limit))
    graph = read(module)
    names = list(_biases(graph))
    wanted = _means(graph, names, kept)
    quantised = read(Quantize(ranges).run(module))
    constants = dict(quantised.constants)
    shifts: dict[str, Vector] = {}
    for done, name in enumerate(names, start=1):
        inner = name if name in quantised.producers and quantised.producers[name].op == "add" else f"{name}.inner"
        current = replace(quantised, constants=constants)
        shifts[name] = wanted[name] - _means(current.upstream([inner]), [inner], kept)[inner]
        _add(current, constants, inner, shifts[name])
        if progress:
            progress(done)
    return shifts


def _biases(graph: Graph) -> dict[str, npt.NDArray[Any]]:
    """Biased tensor to its bias vector [O], for every integer convolution and matmul that has one."""
    reasons = analyse(graph).reasons
    found = {}
    for node in graph.nodes:
        if node.op not in MATRIX or node.name in reasons:
            continue
        for reader in epilogue(graph, node):
            if is_bias(graph, node, reader):
                bias = graph.constants[next(n for n in reader.inputs if n in graph.constants)]
                found[reader.name] = np.broadcast_to(bias.reshape(-1), graph.types[node.name].shape[-1:])
    return found


def _means(graph: Graph, names: list[str], samples: Samples) -> dict[str, Vector]:
    """The mean of each tensor over samples and positions, by channel (the last axis)."""
    totals = {name: np.zeros(graph.types[name].shape[-1]) for name in names}
    counts = dict.fromkeys(names, 0)
    for name, value in FloatExecutor(graph, names).run_canonical(samples):
        rows = value.reshape(-1, value.shape[-1])
        totals[name] += rows.sum(axis=0, dtype=np.float64)
        counts[name] += len(rows)
    return {name: totals[name] / max(counts[name], 1) for name in names}


def _add(graph: Graph, constants: dict[str, npt.NDArray[Any]], biased: str, shift: Vector) -> None:
    """Add a real shift to the int32 bias constant behind a dequantise."""
    dequantised = next(n for n in graph.producers[biased].inputs if _is_int32(graph, n))
    values, scale, _ = graph.producers[dequantised].inputs
    steps = np.rint(shift / constants[scale].astype(np.float64))
    constants[values] = (constants[values].astype(np.int64) + steps.astype(np.int64)).astype(np.int32)


def _is_int32(graph: Graph, name: str) -> bool:
    producer = graph.producers.get(name)
    return producer is not None and producer.op == "dequantize" and graph.types[producer.inputs[0]].dtype == "int32"
