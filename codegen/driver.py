"""The C around the kernels: one function a step, a table of steps a level, and the public functions and header."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qcompiler.codegen.cpu.kernel import Step
from qcompiler.codegen.cpu.lower import Lowered
from qcompiler.codegen.header import c_string, header
from qcompiler.sim.integer_program import IntegerProgram

PUBLIC = ("run", "set_threads", "isa", "error", "profile", "step_count", "step_name")
"""The functions of the C interface, after the prefix."""


@dataclass(frozen=True, eq=False)
class Level:
    """What the driver calls for one instruction set.

    symbols: of each step's kernel; constants: byte offsets in the constant blob of each step's kernel constants;
    threads: the most that each step should use; offsets: of the arena's buffers; tensors: byte offsets in the blob
    of the program's constant tensors.
    """

    name: str
    cpu_flags: tuple[str, ...]
    lowered: Lowered
    symbols: Sequence[str]
    constants: Sequence[Sequence[int]]
    threads: Sequence[int]
    offsets: Mapping[str, int]
    tensors: Mapping[str, int]


def identifier(text: str) -> str:
    """`text` as part of a C identifier."""
    return re.sub(r"\W", "_", text)


def step_title(step: Step) -> str:
    """What people call a step, behind the name of its kernel."""
    return step.operations[-1] if step.operations else step.output


def _place(level: Level, name: str) -> str:
    """C expression of the address of a tensor."""
    view = level.lowered.views[name]
    if view.base in level.offsets:
        return f"c->arena + {level.offsets[view.base] + view.offset}"
    if view.base in level.tensors:
        return f"qc_constants + {level.tensors[view.base] + view.offset}"
    for kind, names in (("inputs", level.lowered.input_names), ("outputs", level.lowered.output_names)):
        if view.base in names:
            at = f"c->{kind}[{names.index(view.base)}]"
            return f"(const char *){at} + {view.offset}" if view.offset else at
    raise AssertionError(f"{name!r} has no memory")


def _level_source(level: Level) -> str:
    prefix = identifier(level.name)
    lines = []
    for symbol in dict.fromkeys(level.symbols):
        step = level.lowered.steps[level.symbols.index(symbol)]
        count = len(step.inputs) + len(step.kernel.constants) + (1 if step.kernel.scratch_bytes else 0) + 1
        lines.append(f"int32_t {symbol}({'const void *, ' * count}int32_t, int32_t);")
    for i, (step, symbol) in enumerate(zip(level.lowered.steps, level.symbols, strict=True)):
        arguments = [_place(level, n) for n in step.inputs]
        arguments += [f"qc_constants + {offset}" for offset in level.constants[i]]
        arguments += ["scratch"] if step.kernel.scratch_bytes else []
        arguments += [_place(level, step.output), "begin", "end"]
        head = f"static void {prefix}_{i}(const struct qc_call *c, int32_t begin, int32_t end, unsigned char *scratch)"
        lines.append(f"{head} {{\n    (void)c, (void)scratch;\n    {symbol}({', '.join(arguments)});\n}}")
    lines.append(f"static const struct qc_step {prefix}_steps[] = {{")
    for i, (step, threads) in enumerate(zip(level.lowered.steps, level.threads, strict=True)):
        title = c_string(f"{step.kernel.name} {step.operations[-1] if step.operations else step.output}")
        lines.append(f"    {{{prefix}_{i}, {step.kernel.tasks}, {threads}, {title}}},")
    if not level.lowered.steps:
        lines.append("    {0, 0, 0, 0},")
    lines.append("};")
    return "\n".join(lines)


def driver_source(
    program: IntegerProgram, levels: Sequence[Level], prefix: str, arena_bytes: int, scratch_bytes: int
) -> str:
    """The C file that ties kernels, constants and runtime together."""
    tables = "\n".join(
        f"    {{{c_string(level.name)}, {' | '.join(f'QC_CPU_{f.upper()}' for f in level.cpu_flags) or 0}, "
        f"{identifier(level.name)}_steps, {len(level.lowered.steps)}}},"
        for level in levels
    )
    sources = "\n".join(_level_source(level) for level in levels)
    return f"""\
#include "qc_cpu.h"
#include "qc_runtime.h"

#define API __attribute__((visibility("default")))
extern const unsigned char qc_constants[];

{sources}
static const struct qc_level levels[] = {{
{tables}
}};
static const struct qc_model model = {{
    levels, {len(levels)}, {len(program.inputs)}, {len(program.outputs)}, {arena_bytes}, {scratch_bytes}
}};

API int {prefix}_run(const void *const inputs[], void *const outputs[], void *workspace) {{
    return qc_run(&model, inputs, outputs, workspace);
}}
API int {prefix}_set_threads(int threads) {{ return qc_set_threads(threads, model.scratch_bytes); }}
API const char *{prefix}_isa(void) {{
    const struct qc_level *level;
    return qc_select(&model, &level) == QC_OK ? level->name : NULL;
}}
API const char *{prefix}_error(int status) {{ return qc_error(status); }}
API void {prefix}_profile(uint64_t *nanoseconds) {{ qc_profile(nanoseconds); }}
API int {prefix}_step_count(void) {{
    const struct qc_level *level;
    return qc_select(&model, &level) == QC_OK ? level->step_count : 0;
}}
API const char *{prefix}_step_name(int step) {{
    const struct qc_level *level;
    if (qc_select(&model, &level) != QC_OK || step < 0 || step >= level->step_count) return NULL;
    return level->steps[step].name;
}}
"""


def header_source(program: IntegerProgram, prefix: str, workspace_bytes: int, isas: Sequence[str]) -> str:
    """model.h: the whole C interface."""
    upper = prefix.upper()
    errors = [
        ("ERROR_ARGUMENT", "a null pointer"),
        ("ERROR_ISA", "this CPU lacks the instruction set"),
        ("ERROR_ISA_NAME", "QCOMPILER_ISA names an instruction set that is not in this library"),
        ("ERROR_THREADS", "a thread could not be started, or fewer than one was asked for"),
    ]
    functions = f"""\
/* Computes the outputs from the inputs: one pointer each, arrays in C order of the types and sizes above, aligned to
 * their element. Returns {upper}_OK or an error; never allocates. Several threads may call it at once, each with a
 * workspace and outputs of its own. */
int {prefix}_run(const void *const inputs[], void *const outputs[], void *workspace);

/* How many threads one call may use, the caller included; 1 at first. Starts the others, which sleep between calls.
 * While one caller has them, others compute alone. After fork() the child starts its own at the first call. */
int {prefix}_set_threads(int threads);

/* The instruction set in use, NULL when this CPU has none of those inside. The environment variable QCOMPILER_ISA
 * forces one by name before the first call; with "!" behind the name even if the CPU does not report it. */
const char *{prefix}_isa(void);

/* What a returned error means, in English. */
const char *{prefix}_error(int status);

/* Profiling: nanoseconds[i] grows by the time of step i in every later call, for {prefix}_step_count() steps; NULL ends
 * it. Not for several callers at once. */
void {prefix}_profile(uint64_t *nanoseconds);
int {prefix}_step_count(void);
const char *{prefix}_step_name(int step);"""
    title = f"Generated by qcompiler. Instruction sets inside: {', '.join(isas)}."
    return header(program, prefix, workspace_bytes, title, errors, functions)
