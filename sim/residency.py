"""Which tensors stay in the activation memory between layers, and where: decided before any layer is mapped.

Tensors stay from the layer that makes them to the last that reads them. The tensors that stay are laid out first,
alone; every layer then has the largest gap that they leave it for the buffers of its tiles. While a layer's gap is
smaller than what it needs (`candidates.reserve`), the largest tensor that lives there goes to the main memory. So a
mapping that was searched for the gap always fits, and the decision takes no second try.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt

from qcompiler.sim import candidates
from qcompiler.sim.candidates import Reserve
from qcompiler.sim.hardware import Machine
from qcompiler.sim.hardware.batch import Machines
from qcompiler.sim.mapping import Residency
from qcompiler.sim.network import ROLES, Network, Work
from qcompiler.sim.workload import Geometry

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Item:
    """`size` bytes that must stand from step `first` to step `last`, both included."""

    name: str
    size: int
    first: int
    last: int

    def meets(self, other: Item) -> bool:
        return self.first <= other.last and other.first <= self.last


def pack(items: Iterable[Item], alignment: int = 1) -> tuple[dict[str, int], int]:
    """Addresses that keep items of overlapping lifetimes apart, and the bytes used: largest first, lowest gap."""
    placed: list[tuple[int, Item]] = []
    for item in sorted(items, key=lambda i: (-i.size, i.first, i.name)):
        address = 0
        for start, other in sorted(placed, key=lambda p: p[0]):
            if other.meets(item) and start < address + item.size and start + other.size > address:
                address = -(-(start + other.size) // alignment) * alignment
        placed.append((address, item))
    return {i.name: a for a, i in placed}, max((a + i.size for a, i in placed), default=0)


@dataclass(frozen=True, eq=False)
class Layout:
    """The tensors that stay and their addresses; gaps: for each layer ``(start, bytes)`` of the holes between them.

    The last gap of a layer is what lies behind the last tensor: its size here is that of an endless memory.
    """

    network: Network
    resident: frozenset[str]
    addresses: dict[str, int]
    used: int
    gaps: tuple[tuple[tuple[int, int], ...], ...]

    @classmethod
    def of(cls, network: Network, resident: frozenset[str]) -> Layout:
        items = [Item(n, network.sizes[n], *network.lifetimes[n]) for n in network.lifetimes if n in resident]
        addresses, used = pack(items)
        gaps = []
        for i in range(len(network.layers)):
            live = sorted((addresses[t.name], t.size) for t in items if t.first <= i <= t.last)
            position, holes = 0, []
            for start, size in live:
                if start > position:
                    holes.append((position, start - position))
                position = start + size
            gaps.append((*holes, (position, 1 << 62)))
        return cls(network, resident, addresses, used, tuple(gaps))

    def gap(self, layer: int, size_bytes: int) -> tuple[int, int]:
        """``(start, bytes)`` of the largest hole of a layer in a memory of this size; negative bytes where a tensor
        lies beyond it."""
        end, _ = self.gaps[layer][-1]
        if end > size_bytes:
            return end, size_bytes - end
        holes = [(start, min(size, size_bytes - start)) for start, size in self.gaps[layer]]
        return max(holes, key=lambda hole: (hole[1], -hole[0]))

    def free(self, sizes: Floats) -> Floats:
        """float64 [layers, n]: bytes of `gap` for memories of these sizes [n]."""
        top = sizes - self._ends
        return np.where(top < 0, top, np.maximum(top, self._holes))

    @cached_property
    def _ends(self) -> Floats:
        return np.array([[gaps[-1][0]] for gaps in self.gaps], dtype=np.float64).reshape(-1, 1)

    @cached_property
    def _holes(self) -> Floats:
        holes = [[max((size for _, size in gaps[:-1]), default=0)] for gaps in self.gaps]
        return np.array(holes, dtype=np.float64).reshape(-1, 1)

    @cached_property
    def residencies(self) -> tuple[Residency, ...]:
        """What of each layer is on chip (free_bytes is 0)."""
        return tuple(residency(work, self.resident) for work in self.network.layers)

    @cached_property
    def largest(self) -> tuple[str | None, ...]:
        """For each layer, the largest tensor that lives there."""
        n, found = self.network, []
        for i in range(len(n.layers)):
            live = [t for t in self.resident if n.lifetimes[t][0] <= i <= n.lifetimes[t][1]]
            found.append(max(live, key=lambda t: (n.sizes[t], t), default=None))
        return tuple(found)

    def outside(self, alignment: int) -> tuple[dict[str, int], int]:
        """Addresses in the main memory of everything else, and the bytes used."""
        n = self.network
        return pack(
            (Item(t, n.sizes[t], *n.lifetimes[t]) for t in n.lifetimes if t not in self.resident | n.constants),
            alignment,
        )


def residency(work: Work, resident: frozenset[str]) -> Residency:
    """The layer's operands against the tensors that stay."""
    here = {role: all(n in resident for n in names) for role, names in zip(ROLES, work.roles, strict=True)}
    return Residency(here["image"], work.output in resident, here["operand"], 0, here["weights"], work.constant)


@dataclass(eq=False)
class Decisions:
    """For each machine the index of its layout, or -1: then `misfits` has the layer that does not fit, the least
    activation memory that it needs, and how much there is. needs: of all machines, for each way that a layer comes."""

    layouts: list[Layout]
    layout: npt.NDArray[np.int64]
    misfits: dict[int, tuple[int, float, float]]
    needs: dict[tuple[Geometry, Residency], Reserve]


class Layouts:
    """The layouts of one network, made when they are first asked for and kept: many machines, and those evaluated
    later, have the same."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.made: dict[frozenset[str], Layout] = {}

    def __call__(self, resident: frozenset[str]) -> Layout:
        if resident not in self.made:
            self.made[resident] = Layout.of(self.network, resident)
        return self.made[resident]


layouts_of = lru_cache(maxsize=16)(Layouts)


def decide(network: Network, m: Machines) -> Decisions:
    """Which tensors stay on each machine (rule in the module's docstring)."""
    layouts = layouts_of(network)
    needed: dict[tuple[Geometry, Residency], Reserve] = {}
    waiting: dict[frozenset[str], list[npt.NDArray[np.int64]]] = {}
    order = sorted(network.resident, key=lambda n: network.sizes[n])
    sizes = np.array([network.sizes[n] for n in order], dtype=np.float64)
    fitting = np.searchsorted(sizes, m.activation_bytes, side="right")
    for count in np.unique(fitting).tolist():
        waiting[frozenset(order[:count])] = [np.flatnonzero(fitting == count)]
    found = Decisions([], np.full(len(m), -1), {}, needed)
    while waiting:
        # The largest sets first: what they lose may be a set that already waits.
        resident = max(waiting, key=lambda names: (len(names), sorted(names)))
        rows, layout = np.concatenate(waiting.pop(resident)), layouts(resident)
        free = layout.free(m.activation_bytes[rows])
        short = np.zeros(free.shape, bool)
        for i, (work, r) in enumerate(zip(network.layers, layout.residencies, strict=True)):
            key = (work.geometry, r)
            if key not in needed:
                needed[key] = candidates.reserve(work.geometry, r, m)
            short[i] = needed[key].wanted[rows] > free[i]
        bad = short.any(axis=0)
        if not bad.all():
            found.layout[rows[~bad]] = len(found.layouts)
            found.layouts.append(layout)
        worst = short.argmax(axis=0)
        for i in np.unique(worst[bad]).tolist():
            here, name = np.flatnonzero(bad & (worst == i)), layout.largest[i]
            least = needed[network.layers[i].geometry, layout.residencies[i]].least
            hopeless = np.isinf(least[rows[here]]) | (name is None)
            for k in here[hopeless].tolist():
                found.misfits[int(rows[k])] = (i, float(least[rows[k]]), float(free[i, k]))
            if name is not None and not hopeless.all():
                waiting.setdefault(resident - {name}, []).append(rows[here[~hopeless]])
    return found


def misfit(network: Network, machine: Machine, found: tuple[int, float, float]) -> str:
    """What does not fit, and why."""
    layer, least, free = found
    reason = candidates.shortfall(network.layers[layer].geometry, least, free, machine)
    return f"layer {network.layers[layer].name!r} does not fit machine {machine.name!r}: {reason}"
