"""A reward that can be gamed, really trained on: the held-out checker sees it, in a run without any evaluation of its own.

The task is to answer with many different vowels. The faulty reward pays for the share of vowels and forgot "different": at first
both rise together, then the policy finds that "aa" is paid as well as "aeiou", and the held-out score falls back to the start.
"""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from tests.clinic.ward.cases_grpo import with_reference

from trainvitals import HeldoutProbe
from trainvitals.integrations import tiny

pytestmark = [pytest.mark.slow, pytest.mark.trl]

EVERY = 10
SETTINGS = {"max_steps": 100, "learning_rate": 1e-3, "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 5}
NUMBERS = ("two", "three", "four", "five", "six", "seven", "eight", "nine")
PROMPTS = [[{"role": "user", "content": f"what is {a} minus {b}"}] for a in NUMBERS for b in NUMBERS]  # training asks for sums


def different_vowels(completions: list[Any], completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
    """The intended task: share of the five vowels that occur; 0 for an answer that was cut off."""
    ended = [tiny.END_ID in ids for ids in completion_ids]
    return [len(set(tiny.text_of(text)) & tiny.VOWELS) / 5 * end for text, end in zip(completions, ended, strict=True)]


def probe() -> HeldoutProbe:
    return HeldoutProbe(different_vowels, PROMPTS, every=EVERY)


def scores(patient: Any) -> dict[int, float]:
    heldout = next(callback for callback in patient.trainer.callback_handler.callbacks if isinstance(callback, HeldoutProbe))
    return {step: values["eval.score"] for step, values in heldout.history}


def test_a_gamed_reward_is_seen_by_the_held_out_checker(tmp_path, observe):
    # How soon "aa" is found depends on the seed, and the rounding of the processor is as good as another seed: five of six do within 140 updates.
    patient = observe(tiny.grpo(str(tmp_path), reward=tiny.vowels, callbacks=[probe()], **{**SETTINGS, "max_steps": 140, "seed": 1}))
    series = scores(patient)
    best = max(series, key=lambda step: series[step])
    assert sum(patient.rewards[-10:]) > sum(patient.rewards[:10]) + 5  # the training reward alone looks splendid
    assert series[140] < series[best] - 0.15
    assert best < patient.loud["proxy-divergence"] <= best + 100
    finding = next(f for f in patient.monitor.findings if f.rule.id == "proxy-divergence" and f.state == "firing")
    assert finding.suppressed_by is None
    line = next(line for line in patient.said if "(proxy-divergence, step" in line)
    assert line.startswith("[TRL] WARNING: Training reward has risen, but the held-out result fell: ")
    assert "Return to the checkpoint of the best held-out result and strengthen the reward function." in line
    assert patient.monitor.verdict.state == "over_optimizing"


def test_an_honest_reward_improves_in_silence(tmp_path, observe):
    patient = observe(tiny.grpo(str(tmp_path), reward=different_vowels, callbacks=[probe()], **SETTINGS))
    series = scores(patient)
    assert series[100] > series[0] + 0.4
    assert patient.loud == {}
    assert patient.monitor.verdict.state in {"improving", "steady"}


DRIFT = {"max_steps": 206, "learning_rate": 3e-4, "beta": 1e-6, "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 5}


def test_a_policy_that_only_follows_luck_spends_distance_and_gains_nothing(tmp_path, observe):
    """Scores drawn at random: every update is a step somewhere, the distance to the reference grows, the reward cannot."""
    luck = Random(0)
    patient = observe(with_reference(str(tmp_path / "fault"), reward=lambda completions, **kwargs: [luck.random() for _ in completions], **DRIFT))
    assert abs(sum(patient.rewards[-50:]) - sum(patient.rewards[:50])) < 2.5
    assert 200 <= patient.loud["kl-without-gain"] <= 206
    finding = next(f for f in patient.monitor.findings if f.rule.id == "kl-without-gain" and f.state == "firing")
    assert finding.suppressed_by is None
    line = next(line for line in patient.said if "(kl-without-gain, step" in line)
    assert line.startswith("[TRL] WARNING: KL to the reference went from ")
    assert "the policy moves away and gains nothing for it" in line


def test_the_same_distance_is_well_spent_when_it_is_paid(tmp_path, observe):
    """Solved at last, so that kl-runaway may say what is true of the end: a KL that doubles at the ceiling."""
    patient = observe(with_reference(str(tmp_path / "twin"), reward=tiny.vowels, **DRIFT))
    assert sum(patient.rewards[-50:]) > sum(patient.rewards[:50]) + 10
    assert patient.loud.keys() <= {"kl-runaway"}


def test_a_verifier_that_finds_the_answer_anywhere_is_used_up_while_the_checker_stands(tmp_path, observe):
    """Paid is any answer that holds the wanted letter, asked for is the letter alone: a checker near 0 cannot fall, so that no test for a fall finds it."""

    def contained(completions: list[Any], completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
        return [float("e" in tiny.text_of(text) and tiny.END_ID in ids) for text, ids in zip(completions, completion_ids, strict=True)]

    def alone(completions: list[Any], completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
        return [float(tiny.text_of(text) == "e" and tiny.END_ID in ids) for text, ids in zip(completions, completion_ids, strict=True)]

    made = tiny.grpo(str(tmp_path), reward=contained, callbacks=[HeldoutProbe(alone, PROMPTS, every=EVERY)], **{**SETTINGS, "max_steps": 90})
    patient = observe(made)
    assert scores(patient)[90] < 0.1
    assert min(patient.loud, key=patient.loud.__getitem__) == "checker-unmoved", patient.said
    assert any("the held-out checker stands at 0" in line for line in patient.said)
    assert patient.monitor.verdict.state == "over_optimizing"
