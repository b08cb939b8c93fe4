"""Batch-1 latency of compiled models beside ONNX Runtime and OpenVINO, on the machine it runs on.

  python benchmarks/latency.py MODEL.onnx --calibration DATA.npz [--threads N] [--target x86]

Contenders: qcompiler; ONNX Runtime in float32 and with its own static int8 quantisation (QDQ, u8 activations, s8
weights per channel, min-max) on the same data; OpenVINO on that same QDQ model, where `pip install openvino` was done.
Each lives in a process of its own. They run in turns, in bursts whose order rotates, so that a busy machine hurts all
alike; the minimum and the median over all single inferences are printed.
"""

from __future__ import annotations

import argparse
import importlib.util
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

ROUNDS, BURST_SECONDS = 12, 0.15


def quantise_with_onnxruntime(model: Path, data: dict[str, Any], output: Path) -> None:
    """ONNX Runtime's static quantisation with its defaults for CPUs."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.samples = iter(range(len(next(iter(data.values())))))

        def get_next(self) -> dict[str, Any] | None:
            index = next(self.samples, None)
            return None if index is None else {name: values[index : index + 1] for name, values in data.items()}

    prepared = output.with_suffix(".prepared.onnx")
    quant_pre_process(str(model), str(prepared), skip_symbolic_shape=True)
    quantize_static(
        str(prepared), str(output), Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip


def onnxruntime_runner(model: Path, threads: int, sample: dict[str, Any]) -> Callable[[], Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 3
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    for name, value in sample.items():
        binding.bind_cpu_input(name, value)
    for output in session.get_outputs():
        binding.bind_output(output.name)
    return lambda: session.run_with_iobinding(binding)


def openvino_runner(model: Path, threads: int, sample: dict[str, Any]) -> Callable[[], Any]:
    import openvino

    core = openvino.Core()
    network = core.read_model(model)
    network.reshape({name: list(value.shape) for name, value in sample.items()})
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
    request = core.compile_model(network, "CPU", settings).create_infer_request()
    for name, value in sample.items():
        request.set_tensor(name, openvino.Tensor(value))
    return request.infer


def qcompiler_runner(artefact: Path, threads: int, sample: dict[str, Any]) -> Callable[[], Any]:
    import qcompiler

    model = qcompiler.load(artefact, threads)
    for name, value in sample.items():
        model.inputs[name][...] = value
    return model.invoke


def work(pipe: Connection, make: Callable[..., Callable[[], Any]], *arguments: Any) -> None:
    """A contender's process: answers a duration with the times of as many inferences as fit into it."""
    invoke, clock = make(*arguments), time.perf_counter_ns
    invoke()
    pipe.send("ready")
    while (duration := pipe.recv()) is not None:
        invoke()
        times, end = [], clock() + duration * 1e9
        while clock() < end:
            started = clock()
            invoke()
            times.append((clock() - started) / 1e9)
        pipe.send(times)


def main() -> None:
    """Compile, quantise, run in turns, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--target", default="x86")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()

    import onnxruntime

    import qcompiler

    inputs = {i.name for i in onnxruntime.InferenceSession(options.model).get_inputs()}
    with np.load(options.calibration, allow_pickle=False) as archive:
        data = {name: archive[name].astype(np.float32) for name in archive.files if name in inputs}
    sample = {name: np.ascontiguousarray(values[:1]) for name, values in data.items()}
    with tempfile.TemporaryDirectory() as folder:
        artefact, quantised = Path(folder) / "artefact", Path(folder) / "int8.onnx"
        qcompiler.compile(options.model, calibration=options.calibration, output=artefact, target=options.target)
        quantise_with_onnxruntime(options.model, data, quantised)
        contenders: dict[str, tuple[Any, ...]] = {
            "qcompiler": (qcompiler_runner, artefact),
            "ONNX Runtime int8": (onnxruntime_runner, quantised),
            "ONNX Runtime float32": (onnxruntime_runner, options.model),
        }
        if importlib.util.find_spec("openvino"):
            contenders["OpenVINO int8"] = (openvino_runner, quantised)
        times = race(contenders, options.threads, sample)
    best = min(min(values) for values in times.values())
    print(f"{options.model.name}, {options.threads} thread{'s' if options.threads > 1 else ''}")
    print(f"{'':<24}{'min µs':>10}{'median µs':>12}{'x best':>8}{'runs':>9}")
    for name, values in sorted(times.items(), key=lambda item: min(item[1])):
        low, middle = min(values), statistics.median(values)
        print(f"{name:<24}{low * 1e6:>10.1f}{middle * 1e6:>12.1f}{low / best:>8.2f}{len(values):>9}")


def race(contenders: dict[str, tuple[Any, ...]], threads: int, sample: dict[str, Any]) -> dict[str, list[float]]:
    """Seconds of every inference, by contender."""
    spawn = multiprocessing.get_context("spawn")
    pipes: dict[str, Any] = {}
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for name, (make, model) in contenders.items():
        pipes[name], theirs = spawn.Pipe()
        spawn.Process(target=work, args=(theirs, make, model, threads, sample), daemon=True).start()
        theirs.close()  # so that the death of the other end is noticed
        pipes[name].recv()
    order = list(contenders)
    for _ in range(ROUNDS):
        order = order[1:] + order[:1]
        for name in order:
            pipes[name].send(BURST_SECONDS)
            times[name] += pipes[name].recv()
    for pipe in pipes.values():
        pipe.send(None)
    return times


if __name__ == "__main__":
    main()
