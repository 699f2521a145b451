"""Series: the samples of one signal that its windows still need, and what is known about their rhythm."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable
from operator import sub
from typing import Any, Literal, NamedTuple, Protocol

Axis = Literal["updates", "points", "tokens", "seconds"]

KEEP = 64
"""Samples always kept: enough for the observed cadence and for the longest window without a state of its own."""
STALE_AFTER = 3
"""A signal is stale when this many of its own observed cadences passed without a sample (notes/rules.md 9.4)."""
_REVIEW = 16
"""Cadence is observed anew every so many samples, counted from the run's first, so that it never depends on who asked when."""
_SETTLED = 64
"""From this many samples on it is observed every so many: how often a trainer logs hardly ever changes."""
BAND = 32
"""Samples whose range makes the band in which a series is called calm."""
MARGIN = 0.75
"""The range is widened by this much of itself on each side. White Gaussian noise then leaves the band about once in 36,000
samples (simulated: tests/rulelang/test_windows.py); a series that drifts evenly does not leave it before the next review; a
jump, a spike or the first value that is not finite does so at once."""
GROWTH = 1 / 16
"""The hull grows by this much of itself beyond the sample that it must hold, so that a series which only ever rises does not stretch it at every sample."""
_KNOWN = 8
"""Samples that a series must have before it has a band: before that every sample is news."""
_FEW = BAND // 2
"""The newest so many have a narrower band, which lies in the band of all `BAND`: what is in the one need not be compared with the other."""


class Clock:
    """Where the run is: the step, the time and the tokens of the latest frame, and the last update that was closed.

    `moved` counts what may end a proof: a hull that grew, a sample too many, one that lacks in a series on which a proof rests (`Series.relied`).
    """

    __slots__ = ("closed", "every", "moved", "origin", "step", "time", "tokens")

    def __init__(self) -> None:
        self.step = 0
        self.closed = -1
        self.origin: int | None = None
        self.time: float | None = None
        self.tokens: float | None = None
        self.every: float = 1.0
        self.moved = 0


class Bounds(NamedTuple):
    """Between which numbers a value lies while its series bring one sample an update and stay in their hull (`proof`).

    Attributes:
        low: Lower end, which belongs to it; of a bool 0, or 1 when it holds.
        high: Upper end.
        back: Updates that the value looks back; 0 when nothing that comes can change the bounds.
    """

    low: float
    high: float
    back: float = 1.0


class Watcher(Protocol):
    """What a series needs from its windows."""

    lo: int

    def advance(self) -> None:
        """Take in every sample up to the newest."""

    def let_go(self) -> None:
        """Set `lo` to the oldest sample that will be needed, whether or not anything is computed."""

    def shift(self, count: int) -> None:
        """The series dropped its oldest ``count`` samples."""

    def rebuild(self) -> None:
        """A late sample changed the past: start from the samples kept."""


class Series:
    """Finite samples of one series, oldest first, with their steps; times and tokens only where a window asks.

    Attributes:
        xs: Values. The list object never changes, so that windows may hold it.
        steps: Step of each value.
        usual_low: Lower end of a range that lies in the band and in the hull: a sample in there is nothing new. `usual_high` is the upper one.
        hull: Ends between which every sample kept lies; the lower one above the upper one while there is none.
        uneven: Samples that did not come once an update, in order: a second one of an update, a late one.
        relied: A proof may rest on it that it brings a sample at every update.
        dropped: Samples seen before ``xs[0]``.
    """

    __slots__ = ("_cadences", "_due", "_few", "_few_at", "_high", "_horizon", "_horizon_until", "_low", "_observed", "add", "bad_at", "bad_steps", "cadence_kind", "clock", "dropped", "first", "hull", "key", "mark", "nonfinite", "relied", "steps", "times", "tokens", "uneven", "usual_high", "usual_low", "windows", "xs")

    def __init__(self, key: str, clock: Clock, cadence_kind: str = "update") -> None:
        self.key = key
        self.clock = clock
        self.cadence_kind = cadence_kind
        self.xs: list[float] = []
        self.steps: list[float] = []
        self.times: list[float] | None = None
        self.tokens: list[float] | None = None
        self.first: dict[str, float] = {}
        self._cadences: dict[str, tuple[int, float | None]] = {}  # windows of one series ask for the same moment
        self._observed: dict[str, tuple[int, float | None]] = {}
        self.dropped = 0
        self._low, self._high = math.inf, -math.inf
        self._due = self._few_at = 0
        self._few = (math.inf, -math.inf)
        self.usual_low, self.usual_high = self.hull = (math.inf, -math.inf)
        self.uneven = 0
        self.relied = False
        self.nonfinite = 0
        self.bad_at = -1
        self.bad_steps: list[int] = []
        self.windows: list[Watcher] = []
        self._horizon = math.inf
        self._horizon_until = 0
        self.add: Callable[[float], None] = self.xs.append
        self.mark: Callable[[float], None] = self.steps.append

    @property
    def total(self) -> int:
        """Finite samples seen in the whole run."""
        return self.dropped + len(self.xs)

    def positions(self, axis: Axis) -> list[float] | None:
        """Position of each sample on an axis; None for ``points``, where the index is the position."""
        if axis == "updates":
            return self.steps
        if axis == "points":
            return None
        if axis == "seconds":
            if self.times is None:
                self.times = [0.0] * len(self.xs)
            return self.times
        if self.tokens is None:
            self.tokens = [0.0] * len(self.xs)
        return self.tokens

    def mark_wide(self) -> None:
        """Complete a sample just appended: note its time and its tokens if a window needs them."""
        for axis, now in ((self.times, self.clock.time), (self.tokens, self.clock.tokens)):
            if axis is not None:
                last = axis[-1] if axis else 0.0
                axis.append(last if now is None else max(last, now))

    def review_band(self) -> None:
        """Set the band by the newest `BAND` samples; the store calls it every `BAND / 2` updates.

        It is computed when a sample comes that the band of a few of them does not hold, for which most samples never ask.
        """
        xs = self.xs
        total = self.dropped + len(xs)
        if self._due and total - self._few_at <= BAND - _FEW:
            self._due = total  # those few are still among the newest
            return
        if len(xs) < _KNOWN or (not self._due and self._low == self._high == xs[-1]):
            return
        self._due = self._few_at = total
        self._few = low, high = _band(xs[-_FEW:])
        if low == high:  # a constant series has its band at once: it is not reviewed while it stays constant
            self.band()
        self._settle()

    def band(self) -> tuple[float, float]:
        """Ends of the band (`BAND`) as of the last review; the lower one above the upper one while there is none."""
        if self._due:
            end = self._due - self.dropped
            self._low, self._high = _band(self.xs[max(0, end - BAND) : end])
            self._due = 0
            self._settle()
        return self._low, self._high

    def _settle(self) -> None:
        """Band or hull changed: see what they have in common."""
        low, high = self._few if self._due else (self._low, self._high)
        least, most = self.hull
        self.usual_low = low if low > least else least  # min and max would cost as much as the rest of a review
        self.usual_high = high if high < most else most

    def stretch(self, value: float) -> None:
        """Make the hull hold this sample, and a little beyond."""
        low, high = self.hull
        if low <= value <= high:
            return
        self.clock.moved += 1
        beyond = GROWTH * (max(value, high) - min(value, low))
        self.hull = (value - beyond if value < low else low, value + beyond if value > high else high)
        self._settle()

    def bounds(self, room: float) -> Bounds:
        """The hull, widened by `room` times its width on each side: where the newest value lies."""
        low, high = self.hull
        extra = room * (high - low)
        return Bounds(low - extra, high + extra)

    def spoil(self, step: int) -> None:
        """Count a sample that is not finite; it enters no window."""
        self.nonfinite += 1
        self.clock.moved += 1
        self.bad_at = self.dropped + len(self.xs)
        self.bad_steps.append(step)
        if len(self.bad_steps) > 100_000:
            del self.bad_steps[:50_000]

    def cadence(self, axis: Axis, count: int | None = None) -> float | None:
        """Median distance of consecutive samples; None before two samples at different positions.

        Args:
            axis: Where to measure the distance.
            count: Number of samples in the run after which to observe it; by default all.
        """
        if axis == "points":
            return 1.0
        places = self.positions(axis)
        assert places is not None
        at = self.total if count is None else count
        known = self._cadences.get(axis)
        if known is not None and known[0] == at:
            return known[1]
        end = at - self.dropped
        if end > _REVIEW and (gap := places[end - 1] - places[end - 2]) > 0 and places[end - 1] - places[end - 1 - _REVIEW] == _REVIEW * gap:
            return gap  # evenly spaced, as nearly always
        part = places[max(0, end - _REVIEW - 1) : end]
        gaps = sorted(map(sub, part[1:], part))
        none = bisect_right(gaps, 0.0)  # samples at one position have no distance
        result = gaps[none + (len(gaps) - none) // 2] if none < len(gaps) else None
        self._cadences[axis] = (at, result)
        return result

    def observed(self, axis: Axis) -> tuple[int, float | None]:
        """The cadence in force now, and the sample count in the whole run from which on it must be observed anew."""
        known = self._observed.get(axis)
        if known is None or self.total >= known[0]:
            at, until = self.reviewed(self.total)
            known = self._observed[axis] = (until, self.cadence(axis, at))
        return known

    def reviewed(self, count: int) -> tuple[int, int]:
        """The sample count at which the cadence in force after ``count`` samples was observed, and the next such count."""
        if count < _REVIEW:
            return count, count + 1
        every = _REVIEW if count < _SETTLED else _SETTLED
        at = count // every * every
        return at, at + every

    def fresh(self) -> bool:
        """Whether the latest finite sample is younger than three cadences. Needs at least one sample."""
        steps = self.steps
        if not steps:
            return False
        age = self.clock.step - steps[-1]
        if age <= 0:
            return True
        total = self.total
        if total >= self._horizon_until:
            at, self._horizon_until = self.reviewed(total)
            self._horizon = self._measure_horizon(at)
        return age <= self._horizon

    def _measure_horizon(self, count: int) -> float:
        if self.cadence_kind == "once":
            return math.inf
        cadence = self.cadence("updates", count)
        if cadence is None:
            return STALE_AFTER * self.clock.every if self.cadence_kind == "update" else math.inf
        return STALE_AFTER * cadence

    def now(self) -> float | None:
        """Latest value; None when there is none, when it is stale, or when the latest sample was not finite."""
        xs = self.xs
        if not xs or self.bad_at == self.dropped + len(xs):
            return None
        return xs[-1] if self.steps[-1] == self.clock.step or self.fresh() else None

    def state(self) -> str:
        """``ok``, ``nonfinite``, ``never`` (no sample yet) or ``stale``."""
        if self.bad_at == self.total:
            return "nonfinite"
        if not self.xs:
            return "never"
        return "ok" if self.fresh() else "stale"

    def bad_within(self, updates: float) -> float:
        """How many samples of the last ``updates`` updates were not finite."""
        return float(len(self.bad_steps) - bisect_right(self.bad_steps, self.clock.step - updates))

    def insert_late(self, step: int, value: float) -> None:
        """Put a sample of an update that is already closed at its own place."""
        at = bisect_right(self.steps, step)
        if at == 0 and self.dropped:
            return
        for window in self.windows:
            window.advance()
        self._cadences.clear()
        self._observed.clear()
        self.band()
        self.uneven += 1
        self.clock.moved += 1
        self.stretch(value)
        self.xs.insert(at, value)
        self.steps.insert(at, step)
        for axis in (self.times, self.tokens):
            if axis is not None:
                axis.insert(at, axis[at - 1] if at else 0.0)
        for window in self.windows:
            window.rebuild()

    def trim(self) -> None:
        """Drop what no window needs any more."""
        for window in self.windows:
            window.let_go()
        count = min([len(self.xs) - KEEP, *(window.lo for window in self.windows)])
        if count <= 0:
            return
        if self._due - BAND < self.dropped + count:
            self.band()  # while what it needs is there
        self._note_first()
        for axis in (self.xs, self.steps, self.times, self.tokens):
            if axis is not None:
                del axis[:count]
        self.dropped += count
        self.hull = (min(self.xs), max(self.xs))
        self._settle()
        for window in self.windows:
            window.shift(count)

    def _note_first(self) -> None:
        for axis, places in (("updates", self.steps), ("seconds", self.times), ("tokens", self.tokens)):
            if places and axis not in self.first:
                self.first[axis] = places[0]

    def first_position(self, axis: Axis) -> float:
        """Position of the first sample of the run on an axis."""
        if axis in self.first:
            return self.first[axis]
        places = self.positions(axis)
        return places[0] if places else 0.0

    def state_dict(self) -> dict[str, Any]:
        """JSON-able state; call `Store.state_dict`, which brings all windows up to date first."""
        self._note_first()
        low, high = self.band()
        return {
            "xs": list(self.xs), "steps": list(self.steps), "times": self.times and list(self.times), "tokens": self.tokens and list(self.tokens),
            "first": dict(self.first), "dropped": self.dropped, "nonfinite": self.nonfinite, "bad_at": self.bad_at, "bad_steps": list(self.bad_steps),
            "band": [low, high] if low <= high else None,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`; list objects stay the same, windows hold them."""
        self.xs[:] = state["xs"]
        self.steps[:] = state["steps"]
        size = len(self.xs)
        for own, saved in ((self.times, state["times"]), (self.tokens, state["tokens"])):
            if own is not None:
                own[:] = saved if saved and len(saved) == size else [0.0] * size
        if self.times is None and state["times"]:
            self.times = list(state["times"])
        if self.tokens is None and state["tokens"]:
            self.tokens = list(state["tokens"])
        self.first = dict(state["first"])
        self.dropped, self.nonfinite, self.bad_at = state["dropped"], state["nonfinite"], state["bad_at"]
        self.bad_steps = list(state["bad_steps"])
        self._low, self._high = state["band"] or (math.inf, -math.inf)
        self._due = 0
        self.hull = (min(self.xs, default=math.inf), max(self.xs, default=-math.inf))
        self._settle()
        self.clock.moved += 1
        self._cadences.clear()
        self._observed.clear()
        self._horizon_until = 0


def _band(recent: list[float]) -> tuple[float, float]:
    """The range of some samples, widened by `MARGIN` of itself on each side."""
    low, high = min(recent), max(recent)
    width = high - low
    return low - MARGIN * width, high + MARGIN * width
