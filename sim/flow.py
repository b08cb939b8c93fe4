"""The cycles of a network in closed form: runs of visits flow through the units, no instruction is made.

Carried from run to run is when each unit, buffer and part of a tensor becomes free or ready, by the rules of `timing`.
Within a run every unit has its work, and the pace of the slowest: the array, the lanes, a memory's channel, or a
buffer that is asked for again when it is free. So prefetching across visits and layers, double buffers, memory latency,
rings that are handed out front to back and full queues are in it, for any number of machines at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from qcompiler.sim.hardware.batch import Machines
from qcompiler.sim.isa.dma import LOCAL_LATENCY
from qcompiler.sim.isa.post import VECTOR_PIPELINE
from qcompiler.sim.visits import AMOUNTS, RUNS, Visits
from qcompiler.sim.workload import MATRIX_KINDS

Floats = npt.NDArray[np.float64]
Values = Any
RECENT = 4  # transfers of a channel that are remembered
RING, QUEUE = 6, 8  # pieces of a ring, and layers of a queue, that are remembered


class S(IntEnum):
    """Rows of the state: cycles, unless said otherwise."""

    load_end = 0  # the channel has moved what was asked for; a request may issue; the same of the constants' channel
    load_free = 1
    fetch_end = 2
    fetch_free = 3
    store_end = 4
    matrix = 5  # units
    vector = 6
    accumulated = 7  # the last requantisation, and its cycles for an accumulator row
    pace = 8
    frontier = 9
    image1 = 10  # when the last and the one before were released, of each double buffer
    image2 = 11
    operand1 = 12
    operand2 = 13
    output1 = 14
    output2 = 15
    weight_top = 16  # bytes handed out so far
    parameter_top = 17
    weight_ring = 18  # RING starts, RING releases; the newest first
    parameter_ring = weight_ring + 2 * RING
    # QUEUE times, the newest first: issues of the array, when the first and the last; of the lanes; of loads
    queue = parameter_ring + 2 * RING
    # When the latest transfers of each channel were there, the newest first.
    load_recent = queue + 9 * QUEUE
    fetch_recent = load_recent + RECENT
    size = fetch_recent + RECENT


@dataclass
class Ready:
    """When parts of a tensor are complete [n]: the first of equal parts, a fraction `first`, at `begin`, the others
    evenly until `end`."""

    first: Floats
    begin: Floats
    end: Floats

    def at(self, fraction: Floats) -> Floats:
        steps = np.ceil(1 / np.maximum(self.first, 1e-9) - 1e-6)
        wanted = np.clip(np.ceil(fraction / np.maximum(self.first, 1e-9) - 1e-6), 1, steps)
        between = self.begin + (wanted - 1) / np.maximum(steps - 1, 1) * (self.end - self.begin)
        return np.where(wanted < steps, between, self.end)


class Flow:
    """The state of n machines between layers."""

    def __init__(self, m: Machines) -> None:
        self.m = m
        self.state = np.zeros((S.size, len(m)))
        self.ready: dict[str, Ready] = {}

    @property
    def frontier(self) -> Floats:
        """When all work so far is complete [n]."""
        return self.state[S.frontier].copy()

    def layer(self, kind: str, v: Visits, image: str, output: str, operands: tuple[str, ...] = ()) -> Floats:
        """Advance over a layer; returns how far it moved the frontier of completed work [n]."""
        before = self.state[S.frontier].copy()
        none = np.zeros(len(self.m))
        sources = [self.ready.get(name) or Ready(none, none, none) for name in (image, *operands)]
        batch = int(v["batch"].max()) if kind == "matmul" else 1
        ready = Ready(none.copy(), none.copy(), none.copy())
        self.state[S.image1 : S.output2 + 1] = 0  # the buffers of a layer are its own
        self.state[S.queue + 9 : S.load_recent] = self.state[S.queue : S.load_recent - 9].copy()
        self.state[S.queue : S.queue + 9] = 0
        marks = [before]
        for i in range(batch):
            if batch > 4 and i == 3:  # equal products, at the pace of the third
                self._shift((marks[-1] - marks[-2]) * (batch - 4))
            elif 3 < i < batch - 1:
                continue
            for run in RUNS:
                here = np.flatnonzero(v.run(run)[0] > 0)
                if here.size:
                    self._run(kind, run, v, here, sources, ready, i == batch - 1)
            marks.append(self.state[S.frontier].copy())
        self.ready[output] = ready
        return np.asarray(self.state[S.frontier] - before)

    def _shift(self, cycles: Floats) -> None:
        rows = [*range(S.load_end, S.accumulated + 1), *range(S.frontier, S.output2 + 1), *range(S.load_recent, S.size)]
        self.state[rows] += cycles
        for ring in (S.weight_ring, S.parameter_ring):
            self.state[ring + RING : ring + 2 * RING] += cycles

    def _run(self, kind: str, run: str, v: Visits, here: npt.NDArray[np.int64], sources: list[Ready], ready: Ready,
             last: bool) -> None:  # fmt: skip
        whole = here.size == len(self.m)
        # `take` keeps rows in one piece, an index would leave them strewn.
        s = self.state if whole else self.state.take(here, axis=1)
        x = Visits(v.values if whole else v.values.take(here, axis=1))
        if not whole:
            sources = [Ready(r.first[here], r.begin[here], r.end[here]) for r in sources]
        step = _Run(kind, run, x, self.m if whole else self.m.take(here), s, sources)
        step.advance()
        if not whole:
            for row, fresh_row in zip(self.state, s, strict=True):
                row[here] = fresh_row
        if last:
            first, begin, end = step.completed()
            fresh = ready.begin[here] == 0
            if run in "DE":  # the last group begins
                fresh |= (step.v["renewed"] > 0) & ((step.v["Dvisits"] == 0) | (run == "D"))
            ready.first[here] = np.where(fresh, first, ready.first[here])
            ready.begin[here] = np.where(fresh, begin, ready.begin[here])
            ready.end[here] = end


class _Run:
    """One run of visits on the machines that have it; `s` is advanced in place."""

    def __init__(self, kind: str, run: str, v: Visits, m: Machines, s: Floats, sources: list[Ready]) -> None:
        self.kind, self.run, self.v, self.m, self.s, self.sources = kind, run, v, m, s, sources
        self.a = dict(zip(AMOUNTS, v.run(run), strict=True))
        self.fetch = self.a["fetch"] / np.maximum(self.a["groups"], 1)  # weights of a group
        self.row = np.arange(s.shape[1])
        self.matrix = kind in MATRIX_KINDS
        self.chunks = not self.matrix and kind not in ("depthwise", "pool")

    # ------------------------------------------------------------------------------------ channels
    def channel(self, apart: Floats) -> npt.NDArray[np.bool_]:
        """Where the constants' own channel serves: those of machines that have one."""
        return np.asarray((apart > 0) & self.m.separate)

    def request(self, apart: Floats, gate: Floats, cycles: Floats, transfers: Values, active: Values) -> Floats:
        """Equal transfers of `cycles` each, not before `gate`, where `active`; returns when the first is there."""
        s, m = self.s, self.m
        own = self.channel(apart)
        end, free = np.where(own, s[S.fetch_end], s[S.load_end]), np.where(own, s[S.fetch_free], s[S.load_free])
        latency = np.where(own, m.constant.latency, m.main.latency)
        most = np.where(own, m.constant.outstanding, m.main.outstanding)
        recent = self.recent(own)
        oldest = recent[np.minimum(most, RECENT).astype(np.int64) - 1, self.row]  # whose place the first takes
        asked = np.maximum(gate, free)
        issue = np.maximum(asked, np.where(most <= RECENT, oldest, 0))
        first = np.maximum(issue + latency, end) + cycles
        done = first
        if np.any(np.asarray(transfers) > 1):
            left = transfers - 1
            # The others behind it, in a place of their own, or in that of one before.
            done = first + np.maximum(left * cycles, np.floor(left / most) * (latency + cycles))
            position = np.arange(RECENT)[:, None]
            places = (position < most) & (position >= most - transfers)
            behind = recent + latency + (transfers - most + position + 1) * cycles
            done = np.maximum(done, np.where(places, behind, 0).max(axis=0))
        pace = (done - first) / np.maximum(transfers - 1, 1)
        free = np.maximum(issue + transfers, np.where(most > 1, done - (most - 1) * pace, 0) * (transfers > most))
        self.done = done
        used = active > 0
        s[S.fetch_end], s[S.fetch_free] = np.where(used & own, (done, free), (s[S.fetch_end], s[S.fetch_free]))
        s[S.load_end], s[S.load_free] = np.where(used & ~own, (done, free), (s[S.load_end], s[S.load_free]))
        self.remember(used, own, recent, done, pace, transfers)
        return np.where(used, first, 0)

    def recent(self, own: npt.NDArray[np.bool_]) -> Floats:
        """When the latest transfers were there."""
        load, fetch = self.s[S.load_recent : S.fetch_recent], self.s[S.fetch_recent : S.size]
        return np.where(own, fetch, load) if own.any() else load

    def remember(self, used: Values, own: npt.NDArray[np.bool_], recent: Floats, done: Floats, pace: Floats,
                 transfers: Values) -> None:  # fmt: skip
        """So many transfers, the last at `done`, the others `pace` apart before it."""
        if np.all(np.asarray(transfers) == 1):
            new = np.empty_like(recent)
            new[0], new[1:] = done, recent[:-1]
        else:
            position = np.arange(RECENT)[:, None]
            back = np.clip(position - transfers, 0, RECENT - 1).astype(np.int64)
            new = np.where(position < transfers, done - position * pace, np.take_along_axis(recent, back, axis=0))
        for rows, mask in (((S.load_recent, S.fetch_recent), used & ~own), ((S.fetch_recent, S.size), used & own)):
            if mask.any():
                part = self.s[rows[0] : rows[1]]
                part[:] = np.where(mask, new, part)

    def more(self, apart: Floats, cycles: Floats, transfers: Floats, local: bool = False, longest: Values = 0,
             each: Values = 1) -> Floats:  # fmt: skip
        """Occupy a channel with `transfers` more that take `cycles` together; returns when it is done. They come in
        rounds of `each`, of which the longest takes `longest`."""
        own, s, m, work = self.channel(apart), self.s, self.m, cycles
        if not local:
            latency = np.where(own, m.constant.latency, m.main.latency)
            most = np.where(own, m.constant.outstanding, m.main.outstanding)
            cycles = np.maximum(cycles, (transfers * latency + cycles) / most) * (cycles > 0)
        if np.any(longest):
            rounds = transfers / np.maximum(each, 1)
            # A transfer follows the one before, or takes the place of one `most` before: the slowest way around.
            turns = np.maximum(np.floor(each / most), 1)  # places taken of one before, on a way around `around` rounds
            around = np.where(each >= most, 1, np.ceil(most / np.maximum(each, 1)))
            served = turns + each * around - turns * most  # transfers on that way
            busy = np.minimum(served * longest, around * work / np.maximum(rounds, 1))
            slow = rounds * (turns * latency + busy) / around
            cycles = np.where((cycles > 0) & (longest > 0), np.maximum(cycles, slow), cycles)
        s[S.fetch_end] += np.where(own, cycles, 0)
        s[S.load_end] += np.where(own, 0, cycles)
        end = np.where(own, s[S.fetch_end], s[S.load_end])
        if np.any(longest) and (cycles > 0).any():
            self.remember(
                (cycles > 0) & (transfers > 0), own, self.recent(own), end, cycles / np.maximum(transfers, 1), transfers
            )
        return np.where(cycles > 0, end, 0)

    # ---------------------------------------------------------------------------------------- rings
    def take(self, ring: S, top: S, size: Floats, capacity: Floats, active: Values) -> Floats:
        """Hand out `size` bytes; returns when they may be written. The newest entry is the new one."""
        s, count = self.s, RING
        start = s[top]
        offset = np.mod(start, capacity)
        start = np.where(offset + size > capacity, start + capacity - offset, start)
        starts, releases = s[ring : ring + count], s[ring + count : ring + 2 * count]
        lapped = starts < start + size - capacity
        gate = np.where(lapped, releases, 0).max(axis=0)
        used = active > 0
        s[ring + 1 : ring + count] = np.where(used, s[ring : ring + count - 1], s[ring + 1 : ring + count])
        s[ring + count + 1 : ring + 2 * count] = np.where(
            used, s[ring + count : ring + 2 * count - 1], s[ring + count + 1 : ring + 2 * count]
        )
        s[ring] = np.where(used, start, s[ring])
        s[top] = np.where(used, start + size, s[top])
        return np.where(used, gate, 0)

    def dispatched(self) -> Floats:
        """When the next instruction can be dispatched: a full queue stops dispatch, hence prefetching."""
        count, begin, end = self.s[S.queue : S.load_recent].reshape(QUEUE, 3, 3, -1).swapaxes(0, 2)
        left = self.m.queue_entries - np.cumsum(count, axis=1) + count
        inside = (left >= 0) & (left < count)
        return np.asarray(np.where(inside, end - (end - begin) * left / np.maximum(count, 1), 0).max(axis=(0, 1)))

    def note(self, unit: int, count: Floats, begin: Floats, end: Floats) -> None:
        """Remember the instructions of this run: their number, and when the first and the last issued."""
        row = S.queue + 3 * unit
        s = self.s
        s[row + 1] = np.where(s[row] == 0, begin, s[row + 1])
        s[row + 2] = np.where(count > 0, end, s[row + 2])
        s[row] += count

    # ---------------------------------------------------------------------------------------- visits
    def advance(self) -> None:
        """The whole run."""
        s, v, a, m = self.s, self.v, self.a, self.m
        n = a["visits"]
        loads, groups = np.maximum(a["loads"], 1), np.maximum(a["groups"], 1)
        matrix, vector = a["matrix"] / n, a["vector"] / n
        hold = np.maximum(matrix, vector)  # of a visit
        dispatch = self.dispatched()
        # Constants of the first group of the run.
        loaded, staged = a["groups"] > 0, a["loads"] > 0
        has = loaded & (v["parameter_bytes"] > 0)
        # The last group may be smaller.
        ends = np.full(n.shape, self.run == "E") | (v["outer"] > 0) & (self.run == "D")
        weight_bytes = np.where(ends, v["last_weight_bytes"], v["weight_bytes"])
        parameter_bytes = np.where(ends, v["last_parameter_bytes"], v["parameter_bytes"])
        gate = self.take(S.parameter_ring, S.parameter_top, parameter_bytes, m.parameter_bytes, has)
        apart = np.ones_like(n)
        parameters = self.request(apart, np.maximum(gate, dispatch), v["parameters"], 1, has)
        weights_first = weights_last = np.zeros_like(n)
        weighted = loaded & (self.fetch > 0)
        if self.matrix:
            gate = self.take(S.weight_ring, S.weight_top, weight_bytes, m.weight_bytes, weighted)
            gate = np.maximum(gate, dispatch)
            if self.kind == "matmul":
                gate = np.maximum(gate, self.sources[1].at(np.ones_like(n)))
            whole = weighted & (v["stream"] == 0)
            weights_first = self.weights(gate, whole)
            weights_last = np.where(whole, self.done, 0)
        self.asked = np.maximum(dispatch, s[S.load_free])
        # The image of the first tile.
        image = self.image(staged, loads, dispatch)
        if self.matrix and (weighted & ~whole).any():  # parts come when they are needed, behind the image
            first = self.weights(gate, weighted & ~whole)
            weights_first = np.where(whole, weights_first, first)
            weights_last = np.where(whole, weights_last, self.done)
            weights_last = np.where(weighted, weights_last, 0)
        operand, added = np.zeros_like(n), v["added"] > 0
        if len(self.sources) > 1 and self.kind != "matmul":
            operand = self.sources[-1].at(v["first_step"])
        if added.any():
            gate = np.maximum(dispatch, s[S.operand2])
            if len(self.sources) > 1:
                gate = np.maximum(gate, self.sources[-1].at(np.minimum(v["output_step"], 1)))
            self.request(v["operand_apart"], gate, a["operand"] / n / v["transfers"], v["transfers"], added)
            operand = np.where(added, self.done, operand)
        output = np.where(v["written"] > 0, s[S.output2], 0)
        # What comes for the other visits of the run.
        rest_image = np.where(staged, (a["load"] - a["load"] / loads), 0)
        exposed = np.where((a["gather"] > 0) & (a["load"] > 0), np.maximum(m.main.latency - a["gather"] / loads, 0), 0)
        last_load = self.more(v["image_apart"], rest_image + (loads - 1) * exposed, loads - 1)
        local = np.zeros_like(n) if self.chunks else a["gather"] - a["gather"] / loads
        last_load = np.maximum(last_load, self.more(np.zeros_like(n), local, loads, local=True))
        rest = np.where(added, a["operand"] * (1 - 1 / n), 0)
        last_load = np.maximum(last_load, self.more(v["operand_apart"], rest, (n - 1) * v["transfers"]))
        again = (groups - 1) * loaded
        fetch = self.fetch + v["parameters"]
        pieces = np.where(self.matrix, v["blocks"], 0) + has
        where = np.where(v["local"] > 0, 0, v["weights_apart"]) if self.matrix else apart
        longest = self.fetch / np.maximum(v["blocks"], 1) if self.matrix else 0.0
        last_fetch = self.more(where, again * fetch, again * pieces, longest=longest, each=pieces)
        # The pace of the run.
        pace = hold.copy()
        per_image, per_group = hold * n / loads, hold * n / groups
        latency = np.where(self.channel(v["image_apart"]), m.constant.latency, m.main.latency)
        one_load = a["load"] / loads
        turn = (latency * (a["load"] > 0) + one_load + a["gather"] / loads + per_image + v["through"]) / 2 * loads / n
        pace = np.maximum(pace, np.where(staged & (a["gather"] == 0), turn, 0))
        slots = np.maximum(np.floor(m.weight_bytes / np.maximum(v["weight_bytes"], 1)), 1)
        if self.matrix:
            fetch_latency = np.where(self.channel(v["weights_apart"]), m.constant.latency, m.main.latency)
            turn = (fetch_latency + self.fetch + per_group + v["through"]) / np.minimum(slots, RING) * groups / n
            pace = np.maximum(pace, np.where(weighted & (v["stream"] == 0), turn, 0))
            # Parts of weights come as the array works on the ones before, a ring of them ahead.
            ahead = np.minimum(np.maximum(v["ahead"], 1), np.maximum(v["blocks"], 1))
            turn = (v["blocks"] * (fetch_latency + v["lead"] + v["through"]) + self.fetch + matrix) / ahead
            stream = v["stream"] > 0
            pace = np.maximum(pace, np.where(stream, np.maximum(turn, self.fetch), 0))
            streaming = np.where(stream, np.maximum(turn, self.fetch * (1 - ahead / v["blocks"])), 0)
        alone = store = a["store"] / n
        store = np.maximum(store, (store + v["transfers"] * m.main.latency) / m.main.outstanding) * (store > 0)
        turn = (vector + VECTOR_PIPELINE + store + m.main.latency) / 2
        pace = np.maximum(pace, np.where(v["written"] > 0, turn, 0))
        turn = (m.main.latency + a["operand"] / n + hold) / 2
        pace = np.maximum(pace, np.where(added, turn, 0))
        # A queue that is full when the next loads should be dispatched.
        waits = (staged & (loads > 1)) | (weighted & (groups > 1))
        issued = np.maximum(a["issues"], a["lane_issues"]) / n
        early = np.minimum(m.queue_entries / np.maximum(issued, 1), 4)
        needed = np.where(staged & (loads > 1), latency + one_load, np.where(weighted, latency + v["block"], 0))
        pace = np.maximum(pace, np.where(waits & (early < 1), hold * (1 - early) + needed, 0))
        # The array.
        done_matrix = np.zeros_like(n)
        gate_first, gate_last = image
        if self.matrix:
            free = s[S.accumulated] + VECTOR_PIPELINE - (m.accumulator_rows - v["rows"]) * s[S.pace]
            begin = np.maximum(
                s[S.matrix] + v["gap"], np.maximum(np.maximum(weights_first, gate_first), free) + v["lead"]
            )
            visit_blocks = np.maximum(a["lane_issues"] / n, 1)
            around = v["lead"] + v["first"] + v["through"] + v["first_vector"] + VECTOR_PIPELINE
            beat = np.maximum(np.maximum(matrix, vector) / visit_blocks, around / v["depth"])
            slow = np.maximum(matrix, np.where(visit_blocks > v["depth"], visit_blocks * around / v["depth"], 0))
            slow = np.maximum(slow, streaming)
            pace = np.maximum(pace, slow)
            end = begin + slow - v["gap"]
            # Blocks of the first step as their weights come, then the other steps.
            streamed = v["stream"] > 0
            late = np.where(streamed, v["first"] * v["share"], matrix * (1 - v["last_step"]) + matrix / visit_blocks)
            end = np.maximum(end, np.where(weighted, weights_last + v["lead"] + late - v["gap"], 0))
            end = end + (n - 1) * pace
            end = np.maximum(end, np.where(last_load > 0, last_load + v["lead"] + matrix - v["gap"], 0))
            end = np.maximum(end, np.where(last_fetch > 0, last_fetch + v["lead"] + late - v["gap"], 0))
            end = np.maximum(end, gate_last + v["lead"] + matrix * v["last_step"] - v["gap"])
            first_result = begin + v["first"] + v["through"]
            done_matrix = end
            start = np.maximum(np.maximum(s[S.vector], first_result), np.maximum(parameters, operand))
            start = np.maximum(start, output)
            finish = np.maximum(
                start + vector + (n - 1) * np.maximum(pace, vector), end + v["through"] + v["last_vector"]
            )
            total = visit_blocks * n
            # The accumulators are full until the lanes have time for them, for the blocks before and for these.
            back = np.maximum(v["depth"] - total, 0) * v["rows"] * s[S.pace]
            held = s[S.accumulated] + VECTOR_PIPELINE - back + v["lead"] + v["first"]
            end = np.maximum(end, held + np.maximum(total - v["depth"], 0) * beat)
            after = start + v["first_vector"] + VECTOR_PIPELINE + v["lead"] + v["first"]
            end = np.maximum(end, np.where(total > v["depth"], after + (total - v["depth"] - 1) * beat, 0))
            finish = np.maximum(finish, end + v["through"] + v["last_vector"])
            held = (
                finish - v["depth"] * np.maximum(v["last_vector"], pace / visit_blocks) + VECTOR_PIPELINE + v["first"]
            )
            done_matrix = np.maximum(end, np.where(total > v["depth"], held, 0))
            apart = np.where(
                total > 1,
                (finish - start - vector / visit_blocks) / np.maximum(total - 1, 1),
                finish - s[S.accumulated],
            )
            s[S.accumulated], s[S.pace] = finish, apart / v["rows"]
        else:
            begin = np.maximum(np.maximum(s[S.vector], parameters), np.maximum(gate_first, operand))
            start = begin = np.maximum(begin, output) if not self.chunks else begin
            finish = start + vector + (n - 1) * np.maximum(pace, vector)
            for late, tail in ((last_load, vector), (last_fetch, vector), (gate_last, vector * v["last_step"])):
                finish = np.maximum(finish, np.where(late > 0, late + tail, 0))
            total = n
        # Where the results go.
        drained = VECTOR_PIPELINE * (a["vector"] > 0) if self.chunks else VECTOR_PIPELINE
        done = finish + drained
        one = start + np.maximum(vector, matrix - v["first"] + v["last_vector"] if self.matrix else 0) + drained
        one = np.minimum(one, done)
        self.step = start + np.maximum(vector, matrix if self.matrix else 0) * self.fraction() + drained
        if self.chunks and np.any(a["gather"]):
            s[S.store_end] = np.where(a["gather"] > 0, np.maximum(s[S.store_end], one) + a["gather"], s[S.store_end])
            moved = np.maximum(s[S.store_end], done + a["gather"] / n) + LOCAL_LATENCY
            done = np.where(a["gather"] > 0, moved, done)
        written = v["written"] > 0
        stored = np.maximum(np.maximum(s[S.store_end], one) + (n - 1) * store + alone, done + alone)
        s[S.store_end] = np.where(written, stored, s[S.store_end])
        complete = np.where(written, stored + m.main.latency, done)
        self.first_done = np.where(
            written, np.minimum(one + store + m.main.latency, complete), np.minimum(self.step, done)
        )
        self.last_done = complete
        # What is free again, and when.
        unit = done_matrix + v["through"] if self.matrix else done
        self.release(S.image1, staged, unit, pace * n / loads)
        self.release(S.operand1, added, done, pace)
        self.release(S.output1, written, complete, np.maximum(pace, store))
        if self.matrix:
            s[S.weight_ring + RING] = np.where(v["weights"] > 0, unit, s[S.weight_ring + RING])
            s[S.matrix] = done_matrix
            many = weighted & (groups > 1)
            s[S.weight_top] += np.where(many, (groups - 1) * m.weight_bytes / slots, 0)
            s[S.weight_ring] = np.where(many, s[S.weight_top] - v["weight_bytes"], s[S.weight_ring])
        many = has & (groups > 1)
        s[S.parameter_top] += np.where(many, (groups - 1) * v["parameter_bytes"], 0)
        s[S.parameter_ring] = np.where(many, s[S.parameter_top] - v["parameter_bytes"], s[S.parameter_ring])
        s[S.parameter_ring + RING] = np.where(v["parameter_bytes"] > 0, done, s[S.parameter_ring + RING])
        s[S.vector] = np.where(a["vector"] > 0, finish, s[S.vector])
        s[S.frontier] = np.maximum(s[S.frontier], complete)
        # Loads cannot be further ahead than their buffers.
        behind = np.where(staged & (loads > 2), unit - 2 * pace * n / loads + one_load, 0)
        own = self.channel(v["image_apart"])
        s[S.load_end] = np.maximum(s[S.load_end], np.where(own, 0, behind))
        s[S.fetch_end] = np.maximum(s[S.fetch_end], np.where(own, behind, 0))
        if self.matrix and stream.any():
            behind = np.where(stream, done_matrix - ahead * np.maximum(slow, pace * (n > 1)) / v["blocks"], 0)
            s[S.fetch_end] = np.maximum(s[S.fetch_end], np.where(m.separate, behind, 0))
            s[S.load_end] = np.maximum(s[S.load_end], np.where(m.separate, 0, behind))
        if self.matrix:
            last = np.maximum(done_matrix - matrix / np.maximum(a["issues"] / n, 1), begin)
            self.note(0, a["issues"], begin, last)
        self.note(1, a["lane_issues"], start, finish - v["last_vector"])
        transfers = a["loads"] * (1 + (a["gather"] > 0)) + added * n * v["transfers"]
        transfers = transfers + np.where(m.separate, 0, a["groups"] * ((v["blocks"] if self.matrix else 0) + 1))
        last = np.maximum(unit - 2 * np.maximum(per_image, hold), self.asked)
        self.note(2, transfers, self.asked, np.where(n > 2, last, self.asked))

    def fraction(self) -> Floats:
        """The part of a visit that its first step is."""
        return self.v["last_step"] if not self.chunks else np.ones_like(self.v["last_step"])

    def weights(self, gate: Floats, active: Values) -> Floats:
        """Request the weights of a group, block by block, or move them on chip; returns when the first are there."""
        v, s = self.v, self.s
        local = (v["local"] > 0) & (active > 0)
        count = np.maximum(v["blocks"], 1)
        first = self.request(v["weights_apart"], gate, self.fetch / count, count, (active > 0) & ~local)
        # The last block is narrower: the first takes longer than on average.
        longer = np.where((first > 0) & (v["stream"] == 0), np.maximum(v["block"] - self.fetch / count, 0), 0)
        first = np.minimum(first + longer, self.done)
        if local.any():
            end = np.maximum(gate, s[S.load_end]) + self.fetch
            s[S.load_end] = np.where(local, end, s[S.load_end])
            s[S.load_free] = np.where(local, np.maximum(s[S.load_free], end - self.fetch + 1), s[S.load_free])
            self.done = np.where(local, end + LOCAL_LATENCY, self.done)
            first = np.where(local, self.done, first)
        return first

    def image(self, staged: Values, loads: Floats, dispatch: Floats) -> tuple[Floats, Floats]:
        """``(when the first part of the image is there, when the last)``; a resident one is asked for step by step."""
        v, a, s, m = self.v, self.a, self.s, self.m
        source = self.sources[0]
        # Runs behind the first begin where others have read before; they only wait for the end.
        first = v["first_tile"] if self.run == "A" else np.ones_like(staged)
        early = v["first_step"] if self.run == "A" else np.zeros_like(staged)
        ends = np.ones_like(staged)
        if self.run == "A":
            more = sum(v[run + "visits"] for run in RUNS[1:]) > 0
            ends = np.where(more, first, 1.0)
        resident = v["staged"] == 0
        there = np.where(resident, source.at(early), 0)
        last = np.where(resident, source.at(ends), 0)
        if np.any(staged):
            external = a["load"] > 0
            gate = np.maximum(np.maximum(dispatch, source.at(first)), np.where(a["gather"] > 0, 0, s[S.image2]))
            arrival = self.request(v["image_apart"], gate, a["load"] / loads, 1, staged & external)
            arrival = np.where(external, arrival, source.at(first))
            gather = np.zeros_like(staged) if self.chunks else a["gather"] / loads
            if gather.any():
                begin = np.maximum(np.maximum(arrival, s[S.load_end]), s[S.image2])
                moved = staged & (gather > 0)
                s[S.load_end] = np.where(moved, begin + gather, s[S.load_end])
                s[S.load_free] = np.where(moved, np.maximum(s[S.load_free], begin + 1), s[S.load_free])
                arrival = np.where(moved, begin + gather + LOCAL_LATENCY, arrival)
            there = np.where(staged, arrival, there)
            # The last tile needs the end of the image.
            final = source.at(ends) + m.main.latency + a["load"] / loads + gather
            last = np.where(staged & (loads > 1), final, last)
        return there, last

    def release(self, slot: S, active: Values, cycle: Floats, hold: Floats) -> None:
        """Note the last two uses of a double buffer."""
        s, n = self.s, self.a["visits"]
        before = np.where(n > 1, cycle - hold, s[slot])
        s[slot + 1] = np.where(active, before, s[slot + 1])
        s[slot] = np.where(active, cycle, s[slot])

    def completed(self) -> tuple[Floats, Floats, Floats]:
        """The fraction that is done first, when, and when the run is done."""
        return np.minimum(self.v["output_step"], 1), self.first_done, self.last_done
