"""Family: which token a language model is trained to write at each place: the next one, the one it reads there, or the one after the next.

Labels lie on the tokens themselves, and the loss moves them by one: somewhere between the row and the loss exactly one step must be made. A loss of one's own may make
none, and labels that were moved before make two; the training loss falls in both. Two things are measured in the first micro-batch of an update:

* How labels lie on the tokens that the model was called with: on them (0), one behind (-1) or one ahead (1). Told only where all labels of the micro-batch lie so.
* How far the loss moves labels: the one of 0, 1 and 2 at which their mean cross entropy is the trainer's loss. TRL's fused head hands out the log-probabilities at 1; from logits all three are computed.

Their sum should be 1. Where the loss is none of the three, or two of them are too near each other to tell apart (a model that knows nothing yet), nothing is told.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from trainvitals.integrations.distillation import IGNORED
from trainvitals.integrations.features import causal
from trainvitals.integrations.token_weights import EVERY, FIRST, SAME, SAMPLE, cross_entropy, plain_loss

if TYPE_CHECKING:
    from trainvitals.integrations.hooks import Hooks

SIGNALS = frozenset({"token.label_shift"})
"""Signals that only these wraps give."""

MOVES = (0, 1, 2)
"""How far a loss may move labels, in tokens."""
PLACES = (-1, 0, 1)
"""Where labels may lie: label t is token t + place."""
NEAR = 1.005
"""Two numbers that should be one where the cross entropy is exact: a loss that is rounded to bfloat16 is off by up to 0.4%."""
APART = 3
"""The other cross entropies must be three times as far away (as logarithms) as the one that fits may be: none of them could be it."""
_FAINT = 1e-3  # nats per token: below it a loss is rounding


def install(hooks: Hooks) -> None:
    """Watch a causal language model whose loss should be the plain cross entropy of labels."""
    trainer = hooks.trainer
    if not plain_loss(trainer) or not causal(trainer.model) or int(getattr(trainer.args, "n_gpu", 1)) > 1:
        return
    reader = _Shift(hooks)
    hooks.wrap(trainer, "compute_loss", reader.after_loss, before=reader.before_loss, gives=SIGNALS)
    hooks.at_step_end.append(reader.step_end)
    hooks.at_finish.append(reader.finish)


class _Shift:
    """The first micro-batch of an update."""

    def __init__(self, hooks: Hooks) -> None:
        self._hooks = hooks
        self._updates = 0
        self._done = False  # in this update
        self._given: torch.Tensor | None = None
        self._found: list[torch.Tensor] = []
        self._sampled = False
        self._handle: Any = None
        self._error: Exception | None = None

    def before_loss(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """Listen at the model for one micro-batch."""
        self.finish()
        inputs = args[1] if len(args) > 1 else kwargs["inputs"]
        wanted = not self._done and (self._updates < FIRST or self._updates % EVERY == 0)
        if wanted and self._hooks.training and inputs.get("labels") is not None and "shift_labels" not in inputs:
            self._done, self._given, self._found = True, inputs["labels"], []
            self._handle = self._hooks.trainer.model.register_forward_hook(self._read, with_kwargs=True)
        return args

    def _read(self, module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        try:
            ids, labels = kwargs.get("input_ids"), kwargs.get("labels")
            labels = self._given if labels is None else labels
            if self._found or not torch.is_grad_enabled() or ids is None or labels is None or ids.dim() != 2 or ids.shape != labels.shape:
                return
            sums = moved_sums(output, labels)
            if sums is not None:
                self._sampled = labels.numel() > SAMPLE and getattr(output, "log_probs", None) is None
                self._found = [sums, lying(ids, labels)]
        except Exception as error:  # it must not leave the model's call
            self._error = error

    def after_loss(self, result: Any, args: tuple[Any, ...], kwargs: dict[str, Any], seconds: float) -> None:
        """Keep what the trainer made of the micro-batch beside what it may be."""
        found = self._found
        self.finish()
        if self._error is not None:
            raise self._error
        if not found:
            return
        trainer, near = self._hooks.trainer, SAME if self._sampled else NEAR
        loss = result[0] if isinstance(result, tuple) else result
        items = args[3] if len(args) > 3 else kwargs.get("num_items_in_batch")
        items = torch.as_tensor(math.nan if items is None else items, device=loss.device).float().reshape(-1)[:1].sum()
        steps, world = int(getattr(trainer.args, "gradient_accumulation_steps", 1)), int(getattr(trainer.args, "world_size", 1))

        def signals(tensors: list[torch.Tensor]) -> dict[str, float]:
            (value, whole), (summed, number), lies = (tensor.tolist() for tensor in tensors)
            place = place_of(lies)
            move = move_of(value, summed, number, [whole, whole / world], steps, near)
            return {} if place is None or move is None else {"token.label_shift": float(place + move)}

        self._hooks.put([torch.stack([loss.detach().float(), items.to(loss.device)]), *found], signals)

    def step_end(self) -> None:
        """An update is over."""
        self._done, self._updates = False, self._updates + 1

    def finish(self, status: str = "") -> None:
        """Take the hook off the model."""
        if self._handle is not None:
            self._handle.remove()
        self._handle, self._given, self._found = None, None, []


def moved_sums(output: Any, labels: torch.Tensor) -> torch.Tensor | None:
    """Summed cross entropy of labels moved by each of `MOVES`, above how many these are; NaN where it is not known.

    Args:
        output: What the model returned, with log-probabilities of labels moved by 1, or with logits.
        labels: Batch by length, `IGNORED` where masked.
    """
    own, logits = getattr(output, "log_probs", None), getattr(output, "logits", None)
    with torch.no_grad():
        if own is not None:
            sums, unknown = torch.stack([-own.detach().float().sum(), output.label_mask.sum().float()]), torch.full((2,), math.nan, device=own.device)
            return torch.stack([sums if move == 1 else unknown for move in MOVES], dim=1)
        if logits is None:
            return None
        parts = [cross_entropy(logits.detach(), labels, move) for move in MOVES]
        return None if any(part is None for part in parts) else torch.stack([part for part in parts if part is not None], dim=1)


def lying(ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """How many labels are the token at each of `PLACES` from them, and how many labels there are."""
    counted = labels != IGNORED
    one = torch.nn.functional.pad(ids, (1, 1), value=IGNORED)
    width = ids.shape[1]
    hits = [(counted & (labels == one[:, 1 + place : 1 + place + width])).sum() for place in PLACES]
    return torch.stack([*hits, counted.sum()])


def place_of(lies: Sequence[float]) -> int | None:
    """The one of `PLACES` at which all labels lie, from `lying`; None where it is none of them or not one alone."""
    *hits, labels = lies
    fits = [place for place, hit in zip(PLACES, hits, strict=True) if hit == labels]
    return fits[0] if labels and len(fits) == 1 else None


def move_of(loss: float, summed: Sequence[float], number: Sequence[float], items: Sequence[float], steps: int = 1, near: float = NEAR) -> int | None:
    """The one of `MOVES` whose mean cross entropy is the loss; None where it is none of them, or another is not clearly apart.

    Args:
        loss: What the trainer made of the micro-batch.
        summed: Cross entropy of the labels moved by each of `MOVES`; NaN for one that is not known, which then is none.
        number: How many labels these are.
        items: What it may be divided by instead: labels of the whole update; NaN for none.
        steps: Micro-batches of an update, by which a mean may be divided.
        near: Ratio up to which two numbers are the same.
    """
    if not math.isfinite(loss) or loss <= 0:
        return None
    far = list[float]()
    for total, count in zip(summed, number, strict=True):
        known = math.isfinite(total) and count > 0 and total > _FAINT * count
        scales = [scale for scale in (count, count * steps, *items) if scale > 0] if known else []
        far.append(min((abs(math.log(loss * scale / total)) for scale in scales), default=math.inf))
    best = min(range(len(MOVES)), key=far.__getitem__)
    others = min(one for at, one in enumerate(far) if at != best)
    return MOVES[best] if far[best] < math.log(near) and others > APART * math.log(near) else None
