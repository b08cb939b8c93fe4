"""Addresses for buffers with lifetimes, and the choice of the tensors that stay on chip."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Item:
    """`size` bytes that must stand from step `first` to step `last`, both included."""

    name: str
    size: int
    first: int
    last: int

    def meets(self, other: Item) -> bool:
        return self.first <= other.last and other.first <= self.last


def pack(items: list[Item], alignment: int = 1) -> tuple[dict[str, int], int]:
    """Addresses that keep items of overlapping lifetimes apart, and the bytes used: largest first, lowest gap."""
    placed: list[tuple[int, Item]] = []
    for item in sorted(items, key=lambda i: (-i.size, i.first, i.name)):
        address = 0
        for start, other in sorted(placed, key=lambda p: p[0]):
            if other.meets(item) and start < address + item.size and start + other.size > address:
                address = -(-(start + other.size) // alignment) * alignment
        placed.append((address, item))
    return {i.name: a for a, i in placed}, max((a + i.size for a, i in placed), default=0)
