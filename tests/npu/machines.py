"""Random and edited machines, and small hand-written programs, for the accelerator's tests."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from qcompiler.sim.hardware import Machine, load

EDGE = load("edge-16x16")
MICRO = load("micro-8x8")


def edited(machine: Machine, **fields: Any) -> Machine:
    """The machine with nested fields replaced, `matrix__rows=8`, and validated again."""
    content = machine.model_dump(mode="json")
    for path, value in fields.items():
        at = content
        *parts, last = path.split("__")
        for part in parts:
            at = at[part]
        at[last] = value
    return Machine.model_validate(content)


def any_machine(seed: int) -> Machine:
    """A machine that differs from every other in all that the cost depends on."""
    r = np.random.default_rng(seed)

    def size(low: int, high: int) -> int:
        return int(2 ** r.uniform(np.log2(low), np.log2(high)))

    def pick(*values: Any) -> Any:
        return values[int(r.integers(len(values)))]

    rows, columns, buffers = size(4, 64), size(4, 64), pick(1, 2)
    fields = {
        "matrix__rows": rows, "matrix__columns": columns, "matrix__weight_buffers": buffers,
        "matrix__accumulator_rows": max(size(64, 1024), rows),
        "matrix__dataflows": pick(["weight_stationary"], ["output_stationary"],
                                  ["weight_stationary", "output_stationary"]),
        "vector__lanes": size(4, 64), "vector__parameter_bytes": size(4096, 16384),
        "activation_memory__size_bytes": size(32 << 10, 1 << 20), "activation_memory__bytes_per_cycle": 64,
        "weight_memory__size_bytes": max(size(4 << 10, 256 << 10), rows * columns * buffers),
        "weight_memory__bytes_per_cycle": 64, "main_memory__read_bytes_per_cycle": size(16, 256) / 16,
        "main_memory__write_bytes_per_cycle": size(16, 128) / 16, "main_memory__latency_cycles": size(10, 200),
        "main_memory__burst_bytes": pick(16, 32, 64), "main_memory__outstanding_transfers": pick(1, 2, 4, 8),
    }  # fmt: skip
    if r.random() < 0.4:
        fields["constant_memory__read_bytes_per_cycle"] = size(16, 128) / 16
        fields["constant_memory__latency_cycles"] = size(20, 200)
        return edited(load("u55-128-like"), name=f"any-{seed}", **fields)
    return edited(EDGE, name=f"any-{seed}", **fields)


@st.composite
def machines(draw: st.DrawFn) -> Machine:
    """Small machines of every kind: one or two weight buffers, narrow weights, with and without a constant memory,
    tiny queues."""
    rows, columns = draw(st.sampled_from([2, 4, 8])), draw(st.sampled_from([2, 4, 8]))
    bandwidth = st.sampled_from([1.0, 2.5, 4.0, 8.0])

    def external(technology: str) -> dict[str, Any]:
        return {
            "technology": technology,
            "size_bytes": 1 << 20,
            "read_bytes_per_cycle": draw(bandwidth),
            "write_bytes_per_cycle": draw(bandwidth),
            "latency_cycles": draw(st.integers(0, 50)),
            "burst_bytes": draw(st.sampled_from([1, 4, 16])),
            "outstanding_transfers": draw(st.integers(1, 4)),
        }

    return Machine.model_validate(
        {
            "name": "random",
            "clock_mhz": 100,
            "process_nm": draw(st.sampled_from([7, 16, 28, 45])),
            "matrix": {
                "rows": rows,
                "columns": columns,
                "accumulator_rows": 64,
                "weight_buffers": draw(st.sampled_from([1, 2])),
                "weight_bits": draw(st.sampled_from([8, 8, 4, 3])),
            },
            "vector": {"lanes": draw(st.sampled_from([1, 4, 8])), "parameter_bytes": 4096},
            "activation_memory": {"size_bytes": 4096, "bytes_per_cycle": 8},
            "weight_memory": {"size_bytes": 2048, "bytes_per_cycle": 8},
            "main_memory": external("lpddr4"),
            "constant_memory": external("flash") if draw(st.booleans()) else None,
            "control": {"queue_entries": draw(st.integers(2, 6))},
        }
    )
