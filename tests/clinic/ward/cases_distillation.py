"""Distillation and self-distillation: a student that answers with random letters learns from a teacher that prefers vowels.

The goal is the divergence to the teacher, which falls from 0.55 to below 0.01 within the run.
"""

from __future__ import annotations

from random import Random
from typing import Any

import torch
import transformers
from tests.clinic.ward import plants
from tests.clinic.ward.case import HEALTHY_SEEDS, Case
from tests.suite import build_distillation
from tests.suite.build_distillation import speaker

from trainvitals.integrations import tiny

STEPS = 90
BREAK = 45
CUT = 3
GOAL = "-distill.divergence"
BASE = {"max_steps": STEPS, "learning_rate": 1e-3, "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 5}
SELF = {**BASE, "learning_rate": 3e-4}


def plain(folder: str, seed: int, *, teacher: Any = None, student: Any = None, callbacks: Any = (), **changes: Any) -> Any:
    """The healthy training."""
    return build_distillation.distillation(folder, teacher=teacher, student=student, callbacks=callbacks, **{**BASE, "seed": seed, **changes})


def varied(folder: str, seed: int, **changes: Any) -> Any:
    """Healthy, with hyperparameters drawn by the seed from ranges that people use."""
    draw = Random(seed)
    settings = {
        "learning_rate": draw.choice((6e-4, 1e-3, 1.5e-3)),
        "per_device_train_batch_size": draw.choice((4, 8, 16)),
        "beta": draw.choice((0.0, 0.5, 1.0)),
        "temperature": draw.choice((0.9, 1.0)),
        "lr_scheduler_type": draw.choice(("constant_with_warmup", "linear", "cosine")),
        "max_completion_length": draw.choice((16, 24)),
        "logging_steps": draw.choice((1, 1, 10)),
    }
    return plain(folder, seed, **{**settings, **changes})


def between(part: float) -> Any:
    """A model with weights part of the way from the student's to the teacher's."""
    model, teacher = speaker("plain"), speaker("vowels").state_dict()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.lerp_(teacher[name], part)
    return model


def close(folder: str, seed: int, **changes: Any) -> Any:
    """A student that is near its teacher from the start: little divergence to lose, and it is lost."""
    return plain(folder, seed, student=between(0.8), **changes)


def teacher_random(folder: str, seed: int, **changes: Any) -> Any:
    """The teacher's weights were never loaded."""
    return plain(folder, seed, teacher=tiny.model(tiny.tokenizer(), seed=7), **changes)


def teacher_is_student(folder: str, seed: int, **changes: Any) -> Any:
    """The student's checkpoint was given for the teacher's."""
    return plain(folder, seed, teacher=speaker("plain"), **changes)


def rate_100x(folder: str, seed: int, **changes: Any) -> Any:
    """A learning rate a hundred times too high."""
    return plain(folder, seed, **{"learning_rate": 0.1, **changes})


def rate_jump(folder: str, seed: int, **changes: Any) -> Any:
    """From `BREAK` on the learning rate is a hundred times as high."""
    return plain(folder, seed, callbacks=[plants.RateJump(BREAK, 100.0)], **changes)


def cap_short(folder: str, seed: int, **changes: Any) -> Any:
    """A cap below the length of nearly every answer."""
    return plain(folder, seed, **{"max_completion_length": CUT, **changes})


class Replace(transformers.TrainerCallback):  # type: ignore[misc]
    """Gives a model the weights of another after `onset` updates."""

    def __init__(self, onset: int, model: Any, other: Any) -> None:
        self.onset, self.model, self.other = onset, model, other

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Load them once."""
        if state.global_step == self.onset:
            self.model.load_state_dict(self.other.state_dict())


def teacher_lost(folder: str, seed: int, **changes: Any) -> Any:
    """After `BREAK` the teacher's weights are random, as after a reload that found no checkpoint."""
    teacher = speaker("vowels")
    return plain(folder, seed, teacher=teacher, callbacks=[Replace(BREAK, teacher, tiny.model(tiny.tokenizer(), seed=7))], **changes)


def sdft(folder: str, seed: int, *, data: Any = None, student: Any = None, callbacks: Any = (), **changes: Any) -> Any:
    """The healthy self-distillation: the teacher is the student of the start, which reads a hint."""
    return build_distillation.sdft(folder, data=data, student=student, callbacks=callbacks, **{**SELF, "seed": seed, **changes})


def sdft_without_context(folder: str, seed: int, **changes: Any) -> Any:
    """The privileged context is empty: the teacher knows no more than the student."""
    return sdft(folder, seed, data=build_distillation.hints(""), **changes)


def sdft_rate_100x(folder: str, seed: int, **changes: Any) -> Any:
    """A learning rate a hundred times too high."""
    return sdft(folder, seed, **{"learning_rate": 3e-2, **changes})


def sdft_brief(folder: str, seed: int, **changes: Any) -> Any:
    """The hint makes the teacher answer in one or two letters: the student learns brevity instead of the task."""
    return sdft(folder, seed, student=speaker("brief"), **changes)


CASES: tuple[Case, ...] = (
    Case("distillation-twin", "distillation", "The base settings.", plain, STEPS, goal=GOAL),
    Case("distillation-healthy", "distillation", "Hyperparameters vary.", varied, STEPS, goal=GOAL, seeds=HEALTHY_SEEDS),
    Case("distillation-close", "distillation", "The student is near its teacher from the start.", close, STEPS, goal=GOAL, hard=True),
    Case(
        "distillation-teacher-random", "distillation", "The teacher has random weights.", teacher_random, STEPS, twin="distillation-twin",
        roots=("teacher-knows-nothing",), categories=("data",), verdicts=("drifting", "collapsed", "improving", "steady"), goal="-distill.teacher_surprise",
    ),
    Case(
        "distillation-teacher-is-student", "distillation", "The teacher is the student's own checkpoint.", teacher_is_student, STEPS, twin="distillation-twin",
        roots=("teacher-equals-student",), categories=("config", "stall"), verdicts=("stalled", "steady"), goal="-policy.entropy",
    ),
    Case(
        "distillation-rate-100x", "distillation", "Learning rate 0.1 instead of 0.001 from the start.", rate_100x, STEPS, twin="distillation-twin",
        roots=("step-size-too-large", "student-diverges-from-teacher", "loss-diverged"), categories=("ood-drift", "numerics"), verdicts=("diverged", "drifting", "collapsed"),
        cure={"learning_rate": 1e-3}, goal=GOAL,
    ),
    Case(
        "distillation-rate-jump", "distillation", f"After update {BREAK} the learning rate is a hundred times as high.", rate_jump, STEPS, onset=BREAK, twin="distillation-twin",
        roots=("step-size-too-large", "student-diverges-from-teacher", "learning-rate-jump", "loss-diverged"), categories=("ood-drift", "numerics"),
        verdicts=("diverged", "drifting", "collapsed"), cure={"learning_rate": 1e-3}, goal=GOAL,
    ),
    Case(
        "distillation-teacher-lost", "distillation", f"After update {BREAK} the teacher has random weights.", teacher_lost, STEPS, onset=BREAK, twin="distillation-twin",
        roots=("teacher-knows-nothing", "student-diverges-from-teacher"), categories=("data", "ood-drift"), verdicts=("drifting", "collapsed", "diverged"), goal=GOAL,
    ),
    Case(
        "distillation-cap-short", "distillation", f"Answers are cut after {CUT} tokens.", cap_short, STEPS, twin="distillation-twin",
        roots=("truncated-completions", "never-terminates", "length-near-cap"), categories=("data", "ood-drift"), verdicts=("improving", "steady", "drifting"),
        cure={"max_completion_length": 16}, goal="-completion.truncated_fraction",
    ),
    Case("sdft-twin", "sdft", "The base settings.", sdft, STEPS, goal=GOAL),
    Case(
        "sdft-without-context", "sdft", "The privileged context is empty.", sdft_without_context, STEPS, twin="sdft-twin",
        roots=("teacher-equals-student",), categories=("config", "stall"), verdicts=("stalled", "steady"), goal="-policy.entropy",
    ),
    Case(
        "sdft-rate-100x", "sdft", "Learning rate 0.03 instead of 0.0003 from the start.", sdft_rate_100x, STEPS, twin="sdft-twin",
        roots=("step-size-too-large", "student-leaves-teacher", "student-diverges-from-teacher"), categories=("numerics", "ood-drift"), verdicts=("diverged", "drifting", "collapsed"),
        cure={"learning_rate": 3e-4}, goal=GOAL,
    ),
    Case(
        "sdft-brief", "sdft", "The hint makes the teacher answer in one or two letters.", sdft_brief, STEPS, twin="sdft-twin",
        roots=("answers-shrink",), categories=("ood-drift",), verdicts=("drifting", "steady", "improving"), goal="completion.length_mean",
    ),
)  # fmt: skip
