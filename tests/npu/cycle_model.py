"""A second timing model, stepped cycle by cycle with real counters and queues: what a Verilog test bench would do.

It shares nothing with `sim.timing` but the `Timing` record of each instruction.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from qcompiler.sim.isa.base import QUEUES, Queue, tokens_of
from qcompiler.sim.program import NpuProgram


@dataclass
class Unit:
    """One queue and its unit; times are absolute cycles."""

    waiting: list[int] = field(default_factory=list)
    issued: list[int] = field(default_factory=list)  # in the unit, not complete
    free: int = 0  # from here on the unit can be occupied
    empty: int = 0  # everything so far is complete
    last: int = -1
    last_issue: int = -1


def run(program: NpuProgram, limit: int = 100_000) -> tuple[int, list[int]]:
    """``(total cycles, completion cycle of each instruction)``; total -1 when the program deadlocks."""
    machine = program.machine
    timings = [ins.timing(machine) for ins in program.instructions]
    units = {q: Unit() for q in Queue}
    outstanding = dict.fromkeys(Queue, 0)
    outstanding[Queue.load] = outstanding[Queue.store] = machine.main_memory.outstanding_transfers
    outstanding[Queue.fetch] = (machine.constant_memory or machine.main_memory).outstanding_transfers
    tokens = dict.fromkeys(range(32), 0)
    complete = [-1] * len(timings)
    dispatched_at = [-1] * len(timings)
    next_dispatch, done = 0, 0
    for now in range(limit):
        # Completions become visible first.
        for q in Queue:
            while units[q].issued and complete[units[q].issued[0]] == now:
                i = units[q].issued.pop(0)
                done += 1
                for token in tokens_of(program.instructions[i].signal):
                    tokens[token] += 1
        if done == len(timings):
            return now, complete
        progress = True
        while progress:
            # An instruction of no duration (halt) completes in its cycle; nothing waits for it.
            progress = False
            for q in Queue:
                unit = units[q]
                if not unit.waiting or unit.last_issue == now:
                    continue
                i = unit.waiting[0]
                ins, timing = program.instructions[i], timings[i]
                if dispatched_at[i] >= now or any(tokens[t] == 0 for t in tokens_of(ins.wait)):
                    continue
                if ins.fence and unit.empty > now:
                    continue
                if unit.last >= 0:
                    ahead = timings[unit.last].prefetch
                    if ahead is None or timing.prefetch is None:
                        if outstanding[q] and len(unit.issued) >= outstanding[q]:
                            continue
                    elif now < unit.free - ahead:
                        continue
                for token in tokens_of(ins.wait):
                    tokens[token] -= 1
                unit.waiting.pop(0)
                start = max(now + timing.lead, unit.free)
                unit.free = start + timing.occupy
                unit.empty = complete[i] = max(unit.free + timing.tail, unit.empty)
                unit.last, unit.last_issue = i, now
                unit.issued.append(i)
                if complete[i] == now:
                    unit.issued.pop()
                    done += 1
                progress = True
        # Room is judged before this cycle's issues leave the queue: a slot frees one cycle after an issue.
        if next_dispatch < len(timings):
            unit = units[program.instructions[next_dispatch].queue]
            held = len(unit.waiting) + (unit.last_issue == now)
            if held < machine.control.queue_entries:
                unit.waiting.append(next_dispatch)
                dispatched_at[next_dispatch] = now
                next_dispatch += 1
        if done == len(timings):
            return max(now, max(complete)), complete
        if now > max(dispatched_at) + 1 and not any(unit.issued for unit in units.values()):
            return -1, complete  # nothing is under way, and nothing was dispatched: it stays so for ever
    raise AssertionError(f"not finished after {limit} cycles")


assert len(QUEUES) == 5
