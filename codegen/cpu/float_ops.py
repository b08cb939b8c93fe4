"""Kernels of float fallbacks: the Relax call rebuilt, legalised by TVM, scheduled and lowered to flat loops.

A FloatOp is a Relax call by its law (`qcompiler.sim.float_ops`), so TVM's own definition of the operator makes the
code; what comes out is a function like any other kernel's, with libm calls (expf, erff, ...) at most.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tvm
import tvm_ffi
from tvm import relax, s_tir, te, tirx
from tvm.tirx.analysis import undefined_vars

from qcompiler.codegen.cpu.float_definitions import definition
from qcompiler.codegen.cpu.float_schedule import schedule_default
from qcompiler.codegen.cpu.instruction_set import InstructionSet
from qcompiler.codegen.cpu.kernel import Kernel
from qcompiler.codegen.cpu.loops import broadcast_strides, collapse
from qcompiler.sim.errors import TargetError
from qcompiler.sim.float_ops import FLOAT_OPS, TUPLE_INPUT
from qcompiler.sim.float_ops.elementwise import ELEMENTWISE
from qcompiler.sim.integer_program import FloatOp, Tensor

STACK_BYTES = 4096
"""Temporaries up to this size live on the stack, larger ones in the kernel's scratch memory."""

Signature = tuple[tuple[int, ...], str]  # shape and dtype

# TVM keeps the block builder in use in a global stack, and kernels are made on several threads.
_BLOCK_BUILDER = threading.Lock()

_BROADCASTING = ELEMENTWISE.keys() - {"nn.prelu"}


def float_kernel(op: FloatOp, inputs: Sequence[Tensor], output: Tensor, isa: InstructionSet) -> Kernel:
    """The kernel of one float operation; one task.

    Raises TargetError for a kind without code, and for int8 operands, whose storage only integer kernels know.
    """
    if op.kind not in FLOAT_OPS:
        raise TargetError(f"float operation {op.name!r}: there is no code for its kind {op.kind!r}")
    for tensor in (*inputs, output):
        if tensor.dtype == "int8":
            raise TargetError(f"float operation {op.name!r} ({op.kind}) has the int8 operand {tensor.name!r}")
    shapes, result = [t.shape for t in inputs], output.shape
    if op.kind in _BROADCASTING:  # as few axes as the broadcasting allows: long vectors, and one kernel for many shapes
        extents, strides = collapse(result, [broadcast_strides(s, result) for s in shapes])
        shapes = [tuple(e if s else 1 for e, s in zip(extents, walk, strict=True)) for walk in strides]
        result = tuple(extents)
    parameters: dict[str, Any] = {
        "kind": op.kind,
        "inputs": tuple((s, t.dtype) for s, t in zip(shapes, inputs, strict=True)),
        "output": (result, output.dtype),
        "attributes": tuple(sorted((k, _hashable(v)) for k, v in op.attributes.items())),
    }
    _, scratch = _lowered(isa, *(parameters[k] for k in ("kind", "inputs", "output", "attributes")))
    return Kernel(
        op.kind.rpartition(".")[2], float_template, {**parameters, "scratch_bytes": scratch}, tasks=1,
        scratch_bytes=scratch, boundary=True,
    )  # fmt: skip


def _hashable(value: Any) -> Any:
    return tuple(map(_hashable, value)) if isinstance(value, (list, tuple)) else value


def float_template(
    isa: InstructionSet, kind: str, inputs: tuple[Signature, ...], output: Signature,
    attributes: tuple[tuple[str, Any], ...], scratch_bytes: int,
) -> Any:  # fmt: skip
    """The function of one float operation (see `kernel`); its only task is task_begin == 0."""
    function, _ = _lowered(isa, kind, inputs, output, attributes)
    return function(scratch_bytes)


def relax_call(kind: str, inputs: Sequence[Any], attributes: Mapping[str, Any]) -> Any:
    """The Relax expression that the FloatOp stands for."""
    operator = functools.reduce(getattr, kind.split("."), relax.op)
    options = dict(attributes)
    if kind == "one_hot":
        options.update({k: tirx.const(options[k], "float32") for k in ("on_value", "off_value")})
    return operator(list(inputs), **options) if kind in TUPLE_INPUT else operator(*inputs, **options)


def _legalised(
    kind: str, inputs: tuple[Signature, ...], output: Signature, attributes: tuple[tuple[str, Any], ...]
) -> Any:
    """TVM's definition of the operation as one PrimFunc (inputs..., output)."""
    own = definition(kind, inputs[0][1])
    if own is not None:
        tensors = [te.placeholder(shape, dtype, name=f"x{i}") for i, (shape, dtype) in enumerate(inputs)]
        return te.create_prim_func([*tensors, own(*tensors, **dict(attributes))])
    with _BLOCK_BUILDER:
        builder = relax.BlockBuilder()
        variables = [relax.Var(f"x{i}", relax.TensorType(shape, dtype)) for i, (shape, dtype) in enumerate(inputs)]
        with builder.function("main", variables):
            builder.emit_func_output(builder.emit(relax_call(kind, variables, dict(attributes))))
        module = relax.transform.LegalizeOps()(builder.get())
    functions = [f for _, f in module.functions_items() if isinstance(f, tirx.PrimFunc)]
    if len(functions) != 1:
        raise TargetError(f"float operation {kind!r}: TVM has no default implementation of it for {inputs}")
    return functions[0]


@functools.lru_cache(maxsize=256)
def _lowered(
    isa: InstructionSet, kind: str, inputs: tuple[Signature, ...], output: Signature,
    attributes: tuple[tuple[str, Any], ...],
) -> tuple[Callable[[int], Any], int]:  # fmt: skip
    """How to make the function for a size of scratch memory (at least the second result)."""
    options = dict(attributes)
    pack, group = False, 0
    if kind.startswith("nn.conv") and options.get("data_layout", "NCHW").endswith("C"):
        pack = options["kernel_layout"].startswith("O")
        groups = options.get("groups", 1)
        group = output[0][-1] // groups if 1 < groups < inputs[0][0][-1] else 0
    function = schedule_default(_legalised(kind, inputs, output, attributes), isa.lanes(4), pack, group)
    flat = _flatten(function, isa)
    body, sizes = _outsource(flat.body)
    return functools.partial(_assemble, list(flat.params), body, sizes), sum(sizes.values())


def _flatten(function: Any, isa: InstructionSet) -> Any:
    """Blocks and multi-dimensional buffers to plain loops over flat buffers."""
    target = tvm.target.Target(dict(isa.llvm))
    passes = tvm.transform.Sequential([
        tirx.transform.BindTarget(target.with_host(target)),
        s_tir.transform.LowerInitBlock(),
        s_tir.transform.PlanAndUpdateBufferAllocationLocation(),
        s_tir.transform.ConvertBlocksToOpaque(),
        s_tir.transform.CompactBufferAllocation(),
        s_tir.transform.LowerMatchBuffer(),
        s_tir.transform.StmtSimplify(),
        s_tir.transform.LowerOpaqueBlock(),
        tirx.transform.FlattenBuffer(),
        tirx.transform.NarrowDataType(32),
        tirx.transform.VectorizeLoop(True),
        tirx.transform.StorageRewrite(),
    ])  # fmt: skip
    return passes(tvm.IRModule({"main": function}))["main"]


def _outsource(body: Any) -> tuple[Any, dict[Any, int]]:
    """Take the large temporaries out of the body: (body, their buffers and sizes in bytes); loops become serial."""
    sizes: dict[Any, int] = {}

    def allocation(statement: Any) -> Any:
        buffer = statement.buffer
        elements = 1
        for extent in buffer.shape:
            elements *= int(extent)
        size = elements * tvm.DataType(buffer.dtype).itemsize
        if size <= STACK_BYTES:
            return statement
        sizes[buffer] = -(-size // 64) * 64
        return tirx.Evaluate(tirx.const(0, "int32"))

    def serial(loop: Any) -> Any:
        if loop.kind != tirx.ForKind.PARALLEL:
            return loop
        return tirx.For(loop.loop_var, loop.min, loop.extent, tirx.ForKind.SERIAL, loop.body)

    body = tvm_ffi.structural_map(body, [(tirx.AllocBuffer, allocation), (tirx.For, serial)], order="post")
    return body, sizes


def _assemble(parameters: list[Any], body: Any, sizes: dict[Any, int], scratch_bytes: int) -> Any:
    """The kernel's function: (inputs..., [scratch], output, task_begin, task_end)."""
    *inputs, output = parameters
    scratch = tirx.decl_buffer((scratch_bytes,), "uint8", name="scratch") if scratch_bytes else None
    statements: list[Any] = []
    offset = 0
    for buffer, size in sizes.items():
        place = tirx.address_of(tirx.BufferLoad(scratch, [tirx.const(offset, "int32")]))
        pointer = tirx.call_intrin(buffer.data.ty, "tirx.reinterpret", place)
        statements.append(tirx.DeclBuffer(buffer, data=pointer))
        offset += size
    # Buffers that TVM declared with a free offset start where they are.
    free = [v for v in undefined_vars(body, [*parameters, *sizes]) if v.ty.dtype in ("int32", "int64")]
    statements += [tirx.Bind(v, tirx.const(0, v.ty.dtype)) for v in free]
    tasks = [tirx.Var("task_begin", "int32"), tirx.Var("task_end", "int32")]
    buffers = [*inputs, *([scratch] if scratch_bytes else []), output]
    return tirx.PrimFunc([*buffers, *tasks], tirx.SeqStmt([*statements, body])).with_attr("tirx.noalias", True)
