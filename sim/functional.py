"""The functional simulator: executes an accelerator program on its machine, bit for bit, a whole instruction at once.

It refuses what hardware would do silently: reading memory that nothing wrote, leaving a memory, overflowing an
accumulator, waiting for ever.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from qcompiler.sim.errors import ProgramError
from qcompiler.sim.isa.base import Queue, Space
from qcompiler.sim.machine_state import MachineState
from qcompiler.sim.program import NpuProgram, Port
from qcompiler.sim.schedule import issue_order

Array = npt.NDArray[Any]


def execute(program: NpuProgram, inputs: Mapping[str, Array], prefer: Sequence[Queue] = ()) -> dict[str, Array]:
    """Run the program once; returns the outputs by name, in the ports' dtypes and shapes.

    inputs: name to array of exactly the port's dtype and shape. prefer: see `schedule.issue_order`.
    Raises ProgramError for inputs that do not fit and for anything illegal that the program does, naming the
    instruction and its layer.
    """
    state = MachineState(program.machine, program.main_bytes, program.constants)
    preload(state, program, inputs)
    for i in issue_order(program, prefer):
        try:
            program.instructions[i].execute(state)
        except ProgramError as error:
            raise ProgramError(f"program {program.name!r}, {program.describe(i)}: {error}") from None
    main = state.memory(Space.main)
    outputs = {}
    for port in program.outputs:
        part = slice(port.address, port.address + port.bytes)
        if not main.known[part].all():
            raise ProgramError(f"program {program.name!r}: nothing wrote all of output {port.name!r}")
        dtype = np.dtype(port.dtype)
        outputs[port.name] = main.values[part].view(dtype.newbyteorder("<")).astype(dtype).reshape(port.shape)
    return outputs


def preload(state: MachineState, program: NpuProgram, inputs: Mapping[str, Array]) -> None:
    """Put the inputs where the program expects them. Raises ProgramError for inputs that do not fit."""
    for port in program.inputs:
        state.memory(Space.main).preload(port.address, _input(program, port, inputs))


def _input(program: NpuProgram, port: Port, inputs: Mapping[str, Array]) -> Array:
    if port.name not in inputs:
        known = ", ".join(repr(p.name) for p in program.inputs)
        raise ProgramError(f"program {program.name!r}: input {port.name!r} is missing; it reads {known}")
    value = np.asarray(inputs[port.name])
    if value.shape != port.shape or str(value.dtype) != port.dtype:
        raise ProgramError(
            f"program {program.name!r}: input {port.name!r} is {value.dtype}{value.shape}; "
            f"it should be {port.dtype}{port.shape}"
        )
    return value.astype(value.dtype.newbyteorder("<"))
