"""Random networks over all operations: fusion, views, in-place reuse and the arena plan, against the reference."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from host_library import LEVELS, Library
from program_builder import ProgramBuilder, Tensor

from qcompiler.sim import reference
from qcompiler.sim.integer_program import IntegerProgram


def random_network(seed: int, length: int = 30) -> IntegerProgram:
    """A directed graph of `length` operations whose operands are any earlier tensors that fit; several outputs."""
    b = ProgramBuilder(seed)
    rng = b.rng
    floats = [b.input((1, 3, 8, 6), "float32")]
    images = [b.quantize(b.transpose(floats[0], (0, 2, 3, 1))), b.input((1, 8, 6, 16))]
    rows: list[Tensor] = [b.input((4, 24))]

    def pick(pool: list[Tensor]) -> Tensor:
        return pool[int(rng.integers(max(0, len(pool) - 4), len(pool)))]  # rather recent ones: chains and residuals

    def partner(x: Tensor) -> Tensor:
        fitting = [t for t in images if t.shape == x.shape and t is not x]
        return fitting[int(rng.integers(len(fitting)))] if fitting else x

    def joined(x: Tensor) -> Tensor:
        twin = b.conv(pick(images), int(rng.choice([4, 16])), (1, 1), like=x) if x.shape[1:3] == (8, 6) else x
        parts = [x, twin] if twin.shape[1:3] == x.shape[1:3] and twin.shape[0] == x.shape[0] else [x, x]
        return b.concat(parts, 3) if rng.random() < 0.7 else b.concat([x, b.gather(x, [[0], None, None, None])], 0)

    def rows_of(x: Tensor) -> Tensor:
        return b.reshape(x, (int(np.prod(x.shape[:3])), x.shape[3]))

    choices: list[Callable[[], Tensor]] = [
        lambda: b.conv(pick(images), int(rng.choice([8, 16, 24])), (3, 3), padding=(1, 1, 1, 1)),
        lambda: b.conv(pick(images), 16, (1, 1)),
        lambda: (lambda x: b.conv(x, x.shape[3], (3, 3), padding=(1, 1, 1, 1), groups=x.shape[3]))(pick(images)),
        lambda: (lambda x: b.add(x, partner(x), int(rng.choice([-1, 1]))))(pick(images)),
        lambda: (lambda x: b.add(b.conv(x, x.shape[3], (3, 3), padding=(1, 1, 1, 1)), x))(pick(images)),
        lambda: (lambda x: b.mul(x, partner(x)))(pick(images)),
        lambda: (lambda x: b.mul(x, b.mean(x, (1, 2), True)))(pick(images)),
        lambda: b.table(pick(images)),
        lambda: b.max_pool(pick(images), (3, 3), (1, 1), padding=(1, 1, 1, 1)),
        lambda: b.average_pool(pick(images), (3, 3), (1, 1), padding=(1, 1, 1, 1)),
        lambda: joined(pick(images)),
        lambda: b.softmax(rows_of(pick(images))),
        lambda: b.layer_norm(rows_of(pick(images))),
        lambda: b.table(b.dense(pick(rows), int(rng.choice([10, 24, 64])))),
        lambda: (lambda x, y: b.matmul(x, b.transpose(y, (1, 0))) if x.shape[1] == y.shape[1] else b.softmax(y))(
            pick(rows), pick(rows)
        ),
        lambda: (lambda x: b.reshape(b.transpose(x, (0, 3, 1, 2)), x.shape))(pick(images)),
        lambda: b.gather(pick(images), [None, list(range(7, -1, -1)), None, None]),
    ]
    for _ in range(length):
        made = choices[int(rng.integers(len(choices)))]()
        (
            images if len(made.shape) == 4 and made.shape[:3] == (1, 8, 6) else rows if len(made.shape) == 2 else []
        ).append(made)
    read = {n for op in b.operations for n in op.inputs}
    ends = [t for t in [*images, *rows] if t.name not in read and t.name not in b.inputs]
    outputs = [b.dequantize(ends[-1]), *ends]
    inner = pick(images)  # a value that is also used inside, or even an input
    outputs += [inner, b.reshape(b.dequantize(inner), (inner.elements,))]
    return b.program(list(dict.fromkeys(outputs)))


@pytest.mark.parametrize("seed", range(3))
def test_random_network(seed: int, build_library: Callable[..., Library]) -> None:
    program = random_network(seed)
    values = ProgramBuilder(seed + 1000).random_inputs(program)
    wanted = reference.execute(program, values)
    isa = LEVELS[seed % len(LEVELS)]
    library = build_library(program, f"x86:{isa}", isa)
    for threads in (1, 2):
        library.call("set_threads")(threads)
        for _ in range(2):  # what a call leaves in its workspace must not matter to the next
            found = library.run(values)
            for name, value in wanted.items():
                assert np.array_equal(found[name], value), (isa, threads, name, program.producers().get(name))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 140))
def test_many_random_networks(seed: int, build_library: Callable[..., Library]) -> None:
    test_random_network(seed, build_library)
