"""Values as C99 text: constant arrays, each stored once, and descriptors with named fields."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

WIDTH = 116


@dataclass(frozen=True)
class Name:
    """An expression of C: the name of an array or a function."""

    text: str


class Arrays:
    """The constant arrays of a program; equal ones share a name. bytes: of all of them."""

    def __init__(self) -> None:
        self._names: dict[tuple[str, bytes], Name] = {}
        self.definitions: list[str] = []
        self.bytes = 0

    def add(self, name: str, values: npt.ArrayLike, dtype: Any, packed: bool = False) -> Name:
        """`name` is a proposal, unique in the program. packed: read by words, so it begins on a boundary of eight."""
        array = np.ascontiguousarray(values, dtype=dtype).ravel()
        key = (str(array.dtype), array.tobytes())
        if key not in self._names:
            aligned = " QC_ALIGNED" if packed else ""
            body = _lines([_number(v) for v in array.tolist()], array.dtype)
            self.definitions.append(
                f"static const {c_type(array.dtype)} {name}[{max(1, array.size)}]{aligned} = {{\n{body}\n}};\n"
            )
            self._names[key] = Name(name)
            self.bytes += array.nbytes
        return self._names[key]


def c_type(dtype: Any) -> str:
    kind = str(np.dtype(dtype))
    return {"float32": "float", "bool": "uint8_t"}.get(kind, f"{kind}_t")


def identifier(text: str) -> str:
    """`text` as part of a C identifier, of reasonable length."""
    return re.sub(r"\W+", "_", text).strip("_")[:40]


def _number(value: Any) -> str:
    if isinstance(value, float):
        return _float(value)
    if value == -(2**31):
        return "INT32_MIN"
    if isinstance(value, int) and not -(2**31) <= value < 2**31:
        return f"INT64_C({value})"  # -2**63 does not occur
    return str(int(value))


def _float(value: float) -> str:
    """Exact, in hexadecimal; infinities and NaN do not occur in descriptors."""
    mantissa, _, exponent = np.float32(value).astype(np.float64).item().hex().partition("p")
    return f"{mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa}p{exponent}f"


def _lines(words: Sequence[str], dtype: Any) -> str:
    if not words:
        return "    0"
    lines, line = [], "   "
    for word in words:
        if len(line) + len(word) + 2 > WIDTH:
            lines.append(line)
            line = "   "
        line += f" {word},"
    return "\n".join([*lines, line])


def initialiser(fields: Mapping[str, Any]) -> str:
    """`{.name = value, ...}`; fields that are zero, NULL or empty are left out, as C sets them so."""
    parts = [f".{name} = {_value(v)}" for name, v in fields.items() if not _is_zero(v)]
    return "{" + (", ".join(parts) if parts else "0") + "}"


def _is_zero(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_is_zero(v) for v in value)
    return value is None or (isinstance(value, (int, float)) and value == 0)


def _value(value: Any) -> str:
    if isinstance(value, Name):
        return value.text
    if isinstance(value, Mapping):
        return initialiser(value)
    if isinstance(value, (list, tuple)):
        return "{" + ", ".join(_value(v) for v in value) + "}"
    if value is None:
        return "NULL"
    return _number(value)
