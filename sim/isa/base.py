"""What all instructions share: fields and their encoding, queues, tokens, memories, the timing record, the counters.

**Encoding.** An instruction is 64 bytes, little-endian: opcode u8, flags u8 (bit 0: fence), wait mask u32, signal
mask u32, then the fields of its class in order, then zeros.

**Queues.** Instructions are dispatched in program order, one a cycle, into the queue of their unit; each queue
executes in order, the queues run independently. `fetch` exists only on machines with a separate constant memory.

**Tokens.** 32 counters order the queues. An instruction starts when every counter in its wait mask is positive and
takes one from each; when it completes it adds one to each counter in its signal mask. A token has one waiting and
one signalling queue, so that the n-th wait always pairs with the n-th signal: results and timing are deterministic.
Instructions of one queue are pipelined; `fence` makes one wait until every earlier one of its queue has completed.
"""

from __future__ import annotations

import dataclasses
import functools
import struct
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from qcompiler.sim.errors import ProgramError

if TYPE_CHECKING:
    from qcompiler.sim.hardware import Machine
    from qcompiler.sim.machine_state import MachineState

INSTRUCTION_BYTES = 64
TOKENS = 32


class Queue(IntEnum):
    """A unit with its own in-order instruction queue."""

    load = 0
    fetch = 1
    matrix = 2
    vector = 3
    store = 4
    control = 5


QUEUES = tuple(Queue)[:5]


class Space(IntEnum):
    """An address space: two external memories, three on-chip ones, and `fill` (a constant byte, read only)."""

    main = 0
    constant = 1
    activation = 2
    weight = 3
    parameter = 4
    fill = 5


class Timing(NamedTuple):
    """What an instruction costs its unit, in cycles.

    It issues when its tokens are there; `lead` cycles later (address latency, weight load) it may occupy the unit
    for `occupy` cycles, of which `active` do work and the rest starve; its last result is visible `tail` cycles
    after that, while the next instruction already runs. The next instruction may issue `prefetch` cycles before
    the occupation ends (negative: after it; None: at once, up to the memory's outstanding transfers).
    """

    lead: int
    occupy: int
    active: int
    tail: int
    prefetch: int | None


# Energy is sum(count * table); every instruction counts these.
COUNTERS: dict[str, str] = {
    "array_macs": "multiply-accumulates of the array",
    "vector_macs": "multiply-accumulates of the vector lanes",
    "vector_operations": "adds, compares and other single operations of the vector lanes",
    "requantizations": "int32 to int8 multiply, shift, add and clamp",
    "table_lookups": "256-entry table reads",
    "activation_read_bytes": "bytes read from the activation memory",
    "activation_write_bytes": "bytes written to the activation memory",
    "weight_read_bytes": "bytes read from the weight memory",
    "weight_write_bytes": "bytes written to the weight memory",
    "parameter_read_bytes": "bytes read from the vector unit's parameter memory",
    "parameter_write_bytes": "bytes written to the vector unit's parameter memory",
    "accumulator_read_bytes": "bytes read from the accumulator memory",
    "accumulator_write_bytes": "bytes written to the accumulator memory",
    "main_read_bytes": "bytes moved from the main memory, whole bursts",
    "main_write_bytes": "bytes moved to the main memory, whole bursts",
    "constant_read_bytes": "bytes moved from the constant memory, whole bursts",
    "instruction_bytes": "bytes of instructions fetched",
}
Counts = dict[str, int]

_FORMATS = {
    "u8": ("B", 0, 2**8 - 1), "i8": ("b", -(2**7), 2**7 - 1),
    "u16": ("H", 0, 2**16 - 1), "i16": ("h", -(2**15), 2**15 - 1),
    "u32": ("I", 0, 2**32 - 1), "i32": ("i", -(2**31), 2**31 - 1),
    "i64": ("q", -(2**63), 2**63 - 1),
}  # fmt: skip
HEADER = struct.Struct("<BBII")


def operand(kind: str, doc: str, default: int | None = None, enum: type[IntEnum] | None = None) -> Any:
    """A field of an instruction: `kind` is its encoding (u8, i16, ...), `enum` names its values in text."""
    metadata = {"kind": kind, "doc": doc, "enum": enum}
    if default is None:
        return field(metadata=metadata)
    return field(default=default, metadata=metadata)


def mask(*tokens: int) -> int:
    """The wait or signal mask of these token numbers."""
    bits = 0
    for token in tokens:
        if not 0 <= token < TOKENS:
            raise ProgramError(f"token {token} does not exist; tokens are 0..{TOKENS - 1}")
        bits |= 1 << token
    return bits


@functools.cache
def tokens_of(bits: int) -> tuple[int, ...]:
    """The token numbers of a mask."""
    return tuple(t for t in range(TOKENS) if bits >> t & 1)


@dataclass(frozen=True, kw_only=True)
class Instruction:
    """One instruction. Subclasses add operands and define meaning (`execute`), `timing` and `counts`."""

    opcode: ClassVar[int]
    mnemonic: ClassVar[str]

    wait: int = 0
    signal: int = 0
    fence: bool = False

    @property
    def queue(self) -> Queue:
        """The queue that executes it."""
        raise NotImplementedError  # pragma: no cover - abstract

    def check(self, machine: Machine) -> None:
        """Raise ProgramError where the operands make no sense on this machine; called before anything runs."""

    def execute(self, state: MachineState) -> None:
        """Carry the instruction out on the machine's memories, all at once."""

    def timing(self, machine: Machine) -> Timing:
        """Cycles on this machine; depends on the operands only, never on data."""
        raise NotImplementedError  # pragma: no cover - abstract

    def counts(self, machine: Machine) -> Counts:
        """Non-zero counters of one execution (`instruction_bytes` is added for all)."""
        return {}

    # ------------------------------------------------------------------------------------ encoding
    @classmethod
    @functools.cache
    def operands(cls) -> list[dataclasses.Field[int]]:
        """The encoded operands in order, without wait, signal and fence."""
        return [f for f in dataclasses.fields(cls) if "kind" in f.metadata]

    @classmethod
    @functools.cache
    def layout(cls) -> struct.Struct:
        """The packed operands after the 10-byte header."""
        packed = struct.Struct("<" + "".join(_FORMATS[f.metadata["kind"]][0] for f in cls.operands()))
        assert HEADER.size + packed.size <= INSTRUCTION_BYTES, (cls.__name__, packed.size)
        return packed

    def encode(self) -> bytes:
        """The 64 bytes. Raises ProgramError for an operand outside its field."""
        values = [getattr(self, f.name) for f in self.operands()]
        try:
            head = HEADER.pack(self.opcode, int(self.fence), self.wait, self.signal)
            return (head + self.layout().pack(*values)).ljust(INSTRUCTION_BYTES, b"\0")
        except struct.error:
            for f, value in zip(self.operands(), values, strict=True):
                _, low, high = _FORMATS[f.metadata["kind"]]
                if not low <= value <= high:
                    raise ProgramError(f"{self.mnemonic}: {f.name}={value} is outside {low}..{high}") from None
            raise ProgramError(f"{self.mnemonic}: wait={self.wait:#x} or signal={self.signal:#x} is no mask") from None

    # ---------------------------------------------------------------------------------------- text
    def text(self) -> str:
        """One line of assembler: the mnemonic, then name=value of what differs from its default."""
        words = [self.mnemonic]
        for f in self.operands():
            value = getattr(self, f.name)
            if f.default is dataclasses.MISSING or value != f.default:
                words.append(f"{f.name}={f.metadata['enum'](value).name if f.metadata['enum'] else value}")
        for name in ("wait", "signal"):
            if getattr(self, name):
                words.append(f"{name}={','.join(map(str, tokens_of(getattr(self, name))))}")
        if self.fence:
            words.append("fence")
        return " ".join(words)


def limits(kind: str) -> tuple[int, int]:
    """Smallest and largest value of an operand encoding."""
    return _FORMATS[kind][1:]


def check_written(ins: Instruction, count: int, space: Space, machine: Machine) -> None:
    """Refuse to write more bytes than the memory has; it also bounds the work of an instruction."""
    size = machine.space_bytes(space)
    if count > size:
        raise ProgramError(f"{ins.mnemonic}: writes {count} bytes; the {space.name} memory has {size}")


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)
