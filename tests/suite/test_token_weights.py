"""Weights of tokens among micro-batches: as the label counts say, and 1 where the loss is divided by all tokens of the update."""

from __future__ import annotations

from typing import Any

import build_supervised as build
import pytest
import torch

from trainvitals.integrations import tiny
from trainvitals.integrations.token_weights import SAMPLE, cross_entropy, weight_ratio

pytestmark = pytest.mark.trl

MICRO = {
    "learning_rate": 1e-4, "lr_scheduler_type": "constant", "max_steps": 4, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 4,
    "loss_type": "nll",
}  # fmt: skip
RATIO = "optim.token_weight_ratio"


def uneven() -> list[dict[str, Any]]:
    """Every third answer is eight times as long."""
    rows = build.completions()
    for at, row in enumerate(rows):
        if at % 3 == 0:
            row["completion"] = [{"role": "assistant", "content": " ".join([row["completion"][0]["content"]] * 8)}]
    return rows


def mean_of_means(trainer: Any) -> list[int]:
    """Take the mean over each micro-batch's own tokens; returns how many labels each one had."""
    right, counts = trainer.compute_loss, []

    def own(model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        counts.append(int((inputs["labels"][:, 1:] != -100).sum()))
        return right(model, inputs, return_outputs, None) / 4

    trainer.compute_loss = own
    return counts


def settings(**changes: Any) -> dict[str, Any]:
    from trl import SFTConfig

    known = SFTConfig.__dataclass_fields__
    return {name: value for name, value in {**MICRO, "max_length": 160, **changes}.items() if name in known}


def test_every_token_weighs_the_same(tmp_path, train):
    seen = train(build.sft(str(tmp_path), rows=uneven(), **settings()))
    assert seen.notices == []
    assert seen.series(RATIO) == {step: pytest.approx(1.0, abs=1e-3) for step in (1, 2, 3, 4)}
    assert "tokens-weigh-unevenly" not in {one.rule.id for one in seen.callback.monitor.findings}


def test_a_mean_of_means_weighs_by_the_label_counts(tmp_path, train):
    trainer = build.sft(str(tmp_path), rows=uneven(), **settings(max_steps=8))
    counts = mean_of_means(trainer)
    seen = train(trainer)
    assert seen.notices == []
    want = {step + 1: max(part) / min(part) for step in range(8) for part in [counts[4 * step : 4 * step + 4]]}
    assert seen.series(RATIO) == {step: pytest.approx(ratio, rel=1e-3) for step, ratio in want.items()}
    assert "tokens-weigh-unevenly" in {one.rule.id for one in seen.callback.monitor.findings}


@pytest.mark.parametrize("own", [False, True], ids=["all", "own"])
def test_a_plain_trainer_whose_logits_are_there(tmp_path, train, own):
    from transformers import Trainer, TrainingArguments

    vocabulary = tiny.tokenizer()
    rows = [{"input_ids": vocabulary(text * (1 + 3 * (at % 2)))["input_ids"]} for at, text in enumerate(tiny.questions())]
    arguments = TrainingArguments(**tiny.arguments(str(tmp_path), **{name: value for name, value in MICRO.items() if name != "loss_type"}))
    trainer = Trainer(model=tiny.model(vocabulary), args=arguments, train_dataset=rows, data_collator=build.MaskPadding(vocabulary))
    counts = mean_of_means(trainer) if own else []
    seen = train(trainer)
    assert seen.notices == []
    want = [max(counts[at : at + 4]) / min(counts[at : at + 4]) for at in range(0, 16, 4)] if own else [1.0] * 4
    assert list(seen.series(RATIO).values()) == pytest.approx(want, rel=1e-3)


def test_nothing_without_accumulation_or_with_another_loss(tmp_path, train):
    seen = train(build.sft(str(tmp_path / "one"), rows=uneven(), **settings(gradient_accumulation_steps=1)))
    assert seen.series(RATIO) == {}
    assert RATIO not in seen.start.emits
    seen = train(build.sft(str(tmp_path / "smooth"), rows=uneven(), **settings(label_smoothing_factor=0.1)))
    assert RATIO not in seen.start.emits
    trainer = build.sft(str(tmp_path / "own"), rows=uneven(), **settings())
    trainer.compute_loss_func = lambda outputs, labels, num_items_in_batch=None: outputs.logits.float().square().mean()
    seen = train(trainer)
    assert seen.notices == []
    assert seen.series(RATIO) == {}  # no mean over tokens of either kind


def test_the_ratio_is_told_of_two_kinds_of_loss_alone():
    number = torch.tensor([10.0, 40.0, 20.0, 0.0])
    summed = torch.tensor([20.0, 60.0, 70.0, 0.0])
    assert weight_ratio(summed / 70, summed, number) == pytest.approx(1.0)
    assert weight_ratio(summed / number / 4, summed, number) == pytest.approx(4.0)  # a micro-batch without labels is left out
    assert weight_ratio(summed / number, summed, number) == pytest.approx(4.0)
    assert weight_ratio(summed / number / 2, summed, number, world=2) == pytest.approx(4.0)
    assert weight_ratio(summed / number * 1.5, summed, number) is None  # of another size: something else that hardly differs
    assert weight_ratio(summed / number.sqrt(), summed, number) is None
    assert weight_ratio(summed / 70 + 1.0, summed, number) is None  # an auxiliary loss
    assert weight_ratio(torch.tensor([1.0, float("nan"), 1.0, 0.0]), summed, number) is None
    assert weight_ratio(summed[:1], summed[:1], number[:1]) is None
    faint = torch.tensor([20.0, 60.0, 1e-3, 0.0])
    assert weight_ratio(faint / 70, faint, number) == pytest.approx(1.0)


def test_cross_entropy_of_labels():
    torch.manual_seed(0)
    logits, labels = torch.randn(3, 2000, 11), torch.randint(0, 11, (3, 2000))
    labels[:, 300:] = -100
    summed, number = cross_entropy(logits, labels)
    right = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100, reduction="sum")
    assert int(number) == 3 * 299 < SAMPLE
    assert float(summed) == pytest.approx(float(right), rel=1e-5)
    labels = torch.randint(0, 11, (3, 2000))
    summed, number = cross_entropy(logits, labels)
    right = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
    assert int(number) == 3 * 1999
    assert float(summed) == pytest.approx(float(right), rel=0.05)
    assert cross_entropy(logits[:, 1:], labels) is None
