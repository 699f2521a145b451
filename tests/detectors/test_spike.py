"""Spike: equal to quantiles computed anew, free of unit and level, and it says so exactly when z does."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainvitals.detectors.spike import LEAST, Spike


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-100, 100), min_size=20, max_size=120), st.sampled_from([16, 20, 64]))
def test_z_equals_computing_it_anew(xs: list[float], window: int) -> None:
    spike = Spike(window, floor=1e-3)
    for at, x in enumerate(xs):
        z = spike.add(x)
        if at < LEAST:
            assert z is None
            continue
        low, middle, high = np.quantile(xs[max(0, at - window) : at], [0.25, 0.5, 0.75])
        spread = max((high - low) / 1.349, 1e-3, 1e-6 * abs(middle))
        assert z == pytest.approx((x - middle) / spread, rel=1e-9, abs=1e-6)


@pytest.mark.parametrize(("scale", "shift"), [(3.0, 0.0), (1e-6, 0.0), (1.0, 50.0), (-2.0, 5.0)])
def test_unit_and_level_do_not_matter(scale: float, shift: float) -> None:
    source = random.Random(4)
    one, other = Spike(), Spike()
    for _ in range(500):
        x = source.gauss(0, 1)
        z, same = one.add(x), other.add(scale * x + shift)
        assert (z is None and same is None) or same == pytest.approx(math.copysign(1, scale) * z, rel=1e-6)  # type: ignore[operator]


def test_the_logarithm_takes_growth_for_distance() -> None:
    """The same factor is the same z at any level, and what has no logarithm is counted."""
    source = random.Random(4)
    one, other = Spike(log=True), Spike(log=True)
    for _ in range(200):
        x = math.exp(source.gauss(0, 1))
        z, same = one.add(x), other.add(1e4 * x)
        assert (z is None and same is None) or same == pytest.approx(z, abs=1e-6)
    assert (one.add(0.0), one.add(-1.0), one.nonfinite) == (None, None, 2)


def test_one_far_or_three_less_far_on_one_side() -> None:
    def after(*zs: float) -> list[bool]:
        spike = Spike(64)
        for at in range(65):
            spike.add((-1.0, 0.0, 1.0)[at % 3])  # median 0, quartiles -1 and 1, so one spread is 2 / 1.349
        found = []
        for z in zs:
            spike.add(z * 2 / 1.349)
            found.append(spike.alarm)
        return found

    assert after(8.5, 0.0) == [True, False]
    assert after(7.0, 5.0, 4.5, 0.0) == [False, False, True, False]
    assert after(-7.0, -5.0, -4.5) == [False, False, True]
    assert after(5.0, 5.0, -5.0, 5.0, 5.0) == [False] * 5
    assert after(5.0, 5.0, 0.0, 5.0) == [False] * 4


def test_a_last_digit_off_a_constant_is_no_spike_and_a_step_off_it_is() -> None:
    for value, expected in ((0.1 * (1 + 1e-12), False), (0.101, True)):
        spike = Spike()
        for _ in range(64):
            spike.add(0.1)
        spike.add(value)
        assert spike.alarm is expected


def test_a_spike_does_not_hide_the_next() -> None:
    source, spike = random.Random(1), Spike()
    found = []
    for at in range(300):
        spike.add(30.0 if at % 20 == 19 else source.gauss(0, 1))
        found.append(spike.alarm)
    assert [at for at, alarm in enumerate(found) if alarm] == list(range(19, 300, 20))
