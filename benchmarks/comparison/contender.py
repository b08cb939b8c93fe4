"""One runtime with one model in a process of its own: tells how it loaded, then answers how long inferences take.

python contender.py KIND MODEL THREADS DATA.npz OUTPUT.npy     KIND: qcompiler, onnxruntime, openvino, litert

Speaks JSON lines on the standard output that it was started with (whatever a runtime prints goes to stderr). First
{"load_s", "rss_mb", ...}; then for each line N on stdin: {"times": N seconds, "rss_mb"}. Timed is one call on inputs
that are in place, as each runtime offers it without copies. Imports nothing else of this project, except qcompiler.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

Runner = tuple[Callable[[], Any], Callable[[], Any], dict[str, Any]]


def stored(sample: Any, dtype: Any, scale: float, zero_point: int) -> Any:
    """The sample as an input of that type."""
    if np.dtype(dtype) == np.float32:
        return sample
    limits = np.iinfo(dtype)
    return np.clip(np.rint(sample / scale) + zero_point, limits.min, limits.max).astype(dtype)


def qcompiler(path: str, threads: int, sample: Any) -> Runner:
    import qcompiler

    model = qcompiler.load(path, threads)
    (value,), (output,) = model.inputs.values(), model.outputs.values()
    value[...] = sample
    return model.invoke, lambda: output, {"isa": model.isa}


def onnxruntime(path: str, threads: int, sample: Any) -> Runner:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    binding.bind_cpu_input(session.get_inputs()[0].name, sample)
    binding.bind_output(session.get_outputs()[0].name)
    return lambda: session.run_with_iobinding(binding), lambda: binding.copy_outputs_to_cpu()[0], {}


def openvino(path: str, threads: int, sample: Any) -> Runner:
    import openvino

    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    core = openvino.Core()
    request = core.compile_model(core.read_model(path), "CPU", settings).create_infer_request()
    request.set_input_tensor(0, openvino.Tensor(sample))
    return request.infer, lambda: request.get_output_tensor(0).data, {}


def litert(path: str, threads: int, sample: Any) -> Runner:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=path, num_threads=threads)
    interpreter.allocate_tensors()
    (entry,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()
    if len(entry["shape"]) == 4 and tuple(entry["shape"]) != sample.shape:
        sample = np.transpose(sample, (0, 2, 3, 1))
    interpreter.set_tensor(
        entry["index"], stored(sample.reshape(entry["shape"]), entry["dtype"], *entry["quantization"])
    )

    def output() -> Any:
        value, (scale, zero) = interpreter.get_tensor(result["index"]), result["quantization"]
        return value if value.dtype == np.float32 else (value.astype(np.float32) - zero) * scale

    return interpreter.invoke, output, {}


RUNTIMES = {f.__name__: f for f in (qcompiler, onnxruntime, openvino, litert)}
MODULES = {"onnxruntime": "onnxruntime", "openvino": "openvino", "litert": "ai_edge_litert.interpreter"}
"""What is imported before loading is timed; ours has nothing to import before it loads."""


def resident_mb() -> float:
    """Resident memory of this process now."""
    with open("/proc/self/statm", encoding="ascii") as stream:
        return int(stream.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def main() -> None:
    kind, path, threads, data, output = sys.argv[1:6]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    with np.load(data, allow_pickle=False) as archive:
        sample = np.ascontiguousarray(archive["test"])
    clock = time.perf_counter
    started = clock()
    if kind in MODULES:
        __import__(MODULES[kind])
    imported = clock()
    invoke, result, facts = RUNTIMES[kind](path, int(threads), sample)
    loaded = clock()
    invoke()
    first = clock() - loaded
    for _ in range(3):
        invoke()
    np.save(output, np.asarray(result(), dtype=np.float32).ravel())
    facts |= {"import_s": imported - started, "load_s": loaded - imported, "first_s": first, "rss_mb": resident_mb()}
    print(json.dumps(facts), file=answers, flush=True)
    now = time.perf_counter_ns
    for line in sys.stdin:
        invoke()
        times = []
        for _ in range(int(line)):
            started_ns = now()
            invoke()
            times.append((now() - started_ns) / 1e9)
        print(json.dumps({"times": times, "rss_mb": resident_mb()}), file=answers, flush=True)


if __name__ == "__main__":
    main()
