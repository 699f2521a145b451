"""`attach`: what a callback cannot see, read from the trainer itself. Two lines give every signal::

    from trainvitals.integrations.trl import attach

    trainer = GRPOTrainer(...)
    attach(trainer)
    trainer.train()

`attach` adds a `VitalsCallback` and wraps, on this *instance* only, the methods that hold the raw numbers. No class is
patched. TRL's private names did not change from 1.0 to 1.16; should one be missing or a wrap fail, that one wrap switches
itself off with one notice and the trainer's own method goes on as before.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from trainvitals.integrations.facts import trainer_kind
from trainvitals.integrations.grpo import (
    clip_range,
    length_correlation,
    ratio_signals,
    ratio_stats,
    reward_signals,
    text_signals,
)
from trainvitals.integrations.lifecycle import status_of
from trainvitals.integrations.torch import parameter_norms
from trainvitals.integrations.transformers import VitalsCallback, notice

_STEP_LIMIT = 4096  # micro-batches kept for one step: should our callback be removed, nobody empties these lists
_SAMPLERS = frozenset({"grpo", "rloo"})
_ONE = torch.tensor([0.0, 1.0, 1.0, 1.0])  # ratio statistics of a micro-batch that the policy itself sampled


def attach(trainer: Any, **monitor_kwargs: Any) -> VitalsCallback:
    """Observe a `transformers.Trainer` or a TRL trainer closely.

    Args:
        trainer: The trainer, before ``train()``.
        **monitor_kwargs: For `VitalsCallback` and `trainvitals.monitor.Monitor`.

    Returns:
        The callback; after training its ``monitor`` has the verdict and the findings. A second call returns the same one.

    Raises:
        ValueError: If the trainer already has a `VitalsCallback` and `monitor_kwargs` are given, which would be lost.
    """
    callback = next((cb for cb in trainer.callback_handler.callbacks if isinstance(cb, VitalsCallback)), None)
    if callback is None:
        callback = VitalsCallback(**monitor_kwargs)
        trainer.add_callback(callback)
    elif monitor_kwargs:
        msg = f"the trainer already has a VitalsCallback: give {', '.join(sorted(monitor_kwargs))} to that one"
        raise ValueError(msg)
    if callback.hooks is None:
        callback.trainer = trainer
        callback.hooks = Hooks(callback, trainer)
    return callback


def detach(trainer: Any) -> None:
    """Undo `attach`: restore the trainer's methods and remove the callback."""
    for callback in [cb for cb in trainer.callback_handler.callbacks if isinstance(cb, VitalsCallback)]:
        callback.finish("interrupted")
        if callback.hooks is not None:
            callback.hooks.remove()
        callback.hooks = callback.trainer = None
        trainer.remove_callback(callback)


class Hooks:
    """The wraps on one trainer instance.

    Attributes:
        names: Methods that are wrapped and work.
        metric_names: Raw metrics read from the trainer step by step; log rows repeat them as averages.
    """

    def __init__(self, callback: VitalsCallback, trainer: Any) -> None:
        self._callback, self._trainer = callback, trainer
        self._undo: dict[str, Callable[[], None]] = {}
        self._losses: list[torch.Tensor] = []
        self._ratios: list[torch.Tensor] = []
        self._advantages: list[torch.Tensor] = []
        self._seconds: dict[str, float] = {}
        self._logps: torch.Tensor | None = None
        self._lists: dict[str, tuple[list[Any], int]] = {}
        self._raw: dict[str, list[float]] = {}
        self.metric_names: set[str] = set()
        self.kind = trainer_kind(trainer)
        self._install()

    @property
    def names(self) -> frozenset[str]:
        """Methods whose wrap is in place."""
        return frozenset(self._undo)

    def _install(self) -> None:
        trainer = self._trainer
        self._wrap_train()
        self._wrap(trainer, "training_step", self._after_training_step)
        self._wrap(trainer, "get_batch_samples", self._after_batch, optional=True)
        self._wrap(trainer, "_load_optimizer_and_scheduler", self._after_load, optional=True)
        self._wrap(getattr(trainer, "accelerator", None), "clip_grad_norm_", self._after_clip, before=self._before_clip)
        if self.kind in _SAMPLERS:
            self._wrap(trainer, "_calculate_rewards", self._after_rewards)
            self._wrap(trainer, "_get_per_token_logps_and_entropies", self._after_logps)
            self._wrap(trainer, "_compute_loss", self._after_loss)
        self._wrap(trainer, "_generate", self._after_generate, optional=self.kind not in _SAMPLERS)

    def remove(self) -> None:
        """Restore every wrapped method."""
        for undo in list(self._undo.values()):
            undo()
        self._undo.clear()

    def _wrap(
        self,
        owner: Any,
        name: str,
        after: Callable[[Any, tuple[Any, ...], dict[str, Any], float], None],
        *,
        before: Callable[[tuple[Any, ...]], tuple[Any, ...]] | None = None,
        optional: bool = False,
    ) -> None:
        original = getattr(owner, name, None)
        if original is None:
            if not optional:
                notice(f"{type(self._trainer).__name__} has no {name}: the signals that need it are missing")
            return
        own = vars(owner).get(name)  # somebody else's wrap on the instance: put back as it was

        def off(why: str) -> None:
            if self._undo.pop(name, None) is not None:
                undo()
                notice(f"hook {name} switched off: {why}. Training goes on.")

        def undo() -> None:
            if own is not None:
                setattr(owner, name, own)
            else:
                vars(owner).pop(name, None)

        @functools.wraps(original)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if before is not None and name in self._undo:
                try:
                    args = before(args)
                except Exception as error:
                    off(f"{type(error).__name__}: {error}")
            start = time.perf_counter()
            result = original(*args, **kwargs)
            if name in self._undo:
                try:
                    after(result, args, kwargs, time.perf_counter() - start)
                except Exception as error:
                    off(f"{type(error).__name__}: {error}")
            return result

        try:
            setattr(owner, name, wrapper)
        except Exception as error:  # an object with slots, a frozen proxy
            notice(f"cannot hook {name}: {type(error).__name__}: {error}")
            return
        self._undo[name] = undo

    def _wrap_train(self) -> None:
        """`train` itself: an exception that leaves it must still print the end block."""
        trainer, callback = self._trainer, self._callback
        original = trainer.train

        @functools.wraps(original)
        def train(*args: Any, **kwargs: Any) -> Any:
            try:
                return original(*args, **kwargs)
            except BaseException as error:
                callback.finish(status_of(error))
                raise

        trainer.train = train
        self._undo["train"] = lambda: vars(trainer).pop("train", None)

    @property
    def _training(self) -> bool:
        return bool(self._trainer.model.training)

    # ---- what each wrap reads ----

    def _after_training_step(self, loss: Any, args: tuple[Any, ...], kwargs: dict[str, Any], seconds: float) -> None:
        if len(self._losses) < _STEP_LIMIT:
            self._losses.append(loss.detach())

    def _after_batch(self, result: Any, args: tuple[Any, ...], kwargs: dict[str, Any], seconds: float) -> None:
        self._seconds["time.data_wait_seconds"] = self._seconds.get("time.data_wait_seconds", 0.0) + seconds

    def _after_generate(self, result: Any, args: tuple[Any, ...], kwargs: dict[str, Any], seconds: float) -> None:
        if self._training:
            self._seconds["time.generation_seconds"] = self._seconds.get("time.generation_seconds", 0.0) + seconds

    def _after_load(self, result: Any, args: tuple[Any, ...], kwargs: dict[str, Any], seconds: float) -> None:
        checkpoint = args[0] if args else kwargs.get("checkpoint")
        self._callback.resume_path = checkpoint if isinstance(checkpoint, str) else None

    def _before_clip(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        if not self._callback.count_bad or not args:
            return args
        # After the first bad norm: count the bad gradients while they can be told apart (clipping by NaN spoils them all).
        parameters = list(args[0])
        norms = parameter_norms(parameters)
        if norms is not None:
            self._callback.later.put([(~torch.isfinite(norms)).sum()], lambda t: {"optim.nonfinite_grads": float(t[0])})
        return (parameters, *args[1:])

    def _after_clip(self, norm: Any, args: tuple[Any, ...], kwargs: dict[str, Any], seconds: float) -> None:
        if type(norm).__name__ == "DTensor":
            return  # its full value is a collective, which is not ours to call
        if isinstance(norm, torch.Tensor | float | int):
            self._callback.pre_clip_norm = norm

    def _after_logps(self, result: Any, args: tuple[Any, ...], kwargs: dict[str, Any], seconds: float) -> None:
        logps = result[0] if isinstance(result, tuple) else result
        self._logps = logps.detach()

    def _after_loss(self, result: Any, args: tuple[Any, ...], kwargs: dict[str, Any], seconds: float) -> None:
        inputs = args[1] if len(args) > 1 else kwargs["inputs"]
        logps, self._logps = self._logps, None
        if not self._training or len(self._advantages) >= _STEP_LIMIT:
            return
        self._advantages.append(inputs["advantages"].detach())
        if logps is None:
            msg = "the loss did not compute per-token log-probabilities (a fused loss?), so there are no importance ratios"
            raise LookupError(msg)
        mask = inputs["completion_mask"]
        if "tool_mask" in inputs:
            mask = mask * inputs["tool_mask"]
        low, high = clip_range(self._trainer)
        if "old_logps" in inputs:  # RLOO: one ratio per sequence, of summed log-probabilities
            new = (logps.float() * mask).sum(-1, keepdim=True)
            old, mask = inputs["old_logps"].reshape(-1, 1), torch.ones_like(new)
            self._ratios.append(ratio_stats(new, old, mask, low, high, sequence=False))
            return
        old = inputs.get("old_per_token_logps")
        if old is None:
            self._ratios.append(_ONE)
            return
        sequence = getattr(self._trainer, "importance_sampling_level", "token") == "sequence"
        self._ratios.append(ratio_stats(logps, old, mask, low, high, sequence=sequence))

    def _after_rewards(self, matrix: Any, args: tuple[Any, ...], kwargs: dict[str, Any], seconds: float) -> None:
        if not self._training:
            return
        trainer, seen = self._trainer, self._callback.seen
        prompts = args[1] if len(args) > 1 else kwargs["prompts"]
        ids = args[3] if len(args) > 3 else kwargs["completion_ids_list"]
        start = int(trainer.accelerator.process_index) * len(prompts)
        size, names = int(trainer.num_generations), list(trainer.reward_func_names)
        ends = _end_ids(trainer)

        def compute(tensors: list[torch.Tensor]) -> dict[str, float]:
            rewards, weights = (tensor.double().numpy() for tensor in tensors)
            values, total = reward_signals(rewards, weights, names, size, seen)
            values.update(text_signals(ids, size, ends))
            lengths = np.asarray([len(row) for row in ids], dtype=np.float64)
            correlation = length_correlation(total[start : start + len(ids)], lengths, size)
            if correlation is not None:
                values["reward.length_correlation"] = correlation
            return values

        self._callback.later.put([matrix, trainer.reward_weights], compute)

    # ---- handing over ----

    def collect(self) -> None:
        """At the end of a step: move what the wraps gathered to the callback."""
        callback = self._callback
        if self._losses:
            # The trainer scales each micro-batch's loss so that their sum is the loss of the step.
            total = torch.stack([loss.float() for loss in self._losses]).sum()
            callback.later.put([total], lambda t: {"optim.loss_raw": float(t[0])})
        if self._ratios:
            callback.later.put(self._ratios, ratio_signals)
        if self._advantages:
            callback.later.put(self._advantages, _advantage_signals)
        callback.pending.update(self._seconds)
        self._losses, self._ratios, self._advantages, self._seconds = [], [], [], {}

    def read_metrics(self) -> None:
        """Take the entries that TRL appended since the last call; before every log row, which empties TRL's lists."""
        store = getattr(self._trainer, "_metrics", None)
        if not isinstance(store, dict) or "train" not in store:
            return
        for name, entries in store["train"].items():
            if not isinstance(entries, list):
                continue
            known, count = self._lists.get(name, (None, 0))
            start = count if known is entries else 0
            if len(entries) > start:
                fresh = [float(x) for x in entries[start:] if not isinstance(x, torch.Tensor) or not x.is_cuda]
                self._raw.setdefault(name, []).extend(fresh)
                self.metric_names.add(name)
            self._lists[name] = (entries, len(entries))

    def fresh_metrics(self) -> dict[str, float]:
        """Mean of each raw metric over this step's micro-batches; NaN stays NaN."""
        self.read_metrics()
        row: dict[str, float] = {}
        for name, entries in self._raw.items():
            # A reward function that scored nothing in this batch has no mean: unscored, not broken.
            values = [x for x in entries if not math.isnan(x)] if name.startswith("rewards/") else entries
            if values:
                row[name] = values[-1] if name == "num_tokens" else sum(values) / len(values)
        self._raw = {}
        return row


def _advantage_signals(tensors: list[torch.Tensor]) -> dict[str, float]:
    flat = torch.cat([tensor.reshape(-1).double() for tensor in tensors])
    if not flat.numel():
        return {}
    values = {"advantage.mean": float(flat.mean()), "advantage.abs_max": float(flat.abs().max())}
    if flat.numel() > 1:
        values["advantage.std"] = float(flat.std())
    return values


def _end_ids(trainer: Any) -> frozenset[int]:
    tokenizer = getattr(trainer.processing_class, "tokenizer", trainer.processing_class)
    found: list[Any] = [getattr(tokenizer, "eos_token_id", None), getattr(tokenizer, "pad_token_id", None)]
    more = getattr(getattr(trainer.model, "generation_config", None), "eos_token_id", None)
    found += more if isinstance(more, list) else [more]
    return frozenset(token for token in found if isinstance(token, int))
