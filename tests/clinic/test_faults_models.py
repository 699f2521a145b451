"""Adapters and mixtures of experts: faults planted into real training, each beside a healthy twin."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.clinic.ward.cases import by_id
from tests.clinic.ward.record import train
from transformers import TrainerCallback

sys.path.insert(0, str(Path(__file__).parent.parent / "suite"))

import build_models
import peft

from trainvitals.integrations import tiny
from trainvitals.integrations.moe import routers_of

pytestmark = [pytest.mark.slow, pytest.mark.trl]

HEALTHY = {"learning_rate": 2e-4, "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 5}
YOUNG = {**HEALTHY, "learning_rate": 1e-4}
ONSET = 30


def line_about(patient: Any, rule: str) -> str:
    """The line on the console that reports a rule."""
    return next(line for line in patient.said if f"({rule}, step" in line)


# ---- adapters ----


def loaded(folder: Path, *, trainable: bool) -> Any:
    """The tiny policy with an adapter from disk."""
    peft.get_peft_model(tiny.policy(tiny.tokenizer()), build_models.lora()).save_pretrained(folder)
    return peft.PeftModel.from_pretrained(tiny.policy(tiny.tokenizer()), folder, is_trainable=trainable)


@pytest.mark.parametrize("name", ["sft", "grpo"])
def test_an_adapter_that_was_loaded_frozen(tmp_path, observe, name):
    # Silent in both frameworks: with checkpointing the embeddings are made to require gradients, so the loss can be differentiated.
    build, settings = getattr(build_models, name), {**HEALTHY, "max_steps": 15, "gradient_checkpointing": True}
    patient = observe(build(str(tmp_path / "fault"), model=loaded(tmp_path / "adapter", trainable=False), **settings))
    # GRPO's blocked gradient is an error behind this warning, so it is told as well, once, after its cause.
    assert patient.loud == {"adapter-not-learning": 10, **({"gradient-blocked": 10} if name == "grpo" else {})}
    line = line_about(patient, "adapter-not-learning")
    assert "100% of the adapters have not moved in 10 updates; none of the trainable parameters receive a gradient." in line
    assert "is_trainable=True" in line
    twin = observe(build(str(tmp_path / "twin"), model=loaded(tmp_path / "adapter", trainable=True), **settings))
    assert twin.loud == {}


def test_an_optimizer_that_was_built_before_the_adapter(tmp_path, observe):
    settings = {**YOUNG, "max_steps": 40}
    trainer = build_models.dpo(str(tmp_path / "fault"), peft=build_models.lora(), **settings)
    others = [torch.nn.Parameter(p.detach().clone()) for p in trainer.model.parameters() if p.requires_grad]
    trainer.optimizer = torch.optim.AdamW(others, lr=settings["learning_rate"])
    patient = observe(trainer)
    assert patient.loud == {"parameters-left-out": 1, "adapter-not-learning": 10}  # the cause, then how bad it is
    assert "Now an error, after parameters-left-out: " in line_about(patient, "adapter-not-learning")
    assert "100% of the trainable parameters receive a gradient" in line_about(patient, "adapter-not-learning")
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert losses == pytest.approx([0.6931] * len(losses), abs=1e-3)  # as in huggingface/trl#1311
    twin = observe(build_models.dpo(str(tmp_path / "twin"), peft=build_models.lora(), **settings))
    assert twin.loud == {}


@pytest.mark.parametrize(("name", "rate", "steps", "harm"), [("sft", 2e-4, 60, 4), ("grpo", 1e-4, 20, 5)])
def test_a_learning_rate_a_hundred_times_too_high(tmp_path, observe, name, rate, steps, harm):
    build, settings = getattr(build_models, name), {**HEALTHY, "max_steps": steps}
    fault = build(str(tmp_path / "fault"), peft=build_models.lora(), **{**settings, "learning_rate": 100 * rate})
    patient = observe(fault)
    assert patient.loud == {"adapter-learning-rate-high": harm}  # when two updates have moved the weights by a twentieth, not before
    assert "Consider 1e-4 to 2e-4 for supervised training and 1e-5 for reinforcement learning." in line_about(
        patient, "adapter-learning-rate-high"
    )
    twin = observe(build(str(tmp_path / "twin"), peft=build_models.lora(), **{**settings, "learning_rate": rate}))
    assert twin.loud == {}


@pytest.mark.parametrize(("case", "said"), [("dpo-both-fall", {}), ("dpo-lora-twin", {}), ("dpo-no-anchor", {"adapter-learning-rate-high"})])
def test_a_high_rate_is_told_by_what_it_does_to_the_chosen_answers(tmp_path, case, said):
    callback = train(by_id(case), 77, str(tmp_path))
    assert {finding.rule.id for finding in callback.monitor.findings if finding.severity != "info" and not finding.suppressed_by} == set(said)


def test_an_adapter_a_hundred_times_too_strong(tmp_path, observe):
    settings = {**HEALTHY, "max_steps": 60}
    patient = observe(build_models.sft(str(tmp_path), peft=build_models.lora(lora_alpha=800), **settings))  # scale 200 instead of 2
    assert 20 < patient.loud["adapter-outgrows-base"] <= 41  # three readings, of updates 1, 11, 21, ...
    assert patient.monitor.verdict.state == "drifting"
    assert "times as large as the weights that they correct" in line_about(patient, "adapter-outgrows-base")


# ---- mixtures of experts ----


class Push(TrainerCallback):
    """Adds to the weights of every router, before update `at`: a constant on the logits of each expert."""

    def __init__(self, at: int, strength: dict[int, float]) -> None:
        self.at, self.strength = at, strength

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step != self.at - 1:
            return
        vocabulary, routers = tiny.tokenizer(), routers_of(model)
        texts = [vocabulary.apply_chat_template(row["messages"], tokenize=False) for row in tiny.dialogues()]
        batch = vocabulary(texts, return_tensors="pt", padding=True)
        real = batch["attention_mask"].reshape(-1).bool()
        for router in routers:  # one after the other: the first changes what the second sees
            seen: list[torch.Tensor] = []
            handle = router.module.register_forward_pre_hook(lambda module, args, into=seen: into.append(args[0].detach()))
            with torch.no_grad():
                model(**batch)
                hidden = seen[0].reshape(-1, seen[0].shape[-1])[real].double()  # in single precision the solution hangs on the rounding of the process
                direction = torch.linalg.lstsq(hidden, torch.ones(len(hidden), 1, dtype=torch.float64)).solution[:, 0].float()  # nearly 1 for every token
                for expert, strength in self.strength.items():
                    router.module.weight[expert] += strength * direction
            handle.remove()


def fast_router(trainer: Any, rate: float) -> Any:
    """The router's weights in a group of their own, at a hundred times the learning rate, and no auxiliary loss to hold them."""
    model = trainer.model
    model.config.output_router_logits, model.config.router_aux_loss_coef, model.router_aux_loss_coef = False, 0.0, 0.0
    trainer.aux_loss_enabled = False
    ids = {id(weight) for router in routers_of(model) for weight in router.module.parameters()}
    groups = [
        {"params": [p for p in model.parameters() if (id(p) in ids) == fast], "lr": 100 * rate if fast else rate}
        for fast in (False, True)
    ]
    trainer.optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    return trainer


def mixture() -> Any:
    return build_models.mixture(tiny.tokenizer())


def test_a_healthy_mixture_is_silent_under_sft(tmp_path, observe):
    twin = observe(build_models.sft(str(tmp_path), model=mixture(), max_steps=100, **YOUNG))
    assert twin.loud == {}


def test_a_router_that_is_pushed_to_two_experts(tmp_path, observe):
    patient = observe(
        build_models.sft(str(tmp_path), model=mixture(), max_steps=70, callbacks=[Push(ONSET, {0: 200, 1: 100})], **YOUNG)
    )
    assert ONSET < patient.loud["router-collapse"] <= ONSET + 25
    assert set(patient.loud) == {"router-collapse", "weights-changed-outside"}, "a callback writes them, and not the optimizer"
    line = line_about(patient, "router-collapse")
    assert "the router has collapsed. Raise router_aux_loss_coef" in line
    assert patient.monitor.verdict.state == "collapsed"


def test_an_expert_that_dies(tmp_path, observe):
    settings = {**YOUNG, "learning_rate": 3e-5}  # at three times the rate the others' router collapses first on some processors
    patient = observe(build_models.sft(str(tmp_path), model=mixture(), max_steps=100, callbacks=[Push(ONSET, {3: -200})], **settings))
    assert ONSET + 40 <= patient.loud["dead-experts"] <= ONSET + 60
    assert "% of the experts have had no tokens for 40 updates, 0% when the run was young." in line_about(patient, "dead-experts")


def test_a_router_that_learns_a_hundred_times_too_fast_under_sft(tmp_path, observe):
    rate, settings = 3e-4, {**YOUNG, "max_steps": 60}
    patient = observe(fast_router(build_models.sft(str(tmp_path / "fault"), model=mixture(), **settings), rate))
    told = [patient.loud[rule] for rule in ("router-collapse", "router-saturated") if rule in patient.loud]  # which end it takes hangs on the processor
    assert told, patient.loud
    assert min(told) <= 55
    twin = observe(build_models.sft(str(tmp_path / "twin"), model=mixture(), **{**settings, "learning_rate": rate}))
    assert twin.loud == {}


def test_a_router_that_learns_a_hundred_times_too_fast_under_grpo(tmp_path, observe):
    settings = {**YOUNG, "max_steps": 45}
    patient = observe(fast_router(build_models.grpo(str(tmp_path / "fault"), model=mixture(), **settings), 1e-4))
    assert patient.loud["router-collapse"] <= 45
    twin = observe(build_models.grpo(str(tmp_path / "twin"), model=mixture(), **settings))
    assert twin.loud == {}
