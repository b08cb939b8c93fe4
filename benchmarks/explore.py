"""Machines a second that the evaluation prices, tiling choice included: on one core, and with two workers.

    python benchmarks/explore.py                        # kws and resnet50 with random weights
    python benchmarks/explore.py kws --machines 4096

Machines are drawn at random and all differ. A machine that cannot run the network is left out beforehand, so that the
figure is of machines that were mapped and timed. Each is evaluated among `evaluate.BLOCK` others, as `explore`
does. Each figure is the fastest of --repeats runs, a ratio the median of those of runs one after the other. The last
is what the machine gives: how much more two processes get done that count in Python and share nothing.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from qcompiler.sim import energy, hardware
from qcompiler.sim.evaluate import BLOCK, evaluate
from qcompiler.sim.hardware import Machine
from qcompiler.sim.network import Network, network

COUNTS = {"kws": 4 * BLOCK, "resnet50": 2 * BLOCK}
LOOP = 5_000_000


def draw(seed: int) -> Machine:
    """A random machine on the pattern of edge-16x16."""
    r = np.random.default_rng(seed)
    content = hardware.load("edge-16x16").model_dump(mode="json")

    def pick(*values: Any) -> Any:
        return values[int(r.integers(len(values)))]

    rows, columns, buffers = pick(8, 16, 32, 64), pick(8, 16, 32, 64), pick(1, 2)
    content["matrix"] |= {
        "rows": rows, "columns": columns, "weight_buffers": buffers, "accumulator_rows": pick(128, 256, 512, 1024),
        "dataflows": pick(["weight_stationary"], ["output_stationary"], ["weight_stationary", "output_stationary"]),
    }  # fmt: skip
    content["vector"] |= {"lanes": pick(8, 16, 32, 64), "parameter_bytes": pick(4096, 8192, 16384)}
    content["activation_memory"] = {"size_bytes": int(2 ** r.uniform(18, 22)), "bytes_per_cycle": 64}
    content["weight_memory"] = {"size_bytes": pick(16, 32, 64, 128, 256) << 10, "bytes_per_cycle": 64}
    content["main_memory"] |= {
        "read_bytes_per_cycle": int(r.integers(16, 512)) / 16, "write_bytes_per_cycle": int(r.integers(16, 256)) / 16,
        "latency_cycles": int(r.integers(10, 200)), "burst_bytes": pick(16, 32, 64),
        "outstanding_transfers": pick(1, 2, 4, 8), "size_bytes": 1 << 30,
    }  # fmt: skip
    return Machine.model_validate(content | {"name": f"random-{seed}"})


def load(name: str) -> Network:
    """A network of the tests, with random weights: only its shapes matter."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "npu"))
    from networks import NETWORKS
    from networks import network as build

    if name not in NETWORKS:
        sys.exit(f"{name!r} is none of {', '.join(NETWORKS)}")
    return network(build(name)[0])


def run(net: Network, machines: list[Machine]) -> int:
    """Evaluate; returns the sum of all cycles, to be compared."""
    return int(evaluate([net], machines, energy.load_table()).cycles.sum())


def spin(length: int) -> int:
    """Work that needs no memory."""
    total = 0
    for i in range(length):
        total += i
    return total


def seconds(pool: ProcessPoolExecutor, work: Callable[..., int], *arguments: Sequence[Any]) -> tuple[float, list[int]]:
    """How long the pool takes for all, and the results."""
    begin = time.perf_counter()
    results = list(pool.map(work, *arguments))
    return time.perf_counter() - begin, results


def able(net: Network, wanted: int) -> list[Machine]:
    """So many random machines that can run a network."""
    machines: list[Machine] = []
    seed = 0
    while len(machines) < wanted:
        drawn = [draw(s) for s in range(seed, seed + wanted)]
        feasible = evaluate([net], drawn, energy.load_table()).feasible
        machines += [m for m, ok in zip(drawn, feasible, strict=True) if ok]
        seed += wanted
        if seed > 100 * wanted:
            sys.exit(f"{net.name}: hardly any of {seed} random machines can run it")
    return machines[:wanted]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=["kws", "resnet50"], help="networks of the tests")
    parser.add_argument("--machines", type=int, help=f"how many (default {2 * BLOCK}, kws {4 * BLOCK})")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    print(
        f"{'network':12} {'machines':>8} {'1 worker':>10} {'2 workers':>10} {'ratio':>6} {'of loops':>9}   (machines/s)"
    )
    for name in options.networks:
        net = load(name)
        machines = able(net, options.machines or COUNTS.get(name, 2 * BLOCK))
        size = min(BLOCK, -(-len(machines) // 2))
        parts = [machines[low : low + size] for low in range(0, len(machines), size)]
        nets, few = [net] * len(parts), [part[:32] for part in parts] * 4
        one, two, ratios, loops = [], [], [], []
        with ProcessPoolExecutor(1) as single, ProcessPoolExecutor(2) as pair:
            for pool in (single, pair):  # processes are there, modules loaded, what is kept of a network is made
                seconds(pool, run, [net] * len(few), few)
            for _ in range(options.repeats):
                loops.append(2 * seconds(single, spin, [LOOP])[0] / seconds(pair, spin, [LOOP, LOOP])[0])
                (a, expected), (b, found) = seconds(single, run, nets, parts), seconds(pair, run, nets, parts)
                assert found == expected
                one, two, ratios = [*one, a], [*two, b], [*ratios, a / b]
        print(f"{name:12} {len(machines):8} {len(machines) / min(one):10.0f} {len(machines) / min(two):10.0f} "
              f"{median(ratios):6.2f} {median(loops):9.2f}")  # fmt: skip


if __name__ == "__main__":
    main()
