"""The onset of a finding: where the signal changed, not where a window had followed it."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path

import pytest

from trainvitals.engine import Engine
from trainvitals.findings import Finding, Verdict
from trainvitals.items import Frame, Item
from trainvitals.rulelang.loader import RuleSet, load_rules

RULE = """
id: reward-low
code: RWD900
version: 1.0.0
title: The reward is low
category: collapse
severity: error
let:
  now: median(reward.mean, updates=20)
when: {when}
sustain: {{hits: 2, of: 2}}
message: "The reward is {{now:num}}."
advice: Go back.
docs: {{explain: It is low., look_first: The reward., false_positives: [None.], references: [this test]}}
"""


def rules(folder: Path, when: str = "now < 0.5") -> RuleSet:
    path = folder / "reward-low.yaml"
    path.write_text(RULE.format(when=when))
    return load_rules([path])


def frames(values: Iterable[float], first: int = 1, every: int = 1) -> list[Item]:
    return [Frame(step, {"reward.mean": value} if step % every == 0 else {}) for step, value in enumerate(values, first)]


def opened(engine: Engine, items: Iterable[Item]) -> tuple[Finding, Verdict]:
    records = [record for item in items for record in engine.observe(item)]
    found = next(one for one in records if isinstance(one, Finding) and one.state == "firing")
    return found, next(one for one in records if isinstance(one, Verdict) and one.state == "collapsed")


def noisy(level: float, count: int, seed: int) -> list[float]:
    draw = random.Random(seed)
    return [level + draw.gauss(0, 0.05) for _ in range(count)]


@pytest.mark.parametrize("every", [1, 4])
def test_a_step_is_dated_to_the_update_of_the_step(tmp_path: Path, every: int) -> None:
    found, verdict = opened(Engine(rules(tmp_path)), frames([1.0] * 60 + [0.0] * 40, every=every))
    assert found.step is not None
    assert found.step > 70
    assert found.onset_step == (61 if every == 1 else 64)  # the first sample of the new level
    assert verdict.last_healthy_step == found.onset_step - 1


@pytest.mark.parametrize("seed", range(5))
def test_noise_moves_it_by_little(tmp_path: Path, seed: int) -> None:
    found, _ = opened(Engine(rules(tmp_path)), frames(noisy(0.8, 60, seed) + noisy(0.3, 40, seed + 100)))
    assert found.onset_step is not None
    assert 59 <= found.onset_step <= 63


def test_what_rose_and_then_fell_is_ill_since_it_fell(tmp_path: Path) -> None:
    rise = [0.5 + at / 60 for at in range(30)]
    found, _ = opened(Engine(rules(tmp_path)), frames([1.0] * 40 + rise + [0.0] * 40))
    assert found.onset_step == 71


def test_a_condition_without_a_window_began_with_its_first_hit(tmp_path: Path) -> None:
    found, _ = opened(Engine(rules(tmp_path, "reward.mean < 0.5")), frames([1.0, 0.9] * 20 + [0.0] * 5))
    assert found.onset_step == 41


def test_it_is_not_dated_to_a_change_before_what_the_condition_looks_at(tmp_path: Path) -> None:
    """The level left 1.0 for 0.6 long before it went below 0.5: only what lies within the window counts."""
    found, _ = opened(Engine(rules(tmp_path)), frames([1.0] * 60 + noisy(0.6, 60, 1) + [0.45] * 40))
    assert found.onset_step is not None
    assert 119 <= found.onset_step <= 122


def test_it_stays_the_same_over_records_and_checkpoints(tmp_path: Path) -> None:
    engine = Engine(rules(tmp_path))
    found, _ = opened(engine, frames([1.0] * 60 + [0.0] * 20))
    again = Engine(rules(tmp_path))
    again.load_state_dict(json.loads(json.dumps(engine.state_dict())))
    for one in (engine, again):
        records = [record for item in frames([1.0] * 60, first=81) for record in one.observe(item)]
        resolved = next(record for record in records if isinstance(record, Finding) and record.state == "resolved")
        assert resolved.onset_step == found.onset_step == 61


def test_a_second_episode_has_an_onset_of_its_own(tmp_path: Path) -> None:
    engine = Engine(rules(tmp_path))
    records = [record for item in frames([1.0] * 60 + [0.0] * 40 + [1.0] * 60 + [0.0] * 40) for record in engine.observe(item)]
    assert [one.onset_step for one in records if isinstance(one, Finding) and one.state == "firing"] == [61, 161]
