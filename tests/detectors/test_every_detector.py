"""What all detectors have in common: a restart anywhere is invisible, NaN is counted, a constant is no alarm, memory is bounded."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainvitals.detectors.gain import Gain
from trainvitals.detectors.gap import Gap
from trainvitals.detectors.invariant import Invariant
from trainvitals.detectors.level import Level
from trainvitals.detectors.rate import Rate
from trainvitals.detectors.shift import Shift
from trainvitals.detectors.spike import Spike
from trainvitals.detectors.trend import Trend


class _Difference:
    """A gap that is fed one number, so that all are fed alike."""

    def __init__(self) -> None:
        self.of = Gap()
        self.state_dict, self.load_state_dict = self.of.state_dict, self.of.load_state_dict

    def add(self, x: float) -> object:
        return self.of.add(x, 0.25)

    @property
    def nonfinite(self) -> int:
        return self.of.nonfinite


class _Share:
    """A rate that is fed any number: a share is what a number is to 1."""

    def __init__(self) -> None:
        self.of = Rate(0.1)
        self.state_dict, self.load_state_dict = self.of.state_dict, self.of.load_state_dict

    def add(self, x: float) -> object:
        return self.of.add(min(1.0, abs(x))) if math.isfinite(x) else self.of.add(x)

    @property
    def nonfinite(self) -> int:
        return self.of.nonfinite


MAKE: dict[str, Callable[[], Any]] = {
    "invariant": lambda: Invariant(-1.0, 1.0),
    "spike": lambda: Spike(20),
    "spike of the logarithm": lambda: Spike(20, log=True),
    "level": lambda: Level(1.0),
    "level against the start": lambda: Level(1.5, reference=9),
    "shift": lambda: Shift(1, 40),
    "shift, decimated": lambda: Shift(-1, 40, every=3),
    "trend": lambda: Trend(2),
    "rate": _Share,
    "gap": _Difference,
    "gain": Gain,
}


def said(detector: Any, x: float) -> tuple[object, ...]:
    """All that a detector says about a sample."""
    found = detector.add(x)
    return found, getattr(detector, "alarm", None), getattr(detector, "evidence", None), detector.z() if isinstance(detector, Trend) else None


samples = st.one_of(st.floats(-10, 10), st.floats(0.5, 0.6), st.sampled_from([0.0, 0.5, 1.0, math.nan, math.inf, -math.inf]))


@pytest.mark.parametrize("name", MAKE)
@settings(max_examples=30, deadline=None)
@given(st.lists(samples, max_size=40), st.integers(0, 200), st.integers(0, 2**16))
def test_a_restart_anywhere_is_invisible(name: str, drawn: list[float], stop: int, seed: int) -> None:
    source = random.Random(seed)
    xs = [*(source.gauss(0, 1) for _ in range(100)), *drawn, *(source.gauss(0.5, 1) for _ in range(60))]
    straight = MAKE[name]()
    heard = [said(straight, x) for x in xs]
    before, after = MAKE[name](), MAKE[name]()
    again = [said(before, x) for x in xs[:stop]]
    after.load_state_dict(json.loads(json.dumps(before.state_dict())))
    assert repr(again + [said(after, x) for x in xs[stop:]]) == repr(heard)
    assert after.state_dict() == straight.state_dict()


@pytest.mark.parametrize("name", MAKE)
def test_nan_is_counted_and_changes_nothing_else(name: str) -> None:
    source = random.Random(5)
    clean, dirty = MAKE[name](), MAKE[name]()
    for at in range(300):
        x = abs(source.gauss(0, 1)) + 0.01
        if at % 7 == 0:
            dirty.add((math.nan, math.inf, -math.inf)[at // 7 % 3])
        clean.add(x)
        dirty.add(x)
    assert (clean.nonfinite, dirty.nonfinite) == (0, 43)
    known, expected = dirty.state_dict(), clean.state_dict()
    for own in ("nonfinite", "first") if name == "invariant" else ("nonfinite",):  # its `first` counts all samples
        del known[own], expected[own]
    assert known == expected


@pytest.mark.parametrize("value", [0.0, 1.0, -3.5e-7, 0.1, 1e9])
def test_a_constant_is_no_alarm(value: float) -> None:
    """Nor is one whose last digit flickers."""
    spike, up, down, trend, gap, gain = Spike(), Shift(1), Shift(-1), Trend(1), Gap(), Gain()
    for at in range(2_000):
        flicker = value * (1 + 2e-16 * (at % 3))
        assert spike.add(flicker) is not None or at < 16
        assert not spike.alarm
        assert (up.add(value) or 0.0) <= 0.0 >= (down.add(value) or 0.0)
        trend.add(value)
        ends = gap.add(value, value)
        assert gain.add(value) in (None, (0.0, 0.0))
    assert (up.evidence, trend.z(), ends, gain.ends) == (down.evidence, 0.0, (0.0, 0.0), (0.0, 0.0))


@pytest.mark.parametrize("name", MAKE)
def test_memory_is_bounded(name: str) -> None:
    source, detector = random.Random(1), MAKE[name]()
    for _ in range(3_000):
        detector.add(source.gauss(0, 1))
    assert len(json.dumps(detector.state_dict())) < 3_000
