"""Family: with gradient accumulation, whether a label token weighs the same in every micro-batch of an update.

The gradient of an update is that of the sum of its micro-batches' losses. Divided by the label tokens of the whole update, every token
weighs the same, and accumulation changes nothing; a mean over each micro-batch's own tokens makes a token of a short answer weigh more than one of a long
one. No setting tells which of the two happens, so it is measured: the loss of each micro-batch over the cross entropy of its labels,
which comes from the outputs of the training's own pass. TRL hands log-probabilities out; from logits it is computed at `SAMPLE` labels, in the first
`FIRST` updates and every `EVERY`th. A loss that is neither of the two (label smoothing, an auxiliary loss, a weight per sequence) gives nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from trainvitals.integrations.distillation import IGNORED

if TYPE_CHECKING:
    from trainvitals.integrations.hooks import Hooks

SIGNALS = frozenset({"optim.token_weight_ratio"})
"""Signals that only these wraps give."""

FIRST, EVERY = 10, 20
"""Where cross entropy has to be computed from logits: in so many updates at first, and in every so manieth."""
SAMPLE = 1024
"""Labels of a micro-batch whose cross entropy is computed from logits, spread evenly; with fewer it is exact."""
CHUNK = 256
"""Of these at a time: 256 rows of 150,000 logits are 150 MB."""
SAME = 1.1
"""Numbers that should be one and the same: rounding of bf16, and what a sample of 1,024 labels is off by (5 %, where token losses spread as much again and half as their mean)."""
_FAINT = 1e-3  # nats per token: below it a loss is rounding
_STEP_LIMIT = 4096  # as in hooks.py
_GOLDEN = 0.6180339887498949


def install(hooks: Hooks) -> None:
    """Watch a language model whose loss is a plain cross entropy, where micro-batches are accumulated."""
    if not plain_loss(hooks.trainer) or int(getattr(hooks.trainer.args, "gradient_accumulation_steps", 1)) < 2:
        return
    reader = _Weights(hooks)
    hooks.wrap(hooks.trainer, "compute_loss", reader.after_loss, before=reader.before_loss, gives=SIGNALS)
    hooks.at_step_end.append(reader.step_end)
    hooks.at_finish.append(reader.finish)


def plain_loss(trainer: Any) -> bool:
    """Whether the loss should be the mean cross entropy of labels, and outputs are there to compute it from."""
    args, head = trainer.args, getattr(trainer.model, "get_output_embeddings", None)
    if head is None or head() is None or any(hasattr(trainer, name) for name in ("num_generations", "ref_model", "teacher_model")):
        return False
    text = trainer.model.config.get_text_config()
    mixture = bool(getattr(trainer, "aux_loss_enabled", False) or getattr(text, "output_router_logits", False))
    fused = getattr(args, "loss_type", None) == "chunked_nll" or getattr(args, "use_liger_kernel", False)  # no logits are made
    other = getattr(args, "loss_type", None) not in {None, "nll"} or getattr(args, "label_smoothing_factor", 0.0) > 0
    return not (mixture or fused or other or getattr(args, "torch_compile", False))


class _Weights:
    """The micro-batches of one update."""

    def __init__(self, hooks: Hooks) -> None:
        self._hooks = hooks
        self._updates = 0
        self._rows: list[torch.Tensor] = []
        self._labels: torch.Tensor | None = None
        self._sums: torch.Tensor | None = None
        self._handle: Any = None
        self._error: Exception | None = None

    def before_loss(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """Listen at the end of the model for one micro-batch."""
        self.finish()
        inputs = args[1] if len(args) > 1 else kwargs["inputs"]
        labels = inputs.get("labels")
        if self._hooks.training and labels is not None and labels.dim() == 2 and "shift_labels" not in inputs and len(self._rows) < _STEP_LIMIT:
            self._labels, self._sums = labels, None
            self._handle = self._hooks.trainer.model.register_forward_hook(self._read)
        return args

    def _read(self, module: Any, args: Any, output: Any) -> None:
        try:
            own = getattr(output, "log_probs", None)
            logits = getattr(output, "logits", None)
            if own is not None:
                with torch.no_grad():
                    self._sums = torch.stack([-own.detach().float().sum(), output.label_mask.sum().float()])
            elif logits is not None and self._labels is not None and torch.is_grad_enabled() and self._looks():
                self._sums = cross_entropy(logits.detach(), self._labels)
        except Exception as error:  # it must not leave the model's call
            self._error = error

    def _looks(self) -> bool:
        return self._updates < FIRST or self._updates % EVERY == 0

    def after_loss(self, result: Any, args: tuple[Any, ...], kwargs: dict[str, Any], seconds: float) -> None:
        """Keep what the trainer made of the micro-batch beside its cross entropy."""
        sums = self._sums
        self.finish()
        if self._error is not None:
            raise self._error
        if sums is not None:
            loss = result[0] if isinstance(result, tuple) else result
            self._rows.append(torch.stack([loss.detach().float().to(sums.device), *sums]))

    def step_end(self) -> None:
        """An update is over."""
        if len(self._rows) > 1:
            self._hooks.put([torch.stack(self._rows)], self._signals)
        self._rows, self._updates = [], self._updates + 1

    def _signals(self, tensors: list[torch.Tensor]) -> dict[str, float]:
        loss, summed, number = tensors[0].unbind(1)
        ratio = weight_ratio(loss, summed, number, int(getattr(self._hooks.trainer.args, "world_size", 1)))
        return {} if ratio is None else {"optim.token_weight_ratio": ratio}

    def finish(self, status: str = "") -> None:
        """Take the hook off the model."""
        if self._handle is not None:
            self._handle.remove()
        self._handle, self._labels, self._sums = None, None, None


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor, shift: int = 1) -> torch.Tensor | None:
    """Summed cross entropy of the labels of a micro-batch, and how many there are; of a sample, scaled up, where they are many.

    Args:
        logits: Batch by length by vocabulary, not shifted.
        labels: Batch by length, `IGNORED` where masked.
        shift: How many tokens behind an output its label lies: 1 in a model that learns the next token.
    """
    if logits.shape[:2] != labels.shape:
        return None
    with torch.no_grad(), torch.autocast(logits.device.type, enabled=False):
        targets = torch.nn.functional.pad(labels[:, shift:], (0, shift), value=IGNORED).flatten().to(logits.device)
        counted = targets != IGNORED
        order = torch.arange(1, targets.numel() + 1, device=targets.device, dtype=torch.float64).mul_(_GOLDEN).frac_().add_(1e-9).float()
        picked, places = (counted * order).topk(min(SAMPLE, targets.numel()))
        flat, taken = logits.reshape(-1, logits.shape[-1]), picked > 0
        wanted = torch.where(taken, targets[places], IGNORED)
        parts = [
            torch.nn.functional.cross_entropy(flat[at].float(), one, ignore_index=IGNORED, reduction="sum")
            for at, one in zip(places.split(CHUNK), wanted.split(CHUNK), strict=True)
        ]
        number = counted.sum().float()
        return torch.stack([torch.stack(parts).sum() * number / taken.sum().clamp(min=1), number])


def weight_ratio(loss: torch.Tensor, summed: torch.Tensor, number: torch.Tensor, world: int = 1) -> float | None:
    """Largest over smallest weight of a token among micro-batches; None where the loss is no mean over tokens, of either kind.

    A mean over own tokens must also have the size of one, before or after the division by the number of micro-batches: a loss of
    another kind that hardly differs between micro-batches would look the same.

    Args:
        loss: What the trainer made of each micro-batch.
        summed: Cross entropy of its labels, summed.
        number: How many labels there are.
        world: Processes, by which transformers multiplies a loss whose gradients are averaged over them.
    """
    good = (number > 0) & (summed > _FAINT * number)
    if int(good.sum()) < 2 or not bool(torch.isfinite(loss[good]).all() & (loss[good] > 0).all()):
        return None
    weight = (loss / summed)[good].double()
    scale = weight * number[good]
    whole, own = (float(x.max() / x.min()) for x in (weight, scale))
    sized = any(1 / SAME <= float(scale.median()) / size <= SAME for share in (1, 1 / len(loss)) for size in (share, share * world))
    return whole if whole <= SAME or (own <= SAME and sized) else None
