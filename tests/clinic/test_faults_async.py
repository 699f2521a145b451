"""AsyncGRPO and AsyncDistillation: each planted fault is found under its own name; the healthy twin of the same settings is silent."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "suite"))
import build_async

from trainvitals.integrations import tiny

pytestmark = [pytest.mark.slow, pytest.mark.trl]

HEALTHY = {"learning_rate": 1e-4, "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 5}
GROUP, PER_STEP = build_async.GROUP, build_async.PER_STEP


@pytest.fixture
def run(tmp_path: Path, observe: Any) -> Any:
    """Train AsyncGRPO (or another) with the healthy settings and some changes."""

    def train(build: Any = build_async.async_grpo, **changes: Any) -> Any:
        try:
            trainer = build(str(tmp_path), **{**HEALTHY, **changes})
        except ImportError as error:
            pytest.skip(str(error))
        return observe(trainer)

    return train


def line_of(patient: Any, rule: str) -> str:
    return next(line for line in patient.said if f"({rule}, step" in line)


def test_the_healthy_twin_of_all_faults_below_is_silent(run):
    patient = run(max_steps=90)
    assert patient.loud == {}
    assert patient.monitor.verdict.state in {"improving", "steady"}


def test_a_weight_transfer_that_takes_nothing(run):
    patient = run(max_steps=12, sampler={"takes": "nothing"})
    assert patient.loud == {"sampler-weights-frozen": 4}  # step 1 has a learning rate of 0, then three syncs
    said = line_of(patient, "sampler-weights-frozen")
    assert said.startswith("[TRL] ERROR: 3 weight syncs in a row handed the sampler the weights that it already had")
    assert "Stop and check the sync" in said


def test_a_sampler_that_forgets_what_it_received(run):
    patient = run(max_steps=45, sampler={"takes": "and-forgets"})
    # The ratios that run away with it are its effect, not a matter of step size.
    assert set(patient.loud) == {"sampler-left-behind"}
    assert patient.loud["sampler-left-behind"] <= 30
    said = line_of(patient, "sampler-left-behind")
    assert "neither the age of the samples nor the learning rate explains it" in said
    assert "Check that a weight sync reaches the sampler" in said


def test_a_sampler_that_cannot_keep_up(run):
    patient = run(max_steps=30, sampler={"ahead": GROUP, "per_sync": 0, "seconds": 0.1})
    assert set(patient.loud) == {"rollout-starved"}
    assert patient.loud["rollout-starved"] <= 25
    said = line_of(patient, "rollout-starved")
    assert said.startswith("[TRL] WARNING: The trainer waits for rollouts ")
    assert "Generation is the bottleneck. Consider more inference capacity" in said


def test_a_weight_transfer_that_takes_long(tmp_path, observe):
    least = tmp_path / "least.yaml"
    least.write_text("rules:\n  - {id: weight-sync-slow, params: {least: 0.1}, reason: a tiny model}\n")
    told = {}
    for seconds in (0.2, 0.0):
        trainer = build_async.async_grpo(str(tmp_path / str(seconds)), **HEALTHY, max_steps=46)
        owner = trainer.weight_transfer if hasattr(getattr(trainer, "weight_transfer", None), "send_weights") else trainer.rollout_worker
        owner.send_weights = delayed(owner.send_weights, seconds)
        told[seconds] = observe(trainer, overrides=[least])
    assert 40 <= told[0.2].fired["weight-sync-slow"] <= 46, told[0.2].said
    assert "weight-sync-slow" not in told[0.0].fired
    assert told[0.2].loud == told[0.0].loud == {}


def delayed(method: Callable[..., Any], seconds: float) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        time.sleep(seconds)
        return method(*args, **kwargs)

    return call


def test_a_trainer_that_cannot_keep_up(run):
    patient = run(
        max_steps=30, max_staleness=16, queue_maxsize=160, sampler={"ahead": 160, "per_sync": 2 * PER_STEP, "maxsize": 160}
    )
    assert set(patient.loud) == {"rollout-backpressure"}
    assert patient.loud["rollout-backpressure"] <= 25
    assert "the trainer is the bottleneck" in line_of(patient, "rollout-backpressure")


def test_samples_thrown_away_because_the_queue_outlives_them(run):
    patient = run(max_steps=40, sampler={"ahead": 4 * PER_STEP, "per_sync": PER_STEP + GROUP})
    assert set(patient.loud) == {"rollout-backpressure"}
    effects = {finding.rule.id for finding in patient.monitor.findings if finding.suppressed_by}
    assert "samples-too-stale" in effects  # true as well, and explained by the queue


def test_rollouts_that_come_to_take_as_long_as_is_allowed(run):
    def slow(sampler: Any, version: int) -> None:
        if version == 22:
            sampler.lag = 4

    patient = run(max_steps=50, sampler={"at_version": slow})
    assert set(patient.loud) == {"samples-too-stale"}
    assert 30 <= patient.loud["samples-too-stale"] <= 47
    assert "policy versions old (limit 4)" in line_of(patient, "samples-too-stale")
    assert run(max_steps=30, sampler={"lag": 4}).loud == {}, "that age from the first updates on is a choice"


def test_a_learning_rate_a_hundred_times_too_high(run):
    patient = run(max_steps=40, learning_rate=1e-2)
    assert "clip-ratio-high" in patient.loud
    assert "sampler-left-behind" not in patient.fired  # KL to the sampler is high from the start: nothing is stale
    assert "Consider reducing the learning rate." in line_of(patient, "clip-ratio-high")


def test_a_reward_that_breaks(run):
    calls = 0

    def vowels(completions: Any, **kwargs: Any) -> list[float]:
        nonlocal calls
        calls += 1
        return tiny.vowels(completions, **kwargs) if calls < 40 else [0.0] * len(completions)

    patient = run(max_steps=85, reward=vowels)
    assert 40 < patient.loud["reward-collapse"] <= 60
    assert min(patient.loud.values()) > 36  # nothing before the break
    assert {"reward-collapse", "advantage-collapse"} <= set(patient.fired)


def test_distillation_has_a_healthy_twin_and_faults_of_its_own(run):
    build = build_async.async_distillation
    assert run(build, max_steps=40).loud == {}
    assert run(build, max_steps=10, sampler={"takes": "nothing"}).loud == {"sampler-weights-frozen": 4}
    assert set(run(build, max_steps=30, sampler={"ahead": GROUP, "per_sync": 0, "seconds": 0.1}).loud) == {"rollout-starved"}


def test_workers_with_another_template(run):
    """What is asked stays the same; only the tokens around it are gone."""
    big = {"per_device_train_batch_size": 8 * GROUP, "max_steps": 24}

    def upgrade(sampler: Any, version: int) -> None:
        if version == 17:
            sampler._prompts = tiny.questions()

    patient = run(**big, sampler={"ahead": 8 * GROUP, "per_sync": 8 * GROUP, "at_version": upgrade})
    assert 18 <= patient.loud["prompt-frame-changed"] <= 22
    assert min(patient.loud.values()) >= 18
    assert "the chat template, the system prompt or the kind of prompt has changed" in line_of(patient, "prompt-frame-changed")


def test_workers_with_other_questions(run):
    """The template stays; what is asked is another data set."""

    def upgrade(sampler: Any, version: int) -> None:
        if version == 17:
            sampler._prompts = [text.replace("plus", "divided by the root of") for text in sampler._prompts]

    patient = run(
        per_device_train_batch_size=8 * GROUP, max_steps=48, sampler={"ahead": 8 * GROUP, "per_sync": 8 * GROUP, "at_version": upgrade}
    )
    assert patient.loud["prompt-drift"] > 18
    assert "prompt-frame-changed" not in patient.fired


def test_the_twin_with_large_batches_is_silent(run):
    assert run(per_device_train_batch_size=8 * GROUP, max_steps=48, sampler={"ahead": 8 * GROUP, "per_sync": 8 * GROUP}).loud == {}
