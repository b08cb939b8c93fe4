"""The Python side of the command line: `qcompiler.compile` and `qcompiler.quantize`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qcompiler.artifact import Artifact
from qcompiler.data import Source
from qcompiler.pipeline import Options, compile_model, quantise_to_onnx
from qcompiler.progress import Progress
from qcompiler.sim.numerics import Rounding
from qcompiler.targets import Limits

if TYPE_CHECKING:
    import onnx


def compile(  # noqa: A001 - the word users look for; always written qcompiler.compile
    model: str | Path | onnx.ModelProto,
    *,
    output: str | Path,
    target: str = "x86",
    calibration: Source | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    observer: str = Options.observer,
    rounding: Rounding = Options.rounding,
    passes: str | None = None,
    name: str = Options.name,
    dump_ir: str | Path | None = None,
    time_passes: bool = False,
    explain: bool = False,
    min_sqnr: float | None = None,
    min_agreement: float | None = None,
    host_fallback: bool = False,
    flash_limit: int | None = None,
    ram_limit: int | None = None,
    tune: float | None = None,
    weight_bits: int | None = None,
    activation_bits: int | None = None,
    progress: Progress | None = None,
) -> Artifact:
    """Compile an ONNX model into the directory `output`, which appears whole or not at all.

    model: a path or an onnx.ModelProto, float or quantised (QDQ, QOperator). calibration: an `.npz` keyed by input name
    with a leading sample axis, a folder of `.npy`, or an iterable of dicts of arrays; a quantised model needs none.
    shapes: of inputs that the model leaves open, e.g. {"image": (1, 3, 224, 224)}. flash_limit, ram_limit:
    bytes that a micro-controller has; a model that needs more is refused. tune: seconds to spend on measuring
    tiles on this machine. weight_bits (2 to 8), activation_bits (4 to 8): of matrix work; an accelerator has its own.
    The rest: `pipeline.Options`.
    Raises QCompilerError for anything wrong with the arguments, saying what to do.
    """
    options = Options(
        shapes=shapes or {}, observer=observer, rounding=rounding, passes=passes, name=name,
        dump_ir=Path(dump_ir) if dump_ir is not None else None, time_passes=time_passes, explain=explain,
        min_sqnr=min_sqnr, min_agreement=min_agreement, host_fallback=host_fallback,
        limits=Limits(flash_limit, ram_limit), tune=tune, weight_bits=weight_bits, activation_bits=activation_bits,
    )  # fmt: skip
    return compile_model(model, target, calibration, output, options, progress or Progress())


def quantize(
    model: str | Path | onnx.ModelProto,
    *,
    output: str | Path,
    calibration: Source,
    shapes: Mapping[str, Sequence[int]] | None = None,
    observer: str = Options.observer,
    weight_bits: int | None = None,
    activation_bits: int | None = None,
    progress: Progress | None = None,
) -> None:
    """Write the quantised model as ONNX with QuantizeLinear and DequantizeLinear nodes to the file `output`.

    Arguments and errors as in `compile`.
    """
    options = Options(shapes=shapes or {}, observer=observer, weight_bits=weight_bits, activation_bits=activation_bits)
    quantise_to_onnx(model, calibration, output, options, progress or Progress())
