"""A network as the cost model sees it: layers, the storage of their tensors and how long each is needed.

Nothing here depends on a machine, and nothing holds weights, so that a network is small, hashable by content and
cheap to send to another process. `network` extracts it from the integer part of a program (without host operations).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from qcompiler.sim import workload
from qcompiler.sim.hardware import Machine
from qcompiler.sim.integer_program import Add, IntegerProgram
from qcompiler.sim.moves import Box
from qcompiler.sim.widths import array_operands, bits
from qcompiler.sim.workload import Geometry, Layer, nhwc

ROLES = ("image", "operand", "weights", "table")


@dataclass(frozen=True)
class Work:
    """A layer: its geometry and the storage it touches.

    roles: for each of `ROLES` the tensors in it (several images where a move concatenates); constant: the roles whose
    tensors all lie among the constants. reads: all tensors that are not made inside, the image first.
    """

    name: str
    geometry: Geometry
    output: str
    reads: tuple[str, ...]
    roles: tuple[tuple[str, ...], ...]
    constant: tuple[str, ...]


@dataclass(frozen=True)
class Need:
    """What an operation asks of a machine. rounding: of its requantisation ("" for none). problem: why no machine can
    run it ("" where one may). weight_bits, activation_bits: of the operands of work on the array, 0 elsewhere."""

    name: str
    rounding: str = ""
    problem: str = ""
    weight_bits: int = 0
    activation_bits: int = 0


@dataclass(frozen=True, eq=False)
class Network:
    """Layers in execution order and their storage (views resolved).

    sizes: bytes of each stored tensor; lifetimes: first and last layer that touches it (inputs begin at -1, outputs
    end behind the last layer). inputs, outputs: what the host writes and reads. constant_bytes: constant tensors.
    needs: of operations that ask more of a machine than sizes, in order.
    """

    name: str
    layers: tuple[Work, ...]
    sizes: Mapping[str, int]
    lifetimes: Mapping[str, tuple[int, int]]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    constants: frozenset[str]
    constant_bytes: int
    needs: tuple[Need, ...]

    @cached_property
    def resident(self) -> tuple[str, ...]:
        """Tensors that may stay on chip: made by a layer, no outputs."""
        made = {layer.output for layer in self.layers}
        return tuple(n for n in self.lifetimes if n in made and n not in self.outputs)

    def refused(self, machine: Machine) -> str:
        """Why a machine cannot run the network, naming every operation; "" if it can."""
        array, roundings = machine.matrix, machine.vector.roundings
        key = (array.weight_bits, array.activation_bits, roundings)
        if key not in self._refusals:
            self._refusals[key] = self._refusal(*key)
        lines = self._refusals[key]
        return f"machine {machine.name!r} cannot run these operations of {self.name!r}:{lines}" if lines else ""

    @cached_property
    def _refusals(self) -> dict[tuple[int, int, tuple[str, ...]], str]:
        """Of the machines seen so far: an exploration asks for thousands."""
        return {}

    def _refusal(self, weight_bits: int, activation_bits: int, roundings: tuple[str, ...]) -> str:
        lines, narrow = "", {}
        for need in self.needs:
            if need.problem:
                lines += f"\n  {need.name!r}: {need.problem}"
            if need.rounding and need.rounding not in roundings:
                lines += f"\n  {need.name!r}: rounding {need.rounding} (vector.roundings has {', '.join(roundings)})"
            for field, what, wanted, have in (
                ("matrix.weight_bits", "weights", need.weight_bits, weight_bits),
                ("matrix.activation_bits", "activations", need.activation_bits, activation_bits),
            ):
                if wanted > have:
                    lines += f"\n  {need.name!r}: {what} of {wanted} bits ({field} is {have})"
                    narrow[field] = True
        hint = f"\nquantise the model for this machine's widths, or raise {' and '.join(narrow)}"
        return lines + hint * bool(narrow)

    @cached_property
    def impossible(self) -> bool:
        """Whether no machine can run it."""
        return any(need.problem for need in self.needs)

    @cached_property
    def macs(self) -> int:
        return sum(layer.geometry.macs for layer in self.layers)

    @cached_property
    def geometries(self) -> dict[Geometry, list[int]]:
        """Each geometry with the positions of the layers that have it."""
        found: dict[Geometry, list[int]] = {}
        for i, layer in enumerate(self.layers):
            found.setdefault(layer.geometry, []).append(i)
        return found


def _needs(program: IntegerProgram) -> list[Need]:
    needs, array = [], {o.operation.name: o for o in array_operands(program)}
    for op in program.operations:
        shapes, shape = [t.shape for t in program.input_tensors(op)], program.output_tensor(op).shape
        problem = ""
        if isinstance(op, Add) and op.rounding != "exact_half_up":
            problem = f"an Add that rounds {op.rounding} (only exact_half_up exists in hardware)"
        try:
            if not workload.is_view(op, shapes, shape):
                workload.geometry(op, shapes, shape)
        except (ValueError, TypeError) as error:
            problem = str(error)
        requantize = getattr(op, "requantize", None)
        if problem or requantize is not None:
            rounding = "" if requantize is None else requantize.rounding
            fed = array.get(op.name)
            widths = (bits(fed.weights), bits(fed.activations)) if fed else (0, 0)
            needs.append(Need(op.name, rounding, problem, *widths))
    return needs


def storage(program: IntegerProgram) -> dict[str, str]:
    """Each tensor's root: the tensor whose bytes a chain of views shows."""
    roots = {n: n for n in program.tensors}
    for op in program.operations:
        if workload.is_view(op, [t.shape for t in program.input_tensors(op)], program.output_tensor(op).shape):
            roots[op.output] = roots[op.inputs[0]]
    return roots


def copies(program: IntegerProgram, roots: dict[str, str]) -> list[Layer]:
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


def _work(program: IntegerProgram, layer: Layer, roots: dict[str, str]) -> Work:
    head, kind = layer.operations[0], layer.geometry.kind
    tail = [n for op in layer.operations[1:] for n in op.inputs if n in layer.inputs]
    roles = {
        "image": list(head.inputs) if kind == "move" else [head.inputs[-1 if kind == "embedding" else 0]],
        "operand": [*(head.inputs[1:] if kind == "elementwise" else ()), *tail],
        "weights": list(head.inputs[1:]) if kind == "matmul" else [],
        "table": list(head.inputs[:1]) if kind == "embedding" else [],
    }
    stored = {role: tuple(roots[n] for n in names) for role, names in roles.items()}
    constant = tuple(k for k, names in stored.items() if names and all(n in program.constants for n in names))
    reads = (layer.inputs[0], *[n for op in layer.operations for n in op.inputs if n in layer.inputs][1:])
    return Work(
        layer.name, layer.geometry, roots[layer.output], tuple(roots[n] for n in reads),
        tuple(stored[role] for role in ROLES), constant,
    )  # fmt: skip


def network(program: IntegerProgram) -> Network:
    """Extract the network of a program without host operations (`codegen.npu.partition`).

    A program with an operation that no machine runs has no layers.
    """
    needs = _needs(program)
    stuck = any(need.problem for need in needs)
    layers, roots = ([], storage(program)) if stuck else layers_of(program)
    works = tuple(_work(program, layer, roots) for layer in layers)
    lifetimes: dict[str, tuple[int, int]] = {roots[n]: (-1, -1) for n in program.inputs}
    for i, work in enumerate(works):
        for n in work.reads:
            lifetimes[n] = (lifetimes.get(n, (-1, -1))[0], i)
        lifetimes[work.output] = (i, i)
    for n in program.outputs:
        lifetimes[roots[n]] = (lifetimes.get(roots[n], (-1, -1))[0], len(works))
    return Network(
        name=program.name, layers=works, sizes={n: program.tensors[n].bytes for n in lifetimes}, lifetimes=lifetimes,
        inputs=tuple(roots[n] for n in program.inputs), outputs=tuple(roots[n] for n in program.outputs),
        constants=frozenset(program.constants),
        constant_bytes=sum(value.nbytes for value in program.constants.values()),
        needs=tuple(needs),
    )  # fmt: skip


def layers_of(program: IntegerProgram) -> tuple[list[Layer], dict[str, str]]:
    """All layers, copies of outputs included, and each tensor's storage."""
    layers, roots = workload.extract(program), storage(program)
    for copy in copies(program, roots):
        readers = (i for i, layer in enumerate(layers) if copy.output in layer.inputs)
        layers.insert(next(readers, len(layers)), copy)  # whoever reads the output reads the copy
    return layers, roots
