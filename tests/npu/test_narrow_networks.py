"""Networks with narrow operands: bit for bit on the accelerator, the closed form exact, refusals in full."""

from __future__ import annotations

import numpy as np
import pytest
from layer_builder import Builder
from machines import EDGE, MICRO, any_machine, edited
from narrow import narrowed
from networks import network
from random_graphs import random_machine, random_program

from qcompiler.codegen.npu.lower import compile_npu
from qcompiler.codegen.npu.partition import partition
from qcompiler.sim import container, energy, functional, hardware, reference
from qcompiler.sim.errors import TargetError
from qcompiler.sim.evaluate import counters, evaluate, layer_cycles, schedule
from qcompiler.sim.hardware import Machine
from qcompiler.sim.hardware.batch import Machines
from qcompiler.sim.integer_program import IntegerProgram
from qcompiler.sim.isa import MatrixMultiply
from qcompiler.sim.network import network as extract
from qcompiler.sim.program import NpuProgram
from qcompiler.sim.races import find_races
from qcompiler.sim.timing import simulate
from qcompiler.sim.widths import bits, intervals

TABLE = energy.load_table()


def narrow(machine: Machine, weight_bits: int, activation_bits: int = 8) -> Machine:
    return edited(machine, matrix__weight_bits=weight_bits, matrix__activation_bits=activation_bits)


def assert_equal(program: IntegerProgram, feed: dict, machine: Machine) -> NpuProgram:
    compiled, wanted = compile_npu(program, machine), reference.execute(program, feed)
    got = functional.execute(compiled, {p.name: feed[p.name] for p in compiled.inputs})
    for name in program.outputs:
        np.testing.assert_array_equal(got[name], wanted[name], err_msg=name)
    return compiled


def check_closed_form(program: IntegerProgram, compiled: NpuProgram) -> None:
    """Every counter of every layer, and the constants' bytes."""
    predicted, constants = counters(schedule(extract(program), Machines.of([compiled.machine])))
    np.testing.assert_array_equal(predicted[:, 0], energy.count(compiled))
    assert constants[0] == len(compiled.constants)


@pytest.mark.parametrize("machine", ["edge-16x16", "u55-128-like", "micro-8x8"])
@pytest.mark.parametrize(("name", "weight_bits"), [("digits", 4), ("digits", 3), ("kws", 4), ("resnet8", 4)])
def test_networks_bit_for_bit(name: str, weight_bits: int, machine: str) -> None:
    program, feed = network(name)
    program = narrowed(program, weight_bits)
    compiled = assert_equal(program, feed, narrow(hardware.load(machine), weight_bits))
    assert all(ins.packed for ins in compiled.instructions if isinstance(ins, MatrixMultiply))
    check_closed_form(program, compiled)


@pytest.mark.parametrize(("weight_bits", "activation_bits"), [(8, 4), (4, 4), (2, 5)])
def test_narrow_activations_bit_for_bit(weight_bits: int, activation_bits: int) -> None:
    program, feed = network("digits")
    program = narrowed(program, weight_bits, activation_bits)
    machine = narrow(EDGE, weight_bits, activation_bits)
    compiled = assert_equal(program, feed, machine)
    check_closed_form(program, compiled)
    # The same work, in fewer bits of the multipliers only.
    wide = compile_npu(program, narrow(EDGE, weight_bits))
    assert wide.instructions == compiled.instructions and wide.constants == compiled.constants


def random_case(seed: int) -> tuple[IntegerProgram, dict, Machine]:
    """A program and a machine with widths from 2 and 4 to 8; attention has operands as narrow as the weights."""
    weight_bits, activation_bits = 2 + seed % 7, 4 + seed % 5
    program, feed = random_program(seed)
    # What the weight memory holds of a matrix product is an activation.
    values = min(weight_bits, activation_bits) if "MatMul" in {type(o).__name__ for o in program.operations} else 8
    values = min(values, activation_bits)
    return (
        narrowed(program, weight_bits, values), feed,
        narrow(random_machine(seed), weight_bits, activation_bits),
    )  # fmt: skip


def check_random(seeds: range) -> int:
    compared = 0
    for seed in seeds:
        program, feed, machine = random_case(seed)
        try:
            compiled = assert_equal(program, feed, machine)
        except TargetError as error:
            # Small machines; and a softmax's probabilities have eight bits.
            assert "does not fit machine" in str(error) or "of 8 bits" in str(error), seed
            continue
        check_closed_form(partition(program).core, compiled)
        assert not find_races(compiled, feed), seed
        compared += 1
    return compared


def test_random_programs_on_random_machines() -> None:
    assert check_random(range(45)) > 40


@pytest.mark.slow
def test_many_random_programs_on_random_machines() -> None:
    assert check_random(range(2000, 2400)) > 380


@pytest.mark.parametrize("machine", ["edge-16x16", "u55-128-like", "u55-256-sram", "cloud-128x128"])
@pytest.mark.parametrize("name", ["kws", "resnet8", "vww", "ad"])
def test_cycles_of_the_closed_form_with_four_bit_weights(name: str, machine: str) -> None:
    """As with eight bits: the total within 2 %."""
    program, chosen = narrowed(network(name)[0], 4), narrow(hardware.load(machine), 4)
    predicted = layer_cycles(schedule(extract(program), Machines.of([chosen]))).sum()
    compiled = compile_npu(program, chosen)
    assert abs(predicted / simulate(compiled).cycles - 1) <= 0.02
    check_closed_form(program, compiled)


def test_half_the_bits_are_half_the_weights_traffic() -> None:
    """The autoencoder is nothing but weights: rows of 16 columns pack without a rest, biases and scales stay."""
    program = narrowed(network("ad")[0], 4)
    wide, packed = (compile_npu(program, narrow(EDGE, b)) for b in (8, 4))
    weights = sum(op.weight.size for op in program.operations)  # type: ignore[attr-defined]
    assert len(wide.constants) - len(packed.constants) == weights // 2


def test_narrow_weights_let_a_group_fit_that_did_not() -> None:
    """A block of 16 channels of K = 2304 is 36 KiB in bytes and 18 KiB in nibbles: 24 KiB hold only the latter, so that
    bytes come in parts, again for every step."""
    b = Builder(3)
    program = narrowed(b.build(b.conv(b.input((1, 24, 24, 256)), 16)), 4)
    small = edited(EDGE, weight_memory__size_bytes=24 << 10, matrix__accumulator_rows=128)
    wide, packed = (
        energy.count(compile_npu(program, narrow(small, bits))).sum(axis=0)[list(energy.COUNTERS).index(name)]
        for bits, name in ((8, "weight_write_bytes"), (4, "weight_write_bytes"))
    )
    assert packed == 2304 * 8
    assert wide >= 8 * 2304 * 16


def test_a_batch_of_machines_of_many_widths_is_each_machine_alone() -> None:
    nets = [extract(narrowed(network(name)[0], 2, 8)) for name in ("digits", "kws")]
    machines = [narrow(base, w, a) for base in (EDGE, MICRO) for w in (2, 3, 4, 8) for a in (8,)]
    machines += [narrow(EDGE, 4, a) for a in (4, 6)]  # whose activations the networks do not fit
    whole = evaluate(nets, machines, TABLE)
    assert whole.feasible.tolist() == [True] * 8 + [False] * 2
    for i, machine in enumerate(machines):
        alone = evaluate(nets, [machine], TABLE)
        for name in ("cycles", "counts", "energy_pj", "area_mm2", "leakage_mw"):
            np.testing.assert_array_equal(getattr(alone, name)[0], getattr(whole, name)[i], err_msg=name)
    for i in range(8):
        own = energy.area(machines[i], TABLE).values()
        assert whole.area_mm2[i, 0] == pytest.approx(sum(p.value for p in own))
        one = energy.energy(whole.counts[i, 0], int(whole.cycles[i, 0]), machines[i], TABLE).total
        np.testing.assert_array_equal(whole.energy_pj[i, 0], one)


@pytest.mark.slow
def test_machines_of_all_widths_rank_as_simulated() -> None:
    """Kendall's rank correlation over 100 random machines of 2 to 8 bits; every counter that of the program."""
    program = narrowed(network("kws")[0], 2)
    machines = [edited(any_machine(seed), matrix__weight_bits=2 + seed % 7) for seed in range(1000, 1120)]
    found = evaluate([extract(program)], machines, TABLE)
    rows = np.flatnonzero(found.feasible)[:100]
    assert rows.size == 100
    simulated = []
    for i in rows.tolist():
        compiled = compile_npu(program, machines[i])
        np.testing.assert_array_equal(energy.count(compiled).sum(axis=0), found.counts[i, 0])
        simulated.append(simulate(compiled).cycles)
    predicted, truth = found.cycles[rows, 0], np.array(simulated)
    signs = np.sign(predicted[:, None] - predicted) * np.sign(truth[:, None] - truth)
    assert signs.sum() / (100 * 99) >= 0.98


# ---------------------------------------------------------------------------------------- refusals
def test_a_program_that_is_too_wide_is_refused_by_operation_and_field() -> None:
    b = Builder(1)
    program = b.build(b.dense(b.depthwise(b.conv(b.input((1, 6, 6, 4)), 8, 1)), 3))
    machine = narrow(EDGE, 4, 6)
    message = (
        "machine 'edge-16x16' cannot run these operations of 'random':\n"
        "  'op0': weights of 8 bits (matrix.weight_bits is 4)\n"
        "  'op0': activations of 8 bits (matrix.activation_bits is 6)\n"
        "  'op2': weights of 8 bits (matrix.weight_bits is 4)\n"
        "  'op2': activations of 8 bits (matrix.activation_bits is 6)\n"
        "quantise the model for this machine's widths, or raise matrix.weight_bits and matrix.activation_bits"
    )
    with pytest.raises(TargetError) as caught:
        compile_npu(program, machine)
    assert str(caught.value) == message
    assert evaluate([extract(program)], [EDGE, machine], TABLE).reasons == ["", message]
    # Depthwise weights stay bytes of the vector unit.
    assert evaluate([extract(narrowed(program, 4, 6))], [machine], TABLE).reasons == [""]


def test_a_product_of_activations_needs_its_second_operand_as_narrow_as_weights() -> None:
    b = Builder(2)
    x = b.input((1, 4, 6, 8))
    program = b.build(b.matmul(x, b.conv(x, 8, 1), True))
    with pytest.raises(TargetError) as caught:
        compile_npu(narrowed(program, 4), narrow(EDGE, 4))
    assert str(caught.value) == (
        "machine 'edge-16x16' cannot run these operations of 'random':\n"
        "  'op1': weights of 8 bits (matrix.weight_bits is 4)\n"
        "quantise the model for this machine's widths, or raise matrix.weight_bits"
    )
    narrower, feed = narrowed(program, 4, 4), b.feed()
    for ports in (8, 32):  # a row of sixteen bytes takes two cycles of a port for sixteen nibbles
        machine = edited(narrow(EDGE, 4, 4), weight_memory__bytes_per_cycle=ports)
        compiled = assert_equal(narrower, feed, machine)
        check_closed_form(narrower, compiled)


# --------------------------------------------------------------------------------------- intervals
def test_bits_of_values() -> None:
    pairs = ((0, 0), (-1, 0), (-1, 1), (-8, 7), (-8, 8), (-128, 127))
    assert [bits(pair) for pair in pairs] == [1, 1, 2, 4, 5, 8]


def test_an_interval_holds_every_value_that_a_program_computes() -> None:
    for seed in range(60):
        program, feed = random_program(seed)
        every = program.replace(outputs=tuple(op.output for op in program.operations))
        values, found = reference.execute(every, feed), intervals(program)
        for name, value in values.items():
            if value.size:
                low, high = found[name]
                assert low <= value.min() and value.max() <= high, (seed, name)


def test_a_file_from_before_there_were_widths_still_loads() -> None:
    """The machine in its header has neither field; its hash is the same."""
    import hashlib

    compiled = compile_npu(network("digits")[0], EDGE)
    data = container.to_bytes(compiled)
    old = data.replace(b'"weight_bits":8,"activation_bits":8,', b"")
    assert len(old) < len(data)
    magic, version, header, *rest = container.PREFIX.unpack_from(old)
    prefix = container.PREFIX.pack(magic, version, header - (len(data) - len(old)), *rest)
    content = prefix + old[container.PREFIX.size : -container.DIGEST_BYTES]
    read = container.from_bytes(content + hashlib.sha256(content).digest())
    assert read.machine == compiled.machine and read.instructions == compiled.instructions
