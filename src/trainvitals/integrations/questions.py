"""Family: whether the prompts that go into the model still hold what the rows of the data set ask.

A broken chat template renders every prompt without an error: as its own source code, or with empty contents where the keys of a message are others than
it reads. Two things are read of rows that are spread over the data set, once, when we are attached:

* How common the commonest prompt is, by its token ids: those before the first label, or the column of prompt ids.
* Where the data set still has the texts that it was made of (TRL keeps them), and they differ: the share of rows whose prompt does not hold its question.

Of trainers that sample, the second is read of the prompts of the first rollouts. No text leaves this file, only shares.
"""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trainvitals.integrations.dataset_rows import content, flat, mixed, packed

if TYPE_CHECKING:
    from trainvitals.integrations.hooks import Hooks

_ABSENT = frozenset({"data.question_absent_fraction"})
SIGNALS = _ABSENT | {"data.prompt_commonest_fraction"}
"""Signals that only these wraps give."""

_STRETCHES, _ROWS = 8, 500  # stretches of so many rows, from the first rows to the last, whose prompts are compared
_SECONDS = 1.0  # for a slow disk
_TEXTS = 32  # rows whose text is read
_FEWEST = 8  # of them whose questions differ: with fewer nothing is said
_SAMPLED = 2  # different prompts of a trainer that samples; a rollout may be of one
_TOKENS = 4096  # of each end of a prompt that are spelled out
_END = 200  # letters of each end of a question that are looked for: the rest may have been cut off
_PIECE = 8  # letters that must be found together
_IGNORED = -100  # as in supervised.py


def install(hooks: Hooks) -> None:
    """Look at the prompts of the training set, or at those of the first rollouts."""
    trainer = hooks.trainer
    owner = getattr(trainer, "processing_class", None)
    tokenizer = getattr(owner, "tokenizer", owner)
    if hasattr(trainer, "num_generations"):
        if hasattr(trainer, "_calculate_rewards") and not hasattr(trainer, "teacher_context_builder") and hasattr(tokenizer, "decode"):
            reader = _Sampled(hooks, tokenizer)
            hooks.wrap(trainer, "_generate", reader.after_generate, gives=_ABSENT)
        return
    if any(hasattr(trainer, name) for name in ("reward_funcs", "reward_model", "teacher_model")):
        return
    data: Any = getattr(trainer, "train_dataset", None)
    columns = content(data)
    if columns is None or packed(data, trainer.args) or not data.num_rows:
        return
    told = {}
    share = commonest_prompt(data, columns, time.perf_counter() + _SECONDS)
    if share is not None:
        told["data.prompt_commonest_fraction"] = share
    if hasattr(tokenizer, "decode"):
        share = absent(given_and_made(data, columns, getattr(trainer.args, "dataset_text_field", None)), tokenizer, _FEWEST)
        if share is not None:
            told["data.question_absent_fraction"] = share
    hooks.wrap(trainer, "training_step", gives=told)
    hooks.at_step_end.append(lambda: _tell(hooks, told))


def _tell(hooks: Hooks, told: dict[str, float]) -> None:
    """With the first update; nothing is left for a second."""
    for name in list(told):
        hooks.give(name, told.pop(name))


# ---- token ids of prompts ----


def commonest_prompt(data: Any, columns: tuple[str, ...], until: float) -> float | None:
    """Share of rows, of those looked at that have a prompt, whose prompt is the commonest; None where prompts cannot be told from answers.

    Args:
        data: A `datasets.Dataset` that the trainer has prepared.
        columns: As from `content`.
        until: When to stop, by `time.perf_counter`.
    """
    names = set(data.column_names)
    if columns == ("input_ids",):
        marks = next((name for name in ("labels", "completion_mask", "assistant_masks") if name in names), None)
        read = [] if marks is None else ["input_ids", marks]
    else:
        read = [name for name in columns if name.startswith("prompt")][:1]
    if not read:
        return None
    plain, found, rows = data.with_format("arrow", columns=read), list[NDArray[np.uint64]](), 0
    for begin, end in stretches(data.num_rows):
        if found and time.perf_counter() > until:
            break
        table = plain[begin:end]
        rows += table.num_rows
        values, lengths = flat(table.column(read[0]))
        if len(read) == 2:
            marks_of, sizes = flat(table.column(read[1]))
            if not np.array_equal(sizes, lengths):
                return None  # classes, not tokens
            values, lengths = before_first(values, lengths, marks_of != (_IGNORED if read[1] == "labels" else 0))
        found.append(mixed(values, lengths, 0)[lengths > 1])  # a BOS alone is no prompt
    hashes = np.concatenate(found)
    return float(np.unique(hashes, return_counts=True)[1].max()) / len(hashes) if len(hashes) > rows / 2 else None


def stretches(count: int) -> list[tuple[int, int]]:
    """First and last row (exclusive) of what is looked at: everything, or pieces that are evenly spread and do not overlap."""
    if count <= _STRETCHES * _ROWS:
        return [(0, count)]
    return [(begin, begin + _ROWS) for place in range(_STRETCHES) for begin in [place * (count - _ROWS) // (_STRETCHES - 1)]]


def before_first(values: NDArray[Any], lengths: NDArray[np.int64], marked: NDArray[np.bool_]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """The tokens of each row before its first marked one, and how many these are; none of rows without a mark."""
    start = np.cumsum(lengths) - lengths
    upto = np.concatenate([np.zeros(1, np.int64), np.cumsum(marked)])
    some = upto[start + lengths] > upto[start]
    before = (upto[1:] == np.repeat(upto[start], lengths)) & np.repeat(some, lengths)
    ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(before)])
    return values[before], ends[start + lengths] - ends[start]


# ---- what was asked, and what became of it ----


def given_and_made(data: Any, columns: tuple[str, ...], text_field: str | None) -> Iterator[tuple[list[str], list[int]]]:
    """Questions of rows that are spread over the data set, each with the token ids in which it should be.

    Those are the prompt's where it lies apart, else the row's without what is labelled, or all of it where everything is.
    """
    names = data.column_names
    given = next((name for name in ("prompt", "messages", "chosen") if name in names), None)
    if given is None or (columns == ("input_ids",) and (text_field in names or given == "chosen")):
        return
    made = next((name for name in columns if name.startswith("prompt")), columns[0])
    marks = "labels" if columns == ("input_ids",) and given == "prompt" and "labels" in names else None
    step = max(1, data.num_rows // _TEXTS)
    rows = data.with_format(None, columns=[name for name in (given, made, marks) if name is not None])[: step * _TEXTS : step]
    for at, (value, ids) in enumerate(zip(rows[given], rows[made], strict=True)):
        if marks is not None and len(rows[marks][at]) == len(ids):
            first = next((place for place, label in enumerate(rows[marks][at]) if label != _IGNORED), 0)
            ids = ids[:first] or ids
        yield asked(value), ids


def asked(value: Any) -> list[str]:
    """Texts of the first and the last turn of the user, or the text itself; nothing where there is none."""
    if isinstance(value, str):
        return [value]
    turns = [turn for turn in value or () if isinstance(turn, dict) and turn.get("role") == "user"] if isinstance(value, list | tuple) else []
    texts = []
    for turn in [*turns[:1], *turns[1:][-1:]]:
        parts = turn.get("content")
        parts = [{"text": parts}] if isinstance(parts, str) else parts or ()
        texts.append(" ".join(part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str)))
    return texts


def absent(rows: Iterable[tuple[Sequence[str], Sequence[int]]], tokenizer: Any, fewest: int) -> float | None:
    """Share of rows whose token ids do not hold what was asked.

    None where fewer than `fewest` different things are asked, or fewer than half of the rows ask something of their own: a column that says the same of many
    rows (the name of a template) is no question.
    """
    kept, missing = list[tuple[str, ...]](), 0
    for texts, ids in rows:
        question = tuple(plain for text in texts if len(plain := letters(text)) >= _PIECE)
        if question:
            kept.append(question)
            whole = [ids] if len(ids) <= 2 * _TOKENS else [ids[:_TOKENS], ids[-_TOKENS:]]
            text = " ".join(letters(tokenizer.decode([one for one in part if one >= 0])) for part in whole)
            missing += not any(held(end, text) for one in question for end in (one[:_END], one[-_END:]))
    different = len(set(kept))
    return missing / len(kept) if different >= fewest and 2 * different >= len(kept) else None


def letters(text: str) -> str:
    """A text without blanks, accents and capitals, which tokenizers may change."""
    plain = "".join(text.casefold().split())
    return plain if plain.isascii() else "".join(one for one in unicodedata.normalize("NFKD", plain) if not unicodedata.combining(one))


def held(question: str, text: str) -> bool:
    """Whether half of the pieces of a question are in a text."""
    pieces = [question[at : at + _PIECE] for at in range(0, len(question) - _PIECE + 1, _PIECE)]
    return 2 * sum(piece in text for piece in pieces) >= len(pieces)


class _Sampled:
    """Questions and token ids of the first rollouts of a trainer that samples."""

    def __init__(self, hooks: Hooks, tokenizer: Any) -> None:
        self._hooks, self._tokenizer = hooks, tokenizer
        self._rows: list[tuple[list[str], list[int]]] | None = []

    def after_generate(self, result: Any, args: tuple[Any, ...], kwargs: dict[str, Any], seconds: float) -> None:
        """One generation batch: the completions of one prompt adjoin."""
        if self._rows is None or not self._hooks.training or not isinstance(result, tuple):
            return
        given, made = args[0] if args else kwargs["prompts"], result[0]
        if len(given) != len(made):
            self._rows = None
            return
        places = [at for at in range(len(given)) if at == 0 or given[at] != given[at - 1]]
        self._rows += [(asked(given[at]), list(made[at])) for at in places][: _TEXTS - len(self._rows)]
        share = absent(self._rows, self._tokenizer, _SAMPLED)
        if share is not None or len(self._rows) >= _TEXTS:
            self._rows = None
        if share is not None:
            self._hooks.give("data.question_absent_fraction", share)
