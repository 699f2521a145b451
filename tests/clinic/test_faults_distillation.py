"""Faults planted into trainings that learn from a teacher, each beside a healthy twin of the same length that stays silent."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "suite"))

import build_distillation as build
import torch

from trainvitals.integrations import tiny

pytestmark = [pytest.mark.slow, pytest.mark.trl]

HEALTHY = {"learning_rate": 1e-3, "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 5, "max_steps": 50}
SELF = {**HEALTHY, "learning_rate": 3e-4}
STUDENTS = ["gkd", "distillation", "gold"]


def made(name: str, folder: Any, **changes: Any) -> Any:
    """A trainer, or a skip where this TRL does not have it."""
    try:
        return getattr(build, name)(str(folder), **{**(HEALTHY if name in STUDENTS else SELF), **changes})
    except ImportError as error:
        pytest.skip(f"this TRL has no {name}: {error}")


def other_ids() -> Any:
    """The right teacher behind another tokenizer: same size of vocabulary, other ids."""
    teacher = build.speaker("vowels")
    order = torch.randperm(teacher.config.vocab_size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        teacher.model.embed_tokens.weight.copy_(teacher.model.embed_tokens.weight[order])
    return teacher


def line(patient: Any, rule: str) -> str:
    """What the console said about a rule."""
    return next(text for text in patient.said if f"({rule}, step" in text)


@pytest.mark.parametrize("name", [*STUDENTS, "sdft", "sdpo"])
def test_a_healthy_run_learns_in_silence(tmp_path, observe, name):
    patient = observe(made(name, tmp_path))
    assert patient.loud == {}
    if name in STUDENTS:
        losses = [row["loss"] for row in patient.trainer.state.log_history if "loss" in row]
        assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


@pytest.mark.parametrize("name", STUDENTS)
def test_a_teacher_that_is_the_student(tmp_path, observe, name):
    patient = observe(made(name, tmp_path, teacher=build.speaker("plain")))
    assert 10 <= patient.loud["teacher-equals-student"] <= 14
    assert set(patient.loud) == {"teacher-equals-student"}
    assert "[TRL] ERROR: Divergence to the teacher has been" in line(patient, "teacher-equals-student")
    assert "Check that the teacher is another model than the student" in line(patient, "teacher-equals-student")


@pytest.mark.parametrize("name", STUDENTS)
@pytest.mark.parametrize("broken", [other_ids, lambda: tiny.model(tiny.tokenizer(), seed=7)], ids=["other-tokenizer", "random-weights"])
def test_a_teacher_that_knows_nothing(tmp_path, observe, name, broken):
    patient = observe(made(name, tmp_path, teacher=broken(), learning_rate=3e-4))
    assert 9 <= patient.loud["teacher-knows-nothing"] <= 13
    assert set(patient.loud) == {"teacher-knows-nothing"}
    assert "Check that teacher and student share the tokenizer" in line(patient, "teacher-knows-nothing")


@pytest.mark.parametrize("name", STUDENTS)
def test_a_learning_rate_a_hundred_times_too_high(tmp_path, observe, name):
    patient = observe(made(name, tmp_path, learning_rate=100 * HEALTHY["learning_rate"]))
    assert patient.loud["step-size-too-large"] <= 8
    assert "reduce the learning rate" in line(patient, "step-size-too-large")
    assert "student-diverges-from-teacher" in {one.rule.id for one in patient.monitor.findings if one.suppressed_by}


@pytest.mark.parametrize(("name", "cap"), [("gkd", {"max_new_tokens": 3, "lmbda": 1.0}), *((name, {"max_completion_length": 3}) for name in ("distillation", "gold", "sdft", "sdpo"))])
def test_a_cap_on_generation_that_is_too_short(tmp_path, observe, name, cap):
    patient = observe(made(name, tmp_path, **cap))
    fired = {"never-terminates", "truncated-completions"} & patient.loud.keys()
    assert fired
    assert 8 <= min(patient.loud[rule] for rule in fired) <= 35  # eight batches of hardly anything but cut answers, or 30 updates of many


def test_a_self_teacher_without_privileged_context(tmp_path, observe):
    patient = observe(made("sdft", tmp_path, data=build.hints("")))
    assert set(patient.loud) == {"teacher-equals-student"}
    assert patient.loud["teacher-equals-student"] <= 14
    assert "the teacher's prompt really contains the privileged context" in line(patient, "teacher-equals-student")


def test_a_student_that_runs_away_from_the_model_it_was(tmp_path, observe):
    patient = observe(made("sdft", tmp_path, learning_rate=20 * SELF["learning_rate"]))  # a hundred times is told as too large a step
    assert "student-leaves-teacher" in patient.loud, patient.loud
    assert patient.loud["student-leaves-teacher"] <= 25
    assert "Find out what moves the weights (the learning rate," in line(patient, "student-leaves-teacher")


def test_a_live_teacher_that_follows_into_a_loop(tmp_path, observe):
    patient = observe(made("sdft", tmp_path, student=build.speaker("loops"), teacher_model_kind="live", max_steps=70))
    assert 10 <= patient.loud["teacher-follows-student"] <= 65
    assert patient.monitor.verdict.state == "collapsed"
    assert "let the teacher follow more slowly" in line(patient, "teacher-follows-student")


def test_answers_that_shrink(tmp_path, observe):
    patient = observe(made("sdft", tmp_path, student=build.speaker("brief"), max_steps=70))
    assert 25 <= patient.loud["answers-shrink"] <= 65
    assert set(patient.loud) == {"answers-shrink"}


def test_a_threshold_that_no_rollout_reaches(tmp_path, observe):
    patient = observe(made("sdpo", tmp_path, success_reward_threshold=2.0))
    assert 10 <= patient.loud["self-distillation-inactive"] <= 14
    assert set(patient.loud) == {"self-distillation-inactive"}
    assert "success_reward_threshold" in line(patient, "self-distillation-inactive")


def test_a_reward_that_is_the_same_for_everything(tmp_path, observe):
    patient = observe(made("sdpo", tmp_path, reward=lambda completions, **kwargs: [0.0] * len(completions)))
    assert patient.loud["self-distillation-inactive"] <= 14
    assert 39 <= patient.loud["advantage-collapse"] <= 45
    assert "Consider revisiting your reward function." in line(patient, "advantage-collapse")


def sure_of_others() -> Any:
    """A student that is sure of tokens that its teacher never writes: the rows of its output layer stand for other ids."""
    student = build.speaker("plain")
    head = student.get_output_embeddings()
    order = torch.randperm(len(head.weight), generator=torch.Generator().manual_seed(1))
    head.weight = torch.nn.Parameter(10 * head.weight.detach()[order])
    student.config.tie_word_embeddings = False
    return student


@pytest.mark.parametrize("name", ["gkd", "gold"])
def test_two_models_that_agree_on_no_token(tmp_path, observe, name):
    """A student that is sure of other tokens, on answers of the teacher: the Jensen-Shannon divergence is at ln 2 and pulls at nothing."""
    changes = {"lmbda": 0.0, "beta": 0.5, "learning_rate": 1e-6, "max_steps": 30}
    patient = observe(made(name, tmp_path / "fault", student=sure_of_others(), **changes))
    assert set(patient.loud) == {"divergence-saturated"}, patient.said
    assert 20 <= patient.loud["divergence-saturated"] <= 24
    assert "it can be 0.693 at the most, where its gradient vanishes" in line(patient, "divergence-saturated")
