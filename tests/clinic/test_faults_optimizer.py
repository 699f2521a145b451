"""What the optimizer holds, reaches and remembers: faults planted in real training, each beside a healthy twin."""

from __future__ import annotations

import os
import sys
from collections import namedtuple
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
import transformers

from trainvitals.integrations import tiny
from trainvitals.integrations.trl import attach
from trainvitals.monitor import Monitor

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "suite"))
import build_models
import build_preference
import build_supervised as build

pytestmark = [pytest.mark.slow, pytest.mark.trl]

CALM = {"learning_rate": 1e-3, "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 5, "max_steps": 14}


def without_first_layer() -> Any:
    model = tiny.model(tiny.tokenizer())
    model.model.layers[0].requires_grad_(False)
    return model


class Thaw(transformers.TrainerCallback):
    """Thaws the first layer in the middle of the run, as a schedule for gradual unfreezing does; once with the optimizer, once without."""

    def __init__(self, *, tell_optimizer: bool) -> None:
        self.tell_optimizer = tell_optimizer

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **kwargs: Any) -> None:
        if state.global_step == 6:
            model.model.layers[0].requires_grad_(True)
            if self.tell_optimizer:
                # transformers' scheduler knows one rate per group, so it joins a group that exists
                optimizer.param_groups[0]["params"].extend(model.model.layers[0].parameters())


def test_a_layer_that_is_thawed_after_the_optimizer_was_made(tmp_path, observe):
    patient = observe(build.sft(str(tmp_path / "fault"), model=without_first_layer(), callbacks=[Thaw(tell_optimizer=False)], **CALM))
    assert patient.loud == {"parameters-left-out": 7}, patient.said
    assert any("40% of the trainable numbers have a gradient and are in no group of the optimizer" in line for line in patient.said)
    twin = observe(build.sft(str(tmp_path / "twin"), model=without_first_layer(), callbacks=[Thaw(tell_optimizer=True)], **CALM))
    assert twin.loud == {}


def test_a_disk_without_room_for_two_checkpoints(tmp_path, observe, monkeypatch):
    room = namedtuple("Room", "f_bavail f_frsize")
    real = os.statvfs(tmp_path)
    settings = {**CALM, "save_strategy": "steps", "save_steps": 5}
    monkeypatch.setattr(os, "statvfs", lambda place: room(1_000_000, 1))  # the tiny model and its moments are 0.9 MB
    patient = observe(build.sft(str(tmp_path / "fault"), **settings))
    assert patient.loud == {"disk-nearly-full": 1}, patient.said
    monkeypatch.setattr(os, "statvfs", lambda place: real)
    assert observe(build.sft(str(tmp_path / "twin"), **settings)).loud == {}


def test_adapters_on_the_attention_alone(tmp_path, observe):
    for targets, told in ((["q_proj", "v_proj"], True), ("all-linear", False)):
        patient = observe(build_models.sft(str(tmp_path / str(told)), peft=build_models.lora(target_modules=targets), **{**CALM, "max_steps": 4, "warmup_steps": 0}))
        assert ("adapter-attention-only" in patient.fired) is told
        assert patient.loud == {}


def test_an_optimizer_for_another_copy_of_the_model(tmp_path, observe):
    trainer = build.sft(str(tmp_path), **{**CALM, "warmup_steps": 0, "lr_scheduler_type": "constant"})
    trainer.optimizer = torch.optim.AdamW(tiny.model(tiny.tokenizer()).parameters(), lr=1e-3)
    patient = observe(trainer)
    assert patient.loud == {"parameters-left-out": 1}, patient.said


def test_a_graph_that_is_cut_in_the_middle(tmp_path, observe):
    model = tiny.model(tiny.tokenizer())
    model.model.layers[0].register_forward_hook(lambda module, args, out: (out[0].detach(), *out[1:]) if isinstance(out, tuple) else out.detach())
    patient = observe(build.sft(str(tmp_path), model=model, **CALM))
    assert patient.loud == {"parameters-never-reached": 10}, patient.said
    assert any("40% of the trainable numbers have not had a gradient in any update" in line for line in patient.said)


@pytest.mark.parametrize("lost", [False, True])
@pytest.mark.parametrize("optim", ["adamw_torch", "sgd"])
def test_a_resume_without_the_optimizer(tmp_path, lost, optim):
    """`save_only_model` writes no optimizer.pt, and transformers resumes without a word. Plain SGD has nothing to lose."""
    settings = {**CALM, "optim": optim, "save_strategy": "steps", "save_steps": 6, "max_steps": 6}
    build.sft(str(tmp_path), **settings, save_only_model=lost).train()
    checkpoint = tmp_path / "checkpoint-6"
    assert (checkpoint / "optimizer.pt").exists() is not lost
    trainer = build.sft(str(tmp_path), **{**settings, "max_steps": 12}, save_only_model=lost)
    with Monitor(console=False, fail_soft=False) as monitor:
        attach(trainer, monitor=monitor)
        trainer.train(resume_from_checkpoint=os.fspath(checkpoint))
    loud = {one.rule.id: one.step for one in monitor.findings if one.state == "firing" and one.severity != "info"}
    assert loud == ({"resumed-without-optimizer": 7} if lost and optim != "sgd" else {})


@pytest.mark.parametrize("share", [0.9, 0.1])
def test_dropout_that_no_setting_tells_of(tmp_path, observe, share):
    """Behind each layer, by a hook, as a part of a model may hold it; at a tenth, far more than the usual kind at a tenth, it is not told."""

    def drop(module: Any, args: Any, out: Any) -> Any:
        state = torch.nn.functional.dropout(out[0] if isinstance(out, tuple) else out, share, training=module.training)
        return (state, *out[1:]) if isinstance(out, tuple) else state

    model = tiny.policy(tiny.tokenizer())
    for layer in model.model.layers:
        layer.register_forward_hook(drop)
    patient = observe(build_models.sft(str(tmp_path), model=model, **{**CALM, "max_steps": 31}))
    assert patient.loud == ({"forward-pass-random": 21} if share > 0.5 else {}), patient.said


@pytest.mark.slow
def test_steps_of_chance_make_the_hidden_states_grow(tmp_path, observe):
    """A reward that is drawn and not earned, at ten times the usual learning rate; at the usual rate as little is gained, and nothing grows."""
    told = {}
    for rate in (1e-2, 1e-3):
        random = Random(0)
        trainer = build_models.grpo(
            str(tmp_path / str(rate)), reward=lambda completions, random=random, **rest: [random.random() for _ in completions],
            **{**CALM, "learning_rate": rate, "max_steps": 71, "max_completion_length": 8, "per_device_train_batch_size": 16},
        )  # fmt: skip
        told[rate] = observe(trainer)
    grown = {"hidden-states-blow-up", "step-size-too-large"}  # thirty times as large as at the start they are the latter's
    assert grown & set(told[1e-2].fired), told[1e-2].said
    assert not {*grown, "features-collapse"} & set(told[1e-3].fired)


@pytest.mark.parametrize("trainer", ["grpo", "dpo"])
def test_weights_in_bfloat16_at_a_rate_that_they_cannot_take_in(tmp_path, observe, trainer):
    """What `dtype="bfloat16"` or "auto" gives: the weights themselves are in it, and Adam's step at 1e-6 is less than half of their last bit."""

    def make(name: str, dtype: torch.dtype, rate: float) -> Any:
        settings = {"max_steps": 14, "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 2, "learning_rate": rate}
        made = tiny.grpo(str(tmp_path / name), **settings) if trainer == "grpo" else build_preference.dpo(str(tmp_path / name), **settings)
        made.model.to(dtype)
        return made

    patient = observe(make("fault", torch.bfloat16, 1e-6))
    assert patient.loud.get("updates-rounded-away") == 10, patient.said
    assert any("of the weights that had a gradient stayed exactly what they were: at a learning rate of 1e-06" in line for line in patient.said)
    assert "updates-too-small" not in patient.loud
    for name, dtype, rate in (("float32", torch.float32, 1e-6), ("larger steps", torch.bfloat16, 3e-4)):
        assert "updates-rounded-away" not in observe(make(name, dtype, rate)).fired


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("right", [True, False])
def test_a_resume_that_begins_with_the_base_model(tmp_path, adapter, right):
    """Counter, schedule and optimizer come from the checkpoint; the weights are those of the base model, as where a script loads them by itself."""
    settings = {**CALM, "learning_rate": 1e-2, "save_strategy": "steps", "save_steps": 6, "max_steps": 6}

    def make(**more: Any) -> Any:
        return build_models.sft(str(tmp_path), peft=build_models.lora() if adapter else None, **{**settings, **more})

    with Monitor(console=False, fail_soft=False) as monitor:
        first = make()
        attach(first, monitor=monitor)
        first.train()
    trainer = make(max_steps=12)
    if not right:
        trainer._load_from_checkpoint = lambda *args, **more: None
    with Monitor(console=False, fail_soft=False) as monitor:
        attach(trainer, monitor=monitor)
        trainer.train(resume_from_checkpoint=os.fspath(tmp_path / "checkpoint-6"))
    loud = {one.rule.id: one.step for one in monitor.findings if one.state == "firing" and one.severity != "info" and one.rule.id.startswith("resumed")}
    assert loud == ({} if right else {"resumed-with-other-weights": 7})


class Write(transformers.TrainerCallback):
    """Writes the weights once, in the middle of the run."""

    def __init__(self, write: Any) -> None:
        self.write = write

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step == 7:
            with torch.no_grad():
                self.write(model)


def test_weights_that_somebody_else_writes(tmp_path, observe):
    start = {name: p.clone() for name, p in tiny.model(tiny.tokenizer()).state_dict().items()}
    for name, write in (("loaded", lambda model: model.load_state_dict(start)), ("a norm is scaled", lambda model: model.model.norm.weight.mul_(1.1))):
        patient = observe(build.sft(str(tmp_path / name), callbacks=[Write(write)], **{**CALM, "learning_rate": 3e-3}))
        assert patient.loud.get("weights-changed-outside") == 8, patient.said
    twin = observe(build.sft(str(tmp_path / "twin"), callbacks=[Write(lambda model: None)], **{**CALM, "learning_rate": 3e-3}))
    assert twin.loud == {}
