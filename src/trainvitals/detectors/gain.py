"""Gain: between which numbers lies what a noisy signal has gained, at every moment at once? A plateau is a small upper end."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

LEAST = 20
"""Samples of the reference at least, and independent samples that all must be worth: fewer do not tell the spread."""
WIDE = 10.0
"""The mixture's variance, in variances of the difference of two stretches as long as the reference. At levels of 0.1 to 5 % the interval is
narrowest, 3.1 to 3.8 standard errors to each side, between 5 and 20; 1 would cost a fifth more."""


class Gain:
    """Confidence sequence for the mean since a reference stretch minus the mean of that stretch, restarted when something is proven.

    The first ``size`` samples are the reference; every later one narrows the interval. With n0 samples of reference and n since, D the
    difference of their means, s^2 the pooled variance around both, ``V = s^2 (1/n0 + 1/n)`` and ``T = 20 s^2 / n0``::

        D +- sqrt((1 + V/T) * V * 2 log(sqrt(1 + T/V) / a))

    *ever* excludes the true difference with probability at most a, however often one looks; where the mean moves, it holds for the mean of
    the means. When as many samples came since as the reference has, and 0 is still inside, all become reference: the k-th such lap (from 0) gets
    ``a = alpha / ((k + 1) (k + 2))``, which adds up to alpha. So the interval narrows without end: a flat line always falls below any gain
    of interest. When 0 is left out, a change is proven: the next ``size`` samples are the new reference, and the interval
    that proved it stays until they are there. "No worthwhile gain" is ``high < smallest worthwhile`` (futility), "it rose" is ``low > 0``.

    Sources: Robbins 1970 and Howard et al. (arXiv 1810.08240), the normal mixture; differences to a reference of unknown mean as a group-invariant
    test: Perez-Ortiz et al. (arXiv 2208.07610); moving means and an estimated variance, which makes it asymptotic: Waudby-Smith et al. (arXiv 2103.06476).
    Lag-1 autocorrelation r, pooled over both stretches, freed of its bias and between 0 and 0.95, makes n samples count as ``n (1 - r) / (1 + r)``. A trend inside
    a stretch looks like spread and memory: it widens the interval. Restarts after a change spend alpha again; the bound is for each stretch
    from change to change. Simulated in docs/detectors.md.

    Args:
        size: Samples of the first reference, at least 20.
        alpha: Probability that the interval is ever wrong between two restarts; two-sided.
    """

    __slots__ = ("_now", "_start", "_then", "alpha", "ends", "lap", "nonfinite", "size")

    def __init__(self, size: int = LEAST, alpha: float = 0.05) -> None:
        if size < LEAST or not 0.0 < alpha < 1.0:
            msg = f"size is at least {LEAST}, alpha lies between 0 and 1; here they are {size}, {alpha}"
            raise ValueError(msg)
        self.size = size
        self.alpha = alpha
        self.nonfinite = 0
        self.lap = 0
        self.ends: tuple[float, float] | None = None
        """Lower and upper end, in the unit of x; None before ``size + 1`` samples, or what is worth 20 independent ones."""
        self._start: float | None = None
        self._then = [0.0] * 6  # count, sum, sum of squares, of products with the sample before; first, last: of x minus the first x of all
        self._now = [0.0] * 6

    def add(self, x: float) -> tuple[float, float] | None:
        """The interval after one more sample."""
        if x - x != 0.0:
            self.nonfinite += 1
            return self.ends
        if self._start is None:
            self._start = x
        x -= self._start  # sums around the first sample keep their digits
        if self._then[0] < self.size:
            _take(self._then, x)
            return self.ends
        _take(self._now, x)
        ends = self._interval()
        if ends is not None:
            self.ends = ends
        if ends is not None and (ends[0] > 0.0 or ends[1] < 0.0):
            self._start, self._then, self._now, self.lap = None, [0.0] * 6, [0.0] * 6, 0
        elif self._now[0] >= self._then[0]:
            self._then, self._now = _joined(self._then, self._now), [0.0] * 6
            self.lap += 1
        return self.ends

    def _interval(self) -> tuple[float, float] | None:
        """The interval now; None while all samples are worth fewer than 20 independent ones."""
        then, now = self._then, self._now
        n0, n = then[0], now[0]
        squares = _squares(then) + _squares(now)
        memory = 1.0
        if squares > 0.0:
            total = n0 + n
            r = min(max(((_products(then) + _products(now)) / squares + 2.0 / total) / (1.0 - 6.0 / total), 0.0), 0.95)
            memory = (1.0 + r) / (1.0 - r)
            if total < LEAST * memory:
                return None
        variance = squares / (n0 + n - 2.0) * memory
        v = variance * (1.0 / n0 + 1.0 / n)
        ratio = 2.0 * WIDE / n0 / (1.0 / n0 + 1.0 / n)  # T / V
        level = self.alpha / ((self.lap + 1) * (self.lap + 2))
        width = math.sqrt((1.0 + 1.0 / ratio) * v * 2.0 * math.log(math.sqrt(1.0 + ratio) / level))
        middle = now[1] / n - then[1] / n0
        return middle - width, middle + width

    def state_dict(self) -> dict[str, Any]:
        """JSON-able state."""
        return {
            "then": list(self._then), "now": list(self._now), "start": self._start, "lap": self.lap, "ends": None if self.ends is None else list(self.ends),
            "nonfinite": self.nonfinite,
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self._then, self._now, self._start, self.lap = list(state["then"]), list(state["now"]), state["start"], state["lap"]
        self.ends, self.nonfinite = None if state["ends"] is None else (state["ends"][0], state["ends"][1]), state["nonfinite"]


def _take(part: list[float], x: float) -> None:
    if part[0] == 0.0:
        part[4] = x
    else:
        part[3] += x * part[5]
    part[0] += 1.0
    part[1] += x
    part[2] += x * x
    part[5] = x


def _joined(then: list[float], now: list[float]) -> list[float]:
    return [then[0] + now[0], then[1] + now[1], then[2] + now[2], then[3] + then[5] * now[4] + now[3], then[4], now[5]]


def _squares(part: list[float]) -> float:
    """Sum of squared distances from the stretch's own mean."""
    return max(part[2] - part[1] * part[1] / part[0], 0.0)


def _products(part: list[float]) -> float:
    """Sum of products of neighbours, both around the stretch's own mean."""
    n, total, _, products, first, last = part
    mean = total / n
    return products - mean * (2.0 * total - first - last) + (n - 1.0) * mean * mean
