"""Inputs of a reward model against those of the run's start: numbers, and a real training whose reward model is read."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from trainvitals.integrations import reward_range  # noqa: E402
from trainvitals.integrations.reward_range import CALIBRATION, REFERENCE, _Range, _step_end, last_features  # noqa: E402


class Recorder:
    """What a family hands over."""

    training = True

    def __init__(self) -> None:
        self.given: list[dict[str, float]] = []

    def put(self, tensors: Any, compute: Any) -> None:
        self.given.append(compute(list(tensors)))


def feed(reader: Any, hooks: Any, hidden: Any) -> dict[str, float]:
    """One update of one batch without padding."""
    reader.before_backbone((), {"attention_mask": None})
    reader.before_head((hidden,), {})
    count = len(hooks.given)
    _step_end(hooks, [reader])
    return hooks.given[-1] if len(hooks.given) > count else {}


def test_the_feature_is_that_of_the_last_token_on_either_side_of_the_padding():
    hidden = torch.arange(24, dtype=torch.float32).reshape(2, 4, 3)
    weight = torch.tensor([[0.0, 0.0, 2.0]])
    right = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    left = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    assert last_features(hidden, right, weight).tolist() == [[3, 4, 0], [21, 22, 0]]
    assert last_features(hidden, left, weight).tolist() == [[9, 10, 0], [21, 22, 0]]
    assert last_features(hidden, None, weight).tolist() == [[9, 10, 0], [21, 22, 0]]


def test_the_share_is_one_per_cent_until_something_changes():
    generator = torch.Generator().manual_seed(0)
    hooks, head = Recorder(), torch.nn.Linear(16, 1, bias=False)
    reader = _Range(hooks, head)
    mixing = torch.randn(16, 16, generator=generator)  # features hang together

    def batch(offset: Any = 0.0) -> Any:
        return (torch.randn(32, 1, 16, generator=generator) @ mixing + offset).float()

    quiet = [feed(reader, hooks, batch()) for _ in range((REFERENCE + CALIBRATION) // 32)]
    assert not any(quiet)
    shares = [feed(reader, hooks, batch())["reward.model_outside_fraction"] for _ in range(60)]
    assert 0.0 < np.mean(shares) < 0.04
    along = 40 * head.weight.detach() / torch.linalg.vector_norm(head.weight.detach())
    paid = [feed(reader, hooks, batch(along))["reward.model_outside_fraction"] for _ in range(20)]
    assert np.mean(paid) < 0.04  # what the policy is paid for does not count
    other = torch.randn(1, 16, generator=generator) * 12
    strange = [feed(reader, hooks, batch(other))["reward.model_outside_fraction"] for _ in range(20)]
    assert np.mean(strange) > 0.6


def test_a_feature_that_is_not_finite_is_outside():
    reader = _Range(Recorder(), torch.nn.Linear(2, 1))
    reader.outside([1.0] * CALIBRATION)
    assert reader.outside([0.5, float("nan")]) == 0.5


def test_an_evaluation_is_not_read():
    hooks = Recorder()
    hooks.training = False
    reader = _Range(hooks, torch.nn.Linear(16, 1))
    assert feed(reader, hooks, torch.randn(32, 1, 16)) == {}
    assert reader.distances == []


def test_a_real_reward_model_under_grpo(tmp_path, monkeypatch):
    """The distances are those of features that the model gives when it is asked again."""
    pytest.importorskip("trl")
    from transformers import AutoModelForSequenceClassification, PrinterCallback
    from trl import GRPOConfig, GRPOTrainer

    from trainvitals.integrations import tiny
    from trainvitals.integrations.trl import attach
    from trainvitals.items import Frame
    from trainvitals.monitor import Monitor

    monkeypatch.setattr(reward_range, "REFERENCE", 64)
    monkeypatch.setattr(reward_range, "CALIBRATION", 64)
    vocabulary = tiny.tokenizer()
    policy = tiny.policy(vocabulary)
    config = copy.deepcopy(policy.config)
    config.num_labels = 1
    torch.manual_seed(0)
    judge = AutoModelForSequenceClassification.from_config(config)
    asked: list[Any] = []
    forward = judge.forward

    def keep(*args: Any, **kwargs: Any) -> Any:
        asked.append({name: kwargs[name].clone() for name in ("input_ids", "attention_mask")})
        return forward(*args, **kwargs)

    judge.forward = keep
    settings = tiny.arguments(str(tmp_path), max_steps=6, num_generations=8, per_device_train_batch_size=32, max_completion_length=16)
    trainer = GRPOTrainer(
        model=policy, reward_funcs=judge, args=GRPOConfig(**settings), train_dataset=tiny.prompts(), processing_class=vocabulary,
        reward_processing_classes=vocabulary,
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    frames: list[Any] = []
    with Monitor(console=False, fail_soft=False) as monitor:
        monitor.bus.subscribe("test", frames.append)
        attach(trainer, monitor=monitor)
        trainer.train()
    told = [frame.values["reward.model_outside_fraction"] for frame in frames if isinstance(frame, Frame) and "reward.model_outside_fraction" in frame.values]
    assert len(asked) == 6
    features = []
    with torch.no_grad():
        for inputs in asked:
            hidden = judge.model(**inputs).last_hidden_state
            last = inputs["attention_mask"].sum(1) - 1  # TRL pads on the right
            features.append(hidden[torch.arange(len(last)), last].double().numpy())
    weight = judge.score.weight.detach().double().numpy()[0]
    weight = weight / np.linalg.norm(weight)
    features = [part - np.outer(part @ weight, weight) for part in features]
    start = np.concatenate(features[:2])
    mean, variance = start.mean(0), start.var(0)
    distance = [(((part - mean) ** 2) / np.maximum(variance, 1e-12)).mean(1) for part in features]
    limit = np.quantile(np.concatenate(distance[2:4]), 0.99)
    assert told == pytest.approx([float((part > limit).mean()) for part in distance[4:]])
