"""Spike: a sample far away from the recent ones, measured by ranks so that earlier spikes do not hide it."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence
from typing import Any

IQR_TO_SIGMA = 1.349
"""Interquartile range of a normal distribution in standard deviations."""
LEAST = 16
"""Samples needed before quartiles say anything."""
ROUNDING = 1e-6
"""Smallest spread, as a share of the median: below it a constant signal's last digits would be spikes."""


class Spike:
    """``z = (x - median) / (IQR / 1.349)`` against the newest ``window`` samples before x.

    Alarm: one ``|z| >= single``, or ``|z| >= several`` on ``row`` samples in a row and on one side. Source: notes/pathologies.md
    6.1 (rolling median and IQR) and 6.3: on raw gradient norms, whose kurtosis is 54, three standard deviations raise 18
    alarms per 1,000 steps, z 4 on three in a row 0.3; their logarithm is tame.

    Assumes that most of the window is healthy; neither a distribution nor independence. It adapts: a level shift is an alarm
    of its first samples only, a drift none. Simulated (docs/detectors.md): 0.00 false alarms per 1,000 samples of white noise, 3.7 with
    Student's t of 3 degrees of freedom (tails are what it looks for: take the logarithm of what is positive), 0.5 at an autocorrelation
    of 0.9. It sees a sample of 10 standard deviations at once in 89 % of cases, three of 8 in all.

    Args:
        window: Samples before x, at least 16.
        log: Judge ``log(x)``; a sample that is not positive then counts as not finite.
        single: Alarm at one sample this far out, in standard deviations.
        several: Alarm at ``row`` samples this far out.
        row: See ``several``.
        floor: Smallest spread in the unit of x (of its logarithm), so that a very quiet signal does not make a trifle large.
    """

    __slots__ = ("_newest", "_row", "_sorted", "floor", "log", "nonfinite", "row", "several", "single", "window", "z")

    def __init__(self, window: int = 64, *, log: bool = False, single: float = 8.0, several: float = 4.0, row: int = 3, floor: float = 0.0) -> None:
        self.window = max(LEAST, window)
        self.log = log
        self.single = single
        self.several = several
        self.row = row
        self.floor = floor
        self.z: float | None = None
        self.nonfinite = 0
        self._newest: list[float] = []
        self._sorted: list[float] = []
        self._row = 0

    @property
    def alarm(self) -> bool:
        """Whether the newest sample is a spike, or completes a row of small ones."""
        return self.z is not None and (abs(self.z) >= self.single or abs(self._row) >= self.row)

    def add(self, x: float) -> float | None:
        """z of this sample; None while fewer than 16 came before it, or when it is not finite."""
        if x - x != 0.0 or (self.log and x <= 0.0):
            self.nonfinite += 1
            self.z = None
            return None
        x = math.log(x) if self.log else x
        ordered = self._sorted
        self.z = None
        if len(ordered) >= LEAST:
            middle = _quantile(ordered, 0.5)
            spread = max((_quantile(ordered, 0.75) - _quantile(ordered, 0.25)) / IQR_TO_SIGMA, self.floor, ROUNDING * abs(middle))
            self.z = (x - middle) / spread if spread > 0.0 else math.copysign(1e9, x) if x else 0.0
            far = 0 if abs(self.z) < self.several else 1 if self.z > 0 else -1
            self._row = self._row + far if far and self._row * far >= 0 else far
        if len(ordered) == self.window:
            del ordered[bisect_left(ordered, self._newest.pop(0))]
        self._newest.append(x)
        insort(ordered, x)
        return self.z

    def state_dict(self) -> dict[str, Any]:
        """JSON-able state."""
        return {"newest": list(self._newest), "row": self._row, "z": self.z, "nonfinite": self.nonfinite}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self._newest, self._sorted = list(state["newest"]), sorted(state["newest"])
        self._row, self.z, self.nonfinite = state["row"], state["z"], state["nonfinite"]


def _quantile(ordered: Sequence[float], q: float) -> float:
    place = q * (len(ordered) - 1)
    low = int(place)
    here = ordered[low]
    return here + (place - low) * (ordered[min(low + 1, len(ordered) - 1)] - here)
