"""Faults of reinforcement learning planted into real GRPO training, each found under its own name; healthy twins stay silent."""

from __future__ import annotations

import sys
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

sys.path.insert(0, str(Path(__file__).parent.parent / "suite"))

from trainvitals.integrations import tiny

pytestmark = [pytest.mark.slow, pytest.mark.trl]

HEALTHY = {"learning_rate": 1e-4, "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 5}

SLOW = {**HEALTHY, "learning_rate": 1e-5}


def said(patient: Any, rule: str) -> str:
    """The line on the console about a rule."""
    return next(line for line in patient.said if f"({rule}, step" in line)


class At(TrainerCallback):
    """Does something to the trainer before a step."""

    def __init__(self, step: int, what: Any) -> None:
        self.step, self.what = step, what

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step - 1:
            self.what()


def letters(completions: list[Any], completion_ids: Any = None, **kwargs: Any) -> list[float]:
    """Different letters of a finished answer, of ten."""
    return [min(10, len(set(tiny.text_of(text)))) / 10 * (tiny.END_ID in ids) for text, ids in zip(completions, completion_ids, strict=True)]


def taste(completions: list[Any], **kwargs: Any) -> list[float]:
    """A judge who has an opinion on every text and no reason for it: nothing can be learned."""
    return [zlib.crc32(f"155{tiny.text_of(text)}".encode()) % 101 / 100 for text in completions]  # the greedy answers get an average mark


def planted(folder: Path, step: int, fault: Any, **changes: Any) -> Any:
    """A GRPO trainer of the vowel task to which `fault(trainer)` happens before a step."""
    trainer = tiny.grpo(str(folder), **{**HEALTHY, **changes})
    trainer.add_callback(At(step, lambda: fault(trainer)))
    return trainer


def test_the_healthy_twin_of_all_is_silent(tmp_path, observe):
    patient = observe(tiny.grpo(str(tmp_path), max_steps=150, **HEALTHY))
    assert patient.rewards[-1] > patient.rewards[0] + 0.2
    assert patient.loud == {}
    assert not patient.off


def test_a_sampler_that_turns_greedy(tmp_path, observe):
    """The policy and its entropy stay as they were; only the samples become copies."""

    def greedy(trainer: Any) -> None:
        trainer.generation_config.top_k = 1

    patient = observe(planted(tmp_path / "fault", 30, greedy, reward=taste, max_steps=65, **SLOW))
    print(patient.said, patient.fired)
    assert 30 < patient.loud["mode-collapse"] <= 60
    assert "groups of copies teach nothing" in said(patient, "mode-collapse")
    twin = observe(tiny.grpo(str(tmp_path / "twin"), reward=taste, max_steps=65, **SLOW))
    print(twin.said, twin.fired)
    assert twin.loud == {}


def test_answers_that_end_too_early(tmp_path, observe):
    """As with one stop id too many: the sampler ends answers that the policy would have gone on with, and nobody pays for it."""

    def hurry(trainer: Any) -> None:
        trainer.generation_config.sequence_bias = {(tiny.END_ID,): 5.0}

    patient = observe(planted(tmp_path, 30, hurry, reward=letters, max_steps=55))
    print(patient.said, patient.fired)
    assert 30 < patient.loud["length-collapse"] <= 50


def test_other_prompts_in_the_middle_of_the_run(tmp_path, observe):
    class Changed(torch.utils.data.Dataset):
        """The prompts of the task until a row was asked for so often, then others."""

        column_names = ["prompt"]
        asked = 0

        def __init__(self, switch: int | None) -> None:
            self.rows, self.switch = [row["prompt"] for row in tiny.prompts()], switch

        def __len__(self) -> int:
            return len(self.rows)

        def __getitem__(self, at: int) -> dict[str, Any]:
            self.asked += 1
            if self.switch is not None and self.asked > self.switch:
                return {"prompt": [{"role": "user", "content": "no the bad red minus the blue " + str(at)}]}
            return {"prompt": self.rows[at]}

    for switch in (70 * 32, None):
        trainer = tiny.grpo(str(tmp_path / str(switch)), max_steps=125, **HEALTHY)
        trainer.train_dataset = Changed(switch)
        patient = observe(trainer)
        print(patient.said, patient.fired)
        if switch:
            assert 70 < patient.loud["prompt-drift"] <= 125
        else:
            assert patient.loud == {}


def test_a_gradient_that_is_cut_off(tmp_path, observe):
    def cut(trainer: Any) -> None:
        inner = trainer._compute_loss
        trainer._compute_loss = lambda *args, **kwargs: inner(*args, **kwargs) * 0.0

    patient = observe(planted(tmp_path, 20, cut, max_steps=45))
    print(patient.said, patient.fired)
    assert 20 < patient.loud["gradient-blocked"] <= 35
