"""Sequencing: the end of the program, and instructions that only wait and signal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qcompiler.sim.errors import ProgramError
from qcompiler.sim.isa.base import QUEUES, Instruction, Queue, Timing, operand

if TYPE_CHECKING:
    from qcompiler.sim.hardware import Machine


@dataclass(frozen=True, kw_only=True)
class Halt(Instruction):
    """End of the program.

    Semantics: the last instruction; the run is over when every queue has completed all of its work.
    Timing: takes a dispatch cycle; occupies no unit.
    Counts: none.
    """

    opcode = 0x01
    mnemonic = "halt"

    @property
    def queue(self) -> Queue:
        return Queue.control

    def check(self, machine: Machine) -> None:
        if self.wait or self.signal or self.fence:
            raise ProgramError("halt: waits for all queues anyway; it takes no tokens and no fence")

    def timing(self, machine: Machine) -> Timing:
        return Timing(0, 0, 0, 0, 0)


@dataclass(frozen=True, kw_only=True)
class Sync(Instruction):
    """Wait for and signal tokens, nothing else.

    Semantics: none beyond its tokens.
    Timing: occupies the queue's unit for one cycle; signals in the next.
    Counts: none.
    """

    opcode = 0x02
    mnemonic = "sync"

    unit: int = operand("u8", "the queue that executes it", enum=Queue)

    @property
    def queue(self) -> Queue:
        return Queue(self.unit)

    def check(self, machine: Machine) -> None:
        if self.unit not in QUEUES:
            raise ProgramError(f"sync: {self.queue.name} is not the queue of a unit")

    def timing(self, machine: Machine) -> Timing:
        return Timing(0, 1, 1, 0, 0)
