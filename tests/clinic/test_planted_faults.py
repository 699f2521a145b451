"""Each planted fault is found under its own name, and the healthy twin of the same length stays silent."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from trainvitals.integrations import tiny
from trainvitals.integrations.demo import reward_with_parser

pytestmark = [pytest.mark.slow, pytest.mark.trl]

HEALTHY = {"learning_rate": 1e-4, "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 5}
BREAK = 60


class Poison(TrainerCallback):
    """Makes one weight NaN before a step."""

    def __init__(self, at: int) -> None:
        self.at = at

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step == self.at - 1:
            with torch.no_grad():
                next(model.parameters()).view(-1)[0] = math.nan


def test_a_healthy_run_of_300_steps_improves_in_silence(tmp_path, observe):
    patient = observe(tiny.grpo(str(tmp_path), max_steps=300, **HEALTHY))
    first, last = sum(patient.rewards[:30]) / 30, sum(patient.rewards[-30:]) / 30
    assert last > first + 0.3
    assert patient.loud == {}
    assert not any(word in line for line in patient.said for word in ("WARNING", "ERROR"))
    assert patient.monitor.verdict.state in {"improving", "steady"}
    assert (tmp_path / "vitals" / "rank0.jsonl").stat().st_size > 0


def test_a_parser_that_stops_matching_is_an_advantage_collapse(tmp_path, observe):
    patient = observe(tiny.grpo(str(tmp_path), reward=reward_with_parser(BREAK), max_steps=BREAK + 60, **HEALTHY))
    assert BREAK < patient.fired["advantage-collapse"] <= BREAK + 50
    assert all(step > BREAK for step in patient.loud.values())
    line = next(line for line in patient.said if "(advantage-collapse, step" in line)
    assert line.startswith("[TRL] WARNING: Group reward std is ")
    assert "(near zero). Advantage signal has collapsed. Consider revisiting your reward function." in line


def test_too_high_a_learning_rate_leaves_the_clip_range(tmp_path, observe):
    settings = {**HEALTHY, "num_iterations": 4, "max_steps": 80}
    patient = observe(tiny.grpo(str(tmp_path / "fault"), **{**settings, "learning_rate": 1e-2}))
    assert "clip-ratio-high" in patient.loud
    line = next(line for line in patient.said if "(clip-ratio-high, step" in line)
    assert line.startswith("[TRL] WARNING: Clip ratio outside [0.8, 1.2] for ")
    assert "% of updates. Consider reducing the learning rate." in line
    twin = observe(tiny.grpo(str(tmp_path / "twin"), **{**settings, "learning_rate": 1e-4}))
    assert twin.loud == {}


def test_a_nan_behind_a_finite_loss(tmp_path, observe):
    patient = observe(tiny.sft(str(tmp_path / "fault"), max_steps=30, callbacks=[Poison(20)], **HEALTHY))
    assert 20 <= patient.loud["hidden-nan"] <= 23
    assert patient.monitor.verdict.state == "diverged"
    twin = observe(tiny.sft(str(tmp_path / "twin"), max_steps=30, **HEALTHY))
    assert twin.loud == {}


def test_answers_that_never_end(tmp_path, observe):
    trainer = tiny.grpo(str(tmp_path / "fault"), max_steps=60, **HEALTHY)
    vocabulary = trainer.processing_class
    trainer.generation_config.suppress_tokens = [vocabulary.eos_token_id]  # as with a template whose end token is never sampled
    patient = observe(trainer)
    assert {"never-terminates", "truncated-completions"} & patient.loud.keys()
    twin = observe(tiny.grpo(str(tmp_path / "twin"), max_steps=60, **HEALTHY))
    assert twin.loud == {}


def test_a_reward_that_is_the_same_for_everything(tmp_path, observe):
    def constant(completions: list[Any], **kwargs: Any) -> list[float]:
        return [0.0] * len(completions)

    patient = observe(tiny.grpo(str(tmp_path), reward=constant, max_steps=60, **HEALTHY))
    assert "advantage-collapse" in patient.loud


def test_a_learning_rate_of_zero(tmp_path, observe):
    patient = observe(tiny.sft(str(tmp_path), max_steps=60, **{**HEALTHY, "learning_rate": 0.0}))
    assert "learning-rate-zero" in patient.fired
