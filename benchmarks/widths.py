"""What narrow operands gain on the simulated accelerator: cycles, energy, external bytes and area, as simulated.

    python benchmarks/widths.py                              # MLPerf Tiny shapes on two presets, 8, 4 and 2 bits
    python benchmarks/widths.py resnet8 --machines u55-128-like --widths 8x8 4x8 4x4

Networks of the tests with random weights, clipped to the widths: only shapes matter for costs, none for accuracy. The
last column compares the closed form's cycles with the event simulator's.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from qcompiler.codegen.npu.lower import compile_npu
from qcompiler.sim import energy, hardware, timing
from qcompiler.sim.evaluate import EXTERNAL, evaluate
from qcompiler.sim.hardware import Machine
from qcompiler.sim.network import network as extract
from qcompiler.sim.widths import Widths


def with_widths(machine: Machine, widths: Widths) -> Machine:
    """The machine with other operands."""
    content = machine.model_dump(mode="json")
    content["matrix"] |= {"weight_bits": widths.weight_bits, "activation_bits": widths.activation_bits}
    return Machine.model_validate(content)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=["kws", "resnet8", "vww", "ad"], help="networks of the tests")
    parser.add_argument("--machines", nargs="+", default=["edge-16x16", "u55-128-like"], help="presets or files")
    parser.add_argument("--widths", nargs="+", default=["8x8", "4x8", "4x4", "2x8"], help="weights x activations")
    options = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "npu"))
    from narrow import narrowed
    from networks import network

    table = energy.load_table()
    print(f"{'network':13} {'machine':13} {'bits':>5} {'cycles':>9} {'uJ':>7} {'ext KiB':>8} {'mm2':>6} {'form':>7}")
    for name in options.networks:
        for machine in map(hardware.load, options.machines):
            for text in options.widths:
                widths = Widths(*map(int, text.split("x")))
                program, chosen = narrowed(network(name)[0], *vars(widths).values()), with_widths(machine, widths)
                compiled = compile_npu(program, chosen)
                counts, cycles = energy.count(compiled).sum(axis=0), timing.simulate(compiled).cycles
                spent = energy.energy(counts, cycles, chosen, table).total.value
                area = sum(part.value for part in energy.area(chosen, table).values())
                predicted = evaluate([extract(program)], [chosen], table)
                assert int(counts[EXTERNAL].sum()) == predicted.dram_bytes[0, 0]
                print(f"{name:13} {machine.name:13} {text:>5} {cycles:9,} {spent * 1e-6:7.3f} "
                      f"{counts[EXTERNAL].sum() / 1024:8.1f} {area:6.3f} "
                      f"{predicted.cycles[0, 0] / cycles - 1:+7.2%}")  # fmt: skip


if __name__ == "__main__":
    main()
