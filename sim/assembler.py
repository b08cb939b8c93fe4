"""The program as text and back: one line an instruction, directives for the rest.

```
.program 'name'
.main_bytes 64
.input 'x' int8 (1, 8) address=0 scale=0.5 zero_point=3
.output 'y' int8 (1, 8) address=32
.layer 0 'conv1' kind='Conv2d' macs=0
.in 0
copy unit=load source=main target=activation target_address=0 run_bytes=8 signal=0
```

The instructions below ``.in N`` belong to layer N. Operands at their default need not be written; tokens are lists;
`fence` stands alone; ``#`` starts a comment line.
Constants are bytes, not text: `assemble` takes them beside it.
"""

from __future__ import annotations

import ast
import dataclasses
import re
from typing import Any

from qcompiler.sim.errors import ProgramError, did_you_mean
from qcompiler.sim.hardware import Machine
from qcompiler.sim.isa import MNEMONICS, Instruction
from qcompiler.sim.isa.base import TOKENS, limits, mask
from qcompiler.sim.program import Layer, NpuProgram, Port

_WORD = re.compile(r"""(?:[^\s'"]|'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")+""")


def disassemble(program: NpuProgram) -> str:
    """The text of a program; ``assemble(text, program.machine, program.constants)`` gives an equal one."""
    lines = [f"# for machine {program.machine.name} {program.machine.hash}"]
    lines += [f".program {program.name!r}", f".main_bytes {program.main_bytes}"]
    for word, ports in (("input", program.inputs), ("output", program.outputs)):
        for p in ports:
            line = f".{word} {p.name!r} {p.dtype} {p.shape!r} address={p.address}"
            if p.scale is not None:
                line += f" scale={p.scale!r} zero_point={p.zero_point}"
            lines.append(line)
    # Layers may interleave: each is declared once, and named again wherever its instructions resume.
    lines += [f".layer {i} {x.name!r} kind={x.kind!r} macs={x.macs}" for i, x in enumerate(program.layers)]
    current = -1
    for ins, layer in zip(program.instructions, program.layer_of, strict=True):
        if layer != current:
            lines.append(f".in {layer}")
            current = layer
        lines.append(ins.text())
    return "\n".join(lines) + "\n"


def assemble(text: str, machine: Machine, constants: bytes = b"") -> NpuProgram:
    """Parse the text form. Raises ProgramError naming the line; the program is checked for `machine`."""
    fields: dict[str, Any] = {"name": "program", "main_bytes": 0}
    ports: dict[str, list[Port]] = {"input": [], "output": []}
    layers: list[Layer] = []
    instructions: list[Instruction] = []
    layer_of: list[int] = []
    current = 0
    for number, line in enumerate(text.splitlines(), 1):
        try:
            words = _words(line)
            if not words:
                continue
            head = words[0]
            if head == ".program":
                fields["name"] = _literal(words[1], str)
            elif head == ".main_bytes":
                fields["main_bytes"] = _literal(words[1], int)
            elif head in (".input", ".output"):
                ports[head[1:]].append(_port(words[1:]))
            elif head == ".layer":
                if _literal(words[1], int) != len(layers):
                    raise ProgramError(f"layers are numbered from 0 on; the next one is {len(layers)}")
                given = _pairs(words[3:], ("kind", "macs"))
                layers.append(
                    Layer(
                        _literal(words[2], str),
                        _literal(given.get("kind", "''"), str),
                        _literal(given.get("macs", "0"), int),
                    )
                )
            elif head == ".in":
                current = _literal(words[1], int)
            elif head.startswith("."):
                known = (".program", ".main_bytes", ".input", ".output", ".layer", ".in")
                raise ProgramError(f"unknown directive {head!r}{did_you_mean(head, known)}")
            else:
                instructions.append(parse_instruction(words))
                layer_of.append(current)
        except (ProgramError, IndexError, ValueError, SyntaxError) as error:
            what = str(error) if isinstance(error, ProgramError) else f"cannot be read: {line.strip()!r}"
            raise ProgramError(f"line {number}: {what}") from None
    return NpuProgram(
        **fields,
        machine=machine,
        instructions=tuple(instructions),
        constants=constants,
        inputs=tuple(ports["input"]),
        outputs=tuple(ports["output"]),
        layers=tuple(layers) or (Layer("program"),),
        layer_of=tuple(layer_of),
    )


def parse_instruction(words: list[str]) -> Instruction:
    """One instruction from its words: mnemonic, then name=value."""
    kind = MNEMONICS.get(words[0])
    if kind is None:
        raise ProgramError(f"unknown instruction {words[0]!r}{did_you_mean(words[0], MNEMONICS)}")
    operands = {f.name: f for f in kind.operands()}
    values: dict[str, Any] = {}
    for name, value in _pairs([w for w in words[1:] if w != "fence"], (*operands, "wait", "signal")).items():
        values[name] = _tokens(value) if name in ("wait", "signal") else _operand(kind, operands[name], value)
    missing = [n for n, f in operands.items() if n not in values and f.default is dataclasses.MISSING]
    if missing:
        raise ProgramError(f"{kind.mnemonic}: {', '.join(missing)} missing")
    return kind(**values, fence="fence" in words[1:])


def _operand(kind: type[Instruction], f: dataclasses.Field[int], value: str) -> int:
    enum = f.metadata["enum"]
    low, high = limits(f.metadata["kind"])
    names = list(enum.__members__) if enum else []
    if value in names:
        return int(enum[value])
    allowed = f"one of {', '.join(names)}" if enum else f"a number in {low}..{high}"
    try:
        number = int(value, 0)
    except ValueError:
        raise ProgramError(f"{kind.mnemonic}: {f.name}={value} is not {allowed}{did_you_mean(value, names)}") from None
    if enum is not None and number not in enum._value2member_map_:
        raise ProgramError(f"{kind.mnemonic}: {f.name}={number} is not {allowed}")
    if not low <= number <= high:
        raise ProgramError(f"{kind.mnemonic}: {f.name}={number} is outside {low}..{high}")
    return number


def _tokens(text: str) -> int:
    try:
        return mask(*(int(t) for t in text.split(",")))
    except ValueError:
        raise ProgramError(f"{text!r} is not a list of tokens 0..{TOKENS - 1}") from None


def _pairs(words: list[str], known: tuple[str, ...]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or name not in known:
            raise ProgramError(f"unknown operand {name!r}{did_you_mean(name, known)}")
        if name in pairs:
            raise ProgramError(f"operand {name!r} is given twice")
        pairs[name] = value
    return pairs


def _port(words: list[str]) -> Port:
    name, dtype = _literal(words[0], str), words[1]
    opened, closed = [w[0] for w in words].index("("), [w[-1] for w in words].index(")")
    shape = _literal(" ".join(words[opened : closed + 1]), tuple)
    given = _pairs(words[closed + 1 :], ("address", "scale", "zero_point"))
    return Port(
        name,
        dtype,
        shape,
        _literal(given["address"], int) if "address" in given else 0,
        float(given["scale"]) if "scale" in given else None,
        _literal(given["zero_point"], int) if "zero_point" in given else None,
    )


def _literal(text: str, kind: type) -> Any:
    value = ast.literal_eval(text)
    if type(value) is not kind:
        raise ProgramError(f"{text} is not a {kind.__name__}")
    return value


def _words(line: str) -> list[str]:
    """Words of a line; quoted strings stay whole, with their quotes."""
    return [] if line.lstrip().startswith("#") else _WORD.findall(line)
