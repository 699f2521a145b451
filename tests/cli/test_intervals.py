"""Intervals against published values and against their own definition."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainvitals.cli.intervals import at_most, needed, poisson, sign_test, wilson


@pytest.mark.parametrize(
    ("hits", "of", "low", "high"),
    [
        # Newcombe 1998 (Stat. Med. 17:857), table I, method 3: the score interval.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_shares_as_published(hits: int, of: int, low: float, high: float) -> None:
    assert wilson(hits, of) == pytest.approx((low, high), abs=6e-5)


@pytest.mark.parametrize(
    ("events", "low", "high"),
    # Garwood 1936, as in every table of exact Poisson limits.
    [(0, 0.0, 3.689), (1, 0.0253, 5.572), (5, 1.623, 11.668), (10, 4.795, 18.390), (100, 81.364, 121.627)],
)
def test_rates_as_published(events: int, low: float, high: float) -> None:
    assert poisson(events, 1.0) == pytest.approx((low, high), abs=6e-4)
    assert poisson(events, 2000.0)[1] == pytest.approx(high / 2000, rel=1e-3)


def test_nothing_tried_says_nothing() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    assert poisson(0, 0.0) == (0.0, math.inf)
    for wrong in ((3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="hits of"):
            wilson(*wrong)
    with pytest.raises(ValueError, match="events in"):
        poisson(-1, 1.0)


@given(st.integers(1, 400).flatmap(lambda of: st.tuples(st.integers(0, of), st.just(of))))
def test_a_share_lies_in_its_interval_and_ends_mirror(pair: tuple[int, int]) -> None:
    hits, of = pair
    low, high = wilson(hits, of)
    assert 0.0 <= low <= hits / of <= high <= 1.0
    assert wilson(of - hits, of) == pytest.approx((1 - high, 1 - low), abs=1e-12)
    assert wilson(hits * 10, of * 10)[1] - wilson(hits * 10, of * 10)[0] < high - low  # more runs say more


@given(st.integers(0, 300))
@settings(max_examples=30, deadline=None)
def test_a_rate_interval_is_exact(events: int) -> None:
    low, high = poisson(events, 1.0)
    assert low <= events <= high
    assert at_most(events, high) == pytest.approx(0.025, rel=1e-6)
    if events:
        assert 1 - at_most(events - 1, low) == pytest.approx(0.025, rel=1e-5)


def test_discordant_pairs() -> None:
    assert sign_test(0, 0) == 1.0
    assert sign_test(5, 5) == 1.0
    assert sign_test(0, 6) == pytest.approx(2 / 64)
    assert sign_test(2, 8) == pytest.approx(2 * (1 + 10 + 45) / 1024)
    assert sign_test(2, 8) == sign_test(8, 2)


@given(st.floats(0.001, 0.5))
def test_needed_trials_are_just_enough(share: float) -> None:
    enough = needed(share)
    assert wilson(0, enough)[1] <= share + 1e-9
    assert enough == 1 or wilson(0, enough - 1)[1] > share - 1e-9
