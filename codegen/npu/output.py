"""Where the results of one tile go: straight into a resident tensor, or into a buffer that is then stored."""

from __future__ import annotations

from qcompiler.codegen.npu.context import Context, Place
from qcompiler.codegen.npu.hazards import Region
from qcompiler.sim.mapping import Tile
from qcompiler.sim.workload import Geometry


class TilePixels:
    """Channels first..last-1 of a tile of an NHWC tensor: in place, or packed in a buffer of the activation memory."""

    def __init__(self, context: Context, tensor: Place, g: Geometry, tile: Tile, first: int, last: int) -> None:
        self.context, self.tensor, self.tile, self.first, self.last = context, tensor, tile, first, last
        _, h, self.width, self.channels = g.output
        self.start = ((tile.n * h + tile.y0) * self.width + tile.x0) * self.channels

    def open(self, slot: str) -> TilePixels:
        """Use the tensor itself when it is resident, the next buffer of `slot` otherwise."""
        if self.tensor.resident:
            self.place, self.origin = self.tensor.at(self.start), 0
            self.row_pitch, self.pixel_pitch = self.width * self.channels, self.channels
        else:
            self.place, self.origin = self.context.slots[slot].next(), self.first
            self.pixel_pitch = self.last - self.first
            self.row_pitch = (self.tile.x1 - self.tile.x0) * self.pixel_pitch
        return self

    def part(self, step: Tile, channel: int, width: int) -> tuple[int, Region]:
        """Address and region of `width` channels from `channel` on of a step's pixels."""
        y, x = step.y0 - self.tile.y0, step.x0 - self.tile.x0
        offset = y * self.row_pitch + x * self.pixel_pitch + channel - self.origin
        stop = offset + (step.y1 - step.y0 - 1) * self.row_pitch + (step.x1 - step.x0 - 1) * self.pixel_pitch + width
        column = (self.place.address - self.place.buffer.address + offset) % self.pixel_pitch
        region = self.place.region(offset, stop, self.pixel_pitch, column, column + width)
        return self.place.address + offset, region

    def fill(self) -> None:
        """Bring the pixels into the buffer, unless the tensor is resident."""
        if not self.tensor.resident:
            self._transfer(self.context.load)

    def drain(self) -> None:
        """Take the pixels out of the buffer, unless the tensor is resident."""
        if not self.tensor.resident:
            self._transfer(self.context.store)

    def _transfer(self, move) -> None:  # type: ignore[no-untyped-def]
        rows, columns = self.tile.y1 - self.tile.y0, self.tile.x1 - self.tile.x0
        size, c = self.last - self.first, self.channels
        if size == c:
            move(self.place, self.tensor, self.start, rows, columns * c, self.width * c)
        elif columns == self.width:
            move(self.place, self.tensor, self.start + self.first, rows * columns, size, c)
        else:
            for y in range(rows):
                line = self.place.at(y * columns * size)
                move(line, self.tensor, self.start + y * self.width * c + self.first, columns, size, c)
