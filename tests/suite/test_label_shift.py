"""How far the learned token lies behind the token that is read: 1 in sound training, whatever makes the loss; 0 and 2 where labels are moved too little or twice."""

from __future__ import annotations

import math
from typing import Any

import build_supervised as build
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainvitals.integrations import tiny
from trainvitals.integrations.label_shift import MOVES, lying, move_of, moved_sums, place_of

pytestmark = pytest.mark.trl

SHIFT, RULE = "token.label_shift", "labels-not-shifted"
SETTINGS = {"learning_rate": 1e-4, "max_steps": 8, "per_device_train_batch_size": 2, "max_length": 64}


def settings(**changes: Any) -> dict[str, Any]:
    """Where TRL has a choice, the loss that is a plain cross entropy."""
    from trl import SFTConfig

    return {**SETTINGS, **({"loss_type": "nll"} if "loss_type" in SFTConfig.__dataclass_fields__ else {}), **changes}


def moved(trainer: Any, by: int) -> None:
    """Move the labels of training batches before the loss, which moves them by one itself."""
    right = trainer.compute_loss

    def wrong(model: Any, inputs: dict[str, Any], *rest: Any, **more: Any) -> Any:
        wider = {name: torch.nn.functional.pad(inputs[name], (1, 1), value=fill) for name, fill in (("input_ids", 0), ("attention_mask", 0), ("labels", -100))}
        return right(model, {**inputs, **wider, "labels": wider["labels"].roll(by, dims=1)}, *rest, **more)

    trainer.compute_loss = wrong


def findings(seen: Any) -> set[str]:
    return {one.rule.id for one in seen.callback.monitor.findings}


@pytest.mark.parametrize(("by", "shift"), [(0, 1.0), (1, 0.0), (-1, 2.0)], ids=["right", "repeats", "skips"])
@pytest.mark.parametrize("steps", [1, 2], ids=["one", "accumulated"])
def test_labels_that_are_moved_before_the_loss(tmp_path, train, by, shift, steps):
    trainer = build.sft(str(tmp_path), rows=build.completions(), model=tiny.policy(tiny.tokenizer()), **settings(gradient_accumulation_steps=steps))
    moved(trainer, by)
    seen = train(trainer)
    assert seen.notices == []
    told = seen.series(SHIFT)  # from logits not in each update: this policy knows little, and two of three cross entropies may be too near
    assert len(told) >= 4
    assert set(told.values()) == {shift}
    assert (RULE in findings(seen)) == (shift != 1)
    assert "padding-learned" not in findings(seen)


def own_loss(by: int, own: bool) -> Any:
    """A loss from logits that moves labels by `by`, as a mean over the micro-batch (`own`) or over the update's labels."""

    def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        width = labels.shape[1]
        summed = torch.nn.functional.cross_entropy(outputs.logits[:, : width - by].flatten(0, 1), labels[:, by:].flatten(), reduction="sum")
        return summed / ((labels[:, by:] != -100).sum() if own or num_items_in_batch is None else num_items_in_batch)

    return loss


@pytest.mark.parametrize("own", [False, True], ids=["all", "own"])
@pytest.mark.parametrize("by", MOVES)
def test_a_loss_of_ones_own(tmp_path, train, by, own):
    from transformers import Trainer, TrainingArguments

    vocabulary = tiny.tokenizer()
    rows = [{"input_ids": vocabulary(text)["input_ids"]} for text in tiny.questions()]
    arguments = TrainingArguments(**tiny.arguments(str(tmp_path), learning_rate=1e-4, max_steps=4, per_device_train_batch_size=2))
    trainer = Trainer(
        model=tiny.policy(vocabulary), args=arguments, train_dataset=rows, data_collator=build.MaskPadding(vocabulary), compute_loss_func=own_loss(by, own)
    )
    seen = train(trainer)
    assert seen.notices == []
    assert seen.series(SHIFT) == {step: float(by) for step in (1, 2, 3, 4)}


def test_a_model_that_knows_nothing_and_another_loss_tell_nothing(tmp_path, train):
    trainer = build.sft(str(tmp_path / "other"), rows=build.completions(), **settings())
    right = trainer.compute_loss
    trainer.compute_loss = lambda model, inputs, *rest, **more: right(model, inputs, *rest, **more) * 1.5
    seen = train(trainer)
    assert seen.notices == []
    assert seen.series(SHIFT) == {}
    seen = train(build.sft(str(tmp_path / "smooth"), rows=build.completions(), **settings(label_smoothing_factor=0.1)))
    assert SHIFT not in seen.start.emits
    flat = [30.0, 30.1, 29.9]
    assert move_of(3.0, flat, [10.0] * 3, [math.nan]) is None  # the three are too near each other


def test_where_labels_lie():
    ids = torch.tensor([[5, 6, 7, 8, 0], [6, 5, 9, 0, 0]])
    labels = torch.tensor([[-100, -100, 7, 8, -100], [-100, 5, 9, -100, -100]])
    assert lying(ids, labels).tolist() == [0, 4, 0, 4]
    assert place_of(lying(ids, labels).tolist()) == 0
    assert place_of(lying(ids, labels.roll(1, dims=1)).tolist()) == -1
    assert place_of(lying(ids, labels.roll(-1, dims=1)).tolist()) == 1
    assert place_of(lying(ids, torch.where(labels == 9, 4, labels)).tolist()) is None  # one label is no token of the row
    assert place_of(lying(ids, torch.full_like(ids, -100)).tolist()) is None
    same = torch.full((1, 4), 3)
    assert place_of(lying(same, torch.tensor([[-100, 3, 3, -100]])).tolist()) is None  # all alike: anything fits


def test_sums_at_each_move():
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 9, 11), torch.randint(0, 11, (2, 9))
    sums = moved_sums(type("Output", (), {"logits": logits}), labels)
    for at, move in enumerate(MOVES):
        want = torch.nn.functional.cross_entropy(logits[:, : 9 - move].flatten(0, 1), labels[:, move:].flatten(), reduction="sum")
        assert sums[:, at].tolist() == pytest.approx([float(want), 2 * (9 - move)], rel=1e-5)
    assert moved_sums(object(), labels) is None
    assert moved_sums(type("Output", (), {"logits": logits[:, 1:]}), labels) is None


SUMS, COUNTS = [40.0, 20.0, 60.0], [10.0, 9.0, 8.0]


@given(st.sampled_from([0, 1, 2]), st.floats(1 / 1.0049, 1.0049), st.sampled_from(["own", "accumulated", "items", "rank"]))
def test_the_loss_that_fits_is_found(at, off, kind):
    scale = {"own": COUNTS[at], "accumulated": 4 * COUNTS[at], "items": 30.0, "rank": 15.0}[kind]
    summed = [1000.0, 500.0, 1500.0] if kind == "accumulated" else SUMS  # so that the divisors are not each other's
    found = move_of(summed[at] / scale * off, summed, COUNTS, [30.0, 15.0] if kind in {"items", "rank"} else [math.nan], steps=4 if kind == "accumulated" else 1)
    assert found in {None, MOVES[at]} if kind in {"items", "rank"} else found == MOVES[at]


@pytest.mark.parametrize("loss", [math.nan, math.inf, 0.0, -1.0, 2.5, 1e-9])
def test_a_loss_that_is_none_of_them(loss):
    assert move_of(loss, SUMS, COUNTS, [math.nan]) is None


def test_only_the_head_at_one_is_known():
    assert move_of(20 / 9, [math.nan, 20.0, math.nan], [math.nan, 9.0, math.nan], [math.nan]) == 1
    assert move_of(4.0, [math.nan, 20.0, math.nan], [math.nan, 9.0, math.nan], [math.nan]) is None
    assert move_of(1e-6, [math.nan, 9e-6, math.nan], [math.nan, 9.0, math.nan], [math.nan]) is None  # rounding
    assert move_of(3.0, [30.0, 33.0, 60.0], [10.0] * 3, [math.nan]) == 0
    assert move_of(3.0, [30.0, 30.4, 60.0], [10.0] * 3, [math.nan]) is None  # the second is within three times what may be off
    assert move_of(3.0, [30.0, 30.4, 60.0], [10.0] * 3, [math.nan], near=1.004) == 0
