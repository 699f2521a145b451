"""Rate: the likelihood ratio by hand, its two promises on simulated shares, and what it needs to see a change."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainvitals.detectors.rate import ODDS, Rate


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=40), st.floats(0.01, 0.9), st.sampled_from([1, -1]))
def test_without_restart_it_is_the_mixed_likelihood_ratio(counts: list[tuple[int, int]], limit: float, side: int) -> None:
    rate = Rate(limit, side, restart=False)
    for hits, misses in counts:
        rate.add(hits, hits + misses)
    hits, misses = sum(one for one, _ in counts), sum(other for _, other in counts)
    ratios = []
    for ratio in ODDS:
        odds = limit / (1 - limit) * (ratio if side > 0 else 1 / ratio)
        share = odds / (1 + odds)
        ratios.append((share / limit) ** hits * ((1 - share) / (1 - limit)) ** misses)
    assert rate.evidence == pytest.approx(math.log10(np.mean(ratios)), rel=1e-9, abs=1e-9)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=40), st.floats(0.02, 0.9))
def test_too_few_is_too_many_of_the_others(hits: list[int], limit: float) -> None:
    few, many = Rate(limit, -1), Rate(1 - limit, 1)
    for count in hits:
        assert few.add(count, 4) == pytest.approx(many.add(4 - count, 4), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("limit", [0.02, 0.2, 0.5])
def test_each_factor_is_a_fair_bet_for_any_share_in_a_batch(limit: float) -> None:
    """The expectation of the factor is at most 1 for counts, and for shares that are not counts at all."""
    draw = np.random.default_rng(3)
    for ratio in ODDS:
        odds = limit / (1 - limit) * ratio
        q = odds / (1 + odds)
        shares = np.clip(draw.beta(2 * limit, 2 * (1 - limit), 200_000), 0, 1)
        factors = np.exp(shares * math.log(q / limit) + (1 - shares) * math.log((1 - q) / (1 - limit)))
        assert factors.mean() <= 1.0 + 4 * factors.std() / math.sqrt(len(factors))
        assert limit * q / limit + (1 - limit) * (1 - q) / (1 - limit) == pytest.approx(1.0)


def test_a_false_alarm_ever_has_probability_alpha_at_most() -> None:
    """400 runs of 1,000 trials at the limit itself, alpha 0.05: 20 expected at most, with 3 standard errors 34."""
    source, wrong = random.Random(7), 0
    for _ in range(400):
        rate = Rate(0.05, restart=False)
        wrong += any((rate.add(source.random() < 0.05) or 0.0) >= math.log10(20) for _ in range(1_000))
    assert wrong <= 34


def test_with_restart_the_mean_run_is_at_least_one_in_alpha() -> None:
    """alpha 0.01: the mean of 200 run lengths must not be below 100 by more than three standard errors."""
    source, runs = random.Random(8), []
    for _ in range(200):
        rate, count = Rate(0.1), 0
        while (rate.evidence or 0.0) < 2.0:
            rate.add(source.random() < 0.1)
            count += 1
        runs.append(count)
    assert np.mean(runs) + 3 * np.std(runs) / math.sqrt(len(runs)) >= 100.0


def test_after_a_long_healthy_time_only_the_restart_sees_a_change_soon() -> None:
    source = random.Random(9)
    watch, whole = Rate(0.05), Rate(0.05, restart=False)
    for _ in range(2_000):
        hit = source.random() < 0.02
        watch.add(hit)
        whole.add(hit)
    needed = 0
    while (watch.evidence or 0.0) < 4.0:
        hit = source.random() < 0.3
        watch.add(hit)
        whole.add(hit)
        needed += 1
    assert needed < 80
    assert (whole.evidence or 0.0) < -10.0


def test_impossible_counts_and_limits_are_refused() -> None:
    with pytest.raises(ValueError, match="3 hits of 2"):
        Rate(0.5).add(3, 2)
    for limit, side in ((0.0, 1), (1.0, 1), (0.5, 0)):
        with pytest.raises(ValueError, match="limit lies between"):
            Rate(limit, side)
