"""The accelerator's instruction set: every instruction's encoding, text, meaning, timing and counts beside each other.

`base` holds what all instructions share, `dma`, `matrix`, `vector` and `control` one family each; `OPCODES` is
the whole set. The generated reference is docs/npu-isa.md.
"""

from qcompiler.sim.isa.base import COUNTERS, INSTRUCTION_BYTES, QUEUES, Instruction, Queue, Space, Timing
from qcompiler.sim.isa.control import Halt, Sync
from qcompiler.sim.isa.dma import Copy, GatherRows, Im2col
from qcompiler.sim.isa.matrix import MatrixMultiply
from qcompiler.sim.isa.vector import Add, Depthwise, Interpolate, Multiply, Pool, Requantize, Table
from qcompiler.sim.isa.vector_rows import LayerNorm, Softmax

INSTRUCTIONS: tuple[type[Instruction], ...] = (
    Halt, Sync, Copy, Im2col, GatherRows, MatrixMultiply,
    Requantize, Depthwise, Pool, Add, Multiply, Table, Interpolate, Softmax, LayerNorm,
)  # fmt: skip
OPCODES: dict[int, type[Instruction]] = {c.opcode: c for c in INSTRUCTIONS}
MNEMONICS: dict[str, type[Instruction]] = {c.mnemonic: c for c in INSTRUCTIONS}
assert len(OPCODES) == len(MNEMONICS) == len(INSTRUCTIONS)

__all__ = [
    "COUNTERS", "INSTRUCTIONS", "INSTRUCTION_BYTES", "MNEMONICS", "OPCODES", "QUEUES",
    "Add", "Copy", "Depthwise", "GatherRows", "Halt", "Im2col", "Instruction", "Interpolate", "LayerNorm",
    "MatrixMultiply", "Multiply", "Pool", "Queue", "Requantize", "Softmax", "Space", "Sync", "Table", "Timing",
]  # fmt: skip
