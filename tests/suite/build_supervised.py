"""SFT and reward-model trainers, tiny and ready to train, healthy unless asked otherwise."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import torch
from datasets import Dataset

from trainvitals.integrations import tiny

ANSWERS = ["sum", "four", "nine", "blue", "plus", "red", "seven", "minus"]


def dialogues(count: int = 64) -> list[dict[str, Any]]:
    """Rows of one question and one short answer."""
    return [
        {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": ANSWERS[i % len(ANSWERS)]}]}
        for i, text in enumerate(tiny.questions(count))
    ]


def completions(count: int = 64) -> list[dict[str, Any]]:
    """The same rows as prompt and completion."""
    return [{"prompt": row["messages"][:1], "completion": row["messages"][1:]} for row in dialogues(count)]


def with_bos(vocabulary: Any) -> Any:
    """Give the tokenizer a BOS that it puts before every text, and that its chat template writes too, as Llama's do."""
    from tokenizers.processors import TemplateProcessing

    vocabulary.add_special_tokens({"bos_token": "<|bos|>"})
    pair = ("<|bos|>", vocabulary.bos_token_id)
    vocabulary.backend_tokenizer.post_processor = TemplateProcessing(single="<|bos|> $A", special_tokens=[pair])
    vocabulary.chat_template = "{{ bos_token }}" + vocabulary.chat_template
    return vocabulary


class ResponseOnly:
    """A user's own collator: labels only behind a response template, as TRL's DataCollatorForCompletionOnlyLM did it."""

    def __init__(self, vocabulary: Any, template: str) -> None:
        self.pad = vocabulary.pad_token_id
        self.template = vocabulary(template, add_special_tokens=False)["input_ids"]

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        width, size = max(len(row["input_ids"]) for row in rows), len(self.template)
        ids = torch.full((len(rows), width), self.pad)
        mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
        for i, row in enumerate(rows):
            one = list(row["input_ids"])
            ids[i, : len(one)], mask[i, : len(one)] = torch.tensor(one), 1
            ends = [at + size for at in range(len(one)) if one[at : at + size] == self.template]
            if ends:
                labels[i, ends[-1] : len(one)] = ids[i, ends[-1] : len(one)]
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}


class MaskPadding:
    """A collator that masks every pad id, as transformers' DataCollatorForLanguageModeling does."""

    def __init__(self, vocabulary: Any) -> None:
        self.pad = vocabulary.pad_token_id

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        parts = [torch.tensor(row["input_ids"]) for row in rows]
        ids = torch.nn.utils.rnn.pad_sequence(parts, batch_first=True, padding_value=self.pad)
        ones = [torch.ones_like(part) for part in parts]
        mask = torch.nn.utils.rnn.pad_sequence(ones, batch_first=True, padding_value=0)
        return {"input_ids": ids, "attention_mask": mask, "labels": torch.where(ids == self.pad, -100, ids)}


def rendered(vocabulary: Any) -> list[dict[str, Any]]:
    """Rows of text that already went through the chat template."""
    return [{"text": vocabulary.apply_chat_template(row["messages"], tokenize=False)} for row in dialogues()]


def rendered_twice(vocabulary: Any) -> list[dict[str, Any]]:
    """Rows whose question already went through the chat template and is put into a message again."""
    return [
        {"messages": [{"role": "user", "content": vocabulary.apply_chat_template(row["messages"][:1], tokenize=False)}, row["messages"][1]]}
        for row in dialogues()
    ]


def sft(
    output_dir: str,
    *,
    rows: Sequence[dict[str, Any]] | None = None,
    held_out: Sequence[dict[str, Any]] | None = None,
    vocabulary: Any = None,
    model: Any = None,
    collator: Any = None,
    callbacks: Sequence[Any] = (),
    **changes: Any,
) -> Any:
    """A `trl.SFTTrainer`; without `model` it starts from random weights, `tiny.policy(vocabulary)` answers with random letters."""
    from trl import SFTConfig, SFTTrainer

    vocabulary = tiny.tokenizer() if vocabulary is None else vocabulary
    return SFTTrainer(
        model=tiny.model(vocabulary) if model is None else model,
        args=SFTConfig(**tiny.arguments(output_dir, **{"max_length": 64, **changes})),
        train_dataset=Dataset.from_list(list(dialogues() if rows is None else rows)),
        eval_dataset=None if held_out is None else Dataset.from_list(list(held_out)),
        processing_class=vocabulary,
        data_collator=collator,
        callbacks=list(callbacks),
    )


def pairs(count: int = 64, *, choose: Callable[[Random], tuple[str, str]] | None = None, seed: int = 0) -> list[dict[str, Any]]:
    """Preference pairs: by default the chosen answer consists of vowels, the rejected one of consonants, of any lengths."""
    random = Random(seed)

    def quality(random: Random) -> tuple[str, str]:
        return (
            "".join(random.choices("aeiou", k=random.randint(3, 9))),
            "".join(random.choices("bcdfgklmnprst", k=random.randint(3, 9))),
        )

    rows = []
    for text in tiny.questions(count):
        chosen, rejected = (choose or quality)(random)
        ask = {"role": "user", "content": text}
        rows.append({
            "chosen": [ask, {"role": "assistant", "content": chosen}],
            "rejected": [ask, {"role": "assistant", "content": rejected}],
        })  # fmt: skip
    return rows


def same(random: Random) -> tuple[str, str]:
    """One answer twice, as when one column is read for both."""
    answer = "".join(random.choices("abcdefgh", k=random.randint(3, 9)))
    return answer, answer


def longer(random: Random) -> tuple[str, str]:
    """Two answers of the same letters, of which the longer one is chosen."""
    size = random.randint(3, 6)
    return "".join(random.choices("abcdefghijklmnop", k=size + random.randint(1, 9))), "".join(random.choices("abcdefghijklmnop", k=size))


_SCORER: dict[int, Any] = {}


def scorer(vocabulary: Any, *, seed: int = 0) -> Any:
    """A 2-layer sequence classifier with one score."""
    from transformers import AutoModelForSequenceClassification

    if seed not in _SCORER:
        config = copy.deepcopy(tiny.model(vocabulary, seed=seed).config)
        config.num_labels = 1
        torch.manual_seed(seed)
        _SCORER[seed] = AutoModelForSequenceClassification.from_config(config)
    return copy.deepcopy(_SCORER[seed])


def reward(
    output_dir: str, *, rows: Sequence[dict[str, Any]] | None = None, held_out: Any = None, callbacks: Sequence[Any] = (), **changes: Any
) -> Any:
    """A `trl.RewardTrainer` that learns to prefer vowels."""
    from trl import RewardConfig, RewardTrainer

    vocabulary = tiny.tokenizer()
    return RewardTrainer(
        model=scorer(vocabulary),
        args=RewardConfig(**tiny.arguments(output_dir, **{"max_length": 96, **changes})),
        train_dataset=Dataset.from_list(list(pairs() if rows is None else rows)),
        eval_dataset=None if held_out is None else Dataset.from_list(list(held_out)),
        processing_class=vocabulary,
        callbacks=list(callbacks),
    )
