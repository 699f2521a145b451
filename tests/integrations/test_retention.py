"""`RetentionProbe` under real training: right numbers, no trace in the training, and no harm when something is wrong."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from trainvitals import HeldoutProbe, VitalsCallback, attach
from trainvitals.experimental import RetentionProbe
from trainvitals.integrations import generating, retention, tiny
from trainvitals.items import Frame

pytestmark = pytest.mark.trl

CHATS = [[{"role": "user", "content": text}] for text in tiny.questions(4)]
STEADY = {"learning_rate": 3e-3, "lr_scheduler_type": "constant"}


@pytest.fixture(autouse=True)
def _knows(request, monkeypatch):
    """The untrained model of these tests knows nothing, which one test is about; for the others that is enough."""
    if "knows_nothing" not in request.node.name:
        monkeypatch.setattr(retention, "_BLIND", 2.0)


def looks(monitor: Any) -> dict[int, float]:
    return {item.step: item.values["eval.unlearned"] for item in monitor.items if isinstance(item, Frame) and "eval.unlearned" in item.values}


class Weights(TrainerCallback):
    """The weights before each update, and random numbers and modes that another callback finds there."""

    def __init__(self) -> None:
        self.weights: list[dict[str, torch.Tensor]] = []
        self.drawn: list[tuple[Any, ...]] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.weights.append({name: weight.clone() for name, weight in model.state_dict().items()})
        self.drawn.append((random.random(), float(np.random.random()), float(torch.rand(1)), tuple(module.training for module in model.modules())))


def test_training_is_the_same_to_the_last_bit_and_the_numbers_are_right(tmp_path, monitor):
    seen: list[Weights] = []
    probe = RetentionProbe(CHATS, every=2, max_new_tokens=8)
    for name in ("without", "with"):
        trainer = tiny.sft(str(tmp_path / name), max_steps=5, **STEADY)
        if name == "with":
            trainer.add_callback(probe)
        seen.append(Weights())
        trainer.add_callback(seen[-1])
        attach(trainer, monitor=monitor if name == "with" else type(monitor)())
        trainer.train()
    for one, other in zip(seen[0].weights, seen[1].weights, strict=True):
        assert all(torch.equal(weight, other[name]) for name, weight in one.items())
    assert seen[0].drawn == seen[1].drawn
    assert looks(monitor) == dict(probe.history)
    assert [step for step, _ in probe.history] == [0, 2, 4, 5]
    assert probe.history[0][1] == 0.0
    assert "eval.unlearned" in monitor.start.emits
    lost = {}  # by another way: cross entropy of each answer under the weights of then
    model = tiny.model(tiny.tokenizer())
    for step in (0, 4):
        model.load_state_dict(seen[1].weights[step])
        model.eval()
        losses = []
        for prompt, answer in probe._answers:
            ids = torch.tensor([prompt + answer])
            with torch.no_grad():
                logits = model(input_ids=ids).logits
            losses.append(torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="none")[-len(answer) :])
        lost[step] = float(torch.cat(losses).mean())
    assert dict(probe.history)[4] == pytest.approx(lost[4] - lost[0], rel=1e-4)
    assert abs(dict(probe.history)[4]) > 0.05


def test_beside_a_heldout_probe_both_are_expected(tmp_path, monitor):
    """A `VitalsCallback` that knows no trainer hears of both from the control object."""
    checker = HeldoutProbe(lambda completions, **given: [1.0] * len(completions), CHATS, every=2, max_new_tokens=4)
    trainer = tiny.sft(str(tmp_path), max_steps=2, callbacks=[checker, RetentionProbe(CHATS, every=2, max_new_tokens=4), VitalsCallback(monitor=monitor)], **STEADY)
    trainer.train()
    assert {"eval.score", "eval.unlearned"} <= monitor.start.emits
    assert sorted(looks(monitor)) == [0, 2]


def test_without_it_nobody_expects_its_signal(tmp_path, monitor):
    trainer = tiny.sft(str(tmp_path), max_steps=1)
    attach(trainer, monitor=monitor)
    trainer.train()
    assert "eval.unlearned" not in monitor.start.emits


def test_a_start_that_knows_nothing_switches_it_off(tmp_path, monitor, capsys):
    probe = RetentionProbe(CHATS, every=1, max_new_tokens=8)
    trainer = tiny.sft(str(tmp_path), max_steps=3, callbacks=[probe])
    attach(trainer, monitor=monitor)
    trainer.train()
    assert probe.off
    assert probe.history == []
    assert capsys.readouterr().err.count("there is nothing to keep") == 1
    assert trainer.state.global_step == 3


def test_what_raises_switches_it_off_with_one_line(tmp_path, monitor, monkeypatch, capsys):
    probe = RetentionProbe(CHATS, every=1, max_new_tokens=8)
    trainer = tiny.sft(str(tmp_path), max_steps=3, callbacks=[probe])
    monkeypatch.setattr(trainer.model, "generate", lambda **given: 1 / 0)
    attach(trainer, monitor=monitor)
    trainer.train()
    assert trainer.state.global_step == 3
    assert capsys.readouterr().err.count("RetentionProbe switched off: ZeroDivisionError") == 1
    assert monitor.boundaries("eval_begin") == monitor.boundaries("eval_end") == [0]


def test_a_sharded_model_is_not_asked(tmp_path, monitor, monkeypatch, capsys):
    monkeypatch.setattr(generating, "_PARTS", frozenset({"Parameter"}))
    trainer = tiny.sft(str(tmp_path), max_steps=2, callbacks=[RetentionProbe(CHATS, every=1)])
    attach(trainer, monitor=monitor)
    trainer.train()
    assert looks(monitor) == {}
    assert capsys.readouterr().err.count("RetentionProbe switched off: the model is sharded") == 1


def test_nobody_to_publish_to_is_said_once(tmp_path, capsys):
    trainer = tiny.sft(str(tmp_path), max_steps=3, callbacks=[RetentionProbe(CHATS, every=1)])
    trainer.train()
    assert capsys.readouterr().err.count("there is no VitalsCallback in this trainer") == 1


@pytest.mark.parametrize("wrong", [{"prompts": []}, {"every": 0}, {"batch_size": 0}, {"max_new_tokens": 0}])
def test_what_cannot_work_is_refused(wrong):
    with pytest.raises(ValueError, match="at least"):
        RetentionProbe(**wrong)


def test_the_general_prompts_are_the_default():
    assert [prompt[0]["content"] for prompt in RetentionProbe().prompts] == list(retention.GENERAL)


def test_a_loop_that_never_begins_a_step_is_told_so(tmp_path, monitor, capsys):
    """PPO's: callbacks hear of ends alone, and at the first of them the start is gone."""
    trainer = tiny.sft(str(tmp_path), max_steps=3, callbacks=[RetentionProbe(CHATS, every=1)])
    trainer.callback_handler.on_step_begin = lambda args, state, control: control
    attach(trainer, monitor=monitor)
    trainer.train()
    assert looks(monitor) == {}
    assert capsys.readouterr().err.count("never says that a step begins") == 1
