"""Bad models: each is one ModelError that says what is wrong, where, and what to do. Whole messages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_graphs import check, model

from qcompiler.frontend.onnx import import_onnx
from qcompiler.sim.errors import ModelError

WEIGHT = np.ones((4, 3), np.float32)


def gemm(weight: np.ndarray = WEIGHT, shape: tuple[int | str | None, ...] = (1, 4)) -> onnx.ModelProto:
    node = helper.make_node("Gemm", ["x", "w"], ["y"], name="dense")
    return model([node], {"x": shape}, ["y"], {"w": weight})


def message(source: onnx.ModelProto | Path, shapes: dict[str, tuple[int, ...]] | None = None) -> str:
    with pytest.raises(ModelError) as error:
        import_onnx(source, shapes)
    return str(error.value)


# --------------------------------------------------------------------------------------------- files
def test_missing_file(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"x")
    path = tmp_path / "modle.onnx"
    assert message(path) == f"{path}: no such file; did you mean 'model.onnx'?"


def test_missing_folder(tmp_path: Path) -> None:
    assert message(tmp_path / "no" / "m.onnx") == f"{tmp_path / 'no' / 'm.onnx'}: no such file"


def test_directory(tmp_path: Path) -> None:
    assert message(tmp_path) == f"{tmp_path} is a directory; give an ONNX file"
    (tmp_path / "a.onnx").write_bytes(b"x")
    assert message(tmp_path) == f"{tmp_path} is a directory; give the file, for example {tmp_path / 'a.onnx'}"


def test_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"")
    assert message(path) == f"{path} is empty; export or copy the model again"


@pytest.mark.parametrize("keep", [0.3, 0.9, 0.999])
def test_truncated(tmp_path: Path, keep: float) -> None:
    data = gemm(np.ones((4, 300), np.float32)).SerializeToString()
    path = tmp_path / "m.onnx"
    path.write_bytes(data[: int(len(data) * keep)])
    assert message(path) == (
        f"{path} is not an ONNX model, or is truncated ({int(len(data) * keep)} bytes do not parse); "
        "export or copy the model again"
    )


def test_text(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_text("this is no model\n" * 20)
    assert message(path) == (
        f"{path} is not an ONNX model, or is truncated (340 bytes do not parse); export or copy the model again"
    )


def test_no_graph(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(onnx.ModelProto(ir_version=8, producer_name="x").SerializeToString())
    assert message(path) == f"{path} is not an ONNX model: it has no graph; export or copy the model again"


# ------------------------------------------------------------------------------------- external data
def external(folder: Path, location: str, **info: int) -> Path:
    """A model whose weight lies in another file."""
    source = gemm()
    tensor = source.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **info}.items():
        tensor.external_data.add(key=key, value=str(value))
    path = folder / "m.onnx"
    path.write_bytes(source.SerializeToString())
    return path


def test_external_data_is_read(tmp_path: Path) -> None:
    path = external(tmp_path, "w.bin", offset=8, length=48)
    (tmp_path / "w.bin").write_bytes(b"\0" * 8 + WEIGHT.tobytes())
    module = import_onnx(path)
    constants = [a for b in module["main"].body.blocks[0].bindings for a in b.value.args if hasattr(a, "value")]
    np.testing.assert_array_equal(constants[0].value.numpy(), WEIGHT)


def test_external_data_missing(tmp_path: Path) -> None:
    path = external(tmp_path, "w.bin")
    assert message(path) == (
        f"{path}: initializer 'w' is stored in 'w.bin', which is missing; copy that file beside the model"
    )


def test_external_data_outside(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "w.bin").write_bytes(WEIGHT.tobytes())
    advice = "outside the model's folder; move the data file beside the model and export again"
    path = external(folder, "../w.bin")
    assert message(path) == f"{path}: initializer 'w' is stored in '../w.bin', {advice}"
    (folder / "link.bin").symlink_to(tmp_path / "w.bin")
    path = external(folder, "link.bin")
    assert message(path) == f"{path}: initializer 'w' is stored in 'link.bin', {advice}"


def test_external_data_too_short(tmp_path: Path) -> None:
    path = external(tmp_path, "w.bin", offset=8)
    (tmp_path / "w.bin").write_bytes(WEIGHT.tobytes())
    assert message(path) == (
        f"{path}: initializer 'w' is stored in 'w.bin', which does not hold the 48 bytes at offset 8 that [4, 3] "
        "needs; export or copy the model again"
    )


# ------------------------------------------------------------------------------------------- weights
def test_nan_weight() -> None:
    bad = WEIGHT.copy()
    bad[1, 2] = bad[3, 0] = np.nan
    assert message(gemm(bad)) == (
        "test: initializer 'w' has 2 of 12 elements that are NaN; the training diverged or the export went wrong: "
        "export the model again from a good checkpoint"
    )


def test_infinite_weight() -> None:
    bad = WEIGHT.copy()
    bad[1, 2] = np.inf
    assert message(gemm(bad)) == (
        "test: initializer 'w' has 1 of 12 elements that are infinite values; the training diverged or the export "
        "went wrong: export the model again from a good checkpoint"
    )


def test_a_mask_of_minus_infinity_is_no_weight() -> None:
    node = helper.make_node("Where", ["m", "x", "low"], ["y"], name="mask")
    soft = helper.make_node("Softmax", ["y"], ["z"], name="softmax")
    constants = {"m": np.array([[True, False, True]]), "low": np.float32(-np.inf)}
    check(model([node, soft], {"x": (2, 3)}, ["z"], constants))


def test_weight_that_does_not_fill_its_shape() -> None:
    source = gemm()
    source.graph.initializer[0].raw_data = source.graph.initializer[0].raw_data[:-4]
    assert message(source) == (
        "test: initializer 'w' holds 44 bytes where its shape [4, 3] needs 48; export or copy the model again"
    )


def test_sparse_weight() -> None:
    source = gemm()
    values = numpy_helper.from_array(np.ones(1, np.float32), "s")
    indices = numpy_helper.from_array(np.zeros(1, np.int64), "i")
    source.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4]))
    assert message(source) == "test: initializer 's' is sparse; store it as a dense tensor"


# -------------------------------------------------------------------------------------------- shapes
def test_dynamic_batch_is_one() -> None:
    module = import_onnx(gemm(shape=("batch", 4)))
    assert [int(d) for d in module["main"].params[0].ty.shape.values] == [1, 4]


def test_dynamic_shape_is_settled_by_the_user() -> None:
    check(model([helper.make_node("Relu", ["x"], ["y"])], {"x": ("n", 3, "h", None)}, ["y"]), {"x": (2, 3, 4, 5)})


def test_a_symbol_settled_once_is_settled_everywhere() -> None:
    node = helper.make_node("Add", ["a", "b"], ["y"], name="add")
    module = import_onnx(model([node], {"a": (1, "t"), "b": (1, "t")}, ["y"]), {"a": (1, 7)})
    assert [int(d) for d in module["main"].params[1].ty.shape.values] == [1, 7]


@pytest.mark.parametrize(
    ("shape", "shapes", "expected"),
    [
        (
            ("n", 3, "h", None), {},
            "test: input 'x' has the dynamic shape nx3xhx?; fix it with --shape x=1x3x<size>x<size>",
        ),
        ((1, 4), {"y": (1, 4)}, "test has no input 'y'; the inputs are 'x'"),
        ((1, 4), {"xx": (1, 4)}, "test has no input 'xx'; did you mean 'x'?"),
        ((1, 4), {"x": (1, 5)}, "test: input 'x' is 1x4, but the shape 1x5 was given"),
        (("n", 4), {"x": (1, 4, 1)}, "test: input 'x' has rank 2 (nx4), but the shape 1x4x1 was given"),
        (("n", 4), {"x": (0, 4)}, "test: the shape 0x4 given for input 'x' is not positive"),
    ],
)  # fmt: skip
def test_shapes(shape: tuple, shapes: dict, expected: str) -> None:
    assert message(model([helper.make_node("Relu", ["x"], ["y"])], {"x": shape}, ["y"]), shapes) == expected


def test_input_without_shape() -> None:
    source = gemm()
    source.graph.input[0].type.tensor_type.ClearField("shape")
    assert message(source) == "test: input 'x' has no shape; give it with --shape x=1x3x224x224"


def test_input_of_another_type() -> None:
    source = gemm()
    source.graph.input[0].type.tensor_type.elem_type = TensorProto.STRING
    assert message(source).startswith("test: input 'x' has the data type ")
    source.graph.input[0].CopyFrom(helper.make_tensor_sequence_value_info("x", TensorProto.FLOAT, None))
    assert message(source) == "test: input 'x' is a sequence_type; only tensors can be inputs"


# --------------------------------------------------------------------------------------------- graph
def relu(x: str, y: str, name: str) -> onnx.NodeProto:
    return helper.make_node("Relu", [x], [y], name=name)


def edited(change: Callable[[onnx.ModelProto], None]) -> onnx.ModelProto:
    source = model([relu("x", "y", "first")], {"x": (1, 4)}, ["y"])
    change(source)
    return source


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda m: m.graph.ClearField("node"), "test has no nodes: there is nothing to compile"),
        (lambda m: m.graph.ClearField("output"), "test has no outputs: there is nothing to compile"),
        (
            lambda m: m.graph.input.append(m.graph.input[0]),
            "test: two inputs are named 'x'; give every input a name of its own",
        ),
        (
            lambda m: m.graph.node.append(relu("x", "y", "second")),
            "test: two nodes or initializers write the tensor 'y'; give every tensor a name of its own",
        ),
        (
            lambda m: m.graph.initializer.extend([numpy_helper.from_array(WEIGHT, "w")] * 2),
            "test: two initializers are named 'w'; give every tensor a name of its own",
        ),
        (
            lambda m: m.graph.node.extend([relu("c", "a", "A"), relu("a", "b", "B"), relu("b", "c", "C")]),
            "test: the graph has a cycle through Relu 'A', Relu 'C', Relu 'B'",
        ),
        (
            lambda m: m.graph.node.append(relu("nowhere", "z", "lost")),
            "test: Relu 'lost' reads the tensor 'nowhere', which nothing computes; export it again",
        ),
        (
            lambda m: m.graph.output.append(helper.make_tensor_value_info("gone", TensorProto.FLOAT, None)),
            "test: nothing computes the output 'gone'; export the model again",
        ),
        (
            lambda m: setattr(m.opset_import[0], "version", 6),
            "test uses ONNX opset 6; opsets 7 to 24 are supported: export it with one of these, or convert it with "
            "onnx.version_converter",
        ),
        (
            lambda m: setattr(m.opset_import[0], "version", 99),
            "test uses ONNX opset 99; opsets 7 to 24 are supported: export it with one of these, or convert it with "
            "onnx.version_converter",
        ),
        (
            lambda m: m.ClearField("opset_import"),
            "test does not say which ONNX opset it uses; export the model again",
        ),
    ],
)  # fmt: skip
def test_graphs(change: Callable[[onnx.ModelProto], None], expected: str) -> None:
    assert message(edited(change)) == expected


def test_no_inputs() -> None:
    node = helper.make_node("Relu", ["w"], ["y"])
    assert message(model([node], {}, ["y"], {"w": WEIGHT})) == (
        "test has no inputs: its outputs are constants and there is nothing to compile"
    )


def test_constant_output() -> None:
    nodes = [relu("x", "y", "first"), relu("w", "z", "second")]
    assert message(model(nodes, {"x": (1, 4)}, ["y", "z"], {"w": WEIGHT})) == (
        "test: output 'z' is a constant, the same for every input; remove it from the outputs"
    )


def test_an_output_may_be_an_input_or_returned_twice() -> None:
    nodes = [
        relu("x", "y", "first"),
        helper.make_node("Identity", ["y"], ["z"]),
        helper.make_node("Identity", ["x"], ["v"]),
    ]
    check(model(nodes, {"x": (1, 4)}, ["y", "z", "v"]))


def test_nodes_in_any_order() -> None:
    check(model([relu("a", "y", "second"), relu("x", "a", "first")], {"x": (1, 4)}, ["y"]))


# ----------------------------------------------------------------------------------------- operators
def test_unsupported_operators_are_listed_together() -> None:
    nodes = [
        helper.make_node("NonZero", ["x"], ["n"], name="nz"),
        helper.make_node("Cast", ["n"], ["f"], name="cast", to=TensorProto.FLOAT),
        helper.make_node("Frobnicate", ["x"], ["g"], name="frob"),
        helper.make_node("Special", ["x"], ["h"], name="special", domain="my.ops"),
        helper.make_node("Attention", ["x"], ["i"], name="attention", domain="com.microsoft"),
        helper.make_node("RandomNormalLike", ["x"], ["j"], name="noise"),
        helper.make_node("Reshape", ["x", "s"], ["k"]),
        helper.make_node("Sum", ["f", "g", "h", "i", "j", "k"], ["y"], name="sum"),
    ]
    source = model(nodes, {"x": (1, 4), "s": (2,)}, ["y"], dtypes={"s": TensorProto.INT64})
    source.opset_import.append(helper.make_opsetid("my.ops", 1))
    lines = message(source).splitlines()
    assert lines[0] == "test has 6 operators that are not supported:"
    assert lines[1].startswith("  NonZero 'nz': ")
    assert lines[2:] == [
        "  Frobnicate 'frob': ONNX has no such operator; express it by other operators, or cut the model before it",
        "  Special 'special': no converter exists for the domain my.ops; express it by standard operators, or cut the "
        "model before it",
        "  Attention 'attention': no converter exists for the domain com.microsoft; export with standard operators, or "
        "run ONNX Runtime's optimiser at level basic only",
        "  RandomNormalLike 'noise': it is random; export the model in evaluation mode, or make it an input",
        "  Reshape 'k': its shape is computed while the model runs; export the model with a constant shape, or run a "
        "simplifier such as onnxsim on it",
    ]


def test_one_unsupported_operator() -> None:
    source = model([helper.make_node("Frobnicate", ["x"], ["y"], name="frob")], {"x": (1, 4)}, ["y"])
    assert message(source) == (
        "test has 1 operator that is not supported:\n"
        "  Frobnicate 'frob': ONNX has no such operator; express it by other operators, or cut the model before it"
    )


def test_malformed_node() -> None:
    source = model([helper.make_node("Concat", ["x", "x"], ["y"], name="join")], {"x": (1, 4)}, ["y"])
    assert message(source) == (
        "test has 1 operator that is not supported:\n"
        "  Concat 'join': it is malformed: Required attribute 'axis' is missing.; export the model again"
    )


def test_shapes_that_do_not_fit() -> None:
    source = model([helper.make_node("Add", ["a", "b"], ["y"], name="add")], {"a": (1, 4), "b": (1, 5)}, ["y"])
    text = message(source)
    assert text.startswith(
        "test has 1 operator that is not supported:\n  Add 'add': its inputs of shape (1, 4), (1, 5) do not fit it ("
    )
    assert text.count("\n") == 1


# -------------------------------------------------------------------------------------- control flow
def branches(condition: str) -> list[onnx.NodeProto]:
    def body(name: str, op: str) -> onnx.GraphProto:
        nodes = [helper.make_node(op, ["x", "w"], [f"{name}_out"], name=name)]
        constant = [numpy_helper.from_array(np.float32(2), f"{name}_c")]
        return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(f"{name}_out", 1, None)], constant)

    node = helper.make_node(
        "If", [condition], ["z"], name="choose", then_branch=body("t", "Mul"), else_branch=body("e", "Add")
    )
    return [node, relu("z", "y", "last")]


@pytest.mark.parametrize("value", [True, False])
def test_if_with_constant_condition_is_decided(value: bool) -> None:
    check(model(branches("c"), {"x": (1, 4)}, ["y"], {"c": np.array(value), "w": np.float32([1, 2, 3, 4])}))


def test_branches_may_share_inner_names() -> None:
    first, _ = branches("c")
    second = onnx.NodeProto()
    second.CopyFrom(first)
    second.input[0], second.output[0], second.name = "d", "z2", "again"
    total = helper.make_node("Add", ["z", "z2"], ["y"], name="total")
    constants = {"c": np.array(True), "d": np.array(True), "w": np.float32([1, 2, 3, 4])}
    check(model([first, second, total], {"x": (1, 4)}, ["y"], constants))


def test_if_on_a_shape_is_decided() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("ReduceProd", ["s"], ["n"], keepdims=0),
        helper.make_node("Equal", ["n", "four"], ["c"]),
    ]
    constants = {"four": np.int64(4), "w": np.float32([1, 2, 3, 4])}
    check(model([*nodes, *branches("c")], {"x": ("batch", 4)}, ["y"], constants), {"x": (1, 4)})


def test_control_flow_on_data_is_refused() -> None:
    constants = {"w": np.float32([1, 2, 3, 4])}
    source = model(branches("c"), {"x": (1, 4), "c": ()}, ["y"], constants, dtypes={"c": TensorProto.BOOL})
    assert message(source) == (
        "test has 1 operator that is not supported:\n"
        "  If 'choose': its condition is computed while the model runs; export the model with that condition fixed, or "
        "cut the model before it"
    )
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [relu("s", "t", "inner"), helper.make_node("Identity", ["c"], ["d"])],
        "body",
        [info("i", TensorProto.INT64, ()), info("c", TensorProto.BOOL, ()), info("s", TensorProto.FLOAT, (1, 4))],
        [info("d", TensorProto.BOOL, ()), info("t", TensorProto.FLOAT, (1, 4))],
    )
    loop = helper.make_node("Loop", ["n", "", "x"], ["y"], name="repeat", body=body)
    assert message(model([loop], {"x": (1, 4)}, ["y"], {"n": np.int64(3)})) == (
        "test has 1 operator that is not supported:\n"
        "  Loop 'repeat': control flow that depends on data cannot become a fixed program; unroll it when exporting "
        "(torch.onnx.export with tracing), or cut the model before it"
    )


def test_a_dead_unsupported_operator_does_not_matter() -> None:
    nodes = [relu("x", "y", "first"), helper.make_node("Frobnicate", ["x"], ["g"], name="frob")]
    check_without_dead = import_onnx(model(nodes, {"x": (1, 4)}, ["y"]))
    assert len(check_without_dead["main"].body.blocks[0].bindings) == 1


def test_a_huge_constant_is_not_made() -> None:
    nodes = [helper.make_node("ConstantOfShape", ["s"], ["c"], name="huge"), helper.make_node("Add", ["x", "c"], ["y"])]
    source = model(nodes, {"x": (1, 4)}, ["y"], {"s": np.array([1 << 20, 1 << 20], np.int64)})
    assert message(source) == (
        "test has 1 operator that is not supported:\n"
        "  ConstantOfShape 'huge': it makes a constant of shape (1048576, 1048576), beyond 2 GiB"
    )


def damaged(count: int, seed: int) -> None:
    """Bytes of a sound model replaced at random: it still imports, or one ModelError says why not."""
    node = helper.make_node("Conv", ["x", "k", "b"], ["c"], name="conv", pads=[1, 1, 1, 1], strides=[2, 2])
    split = helper.make_node("Split", ["c", "s"], ["p", "q"], name="split", axis=1)
    pool = helper.make_node("MaxPool", ["p"], ["m"], name="pool", kernel_shape=[2, 2])
    reshape = helper.make_node("Reshape", ["m", "r"], ["y"], name="reshape")
    constants = {
        "k": np.ones((6, 3, 3, 3), np.float32), "b": np.ones(6, np.float32), "s": np.array([2, 4]),
        "r": np.array([1, -1]),
    }  # fmt: skip
    sound = model([node, split, pool, reshape], {"x": ("n", 3, 8, 8)}, ["y", "q"], constants).SerializeToString()
    rng = np.random.default_rng(seed)
    outcomes = {"imported": 0, "refused": 0}
    for _ in range(count):
        data = bytearray(sound)
        for position in rng.integers(len(data), size=rng.integers(1, 4)):
            data[position] = rng.integers(256)
        source = onnx.ModelProto()
        try:
            source.ParseFromString(bytes(data))
        except Exception:  # protobuf's own refusal; `load` reports it
            continue
        try:
            import_onnx(source)
            outcomes["imported"] += 1
        except ModelError as error:
            assert "\n\n" not in str(error)
            outcomes["refused"] += 1
    assert min(outcomes.values()) > count / 10


def test_damaged_models_are_refused_or_sound() -> None:
    damaged(150, seed=0)


@pytest.mark.slow
def test_many_damaged_models_are_refused_or_sound() -> None:
    damaged(3000, seed=1)


def test_names_that_are_not_text(tmp_path: Path) -> None:
    data = model([relu("x", "y", "first")], {"x": (1, 4)}, ["y"]).SerializeToString()
    path = tmp_path / "m.onnx"
    path.write_bytes(data.replace(b"first", b"f\xff\xfest"))
    assert message(path) == f"{path} is damaged: its names are not text; export or copy the model again"
