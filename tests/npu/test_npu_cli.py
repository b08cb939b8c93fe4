"""The accelerator from the command line: compile, simulate, trace, report, hardware; and what users get wrong."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import yaml
from networks import network
from typer.testing import CliRunner, Result

import qcompiler
from qcompiler import demo
from qcompiler.cli import app
from qcompiler.codegen.npu.lower import compile_npu
from qcompiler.report.npu import render
from qcompiler.sim import hardware
from qcompiler.sim.errors import ArtifactError, HardwareError, TargetError
from qcompiler.sim.integer_program import Conv2d, Dense
from qcompiler.simulation import CAUSES, GROUPS, measure, to_csv

DEMO = Path(demo.__file__).parent
EDGE = hardware.load("edge-16x16")


def command(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled classifier compiled for edge-16x16."""
    out = tmp_path_factory.mktemp("npu") / "out"
    calibration = DEMO / "calibration.npz"
    done = command(
        "compile", DEMO / "digits.onnx", "--target", "npu:edge-16x16", "--calibration", calibration, "-o", out
    )
    assert done.exit_code == 0, done.output
    return out


def test_compile_leaves_the_program_its_machine_and_a_simulated_run(digits: Path) -> None:
    files = {p.name for p in digits.iterdir()}
    assert {"model.npu", "machine.yaml", "simulation.html", "simulation.csv", "report.html", "manifest.json"} <= files
    assert "model.so" not in files
    assert hardware.load(digits / "machine.yaml") == EDGE
    manifest = json.loads((digits / "manifest.json").read_text())
    assert manifest["target"] == "npu:edge-16x16"
    rows = list(csv.DictReader((digits / "simulation.csv").open()))
    layers = list(csv.DictReader((digits / "layers.csv").open()))
    assert {row["layer"] for row in rows} <= {row["name"] for row in layers}


def test_simulate_runs_samples_and_compares_them(digits: Path) -> None:
    done = command("simulate", digits, "--input", DEMO / "test.npz")
    assert done.exit_code == 0, done.output
    count = len(next(iter(np.load(DEMO / "test.npz").values())))
    assert f"verified          {count} samples equal to the reference, bit for bit" in done.stdout
    for word in ("machine", "cycles", "utilisation", "energy", "power", "area", "efficiency"):
        assert f"\n{word}" in done.stdout


def test_simulate_with_another_memory(digits: Path, tmp_path: Path) -> None:
    content = EDGE.model_dump(mode="json", exclude_none=True)
    content["name"], content["main_memory"]["latency_cycles"] = "far", 500
    (tmp_path / "far.yaml").write_text(yaml.safe_dump(content))
    near, far = command("simulate", digits), command("simulate", digits, "--machine", tmp_path / "far.yaml")

    def cycles(done: Result) -> int:
        line = next(x for x in done.stdout.splitlines() if x.startswith("cycles"))
        return int(line.split()[1].replace(",", ""))

    assert cycles(far) > cycles(near) + 400


def test_trace_and_report_files(digits: Path, tmp_path: Path) -> None:
    trace, page = tmp_path / "run.perfetto", tmp_path / "run.html"
    done = command("simulate", digits, "--trace", trace, "--report", page)
    assert done.exit_code == 0, done.output
    from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import Trace

    packets = Trace.FromString(trace.read_bytes()).packet
    assert sum(p.HasField("track_event") for p in packets) > 100
    assert "<h2>Roofline</h2>" in page.read_text()


# --------------------------------------------------------------------------------------- the figures
@pytest.fixture(scope="module")
def result():  # type: ignore[no-untyped-def]
    return measure(compile_npu(network("kws")[0], EDGE))


def test_layers_add_up_to_the_whole(result) -> None:  # type: ignore[no-untyped-def]
    assert sum(y.total for y in result.layers) == result.cycles
    assert result.macs == 4 * (125 * 64 * 64 + 125 * 64 * 9) + 125 * 64 * 40 + 64 * 12
    whole = {g: result.energy.groups[g].value for g in GROUPS}
    for group in GROUPS:
        assert sum(y.energy[group] for y in result.layers) == pytest.approx(whole[group])
    assert result.millijoules.value == pytest.approx(sum(whole.values()) * 1e-9)
    watts = result.millijoules.value * 1e-3 / (result.milliseconds * 1e-3)
    assert result.milliwatts.value == pytest.approx(1e3 * watts)
    assert result.tops_per_watt.value == pytest.approx(2 * result.macs / (result.milliseconds * 1e-3) / watts * 1e-12)
    for q in (result.millijoules, result.milliwatts, result.square_millimetres, result.tops_per_watt):
        assert 0 < q.low <= q.value <= q.high


def test_no_layer_beats_its_roofline_by_hiding_behind_others(result) -> None:  # type: ignore[no-untyped-def]
    assert sum(y.roofline for y in result.layers) <= result.cycles * 1.05
    convolutions = [y for y in result.layers if y.macs == 512_000]
    assert all(y.roofline == 2000 and y.utilisation <= 1 for y in convolutions)


def test_the_table_for_scripts(result) -> None:  # type: ignore[no-untyped-def]
    rows = list(csv.DictReader(to_csv(result).splitlines()))
    assert [r["layer"] for r in rows] == [y.name for y in result.layers]
    for row in rows:
        assert int(row["cycles"]) == sum(int(row[f"{c}_cycles"]) for c in CAUSES)


BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.skipif(BROWSER is None, reason="needs chromium (.ci/run installs it)")
@pytest.mark.parametrize("window", ["1280,900", "380,800"])
def test_a_browser_draws_it_without_a_console_message(result, tmp_path: Path, window: str) -> None:  # type: ignore[no-untyped-def]
    script = """<script>
        const count = s => document.querySelectorAll(s).length;
        const seen = [...document.querySelectorAll("svg .part, svg .point, svg .busy")]
            .filter(e => e.getBoundingClientRect().width > 0 && getComputedStyle(e).fill !== "none").length;
        const wide = document.documentElement.scrollWidth > innerWidth;
        document.title = `cycles ${count("#cycles .part")} energy ${count("#energy .part")} roofline ` +
            `${count("#roofline .point")} timeline ${count("#timeline .busy") > 500} seen ${seen > 800} wide ${wide}`;
        </script></body>"""
    (tmp_path / "simulation.html").write_text(render(result).replace("</body>", script), encoding="utf-8")
    done = subprocess.run(
        [
            str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
            "--disable-background-networking", "--disable-dev-shm-usage", "--enable-logging=stderr", "--log-level=0",
            f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={window}", "--dump-dom",
            (tmp_path / "simulation.html").as_uri(),
        ],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    legends = len(CAUSES), len(GROUPS)
    cycles = sum(1 for y in result.layers for n in y.cycles.values() if n) + legends[0]
    energy = sum(1 for y in result.layers for n in y.energy.values() if n > 0) + legends[1]
    points = sum(1 for y in result.layers if y.macs and y.total and y.read_bytes + y.write_bytes)
    title = f"cycles {cycles} energy {energy} roofline {points} timeline true seen true wide false"
    assert f"<title>{title}</title>" in done.stdout, done.stdout[:600]
    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []


# ------------------------------------------------------------------------------------------ hardware
def test_hardware_show_prints_a_file_that_loads_again(tmp_path: Path) -> None:
    done = command("hardware", "show", "edge-16x16")
    (tmp_path / "again.yaml").write_text(done.stdout)
    assert hardware.load(tmp_path / "again.yaml") == EDGE
    assert done.stdout.startswith("# peak: 256 MACs a cycle, 0.256 TOPS at 500 MHz\n")


def test_hardware_check_and_schema(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(hardware.to_yaml(EDGE).replace("lanes: 16", "lanes: 0"))
    with pytest.raises(HardwareError) as caught:
        CliRunner().invoke(app, ["hardware", "check", str(path)], catch_exceptions=False)
    assert str(caught.value) == f"{path}: vector.lanes: is 0; want a whole number in 1..256"
    path.write_text(hardware.to_yaml(EDGE))
    assert command("hardware", "check", path).stdout.startswith(f"{path}: machine 'edge-16x16' is right\n")
    assert json.loads(command("hardware", "schema").stdout)["title"] == "Machine"


# ------------------------------------------------------------------------------------------ mistakes
def test_an_unknown_machine_suggests_the_nearest() -> None:
    with pytest.raises(HardwareError, match="unknown machine 'edge-16x17'; did you mean 'edge-16x16'"):
        qcompiler.compile(DEMO / "digits.onnx", target="npu:edge-16x17", output="unused")


def test_a_model_that_does_not_fit_leaves_nothing_behind(tmp_path: Path) -> None:
    content = EDGE.model_dump(mode="json", exclude_none=True)
    content["name"], content["activation_memory"] = "tiny", {"size_bytes": 256, "bytes_per_cycle": 32}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(TargetError, match=r"layer '.*' does not fit machine 'tiny': the smallest double-buffered tile"):
        qcompiler.compile(
            DEMO / "digits.onnx", target=f"npu:{tmp_path}/tiny.yaml", calibration=DEMO / "calibration.npz",
            output=tmp_path / "out",
        )  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_simulate_refuses_what_is_for_a_cpu(digits: Path, tmp_path: Path) -> None:
    manifest = json.loads((digits / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | {"target": "x86"}))
    with pytest.raises(ArtifactError) as caught:
        CliRunner().invoke(app, ["simulate", str(tmp_path)], catch_exceptions=False)
    assert str(caught.value) == (
        f"{tmp_path} was compiled for x86, which no simulator runs; compile with --target npu:edge-16x16 or another "
        "machine of `qcompiler targets`"
    )


def test_a_program_for_another_array_is_refused(digits: Path) -> None:
    with pytest.raises(TargetError) as caught:
        CliRunner().invoke(app, ["simulate", str(digits), "--machine", "micro-8x8"], catch_exceptions=False)
    assert str(caught.value) == (
        f"{digits} was compiled for 'edge-16x16' and cannot run on 'micro-8x8', which differs in more than memories "
        "and clock (copy: on machine 'micro-8x8' the fetch queue owns the constant memory); compile the model for it "
        "with --target npu:micro-8x8"
    )


def test_a_machine_with_narrow_operands(tmp_path: Path) -> None:
    """From its file to samples that equal the reference; the program packs its weights, and says so."""
    machine, out = tmp_path / "narrow.yaml", tmp_path / "out"
    text = hardware.to_yaml(EDGE).replace("weight_bits: 8", "weight_bits: 4").replace("edge-16x16", "narrow")
    machine.write_text(text.replace("activation_bits: 8", "activation_bits: 6"))
    assert "array: 4-bit weights, 6-bit activations" in command("hardware", "check", machine).stdout
    arguments = ("--calibration", DEMO / "calibration.npz", "--target", f"npu:{machine}", "-o", out)
    assert command("compile", DEMO / "digits.onnx", *arguments).exit_code == 0
    done = command("simulate", out, "--input", DEMO / "calibration.npz")
    assert "of 256 MACs a cycle of 4-bit weights, 6-bit activations" in done.stdout
    artifact = qcompiler.open_artifact(out)
    layers = {y["name"]: y["weight_bytes"] for y in artifact.report()["layers"]}
    for op in artifact.program().operations:
        if isinstance(op, (Conv2d, Dense)):
            bits = 8 if getattr(op, "depthwise", False) else 4
            assert layers[op.name] == op.weight.size * bits // 8 + op.bias.nbytes
    assert "samples equal to the reference, bit for bit" in done.stdout
    with pytest.raises(TargetError) as caught:
        CliRunner().invoke(app, ["simulate", str(out), "--machine", "edge-16x16"], catch_exceptions=False)
    assert str(caught.value) == (
        f"{out} was compiled for 'narrow' and cannot run on 'edge-16x16', which differs in more than memories and "
        "clock (matrix.weight_bits is 8, its weights have 4 bits); compile the model for it with --target "
        "npu:edge-16x16"
    )


def _float_tail(tmp_path: Path) -> tuple[Path, Path]:
    """A model whose last operation no integer rule covers, and its calibration data."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    weight = numpy_helper.from_array(rng.standard_normal((16, 4)).astype(np.float32), "w")
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("CumSum", ["h", "axis"], ["y"], "running")]
    axis = numpy_helper.from_array(np.array(1, dtype=np.int64), "axis")
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", [1, 16]), ("y", [1, 4]))]
    graph = helper.make_graph(nodes, "tail", ends[:1], ends[1:], [weight, axis])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), tmp_path / "tail.onnx")
    np.savez(tmp_path / "data.npz", x=rng.standard_normal((8, 1, 16)).astype(np.float32))
    return tmp_path / "tail.onnx", tmp_path / "data.npz"


def test_float_operations_are_refused_or_left_to_the_host(tmp_path: Path) -> None:
    model, data = _float_tail(tmp_path)
    with pytest.raises(TargetError, match=r"the accelerator cannot run 1 operations of 'model':\n  float cumsum"):
        qcompiler.compile(model, target="npu:edge-16x16", calibration=data, output=tmp_path / "out")
    arguments = ("--target", "npu:edge-16x16", "--calibration", data, "--host-fallback", "-o", tmp_path / "out")
    assert command("compile", model, *arguments).exit_code == 0
    done = command("simulate", tmp_path / "out", "--input", data)
    assert "verified          8 samples equal to the reference, bit for bit" in done.stdout


def test_the_same_from_python(digits: Path) -> None:
    result = qcompiler.simulate(digits)
    assert f"{result.cycles:,}" in command("simulate", digits).stdout
    ideal = qcompiler.simulate(qcompiler.open_artifact(digits), hardware.ideal_memory(EDGE))
    assert ideal.cycles < result.cycles
