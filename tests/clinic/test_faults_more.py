"""Faults of the rarer trainers: TPO, A2PO, BCO, XPO, Nash-MD, IW-OPD and SSD, two or more each, beside twins that stay silent.

BCO, XPO and Nash-MD ended with TRL 1.13 and SSD with 1.15: they run in the environment of TRL 1.12, the others in both.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "suite"))

import build_distillation
import build_preference
import build_sampling
import torch

from trainvitals.integrations import tiny

pytestmark = [pytest.mark.slow, pytest.mark.trl]

STEPS = 45
COMMON = {"learning_rate": 1e-4, "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 5, "max_steps": STEPS}
FROZEN = 1e-12
"""A learning rate whose steps are below the precision of a weight."""
BUILD: dict[str, Callable[..., Any]] = {
    "tpo": build_preference.tpo,
    "a2po": build_preference.a2po,
    "bco": build_preference.bco,
    "xpo": build_preference.xpo,
    "nash_md": build_preference.nash_md,
    "iw_opd": build_distillation.iw_opd,
    "ssd": build_distillation.ssd,
}
USUAL: dict[str, dict[str, Any]] = {"iw_opd": {"learning_rate": 1e-3}, "ssd": {"filter_empty": False}}
"""What differs from `COMMON` in a healthy run. SSD's filter drops answers as short as those of this task (one of its faults below)."""


def equal_scores() -> Any:
    """A reward model that says the same about everything."""
    scorer = build_preference._scorer(tiny.tokenizer())
    torch.nn.init.zeros_(scorer.score.weight)
    return scorer


class Judge:
    """The task's own judge until a call, then another one. A2PO calls it twice before the first update."""

    __name__ = "judge"

    def __init__(self, then: Callable[..., list[float]], begins: int) -> None:
        self.then, self.begins, self.calls = then, begins, 0

    def __call__(self, completions: list[Any], **kwargs: Any) -> list[float]:
        self.calls += 1
        return (self.then if self.calls > self.begins else build_preference.has_vowel)(completions, **kwargs)


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        trainer: Which trainer.
        what: The fault in words.
        rule: What must be said; nothing else may be, but `also`.
        steps: First and last update at which it may first be said.
        says: Part of the line on the console.
        plant: Settings that make the fault.
        also: Rules that may speak too.
    """

    trainer: str
    what: str
    rule: str
    steps: tuple[int, int]
    says: str
    plant: Callable[[], dict[str, Any]]
    also: frozenset[str] = field(default_factory=frozenset)


def same_pairs() -> Any:
    """Chosen in both columns."""
    return build_preference.pairs(lambda row: {**row, "rejected": row["chosen"]}, gold=True)


FAULTS = [
    Fault("tpo", "chosen read twice", "identical-pairs", (5, 10), "100% of the pairs have the same chosen and rejected response", lambda: {"data": same_pairs()}),
    Fault("tpo", "prompts as long as the maximum", "no-completion-tokens", (1, 1), "Raise max_length", lambda: {"max_length": 12}),
    Fault("a2po", "the judge is constant from an update on", "reward-collapse", (40, 62), "Score a few completions by hand", lambda: {"reward": Judge(lambda completions, **kwargs: [0.0] * len(completions), 32), "max_steps": 65}, frozenset({"reward-drop"})),
    Fault("a2po", "a cap that cuts every answer", "never-terminates", (30, 34), "raise max_completion_length", lambda: {"max_completion_length": 3}, frozenset({"truncated-completions"})),
    Fault("bco", "one class only", "kto-one-class", (10, 14), "100% of the examples of the last 10 updates are desirable", lambda: {"data": build_preference.examples((True,))}),
    Fault("bco", "weights that do not move", "policy-equals-reference", (10, 12), "Nothing is being trained. Check that the adapter or the model is trainable", lambda: {"learning_rate": FROZEN}, frozenset({"updates-too-small"})),
    Fault("bco", "a learning rate a thousand times too high", "step-size-too-large", (3, 8), "reduce the learning rate", lambda: {"learning_rate": 0.1}),
    Fault("xpo", "weights that do not move", "policy-equals-reference", (10, 12), "Nothing is being trained.", lambda: {"learning_rate": FROZEN}, frozenset({"updates-too-small"})),
    Fault("xpo", "a reward model that says the same about everything", "judge-undecided", (20, 25), "got equal scores over 20 updates", lambda: {"scorer": equal_scores()}),
    Fault("xpo", "a cap that cuts most answers", "truncated-completions", (8, 14), "of completions were cut at the token cap", lambda: {"max_new_tokens": 3}),
    Fault("nash_md", "weights that do not move", "policy-equals-reference", (10, 12), "Nothing is being trained.", lambda: {"learning_rate": FROZEN}, frozenset({"updates-too-small"})),
    Fault("nash_md", "a cap that cuts most answers", "truncated-completions", (8, 14), "of completions were cut at the token cap", lambda: {"max_new_tokens": 3}),
    Fault("iw_opd", "the teacher is the student", "teacher-equals-student", (10, 14), "Check that the teacher is another model than the student", lambda: {"teacher": build_distillation.speaker("plain")}),
    Fault("iw_opd", "a teacher with random weights", "teacher-knows-nothing", (9, 13), "Check that teacher and student share the tokenizer", lambda: {"teacher": tiny.model(tiny.tokenizer(), seed=7), "learning_rate": 3e-4}),
    Fault("iw_opd", "a learning rate a hundred times too high", "step-size-too-large", (3, 8), "reduce the learning rate", lambda: {"learning_rate": 0.1}, frozenset({"never-terminates", "truncated-completions", "loss-spike", "gradient-spike"})),
    Fault("iw_opd", "a cap that cuts every answer", "truncated-completions", (8, 14), "of completions were cut at the token cap", lambda: {"max_completion_length": 4}),
    Fault("ssd", "answers shorter than its filter wants", "self-distillation-inactive", (10, 14), "filter_empty drops every answer of one line and fewer than 10 characters", lambda: {"filter_empty": True, "max_completion_length": 9}),
    Fault("ssd", "a cap that cuts every answer", "never-terminates", (8, 34), "raise max_completion_length", lambda: {"max_completion_length": 3}, frozenset({"truncated-completions"})),
]
"""All of them: `pytest -k tpo`."""


DROPPED = {"bco", "xpo", "nash_md", "ssd"}
"""Ended with TRL 1.13 and 1.15: of these files only their tests run in the environment of TRL 1.12 as well."""


def marks(trainer: str) -> Any:
    """The mark of a trainer that newer versions do not have."""
    return [pytest.mark.dropped] if trainer in DROPPED else []


def made(trainer: str, folder: Path, **changes: Any) -> Any:
    """A trainer, or a skip where this TRL does not have it."""
    try:
        return BUILD[trainer](str(folder), **{**COMMON, **USUAL.get(trainer, {}), **changes})
    except ImportError as error:
        pytest.skip(f"this TRL has no {trainer}: {error}")


@pytest.mark.parametrize("trainer", [pytest.param(trainer, marks=marks(trainer)) for trainer in BUILD])
def test_the_healthy_twin_is_silent(trainer: str, tmp_path: Path, observe: Any) -> None:
    patient = observe(made(trainer, tmp_path, max_steps=65))
    assert patient.loud == {}
    assert not patient.off
    assert not any(word in said for said in patient.said for word in ("WARNING", "ERROR"))


@pytest.mark.parametrize("fault", [pytest.param(fault, id=f"{fault.trainer}-{fault.rule}", marks=marks(fault.trainer)) for fault in FAULTS])
def test_a_planted_fault_is_found_under_its_name(fault: Fault, tmp_path: Path, observe: Any) -> None:
    patient = observe(made(fault.trainer, tmp_path, **fault.plant()))
    assert fault.rule in patient.loud, f"{fault.what}: {patient.loud}"
    assert fault.steps[0] <= patient.loud[fault.rule] <= fault.steps[1]
    assert patient.loud.keys() - {fault.rule} <= fault.also
    line = next(said for said in patient.said if f"({fault.rule}, step" in said and "Resolved" not in said)
    assert fault.says in line


@pytest.mark.dropped
def test_the_short_answers_of_ssd_are_fine_without_its_filter(tmp_path: Path, observe: Any) -> None:
    patient = observe(made("ssd", tmp_path, max_completion_length=9))
    assert patient.loud == {}


@pytest.mark.parametrize("name", ["dpo", "kto"])
def test_prompts_as_long_as_the_maximum_in_dpo_and_kto(name: str, tmp_path: Path, observe: Any) -> None:
    trainer = getattr(build_preference, name)(str(tmp_path), max_length=12, **{**COMMON, "max_steps": 8})
    if len(trainer.train_dataset):  # TRL 1.0: DPO trains on prompts alone, KTO cuts the prompts instead
        assert observe(trainer).loud == ({"no-completion-tokens": 1} if name == "dpo" else {})
    elif name == "dpo":  # later ones drop such rows while they prepare the data; with none left it is torch that complains
        with pytest.raises(ValueError, match="num_samples should be a positive integer value"):
            observe(trainer)
    else:  # and KTO ends at once as if all were well
        patient = observe(trainer)
        assert patient.monitor.verdict.state == "insufficient_data"
        assert "The run ended after 0 observed updates: too few to judge." in " ".join(patient.said)


@pytest.mark.parametrize("name", ["grpo", "rloo"])
def test_trl_itself_refuses_groups_of_one(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 2 generations per prompt"):
        getattr(build_sampling, name)(str(tmp_path), num_generations=1)
