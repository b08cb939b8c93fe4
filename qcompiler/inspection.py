"""`qcompiler inspect` and `qcompiler targets`: what an artefact or a model holds, as tables on stdout."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from qcompiler.artifact import Artifact
from qcompiler.report.collect import kernel_text
from qcompiler.report.html import millions, show_db, size
from qcompiler.sim.integer_program import Tensor


def _table(columns: Iterable[str], numeric: Sequence[str] = ()) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in columns:
        right = column in numeric
        table.add_column(column, justify="right" if right else "left", no_wrap=right, overflow="fold")
    return table


def _console() -> Console:
    console = Console(highlight=False, soft_wrap=False)
    # A pipe has no width: let every line be as long as its contents.
    return console if console.is_terminal else Console(highlight=False, width=240)


def print_artifact(artifact: Artifact, layers: bool = False, program: bool = False) -> None:
    """The summary of an artefact, or its layers, or its program."""
    if program:
        from qcompiler.sim.program_text import print_program

        print(print_program(artifact.program()), end="")
        return
    report, manifest, console = artifact.report(), artifact.manifest, _console()
    if layers:
        names = ("#", "operation", "kind", "output", "SQNR", "MACs", "kernel")
        table = _table(names, numeric=("#", "SQNR", "MACs"))
        for number, layer in enumerate(report["layers"], start=1):
            table.add_row(
                str(number), escape(layer["name"]), escape(layer["kind"]), "x".join(map(str, layer["shape"])),
                show_db(layer["sqnr_db"]), f"{layer['macs']:,}" if layer["macs"] else "", escape(kernel_text(layer)),
            )  # fmt: skip
        console.print(table)
        return
    summary, accuracy = report["summary"], report["accuracy"]
    rows = {
        "artefact": str(artifact.directory),
        "model": f"{report['about']['name']} ({report['about']['source']})",
        "target": manifest.target,
        **{f"input {t.name}": _type(t) for t in manifest.inputs},
        **{f"output {t.name}": _type(t) for t in manifest.outputs},
        "work": f"{millions(summary['macs'])} in {summary['operations']} operations, "
        f"{summary['float_operations'] or 'none'} left in float",
        "weights": f"{size(summary['weight_bytes'])} (as float32 {size(report['sizes']['float_weights'])})",
        "working memory": size(manifest.workspace_bytes),
        **_device_memory(report["sizes"]),
    }
    if accuracy:
        rows["SQNR"] = ", ".join(f"{n} {show_db(v)}" for n, v in accuracy["outputs_sqnr_db"].items())
        rows["agreement"] = f"{accuracy['agreement']:.4f} top-1 with float over {accuracy['output_samples']} samples"
        if accuracy["samples_equal_to_reference"]:
            rows["verified"] = f"equal to the reference on {accuracy['samples_equal_to_reference']} samples"
    rows["report"] = str(artifact.directory / "report.html")
    _print_pairs(rows)


def _device_memory(sizes: Mapping[str, int]) -> dict[str, str]:
    """Flash and RAM of a micro-controller's artefact."""
    if "ram" not in sizes:
        return {}
    parts = ((sizes.get(name), name) for name in ("arena", "inputs", "outputs", "stack"))
    rows = {"RAM": f"{size(sizes['ram'])} ({', '.join(f'{size(value)} {name}' for value, name in parts if value)})"}
    if "flash" in sizes:
        code, constants = size(sizes["code"]), size(sizes["constants"])
        rows["flash"] = f"{size(sizes['flash'])} ({code} code, {constants} weights and tables)"
    return rows


def print_model(path: Path, shapes: Mapping[str, Sequence[int]]) -> None:
    """Inputs, outputs and operators of a model after import and canonicalisation."""
    from qcompiler.frontend.onnx import import_onnx
    from qcompiler.passes.canonical import canonical_pipeline
    from qcompiler.passes.graph import read

    graph = read(canonical_pipeline().run(import_onnx(path, dict(shapes) or None)))
    parameters = sum(value.size for value in graph.constants.values())

    def kind(name: str) -> str:
        t = graph.types[name]
        return _type(Tensor(name, t.shape, t.dtype))

    _print_pairs(
        {
            "model": str(path),
            **{f"input {n}": kind(n) for n in graph.inputs},
            **{f"output {n}": kind(n) for n in graph.outputs},
            "parameters": f"{parameters:,}",
            "quantised": "yes, with its own scales" if any(n.op == "quantize" for n in graph.nodes) else "no",
        }
    )
    table = _table(("operator", "count"), numeric=("count",))
    for op, count in sorted(Counter(n.op for n in graph.nodes).items(), key=lambda item: (-item[1], item[0])):
        table.add_row(op, str(count))
    print()
    _console().print(table)


def print_targets() -> None:
    """Every target and whether this machine can run it."""
    from qcompiler.targets import known_targets

    table = _table(("target", "runs here", "what it is"))
    for target in known_targets():
        table.add_row(target.name, "yes" if target.runs_here else "no", escape(target.description))
    _console().print(table)


def _print_pairs(rows: Mapping[str, str]) -> None:
    width = max(map(len, rows)) + 2
    for key, value in rows.items():
        print(f"{key:<{width}}{value}")


def _type(tensor: Tensor) -> str:
    quantised = "" if tensor.scale is None else f", scale {tensor.scale:.6g}, zero point {tensor.zero_point}"
    return f"{tensor.dtype} {'x'.join(map(str, tensor.shape)) or 'scalar'}{quantised}"
