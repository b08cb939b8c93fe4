"""What happened in a compilation, as plain data: the one source of report.json, layers.csv and report.html.

Nothing here depends on the time or the place of the compilation, so that equal inputs give equal bytes.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qcompiler.sim.hardware.machine import packed_bytes
from qcompiler.sim.integer_program import Conv2d, Dense, FloatOp, IntegerProgram, Operation, Table
from qcompiler.sim.widths import on_array

LAYER_COLUMNS = (
    "name", "kind", "output", "shape", "dtype", "scale", "zero_point", "macs", "weight_bytes", "activation_bytes",
    "sqnr_db", "kernel", "group",
)  # fmt: skip


@dataclass(frozen=True)
class Accuracy:
    """tensors: SQNR in dB by tensor name over `tensor_samples` samples; outputs: alike over `output_samples`;
    agreement: see accuracy.OutputAccuracy. verified: on how many samples the compiled library was found equal to the
    reference interpreter bit for bit (0 when it cannot run on the compiling machine)."""

    tensors: Mapping[str, float]
    tensor_samples: int
    outputs: Mapping[str, float]
    output_samples: int
    agreement: float
    verified: int


def decibels(value: float | None) -> float | str | None:
    """A JSON value: two decimals, "exact" without noise, "no signal" for noise on silence, null when not measured."""
    if value is None or math.isnan(value):
        return None
    if math.isinf(value):
        return "exact" if value > 0 else "no signal"
    return round(value, 2)


def kind_of(op: Operation) -> str:
    """What people call the operation: its class, with the function of a table or the operator left in float."""
    if isinstance(op, FloatOp):
        return f"float {op.kind}"
    function = getattr(op, "function", "")
    name = type(op).__name__
    if isinstance(op, Table):
        return f"Table ({function})" if function else name
    return f"{name} (depthwise)" if getattr(op, "depthwise", False) else f"{name} ({function})" if function else name


def weight_bytes(op: Operation, program: IntegerProgram, bits: int = 8) -> int:
    """Bytes of the constants that the operation reads: weights, biases, tables, and constant operands.

    bits: of each weight of an array's work, where the target packs them.
    """
    own = sum(getattr(op, field).nbytes for field in ("weight", "bias", "table", "gain") if hasattr(op, field)
              and hasattr(getattr(op, field), "nbytes"))  # fmt: skip
    if isinstance(op, (Conv2d, Dense)) and on_array(op):
        own += packed_bytes(op.weight.size, bits) - op.weight.nbytes
    return own + sum(program.tensors[n].bytes for n in op.inputs if n in program.constants)


def kernel_text(layer: Mapping[str, Any]) -> str:
    """The kernel for people: an operation that is fused into another's kernel says whose."""
    fused = layer["kernel"] and layer["group"] not in ("", layer["name"])
    return f"in {layer['group']}" if fused else str(layer["kernel"])


def collect(
    program: IntegerProgram,
    accuracy: Accuracy | None,
    kernels: Mapping[str, tuple[str, str]],
    about: Mapping[str, Any],
    sizes: Mapping[str, int],
    steps: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    weight_bits: int = 8,
) -> dict[str, Any]:
    """The report as JSON values.

    kernels: operation name to (kernel, fusion group). about: model, target, options. sizes: bytes of things by name.
    steps: kernel calls of a CPU's library by instruction-set level, for `qcompiler run --profile`. weight_bits: of an
    array whose weights are packed.
    """  # fmt: skip
    layers: list[dict[str, Any]] = []
    for op in program.operations:
        out = program.output_tensor(op)
        kernel, group = kernels.get(op.name, ("", ""))
        layers.append(
            {
                "name": op.name,
                "kind": kind_of(op),
                "inputs": list(op.inputs),
                "output": op.output,
                "shape": list(out.shape),
                "dtype": out.dtype,
                "scale": out.scale,
                "zero_point": out.zero_point,
                "macs": program.macs(op),
                "weight_bytes": weight_bytes(op, program, weight_bits),
                "activation_bytes": out.bytes,
                "sqnr_db": decibels(accuracy.tensors.get(op.output)) if accuracy else None,
                "kernel": kernel,
                "group": group,
            }
        )
    fallbacks = [
        {"name": op.name, "operator": op.kind, "reason": op.reason}
        for op in program.operations
        if isinstance(op, FloatOp)
    ]
    weights = sum(layer["weight_bytes"] for layer in layers)
    measured = None
    if accuracy is not None:
        measured = {
            "outputs_sqnr_db": {name: decibels(value) for name, value in accuracy.outputs.items()},
            "output_samples": accuracy.output_samples,
            "layer_samples": accuracy.tensor_samples,
            "agreement": None if math.isnan(accuracy.agreement) else round(accuracy.agreement, 6),
            "samples_equal_to_reference": accuracy.verified,
        }
    return {
        "about": dict(about),
        "summary": {
            "operations": len(program.operations),
            "float_operations": len(fallbacks),
            "macs": sum(layer["macs"] for layer in layers),
            "weight_bytes": weights,
        },
        "accuracy": measured,
        "sizes": {**sizes, "weights": weights},
        "layers": layers,
        "fallbacks": fallbacks,
        "steps": {level: [dict(step) for step in calls] for level, calls in (steps or {}).items()},
    }


def to_json(report: Mapping[str, Any]) -> str:
    return json.dumps(report, indent=2, allow_nan=False) + "\n"


def to_csv(report: Mapping[str, Any]) -> str:
    """layers.csv: one row an operation, in execution order; shapes as 1x28x28x32."""
    out = io.StringIO()
    writer = csv.DictWriter(out, LAYER_COLUMNS, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    for layer in report["layers"]:
        writer.writerow({**layer, "shape": "x".join(map(str, layer["shape"]))})
    return out.getvalue()
