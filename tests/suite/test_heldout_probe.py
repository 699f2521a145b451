"""`HeldoutProbe` in each kind of loop that samples: it asks the policy of now, publishes, and leaves no trace in the weights."""

from __future__ import annotations

from typing import Any

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
}


def length(completions: list[Any], **kwargs: Any) -> list[float]:
    return [len(tiny.text_of(completion)) / 16 for completion in completions]


@pytest.mark.parametrize("name", BUILDERS)
def test_it_works_in_every_loop(tmp_path, train, name):
    build, settings = BUILDERS[name]
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
