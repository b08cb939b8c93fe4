"""Kernels to object files: TIR lowered to plain C functions, LLVM, several at a time.

TVM compiles a PrimFunc for its own calling convention; here every parameter buffer becomes a bare pointer, so the
object needs nothing of TVM: the C prototype is ``int32_t symbol(void *buffer..., int32_t begin, int32_t end)``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tvm
import tvm_ffi
from tvm import s_tir, tirx

from qcompiler.codegen.cpu.emit import EXPLICIT
from qcompiler.codegen.cpu.instruction_set import InstructionSet
from qcompiler.codegen.cpu.kernel import Kernel
from qcompiler.codegen.cpu.object_cache import ObjectCache, batch_key, kernel_digest


def _on_stack(body: Any) -> Any:
    """Keep constant-size temporaries on the stack: above 1 KiB TVM would call its runtime's workspace allocator."""

    def annotate(statement: Any) -> Any:
        annotations = dict(statement.annotations) if statement.annotations else {}
        annotations["disable_lower_builtin"] = tirx.IntImm("int32", 1)
        return tirx.AllocBuffer(statement.buffer, annotations)

    return tvm_ffi.structural_map(body, (tirx.AllocBuffer, annotate), order="post")


@tirx.transform.prim_func_pass(opt_level=0, name="PlainFunction")
def _plain_function(function: Any, module: Any, context: Any) -> Any:
    """Turn buffer parameters into bare pointers and return 0."""
    parameters, declarations = [], []
    for p in function.params:
        if hasattr(p, "data"):
            pointer = tirx.Var(p.name + "_ptr", p.data.ty)
            parameters.append(pointer)
            declarations.append(tirx.DeclBuffer(p, data=pointer))
        else:
            parameters.append(p)
    zero = tirx.IntImm("int32", 0)
    body = tirx.SeqStmt([*declarations, _on_stack(function.body), tirx.Return(zero)])
    return tirx.PrimFunc(parameters, body, zero.ty, function.attrs).with_attr("calling_conv", 0)


def _explicit_passes(target: Any) -> Any:
    """For functions of `emit.Emitter`: flat buffers, vectors and loops as they are meant; five times faster."""
    return tvm.transform.Sequential([
        tirx.transform.BindTarget(target.with_host(target)),
        tirx.transform.StmtSimplify(),
        _plain_function,
        tirx.transform.LowerTVMBuiltin(),
        tirx.transform.LowerIntrin(),
    ])  # fmt: skip


def _passes(target: Any) -> Any:
    """For scheduled functions."""
    return tvm.transform.Sequential([
        tirx.transform.BindTarget(target.with_host(target)),
        s_tir.transform.CanonicalizeLoop(),
        s_tir.transform.LowerInitBlock(),
        s_tir.transform.PlanAndUpdateBufferAllocationLocation(),
        s_tir.transform.ConvertBlocksToOpaque(),
        s_tir.transform.CompactBufferAllocation(),
        s_tir.transform.LowerMatchBuffer(),
        s_tir.transform.StmtSimplify(),
        s_tir.transform.LowerOpaqueBlock(),
        tirx.transform.FlattenBuffer(),
        tirx.transform.NarrowDataType(32),
        s_tir.transform.LoopPartition(),
        tirx.transform.VectorizeLoop(True),
        tirx.transform.StorageRewrite(),
        s_tir.transform.HoistIfThenElse(),
        tirx.transform.UnrollLoop(),
        s_tir.transform.RenormalizeSplitPattern(),
        tirx.transform.StmtSimplify(),
        tirx.transform.RemoveNoOp(),
        s_tir.transform.RewriteUnsafeSelect(),
        tirx.transform.CommonSubexprElim(),
        _plain_function,
        tirx.transform.LowerTVMBuiltin(),
        tirx.transform.LowerIntrin(),
    ])  # fmt: skip


# Convolutions have no loop left to unroll or to make vectors of. Measured on x86 with ResNet-50, MobileNets and tiny
# models: as fast, and an eighth less of the time of a compilation. Not so the kernels of BERT.
_LITTLE_TO_OPTIMISE = {"opt-level": 1}
_QUICK = frozenset({"conv2d", "depthwise", "winograd"})


def compile_functions(functions: Mapping[str, Any], isa: InstructionSet, quick: bool = False) -> Any:
    """PrimFuncs by symbol as one TVM module of native code (`.inspect_source("asm")`, `.write_to_file`).

    quick: LLVM's first level of optimisation is enough.
    """
    target = tvm.target.Target({**isa.llvm, **(_LITTLE_TO_OPTIMISE if quick else {})})
    lowered: dict[str, Any] = {}
    for symbol, function in functions.items():
        attributes = function.attrs or {}
        if "tirx.noalias" not in attributes:
            function = function.with_attr("tirx.noalias", True)
        passes = _explicit_passes(target) if EXPLICIT in attributes else _passes(target)
        module = passes(tvm.IRModule({symbol: function.with_attr("global_symbol", symbol)}))
        lowered.update((variable.name_hint, function) for variable, function in module.functions_items())
    return tvm.get_global_func(f"target.build.{target.kind.name}")(tvm.IRModule(lowered), target)


def compile_function(function: Any, symbol: str, isa: InstructionSet) -> Any:
    """One PrimFunc; see `compile_functions`."""
    return compile_functions({symbol: function}, isa)


def _object(module: Any) -> bytes:
    """The module's object file. LLVM writes it to memory: it would abort the process where a disk is full."""
    handle = os.memfd_create("object")
    try:
        module.write_to_file(f"/proc/self/fd/{handle}", "o")
        return os.pread(handle, os.fstat(handle).st_size, 0)
    finally:
        os.close(handle)


def code_level(isa: Any, kernel: Kernel) -> Any:
    """The level whose instructions the kernel is made of: the base of a level that it uses nothing new of."""
    return isa if kernel.extended or isa.base is None else isa.base


BATCH = 6  # kernels in one object, about: LLVM's start and end take as long as a small kernel; threads want several


@dataclass(frozen=True)
class Batch:
    """Kernels on their way into one object file. kernels: how many."""

    kernels: int
    file: Future[Path]


def submit_kernels(
    pool: Executor, kernels: Mapping[str, Kernel], isa: InstructionSet, directory: Path, batch: int | None = BATCH,
    cache: ObjectCache | None = None,
) -> list[Batch]:  # fmt: skip
    """Schedule and compile kernels, by symbol and one of each key, into object files in `directory`.

    LLVM works outside the interpreter lock, so a pool of threads uses as many processors. What is in a batch depends
    on nothing but the kernels: the same program gives the same bytes on every machine. batch: kernels in one object,
    on average; None for all. cache: of objects.
    """

    def compile_batch(level: Any, quick: bool, symbols: Sequence[str]) -> Path:
        key = batch_key((level, quick), ((s, kernels[s]) for s in symbols)) if cache else ""
        code = cache.read(key) if cache else None
        if code is None:
            functions = {s: kernels[s].template(level, **kernels[s].parameters) for s in symbols}
            code = _object(compile_functions(functions, level, quick))
            if cache:
                cache.write(key, code)
        path = directory / f"{symbols[0]}.o"
        path.write_bytes(code)
        return path

    parts: dict[tuple[Any, bool], list[str]] = {}
    for symbol, kernel in kernels.items():
        level = code_level(isa, kernel)
        # Without a C compiler everything becomes one object: what is slower to compile is right for all.
        quick = level.quick_optimiser and kernel.name in _QUICK and batch is not None
        parts.setdefault((level, quick), []).append(symbol)
    batches = [(*part, names) for part, all_ in parts.items() for names in _batches(all_, kernels, batch)]
    return [Batch(len(names), pool.submit(compile_batch, lv, quick, names)) for lv, quick, names in batches]


def _batches(symbols: Sequence[str], kernels: Mapping[str, Kernel], batch: int | None) -> list[list[str]]:
    """Cut behind kernels that their own digest chooses, so that one kernel more or less changes one batch only."""
    if batch is None:
        return [list(symbols)]
    out: list[list[str]] = [[]]
    for symbol in symbols:
        out[-1].append(symbol)
        if int(kernel_digest(kernels[symbol]), 16) % batch == 0 or len(out[-1]) == 2 * batch:
            out.append([])
    return [names for names in out if names]


@contextmanager
def worker_pool() -> Iterator[Executor]:
    """As many threads as the process may run at once; after an exception, what has not begun does not begin."""
    pool = ThreadPoolExecutor(max_workers=len(os.sched_getaffinity(0)))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def compile_kernels(kernels: Mapping[str, Kernel], isa: InstructionSet, directory: Path) -> list[Path]:
    """As `submit_kernels`, on all processors, until everything is done; the object files."""
    with worker_pool() as pool:
        return [batch.file.result() for batch in submit_kernels(pool, kernels, isa, directory)]
