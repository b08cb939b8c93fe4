"""Text form, hash and file form of an integer program: what `--dump-ir` shows and what an artefact stores.

One line a tensor and an operation. Arrays of up to eight elements stand in the line; larger ones are named
``@key`` and live in a NumPy archive beside the text. ``parse(print_program(p), constants(p))`` gives an equal program.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import io
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from qcompiler.sim.errors import ProgramError
from qcompiler.sim.integer_program import OPERATIONS, Array, IntegerProgram, Operation, Requantize, Tensor, check

HEADER = "integer_program 1"
INLINE_ELEMENTS = 8


class _Writer:
    def __init__(self) -> None:
        self.arrays: dict[str, Array] = {}

    def value(self, value: Any, path: str) -> str:
        if isinstance(value, np.ndarray):
            if value.size <= INLINE_ELEMENTS:
                return f"array({value.dtype.name!r}, {value.shape!r}, {value.ravel().tolist()!r})"
            self.arrays[path] = value
            return f"constant({path!r}, {value.dtype.name!r}, {value.shape!r})"
        if isinstance(value, Requantize):
            return self.call("Requantize", value, path, skip=())
        if isinstance(value, tuple):
            items = [self.value(v, f"{path}.{i}") for i, v in enumerate(value)]
            return f"({', '.join(items)}{',' if len(items) == 1 else ''})"
        if isinstance(value, Mapping):
            return "{" + ", ".join(f"{k!r}: {self.value(v, f'{path}.{k}')}" for k, v in value.items()) + "}"
        if isinstance(value, np.generic):
            value = value.item()
        return repr(value)

    def call(self, head: str, obj: Any, path: str, skip: tuple[str, ...]) -> str:
        parts = []
        for f in dataclasses.fields(obj):
            value = getattr(obj, f.name)
            if f.name in skip or (
                f.default is not dataclasses.MISSING and not isinstance(value, np.ndarray) and value == f.default
            ):
                continue
            if isinstance(value, Mapping) and not value:
                continue
            parts.append(f"{f.name}={self.value(value, f'{path}.{f.name}')}")
        return f"{head}({', '.join(parts)})"


def _write(program: IntegerProgram) -> tuple[str, dict[str, Array]]:
    writer = _Writer()
    lines = [HEADER, f"name {program.name!r}", f"inputs {program.inputs!r}", f"outputs {program.outputs!r}"]
    for t in program.tensors.values():
        quantised = "" if t.scale is None else f" scale={t.scale!r} zero_point={t.zero_point}"
        lines.append(f"tensor {t.name!r} {t.dtype} {t.shape!r}{quantised}")
    for n, value in program.constants.items():
        lines.append(f"constant {n!r} = {writer.value(value, f'constant:{n}')}")
    for op in program.operations:
        call = writer.call(type(op).__name__, op, op.name, skip=("name", "inputs", "output"))
        lines.append(f"op {op.name!r}: {op.output!r} = {call} <- {op.inputs!r}")
    return "\n".join(lines) + "\n", writer.arrays


def print_program(program: IntegerProgram) -> str:
    """The text form; large arrays appear by key, dtype and shape only."""
    return _write(program)[0]


def constants(program: IntegerProgram) -> dict[str, Array]:
    """The arrays that the text names by key."""
    return _write(program)[1]


def digest(program: IntegerProgram) -> str:
    """SHA-256 (hex) over the text and every array's bytes, little-endian."""
    text, arrays = _write(program)
    h = hashlib.sha256(text.encode())
    for key, value in arrays.items():
        h.update(key.encode())
        h.update(np.ascontiguousarray(value).astype(value.dtype.newbyteorder("<")).tobytes())
    return h.hexdigest()


def _evaluate(node: ast.expr, arrays: Mapping[str, Array], where: str) -> Any:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        args = [_evaluate(a, arrays, where) for a in node.args]
        keywords = {k.arg: _evaluate(k.value, arrays, where) for k in node.keywords if k.arg}
        if node.func.id == "array" and len(args) == 3:
            return np.array(args[2], dtype=args[0]).reshape(args[1])
        if node.func.id == "constant" and len(args) == 3:
            key, dtype, shape = args
            if key not in arrays:
                raise ProgramError(f"{where}: the constant {key!r} is missing")
            if arrays[key].dtype.name != dtype or arrays[key].shape != shape:
                found = f"{arrays[key].dtype}{arrays[key].shape}"
                raise ProgramError(f"{where}: the constant {key!r} is {found}, the text says {dtype}{shape}")
            return arrays[key]
        if node.func.id == "Requantize" and not args:
            return Requantize(**keywords)
        raise ProgramError(f"{where}: unknown value {node.func.id!r}")
    if isinstance(node, ast.Tuple):
        return tuple(_evaluate(e, arrays, where) for e in node.elts)
    if isinstance(node, ast.List):
        return [_evaluate(e, arrays, where) for e in node.elts]
    if isinstance(node, ast.Name) and node.id in ("inf", "nan"):  # as repr prints them
        return float(node.id)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_evaluate(node.operand, arrays, where)
    if isinstance(node, ast.Dict):
        return {
            _evaluate(k, arrays, where): _evaluate(v, arrays, where)
            for k, v in zip(node.keys, node.values, strict=True) if k is not None
        }  # fmt: skip
    return ast.literal_eval(node)


def _operation(rest: str, arrays: Mapping[str, Array], where: str) -> Operation:
    # `'name': 'output' = Kind(...) <- (...)`: each part is Python syntax, so cut where a literal ends, not by text.
    head, body = _split_literal(rest, ":")
    output, body = _split_literal(body, "=")
    call_text, inputs_text = body.rsplit(" <- ", 1)
    call = ast.parse(call_text.strip(), mode="eval").body
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.func.id not in OPERATIONS:
        raise ProgramError(f"{where}: not an operation: {call_text.strip()[:60]!r}")
    fields = {k.arg: _evaluate(k.value, arrays, where) for k in call.keywords if k.arg}
    return OPERATIONS[call.func.id](name=head, inputs=ast.literal_eval(inputs_text), output=output, **fields)


def _split_literal(text: str, mark: str) -> tuple[Any, str]:
    at = text.find(mark)
    while at >= 0:
        try:
            return ast.literal_eval(text[:at].strip()), text[at + len(mark) :]
        except (SyntaxError, ValueError):
            at = text.find(mark, at + 1)
    raise SyntaxError(f"no {mark!r} after a literal in {text[:60]!r}")


def parse(text: str, arrays: Mapping[str, Array]) -> IntegerProgram:
    """The program of `print_program`'s text and `constants`' arrays. Raises ProgramError with the line at fault."""
    lines = text.splitlines()
    if not lines or lines[0] != HEADER:
        raise ProgramError(f"line 1: this is not an integer program (it should begin with {HEADER!r})")
    name, inputs, outputs = "", (), ()
    tensors: dict[str, Tensor] = {}
    values: dict[str, Array] = {}
    operations: list[Operation] = []
    for number, line in enumerate(lines[1:], start=2):
        where = f"line {number}"
        word, _, rest = line.partition(" ")
        try:
            if word == "name":
                name = ast.literal_eval(rest)
            elif word == "inputs":
                inputs = ast.literal_eval(rest)
            elif word == "outputs":
                outputs = ast.literal_eval(rest)
            elif word == "tensor":
                tensor = _tensor(rest)
                tensors[tensor.name] = tensor
            elif word == "constant":
                key, body = _split_literal(rest, "=")
                values[key] = _evaluate(ast.parse(body.strip(), mode="eval").body, arrays, where)
            elif word == "op":
                operations.append(_operation(rest, arrays, where))
            elif line.strip():
                raise ProgramError(
                    f"{where}: a line begins with name, inputs, outputs, tensor, constant or op, not {word!r}"
                )
        except (SyntaxError, ValueError, TypeError, IndexError) as error:
            raise ProgramError(f"{where}: {error}") from None
    return check(IntegerProgram(name, inputs, outputs, tensors, tuple(operations), values))


def _tensor(rest: str) -> Tensor:
    quote = rest[0]
    end = 1
    while rest[end] != quote or rest[end - 1] == "\\":
        end += 1
    name = ast.literal_eval(rest[: end + 1])
    dtype, _, tail = rest[end + 1 :].strip().partition(" ")
    close = tail.index(")")
    shape = ast.literal_eval(tail[: close + 1])
    options = dict(part.split("=", 1) for part in tail[close + 1 :].split())
    scale = float(options["scale"]) if "scale" in options else None
    zero_point = int(options["zero_point"]) if "zero_point" in options else None
    return Tensor(name, shape, dtype, scale, zero_point)


def save(program: IntegerProgram) -> bytes:
    """One ZIP archive: ``program.txt`` and ``constants.npz``; equal programs give equal bytes."""
    text, arrays = _write(program)
    npz = io.BytesIO()
    keys = list(arrays)
    members: dict[str, Any] = {f"a{i}": arrays[k] for i, k in enumerate(keys)}
    np.savez(npz, **members)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for member, data in (
            ("program.txt", text.encode()),
            ("keys.txt", repr(keys).encode()),
            ("constants.npz", npz.getvalue()),
        ):
            archive.writestr(zipfile.ZipInfo(member, (1980, 1, 1, 0, 0, 0)), data)
    return out.getvalue()


def load(data: bytes) -> IntegerProgram:
    """Inverse of `save`. Raises ProgramError for anything that is not such an archive."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            text = archive.read("program.txt").decode()
            keys = ast.literal_eval(archive.read("keys.txt").decode())
            npz = np.load(io.BytesIO(archive.read("constants.npz")), allow_pickle=False)
            arrays = {k: npz[f"a{i}"] for i, k in enumerate(keys)}
    except (
        zipfile.BadZipFile,
        zlib.error,
        KeyError,
        ValueError,
        OSError,
        EOFError,
        RuntimeError,
        SyntaxError,
    ) as error:
        raise ProgramError(f"not a saved integer program: {error}") from None
    return parse(text, arrays)
