"""Finds missing tokens: memory accesses of two instructions that nothing orders, whatever the timing.

The program runs once, functionally, while every byte remembers the last instruction of each queue that wrote and that
read it. An earlier access must *happen before* a later conflicting one: its instruction completes before the other
issues, by a chain of tokens, queue order and fences. Within a queue, work is pipelined in order: only reading what an
earlier instruction wrote needs more (a fence), and accumulators not even that. Because programs have no data-dependent
control, a program without races computes the same under every timing.

(Vector clocks: Lamport, "Time, Clocks, and the Ordering of Events in a Distributed System", CACM 1978.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from qcompiler.sim.functional import preload
from qcompiler.sim.isa.base import Instruction, Queue
from qcompiler.sim.machine_state import MachineState, Memory
from qcompiler.sim.program import NpuProgram
from qcompiler.sim.schedule import dependencies, issue_order

Array = npt.NDArray[Any]
NEVER = -1


@dataclass(frozen=True)
class Race:
    """Instruction `second` conflicts with `first` (program indices) in `memory`, and nothing orders them."""

    first: int
    second: int
    memory: str
    kind: str  # "reads what ... writes", "overwrites what ... reads", "overwrites what ... writes"


class _Clocks:
    """What the current instruction knows to be complete: for each queue the last position."""

    def __init__(self, program: NpuProgram) -> None:
        self.program = program
        self.waits = dependencies(program).waits
        self.known: list[list[int]] = [[] for _ in program.instructions]
        self.position = [0] * len(program.instructions)
        self.members: dict[Queue, list[int]] = {q: [] for q in Queue}
        self.current = 0
        self.races: dict[Race, None] = {}

    def issue(self, i: int) -> None:
        """Make `i` the current instruction; in an order that the tokens allow."""
        ins = self.program.instructions[i]
        mine = self.members[ins.queue]
        known = list(self.known[mine[-1]]) if mine else [NEVER] * len(Queue)
        for _, source in self.waits[i]:
            queue = self.program.instructions[source].queue
            known = [max(a, b) for a, b in zip(known, self.known[source], strict=True)]
            known[queue] = max(known[queue], self.position[source])
        if ins.fence:
            known[ins.queue] = len(mine) - 1
        self.current, self.known[i], self.position[i] = i, known, len(mine)
        mine.append(i)

    def compare(self, memory: str, kind: str, logs: Mapping[Queue, Array], same_queue: bool) -> None:
        """Every access in the logs (positions of each queue) must be known to be complete."""
        own = self.program.instructions[self.current].queue
        for queue, log in logs.items():
            last = int(log.max(initial=NEVER))
            if last > self.known[self.current][queue] and (queue != own or same_queue):
                # An instruction that writes what it reads does not race with itself.
                if queue == own and last == self.position[self.current]:
                    continue
                self.races[Race(self.members[queue][last], self.current, memory, kind)] = None


class _Log:
    """Last write and last read of every cell of a memory, by queue; created when a queue first touches it."""

    def __init__(self, clocks: _Clocks, name: str, shape: tuple[int, ...]) -> None:
        self.clocks, self.name, self.shape = clocks, name, shape
        self.wrote: dict[Queue, Array] = {}
        self.read: dict[Queue, Array] = {}

    def _mine(self, logs: dict[Queue, Array]) -> Array:
        queue = self.clocks.program.instructions[self.clocks.current].queue
        if queue not in logs:
            logs[queue] = np.full(self.shape, NEVER, dtype=np.int32)
        return logs[queue]

    def reads(self, select: Any, pipelined: bool = False) -> None:
        """The current instruction reads; select: plane -> the cells. pipelined: needs no fence within its queue."""
        written = {q: select(plane) for q, plane in self.wrote.items()}
        self.clocks.compare(self.name, "reads what {} writes", written, same_queue=not pipelined)
        mine = self._mine(self.read)
        select(mine)[...] = self.clocks.position[self.clocks.current]

    def writes(self, select: Any) -> None:
        """The current instruction writes."""
        for kind, logs in (("overwrites what {} reads", self.read), ("overwrites what {} writes", self.wrote)):
            self.clocks.compare(self.name, kind, {q: select(plane) for q, plane in logs.items()}, same_queue=False)
        mine = self._mine(self.wrote)
        select(mine)[...] = self.clocks.position[self.clocks.current]


class _Memory(Memory):
    """A memory that logs who touches what."""

    tracks = True

    def __init__(self, log: _Log, original: Memory) -> None:
        self.__dict__.update(original.__dict__)
        self.log = log

    def read(self, ins: Instruction, address: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> Array:
        values = super().read(ins, address, shape, strides)
        items = tuple(4 * s for s in strides)
        self.log.reads(lambda plane: np.lib.stride_tricks.as_strided(plane[address:], shape, items))
        return values

    def observe(self, addresses: Array) -> None:
        """A window read these bytes (the window generator reads through `peek`)."""
        mine = self.log
        written = {q: plane[addresses] for q, plane in mine.wrote.items()}
        mine.clocks.compare(mine.name, "reads what {} writes", written, same_queue=True)
        mine._mine(mine.read)[addresses] = mine.clocks.position[mine.clocks.current]

    def write(self, ins: Instruction, address: int, strides: tuple[int, ...], values: Array) -> None:
        super().write(ins, address, strides, values)
        items = tuple(4 * s for s in strides)
        self.log.writes(lambda plane: np.lib.stride_tricks.as_strided(plane[address:], values.shape, items))


class _State(MachineState):
    """A machine whose memories and accumulators are logged."""

    def __init__(self, program: NpuProgram, clocks: _Clocks) -> None:
        super().__init__(program.machine, program.main_bytes, program.constants)
        self.memories[:] = [_Memory(_Log(clocks, m.name, (m.size,)), m) for m in self.memories]
        self.sums = _Log(clocks, "accumulator", self.accumulators.shape)

    def read_accumulators(self, ins: Instruction, row: int, rows: int, columns: int) -> Array:
        values = super().read_accumulators(ins, row, rows, columns)
        self.sums.reads(lambda plane: plane[row : row + rows, :columns], pipelined=True)
        return values

    def write_accumulators(self, ins: Instruction, row: int, values: Array) -> None:
        super().write_accumulators(ins, row, values)
        rows, columns = values.shape
        self.sums.writes(lambda plane: plane[row : row + rows, :columns])


def find_races(program: NpuProgram, inputs: Mapping[str, Array] | None = None) -> list[Race]:
    """All pairs of conflicting accesses that nothing orders (for each access, the latest of each queue).

    inputs: only matter to gather_rows; zeros by default. Raises ProgramError for what `functional.execute` refuses.
    """
    if inputs is None:
        inputs = {p.name: np.zeros(p.shape, p.dtype) for p in program.inputs}
    clocks = _Clocks(program)
    state = _State(program, clocks)
    preload(state, program, inputs)
    for i in issue_order(program):
        clocks.issue(i)
        program.instructions[i].execute(state)
    return list(clocks.races)


def describe(program: NpuProgram, race: Race) -> str:
    """The race in words."""
    what = race.kind.format(program.describe(race.first))
    return f"{program.describe(race.second)} {what} in the {race.memory} memory, and no token orders them"
