"""Windows with a state of their own: long sums, slopes, extremes and everything that needs the samples in order."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections import deque
from typing import Any

from trainvitals.rulelang.windows_series import Axis, Bounds, Series
from trainvitals.rulelang.windows_stats import Short, Window

MAD_TO_SIGMA = 1.4826
"""Median absolute deviation times this estimates the standard deviation of a normal distribution."""
_RECOMPUTE = 512
_SPIKE = 1e8
_MANY = 4
"""More new samples than these are sorted in at once."""
SORTED = 64
"""Up to this length sorting the slice (1.4 us) costs no more than what keeps a list in order for somebody who asks seldom."""


class Sums(Window):
    """Mean, sum or standard deviation of a long window from running sums.

    The sums are of ``x - middle``; they are recomputed exactly, with a new middle, every 512 samples of the series and
    whenever a sample leaves that was so large that its rounding error would outlive it.
    """

    __slots__ = ("_middle", "_square", "_total", "what")

    def __init__(self, what: str, key: str, series: Series, axis: Axis, length: float) -> None:
        super().__init__(key, series, axis, length)
        self.what = what
        self._middle = self._total = self._square = 0.0

    def push(self, index: int, oldest: int) -> None:
        xs = self._xs
        middle, total, square = self._middle, self._total, self._square
        spike = 0.0
        for leaving in range(self.lo, oldest):
            distance = xs[leaving] - middle
            total -= distance
            square -= distance * distance
            spike = max(spike, distance * distance)
        distance = xs[index] - middle
        total += distance
        square += distance * distance
        self._total, self._square = total, square
        if (self.series.dropped + index + 1) % _RECOMPUTE == 0 or spike > _SPIKE * square or (spike > 0.0 and square <= 0.0):
            self._recompute(oldest, index + 1)

    def _recompute(self, start: int, end: int) -> None:
        values = self._xs[start:end]
        count = len(values)
        self._middle = math.fsum(values) / count
        self._total = math.fsum(value - self._middle for value in values)
        self._square = math.dist(values, [self._middle] * count) ** 2

    def compute(self) -> float | None:
        count = self.count
        if self.what == "mean":
            return self._middle + self._total / count
        if self.what == "sum":
            return self._middle * count + self._total
        if count < 2:
            return None
        return math.sqrt(max(0.0, self._square - self._total * self._total / count) / (count - 1))

    def clear(self) -> None:
        self._middle = self._total = self._square = 0.0

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "sums": [self._middle, self._total, self._square]}

    def load_sums(self, state: dict[str, Any]) -> None:
        self._middle, self._total, self._square = state["sums"]


class Slope(Window):
    """Least-squares slope per update; on the other axes per token, per second or per sample.

    Sums of positions and of values relative to an origin in time and a middle value, renewed every 512 samples.
    """

    __slots__ = ("_middle", "_origin", "_st", "_stt", "_stx", "_sx")

    def __init__(self, key: str, series: Series, axis: Axis, length: float) -> None:
        super().__init__(key, series, axis, length)
        self.clear()

    def clear(self) -> None:
        self._origin = self._middle = self._st = self._stt = self._sx = self._stx = 0.0

    def _place(self, index: int) -> float:
        return self._places[index] if self._places is not None else float(self.series.dropped + index)

    def push(self, index: int, oldest: int) -> None:
        xs, places = self._xs, self._places
        origin, middle = self._origin, self._middle
        st, stt, sx, stx = self._st, self._stt, self._sx, self._stx
        spike = 0.0
        for leaving in range(self.lo, oldest):
            t = (places[leaving] if places is not None else self._place(leaving)) - origin
            x = xs[leaving] - middle
            st -= t
            stt -= t * t
            sx -= x
            stx -= t * x
            spike = max(spike, x * x)
        t = (places[index] if places is not None else self._place(index)) - origin
        x = xs[index] - middle
        self._st = st + t
        self._stt = stt + t * t
        self._sx = sx + x
        self._stx = stx + t * x
        newest = self.series.dropped + index + 1
        if newest % _RECOMPUTE == 0 or (spike > 0.0 and spike > _SPIKE * x * x) or newest == 1 or t > 4 * self.length:
            self._recompute(oldest, index + 1)

    def _recompute(self, start: int, end: int) -> None:
        places = [self._place(index) for index in range(start, end)]
        values = self._xs[start:end]
        self._origin = places[0]
        self._middle = math.fsum(values) / len(values)
        times = [place - self._origin for place in places]
        offsets = [value - self._middle for value in values]
        self._st, self._stt = math.fsum(times), math.fsum(t * t for t in times)
        self._sx = math.fsum(offsets)
        self._stx = math.fsum(t * x for t, x in zip(times, offsets, strict=True))

    def compute(self) -> float | None:
        count = self.count
        spread = self._stt - self._st * self._st / count
        if count < 2 or spread <= 0.0:
            return None
        return (self._stx - self._st * self._sx / count) / spread

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "sums": [self._origin, self._middle, self._st, self._stt, self._sx, self._stx]}

    def load_sums(self, state: dict[str, Any]) -> None:
        self._origin, self._middle, self._st, self._stt, self._sx, self._stx = state["sums"]


class Extreme(Window):
    """Minimum or maximum of a long window by a monotonic deque of sample numbers."""

    __slots__ = ("_line", "largest")
    bounds = Window.inside

    def __init__(self, largest: bool, key: str, series: Series, axis: Axis, length: float) -> None:
        super().__init__(key, series, axis, length)
        self.largest = largest
        self._line: deque[int] = deque()

    def push(self, index: int, oldest: int) -> None:
        xs, line, base = self._xs, self._line, self.series.dropped
        x = xs[index]
        if self.largest:
            while line and xs[line[-1] - base] <= x:
                line.pop()
        else:
            while line and xs[line[-1] - base] >= x:
                line.pop()
        line.append(base + index)
        while line[0] < base + oldest:
            line.popleft()

    def compute(self) -> float | None:
        return self._xs[self._line[0] - self.series.dropped]

    def clear(self) -> None:
        self._line.clear()

    def refill(self) -> None:
        for index in range(self.lo, len(self._xs)):
            self.push(index, self.lo)


class ShortOrdered(Short):
    """Quantile or spread (1.4826 * MAD) of a slice, sorted when somebody asks; may end before the newest sample (``skip``)."""

    __slots__ = ("_q", "what")

    def __init__(self, what: str, key: str, series: Series, axis: Axis, length: float, *, q: float = 0.5, skip: float = 0) -> None:
        super().__init__(key, series, axis, length, skip)
        self.what = what
        self._q = q

    def of(self, values: list[float]) -> float | None:
        ordered = sorted(values)
        return MAD_TO_SIGMA * median_deviation(ordered) if self.what == "spread" else quantile(ordered, self._q)

    def bounds(self, room: float) -> Bounds | None:
        return self.inside(room) if self.what == "quantile" else None


class Ordered(Window):
    """Quantile or spread (1.4826 * MAD) of a window kept as a sorted list; may end before the newest sample (``skip``)."""

    __slots__ = ("_hi", "_q", "_sorted", "what")

    def __init__(self, what: str, key: str, series: Series, axis: Axis, length: float, *, q: float = 0.5, skip: float = 0) -> None:
        super().__init__(key, series, axis, length, skip)
        self.what = what
        self._q = q
        self._hi = 0
        self._sorted: list[float] = []

    def go_on(self, size: int) -> None:
        if size - self.seen > _MANY:
            self.advance()
            return
        xs, ordered, lo, hi = self._xs, self._sorted, self.lo, self._hi
        places: list[float] = self._places  # type: ignore[assignment]
        end = places[-1] - self.skip
        while hi < size and places[hi] <= end:
            insort(ordered, xs[hi])
            hi += 1
        begin = end - self.length
        while lo < hi and places[lo] <= begin:
            del ordered[bisect_left(ordered, xs[lo])]
            lo += 1
        self.lo, self._hi, self.seen = lo, hi, size
        self.count = count = hi - lo
        self._result = self.compute() if count >= self._need else None

    def advance(self) -> None:
        size = len(self._xs)
        if self.seen == size:
            return
        xs, places, ordered = self._xs, self._places, self._sorted
        if places is not None and not self._spanned:
            if size >= self._review:
                self._observe_cadence()
            if not self.spans(places[-1]):
                self.seen = size  # samples are taken in when there are enough of them
                return
        lo, hi = self.lo, self._hi
        if places is None:
            now_hi = min(size, max(hi, size - int(self.skip)))
            now_lo = min(now_hi, max(lo, size - int(self.skip + self.length)))
        elif self.skip:
            now_hi = bisect_right(places, places[-1] - self.skip, hi)
            now_lo = bisect_right(places, places[-1] - self.skip - self.length, lo, now_hi)
        else:
            now_hi = size
            now_lo = bisect_right(places, places[-1] - self.length, lo)
        fresh = now_hi - hi
        if fresh > _MANY and 4 * fresh > now_hi - now_lo:  # many at once: sorting anew costs less than moving each
            self._sorted = sorted(xs[now_lo:now_hi])
        else:
            for index in range(lo, min(now_lo, hi)):
                del ordered[bisect_left(ordered, xs[index])]
            if fresh == 1:
                insort(ordered, xs[hi])
            elif fresh:
                ordered += xs[max(hi, now_lo) : now_hi]
                ordered.sort()  # a sorted run and a few more: nearly linear
        self.lo, self._hi, self.seen = now_lo, now_hi, size
        self.count = count = now_hi - now_lo
        enough = count >= self._need if size < self._review and self._spanned else self.ready()
        self._result = self.compute() if enough else None
        self._guard = self._review if self._spanned and places is not None else 0

    def compute(self) -> float | None:
        ordered = self._sorted
        if self.what == "spread":
            return MAD_TO_SIGMA * median_deviation(ordered)
        return quantile(ordered, self._q)

    def bounds(self, room: float) -> Bounds | None:
        return self.inside(room) if self.what == "quantile" else None

    def clear(self) -> None:
        self._sorted.clear()
        self._hi = self.lo

    def shift(self, count: int) -> None:
        super().shift(count)
        self._hi -= count

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "hi": self._hi}

    def restore(self, state: dict[str, Any]) -> None:
        self.lo, self._hi, self._spanned, self._review = state["lo"], state["hi"], state["spanned"], 0
        self._sorted[:] = sorted(self._xs[self.lo : self._hi])
        self.seen = len(self._xs)
        self.count = self._hi - self.lo
        self._result = self.compute() if self.seen and self.ready() else None


def quantile(ordered: list[float], q: float) -> float:
    """Quantile of a sorted list with linear interpolation (numpy's default); ``q`` in 0..1."""
    place = q * (len(ordered) - 1)
    below = int(place)
    share = place - below
    return ordered[below] if share == 0.0 else ordered[below] + share * (ordered[below + 1] - ordered[below])


def median_deviation(ordered: list[float]) -> float:
    """Median absolute deviation from the median of a sorted list, in O(log n)."""
    count = len(ordered)
    middle = quantile(ordered, 0.5)
    split = bisect_left(ordered, middle)

    def deviation(rank: int) -> float:
        """The rank-th smallest |x - middle|, found among two sorted runs: left of the split backwards, right of it forwards."""
        low, high = max(0, rank - (count - split)), min(rank, split)
        while low < high:
            take = (low + high) // 2
            if middle - ordered[split - 1 - take] < ordered[split + rank - take - 1] - middle:
                low = take + 1
            else:
                high = take
        best = []
        if low > 0:
            best.append(middle - ordered[split - low])
        if rank - low > 0:
            best.append(ordered[split + rank - low - 1] - middle)
        return max(best)

    upper = deviation(count // 2 + 1)
    return upper if count % 2 else (deviation(count // 2) + upper) / 2
