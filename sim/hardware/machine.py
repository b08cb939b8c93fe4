"""The description of a machine: typed, with units in the field names, and validated before anything uses it.

`load` takes the name of a preset or the path of a YAML file. Every error names the file, the field, its value and
what is allowed; an unknown field suggests near names; fields that contradict each other say which and why.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from qcompiler.sim.errors import HardwareError, did_you_mean
from qcompiler.sim.isa.base import Space
from qcompiler.sim.numerics import ROUNDINGS, Rounding
from qcompiler.sim.widths import ACTIVATION_BITS, WEIGHT_BITS, Widths

FOLDER = Path(__file__).parent
MAX_FILE_BYTES = 1 << 20
BANDWIDTH_STEPS = 16  # bandwidths are multiples of 1/16 byte a cycle: a credit counter with four fractional bits

Dataflow = Literal["weight_stationary", "output_stationary"]
Technology = Literal["sram", "flash", "lpddr4", "ddr4", "hbm2"]
Bandwidth = Annotated[float, Field(ge=1 / BANDWIDTH_STEPS, le=4096, multiple_of=1 / BANDWIDTH_STEPS)]


def packed_bytes(count: int, bits: int) -> int:
    """Bytes that `count` values of `bits` bits take side by side."""
    return -(-count * bits // 8)


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Matrix(_Part):
    """The multiply-accumulate array and its accumulators."""

    rows: int = Field(ge=2, le=256, description="R: products added in one column, the reduction of a weight tile")
    columns: int = Field(ge=2, le=256, description="C: output channels of a weight tile")
    accumulator_rows: int = Field(ge=2, le=65536, description="rows of C int32 in the accumulator memory")
    weight_bits: int = Field(
        8, ge=WEIGHT_BITS[0], le=WEIGHT_BITS[1],
        description="width of constant weights: packed so in the memories, unpacked at the array's edge",
    )  # fmt: skip
    activation_bits: int = Field(
        8, ge=ACTIVATION_BITS[0], le=ACTIVATION_BITS[1],
        description="width of the array's activation operand; in the memories a value takes a byte",
    )  # fmt: skip
    weight_buffers: Literal[1, 2] = Field(2, description="2: the next weight tile loads while the current one works")
    dataflows: tuple[Dataflow, ...] = Field(
        ("weight_stationary", "output_stationary"), min_length=1, strict=False, description="what the sequencer can do"
    )

    @property
    def macs_per_cycle(self) -> int:
        return self.rows * self.columns

    @property
    def widths(self) -> Widths:
        return Widths(self.weight_bits, self.activation_bits)

    def weight_row_bytes(self, columns: int) -> int:
        """Bytes of a packed row of `columns` weights; every row begins at a byte."""
        return packed_bytes(columns, self.weight_bits)

    @property
    def accumulator_bytes(self) -> int:
        return self.accumulator_rows * self.columns * 4


class Vector(_Part):
    """The vector unit: one multiply-accumulate, requantisation or table look-up a lane and cycle."""

    lanes: int = Field(ge=1, le=256, description="L: elements a cycle")
    parameter_bytes: int = Field(ge=1024, le=65536, description="memory of biases, scales, tables, depthwise weights")
    roundings: tuple[Rounding, ...] = Field(
        ("exact_half_up",), min_length=1, strict=False, description="requantisation rules implemented"
    )


class Scratchpad(_Part):
    """An on-chip memory whose ports each move bytes_per_cycle consecutive bytes from any byte address."""

    size_bytes: int = Field(ge=256, le=1 << 28, description="capacity")
    bytes_per_cycle: int = Field(ge=1, le=4096, description="width of each of its ports")


class ExternalMemory(_Part):
    """A memory outside the accelerator, with independent read and write channels (split a half-duplex one)."""

    technology: Technology = Field(description="row of the energy table")
    size_bytes: int = Field(ge=1024, le=1 << 32, description="capacity")
    read_bytes_per_cycle: Bandwidth = Field(description="read channel, in 1/16 steps", strict=False)
    write_bytes_per_cycle: Bandwidth = Field(1.0, description="write channel, in 1/16 steps", strict=False)
    latency_cycles: int = Field(ge=0, le=100_000, description="request to first data, and last data to response")
    burst_bytes: int = Field(ge=1, le=4096, description="smallest transfer; every run is rounded up to it")
    outstanding_transfers: int = Field(ge=1, le=64, description="instructions whose requests may be in flight")

    def burst(self, run_bytes: int) -> int:
        """Bytes moved for a run of consecutive bytes."""
        return -(-run_bytes // self.burst_bytes) * self.burst_bytes

    def read_cycles(self, moved_bytes: int) -> int:
        """Cycles of the read channel."""
        return -(-moved_bytes * BANDWIDTH_STEPS // round(self.read_bytes_per_cycle * BANDWIDTH_STEPS))

    def write_cycles(self, moved_bytes: int) -> int:
        """Cycles of the write channel."""
        return -(-moved_bytes * BANDWIDTH_STEPS // round(self.write_bytes_per_cycle * BANDWIDTH_STEPS))


class Control(_Part):
    """Instruction dispatch: one instruction a cycle, in program order, into the queue of its unit."""

    queue_entries: int = Field(64, ge=2, le=65536, description="instructions a queue holds; a full one stops dispatch")


class Machine(_Part):
    """An accelerator: array, vector unit, on-chip memories, external memories, clock and process."""

    name: str = Field(min_length=1, max_length=80, pattern=r"^[A-Za-z0-9._+-]+$", description="how reports call it")
    description: str = Field("", max_length=2000, description="for people")
    clock_mhz: float = Field(ge=1, le=5000, strict=False, description="clock of all units")
    process_nm: int = Field(ge=3, le=180, description="process node; energies and areas are scaled to it")
    matrix: Matrix
    vector: Vector
    activation_memory: Scratchpad
    weight_memory: Scratchpad
    main_memory: ExternalMemory
    constant_memory: ExternalMemory | None = Field(
        None, description="separate memory of weights and constants with its own queue (flash); else the main memory"
    )
    control: Control = Control(queue_entries=64)

    @model_validator(mode="after")
    def _contradictions(self) -> Machine:
        problems = list(_contradictions(self))
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def external(self, space: Space) -> ExternalMemory:
        """The memory behind the main or the constant address space."""
        if space == Space.constant and self.constant_memory is not None:
            return self.constant_memory
        return self.main_memory

    def space_bytes(self, space: Space) -> int:
        """Capacity of the memory behind an address space."""
        on_chip = {
            Space.activation: self.activation_memory.size_bytes,
            Space.weight: self.weight_memory.size_bytes,
            Space.parameter: self.vector.parameter_bytes,
        }
        return on_chip[space] if space in on_chip else self.external(space).size_bytes

    @property
    def hash(self) -> str:
        """sha256 over everything but name and description: what a program is compiled for.

        Widths of 8 bits are left out: programs compiled before they were fields still run on their machines.
        """
        content = self.model_dump(mode="json", exclude={"name", "description"})
        for name in ("weight_bits", "activation_bits"):
            if content["matrix"][name] == 8:
                del content["matrix"][name]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _contradictions(m: Machine) -> Iterator[str]:
    bits, row = m.matrix.weight_bits, m.matrix.weight_row_bytes(m.matrix.columns)
    weight = "one byte" if bits == 8 else f"{bits} bits"
    feeds = (
        ("activation_memory", m.activation_memory, "matrix.rows", m.matrix.rows, m.matrix.rows,
         "the array reads one byte a row"),
        ("activation_memory", m.activation_memory, "vector.lanes", m.vector.lanes, m.vector.lanes,
         "the lanes read one byte each"),
        ("weight_memory", m.weight_memory, "matrix.columns", m.matrix.columns, row,
         f"the array loads {weight} a column"),
    )  # fmt: skip
    for memory, pad, name, value, need, why in feeds:
        if pad.bytes_per_cycle < need:
            yield f"{memory}.bytes_per_cycle is {pad.bytes_per_cycle}, but {name} is {value} and {why} and cycle"
    tile = m.matrix.rows * row * m.matrix.weight_buffers
    if m.weight_memory.size_bytes < tile:
        packed = "" if bits == 8 else f" with {bits} bits a weight"
        yield (
            f"weight_memory.size_bytes is {m.weight_memory.size_bytes}, but {m.matrix.weight_buffers} weight tiles of "
            f"matrix.rows x matrix.columns{packed} are {tile}"
        )
    least = 4 * max(m.matrix.rows, m.matrix.columns, m.vector.lanes)
    if m.activation_memory.size_bytes < least:
        yield (
            f"activation_memory.size_bytes is {m.activation_memory.size_bytes}, but two input and two output vectors "
            f"of this array and these lanes are {least}"
        )
    if "output_stationary" in m.matrix.dataflows and m.matrix.accumulator_rows < m.matrix.rows:
        yield (
            f"matrix.accumulator_rows is {m.matrix.accumulator_rows}, but an output-stationary array drains "
            f"matrix.rows = {m.matrix.rows} at a time"
        )
    for name, external in (("main_memory", m.main_memory), ("constant_memory", m.constant_memory)):
        if external is not None and external.burst_bytes > external.size_bytes:
            yield f"{name}.burst_bytes is {external.burst_bytes}, more than its {external.size_bytes} bytes"
    if m.constant_memory is None and m.main_memory.technology == "flash":
        yield "main_memory.technology is 'flash', which cannot hold activations; make it the constant_memory"


# ----------------------------------------------------------------------------------------- loading
def preset_names() -> list[str]:
    """The machines that ship with the package."""
    return sorted(p.stem for p in FOLDER.glob("*.yaml") if not p.stem.startswith("energy"))


def load(name_or_path: str | Path) -> Machine:
    """A preset by name, or a machine from a YAML file. Raises HardwareError."""
    text = str(name_or_path)
    if text in preset_names():
        path = FOLDER / f"{text}.yaml"
    else:
        path = Path(name_or_path)
        if path.suffix not in (".yaml", ".yml"):
            known = preset_names()
            raise HardwareError(
                f"unknown machine {text!r}{did_you_mean(text, known)} "
                f"(presets: {', '.join(known)}; or the path of a .yaml file)"
            )
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise HardwareError(f"{path}: a machine description of {path.stat().st_size} bytes is not one")
        content = path.read_text(encoding="utf-8")
    except OSError as error:
        raise HardwareError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise HardwareError(f"{path}: is not a text file") from None
    return loads(content, str(path))


def loads(text: str, source: str = "<text>") -> Machine:
    """A machine from YAML text; `source` names it in errors."""
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        problem = " ".join(str(error).split())
        raise HardwareError(f"{source}: is not YAML: {problem}") from None
    if not isinstance(content, dict):
        raise HardwareError(f"{source}: a machine is a mapping of fields, not {type(content).__name__}")
    try:
        return Machine.model_validate(content)
    except ValidationError as error:
        _explain(error, source)


def _explain(error: ValidationError, source: str) -> NoReturn:
    lines = []
    for e in error.errors(include_url=False):
        where = ".".join(str(p) for p in e["loc"])
        if e["type"] == "extra_forbidden":
            lines.append(f"{where}: unknown field{did_you_mean(str(e['loc'][-1]), _fields(e['loc'][:-1]))}")
        elif e["type"] == "missing":
            lines.append(f"{where}: is missing ({_range(e['loc'])})")
        elif e["type"] == "value_error":
            lines.extend(str(e["ctx"]["error"]).splitlines())
        else:
            shown = repr(e["input"])
            lines.append(f"{where}: is {shown if len(shown) < 60 else shown[:57] + '...'}; {_range(e['loc'])}")
    raise HardwareError("\n".join(f"{source}: {line}" for line in lines)) from None


def _part_of(location: tuple[int | str, ...]) -> type[BaseModel]:
    """The model that holds the fields at this location."""
    part: type[BaseModel] = Machine
    for name in location:
        field = part.model_fields.get(str(name))
        if field is None:
            break
        candidates = [field.annotation, *get_args(field.annotation)]
        inner = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        if not inner:
            break
        part = inner[0]
    return part


def _fields(location: tuple[int | str, ...]) -> list[str]:
    return list(_part_of(location).model_fields)


def _range(location: tuple[int | str, ...]) -> str:
    """What a field may be, in words, from the same declaration that validates it."""
    names = [str(p) for p in location if isinstance(p, str)]
    properties: dict[str, Any] = {}
    for depth in range(len(names), 0, -1):
        holder = _part_of(tuple(names[: depth - 1]))
        found = holder.model_json_schema(mode="validation").get("properties", {}).get(names[depth - 1])
        if found is not None:
            properties = found
            break
    if "$ref" in properties or "anyOf" in properties:
        return f"want a mapping of {', '.join(_fields(location))}"
    if properties.get("type") == "array":
        properties = properties["items"]
    if "enum" in properties:
        return f"want one of {', '.join(map(str, properties['enum']))}"
    kind = {"integer": "a whole number", "number": "a number", "string": "a text"}.get(properties.get("type", ""), "it")
    words = f"want {kind}"
    if "minimum" in properties:
        words += f" in {properties['minimum']:g}..{properties['maximum']:g}"
    if "multipleOf" in properties:
        words += f", a multiple of {properties['multipleOf']}"
    if "pattern" in properties:
        words += f" matching {properties['pattern']}"
    return words


def field_names() -> list[str]:
    """All fields of a machine with dots, parts before their fields; not name and description."""
    names: list[str] = []
    for name in Machine.model_fields:
        part = _part_of((name,))
        inner = [] if part is Machine else [f"{name}.{field}" for field in part.model_fields]
        names += [name, *inner]
    return [n for n in names if n not in ("name", "description")]


def field_problem(machine: Machine, dotted: str, value: Any) -> str:
    """What is wrong with this value of one field, whatever the other fields are; empty where nothing is."""
    content, location = machine.model_dump(mode="json"), tuple(dotted.split("."))
    at: Any = content
    for part in location[:-1]:
        if at[part] is None:  # an optional memory that this machine lacks: any will do to try its field
            at[part] = dict(content["main_memory"])
        at = at[part]
    at[location[-1]] = value
    try:
        Machine.model_validate(content)
    except ValidationError as error:
        for e in error.errors(include_url=False):
            if e["loc"][: len(location)] == location:
                inner = "".join(f".{p}" for p in e["loc"][len(location) :])
                if e["type"] == "missing":
                    return f"{value!r} has no {inner[1:]} ({_range(e['loc'])})"
                return f"{inner + ' ' if inner else ''}is {e['input']!r}; {_range(e['loc'])}"
    return ""


def json_schema() -> dict[str, Any]:
    """JSON Schema of a machine file."""
    return Machine.model_json_schema()


def to_yaml(machine: Machine) -> str:
    """The machine as a file that `load` reads back to an equal machine."""
    return yaml.safe_dump(machine.model_dump(mode="json", exclude_none=True), sort_keys=False, width=110)


def ideal_memory(machine: Machine) -> Machine:
    """The same machine with external memories that answer at once, a whole transfer a cycle.

    For bounds and cross-checks only: such a bandwidth passes no validation.
    """
    fast = {
        "read_bytes_per_cycle": float(1 << 40), "write_bytes_per_cycle": float(1 << 40),
        "latency_cycles": 0, "burst_bytes": 1, "outstanding_transfers": 64,
    }  # fmt: skip
    update: dict[str, Any] = {"main_memory": machine.main_memory.model_copy(update=fast)}
    if machine.constant_memory is not None:
        update["constant_memory"] = machine.constant_memory.model_copy(update=fast)
    return machine.model_copy(update={"name": f"{machine.name}+ideal", **update})


assert set(get_args(Rounding)) == set(ROUNDINGS)
