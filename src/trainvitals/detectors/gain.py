"""Gain: between which numbers lies what a noisy signal has gained, at every moment at once? A plateau is a small upper end."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

LEAST = 20
"""Samples of the reference at least, and independent samples that all must be worth: fewer do not tell the spread."""
LOOK = 5
"""The interval is renewed at every so manieth sample: who may look at every moment may look seldom, for a fifth of the cost."""
MOVED = 0.95
"""Autocorrelation beyond which a stretch that is short for it is taken for a step or a slope: nothing more is believed of noise."""
_MANY = 64
"""From so many samples on it pays to take them in at once."""
_ENOUGH = LEAST * 40
"""So many samples are worth `LEAST` independent ones whatever their autocorrelation, which counts up to `MOVED`."""
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
    a stretch looks like spread and memory: it widens the interval. A step or a slope far larger than the noise looks like nothing but
    memory: where r is 0.95 and all samples are worth fewer than 20 independent ones although ``size`` came since the reference, it begins anew as well, without an interval. Restarts after a change spend alpha again; the bound is for each stretch
    from change to change. Simulated at alpha 5 % (docs/detectors.md): at most 1 % of runs with a miss in white and heavy-tailed noise, 5 at an autocorrelation
    of 0.5, 3 at 0.9; in white noise a flat line is known to have gained less than one standard deviation after 49 samples, less than a half after 256.

    Args:
        size: Samples of the first reference, at least 20.
        alpha: Probability that the interval is ever wrong between two restarts; two-sided.
    """

    __slots__ = ("_before", "_count", "_first", "_last", "_products", "_squares", "_start", "_sum", "_then", "alpha", "ends", "lap", "nonfinite", "size")

    def __init__(self, size: int = LEAST, alpha: float = 0.05) -> None:
        if size < LEAST or not 0.0 < alpha < 1.0:
            msg = f"size is at least {LEAST}, alpha lies between 0 and 1; here they are {size}, {alpha}"
            raise ValueError(msg)
        self.size = size
        self.alpha = alpha
        self.nonfinite = 0
        self.lap = 0
        self.ends: tuple[float, float] | None = None
        """Lower and upper end, in the unit of x; None before ``size + 5`` samples, or what is worth 20 independent ones."""
        self._begin()

    def _begin(self) -> None:
        """Everything from here on is new."""
        self._start: float | None = None
        self._refer(None)
        self.lap = 0
        self._empty()

    def _refer(self, then: list[float] | None) -> None:
        """The reference: count, sum, squares, products, first, last."""
        self._then = then
        self._before = (0.0, 0.0) if then is None else _centred(*then)

    def _empty(self) -> None:
        """Sums of the stretch that is being filled, of x minus the first x since the last beginning: they keep their digits."""
        self._count = 0
        self._sum = self._squares = self._products = self._first = self._last = 0.0

    def add(self, x: float) -> tuple[float, float] | None:
        """The interval after one more sample."""
        self.extend((x,))
        return self.ends

    def extend(self, xs: Iterable[float]) -> None:
        """`add` many, for less: between two looks at the interval nothing but sums changes, and only of the last one the interval is seen."""
        told = list(xs)
        known = [x for x in told if x - x == 0.0]
        self.nonfinite += len(told) - len(known)
        at, end, fresh = 0, len(known), True
        while at < end:
            if fresh and self._count and self._then is not None:
                with np.errstate(all="ignore"):  # of numbers near the largest there are, which do not pass
                    at += self._pass(self._then, known[at:])
                fresh = False
            count = self._count
            until = self.size if self._then is None else count - count % LOOK + LOOK
            part = known[at : at + until - count]
            at += len(part)
            self._add_up(part)
            if self._count < until:
                return
            if self._then is None:
                self._refer(self._stretch())
                self._empty()
            else:
                self._look(self._then)
            fresh = fresh or not self._count

    def _pass(self, then: list[float], xs: list[float]) -> int:
        """Take in many samples of a lap at once, where no look would find that 0 has left the interval, and none is the last; gives how many.

        Even the narrowest interval that there can be must hold 0: that of samples without memory, made narrower still. Sums are
        added up one by one here too, to the last digit.
        """
        count, n0 = self._count, then[0]
        many = min(len(xs) - LOOK, int(n0) - count - 1)
        if many < _MANY or n0 + count < _ENOUGH:
            return 0
        moved = np.array(xs[:many]) - self._start
        add = np.add.accumulate
        sums, squares = add(np.append(self._sum, moved)), add(np.append(self._squares, moved * moved))
        looks = np.arange(LOOK - count % LOOK, many + 1, LOOK)
        n = count + looks
        middle = sums[looks] / n - then[1] / n0
        spread = np.maximum(squares[looks] - sums[looks] * (sums[looks] / n), 0.0) + self._before[0]
        least = 2.0 * math.log((self.lap + 1) * (self.lap + 2) / self.alpha) * spread / (n0 + n - 2.0) * (1.0 / n0 + 1.0 / n)
        if not (middle * middle < 0.99 * least).all():
            return 0
        products = add(np.append(self._products, moved * np.append(self._last, moved[:-1])))
        self._sum, self._squares, self._products, self._last = float(sums[-1]), float(squares[-1]), float(products[-1]), float(moved[-1])
        self._count += many
        return many

    def _add_up(self, xs: list[float]) -> None:
        """Take in samples of one stretch."""
        start = self._start
        if start is None:
            start = self._start = xs[0]
        neighbour = self._count > 0
        last, total, squares, products = self._last, self._sum, self._squares, self._products
        for x in xs:
            moved = x - start
            if neighbour:
                products += moved * last
            else:
                self._first, neighbour = moved, True
            last = moved
            total += moved
            squares += moved * moved
        self._last, self._sum, self._squares, self._products = last, total, squares, products
        self._count += len(xs)

    def _stretch(self) -> list[float]:
        return [float(self._count), self._sum, self._squares, self._products, self._first, self._last]

    def _look(self, then: list[float]) -> None:
        """Renew the interval; begin anew after a change, let everything become reference after a lap without."""
        count, before, before_products = float(self._count), *self._before
        more, products = _centred(count, self._sum, self._squares, self._products, self._first, self._last)
        squares, total = more + before, then[0] + count
        r = 0.0
        if squares > 0.0:
            r = min(max(((products + before_products) / squares + 2.0 / total) / (1.0 - 6.0 / total), 0.0), MOVED)
        memory = (1.0 + r) / (1.0 - r)
        if total >= LEAST * memory:
            low, high = self.ends = self._interval(then, count, squares / (total - 2.0) * memory)
            moved = low > 0.0 or high < 0.0
        else:
            self.ends = None
            moved = r >= MOVED and count >= self.size
        if moved:
            self._begin()
        elif count >= then[0]:
            _, total_then, squares_then, products_then, first, last = then
            self._refer([total, total_then + self._sum, squares_then + self._squares, products_then + last * self._first + self._products, first, self._last])
            self.lap += 1
            self._empty()

    def _interval(self, then: list[float], count: float, variance: float) -> tuple[float, float]:
        """The interval now, from the variance that one independent sample would have."""
        apart = 1.0 / then[0] + 1.0 / count
        ratio = 2.0 * WIDE / then[0] / apart  # T / V
        level = self.alpha / ((self.lap + 1) * (self.lap + 2))
        width = math.sqrt((1.0 + 1.0 / ratio) * variance * apart * 2.0 * math.log(math.sqrt(1.0 + ratio) / level))
        middle = self._sum / count - then[1] / then[0]
        return middle - width, middle + width

    def state_dict(self) -> dict[str, Any]:
        """JSON-able state."""
        return {
            "then": None if self._then is None else list(self._then), "now": self._stretch(), "start": self._start, "lap": self.lap,
            "ends": None if self.ends is None else list(self.ends), "nonfinite": self.nonfinite,
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self._refer(None if state["then"] is None else list(state["then"]))
        self._start, self.lap = state["start"], state["lap"]
        count, self._sum, self._squares, self._products, self._first, self._last = state["now"]
        self._count = int(count)
        self.ends, self.nonfinite = None if state["ends"] is None else (state["ends"][0], state["ends"][1]), state["nonfinite"]


def _centred(n: float, total: float, squares: float, products: float, first: float, last: float) -> tuple[float, float]:
    """Sum of squares, and of products of neighbours, both around the stretch's own mean."""
    mean = total / n
    return max(squares - total * mean, 0.0), products - mean * (2.0 * total - first - last) + (n - 1.0) * mean * mean
