"""The address generator that convolutions, pools and im2col share: a 2-D window walking over an NHWC tile.

Output pixel (oy, ox), tap (ky, kx) sees ``run`` consecutive bytes of the tile starting at row
``iy = y0 + oy*stride_y + ky*dilation_y`` and byte ``b = (x0 + ox*stride_x + kx*dilation_x) * pixel_pitch``; byte b+j
of that row is at ``address + iy*row_pitch + b + j`` and is *inside* when ``0 <= iy < in_h`` and
``0 <= b + j < in_w*pixel_pitch``. Outside bytes are padding: they read as the zero point and touch no memory.
A run longer than a pixel covers several neighbouring pixels (few-channel layers), the test stays per byte. All windows
of an instruction, padding included, span at most 2**26 bytes, and one window has at most 2**16.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from qcompiler.sim.errors import ProgramError
from qcompiler.sim.isa.base import Instruction, Space, operand

if TYPE_CHECKING:
    from qcompiler.sim.machine_state import MachineState


MAX_SPAN_BYTES = 1 << 26
MAX_WINDOW_BYTES = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Windowed(Instruction):
    """Operands of the window address generator."""

    address: int = operand("u32", "byte address of the tile's element (0, 0, first channel)")
    row_pitch: int = operand("u32", "bytes from one tile row to the next")
    pixel_pitch: int = operand("u16", "bytes from one pixel to the next")
    in_h: int = operand("u16", "rows of the tile; others are padding")
    in_w: int = operand("u16", "pixels of a tile row; others are padding")
    y0: int = operand("i16", "tile row of output row 0, tap row 0 (negative: padding)", 0)
    x0: int = operand("i16", "tile pixel of output column 0, tap column 0", 0)
    stride_y: int = operand("u8", "tile rows per output row", 1)
    stride_x: int = operand("u8", "tile pixels per output column", 1)
    dilation_y: int = operand("u8", "tile rows per tap row", 1)
    dilation_x: int = operand("u8", "tile pixels per tap column", 1)
    kernel_h: int = operand("u8", "tap rows", 1)
    kernel_w: int = operand("u8", "tap columns", 1)
    out_h: int = operand("u16", "output rows")
    out_w: int = operand("u16", "output columns")

    @property
    def pixels(self) -> int:
        return self.out_h * self.out_w

    @property
    def taps(self) -> int:
        return self.kernel_h * self.kernel_w

    def span(self, run: int) -> tuple[int, int]:
        """Rows, and bytes of a row, that all windows together cover, padding included."""
        rows = (self.out_h - 1) * self.stride_y + (self.kernel_h - 1) * self.dilation_y + 1
        columns = (self.out_w - 1) * self.stride_x + (self.kernel_w - 1) * self.dilation_x
        return rows, columns * self.pixel_pitch + run

    def check_window(self, run: int) -> None:
        for name in ("in_h", "in_w", "out_h", "out_w", "kernel_h", "kernel_w", "pixel_pitch"):
            if getattr(self, name) < 1:
                raise ProgramError(f"{self.mnemonic}: {name} must be at least 1")
        if run < 1:
            raise ProgramError(f"{self.mnemonic}: nothing to read")
        rows, width = self.span(run)
        if self.taps * run > MAX_WINDOW_BYTES or rows * width > MAX_SPAN_BYTES:
            raise ProgramError(
                f"{self.mnemonic}: a window of {self.taps * run} bytes, or windows over {rows} rows of {width} bytes: "
                f"at most {MAX_WINDOW_BYTES} and {MAX_SPAN_BYTES}"
            )


def window_values(
    ins: Windowed, state: MachineState, space: Space, run: int, zero: int
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """``(values int8, inside bool)``, both [out_h, out_w, kernel_h, kernel_w, run]; padding holds `zero`."""
    memory = state.memory(space)
    rows, width = ins.span(run)
    first_byte = ins.x0 * ins.pixel_pitch
    # A run inside one pixel (a slice of the channels) must not touch what follows it in the last pixel.
    line = ins.in_w * ins.pixel_pitch if run > ins.pixel_pitch else (ins.in_w - 1) * ins.pixel_pitch + run
    y_low, y_high = max(ins.y0, 0), min(ins.y0 + rows, ins.in_h)
    b_low, b_high = max(first_byte, 0), min(first_byte + width, line)
    tile = np.full((rows, width), zero, dtype=np.int8)
    inside = np.zeros((rows, width), dtype=bool)
    known = np.ones((rows, width), dtype=bool)
    if y_low < y_high and b_low < b_high:
        part = (slice(y_low - ins.y0, y_high - ins.y0), slice(b_low - first_byte, b_high - first_byte))
        shape, strides = (y_high - y_low, b_high - b_low), (ins.row_pitch, 1)
        tile[part], known[part] = memory.peek(ins, ins.address + y_low * ins.row_pitch + b_low, shape, strides)
        inside[part] = True

    def windows(plane: npt.NDArray[Any]) -> npt.NDArray[Any]:
        item = plane.itemsize
        return np.lib.stride_tricks.as_strided(
            plane,
            (ins.out_h, ins.out_w, ins.kernel_h, ins.kernel_w, run),
            (
                ins.stride_y * width * item, ins.stride_x * ins.pixel_pitch * item,
                ins.dilation_y * width * item, ins.dilation_x * ins.pixel_pitch * item, item,
            ),
            writeable=False,
        )  # fmt: skip

    if not known.all() and not windows(known).all():
        raise ProgramError(f"{ins.mnemonic}: reads bytes of the {space.name} memory that nothing wrote")
    if memory.tracks:
        rows_at = ins.address + (ins.y0 + np.arange(rows, dtype=np.int64)[:, None]) * ins.row_pitch
        addresses = np.where(inside, rows_at + first_byte + np.arange(width), -1)
        used = np.unique(windows(addresses))
        memory.observe(used[used >= 0])
    return windows(tile), windows(inside)
