"""Which tensors stay in the activation memory between layers, and where: decided before any layer is mapped.

Tensors stay from the layer that makes them to the last that reads them. The tensors that stay are laid out first,
alone; every layer then has the largest gap that they leave it for the buffers of its tiles. While a layer's gap is
smaller than what it needs (`mapping.reserve`), the largest tensor that lives there goes to the main memory. So a
mapping that was searched for the gap always fits, and the decision takes no second try.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from qcompiler.sim import mapping
from qcompiler.sim.hardware import Machine
from qcompiler.sim.mapping import Residency
from qcompiler.sim.network import ROLES, Network, Work


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

    def outside(self, alignment: int) -> tuple[dict[str, int], int]:
        """Addresses in the main memory of everything else, and the bytes used."""
        n = self.network
        return pack(
            (Item(t, n.sizes[t], *n.lifetimes[t]) for t in n.lifetimes if t not in self.resident | n.constants),
            alignment,
        )


def residency(work: Work, resident: frozenset[str], free_bytes: int) -> Residency:
    """The layer's operands against the tensors that stay."""
    here = {role: all(n in resident for n in names) for role, names in zip(ROLES, work.roles, strict=True)}
    return Residency(
        here["image"], work.output in resident, here["operand"], free_bytes, here["weights"], work.constant
    )


@dataclass(frozen=True, eq=False)
class Decision:
    """A layout, and each layer's residency in it."""

    layout: Layout
    residencies: list[Residency]


@dataclass(frozen=True)
class Misfit:
    """A layer that no tiling fits, and which memory is too small by how much."""

    layer: str
    reason: str


def decide(network: Network, machine: Machine) -> Decision | Misfit:
    """Which tensors stay (rule in the module's docstring)."""
    size = machine.activation_memory.size_bytes
    resident = frozenset(n for n in network.resident if network.sizes[n] <= size)
    needs: dict[tuple[object, Residency], int | None] = {}
    while True:
        layout = Layout.of(network, resident)
        residencies = []
        for i, work in enumerate(network.layers):
            r = residency(work, resident, layout.gap(i, size)[1])
            key = (work.geometry, replace(r, free_bytes=0))
            if key not in needs:
                needs[key] = mapping.reserve(work.geometry, r, machine)
            need = needs[key]
            live = [n for n in resident if network.lifetimes[n][0] <= i <= network.lifetimes[n][1]]
            if need is None or (need > r.free_bytes and not live):
                return Misfit(work.name, mapping.shortfall(work.geometry, r, machine))
            if need > r.free_bytes:
                resident -= {max(live, key=lambda n: (network.sizes[n], n))}
                break
            residencies.append(r)
        else:
            return Decision(layout, residencies)
