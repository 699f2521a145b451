"""Level: k of n, the limit against the run's own start, both sides."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainvitals.detectors.level import Level


@given(st.lists(st.floats(-2, 2), max_size=60), st.integers(1, 6), st.integers(0, 4))
def test_it_alarms_exactly_when_k_of_the_newest_n_are_beyond(xs: list[float], hits: int, more: int) -> None:
    level = Level(0.5, hits=hits, of=hits + more)
    for at, x in enumerate(xs):
        assert level.add(x) is (x > 0.5)
        assert level.alarm is (sum(value > 0.5 for value in xs[max(0, at + 1 - hits - more) : at + 1]) >= hits)


@given(st.lists(st.floats(0.1, 2), min_size=12, max_size=60), st.sampled_from([0.125, 4.0, 1024.0]))
def test_a_relative_limit_knows_no_unit(xs: list[float], unit: float) -> None:
    one, other = Level(1.5, reference=9), Level(1.5, reference=9)
    assert [one.add(x) for x in xs] == [other.add(x * unit) for x in xs]


def test_the_reference_is_the_median_of_the_start_and_is_not_judged() -> None:
    level = Level(0.5, side=-1, hits=2, of=3, reference=5)
    assert [level.add(x) for x in (1.0, math.nan, 9.0, 2.0, 3.0, 0.0)] == [None] * 6
    assert level.level == 1.0
    assert [(level.add(x), level.alarm) for x in (0.9, 1.1, 0.8)] == [(True, False), (False, False), (True, True)]


def test_independent_samples_alarm_as_often_as_the_binomial_says() -> None:
    """P(at least 4 of 5) with p = 0.2 is 0.00672."""
    source, level = random.Random(2), Level(0.8)
    alarms = 0
    for _ in range(100_000):
        level.add(source.random())
        alarms += level.alarm
    assert alarms / 100_000 == pytest.approx(0.00672, rel=0.12)


@pytest.mark.parametrize(("side", "hits", "of"), [(0, 1, 1), (1, 0, 3), (1, 4, 3)])
def test_what_makes_no_sense_is_refused(side: int, hits: int, of: int) -> None:
    with pytest.raises(ValueError, match="side is 1 or -1"):
        Level(1.0, side, hits=hits, of=of)
