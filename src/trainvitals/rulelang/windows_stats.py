"""Windowed statistics over a series, kept up to date as samples come.

Pull-based: a window catches up when it is asked. Each sample is taken in with exactly the same operations whoever asks and
when, so results never depend on that. A window ends at the newest sample of its series, not at the current step: between
two samples it does not change, and a series without new samples becomes stale instead.

Short windows (at most 512 samples by construction) compute from their slice with C built-ins, which costs less than
bookkeeping in Python and has no state; medians do so up to 64 samples. Long ones are incremental: O(1) sums with exact
recomputation at fixed sample counts, a sorted list for medians, a monotonic deque for extremes.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from operator import mul
from typing import Any

from trainvitals.detectors.trend import mann_kendall, theil_sen
from trainvitals.rulelang.windows_series import Axis, Bounds, Series

SHORT = 512
"""Up to this length the statistic of a slice, taken when somebody asks, is cheaper than one kept current at every sample."""
MIN_SAMPLES = 3
_ROUNDING = 1e-9
"""Relative error that a sum of `SHORT` numbers stays far below."""
MIN_SHARE = 0.8
"""A window is ready with this share of the samples that the observed cadence promises (notes/rules.md 9.4)."""


class Window:
    """Base of the windowed statistics: which samples belong, and whether there are enough.

    Attributes:
        key: ``mean(policy.kl_ref, updates=20)``; equal keys share one window.
        length: Length on the axis.
        skip: The window ends this far before the newest sample (trailing references).
        lo: Index of the oldest sample inside, in the series' lists.
        seen: Number of samples taken in, as an index into the series' lists.
        count: Samples inside.
        too_coarse: The length is below three observed cadences, so it can never hold three samples.
    """

    __slots__ = ("_axis", "_back", "_cadence", "_clock", "_guard", "_need", "_places", "_result", "_review", "_spanned", "_steps", "_xs", "count", "key", "length", "lo", "seen", "series", "skip", "too_coarse")

    def __init__(self, key: str, series: Series, axis: Axis, length: float, skip: float = 0) -> None:
        self.key = key
        self.series = series
        self.length = length
        self.skip = skip
        self._back = length + skip
        self.lo = 0
        self.seen = 0
        self.count = 0
        self.too_coarse = False
        self._axis: Axis = axis
        self._clock = series.clock
        self._xs = series.xs
        self._steps = series.steps
        self._places = series.positions(axis)
        self._need = math.inf
        self._cadence: float | None = None
        self._review = 0
        self._guard = 0
        self._spanned = False
        self._result: float | None = None
        series.windows.append(self)

    def value(self) -> float | None:
        """The statistic; None while the window is not ready or when its series is stale."""
        size = len(self._xs)
        if size != self.seen:
            if size < self._guard:
                self.go_on(size)
            else:
                self.advance()
        result = self._result
        if result is None or self._steps[-1] == self._clock.step or self.series.fresh():
            return result
        return None

    def advance(self) -> None:
        """Take in every new sample, then compute once."""
        size = len(self._xs)
        if self.seen == size:
            return
        places = self._places
        length = self.length
        start = self.seen
        for index in range(start, size):
            oldest = self.lo
            if places is None:
                oldest = max(oldest, index + 1 - int(length))
            else:
                limit = places[index] - length
                while places[oldest] <= limit:
                    oldest += 1
            self.push(index, oldest)
            self.lo = oldest
        self.seen = size
        self.count = count = size - self.lo
        enough = count >= self._need if size < self._review and self._spanned else self.ready()
        self._result = self.compute() if enough else None
        self._guard = self._review if self._spanned else 0

    def go_on(self, size: int) -> None:
        """`advance` in the common case, a window that spans its length and has no cadence to review; written out where that pays."""
        self.advance()

    def let_go(self) -> None:
        """Set `lo` for the newest sample: what lies before it may be dropped. A statistic that nobody asked for need not be computed for that."""
        self.advance()

    def push(self, index: int, oldest: int) -> None:
        """Take in sample ``index``; samples from ``self.lo`` up to ``oldest`` leave."""

    def compute(self) -> float | None:
        """The statistic of the samples inside; only called when there are enough."""
        raise NotImplementedError

    def bounds(self, room: float) -> Bounds | None:
        """Between which numbers the statistic lies while its series stays within `Series.bounds`; None: nothing can be said."""
        return None

    def inside(self, room: float) -> Bounds | None:
        """The `bounds` of a statistic that lies between the smallest and the largest sample, up to the rounding of a sum."""
        if self._axis not in ("updates", "points"):
            return None
        low, high, _ = self.series.bounds(room)
        slack = _ROUNDING * max(abs(low), abs(high))
        return Bounds(low - slack, high + slack, self.length + self.skip)

    def ready(self) -> bool:
        """Whether the window spans its length and holds enough samples."""
        if self.seen >= self._review:
            self._observe_cadence()
        if self.count < self._need:
            return False
        if not self._spanned:
            self._spanned = self._places is None or self.spans(self._places[self.seen - 1])
        return self._spanned

    def spans(self, place: float) -> bool:
        """Whether the run is as long as the window when its newest sample is at `place`."""
        cadence = self.series.cadence(self._axis) or 0.0
        return place - self.series.first_position(self._axis) + cadence >= self.length + self.skip

    def _observe_cadence(self) -> None:
        if self._axis == "points":
            self._review, self._need = self.series.reviewed(self.series.total)[1] - self.series.dropped, self.length
            return
        until, cadence = self.series.observed(self._axis)
        self._review = until - self.series.dropped
        if cadence != self._cadence or cadence is None:
            self._cadence = cadence
            self._need = math.inf if cadence is None else max(MIN_SAMPLES, math.ceil(MIN_SHARE * self.length / cadence - 1e-9))
            self.too_coarse = cadence is not None and self.length < MIN_SAMPLES * cadence

    def shift(self, count: int) -> None:
        """The series dropped its oldest ``count`` samples."""
        self.lo -= count
        self.seen -= count
        self._review -= count
        self._guard -= count

    def rebuild(self) -> None:
        """Start again from the samples that the series kept."""
        self.lo = self.seen = self.count = self._review = self._guard = 0
        self.clear()
        self.advance()

    def clear(self) -> None:
        """Forget all samples."""

    def state_dict(self) -> dict[str, Any]:
        """What the samples of the series alone do not determine."""
        return {"lo": self.lo, "spanned": self._spanned}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`, after the series was restored."""
        self.lo = self.seen = state["lo"]
        self._spanned = state["spanned"]
        self._review = self._guard = 0
        self.clear()
        self.refill()
        self.seen = len(self._xs)
        self.count = self.seen - self.lo
        self.load_sums(state)
        self._result = self.compute() if self.seen and self.ready() else None

    def refill(self) -> None:
        """Take in the samples inside after a restore."""

    def load_sums(self, state: dict[str, Any]) -> None:
        """Restore running sums bit by bit."""


class Slice(Window):
    """Base of the windows that are nothing but a slice: no state to keep, so the samples between need no look."""

    __slots__ = ("_end",)

    def __init__(self, key: str, series: Series, axis: Axis, length: float, skip: float = 0) -> None:
        super().__init__(key, series, axis, length, skip)
        self._end = 0

    def advance(self) -> None:
        size = len(self._xs)
        if self.seen == size:
            return
        self.let_go()
        self.seen = size
        self.count = count = self._end - self.lo
        enough = count >= self._need if size < self._review and self._spanned else self.ready()
        self._result = self.compute() if enough else None
        self._guard = self._review if self._spanned else 0

    def let_go(self) -> None:
        places, lo = self._places, self.lo
        if places is None:
            size = len(self._xs)
            self._end = end = max(0, size - int(self.skip))
            self.lo = max(lo, min(end, size - int(self._back)))
        elif places:
            last = places[-1]
            self._end = end = bisect_right(places, last - self.skip, lo) if self.skip else len(places)
            self.lo = bisect_right(places, last - self._back, lo, end)

    def shift(self, count: int) -> None:
        super().shift(count)
        self._end -= count

    def restore(self, state: dict[str, Any]) -> None:
        self.lo, self._spanned, self._review, self._guard = state["lo"], state["spanned"], 0, 0
        self.let_go()
        self.seen = len(self._xs)
        self.count = self._end - self.lo
        self._result = self.compute() if self.seen and self.ready() else None

    def compute(self) -> float | None:
        return self.of(self._xs[self.lo : self._end])

    def of(self, values: list[float]) -> float | None:
        """The statistic of a slice."""
        raise NotImplementedError


class Short(Slice):
    """Base of the windows that compute from a short slice: a call less for those that are asked at every update."""

    __slots__ = ()

    def go_on(self, size: int) -> None:
        places = self._places
        if places is None:
            self._end = end = size - int(self.skip)
            self.lo = lo = size - int(self._back)
        else:
            last = places[-1]
            self._end = end = bisect_right(places, last - self.skip, self.lo) if self.skip else size
            self.lo = lo = bisect_right(places, last - self._back, self.lo, end)
        self.seen = size
        self.count = count = end - lo
        self._result = self.of(self._xs[lo:end]) if count >= self._need else None


class ShortMean(Short):
    """Mean of a slice."""

    __slots__ = ()
    bounds = Short.inside

    def of(self, values: list[float]) -> float | None:
        return sum(values) / len(values)


class ShortSum(Short):
    """Sum of a slice."""

    __slots__ = ()

    def of(self, values: list[float]) -> float | None:
        return float(sum(values))


class ShortStd(Short):
    """Sample standard deviation (n - 1) of a slice, by two passes."""

    __slots__ = ()

    def of(self, values: list[float]) -> float | None:
        count = len(values)
        if count < 2:
            return None
        return math.dist(values, [sum(values) / count] * count) / math.sqrt(count - 1)


class ShortMinimum(Short):
    """Smallest of a slice."""

    __slots__ = ()
    bounds = Short.inside

    def of(self, values: list[float]) -> float | None:
        return min(values)


class ShortMaximum(Short):
    """Largest of a slice."""

    __slots__ = ()
    bounds = Short.inside

    def of(self, values: list[float]) -> float | None:
        return max(values)


class ShortSlope(Short):
    """Least-squares slope of a slice over its positions: per update, or per sample on the axis ``points``."""

    __slots__ = ()

    def of(self, values: list[float]) -> float | None:
        count = len(values)
        places = range(count) if self._places is None else self._places[self.lo :]
        middle = sum(places) / count
        times = [place - middle for place in places]
        spread = sum(map(mul, times, times))
        if count < 2 or spread <= 0.0:
            return None
        mean = sum(values) / count  # centred, so that a large level does not eat the digits of a small slope
        return float(sum(map(mul, times, [value - mean for value in values])) / spread)


class ShortTrend(Short):
    """Mann-Kendall z of a slice."""

    __slots__ = ()

    def of(self, values: list[float]) -> float | None:
        return mann_kendall(values)


class ShortTheilSen(Short):
    """Median slope of all pairs of a slice: per update, or per sample on the axis ``points``."""

    __slots__ = ()

    def of(self, values: list[float]) -> float | None:
        return theil_sen(values, None if self._places is None else self._places[self.lo :])


class Delta(Slice):
    """Last minus first sample inside."""

    __slots__ = ()

    def compute(self) -> float | None:
        return self._xs[-1] - self._xs[self.lo]


class Count(Slice):
    """Number of samples inside; known from the first sample on."""

    __slots__ = ()

    def ready(self) -> bool:
        if self.seen >= self._review:
            self._observe_cadence()
        return self.count > 0

    def compute(self) -> float | None:
        return float(self.count)
