"""SFT and reward models: what is counted in the batch agrees with a slow count of the same batch, in every way of packing it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import build_supervised as build
import numpy as np
import pytest
import torch

from trainvitals.integrations import tiny
from trainvitals.integrations.reward_model import pair_lengths, score_signals
from trainvitals.integrations.supervised import (
    SIGNALS,
    answer_prints,
    label_counts,
    label_signals,
    padding_counts,
    sequences,
    short_rows,
    turn_markers,
)

pytestmark = pytest.mark.trl

CALM = {"learning_rate": 1e-4, "lr_scheduler_type": "constant", "max_steps": 3}
LABELS = sorted(name for name in SIGNALS if name.startswith("token.") and name != "token.commonest_answer_fraction")


class Batches:
    """A collator that keeps what it made."""

    def __init__(self, inner: Callable[..., dict[str, Any]]) -> None:
        self.inner = inner
        self.made: list[dict[str, torch.Tensor]] = []

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        batch = self.inner(rows)
        self.made.append({name: value.clone() for name, value in batch.items() if isinstance(value, torch.Tensor)})
        return batch


def keep_batches(trainer: Any) -> list[dict[str, torch.Tensor]]:
    trainer.data_collator = Batches(trainer.data_collator)
    return trainer.data_collator.made


def documents(batch: dict[str, torch.Tensor]) -> list[tuple[list[int], list[int]]]:
    """Ids and labels of each document of a batch, token by token."""
    found: list[tuple[list[int], list[int]]] = []
    for row, (ids, labels) in enumerate(zip(batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True)):
        fresh = True
        for at, (token, label) in enumerate(zip(ids, labels, strict=True)):
            if "attention_mask" in batch and not batch["attention_mask"][row, at]:
                continue
            if "position_ids" in batch:
                fresh = int(batch["position_ids"][row, at]) == 0
            if fresh:
                found.append(([], []))
            fresh = False
            found[-1][0].append(token)
            found[-1][1].append(label)
    return [one for one in found if len(one[0]) > 1]


def slowly(batch: dict[str, torch.Tensor], end: int, limit: int) -> dict[str, float]:
    """The label signals of a batch, from its documents."""
    rows = [labels[1:] for _, labels in documents(batch)]
    labelled = [row for row in rows if any(label != -100 for label in row)]
    cut = [row for row in labelled if limit and len(row) + 1 >= limit and end not in row[-2:]]
    tokens = [label != -100 for row in rows for label in row]
    values = {
        "token.label_fraction": sum(tokens) / len(tokens),
        "token.unlabelled_batch_fraction": float(not labelled),
        "token.unlabelled_sequence_fraction": 1 - len(labelled) / len(rows),
    }
    if any(tokens):
        values["token.pad_label_fraction"] = 0.0
    if labelled:
        values["token.cut_fraction"] = len(cut) / len(labelled)
    if len(labelled) > len(cut):
        values["token.end_label_fraction"] = sum(end in row for row in labelled if row not in cut) / (len(labelled) - len(cut))
    return values


def test_sft_emits_what_is_on_record(tmp_path, train, saw):
    seen = train(build.sft(str(tmp_path), **{**CALM, "per_device_train_batch_size": 32}))
    assert seen.notices == []
    saw("sft", seen)
    assert {key.split("{")[0] for frame in seen.frames for key in frame.values} <= seen.start.emits
    assert seen.series("optim.loss_raw") == pytest.approx(seen.logged("loss"), abs=1e-4)
    assert seen.series("optim.loss_start") == {1: seen.series("optim.loss_raw")[1]}
    assert all(frame.values["token.label_fraction"] == 1.0 for frame in seen.frames)  # language modelling: every token counts


@pytest.mark.parametrize(
    ("settings", "conversation"),
    [
        ({"assistant_only_loss": True}, True),
        ({"completion_only_loss": True}, False),
        ({"completion_only_loss": False}, False),
        ({"packing": True, "packing_strategy": "bfd"}, False),
        ({"packing": True, "packing_strategy": "wrapped"}, False),
        ({"padding_free": True, "max_length": None}, False),
        ({"padding_free": True, "max_length": None, "pad_to_multiple_of": 64}, True),
        ({"max_length": 27}, False),  # cuts the answers off, some of them wholly
    ],
    ids=lambda value: "-".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else "chat" if value else "pairs",
)
def test_labels_are_counted_as_they_are(tmp_path, train, settings, conversation):
    rows = build.dialogues() if conversation else build.completions()
    trainer = build.sft(str(tmp_path), rows=rows, **CALM, **settings)
    batches = keep_batches(trainer)
    seen = train(trainer)
    assert seen.notices == []
    ends = [slowly(batch, tiny.END_ID, settings.get("max_length", 64) or 0) for batch in batches]
    for step, frame in enumerate(seen.frames):
        assert {name: frame.values[name] for name in LABELS if name in frame.values} == pytest.approx(ends[step]), step
        mask = batches[step].get("attention_mask")
        padding = 0.0 if mask is None else 1.0 - float(mask.float().mean())
        assert frame.values["data.padding_fraction"] == pytest.approx(padding, abs=1e-6), step
    if settings.get("max_length") == 27:
        assert max(seen.series("token.cut_fraction").values()) > 0.3
    elif "packing" not in settings:
        assert set(seen.series("token.end_label_fraction").values()) == {1.0}


def test_micro_batches_are_counted_together(tmp_path, train):
    vocabulary = tiny.tokenizer()
    collator = build.ResponseOnly(vocabulary, "three<|im_end|>\n<|im_start|>assistant\n")  # found in a few rows only
    trainer = build.sft(
        str(tmp_path), collator=collator, gradient_accumulation_steps=4, **{**CALM, "per_device_train_batch_size": 2}
    )
    batches = keep_batches(trainer)
    seen = train(trainer)
    for step, frame in enumerate(seen.frames):
        part = [slowly(batch, tiny.END_ID, 64) for batch in batches[4 * step : 4 * step + 4]]
        assert frame.values["token.unlabelled_batch_fraction"] == pytest.approx(sum(p["token.unlabelled_batch_fraction"] for p in part) / 4)
        assert frame.values["token.unlabelled_sequence_fraction"] == pytest.approx(sum(p["token.unlabelled_sequence_fraction"] for p in part) / 4)
    assert 0 < seen.series("token.unlabelled_batch_fraction")[1] <= 1


@pytest.mark.parametrize("dead", [False, True])
def test_tokens_that_were_never_trained(tmp_path, train, dead):
    trainer = build.sft(str(tmp_path), rows=build.completions(), **CALM)
    embedding = trainer.model.get_input_embeddings().weight
    if dead:
        with torch.no_grad():
            embedding[tiny.END_ID] *= 1e-4
    batches = keep_batches(trainer)
    seen = train(trainer)
    assert seen.notices == []
    real = batches[0]["attention_mask"].bool()
    ends = float(((batches[0]["input_ids"] == tiny.END_ID) & real).sum() / real.sum())
    assert ends > 0
    assert seen.series("data.untrained_token_fraction") == {1: pytest.approx(ends if dead else 0.0)}


def test_an_embedding_that_is_not_whole_here_is_not_looked_at():
    class Model:
        def __init__(self, weight):
            self.weight = weight

        def get_input_embeddings(self):
            return self

    assert short_rows(Model(torch.tensor([[1.0, 1.0], [0.0, 0.0], [1.0, 2.0]]))).tolist() == [False, True, False]
    for weight in (None, torch.empty(0), torch.ones(6), torch.ones((3, 2), dtype=torch.uint8), torch.ones((3, 2), device="meta")):
        assert short_rows(Model(weight)).numel() == 0


def test_no_label_at_all(tmp_path, train):
    vocabulary = tiny.tokenizer()
    seen = train(build.sft(str(tmp_path), collator=build.ResponseOnly(vocabulary, "### Response:"), **CALM))
    assert set(seen.series("token.label_fraction").values()) == {0.0}
    assert set(seen.series("token.unlabelled_batch_fraction").values()) == {1.0}
    assert seen.series("token.end_label_fraction") == {}  # there is nothing to judge


def test_an_end_token_that_is_masked_as_padding(tmp_path, train):
    vocabulary = tiny.tokenizer()
    vocabulary.pad_token = vocabulary.eos_token
    seen = train(build.sft(str(tmp_path), vocabulary=vocabulary, collator=build.MaskPadding(vocabulary), **CALM))
    assert set(seen.series("token.end_label_fraction").values()) == {0.0}
    assert min(seen.series("token.label_fraction").values()) > 0.8
    twin = train(build.sft(str(tmp_path), vocabulary=vocabulary, **CALM))  # TRL's own collator masks by position, not by id
    assert set(twin.series("token.end_label_fraction").values()) == {1.0}


def test_a_loss_function_that_takes_the_labels_away(tmp_path, train):
    trainer = build.sft(str(tmp_path), loss_type="nll", **CALM)  # TRL 1.12 fails with its default, chunked_nll
    trainer.compute_loss_func = lambda outputs, labels, num_items_in_batch=None: outputs.logits.float().square().mean()
    seen = train(trainer)
    assert set(seen.series("token.label_fraction").values()) == {1.0}


def test_an_evaluation_is_not_counted(tmp_path, train):
    trainer = build.sft(str(tmp_path), rows=build.completions(), held_out=build.dialogues(8), eval_strategy="steps", eval_steps=1, **CALM)
    seen = train(trainer)
    assert max(seen.series("token.label_fraction").values()) < 0.3  # every token of a held-out row has a label


def test_a_plain_trainer_with_labels(tmp_path, train):
    from transformers import Trainer, TrainingArguments

    vocabulary = tiny.tokenizer()
    rows = [{"input_ids": vocabulary(text)["input_ids"]} for text in tiny.questions()]
    arguments = TrainingArguments(**tiny.arguments(str(tmp_path), **CALM))
    collator = build.MaskPadding(vocabulary)
    seen = train(Trainer(model=tiny.model(vocabulary), args=arguments, train_dataset=rows, data_collator=collator))
    assert seen.notices == []
    assert set(seen.series("token.label_fraction").values()) == {1.0}
    assert set(seen.series("token.end_label_fraction").values()) == {0.0}


def test_padding_on_the_left_and_padding_of_a_flat_batch():
    ids = torch.tensor([[9, 9, 5, 6, 2], [5, 6, 7, 7, 2]])
    labels = torch.tensor([[-100, -100, 5, 6, 2], [-100, -100, -100, 7, 2]])
    where = sequences(ids, torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]), None)
    assert where.start.long().argmax(1).tolist() == [2, 0]
    counts = label_counts(labels, where, frozenset({2}), 0)
    assert counts.tolist() == [6, 4, 2, 2, 2, 0]
    flat = torch.tensor([[5, 6, 2, 7, 8, 9, 9, 9]])
    where = sequences(flat, None, torch.tensor([[0, 1, 2, 0, 1, 0, 0, 0]]))
    counts = label_counts(torch.where(flat == 9, -100, flat), where, frozenset({2}), 0)
    assert counts.tolist() == [3, 3, 2, 2, 1, 0]
    assert label_signals(counts[None])["token.end_label_fraction"] == 0.5


def test_a_cut_sequence_is_known_by_how_it_closes():
    """Not by end tokens anywhere: a conversation that is learned as a whole holds those of earlier turns."""
    ids = torch.tensor([[5, 2, 6, 7, 7], [5, 2, 6, 7, 2], [5, 2, 6, 2, 7], [5, 2, 6, 9, 9], [5, 7, 6, 7, 9]])  # cut, whole, whole with a line break, short, short without end
    where = sequences(ids, (ids != 9).long(), None)
    counts = label_counts(torch.where(ids == 9, -100, ids), where, frozenset({2}), 5)
    assert counts.tolist() == [17, 17, 5, 5, 3, 1]
    assert label_signals(counts[None])["token.cut_fraction"] == 0.2
    assert label_signals(counts[None])["token.end_label_fraction"] == 0.75
    flat, places = ids[:2].reshape(1, -1), torch.arange(5).repeat(2)[None]  # the same two rows in one
    where = sequences(flat, None, places)
    assert label_counts(flat, where, frozenset({2}), 5).tolist() == [8, 8, 2, 2, 1, 1]


@pytest.mark.parametrize(
    ("template", "openers", "closers"),
    [
        ("{% for m in messages %}<h>{{ m.role }}</h>{{ m.content }}<e>{% endfor %}", {"</h>"}, {"<e>", "<|im_end|>"}),  # Llama 3
        (
            "{% for m in messages %}{% if m.role == 'user' %}<h>{{ m.content }}</h>{% else %}{{ m.content }}<e>{% endif %}{% endfor %}",
            {"<h>"}, {"</h>", "<e>", "<|im_end|>"},
        ),  # Mistral: what closes the user's turn opens the other
        ("{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}", set(), {"<|im_end|>"}),
        ("{{ raise_exception('no') }}", set(), set()),
        (None, set(), set()),
    ],
)  # fmt: skip
def test_turn_markers_are_learned_from_the_template(template, openers, closers):
    vocabulary = tiny.tokenizer()
    vocabulary.add_special_tokens({"additional_special_tokens": ["<h>", "</h>", "<e>"]})
    vocabulary.chat_template = template
    found = turn_markers(vocabulary)
    assert tuple(set(vocabulary.convert_ids_to_tokens(list(part))) for part in found) == (openers, closers)


def test_padding_among_the_labels():
    ids = torch.tensor([[5, 6, 2, 9, 9], [5, 6, 7, 8, 2]])
    mask = (ids != 9).long()
    right, ones = torch.where(ids == 9, -100, ids), torch.ones_like(mask)
    masked, bare = sequences(ids, mask, None)[0], sequences(ids, ones, None)[0]
    assert padding_counts(ids, right, masked, 9, frozenset({2})).tolist() == [0, 6]
    assert padding_counts(ids, ids, masked, 9, frozenset({2})).tolist() == [2, 8]  # labels are a copy of the ids
    assert padding_counts(ids, ids, masked, None, frozenset({2})).tolist() == [2, 8]
    assert padding_counts(ids, ids, bare, 9, frozenset({2})).tolist() == [2, 8]  # and nothing is masked out
    assert padding_counts(ids, ids, bare, None, frozenset({2})).tolist() == [0, 8]
    ends = torch.tensor([[5, 6, 2, 2, 2], [5, 6, 7, 2, 2], [5, 2, 2, 2, 2]])  # padded with the end token: two are the answer's own end
    bare = torch.ones_like(ends).bool()
    assert padding_counts(ends, ends, bare, 2, frozenset({2})).tolist() == [3, 12]
    assert padding_counts(ends, torch.where(ends == 2, -100, ends), bare, 2, frozenset({2})).tolist() == [0, 3]
    inside = torch.tensor([[9, 9, 5, 9, 6]])  # not at the end: a separator, or padding of another kind
    assert padding_counts(inside, inside, torch.ones_like(inside).bool(), 9, frozenset({2})).tolist() == [0, 4]
    shifted = torch.nn.functional.pad(right, (1, 0), value=-100)[:, :-1]  # the last label lies on padding, and is a real token
    assert padding_counts(ids, shifted, masked, 9, frozenset({2})).tolist()[0] == 0
    filled = torch.where(masked, right, 4)  # some other number where padding is
    assert padding_counts(ids, filled, masked, 9, frozenset({2})).tolist()[0] == int((~masked).sum())


def test_fingerprints_of_answers_however_they_are_packed():
    ids = torch.tensor([[5, 6, 7, 2, 9, 9], [8, 8, 6, 7, 2, 9], [5, 6, 2, 9, 9, 9], [5, 7, 6, 2, 9, 9]])
    labels = torch.tensor([[-100, 6, 7, 2, -100, -100], [-100, -100, 6, 7, 2, -100], [-100] * 6, [-100, 7, 6, 2, -100, -100]])
    where = sequences(ids, (ids != 9).long(), None)
    rows = answer_prints(labels, where)
    assert rows.shape == (64,)
    assert rows[0] == rows[1] != 0
    assert rows[2] == 0
    assert rows[3] not in (0, rows[0])
    flat = where.real.flatten()
    places = torch.cat([torch.arange(int(row.sum())) for row in where.real])[None]
    packed = answer_prints(labels.flatten()[flat][None], sequences(ids.flatten()[flat][None], None, places))
    assert packed.tolist() == rows.tolist()


@pytest.mark.parametrize("packing", [{}, {"packing": True, "packing_strategy": "bfd"}], ids=["rows", "packed"])
def test_one_answer_to_every_question(tmp_path, train, packing):
    rows = [{**row, "completion": [{"role": "assistant", "content": "none"}]} for row in build.completions()]
    settings = {**CALM, "per_device_train_batch_size": 16, "max_steps": 4, **packing}
    seen = train(build.sft(str(tmp_path), rows=rows, completion_only_loss=True, **settings))
    assert seen.notices == []
    assert set(seen.series("token.commonest_answer_fraction").values()) == {1.0}


def test_padding_that_is_trained_on(tmp_path, train):
    trainer = build.sft(str(tmp_path), **CALM)
    inner = trainer.data_collator

    def collate(rows):
        batch = inner(rows)
        return {**batch, "labels": batch["input_ids"].clone()}

    trainer.data_collator = collate
    seen = train(trainer)
    for frame in seen.frames:
        assert frame.values["data.padding_fraction"] > 0
        assert frame.values["token.pad_label_fraction"] == pytest.approx(frame.values["data.padding_fraction"], rel=0.1)


def test_padding_that_a_loss_of_one_s_own_adds(tmp_path, train):
    trainer = build.sft(str(tmp_path), **CALM)
    right = trainer.compute_loss

    def padded(model, inputs, *rest, **more):
        def wider(tensor, value):
            return torch.nn.functional.pad(tensor, (0, 20), value=value)

        ids, pad = wider(inputs["input_ids"], trainer.processing_class.pad_token_id), trainer.processing_class.pad_token_id
        labels = torch.where(ids == pad, pad, wider(inputs["labels"], -100))
        return right(model, {**inputs, "input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids)}, *rest, **more)

    trainer.compute_loss = padded
    seen = train(trainer)
    assert seen.notices == []
    assert min(seen.series("token.pad_label_fraction").values()) > 0.3
    assert not trainer.model._forward_pre_hooks


# ---- reward models ----


def test_reward_emits_what_is_on_record(tmp_path, train, saw):
    trainer = build.reward(str(tmp_path), **{**CALM, "per_device_train_batch_size": 4}, gradient_accumulation_steps=2)
    batches, scores = keep_batches(trainer), []
    trainer.model.register_forward_hook(lambda module, args, out: scores.append(out.logits.detach().double().squeeze(-1).numpy()))
    seen = train(trainer)
    assert seen.notices == []
    saw("reward", seen)
    assert {key.split("{")[0] for frame in seen.frames for key in frame.values} <= seen.start.emits
    for name, raw in (("preference.margin", "margin"), ("preference.accuracy", "accuracy"), ("preference.score_mean", "mean_reward")):
        assert seen.series(name) == pytest.approx(seen.logged(raw), abs=1e-4), name
    for step, frame in enumerate(seen.frames):
        want = by_hand(batches[2 * step : 2 * step + 2], scores[2 * step : 2 * step + 2])
        assert {name: frame.values[name] for name in want} == pytest.approx(want, abs=1e-5), step


def by_hand(batches: list[dict[str, torch.Tensor]], scores: list[np.ndarray]) -> dict[str, float]:
    """Signals of one update, from its pairs one by one."""
    pairs = []
    for batch, score in zip(batches, scores, strict=True):
        half = len(score) // 2
        texts = [ids[mask.bool()].tolist() for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
        for i in range(half):
            first, second = texts[i], texts[i + half]
            common = next((at for at, (x, y) in enumerate(zip(first, second, strict=False)) if x != y), min(len(first), len(second)))
            pairs.append((score[i], score[i + half], len(first) - common, len(second) - common))
    chosen, rejected, long, short = np.array(pairs, dtype=float).T
    residual = np.concatenate([chosen - chosen.mean(), rejected - rejected.mean()])
    lengths = np.concatenate([long - long.mean(), short - short.mean()])
    return {
        "preference.margin": (chosen - rejected).mean(),
        "preference.margin_std": (chosen - rejected).std(ddof=1),
        "preference.negative_margin_fraction": (chosen < rejected).mean(),
        "preference.identical_fraction": 0.0,
        "preference.longer_chosen_fraction": ((long > short) + 0.5 * (long == short)).mean(),
        "preference.score_std": np.concatenate([chosen, rejected]).std(ddof=1),
        "preference.length_correlation": np.corrcoef(residual, lengths)[0, 1],
    }


def test_pairs_that_are_the_same(tmp_path, train):
    seen = train(build.reward(str(tmp_path), rows=build.pairs(choose=build.same), **CALM))
    assert set(seen.series("preference.identical_fraction").values()) == {1.0}
    assert set(seen.series("preference.negative_margin_fraction").values()) == {0.0}  # ties, although the accuracy is 0
    assert set(seen.series("preference.margin_std").values()) == {0.0}


def test_lengths_without_the_common_prompt():
    ids = torch.tensor([[1, 1, 5, 6, 0], [1, 1, 5, 5, 5], [1, 1, 7, 0, 0], [1, 1, 5, 5, 5]])
    chosen, rejected, same = pair_lengths(ids, (ids != 0).long())
    assert (chosen.tolist(), rejected.tolist(), same.tolist()) == ([2, 0], [1, 0], [False, True])


def test_the_correlation_is_what_length_explains_beyond_the_preference():
    """Chosen twice as long and always better, but within each kind the score does not follow the length."""
    generator = torch.Generator().manual_seed(0)
    long, short = (torch.randint(low, low + 10, (400,), generator=generator).double() for low in (20, 5))
    noise = torch.randn(2, 400, generator=generator, dtype=torch.double)
    same = torch.zeros(400)
    judged = score_signals(2 + noise[0], -2 + noise[1], long, short, same)
    assert abs(judged["preference.length_correlation"]) < 0.1
    counted = score_signals(long + noise[0], short + noise[1], long, short, same)
    assert counted["preference.length_correlation"] > 0.9
    assert "preference.length_correlation" not in score_signals(noise[0], noise[1], torch.ones(400), torch.ones(400), same)


def test_a_loss_that_gathers_no_scores_says_so_once(tmp_path, train):
    trainer = build.reward(str(tmp_path), **CALM)
    trainer.compute_loss = lambda model, inputs, return_outputs=False, num_items_in_batch=None: model(
        input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]
    ).logits.mean()
    seen = train(trainer)
    assert len(seen.notices) == 1
    assert "did not gather its scores" in seen.notices[0]
    assert math.isfinite(seen.series("optim.loss_raw")[3])
