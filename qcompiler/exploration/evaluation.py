"""From points to outcomes, in closed form or by compiling and simulating. Needs neither Optuna nor TVM."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True, eq=False)
class Context:
    """What every worker needs: the space, and the models' integer programs (without what the host runs) by name."""

    space: Space
    programs: dict[str, IntegerProgram]

    @cached_property
    def table(self) -> EnergyTable:
        return energy.load_table()

    @cached_property
    def networks(self) -> list[Network]:
        return [network(program) for program in self.programs.values()]

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


def _outcomes(context: Context, makers: Sequence[Callable[[], Machine]]) -> list[Outcome]:
    machines: list[Machine | str] = []
    for make in makers:
        try:
            machines.append(make())
        except HardwareError as error:
            machines.append("; ".join(str(error).splitlines()))
    results = costs_of(context.networks, [m for m in machines if isinstance(m, Machine)], context.table)
    rows = iter(range(len(results.reasons)))
    return [Outcome(m) if isinstance(m, str) else _outcome(results, next(rows)) for m in machines]


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
        for program in context.programs.values():
            compiled = compile_npu(program, machine)
            cycles, counts = timing.simulate(compiled).cycles, energy.count(compiled).sum(axis=0)
            spent = energy.energy(counts, cycles, machine, context.table).total.value
            costs.append(Cost(cycles, spent, int(counts[EXTERNAL].sum())))
        area = sum(part.value for part in energy.area(machine, context.table).values())
        leakage = energy.static_power(machine, context.table).value
        outcomes.append(Outcome("", machine.clock_mhz, area, leakage, tuple(costs)))
    return outcomes
