"""From a model to an artefact: import, canonicalise, calibrate, quantise, integerise, lower, measure, package."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import qcompiler
from qcompiler.accuracy import Values, output_accuracy, within_budget
from qcompiler.artifact import MANIFEST, PROGRAM, Artifact, Files, Manifest, describe_files, file_sha256, is_artifact
from qcompiler.data import Samples, Source
from qcompiler.frontend.onnx import import_onnx
from qcompiler.output import new_directory, new_file
from qcompiler.passes import base
from qcompiler.passes.calibrate import DEFAULT_OBSERVER, FloatRuns, calibrate
from qcompiler.passes.canonical import canonical_pipeline
from qcompiler.passes.export_onnx import export
from qcompiler.passes.graph import Graph, read
from qcompiler.passes.integerize import integerize
from qcompiler.passes.observers import OBSERVERS
from qcompiler.passes.quantize import Quantize
from qcompiler.passes.sqnr import sqnr_of_runs
from qcompiler.progress import Progress
from qcompiler.report.collect import Accuracy, collect, to_csv, to_json
from qcompiler.report.html import render
from qcompiler.sim import program_text, reference
from qcompiler.sim.errors import (
    AccuracyGateError,
    CalibrationError,
    ModelError,
    QCompilerError,
    TargetError,
    did_you_mean,
)
from qcompiler.sim.integer_program import FloatOp, IntegerProgram, Tensor
from qcompiler.sim.numerics import ROUNDINGS, Rounding
from qcompiler.sim.widths import FULL, Widths, misfit
from qcompiler.targets import Backend, Built, Limits, resolve

if TYPE_CHECKING:
    import onnx
    import tvm

# The reference interpreter does some 1 GMAC/s: a few seconds, more only where a single sample takes longer.
LAYER_MACS, LAYER_SAMPLES = 2e9, 8
OUTPUT_SAMPLES = 100


@dataclass(frozen=True)
class Options:
    """How to compile.

    shapes: of inputs whose shape the model leaves open. observer: how calibration finds ranges. rounding: of
    requantisation (`sim.numerics.Rounding`). passes: text pipeline that replaces canonicalisation. name: prefix of the
    C symbols. dump_ir: folder for the IR before and after each pass. time_passes, explain: report pass times, and
    rewrites that declined. min_sqnr (dB), min_agreement (0..1): gates on the first output.
    host_fallback: an accelerator's host runs float operations before and behind the integer work.
    limits: flash and RAM of a micro-controller; a model that needs more is refused.
    tune: seconds to spend on measuring tiles on this machine; None for the cost model's, which are always the same.
    weight_bits, activation_bits: of matrix work (`sim.widths`); None: what an accelerator has, 8 elsewhere.
    """

    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    observer: str = DEFAULT_OBSERVER
    rounding: Rounding = "exact_half_up"
    passes: str | None = None
    name: str = "model"
    dump_ir: Path | None = None
    time_passes: bool = False
    explain: bool = False
    min_sqnr: float | None = None
    min_agreement: float | None = None
    host_fallback: bool = False
    limits: Limits = field(default_factory=Limits)
    tune: float | None = None
    weight_bits: int | None = None
    activation_bits: int | None = None

    def __post_init__(self) -> None:
        _one_of("rounding", self.rounding, ROUNDINGS)
        _one_of("observer", self.observer, OBSERVERS)
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", self.name):
            raise OptionError(f"name {self.name!r} cannot begin C symbols; use letters, digits and _")
        self.widths(FULL)

    def canonicalisation(self) -> base.Pipeline:
        """The passes between import and calibration."""
        return canonical_pipeline() if self.passes is None else base.parse_pipeline(self.passes)

    def widths(self, otherwise: Widths) -> Widths:
        """The bits that were asked for, else those of `otherwise`."""
        asked = {n: v for n in ("weight_bits", "activation_bits") if (v := getattr(self, n)) is not None}
        try:
            return replace(otherwise, **asked)
        except ValueError as error:
            raise OptionError(str(error)) from None


class OptionError(QCompilerError):
    """An option with a value that does not exist."""

    exit_code = 2


def _one_of(option: str, value: str, known: Iterable[str]) -> None:
    if value not in known:
        raise OptionError(f"unknown {option} {value!r}; it is one of {', '.join(known)}{did_you_mean(value, known)}")


@dataclass(frozen=True)
class Quantised:
    """A model on its way: the canonical float graph, the quantised module, the samples it was calibrated on, and what
    the float model gave on them."""

    float_module: tvm.IRModule
    module: tvm.IRModule
    samples: Samples | None
    floats: FloatRuns | None = None

    @property
    def carried(self) -> bool:
        """Whether the model brought its scales along."""
        return self.module is self.float_module


def _widths_of(backend: Backend, options: Options) -> Widths:
    """Bits of matrix work: the accelerator's, or on a CPU what the options say. Raises TargetError."""
    if backend.widths is None:
        return options.widths(FULL)
    if options.widths(backend.widths) != backend.widths:
        raise TargetError(
            f"{backend.name} takes {backend.widths}; leave --weight-bits and --activation-bits out, or change "
            "matrix.weight_bits and matrix.activation_bits of the machine"
        )
    return backend.widths


def _check_widths(program: IntegerProgram, quantised: Quantised, widths: Widths) -> None:
    """A program that the operands' bits hold: what our own quantiser makes, and what a quantised model may not be."""
    reason = misfit(program, widths)
    if reason is None:
        return
    if not quantised.carried:
        raise RuntimeError(f"{reason}; this is a bug in qcompiler, please report it")
    raise ModelError(
        f"{reason}: the model carries its own scales, which were not made for {widths}; give the float model with "
        "--calibration"
    )


def compile_model(
    model: str | Path | onnx.ModelProto, target: str, calibration: Source | None, output: str | Path,
    options: Options, progress: Progress,
) -> Artifact:  # fmt: skip
    """Compile `model` for `target` into the directory `output`, which appears whole or not at all.

    Raises a QCompilerError for anything the user can mend; AccuracyGateError after the artefact was written.
    """
    backend, output = resolve(target, options.host_fallback, options.limits, options.tune), Path(output)
    options.canonicalisation()  # a typing error should not wait for the import
    widths = _widths_of(backend, options)
    with new_directory(output, is_artifact) as work:
        quantised = quantise_model(model, calibration, options, progress, widths)
        with progress.stage("integerise"):
            program = integerize(quantised.module, rounding=options.rounding, name=options.name)
        _check_widths(program, quantised, widths)
        graph = read(quantised.float_module)
        artifact, built = build(program, backend, work, options.name, progress)
        manifest = replace(artifact.manifest, build=_provenance(model, target, quantised, options, widths))
        if built.tuning is not None:
            manifest.build["tuning"] = dict(built.tuning)
        with progress.stage("measure accuracy"):
            accuracy = _measure(graph, program, backend, Artifact(work, manifest), quantised)
        report = collect(
            program, accuracy, built.kernels, manifest.build,
            _sizes(model, built, graph), built.steps, (backend.widths or FULL).weight_bits,
        )  # fmt: skip
        (work / "report.json").write_text(to_json(report), encoding="utf-8")
        (work / "layers.csv").write_text(to_csv(report), encoding="utf-8")
        (work / "report.html").write_text(render(report), encoding="utf-8")
        manifest = _manifest(program, backend, built, work, manifest.build, manifest.files)
        (work / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    _check_gates(accuracy, options, output)
    return Artifact(output, manifest)


def build(
    program: IntegerProgram, backend: Backend, work: Path, prefix: str, progress: Progress
) -> tuple[Artifact, Built]:
    """Lower a program into an existing directory; an artefact that runs, but says nothing of where it came from."""
    (work / PROGRAM).write_bytes(program_text.save(program))
    built = backend.build(program, work, prefix, progress)
    return Artifact(work, _manifest(program, backend, built, work, {}, {})), built


@dataclass(frozen=True)
class Prepared:
    """A model before it is quantised: the canonical graph, and samples to calibrate on. carried: it has scales."""

    module: tvm.IRModule
    samples: Samples | None
    carried: bool


def prepare(
    model: str | Path | onnx.ModelProto, calibration: Source | None, options: Options, progress: Progress, run: Passes
) -> Prepared:
    """Import and canonicalise. Raises CalibrationError for a float model without samples."""
    with progress.stage("import"):
        module = import_onnx(model, dict(options.shapes) or None)
    with progress.stage("canonicalise"):
        module = run(options.canonicalisation(), module)
    graph = read(module)
    samples = None
    if calibration is not None:
        samples = Samples(calibration, {n: Tensor(n, t.shape, t.dtype) for n, t in inputs_of(graph).items()})
    carried = any(node.op == "quantize" for node in graph.nodes)
    if not carried and samples is None:
        raise CalibrationError(
            "the model is float, and nothing says which ranges its tensors have; give --calibration: an .npz keyed by "
            f"input name ({', '.join(map(repr, graph.inputs))}) with a leading sample axis"
        )
    return Prepared(module, samples, carried)


def quantise(prepared: Prepared, options: Options, progress: Progress, run: Passes, widths: Widths) -> Quantised:
    """Calibrate and quantise. A model that already holds QuantizeLinear keeps its own scales."""
    module, samples = prepared.module, prepared.samples
    if prepared.carried or samples is None:
        return Quantised(module, module, samples)
    with progress.stage("calibrate"):
        tracked = progress.track(samples) if widths == FULL else samples  # else it goes through them twice
        floats = FloatRuns(OUTPUT_SAMPLES)
        ranges = calibrate(module, tracked, observer=options.observer, widths=widths, floats=floats)
    with progress.stage("quantise"):
        return Quantised(module, run(base.Pipeline((Quantize(ranges),)), module), samples, floats)


def quantise_model(
    model: str | Path | onnx.ModelProto, calibration: Source | None, options: Options, progress: Progress,
    widths: Widths = FULL,
) -> Quantised:  # fmt: skip
    """Import, canonicalise, calibrate and quantise. A model that already holds QuantizeLinear keeps its own scales."""
    run = Passes(options, progress)
    quantised = quantise(prepare(model, calibration, options, progress, run), options, progress, run, widths)
    run.report()
    return quantised


def quantise_to_onnx(
    model: str | Path | onnx.ModelProto, calibration: Source | None, output: str | Path,
    options: Options, progress: Progress,
) -> None:  # fmt: skip
    """Write the quantised model as ONNX with QuantizeLinear and DequantizeLinear to the file `output`."""
    with new_file(Path(output)) as work:
        widths = options.widths(FULL)
        quantised = quantise_model(model, calibration, options, progress, widths)
        if quantised.carried and widths != FULL:
            raise OptionError(
                "the model carries its own scales, which --weight-bits and --activation-bits cannot change"
            )
        with progress.stage("export"):
            work.write_bytes(export(quantised.module).SerializeToString(deterministic=True))


def inputs_of(graph: Graph) -> dict[str, Any]:
    """The types of the model's inputs by name."""
    return {name: graph.types[name] for name in graph.inputs}


class Passes:
    """Runs pipelines with the instruments that the options ask for."""

    def __init__(self, options: Options, progress: Progress) -> None:
        self.progress = progress
        self.times = base.PassTimes() if options.time_passes else None
        self.explanations = base.Explanations() if options.explain else None
        dump = base.DumpIR(options.dump_ir) if options.dump_ir else None
        self.instruments = [i for i in (dump, self.times, self.explanations) if i is not None]

    def __call__(self, pipeline: base.Pipeline, module: tvm.IRModule) -> tvm.IRModule:
        return pipeline.run(module, self.instruments)

    def report(self) -> None:
        if self.times is not None:
            for name, seconds in self.times.seconds:
                self.progress.note(f"{seconds:9.3f} s  {name}")
        if self.explanations is not None:
            for note in self.explanations.notes:
                self.progress.note(str(note))


# ---------------------------------------------------------------------------------------- measuring
def _measure(
    graph: Graph, program: IntegerProgram, backend: Backend, artifact: Artifact, quantised: Quantised
) -> Accuracy | None:
    """Accuracy over the calibration samples; checks on the way that the library equals the reference."""
    if quantised.samples is None:
        return None
    execute = backend.executor(artifact)
    few = list(within_budget(program, quantised.samples, LAYER_MACS, LAYER_SAMPLES))
    # Float operations may round differently in library and reference: then there is nothing to hold equal.
    comparable = execute is not None and not any(isinstance(op, FloatOp) for op in program.operations)

    def runs() -> Iterator[tuple[Values, Values]]:
        for sample in few:
            values = reference.execute(program, sample, keep=True)
            if execute is not None and comparable:
                _check_equal(program, values, execute(sample))
            yield sample, values

    floats = quantised.floats or FloatRuns(0)
    tensors = sqnr_of_runs(graph, program, runs(), floats.executor)
    if execute is not None:
        many = within_budget(program, quantised.samples, backend.macs_to_measure, OUTPUT_SAMPLES)
        outputs = output_accuracy(graph, program, execute, many, floats.outputs)
    else:
        outputs = output_accuracy(
            graph, program, lambda sample: reference.execute(program, sample), few, floats.outputs
        )
    verified = len(few) if comparable else 0
    return Accuracy(tensors, len(few), outputs.sqnr_db, outputs.samples, outputs.agreement, verified)


def _check_equal(program: IntegerProgram, wanted: Values, got: Values) -> None:
    for name in program.outputs:
        if not np.array_equal(wanted[name], got[name]):
            different = int(np.sum(wanted[name] != got[name]))
            raise RuntimeError(
                f"the compiled library differs from the reference interpreter in {different} of "
                f"{wanted[name].size} elements of output {name!r}; this is a bug in qcompiler, please report it"
            )


def _check_gates(accuracy: Accuracy | None, options: Options, output: Path) -> None:
    if options.min_sqnr is None and options.min_agreement is None:
        return
    if accuracy is None:
        raise CalibrationError("--min-sqnr and --min-agreement need --calibration: samples to measure on")
    name, sqnr = next(iter(accuracy.outputs.items()))
    look = f"{output / 'report.html'} shows which layer loses it"
    if options.min_sqnr is not None and not sqnr >= options.min_sqnr:
        raise AccuracyGateError(
            f"output {name!r} has an SQNR of {sqnr:.2f} dB, below the demanded {options.min_sqnr:g} dB; {look}"
        )
    if options.min_agreement is not None and not accuracy.agreement >= options.min_agreement:
        raise AccuracyGateError(
            f"output {name!r} agrees with the float model on {accuracy.agreement:.4f} of the samples, below the "
            f"demanded {options.min_agreement:g}; {look}"
        )


# ---------------------------------------------------------------------------------------- packaging
def _manifest(
    program: IntegerProgram, backend: Backend, built: Built, directory: Path, build: dict[str, Any], known: Files
) -> Manifest:
    return Manifest(
        name=program.name,
        target=backend.name,
        architecture=backend.architecture,
        inputs=tuple(program.tensors[n] for n in program.inputs),
        outputs=tuple(program.tensors[n] for n in program.outputs),
        workspace_bytes=built.workspace_bytes,
        program_sha256=program_text.digest(program),
        build=build,
        files=describe_files(directory, known),
    )


def _provenance(model: Any, target: str, quantised: Quantised, options: Options, widths: Widths) -> dict[str, Any]:
    """How it was made, for manifest and report: nothing that depends on when or where."""
    named = isinstance(model, (str, Path))
    source = Path(model).name if named else "a model in memory"
    return {
        "name": Path(model).stem if named else options.name,
        "source": source,
        "target": target,
        "model_sha256": file_sha256(Path(model)) if named else hashlib.sha256(model.SerializeToString()).hexdigest(),
        "calibration_sha256": quantised.samples.sha256() if quantised.samples else None,
        "calibration_samples": len(quantised.samples) if quantised.samples else None,
        "observer": None if quantised.carried else options.observer,
        "weight_bits": widths.weight_bits,
        "activation_bits": widths.activation_bits,
        "rounding": options.rounding,
        "passes": options.passes,
        "shapes": {name: "x".join(map(str, shape)) for name, shape in options.shapes.items()},
        "versions": {
            "qcompiler": qcompiler.__version__,
            **{p: metadata.version(p) for p in ("apache-tvm", "onnx", "onnxruntime", "numpy")},
        },
    }


def _sizes(model: Any, built: Built, graph: Graph) -> dict[str, int]:
    model_bytes = Path(model).stat().st_size if isinstance(model, (str, Path)) else model.ByteSize()
    parameters = sum(value.size for value in graph.constants.values())
    return {"model": model_bytes, "float_weights": 4 * parameters, **built.sizes}
