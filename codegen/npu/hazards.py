"""From memory hazards to tokens: instructions say what they touch, this module orders the queues.

Every queue executes in order, so that an instruction that must follow several of another queue only waits for the
last of them. Each ordered pair of queues has one token. Since both the signalling and the waiting instructions of
a pair appear in increasing order, each wait takes exactly the token that its signaller gave, and a program whose
instructions only ever wait for earlier ones cannot deadlock. Double buffering needs no code of its own: with two
buffers, the hazards of the second do not involve the first.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field

from qcompiler.sim.isa import Instruction, Queue

Access = tuple[bool, int, int, int, int, int]  # writes, and the fields of a Region


@dataclass(eq=False)
class Buffer:
    """A piece of one memory: `size` units (bytes, accumulator rows) from `address`.

    log: for each queue, distinct accesses so far with the last instruction that made them, latest last.
    """

    name: str
    address: int
    size: int
    log: dict[Queue, dict[Access, int]] = field(default_factory=dict)

    def all(self) -> Region:
        return Region(self, 0, self.size)

    def record(self, queue: Queue, access: Access, index: int) -> None:
        """Note an access, as the latest of its queue."""
        entries = self.log.setdefault(queue, {})
        entries.pop(access, None)
        entries[access] = index


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
        # Disjoint (start, stop, buffer), sorted.
        self.tenants: list[tuple[int, int, Buffer]] = []

    def claim(self, name: str, address: int, size: int) -> Buffer:
        """A new buffer there. Whatever overlaps it must have been used for the last time in program order."""
        stop = address + size
        assert 0 <= address and stop <= self.size, (self.name, name, address, size)
        new = Buffer(name, address, size)
        low = bisect_right(self.tenants, address, key=lambda t: t[1])
        high = bisect_left(self.tenants, stop, key=lambda t: t[0])
        latest: dict[Queue, int] = {}
        rest: list[tuple[int, int, Buffer]] = []
        for start, end, old in self.tenants[low:high]:
            for queue, entries in old.log.items():
                latest[queue] = max(latest.get(queue, -1), next(reversed(entries.values())))
            if start < address:
                rest.append((start, address, old))
            if end > stop:
                rest.append((stop, end, old))
        # The new tenant begins with a write everywhere, and that must follow the last use.
        new.log = {queue: {(False, 0, size, 0, 0, 0): index} for queue, index in latest.items()}
        self.tenants[low:high] = sorted([*rest, (address, stop, new)], key=lambda t: t[0])
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
            for r in regions:
                r.buffer.record(queue, (writing, r.start, r.stop, r.pitch, r.first, r.last), index)
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
        for ins, wait, signal, fence in zip(self.instructions, self._wait, self._signal, self._fence, strict=True):
            # Nobody else holds them yet: cheaper than a copy of each.
            for name, value in (("wait", wait), ("signal", signal), ("fence", fence)):
                if value:
                    object.__setattr__(ins, name, value)
        return self.instructions


def _last_conflict(entries: dict[Access, int], region: Region, writing: bool, floor: int) -> int:
    """The last instruction after `floor` whose access conflicts with the region, or -1."""
    start, stop, pitch = region.start, region.stop, region.pitch
    for (wrote, from_, to, step, first, last), index in reversed(entries.items()):
        if index <= floor:
            break
        if not (wrote or writing) or from_ >= stop or to <= start:
            continue
        if step and step == pitch and (first >= region.last or last <= region.first):
            continue
        return index
    return -1
