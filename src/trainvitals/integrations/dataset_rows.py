"""Family: what the rows of the data set say before the first update: copies, evaluation rows among the training rows, their order.

Trainers that learn from given answers only: prompts of trainers that sample repeat by design. Read are the token ids that the trainer has
prepared already, from the Arrow table of a `datasets.Dataset`, once when we are attached: at most `_TOKENS` tokens or `_SECONDS`, from
the first row on, so in a larger set the shares are those of its beginning. Nothing is read of other kinds of data sets, of streams, of packed
rows and of rows with images (one question about two images is no copy). No text leaves this file, only counts and shares.

Rows are compared by a 64-bit hash of their tokens: among a million rows two differing ones are alike by accident with a chance of 3e-8.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from trainvitals.integrations.drift import BUCKETS, UNITS, Counts, distance, unit

if TYPE_CHECKING:
    from trainvitals.integrations.hooks import Hooks

_COPIES = frozenset({"data.duplicate_fraction", "data.repeated_fraction", "data.most_copies", "data.rows_looked_at", "data.row_tokens"})
_OVERLAP = frozenset({"data.eval_overlap_fraction", "data.eval_overlap_rows"})
_ORDER = frozenset({"data.read_in_order", "data.order_length_correlation", "data.order_drift", "data.order_drift_ratio"})
_CLASSES = frozenset({"data.order_class_runs"})
_MASKS = frozenset({"data.prompt_fraction", "data.masked_token_fraction", "data.masked_row_fraction"})
SIGNALS = _COPIES | _OVERLAP | _ORDER | _CLASSES | _MASKS
"""Signals that only these wraps give."""

_TOKENS = 50_000_000  # about 1 s (17 ns each, 34 of a shuffled set)
_SECONDS = 2.0  # for a slow disk
_CHUNK = 2_000  # rows read at once
_EVAL_ROWS = 20_000  # evaluation rows that are looked for
_STRETCHES = 4  # of 128 rows each, from the first rows to the last
_MASK_COLUMNS = ("completion_mask", "assistant_masks")
_IGNORED = -100  # as in supervised.py
_READ = 256  # rows whose text is read
_AHEAD = 1024  # tokens of a part of a row that are compared there: what is sorted shows in them
_FEWEST = 64  # rows of which an order can be told from chance: five standard errors of a rank correlation are 0.63 then

_PARTS = (
    "prompt_ids", "prompt_input_ids", "chosen_ids", "chosen_input_ids", "rejected_ids", "rejected_input_ids", "completion_ids", "completion_input_ids",
)  # fmt: skip
_PICTURES = frozenset({"image", "images", "pixel_values", "videos", "audio", "input_features"})

Hashes = NDArray[np.uint64]


def install(hooks: Hooks) -> None:
    """Look at training and evaluation set; told with the first update."""
    trainer = hooks.trainer
    if any(hasattr(trainer, name) for name in ("num_generations", "reward_funcs", "reward_model", "teacher_model")):
        return
    data = getattr(trainer, "train_dataset", None)
    columns = content(data)
    if columns is None or packed(data, trainer.args):
        return
    until = time.perf_counter() + _SECONDS
    held_out = evaluation_hashes(trainer, columns, until)
    train, lengths = hashes(data, columns, _TOKENS, until)
    if not len(train):
        return
    told = {**copies(train), "data.row_tokens": float(np.median(lengths))}
    if held_out:
        told |= overlap(train, held_out)
    if columns == ("input_ids",):
        told |= masks(data, whole=getattr(trainer, "completion_only_loss", None) is False)
    if len(lengths) >= _FEWEST:
        told["data.order_length_correlation"] = rank_correlation(lengths)
        if "label" in columns:
            told["data.order_class_runs"] = runs(column(data, "label", len(train)))
    if len(lengths) >= _STRETCHES * UNITS // 2:
        told |= order_drift(data, columns, len(train))
    reader = _Once(hooks, told)
    hooks.wrap(trainer, "training_step", gives=told)
    hooks.wrap(trainer, "get_train_dataloader", reader.after_loader, gives=["data.read_in_order"])
    hooks.at_step_end.append(reader.tell)


class _Once:
    """Waits for the data loader, which knows in which order the rows are read, and tells everything with the first update."""

    def __init__(self, hooks: Hooks, told: dict[str, float]) -> None:
        self._hooks, self._told = hooks, told

    def after_loader(self, result: Any, args: tuple[Any, ...], kwargs: dict[str, Any], seconds: float) -> None:
        """The training's data loader was made."""
        self._told["data.read_in_order"] = float(in_order(result))

    def tell(self) -> None:
        """With the first update; nothing is left for a second."""
        for name in list(self._told):
            self._hooks.give(name, self._told.pop(name))


# ---- which columns, which rows ----


def content(data: Any) -> tuple[str, ...] | None:
    """Columns that hold the tokens of a row; None where rows are not to be compared."""
    names = getattr(data, "column_names", None)
    if not isinstance(names, list) or not hasattr(data, "with_format") or not hasattr(data, "num_rows") or _PICTURES & set(names):
        return None
    parts = tuple(name for name in _PARTS if name in names)
    if any(not name.startswith("prompt") for name in parts):
        return (*parts, "label") if "label" in names else parts
    return ("input_ids",) if "input_ids" in names else None


def packed(data: Any, args: Any) -> bool:
    """Whether a row is several texts, or a piece of one: no unit to compare."""
    return bool(getattr(args, "packing", False)) or "seq_lengths" in data.column_names


def chunks(data: Any, columns: tuple[str, ...], until: float, most: int = 1 << 62) -> Iterator[Any]:
    """Arrow tables of the first rows, until the time is over."""
    plain = data.with_format("arrow", columns=list(columns))
    for begin in range(0, min(data.num_rows, most), _CHUNK):
        if begin and time.perf_counter() > until:
            return
        yield plain[begin : min(begin + _CHUNK, data.num_rows, most)]


def hashes(data: Any, columns: tuple[str, ...], tokens: int, until: float, most: int = 1 << 62) -> tuple[Hashes, NDArray[np.int64]]:
    """Hash and number of tokens of each of the first rows.

    Args:
        data: A `datasets.Dataset`.
        columns: As from `content`.
        tokens: Where to stop.
        until: When to stop, by `time.perf_counter`.
        most: Rows that are read at most.
    """
    found, sizes, seen = list[Hashes](), list[NDArray[np.int64]](), 0
    for table in chunks(data, columns, until, most):
        row, size = np.zeros(table.num_rows, np.uint64), np.zeros(table.num_rows, np.int64)
        for salt, name in enumerate(columns):
            values, length = flat(table.column(name))
            row += mixed(values, length, salt)
            size += length
        found.append(row)
        sizes.append(size)
        seen += int(size.sum())
        if seen >= tokens:
            break
    nothing = np.zeros(0, np.int64)
    return (np.concatenate(found), np.concatenate(sizes)) if found else (nothing.astype(np.uint64), nothing)


def flat(part: Any) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Values of a column end to end, and how many each row has (1 where it holds a number)."""
    whole = part.combine_chunks()
    if hasattr(whole, "num_chunks"):  # pyarrow's own kind of column without a chunk
        whole = whole.chunk(0)
    if not hasattr(whole, "flatten") or not hasattr(whole, "value_lengths"):
        return np.asarray(whole.to_numpy(zero_copy_only=False)), np.ones(len(whole), np.int64)
    lengths = whole.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    return np.asarray(whole.flatten().to_numpy(zero_copy_only=False)), lengths.astype(np.int64)


def mixed(values: NDArray[Any], lengths: NDArray[np.int64], salt: int) -> Hashes:
    """A hash of each row: the sum of its tokens, each mixed with its place. Sums wrap around, which keeps their differences right."""
    start = np.cumsum(lengths) - lengths
    place = np.arange(len(values), dtype=np.uint64) - np.repeat(start, lengths).astype(np.uint64)
    one = splitmix((values.astype(np.int64).astype(np.uint64) << np.uint64(32)) + place + np.uint64(salt << 60))
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(one, dtype=np.uint64)])
    return splitmix(sums[start + lengths] - sums[start] + (lengths.astype(np.uint64) << np.uint64(3)) + np.uint64(salt))


def splitmix(x: Hashes) -> Hashes:
    """A well mixed 64-bit number of each number (Steele and others 2014)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def evaluation_hashes(trainer: Any, columns: tuple[str, ...], until: float) -> list[Hashes]:
    """Rows of the evaluation sets that have the columns of the training set."""
    given: Any = getattr(trainer, "eval_dataset", None)
    packing = getattr(trainer.args, "eval_packing", None)
    sets: list[Any] = list(given.values()) if isinstance(given, Mapping) and not hasattr(given, "column_names") else [given]
    usable = [one for one in sets if content(one) == columns and "seq_lengths" not in one.column_names and not packing]
    return [found for found in (hashes(one, columns, _TOKENS // 4, until, _EVAL_ROWS)[0] for one in usable) if len(found)]


def column(data: Any, name: str, count: int) -> NDArray[Any]:
    """The first numbers of a column."""
    return np.asarray(data.with_format("arrow", columns=[name])[:count].column(name).to_numpy())


def stretch(data: Any, columns: tuple[str, ...], begin: int, count: int) -> Counts:
    """Rows from `begin` on, one unit of `drift` each: the first tokens of each part of a row."""
    table = data.with_format("arrow", columns=list(columns))[begin : begin + count]
    rows: list[list[int]] = [[] for _ in range(table.num_rows)]
    for name in columns:
        if name != "label":
            values, lengths = flat(table.column(name))
            for row, start, length in zip(rows, np.cumsum(lengths) - lengths, lengths, strict=True):
                row += values[start : start + min(length, _AHEAD)].tolist()
    return np.stack([unit([row]) for row in rows])


# ---- numbers in, numbers out ----


def copies(rows: Hashes) -> dict[str, float]:
    """Share of rows that are copies of an earlier one, of rows that are there more than once, and how often the commonest is."""
    _, counts = np.unique(rows, return_counts=True)
    return {
        "data.duplicate_fraction": 1.0 - len(counts) / len(rows),
        "data.repeated_fraction": float(counts[counts > 1].sum()) / len(rows),
        "data.most_copies": float(counts.max()),
        "data.rows_looked_at": float(len(rows)),
    }


def overlap(train: Hashes, held_out: list[Hashes]) -> dict[str, float]:
    """Share of evaluation rows that are training rows, and their number, in the set where the share is largest."""
    found = max((np.isin(rows, train) for rows in held_out), key=lambda hit: float(hit.mean()))
    return {"data.eval_overlap_fraction": float(found.mean()), "data.eval_overlap_rows": float(found.sum())}


def order_drift(data: Any, columns: tuple[str, ...], count: int) -> dict[str, float]:
    """The two of four stretches, evenly spread over the first `count` rows, that differ most: as `drift` measures it along a run."""
    size = min(UNITS, count // _STRETCHES)
    stretches = [stretch(data, columns, place * (count - size) // (_STRETCHES - 1), size) for place in range(_STRETCHES)]
    found = [
        distance(first[:, part], second[:, part])
        for first, second in itertools.combinations(stretches, 2)
        for part in (slice(BUCKETS), slice(BUCKETS, None))
    ]
    nats, ratio = max(found, key=lambda pair: pair[1])
    return {"data.order_drift": nats, "data.order_drift_ratio": ratio}


def rank_correlation(lengths: NDArray[np.int64]) -> float:
    """Spearman's correlation of length and place; 0 where all lengths are equal."""
    _, inverse, counts = np.unique(lengths, return_inverse=True, return_counts=True)
    rank = (np.cumsum(counts) - (counts - 1) / 2)[inverse]  # ties share their mean rank
    place = np.arange(len(lengths), dtype=np.float64)
    rank, place = rank - rank.mean(), place - place.mean()
    scale = float(np.sqrt((rank * rank).sum() * (place * place).sum()))
    return float((rank * place).sum()) / scale if scale else 0.0


def runs(classes: NDArray[Any]) -> float:
    """Stretches of one class over those that a shuffled order has on the average: about 1 when mixed, near 0 when sorted."""
    flags = classes.astype(bool)
    first, second = int(flags.sum()), int((~flags).sum())
    if not first or not second:
        return 1.0
    return (1 + int((flags[1:] != flags[:-1]).sum())) / (1 + 2 * first * second / len(flags))


def in_order(loader: Any) -> bool:
    """Whether a data loader reads the rows from the first to the last; accelerate wraps samplers into samplers."""
    batches = getattr(loader, "batch_sampler", None)
    for _ in range(4):
        sampler = getattr(batches, "sampler", None)
        if sampler is not None:
            return isinstance(sampler, torch.utils.data.SequentialSampler)
        batches = getattr(batches, "batch_sampler", None)
    return False


def masks(data: Any, *, whole: bool) -> dict[str, float]:
    """How much of the first rows is prompt, and how much the trainer has taken out of the loss.

    Args:
        data: Rows of a supervised trainer.
        whole: The loss is meant to be on the whole row: a ``completion_mask`` (which TRL 1.0 leaves to its collator) is none then.
    """
    names = data.column_names
    told, prompt = dict[str, float](), None
    used = ["labels"] if "labels" in names else [name for name in _MASK_COLUMNS if name in names and not (whole and name == "completion_mask")]
    columns = list({*used, *(name for name in ("completion_mask", "prompt", "completion", "messages") if name in names)})
    table = data.with_format("arrow", columns=columns)[:_CHUNK]
    if "completion_mask" in names:
        prompt = float((flat(table.column("completion_mask"))[0] == 0).mean())
    elif "messages" in names or {"prompt", "completion"} <= set(names):
        prompt = prompt_share(table.slice(0, _READ).to_pylist())
    if prompt is not None:
        told["data.prompt_fraction"] = prompt
    hidden: NDArray[np.bool_] | None = None
    lengths = np.zeros(0, np.int64)
    for name in used:
        values, lengths = flat(table.column(name))
        one = values == (_IGNORED if name == "labels" else 0)
        hidden = one if hidden is None or len(hidden) != len(one) else hidden | one
    if hidden is not None and len(hidden) and int(lengths.max()) > 1:
        ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(hidden)])
        rows = ends[np.cumsum(lengths)] - ends[np.cumsum(lengths) - lengths]
        told |= {"data.masked_token_fraction": float(hidden.mean()), "data.masked_row_fraction": float((rows > 0).mean())}
    return told


def prompt_share(rows: list[dict[str, Any]]) -> float | None:
    """Share of the characters of rows of text or chat that the model is not meant to write itself; None where nothing is read."""
    prompt = answer = 0
    for row in rows:
        if "messages" in row:
            parts = [(turn.get("role") == "assistant", turn.get("content")) for turn in row["messages"] or () if isinstance(turn, dict)]
        else:
            texts = [(name == "completion", row[name]) for name in ("prompt", "completion")]
            parts = [(own, turn["content"] if isinstance(turn, dict) else turn) for own, text in texts for turn in ([text] if isinstance(text, str) else text or ())]
        answer += sum(len(text) for own, text in parts if own and isinstance(text, str))
        prompt += sum(len(text) for own, text in parts if not own and isinstance(text, str))
    return prompt / (prompt + answer) if prompt and answer else None
