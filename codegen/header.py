"""model.h: the C interface of a compiled model, on processors and on micro-controllers."""

from __future__ import annotations

import re
from collections.abc import Sequence

from qcompiler.sim.integer_program import IntegerProgram, Tensor

C_TYPES = {"int8": "int8_t", "int32": "int32_t", "int64": "int64_t", "float32": "float", "bool": "uint8_t"}


def c_string(text: str) -> str:
    """A C string literal: printable ASCII as it is, every other byte in octal."""
    escaped = "".join(chr(b) if 32 <= b < 127 and chr(b) not in '"\\?' else f"\\{b:03o}" for b in text.encode())
    return f'"{escaped}"'


def _tensor_macros(upper: str, kind: str, tensors: Sequence[Tensor]) -> list[str]:
    lines = [f"#define {upper}_{kind}_COUNT {len(tensors)}"]
    for i, t in enumerate(tensors):
        shape = " x ".join(map(str, t.shape)) or "scalar"
        quantised = f", scale {t.scale!r}, zero point {t.zero_point}" if t.scale is not None else ""
        comment = re.sub(r"\*/|/\*", "", f"{t.dtype} {shape}{quantised}")
        lines += [
            f"#define {upper}_{kind}_{i}_NAME {c_string(t.name)} /* {comment} */",
            f"#define {upper}_{kind}_{i}_TYPE {C_TYPES[t.dtype]}",
            f"#define {upper}_{kind}_{i}_ELEMENTS {t.elements}",
            f"#define {upper}_{kind}_{i}_BYTES {t.bytes}",
        ]
    return lines


def header(
    program: IntegerProgram, prefix: str, workspace_bytes: int, title: str, errors: Sequence[tuple[str, str]],
    functions: str,
) -> str:  # fmt: skip
    """title: the comment at the top. errors: (name, meaning) of the statuses from 1 on. functions: declarations."""
    upper = prefix.upper()
    macros = "\n".join([
        *_tensor_macros(upper, "INPUT", [program.tensors[n] for n in program.inputs]),
        *_tensor_macros(upper, "OUTPUT", [program.tensors[n] for n in program.outputs]),
    ])  # fmt: skip
    width = max(len(name) for name, _ in errors)
    statuses = [f"#define {upper}_OK 0"]
    for i, (name, meaning) in enumerate(errors, start=1):
        statuses.append(f"#define {upper}_{f'{name} {i}':{width + 2}} /* {meaning} */")
    lines = "\n".join(statuses)
    return f"""\
/* {title} */
#ifndef {upper}_MODEL_H
#define {upper}_MODEL_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {{
#endif

/* Working memory of one call, in bytes. Any alignment; contents need not be kept between calls. */
#define {upper}_WORKSPACE_BYTES {workspace_bytes}

{macros}

{lines}

{functions}

#ifdef __cplusplus
}}
#endif

#endif
"""
