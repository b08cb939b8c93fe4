"""An example program around a model, with its Makefile: for a Cortex-M, one that runs on qemu's board."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qcompiler.codegen.mcu.target import Board, McuTarget
from qcompiler.sim.integer_program import IntegerProgram

BOARD = Path(__file__).parent / "board"
WARNINGS = "-Wall -Wextra"


def board_files(board: Board) -> dict[str, str]:
    """Startup code and linker script."""
    files = {name: (BOARD / name).read_text(encoding="ascii") for name in ("startup.c", "semihosting.h", "board.ld")}
    for name, (origin, size) in (("CODE", board.code), ("CONST", board.constants), ("DATA", board.data)):
        files["board.ld"] = (
            files["board.ld"].replace(f"@{name}_ORIGIN@", f"0x{origin:08x}").replace(f"@{name}_KIB@", str(size))
        )
    files["board.ld"] = files["board.ld"].replace("@MACHINE@", board.machine)
    return files


def qemu_command(board: Board) -> list[str]:
    """How qemu runs a program on the board: `-kernel FILE` comes behind."""
    return [
        "qemu-system-arm", "-M", board.machine, "-nographic", "-monitor", "none", "-serial", "none",
        "-semihosting-config", "enable=on,target=native",
    ]  # fmt: skip


def example_files(program: IntegerProgram, target: McuTarget, prefix: str, sources: Sequence[str]) -> dict[str, str]:
    """main.c and Makefile, and what the board needs."""
    include = '#include "semihosting.h"\n#define say semihosting_print'
    if target.board is None:
        include = "#include <stdio.h>\n#define say(text) fputs(text, stdout)"
    text = around_model("main.c", len(program.inputs), len(program.outputs), prefix).replace("@INCLUDE@", include)
    files = {"main.c": text, "Makefile": _makefile(target, sources)}
    return files | (board_files(target.board) if target.board else {})


def around_model(template: str, inputs: int, outputs: int, prefix: str) -> str:
    """A main program of this folder for a model with so many inputs and outputs."""
    upper = prefix.upper()
    counts = {"INPUT": inputs, "OUTPUT": outputs}
    buffers = [
        f"static {upper}_{kind}_{i}_TYPE {kind.lower()}_{i}[{upper}_{kind}_{i}_ELEMENTS];"
        for kind, count in counts.items()
        for i in range(count)
    ]
    text = (BOARD / template).read_text(encoding="ascii")
    values = {"UPPER": upper, "PREFIX": prefix, "BUFFERS": "\n".join(buffers)}
    for kind, count in counts.items():
        values[f"{kind}S"] = ", ".join(f"{kind.lower()}_{i}" for i in range(count))
        values[f"{kind}_BYTES"] = ", ".join(f"{upper}_{kind}_{i}_BYTES" for i in range(count))
    for key, value in values.items():
        text = text.replace(f"@{key}@", value)
    return text


def _makefile(target: McuTarget, sources: Sequence[str]) -> str:
    if target.board is None:
        return f"""\
# make run: builds the example from source and runs it.
CFLAGS = -std=c99 -O2 -pedantic {WARNINGS}
SOURCES = main.c {" ".join(sources)}

run: example
\t./example

example: $(SOURCES) $(wildcard *.h)
\t$(CC) $(CFLAGS) $(SOURCES) -o $@

clean:
\trm -f example
"""
    return f"""\
# make run: builds the example from source and runs it on qemu's {target.board.machine}.
CC = {target.compiler}gcc
CFLAGS = {" ".join(target.flags)} -O2 -ffunction-sections -fdata-sections {WARNINGS}
LDFLAGS = -nostartfiles -T board.ld -Wl,--gc-sections
SOURCES = main.c startup.c {" ".join(sources)}

run: example.elf
\t{" ".join(qemu_command(target.board))} -kernel example.elf

example.elf: $(SOURCES) $(wildcard *.h) board.ld
\t$(CC) $(CFLAGS) $(SOURCES) $(LDFLAGS) -o $@
\t{target.compiler}size $@

clean:
\trm -f example.elf
"""
