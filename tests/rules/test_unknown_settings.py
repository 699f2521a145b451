"""Rules whose `applies_to.where` reads a setting, in a log that holds none: what a rule needs must be known, an exception excuses only when it is."""

from __future__ import annotations

from typing import Any

import pytest

from trainvitals.engine import Engine
from trainvitals.items import Frame, RunStart
from trainvitals.rulelang.loader import load_rules

RULES = load_rules(enable=["experimental"])
FLAT = {"reward.group_zero_std_fraction": 0.9, "reward.all_high_fraction": 0.0}
NEEDS = {
    "generation-bound": ("grpo", {"time.generation_seconds": 8.0, "time.step_seconds": 10.0}),
    "groups-too-small": ("grpo", FLAT),
    "adapter-attention-only": ("sft", {"optim.loss": 1.0}),
    "router-loss-off": ("sft", {"optim.loss": 1.0}),
    "entropy-punished": ("grpo", {"policy.entropy": 1.0}),
    "judge-is-policy": ("grpo", {"reward.mean": 0.5}),
    "kl-estimator-bias": ("grpo", {"reward.mean": 0.5}),
    "truncated-sampling-correction": ("grpo", {"reward.mean": 0.5}),
    "updates-too-small": ("sft", {"optim.update_ratio": 0.0, "optim.learning_rate": 1e-4}),
}
"""By rule: trainer and signals that make it fire when its setting is known."""


def engine(trainer: str, rows: list[dict[str, float]], config: dict[str, Any]) -> Engine:
    made = Engine(RULES)
    made.observe(RunStart(run_id="log", trainer=trainer, framework="trl", config=config, time=0.0))
    for step, values in enumerate(rows, 1):
        made.observe(Frame(step, values, time=float(step)))
    return made


@pytest.mark.parametrize("rule", NEEDS)
def test_a_rule_that_needs_a_setting_is_inactive_without_it(rule: str) -> None:
    trainer, values = NEEDS[rule]
    log = engine(trainer, [values] * 120, {})
    assert log.states(rule) == {"": "inactive"}
    line = next(line for line in log.coverage().rules if line.id == rule)
    assert line.reason is not None
    assert "which is not known of this run" in line.reason


def test_every_rule_with_such_a_condition_is_among_them() -> None:
    assert {rule.id for rule in RULES.rules if rule.applies_where is not None} == set(NEEDS)


def test_half_a_configuration_can_be_enough() -> None:
    """`use_vllm` is false: the rule does not apply, whatever the other setting is."""
    log = engine("grpo", [{"reward.mean": 0.5}] * 5, {"use_vllm": False})
    assert log.states("truncated-sampling-correction") == {"": "not_applicable"}


def jump(config: dict[str, Any]) -> str:
    rows = [{"optim.learning_rate": 1e-6}] * 100 + [{"optim.learning_rate": 1e-5}] * 20
    return engine("sft", rows, config).states("learning-rate-jump")[""]


def test_a_jump_of_the_rate_is_told_of_a_log_unless_the_schedule_is_known_to_restart() -> None:
    assert jump({}) == "firing"
    assert jump({"lr_scheduler_type": "cosine_with_restarts"}) == "ok"


def stuck(zeros: float, config: dict[str, Any]) -> str:
    every = round(1 / (1 - zeros)) if zeros < 1 else 10**9
    rows = [{"preference.kl_baseline": 0.0 if step % every else 0.1, "preference.margin": 0.5} for step in range(1, 150)]
    return engine("kto", rows, config).states("kto-kl-zero")[""]


def test_zeros_throughout_are_no_clamp_where_the_loss_may_have_no_estimate() -> None:
    assert stuck(1, {"loss_type": "kto"}) == "firing"
    assert stuck(1, {"loss_type": "apo_zero_unpaired"}) == "ok"
    assert stuck(1, {}) != "firing"
    assert stuck(0.9, {}) == "firing"
