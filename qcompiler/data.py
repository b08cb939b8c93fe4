"""Calibration and input data: `.npz`, a folder of `.npy`, or any iterable of dicts, one sample at a time.

Memory does not grow with the number of samples: archives are read through, and a one-shot iterator is spooled to a
temporary file so that it can be read again. Files are data: nothing is unpickled, and a header that promises more
than the file holds is refused before anything is allocated.
"""

from __future__ import annotations

import hashlib
import math
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import numpy.typing as npt

from qcompiler.sim.errors import CalibrationError, did_you_mean
from qcompiler.sim.integer_program import Tensor

Array = npt.NDArray[Any]
Sample = dict[str, Array]
Source = str | Path | Iterable[Mapping[str, Any]]


class Samples:
    """Samples that fit a model's inputs: iterate as often as needed; each is a dict of arrays of exactly that type.

    inputs: the model's inputs by name. source: see `read`. Iterating raises CalibrationError for a sample that does not
    fit: a missing input, a wrong shape, a type that is not a number, or NaN and infinity in float data.
    """

    def __init__(self, source: Source, inputs: Mapping[str, Tensor], what: str = "calibration") -> None:
        self.inputs, self.what = inputs, what
        if isinstance(source, (str, Path)):
            self._columns: dict[str, _Column] | None = _open(Path(source), inputs, what)
            self.where, self._spool = str(source), None
            lengths = {name: len(column) for name, column in self._columns.items()}
            if len(set(lengths.values())) > 1:
                raise CalibrationError(
                    f"{self.where}: the inputs have different numbers of samples: "
                    + ", ".join(f"{name!r} {n}" for name, n in lengths.items())
                )
            self._length: int | None = next(iter(lengths.values()))
        else:
            self._columns, self.where = None, f"the {what} samples"
            self._source: Iterable[Mapping[str, Any]] = source
            one_shot = iter(source) is source
            self._spool = _Spool(inputs) if one_shot else None
            self._length = len(source) if isinstance(source, Sequence) else None
        if self._length == 0:
            raise CalibrationError(f"{self.where}: there are no {what} samples; give at least one")

    def __len__(self) -> int:
        """The number of samples; counts by reading an iterable that does not know."""
        if self._length is None:
            self._length = sum(1 for _ in self)
        return self._length

    def __iter__(self) -> Iterator[Sample]:
        count = 0
        for sample in self._spool or ():
            count += 1
            yield sample
        for raw in self._raw():
            sample = self._fit(raw, count)
            if self._spool is not None:
                self._spool.append(sample)
            count += 1
            yield sample
        if count == 0:
            raise CalibrationError(f"{self.where}: there are no {self.what} samples; give at least one")
        self._length = count

    def sha256(self) -> str:
        """A hash over all samples, whatever they were read from."""
        digest = hashlib.sha256()
        for sample in self:
            for name, value in sample.items():
                digest.update(f"{name} {value.dtype} {value.shape}".encode())
                digest.update(value.tobytes())
        return digest.hexdigest()

    def _raw(self) -> Iterator[Mapping[str, Any]]:
        if self._columns is None:
            return iter(self._source)  # a generator itself: one left half-way must not be closed
        columns = self._columns
        return (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))

    def _fit(self, raw: Any, index: int) -> Sample:
        if not isinstance(raw, Mapping):
            raise CalibrationError(
                f"{self.where}: sample {index} is a {type(raw).__name__}, not a dict of input arrays"
            )
        sample = {}
        for name, tensor in self.inputs.items():
            if name not in raw:
                raise CalibrationError(_missing(f"{self.where}: sample {index}", name, list(raw)))
            where = f"{self.where}: sample {index} of input {name!r}"
            sample[name] = fit(np.asarray(raw[name]), tensor, where)
        return sample


def fit(value: Array, tensor: Tensor, where: str) -> Array:
    """`value` as exactly the tensor's dtype and shape (a missing leading axis of 1 is added), or a CalibrationError."""
    shape = tensor.shape
    if value.shape != shape:
        if shape[:1] != (1,) or value.shape != shape[1:]:
            wanted = _shape(shape[1:]) + " or " + _shape(shape) if shape[:1] == (1,) else _shape(shape)
            raise CalibrationError(f"{where} has shape {_shape(value.shape)}; the model takes {wanted}")
        value = value.reshape(shape)
    wanted_kinds = "fiub" if tensor.dtype == "float32" else "iub"
    if value.dtype.kind not in wanted_kinds:
        raise CalibrationError(f"{where} is {value.dtype}; the model takes {tensor.dtype}")
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        bad = int((~np.isfinite(value)).sum())
        raise CalibrationError(f"{where} holds NaN or infinity ({bad} of {value.size} values); remove or repair it")
    converted = np.asarray(value, dtype=tensor.dtype, order="C")  # ascontiguousarray would give a scalar an axis
    if value.dtype.kind != "f" and not np.array_equal(converted, value):
        raise CalibrationError(f"{where}: {value.dtype} values do not fit the model's {tensor.dtype}")
    return converted


def read_column(path: str | Path, name: str) -> Array:
    """One whole array of an `.npz` by key (labels, say). Raises CalibrationError."""
    member = _npz_members(Path(path)).get(name)
    if member is None:
        raise CalibrationError(_missing(str(path), name, list(_npz_members(Path(path))), "array"))
    column = _ArrayFile(Path(path), member, str(path))
    return np.stack(list(column)) if len(column) else np.zeros(column.shape, column.dtype)


# ---------------------------------------------------------------------------------------------- files
class _Column(Protocol):
    """The samples of one input, read one after the other."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Array]: ...


@dataclass
class _ArrayFile:
    """One array with a leading sample axis in a `.npy` file, or in member `member` of a `.npz`."""

    path: Path
    member: str | None
    where: str

    def __post_init__(self) -> None:
        with self._open() as stream:
            self.shape, fortran, self.dtype = _header(stream, self.where)
        if not self.shape:
            raise CalibrationError(f"{self.where} is a single number; the first axis should count samples")
        if fortran and len(self.shape) > 1:
            raise CalibrationError(f"{self.where} is in Fortran order; save it with numpy.ascontiguousarray")

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[Array]:
        size = math.prod(self.shape[1:]) * self.dtype.itemsize
        with self._open() as stream:
            _header(stream, self.where)
            for _ in range(len(self)):
                yield _read(stream, size, self.dtype, self.shape[1:], self.where)

    def _open(self) -> IO[bytes]:
        try:
            return zipfile.ZipFile(self.path).open(self.member) if self.member else self.path.open("rb")
        except (OSError, zipfile.BadZipFile, RuntimeError) as error:
            raise CalibrationError(f"cannot read {self.where}: {error}") from None


def _read(stream: IO[bytes], size: int, dtype: np.dtype[Any], shape: tuple[int, ...], where: str) -> Array:
    try:
        data = stream.read(size)
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise CalibrationError(f"cannot read {where}: {error}") from None
    if len(data) != size:
        raise CalibrationError(f"{where} is truncated: its header promises more samples than the file holds")
    return np.frombuffer(data, dtype).reshape(shape)


def _header(stream: IO[bytes], where: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    try:
        version = np.lib.format.read_magic(stream)  # type: ignore[no-untyped-call]
        reader = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]  # fmt: skip
        shape, fortran, dtype = reader(stream)  # type: ignore[operator]
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise CalibrationError(f"{where} is not a NumPy array file: {error}") from None
    if dtype.hasobject or dtype.names is not None or dtype.kind not in "fiub":
        raise CalibrationError(f"{where} holds {dtype}, not numbers")
    return shape, fortran, dtype


def _npz_members(path: Path) -> dict[str, str]:
    """Array name to archive member."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {n.removesuffix(".npy"): n for n in archive.namelist() if n.endswith(".npy")}
    except FileNotFoundError:
        raise CalibrationError(f"{path} does not exist") from None
    except (OSError, zipfile.BadZipFile) as error:
        raise CalibrationError(f"{path} is not a readable .npz archive: {error}") from None


def _open(path: Path, inputs: Mapping[str, Tensor], what: str) -> dict[str, _Column]:
    if path.is_dir():
        return _open_folder(path, inputs, what)
    members = _npz_members(path)
    for name in inputs:
        if name not in members:
            raise CalibrationError(_missing(str(path), name, list(members), "array"))
    return {name: _ArrayFile(path, members[name], f"{path}: {name!r}") for name in inputs}


@dataclass
class _Files:
    """One sample a file."""

    paths: list[Path]

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[Array]:
        for path in self.paths:
            with path.open("rb") as stream:
                shape, fortran, dtype = _header(stream, str(path))
                value = _read(
                    stream, math.prod(shape) * dtype.itemsize, dtype, shape[:: -1 if fortran else 1], str(path)
                )
            yield value.T if fortran else value


def _open_folder(path: Path, inputs: Mapping[str, Tensor], what: str) -> dict[str, _Column]:
    if all((path / f"{name}.npy").is_file() for name in inputs):
        return {name: _ArrayFile(path / f"{name}.npy", None, str(path / f"{name}.npy")) for name in inputs}
    files = sorted(path.glob("*.npy"))
    if not files:
        raise CalibrationError(f"{path}: the folder holds no .npy file")
    if len(inputs) > 1:
        missing = next(name for name in inputs if not (path / f"{name}.npy").is_file())
        raise CalibrationError(
            f"{path}: {missing}.npy is missing; a model with {len(inputs)} inputs wants one .npy file an input, "
            "each with a leading sample axis"
        )
    return {next(iter(inputs)): _Files(files)}


def _missing(where: str, name: str, present: list[str], kind: str = "input") -> str:
    holds = ", ".join(map(repr, present)) if present else "nothing"
    return f"{where} has no {kind} {name!r}; it holds {holds}{did_you_mean(name, present)}"


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"


class _Spool:
    """Samples of fixed types in a temporary file that disappears with the process."""

    def __init__(self, inputs: Mapping[str, Tensor]) -> None:
        self.inputs, self._count = inputs, 0
        self._file = tempfile.TemporaryFile()

    def append(self, sample: Sample) -> None:
        for name in self.inputs:
            self._file.write(sample[name].tobytes())
        self._count += 1

    def __iter__(self) -> Iterator[Sample]:
        size = sum(t.bytes for t in self.inputs.values())
        for index in range(self._count):
            self._file.seek(index * size)
            yield {
                name: np.frombuffer(self._file.read(t.bytes), t.dtype).reshape(t.shape)
                for name, t in self.inputs.items()
            }
