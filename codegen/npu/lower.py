"""The accelerator's compiler: an integer program becomes instructions for one machine.

1. `partition`: what runs on the accelerator. 2. `workload.extract`: its layers. 3. `plan`: which tensors stay in
the activation memory, a mapping for each layer, and all addresses. 4. each layer is lowered in turn; `hazards` orders
the queues. The result computes exactly what the integer program defines.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from qcompiler.codegen.npu import elementwise, matrix, move, vector
from qcompiler.codegen.npu.context import Context, Place, Slots
from qcompiler.codegen.npu.hazards import Arena
from qcompiler.codegen.npu.partition import partition
from qcompiler.codegen.npu.placement import Item, pack
from qcompiler.sim import workload
from qcompiler.sim.errors import TargetError
from qcompiler.sim.estimate import Scheduled
from qcompiler.sim.hardware import Machine
from qcompiler.sim.integer_program import Add, IntegerProgram
from qcompiler.sim.isa import Halt, Space
from qcompiler.sim.mapping import Mapping, Residency, reserve, shortfall, slot_bytes
from qcompiler.sim.moves import Box
from qcompiler.sim.program import Layer as LayerInfo
from qcompiler.sim.program import NpuProgram, Port
from qcompiler.sim.search import search
from qcompiler.sim.workload import Geometry, Layer, nhwc

LOWER: dict[str, Callable[[Context, Layer, Mapping], None]] = {
    "conv": matrix.lower, "matmul": matrix.lower, "depthwise": vector.depthwise, "pool": vector.pool,
    "elementwise": elementwise.binary, "table": elementwise.table, "softmax": elementwise.rows,
    "layer_norm": elementwise.rows, "resize": elementwise.resize, "embedding": elementwise.embedding,
    "move": move.move,
}  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """What was decided before the first instruction.

    layers with their mappings and residencies; roots: each tensor's storage, views resolved; activation, main:
    addresses of tensors (and, as "layer:operand", of double buffers); main_bytes: what the main memory holds.
    """

    layers: list[Layer]
    mappings: list[Mapping]
    residencies: list[Residency]
    roots: dict[str, str]
    activation: dict[str, int]
    main: dict[str, int]
    main_bytes: int

    def schedule(self) -> list[Scheduled]:
        """The layers as the closed form of `sim.estimate` wants them."""
        return [
            Scheduled(
                y.geometry, m, r, self.roots[y.inputs[0]], self.roots[y.output],
                tuple(self.roots[n] for op in y.operations for n in op.inputs if n in y.inputs)[1:],
            )
            for y, m, r in zip(self.layers, self.mappings, self.residencies, strict=True)
        ]  # fmt: skip


def refuse(program: IntegerProgram, machine: Machine) -> None:
    """Raise TargetError naming every operation that this machine does not implement."""
    problems = []
    for op in program.operations:
        shapes = [t.shape for t in program.input_tensors(op)]
        rounding = getattr(op, "rounding", None) if isinstance(op, Add) else None
        requantize = getattr(op, "requantize", None)
        if rounding not in (None, "exact_half_up"):
            problems.append(f"{op.name!r}: an Add that rounds {rounding} (only exact_half_up exists in hardware)")
        if requantize is not None and requantize.rounding not in machine.vector.roundings:
            problems.append(f"{op.name!r}: rounding {requantize.rounding} (vector.roundings has "
                            f"{', '.join(machine.vector.roundings)})")  # fmt: skip
        shape = program.output_tensor(op).shape
        try:
            if not workload.is_view(op, shapes, shape):
                workload.geometry(op, shapes, shape)
        except (ValueError, TypeError) as error:
            problems.append(f"{op.name!r}: {error}")
    if problems:
        lines = "\n  ".join(problems)
        raise TargetError(f"machine {machine.name!r} cannot run these operations of {program.name!r}:\n  {lines}")


def storage(program: IntegerProgram) -> dict[str, str]:
    """Each tensor's root: the tensor whose bytes a chain of views shows."""
    roots = {n: n for n in program.tensors}
    for op in program.operations:
        if workload.is_view(op, [t.shape for t in program.input_tensors(op)], program.output_tensor(op).shape):
            roots[op.output] = roots[op.inputs[0]]
    return roots


def plan(program: IntegerProgram, machine: Machine) -> Plan:
    """Choose residency, mappings and addresses. Raises TargetError for a layer that fits no memory."""
    layers, roots = workload.extract(program), storage(program)
    layers += _copies(program, roots)
    lifetimes = _lifetimes(program, layers, roots)
    sizes = {n: program.tensors[n].bytes for n in lifetimes}
    made = {roots[layer.output] for layer in layers}
    external = {roots[n] for n in program.outputs} | (set(lifetimes) - made)
    resident = {n for n in lifetimes if n not in external and sizes[n] <= machine.activation_memory.size_bytes}
    needs: dict[tuple[Geometry, Residency], int | None] = {}
    searched: dict[tuple[Geometry, Residency], Mapping | None] = {}
    while True:
        residencies = []
        for i, layer in enumerate(layers):
            live = [n for n in resident if lifetimes[n][0] <= i <= lifetimes[n][1]]
            free = machine.activation_memory.size_bytes - sum(sizes[n] for n in live)
            r = _residency(program, layer, roots, resident, free)
            key = (layer.geometry, replace(r, free_bytes=0))
            if key not in needs:
                needs[key] = reserve(layer.geometry, r, machine)
            need = needs[key]
            if need is None or (need > r.free_bytes and not live):
                raise TargetError(
                    f"layer {layer.name!r} does not fit machine {machine.name!r}: "
                    f"{shortfall(layer.geometry, r, machine)}"
                )
            if need > r.free_bytes:
                resident.discard(max(live, key=lambda n: (sizes[n], n)))
                break
            residencies.append(r)
        if len(residencies) < len(layers):
            continue
        mappings, items = [], [Item(n, sizes[n], *lifetimes[n]) for n in resident]
        for i, (layer, r) in enumerate(zip(layers, residencies, strict=True)):
            if (layer.geometry, r) not in searched:
                searched[layer.geometry, r] = search(layer.geometry, r, machine)
            m = searched[layer.geometry, r]
            assert m is not None, layer.name
            mappings.append(m)
            slots = slot_bytes(layer.geometry, m, r, machine)
            items += [Item(f"{i}:{operand}", 2 * size, i, i) for operand, size in slots.items()]
        activation, used = pack(items)
        if used <= machine.activation_memory.size_bytes:
            break
        resident.discard(max(resident, key=lambda n: (sizes[n], n)))
    outside = [Item(n, sizes[n], *lifetimes[n]) for n in lifetimes if n not in resident and n not in program.constants]
    main, main_bytes = pack(outside, machine.main_memory.burst_bytes)
    return Plan(layers, mappings, residencies, roots, activation, main, max(main_bytes, 1))


def _copies(program: IntegerProgram, roots: dict[str, str]) -> list[Layer]:
    """Layers that copy outputs which are only views of an input, a constant or another output; `roots` is updated."""
    taken = {*program.inputs, *program.constants} | {n for n in program.outputs if roots[n] == n}
    producers, layers = program.producers(), []
    for n in program.outputs:
        if roots[n] in taken and roots[n] != n:
            op, shape = producers[n], program.tensors[n].shape
            boxes = (Box(0, 0, 0, (), program.tensors[n].bytes),)
            layers.append(Layer(op.name, Geometry("move", nhwc(shape), nhwc(shape), boxes=boxes), (op,)))
            roots[n] = n
        taken.add(roots[n])
    return layers


def _lifetimes(program: IntegerProgram, layers: list[Layer], roots: dict[str, str]) -> dict[str, tuple[int, int]]:
    """First and last layer of each root tensor that anything reads or writes; inputs begin at -1, outputs never end."""
    found: dict[str, tuple[int, int]] = {}
    for n in program.inputs:
        found[roots[n]] = (-1, -1)
    for i, layer in enumerate(layers):
        for n in layer.inputs:
            root = roots[n]
            found[root] = (found.get(root, (-1, -1))[0], i)
        found[roots[layer.output]] = (i, i)
    for n in program.outputs:
        found[roots[n]] = (found[roots[n]][0], len(layers))
    return found


def _residency(
    program: IntegerProgram, layer: Layer, roots: dict[str, str], resident: set[str], free: int
) -> Residency:
    head, kind = layer.operations[0], layer.geometry.kind
    tail = [n for op in layer.operations[1:] for n in op.inputs if n in layer.inputs]
    names = {
        "image": list(head.inputs) if kind == "move" else [head.inputs[-1 if kind == "embedding" else 0]],
        "operand": [*(head.inputs[1:] if kind == "elementwise" else ()), *tail],
        "weights": list(head.inputs[1:]) if kind == "matmul" else [],
        "table": list(head.inputs[:1]) if kind == "embedding" else [],
    }
    here = {name: all(roots[n] in resident for n in parts) for name, parts in names.items()}
    constant = tuple(k for k, parts in names.items() if parts and all(roots[n] in program.constants for n in parts))
    output = roots[layer.output] in resident
    return Residency(here["image"], output, here["operand"], free, here["weights"], constant)


def compile_npu(program: IntegerProgram, machine: Machine, host_fallback: bool = False) -> NpuProgram:
    """Compile the integer part of the program (`partition`) for the machine.

    The ports of the result are the core's inputs and outputs. Raises TargetError for what the machine cannot run or
    hold, naming the operations, the memory and by how much it falls short.
    """
    core = partition(program, host_fallback).core
    refuse(core, machine)
    decided = plan(core, machine)
    context = Context(core, machine)
    main = Arena("main", decided.main_bytes)
    for name in core.constants:
        value = np.ascontiguousarray(core.constants[name])
        context.places[name] = Place(Space.constant, context.constant(value.tobytes()), context.constant_buffer)
    for name in core.inputs:
        _place(context, decided, main, name)
    for i, (layer, m, r) in enumerate(zip(decided.layers, decided.mappings, decided.residencies, strict=True)):
        for n in layer.inputs:
            context.places[n] = context.places[decided.roots[n]]
        _place(context, decided, main, layer.output)
        context.stream.layer = i
        context.slots = {
            operand: Slots(context.activation, f"{i}:{operand}", decided.activation[f"{i}:{operand}"], size, 2)
            for operand, size in slot_bytes(layer.geometry, m, r, machine).items()
        }
        LOWER[layer.geometry.kind](context, layer, m)
    context.stream.emit(Halt(), [], [])
    return NpuProgram(
        name=program.name, machine=machine, instructions=tuple(context.stream.finish()),
        constants=bytes(context.constants), main_bytes=decided.main_bytes,
        inputs=tuple(_port(core, decided, n) for n in core.inputs),
        outputs=tuple(_port(core, decided, n) for n in core.outputs),
        layers=tuple(LayerInfo(y.name, y.geometry.kind, y.geometry.macs) for y in decided.layers),
        layer_of=tuple(context.stream.layers),
    )  # fmt: skip


def _place(context: Context, decided: Plan, main: Arena, name: str) -> None:
    root, size = decided.roots[name], context.tensor(name).bytes
    if root in decided.activation:
        address = decided.activation[root]
        place = Place(Space.activation, address, context.activation.claim(root, address, size))
    else:
        address = decided.main[root]
        place = Place(Space.main, address, main.claim(root, address, size))
    context.places[root] = context.places[name] = place


def _port(core: IntegerProgram, decided: Plan, name: str) -> Port:
    t = core.tensors[name]
    return Port(name, t.dtype, t.shape, decided.main[decided.roots[name]], t.scale, t.zero_point)
