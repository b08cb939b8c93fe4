"""The `.npu` file: a program with its constants, ports, layers and machine, under a checksum.

Layout, little-endian: magic ``QCNPU\\0``, version u16, header bytes u32, instruction count u32, constant bytes u64;
the header (JSON: name, machine, machine_hash, main_bytes, ports, layers); the instructions (64 bytes each); a layer
number u32 for each; the constants; sha256 of everything before it. Reading trusts nothing: sizes are compared with
the file before anything is decoded, the checksum catches every flipped bit, and a file that was edited *and* given a
new checksum still passes through every check of `NpuProgram`.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from qcompiler.sim.errors import ArtifactError, ProgramError
from qcompiler.sim.hardware import Machine
from qcompiler.sim.isa import INSTRUCTION_BYTES, OPCODES, Instruction
from qcompiler.sim.isa.base import HEADER
from qcompiler.sim.program import Layer, NpuProgram, Port

MAGIC, VERSION = b"QCNPU\0", 1
PREFIX = struct.Struct("<6sHIIQ")
DIGEST_BYTES = 32
SUFFIX = ".npu"


def to_bytes(program: NpuProgram) -> bytes:
    """The file's content; the same program gives the same bytes."""
    header = json.dumps(
        {
            "name": program.name,
            "machine": program.machine.model_dump(mode="json"),
            "machine_hash": program.machine.hash,
            "main_bytes": program.main_bytes,
            "inputs": [dataclasses.asdict(p) for p in program.inputs],
            "outputs": [dataclasses.asdict(p) for p in program.outputs],
            "layers": [dataclasses.asdict(layer) for layer in program.layers],
        },
        separators=(",", ":"),
    ).encode()
    content = b"".join(
        (
            PREFIX.pack(MAGIC, VERSION, len(header), len(program.instructions), len(program.constants)),
            header,
            *(ins.encode() for ins in program.instructions),
            np.array(program.layer_of, dtype="<u4").tobytes(),
            program.constants,
        )
    )
    return content + hashlib.sha256(content).digest()


def from_bytes(data: bytes, source: str = "<bytes>", machine: Machine | None = None) -> NpuProgram:
    """Decode and check a file's content; with `machine`, refuse a program that was compiled for another.

    Raises ArtifactError naming `source`.
    """

    def fail(why: str) -> ArtifactError:
        return ArtifactError(f"{source}: {why}")

    if len(data) < PREFIX.size + DIGEST_BYTES or not data.startswith(MAGIC):
        raise fail("is not an accelerator program (.npu), or is truncated")
    _, version, header_bytes, count, constant_bytes = PREFIX.unpack_from(data)
    if version != VERSION:
        raise fail(f"has format version {version}; this release reads version {VERSION}: compile the model again")
    size = PREFIX.size + header_bytes + count * (INSTRUCTION_BYTES + 4) + constant_bytes + DIGEST_BYTES
    if size != len(data):
        raise fail(f"has {len(data)} bytes, its prefix says {size}: it is truncated or damaged")
    if hashlib.sha256(data[:-DIGEST_BYTES]).digest() != data[-DIGEST_BYTES:]:
        raise fail("its checksum is wrong: the file is damaged or was edited")
    at = PREFIX.size
    try:
        header = json.loads(data[at : at + header_bytes])
        own = Machine.model_validate(header["machine"])
        if own.hash != header["machine_hash"]:
            raise fail("its machine and the machine's hash disagree")
        if machine is not None and machine.hash != own.hash:
            raise fail(
                f"was compiled for machine {own.name!r} ({own.hash[:12]}), not for {machine.name!r} "
                f"({machine.hash[:12]}): compile the model again for this machine"
            )
        at += header_bytes
        instructions = tuple(decode(data, at + i * INSTRUCTION_BYTES) for i in range(count))
        at += count * INSTRUCTION_BYTES
        layer_of = np.frombuffer(data, dtype="<u4", count=count, offset=at).tolist()
        at += 4 * count
        return NpuProgram(
            name=_typed(header["name"], str),
            machine=own,
            instructions=instructions,
            constants=data[at : at + constant_bytes],
            main_bytes=_typed(header["main_bytes"], int),
            inputs=tuple(_port(p) for p in header["inputs"]),
            outputs=tuple(_port(p) for p in header["outputs"]),
            layers=tuple(
                Layer(_typed(x["name"], str), _typed(x["kind"], str), _typed(x["macs"], int)) for x in header["layers"]
            ),
            layer_of=tuple(layer_of),
        )
    except ProgramError as error:
        raise fail(str(error)) from None
    except ValidationError as error:
        raise fail(f"its machine is not valid: {error.errors(include_url=False)[0]['msg']}") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise fail(f"its header is malformed ({type(error).__name__}: {error})") from None


def save(program: NpuProgram, path: Path) -> None:
    """Write the file."""
    path.write_bytes(to_bytes(program))


def load(path: str | Path, machine: Machine | None = None) -> NpuProgram:
    """Read and check a `.npu` file; see `from_bytes`."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read: {error.strerror}") from None
    return from_bytes(data, str(path), machine)


def decode(data: bytes, at: int = 0) -> Instruction:
    """The instruction encoded at byte `at`. Raises ProgramError for anything that no assembler would emit."""
    opcode, flags, wait, signal = HEADER.unpack_from(data, at)
    kind = OPCODES.get(opcode)
    if kind is None:
        raise ProgramError(f"unknown opcode {opcode:#04x}")
    layout = kind.layout()
    values = layout.unpack_from(data, at + HEADER.size)
    for i, f in _enumerated(kind):  # type: ignore[arg-type]  # mypy takes a class with fields for unhashable
        enum = f.metadata["enum"]
        if values[i] not in enum._value2member_map_:
            known = ", ".join(m.name for m in enum)
            raise ProgramError(f"{kind.mnemonic}: {f.name}={values[i]} is not one of {known}")
    end = at + HEADER.size + layout.size
    if flags > 1 or data[end : at + INSTRUCTION_BYTES].strip(b"\0"):
        raise ProgramError(f"{kind.mnemonic}: reserved bits are set")
    # A frozen dataclass sets its fields one by one through object.__setattr__; programs have 100,000 instructions.
    ins = object.__new__(kind)
    ins.__dict__.update(zip(_names(kind), (wait, signal, flags == 1, *values), strict=True))  # type: ignore[arg-type]
    return ins


@functools.cache
def _names(kind: type[Instruction]) -> tuple[str, ...]:
    return ("wait", "signal", "fence", *(f.name for f in kind.operands()))


@functools.cache
def _enumerated(kind: type[Instruction]) -> list[tuple[int, dataclasses.Field[int]]]:
    """Positions of the operands that hold a name's number."""
    return [(i, f) for i, f in enumerate(kind.operands()) if f.metadata["enum"] is not None]


def _typed(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise TypeError(f"{value!r} is not a {kind.__name__}")
    return value


def _port(fields: Any) -> Port:
    scale, zero = fields["scale"], fields["zero_point"]
    return Port(
        name=_typed(fields["name"], str),
        dtype=_typed(fields["dtype"], str),
        shape=tuple(_typed(d, int) for d in fields["shape"]),
        address=_typed(fields["address"], int),
        scale=None if scale is None else _typed(scale, float),
        zero_point=None if zero is None else _typed(zero, int),
    )
