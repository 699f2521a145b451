"""Invariant: exact bounds, the first breach, NaN neither keeps nor breaks."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from trainvitals.detectors.invariant import Invariant


@given(st.lists(st.one_of(st.floats(-3, 3), st.just(math.nan)), max_size=50))
def test_it_says_exactly_what_a_comparison_says(xs: list[float]) -> None:
    kept = Invariant(-1.0, 2.0)
    said = [kept.add(x) for x in xs]
    assert said == [None if math.isnan(x) else -1.0 <= x <= 2.0 for x in xs]
    assert (kept.broken, kept.nonfinite) == (said.count(False), said.count(None))
    assert kept.first == (said.index(False) if False in said else None)


def test_the_bounds_belong_to_it() -> None:
    agreed = Invariant(0.1, 0.1)
    assert agreed.add(0.1) is True
    assert agreed.add(math.nextafter(0.1, 1)) is False
    assert agreed.first == 1
