"""Every mistake a user can make: one whole message, exit code 1 (2 for usage), nothing left behind."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from command_line import CALIBRATION, DIGITS, Command
from onnx import TensorProto, helper


@pytest.fixture(autouse=True)
def _in_a_clean_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def _compile(command: Command, model: object, *options: object, code: int = 1) -> str:
    before = sorted(os.listdir())
    done = command("compile", model, "-o", "out", *options)
    assert (done.code, done.stdout) == (code, "")
    assert sorted(os.listdir()) == before, "something was left behind"
    return done.error


# -------------------------------------------------------------------------------------------- models
def make_model(
    nodes: list[onnx.NodeProto], inputs: dict[str, list[int | str]], constants: dict[str, np.ndarray] | None = None
) -> onnx.ModelProto:
    """A float model whose output is "y"."""
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, shape in inputs.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(value, name) for name, value in (constants or {}).items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_missing_model(command: Command) -> None:
    assert _compile(command, "no.onnx") == "no.onnx: no such file"


def test_truncated_model(command: Command) -> None:
    Path("cut.onnx").write_bytes(DIGITS.read_bytes()[:30000])
    assert _compile(command, "cut.onnx") == (
        "cut.onnx is not an ONNX model, or is truncated (30000 bytes do not parse); export or copy the model again"
    )


def test_text_renamed(command: Command) -> None:
    Path("text.onnx").write_text("this is no model\n")
    assert _compile(command, "text.onnx") == (
        "text.onnx is not an ONNX model, or is truncated (17 bytes do not parse); export or copy the model again"
    )


def test_unsupported_operators_are_listed_together(command: Command) -> None:
    nodes = [
        helper.make_node("StringNormalizer", ["x"], ["a"], name="first"),
        helper.make_node("Frobnicate", ["x"], ["b"], name="second", domain="com.example"),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    model = make_model(nodes, {"x": [1, 3]})
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    onnx.save(model, "two.onnx")
    assert _compile(command, "two.onnx") == (
        "two.onnx has 2 operators that are not supported:\n"
        "  StringNormalizer 'first': no converter exists for it; express it by other operators, or cut the model "
        "before it\n"
        "  Frobnicate 'second': no converter exists for the domain com.example; express it by standard operators, or "
        "cut the model before it"
    )


def test_dynamic_shape(command: Command) -> None:
    onnx.save(make_model([helper.make_node("Relu", ["x"], ["y"])], {"x": ["n", 3, "h", "w"]}), "open.onnx")
    assert _compile(command, "open.onnx") == (
        "open.onnx: input 'x' has the dynamic shape nx3xhxw; fix it with --shape x=1x3x<size>x<size>"
    )
    assert _compile(command, "open.onnx", "--shape", "z=1x3x4x4") == "open.onnx has no input 'z'; the inputs are 'x'"


def test_weights_that_are_not_numbers(command: Command) -> None:
    weight = np.array([[1, 2], [3, np.nan]], np.float32)
    onnx.save(make_model([helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": [1, 2]}, {"w": weight}), "nan.onnx")
    assert _compile(command, "nan.onnx") == (
        "nan.onnx: initializer 'w' has 1 of 4 elements that are NaN; the training diverged or the export went wrong: "
        "export the model again from a good checkpoint"
    )


# --------------------------------------------------------------------------------------- calibration
def test_no_calibration(command: Command) -> None:
    assert _compile(command, DIGITS) == (
        "the model is float, and nothing says which ranges its tensors have; give --calibration: an .npz keyed by "
        "input name ('image') with a leading sample axis"
    )


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            {"images": np.ones((2, 1, 8, 8))},
            "data.npz has no array 'image'; it holds 'images'; did you mean 'images'?",
        ),
        (
            {"image": np.ones((2, 1, 8, 9))},
            "data.npz: sample 0 of input 'image' has shape 1x8x9; the model takes 1x8x8 or 1x1x8x8",
        ),
        (
            {"image": np.full((2, 1, 8, 8), np.nan)},
            "data.npz: sample 0 of input 'image' holds NaN or infinity (64 of 64 values); remove or repair it",
        ),
        (
            {"image": np.ones((0, 1, 8, 8))},
            "data.npz: there are no calibration samples; give at least one",
        ),
        (
            {"image": np.zeros((3, 1, 8, 8))},
            "tensor 'image' is zero for every sample; calibrate with samples like those the model will see (same "
            "preprocessing), and check that the float model itself gives sensible outputs on them",
        ),
    ],
    ids=["name", "shape", "nan", "none", "zero"],
)
def test_calibration(command: Command, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez("data.npz", **arrays)  # type: ignore[arg-type]
    assert _compile(command, DIGITS, "--calibration", "data.npz") == message


def test_missing_calibration_file(command: Command) -> None:
    assert _compile(command, DIGITS, "--calibration", "no.npz") == "no.npz does not exist"


# ---------------------------------------------------------------------------------- target and output
def test_unknown_target(command: Command) -> None:
    assert _compile(command, DIGITS, "--calibration", CALIBRATION, "--target", "x86:avx512") == (
        "unknown target 'x86:avx512'; `qcompiler targets` lists what there is; did you mean 'x86:avx2' or "
        "'x86:avx512-vnni' or 'x86:amx'?"
    )


def test_output_that_is_something_else(command: Command) -> None:
    Path("out").mkdir()
    Path("out/thesis.tex").touch()
    assert _compile(command, DIGITS, "--calibration", CALIBRATION) == (
        f"{Path.cwd()}/out exists and is not an artefact of qcompiler; it will not be overwritten. "
        "Give another output directory, or remove it"
    )
    assert Path("out/thesis.tex").exists()


def test_output_in_a_folder_that_does_not_exist(command: Command) -> None:
    done = command("compile", DIGITS, "--calibration", CALIBRATION, "-o", "a/b")
    assert (done.code, done.error) == (
        1,
        f"cannot create {Path.cwd()}/a/b: the folder {Path.cwd()}/a does not exist; create it first",
    )


# --------------------------------------------------------------------------------------------- usage
def test_unknown_observer(command: Command) -> None:
    assert _compile(command, DIGITS, "--observer", "percentil", code=2) == (
        "unknown observer 'percentil'; it is one of min_max, moving_average, percentile, entropy, mse; "
        "did you mean 'percentile'?"
    )


def test_unknown_rounding(command: Command) -> None:
    assert _compile(command, DIGITS, "--rounding", "half_up", code=2) == (
        "unknown rounding 'half_up'; it is one of exact_half_up, f32_half_even, q31_single, q31_double; "
        "did you mean 'exact_half_up' or 'f32_half_even'?"
    )


def test_unknown_pass(command: Command) -> None:
    assert _compile(command, DIGITS, "--passes", "canonicalise", code=2) == (
        "pass pipeline 'canonicalise': no pass is called 'canonicalise'; did you mean 'canonicalize'?"
    )


def test_bad_prefix(command: Command) -> None:
    assert _compile(command, DIGITS, "--name", "my-model", code=2) == (
        "name 'my-model' cannot begin C symbols; use letters, digits and _"
    )


@pytest.mark.parametrize("shape", ["1x2", "x=1xax3", "x=", "x=0x3"])
def test_bad_shape_option(command: Command, shape: str) -> None:
    done = command("compile", DIGITS, "-o", "out", "--shape", shape)
    assert done.code == 2
    assert f"Invalid value for --shape: '{shape}' should read name=1x3x224x224" in done.stderr


def test_missing_argument(command: Command) -> None:
    done = command("compile")
    assert done.code == 2
    assert "Missing argument 'MODEL'" in done.stderr
