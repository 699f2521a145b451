"""Faults planted into PPO (TRL 1.0 to 1.12), each found under its own name; the healthy twin of the same length stays silent."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl.experimental.ppo", reason="this TRL has no PPO: it is in 1.0 to 1.12")

import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "suite"))

import build_sampling

pytestmark = [pytest.mark.slow, pytest.mark.dropped, pytest.mark.trl]

HEALTHY = {"updates": 60, "lr_scheduler_type": "constant", "num_ppo_epochs": 2, "learning_rate": 3e-4}
ONSET = 22


def said(patient: Any, rule: str) -> str:
    """The line on the console about a rule."""
    return next(line for line in patient.said if f"({rule}, step" in line)


def test_ppo_improves_in_silence(tmp_path, observe):
    patient = observe(build_sampling.ppo(str(tmp_path), **HEALTHY))
    scores = [row["objective/scores"] for row in patient.trainer.state.log_history]
    assert sum(scores[-5:]) > sum(scores[:5]) + 1.0
    assert patient.loud == {}
    assert not patient.off


def test_ppo_with_a_hundredfold_learning_rate(tmp_path, observe):
    patient = observe(build_sampling.ppo(str(tmp_path), **{**HEALTHY, "updates": 15, "learning_rate": 3e-2, "num_ppo_epochs": 4}))
    assert patient.loud["update-too-large"] <= 12
    line = said(patient, "update-too-large")
    assert line.startswith("[TRL] WARNING: Within a single update the policy moves ")
    assert "Consider reducing the learning rate or num_ppo_epochs." in line


def test_ppo_with_a_critic_whose_learning_rate_jumps(tmp_path, observe):
    def optimizer(policy: Any, critic: Any) -> Any:
        rate = HEALTHY["learning_rate"]
        made = torch.optim.AdamW([{"params": policy.parameters(), "lr": rate}, {"params": critic.parameters(), "lr": rate}])
        jump = [lambda step: 1.0, lambda step: 1.0 if step < ONSET else 3000.0]  # at a thousand one seed in four learns again, which one hangs on the processor
        return made, torch.optim.lr_scheduler.LambdaLR(made, jump)

    patient = observe(build_sampling.ppo(str(tmp_path), **{**HEALTHY, "updates": 38}, optimizer=optimizer))
    assert ONSET < patient.loud["critic-misleads"] <= ONSET + 16
    assert all(step > ONSET for step in patient.loud.values())
    assert "Lower the critic's learning rate" in said(patient, "critic-misleads")


def test_ppo_with_a_cap_that_cuts_every_answer(tmp_path, observe):
    settings = {**HEALTHY, "updates": 34, "response_length": 3}
    patient = observe(build_sampling.ppo(str(tmp_path), score_of=build_sampling.unfinished_too, **settings))
    assert {"never-terminates", "truncated-completions"} & patient.loud.keys()


def test_ppo_whose_judge_pays_for_length(tmp_path, observe):
    settings = {**HEALTHY, "updates": 70, "learning_rate": 6e-4}
    patient = observe(build_sampling.ppo(str(tmp_path), score_of=build_sampling.length_from(ONSET), **settings))
    assert ONSET + 15 < patient.loud["paid-for-length"] <= 70
    assert "The policy is being paid for writing more." in said(patient, "paid-for-length")
    assert patient.monitor.verdict.state == "over_optimizing"
