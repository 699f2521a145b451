"""Trend: equal to counting all pairs, with ties; memory does not pass for a trend."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainvitals.detectors.autocorrelation import lag1
from trainvitals.detectors.trend import BLOCKS, Trend, folded, mann_kendall, theil_sen

values = st.lists(st.one_of(st.floats(-100, 100), st.sampled_from([0.0, 1.0, 2.0])), min_size=3, max_size=BLOCKS)
tied = st.lists(st.sampled_from([0.0, 0.25, 0.5]), min_size=3, max_size=60)


def by_counting(xs: list[float]) -> float:
    """Mann-Kendall as the book has it."""
    n = len(xs)
    s = sum((late > early) - (late < early) for early, late in itertools.combinations(xs, 2))
    ties = sum(t * (t - 1) * (2 * t + 5) for t in (xs.count(x) for x in set(xs)))
    r = min(max(lag1(xs), 0.0), 0.9)
    return (s - (s > 0) + (s < 0)) / math.sqrt((n * (n - 1) * (2 * n + 5) - ties) / 18 * (1 + r) / (1 - r)) if s else 0.0


@settings(max_examples=150, deadline=None)
@given(st.one_of(values, tied))
def test_mann_kendall_equals_counting_all_pairs(xs: list[float]) -> None:
    assert mann_kendall(xs) == pytest.approx(by_counting(xs), rel=1e-12)


@settings(max_examples=100, deadline=None)
@given(st.one_of(values, tied), st.booleans())
def test_theil_sen_equals_the_median_of_all_slopes(xs: list[float], gaps: bool) -> None:
    places = [float(at * at if gaps else at) for at in range(len(xs))]
    slopes = [(xs[j] - xs[i]) / (places[j] - places[i]) for i, j in itertools.combinations(range(len(xs)), 2)]
    assert theil_sen(xs, places if gaps else None) == pytest.approx(float(np.median(slopes)), rel=1e-9, abs=1e-12)


@given(st.lists(st.floats(-10, 10), min_size=4, max_size=80))
def test_lag1_equals_numpy(xs: list[float]) -> None:
    at = np.arange(len(xs))
    rest = np.array(xs) - np.polyval(np.polyfit(at, xs, 1), at)
    if (rest**2).sum() > 1e-9:
        assert lag1(xs) == pytest.approx((rest[1:] * rest[:-1]).sum() / (rest**2).sum(), abs=1e-6)


@settings(deadline=None)
@given(st.lists(st.integers(-50, 50), min_size=5, max_size=60))
def test_unit_and_level_do_not_matter_and_backwards_is_minus(whole: list[int]) -> None:
    xs = [float(x) for x in whole]
    z, slope = mann_kendall(xs), theil_sen(xs)
    assert slope is not None
    assert mann_kendall([4 * x + 7 for x in xs]) == pytest.approx(z, rel=1e-9)
    assert mann_kendall([-x for x in xs]) == pytest.approx(-z, rel=1e-9)
    assert mann_kendall(xs[::-1]) == pytest.approx(-z, rel=1e-9)
    assert theil_sen([4 * x + 7 for x in xs]) == pytest.approx(4 * slope)
    assert theil_sen(xs[::-1]) == pytest.approx(-slope)


def test_under_permutation_z_is_about_standard_normal() -> None:
    source = random.Random(6)
    for xs in ([source.gauss(0, 1) for _ in range(40)], [float(source.random() < 0.3) for _ in range(60)]):
        zs = []
        for _ in range(1_500):
            source.shuffle(xs)
            zs.append(mann_kendall(xs))
        assert abs(np.mean(zs)) < 0.08
        assert 0.85 < np.std(zs) < 1.05  # below 1: the widening only ever widens
        assert np.mean(np.abs(zs) > 1.96) < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 1_500)


def test_a_quarter_of_wild_samples_does_not_turn_the_line() -> None:
    source = random.Random(2)
    xs = [0.5 * at + source.gauss(0, 1) + (1e6 if source.random() < 0.25 else 0.0) for at in range(90)]
    assert theil_sen(xs) == pytest.approx(0.5, rel=0.2) or 0.4 < (theil_sen(xs) or 0.0) < 0.8


def test_long_windows_are_folded_and_say_the_same() -> None:
    source = random.Random(2)
    xs = [0.01 * at + source.gauss(0, 1) for at in range(450)]
    assert (len(folded(xs)), folded(xs)[-1]) == (90, pytest.approx(sum(xs[-5:]) / 5))
    assert theil_sen(xs) == pytest.approx(0.01, rel=0.15)
    assert mann_kendall(xs) > 9
    assert theil_sen(xs, [3.0 * at for at in range(450)]) == pytest.approx((theil_sen(xs) or 0.0) / 3)


def test_too_little_to_say() -> None:
    assert (mann_kendall([1.0, 2.0]), theil_sen([1.0]), theil_sen([1.0, 2.0], [5.0, 5.0])) == (0.0, None, None)


def test_noise_rarely_looks_like_progress() -> None:
    """AR(0.9) noise, as real rewards are: at most a few of a hundred runs may be called improving."""
    wrong = 0
    for seed in range(100):
        source, trend, level = random.Random(seed), Trend(4), 0.0
        for _ in range(400):
            level = 0.9 * level + source.gauss(0, 1)
            trend.add(level)
        wrong += (trend.z() or 0.0) > 3.0
    assert wrong <= 3


@given(st.lists(st.one_of(st.floats(-1e3, 1e3), st.just(math.nan)), max_size=700), st.integers(1, 90))
def test_many_at_once_are_as_one_by_one(values: list[float], some: int) -> None:
    one, many = Trend(2), Trend(2)
    for value in values:
        one.add(value)
    for at in range(0, len(values), some):
        many.extend(values[at : at + some])
    assert repr(one.state_dict()) == repr(many.state_dict())


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=80), st.booleans())
def test_the_slope_is_the_median_of_all_pairs(values: list[float], flat: bool) -> None:
    values = [round(value) / 4 for value in values] if flat else values
    slopes = [(values[late] - values[early]) / (late - early) for late in range(len(values)) for early in range(late)]
    assert repr(theil_sen(values)) == repr(float(np.median(np.array(slopes))))


def test_the_memory_of_a_run_is_bounded_and_still_sees_the_trend() -> None:
    trend = Trend(4)
    for step in range(100_000):
        trend.add(step * 1.0)
    assert len(trend.blocks) < Trend.LIMIT
    assert (trend.z() or 0) > 3
