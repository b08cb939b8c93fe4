"""Which instruction waits for which: tokens, queues and dispatch as edges, an order that obeys them, or the deadlock.

The n-th wait on a token takes the n-th signal, so that all dependencies are known without running anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qcompiler.sim.errors import ProgramError
from qcompiler.sim.hardware import Machine
from qcompiler.sim.isa.base import Queue, tokens_of
from qcompiler.sim.program import NpuProgram


class DeadlockError(ProgramError):
    """Instructions that wait for each other, or for a signal that nothing gives."""


@dataclass(frozen=True)
class Dependencies:
    """waits[i]: pairs (token, index of the instruction whose signal i takes)."""

    waits: tuple[tuple[tuple[int, int], ...], ...]
    forward: bool  # every wait takes the signal of an earlier instruction of the program


def dependencies(program: NpuProgram) -> Dependencies:
    """Pair every wait with its signal. Raises DeadlockError for a wait whose signal never comes."""
    cached = program.__dict__.get("_dependencies")
    if cached is not None:
        return cached  # type: ignore[no-any-return]
    signals: dict[int, list[int]] = {}
    for i, ins in enumerate(program.instructions):
        for token in tokens_of(ins.signal) if ins.signal else ():
            signals.setdefault(token, []).append(i)
    taken: dict[int, int] = {}
    waits, forward = [], True
    for i, ins in enumerate(program.instructions):
        pairs = []
        for token in tokens_of(ins.wait) if ins.wait else ():
            n = taken.get(token, 0)
            taken[token] = n + 1
            given = signals.get(token, ())
            if n >= len(given):
                raise DeadlockError(
                    f"program {program.name!r} deadlocks: {program.describe(i)} waits for signal {n + 1} of token "
                    f"{token}, which is signalled {len(given)} times"
                )
            pairs.append((token, given[n]))
            forward = forward and given[n] < i
        waits.append(tuple(pairs))
    result = Dependencies(tuple(waits), forward)
    object.__setattr__(program, "_dependencies", result)
    return result


def issue_order(program: NpuProgram, prefer: Sequence[Queue] = (), machine: Machine | None = None) -> Sequence[int]:
    """An order in which all instructions can issue: program order where legal, else what the queues allow.

    prefer: run these queues ahead of the others as far as tokens and dispatch permit, first one first; any order
    must give the same results, so that a missing token shows. machine: whose queues, if not the program's.
    Raises DeadlockError naming the cycle of instructions.
    """
    deps = dependencies(program)
    if deps.forward and not prefer:
        return range(len(program.instructions))
    depth = (machine or program.machine).control.queue_entries
    ranks = {queue: prefer.index(queue) if queue in prefer else len(prefer) for queue in Queue}
    by_preference = sorted(Queue, key=lambda q: ranks[q])
    queued: dict[Queue, list[int]] = {q: [] for q in Queue}
    heads = dict.fromkeys(Queue, 0)
    issued = [False] * len(program.instructions)
    order: list[int] = []
    dispatched = 0
    while len(order) < len(issued):
        while dispatched < len(issued):
            queue = program.instructions[dispatched].queue
            if len(queued[queue]) - heads[queue] >= depth:
                break
            queued[queue].append(dispatched)
            dispatched += 1
        for queue in by_preference:
            if heads[queue] < len(queued[queue]):
                i = queued[queue][heads[queue]]
                if all(issued[source] for _, source in deps.waits[i]):
                    issued[i] = True
                    order.append(i)
                    heads[queue] += 1
                    break
        else:
            raise DeadlockError(_cycle(program, deps, issued, queued, heads, dispatched))
    return order


def _cycle(
    program: NpuProgram, deps: Dependencies, issued: list[bool], queued: dict[Queue, list[int]],
    heads: dict[Queue, int], dispatched: int,
) -> str:  # fmt: skip
    """Follow 'cannot issue before' from a blocked instruction until one repeats."""
    blocked = {queue: queued[queue][heads[queue]] for queue in Queue if heads[queue] < len(queued[queue])}
    at = min(blocked.values())
    path: list[tuple[int, str]] = []
    while at not in [i for i, _ in path]:
        queue = program.instructions[at].queue
        if at >= dispatched:
            full = program.instructions[dispatched].queue
            path.append((at, f"is not dispatched: the {full.name} queue is full behind"))
            at = blocked[full]
        elif at != blocked[queue]:
            path.append((at, f"is queued in the {queue.name} queue behind"))
            at = blocked[queue]
        else:
            token, source = next((t, s) for t, s in deps.waits[at] if not issued[s])
            path.append((at, f"waits for token {token} from"))
            at = source
    start = next(k for k, (i, _) in enumerate(path) if i == at)
    words = " ".join(f"{program.describe(i)} {why}" for i, why in path[start:])
    return f"program {program.name!r} deadlocks: {words} {program.describe(at)}"
