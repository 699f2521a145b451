"""`HeldoutProbe` in each kind of loop that samples: it asks the policy of now, publishes, and leaves no trace in the weights."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import build_async
import build_preference
import build_sampling
import pytest
import torch
import transformers

from trainvitals import HeldoutProbe
from trainvitals.integrations import tiny

PROMPTS = [[{"role": "user", "content": text}] for text in tiny.questions(4)]
SETTINGS = {"per_device_train_batch_size": 8, "lr_scheduler_type": "constant"}
BUILDERS = {
    "rloo": (build_sampling.rloo, {"max_steps": 2, "num_generations": 4, "max_completion_length": 8}),
    "online_dpo": (build_preference.online_dpo, {"max_steps": 2}),
    "ppo": (build_sampling.ppo, {"updates": 2, "num_ppo_epochs": 1}),
    "async_grpo": (build_async.async_grpo, {"max_steps": 2}),
}


def length(completions: list[Any], **kwargs: Any) -> list[float]:
    return [len(tiny.text_of(completion)) / 16 for completion in completions]


@pytest.mark.parametrize("name", BUILDERS)
def test_it_works_in_every_loop(tmp_path, train, name):
    build, settings = BUILDERS[name]
    if name == "async_grpo" and tuple(map(int, version("trl").split(".")[:2])) < (1, 16):
        pytest.skip("the model of AsyncGRPO gives log-probabilities of labels and nothing else there, so that it cannot generate")
    weights, seen = [], None
    for folder, callbacks in (("without", []), ("with", [HeldoutProbe(length, PROMPTS, every=1, sample=True, max_new_tokens=8)])):
        try:
            trainer = build(str(tmp_path / folder), callbacks=callbacks, **SETTINGS, **settings)
        except ImportError as error:
            pytest.skip(str(error))
        transformers.set_seed(0)  # PPO seeds nothing itself and shuffles with numpy
        seen = train(trainer)
        weights.append([parameter.detach().clone() for parameter in trainer.model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*weights, strict=True))
    assert seen is not None
    assert seen.notices == []
    found = {item.step: item.values for item in seen.items if getattr(item, "phase", None) == "eval"}
    assert sorted(found) == ([1, 2] if name == "ppo" else [0, 1, 2])  # PPO's loop never says that a step begins
    assert all({"eval.score", "eval.fall_chance", "eval.length_mean", "eval.seconds"} <= set(values) for values in found.values())
    assert "eval.proxy_gain" in found[2]
    assert [frame.step for frame in seen.frames] == [1, 2]
    assert "eval.score" in seen.start.emits


def has_letter(completions: list[Any], **kwargs: Any) -> list[float]:
    """A lax verifier: passes what holds any of half of the alphabet."""
    return [float(bool(set("abcdefghijklm") & set(tiny.text_of(text)))) for text in completions]


def begins_with_letter(completions: list[Any], **kwargs: Any) -> list[float]:
    """A strict one: the answer begins with it."""
    return [float(tiny.text_of(text)[:1] in set("abcdefghijklm")) for text in completions]


@pytest.mark.parametrize("reward", [has_letter, begins_with_letter])
def test_answers_with_full_reward_that_the_checker_denies(tmp_path, train, reward):
    probe = HeldoutProbe(begins_with_letter, [[{"role": "user", "content": text}] for text in tiny.questions(24)], every=2, max_new_tokens=8)
    settings = {"max_steps": 6, "num_generations": 4, "max_completion_length": 8, "learning_rate": 1e-5, **SETTINGS, "per_device_train_batch_size": 24}
    seen = train(tiny.grpo(str(tmp_path), reward=reward, callbacks=[probe], **settings))
    assert seen.notices == []
    shares = [values.get("eval.unearned_fraction") for _, values in probe.history]
    assert shares[0] is None
    lax = reward is has_letter
    assert all(share is not None and (share > 0.33 if lax else share == 0) for share in shares[1:])
    assert [one.step for one in seen.callback.monitor.findings if one.rule.id == "checker-unmoved"] == ([5] if lax else [])
