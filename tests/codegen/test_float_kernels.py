"""The code of float fallbacks: every kind compiled to a plain C function and compared with its NumPy meaning."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from float_cases import CASES

from qcompiler.codegen.cpu.compile import compile_function
from qcompiler.codegen.cpu.float_ops import float_kernel
from qcompiler.codegen.cpu.isa.base import VectorInstructionSet
from qcompiler.codegen.cpu.isa.x86 import AVX2, AVX512_VNNI
from qcompiler.codegen.cpu.kernel import Kernel
from qcompiler.codegen.cpu.target import runs_here
from qcompiler.sim.errors import TargetError
from qcompiler.sim.float_ops import FLOAT_OPS
from qcompiler.sim.integer_program import FloatOp, Tensor

Case = tuple[str, tuple[np.ndarray, ...], dict]


def expected(case: Case) -> np.ndarray:
    kind, values, attributes = case
    with np.errstate(all="ignore"):
        out = np.asarray(FLOAT_OPS[kind](*values, **attributes))
    return out.astype(np.float32) if out.dtype == np.float64 else out


def kernel_of(case: Case, isa: VectorInstructionSet) -> Kernel:
    kind, values, attributes = case
    inputs = [Tensor(f"x{i}", v.shape, str(v.dtype)) for i, v in enumerate(values)]
    y = expected(case)
    op = FloatOp("op", tuple(t.name for t in inputs), "y", kind, y.shape, attributes)
    return float_kernel(op, inputs, Tensor("y", y.shape, str(y.dtype)), isa)


def misaligned(value: np.ndarray) -> np.ndarray:
    """A C-order copy one element off a cache line: the most that a caller's own memory guarantees."""
    raw = np.zeros(value.nbytes + 128, dtype=np.uint8)
    start = -raw.ctypes.data % 64 + value.itemsize
    copy = np.ndarray(value.shape, value.dtype, buffer=raw, offset=start)
    copy[...] = value
    return copy


def compile_and_compare(cases: Sequence[Case], isa: VectorInstructionSet, folder: Path) -> None:
    """One library of all the cases' kernels, linked against libm alone (an undefined TVM symbol fails the link)."""
    if not runs_here(isa):
        pytest.skip(f"this machine cannot run {isa.name}")
    kernels = [kernel_of(case, isa) for case in cases]
    objects = []
    for i, kernel in enumerate(kernels):
        compile_function(kernel.template(isa, **kernel.parameters), f"f{i}", isa).write_to_file(str(folder / f"{i}.o"))
        objects.append(str(folder / f"{i}.o"))
    library = folder / "kernels.so"
    subprocess.run(["gcc", "-shared", "-Wl,-z,defs", "-o", str(library), *objects, "-lm"], check=True)
    loaded = ctypes.CDLL(str(library))
    for i, (case, kernel) in enumerate(zip(cases, kernels, strict=True)):
        y = expected(case)
        arrays = [misaligned(v) for v in case[1]]
        got = misaligned(np.full(y.shape, 77).astype(y.dtype))
        scratch = np.full(kernel.scratch_bytes + 64, 255, dtype=np.uint8)  # contents are undefined: NaN here
        pointers = [a.ctypes.data for a in arrays]
        pointers += [-(-scratch.ctypes.data // 64) * 64] if kernel.scratch_bytes else []
        loaded[f"f{i}"](*map(ctypes.c_void_p, [*pointers, got.ctypes.data]), 0, 1)
        np.testing.assert_allclose(got, y, rtol=2e-5, atol=2e-5, err_msg=f"{case[0]} {case[2]}")


def test_one_case_of_every_kind(tmp_path: Path) -> None:
    firsts = list({case[0]: case for case in reversed(CASES)}.values())
    assert len(firsts) == len(FLOAT_OPS)
    compile_and_compare(firsts, AVX2, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("isa", [AVX2, AVX512_VNNI], ids=lambda isa: isa.name)
def test_every_case(isa: VectorInstructionSet, tmp_path: Path) -> None:
    compile_and_compare(CASES, isa, tmp_path)


CONV = {"strides": (1, 1), "padding": (1, 1, 1, 1), "dilation": (1, 1), "groups": 1,
        "data_layout": "NHWC", "kernel_layout": "OHWI", "out_layout": "NHWC"}  # fmt: skip


def test_larger_shapes_reach_tiles_panels_and_scratch(tmp_path: Path) -> None:
    """Extents that make several vectors, rows, panels of packed weights and temporaries beyond the stack."""
    rng = np.random.default_rng(3)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32)

    cases: list[Case] = [
        ("nn.conv2d", (normal(1, 14, 14, 32), normal(96, 3, 3, 32)), CONV),
        ("nn.conv2d", (normal(1, 13, 17, 48), normal(48, 3, 3, 12)), {**CONV, "groups": 4}),
        ("nn.conv2d", (normal(1, 13, 17, 48), normal(48, 3, 3, 1)), {**CONV, "groups": 48}),
        ("nn.conv2d", (normal(1, 13, 17, 24), normal(48, 3, 3, 1)), {**CONV, "groups": 24}),
        ("matmul", (normal(3, 49, 40), normal(3, 40, 100)), {"out_dtype": None}),
        ("matmul", (normal(1, 77), normal(77, 23)), {"out_dtype": None}),
        ("nn.softmax", (normal(6, 40, 50),), {"axis": -1}),
        ("nn.layer_norm", (normal(64, 100), normal(100), normal(100)), {"axes": (-1,), "epsilon": 1e-5}),
        ("nn.max_pool2d", (normal(1, 33, 35, 24),), {"pool_size": (3, 3), "strides": (2, 2), "padding": (1, 1, 1, 1),
                                                    "layout": "NHWC"}),
        ("mean", (normal(1, 25, 25, 24),), {"axis": (1, 2), "keepdims": True}),
        ("add", (normal(1, 30, 30, 24), normal(24)), {}),
        ("multiply", (normal(4, 1, 30, 24), normal(4, 30, 1, 1)), {}),
    ]  # fmt: skip
    assert any(kernel_of(case, AVX2).scratch_bytes for case in cases)
    compile_and_compare(cases, AVX2, tmp_path)


def test_equal_parameters_for_equal_element_wise_work() -> None:
    shapes = [(2, 3, 4), (24,), (1, 24, 1)]
    keys = {kernel_of(("exp", (np.zeros(s, np.float32),), {}), AVX2).key for s in shapes}
    assert len(keys) == 1


def test_what_has_no_code_says_so() -> None:
    x = Tensor("x", (4,), "float32")
    with pytest.raises(TargetError) as unknown:
        float_kernel(FloatOp("op", ("x",), "y", "nn.dropout", (4,)), [x], x, AVX2)
    assert str(unknown.value) == "float operation 'op': there is no code for its kind 'nn.dropout'"
    q = Tensor("q", (4,), "int8", 0.5, 0)
    with pytest.raises(TargetError) as int8:
        float_kernel(FloatOp("op", ("q",), "y", "abs", (4,)), [q], x, AVX2)
    assert str(int8.value) == "float operation 'op' (abs) has the int8 operand 'q'"


def test_indices_outside_stay_inside_the_tensor(tmp_path: Path) -> None:
    """Run-time indices are user data: negative ones count from the end, all others are clamped."""
    rows = np.arange(12, dtype=np.float32).reshape(4, 3)
    index = np.array([[0, -1, 3], [4, -5, 2_000_000_000]])
    cases = [("take", (rows, index.astype(d)), {"axis": 0, "mode": "fast"}) for d in (np.int32, np.int64)]
    assert expected(cases[0])[..., 0].tolist() == [[0, 9, 9], [9, 0, 9]]
    compile_and_compare(cases, AVX2, tmp_path)


def test_crossed_bounds_of_clip(tmp_path: Path) -> None:
    compile_and_compare([("clip", (np.array([1, 2, 3], np.float32),), {"min": 2.0, "max": 1.0})], AVX2, tmp_path)
