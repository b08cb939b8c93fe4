"""From points to outcomes, in closed form or by compiling and simulating. Needs neither Optuna nor TVM."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

from qcompiler.codegen.npu.lower import compile_npu
from qcompiler.sim import energy, timing
from qcompiler.sim.energy import EnergyTable
from qcompiler.sim.errors import HardwareError
from qcompiler.sim.evaluate import EXTERNAL, Results
from qcompiler.sim.evaluate import evaluate as costs_of
from qcompiler.sim.explore.merit import Cost, Outcome
from qcompiler.sim.explore.sensitivity import double
from qcompiler.sim.explore.space import Point, Space
from qcompiler.sim.hardware import Machine
from qcompiler.sim.integer_program import IntegerProgram
from qcompiler.sim.network import Network, network
from qcompiler.sim.widths import Widths


@dataclass(frozen=True, eq=False)
class Context:
    """What every worker needs: the space, and the models' integer programs (without what the host runs) by name.

    variants: other programs for machines with these widths of operands, or why they can run none.
    """

    space: Space
    programs: dict[str, IntegerProgram]
    variants: Mapping[Widths, dict[str, IntegerProgram] | str] = field(default_factory=dict)

    @cached_property
    def table(self) -> EnergyTable:
        return energy.load_table()

    @cached_property
    def _networks(self) -> dict[tuple[IntegerProgram, ...], list[Network]]:
        """Networks by what they come from. Variants that differ in the values of weights alone share one."""
        plain = tuple(self.programs.values())
        found = {plain: [network(program) for program in plain]}
        distinct: list[list[Network]] = []
        for programs in (v for v in self.variants.values() if not isinstance(v, str)):
            made = [_fitting(network(program)) for program in programs.values()]
            same = next((d for d in distinct if all(map(_alike, d, made))), made)
            distinct += [made] if same is made else []
            found[tuple(programs.values())] = same
        return found

    def programs_for(self, machine: Machine) -> dict[str, IntegerProgram] | str:
        """The programs that a machine runs, or why there are none."""
        return self.variants.get(Widths(machine.matrix.weight_bits, machine.matrix.activation_bits), self.programs)

    def networks(self, programs: Mapping[str, IntegerProgram]) -> list[Network]:
        """The networks of `programs_for` a machine."""
        return self._networks[tuple(programs.values())]

    def machine(self, point: Point) -> Machine:
        """The machine of a point, called by the space's name. Raises HardwareError for one that cannot be."""
        return self.space.machine(point, self.space.name)


Work = Callable[[Context, Sequence[Any]], list[Outcome]]


def evaluate(context: Context, points: Sequence[Point]) -> list[Outcome]:
    """The outcome of each point in closed form."""
    return _outcomes(context, [lambda p=p: context.machine(p) for p in points])  # type: ignore[misc]


def doubled(context: Context, items: Sequence[tuple[Point, str]]) -> list[Outcome]:
    """As `evaluate`, for points with one of `sensitivity.RESOURCES` doubled."""
    return _outcomes(context, [lambda p=p, r=r: double(context.machine(p), r)[0] for p, r in items])  # type: ignore[misc]


def _fitting(net: Network) -> Network:
    """The network of a program that fits the widths which it is a variant for."""
    return replace(net, needs=tuple(replace(need, weight_bits=0, activation_bits=0) for need in net.needs))


def _alike(a: Network, b: Network) -> bool:
    return all(getattr(a, f.name) == getattr(b, f.name) for f in fields(a))


def _outcomes(context: Context, makers: Sequence[Callable[[], Machine]]) -> list[Outcome]:
    outcomes: list[Outcome | None] = []
    groups: dict[int, tuple[list[Network], list[Machine], list[int]]] = {}
    for make in makers:
        try:
            machine = make()
        except HardwareError as error:
            outcomes.append(Outcome("; ".join(str(error).splitlines())))
            continue
        programs = context.programs_for(machine)
        if isinstance(programs, str):
            outcomes.append(Outcome(programs))
            continue
        networks = context.networks(programs)
        _, machines, places = groups.setdefault(id(networks), (networks, [], []))
        machines.append(machine)
        places.append(len(outcomes))
        outcomes.append(None)
    for networks, machines, places in groups.values():
        results = costs_of(networks, machines, context.table)
        for row, place in enumerate(places):
            outcomes[place] = _outcome(results, row)
    return [o for o in outcomes if o is not None]


def _outcome(results: Results, row: int) -> Outcome:
    if results.reasons[row]:
        return Outcome("; ".join(line.strip() for line in results.reasons[row].splitlines()))
    costs = tuple(
        Cost(int(cycles), float(pj[0]), int(moved))
        for cycles, pj, moved in zip(
            results.cycles[row], results.energy_pj[row], results.dram_bytes[row], strict=True
        )
    )  # fmt: skip
    return Outcome(
        "", float(results.clock_mhz[row]), float(results.area_mm2[row][0]), float(results.leakage_mw[row][0]), costs
    )


def simulate(context: Context, points: Sequence[Point]) -> list[Outcome]:
    """As `evaluate`, from compiled programs and the event simulator instead of the closed form."""
    outcomes = []
    for point in points:
        machine, costs = context.machine(point), []
        programs = context.programs_for(machine)
        assert not isinstance(programs, str)  # it is on the front
        for program in programs.values():
            compiled = compile_npu(program, machine)
            cycles, counts = timing.simulate(compiled).cycles, energy.count(compiled).sum(axis=0)
            spent = energy.energy(counts, cycles, machine, context.table).total.value
            costs.append(Cost(cycles, spent, int(counts[EXTERNAL].sum())))
        area = sum(part.value for part in energy.area(machine, context.table).values())
        leakage = energy.static_power(machine, context.table).value
        outcomes.append(Outcome("", machine.clock_mhz, area, leakage, tuple(costs)))
    return outcomes
