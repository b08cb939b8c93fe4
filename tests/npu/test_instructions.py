"""What every instruction computes, against the integer reference or a plain NumPy statement of its definition."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from machines import EDGE

from qcompiler.sim import isa, numerics, reference
from qcompiler.sim.errors import ProgramError
from qcompiler.sim.integer_program import (
    AveragePool2d,
    Conv2d,
    IntegerProgram,
    MaxPool2d,
    Operation,
    Requantize,
    ResizeLinear,
    Tensor,
    check,
)  # fmt: skip
from qcompiler.sim.isa import Queue, Space
from qcompiler.sim.isa.post import encode_add_record, encode_records
from qcompiler.sim.machine_state import MachineState

ACTIVATION, WEIGHT, PARAMETER = Space.activation, Space.weight, Space.parameter
OUT = 100_000  # where the tests put results


def fresh(main=b"", constants=b""):
    state = MachineState(EDGE, max(len(main), 1), constants)
    if main:
        state.memory(Space.main).preload(0, main)
    return state


def put(state, space, address, values):
    state.memory(space).preload(address, np.ascontiguousarray(values))


def got(state, shape, address=OUT, pitch=None):
    memory, size = state.memory(ACTIVATION), int(np.prod(shape))
    assert memory.known[address : address + size].all()
    return memory.values[address : address + size].reshape(shape)


def run(state, *instructions):
    for ins in instructions:
        ins.check(EDGE)
        ins.execute(state)


def judge(op: Operation, x, zero, out_zero, scale=0.5):
    """The reference interpreter's result for one operation on x [1, H, W, C]."""
    tensors = {"x": Tensor("x", x.shape, "int8", scale, zero)}
    shape = op.infer_shape([x.shape])
    tensors["y"] = Tensor("y", shape, "int8", scale, out_zero)
    return reference.execute(check(IntegerProgram("p", ("x",), ("y",), tensors, (op,))), {"x": x})["y"]


def int8(rng, *shape):
    return rng.integers(-128, 128, shape).astype(np.int8)


# ------------------------------------------------------------------------------------------- matrix
@st.composite
def convolutions(draw):
    small = st.integers(1, 3)
    kernel = (draw(small), draw(small))
    dilation = (draw(st.integers(1, 2)), draw(st.integers(1, 2)))
    padding = tuple(draw(st.integers(0, 2)) for _ in range(4))
    need = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    size = [draw(st.integers(max(1, n - 2), 7)) for n in need]
    ok = all(
        size[i] + padding[i] + padding[i + 2] >= need[i] for i in range(2)
    )  # fmt: skip
    if not ok:
        padding = (2, 2, 2, 2)
    return {
        "kernel": kernel, "dilation": dilation, "padding": padding, "size": tuple(size),
        "stride": (draw(small), draw(small)), "channels": draw(st.integers(1, 20)),
        "seed": draw(st.integers(0, 2**32 - 1)),
    }  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(convolutions(), st.integers(1, 16), st.sampled_from([0, 2]))
def test_matmul_is_a_convolution(case, outputs, stationary):
    rng = np.random.default_rng(case["seed"])
    (h, w), c, (kh, kw) = case["size"], case["channels"], case["kernel"]
    x, weight = int8(rng, 1, h, w, c), rng.integers(-127, 128, (outputs, kh, kw, c)).astype(np.int8)
    bias = rng.integers(-5000, 5000, outputs).astype(np.int32)
    scale = rng.uniform(1e-4, 1e-2, outputs).astype(np.float32)
    zero, out_zero = int(rng.integers(-128, 128)), int(rng.integers(-128, 128))
    op = Conv2d(
        "c", ("x",), "y", weight=weight, bias=bias, requantize=Requantize(scale, out_zero),
        stride=case["stride"], dilation=case["dilation"], padding=case["padding"],
    )  # fmt: skip
    want = judge(op, x, zero, out_zero)
    _, oh, ow, _ = want.shape
    state = fresh()
    put(state, ACTIVATION, 7, x)
    put(state, WEIGHT, 3, weight.transpose(1, 2, 3, 0))
    put(state, PARAMETER, 16, np.frombuffer(encode_records(bias, scale, "exact_half_up"), np.uint8))
    run(
        state,
        isa.MatrixMultiply(
            address=7, row_pitch=w * c, pixel_pitch=c, in_h=h, in_w=w, y0=-case["padding"][0], x0=-case["padding"][1],
            stride_y=case["stride"][0], stride_x=case["stride"][1], dilation_y=case["dilation"][0],
            dilation_x=case["dilation"][1], kernel_h=kh, kernel_w=kw, out_h=oh, out_w=ow, run=c, zero=zero,
            weight_address=3, weight_pitch=outputs, columns=outputs, accumulator_row=5, flags=stationary,
        ),
        isa.Requantize(
            accumulator_row=5, out_h=oh, out_w=ow, width=outputs, out_address=OUT, out_row_pitch=ow * outputs,
            out_pixel_pitch=outputs, params=16, out_zero=out_zero,
        ),
    )  # fmt: skip
    np.testing.assert_array_equal(got(state, want.shape), want)


@settings(max_examples=40, deadline=None)
@given(convolutions())
def test_a_run_over_several_pixels_and_im2col_see_the_same_window(case):
    """Undilated kernel columns may be merged into the run; im2col writes what the window generator reads."""
    rng = np.random.default_rng(case["seed"])
    (h, w), c, (kh, kw) = case["size"], case["channels"], case["kernel"]
    top, left, bottom, right = case["padding"]
    (sy, sx), dy = case["stride"], case["dilation"][0]
    if w + left + right < kw:
        return
    oh, ow = (h + top + bottom - (kh - 1) * dy - 1) // sy + 1, (w + left + right - kw) // sx + 1
    x, zero = int8(rng, h, w, c), int(rng.integers(-128, 128))
    padded = np.pad(x, ((top, bottom), (left, right), (0, 0)), constant_values=zero)
    want = np.stack(
        [
            np.concatenate([padded[y * sy + i * dy, q * sx : q * sx + kw].ravel() for i in range(kh)])
            for y in range(oh)
            for q in range(ow)
        ]
    )
    state = fresh(main=b"\0\0\0" + x.tobytes())
    put(state, ACTIVATION, 11, x)
    window = {
        "row_pitch": w * c, "pixel_pitch": c, "in_h": h, "in_w": w, "y0": -top, "x0": -left, "stride_y": sy,
        "stride_x": sx, "dilation_y": dy, "kernel_h": kh, "out_h": oh, "out_w": ow,
    }  # fmt: skip
    pitch = kh * kw * c + 3
    for source, address in ((Space.main, 3), (Space.activation, 11)):
        run(
            state,
            isa.Im2col(
                unit=Queue.load, source=source, address=address, run_bytes=kw * c, target_address=OUT,
                target_pitch=pitch, zero=zero, **window,
            ),
        )  # fmt: skip
        rows = state.memory(ACTIVATION).read(isa.Halt(), OUT, want.shape, (pitch, 1))
        np.testing.assert_array_equal(rows, want)
        state.memory(ACTIVATION).known[OUT:] = False
    weight = rng.integers(-127, 128, (kh * kw * c, 9)).astype(np.int8)
    put(state, WEIGHT, 0, weight)
    run(
        state,
        isa.MatrixMultiply(
            address=11, run=kw * c, zero=zero, weight_address=0, weight_pitch=9, columns=9, accumulator_row=0, **window
        ),
    )
    sums = state.read_accumulators(isa.Halt(), 0, oh * ow, 9)
    np.testing.assert_array_equal(sums, (want.astype(np.int64) - zero) @ weight.astype(np.int64))


@pytest.mark.parametrize("stationary", [0, 2])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("accumulate", [False, True])
def test_matmul_of_two_activations(transposed, accumulate, stationary):
    rng = np.random.default_rng(3)
    a, b = int8(rng, 10, 40), int8(rng, 40, 16)
    state = fresh()
    put(state, ACTIVATION, 0, a)
    put(state, ACTIVATION, 1000, b.T if transposed else b)
    state.write_accumulators(isa.Halt(), 2, np.full((10, 16), 77, dtype=np.int64))
    run(
        state,
        isa.MatrixMultiply(
            address=0, row_pitch=400, pixel_pitch=40, in_h=1, in_w=10, out_h=1, out_w=10, run=40, zero=5,
            weight_address=1000, weight_pitch=40 if transposed else 16, weight_zero=-9, columns=16, accumulator_row=2,
            flags=4 | 8 * transposed | accumulate | stationary,
        ),
    )  # fmt: skip
    want = (a.astype(np.int64) - 5) @ (b.astype(np.int64) + 9) + 77 * accumulate
    np.testing.assert_array_equal(state.read_accumulators(isa.Halt(), 2, 10, 16), want)


def test_accumulator_overflow_is_an_error():
    state = fresh()
    put(state, ACTIVATION, 0, np.full(16, 127, np.int8))
    put(state, WEIGHT, 0, np.full((16, 1), 127, np.int8))
    state.write_accumulators(isa.Halt(), 0, np.array([[2**31 - 1]]))
    ins = isa.MatrixMultiply(
        address=0, row_pitch=16, pixel_pitch=16, in_h=1, in_w=1, out_h=1, out_w=1, run=16, weight_address=0,
        weight_pitch=1, columns=1, accumulator_row=0, flags=1,
    )  # fmt: skip
    with pytest.raises(ProgramError) as error:
        run(state, ins)
    assert str(error.value) == f"matmul: an accumulator overflows int32 with {2**31 - 1 + 16 * 127 * 127}"


# ------------------------------------------------------------------------------------------- vector
@pytest.mark.parametrize("rounding", numerics.ROUNDINGS)
@pytest.mark.parametrize("shared", [False, True])
def test_requantize_every_rounding(rounding, shared):
    rng = np.random.default_rng(1)
    acc = rng.integers(-(2**20), 2**20, (12, 16))
    kind = np.float64 if rounding.startswith("q31") else np.float32
    scale = rng.uniform(1e-6, 2e-3, 1 if shared else 16).astype(kind)
    bias = rng.integers(-1000, 1000, scale.size)
    state = fresh()
    state.write_accumulators(isa.Halt(), 0, acc)
    put(state, PARAMETER, 4, np.frombuffer(encode_records(bias, scale, rounding), np.uint8))
    run(
        state,
        isa.Requantize(
            accumulator_row=0, out_h=3, out_w=4, width=16, out_address=OUT, out_row_pitch=64, out_pixel_pitch=16,
            params=4, rounding=isa.vector.RoundingCode[rounding], out_zero=3, minimum=-100, maximum=90,
            post=4 * shared,
        ),
    )  # fmt: skip
    want = numerics.requantize(acc + bias, scale, 3, -100, 90, rounding)
    np.testing.assert_array_equal(got(state, (12, 16)), want)


@settings(max_examples=200, deadline=None)
@given(st.floats(2.0**-149, 2.0**22, width=32), st.integers(-(2**31), 2**31 - 1))
def test_parameter_record_holds_any_scale(scale, acc):
    state = fresh()
    state.write_accumulators(isa.Halt(), 0, np.array([[acc]]))
    put(state, PARAMETER, 0, np.frombuffer(encode_records(0, np.float32(scale), "exact_half_up"), np.uint8))
    run(
        state,
        isa.Requantize(
            accumulator_row=0, out_h=1, out_w=1, width=1, out_address=OUT, out_row_pitch=1, out_pixel_pitch=1,
            params=0, out_zero=0,
        ),
    )  # fmt: skip
    want = numerics.requantize(np.array([acc]), np.array([scale], np.float32), 0)
    assert got(state, (1,)) == want


def test_requantize_then_table_then_add():
    rng = np.random.default_rng(2)
    acc, other, table = rng.integers(-9999, 9999, (6, 8)), int8(rng, 6, 8), int8(rng, 256)
    scale = np.full(1, 0.01, np.float32)
    constants = numerics.add_multipliers(0.1, 3, 0.2, -4, 0.25, 7)
    state = fresh()
    state.write_accumulators(isa.Halt(), 0, acc)
    put(state, ACTIVATION, 500, other)
    put(state, PARAMETER, 0, np.frombuffer(encode_records(0, scale, "exact_half_up"), np.uint8))
    put(state, PARAMETER, 8, np.frombuffer(encode_add_record(*constants, -50, 60), np.uint8))
    put(state, PARAMETER, 64, table)
    run(
        state,
        isa.Requantize(
            accumulator_row=0, out_h=2, out_w=3, width=8, out_address=OUT, out_row_pitch=24, out_pixel_pitch=8,
            params=0, out_zero=1, post=7, table=64, add_address=500, add_row_pitch=24, add_pixel_pitch=8, add_params=8,
        ),
    )  # fmt: skip
    first = numerics.look_up(numerics.requantize(acc, scale, 1), table)
    np.testing.assert_array_equal(got(state, (6, 8)), numerics.add(first, other, *constants, -50, 60))


@settings(max_examples=40, deadline=None)
@given(convolutions())
def test_depthwise_and_pools(case):
    rng = np.random.default_rng(case["seed"])
    (h, w), c, kernel = case["size"], case["channels"], case["kernel"]
    x, zero, out_zero = int8(rng, 1, h, w, c), int(rng.integers(-128, 128)), int(rng.integers(-128, 128))
    geometry = {"stride": case["stride"], "dilation": case["dilation"], "padding": case["padding"]}
    weight = rng.integers(-127, 128, (c, *kernel, 1)).astype(np.int8)
    bias = rng.integers(-500, 500, c).astype(np.int32)
    scale = rng.uniform(1e-3, 1e-2, c).astype(np.float32)
    state = fresh()
    put(state, ACTIVATION, 0, x)
    put(state, PARAMETER, 0, np.frombuffer(encode_records(bias, scale, "exact_half_up"), np.uint8))
    put(state, PARAMETER, 1000, weight[..., 0].transpose(1, 2, 0))
    window = {
        "address": 0, "row_pitch": w * c, "pixel_pitch": c, "in_h": h, "in_w": w, "y0": -case["padding"][0],
        "x0": -case["padding"][1], "stride_y": case["stride"][0], "stride_x": case["stride"][1],
        "dilation_y": case["dilation"][0], "dilation_x": case["dilation"][1], "kernel_h": kernel[0],
        "kernel_w": kernel[1],
    }  # fmt: skip

    def compare(kind, want, **fields):
        _, oh, ow, _ = want.shape
        ins = kind(
            out_h=oh, out_w=ow, width=c, out_address=OUT, out_row_pitch=ow * c, out_pixel_pitch=c,
            zero=zero, **window, **fields,
        )  # fmt: skip
        run(state, ins)
        np.testing.assert_array_equal(got(state, want.shape), want)

    if c > 1:
        conv = Conv2d(
            "c", ("x",), "y", weight=weight, bias=bias, requantize=Requantize(scale, out_zero), groups=c, **geometry
        )
        compare(isa.Depthwise, judge(conv, x, zero, out_zero), weights=1000, params=0, out_zero=out_zero)
    pool = MaxPool2d("m", ("x",), "y", kernel=kernel, **geometry)
    compare(isa.Pool, judge(pool, x, zero, zero), mode=0, params=0, out_zero=0)
    taps = kernel[0] * kernel[1]
    average = AveragePool2d(
        "a", ("x",), "y", kernel=kernel, count_include_pad=True,
        requantize=Requantize(np.full(taps, 0.7 / taps, np.float32), out_zero), **geometry,
    )  # fmt: skip
    record = encode_records(0, np.float32(0.7 / taps), "exact_half_up")
    put(state, PARAMETER, 2000, np.frombuffer(record, np.uint8))
    compare(isa.Pool, judge(average, x, zero, out_zero), mode=1, params=2000, post=4, out_zero=out_zero)


def test_add_and_multiply_with_broadcasts():
    rng = np.random.default_rng(5)
    a, b, row, scalar = int8(rng, 3, 4, 10), int8(rng, 3, 4, 10), int8(rng, 10), int8(rng, 3, 4)
    constants = numerics.add_multipliers(0.1, 3, 0.2, -4, 0.25, 7)
    state = fresh()
    put(state, ACTIVATION, 0, a)
    put(state, ACTIVATION, 200, b)
    put(state, ACTIVATION, 400, row)
    put(state, ACTIVATION, 500, scalar)
    put(state, PARAMETER, 0, np.frombuffer(encode_add_record(*constants), np.uint8))
    scale = np.array([0.004], np.float32)
    put(state, PARAMETER, 12, np.frombuffer(encode_records(0, scale, "exact_half_up"), np.uint8))
    shape = {"out_h": 3, "out_w": 4, "width": 10, "a_address": 0, "a_row_pitch": 40, "a_pixel_pitch": 10,
             "out_address": OUT, "out_row_pitch": 40, "out_pixel_pitch": 10}  # fmt: skip
    operands = {
        "full": ({"b_address": 200, "b_row_pitch": 40, "b_pixel_pitch": 10}, b),
        "row": ({"b_address": 400, "b_row_pitch": 0, "b_pixel_pitch": 0}, row),
        "scalar": ({"b_address": 500, "b_row_pitch": 4, "b_pixel_pitch": 1, "b_scalar": 1}, scalar[..., None]),
    }
    for fields, value in operands.values():
        run(state, isa.Add(params=0, **shape, **fields))
        np.testing.assert_array_equal(got(state, a.shape), numerics.add(a, value, *constants))
        run(state, isa.Multiply(params=12, a_zero=3, b_zero=-4, out_zero=9, **shape, **fields))
        product = (a.astype(np.int64) - 3) * (value.astype(np.int64) + 4)
        np.testing.assert_array_equal(got(state, a.shape), numerics.requantize(product, scale, 9))


@pytest.mark.parametrize("per_channel", [False, True])
def test_table(per_channel):
    rng = np.random.default_rng(6)
    x, tables = int8(rng, 2, 3, 7), int8(rng, 7, 256) if per_channel else int8(rng, 256)
    state = fresh()
    put(state, ACTIVATION, 0, x)
    put(state, PARAMETER, 0, tables)
    run(
        state,
        isa.Table(
            out_h=2, out_w=3, width=7, in_address=0, in_row_pitch=21, in_pixel_pitch=7, out_address=OUT,
            out_row_pitch=21, out_pixel_pitch=7, table=0, per_channel=int(per_channel),
        ),
    )  # fmt: skip
    np.testing.assert_array_equal(got(state, x.shape), numerics.look_up(x, tables))


def test_softmax_and_layer_norm_rows():
    rng = np.random.default_rng(7)
    x = int8(rng, 5, 33)
    factors = numerics.softmax_factors(0.07)
    gain, bias, shift = numerics.layer_norm_constants(rng.normal(1, 0.2, 33), rng.normal(0, 1, 33), 33, 0.05, -3)
    state = fresh()
    put(state, ACTIVATION, 0, np.pad(x, ((0, 0), (0, 7))))
    put(state, PARAMETER, 0, factors)
    put(state, PARAMETER, 1024, gain)
    put(state, PARAMETER, 2048, bias)
    rows = {"rows": 5, "length": 33, "in_address": 0, "in_pitch": 40, "out_address": OUT, "out_pitch": 33}
    run(state, isa.Softmax(factors=0, **rows))
    np.testing.assert_array_equal(got(state, x.shape), numerics.softmax(x, factors))
    run(state, isa.LayerNorm(gain=1024, bias=2048, shift=shift, epsilon=77, minimum=-90, **rows))
    np.testing.assert_array_equal(got(state, x.shape), numerics.layer_norm(x, gain, bias, shift, 77, -90))


def test_interpolate_is_a_row_of_a_linear_resize():
    rng = np.random.default_rng(8)
    x = int8(rng, 1, 3, 4, 5)
    low, high = np.array([0, 0, 1, 2, 3, 3]), np.array([0, 1, 2, 3, 3, 3])
    weight_w, low_h, high_h, weight_h = np.array([0, 100, 256, 1, 0, 255]), [0, 1], [1, 2], [37, 200]
    scale = np.array([0.9 * 2**-16], np.float32)
    op = ResizeLinear(
        "r", ("x",), "y", low_h=np.array(low_h), high_h=np.array(high_h), weight_h=np.array(weight_h), low_w=low,
        high_w=high, weight_w=weight_w, requantize=Requantize(scale, 4),
    )  # fmt: skip
    want = judge(op, x, -6, 4)
    state = fresh()
    put(state, ACTIVATION, 0, x)
    put(state, PARAMETER, 0, np.stack([low, high, weight_w], axis=1).astype("<u2"))
    put(state, PARAMETER, 100, np.frombuffer(encode_records(0, scale, "exact_half_up"), np.uint8))
    for i in range(2):
        run(
            state,
            isa.Interpolate(
                out_w=6, width=5, row_low=20 * low_h[i], row_high=20 * high_h[i], pixel_pitch=5, weight_y=weight_h[i],
                coordinates=0, zero=-6, out_address=OUT + 30 * i, out_pixel_pitch=5, params=100, out_zero=4,
            ),
        )  # fmt: skip
    np.testing.assert_array_equal(got(state, want.shape), want)


# ---------------------------------------------------------------------------------------------- dma
def test_copy_transposes_repeats_and_fills():
    rng = np.random.default_rng(9)
    x = int8(rng, 4, 6)
    state = fresh(main=x.tobytes())
    run(
        state,
        isa.Copy(
            unit=Queue.load, source=Space.main, target=Space.activation, target_address=OUT, run_bytes=1,
            n1=6, n2=4, source_stride1=1, source_stride2=6, target_stride1=4, target_stride2=1,
        ),
    )  # fmt: skip
    np.testing.assert_array_equal(got(state, (6, 4)), x.T)
    run(
        state,
        isa.Copy(
            unit=Queue.store, source=Space.activation, target=Space.activation, source_address=OUT + 20,
            target_address=OUT + 100, run_bytes=4, n1=6, n2=2, source_stride1=-4, target_stride1=8, target_stride2=4,
        ),
    )  # fmt: skip
    np.testing.assert_array_equal(got(state, (6, 2, 4), OUT + 100), np.repeat(x.T[::-1, None], 2, axis=1))
    run(state, isa.Copy(unit=0, source=Space.fill, target=2, target_address=OUT, run_bytes=9, fill=-7))
    np.testing.assert_array_equal(got(state, (9,)), np.full(9, -7))


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_gather_rows_clamps_and_counts_from_the_end(dtype):
    rng = np.random.default_rng(10)
    table, index = int8(rng, 5, 8), np.array([0, 4, -1, -5, 99, -99], dtype=dtype)
    state = fresh(constants=b"\0\0" + table.tobytes())
    put(state, ACTIVATION, 40, index)
    run(
        state,
        isa.GatherRows(
            unit=Queue.load, source=Space.constant, index_address=40, index_bytes=index.itemsize, count=6,
            table_address=2, table_rows=5, run_bytes=8, target_address=OUT, target_pitch=8,
        ),
    )  # fmt: skip
    np.testing.assert_array_equal(got(state, (6, 8)), table[[0, 4, 4, 0, 4, 0]])


def copy(**fields):
    return isa.Copy(**({"unit": 0, "source": Space.main, "target": ACTIVATION, "target_address": 0} | fields))


@pytest.mark.parametrize(
    ("ins", "message"),
    [
        (copy(run_bytes=5), "copy: touches bytes 0..4 of the main memory, which has 4"),
        (copy(run_bytes=1, n1=2, source_stride1=-1), "copy: touches bytes -1..0 of the main memory, which has 4"),
        (
            copy(run_bytes=4, target_address=262142),
            "copy: touches bytes 262142..262145 of the activation memory, which has 262144",
        ),
        (
            copy(run_bytes=4, source=ACTIVATION, source_address=8, target=WEIGHT),
            "copy: reads byte 8 of the activation memory, which nothing wrote",
        ),
    ],
)
def test_illegal_accesses(ins, message):
    with pytest.raises(ProgramError) as error:
        run(fresh(main=b"abcd"), ins)
    assert str(error.value) == message


def test_padding_touches_no_memory_but_unwritten_data_inside_the_window_is_an_error():
    state = fresh()
    put(state, ACTIVATION, 0, np.zeros((2, 2, 4), np.int8))
    put(state, PARAMETER, 0, np.frombuffer(encode_records(0, np.ones(4, np.float32), "exact_half_up"), np.uint8))
    fields = {
        "address": 0, "row_pitch": 8, "pixel_pitch": 4, "in_h": 2, "in_w": 2, "y0": -1, "x0": -1, "kernel_h": 3,
        "kernel_w": 3, "out_h": 2, "out_w": 2, "width": 4, "out_address": OUT, "out_row_pitch": 8,
        "out_pixel_pitch": 4, "params": 0, "out_zero": 0, "mode": 1,
    }  # fmt: skip
    run(state, isa.Pool(**fields))
    with pytest.raises(ProgramError) as error:
        run(state, isa.Pool(**(fields | {"in_w": 3, "row_pitch": 12, "out_w": 3})))
    assert str(error.value) == "pool: reads bytes of the activation memory that nothing wrote"


def test_routes():
    bad = copy(unit=Queue.store, run_bytes=4)
    with pytest.raises(ProgramError, match="the store queue cannot move main to activation"):
        bad.check(EDGE)
    with pytest.raises(ProgramError, match="machine 'edge-16x16' has no constant memory, hence no fetch queue"):
        copy(unit=Queue.fetch, source=Space.constant, run_bytes=4).check(EDGE)
