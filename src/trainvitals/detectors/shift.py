"""Shift: evidence that a signal has moved to one side of its own recent past, whatever its distribution."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from trainvitals.detectors.autocorrelation import lag1

STAKE = 0.9
"""Share of the stake of the linear bet."""
BETS = 2
"""Bets that are averaged: the linear one grows soonest on small shifts, the other in five samples on large ones."""
LEARN = 64
"""Samples on which the autocorrelation is estimated. They become reference and are not judged."""
CAP = 8.0
"""Largest evidence, so that a signal that has found its new level is forgiven in about a hundred samples."""
_CAP = CAP * math.log(10.0)
_LONG = 64
"""From so many samples on it pays to rank them at once."""
_BLOCK = 1024
"""As many at once as the memory of a matrix is worth."""
_MANY = 40
"""Samples to one at most: beyond an autocorrelation of 0.95 only the order of magnitude is known."""


class Shift:
    """Rank e-CUSUM. Fair bets on the next rank, each started anew when it is lost; what they have grown to is evidence.

    ``p`` = share of the newest ``window`` samples and x itself that lie beyond x (ties count half), spread evenly over 0 to 1 while the
    samples are exchangeable. A bet pays ``e(p) = 1 + 0.9 (1 - 2 p)`` or ``e(p) = 1 / (2 sqrt p)``, both 1 on average at most; it grows as
    ``M_t = max(M_(t-1), 1) * e(p_t)``; evidence = log10 of the mean of both M. An alarm at ``evidence >= log10(1 / alpha)`` comes on average
    no sooner than after 1/alpha samples of exchangeable noise of any distribution. The mean of several such M (not of their
    logarithms) keeps that promise.

    Sources: Vovk, Nouretdinov & Gammerman, "Testing exchangeability on-line" (ICML 2003) for bets on ranks, the power bet among them;
    Shin, Ramdas & Rinaldo, "E-detectors" (arXiv 2203.03532) for the run length; notes/pathologies.md 6.2. The proof needs ranks among *all*
    earlier samples and no ties; with the newest 30 to 200, simulated run lengths are nine times 1/alpha and more. A frozen
    reference is no alternative: against the luck of its own 50 samples the evidence of a healthy run may grow for ever. Both are in
    tests/detectors/test_shift.py. With the linear bet alone (stakes 0.5 and 0.9, as in the notes) a shift of 2 standard
    deviations takes 17 samples instead of 9, one of 4 takes 15 instead of 5, with no fewer false alarms.

    Autocorrelated samples are not exchangeable. So the lag-1 autocorrelation r of the first 64 samples decides how many are left
    out: every ``ceil((1 + r) / (1 - r))``-th counts when r > 0.3. Whitening instead hides the shifts (notes/pathologies.md 6.2).

    Simulated at alpha 1e-4, so 0.1 are promised (docs/detectors.md): 0.01 false alarms per 1,000 samples of white and of heavy-tailed noise,
    0.04 at an autocorrelation of 0.5 and of 0.9; delay in white noise 24, 10 and 5 samples after 1, 2 and 4 standard deviations, 30 for
    a drift by 0.05 a sample; in autocorrelated noise so many times longer as samples are left out. A signal that is *meant* to rise does shift up: watch the side that is bad.

    Args:
        side: 1 for upwards, -1 for downwards.
        window: Samples of the past that x is ranked among (of those that are not left out).
        every: Take every so manieth sample; None: learned from the first 64.
    """

    __slots__ = ("_learning", "_logs", "_newest", "_sorted", "_wait", "every", "evidence", "nonfinite", "side", "window")

    def __init__(self, side: int, window: int = 200, every: int | None = None) -> None:
        if side not in (1, -1) or window < 1 or (every is not None and every < 1):
            msg = f"side is 1 or -1, window and every are at least 1; here they are {side}, {window}, {every}"
            raise ValueError(msg)
        self.side = side
        self.window = window
        self.every = every
        self.evidence: float | None = None
        """log10 of the evidence; None until the first sample was judged."""
        self.nonfinite = 0
        self._learning: list[float] = []
        self._newest: list[float] = []
        self._sorted: list[float] = []
        self._logs = [0.0] * BETS
        self._wait = 0

    def add(self, x: float) -> float | None:
        """Evidence after this sample, between -1 and 8; None while there is none."""
        self.extend((x,))
        return self.evidence

    def extend(self, xs: Iterable[float]) -> None:
        """`add` many, for less: the evidence is reckoned once, after the last."""
        xs = list(xs)
        if len(xs) >= _LONG and self.every == 1 and len(self._newest) == self.window and math.isfinite(sum(xs)):
            for begin in range(0, len(xs), _BLOCK):
                self._extend(xs[begin : begin + _BLOCK])
            return
        ordered, newest, window, upwards = self._sorted, self._newest, self.window, self.side > 0
        stakes, gains = _stakes(window), []
        for x in xs:
            if x - x != 0.0:
                self.nonfinite += 1
            elif self.every is None:
                self._learn(x)
            elif self._wait > 0:
                self._wait -= 1
            else:
                self._wait = self.every - 1
                size = len(ordered)
                below = bisect_left(ordered, x)
                if size:
                    upto = bisect_right(ordered, x, below) if below < size and ordered[below] == x else below
                    place = (size - upto if upwards else below) * 2 + upto - below
                    gains.append(stakes[place] if size == window else _stake(place, size))
                newest.append(x)
                ordered.insert(below, x)
                if size == window:
                    del ordered[bisect_left(ordered, newest.pop(0))]
        if gains:
            self._bet(gains)

    def _extend(self, xs: list[float]) -> None:
        """`extend` by many finite samples of which each is judged, against a past that is full: all are ranked at once."""
        told = np.array(self._newest + xs)
        before, now = sliding_window_view(told[:-1], self.window).T, told[self.window :]  # a column for each sample
        beyond, equal = before > now if self.side > 0 else before < now, before == now
        places = (2 * beyond.view(np.int8).sum(axis=0, dtype=np.int32) + equal.view(np.int8).sum(axis=0, dtype=np.int32)).tolist()
        self._newest[:] = (self._newest + xs)[-self.window :]
        self._sorted[:] = sorted(self._newest)
        stakes = _stakes(self.window)
        self._bet([stakes[place] for place in places])

    def _bet(self, gains: list[tuple[float, float]]) -> None:
        """What both bets gained from one sample after the other, and the evidence after the last."""
        linear, power = self._logs
        for gained_linear, gained_power in gains:
            linear = gained_linear if linear < 0.0 else linear + gained_linear
            power = gained_power if power < 0.0 else power + gained_power
            if linear > _CAP:
                linear = _CAP
            if power > _CAP:
                power = _CAP
        self._logs = [linear, power]
        self.evidence = (max(linear, power) + math.log((1.0 + math.exp(-abs(linear - power))) / 2.0)) / math.log(10.0)

    def _learn(self, x: float) -> None:
        """The first samples tell how many are left out; those that are not are the first past."""
        self._learning.append(x)
        if len(self._learning) == LEARN:
            self.every = every = decimation(self._learning)
            self._newest += self._learning[LEARN - 1 :: -every][::-1][-self.window :]
            self._sorted[:] = sorted(self._newest)
            self._learning = []
            self._wait = every - 1

    def state_dict(self) -> dict[str, Any]:
        """JSON-able state."""
        return {
            "every": self.every, "evidence": self.evidence, "nonfinite": self.nonfinite, "learning": list(self._learning),
            "newest": list(self._newest), "logs": list(self._logs), "wait": self._wait,
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.every, self.evidence, self.nonfinite = state["every"], state["evidence"], state["nonfinite"]
        self._learning, self._newest, self._sorted = list(state["learning"]), list(state["newest"]), sorted(state["newest"])
        self._logs, self._wait = list(state["logs"]), state["wait"]


def _stake(place: int, size: int) -> tuple[float, float]:
    """What the logarithms of both bets gain when of ``size`` samples n lie beyond x and k are equal to it; ``place`` is 2 n + k."""
    p = (0.5 * place + 0.5) / (size + 1)
    return math.log1p(STAKE * (1.0 - 2.0 * p)), -0.5 * math.log(4.0 * p)


@lru_cache(maxsize=16)
def _stakes(size: int) -> list[tuple[float, float]]:
    """`_stake` of every place, for a window that is full: all that can happen to it."""
    return [_stake(place, size) for place in range(2 * size + 1)]


def decimation(values: list[float]) -> int:
    """Every so manieth sample is about independent: ``ceil((1 + r) / (1 - r))`` when the autocorrelation r > 0.3, else 1.

    r is freed of its bias, ``-(2 + 4 r) / n`` around a fitted line (Kendall 1954), without which 64 samples of an AR(1) process
    with 0.9 look like 0.81.
    """
    n = len(values)
    r = (lag1(values) + 2 / n) / (1 - 4 / n)
    if r <= 0.3:
        return 1
    return _MANY if r >= 0.95 else min(_MANY, math.ceil((1 + r) / (1 - r)))
