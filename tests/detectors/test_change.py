"""Change: the statistic by its definition, what ranks promise, and how often chance looks like a change."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainvitals.detectors.change import change

numbers = st.lists(st.integers(-5, 5).map(float), min_size=2, max_size=30)


def by_hand(xs: list[float]) -> dict[int, float]:
    """z of every place, pair by pair."""
    n = len(xs)
    found = {}
    for t in range(1, n):
        u = sum((later > earlier) - (later < earlier) for earlier in xs[:t] for later in xs[t:])
        found[t] = u / math.sqrt(t * (n - t) * (n + 1) / 3)
    return found


@given(numbers)
def test_it_is_the_largest_of_the_pairwise_statistics(xs: list[float]) -> None:
    all_of_them = by_hand(xs)
    found = change(xs)
    if found is None:
        assert not any(all_of_them.values())
    else:
        assert found.z == pytest.approx(all_of_them[found.at])
        assert abs(found.z) == pytest.approx(max(map(abs, all_of_them.values())))
        before, after = xs[: found.at], xs[found.at :]
        assert found.clean == (max(before) < min(after) or min(before) > max(after))


@given(numbers)
def test_only_ranks_count(xs: list[float]) -> None:
    found, stretched, turned = change(xs), change([x**3 + 7 for x in xs]), change([-x for x in xs])
    assert found == stretched
    assert turned == (None if found is None else (found.at, -found.z, found.clean))


@given(st.integers(3, 40), st.integers(3, 40), st.booleans())
def test_a_clean_step_is_found_where_it_is(before: int, after: int, up: bool) -> None:
    found = change([0.0] * before + [1.0 if up else -1.0] * after)
    assert found is not None
    assert found.at == before
    assert (found.z > 0) == up


@pytest.mark.parametrize("xs", [[], [1.0], [2.0] * 10])
def test_nothing_divides_what_does_not_vary(xs: list[float]) -> None:
    assert change(xs) is None


def test_chance_looks_like_a_change_in_one_of_twenty_sequences_of_forty() -> None:
    draw = random.Random(1)
    found = [change([draw.gauss(0, 1) for _ in range(40)]) for _ in range(2000)]
    assert 0.03 < sum(one is not None and abs(one.z) > 2.8 for one in found) / 2000 < 0.06


def test_a_step_of_two_standard_deviations_is_found_within_two_samples() -> None:
    draw = random.Random(2)
    near = 0
    for _ in range(200):
        found = change([draw.gauss(0, 1) for _ in range(25)] + [draw.gauss(2, 1) for _ in range(8)])
        near += found is not None and abs(found.at - 25) <= 2
    assert near > 140
