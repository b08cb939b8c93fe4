"""The cycles of a whole network in closed form: each layer's tiles flow through the units, no instruction is made.

A layer is a loop of visits (a tile with a group of channel blocks), a visit a few steps, a step a run of equal blocks
whose duration is one formula. What is carried from one to the next is when each unit, buffer and part of a tensor
becomes free or ready, by the same rules as `timing`. So the estimate costs a few microseconds a step, and prefetching
across tiles and layers, double buffers and memory latency are in it. Traffic comes from `cost.work`, exactly.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from dataclasses import dataclass, field

from qcompiler.sim import cost, mapping
from qcompiler.sim.hardware import ExternalMemory, Machine
from qcompiler.sim.isa.post import ADD_RECORD_BYTES, TABLE_BYTES, VECTOR_PIPELINE
from qcompiler.sim.mapping import Mapping, Residency, Tile, ceil_div
from qcompiler.sim.workload import MATRIX_KINDS, Geometry


@dataclass(frozen=True)
class Scheduled:
    """A layer with its decisions: names are those of the tensors' storage (views resolved), the image first."""

    geometry: Geometry
    mapping: Mapping
    residency: Residency
    image: str
    output: str
    operands: tuple[str, ...] = ()


@dataclass
class Ready:
    """When the first part of a tensor is complete: increasing (fraction of its bytes, cycle)."""

    fractions: list[float] = field(default_factory=list)
    cycles: list[int] = field(default_factory=list)

    def at(self, fraction: float) -> int:
        if not self.fractions:
            return 0
        return self.cycles[min(bisect_left(self.fractions, fraction - 1e-9), len(self.cycles) - 1)]

    def add(self, fraction: float, cycle: int) -> None:
        self.fractions.append(fraction)
        self.cycles.append(max(cycle, self.cycles[-1] if self.cycles else 0))


class Channel:
    """A transfer queue: requests issue one a cycle, data follow each other after the memory's latency."""

    def __init__(self, memory: ExternalMemory, writes: bool) -> None:
        self.memory, self.writes = memory, writes
        self.issued = self.end = self.complete = 0
        self.in_flight: deque[int] = deque(maxlen=memory.outstanding_transfers)

    def move(self, cycles: int, gate: int, local: bool = False) -> int:
        """One transfer not before `gate`; returns its completion."""
        latency = 0 if local else self.memory.latency_cycles
        if self.writes or local:
            issue = max(gate, self.end)
            self.end = issue + cycles
            self.complete = max(self.complete, self.end + (4 if local else latency))
        else:
            full = self.in_flight[0] if len(self.in_flight) == self.in_flight.maxlen else 0
            issue = max(gate, self.issued + 1, full)
            self.end = max(issue + latency, self.end) + cycles
            self.complete = max(self.complete, self.end)
        self.issued = issue
        self.in_flight.append(self.complete)
        return self.complete


class Ring:
    """A memory handed out front to back: a new piece waits for the last use of what lay there."""

    def __init__(self, size: int) -> None:
        self.size, self.position = size, 0
        self.pieces: deque[tuple[int, int, list[int]]] = deque()  # (start, stop, [last use]), oldest first

    def take(self, size: int) -> tuple[int, list[int]]:
        """``(cycle from which it may be written, handle)``; set handle[0] to the cycle of its last use."""
        if self.position + size > self.size:
            self.position = 0
        start, stop = self.position, self.position + size
        self.position = stop
        free = 0
        kept: deque[tuple[int, int, list[int]]] = deque()
        for piece in self.pieces:
            if piece[0] < stop and start < piece[1]:
                free = max(free, piece[2][0])
                if piece[0] < start:
                    kept.append((piece[0], start, piece[2]))
                if piece[1] > stop:
                    kept.append((stop, piece[1], piece[2]))
            else:
                kept.append(piece)
        handle = [0]
        kept.append((start, stop, handle))
        self.pieces = kept
        return free, handle


class Estimator:
    """The state of the machine between layers."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        main = machine.main_memory
        self.load, self.store = Channel(main, False), Channel(main, True)
        self.fetch = self.load if machine.constant_memory is None else Channel(machine.constant_memory, False)
        self.weights = Ring(machine.weight_memory.size_bytes)
        self.parameters = Ring(machine.vector.parameter_bytes)
        self.accumulators = Ring(machine.matrix.accumulator_rows)
        self.matrix_end = self.vector_end = self.frontier = 0
        self.ready: dict[str, Ready] = {}
        # Instructions of the array and of the lanes so far, and when they had issued.
        self.matrix_issues: tuple[list[int], list[int]] = ([0], [0])
        self.vector_issues: tuple[list[int], list[int]] = ([0], [0])

    # ------------------------------------------------------------------------------------ pieces
    def dispatched(self) -> int:
        """When the next instruction can be dispatched: a full queue stops dispatch, hence prefetching."""
        latest = 0
        for counts, cycles in (self.matrix_issues, self.vector_issues):
            wanted = counts[-1] - self.machine.control.queue_entries
            if wanted > 0:
                latest = max(latest, cycles[bisect_left(counts, wanted)])
        return latest

    def issue(self, unit: tuple[list[int], list[int]], count: int, cycle: int) -> None:
        """Note that `count` more instructions of a unit have issued by `cycle`."""
        unit[0].append(unit[0][-1] + count)
        unit[1].append(max(cycle, unit[1][-1]))

    def bring(self, runs: list[tuple[int, int]], gate: int, constant: bool = False) -> int:
        channel, done = self.fetch if constant else self.load, gate
        for run in runs:
            done = channel.move(cost.read(channel.memory, [run])[0], max(gate, self.dispatched()))
        return done

    def constants(self, size: int, gate: int) -> int:
        cycles = cost.read(self.machine.constant_memory or self.machine.main_memory, [(1, size)])[0]
        return self.fetch.move(cycles, max(gate, self.dispatched()))

    def take_out(self, runs: list[tuple[int, int]], gate: int) -> int:
        for run in runs:
            gate = max(gate, self.store.move(cost.write(self.machine.main_memory, [run])[0], gate))
        return gate

    def finish(self, *cycles: int) -> None:
        self.frontier = max(self.frontier, *cycles)

    # ------------------------------------------------------------------------------------ layers
    def run(self, layer: Scheduled) -> int:
        """Advance over the layer; returns how far it moved the frontier of completed work."""
        before = self.frontier
        if layer.geometry.kind in MATRIX_KINDS:
            self.matrix(layer)
        elif layer.geometry.kind in ("depthwise", "pool"):
            self.windows(layer)
        else:
            self.other(layer)
        return self.frontier - before

    def source(self, name: str, fraction: float) -> int:
        return self.ready[name].at(fraction) if name in self.ready else 0

    def matrix(self, layer: Scheduled) -> None:
        g = layer.geometry
        batch = g.image[0] if g.kind == "matmul" else 1
        ready = Ready()
        for b in range(batch):
            self.product(layer, ready, b / batch, 1 / batch, g.image[0] if batch == 1 else 1)
        self.ready[layer.output] = ready

    def product(self, layer: Scheduled, ready: Ready, base: float, share: float, images: int) -> None:
        g, m, r, machine = layer.geometry, layer.mapping, layer.residency, self.machine
        array, lanes = machine.matrix, machine.vector.lanes
        _, oh, ow, o = g.output
        c = g.image[3]
        blocks = mapping.blocks(g, machine)
        groups = [blocks[a:b] for a, b in mapping.cut(0, len(blocks), m.group)]
        parts = [math.prod(p.kernel) for p in mapping.parts(g, m)]
        passes_of = [p.kernel[0] * p.kernel[1] * ceil_div(p.kernel[2], array.rows) for p in mapping.parts(g, m)]
        passes = sum(passes_of)
        tiles = [t for t in mapping.tiles(g, m) if t.n < images]
        residual = g.operands > (g.kind == "matmul")
        tail = ADD_RECORD_BYTES * residual + TABLE_BYTES * g.tables
        table = ceil_div(TABLE_BYTES, lanes) * g.tables
        slots = {name: deque([0, 0], maxlen=2) for name in ("image", "operand", "output", "im2col")}
        tail_cycles = cost.matrix_timing(1, passes, machine, m.output_stationary)[3]

        def load(group: list[tuple[int, int, int]]) -> tuple[list[int], list[list[int]], int]:
            size = sum(width for _, _, width in group)
            chunk = (g.record_bytes if g.kind == "matmul" else size * g.record_bytes) + tail
            gate, parameters = self.parameters.take(chunk)
            parameters_ready = self.constants(chunk, gate)
            if len(parts) > 1:
                return [], [parameters], parameters_ready
            total = g.reduction * size
            gate, held = self.weights.take(total)
            if g.kind == "matmul":
                count, run = mapping.operand_runs(g, m, size)
                gate = max(gate, self.source(layer.operands[0], base + share))
                if r.weights:
                    arrival = self.load.move(cost.operand_cycles(g, count, run, machine), gate, local=True)
                else:
                    arrival = self.bring([(count, run)], gate, "weights" in r.constant)
                return [arrival] * len(group), [parameters, held], parameters_ready
            arrivals = [self.constants(g.reduction * width, gate) for _, _, width in group]
            return arrivals, [parameters, held], parameters_ready

        def stage(tile: Tile) -> tuple[int, int]:
            """``(when the tile's image is there, slot to release)``; resident images are asked for step by step."""
            if r.image and not m.im2col:
                return 0, 0
            y0, y1, x0, x1 = mapping.input_window(g, tile)
            there = self.source(layer.image, base + share * (tile.n + y1 / g.image[1]) / images)
            if not r.image:
                gate = max(slots["image"][0], there)
                runs = [cost.row_runs(y1 - y0, x1 - x0, g.image[2], c)]
                there = self.bring(runs, gate, "image" in r.constant)
            if m.im2col:
                run, taps = (g.kernel[1] * c, g.kernel[0]) if g.dilation[1] == 1 else (c, math.prod(g.kernel))
                cycles = tile.pixels * taps * ceil_div(run, machine.activation_memory.bytes_per_cycle)
                there = self.load.move(cycles, max(there, slots["im2col"][0]), local=True)
            return there, 1

        def body(tile: Tile, group: list[tuple[int, int, int]], last: bool,
                 loaded: tuple[list[int], list[list[int]], int], staged: tuple[int, int]) -> None:  # fmt: skip
            arrivals, held, parameters_ready = loaded
            size, columns = sum(width for _, _, width in group), tile.x1 - tile.x0
            transfers = cost.pixel_runs(tile.y1 - tile.y0, columns, ow, o, size)
            operand = 0
            if residual:
                fraction = base + share * (tile.n + tile.y1 / oh) / images
                operand = self.source(layer.operands[-1], fraction)
                if not r.operand:
                    gate = max(operand, slots["operand"][0])
                    operand = self.bring(transfers, gate, "operand" in r.constant)
            output_free = 0 if r.output else slots["output"][0]
            done = 0
            for index, step in enumerate(mapping.steps(tile, m)):
                gate = staged[0]
                if r.image and not m.im2col:
                    y1 = mapping.input_window(g, step)[1]
                    gate = self.source(layer.image, base + share * (step.n + y1 / g.image[1]) / images)
                lead, occupied, gap, through = cost.matrix_timing(step.pixels, passes, machine, m.output_stationary)
                first_vector = step.pixels * ceil_div(group[0][2], lanes) + table
                depth = max(array.accumulator_rows // step.pixels, 1)
                around = lead + occupied + through + first_vector + VECTOR_PIPELINE  # one block from end to end
                period = max(occupied + gap, first_vector, around / depth)
                for b, (_, _, width) in enumerate(group):
                    here = gate
                    if arrivals and index == 0:
                        here = max(here, arrivals[b])
                    elif len(parts) == 1 and b > depth:
                        # Nothing but the units holds the rest of the step: equal blocks at the slower one's pace.
                        rest = len(group) - b
                        self.matrix_end = round(self.matrix_end + rest * period)
                        spent = sum(step.pixels * ceil_div(w, lanes) + table for _, _, w in group[b:])
                        last_vector = step.pixels * ceil_div(group[-1][2], lanes) + table
                        self.vector_end = max(self.vector_end + spent, self.matrix_end + through + last_vector)
                        self.issue(self.matrix_issues, rest * len(parts), self.matrix_end - occupied)
                        self.issue(self.vector_issues, rest, self.vector_end - last_vector)
                        for i in range(min(depth, rest) - 1, -1, -1):
                            self.accumulators.take(step.pixels)[1][0] = (
                                self.vector_end + VECTOR_PIPELINE - i * last_vector
                            )
                        break
                    free, rows = self.accumulators.take(step.pixels)
                    if len(parts) == 1:
                        self.matrix_end = max(self.matrix_end + gap, max(here, free) + lead) + occupied
                    for k, share_of in zip(parts, passes_of, strict=True) if len(parts) > 1 else ():
                        empty, piece = self.weights.take(k * width)
                        here = max(here, free, self.constants(k * width, empty))
                        _, busy, _, _ = cost.matrix_timing(step.pixels, share_of, machine, m.output_stationary)
                        self.matrix_end = max(self.matrix_end + gap, here + lead) + busy
                        piece[0] = self.matrix_end + through
                    spent = step.pixels * ceil_div(width, lanes) + table
                    begin = max(self.vector_end, self.matrix_end + through, parameters_ready, operand, output_free)
                    self.vector_end = begin + spent
                    self.issue(self.matrix_issues, len(parts), self.matrix_end - occupied)
                    self.issue(self.vector_issues, 1, begin)
                    rows[0] = self.vector_end + VECTOR_PIPELINE
                done = self.vector_end + VECTOR_PIPELINE
                if last and r.output:
                    ready.add(base + share * (tile.n + step.y1 / oh) / images, done)
            for piece in held:
                piece[0] = done if piece is held[0] else self.matrix_end + tail_cycles
            if not r.image and not m.im2col:  # im2col reads the image in the queue that loads it
                slots["image"].append(self.matrix_end + tail_cycles)
            if m.im2col:
                slots["im2col"].append(self.matrix_end + tail_cycles)
            if residual and not r.operand:
                slots["operand"].append(done)
            if not r.output:
                written = self.take_out(transfers, done)
                slots["output"].append(written)
                if last:
                    ready.add(base + share * (tile.n + tile.y1 / oh) / images, written)
                done = written
            self.finish(done)

        if m.groups_outer:
            staged = (0, 0)
            for i, group in enumerate(groups):
                loaded = load(group)
                for tile in tiles:
                    if len(tiles) > 1 or i == 0:
                        staged = stage(tile)
                    body(tile, group, i == len(groups) - 1, loaded, staged)
                    loaded = ([], *loaded[1:]) if len(parts) == 1 else loaded
        else:
            loaded = load(groups[0])
            for i, tile in enumerate(tiles):
                staged = stage(tile)
                for j, group in enumerate(groups):
                    if len(groups) > 1 and i + j > 0:
                        loaded = load(group)
                    body(tile, group, j == len(groups) - 1, loaded, staged)
                    loaded = ([], *loaded[1:]) if len(parts) == 1 and len(groups) == 1 else loaded

    def windows(self, layer: Scheduled) -> None:
        """Depthwise and pools: one unit, in order."""
        g, m, r, machine = layer.geometry, layer.mapping, layer.residency, self.machine
        lanes, depthwise = machine.vector.lanes, layer.geometry.kind == "depthwise"
        images, oh, ow, o = g.output
        groups = mapping.cut(0, o, m.group * lanes) if depthwise else [(0, o)]
        merged = mapping.merged_pixels(g, m, machine) if depthwise else 1
        taps, tiles, ready = math.prod(g.kernel), mapping.tiles(g, m), Ready()
        table = ceil_div(TABLE_BYTES, lanes) * g.tables
        slots = {name: deque([0, 0], maxlen=2) for name in ("image", "output")}

        def load(first: int, last: int) -> tuple[int, list[int]]:
            size = (taps + g.record_bytes) * (last - first) * merged if depthwise else g.record_bytes * g.records
            size += TABLE_BYTES * g.tables
            if not size:
                return 0, [0]
            gate, piece = self.parameters.take(size)
            return self.constants(size, gate), piece

        def stage(tile: Tile) -> int:
            if r.image:
                return 0
            y0, y1, x0, x1 = mapping.input_window(g, tile)
            gate = max(slots["image"][0], self.source(layer.image, (tile.n + y1 / g.image[1]) / images))
            runs = [cost.row_runs(y1 - y0, x1 - x0, g.image[2], g.image[3])]
            return self.bring(runs, gate, "image" in r.constant)

        def body(tile: Tile, first: int, last: int, loaded: tuple[int, list[int]], staged: int, final: bool) -> None:
            width = last - first
            gate = max(staged, loaded[0], 0 if r.output else slots["output"][0])
            for step in mapping.steps(tile, m):
                if r.image:
                    y1 = mapping.input_window(g, step)[1]
                    gate = max(gate, self.source(layer.image, (step.n + y1 / g.image[1]) / images))
                rows, columns = step.y1 - step.y0, step.x1 - step.x0
                across = ceil_div(columns, merged) * ceil_div(merged * width, lanes)
                pieces = 1 if columns % merged == 0 else 2
                self.vector_end = max(self.vector_end, gate) + rows * across * taps + table * pieces
                self.issue(self.vector_issues, pieces, self.vector_end - rows * across * taps)
                if r.output and final:
                    ready.add((tile.n + step.y1 / oh) / images, self.vector_end + VECTOR_PIPELINE)
            done = self.vector_end + VECTOR_PIPELINE
            loaded[1][0] = done
            if not r.image:
                slots["image"].append(done)
            if not r.output:
                runs = cost.pixel_runs(tile.y1 - tile.y0, tile.x1 - tile.x0, ow, o, width)
                done = self.take_out(runs, done)
                slots["output"].append(done)
                if final:
                    ready.add((tile.n + tile.y1 / oh) / images, done)
            self.finish(done)

        if m.groups_outer:
            for i, (first, last) in enumerate(groups):
                loaded = load(first, last)
                for tile in tiles:
                    staged = stage(tile) if len(tiles) > 1 or i == 0 else 0
                    body(tile, first, last, loaded, staged, i == len(groups) - 1)
        else:
            loaded = load(*groups[0])
            for i, tile in enumerate(tiles):
                staged = stage(tile)
                for j, (first, last) in enumerate(groups):
                    if len(groups) > 1 and i + j > 0:
                        loaded = load(first, last)
                    body(tile, first, last, loaded, staged, j == len(groups) - 1)
        self.ready[layer.output] = ready

    def other(self, layer: Scheduled) -> None:
        """Element-wise, row-wise and moving work: chunks through load, lanes and store."""
        chunks = cost.chunks(layer.geometry, layer.mapping, layer.residency, self.machine)
        slots, ready = deque([0, 0], maxlen=2), Ready()
        gate = 0
        if chunks.parameter_bytes:
            free, piece = self.parameters.take(chunks.parameter_bytes)
            gate = self.constants(chunks.parameter_bytes, free)
            piece[0] = gate
        names = (layer.image, *layer.operands)
        for i, chunk in enumerate(chunks.items):
            fraction = (i + 1) / len(chunks.items)
            there = max(gate, *(self.source(name, fraction if chunks.in_order else 1.0) for name in names))
            for name, run in chunk.loads:
                there = max(there, self.bring([run], max(there, slots[0]), name in layer.residency.constant))
            done = there
            if chunk.vector:
                self.vector_end = max(self.vector_end, there) + chunk.vector
                self.issue(self.vector_issues, 1, self.vector_end - chunk.vector)
                done = self.vector_end + VECTOR_PIPELINE
            if chunk.local:
                done = self.store.move(chunk.local, done, local=True)
            if chunk.stores:
                done = self.take_out(chunk.stores, done)
            slots.append(done)
            ready.add(fraction, done)
            self.finish(done)
        self.ready[layer.output] = ready


def estimate(layers: list[Scheduled], machine: Machine) -> list[int]:
    """Cycles of each layer: how far it moves the frontier of completed work (`Timeline.layer_cycles`)."""
    estimator = Estimator(machine)
    return [estimator.run(layer) for layer in layers]
