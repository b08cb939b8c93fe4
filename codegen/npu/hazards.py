"""From memory hazards to tokens: instructions say what they touch, this module orders the queues.

Every queue executes in order, so that an instruction that must follow several of another queue only waits for the
last of them. Each ordered pair of queues has one token. Since both the signalling and the waiting instructions of
a pair appear in increasing order, each wait takes exactly the token that its signaller gave, and a program whose
instructions only ever wait for earlier ones cannot deadlock. Double buffering needs no code of its own: with two
buffers, the hazards of the second do not involve the first.
"""

from __future__ import annotations

import dataclasses
from bisect import bisect_left
from dataclasses import dataclass, field

from qcompiler.sim.isa import Instruction, Queue


@dataclass(eq=False)
class Buffer:
    """A piece of one memory: `size` units (bytes, accumulator rows) from `address`.

    log: for each queue, the accesses so far as (instruction, writes, Region fields), in program order.
    """

    name: str
    address: int
    size: int
    log: dict[Queue, list[tuple[int, bool, int, int, int, int, int]]] = field(default_factory=dict)

    def all(self) -> Region:
        return Region(self, 0, self.size)


@dataclass(frozen=True, slots=True)
class Region:
    """Units start..stop-1 of a buffer; with a pitch, only columns first..last-1 of each `pitch` units."""

    buffer: Buffer
    start: int
    stop: int
    pitch: int = 0
    first: int = 0
    last: int = 0


class Arena:
    """One memory: which buffer owns which addresses now, so that a new tenant waits for the old ones."""

    def __init__(self, name: str, size: int) -> None:
        self.name, self.size = name, size
        self.tenants: list[Buffer] = []

    def claim(self, name: str, address: int, size: int) -> Buffer:
        """A new buffer there. Whatever overlaps it must have been used for the last time in program order."""
        assert 0 <= address and address + size <= self.size, (self.name, name, address, size)
        new = Buffer(name, address, size)
        kept = []
        for old in self.tenants:
            if old.address >= address + size or old.address + old.size <= address:
                kept.append(old)
                continue
            for queue, entries in old.log.items():
                # The new tenant begins with a write everywhere, and that must follow the last use.
                new.log.setdefault(queue, []).append((entries[-1][0], False, 0, size, 0, 0, 0))
            if old.address < address or old.address + old.size > address + size:
                kept.append(old)
        for entries in new.log.values():
            entries.sort()
        self.tenants = [*kept, new]
        return new


class Stream:
    """The program under construction: instructions in order, their tokens and fences derived from their accesses."""

    def __init__(self) -> None:
        self.instructions: list[Instruction] = []
        self.layers: list[int] = []
        self.layer = 0
        self._wait: list[int] = []
        self._signal: list[int] = []
        self._fence: list[bool] = []
        # (waiting, signalling) -> the last instruction already waited for.
        self._seen: dict[tuple[Queue, Queue], int] = {}
        self._last_fence: dict[Queue, int] = {}
        self._tokens: dict[tuple[Queue, Queue], int] = {}

    def emit(self, instruction: Instruction, reads: list[Region], writes: list[Region]) -> None:
        """Append an instruction that reads and writes these regions."""
        queue, index = instruction.queue, len(self.instructions)
        needed: dict[Queue, int] = {}
        fence = -1
        for regions, writing in ((reads, False), (writes, True)):
            for region in regions:
                for other, entries in region.buffer.log.items():
                    if other == queue:
                        if not writing:  # writes of one queue retire in order; reads precede later writes
                            fence = max(fence, _last_conflict(entries, region, False, self._last_fence.get(queue, -1)))
                        continue
                    floor = max(self._seen.get((queue, other), -1), needed.get(other, -1))
                    last = _last_conflict(entries, region, writing, floor)
                    if last > floor:
                        needed[other] = last
        wait = 0
        for other, last in needed.items():
            bit = 1 << self._token(queue, other)
            wait |= bit
            self._signal[last] |= bit
            self._seen[queue, other] = last
        for regions, writing in ((reads, False), (writes, True)):
            for region in regions:
                entry = (index, writing, region.start, region.stop, region.pitch, region.first, region.last)
                region.buffer.log.setdefault(queue, []).append(entry)
        if fence >= 0:
            self._last_fence[queue] = index - 1
        self.instructions.append(instruction)
        self.layers.append(self.layer)
        self._wait.append(wait)
        self._signal.append(0)
        self._fence.append(fence >= 0)

    def _token(self, waiting: Queue, signalling: Queue) -> int:
        return self._tokens.setdefault((waiting, signalling), len(self._tokens))

    def finish(self) -> list[Instruction]:
        """The instructions with their tokens."""
        return [
            dataclasses.replace(ins, wait=wait, signal=signal, fence=fence) if wait or signal or fence else ins
            for ins, wait, signal, fence in zip(
                self.instructions, self._wait, self._signal, self._fence, strict=True
            )
        ]  # fmt: skip


def _last_conflict(
    entries: list[tuple[int, bool, int, int, int, int, int]], region: Region, writing: bool, floor: int
) -> int:
    """The last instruction after `floor` whose access conflicts with the region, or -1."""
    oldest = bisect_left(entries, (floor + 1,))
    for i in range(len(entries) - 1, oldest - 1, -1):
        index, wrote, start, stop, pitch, first, last = entries[i]
        if not (wrote or writing) or start >= region.stop or stop <= region.start:
            continue
        if pitch and pitch == region.pitch and (first >= region.last or last <= region.first):
            continue
        return index
    return -1
