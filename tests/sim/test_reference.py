"""The reference interpreter against definitions written a second time: plain loops, NumPy idioms, ONNX Runtime."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from qcompiler.sim import numerics, reference
from qcompiler.sim.errors import ProgramError
from qcompiler.sim.integer_program import (
    Add,
    AveragePool2d,
    Concat,
    Conv2d,
    Dense,
    Dequantize,
    Embedding,
    FloatOp,
    Gather,
    IntegerProgram,
    LayerNorm,
    MatMul,
    MaxPool2d,
    Mean,
    Mul,
    Operation,
    Quantize,
    Requantize,
    Reshape,
    ResizeLinear,
    Softmax,
    Table,
    Tensor,
    Transpose,
    accumulator_bound,
    check,
)  # fmt: skip

RNG = np.random.default_rng(20261121)


def int8(*shape: int) -> np.ndarray:
    return RNG.integers(-128, 128, shape).astype(np.int8)


def scale(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def single(op_type: type[Operation], ins: list[tuple[np.ndarray, float, int]], out: Tensor, **fields) -> np.ndarray:
    """Run one integer operation on (value, scale, zero point) inputs."""
    names = tuple(f"x{i}" for i in range(len(ins)))
    tensors = {n: Tensor(n, v.shape, "int8", float(np.float32(s)), z) for n, (v, s, z) in zip(names, ins, strict=True)}
    tensors[out.name] = out
    program = check(IntegerProgram("t", names, (out.name,), tensors, (op_type("op", names, out.name, **fields),)))
    return reference.execute(program, {n: v for n, (v, _, _) in zip(names, ins, strict=True)})[out.name]


def quantised(shape: tuple[int, ...], s: float = 0.1, z: int = 3) -> Tensor:
    return Tensor("y", shape, "int8", float(np.float32(s)), z)


@pytest.mark.parametrize("groups,stride,dilation,padding", [
    (1, (1, 1), (1, 1), (0, 0, 0, 0)),
    (1, (2, 1), (1, 2), (1, 2, 0, 1)),
    (2, (1, 2), (1, 1), (1, 1, 1, 1)),
    (4, (1, 1), (2, 1), (2, 0, 2, 1)),
])  # fmt: skip
def test_conv2d_by_loops(groups, stride, dilation, padding) -> None:
    x, w = int8(2, 7, 8, 4), np.maximum(int8(8, 3, 2, 4 // groups), -127)
    bias, zero = RNG.integers(-500, 500, 8).astype(np.int32), -7
    r = Requantize(np.linspace(0.001, 0.01, 8, dtype=np.float32), 5, minimum=5)
    top, left, bottom, right = padding
    height = (7 + top + bottom - 2 * dilation[0] - 1) // stride[0] + 1
    width = (8 + left + right - dilation[1] - 1) // stride[1] + 1
    acc = np.zeros((2, height, width, 8), dtype=np.int64)
    per_out, per_in = 8 // groups, 4 // groups
    for n, y, xx, o in itertools.product(range(2), range(height), range(width), range(8)):
        total = int(bias[o])
        for i, j, c in itertools.product(range(3), range(2), range(per_in)):
            row, col = y * stride[0] + i * dilation[0] - top, xx * stride[1] + j * dilation[1] - left
            if 0 <= row < 7 and 0 <= col < 8:
                total += (int(x[n, row, col, o // per_out * per_in + c]) - zero) * int(w[o, i, j, c])
        acc[n, y, xx, o] = total
    want = numerics.requantize(acc, r.scale, 5, 5)
    got = single(
        Conv2d, [(x, 0.1, zero)], quantised(want.shape, z=5), weight=w, bias=bias, requantize=r,
        stride=stride, dilation=dilation, padding=padding, groups=groups,
    )  # fmt: skip
    assert np.array_equal(got, want)


def test_dense_and_matmul_are_integer_products() -> None:
    x, w, bias = int8(2, 3, 40), np.maximum(int8(6, 40), -127), np.arange(6, dtype=np.int32)
    r = Requantize(scale(0.001), -4)
    acc = (x.astype(np.int64) - 9) @ w.T.astype(np.int64)
    got = single(Dense, [(x, 0.1, 9)], quantised((2, 3, 6), z=-4), weight=w, bias=bias, requantize=r)
    assert np.array_equal(got, numerics.requantize(acc + bias, r.scale, -4))
    b = int8(2, 40, 6)
    acc = (x.astype(np.int64) - 9) @ (b.astype(np.int64) + 2)
    want = numerics.requantize(acc, r.scale, -4)
    assert np.array_equal(single(MatMul, [(x, 1, 9), (b, 1, -2)], quantised((2, 3, 6), z=-4), requantize=r), want)
    swapped = np.ascontiguousarray(b.swapaxes(1, 2))
    got = single(MatMul, [(x, 1, 9), (swapped, 1, -2)], quantised((2, 3, 6), z=-4), requantize=r, transpose_b=True)
    assert np.array_equal(got, want)


def test_add_and_mul_broadcast() -> None:
    a, b = int8(2, 3, 4, 5), int8(5)
    ma, mb, bias, shift = numerics.add_multipliers(0.1, 3, 0.2, -4, 0.15, 7)
    got = single(
        Add, [(a, 0.1, 3), (b, 0.2, -4)], quantised(a.shape, 0.15, 7),
        multiplier_a=ma, multiplier_b=mb, bias=bias, shift=shift,
    )  # fmt: skip
    want = np.floor((a * 1.0 * ma + b * 1.0 * mb + bias) / 2.0**shift)
    assert np.array_equal(got, np.clip(want, -128, 127))
    r = Requantize(scale(0.004), 7, rounding="f32_half_even")
    got = single(Mul, [(a, 0.1, 3), (b, 0.2, -4)], quantised(a.shape, 0.15, 7), requantize=r)
    product = ((a.astype(int) - 3) * (b.astype(int) + 4)).astype(np.float32)
    assert np.array_equal(got, np.clip(np.rint(product * np.float32(0.004)) + 7, -128, 127))


def test_add_f32_half_even_is_dequantise_add_quantise() -> None:
    a, b = int8(50), int8(50)
    got = single(
        Add, [(a, 0.1, 3), (b, 0.2, -4)], quantised((50,), 0.15, 7),
        multiplier_a=1, multiplier_b=-1, bias=0, shift=0, rounding="f32_half_even",
    )  # fmt: skip
    real = (a.astype(np.int32) - 3).astype(np.float32) * np.float32(0.1) - (b.astype(np.int32) + 4).astype(
        np.float32
    ) * np.float32(0.2)
    assert np.array_equal(got, np.clip(np.rint(real / np.float32(0.15)) + 7, -128, 127))


@pytest.mark.parametrize("include", [False, True])
def test_pools_by_loops(include: bool) -> None:
    x, kernel, stride, padding, excess = int8(1, 6, 5, 3), (3, 2), (2, 2), (1, 0, 2, 1), (1, 0)
    out = Tensor("y", (1, 4, 3, 3), "int8", 0.125, 4)
    scales = (0.7 / np.arange(1, 7)).astype(np.float32)
    got = single(
        AveragePool2d, [(x, 0.1, 9)], out, kernel=kernel, stride=stride, padding=padding,
        requantize=Requantize(scales, 4), count_include_pad=include, padding_excess=excess,
    )  # fmt: skip
    best = single(
        MaxPool2d, [(x, 0.125, 4)], out, kernel=kernel, stride=stride, padding=padding
    )  # fmt: skip
    for y, xx, c in itertools.product(range(4), range(3), range(3)):
        inside, count = [], 0
        for i, j in itertools.product(range(3), range(2)):
            row, col = y * 2 + i - 1, xx * 2 + j
            if 0 <= row < 6 and 0 <= col < 5:
                inside.append(int(x[0, row, col, c]))
            if include and row < 6 + padding[2] - excess[0] and col < 5 + padding[3] - excess[1]:
                count += 1
        count = count if include else len(inside)
        assert best[0, y, xx, c] == max(inside)
        acc = np.array(sum(v - 9 for v in inside))
        assert got[0, y, xx, c] == numerics.requantize(acc, scales[count - 1], 4)


def test_mean_sums_and_rescales() -> None:
    x, r = int8(2, 4, 5, 6), Requantize(scale(0.04), 1)
    got = single(Mean, [(x, 0.1, -3)], quantised((2, 6), z=1), axes=(1, 2), keepdims=False, requantize=r)
    acc = (x.astype(int) + 3).sum(axis=(1, 2))
    assert np.array_equal(got, numerics.requantize(acc, r.scale, 1))


def test_normalisations_call_the_law() -> None:
    x, factors = int8(3, 20), numerics.softmax_factors(0.1)
    out = Tensor("y", (3, 20), "int8", 1 / 256, -128)
    assert np.array_equal(single(Softmax, [(x, 0.1, 0)], out, factors=factors), numerics.softmax(x, factors))
    gain, bias, shift = numerics.layer_norm_constants(np.ones(20), np.zeros(20), 20, 0.1, 3)
    got = single(LayerNorm, [(x, 0.1, 0)], quantised((3, 20)), gain=gain, bias=bias, shift=shift, epsilon=5)
    assert np.array_equal(got, numerics.layer_norm(x, gain, bias, shift, 5))
    t = numerics.build_table(np.tanh, 0.1, 0, 0.1, 3)
    assert np.array_equal(single(Table, [(x, 0.1, 0)], quantised((3, 20)), table=t), t[x.astype(int) + 128])


def test_moves() -> None:
    x = int8(2, 3, 4)
    same = (x, 0.1, 3)
    vectors = (None, np.array([2, -1, 0, 0]), np.array([3, 1]))
    got = single(Gather, [same], quantised((2, 4, 2)), indices=vectors, fill=3)
    want = np.pad(x, ((0, 0), (0, 1), (0, 0)), constant_values=3)[:, [2, 3, 0, 0]][:, :, [3, 1]]
    assert np.array_equal(got, want)
    assert np.array_equal(single(Transpose, [same], quantised((4, 2, 3)), permutation=(2, 0, 1)), x.transpose(2, 0, 1))
    assert np.array_equal(single(Reshape, [same], quantised((6, 4)), shape=(6, 4)), x.reshape(6, 4))
    joined = single(Concat, [same, same], quantised((2, 6, 4)), axis=1)
    assert np.array_equal(joined, np.concatenate([x, x], axis=1))


def test_embedding_counts_negative_indices_from_the_end_and_clamps() -> None:
    table = int8(5, 3)
    tensors = {
        "t": Tensor("t", (5, 3), "int8", 0.125, 0), "i": Tensor("i", (4,), "int64"),
        "y": Tensor("y", (4, 3), "int8", 0.125, 0),
    }  # fmt: skip
    program = IntegerProgram("e", ("i",), ("y",), tensors, (Embedding("e", ("t", "i"), "y"),), {"t": table})
    got = reference.execute(check(program), {"i": np.array([0, -1, 9, -9])})["y"]
    assert np.array_equal(got, table[[0, 4, 4, 0]])


def test_resize_linear_weighs_four_neighbours() -> None:
    x = int8(1, 3, 4, 2)
    low, high, weight = np.array([0, 0, 1, 2]), np.array([1, 1, 2, 2]), np.array([0, 128, 64, 0])
    r = Requantize(scale(2.0**-16), 3)
    got = single(
        ResizeLinear, [(x, 0.1, 3)], quantised((1, 4, 4, 2)), low_h=low, high_h=high, weight_h=weight,
        low_w=np.arange(4), high_w=np.arange(4), weight_w=np.zeros(4, np.int64), requantize=r,
    )  # fmt: skip
    share = (weight / 256)[:, None, None]
    want = np.floor(x[:, low] * (1 - share) + x[:, high] * share + 0.5)
    assert np.array_equal(got, want)


def test_the_boundary_and_float_operations() -> None:
    tensors = {
        "x": Tensor("x", (4,), "float32"), "q": Tensor("q", (4,), "int8", 0.5, 2),
        "d": Tensor("d", (4,), "float32"), "y": Tensor("y", (4,), "float32"),
    }  # fmt: skip
    ops = (
        Quantize("q", ("x",), "q"),
        Dequantize("d", ("q",), "d"),
        FloatOp("f", ("d", "x"), "y", kind="add", shape=(4,)),
    )
    program = check(IntegerProgram("f", ("x",), ("y",), tensors, ops))
    x = np.float32([0.3, -0.25, 100.0, -0.75])
    values = reference.execute(program, {"x": x}, keep=True)
    assert values["q"].tolist() == [3, 2, 127, 0]
    assert values["y"].tolist() == (np.float32([0.5, 0.0, 62.5, -1.0]) + x).tolist()


def test_misfitting_inputs_are_named() -> None:
    tensors = {"x": Tensor("x", (4,), "float32"), "q": Tensor("q", (4,), "int8", 0.5, 2)}
    program = check(IntegerProgram("f", ("x",), ("q",), tensors, (Quantize("q", ("x",), "q"),)))
    with pytest.raises(ProgramError, match=r"^input 'x' is missing; the program reads 'x'$"):
        reference.execute(program, {})
    with pytest.raises(ProgramError, match=r"^input 'x' is float64\(4,\); it should be float32\(4,\)$"):
        reference.execute(program, {"x": np.zeros(4)})


def conv_program(**changes) -> IntegerProgram:
    fields = dict(
        weight=np.ones((2, 1, 1, 3), np.int8), bias=np.zeros(2, np.int32), requantize=Requantize(scale(0.5), 0)
    )  # fmt: skip
    tensors = {"x": Tensor("x", (1, 2, 2, 3), "int8", 0.5, 0), "y": Tensor("y", (1, 2, 2, 2), "int8", 0.5, 0)}
    conv = Conv2d("c", ("x",), "y", **{**fields, **changes})
    return IntegerProgram("p", ("x",), ("y",), tensors, (conv,))


@pytest.mark.parametrize("program,message", [
    (conv_program(weight=np.ones((2, 1, 1, 4), np.int8)),
     "Conv2d 'c': 3 input channels do not fit weight (2, 1, 1, 4) in 1 groups"),
    (conv_program(weight=np.ones((2, 3, 3, 3), np.int8)),
     "Conv2d 'c': a window of 3 does not fit into 2 + padding 0 + 0"),
    (conv_program(stride=(2, 2)), "Conv2d 'c': computes shape (1, 1, 1, 2), but 'y' is declared (1, 2, 2, 2)"),
    (conv_program(requantize=Requantize(scale(0.5), 1)), "Conv2d 'c': requantises to zero point 1, its output has 0"),
    (conv_program(requantize=Requantize(np.float64([0.5]), 0)),
     "Conv2d 'c': exact_half_up wants a float32 vector of scales"),
    (conv_program(requantize=Requantize(scale(0.0), 0)),
     "Conv2d 'c': a requantisation scale is not finite and positive"),
    (conv_program(bias=np.full(2, 2**31 - 1, np.int32)),
     "Conv2d 'c': its accumulator can reach 2147484412, beyond int32"),
])  # fmt: skip
def test_check_says_which_rule_is_broken(program: IntegerProgram, message: str) -> None:
    with pytest.raises(ProgramError) as error:
        check(program)
    assert str(error.value) == f"integer program 'p', {message}"


def test_the_accumulator_bound_is_reached() -> None:
    op = conv_program(weight=np.int8([[[[127, -127, 5]]], [[[0, 0, 1]]]]), bias=np.int32([7, -9])).operations[0]
    assert isinstance(op, Conv2d)
    assert accumulator_bound(op).tolist() == [255 * 259 + 7, 255 + 9]


@pytest.mark.parametrize("length", [1, 517, 518, 1100])
def test_exact_products_beyond_float32(length: int) -> None:
    """255 * 127 * 518 is just over 2**24: longer sums must be cut, and none may lose a unit."""
    x, weight = RNG.integers(-255, 256, (3, length)), np.maximum(int8(2, length), -127)
    x[0], weight[0] = 255, 127
    x[0, -1] = 254  # an odd sum beyond 2**24 is no float32
    got = reference.exact_product(x.astype(np.int16), weight)
    assert np.array_equal(got, x @ weight.astype(np.int64).T)
