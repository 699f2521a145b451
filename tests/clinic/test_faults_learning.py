"""Faults of what is learned and how fast: labels, losses, schedules, data loading; each in a real training, with healthy twins."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from trainvitals.integrations import tiny

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "suite"))
import build_preference
import build_supervised as build

pytestmark = [pytest.mark.slow, pytest.mark.trl]

CALM = {"learning_rate": 1e-3, "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 5, "max_steps": 30}


def headline(patient: Any, rule: str) -> str:
    """The line of a rule, which is the first loud one."""
    assert min(patient.loud, key=lambda name: patient.loud[name], default=None) == rule, patient.said
    return next(line for line in patient.said if f"({rule}, step" in line)


def informed(patient: Any, rule: str) -> int:
    """Step at which a rule of any severity spoke."""
    assert rule in patient.fired, patient.said
    return patient.fired[rule]


def swapped(rows: list[dict[str, Any]], share: float = 1.0) -> list[dict[str, Any]]:
    """Pairs of which a share has its columns exchanged."""
    random = Random(5)
    return [{"chosen": row["rejected"], "rejected": row["chosen"]} if random.random() < share else row for row in rows]


def noise(random: Random) -> tuple[str, str]:
    """Two answers that nothing tells apart."""
    one, other = ("".join(random.choices("abcdefghijklmnop", k=random.randint(3, 9))) for _ in range(2))
    return one, other


def turned(trainer: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """A trainer whose loss goes through `change`, as in a subclass of a user's own."""
    inner = trainer.compute_loss

    def compute_loss(*args: Any, **kwargs: Any) -> Any:
        found = inner(*args, **kwargs)
        return (change(found[0]), *found[1:]) if isinstance(found, tuple) else change(found)

    trainer.compute_loss = compute_loss
    return trainer


# ---- labels and reward models ----


def test_a_healthy_reward_model_is_silent_for_two_hundred_updates(tmp_path, observe):
    settings = {**CALM, "max_steps": 205, "eval_strategy": "steps", "eval_steps": 30}
    patient = observe(build.reward(str(tmp_path), rows=build.pairs(256), held_out=build.pairs(32, seed=1), **settings))
    assert patient.loud == {}
    assert patient.monitor.verdict.state in {"improving", "steady"}


def test_a_trained_reward_model_that_goes_on_with_swapped_columns(tmp_path, observe):
    right = build.pairs(256)
    first = build.reward(str(tmp_path / "first"), rows=right, **{**CALM, "max_steps": 40})
    first.train()

    def second(folder: str, rows: list[dict[str, Any]]) -> Any:
        trainer = build.reward(str(tmp_path / folder), rows=rows, **{**CALM, "learning_rate": 1e-5, "max_steps": 52})
        trainer.model.load_state_dict(first.model.state_dict())
        return observe(trainer)

    patient = second("fault", swapped(right))
    line = headline(patient, "labels-reversed")
    assert patient.loud["labels-reversed"] == 15
    assert "the labels say the opposite of what the model holds" in line
    assert patient.monitor.verdict.decision == "stop"
    assert second("twin", right).loud == {}


def test_dpo_whose_loss_has_the_wrong_sign(tmp_path, observe):
    settings = {**CALM, "learning_rate": 1e-4, "max_steps": 52}  # the healthy twin is in test_faults_preference
    patient = observe(turned(build_preference.dpo(str(tmp_path), **settings), lambda loss: -loss))
    assert "the loss has the wrong sign" in headline(patient, "labels-reversed")
    assert patient.loud["labels-reversed"] == 20


def test_a_reward_model_that_cannot_learn_from_noise(tmp_path, observe):
    trainer = build.reward(str(tmp_path), rows=build.pairs(900, choose=noise), **{**CALM, "learning_rate": 1e-6, "max_steps": 205})
    with torch.no_grad():
        trainer.model.score.weight.mul_(40)  # scores far apart, as of a head with another initialisation: the loss is above ln 2
    patient = observe(trainer)
    assert "of its training pairs as labelled; a coin gets 50%" in headline(patient, "reward-model-at-chance")
    assert patient.loud["reward-model-at-chance"] <= 205
    assert patient.monitor.verdict.state == "stalled"


def test_a_reward_model_whose_mistakes_are_confident(tmp_path, observe):
    settings = {**CALM, "learning_rate": 3e-3, "max_steps": 85, "eval_strategy": "steps", "eval_steps": 20}
    rows, held_out = swapped(build.pairs(48, seed=1), 0.25), swapped(build.pairs(64, seed=2), 0.25)
    patient = observe(build.reward(str(tmp_path), rows=rows, held_out=held_out, **settings))
    told = next(finding for finding in patient.monitor.findings if finding.rule.id == "reward-model-overconfident" and finding.state in {"firing", "suppressed"})
    assert "and yet its loss there is at least" in told.message
    assert patient.loud.keys() <= {"reward-model-overconfident", "overfitting"}  # where the processor's rounding lets the loss fall first, that is the cause
    assert told.state == "firing" or "overfitting" in patient.loud
    assert patient.monitor.verdict.state == "over_optimizing"


# ---- supervised losses ----


def test_a_tokenizer_whose_ids_mean_other_tokens(tmp_path, observe):
    rows, vocabulary = build.completions(), tiny.tokenizer()
    # So decided that the wrong ids cost 14.8 nats (after half as many steps 9.6 to 10.1, by the processor): a small vocabulary asks for more than 10.5.
    taught = build.sft(str(tmp_path / "before"), rows=rows, **{**CALM, "learning_rate": 1e-2, "max_steps": 320})
    taught.train()
    settings = {**CALM, "learning_rate": 1e-4, "max_steps": 12}

    def goes_on(folder: str, shift: int) -> Any:
        model = tiny.model(vocabulary)
        model.load_state_dict(taught.model.state_dict())
        with torch.no_grad():
            weight = model.get_input_embeddings().weight
            weight.copy_(weight.roll(shift, 0))
        return observe(build.sft(str(tmp_path / folder), rows=rows, model=model, **settings))

    patient = goes_on("fault", 57)
    line = headline(patient, "loss-starts-high")
    assert patient.loud["loss-starts-high"] == 1
    assert "guessing blindly among all tokens costs 5.61" in line
    assert goes_on("twin", 0).loud == {}


def test_a_data_set_of_copies(tmp_path, observe):
    settings = {**CALM, "learning_rate": 3e-3, "max_steps": 60}
    row = build.completions()[0]
    patient = observe(build.sft(str(tmp_path / "fault"), rows=[row] * 600, **settings))
    assert set(patient.loud) == {"duplicate-rows", "answers-all-alike"}, patient.said
    assert patient.loud["duplicate-rows"] == 1
    line = next(line for line in patient.said if "(answers-all-alike, step" in line)
    assert 8 <= patient.loud["answers-all-alike"] <= 40
    assert "the model learns one text whatever it is asked" in line
    assert "loss-too-low" not in patient.loud  # explained by it
    random = Random(0)
    rows = [{**row, "completion": [{"role": "assistant", "content": "".join(random.choices("abcdefgh", k=6))}]} for _ in range(600)]
    assert observe(build.sft(str(tmp_path / "twin"), rows=rows, **settings)).loud == {"prompts-all-alike": 1}  # which is true of them


def test_a_learning_rate_too_low_to_learn_anything(tmp_path, observe):
    patient = observe(build.sft(str(tmp_path), rows=build.completions(), **{**CALM, "learning_rate": 1e-9, "max_steps": 205}))
    line = headline(patient, "loss-plateau")
    assert patient.loud["loss-plateau"] <= 205
    assert "updates have taught the model next to nothing" in line


# ---- steps ----


def test_a_gradient_that_grows_while_nothing_is_learned(tmp_path, observe):
    first = build.reward(str(tmp_path / "first"), rows=build.pairs(256), **{**CALM, "max_steps": 40})
    first.train()

    def trainer(folder: str, weight: Callable[[int], float]) -> Any:
        rows = swapped(build.pairs(600), 0.2)  # it knows what there is to know, and so is not at chance
        made = build.reward(str(tmp_path / folder), rows=rows, **{**CALM, "learning_rate": 1e-6, "max_steps": 105})
        made.model.load_state_dict(first.model.state_dict())
        return turned(made, lambda loss: loss * weight(made.state.global_step))

    patient = observe(trainer("fault", lambda step: 0.1 + step / 25))  # a weight of the loss that was meant to end at 1
    line = headline(patient, "gradient-growth")
    assert 90 <= patient.loud["gradient-growth"] <= 105
    assert "still rising, while the loss stays at" in line
    assert observe(trainer("twin", lambda step: 1.0)).loud == {}


def test_a_scheduler_that_is_built_anew_in_the_middle(tmp_path, observe):
    def trainer(folder: str, jump: float) -> Any:
        made = build.sft(str(tmp_path / folder), rows=build.completions(), **{**CALM, "learning_rate": 1e-4, "max_steps": 75})
        optimizer = torch.optim.AdamW(made.model.parameters(), lr=1e-4)
        made.optimizer = optimizer
        made.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: jump if step >= 65 else 1.0)
        return made

    patient = observe(trainer("fault", 10.0))
    assert "The learning rate is 0.001 where 0.0001 was used" in headline(patient, "learning-rate-jump")
    assert 65 <= patient.loud["learning-rate-jump"] <= 67
    assert observe(trainer("twin", 0.5)).loud == {}


# ---- data ----


class Slow:
    """A collator that does too much."""

    def __init__(self, inner: Callable[..., Any]) -> None:
        self.inner = inner

    def __call__(self, rows: list[dict[str, Any]]) -> Any:
        time.sleep(0.3)
        return self.inner(rows)


def test_a_collator_that_is_slower_than_the_step(tmp_path, observe):
    trainer = build.sft(str(tmp_path / "fault"), **{**CALM, "max_steps": 32})
    trainer.data_collator = Slow(trainer.data_collator)
    patient = observe(trainer)
    line = headline(patient, "loader-starved")
    assert patient.loud["loader-starved"] <= 32
    assert "of the time goes into waiting for the data loader" in line
    assert "Consider dataloader_num_workers=4" in line
    assert observe(build.sft(str(tmp_path / "twin"), **{**CALM, "max_steps": 32})).loud == {}


def test_one_long_sample_in_every_batch(tmp_path, observe):
    rows = [{"text": ("a" if index % 4 else "a b " * 15) + "."} for index in range(256)]
    settings = {**CALM, "learning_rate": 1e-4, "max_steps": 52, "per_device_train_batch_size": 8}
    assert 50 <= informed(observe(build.sft(str(tmp_path / "fault"), rows=rows, **settings)), "padding-waste") <= 52
    even = [{"text": "a b " * 5 + "."}] * 256
    assert "padding-waste" not in observe(build.sft(str(tmp_path / "twin"), rows=even, **settings)).fired
