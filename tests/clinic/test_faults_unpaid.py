"""A reward function with weight 0 is a checker that costs nothing: it tells when the paid one is gamed."""

from __future__ import annotations

from typing import Any

import pytest

from trainvitals.integrations import tiny

pytestmark = [pytest.mark.slow, pytest.mark.trl]

FAST = {"learning_rate": 5e-4, "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 5, "max_steps": 110, "reward_weights": [1.0, 0.0]}


def share_of_e(completions: list[Any], **kwargs: Any) -> list[float]:
    """What is paid: the share of one letter."""
    return [text.count("e") / max(1, len(text)) for text in map(tiny.text_of, completions)]


def variety(completions: list[Any], **kwargs: Any) -> list[float]:
    """What is only measured: how many different letters an answer has."""
    return [len(set(tiny.text_of(text))) / 8 for text in completions]


def test_a_measured_reward_that_falls_while_the_paid_one_rises(tmp_path, observe):
    patient = observe(tiny.grpo(str(tmp_path), reward=[share_of_e, variety], **FAST))
    assert 30 < patient.loud["unpaid-reward-falls"] <= 110
    line = next(line for line in patient.said if "(unpaid-reward-falls" in line)
    assert "component=variety" in line


def test_a_measured_reward_that_rises_with_the_paid_one(tmp_path, observe):
    patient = observe(tiny.grpo(str(tmp_path), reward=[share_of_e, tiny.vowels], **FAST))
    assert patient.rewards[-1] > patient.rewards[0] + 0.2
    assert "unpaid-reward-falls" not in patient.fired


def test_without_weights_nothing_is_unpaid(tmp_path, observe):
    patient = observe(tiny.grpo(str(tmp_path), reward=[share_of_e, variety], **{**FAST, "reward_weights": [1.0, 0.1]}))
    assert "unpaid-reward-falls" not in patient.fired
