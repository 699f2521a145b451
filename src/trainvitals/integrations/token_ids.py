"""Family: token ids that the model has no embedding for: negative ones, and those beyond the table.

A loss mask that was written into labels which are a view of the inputs puts -100 there. A tokenizer that grew beyond the model gives ids beyond the
table. A plain embedding fails at either (on a GPU with a device-side assert somewhere later), one that is cut up among ranks or written by hand may give
zeros and go on. Batches with images are not looked at: some models mark with such ids where an image goes.

The first micro-batch of a run is read at once (the one time that the device is waited for), so that the reason is told where the first update dies of it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch

from trainvitals.items import Frame

if TYPE_CHECKING:
    from trainvitals.integrations.hooks import Hooks

SIGNALS = frozenset({"data.invalid_token_fraction", "data.negative_token_fraction"})
"""Signals that only these wraps give."""

_STEP_LIMIT = 4096  # as in hooks.py
_NAMES = ("input_ids", "chosen_input_ids", "rejected_input_ids", "prompt_input_ids", "completion_input_ids", "KL_input_ids", "KL_completion_input_ids")
_PICTURES = ("pixel_values", "pixel_values_videos", "images", "image_grid_thw", "input_features", "input_values")


def install(hooks: Hooks) -> None:
    """Look at the ids of every micro-batch of a trainer that learns from given rows."""
    trainer = hooks.trainer
    rows = table_rows(trainer.model)
    if rows is None or any(hasattr(trainer, name) for name in ("num_generations", "reward_funcs", "reward_model", "rollout_queue")):
        return
    reader = _Ids(hooks, rows)
    hooks.wrap(trainer, "compute_loss", before=reader.before_loss, gives=SIGNALS)
    hooks.at_step_end.append(reader.step_end)
    hooks.at_finish.append(reader.finish)


def table_rows(model: Any) -> int | None:
    """Rows of the whole input embedding, also where a rank holds a part of it; None where that is not known."""
    find = getattr(model, "get_input_embeddings", None)
    try:
        table = None if find is None else find()
    except (NotImplementedError, AttributeError):  # transformers asks every model, and some have none
        return None
    table = getattr(table, "base_layer", table)  # under an adapter
    count = getattr(table, "num_embeddings", None)
    return count if isinstance(count, int) and count > 0 else None


def id_counts(ids: torch.Tensor, rows: int) -> torch.Tensor:
    """Negative ids, ids beyond a table of `rows` rows, and all ids, on their own device."""
    negative, beyond = (ids < 0).sum(), (ids >= rows).sum()
    return torch.stack([negative, beyond, torch.full_like(negative, ids.numel())])


def id_signals(counts: torch.Tensor) -> dict[str, float]:
    """Signals from the `id_counts` of some batches, one row each."""
    negative, beyond, every = counts.sum(0).tolist()
    return {"data.invalid_token_fraction": (negative + beyond) / every, "data.negative_token_fraction": negative / every} if every else {}


class _Ids:
    """What one step has gathered so far."""

    def __init__(self, hooks: Hooks, rows: int) -> None:
        self._hooks, self._rows = hooks, rows
        self._counts: list[torch.Tensor] = []
        self._first: dict[str, float] | None = None  # what the first micro-batch said, until its update is over
        self._over = False  # the first update is

    def before_loss(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """Count the ids of one micro-batch, before the model is called."""
        inputs = args[1] if len(args) > 1 else kwargs["inputs"]
        if not self._hooks.training or len(self._counts) >= _STEP_LIMIT or any(name in inputs for name in _PICTURES):
            return args
        found = [inputs[name] for name in _NAMES if isinstance(inputs.get(name), torch.Tensor) and not inputs[name].is_floating_point()]
        with torch.no_grad():
            self._counts += [id_counts(ids, self._rows) for ids in found]
            if self._counts and self._first is None and not self._over:
                self._first = id_signals(torch.stack(self._counts).cpu())
        return args

    def step_end(self) -> None:
        """Hand over what the micro-batches of this step gave."""
        if self._counts:
            self._hooks.put([torch.stack(self._counts)], lambda tensors: id_signals(tensors[0]))
        self._counts, self._first, self._over = [], None, True

    def finish(self, status: str) -> None:
        """The run died in its first update, which no frame will close: say what its first batch held."""
        first, self._first = self._first, None
        monitor = self._hooks.callback.monitor
        if status == "failed" and first and first["data.invalid_token_fraction"] and monitor is not None:
            monitor.publish(Frame(int(self._hooks.trainer.state.global_step) + 1, dict(first), time=time.time()))
