"""Tiny preference trainers, ready to train: one builder per trainer, all on the same kind of pairs.

A question has an answer of three letters; chosen answers hold vowels, rejected ones consonants, with some noise in it so that
no run is perfect. The policy is the pretrained one of `tiny`, which answers with random letters.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from trainvitals.integrations import tiny

VOWELS, OTHERS = "aeiou", "bcdfghjklmnpqrstvwxyz"
Edit = Callable[[dict[str, str]], dict[str, str]]


def experimental(path: str, *names: str) -> tuple[Any, ...]:
    """Classes of ``trl`` or ``trl.experimental``, or a skip where this TRL has no such trainer."""
    from trl import __version__

    for module in ("trl", f"trl.experimental.{path}"):
        try:
            found = importlib.import_module(module)
            return tuple(getattr(found, name) for name in names)
        except (ImportError, AttributeError):
            continue
    return pytest.skip(f"TRL {__version__} has no {names[-1]}")


def rows(count: int = 64, *, noise: float = 0.2, seed: int = 0) -> list[dict[str, str]]:
    """Prompt, chosen and rejected texts; a share of `noise` of the letters is of the other kind."""
    random = Random(seed)

    def word(letters: str, others: str) -> str:
        return "".join(random.choice(others if random.random() < noise else letters) for _ in range(5))

    return [{"prompt": text, "chosen": word(VOWELS, OTHERS), "rejected": word(OTHERS, VOWELS)} for text in tiny.questions(count)]


def _turn(role: str, text: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


def pairs(edit: Edit | None = None, *, count: int = 64, gold: bool = False, seed: int = 0) -> Any:
    """Pairs as a `datasets.Dataset` of chats; `edit` plants a fault in each row."""
    from datasets import Dataset

    made = []
    for row in rows(count, seed=seed):
        row = row if edit is None else edit(row)
        made.append({"prompt": _turn("user", row["prompt"]), **{key: _turn("assistant", row[key]) for key in ("chosen", "rejected")}})
        if gold:
            made[-1]["reference"] = _turn("assistant", row["chosen"])
    return Dataset.from_list(made)


def examples(labels: Sequence[bool] = (True, False), edit: Edit | None = None, *, count: int = 64) -> Any:
    """Single responses with a label, for KTO and BCO: the labels take turns."""
    from datasets import Dataset

    made = []
    for index, row in enumerate(rows(count)):
        row, label = row if edit is None else edit(row), labels[index % len(labels)]
        text = row["chosen" if label else "rejected"]
        made.append({"prompt": _turn("user", row["prompt"]), "completion": _turn("assistant", text), "label": label})
    return Dataset.from_list(made)


def start(output_dir: str) -> str:
    """Folder with the pretrained policy: TRL loads the reference model from where the policy came from."""
    folder = str(Path(output_dir) / "start")
    tiny.policy(tiny.tokenizer()).save_pretrained(folder)
    return folder


def _offline(trainer: Any, config: Any, output_dir: str, data: Any, callbacks: Sequence[Any], changes: dict[str, Any], **more: Any) -> Any:
    vocabulary = tiny.tokenizer()
    settings = tiny.arguments(output_dir, **{"max_length": 64, "learning_rate": 1e-4, **changes})
    return trainer(
        model=more.pop("model", None) or AutoModelForCausalLM.from_pretrained(start(output_dir)),
        args=config(**settings),
        train_dataset=data,
        processing_class=vocabulary,
        callbacks=list(callbacks),
        **more,
    )


def dpo(output_dir: str, *, callbacks: Sequence[Any] = (), data: Any = None, model: Any = None, held_out: Any = None, **changes: Any) -> Any:
    """A `trl.DPOTrainer`; `data` and `model` replace the healthy ones, `held_out` is an evaluation set."""
    from trl import DPOConfig, DPOTrainer

    return _offline(DPOTrainer, DPOConfig, output_dir, data or pairs(), callbacks, changes, model=model, eval_dataset=held_out)


def kto(output_dir: str, *, callbacks: Sequence[Any] = (), data: Any = None, model: Any = None, **changes: Any) -> Any:
    """A `KTOTrainer`, stable or experimental."""
    config, trainer = experimental("kto", "KTOConfig", "KTOTrainer")
    return _offline(trainer, config, output_dir, data or examples(), callbacks, changes, model=model)


def orpo(output_dir: str, *, callbacks: Sequence[Any] = (), data: Any = None, **changes: Any) -> Any:
    """An `ORPOTrainer`."""
    config, trainer = experimental("orpo", "ORPOConfig", "ORPOTrainer")
    return _offline(trainer, config, output_dir, data or pairs(), callbacks, changes)


def cpo(output_dir: str, *, callbacks: Sequence[Any] = (), data: Any = None, **changes: Any) -> Any:
    """A `CPOTrainer`."""
    config, trainer = experimental("cpo", "CPOConfig", "CPOTrainer")
    return _offline(trainer, config, output_dir, data or pairs(), callbacks, changes)


def tpo(output_dir: str, *, callbacks: Sequence[Any] = (), data: Any = None, **changes: Any) -> Any:
    """A `TPOTrainer` (TRL 1.3 and later)."""
    config, trainer = experimental("tpo", "TPOConfig", "TPOTrainer")
    return _offline(trainer, config, output_dir, data or pairs(gold=True), callbacks, changes)


def bco(output_dir: str, *, callbacks: Sequence[Any] = (), data: Any = None, **changes: Any) -> Any:
    """A `BCOTrainer` (until TRL 1.13)."""
    config, trainer = experimental("bco", "BCOConfig", "BCOTrainer")
    return _offline(trainer, config, output_dir, data or examples(), callbacks, changes)


def _online(names: tuple[str, str, str], output_dir: str, reward: Any, callbacks: Sequence[Any], changes: dict[str, Any], **more: Any) -> Any:
    config, trainer = experimental(*names)
    vocabulary = tiny.tokenizer()
    vocabulary.padding_side = "left"
    settings = tiny.arguments(output_dir, **{"max_new_tokens": 12, "max_length": 64, "learning_rate": 1e-4, "temperature": 1.0, **changes})
    return trainer(
        model=AutoModelForCausalLM.from_pretrained(start(output_dir)),
        reward_funcs=reward,
        args=config(**settings),
        train_dataset=tiny.prompts(),
        processing_class=vocabulary,
        callbacks=list(callbacks),
        **more,
    )


def online_dpo(output_dir: str, *, reward: Any = tiny.vowels, callbacks: Sequence[Any] = (), **changes: Any) -> Any:
    """An `OnlineDPOTrainer` on the vowel task."""
    return _online(("online_dpo", "OnlineDPOConfig", "OnlineDPOTrainer"), output_dir, reward, callbacks, changes)


def _scorer(vocabulary: Any) -> Any:
    """A random reward model: XPO and Nash-MD take no functions."""
    torch.manual_seed(0)
    config = tiny.model(vocabulary).config
    config.num_labels = 1
    return AutoModelForSequenceClassification.from_config(config)


def xpo(output_dir: str, *, scorer: Any = None, callbacks: Sequence[Any] = (), **changes: Any) -> Any:
    """An `XPOTrainer` (until TRL 1.13)."""
    vocabulary = tiny.tokenizer()
    names = ("xpo", "XPOConfig", "XPOTrainer")
    return _online(names, output_dir, scorer or _scorer(vocabulary), callbacks, changes, reward_processing_classes=vocabulary)


def nash_md(output_dir: str, *, callbacks: Sequence[Any] = (), **changes: Any) -> Any:
    """A `NashMDTrainer` (until TRL 1.13)."""
    return _online(("nash_md", "NashMDConfig", "NashMDTrainer"), output_dir, _scorer(tiny.tokenizer()), callbacks, changes)


def has_vowel(completions: list[Any], **kwargs: Any) -> list[float]:
    """1 for an answer with at least one vowel."""
    return [float(any(char in tiny.VOWELS for char in tiny.text_of(completion))) for completion in completions]


def a2po(output_dir: str, *, reward: Any = has_vowel, callbacks: Sequence[Any] = (), **changes: Any) -> Any:
    """An `A2POTrainer` (TRL 1.6 and later)."""
    config, trainer = experimental("a2po", "A2POConfig", "A2POTrainer")
    vocabulary = tiny.tokenizer()
    vocabulary.padding_side = "left"

    settings = tiny.arguments(output_dir, **{"max_completion_length": 12, "num_value_samples": 2, "learning_rate": 1e-4, **changes})
    data = tiny.prompts(16)
    # TRL drops hopeless prompts with a lambda that holds the trainer. To name the result, `datasets` would pickle all that hangs on it: 20 s in a test.
    data.filter = functools.partial(data.filter, new_fingerprint="with-hope")
    return trainer(
        model=tiny.policy(vocabulary),
        reward_funcs=reward,
        args=config(**settings),
        train_dataset=data,
        processing_class=vocabulary,
        callbacks=list(callbacks),
    )
