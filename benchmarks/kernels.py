"""Single kernels on one thread: GMAC/s and share of the machine's measured dot-product peak, per layer shape.

    python benchmarks/kernels.py [resnet50] [mobilenet] [kws] [bert] [--isa avx512-vnni] [--only 3x3]

Times are the shortest of many calls with warm caches; weights of large layers come from the outer caches as they
would in a network. The peak is measured in the same run (dot products on registers).
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np

from qcompiler.codegen.cpu.conv import conv2d
from qcompiler.codegen.cpu.gemm import dense, matmul
from qcompiler.codegen.cpu.kernel import Group
from qcompiler.codegen.cpu.measure import LoadedSteps
from qcompiler.codegen.cpu.peak import peak
from qcompiler.codegen.cpu.target import cpu_target
from qcompiler.sim.integer_program import Conv2d, Dense, MatMul, Operation, Requantize, Tensor

# (name, height and width, input channels, output channels, kernel, stride, padding, how often in the network)
Conv = tuple[str, tuple[int, int], int, int, tuple[int, int], tuple[int, int], tuple[int, int, int, int], int]
SAME = (1, 1, 1, 1)


def _resnet50() -> list[Conv]:
    layers: list[Conv] = [("7x7", (224, 224), 3, 64, (7, 7), (2, 2), (3, 3, 3, 3), 1)]
    size, channels = 56, 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        stride = 1 if width == 64 else 2
        here = size // stride
        layers += [
            ("1x1", (size, size), channels, width, (1, 1), (1, 1), (0,) * 4, 1),
            ("3x3", (size, size), width, width, (3, 3), (stride, stride), SAME, 1),
            ("1x1", (here, here), width, 4 * width, (1, 1), (1, 1), (0,) * 4, blocks),
            ("1x1 shortcut", (size, size), channels, 4 * width, (1, 1), (stride, stride), (0,) * 4, 1),
            ("1x1", (here, here), 4 * width, width, (1, 1), (1, 1), (0,) * 4, blocks - 1),
            ("3x3", (here, here), width, width, (3, 3), (1, 1), SAME, blocks - 1),
        ]
        size, channels = here, 4 * width
    return layers


def _mobilenet() -> list[Conv]:
    """MobileNet v1: pairs of depthwise 3x3 and 1x1."""
    layers: list[Conv] = [("3x3 first", (224, 224), 3, 32, (3, 3), (2, 2), (0, 0, 1, 1), 1)]
    size = 112
    plan = [(32, 64, 1, 1), (64, 128, 2, 1), (128, 128, 1, 1), (128, 256, 2, 1), (256, 256, 1, 1), (256, 512, 2, 1),
            (512, 512, 1, 5), (512, 1024, 2, 1), (1024, 1024, 1, 1)]  # fmt: skip
    for inputs, outputs, stride, count in plan:
        layers.append(("depthwise", (size, size), inputs, inputs, (3, 3), (stride, stride), SAME, count))
        size //= stride
        layers.append(("1x1", (size, size), inputs, outputs, (1, 1), (1, 1), (0,) * 4, count))
    return layers


def _kws() -> list[Conv]:
    return [
        ("10x4 first", (49, 10), 1, 64, (10, 4), (2, 2), (4, 1, 5, 1), 1),
        ("depthwise", (25, 5), 64, 64, (3, 3), (1, 1), SAME, 4),
        ("1x1", (25, 5), 64, 64, (1, 1), (1, 1), (0,) * 4, 4),
    ]


NETWORKS = {"resnet50": _resnet50, "mobilenet": _mobilenet, "kws": _kws}


def conv_group(layer: Conv) -> Group:
    name, (h, w), c, o, kernel, stride, padding, _ = layer
    groups = c if name == "depthwise" else 1
    rng = np.random.default_rng(0)
    weight = rng.integers(-127, 128, (o, *kernel, c // groups)).astype(np.int8)
    scale = np.full(o, 1e-3 / np.sqrt(weight[0].size), dtype=np.float32)
    requantize = Requantize(scale, -128)
    op = Conv2d(name, ("x",), "y", weight, np.zeros(o, np.int32), requantize, stride, (1, 1), padding, groups)
    return _group(op, {"x": (1, h, w, c)})


def _group(op: Operation, inputs: dict[str, tuple[int, ...]]) -> Group:
    shape = op.infer_shape([inputs[n] for n in op.inputs])
    tensors = {n: Tensor(n, s, "int8", 0.5, 3) for n, s in {**inputs, "y": shape}.items()}
    return Group((op,), tensors)


def transformer_groups(width: int = 768, length: int = 128, heads: int = 12) -> list[tuple[str, int, Any, Group]]:
    """(name, count, lowering, group) of the matrix products of one BERT-base block."""
    rng = np.random.default_rng(0)

    def linear(name: str, n: int, k: int) -> Group:
        weight = rng.integers(-127, 128, (n, k)).astype(np.int8)
        r = Requantize(np.full(n, 1e-3 / np.sqrt(k), dtype=np.float32), 0)
        return _group(Dense(name, ("x",), "y", weight, np.zeros(n, np.int32), r), {"x": (length, k)})

    r = Requantize(np.array([1e-4], dtype=np.float32), 0)
    head = (1, heads, length, width // heads)
    scores = _group(MatMul("scores", ("a", "b"), "y", r, True), {"a": head, "b": head})
    context = _group(MatMul("context", ("a", "b"), "y", r), {"a": (1, heads, length, length), "b": head})
    return [
        ("projection", 4, dense, linear("projection", width, width)),
        ("expand", 1, dense, linear("expand", 4 * width, width)),
        ("contract", 1, dense, linear("contract", width, 4 * width)),
        ("scores", 1, matmul, scores),
        ("context", 1, matmul, context),
    ]


LEVELS = cpu_target("x86").levels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=["resnet50"])
    parser.add_argument("--isa", default=LEVELS[0].name, choices=[level.name for level in LEVELS])
    parser.add_argument("--only", default="", help="layers whose name starts with this")
    parser.add_argument("--repeat", type=int, default=30)
    options = parser.parse_args()
    isa = next(level for level in LEVELS if level.name == options.isa)
    top = peak(isa)
    print(f"{isa.name}: measured peak {top * 1e-9:.0f} GMAC/s")
    for network in options.networks:
        if network == "bert":
            work = transformer_groups()
        else:
            work = [(layer[0], layer[-1], conv2d, conv_group(layer)) for layer in NETWORKS[network]()]
        total_seconds = total_macs = 0.0
        for name, count, lower, group in work:
            if not name.startswith(options.only):
                continue
            started = time.perf_counter()
            steps = lower(group, isa)
            rng = np.random.default_rng(0)
            inputs = {t.name: rng.integers(0, 256, t.shape).astype(np.uint8) for t in group.inputs}
            loaded = LoadedSteps(steps, isa, inputs)
            compile_seconds = time.perf_counter() - started
            loaded.run()
            seconds = [loaded.seconds(i, options.repeat) for i in range(len(steps))]
            ins = [group.tensors[n].shape for n in group.root.inputs]
            macs = group.root.macs(ins, group.output.shape)
            rate = macs / sum(seconds)
            total_seconds += count * sum(seconds)
            total_macs += count * macs
            tile = steps[-1].kernel.parameters["tile"]
            shown = " + ".join(f"{s * 1e6:.1f}" for s in seconds)
            shapes = " -> ".join(f"{'x'.join(map(str, s)):14s}" for s in (ins[0], group.output.shape))
            print(
                f"{name:13s} {shapes} x{count}: "
                f"{shown} us, {rate * 1e-9:6.1f} GMAC/s, {100 * rate / top:5.1f} % of peak, {tile}, "
                f"built in {compile_seconds:.2f} s",
                flush=True,
            )
        if total_macs:
            print(
                f"{network}: {total_seconds * 1e3:.3f} ms, {total_macs / total_seconds * 1e-9:.1f} GMAC/s, "
                f"{100 * total_macs / total_seconds / top:.1f} % of peak"
            )


if __name__ == "__main__":
    main()
