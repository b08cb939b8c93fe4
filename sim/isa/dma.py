"""Data movement: strided copies, im2col and row gathers between the external and the on-chip memories.

The load queue brings data in, the store queue takes it out, both may move data inside the activation memory. Each
external memory has its own read channel and its own write channel (as on AXI), each used by one queue only:
transfers never contend, and more bandwidth can only help. A half-duplex memory is described by splitting its
bandwidth between the two.

A transfer is a list of *runs* (consecutive bytes on the external side). A run of n bytes moves
``ceil(n / burst_bytes) * burst_bytes`` bytes; an instruction occupies its channel for
``ceil(moved bytes / bytes_per_cycle)`` cycles. On-chip moves take ``ceil(n / width)`` cycles a run, width being the
activation memory's bytes_per_cycle. Memories are interleaved by byte over `width` banks, so that a copy of single bytes
(a transpose) moves several in a cycle as long as they lie in different banks: in a loop of stride s every
``gcd(s, width)``-th byte meets the same bank, and ``width / max(gcd of both strides)`` bytes move a cycle. Odd strides
have no conflicts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from qcompiler.sim.errors import ProgramError
from qcompiler.sim.isa.base import Counts, Instruction, Queue, Space, Timing, ceil_div, check_written, operand
from qcompiler.sim.isa.window import Windowed, window_values

if TYPE_CHECKING:
    from qcompiler.sim.hardware import Machine
    from qcompiler.sim.machine_state import MachineState

LOCAL_LATENCY = 4  # cycles from an on-chip move's start to its first write: address, read, align, write

# queue: (spaces it reads, spaces it writes)
ROUTES: dict[Queue, tuple[frozenset[Space], frozenset[Space]]] = {
    Queue.load: (
        frozenset({Space.main, Space.constant, Space.activation, Space.fill}),
        frozenset({Space.activation, Space.weight, Space.parameter}),
    ),
    Queue.fetch: (frozenset({Space.constant}), frozenset({Space.activation, Space.weight, Space.parameter})),
    Queue.store: (frozenset({Space.activation, Space.fill}), frozenset({Space.main, Space.activation})),
}


def check_route(ins: Instruction, source: Space, target: Space, machine: Machine) -> None:
    """A queue reaches only its memories, and the constant memory only through the queue that owns it."""
    routes = ROUTES.get(ins.queue)
    if routes is None or source not in routes[0] or target not in routes[1]:
        raise ProgramError(f"{ins.mnemonic}: the {ins.queue.name} queue cannot move {source.name} to {target.name}")
    if ins.queue == Queue.fetch and machine.constant_memory is None:
        raise ProgramError(f"{ins.mnemonic}: machine {machine.name!r} has no constant memory, hence no fetch queue")
    if ins.queue == Queue.load and source == Space.constant and machine.constant_memory is not None:
        raise ProgramError(f"{ins.mnemonic}: on machine {machine.name!r} the fetch queue owns the constant memory")


def transfer_timing(machine: Machine, source: Space, target: Space, runs: int, run_bytes: int) -> Timing:
    """Timing of `runs` runs of `run_bytes` bytes each (rules in the module docstring)."""
    if source in (Space.main, Space.constant):
        memory = machine.external(source)
        cycles = memory.read_cycles(runs * memory.burst(run_bytes))
        return Timing(memory.latency_cycles, cycles, cycles, 0, None)
    if target == Space.main:
        memory = machine.main_memory
        cycles = memory.write_cycles(runs * memory.burst(run_bytes))
        return Timing(0, cycles, cycles, memory.latency_cycles, None)
    cycles = runs * ceil_div(run_bytes, machine.activation_memory.bytes_per_cycle)
    return Timing(0, cycles, cycles, LOCAL_LATENCY, None)


def transfer_counts(machine: Machine, source: Space, target: Space, runs: int, run_bytes: int) -> Counts:
    """Counters of the same transfer."""
    counts: Counts = {}
    if source in (Space.main, Space.constant):
        # Without a memory of their own the constants lie in the main memory, and cost what it costs.
        name = "constant" if source == Space.constant and machine.constant_memory is not None else "main"
        counts[f"{name}_read_bytes"] = runs * machine.external(source).burst(run_bytes)
    elif source != Space.fill:
        counts[f"{source.name}_read_bytes"] = runs * run_bytes
    if target == Space.main:
        counts["main_write_bytes"] = runs * machine.main_memory.burst(run_bytes)
    else:
        counts[f"{target.name}_write_bytes"] = runs * run_bytes
    return counts


@dataclass(frozen=True, kw_only=True)
class Copy(Instruction):
    """Strided copy of up to three loops around a run of bytes, or a fill.

    Semantics: for i in 0..n1-1, j in 0..n2-1, k in 0..n3-1 and each byte b of the run:
    ``target[target_address + i*target_stride1 + j*target_stride2 + k*target_stride3 + b] =
    source[source_address + i*source_stride1 + j*source_stride2 + k*source_stride3 + b]``. Source `fill` is the
    constant byte `fill`. Source and target must not overlap.
    Timing: n1*n2*n3 runs of run_bytes. From an external memory: latency_cycles, then the channel's cycles; to the
    main memory: the channel's cycles, visible latency_cycles later; on chip: ceil(run_bytes / width) a run, or with
    run_bytes = 1 ceil(n3 / B) for each i, j, where B = floor(width / max(gcd(source_stride3, width),
    gcd(target_stride3, width))); gcd(0, width) is width for the target and counts as 1 for the source.
    Counts: read bytes of the source, write bytes of the target; whole bursts on the external side.
    """

    opcode = 0x10
    mnemonic = "copy"

    unit: int = operand("u8", "load, fetch or store", enum=Queue)
    source: int = operand("u8", "memory read", enum=Space)
    target: int = operand("u8", "memory written", enum=Space)
    source_address: int = operand("u32", "first byte read", 0)
    target_address: int = operand("u32", "first byte written")
    run_bytes: int = operand("u32", "consecutive bytes on both sides")
    n1: int = operand("u16", "outer loop", 1)
    n2: int = operand("u16", "middle loop", 1)
    n3: int = operand("u16", "inner loop", 1)
    source_stride1: int = operand("i32", "bytes", 0)
    source_stride2: int = operand("i32", "bytes", 0)
    source_stride3: int = operand("i32", "bytes", 0)
    target_stride1: int = operand("i32", "bytes", 0)
    target_stride2: int = operand("i32", "bytes", 0)
    target_stride3: int = operand("i32", "bytes", 0)
    fill: int = operand("i8", "the byte that source fill repeats", 0)

    @property
    def queue(self) -> Queue:
        return Queue(self.unit)

    @property
    def runs(self) -> int:
        return self.n1 * self.n2 * self.n3

    def check(self, machine: Machine) -> None:
        check_route(self, Space(self.source), Space(self.target), machine)
        if not self.runs or not self.run_bytes:
            raise ProgramError("copy: n1, n2, n3 and run_bytes must be at least 1")
        check_written(self, self.runs * self.run_bytes, Space(self.target), machine)

    def execute(self, state: MachineState) -> None:
        shape = (self.n1, self.n2, self.n3, self.run_bytes)
        if self.source == Space.fill:
            values = np.broadcast_to(np.int8(self.fill), shape)
        else:
            strides = (self.source_stride1, self.source_stride2, self.source_stride3, 1)
            values = state.memory(Space(self.source)).read(self, self.source_address, shape, strides)
        strides = (self.target_stride1, self.target_stride2, self.target_stride3, 1)
        state.memory(Space(self.target)).write(self, self.target_address, strides, values)

    def timing(self, machine: Machine) -> Timing:
        source, target = Space(self.source), Space(self.target)
        external = (Space.main, Space.constant)
        if self.run_bytes == 1 and source not in external and target not in external:
            width = machine.activation_memory.bytes_per_cycle
            read = 1 if self.source_stride3 == 0 or source == Space.fill else math.gcd(self.source_stride3, width)
            together = width // max(read, math.gcd(self.target_stride3, width))
            cycles = self.n1 * self.n2 * ceil_div(self.n3, together)
            return Timing(0, cycles, cycles, LOCAL_LATENCY, None)
        return transfer_timing(machine, source, target, self.runs, self.run_bytes)

    def counts(self, machine: Machine) -> Counts:
        return transfer_counts(machine, Space(self.source), Space(self.target), self.runs, self.run_bytes)


@dataclass(frozen=True, kw_only=True)
class Im2col(Windowed):
    """Window gather into the activation memory: one row of taps per output pixel, padding filled in.

    Packs layers with few channels so that the array's rows are full.
    Semantics: for each output pixel p (row-major) and tap t (row-major), ``activation[target_address +
    p*target_pitch + t*run_bytes + j] = `` byte j of the tap's run, or `zero` where it lies outside the tile.
    Timing: as a copy of out_h*out_w*kernel_h*kernel_w runs of run_bytes; padding costs the same as data.
    Counts: as that copy.
    """

    opcode = 0x11
    mnemonic = "im2col"

    unit: int = operand("u8", "load or fetch", enum=Queue)
    source: int = operand("u8", "memory read: main, constant or activation", enum=Space)
    run_bytes: int = operand("u16", "bytes of a tap: channels, or kernel width * channels with kernel_w = 1")
    target_address: int = operand("u32", "first byte written")
    target_pitch: int = operand("u16", "bytes from one output pixel to the next, at least taps * run_bytes")
    zero: int = operand("i8", "value of padding", 0)

    @property
    def queue(self) -> Queue:
        return Queue(self.unit)

    def check(self, machine: Machine) -> None:
        check_route(self, Space(self.source), Space.activation, machine)
        self.check_window(self.run_bytes)
        if self.source == Space.fill or self.target_pitch < self.taps * self.run_bytes:
            raise ProgramError(f"im2col: {self.taps} taps of {self.run_bytes} bytes exceed pitch {self.target_pitch}")
        check_written(self, self.pixels * self.taps * self.run_bytes, Space.activation, machine)

    def execute(self, state: MachineState) -> None:
        values, _ = window_values(self, state, Space(self.source), self.run_bytes, self.zero)
        rows = values.reshape(self.pixels, self.taps * self.run_bytes)
        state.memory(Space.activation).write(self, self.target_address, (self.target_pitch, 1), rows)

    def timing(self, machine: Machine) -> Timing:
        return transfer_timing(
            machine, Space(self.source), Space.activation, self.pixels * self.taps, self.run_bytes
        )  # fmt: skip

    def counts(self, machine: Machine) -> Counts:
        return transfer_counts(machine, Space(self.source), Space.activation, self.pixels * self.taps, self.run_bytes)


@dataclass(frozen=True, kw_only=True)
class GatherRows(Instruction):
    """Rows of a table chosen by run-time indices (embedding).

    Semantics: for i in 0..count-1: index = the i-th little-endian number of index_bytes (4 or 8) at index_address
    in the activation memory, clamped to -table_rows..table_rows-1, negative ones counted from the end;
    run_bytes bytes at table_address + index*run_bytes go to activation[target_address + i*target_pitch].
    Timing: as a copy of `count` runs of run_bytes whose latency follows the reading of each index in turn:
    one more cycle of lead; data-independent.
    Counts: as that copy, plus the index bytes read from the activation memory.
    """

    opcode = 0x12
    mnemonic = "gather_rows"

    unit: int = operand("u8", "load or fetch", enum=Queue)
    source: int = operand("u8", "memory of the table: main or constant", enum=Space)
    index_address: int = operand("u32", "first index in the activation memory")
    index_bytes: int = operand("u8", "4 (int32) or 8 (int64)")
    count: int = operand("u32", "indices")
    table_address: int = operand("u32", "row 0 of the table")
    table_rows: int = operand("u32", "rows of the table")
    run_bytes: int = operand("u32", "bytes of a row")
    target_address: int = operand("u32", "first byte written")
    target_pitch: int = operand("u32", "bytes from one gathered row to the next")

    @property
    def queue(self) -> Queue:
        return Queue(self.unit)

    def check(self, machine: Machine) -> None:
        check_route(self, Space(self.source), Space.activation, machine)
        if self.source not in (Space.main, Space.constant):
            raise ProgramError("gather_rows: the table lies in the main or the constant memory")
        if self.index_bytes not in (4, 8):
            raise ProgramError(f"gather_rows: index_bytes is 4 or 8, not {self.index_bytes}")
        if not self.count or not self.table_rows or not self.run_bytes:
            raise ProgramError("gather_rows: count, table_rows and run_bytes must be at least 1")
        check_written(self, self.count * self.run_bytes, Space.activation, machine)

    def execute(self, state: MachineState) -> None:
        index = state.memory(Space.activation).read_as(self, self.index_address, self.count, f"i{self.index_bytes}")
        row = np.clip(index.astype(np.int64), -self.table_rows, self.table_rows - 1)
        row = np.where(row < 0, row + self.table_rows, row)
        memory, target = state.memory(Space(self.source)), state.memory(Space.activation)
        for i, r in enumerate(row.tolist()):
            data = memory.read(self, self.table_address + r * self.run_bytes, (self.run_bytes,), (1,))
            target.write(self, self.target_address + i * self.target_pitch, (1,), data)

    def timing(self, machine: Machine) -> Timing:
        t = transfer_timing(machine, Space(self.source), Space.activation, self.count, self.run_bytes)
        return t._replace(lead=t.lead + 1)

    def counts(self, machine: Machine) -> Counts:
        counts = transfer_counts(machine, Space(self.source), Space.activation, self.count, self.run_bytes)
        return counts | {"activation_read_bytes": self.count * self.index_bytes}
