"""Family: what the data set says of its answers before the first update: do they begin with the question, and is a pair in it both ways round?

* A data set that has a column of prompts and whose answers begin with the same prompt again: the question stands in a row twice, and the model learns to repeat it. Of 32 rows
  spread over the data set; both the texts that TRL keeps and the tokens that it made of them are asked, so where a prompt was only moved from the answers into a column nothing is found.
* Two rows with the same prompt and the same two answers, chosen and rejected in the other order: what one teaches the other takes back. Of the first rows, at most
  `_TOKENS` tokens or `_SECONDS`, by 64-bit hashes of token ids.

No text leaves this file, only shares.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainvitals.integrations.dataset_rows import chunks, content, flat, mixed, packed, splitmix
from trainvitals.integrations.questions import asked, letters

if TYPE_CHECKING:
    from trainvitals.integrations.hooks import Hooks

SIGNALS = frozenset({"data.prompt_repeated_fraction", "data.pair_reversed_fraction"})
"""Signals that only these wraps give."""

_TOKENS = 50_000_000  # as in dataset_rows.py
_SECONDS = 1.0  # for a slow disk
_TEXTS = 32  # rows whose text is read
_FEWEST = 8  # questions that must differ: with fewer nothing is said
_SHORTEST = 16  # letters of a question that nobody repeats by the way
_HEAD = 400  # letters of a question that are looked for: more may have been cut off
_BEFORE = 16  # letters that may stand before the question in an answer: a role, "Question:"
_ANSWERS = ("chosen", "rejected", "completion")


class Answer(NamedTuple):
    """One answer of a row, in `letters`.

    Attributes:
        question: What is asked: the last turn of the user, or the prompt itself where it is text.
        prompt: The whole prompt.
        answer: The answer's column.
        row: What the trainer made of prompt and answer together.
    """

    question: str
    prompt: str
    answer: str
    row: str


def install(hooks: Hooks) -> None:
    """Look at the training set; told with the first update."""
    trainer = hooks.trainer
    if any(hasattr(trainer, name) for name in ("num_generations", "reward_funcs", "reward_model", "teacher_model")):
        return
    data: Any = getattr(trainer, "train_dataset", None)
    columns = content(data)
    if columns is None or packed(data, trainer.args) or not data.num_rows:
        return
    owner = getattr(trainer, "processing_class", None)
    tokenizer = getattr(owner, "tokenizer", owner)
    told = {}
    if hasattr(tokenizer, "decode"):
        share = repeated(answers(data, columns, tokenizer))
        if share is not None:
            told["data.prompt_repeated_fraction"] = share
    share = reversed_pairs(data, columns, time.perf_counter() + _SECONDS)
    if share is not None:
        told["data.pair_reversed_fraction"] = share
    hooks.wrap(trainer, "training_step", gives=told)
    hooks.at_step_end.append(lambda: _tell(hooks, told))


def _tell(hooks: Hooks, told: dict[str, float]) -> None:
    """With the first update; nothing is left for a second."""
    for name in list(told):
        hooks.give(name, told.pop(name))


# ---- the question in front of the answer ----


def answers(data: Any, columns: tuple[str, ...], tokenizer: Any) -> Iterator[Answer]:
    """Answers of rows that are spread over a data set that keeps prompts and answers as they were given."""
    names = set(data.column_names)
    if "prompt" not in names:
        return
    front = next((name for name in columns if name.startswith("prompt")), None)
    pairs = [(name, next((one for one in columns if one.startswith(name) or columns == ("input_ids",)), None)) for name in _ANSWERS if name in names]
    used = [(name, made) for name, made in pairs if made is not None]
    read = {"prompt", *(name for pair in used for name in pair), *([front] if front else [])}
    step = max(1, data.num_rows // _TEXTS)
    rows = data.with_format(None, columns=[name for name in data.column_names if name in read])[: step * _TEXTS : step]
    for at, prompt in enumerate(rows["prompt"]):
        question = letters((asked(prompt) or [""])[-1])[:_HEAD]
        before = [] if front is None else rows[front][at]
        for name, made in used:
            ids = rows[made][at]
            whole = [ids] if f"{name}_labels" in names else [before, ids]  # ORPO, CPO and older ones put prompt and answer into one column, with labels beside it
            row = "".join(letters(tokenizer.decode([one for one in part if one >= 0])) for part in whole)
            yield Answer(question, letters(text_of(prompt)), letters(text_of(rows[name][at])), row)


def text_of(value: Any) -> str:
    """A text itself, or the texts of all turns of a chat."""
    if isinstance(value, str):
        return value
    texts = []
    for turn in value if isinstance(value, list | tuple) else ():
        parts = turn.get("content") if isinstance(turn, dict) else None
        parts = [{"text": parts}] if isinstance(parts, str) else parts or ()
        texts += [part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str)]
    return " ".join(texts)


def repeated(rows: Iterable[Answer]) -> float | None:
    """Share of answers that begin with the question, where the row that was made of it holds the question once more than the prompt does.

    None where fewer than `_FEWEST` different things are asked, or fewer than half of them are of their own (the name of a template is no question). Questions of a few letters are left out.
    """
    kept = [row for row in rows if len(row.question) >= _SHORTEST]
    questions = {row.question for row in kept}
    prompts = {(row.question, row.prompt) for row in kept}
    if len(questions) < _FEWEST or 2 * len(questions) < len(prompts):
        return None
    hits = [0 <= row.answer.find(row.question) <= _BEFORE and row.row.count(row.question) > row.prompt.count(row.question) for row in kept]
    return sum(hits) / len(hits)


# ---- one pair, both ways ----


def reversed_pairs(data: Any, columns: tuple[str, ...], until: float) -> float | None:
    """Share of the first rows whose two answers are in another of them in the other order, behind the same prompt; None where there are no pairs.

    Args:
        data: A `datasets.Dataset` that the trainer has prepared.
        columns: As from `content`.
        until: When to stop, by `time.perf_counter`.
    """
    parts = [next((name for name in columns if name.startswith(kind)), None) for kind in ("prompt", "chosen", "rejected")]
    if parts[1] is None or parts[2] is None:
        return None
    read, found, seen = tuple(name for name in parts if name is not None), list[NDArray[np.uint64]](), 0
    for table in chunks(data, read, until):
        hashed = []
        for name in parts:
            values, lengths = (np.zeros(0, np.int64), np.zeros(table.num_rows, np.int64)) if name is None else flat(table.column(name))
            hashed.append(mixed(values, lengths, 0))
            seen += int(lengths.sum())
        found.append(np.stack(hashed))
        if seen >= _TOKENS:
            break
    return reversed_fraction(np.concatenate(found, axis=1)) if found else None


def reversed_fraction(rows: NDArray[np.uint64]) -> float:
    """Share of pairs that are there the other way round as well; a pair of one answer and itself is none.

    Args:
        rows: Hashes of prompt, chosen and rejected answers, one line each.
    """
    prompt, chosen, rejected = rows
    here, back = (splitmix(splitmix(splitmix(one) + other) + prompt) for one, other in ((chosen, rejected), (rejected, chosen)))
    return float((np.isin(back, here) & (chosen != rejected)).mean())
