"""Advice names a parameter that the trainer has: one of another trainer would be ignored, or refused at the start."""

from __future__ import annotations

import importlib

import pytest

from trainvitals.rulelang.loader import load_rules

CONFIGS = {
    "sft": ("trl", "SFTConfig"), "dpo": ("trl", "DPOConfig"), "reward": ("trl", "RewardConfig"), "grpo": ("trl", "GRPOConfig"), "rloo": ("trl", "RLOOConfig"),
    "kto": ("trl", "KTOConfig"), "distillation": ("trl", "DistillationConfig"), "orpo": ("trl.experimental.orpo", "ORPOConfig"), "cpo": ("trl.experimental.cpo", "CPOConfig"),
    "online_dpo": ("trl.experimental.online_dpo", "OnlineDPOConfig"), "gkd": ("trl.experimental.gkd", "GKDConfig"), "async_grpo": ("trl.experimental.async_grpo", "AsyncGRPOConfig"),
    "sdft": ("trl.experimental.sdft", "SDFTConfig"), "sdpo": ("trl.experimental.sdpo", "SDPOConfig"), "ppo": ("trl.experimental.ppo", "PPOConfig"),
}  # fmt: skip
RULES = [rule for rule in load_rules().rules if any(part.set for part in rule.suggest)]


@pytest.mark.parametrize("trainer", CONFIGS)
def test_a_parameter_that_the_trainer_lacks_is_never_advised(trainer: str) -> None:
    """It is not when its new value is made of the present one, which is then unknown, or when a condition names trainers."""
    module, name = CONFIGS[trainer]
    try:
        config = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        pytest.skip(f"this TRL has no {name}")
    fields = set(config.__dataclass_fields__)
    wrong = []
    for rule in RULES:
        for part in rule.suggest if not rule.trainers or trainer in rule.trainers else ():
            assert part.set is None or part.to is not None
            guarded = part.condition is not None and ("run.trainer" in part.condition.text or f"config.{part.set}" in part.condition.text)
            for parameter, to in [(part.set, part.to), *((more.set, more.to) for more in part.also)]:
                if parameter and to and parameter not in fields and f"config.{parameter}" not in to.text and not guarded:
                    wrong.append(f"{rule.id}: {parameter}")
    assert wrong == []
