"""Faults of preference training, each planted into a real run and found under its own name, beside healthy twins that stay silent."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.clinic.ward.cases import by_id
from tests.clinic.ward.record import train
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).parents[1] / "suite"))
import build_preference as build

pytestmark = [pytest.mark.slow, pytest.mark.trl]

HEALTHY = {"learning_rate": 1e-4, "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 5, "max_steps": 60}


def line(patient: Any, rule: str) -> str:
    """What the console said when the rule fired."""
    return next(said for said in patient.said if f"({rule}, step" in said and "Resolved" not in said)


@pytest.mark.parametrize("name", ["dpo", "kto", "orpo", "cpo", "online_dpo"])
def test_a_healthy_twin_is_silent(name: str, tmp_path, observe) -> None:
    patient = observe(getattr(build, name)(str(tmp_path), **{**HEALTHY, "max_steps": 105 if name in {"dpo", "kto"} else 60}))
    assert patient.loud == {}
    assert not any(word in said for said in patient.said for word in ("WARNING", "ERROR"))


# ---- DPO ----


def test_dpo_whose_reference_is_another_model(tmp_path, observe) -> None:
    policy = AutoModelForCausalLM.from_pretrained(build.start(str(tmp_path)))
    build.tiny.pretrain(policy, build.tiny.tokenizer(), steps=10, seed=1)  # trained on; TRL loads the reference from the old folder
    patient = observe(build.dpo(str(tmp_path), model=policy, **{**HEALTHY, "max_steps": 20}))
    assert patient.loud == {"reference-mismatch": 1}
    assert "Check that the reference is the very model that training starts from" in line(patient, "reference-mismatch")
    assert patient.monitor.verdict.state == "drifting"


@pytest.mark.parametrize("name", ["dpo", "orpo"])
def test_identical_chosen_and_rejected(name: str, tmp_path, observe) -> None:
    data = build.pairs(lambda row: {**row, "rejected": row["chosen"]})
    patient = observe(getattr(build, name)(str(tmp_path), data=data, **{**HEALTHY, "max_steps": 40}))
    assert patient.loud.keys() == {"identical-pairs"}
    assert patient.loud["identical-pairs"] <= 10
    assert "100% of the pairs have the same chosen and rejected response" in line(patient, "identical-pairs")


def test_dpo_with_a_learning_rate_a_hundred_times_too_high(tmp_path, observe) -> None:
    patient = observe(build.dpo(str(tmp_path), **{**HEALTHY, "learning_rate": 1e-2, "max_steps": 100}))
    assert 50 <= patient.loud["margin-explosion"] <= 95
    said = line(patient, "margin-explosion")
    assert "the pairs are memorised" in said
    assert "Consider stopping here, a lower learning rate" in said


def test_dpo_that_displaces_the_likelihood_of_nearly_equal_pairs(tmp_path, observe) -> None:
    def nearly(row: dict[str, str]) -> dict[str, str]:
        return {**row, "rejected": row["chosen"][:4] + ("x" if row["chosen"][4] != "x" else "z")}

    patient = observe(build.dpo(str(tmp_path / "fault"), data=build.pairs(nearly), **{**HEALTHY, "learning_rate": 1e-3, "max_steps": 85}))
    assert 40 <= patient.loud["likelihood-displacement"] <= 60
    assert "the margin grows, but the probability goes to neither" in line(patient, "likelihood-displacement")
    twin = observe(build.dpo(str(tmp_path / "twin"), data=build.pairs(nearly), **{**HEALTHY, "learning_rate": 1e-4, "max_steps": 85}))
    assert twin.loud == {}


def test_dpo_whose_policy_never_moves(tmp_path, observe) -> None:
    patient = observe(build.dpo(str(tmp_path), **{**HEALTHY, "learning_rate": 1e-12, "max_steps": 40}))  # below the precision of a weight
    assert patient.loud == {"policy-equals-reference": 10}  # numbers near 0 still move, which is all that updates-too-small asks
    assert "Nothing is being trained." in line(patient, "policy-equals-reference")


def test_dpo_trained_on_swapped_labels_is_told_by_the_evaluation(tmp_path, observe) -> None:
    def swapped(row: dict[str, str]) -> dict[str, str]:
        return {**row, "chosen": row["rejected"], "rejected": row["chosen"]}

    settings = {**HEALTHY, "max_steps": 45, "eval_strategy": "steps", "eval_steps": 10}
    right = build.pairs(count=16, seed=1)
    patient = observe(build.dpo(str(tmp_path / "fault"), data=build.pairs(swapped), held_out=right, **settings))
    assert patient.loud.keys() == {"evaluation-contradicts"}
    assert "in one of the two sets chosen and rejected are swapped" in line(patient, "evaluation-contradicts")
    twin = observe(build.dpo(str(tmp_path / "twin"), held_out=right, **settings))
    assert twin.loud == {}


# ---- KTO ----


def test_kto_with_one_class_only(tmp_path, observe) -> None:
    patient = observe(build.kto(str(tmp_path), data=build.examples((True,)), **{**HEALTHY, "max_steps": 40}))
    assert patient.loud.keys() == {"kto-one-class"}
    assert 10 <= patient.loud["kto-one-class"] <= 12
    assert line(patient, "kto-one-class").startswith("[TRL] ERROR: 100% of the examples of the last 10 updates are desirable.")


def test_kto_with_one_desirable_example_in_eight(tmp_path, observe) -> None:
    labels = (True, *[False] * 7)
    patient = observe(build.kto(str(tmp_path / "fault"), data=build.examples(labels), **HEALTHY))
    assert patient.loud == {"kto-imbalance": 11}
    assert "weigh 0.143 times as much as undesirable ones (12% of the examples are desirable)" in line(patient, "kto-imbalance")
    twin = observe(build.kto(str(tmp_path / "twin"), data=build.examples(labels), desirable_weight=8.0, **HEALTHY))
    assert twin.loud == {}


def test_kto_whose_reference_point_is_clamped_for_good(tmp_path, observe) -> None:
    patient = observe(build.kto(str(tmp_path), **{**HEALTHY, "learning_rate": 1e-2, "max_steps": 110}))
    assert 95 <= patient.loud["kto-kl-zero"] <= 110
    assert "the loss has lost its reference point" in line(patient, "kto-kl-zero")


# ---- ORPO, CPO, online DPO ----


@pytest.mark.parametrize("name", ["orpo", "cpo"])
def test_prompts_as_long_as_the_maximum(name: str, tmp_path, observe) -> None:
    patient = observe(getattr(build, name)(str(tmp_path), max_length=12, **{**HEALTHY, "max_steps": 15}))
    assert patient.loud.keys() == {"no-completion-tokens"}  # the NaN that follows is its consequence
    assert patient.loud["no-completion-tokens"] == 1
    said = line(patient, "no-completion-tokens")
    assert said.startswith("[TRL] ERROR: 100% of the responses have no token in the loss")
    assert "Raise max_length" in said
    assert {finding.rule.id for finding in patient.monitor.findings if finding.suppressed_by} & {"hidden-nan", "nonfinite-loss"}


def test_orpo_whose_learning_rate_is_too_low(tmp_path, observe) -> None:
    patient = observe(build.orpo(str(tmp_path), **{**HEALTHY, "learning_rate": 1e-8, "max_steps": 230}))
    assert 115 <= patient.loud["preference-not-learning"] <= 125  # once half of the run is over
    assert "that of a coin is 0.6931" in line(patient, "preference-not-learning")


@pytest.mark.parametrize(("name", "weight"), [("cpo", {"cpo_alpha": 0.01}), ("orpo", {"beta": 500.0})])
def test_a_preference_term_that_unlearns_the_chosen_responses(name: str, weight: dict[str, float], tmp_path, observe) -> None:
    def nearly(row: dict[str, str]) -> dict[str, str]:
        return {**row, "rejected": row["chosen"][:4] + ("x" if row["chosen"][4] != "x" else "z")}

    settings = {**HEALTHY, "max_steps": 60, "learning_rate": 1e-3}
    patient = observe(getattr(build, name)(str(tmp_path / "fault"), data=build.pairs(nearly), **weight, **settings))
    assert patient.loud.keys() == {"preference-term-dominates"}
    assert "the preference term is unlearning them" in line(patient, "preference-term-dominates")
    twin = observe(getattr(build, name)(str(tmp_path / "twin"), data=build.pairs(nearly), **settings))
    assert twin.loud == {}


@pytest.mark.parametrize(("case", "said"), [("cpo-simpo-rate", {"preference-term-dominates"}), ("cpo-simpo-twin", set())])
def test_simpo_at_a_rate_that_unlearns_both_answers(case: str, said: set[str], tmp_path) -> None:
    findings = train(by_id(case), 80, str(tmp_path)).monitor.findings
    assert {finding.rule.id for finding in findings if finding.severity != "info"} == said


@pytest.mark.parametrize(("name", "more"), [("orpo", {}), ("cpo", {"loss_type": "simpo", "cpo_alpha": 1.0})])
def test_log_probabilities_that_are_sums_where_means_belong(name: str, more: dict[str, Any], tmp_path, observe) -> None:
    def trainer(folder: str) -> Any:
        return getattr(build, name)(str(tmp_path / folder), **{**HEALTHY, **more, "max_steps": 30})

    sick = trainer("fault")
    right = sick.get_batch_logps
    sick.get_batch_logps = lambda *args, average_log_prob=False, **kwargs: right(*args, average_log_prob=False, **kwargs)
    patient = observe(sick)
    assert patient.loud == {"logps-summed": 1}
    assert "That is the sum over the whole answer" in line(patient, "logps-summed")
    assert observe(trainer("twin")).loud == {}


def test_online_dpo_with_a_judge_that_cannot_decide(tmp_path, observe) -> None:
    def constant(completions: list[Any], **kwargs: Any) -> list[float]:
        return [1.0] * len(completions)

    patient = observe(build.online_dpo(str(tmp_path), reward=constant, **{**HEALTHY, "max_steps": 30}))
    assert patient.loud == {"judge-undecided": 20}
    assert "100% of the sampled pairs got equal scores over 20 updates" in line(patient, "judge-undecided")


def test_online_dpo_with_a_judge_that_fails_half_of_the_time(tmp_path, observe) -> None:
    generator = torch.Generator().manual_seed(0)

    def half(completions: list[Any], **kwargs: Any) -> list[float | None]:
        found = build.tiny.vowels(completions)
        return [None if torch.rand((), generator=generator) < 0.5 else value for value in found]

    patient = observe(build.online_dpo(str(tmp_path), reward=half, **{**HEALTHY, "max_steps": 30}))
    assert patient.loud.keys() == {"scores-missing"}
    assert patient.loud["scores-missing"] <= 25
