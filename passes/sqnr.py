"""Signal to quantisation noise, layer by layer: which tensor of the integer program strays from the float model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import tvm

from qcompiler.passes.calibrate import FloatExecutor, Samples, check_sample
from qcompiler.passes.graph import Graph, read
from qcompiler.sim.integer_program import IntegerProgram, Tensor
from qcompiler.sim.numerics import dequantize_linear
from qcompiler.sim.reference import execute

Array = npt.NDArray[Any]


def sqnr_db(signal: float, noise: float) -> float:
    """``10 log10(signal / noise)`` for sums of squares; infinity without noise, minus infinity without signal."""
    if noise == 0.0:
        return np.inf
    return float(10.0 * np.log10(signal / noise)) if signal > 0.0 else -np.inf


def float_name(program: IntegerProgram, tensor: str, known: Iterable[str]) -> str | None:
    """The float model's tensor that a tensor of the program stands for, or None for helpers of the lowering."""
    names = set(known)
    if tensor in names:
        return tensor
    plain = tensor.removesuffix(".int8")
    return plain if plain in names else None


def layer_sqnr(module: tvm.IRModule, program: IntegerProgram, samples: Samples, limit: int = 4) -> dict[str, float]:
    """SQNR in dB of every tensor of the program that the float module has too, by the program's name for it.

    module: the canonical float module that the program was made from. At most `limit` samples are used (the
    reference interpreter is exact, not fast). Raises CalibrationError for samples that do not fit the model.
    """
    graph = read(module)
    inputs = {name: graph.types[name] for name in graph.inputs}
    checked = (check_sample(s, i, inputs) for i, s in enumerate(islice(samples, limit)))
    return sqnr_of_runs(graph, program, ((s, execute(program, s, keep=True)) for s in checked))


def sqnr_of_runs(
    graph: Graph, program: IntegerProgram, runs: Iterable[tuple[Mapping[str, Array], Mapping[str, Array]]],
    executor: FloatExecutor | None = None,
) -> dict[str, float]:  # fmt: skip
    """As `layer_sqnr`. runs: samples, and for each all tensors as `sim.reference` computes them.

    executor: one to use if it has all tensors. Float results come from ONNX Runtime; integer ones are dequantised.
    """
    origin = {n: f for n in program.tensors if (f := float_name(program, n, graph.types)) and f not in graph.constants}
    wanted = list(dict.fromkeys(origin.values()))
    wanted = [n for n in wanted if graph.types[n].dtype == "float32"]
    if executor is None or not executor.covers(wanted):
        executor = FloatExecutor(graph, wanted, batch=1)
    signal: dict[str, float] = dict.fromkeys(origin, 0.0)
    noise = dict(signal)
    for sample, values in runs:
        real = dict(executor.run_canonical([sample]))
        for name, source in origin.items():
            if source not in real or real[source].shape != values[name].shape:
                continue
            exact = real[source].astype(np.float64)
            error = exact - real_values(values[name], program.tensors[name])
            signal[name] += float(np.sum(exact * exact))
            noise[name] += float(np.sum(error * error))
    return {n: sqnr_db(signal[n], noise[n]) for n in origin if signal[n] > 0.0 and n not in program.inputs}


def real_values(value: Array, tensor: Tensor) -> Array:
    """What the tensor stands for: int8 dequantised by its scale and zero point, anything else as it is."""
    if tensor.scale is None or tensor.zero_point is None:
        return value.astype(np.float64)
    return dequantize_linear(value, np.float32(tensor.scale), tensor.zero_point).astype(np.float64)
