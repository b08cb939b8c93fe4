"""The accelerator's program: instructions, constants, where inputs and outputs lie, and the machine it is for.

`NpuProgram` is checked when it is made: operands fit the machine, every token has one signalling and one waiting
queue, ports lie in the main memory and do not overlap. `sim.container` is its file, `sim.assembler` its text.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from qcompiler.sim.errors import ProgramError
from qcompiler.sim.hardware import Machine
from qcompiler.sim.isa import Halt, Instruction
from qcompiler.sim.isa.base import TOKENS, tokens_of

PORT_DTYPES = ("int8", "int32", "int64")
MAX_INSTRUCTIONS = 1 << 22


@dataclass(frozen=True)
class Port:
    """An input or output: `shape` elements of `dtype` at byte `address` of the main memory, C order, little-endian.

    scale, zero_point: what an int8 port's values mean; the host converts from and to float32 with them.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    address: int
    scale: float | None = None
    zero_point: int | None = None

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Layer:
    """What a run of instructions stands for in reports: the operation's name, its kind and its useful MACs."""

    name: str
    kind: str = ""
    macs: int = 0


@dataclass(frozen=True, eq=False)
class NpuProgram:
    """A complete program. Raises ProgramError when it breaks a rule.

    instructions: in dispatch order, the last one a Halt; layer_of: for each instruction an index into `layers`;
    constants: the constant memory's content; main_bytes: how much of the main memory it uses.
    """

    name: str
    machine: Machine
    instructions: tuple[Instruction, ...]
    constants: bytes
    main_bytes: int
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    layers: tuple[Layer, ...] = (Layer("program"),)
    layer_of: tuple[int, ...] = field(default=())

    def __post_init__(self) -> None:
        if not self.layer_of:
            object.__setattr__(self, "layer_of", (0,) * len(self.instructions))
        _check_ports(self)
        _check_instructions(self)
        _check_tokens(self)

    def describe(self, index: int) -> str:
        """``instruction 12 (matmul, layer 'conv1')`` for messages."""
        layer = self.layers[self.layer_of[index]].name
        return f"instruction {index} ({self.instructions[index].mnemonic}, layer {layer!r})"


def _check_ports(p: NpuProgram) -> None:
    main, constant = p.machine.main_memory, p.machine.constant_memory
    if constant is None:
        used, have, what = p.main_bytes + len(p.constants), main.size_bytes, "main and constant data take"
    else:
        used, have, what = p.main_bytes, main.size_bytes, "main data takes"
        if len(p.constants) > constant.size_bytes:
            raise ProgramError(
                f"program {p.name!r}: its constants take {len(p.constants)} bytes; the constant memory of "
                f"{p.machine.name!r} has {constant.size_bytes}"
            )
    if used > have:
        raise ProgramError(f"program {p.name!r}: {what} {used} bytes; the main memory of {p.machine.name!r} has {have}")
    names = [port.name for port in (*p.inputs, *p.outputs)]
    if not p.outputs or len(set(names)) != len(names):
        raise ProgramError(f"program {p.name!r}: its ports {names} are not distinct, or none is an output")
    for port in (*p.inputs, *p.outputs):
        where = f"program {p.name!r}, port {port.name!r}"
        if port.dtype not in PORT_DTYPES or any(d < 1 for d in port.shape):
            raise ProgramError(f"{where}: {port.dtype}{port.shape} is no port; dtypes are {', '.join(PORT_DTYPES)}")
        if port.address < 0 or port.address + port.bytes > p.main_bytes:
            raise ProgramError(
                f"{where}: bytes {port.address}..{port.address + port.bytes - 1} are outside its {p.main_bytes}"
            )
        if (port.scale is None) != (port.zero_point is None):
            raise ProgramError(f"{where}: scale and zero point belong together")
        if port.scale is not None and not (math.isfinite(port.scale) and port.scale > 0):
            raise ProgramError(f"{where}: scale {port.scale} is not positive")
        if port.zero_point is not None and not -128 <= port.zero_point <= 127:
            raise ProgramError(f"{where}: zero point {port.zero_point} is not an int8")
    for ports in (p.inputs, p.outputs):
        by_address = sorted(ports, key=lambda port: port.address)
        for a, b in zip(by_address, by_address[1:], strict=False):
            if a.address + a.bytes > b.address:
                raise ProgramError(f"program {p.name!r}: ports {a.name!r} and {b.name!r} overlap")


def _check_instructions(p: NpuProgram) -> None:
    if not p.instructions or not isinstance(p.instructions[-1], Halt):
        raise ProgramError(f"program {p.name!r}: its last instruction is not halt")
    if len(p.instructions) > MAX_INSTRUCTIONS:
        raise ProgramError(f"program {p.name!r}: {len(p.instructions)} instructions; at most {MAX_INSTRUCTIONS}")
    if len(p.layer_of) != len(p.instructions):
        raise ProgramError(f"program {p.name!r}: {len(p.layer_of)} layer numbers, {len(p.instructions)} instructions")
    if p.layer_of and not 0 <= min(p.layer_of) <= max(p.layer_of) < len(p.layers):
        raise ProgramError(f"program {p.name!r}: a layer number is outside 0..{len(p.layers) - 1}")
    for i, ins in enumerate(p.instructions):
        try:
            ins.check(p.machine)
        except ProgramError as error:
            raise ProgramError(f"program {p.name!r}, {p.describe(i)}: {error}") from None
        if isinstance(ins, Halt) and i != len(p.instructions) - 1:
            raise ProgramError(f"program {p.name!r}, {p.describe(i)}: halts before the end")


def _check_tokens(p: NpuProgram) -> None:
    for verb in ("wait", "signal"):
        owner: dict[int, int] = {}
        for i, ins in enumerate(p.instructions):
            for token in tokens_of(getattr(ins, verb)):
                first = owner.setdefault(token, i)
                if p.instructions[first].queue != ins.queue:
                    raise ProgramError(
                        f"program {p.name!r}: token {token} has two {verb}ing queues: {p.describe(first)} is of the "
                        f"{p.instructions[first].queue.name} queue, {p.describe(i)} of the {ins.queue.name} queue"
                    )


assert TOKENS == 32
