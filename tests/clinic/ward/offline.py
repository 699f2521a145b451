"""What the cases of trainers that learn from a data set share: rows, trainers, and ways to break a training in its middle.

Supervised rows answer with two words of a small lexicon, frequent ones more often: the policy of `tiny`, which answers with random
letters, has something to learn that holds for unseen rows, and the choice of the words leaves a floor as real text does.
Preference rows choose an answer of (mostly) vowels over one of (mostly) consonants.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, TrainerCallback

from trainvitals.integrations import tiny

Row = dict[str, Any]
Pair = tuple[str, str]
HOME = ("sum", "four", "nine", "blue", "plus", "red", "seven", "minus", "green", "three", "table", "river")
AWAY = ("ZEUS", "ATLAS", "HYDRA", "QUARK", "XENON", "JOVE", "VULCAN", "PHOEBE")
VOWELS, OTHERS = "aeiou", "bcdfghjklmnpqrstvwxyz"
_WORDS = ("sum", "add", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "what", "is", "good", "bad", "yes", "blue", "red")
_SIGNS = ("plus", "minus", "times", "over", "and")
_SCORERS: list[Any] = []


# ---- rows ----


def turn(role: str, text: str) -> list[dict[str, str]]:
    """A chat of one message."""
    return [{"role": role, "content": text}]


def question(random: Random) -> str:
    """One of 1,620 short questions."""
    return f"what is {random.choice(_WORDS)} {random.choice(_SIGNS)} {random.choice(_WORDS)}"


def phrase(random: Random, words: Sequence[str] = HOME, *, noise: float = 0.0, count: int = 2) -> str:
    """Some words, the first of the list most often (Zipf); a share of `noise` is misspelled."""
    chosen = random.choices(words, weights=[1 / (place + 1) for place in range(len(words))], k=count)
    return " ".join("".join(random.sample(word, len(word))) if random.random() < noise else word for word in chosen)


def dialogues(count: int, seed: int, answer: Callable[[Random], str] = phrase) -> list[Row]:
    """Questions with one answer each, as prompt and completion."""
    random = Random(seed)
    return [{"prompt": turn("user", question(random)), "completion": turn("assistant", answer(random))} for _ in range(count)]


def quality(random: Random, noise: float = 0.3) -> Pair:
    """A better and a worse answer of any lengths; a share of `noise` of the letters is of the other kind."""

    def word(letters: str, others: str) -> str:
        return "".join(random.choice(others if random.random() < noise else letters) for _ in range(random.randint(4, 9)))

    return word(VOWELS, OTHERS), word(OTHERS, VOWELS)


def swapped(random: Random) -> Pair:
    """The worse answer is called the better one."""
    better, worse = quality(random)
    return worse, better


def same(random: Random) -> Pair:
    """One answer twice, as when one column is read for both."""
    better, _ = quality(random)
    return better, better


def mislabelled(share: float) -> Callable[[Random], Pair]:
    """A share of the pairs is swapped, as human labels are."""
    return lambda random: swapped(random) if random.random() < share else quality(random)


def pairs(count: int, seed: int, choose: Callable[[Random], Pair] = quality) -> list[Row]:
    """Prompt, chosen and rejected."""
    random, rows = Random(seed), []
    for _ in range(count):
        chosen, rejected = choose(random)
        rows.append({"prompt": turn("user", question(random)), "chosen": turn("assistant", chosen), "rejected": turn("assistant", rejected)})
    return rows


def examples(count: int, seed: int, choose: Callable[[Random], Pair] = quality, labels: Sequence[bool] = (True, False)) -> list[Row]:
    """Single answers with a label, for KTO: the labels take turns."""
    made = []
    for index, row in enumerate(pairs(count, seed, choose)):
        label = labels[index % len(labels)]
        made.append({"prompt": row["prompt"], "completion": row["chosen" if label else "rejected"], "label": label})
    return made


# ---- trainers ----


def policy(vocabulary: Any = None) -> Any:
    """The pretrained policy, which answers with random letters."""
    return tiny.policy(tiny.tokenizer() if vocabulary is None else vocabulary)


def _set(rows: Sequence[Row] | None) -> Any:
    return None if rows is None else Dataset.from_list(list(rows))


def _settings(folder: str, held_out: Any, changes: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a config; without held-out rows nothing is evaluated, whatever the base settings say."""
    settings = tiny.arguments(folder, **changes)
    return settings if held_out is not None else {name: value for name, value in settings.items() if not name.startswith("eval_")}


def sft(
    folder: str, *, rows: Sequence[Row], held_out: Sequence[Row] | None = None, model: Any = None, collator: Any = None, vocabulary: Any = None, **changes: Any
) -> Any:
    """A `trl.SFTTrainer` that begins with the pretrained policy."""
    from trl import SFTConfig, SFTTrainer

    return SFTTrainer(
        model=policy(vocabulary) if model is None else model,
        args=SFTConfig(**_settings(folder, held_out, {"max_length": 64, **changes})),
        train_dataset=_set(rows),
        eval_dataset=_set(held_out),
        processing_class=tiny.tokenizer() if vocabulary is None else vocabulary,
        data_collator=collator,
    )


def dpo(folder: str, *, rows: Sequence[Row], held_out: Sequence[Row] | None = None, reference: Any = None, **changes: Any) -> Any:
    """A `trl.DPOTrainer` whose reference is the policy that it begins with, unless one is given."""
    from trl import DPOConfig, DPOTrainer

    return DPOTrainer(
        model=policy(),
        ref_model=policy() if reference is None else reference,
        args=DPOConfig(**_settings(folder, held_out, {"max_length": 64, **changes})),
        train_dataset=_set(rows),
        eval_dataset=_set(held_out),
        processing_class=tiny.tokenizer(),
    )


def kto(folder: str, *, rows: Sequence[Row], held_out: Sequence[Row] | None = None, **changes: Any) -> Any:
    """A `KTOTrainer`, stable or experimental, as `dpo`."""
    try:
        from trl import KTOConfig, KTOTrainer
    except ImportError:
        from trl.experimental.kto import KTOConfig, KTOTrainer

    return KTOTrainer(
        model=policy(),
        ref_model=policy(),
        args=KTOConfig(**_settings(folder, held_out, {"max_length": 64, **changes})),
        train_dataset=_set(rows),
        eval_dataset=_set(held_out),
        processing_class=tiny.tokenizer(),
    )


def scorer() -> Any:
    """A 2-layer sequence classifier with one score and random weights, the same at every call."""
    if not _SCORERS:
        config = copy.deepcopy(tiny.model(tiny.tokenizer()).config)
        config.num_labels = 1
        torch.manual_seed(0)
        _SCORERS.append(AutoModelForSequenceClassification.from_config(config))
    return copy.deepcopy(_SCORERS[0])


def reward(folder: str, *, rows: Sequence[Row], held_out: Sequence[Row] | None = None, **changes: Any) -> Any:
    """A `trl.RewardTrainer`."""
    from trl import RewardConfig, RewardTrainer

    return RewardTrainer(
        model=scorer(),
        args=RewardConfig(**_settings(folder, held_out, {"max_length": 96, **changes})),
        train_dataset=_set(rows),
        eval_dataset=_set(held_out),
        processing_class=tiny.tokenizer(),
    )


# ---- what happens in the middle ----


class At(TrainerCallback):
    """Does something to a training before update `step` + 1."""

    def __init__(self, step: int, act: Callable[..., None]) -> None:
        self.step, self.act = step, act

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Act once, at the right update."""
        if state.global_step == self.step:
            self.act(**kwargs)


def at(trainer: Any, step: int, act: Callable[..., None]) -> Any:
    """The same trainer, to which `act` happens after `step` updates."""
    trainer.add_callback(At(step, act))
    return trainer


def scale_rate(factor: float) -> Callable[..., None]:
    """Multiply the learning rate, for good, as a resumed run with another schedule does."""

    def act(optimizer: Any, lr_scheduler: Any, **kwargs: Any) -> None:
        lr_scheduler.base_lrs = [rate * factor for rate in lr_scheduler.base_lrs]
        for group in optimizer.param_groups:
            group["lr"] *= factor

    return act


def poison(model: Any, **kwargs: Any) -> None:
    """One weight of the last layer becomes NaN, as after an overflow."""
    with torch.no_grad():
        model.model.layers[-1].mlp.down_proj.weight[0, 0] = float("nan")


def block(model: Any, optimizer: Any, **kwargs: Any) -> None:
    """From now on no gradient reaches a weight, as behind a stray detach(); the optimizer forgets its momentum and stands still."""
    optimizer.state.clear()
    for parameter in model.parameters():
        parameter.register_hook(torch.zeros_like)
