"""The compiled library as a C programmer meets it: linking, callers, threads, instruction sets, errors."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from host_library import Library
from program_builder import ProgramBuilder

from qcompiler.codegen import aot
from qcompiler.codegen.cpu.target import CpuTarget, cpu_target, host_cpu_flags
from qcompiler.sim import reference
from qcompiler.sim.errors import TargetError
from qcompiler.sim.integer_program import IntegerProgram

ROOT = Path(__file__).resolve().parents[2]
RUNTIME = ROOT / "codegen" / "runtime"
X86 = cpu_target("x86").levels
NO_PYTHON = {"PATH": "/usr/bin:/bin"}


def small_network(seed: int = 0, channels: int = 16) -> tuple[ProgramBuilder, IntegerProgram]:
    b = ProgramBuilder(seed)
    x = b.quantize(b.transpose(b.input((1, 3, 12, 10), "float32"), (0, 2, 3, 1)))
    a = b.conv(x, channels, (3, 3), padding=(1, 1, 1, 1))
    a = b.add(b.conv(a, channels, (3, 3), padding=(1, 1, 1, 1)), a)
    a = b.table(b.max_pool(a, (2, 2), (2, 2)))
    a = b.softmax(b.dense(b.reshape(a, (1, 6 * 5 * channels)), 10))
    return b, b.program([b.dequantize(a)])


def write_case(b: ProgramBuilder, program: IntegerProgram, folder: Path, name: str) -> tuple[Path, Path]:
    """Input and expected output as raw files."""
    values = b.random_inputs(program)
    wanted = reference.execute(program, values)
    paths = folder / f"{name}.in", folder / f"{name}.out"
    paths[0].write_bytes(values[program.inputs[0]].tobytes())
    paths[1].write_bytes(wanted[program.outputs[0]].tobytes())
    return paths


def gcc(*arguments: object) -> None:
    result = subprocess.run(["gcc", *map(str, arguments)], capture_output=True, text=True, env=NO_PYTHON)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("library", ["libmodel.a", "model.so"])
def test_c_example_needs_only_gcc(library: str, tmp_path: Path) -> None:
    b, program = small_network()
    aot.build(program, cpu_target("x86"), tmp_path)
    source, wanted = write_case(b, program, tmp_path, "case")
    binary, found = tmp_path / "example", tmp_path / "found"
    static = ["-static"] if library == "libmodel.a" else [f"-Wl,-rpath,{tmp_path}"]
    gcc(
        "-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", ROOT / "examples/c/run_model.c", "-I", tmp_path,
        tmp_path / library, *static, "-lm", "-pthread", "-o", binary,
    )  # fmt: skip
    done = subprocess.run([binary, source, found], env=NO_PYTHON, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"computed with (avx|amx)[\w-]*\n", done.stderr)
    assert found.read_bytes() == wanted.read_bytes()


def test_products_name_nothing_foreign(tmp_path: Path) -> None:
    _, program = small_network()
    aot.build(program, cpu_target("x86"), tmp_path, "net")
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "Makefile",
        "libmodel.a",
        "main.c",
        "model.h",
        "model.o",
        "model.so",
    ]

    def symbols(*options: str) -> list[str]:
        listed = subprocess.run(["nm", *options], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
        return [line.split()[-1].partition("@")[0] for line in listed.splitlines() if line.strip()]

    api = {f"net_{n}" for n in ("run", "set_threads", "isa", "error", "profile", "step_count", "step_name")}
    assert set(symbols("--defined-only", "--extern-only", "model.o")) == api
    assert set(symbols("-D", "--defined-only", "model.so")) == api
    allowed = re.compile(
        r"_GLOBAL_OFFSET_TABLE_|pthread_\w+|aligned_alloc|clock_gettime|free|getenv|syscall|str\w+|mem\w+"
    )
    assert [s for s in symbols("-u", "model.o") if not allowed.fullmatch(s)] == []


def test_same_program_same_bytes(tmp_path: Path) -> None:
    _, program = small_network()
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        aot.build(program, cpu_target("x86:avx2"), tmp_path / name)
    for name in ("model.so", "libmodel.a", "model.o", "model.h"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_two_models_many_callers_and_forks(tmp_path: Path) -> None:
    cases = []
    for seed, name in enumerate(("first", "second")):
        b, program = small_network(seed, 16 + 8 * seed)
        folder = tmp_path / name
        folder.mkdir()
        aot.build(program, cpu_target("x86"), folder, name)
        shutil.copy(folder / "model.h", tmp_path / f"{name}.h")
        cases += write_case(b, program, tmp_path, name)
    binary = tmp_path / "two_models"
    gcc(
        "-O1", "-Wall", "-Wextra", Path(__file__).with_name("two_models.c"), "-I", tmp_path,
        tmp_path / "first/libmodel.a", tmp_path / "second/libmodel.a", "-lm", "-pthread", "-o", binary,
    )  # fmt: skip
    done = subprocess.run([binary, "1000", *cases], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, "0 wrong\n"), done


@pytest.mark.parametrize("sanitizer, mode", [("address,undefined", "fork"), ("thread", "")])
def test_runtime_under_sanitizers(sanitizer: str, mode: str, tmp_path: Path) -> None:
    binary = tmp_path / "stress"
    sources = [
        RUNTIME / "run.c",
        RUNTIME / "threads.c",
        RUNTIME / "cpu.c",
        Path(__file__).with_name("runtime_stress.c"),
    ]
    gcc("-std=gnu11", "-O1", "-g", f"-fsanitize={sanitizer}", "-fno-sanitize-recover", "-Wall", "-Wextra", "-Werror",
        "-I", RUNTIME, *sources, "-pthread", "-o", binary)  # fmt: skip
    # ThreadSanitizer cannot map its shadow where the kernel places libraries too randomly.
    runner = ["setarch", "-R"] if sanitizer == "thread" and shutil.which("setarch") else []
    done = subprocess.run([*runner, binary, mode], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, "0 wrong\n"), done.stderr[-3000:]
    assert done.stderr == ""


def test_profile_names_and_times_every_step(build_library: Callable[..., Library]) -> None:
    b, program = small_network()
    library = build_library(program)
    count = library.call("step_count")()
    library.call("step_name").restype = ctypes.c_char_p
    names = [library.call("step_name")(i).decode() for i in range(count)]
    report = library.report  # type: ignore[attr-defined]
    by_step = {op.step: op for op in report.operations if op.step >= 0}
    assert all(names[i].startswith(op.kernel) for i, op in by_step.items())
    assert library.call("step_name")(count) is None
    times = (ctypes.c_uint64 * count)()
    values = b.random_inputs(program)
    library.call("profile")(times)
    library.run(values)
    first = list(times)
    library.run(values)
    library.call("profile")(None)
    second = list(times)
    library.run(values)
    assert all(a > 0 for a in first) and all(b > a for a, b in zip(first, second, strict=True))
    assert list(times) == second


def test_report_places_every_operation(build_library: Callable[..., Library]) -> None:
    _, program = small_network()
    report = build_library(program).report  # type: ignore[attr-defined]
    assert [op.name for op in report.operations] == [op.name for op in program.operations]
    kernels = {op.name.rstrip("0123456789"): op.kernel for op in report.operations}
    assert kernels["transpose"] == kernels["quantize"] == "quantize"
    assert kernels["reshape"] == "" and kernels["add"] == "conv2d"
    assert sum(op.macs for op in report.operations) == sum(program.macs(op) for op in program.operations)
    assert report.arena_bytes >= report.arena_bound > 0


def isa_of(path: Path, forced: str | None, before: str = "pass") -> tuple[str | None, int]:
    """(instruction set chosen, status of a call) in a process of its own, where nothing is chosen yet.

    before: Python that runs before the library is loaded.
    """
    code = (
        f"import ctypes, sys; {before}; d = ctypes.CDLL(sys.argv[1]); d.model_isa.restype = ctypes.c_char_p;"
        "x = ctypes.create_string_buffer(1 << 20); p = (ctypes.c_void_p * 1)(ctypes.addressof(x));"
        "print(repr(d.model_isa()), d.model_run(p, p, x))"
    )
    env = {**os.environ, "QCOMPILER_ISA": forced or ""}
    done = subprocess.run(["python3", "-c", code, path], capture_output=True, text=True, env=env, check=True)
    name, status = done.stdout.rsplit(maxsplit=1)
    return (None if name == "None" else name[2:-1]), int(status)


def test_instruction_set_is_chosen_or_forced(tmp_path: Path) -> None:
    _, program = small_network()
    target = cpu_target("x86")
    aot.build(program, target, tmp_path)
    best = next(level for level in target.levels if host_cpu_flags() >= set(level.cpu_flags))
    assert isa_of(tmp_path / "model.so", None) == (best.name, 0)
    assert isa_of(tmp_path / "model.so", "avx2") == ("avx2", 0)
    assert isa_of(tmp_path / "model.so", "avx2!") == ("avx2", 0)
    assert isa_of(tmp_path / "model.so", "avx1024") == (None, 3)
    for level in target.levels:
        supported = host_cpu_flags() >= set(level.cpu_flags)
        assert isa_of(tmp_path / "model.so", level.name) == ((level.name, 0) if supported else (None, 2))


@pytest.mark.skipif(not cpu_target("x86:amx").supported_here(), reason="CPU lacks AMX")
def test_tiles_that_linux_refuses_are_not_used(tmp_path: Path) -> None:
    """Linux grants the tile registers only where they fit onto every alternate signal stack."""
    _, program = small_network()
    aot.build(program, cpu_target("x86"), tmp_path)
    small_stack = (
        "stack = ctypes.create_string_buffer(4096);"
        "argument = (ctypes.c_int64 * 3)(ctypes.addressof(stack), 0, 4096);"
        "assert ctypes.CDLL(None).sigaltstack(argument, None) == 0"
    )
    assert isa_of(tmp_path / "model.so", None) == ("amx", 0)
    assert isa_of(tmp_path / "model.so", None, small_stack) == ("avx512-vnni", 0)
    assert isa_of(tmp_path / "model.so", "amx", small_stack) == (None, 2)
    assert isa_of(tmp_path / "model.so", "amx!", small_stack) == (None, 2)


def test_levels_share_the_kernels_that_do_not_differ(tmp_path: Path) -> None:
    """amx adds kernels for matrix work alone: everything else is avx512-vnni's. avx2 has a step more, Winograd's."""
    b = ProgramBuilder(1)
    x = b.quantize(b.input((1, 28, 28, 64), "float32"))
    program = b.program([b.dequantize(b.max_pool(b.conv(x, 64, (3, 3), padding=(1, 1, 1, 1)), (2, 2), (2, 2)))])
    counts = {}
    for name, levels in (("vectors", X86[1:]), ("all", X86), ("amx", X86[:1])):
        target = CpuTarget("test", "some levels", levels)
        (tmp_path / name).mkdir()
        counts[name] = aot.build(program, target, tmp_path / name).kernels
    assert counts == {"vectors": 3 * counts["amx"] + 1, "all": 3 * counts["amx"] + 2, "amx": 5}


def test_a_cpu_without_the_level_is_an_error_code(tmp_path: Path) -> None:
    _, program = small_network()
    missing = [t for t in ("x86:avx512-vnni", "x86:avx-vnni") if not cpu_target(t).supported_here()]
    if not missing:
        pytest.skip("this CPU has every instruction set, so none can be missed")
    aot.build(program, cpu_target(missing[0]), tmp_path)
    assert isa_of(tmp_path / "model.so", None) == (None, 2)


def test_null_pointers_and_messages(build_library: Callable[..., Library]) -> None:
    _, program = small_network()
    library = build_library(program)
    library.call("error").restype = ctypes.c_char_p
    space = ctypes.create_string_buffer(1 << 20)
    one = (ctypes.c_void_p * 1)(ctypes.addressof(space))
    none = (ctypes.c_void_p * 1)()
    run = library.call("run")
    for arguments in ((None, one, space), (one, None, space), (one, one, None), (none, one, space), (one, none, space)):
        assert run(*arguments) == 1
    assert library.call("error")(1) == b"an input, an output or the workspace is a null pointer"
    assert library.call("error")(2) == b"this CPU lacks the instruction set that the model was compiled for"
    assert library.call("error")(77) == b"unknown error"
    assert library.call("set_threads")(-1) == 4


def test_missing_compiler_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, program = small_network()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(TargetError) as error:
        aot.build(program, cpu_target("x86:avx2"), tmp_path)
    assert str(error.value) == (
        "target x86:avx2 needs gcc, which is not on the PATH; install gcc and binutils (on Debian: apt-get install gcc)"
    )


def test_prefix_must_be_an_identifier(tmp_path: Path) -> None:
    _, program = small_network()
    with pytest.raises(TargetError) as error:
        aot.build(program, cpu_target("x86:avx2"), tmp_path, "my-net")
    assert str(error.value) == "the name 'my-net' cannot begin C functions; use letters, digits and underscores"


def test_unknown_target_suggests() -> None:
    with pytest.raises(TargetError, match=r"unknown CPU target 'x86:avx512'; did you mean .*'x86:avx512-vnni'"):
        cpu_target("x86:avx512")


def test_a_failing_build_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, program = small_network()

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(aot, "_run", full_disk)
    with pytest.raises(OSError, match="No space left"):
        aot.build(program, cpu_target("x86:avx2"), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_names_of_any_script_reach_the_header(tmp_path: Path) -> None:
    b = ProgramBuilder()
    x = b.input((2, 4), "float32")
    program = b.program([b.dequantize(b.quantize(x))])
    renamed = 'in "put" \\ */ ünï'
    tensors = {n if n != x.name else renamed: t for n, t in program.tensors.items()}
    tensors[renamed] = type(x)(renamed, x.shape, x.dtype)
    first = type(program.operations[0])("quantize */", (renamed,), program.operations[0].output)
    named = program.replace(inputs=(renamed,), tensors=tensors, operations=(first, *program.operations[1:]))
    aot.build(named, cpu_target("x86:avx2"), tmp_path)
    probe = tmp_path / "probe.c"
    probe.write_text(
        '#include <stdio.h>\n#include "model.h"\nint main(void) { fputs(MODEL_INPUT_0_NAME, stdout); return 0; }\n'
    )
    gcc("-Wall", "-Werror", probe, "-I", tmp_path, "-o", tmp_path / "probe")
    assert subprocess.run([tmp_path / "probe"], capture_output=True).stdout.decode() == renamed
