"""Around the updates: checkpoints and evaluations that take long, and memory of the host that runs out, in real training."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from trainvitals.integrations import housekeeping

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "suite"))
import build_supervised as build

pytestmark = [pytest.mark.slow, pytest.mark.trl]

CALM = {"learning_rate": 1e-3, "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 5}


def delayed(method: Callable[..., Any], seconds: float) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        time.sleep(seconds)
        return method(*args, **kwargs)

    return call


def test_a_slow_disk_and_a_long_evaluation(tmp_path, observe):
    patience = tmp_path / "patience.yaml"
    line = "  - {{id: {}, params: {{patience: 10}}, reason: a short run}}\n"
    patience.write_text("rules:\n" + line.format("checkpoints-take-long") + line.format("evaluations-take-long"))
    told = {}
    for slow in (True, False):
        trainer = build.sft(
            str(tmp_path / str(slow)), held_out=build.dialogues(4), **CALM, max_steps=24, save_strategy="steps", save_steps=6, eval_strategy="steps", eval_steps=6
        )
        if slow:
            trainer._save_checkpoint = delayed(trainer._save_checkpoint, 2.0)
            trainer.evaluate = delayed(trainer.evaluate, 4.0)
        told[slow] = observe(trainer, overrides=[patience])
    assert {"checkpoints-take-long", "evaluations-take-long"} <= set(told[True].fired), told[True].said
    assert list(told[True].loud) == ["checkpoints-take-long"]
    assert told[False].loud == {}


class Keeps(transformers.TrainerCallback):
    """Keeps two megabytes of every update, as a list of losses with their graphs does; ends the run early."""

    def __init__(self, numbers: int) -> None:
        self.numbers, self.kept = numbers, []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.kept.append(torch.ones(self.numbers))
        control.should_training_stop = state.global_step >= 320


def test_a_list_that_grows_until_the_host_has_no_memory_left(tmp_path, observe, monkeypatch):
    real = housekeeping.host_memory
    monkeypatch.setattr(housekeeping, "host_memory", lambda: {**real(), "memory.host_available_bytes": 1e8})
    patient = observe(build.sft(str(tmp_path / "fault"), callbacks=[Keeps(500_000)], **CALM, max_steps=600))
    assert list(patient.loud) == ["host-memory-leak"], patient.said
    assert 300 <= patient.loud["host-memory-leak"] <= 312
    twin = observe(build.sft(str(tmp_path / "twin"), callbacks=[Keeps(1)], **CALM, max_steps=600))
    assert twin.loud == {}
