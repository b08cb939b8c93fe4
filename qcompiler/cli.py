"""The command line. stdout carries results; stderr progress and errors. Everything heavy is imported on use.

Exit codes: 0 done; 1 the input or the model is at fault; 2 usage; 3 an accuracy gate failed.
"""

from __future__ import annotations

import re
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import qcompiler
from qcompiler.quick_imports import quick_imports
from qcompiler.sim.errors import QCompilerError

if TYPE_CHECKING:
    from qcompiler.pipeline import Options

app = typer.Typer(
    name="qcompiler",
    help="Compile trained neural networks to integer-only libraries that stand alone.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

ModelPath = Annotated[Path, typer.Argument(metavar="MODEL", help="An ONNX model: float, QDQ or QOperator.")]
Calibration = Annotated[
    Path | None,
    typer.Option(
        metavar="DATA",
        help="Samples: an .npz keyed by input name with a leading sample axis, or a folder of .npy files. "
        "A model that is already quantised needs none.",
    ),
]
Shapes = Annotated[
    list[str] | None,
    typer.Option("--shape", metavar="NAME=1x3x224x224", help="Shape of an input that the model leaves open; repeat."),
]
Observer = Annotated[
    str | None,
    typer.Option(help="How calibration finds ranges: min_max, moving_average, percentile, entropy or mse."),
]
Passes = Annotated[
    str | None,
    typer.Option(metavar="TEXT", help="Passes that replace canonicalisation: name,name{option=value},..."),
]
DumpIR = Annotated[Path | None, typer.Option(metavar="DIR", help="Write the IR before and after each pass here.")]
TimePasses = Annotated[bool, typer.Option("--time-passes", help="Say on stderr how long each pass took.")]
Explain = Annotated[bool, typer.Option("--explain", help="Say on stderr which rewrites declined, and why.")]
WeightBits = Annotated[
    int | None,
    typer.Option(
        min=2, max=8, help="Of matrix work but depthwise, to see what fewer cost; an accelerator has its own."
    ),
]
ActivationBits = Annotated[
    int | None, typer.Option(min=4, max=8, help="Likewise of the tensors that such matrix work reads.")
]
Threads = Annotated[int, typer.Option(min=1, help="Threads of one inference.")]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"qcompiler {qcompiler.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def compile(  # noqa: A001
    model: ModelPath,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="The artefact's directory.")],
    target: Annotated[str, typer.Option(help="What to compile for; `qcompiler targets` lists them.")] = "x86",
    calibration: Calibration = None,
    shape: Shapes = None,
    observer: Observer = None,
    rounding: Annotated[
        str | None,
        typer.Option(help="Of requantisation: exact_half_up, f32_half_even, q31_single or q31_double."),
    ] = None,
    weight_bits: WeightBits = None,
    activation_bits: ActivationBits = None,
    name: Annotated[str | None, typer.Option(help="Prefix of the C symbols (default: model).")] = None,
    passes: Passes = None,
    dump_ir: DumpIR = None,
    time_passes: TimePasses = False,
    explain: Explain = False,
    min_sqnr: Annotated[
        float | None,
        typer.Option(metavar="DB", help="Exit with 3 when the first output's SQNR against float is lower."),
    ] = None,
    min_agreement: Annotated[
        float | None,
        typer.Option(
            metavar="FRACTION", min=0, max=1,
            help="Exit with 3 when the top-1 result agrees with float on a smaller fraction of the samples.",
        ),
    ] = None,
    host_fallback: Annotated[
        bool,
        typer.Option(
            "--host-fallback",
            help="For an accelerator: its host runs float operations that lie before or behind all integer work.",
        ),
    ] = False,
    flash_limit: Annotated[
        str | None,
        typer.Option(metavar="BYTES", help="Of a micro-controller: refuse a model that needs more, e.g. 256KiB."),
    ] = None,
    ram_limit: Annotated[
        str | None, typer.Option(metavar="BYTES", help="Likewise: arena, inputs, outputs and stack.")
    ] = None,
    tune: Annotated[
        bool,
        typer.Option("--tune", help="Choose tiles by measuring on this machine; what is found is remembered."),
    ] = False,
    tune_seconds: Annotated[
        float, typer.Option(metavar="SECONDS", min=0, help="How long --tune may measure.")
    ] = 60,
) -> None:  # fmt: skip
    """Compile MODEL into a directory that stands alone: library, C header and report.

    \b
    Examples:
      qcompiler compile kws.onnx --calibration samples.npz -o out/
      qcompiler compile net.onnx --target x86:avx2 --calibration images/ --shape image=1x3x224x224 -o out/
      qcompiler compile net.qdq.onnx --rounding f32_half_even -o out/
      qcompiler compile net.onnx --calibration samples.npz --min-sqnr 25 --min-agreement 0.99 -o out/
      qcompiler compile kws.onnx --calibration samples.npz --target cortex-m4 --ram-limit 64KiB -o out/
      qcompiler compile kws.onnx --calibration samples.npz --weight-bits 4 -o out/
      qcompiler compile net.onnx --calibration samples.npz --tune --tune-seconds 120 -o out/
    """
    with quick_imports(freeze=True):
        from qcompiler.pipeline import compile_model
        from qcompiler.progress import for_stderr
        from qcompiler.targets import Limits

    options = _options(
        shapes=_shapes(shape), observer=observer, rounding=rounding, name=name, passes=passes, dump_ir=dump_ir,
        time_passes=time_passes, explain=explain, min_sqnr=min_sqnr, min_agreement=min_agreement,
        host_fallback=host_fallback,
        limits=Limits(_bytes(flash_limit, "--flash-limit"), _bytes(ram_limit, "--ram-limit")),
        tune=tune_seconds if tune else None, weight_bits=weight_bits, activation_bits=activation_bits,
    )  # fmt: skip
    artifact = compile_model(model, target, calibration, output, options, for_stderr())
    from qcompiler.inspection import print_artifact

    print_artifact(artifact)


@app.command()
def run(
    artifact: Annotated[Path, typer.Argument(metavar="DIR", help="A compiled artefact.")],
    input: Annotated[Path, typer.Option(metavar="DATA", help="Samples, as for `compile --calibration`.")],  # noqa: A002
    labels: Annotated[
        str | None, typer.Option(metavar="KEY", help="Array of the .npz with the right classes: print the accuracy.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE.npz", help="Write all outputs here.")
    ] = None,
    threads: Threads = 1,
    profile: Annotated[
        bool,
        typer.Option("--profile", help="Print each step's time, GMAC/s, share of the machine's peak, and bytes."),
    ] = False,
    by_time: Annotated[bool, typer.Option("--by-time", help="Of the profile: the slowest steps first.")] = False,
    profile_csv: Annotated[
        Path | None, typer.Option("--profile-csv", metavar="FILE.csv", help="Profile, and write it here as well.")
    ] = None,
) -> None:
    """Run a compiled artefact on data: outputs, accuracy and latency.

    \b
    Examples:
      qcompiler run out/ --input samples.npz
      qcompiler run out/ --input test.npz --labels labels --threads 2
      qcompiler run out/ --input samples.npz -o scores.npz
      qcompiler run out/ --input samples.npz --profile --by-time
    """
    from qcompiler.execution import run_samples

    run_samples(artifact, input, labels, output, threads, profile, by_time, profile_csv)


@app.command()
def quantize(
    model: ModelPath,
    calibration: Calibration,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE.onnx", help="The quantised model.")],
    shape: Shapes = None,
    observer: Observer = None,
    weight_bits: WeightBits = None,
    activation_bits: ActivationBits = None,
    passes: Passes = None,
    dump_ir: DumpIR = None,
    time_passes: TimePasses = False,
    explain: Explain = False,
) -> None:
    """Quantise MODEL and write it as ONNX with QuantizeLinear and DequantizeLinear, for any other runtime.

    \b
    Examples:
      qcompiler quantize net.onnx --calibration samples.npz -o net.qdq.onnx
      qcompiler quantize net.onnx --calibration samples.npz --observer entropy -o net.qdq.onnx
    """
    with quick_imports(freeze=True):
        from qcompiler.pipeline import quantise_to_onnx
        from qcompiler.progress import for_stderr

    options = _options(
        shapes=_shapes(shape), observer=observer, passes=passes, dump_ir=dump_ir,
        time_passes=time_passes, explain=explain, weight_bits=weight_bits, activation_bits=activation_bits,
    )  # fmt: skip
    quantise_to_onnx(model, calibration, output, options, for_stderr())
    typer.echo(f"wrote {output}")


@app.command()
def inspect(
    path: Annotated[Path, typer.Argument(metavar="DIR|MODEL", help="A compiled artefact, or an ONNX model.")],
    layers: Annotated[bool, typer.Option("--layers", help="Of an artefact: one line an operation.")] = False,
    program: Annotated[bool, typer.Option("--program", help="Of an artefact: the integer program as text.")] = False,
    shape: Shapes = None,
) -> None:
    """Show what an artefact or a model holds.

    \b
    Examples:
      qcompiler inspect out/
      qcompiler inspect out/ --layers
      qcompiler inspect out/ --program | less
      qcompiler inspect net.onnx
    """
    from qcompiler import inspection

    if path.is_file():
        inspection.print_model(path, _shapes(shape))
    else:
        inspection.print_artifact(qcompiler.open_artifact(path), layers=layers, program=program)


@app.command()
def targets() -> None:
    """List what --target may be, and which of them this machine can run.

    \b
    Example:
      qcompiler targets
    """
    from qcompiler.inspection import print_targets

    print_targets()


@app.command()
def simulate(
    artifact: Annotated[Path, typer.Argument(metavar="DIR", help="An artefact compiled for --target npu:...")],
    input: Annotated[  # noqa: A002
        Path | None, typer.Option(metavar="DATA", help="Run these samples, each compared with the reference.")
    ] = None,
    trace: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write every instruction as a Perfetto trace.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option("--report", metavar="FILE.html", help="Write the page with plots here.")
    ] = None,
    machine: Annotated[
        str | None,
        typer.Option(help="Time the program with other memories or clock: a preset or a .yaml with the same array."),
    ] = None,
) -> None:
    """Say what a compiled program costs on its accelerator: cycles, traffic and energy, by layer and cause.

    \b
    Examples:
      qcompiler simulate out/
      qcompiler simulate out/ --input samples.npz
      qcompiler simulate out/ --trace run.perfetto --report run.html
    """
    from qcompiler.simulation import simulate_artifact

    simulate_artifact(artifact, input, trace, report, machine)


@app.command()
def explore(
    models: Annotated[
        list[Path] | None,
        typer.Argument(metavar="MODEL...", help="ONNX models or artefacts; none where the space gives their paths."),
    ] = None,
    space: Annotated[
        Path | None, typer.Option(metavar="FILE.yaml", help="Which fields of a machine vary: docs/explore.md.")
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", metavar="DIR", help="Where results go.")] = None,
    objective: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,...",
            help="latency, energy, power, area, edp, traffic; with data sqnr, accuracy; default: the space's.",
        ),
    ] = None,
    constraint: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help='A limit such as "area_mm2 < 2", beside the space\'s; repeat.'),
    ] = None,
    sampler: Annotated[
        str | None,
        typer.Option(help="exhaustive (default up to 20,000 points), random, tpe or nsga2 (default beyond)."),
    ] = None,
    trials: Annotated[
        int | None, typer.Option(min=1, help="Different machines that a sampler tries (default 1000).")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of samplers: the same seed gives the same points.")] = 0,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes (default: one a core); the result does not depend on it.")
    ] = None,
    cluster: Annotated[
        str | None, typer.Option(metavar="tcp://HOST:PORT", help="Evaluate on this Dask cluster instead.")
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(metavar="URL", help="File or database of what was evaluated (default: DIR.journal until done)."),
    ] = None,
    calibration: Calibration = None,
    evaluation: Annotated[
        Path | None,
        typer.Option(
            metavar="DATA", help="Samples held out, to measure SQNR and accuracy on (default: --calibration)."
        ),
    ] = None,
    labels: Annotated[
        str | None, typer.Option(metavar="KEY", help="Array of their .npz with the right classes, as for `run`.")
    ] = None,
    shape: Shapes = None,
    host_fallback: Annotated[
        bool, typer.Option("--host-fallback", help="As for compile: the host runs float operations at the ends.")
    ] = False,
    simulate_front: Annotated[
        bool, typer.Option("--simulate/--no-simulate", help="Run the front in the event simulator, too.")
    ] = True,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON Schema of a space's file, and exit.")
    ] = False,
) -> None:
    """Search a space of machines for MODELs: a Pareto front, simulated, as a page, as a table and as machines' files.

    A run that was stopped goes on where it was when the same command is given again.

    \b
    Examples:
      qcompiler explore kws.onnx --space space.yaml -o front/
      qcompiler explore kws.onnx vww.onnx --space space.yaml --objective latency,area --constraint "area < 2" -o out/
      qcompiler explore kws.onnx --space big.yaml --sampler nsga2 --trials 2000 --cluster tcp://10.0.0.1:8786 -o out/
      qcompiler explore kws.onnx --space bits.yaml --calibration samples.npz --evaluation test.npz --labels labels
        --objective latency,energy,accuracy --constraint "accuracy > 0.9" -o out/
      qcompiler explore --schema > space.schema.json
    """
    from qcompiler import exploration

    if schema:
        exploration.print_schema()
        return
    for option, value in (("--space", space), ("--output", output)):
        if value is None:
            raise typer.BadParameter("is needed", param_hint=option)
    from qcompiler.exploration.api import explore as run
    from qcompiler.progress import for_stderr

    assert space is not None and output is not None
    found = run(
        models or [], space=space, output=output, objectives=_words(objective), constraints=constraint or [],
        sampler=sampler, trials=trials, seed=seed, workers=workers or exploration.cores(), cluster=cluster,
        storage=storage, calibration=calibration, evaluation=evaluation, labels=labels, shapes=_shapes(shape),
        host_fallback=host_fallback, simulate=simulate_front, progress=for_stderr(),
    )  # fmt: skip
    exploration.print_result(found, output)


hardware = typer.Typer(help="Machines of the simulated accelerator: show, check, schema.", no_args_is_help=True)
app.add_typer(hardware, name="hardware")


@hardware.command("show")
def hardware_show(
    name: Annotated[str, typer.Argument(metavar="MACHINE", help="A preset, or a .yaml file.")],
) -> None:
    """Print a machine as YAML, with its peak, area and leakage.

    \b
    Example:
      qcompiler hardware show edge-16x16 > my_machine.yaml
    """
    from qcompiler.machines import show

    show(name)


@hardware.command("check")
def hardware_check(path: Annotated[Path, typer.Argument(metavar="FILE.yaml", help="A machine's file.")]) -> None:
    """Say whether a machine's file is right, and what is wrong with it.

    \b
    Example:
      qcompiler hardware check my_machine.yaml
    """
    from qcompiler.machines import check

    check(path)


@hardware.command("schema")
def hardware_schema() -> None:
    """Print the JSON Schema of a machine's file, for editors.

    \b
    Example:
      qcompiler hardware schema > machine.schema.json
    """
    from qcompiler.machines import schema

    schema()


@app.command()
def demo(
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="DIR", help="Where the compiled example goes.")
    ] = Path("qcompiler-demo"),
    target: Annotated[str, typer.Option(help="What to compile for.")] = "x86",
    threads: Threads = 1,
) -> None:
    """Compile the bundled digit classifier for this machine and run it on its test images.

    \b
    Examples:
      qcompiler demo
      qcompiler demo --target x86:avx2 -o /tmp/digits
    """
    from qcompiler.demo import run_demo
    from qcompiler.progress import for_stderr

    run_demo(output, target, threads, for_stderr())


def _options(**given: Any) -> Options:
    """Options with the defaults of the pipeline where the user said nothing."""
    from qcompiler.pipeline import Options

    return Options(**{key: value for key, value in given.items() if value is not None})


def _words(text: str | None) -> list[str]:
    return [word.strip() for word in (text or "").split(",") if word.strip()]


def _shapes(texts: list[str] | None) -> dict[str, tuple[int, ...]]:
    shapes = {}
    for text in texts or []:
        name, equals, sizes = text.rpartition("=")
        if not equals or not name or not all(part.isdigit() and int(part) > 0 for part in sizes.split("x")):
            raise typer.BadParameter(f"{text!r} should read name=1x3x224x224", param_hint="--shape")
        shapes[name] = tuple(map(int, sizes.split("x")))
    return shapes


def _bytes(text: str | None, option: str) -> int | None:
    """A number of bytes: 65536, 64KiB, 1MiB."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d+) *(?:([KM])i?B?)?", text, re.IGNORECASE)
    if found is None:
        raise typer.BadParameter(f"{text!r} should be a number of bytes: 65536, 64KiB or 1MiB", param_hint=option)
    return int(found[1]) * {"": 1, "K": 1024, "M": 1024 * 1024}[(found[2] or "").upper()]


def _terminate(*_: Any) -> None:
    raise KeyboardInterrupt  # unwinds, so that nothing half-written is left behind


def main() -> None:
    """Entry point: user mistakes become one message and an exit code."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        app()
    except QCompilerError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
