"""How often a condition is looked at, and how far back it looks."""

from __future__ import annotations

import pytest

from trainvitals.events import CATALOGUE
from trainvitals.rulelang.errors import Where
from trainvitals.rulelang.expr import Expr, parse
from trainvitals.rulelang.pace import LONGEST, pace, reach


def expr(text: str) -> Expr:
    return parse(text, Where("rule.yaml", 1, 1, text))


@pytest.mark.parametrize(
    ("text", "updates"),
    [
        ("policy.entropy > 1", 1),
        ("mean(policy.entropy, updates=40) > 1", 4),
        ("mean(policy.entropy, updates=40) > mean(policy.kl_ref, updates=20)", 2),
        ("mean(policy.entropy, updates=40) > frozen_median(policy.entropy, updates=20)", 4),
        ("mean(policy.entropy, updates=40) > 1 and reward.mean > 0", 1),
        ("mean(policy.entropy, updates=width) > 1", 3),
        ("mean(policy.entropy, updates=100000) > 1", LONGEST),
        ("nonfinite_count(optim.loss, updates=30) > 0", 1),
        ("mean(policy.entropy, points=50) > 1", 1),
        ("level > 1", 5),
        ("mean(policy.entropy, updates=40) > policy.clip_low", 4),
    ],
)
def test_a_condition_is_as_fast_as_its_narrowest_window(text: str, updates: int) -> None:
    """Signals read directly, times, other rules and non-finite values are looked at on every update."""
    lets = {"level": expr("median(policy.entropy, updates=50)")}
    assert pace(expr(text), lets, {"width": 30.0}, CATALOGUE) == updates


def test_the_reach_adds_up_what_lies_behind_a_window() -> None:
    lets = {"smooth": expr("median(policy.entropy, updates=10)")}
    assert reach(expr("reward.mean > 0"), lets, {}) == 0
    assert reach(expr("mean(policy.entropy, updates=40) > 1"), lets, {}) == 40
    assert reach(expr("trailing_median(smooth, skip=5, updates=60) > smooth"), lets, {}) == 75
