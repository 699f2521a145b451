"""Faults planted into GRPO and RLOO, each found under its own name; the healthy twin of the same length stays silent."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "suite"))

import build_sampling

from trainvitals.integrations import tiny

pytestmark = [pytest.mark.slow, pytest.mark.trl]

HEALTHY = {"learning_rate": 1e-4, "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 5}
ONSET = 22


def said(patient: Any, rule: str) -> str:
    """The line on the console about a rule."""
    return next(line for line in patient.said if f"({rule}, step" in line)


def series(folder: Path, name: str) -> dict[int, float]:
    """A signal by step, from what the run wrote."""
    records = [json.loads(line) for line in (folder / "vitals" / "rank0.jsonl").read_text().splitlines()]
    return {record["step"]: record["values"][name] for record in records if record["kind"] == "signal" and name in record.get("values", {})}


def unfinished_too(completions: list[Any], **kwargs: Any) -> list[float]:
    """Share of vowels, for an answer that was cut as well."""
    return tiny.vowels(completions)


class Judge:
    """The vowel task until an update, then something else."""

    __name__ = "judge"

    def __init__(self, then: Any, onset: int = ONSET) -> None:
        self.then, self.onset, self.calls = then, onset, 0

    def __call__(self, completions: list[Any], **kwargs: Any) -> list[Any]:
        self.calls += 1
        return tiny.vowels(completions, **kwargs) if self.calls < self.onset else self.then(completions, **kwargs)


def fails_half_of_the_time(completions: list[Any], **kwargs: Any) -> list[Any]:
    """A judge whose requests time out; the exception is swallowed and None returned."""
    scores: list[Any] = []
    random = Random(len(str(completions)))
    for score in tiny.vowels(completions, **kwargs):
        try:
            if random.random() < 0.5:
                raise TimeoutError
            scores.append(score)
        except TimeoutError:
            scores.append(None)
    return scores


def length(completions: list[Any], **kwargs: Any) -> list[float]:
    """Length in sixteenths of the cap."""
    return [len(tiny.text_of(completion)) / 16 for completion in completions]


def hard(completions: list[Any], **kwargs: Any) -> list[float]:
    """One answer in twenty is right."""
    return [float({"a", "e"} <= set(tiny.text_of(completion))) for completion in completions]


GROUP = 8
ANSWER = "aeiou"


def likeness(completions: list[Any], **kwargs: Any) -> list[float]:
    """How much of an answer the others of its group have in the same places: a vote that nobody checks."""
    texts = [tiny.text_of(completion) for completion in completions]
    groups = [texts[start : start + GROUP] for start in range(0, len(texts), GROUP)]
    return [(sum(same_places(text, other) for other in group) - 1) / (GROUP - 1) for group in groups for text in group]


def one_answer(completions: list[Any], **kwargs: Any) -> list[float]:
    """Share of the one right answer that is in its place."""
    return [same_places(tiny.text_of(completion), ANSWER) for completion in completions]


def same_places(one: str, two: str) -> float:
    """Share of places at which two texts have the same letter; 1 for two empty ones."""
    return sum(a == b for a, b in zip(one, two, strict=False)) / max(len(one), len(two)) if one or two else 1.0


def constant(completions: list[Any], **kwargs: Any) -> list[float]:
    """A parser that stopped matching."""
    return [0.0] * len(completions)


def test_the_healthy_twin_of_rloo_is_silent(tmp_path, observe):
    """That of GRPO trains for 300 steps in `test_planted_faults.py`."""
    patient = observe(build_sampling.rloo(str(tmp_path), max_steps=70, **HEALTHY))
    assert sum(patient.rewards[-10:]) > sum(patient.rewards[:10]) + 1.0
    assert patient.loud == {}
    assert not patient.off


@pytest.mark.parametrize("build", [build_sampling.grpo, build_sampling.rloo])
def test_a_judge_that_fails_half_of_the_time(tmp_path, observe, build):
    patient = observe(build(str(tmp_path), reward=Judge(fails_half_of_the_time), max_steps=ONSET + 15, **HEALTHY))
    assert ONSET <= patient.loud["scores-missing"] <= ONSET + 12
    assert all(step >= ONSET for step in patient.loud.values())
    assert "of completions got no score from any reward function" in said(patient, "scores-missing")


@pytest.mark.parametrize("build", [build_sampling.grpo, build_sampling.rloo])
def test_a_judge_that_pays_for_length(tmp_path, observe, build):
    settings = {**HEALTHY, "max_steps": 90, "learning_rate": 5e-4}
    patient = observe(build(str(tmp_path), reward=Judge(length), **settings))
    assert ONSET + 4 < patient.loud["paid-for-length"] <= 45
    assert "The policy is being paid for writing more." in said(patient, "paid-for-length")


def test_a_judge_that_pays_for_being_like_the_others(tmp_path, observe):
    """The answers stay distinct for long after they have become alike."""
    settings = {**HEALTHY, "max_steps": 100, "learning_rate": 1e-3, "num_generations": GROUP}
    patient = observe(build_sampling.grpo(str(tmp_path), reward=Judge(likeness, onset=40), **settings))
    step = patient.loud["mode-collapse"]
    assert 55 < step <= 100
    distinct = series(tmp_path, "completion.distinct_fraction")
    assert sorted(distinct[at] for at in range(step - 29, step + 1))[15] > 0.7  # a count of copies would not have said it
    assert series(tmp_path, "completion.group_overlap")[step] > 0.5
    assert "Groups of copies teach nothing." in said(patient, "mode-collapse")


def test_one_right_answer_is_no_collapse(tmp_path, observe):
    """All answers of a group become alike, since there is one to be found."""
    settings = {**HEALTHY, "max_steps": 120, "learning_rate": 1e-3, "num_generations": GROUP}
    patient = observe(build_sampling.grpo(str(tmp_path), reward=one_answer, **settings))
    overlap = series(tmp_path, "completion.group_overlap")
    assert sum(list(overlap.values())[:10]) / 10 < 0.25
    assert overlap[max(overlap)] > 0.5  # of the processor's rounding: 0.67 on one, 0.8 on another
    assert patient.loud == {}


def test_grpo_with_a_cap_that_cuts_every_answer(tmp_path, observe):
    patient = observe(build_sampling.grpo(str(tmp_path), reward=unfinished_too, max_steps=40, max_completion_length=3, **HEALTHY))
    assert {"never-terminates", "truncated-completions"} & patient.loud.keys()
    assert "max_completion_length" in " ".join(patient.said)


def test_grpo_with_groups_of_two_on_a_hard_task(tmp_path, observe):
    settings = {**HEALTHY, "max_steps": 49, "learning_rate": 1e-5}
    patient = observe(build_sampling.grpo(str(tmp_path / "fault"), reward=hard, num_generations=2, **settings))
    assert patient.loud.keys() == {"groups-too-small"}
    assert "Groups of 2 are too small for this task. Consider num_generations=8 or more, or easier prompts." in said(patient, "groups-too-small")
    # At this rate nothing is learned either, which reward-plateau says from update 50 on: the twin is about its groups.
    twin = observe(build_sampling.grpo(str(tmp_path / "twin"), reward=hard, num_generations=8, **settings))
    assert twin.loud == {}


def test_rloo_with_a_hundredfold_learning_rate(tmp_path, observe):
    settings = {**HEALTHY, "num_iterations": 4, "max_steps": 40}
    patient = observe(build_sampling.rloo(str(tmp_path / "fault"), **{**settings, "learning_rate": 1e-2}))
    assert patient.loud["clip-ratio-high"] <= 36
    line = said(patient, "clip-ratio-high")
    assert line.startswith("[TRL] WARNING: Clip ratio outside [0.8, 1.2] for ")
    assert "Consider reducing the learning rate." in line
    twin = observe(build_sampling.rloo(str(tmp_path / "twin"), **settings))
    assert twin.loud == {}


def test_rloo_with_a_reward_that_became_constant(tmp_path, observe):
    """TRL's own share of flat groups does not see it: it is taken after the KL penalty."""
    patient = observe(build_sampling.rloo(str(tmp_path), reward=Judge(constant), max_steps=ONSET + 48, **HEALTHY))
    assert ONSET < patient.loud["advantage-collapse"] <= ONSET + 45
    assert "Consider revisiting your reward function." in said(patient, "advantage-collapse")
    after = [row["frac_reward_zero_std"] for row in patient.trainer.state.log_history if "frac_reward_zero_std" in row][ONSET + 5 :]
    assert max(after) < 0.5


def test_grpo_with_a_tool_that_breaks(tmp_path, observe):
    def look(text: str) -> str:
        """Look a word up.

        Args:
            text: The word.
        """
        calls.append(text)
        if len(calls) > works["calls"]:
            raise ConnectionError("the service is gone")
        return "good"

    patients, works = {}, {"calls": 0}
    calls: list[str] = []
    for name, until in (("fault", 150), ("twin", 10**6)):
        calls.clear()
        works["calls"] = until
        try:
            trainer = build_sampling.grpo_with_tools(str(tmp_path / name), tool=look, max_steps=45, **HEALTHY)
        except (ImportError, ValueError, TypeError) as error:
            pytest.skip(f"tools need transformers 5: {str(error)[:60]}")
        patients[name] = observe(trainer)
    assert "of tool calls failed over the last 20 updates" in said(patients["fault"], "tool-calls-fail")
    assert patients["fault"].loud.keys() == {"tool-calls-fail"}
    assert patients["twin"].loud == {}
