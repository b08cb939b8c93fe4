"""Throughput of the accelerator's simulators, in instructions a second: python benchmarks/simulator.py [FILE.npu ...]

Without a file, a synthetic program of 100,000 instructions (tiles of load, matmul, requantise, store) is timed.
Prints Markdown; every figure is the best of three runs, functional execution of one.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from qcompiler.sim import container, energy, functional, hardware, isa, timing
from qcompiler.sim.errors import QCompilerError
from qcompiler.sim.isa import Queue, Space
from qcompiler.sim.isa.base import mask
from qcompiler.sim.program import NpuProgram, Port

TILES = 25_000


def synthetic() -> NpuProgram:
    """TILES independent tiles with double-buffered weights and accumulators."""
    body: list[isa.Instruction] = []
    for i in range(TILES):
        early, late = i < 2, i >= TILES - 2
        load = isa.Copy(
            unit=Queue.load, source=Space.main, target=Space.weight, target_address=1024 * (i % 2), run_bytes=1024,
            wait=0 if early else mask(2), signal=mask(0),
        )  # fmt: skip
        work = isa.MatrixMultiply(
            address=0, row_pitch=512, pixel_pitch=64, in_h=8, in_w=8, out_h=8, out_w=8, run=64,
            weight_address=1024 * (i % 2), weight_pitch=16, columns=16, accumulator_row=64 * (i % 2),
            wait=mask(0) if early else mask(0, 3), signal=mask(1) if late else mask(1, 2),
        )  # fmt: skip
        post = isa.Requantize(
            accumulator_row=64 * (i % 2), out_h=8, out_w=8, width=16, out_address=8192, out_row_pitch=128,
            out_pixel_pitch=16, params=0, out_zero=0, wait=mask(1), signal=mask(4) if late else mask(3, 4),
        )  # fmt: skip
        store = isa.Copy(
            unit=Queue.store, source=Space.activation, source_address=8192, target=Space.main, target_address=8192,
            run_bytes=1024, wait=mask(4),
        )  # fmt: skip
        body += [load, work, post, store]
    setup = [
        isa.Copy(unit=Queue.load, source=Space.main, target=Space.activation, target_address=0, run_bytes=4096),
        isa.Copy(unit=Queue.load, source=Space.constant, target=Space.parameter, target_address=0, run_bytes=128),
        isa.Copy(unit=Queue.load, source=Space.main, target=Space.weight, target_address=0, run_bytes=64),
    ]
    x, y = Port("x", "int8", (4096,), 0), Port("y", "int8", (1024,), 8192)
    machine = hardware.load("edge-16x16")
    return NpuProgram("synthetic", machine, (*setup, *body, isa.Halt()), bytes(128), 16384, (x,), (y,))


def best(work: Callable[[], Any], runs: int = 3) -> float:
    """Seconds of the fastest run."""
    times = []
    for _ in range(runs):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return min(times)


def main(paths: list[str]) -> None:
    """Time each program."""
    print("| program | instructions | decode /s | timing /s | counts /s | functional /s | functional GMAC/s |")
    print("|---|---|---|---|---|---|---|")
    for program in [container.load(p) for p in paths] or [synthetic()]:
        data, n = container.to_bytes(program), len(program.instructions)
        rng = np.random.default_rng(0)
        inputs = {p.name: rng.integers(-128, 128, p.shape).astype(p.dtype) for p in program.inputs}
        macs = int(energy.count(program)[:, 0].sum())
        run = best(partial(functional.execute, program, inputs), runs=1)
        seconds = [
            best(partial(container.from_bytes, data)),
            best(partial(timing.simulate, program)),
            best(partial(energy.count, program)),
            run,
        ]
        rates = " | ".join(f"{n / s:,.0f}" for s in seconds)
        print(f"| {program.name} on {program.machine.name} | {n:,} | {rates} | {macs / run / 1e9:.2f} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", nargs="*", help="the model.npu of an artefact")
    try:
        main(parser.parse_args().program)
    except QCompilerError as error:
        parser.error(str(error))
