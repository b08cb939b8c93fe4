"""Machines a second that the evaluation prices, tiling choice included: on one core, and with two workers.

    python benchmarks/explore.py                        # kws and resnet50 with random weights
    python benchmarks/explore.py kws --machines 2000

Machines are drawn at random and all differ. A machine that cannot run the network is left out beforehand, so that the
figure is of machines that were mapped and timed. Each figure is the fastest of --repeats runs.
"""

from __future__ import annotations

import argparse
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from qcompiler.sim import energy, hardware
from qcompiler.sim.evaluate import evaluate
from qcompiler.sim.hardware import Machine
from qcompiler.sim.network import Network, network

COUNTS = {"kws": 1024, "resnet50": 256}


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=["kws", "resnet50"], help="networks of the tests")
    parser.add_argument("--machines", type=int, help="how many (default 1024, resnet50 256)")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    print(f"{'network':12} {'machines':>8} {'1 core':>10} {'2 workers':>10} {'ratio':>6}   (machines a second)")
    for name in options.networks:
        net, wanted = load(name), options.machines or COUNTS.get(name, 256)
        machines: list[Machine] = []
        seed = 0
        while len(machines) < wanted:
            drawn = [draw(s) for s in range(seed, seed + wanted)]
            able = evaluate([net], drawn, energy.load_table()).feasible
            machines += [m for m, ok in zip(drawn, able, strict=True) if ok]
            seed += wanted
            if seed > 100 * wanted:
                sys.exit(f"{name}: hardly any of {seed} random machines can run it")
        machines = machines[:wanted]
        one = two = float("inf")
        halves = [machines[: wanted // 2], machines[wanted // 2 :]]
        with ProcessPoolExecutor(2) as pool:
            list(pool.map(run, [net, net], [m[:8] for m in halves]))  # processes are there, modules loaded
            for _ in range(options.repeats):
                begin = time.perf_counter()
                whole = run(net, machines)
                one = min(one, time.perf_counter() - begin)
                begin = time.perf_counter()
                assert sum(pool.map(run, [net, net], halves)) == whole
                two = min(two, time.perf_counter() - begin)
        print(f"{name:12} {wanted:8} {wanted / one:10.0f} {wanted / two:10.0f} {one / two:6.2f}")


if __name__ == "__main__":
    main()
