"""Beside a library for a CPU: an example program, and a Makefile that builds and runs it with the target's compiler.

Where that compiler is missing while the model is compiled, the Makefile also makes the library from its parts later.
"""

from __future__ import annotations

from collections.abc import Sequence

from qcompiler.codegen.cpu.target import CpuTarget
from qcompiler.codegen.mcu.example import around_model
from qcompiler.sim.integer_program import IntegerProgram


def example_files(program: IntegerProgram, target: CpuTarget, prefix: str, library_rules: str = "") -> dict[str, str]:
    """main.c and Makefile by name. library_rules: how libmodel.a comes about where it is not there."""
    text = around_model("main.c", len(program.inputs), len(program.outputs), prefix)
    include = "#include <stdio.h>\n#define say(text) fputs(text, stdout)"
    return {"main.c": text.replace("@INCLUDE@", include), "Makefile": _makefile(target, library_rules)}


def _makefile(target: CpuTarget, library_rules: str) -> str:
    emulator = target.toolchain.emulator
    static = " -static" if emulator else ""
    return f"""\
# make run: builds the example{f" and runs it under {emulator[0]}" if emulator else " and runs it"}.
CC = {target.toolchain.compiler}
CFLAGS = -O2 -Wall -Wextra
RUN = {" ".join(emulator)}

run: example
\t$(RUN) ./example

example: main.c model.h libmodel.a
\t$(CC) $(CFLAGS) main.c libmodel.a -o $@{static} -pthread -lm

clean:
\trm -f example
{library_rules}"""


def library_rules(
    target: CpuTarget, objects: Sequence[str], sources: Sequence[str], compile_flags: Sequence[str],
    objcopy_flags: Sequence[str], link_flags: Sequence[str],
) -> str:  # fmt: skip
    """Rules that make model.o, libmodel.a and model.so from the kernels' objects and C sources."""
    tool = target.toolchain.tool
    parts = [*objects, *(f"{name.rsplit('.', 1)[0]}.o" for name in sources)]
    compilations = "\n".join(
        f"{name.rsplit('.', 1)[0]}.o: {name}{' constants.bin' if name == 'constants.S' else ''}\n"
        f"\t$(CC) {' '.join(compile_flags)} -c {name} -o $@\n"
        for name in sources
    )
    return f"""
library: libmodel.a model.so

libmodel.a: model.o
\t{tool("ar")} rcsD $@ model.o

model.so: model.o
\t$(CC) -shared -o $@ model.o {" ".join(link_flags)}

model.o: {" ".join(parts)}
\t$(CC) -r -nostdlib -o $@ {" ".join(parts)}
\t{tool("objcopy")} {" ".join(objcopy_flags)} $@

{compilations}"""
