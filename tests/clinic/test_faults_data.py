"""Faults of the data set that are there before the first update, each planted in real training beside a healthy twin."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import Trainer, TrainingArguments

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "suite"))
import build_preference
import build_supervised

from trainvitals.integrations import tiny

pytestmark = [pytest.mark.slow, pytest.mark.trl]

SHORT = {"learning_rate": 1e-4, "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 5, "max_steps": 6}


def line(patient: Any, rule: str) -> str:
    """What the console said when the rule fired, at the first update and alone."""
    assert patient.loud == {rule: 1}, patient.said
    return next(said for said in patient.said if f"({rule}, step" in said and "Resolved" not in said)


# ---- evaluation rows that are training rows ----


def sft(folder: str, shared: int, **changes: Any) -> Any:
    rows = build_supervised.completions(96)
    return build_supervised.sft(folder, rows=rows[:64], held_out=rows[64 - shared : 80 - shared], **{**SHORT, **changes})


def dpo(folder: str, shared: int) -> Any:
    data = build_preference.pairs(count=96)
    return build_preference.dpo(folder, data=data.select(range(64)), held_out=data.select(range(64 - shared, 80 - shared)), **SHORT)


def reward(folder: str, shared: int) -> Any:
    rows = build_supervised.pairs(96)
    return build_supervised.reward(folder, rows=rows[:64], held_out=rows[64 - shared : 80 - shared], **SHORT)


def plain(folder: str, shared: int) -> Any:
    """A `transformers.Trainer` on rows that were tokenized by hand."""
    vocabulary = tiny.tokenizer()
    ids = [vocabulary(row["text"])["input_ids"] for row in build_supervised.rendered(vocabulary)]
    ids = [one[:32] + [vocabulary.pad_token_id] * (32 - len(one)) for one in ids]
    rows = [{"input_ids": one, "labels": [-100 if token == vocabulary.pad_token_id else token for token in one]} for one in ids]
    arguments = TrainingArguments(**tiny.arguments(folder, **SHORT))
    train, held_out = Dataset.from_list(rows[:48]), Dataset.from_list(rows[48 - shared : 64 - shared])
    return Trainer(model=tiny.model(vocabulary), args=arguments, train_dataset=train, eval_dataset=held_out, processing_class=vocabulary)


@pytest.mark.parametrize("build", [sft, dpo, reward, plain])
def test_an_evaluation_set_that_was_split_twice(build: Any, tmp_path, observe) -> None:
    said = line(observe(build(str(tmp_path / "fault"), 12)), "eval-in-train")
    assert "12 evaluation rows, 75% of the set, are training rows, token by token" in said
    assert observe(build(str(tmp_path / "twin"), 0)).loud == {}


# ---- copies ----


def completions(count: int) -> list[dict[str, Any]]:
    """Rows without copies: the answers are random words."""
    return [{"prompt": row["chosen"][:1], "completion": row["chosen"][1:]} for row in build_supervised.pairs(count)]


def test_a_set_that_was_concatenated_with_itself(tmp_path, observe) -> None:
    rows = completions(240)
    said = line(observe(build_supervised.sft(str(tmp_path / "fault"), rows=rows[:120] * 2, **SHORT)), "duplicate-rows")
    assert "50% of the 240 training rows are copies of others, one is there 2 times" in said
    assert observe(build_supervised.sft(str(tmp_path / "twin"), rows=rows, **SHORT)).loud == {}


def test_one_pair_that_is_everywhere(tmp_path, observe) -> None:
    data = build_preference.pairs(count=220)
    one = data.select([*range(208), *[0] * 12])
    assert "one is there 13 times" in line(observe(build_preference.dpo(str(tmp_path / "fault"), data=one, **SHORT)), "duplicate-rows")
    assert observe(build_preference.dpo(str(tmp_path / "twin"), data=data, **SHORT)).loud == {}


# ---- order ----


def in_order(trainer: Any) -> Any:
    """Read the rows as they lie, as a sampler of one's own or ``train_sampling_strategy="sequential"`` does."""
    from torch.utils.data import SequentialSampler

    trainer._get_train_sampler = lambda *args: SequentialSampler(trainer.train_dataset)
    return trainer


def test_rows_sorted_by_length_and_not_shuffled(tmp_path, observe) -> None:
    rows = build_supervised.completions()
    for at, row in enumerate(rows):
        row["completion"][0]["content"] = "abcdefgh"[at % 8] * (1 + at // 4)
    fault, shuffled = (build_supervised.sft(str(tmp_path / name), rows=rows, **SHORT) for name in ("fault", "shuffled"))
    said = line(observe(in_order(fault)), "data-sorted")
    assert "they are sorted by length" in said
    assert observe(shuffled).loud == {}
    mixed = [rows[at * 29 % 64] for at in range(64)]
    assert observe(in_order(build_supervised.sft(str(tmp_path / "mixed"), rows=mixed, **SHORT))).loud == {}


def test_one_kind_of_answer_after_the_other(tmp_path, observe) -> None:
    """Nothing is sorted by length; the second half of the rows answers with digits, as a second data set behind the first would."""
    rows = [row for seed in range(4) for row in build_supervised.pairs(64, seed=seed)]
    rows = [{"prompt": row["chosen"][:1], "completion": row["chosen"][1:]} for row in rows]
    for row in rows[128:]:
        row["completion"] = [{"role": "assistant", "content": "".join(str(ord(letter) % 10) for letter in row["completion"][0]["content"])}]
    fault = build_supervised.sft(str(tmp_path / "fault"), rows=rows, **SHORT)
    assert "they are sorted by what they say" in line(observe(in_order(fault)), "data-sorted")
    mixed = [rows[at * 29 % 256] for at in range(256)]
    assert observe(in_order(build_supervised.sft(str(tmp_path / "mixed"), rows=mixed, **SHORT))).loud == {}


def test_kto_whose_desirable_rows_come_first(tmp_path, observe) -> None:
    """Nobody switched shuffling off: the trainer reads in order for the pairs of its KL estimate."""
    made = build_preference.examples()
    patient = observe(build_preference.kto(str(tmp_path / "fault"), data=made.sort("label", reverse=True), **SHORT))
    assert "they are sorted by class" in line(patient, "data-sorted")
    assert observe(build_preference.kto(str(tmp_path / "twin"), data=made, **SHORT)).loud == {}


# ---- loss on the prompt ----


def test_a_collator_that_labels_the_prompts_again(tmp_path, observe) -> None:
    """transformers' own collator makes labels from the input ids; the rows say which tokens are answers."""
    from transformers import DataCollatorForLanguageModeling

    collator = DataCollatorForLanguageModeling(tiny.tokenizer(), mlm=False)

    def plain(rows: list[dict[str, Any]]) -> Any:
        return collator([{"input_ids": row["input_ids"]} for row in rows])

    patient = observe(build_supervised.sft(str(tmp_path / "fault"), rows=build_supervised.completions(), collator=plain, **SHORT))
    assert patient.loud == {"label-mask-lost": 3}, patient.said
    assert any("of the tokens of the data set are masked" in said for said in patient.said)
    assert "prompt-learned" in {one.rule.id for one in patient.monitor.findings if one.suppressed_by}
    twin = observe(build_supervised.sft(str(tmp_path / "twin"), rows=build_supervised.completions(), **SHORT))
    assert not {"label-mask-lost", "prompt-learned"} & set(twin.fired), twin.said


@pytest.mark.parametrize("kind", ["completions", "dialogues"])
def test_prompts_that_are_trained_on_are_mentioned(kind: str, tmp_path, observe) -> None:
    rows = getattr(build_supervised, kind)()
    patient = observe(build_supervised.sft(str(tmp_path / "fault"), rows=rows, **SHORT, completion_only_loss=False))
    assert patient.loud == {}
    assert patient.fired["prompt-learned"] == 3
    answers = {"assistant_only_loss": True} if kind == "dialogues" else {}
    assert "prompt-learned" not in observe(build_supervised.sft(str(tmp_path / "twin"), rows=rows, **SHORT, **answers)).fired


# ---- rows without labels ----


def test_single_rows_of_which_two_in_five_have_no_label(tmp_path, observe) -> None:
    """Batches of one row are empty again and again by chance: that some rows have no label is said, that all of them have none is not."""
    plain = build_supervised.MaskPadding(tiny.tokenizer())
    calls = [0]

    def collator(rows: list[dict[str, Any]]) -> Any:
        batch = plain(rows)
        calls[0] += 1
        if calls[0] * 7919 % 100 < 40:
            batch["labels"][:] = -100
        return batch

    settings = {**SHORT, "max_steps": 60, "per_device_train_batch_size": 1}
    patient = observe(build_supervised.sft(str(tmp_path), collator=collator, **settings))
    assert "labels-masked" not in patient.fired, patient.said
    assert "rows-without-labels" in patient.loud


# ---- questions ----


def say_what_is_asked(count: int = 80) -> list[dict[str, Any]]:
    rows = build_supervised.pairs(count)
    return [{"prompt": row["chosen"][:1], "completion": row["chosen"][1:]} for row in rows]


def test_a_template_that_lost_its_opening_braces(tmp_path, observe) -> None:
    fault, twin = tiny.tokenizer(), tiny.tokenizer()
    twin.chat_template = "{% for m in messages %}{% if m['role'] == 'user' %}{{ 'ask ' + m['content'] + ' tell' }}{% else %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}"
    fault.chat_template = twin.chat_template.replace("{{ 'ask ' + ", "")
    said = line(observe(build_supervised.sft(str(tmp_path / "fault"), rows=say_what_is_asked(), vocabulary=fault, **SHORT)), "questions-not-rendered")
    assert "100% of the prompts looked at do not hold what their rows ask" in said
    assert observe(build_supervised.sft(str(tmp_path / "twin"), rows=say_what_is_asked(), vocabulary=twin, **SHORT)).loud == {}


def test_pairs_whose_prompt_column_was_filled_with_one_text(tmp_path, observe) -> None:
    data = build_preference.pairs(count=96)
    one = data.map(lambda row: {"prompt": data[0]["prompt"]})
    said = line(observe(build_preference.dpo(str(tmp_path / "fault"), data=one, **SHORT)), "prompts-all-alike")
    assert "100% of the training rows have the same prompt" in said
    assert observe(build_preference.dpo(str(tmp_path / "twin"), data=data, **SHORT)).loud == {}
