"""Answers that repeat themselves, in four trainers, beside a task that is solved by repeating."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "suite"))

import build_preference
import build_sampling

from trainvitals.integrations import tiny

pytestmark = [pytest.mark.slow, pytest.mark.trl]

FAST = {"learning_rate": 1e-3, "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 5}


def series(folder: Path, name: str) -> list[float]:
    """A signal, from what the run wrote."""
    records = [json.loads(line) for line in (folder / "vitals" / "rank0.jsonl").read_text().splitlines()]
    return [record["values"][name] for record in records if record["kind"] == "signal" and name in record.get("values", {})]


def endless_e(completions: list[Any], **kwargs: Any) -> list[float]:
    """One letter, as often as there is room, whether the answer ends or not."""
    return [tiny.text_of(text).count("e") / 16 for text in completions]


def many_e(completions: list[Any], completion_ids: Any = None, **kwargs: Any) -> list[float]:
    """The letter e, up to sixteen times, in an answer that ends: a task that is solved by repeating."""
    ended = [tiny.END_ID in ids for ids in completion_ids]
    return [min(tiny.text_of(text).count("e"), 16) / 16 * end for text, end in zip(completions, ended, strict=True)]


BUILDS = {
    "grpo": (build_sampling.grpo, {"max_completion_length": 32}),
    "rloo": (build_sampling.rloo, {"max_completion_length": 32, "beta": 0.0}),  # its penalty holds the policy off
    "online_dpo": (build_preference.online_dpo, {"max_new_tokens": 32}),
}


@pytest.mark.parametrize("name", BUILDS)
def test_loops_that_run_into_the_cap(tmp_path, observe, name):
    build, cap = BUILDS[name]
    patient = observe(build(str(tmp_path), reward=endless_e, max_steps=70, **cap, **FAST))
    assert 20 < patient.loud["answers-loop"] <= 70
    line = next(line for line in patient.said if "(answers-loop" in line)
    assert line.startswith("[TRL] ERROR: ")
    assert "answers run into the cap" in line


def test_a_task_that_is_solved_by_repeating(tmp_path, observe):
    patient = observe(build_sampling.grpo(str(tmp_path), reward=many_e, max_steps=125, max_completion_length=32, **FAST))
    assert series(tmp_path, "completion.repetition_fraction")[-1] > 0.3
    assert patient.rewards[-1] > patient.rewards[0] + 0.2
    assert "answers-loop" not in patient.fired
