"""Random accelerator programs: legal copies, matmuls, requantisations and stores under random tokens."""

from __future__ import annotations

import dataclasses

from hypothesis import strategies as st

from qcompiler.sim import isa
from qcompiler.sim.hardware import Machine
from qcompiler.sim.isa import Instruction, Queue, Space
from qcompiler.sim.isa.base import mask
from qcompiler.sim.program import Layer, NpuProgram, Port

CONSTANTS = bytes(range(256)) * 4
MAIN_BYTES = 4096
PACKED = 16  # flag of a matmul
INPUT = Port("x", "int8", (1024,), 0)
OUTPUT = Port("y", "int8", (512,), 1024)


def constant_queue(machine: Machine) -> Queue:
    return Queue.load if machine.constant_memory is None else Queue.fetch


def prologue(machine: Machine) -> list[Instruction]:
    """Defines everything that the random part may read: activations, weights, parameters, accumulators."""
    q, n = constant_queue(machine), machine.matrix.columns
    packed = PACKED * (machine.matrix.weight_bits < 8)
    return [
        isa.Copy(unit=0, source=Space.fill, target=Space.activation, target_address=1024, run_bytes=3072, fill=7),
        isa.Copy(unit=0, source=Space.main, target=Space.activation, target_address=0, run_bytes=1024, signal=mask(0)),
        isa.Copy(unit=q, source=Space.constant, target=Space.weight, target_address=0, run_bytes=1024),
        isa.Copy(
            unit=q, source=Space.constant, source_address=1, target=Space.parameter, target_address=0, run_bytes=8,
            n1=8, target_stride1=8, source_stride1=8, signal=mask(1),
        ),
        isa.MatrixMultiply(
            address=0, row_pitch=64, pixel_pitch=8, in_h=8, in_w=8, out_h=8, out_w=8, run=8, weight_address=0,
            weight_pitch=n, columns=n, accumulator_row=0, flags=packed, wait=mask(0, 1), signal=mask(2),
        ),
        isa.Sync(unit=Queue.vector, wait=mask(2), signal=mask(3)),
        isa.Copy(
            unit=Queue.store, source=Space.fill, target=Space.main, target_address=OUTPUT.address, run_bytes=512,
            wait=mask(3),
        ),
    ]  # fmt: skip


@st.composite
def work(draw: st.DrawFn, machine: Machine) -> Instruction:
    """One instruction that may run at any time after the prologue."""
    kind = draw(st.sampled_from(["load", "constant", "local", "matmul", "requantize", "pool", "store", "sync"]))
    small = st.integers(1, 4)
    if kind in ("load", "constant", "local", "store"):
        unit, source, target = {
            "load": (Queue.load, Space.main, Space.activation),
            "constant": (constant_queue(machine), Space.constant, Space.weight),
            "local": (Queue.load, Space.activation, Space.activation),
            "store": (Queue.store, Space.activation, Space.main),
        }[kind]
        return isa.Copy(
            unit=unit, source=source, target=target,
            source_address=draw(st.sampled_from([0, 300, *([1100, 2000, 3000] if source == Space.activation else [])])),
            target_address=1100 if kind != "constant" else 1024, run_bytes=draw(st.integers(1, 40)), n1=draw(small),
            n2=draw(small), source_stride1=draw(st.integers(0, 40)), target_stride1=draw(st.integers(40, 60)),
        )  # fmt: skip
    if kind == "matmul":
        # The bytes in the memories have eight bits: narrow arrays only take what is packed.
        narrow = machine.matrix.weight_bits < 8
        flags = draw(st.sampled_from([16, 18, 24, 26] if narrow else [0, 2, 4, 6, 12, 14]))
        columns, run = draw(st.integers(1, machine.matrix.columns)), draw(st.integers(1, 16))
        return isa.MatrixMultiply(
            address=draw(st.integers(0, 64)), row_pitch=128, pixel_pitch=16, in_h=4, in_w=8,
            y0=draw(st.integers(-1, 0)),
            kernel_h=draw(small), kernel_w=draw(small), out_h=draw(small), out_w=draw(small), run=run,
            weight_address=0, weight_pitch=draw(st.integers(1, 3)), columns=columns,
            accumulator_row=draw(st.integers(0, 40)), flags=flags,
        )  # fmt: skip
    if kind == "requantize":
        return isa.Requantize(
            accumulator_row=0, out_h=draw(small), out_w=draw(small), width=draw(st.integers(1, machine.matrix.columns)),
            out_address=2000, out_row_pitch=64, out_pixel_pitch=16, params=0, out_zero=0,
        )  # fmt: skip
    if kind == "pool":
        return isa.Pool(
            address=0, row_pitch=64, pixel_pitch=8, in_h=8, in_w=8, kernel_h=draw(small), kernel_w=draw(small),
            out_h=draw(small), out_w=draw(small), width=draw(st.integers(1, 8)), out_address=3000, out_row_pitch=64,
            out_pixel_pitch=16, params=0, out_zero=0,
        )  # fmt: skip
    unit = draw(st.sampled_from([Queue.load, Queue.matrix, Queue.vector, Queue.store]))
    return isa.Sync(unit=unit)


@st.composite
def programs(draw: st.DrawFn, machine: Machine, forward: bool = True, most: int = 16) -> NpuProgram:
    """A program with random token pairs between queues; with forward=False a wait may precede its signal."""
    body = [draw(work(machine)) for _ in range(draw(st.integers(0, most)))]
    body = [dataclasses.replace(ins, fence=draw(st.booleans())) for ins in body]
    wait, signal = [0] * len(body), [0] * len(body)
    token_of: dict[tuple[Queue, Queue], int] = {}
    for _ in range(draw(st.integers(0, 2 * len(body)))):
        a, b = draw(st.integers(0, len(body) - 1)), draw(st.integers(0, len(body) - 1))
        if forward and a >= b:
            continue
        pair = (body[a].queue, body[b].queue)
        bit = 1 << (4 + token_of.setdefault(pair, len(token_of)))
        # Several tokens of a pair may cross; those pairs are dropped where they would turn a wait backwards.
        trial_wait, trial_signal = list(wait), list(signal)
        if trial_wait[b] & bit or trial_signal[a] & bit:
            continue
        trial_wait[b] |= bit
        trial_signal[a] |= bit
        if forward and not _paired_forward(trial_wait, trial_signal, bit):
            continue
        wait, signal = trial_wait, trial_signal
    body = [dataclasses.replace(i, wait=w, signal=s) for i, w, s in zip(body, wait, signal, strict=True)]
    instructions = (*prologue(machine), *body, isa.Halt())
    layers = (Layer("prologue"), Layer("body"))
    layer_of = tuple(0 if i < len(instructions) - len(body) - 1 else 1 for i in range(len(instructions)))
    return NpuProgram(
        "random", machine, instructions, CONSTANTS, MAIN_BYTES, (INPUT,), (OUTPUT,), layers, layer_of
    )  # fmt: skip


def _paired_forward(wait: list[int], signal: list[int], bit: int) -> bool:
    waits = [i for i, w in enumerate(wait) if w & bit]
    signals = [i for i, s in enumerate(signal) if s & bit]
    return all(s < w for s, w in zip(signals, waits, strict=True))
