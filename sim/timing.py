"""The timing simulator: when every instruction of a program issues, works and completes, and why not earlier.

Event-driven over instructions. Each rule below only takes maxima and adds constants, so that more bandwidth or less
latency can never make a fixed program slower:

- dispatch: one instruction a cycle in program order, held while the target queue is full; it may issue a cycle later;
- issue: after dispatch, after its tokens (signalled at completion), with a fence after every earlier instruction of
  the queue; matrix and vector: `Timing.prefetch` cycles before the previous instruction leaves the unit; transfers:
  one a cycle, at most `outstanding_transfers` of the queue incomplete;
- start: `lead` cycles after issue, not before the previous instruction has left the unit;
- end: `occupy` cycles later; completion: `tail` cycles later, in order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from qcompiler.sim.errors import ProgramError
from qcompiler.sim.hardware import Machine
from qcompiler.sim.isa.base import QUEUES, Queue
from qcompiler.sim.program import NpuProgram
from qcompiler.sim.schedule import dependencies, issue_order

Cycles = npt.NDArray[np.int64]


class Bound(IntEnum):
    """Why an instruction did not issue earlier. Values below len(QUEUES) are the queue whose signal it awaited."""

    load = 0
    fetch = 1
    matrix = 2
    vector = 3
    store = 4
    dispatch = 5
    unit = 6  # the previous instruction of the queue: still in the way
    completion = 7  # a fence, or the limit of outstanding transfers


# What a unit does in a cycle. Exactly one applies to every cycle of every unit.
CAUSES: dict[str, str] = {
    "busy": "working: streaming rows, reading operands, moving data (a transfer's busy cycles are its bandwidth)",
    "weight_load": "the array waits for weights to be shifted in",
    "latency": "a transfer waits for the memory's first data or its response",
    "drain": "results leave the pipeline, nothing else to do",
    "wait_load": "waits for a signal of the load queue",
    "wait_fetch": "waits for a signal of the fetch queue",
    "wait_matrix": "waits for a signal of the matrix queue",
    "wait_vector": "waits for a signal of the vector queue",
    "wait_store": "waits for a signal of the store queue",
    "dispatch": "its next instruction is not dispatched yet",
    "order": "a fence, the unit's own order, or the limit of outstanding transfers",
    "idle": "has completed all of its instructions",
}
_CAUSE = {name: i for i, name in enumerate(CAUSES)}
_WAIT = [
    *(_CAUSE[f"wait_{q.name}"] for q in QUEUES),
    _CAUSE["dispatch"], _CAUSE["order"], _CAUSE["order"],
]  # fmt: skip
_TRANSFERS = (Queue.load, Queue.fetch, Queue.store)
_LEAD = {q: "weight_load" if q == Queue.matrix else "latency" for q in QUEUES}
_TAIL = {q: "drain" if q in (Queue.matrix, Queue.vector) else "latency" for q in QUEUES}


@dataclass(frozen=True, eq=False)
class Timeline:
    """Every instruction's cycles (int64 arrays over instructions) and each unit's attribution.

    dispatch <= issue <= start <= end <= complete; occupied ``end - start``, of which `active` cycles work.
    bound, source: what held the issue back (`Bound`) and the instruction that it was (-1: none).
    cycles: total; units[queue][cause]: cycles, summing to the total for every unit.
    """

    program: NpuProgram
    machine: Machine
    queue: Cycles
    dispatch: Cycles
    issue: Cycles
    start: Cycles
    end: Cycles
    complete: Cycles
    active: Cycles
    bound: Cycles
    source: Cycles
    cycles: int
    units: dict[Queue, dict[str, int]]

    @property
    def seconds(self) -> float:
        """Run time at the machine's clock."""
        return self.cycles / (self.machine.clock_mhz * 1e6)

    def layer_cycles(self) -> list[int]:
        """For each layer, how far it moved the frontier of completed work; sums to the total."""
        last = np.zeros(len(self.program.layers), dtype=np.int64)
        np.maximum.at(last, np.array(self.program.layer_of), self.complete)
        frontier = np.maximum.accumulate(last)
        return np.diff(frontier, prepend=0).tolist()  # type: ignore[no-any-return]


def simulate(program: NpuProgram, machine: Machine | None = None) -> Timeline:
    """Time the program on its machine, or on `machine` with other memories, clock or buffers (same array and ISA use).

    Raises DeadlockError, or ProgramError where the other machine cannot run the program.
    """
    if machine is None:
        machine = program.machine
    else:
        own, array = program.machine.matrix, machine.matrix
        if array.weight_bits != own.weight_bits:
            raise ProgramError(f"matrix.weight_bits is {array.weight_bits}, its weights have {own.weight_bits} bits")
        if array.activation_bits < own.activation_bits:
            have = own.activation_bits
            raise ProgramError(f"matrix.activation_bits is {array.activation_bits}, its activations have {have} bits")
        for ins in program.instructions:
            ins.check(machine)
    waits = dependencies(program).waits
    count = len(program.instructions)
    order = issue_order(program, machine=machine)
    queues = [int(ins.queue) for ins in program.instructions]
    timings = [ins.timing(machine) for ins in program.instructions]
    fences = [ins.fence for ins in program.instructions]
    depth = machine.control.queue_entries
    constant = machine.constant_memory or machine.main_memory
    limit = [0] * len(Queue)
    limit[Queue.load] = limit[Queue.store] = machine.main_memory.outstanding_transfers
    limit[Queue.fetch] = constant.outstanding_transfers

    dispatch, issue, start, end, complete = ([0] * count for _ in range(5))
    bound, source = [int(Bound.dispatch)] * count, [-1] * count
    # Per queue: instructions in order of dispatch and of issue.
    dispatched_of: list[list[int]] = [[] for _ in Queue]
    issued_of: list[list[int]] = [[] for _ in Queue]
    dispatched, clock = 0, -1

    for i in order:
        while dispatched <= i:
            clock += 1
            in_queue = dispatched_of[queues[dispatched]]
            if len(in_queue) >= depth:
                clock = max(clock, issue[in_queue[-depth]] + 1)
            in_queue.append(dispatched)
            dispatch[dispatched] = clock
            dispatched += 1
        q = queues[i]
        lead, occupy, _, tail, prefetch = timings[i]
        at, why, who = dispatch[i] + 1, 5, -1
        for _, s in waits[i]:
            if complete[s] > at:
                at, why, who = complete[s], queues[s], s
        before = issued_of[q]
        free = done = 0
        if before:
            previous = before[-1]
            free, done = end[previous], complete[previous]
            ahead = timings[previous].prefetch
            if ahead is None or prefetch is None:
                possible, blocker, reason = issue[previous] + 1, previous, 6
                if len(before) >= limit[q] > 0 and complete[before[-limit[q]]] > possible:
                    possible, blocker, reason = complete[before[-limit[q]]], before[-limit[q]], 7
            else:
                possible, blocker, reason = free - ahead, previous, 6
            if fences[i] and done > possible:
                possible, blocker, reason = done, previous, 7
            if possible > at:
                at, why, who = possible, reason, blocker
        before.append(i)
        issue[i], bound[i], source[i] = at, why, who
        begin = at + lead
        start[i] = begin = begin if begin > free else free
        end[i] = leave = begin + occupy
        finished = leave + tail
        complete[i] = finished if finished > done else done

    def column(values: Sequence[int]) -> Cycles:
        return np.array(values, dtype=np.int64)

    begun, left, finished_at = column(start), column(end), column(complete)
    issued, active = column(issue), column([t.active for t in timings])
    total = max(complete)
    units = {q: _attribute(issued_of[q], q, total, issued, begun, left, finished_at, active, bound) for q in QUEUES}
    return Timeline(
        program=program,
        machine=machine,
        queue=column(queues),
        dispatch=column(dispatch),
        issue=issued,
        start=begun,
        end=left,
        complete=finished_at,
        active=active,
        bound=column(bound),
        source=column(source),
        cycles=total,
        units=units,
    )


def _attribute(
    order: Sequence[int], queue: Queue, total: int, issue: Cycles, start: Cycles, end: Cycles, complete: Cycles,
    active: Cycles, bound: Sequence[int],
) -> dict[str, int]:  # fmt: skip
    """Give every one of the unit's `total` cycles one cause."""
    cycles = np.zeros(len(CAUSES), dtype=np.int64)
    at = np.array(order, dtype=np.int64)
    if at.size == 0:
        return {name: total if name == "idle" else 0 for name in CAUSES}
    left = np.concatenate(([0], end[at[:-1]]))  # the unit is free from here on
    emptied = np.concatenate(([0], complete[at[:-1]]))
    issued = np.maximum(issue[at], left)
    drain = np.minimum(issued - left, emptied - left)
    np.add.at(cycles, np.array(_WAIT)[np.array(bound)[at]], issued - left - drain)
    cycles[_CAUSE[_LEAD[queue]]] += (start[at] - issued).sum()
    cycles[_CAUSE["busy"]] += active[at].sum()
    cycles[_CAUSE["weight_load"]] += (end[at] - start[at] - active[at]).sum()
    last = at[-1]
    cycles[_CAUSE[_TAIL[queue]]] += drain.sum() + complete[last] - end[last]
    cycles[_CAUSE["idle"]] += total - complete[last]
    assert cycles.min() >= 0 and cycles.sum() == total, (queue, cycles, total)
    return dict(zip(CAUSES, cycles.tolist(), strict=True))


def critical_path(timeline: Timeline) -> list[dict[str, int]]:
    """For each layer: cycles of the longest chain of causes, named ``unit_cause`` (``matrix_busy``, ...).

    Walks back from the last completion; every cycle of the run belongs to exactly one layer and cause.
    """
    t = timeline
    split: list[dict[str, int]] = [{} for _ in t.program.layers]
    position = _positions(t)
    members = {int(q): np.flatnonzero(t.queue == int(q)).tolist() for q in Queue}
    depth = t.machine.control.queue_entries
    lists: dict[str, Any] = {n: getattr(t, n).tolist() for n in ("queue", "dispatch", "issue", "start", "end")}
    queue, dispatch, issue, start, end = lists.values()
    complete, active = t.complete.tolist(), t.active.tolist()
    bound, source = t.bound.tolist(), t.source.tolist()

    def charge(i: int, cause: str, cycles: int) -> None:
        if cycles:
            layer = split[t.program.layer_of[i]]
            layer[cause] = layer.get(cause, 0) + cycles

    i, now = int(np.argmax(t.complete)), t.cycles
    while now > 0:
        unit = Queue(queue[i])
        before = members[queue[i]][position[i] - 1] if position[i] else -1
        if now > end[i] and before >= 0 and complete[before] >= now:
            i = before  # completion waited for the one before
            continue
        if now > end[i]:
            charge(i, f"{unit.name}_{_TAIL[unit]}" if unit in _TAIL else "dispatch", now - end[i])
            now = end[i]
        if now > start[i]:
            worked = min(now - start[i], active[i])
            charge(i, f"{unit.name}_busy", worked)
            charge(i, f"{unit.name}_weight_load", now - start[i] - worked)
            now = start[i]
        if before >= 0 and end[before] == now and now > issue[i]:
            i = before
            continue
        if now > issue[i]:
            charge(i, f"{unit.name}_{_LEAD[unit]}", now - issue[i])
            now = issue[i]
        if bound[i] != Bound.dispatch:
            cause = source[i]
            # Transfers issue one a cycle, however long the one before waits for its data.
            if bound[i] == Bound.unit and unit in _TRANSFERS and now <= start[cause]:
                charge(i, f"{unit.name}_order", now - issue[cause])
                now = issue[cause]
            i = cause
            continue
        charge(i, "dispatch", now - dispatch[i])
        now = dispatch[i]
        while now > 0:
            place = position[i]
            full = members[queue[i]][place - depth] if place >= depth else -1
            if full >= 0 and issue[full] + 1 == now:
                charge(i, "dispatch", 1)
                now, i = now - 1, full
                break
            charge(i, "dispatch", 1)
            now, i = now - 1, i - 1
    assert sum(sum(layer.values()) for layer in split) == t.cycles
    return split


def _positions(t: Timeline) -> list[int]:
    """Index of each instruction within its queue."""
    position = np.zeros(t.queue.size, dtype=np.int64)
    for q in Queue:
        members = np.flatnonzero(t.queue == int(q))
        position[members] = np.arange(members.size)
    return position.tolist()  # type: ignore[no-any-return]
