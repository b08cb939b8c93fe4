"""Streaming observers: from the values of a tensor, seen batch by batch, to the real range that int8 should cover.

Memory does not depend on the number of samples: an observer keeps a few numbers or one histogram. All ranges
include zero, so that zero (padding, Relu) has an exact int8 value.

Sources: Jacob et al. 2018 (moving average of extremes); Migacz, "8-bit inference with TensorRT", GTC 2017 (entropy);
Banner, Nahshan, Soudry, "Post-training 4-bit quantization of convolution networks", NeurIPS 2019 (mean squared
error as the criterion for clipping).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from qcompiler.sim.errors import CalibrationError, did_you_mean

Array = npt.NDArray[Any]
LEVELS = 255  # steps between the 256 values of int8


class Observer(ABC):
    """Sees every batch of one tensor through `update`, then says the range; `lowest`, `highest`: exact extremes."""

    def __init__(self) -> None:
        self.lowest, self.highest = np.inf, -np.inf

    def update(self, values: Array) -> None:
        """values: float32 of any shape, at least one element. Raises FloatingPointError when one is not finite."""
        low, high = float(values.min()), float(values.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            raise FloatingPointError("a value is not finite")
        self.lowest, self.highest = min(self.lowest, low), max(self.highest, high)
        self._update(values, low, high)

    def _update(self, values: Array, low: float, high: float) -> None:  # noqa: B027 - the extremes may be all
        """What the subclass keeps beyond the extremes."""

    @abstractmethod
    def range(self) -> tuple[float, float]:
        """(low, high) with low <= 0 <= high, within the extremes (and zero)."""


class MinMax(Observer):
    """The extremes themselves: nothing is clipped."""

    def range(self) -> tuple[float, float]:
        return min(self.lowest, 0.0), max(self.highest, 0.0)


class MovingAverage(Observer):
    """Exponential moving average of each batch's extremes, ``m += momentum * (batch - m)``, starting at the first."""

    def __init__(self, momentum: float = 0.05) -> None:
        super().__init__()
        self.momentum = momentum
        self.low = self.high = np.nan

    def _update(self, values: Array, low: float, high: float) -> None:
        if np.isnan(self.low):
            self.low, self.high = low, high
        self.low += self.momentum * (low - self.low)
        self.high += self.momentum * (high - self.high)

    def range(self) -> tuple[float, float]:
        return min(self.low, 0.0), max(self.high, 0.0)


@dataclass
class Histogram:
    """Counts over bins of equal width; the grid is ``width * (origin + i)``, so that zero is always a bin edge.

    The range grows by re-binning: when a value falls outside, pairs of bins merge (the width doubles) until the
    grid reaches it. Counts are kept exactly; a bin's content never splits.
    """

    bins: int = 2048
    width: float = 0.0
    origin: int = 0
    counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    def add(self, values: Array, low: float, high: float) -> None:
        """values: finite float32; low, high: their extremes."""
        low, high = min(low, 0.0), max(high, 0.0)
        if self.width == 0.0:
            span = max(high - low, float(np.finfo(np.float32).tiny) * self.bins)
            self.width = span / (self.bins - 2)
            self.origin = int(np.floor(low / self.width))
            self.counts = np.zeros(self.bins, np.int64)
        if low < self.width * self.origin or high >= self.width * (self.origin + self.bins):
            self._grow(low, high)
        position = values.reshape(-1) * np.float32(1.0 / self.width)
        position -= np.float32(self.origin)
        # Conversion truncates, and float32 rounding may land one bin beyond the last: fold that one back.
        counts = np.bincount(position.astype(np.intp), minlength=self.bins + 1)
        counts[self.bins - 1] += counts[self.bins]
        self.counts += counts[: self.bins]

    def _grow(self, low: float, high: float) -> None:
        """Merge pairs of bins until the grid reaches from low to high beside what it already holds."""
        occupied = np.flatnonzero(self.counts)
        position, counts = occupied + self.origin, self.counts[occupied]
        first = last = 0
        while True:
            self.width *= 2.0
            position //= 2
            first = min(int(np.floor(low / self.width)), int(position.min(initial=0)))
            last = max(int(np.floor(high / self.width)), int(position.max(initial=0)))
            if last - first < self.bins:
                break
        self.origin = first
        self.counts = np.zeros(self.bins, np.int64)
        np.add.at(self.counts, position - first, counts)

    @property
    def edges(self) -> npt.NDArray[np.float64]:
        return self.width * np.arange(self.origin, self.origin + self.bins + 1, dtype=np.float64)


class _HistogramObserver(Observer):
    def __init__(self, bins: int = 2048) -> None:
        super().__init__()
        self.histogram = Histogram(bins)

    def _update(self, values: Array, low: float, high: float) -> None:
        self.histogram.add(values, low, high)

    def _within(self, low: float, high: float) -> tuple[float, float]:
        """Clamp a choice of bin edges to the exact extremes, with zero inside."""
        return min(max(low, self.lowest), 0.0), max(min(high, self.highest), 0.0)


class Percentile(_HistogramObserver):
    """The smallest range that leaves out at most ``1 - percentile/100`` of the values, half of it at each end."""

    def __init__(self, percentile: float = 99.999, bins: int = 8192) -> None:
        if not 50.0 < percentile <= 100.0:
            raise CalibrationError(f"percentile {percentile} is not within 50..100; 99.999 is usual")
        super().__init__(bins)
        self.percentile = percentile

    def range(self) -> tuple[float, float]:
        cumulative = np.cumsum(self.histogram.counts)
        tail = (1.0 - self.percentile / 100.0) / 2.0 * cumulative[-1]
        first = int(np.searchsorted(cumulative, tail, side="right"))
        last = int(np.searchsorted(cumulative, cumulative[-1] - tail, side="left"))
        edges = self.histogram.edges
        return self._within(edges[first], edges[last + 1])


class Entropy(_HistogramObserver):
    """The clipping with the least Kullback-Leibler divergence between the histogram and its 256-level rendering.

    For each candidate threshold t: P is the histogram with everything beyond t added to the bins at t; Q is the
    histogram within t averaged over 256 groups of bins (empty bins stay empty). Minimise sum P log(P/Q). As in
    TensorRT the range is [0, t] for one-sided tensors and else [-t, t] cut at the extremes.
    """

    def __init__(self, bins: int = 512, candidates: int = 128) -> None:
        super().__init__(bins)
        self.candidates = candidates

    def range(self) -> tuple[float, float]:
        edges, counts = self.histogram.edges, self.histogram.counts.astype(np.float64)
        magnitude = max(-self.lowest, self.highest, 0.0)
        best, choice = np.inf, magnitude
        for t in magnitude * np.linspace(0.3, 1.0, self.candidates):
            inside = (edges[:-1] >= -t - self.histogram.width / 2) & (edges[1:] <= t + self.histogram.width / 2)
            first, last = int(np.argmax(inside)), len(inside) - int(np.argmax(inside[::-1]))
            if last - first < LEVELS:
                continue
            divergence = _divergence(counts, first, last)
            if divergence < best:
                best, choice = divergence, t
        return self._within(-choice, choice)


def _divergence(counts: Array, first: int, last: int) -> float:
    inside = counts[first:last]
    p = inside.copy()
    p[0] += counts[:first].sum()
    p[-1] += counts[last:].sum()
    starts = (np.arange(LEVELS + 1) * inside.size) // (LEVELS + 1)
    filled = (inside > 0).astype(np.float64)
    level = np.add.reduceat(inside, starts) / np.maximum(np.add.reduceat(filled, starts), 1.0)
    q = np.repeat(level, np.diff([*starts, inside.size])) * filled
    p, q = p / p.sum(), q / max(q.sum(), 1e-30)
    used = p > 0
    return float(np.sum(p[used] * np.log(p[used] / np.maximum(q[used], 1e-12))))


class MeanSquaredError(_HistogramObserver):
    """The range with the least expected squared error of rounding and clipping, from the histogram.

    Candidates shrink the extremes by common and by single-sided factors. Rounding to 256 levels costs ``step**2 / 12``
    for each value inside (uniform error within a step), clipping the squared distance to the end of the range; with
    fewer `levels` (steps between the ends) the error of each bin's centre counts.
    """

    def __init__(self, bins: int = 2048, candidates: int = 100, smallest: float = 0.2, levels: int = LEVELS) -> None:
        super().__init__(bins)
        self.candidates, self.smallest, self.levels = candidates, smallest, levels

    def range(self) -> tuple[float, float]:
        occupied = np.flatnonzero(self.histogram.counts)
        counts = self.histogram.counts[occupied].astype(np.float64)
        edges = self.histogram.edges
        centre = (edges[occupied] + edges[occupied + 1]) / 2.0
        low, high = min(self.lowest, 0.0), max(self.highest, 0.0)
        for _ in range(3):  # coordinate descent: both ends together, then each alone
            factors = np.linspace(self.smallest, 1.0, self.candidates)
            low, high = _best(centre, counts, [(low * f, high * f) for f in factors], self.levels)
            low, high = _best(centre, counts, [(low, high * f) for f in factors], self.levels)
            low, high = _best(centre, counts, [(low * f, high) for f in factors], self.levels)
        return low, high


def _best(centre: Array, counts: Array, ranges: list[tuple[float, float]], levels: int = LEVELS) -> tuple[float, float]:
    """The range of least expected squared error; the widest of equals."""
    low, high = np.array(ranges).T
    step = (high - low) / levels
    if levels < LEVELS:  # steps so wide that values are not spread evenly within one; zero, above all, is exact
        grid = np.maximum(step, np.finfo(float).tiny)[:, None]
        error = np.clip(np.rint(centre / grid) * grid, low[:, None], high[:, None]) - centre
        cost = (error * error) @ counts
    else:
        beyond = np.maximum(np.maximum(low[:, None] - centre, centre - high[:, None]), 0.0)
        clipping = (beyond * beyond) @ counts
        inside = (beyond == 0) @ counts
        cost = clipping + inside * step * step / 12.0
    best = int(len(cost) - 1 - np.argmin(cost[::-1]))
    return ranges[best]


OBSERVERS: dict[str, type[Observer]] = {
    "min_max": MinMax,
    "moving_average": MovingAverage,
    "percentile": Percentile,
    "entropy": Entropy,
    "mse": MeanSquaredError,
}


def make_observer(name: str, **options: Any) -> Observer:
    """An observer by name with its options. Raises CalibrationError for an unknown name."""
    if name not in OBSERVERS:
        raise CalibrationError(
            f"no observer is called {name!r}; known: {', '.join(OBSERVERS)}{did_you_mean(name, OBSERVERS)}"
        )
    return OBSERVERS[name](**options)
