"""The store: series, shared windows over them, boundaries and the clock.

`Store.ingest` only appends; windows catch up when asked (see `windows_stats`). Only signals that some rule reads have a
series. Memory is bounded: a series keeps what its longest window spans.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any

from trainvitals.events import SignalSpec, split_label
from trainvitals.items import Frame
from trainvitals.rulelang.windows_derived import Derived, Each, Elementwise, Frozen, Gained, GainEnd, Shifted
from trainvitals.rulelang.windows_long import SORTED, Extreme, Ordered, ShortOrdered, Slope, Sums
from trainvitals.rulelang.windows_series import BAND, KEEP, STALE_AFTER, Axis, Clock, Series
from trainvitals.rulelang.windows_stats import (
    SHORT,
    Count,
    Delta,
    ShortMaximum,
    ShortMean,
    ShortMinimum,
    ShortSlope,
    ShortStd,
    ShortSum,
    ShortTheilSen,
    ShortTrend,
    Window,
)

__all__ = ["KEEP", "STALE_AFTER", "Axis", "Clock", "Series", "Store", "Window"]

_TRIM_EVERY = 1024
_REVIEW_BANDS = BAND // 2


class Store:
    """Samples of the run, and every windowed statistic that rules ask for.

    Args:
        catalogue: Declarations of the signals; a series takes its cadence class from it.

    Attributes:
        news: Series that left their band or got a value that is not finite since somebody emptied the list.
    """

    def __init__(self, catalogue: Mapping[str, SignalSpec]) -> None:
        self.catalogue = catalogue
        self.clock = Clock()
        self.boundaries: dict[str, tuple[int, float | None]] = {}
        self.late = 0
        self._series: dict[str, Series] = {}
        self._feeds: list[tuple[Series, Callable[[float], None], Callable[[float], None]]] = []  # of each series, what ingest needs
        self._pick: Callable[[Mapping[str, float]], Sequence[float | None]] = lambda values: ()
        self._own: dict[str, Series] = {}
        self._derived: dict[str, Derived] = {}
        self._elementwise: dict[str, Elementwise] = {}
        self.news: list[Series] = []
        self._windows: dict[str, Window | Frozen | Shifted | GainEnd] = {}
        self._gains: dict[tuple[str, float], Gained] = {}
        self._wide: list[Series] = []
        self._next_trim = _TRIM_EVERY
        self._closed = 0
        self._saved: dict[str, Any] = {"series": {}, "windows": {}, "derived": {}}

    @property
    def step(self) -> int:
        """Step of the newest frame."""
        return self.clock.step

    @property
    def time(self) -> float | None:
        """Time of the newest frame, boundary or tick; None on a log without times."""
        return self.clock.time

    def ingest(self, frame: Frame) -> None:
        """Append the samples of one frame; about 0.15 us per signal that some rule reads."""
        clock = self.clock
        step = frame.step
        if frame.time is not None:
            clock.time = frame.time
        if frame.tokens is not None:
            clock.tokens = frame.tokens
        if step < clock.step:
            self._ingest_late(frame)
            return
        again = step == clock.step
        if step != clock.step + 1:
            clock.moved += 1
        clock.step = step
        if clock.origin is None:
            clock.origin = step - 1
        values = frame.values
        try:
            found = self._pick(values)  # at once, where none lacks
        except KeyError:
            found = [values.get(key) for key in self._series]
        for value, (series, add, mark) in zip(found, self._feeds):  # noqa: B905 a keyword costs as much as five signals
            if value is None:
                if series.relied:
                    series.relied = False
                    clock.moved += 1
            elif series.usual_low <= value <= series.usual_high:
                add(value)
                mark(step)
            elif value - value == 0.0:
                add(value)
                mark(step)
                series.stretch(value)
                low, high = series.band()
                if not low <= value <= high:
                    self.news.append(series)
            else:
                series.spoil(step)
                self.news.append(series)
        if again:
            self._look_for_second_samples(frame)
        for series in self._wide:
            if series.key in frame.values and len(series.xs) > len(series.times if series.times is not None else series.tokens or ()):
                series.mark_wide()

    def _look_for_second_samples(self, frame: Frame) -> None:
        for key in frame.values:
            series = self._series.get(key)
            if series is not None and series.steps[-2:] == [frame.step, frame.step]:
                series.uneven += 1

    def _ingest_late(self, frame: Frame) -> None:
        """Samples of an update that was closed before: they enter windows at their own index."""
        self.late += 1
        for key, value in frame.values.items():
            series = self._series.get(key)
            if series is None:
                continue
            if value - value == 0.0:
                series.insert_late(frame.step, value)
            else:
                series.spoil(frame.step)

    def close_update(self, step: int, time: float | None = None) -> None:
        """An update is over: sample derived series, remember ``update_end``, drop old samples now and then."""
        clock = self.clock
        if time is not None:
            clock.time = time
        if step > clock.step:  # an update without a frame
            clock.step = step
            clock.moved += 1
        clock.closed = step
        if clock.origin is None:
            clock.origin = step - 1
        self.boundaries["update_end"] = (step, clock.time)
        for derived in self._derived.values():
            derived.sample(step)
        self._closed += 1
        if self._closed % _REVIEW_BANDS == 0:
            for series in self._series.values():
                series.review_band()
        if self._closed >= self._next_trim:
            self._next_trim = self._closed + _TRIM_EVERY
            for series in (*self._series.values(), *self._own.values()):
                series.trim()

    def boundary(self, what: str, step: int, time: float | None = None) -> None:
        """Remember when something last happened, for ``updates_since`` and ``seconds_since``."""
        if time is not None:
            self.clock.time = time
        self.boundaries[what] = (step, time if time is not None else self.clock.time)

    def tick(self, time: float) -> None:
        """Time passed without an update."""
        self.clock.time = time

    def series(self, key: str) -> Series:
        """The series of a signal or of one label value of it; made on first use."""
        found = self._series.get(key)
        if found is None:
            spec = self.catalogue.get(split_label(key)[0])
            found = self._series[key] = Series(key, self.clock, spec.cadence if spec else "update")
            self._feeds.append((found, found.add, found.mark))
            self._pick = itemgetter(*self._series, key)  # the last one twice, so that one alone comes as a sequence too
            if key in self._saved["series"]:
                found.load_state_dict(self._saved["series"].pop(key))
        return found

    def derived(self, key: str, read: Callable[[], float | bool | None], inputs: Sequence[Series]) -> Series:
        """The series of an expression; ``key`` is its canonical text. Register parts before the whole."""
        if key not in self._derived:
            series = self._own[key] = Series(key, self.clock)
            entry = self._derived[key] = Derived(series, read, inputs)
            if key in self._saved["derived"]:
                saved = self._saved["derived"].pop(key)
                series.load_state_dict(saved["series"])
                entry.seen = saved["seen"]
        return self._derived[key].series

    def elementwise(self, key: str, each: Each, source: Series) -> Elementwise:
        """The series of an expression of one other series; ``key`` is its canonical text."""
        if key not in self._elementwise:
            series = self._own[key] = Series(key, self.clock)
            entry = self._elementwise[key] = Elementwise(series, each, source)
            if key in self._saved["derived"]:
                saved = self._saved["derived"].pop(key)
                series.load_state_dict(saved["series"])
                entry.lo = saved["seen"]
        return self._elementwise[key]

    def window(self, function: str, series: Series, axis: Axis, length: float, *, q: float = 0.5, skip: float = 0, every: float = 0) -> Window | Frozen | Shifted | GainEnd:
        """The shared window for a function over a series; made on first use.

        Args:
            function: A window function or a reference of the rule language.
            series: From `series` or `derived`.
            axis: What ``length`` counts.
            length: Updates, points, tokens or seconds.
            q: Quantile, 0..1.
            skip: References only: updates to leave out, at the run's start (frozen) or its end (trailing).
            every: Shifts only: take every so manieth sample; 0: learned.
        """
        extra = f", q={q:g}" if function == "quantile" else ""
        extra += f", skip={skip:g}" if skip else ""
        extra += f", every={every:g}" if every else ""
        key = f"{function}({series.key}{extra}, {axis}={length:.17g})"
        found = self._windows.get(key)
        if found is None:
            if function in ("gain_low", "gain_high"):
                gained = self._gains.get((series.key, length)) or self._gains.setdefault((series.key, length), Gained(series, length))
                found = self._windows[key] = GainEnd(int(function == "gain_high"), key, gained)
            else:
                found = self._windows[key] = _build(function, key, series, axis, length, q, skip, every)
            if axis in ("tokens", "seconds") and series not in self._wide and series.key in self._series:
                self._wide.append(series)
            if key in self._saved["windows"]:
                found.restore(self._saved["windows"].pop(key))
        return found

    def too_coarse(self) -> list[tuple[str, float, float]]:
        """Windows shorter than three observed cadences, which can never be decided: key, length and cadence."""
        found = []
        for entry in self._elementwise.values():
            entry.advance()
        for window in self._windows.values():
            if isinstance(window, Window):
                window.value()
                if window.too_coarse:
                    found.append((window.key, float(window.length), window.series.cadence(window._axis) or 0.0))
        return found

    def missing(self, key: str) -> str | None:
        """Why the newest value of a series is unknown: ``never``, ``stale`` or ``nonfinite``; None when it is known."""
        series = self._series.get(key)
        state = series.state() if series is not None else "never"
        return None if state == "ok" else state

    def seconds_since(self, what: str) -> float | None:
        """Seconds since a boundary or ``update_end``; None when it never happened or the log has no times."""
        found = self.boundaries.get(what)
        if found is None or found[1] is None or self.clock.time is None:
            return None
        return self.clock.time - found[1]

    def updates_since(self, what: str) -> float | None:
        """Updates since a boundary; None when it never happened."""
        found = self.boundaries.get(what)
        return None if found is None else float(self.clock.step - found[0])

    def state_dict(self) -> dict[str, Any]:
        """JSON-able state. Continuing from it gives bit-identical values to not having stopped."""
        for entry in self._elementwise.values():
            entry.advance()
        for window in self._windows.values():
            window.advance()
        clock = self.clock
        derived = {key: {"series": entry.series.state_dict(), "seen": entry.seen} for key, entry in self._derived.items()}
        derived |= {key: {"series": entry.series.state_dict(), "seen": entry.lo} for key, entry in self._elementwise.items()}
        return {
            "clock": [clock.step, clock.origin, clock.time, clock.tokens, clock.every, clock.closed],
            "boundaries": {what: list(when) for what, when in self.boundaries.items()},
            "closed": [self._closed, self._next_trim, self.late],
            "series": {**self._saved["series"], **{key: series.state_dict() for key, series in self._series.items()}},
            "derived": {**self._saved["derived"], **derived},
            "windows": {**self._saved["windows"], **{key: window.state_dict() for key, window in self._windows.items()}},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`, before or after rules were bound: what is not known yet waits for its first use."""
        clock = self.clock
        clock.step, clock.origin, clock.time, clock.tokens, clock.every, clock.closed = state["clock"]
        self.boundaries = {what: (when[0], when[1]) for what, when in state["boundaries"].items()}
        self._closed, self._next_trim, self.late = state["closed"]
        self._saved = {part: dict(state[part]) for part in ("series", "derived", "windows")}
        for key, series in self._series.items():
            if key in self._saved["series"]:
                series.load_state_dict(self._saved["series"].pop(key))
        for key, entry in self._derived.items():
            if key in self._saved["derived"]:
                saved = self._saved["derived"].pop(key)
                entry.series.load_state_dict(saved["series"])
                entry.seen = saved["seen"]
        for key, lazy in self._elementwise.items():
            if key in self._saved["derived"]:
                saved = self._saved["derived"].pop(key)
                lazy.series.load_state_dict(saved["series"])
                lazy.lo = saved["seen"]
        for key, window in self._windows.items():
            if key in self._saved["windows"]:
                window.restore(self._saved["windows"].pop(key))


def _build(function: str, key: str, series: Series, axis: Axis, length: float, q: float, skip: float, every: float) -> Window | Frozen | Shifted | GainEnd:
    short = axis in ("updates", "points") and length <= SHORT
    ordered = ShortOrdered if short and length <= SORTED else Ordered
    match function:
        case "mean" | "share_true":
            return ShortMean(key, series, axis, length) if short else Sums("mean", key, series, axis, length)
        case "sum":
            return ShortSum(key, series, axis, length) if short else Sums("sum", key, series, axis, length)
        case "std":
            return ShortStd(key, series, axis, length) if short else Sums("std", key, series, axis, length)
        case "minimum":
            return ShortMinimum(key, series, axis, length) if short else Extreme(False, key, series, axis, length)
        case "maximum":
            return ShortMaximum(key, series, axis, length) if short else Extreme(True, key, series, axis, length)
        case "median" | "quantile":
            return ordered("quantile", key, series, axis, length, q=0.5 if function == "median" else q)
        case "slope":
            return ShortSlope(key, series, axis, length) if short else Slope(key, series, axis, length)
        case "trend_z":
            return ShortTrend(key, series, axis, length)
        case "theil_sen":
            return ShortTheilSen(key, series, axis, length)
        case "delta":
            return Delta(key, series, axis, length)
        case "count":
            return Count(key, series, axis, length)
        case "trailing_median" | "trailing_spread":
            return ordered("quantile" if function == "trailing_median" else "spread", key, series, axis, length, skip=skip)
        case "frozen_median" | "frozen_spread":
            return Frozen(function.removeprefix("frozen_"), key, series, length, skip)
        case "shift_up" | "shift_down":
            return Shifted(1 if function == "shift_up" else -1, key, series, length, skip, every)
        case _:
            msg = f"no window function {function!r}"
            raise ValueError(msg)
