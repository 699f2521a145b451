"""Series and references that are made from other series: frozen references, values of expressions."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Any

from trainvitals.detectors.gain import Gain
from trainvitals.detectors.shift import Shift
from trainvitals.rulelang.windows_long import MAD_TO_SIGMA, median_deviation, quantile
from trainvitals.rulelang.windows_series import Bounds, Series
from trainvitals.rulelang.windows_stats import MIN_SAMPLES, MIN_SHARE

Each = Callable[[Sequence[float]], list[float | bool | str | None]]
"""Values of an expression for samples of the one series that it reads."""


class Frozen:
    """Median or spread of the samples of one stretch early in the run, fixed when the stretch is over.

    The stretch is ``skip`` to ``skip + updates`` after the first update that the store saw. When it holds too few samples
    at its end, it goes on until it holds 80 % of what the observed cadence promises, at least three.
    """

    __slots__ = ("_collected", "_result", "_taken", "key", "lo", "series", "skip", "updates", "what")

    def __init__(self, what: str, key: str, series: Series, updates: float, skip: float) -> None:
        self.what = what
        self.key = key
        self.series = series
        self.updates = updates
        self.skip = skip
        self.lo = 0
        self._taken = 0
        self._collected: list[float] = []
        self._result: float | None = None
        series.windows.append(self)

    def value(self) -> float | None:
        """The reference; None until it is fixed. It never becomes stale."""
        if self._result is None:
            self.advance()
        return self._result

    def bounds(self, room: float) -> Bounds | None:
        """As `Window.bounds`: once it is fixed, nothing moves it."""
        value = self.value()
        return None if value is None else Bounds(value, value, 0.0)

    def advance(self) -> None:
        """Collect new samples; the last one of the stretch fixes the reference."""
        series = self.series
        xs, steps = series.xs, series.steps
        start = (series.clock.origin or 0) + self.skip
        end = start + self.updates
        if self._result is None:
            for index in range(self._taken - series.dropped, len(xs)):
                if steps[index] > start:
                    self._collected.append(xs[index])
                    if steps[index] >= end and self._enough(series.dropped + index + 1):
                        ordered = sorted(self._collected)
                        self._result = quantile(ordered, 0.5) if self.what == "median" else MAD_TO_SIGMA * median_deviation(ordered)
                        self._collected = []
                        break
        self._taken = series.dropped + len(xs)
        self.lo = len(xs)

    let_go = advance

    def _enough(self, count: int) -> bool:
        cadence = self.series.cadence("updates", count) or 1.0
        return len(self._collected) >= max(MIN_SAMPLES, math.ceil(MIN_SHARE * self.updates / cadence - 1e-9))

    def shift(self, count: int) -> None:
        """The series dropped samples; positions here count from the run's start."""

    def rebuild(self) -> None:
        """A late sample is not worth moving a reference."""
        self._taken = self.series.total

    def state_dict(self) -> dict[str, Any]:
        """JSON-able state."""
        return {"taken": self._taken, "collected": list(self._collected), "result": self._result}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self._taken, self._collected, self._result = state["taken"], list(state["collected"]), state["result"]
        self.lo = len(self.series.xs)


class Shifted:
    """Evidence that a series has moved to one side of its own last samples (`detectors.shift`), from ``skip`` updates on."""

    __slots__ = ("_taken", "detector", "key", "lo", "series", "skip")

    def __init__(self, side: int, key: str, series: Series, points: float, skip: float, every: float) -> None:
        self.detector = Shift(side, int(points), int(every) or None)
        self.key = key
        self.series = series
        self.skip = skip
        self.lo = 0
        self._taken = 0
        series.windows.append(self)

    def value(self) -> float | None:
        """log10 of the evidence; None before the first sample was judged, and when the series is stale."""
        if self._taken != self.series.total:
            self.advance()
        evidence = self.detector.evidence
        return evidence if evidence is not None and self.series.fresh() else None

    def bounds(self, room: float) -> Bounds | None:
        """As `Window.bounds`: evidence jumps."""
        return None

    def advance(self) -> None:
        """Judge every new sample, once and in order."""
        series = self.series
        xs, steps = series.xs, series.steps
        start = (series.clock.origin or 0) + self.skip
        fresh = self._taken - series.dropped
        if fresh < len(xs) and steps[fresh] <= start:
            fresh = bisect_right(steps, start, fresh)
        self.detector.extend(xs[fresh:])
        self._taken = series.total
        self.lo = len(xs)

    let_go = advance

    def shift(self, count: int) -> None:
        """The series dropped samples; positions here count from the run's start."""

    def rebuild(self) -> None:
        """A late sample is not judged: its turn is over."""
        self._taken = self.series.total

    def state_dict(self) -> dict[str, Any]:
        """JSON-able state."""
        return {"taken": self._taken, "detector": self.detector.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self._taken = state["taken"]
        self.detector.load_state_dict(state["detector"])
        self.lo = len(self.series.xs)


class Gained:
    """What a series has gained since its reference stretch (`detectors.gain`); both ends of the interval share it."""

    __slots__ = ("detector", "lo", "series", "taken")

    def __init__(self, series: Series, points: float) -> None:
        self.detector = Gain(int(points))
        self.series = series
        self.lo = 0
        self.taken = 0
        series.windows.append(self)

    def advance(self) -> None:
        """Take in every new sample, once and in order."""
        series = self.series
        self.detector.extend(series.xs[self.taken - series.dropped :])
        self.taken = series.total
        self.lo = len(series.xs)

    let_go = advance

    def shift(self, count: int) -> None:
        """The series dropped samples; positions here count from the run's start."""

    def rebuild(self) -> None:
        """A late sample does not enter: its turn is over."""
        self.taken = self.series.total


class GainEnd:
    """One end of that interval, 0: lower, 1: upper."""

    __slots__ = ("end", "gained", "key", "series")

    def __init__(self, end: int, key: str, gained: Gained) -> None:
        self.end = end
        self.key = key
        self.gained = gained
        self.series = gained.series

    def value(self) -> float | None:
        """The end, in the unit of the series; None before there is an interval, and when the series is stale."""
        gained = self.gained
        if gained.taken != self.series.total:
            gained.advance()
        ends = gained.detector.ends
        return ends[self.end] if ends is not None and self.series.fresh() else None

    def bounds(self, room: float) -> Bounds | None:
        """As `Window.bounds`: the interval narrows with every sample."""
        return None

    def advance(self) -> None:
        """Take in every new sample."""
        self.gained.advance()

    def state_dict(self) -> dict[str, Any]:
        """JSON-able state; both ends write the same."""
        return {"taken": self.gained.taken, "detector": self.gained.detector.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.gained.taken = state["taken"]
        self.gained.detector.load_state_dict(state["detector"])
        self.gained.lo = len(self.series.xs)


class Elementwise:
    """A series whose samples are values of an expression of one other series, sample by sample; taken when somebody asks.

    Samples of an update that is not closed yet wait, and of several in one update the last one counts, as for `Derived`.
    """

    __slots__ = ("_each", "_source", "lo", "series")

    def __init__(self, series: Series, each: Each, source: Series) -> None:
        self.series = series
        self.lo = 0
        self._each = each
        self._source = source
        source.windows.append(self)

    def advance(self) -> None:
        """Take in every sample of the source up to the last closed update."""
        series, source, begin = self.series, self._source, self.lo
        steps = source.steps
        end = bisect_right(steps, source.clock.closed, begin)
        if begin == end:
            return
        self.lo = end
        values = self._each(source.xs[begin:end])
        if series.times is None and series.tokens is None and not source.uneven:
            try:
                numbers = [*map(float, values)]  # type: ignore[arg-type]
            except TypeError:  # some are unknown
                numbers = [math.nan]
            if math.isfinite(sum(numbers)):  # all at once, as nearly always
                series.xs += numbers
                series.steps += steps[begin:end]
                return
        for index, value in enumerate(values, begin):
            if index + 1 == len(steps) or steps[index + 1] != steps[index]:
                _take(series, value, int(steps[index]))

    let_go = advance

    def shift(self, count: int) -> None:
        """The source dropped its oldest ``count`` samples."""
        self.lo -= count

    def rebuild(self) -> None:
        """A late sample came before those taken; what was derived stays as it was said."""
        self.lo += 1


class Derived:
    """A series whose samples are values of an expression, taken when an update closes and one of its inputs is new."""

    __slots__ = ("inputs", "read", "seen", "series")

    def __init__(self, series: Series, read: Callable[[], float | bool | None], inputs: Sequence[Series]) -> None:
        self.series = series
        self.read = read
        self.inputs = tuple(inputs)
        self.seen = -1

    def sample(self, step: int) -> None:
        """Take one sample."""
        if self.inputs:
            total = 0
            for series in self.inputs:
                total += series.dropped + len(series.xs)
            if total == self.seen:
                return
            self.seen = total
        _take(self.series, self.read(), step)


def _take(series: Series, value: float | bool | str | None, step: int) -> None:
    """Append a derived value; unknown gives no sample, one that is not finite is counted."""
    if value is None:
        return
    number = float(value)
    if number - number == 0.0:
        series.add(number)
        series.mark(step)
        series.mark_wide()
    else:
        series.spoil(step)
