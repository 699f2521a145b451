"""Trend: whether a signal goes one way, and how fast."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from trainvitals.detectors.autocorrelation import lag1

BLOCKS = 100
"""More values than this are averaged into blocks first, so that a test costs the same for any window."""


def mann_kendall(values: Sequence[float]) -> float:
    """Standard errors by which values rise (negative: fall): Mann-Kendall, corrected for ties and for memory.

    ``S`` = pairs that rise minus pairs that fall; ``var = (n (n-1) (2n+5) - sum t (t-1) (2t+5)) / 18`` with t the sizes of the groups
    of equal values; ``z = (S - sign S) / sqrt(var * (1 + r) / (1 - r))`` with r the lag-1 autocorrelation around the values' own
    straight line, between 0 and 0.9. Sources: Mann 1945; Kendall, Rank Correlation Methods, chapter 4 (ties); Hamed & Rao 1998 (the
    widening, here of first order).

    Assumes no distribution. Of independent samples z is about standard normal from n = 10 on. It is no sequential test: a rule
    that looks again and again asks for 4.5 (notes/pathologies.md 6.4), and for an effect size beside it. Simulated at that limit on 60
    samples, looking at every fifth (docs/detectors.md): 0.01 false alarms per 1,000 white samples, 0.08 at an autocorrelation of 0.9;
    a drift by 0.05 standard deviations a sample is found after 44; steps are missed, they are for `shift`.

    Args:
        values: Evenly spaced in time, in any unit. Fewer than three give 0.
    """
    if len(values) > BLOCKS:
        values = folded(values)
    n = len(values)
    if n < 3:
        return 0.0
    ordered: list[float] = []
    s = 0
    for at, value in enumerate(values):
        s += bisect_left(ordered, value) + bisect_right(ordered, value) - at
        insort(ordered, value)
    if s == 0:
        return 0.0
    ties = sum(t * (t - 1) * (2 * t + 5) for t in Counter(ordered).values() if t > 1)
    r = min(max(lag1(values), 0.0), 0.9)
    variance = (n * (n - 1) * (2 * n + 5) - ties) / 18 * ((1 + r) / (1 - r))
    return (s - math.copysign(1, s)) / math.sqrt(variance)


def theil_sen(values: Sequence[float], places: Sequence[float] | None = None) -> float | None:
    """Median slope of all pairs of samples: a straight line that a quarter of wild samples cannot turn.

    Sources: Theil 1950; Sen, JASA 63 (1968). An effect size, not a test: `mann_kendall` says whether it is there.

    Args:
        values: In any unit; more than 100 are averaged into blocks first.
        places: Where each value lies, ascending; by default one apart.

    Returns:
        Unit of the values per unit of the places; None when no two places differ.
    """
    if len(values) > BLOCKS:
        places = folded(range(len(values)) if places is None else places)
        values = folded(values)
    early, late = _pairs(len(values))
    y = np.asarray(values, dtype=np.float64)
    x = np.arange(len(y), dtype=np.float64) if places is None else np.asarray(places, dtype=np.float64)
    run = x[late] - x[early]
    rise = y[late] - y[early]
    apart = run > 0.0
    return _median(rise[apart] / run[apart]) if apart.any() else None


def _median(values: Any) -> float:
    """``np.median`` of finite numbers, which imports masked arrays when it is first asked: seven milliseconds in the middle of a training."""
    upper = len(values) // 2
    lower = upper - (len(values) % 2 == 0)
    ordered = np.partition(values, (lower, upper))
    return float((ordered[lower] + ordered[upper]) / 2 + 0.0)  # not -0.0


@lru_cache(maxsize=8)
def _pairs(n: int) -> tuple[Any, Any]:
    return np.triu_indices(n, 1)


def folded(values: Sequence[float]) -> list[float]:
    """Means of at most 100 equal blocks that end at the newest value; the oldest few may be left out."""
    size = -(-len(values) // BLOCKS)
    return [sum(values[at : at + size]) / size for at in range(len(values) % size, len(values), size)]


class Trend:
    """Whether a signal has been rising lately: `mann_kendall` on block means over the recent half of the run.

    At most 64 blocks are kept; when they are full, neighbours are merged, so memory is constant and the look-back is always
    a share of the run.

    Args:
        size: Samples in a block at first.
    """

    __slots__ = ("_count", "_known", "_start", "_sum", "blocks", "nonfinite", "size")
    LIMIT = 64

    def __init__(self, size: int) -> None:
        self.size = size
        self.blocks: list[float] = []
        self.nonfinite = 0
        self._start = self._sum = 0.0
        self._count = 0
        self._known: tuple[int, int, float | None] = (0, 0, None)

    def add(self, value: float) -> None:
        """Take one value."""
        self.extend((value,))

    def extend(self, values: Iterable[float]) -> None:
        """`add` many, for less."""
        start, total, count = self._start, self._sum, self._count
        for value in values:
            if value - value != 0.0:
                self.nonfinite += 1
                continue
            if count == 0:
                start = value
            total += value - start  # around the block's first value: blocks of a constant must tie to the last digit
            count += 1
            if count == self.size:
                self.blocks.append(start + total / count)
                total, count = 0.0, 0
                if len(self.blocks) == self.LIMIT:
                    self.blocks = [(self.blocks[at] + self.blocks[at + 1]) / 2 for at in range(0, self.LIMIT, 2)]
                    self.size *= 2
        self._start, self._sum, self._count = start, total, count

    def z(self) -> float | None:
        """Standard errors by which the recent half rises (negative: falls); None with too few blocks."""
        if self._known[:2] != (self.size, len(self.blocks)):  # blocks come ever more rarely as a run grows
            self._known = (self.size, len(self.blocks), self._z())
        return self._known[2]

    def _z(self) -> float | None:
        if len(self.blocks) < 12 and not (self.size == 1 and len(self.blocks) >= 5):
            return None
        return mann_kendall(self.blocks[-max(12, len(self.blocks) // 2) :])

    def state_dict(self) -> dict[str, Any]:
        """JSON-able state."""
        return {"size": self.size, "blocks": list(self.blocks), "start": self._start, "sum": self._sum, "count": self._count, "nonfinite": self.nonfinite}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.size, self.blocks, self._count, self.nonfinite = state["size"], list(state["blocks"]), state["count"], state["nonfinite"]
        self._start, self._sum = state["start"], state["sum"]
        self._known = (0, 0, None)
