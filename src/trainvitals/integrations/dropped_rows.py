"""Family: rows that the trainer dropped while it prepared the data, because they do not fit ``max_length``.

TRL says nothing about it beyond a progress bar. Measured on its wheels: `RewardTrainer` drops pairs longer than ``max_length`` in every
version; since 1.9.0 `DPOTrainer` and `KTOTrainer` drop rows whose prompt alone fills it, and `SFTTrainer` those of whose answer truncation left
nothing. Before, and in ORPO, CPO and TPO to this day, such rows are trained on (``preference.empty_fraction``,
``token.unlabelled_sequence_fraction``).

When we are attached the data set is ready. A filtered `datasets.Dataset` still has its whole table below it, so what was dropped can be
counted and looked at. KTO rewrites the table afterwards: there the rows are gone, and nothing is said.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from trainvitals.integrations.hooks import Hooks

SIGNALS = frozenset({"data.rows_given", "data.rows_kept"})
"""Signals that only these wraps give."""

_LOOKED_AT = 32  # dropped rows that are read to see whether their length is why
_IGNORED = -100  # as in supervised.py


def install(hooks: Hooks) -> None:
    """Count the rows of the training set before and after it was prepared; told with the first update."""
    trainer = hooks.trainer
    data = getattr(trainer, "train_dataset", None)
    counts = rows(data, trainer.args)
    if getattr(data, "num_rows", None) == 0:  # torch will complain about its sampler, or training end at once as if all were well
        limit, given = getattr(trainer.args, "max_length", None), counts[0] if counts else 0
        why = f": all {given} rows were dropped because they do not fit max_length={limit}" if given else f"; do its rows fit max_length={limit}?" if limit else ""
        from trainvitals.integrations.transformers import notice

        notice(f"the training set has no rows{why}")
    if counts is None:
        return
    told = dict(zip(("data.rows_given", "data.rows_kept"), counts, strict=True))

    def tell() -> None:
        for name in list(told):
            hooks.give(name, float(told.pop(name)))

    hooks.wrap(trainer, "training_step", gives=SIGNALS)
    hooks.at_step_end.append(tell)


def rows(data: Any, args: Any) -> tuple[int, int] | None:
    """Rows before and after the trainer dropped the ones that are too long; None where that cannot be known.

    Args:
        data: The prepared training set.
        args: Training arguments.

    Returns:
        Given and kept. Both are the same when rows are missing for another reason, such as a user's own ``select``.
    """
    limit = getattr(args, "max_length", None)
    test = None if not limit or getattr(args, "packing", False) else _test(set(getattr(data, "column_names", None) or ()), int(limit))
    table = getattr(data, "data", None)
    if test is None or table is None or not hasattr(table, "num_rows"):
        return None
    kept, given = len(data), int(table.num_rows)
    places = getattr(data, "_indices", None)
    if given == kept or places is None:
        return kept, kept
    missing = np.ones(given, dtype=bool)
    missing[np.asarray(places.column(0))] = False
    dropped = np.flatnonzero(missing)
    looked_at = table.fast_gather(dropped[:: max(1, len(dropped) // _LOOKED_AT)]).to_pylist() if len(dropped) else []
    return (kept + len(dropped) if looked_at and all(test(row) for row in looked_at) else kept), kept


def _test(columns: set[str], limit: int) -> Callable[[dict[str, Any]], bool] | None:
    """Whether TRL drops a row: its own conditions, by the columns that its preparation makes. None for other trainers."""
    if {"prompt_ids", "chosen_ids", "rejected_ids"} <= columns:  # DPO; TPO makes the same and drops none
        return lambda row: len(row["prompt_ids"]) >= limit
    if {"chosen_ids", "rejected_ids"} <= columns:  # reward models
        return lambda row: max(len(row["chosen_ids"]), len(row["rejected_ids"])) > limit
    if {"prompt_ids", "completion_ids", "label"} <= columns and "KL_completion_ids" not in columns:  # KTO without a KL
        return lambda row: len(row["prompt_ids"]) >= limit
    if {"input_ids", "labels"} <= columns:  # SFT
        return lambda row: all(label == _IGNORED for label in row["labels"])
    return None
