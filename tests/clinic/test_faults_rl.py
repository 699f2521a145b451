"""Faults of reinforcement learning planted into real GRPO training, each found under its own name; the healthy twin stays silent.

What a run says before its fault begins is asserted too: every run is its own twin until then.
"""

from __future__ import annotations

import sys
import zlib
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

sys.path.insert(0, str(Path(__file__).parent.parent / "suite"))

from trainvitals.integrations import tiny

pytestmark = [pytest.mark.slow, pytest.mark.trl]

HEALTHY = {"learning_rate": 1e-4, "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 5}


def said(patient: Any, rule: str) -> str:
    """The line on the console about a rule."""
    return next(line for line in patient.said if f"({rule}" in line)


class At(TrainerCallback):
    """Does something to the trainer before a step."""

    def __init__(self, step: int, what: Any) -> None:
        self.step, self.what = step, what

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step - 1:
            self.what()


class Prompts(torch.utils.data.Dataset):
    """The prompts of the task until a row was asked for so often, then others, without any boundary."""

    def __init__(self, switch: int | None) -> None:
        self.column_names = ["prompt"]
        self.rows, self.switch, self.asked = [row["prompt"] for row in tiny.prompts()], switch, 0

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, at: int) -> dict[str, Any]:
        self.asked += 1
        if self.switch is not None and self.asked > self.switch:
            return {"prompt": [{"role": "user", "content": f"no the bad red minus the blue {at}"}]}
        return {"prompt": self.rows[at]}


def letters(completions: list[Any], completion_ids: Any = None, **kwargs: Any) -> list[float]:
    """Different letters of a finished answer, of ten."""
    return [min(10, len(set(tiny.text_of(text)))) / 10 * (tiny.END_ID in ids) for text, ids in zip(completions, completion_ids, strict=True)]


def form(completions: list[Any], **kwargs: Any) -> list[float]:
    """Share of the letters b, c, d, f and g: as easily had as vowels, and in their place."""
    return [sum(letter in "bcdfg" for letter in text) / max(1, len(text)) for text in map(tiny.text_of, completions)]


def taste(completions: list[Any], **kwargs: Any) -> list[float]:
    """A judge who has an opinion on every text and no reason for it; greedy answers get an average mark."""
    return [zlib.crc32(f"155{tiny.text_of(text)}".encode()) % 101 / 100 for text in completions]


class Moody:
    """A judge whose marks have nothing to do with the text."""

    __name__ = "moody"

    def __init__(self) -> None:
        self.random = Random(0)

    def __call__(self, completions: list[Any], **kwargs: Any) -> list[float]:
        return [self.random.random() for _ in completions]


class Hole:
    """Pays a little for vowels; from an update on it passes everything that is short."""

    __name__ = "hole"

    def __init__(self, onset: int) -> None:
        self.onset, self.calls = onset, 0

    def __call__(self, completions: list[Any], completion_ids: Any = None, **kwargs: Any) -> list[float]:
        self.calls += 1
        usual = [0.3 * mark for mark in tiny.vowels(completions, completion_ids)]
        if self.calls < self.onset:
            return usual
        return [1.0 if len(tiny.text_of(text)) <= 3 else mark for text, mark in zip(completions, usual, strict=True)]


def planted(folder: Path, step: int, fault: Any, **changes: Any) -> Any:
    """A GRPO trainer of the vowel task to which `fault(trainer)` happens before a step."""
    trainer = tiny.grpo(str(folder), **{**HEALTHY, **changes})
    trainer.add_callback(At(step, lambda: fault(trainer)))
    return trainer


def as_the_policy(folder: Path) -> dict[str, Any]:
    """For a sampler that stands for a policy which writes like that itself: nobody asks whose the samples are."""
    path = folder / "overrides.yaml"
    rules = ", ".join(f"{{id: {rule}, disable: true, reason: the sampler stands for the policy}}" for rule in ("samples-from-another-policy", "samples-repeat"))
    path.write_text(f"rules: [{rules}]\n")
    return {"overrides": [path]}


def test_the_healthy_twin_is_silent(tmp_path, observe):
    """Its completions drift far from where they began, and the reward rises with them."""
    trainer = tiny.grpo(str(tmp_path), max_steps=125, **HEALTHY)
    trainer.train_dataset = Prompts(None)
    patient = observe(trainer)
    assert sum(patient.rewards[-10:]) > sum(patient.rewards[:10]) + 1.0
    assert patient.loud == {}
    assert not patient.off


@pytest.mark.parametrize(("setting", "value", "what"), [("temperature", 4.0, "a hotter, an older or a restricted sampler"), ("top_k", 1, "They were not drawn independently")])
def test_a_sampler_that_is_another_one(tmp_path, observe, setting, value, what):
    """Temperature 4 where the trainer reckons with 1, or the likeliest token always: told by what the policy thinks of its samples."""
    patient = observe(planted(tmp_path, 20, lambda trainer: setattr(trainer.generation_config, setting, value), max_steps=34))
    rule = "samples-repeat" if setting == "top_k" else "samples-from-another-policy"  # that it gives copies is heard first, and explains the rest
    assert patient.loud.keys() == {rule}
    assert 20 < patient.loud[rule] <= 34
    assert what in said(patient, rule)


@pytest.mark.parametrize("settings", [{"temperature": 1.5}, {"num_iterations": 2, "learning_rate": 5e-4}, {"top_p": 0.8}])
def test_samples_that_are_as_they_are_meant_to_be(tmp_path, observe, settings):
    """A high temperature that both sides know of, samples that are used twice, and tokens cut off on purpose."""
    patient = observe(tiny.grpo(str(tmp_path), max_steps=34, **{**HEALTHY, **settings}))
    assert "samples-from-another-policy" not in patient.fired


def test_an_entropy_bonus_that_lost_its_sign(tmp_path, observe):
    short = {**HEALTHY, "max_steps": 4, "warmup_steps": 0}
    assert observe(tiny.grpo(str(tmp_path / "fault"), **{**short, "entropy_coef": -0.02})).loud == {"entropy-punished": 1}
    assert observe(tiny.grpo(str(tmp_path / "twin"), **{**short, "entropy_coef": 0.02})).loud == {}


def test_a_kl_penalty_that_lost_its_sign(tmp_path, observe):
    """TRL loads the reference from where the policy came from, so that the policy is saved first."""
    from trl import GRPOConfig, GRPOTrainer

    vocabulary = tiny.tokenizer()
    tiny.policy(vocabulary).save_pretrained(str(tmp_path / "policy"))

    def grpo(beta: float) -> Any:
        args = GRPOConfig(**tiny.arguments(str(tmp_path / f"run{beta}"), **{**HEALTHY, "max_steps": 4, "warmup_steps": 0, "beta": beta}))
        return GRPOTrainer(str(tmp_path / "policy"), tiny.vowels, args, train_dataset=tiny.prompts(), processing_class=vocabulary)

    assert observe(grpo(-0.04)).loud == {"kl-paid": 1}
    assert observe(grpo(0.04)).loud == {}


def test_a_sampler_that_turns_greedy(tmp_path, observe):
    """The policy and its entropy stay as they were; only the samples become copies."""

    def greedy(trainer: Any) -> None:
        trainer.generation_config.top_k = 1

    patient = observe(planted(tmp_path, 30, greedy, reward=taste, max_steps=62, **{**HEALTHY, "learning_rate": 1e-5}), **as_the_policy(tmp_path))
    assert patient.loud.keys() == {"mode-collapse"}
    assert 30 < patient.loud["mode-collapse"] <= 60
    assert "Groups of copies teach nothing" in said(patient, "mode-collapse")


def test_answers_that_end_too_early(tmp_path, observe):
    """The sampler ends answers that the policy would have gone on with, and nobody pays for it. The fall of the reward is said at once, its reason when it is sure: two lines, not four."""

    def hurry(trainer: Any) -> None:
        trainer.generation_config.sequence_bias = {(tiny.END_ID,): 5.0}

    patient = observe(planted(tmp_path, 30, hurry, reward=letters, max_steps=52), **as_the_policy(tmp_path))
    assert patient.loud.keys() == {"reward-drop", "length-collapse"}
    assert 30 < patient.loud["reward-drop"] < patient.loud["length-collapse"] <= 50
    assert "the policy stops before it has answered" in said(patient, "length-collapse")


def test_other_prompts_in_the_middle_of_the_run(tmp_path, observe):
    trainer = tiny.grpo(str(tmp_path), max_steps=112, **HEALTHY)
    trainer.train_dataset = Prompts(70 * 32)
    patient = observe(trainer)
    # The first prompts all begin alike and these do not: told at once. What prompt-drift sees later, in everything that is asked, is behind it.
    assert patient.loud.keys() == {"prompt-frame-changed"}
    assert 70 < patient.loud["prompt-frame-changed"] <= 76
    assert "the kind of prompt has changed under the run" in said(patient, "prompt-frame-changed")
    assert any(record.rule.id == "prompt-drift" and record.state == "suppressed" for record in patient.monitor.findings)


def test_completions_that_change_without_a_gain(tmp_path, observe):
    """Other letters, the same marks."""

    def accent(trainer: Any) -> None:
        ids = trainer.processing_class.convert_tokens_to_ids(list("xqjkv"))
        trainer.generation_config.sequence_bias = {(token,): 3.0 for token in ids}

    settings = {**HEALTHY, "learning_rate": 1e-5}
    patient = observe(planted(tmp_path, 40, accent, reward=Moody(), max_steps=102, **settings), **as_the_policy(tmp_path))
    assert patient.loud.keys() == {"completion-drift"}
    assert 40 < patient.loud["completion-drift"] <= 102
    assert "the policy moved away and gained nothing" in said(patient, "completion-drift")


def test_a_task_that_is_given_up_for_its_form(tmp_path, observe):
    settings = {**HEALTHY, "learning_rate": 5e-4, "max_steps": 80}
    patient = observe(tiny.grpo(str(tmp_path), reward=[tiny.vowels, form], reward_weights=[1.0, 3.0], **settings))
    assert patient.loud.keys() == {"format-over-task"}
    assert 20 < patient.loud["format-over-task"] <= 80
    assert "the policy buys the other rewards with this one" in said(patient, "format-over-task")


def test_a_hole_in_the_checker(tmp_path, observe):
    patient = observe(tiny.grpo(str(tmp_path), reward=Hole(105), max_steps=145, **{**HEALTHY, "learning_rate": 3e-4}))
    assert 105 < patient.loud["exploit-jump"] <= 145
    assert all(step > 105 for step in patient.loud.values())


def test_a_gradient_that_is_cut_off(tmp_path, observe):
    def cut(trainer: Any) -> None:
        inner = trainer._compute_loss
        trainer._compute_loss = lambda *args, **kwargs: inner(*args, **kwargs) * 0.0

    patient = observe(planted(tmp_path, 20, cut, max_steps=35))
    assert patient.loud.keys() == {"gradient-blocked"}
    assert 20 < patient.loud["gradient-blocked"] <= 32
    assert patient.monitor.verdict.state == "stalled"
