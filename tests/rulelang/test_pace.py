"""How often a condition is looked at, and how far back it looks."""

from __future__ import annotations

import pytest

from trainvitals.events import CATALOGUE
from trainvitals.rulelang.compile import Binder, RunInfo
from trainvitals.rulelang.errors import Where
from trainvitals.rulelang.expr import Expr, parse
from trainvitals.rulelang.pace import PACES, pace, reach
from trainvitals.rulelang.windows import Store


def expr(text: str) -> Expr:
    return parse(text, Where("rule.yaml", 1, 1, text))


@pytest.mark.parametrize(
    ("text", "updates"),
    [
        ("policy.entropy > 1", 1),
        ("mean(policy.entropy, updates=40) > 1", 20),
        ("mean(policy.entropy, updates=40) > mean(policy.kl_ref, updates=20)", 10),
        ("mean(policy.entropy, updates=40) > frozen_median(policy.entropy, updates=20)", 20),
        ("mean(policy.entropy, updates=40) > 1 and reward.mean > 0", 1),
        ("mean(policy.entropy, updates=width) > 1", 10),
        ("mean(policy.entropy, updates=4) > 1", 2),
        ("mean(policy.entropy, updates=3) > 1", 1),
        ("mean(policy.entropy, updates=100000) > 1", max(PACES)),
        ("mean(policy.entropy, points=50) > 1", 1),
        ("level > 1", 20),
        ("mean(policy.entropy, updates=40) > policy.clip_low", 20),
        ("mean(policy.entropy, updates=40) > 1 or run.step > 100", 20),
        ("nonfinite_count(optim.loss, updates=30) > 0", max(PACES)),
        ("seconds_since(update_end) > 5", 1),
        ("firing('x')", 1),
        ("mean(policy.entropy, updates=40) > 1 if not has(policy.ratio_mean) else policy.ratio_mean > 1", 20),
    ],
)
def test_a_calm_condition_is_looked_at_every_half_of_its_narrowest_window(text: str, updates: int) -> None:
    """Signals read directly, times and other rules are looked at on every update; what only news can change, rarely."""
    lets = {"level": expr("median(policy.entropy, updates=50)")}
    binder = Binder(Store(CATALOGUE), config={}, run=RunInfo(), absent=frozenset({"policy.ratio_mean"}))
    assert pace(binder.bind(expr(text), {"width": 30.0}, lets).narrowest) == updates


def test_paces_divide_each_other() -> None:
    """So rules are looked at together, and most updates pass without a look."""
    assert all(longer % shorter == 0 for longer, shorter in ((20, 10), (10, 5), (20, 2), (10, 2)))
    assert set(PACES) == {20, 10, 5, 2}


def test_the_reach_adds_up_what_lies_behind_a_window() -> None:
    lets = {"smooth": expr("median(policy.entropy, updates=10)")}
    assert reach(expr("reward.mean > 0"), lets, {}) == 0
    assert reach(expr("mean(policy.entropy, updates=40) > 1"), lets, {}) == 40
    assert reach(expr("trailing_median(smooth, skip=5, updates=60) > smooth"), lets, {}) == 75
