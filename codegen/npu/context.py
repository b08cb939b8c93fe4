"""What every lowering works on: the memories of one machine, the constants so far, and where the tensors live."""

from __future__ import annotations

from dataclasses import dataclass, field

from qcompiler.codegen.npu.hazards import Arena, Buffer, Region, Stream
from qcompiler.sim import isa
from qcompiler.sim.hardware import Machine
from qcompiler.sim.integer_program import IntegerProgram, Tensor
from qcompiler.sim.isa import Queue, Space
from qcompiler.sim.mapping import cut

MAX_TRIPS = 65535  # of one loop of a copy


@dataclass(frozen=True)
class Place:
    """Where a tensor's bytes are: C order from `address` of `space` on, all of it in one buffer."""

    space: Space
    address: int
    buffer: Buffer

    @property
    def resident(self) -> bool:
        """Whether the units can work on it where it is."""
        return self.space == Space.activation

    def at(self, offset: int) -> Place:
        """The same buffer, seen from `offset` bytes further on."""
        return Place(self.space, self.address + offset, self.buffer)

    def rows(self, size: int, pitch: int, row_bytes: int) -> Region:
        """`size` bytes from here on, of which only the first `row_bytes` of each `pitch` matter."""
        column = (self.address - self.buffer.address) % pitch
        whole = column + row_bytes > pitch
        return self.region(0, size) if whole else self.region(0, size, pitch, column, column + row_bytes)

    def region(self, start: int, stop: int, pitch: int = 0, first: int = 0, last: int = 0) -> Region:
        """Bytes start..stop-1 from here (`Region`)."""
        skip = self.address - self.buffer.address
        return Region(self.buffer, start + skip, stop + skip, pitch, first, last)


class Ring:
    """A memory handed out front to back, again and again: what comes next loads while the last is in use."""

    def __init__(self, arena: Arena) -> None:
        self.arena, self.position = arena, 0

    def take(self, name: str, size: int) -> Buffer:
        if self.position + size > self.arena.size:
            self.position = 0
        buffer = self.arena.claim(name, self.position, size)
        self.position += size
        return buffer


class Slots:
    """The double buffers of one streamed operand of one layer."""

    def __init__(self, arena: Arena, name: str, address: int, size: int, count: int) -> None:
        self.arena, self.name, self.address, self.size, self.count = arena, name, address, size, count
        self.turn = 0

    def next(self) -> Place:
        address = self.address + self.turn % self.count * self.size
        self.turn += 1
        return Place(Space.activation, address, self.arena.claim(self.name, address, self.size))


@dataclass
class Context:
    """One compilation. slots: the streaming buffers of the layer at hand, by operand."""

    program: IntegerProgram
    machine: Machine
    places: dict[str, Place] = field(default_factory=dict)
    constants: bytearray = field(default_factory=bytearray)
    stream: Stream = field(default_factory=Stream)
    slots: dict[str, Slots] = field(default_factory=dict)

    def __post_init__(self) -> None:
        m = self.machine
        self.activation = Arena("activation", m.activation_memory.size_bytes)
        self.weights = Ring(Arena("weight", m.weight_memory.size_bytes))
        self.parameters = Ring(Arena("parameter", m.vector.parameter_bytes))
        self.accumulators = Ring(Arena("accumulator", m.matrix.accumulator_rows))
        self.constant_buffer = Buffer("constants", 0, 1 << 62)
        self.constant_queue = Queue.load if m.constant_memory is None else Queue.fetch

    def tensor(self, name: str) -> Tensor:
        return self.program.tensors[name]

    def zero(self, name: str) -> int:
        zero = self.program.tensors[name].zero_point
        assert zero is not None
        return zero

    def constant(self, data: bytes) -> int:
        """The address of these bytes in the constant memory."""
        address = len(self.constants)
        self.constants += data
        return address

    # ------------------------------------------------------------------------------------ transfers
    def fetch(self, address: int, size: int, space: Space, target: Buffer, at: int = 0) -> None:
        """Constants into `target`, from its unit `at` on."""
        copy = isa.Copy(
            unit=self.constant_queue, source=Space.constant, target=space, source_address=address,
            target_address=target.address + at, run_bytes=size,
        )  # fmt: skip
        self.stream.emit(copy, [], [Region(target, at, at + size)])

    def load_parameters(self, address: int, size: int) -> Buffer:
        """A chunk of constants into the parameter memory."""
        buffer = self.parameters.take("parameters", size)
        self.fetch(address, size, Space.parameter, buffer)
        return buffer

    def queue_from(self, place: Place) -> Queue:
        """The queue that can read this place."""
        return self.constant_queue if place.space == Space.constant else Queue.load

    def stage(self, place: Place, slot: str, offset: int, rows: int, row_bytes: int, pitch: int) -> tuple[Place, int]:
        """Bring `rows` rows of `row_bytes` bytes, `pitch` bytes apart from `offset` on, on chip.

        Returns where row 0 is and the pitch there: the tensor itself when it is resident, a packed copy otherwise.
        """
        if place.resident:
            return place.at(offset), pitch
        target = self.slots[slot].next()
        assert rows * row_bytes <= self.slots[slot].size, (slot, rows, row_bytes, self.slots[slot].size)
        self.load(target, place, offset, rows, row_bytes, pitch)
        return target, row_bytes

    def load(self, target: Place, source: Place, offset: int, rows: int, row_bytes: int, pitch: int) -> None:
        """Rows of `source`, `pitch` apart from `offset` on, packed to `target`."""
        self._rows(self.queue_from(source), source.at(offset), pitch, target, row_bytes, rows, row_bytes)

    def store(self, source: Place, target: Place, offset: int, rows: int, row_bytes: int, pitch: int) -> None:
        """Packed rows of `source` out to `target`, `pitch` apart from `offset` on."""
        self._rows(Queue.store, source, row_bytes, target.at(offset), pitch, rows, row_bytes)

    def _rows(self, queue: Queue, source: Place, source_pitch: int, target: Place, target_pitch: int, rows: int,
              row_bytes: int) -> None:  # fmt: skip
        if source_pitch == target_pitch == row_bytes:
            rows, row_bytes = 1, rows * row_bytes
        for first, stop in cut(0, rows, MAX_TRIPS):
            a, b, last = source.at(first * source_pitch), target.at(first * target_pitch), stop - first - 1
            copy = isa.Copy(
                unit=queue, source=a.space, target=b.space, source_address=a.address, target_address=b.address,
                run_bytes=row_bytes, n3=last + 1, source_stride3=source_pitch, target_stride3=target_pitch,
            )  # fmt: skip
            reads, writes = ([p.rows(last * pitch + row_bytes, pitch, row_bytes)]
                             for p, pitch in ((a, source_pitch), (b, target_pitch)))  # fmt: skip
            self.stream.emit(copy, reads, writes)
