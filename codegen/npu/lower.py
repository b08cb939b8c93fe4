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
from qcompiler.sim.errors import TargetError
from qcompiler.sim.evaluate import schedule
from qcompiler.sim.hardware import Machine
from qcompiler.sim.hardware.batch import Machines
from qcompiler.sim.integer_program import IntegerProgram
from qcompiler.sim.isa import Halt, Space
from qcompiler.sim.mapping import Mapping, Residency, slot_bytes
from qcompiler.sim.network import Network, layers_of, network
from qcompiler.sim.program import Layer as LayerInfo
from qcompiler.sim.program import NpuProgram, Port
from qcompiler.sim.residency import misfit
from qcompiler.sim.search import mapping
from qcompiler.sim.workload import Layer

LOWER: dict[str, Callable[[Context, Layer, Mapping], None]] = {
    "conv": matrix.lower, "matmul": matrix.lower, "depthwise": vector.depthwise, "pool": vector.pool,
    "elementwise": elementwise.binary, "table": elementwise.table, "softmax": elementwise.rows,
    "layer_norm": elementwise.rows, "resize": elementwise.resize, "embedding": elementwise.embedding,
    "move": move.move,
}  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """What was decided before the first instruction.

    network: what was decided about; layers, mappings, residencies; roots: each tensor's storage, views resolved;
    activation, main: addresses of tensors (and, as "layer:operand", of double buffers); main_bytes: what the main
    memory holds.
    """

    network: Network
    layers: list[Layer]
    mappings: list[Mapping]
    residencies: list[Residency]
    roots: dict[str, str]
    activation: dict[str, int]
    main: dict[str, int]
    main_bytes: int


def plan(program: IntegerProgram, machine: Machine) -> Plan:
    """Choose residency, mappings and addresses. Raises TargetError for what the machine cannot run or hold."""
    net = network(program)
    refusal = net.refused(machine)
    if refusal:
        raise TargetError(refusal)
    layers, roots = layers_of(program)
    decided = schedule(net, Machines.of([machine]))
    if decided.decisions.misfits:
        raise TargetError(misfit(net, machine, decided.decisions.misfits[0]))
    layout, size = decided.decisions.layouts[0], machine.activation_memory.size_bytes
    activation, residencies, mappings = dict(layout.addresses), [], []
    for i, serving in enumerate(decided.layers):
        k, _, where = serving[0]
        case = decided.cases[k]
        address, room = layout.gap(i, size)
        m, r = mapping(case.geometry, case.choice, int(where[0])), replace(case.residency, free_bytes=room)
        mappings.append(m)
        residencies.append(r)
        end = address + room
        for operand, slot in slot_bytes(case.geometry, m, r, machine).items():
            activation[f"{i}:{operand}"] = address
            address += 2 * slot
        assert address <= end, layers[i].name
    main, main_bytes = layout.outside(machine.main_memory.burst_bytes)
    return Plan(net, layers, mappings, residencies, roots, activation, main, max(main_bytes, 1))


def compile_npu(program: IntegerProgram, machine: Machine, host_fallback: bool = False) -> NpuProgram:
    """Compile the integer part of the program (`partition`) for the machine.

    The ports of the result are the core's inputs and outputs. Raises TargetError for what the machine cannot run or
    hold, naming the operations, the memory and by how much it falls short.
    """
    core = partition(program, host_fallback).core
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
