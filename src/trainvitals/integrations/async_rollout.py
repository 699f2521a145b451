"""Family: trainers that take samples from a queue which a rollout worker fills (AsyncGRPO, AsyncDistillation).

Three things are read. The queue (``rollout_queue.get``): what left it, how old it was, what it was worth, and whether what was asked is
still what was asked at the start (`drift.py`). The weight sync
(``send_weights``): whether what was handed to the sampler differs from the time before. The loss: importance ratios per token,
where the model's forward pass gives log-probabilities (TRL 1.11 and later; before, TRL logs the share outside itself).

Queue and sync exist on rank 0 alone. TRL fetches one micro-batch ahead, so a step reports the samples that it fetched.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from trainvitals.events import labelled
from trainvitals.integrations.copies import improbable
from trainvitals.integrations.drift import Drift, Edges, give_drift, give_frame, unit
from trainvitals.integrations.grpo import RewardRange, clip_range, gap_signals, gap_stats, ratio_signals, ratio_stats, repetition

if TYPE_CHECKING:
    from trainvitals.integrations.hooks import Hooks

_QUEUE = frozenset({
    "rollout.queue_size", "rollout.staleness", "rollout.staleness_max", "rollout.dropped_fraction", "rollout.dropped_stale",
    "completion.length_mean", "completion.length_min", "completion.length_max", "completion.truncated_fraction",
    "completion.repetition_fraction", "completion.empty_fraction", "data.drift", "data.drift_ratio", "data.prompt_frame_lost",
})  # fmt: skip
_SCORED = frozenset({
    "reward.std", "reward.min", "reward.max", "reward.unscored_fraction", "reward.group_std_mean",
    "reward.group_zero_std_fraction", "reward.all_low_fraction", "reward.all_high_fraction",
    "reward.component_std", "reward.component_unscored_fraction", "reward.component_zero_fraction", "reward.component_share", "advantage.mean", "advantage.std", "advantage.abs_max", "completion.improbable_copies_fraction",
})  # fmt: skip
_SYNC = frozenset({"rollout.sync_changed"})
_LOSS = frozenset({"policy.ratio_outside_fraction", "policy.ratio_mean"})  # by these wraps or, before TRL 1.11, by name
_RATIO = _LOSS | {"policy.ratio_max", "policy.sampling_gap", "policy.sampling_gap_error"}
SIGNALS = _SYNC | {"rollout.dropped_fraction"}
"""Signals that only these wraps give; the others are logged by some TRL or given by another family as well."""

_LIMIT = 4096  # samples or micro-batches kept for one step, as in hooks.py
_READ = 64  # completions read for repetition
_TENSORS, _ELEMENTS = 512, 8  # what is looked at of the weights at each sync: 16 kB
_ZERO = 1e-8  # as in grpo.py
_SAME = 1e-3  # nats of KL: above, the engines differ (docs/pathologies.md AS-01, start_kl of sampler-mismatch)


def install(hooks: Hooks) -> None:
    """Read the rollout queue, the weight transfer and, where the forward pass gives them, the importance ratios."""
    trainer = hooks.trainer
    if not all(hasattr(trainer, name) for name in ("rollout_queue", "rollout_worker", "model_version")):
        return
    span = clip_range(trainer) if hasattr(trainer, "epsilon_low") else None
    scored = span is not None  # a policy gradient, with rewards and advantages; distillation has neither
    fused = any("forward" in vars(module) for module in trainer.model.modules())  # TRL's head that gives log-probabilities
    queue = _Queue(hooks)
    if hooks.wrap(trainer.rollout_queue, "get", queue.after_get, gives=_QUEUE | (_SCORED | _LOSS if scored else set())):
        hooks.at_step_end.append(queue.step_end)
        hooks.saved["drift of prompts"], hooks.saved["frame of prompts"] = queue.prompts, queue.edges
    sync = _Sync(hooks)
    for owner in (getattr(trainer, "weight_transfer", None), trainer.rollout_worker):
        if hooks.wrap(owner, "send_weights", sync.after_send, before=sync.before_send, gives=_SYNC):
            break  # TRL 1.10 and before: the worker itself sends
    if span is not None and fused:
        ratios = _Ratios(hooks, *span)
        hooks.wrap(trainer.model, "forward", ratios.after_forward)
        hooks.wrap(trainer, "compute_loss", ratios.after_loss, gives=_RATIO, needed=True)
        hooks.at_step_end.append(ratios.step_end)


# ---- the queue ----


@dataclass(slots=True)
class Taken:
    """One sample that left the queue and was not dropped.

    Attributes:
        staleness: Policy versions between the one that sampled it and the trainer's.
        waiting: Samples still in the queue.
        length: Completion tokens that are trained.
        cut: Whether it ends without an end token.
        empty: Whether it holds nothing but an end token.
        seconds: Time in the queue; None before TRL 1.11.
        advantage: As the loss sees it; None in distillation.
        metrics: Its rewards, as the worker gives them: ``reward``, ``reward_std`` (of its group), ``rewards/<function>``.
    """

    staleness: int
    waiting: int
    length: int = 0
    cut: bool = False
    empty: bool = False
    seconds: float | None = None
    advantage: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)


def queue_signals(taken: list[Taken], dropped: int, seen: RewardRange) -> dict[str, float]:
    """Signals of the samples that one step took.

    Args:
        taken: The samples that were kept.
        dropped: How many were dropped for staleness.
        seen: Rewards of the run so far; updated.
    """
    if not taken and not dropped:
        return {}
    values = {"rollout.dropped_fraction": dropped / (dropped + len(taken)), "rollout.dropped_stale": float(dropped)}
    if not taken:
        return values
    lengths = [sample.length for sample in taken]
    values.update({
        "rollout.queue_size": sum(sample.waiting for sample in taken) / len(taken),
        "rollout.staleness": sum(sample.staleness for sample in taken) / len(taken),
        "rollout.staleness_max": float(max(sample.staleness for sample in taken)),
        "completion.length_mean": sum(lengths) / len(taken),
        "completion.length_min": float(min(lengths)),
        "completion.length_max": float(max(lengths)),
        "completion.truncated_fraction": sum(sample.cut for sample in taken) / len(taken),
        "completion.empty_fraction": sum(sample.empty for sample in taken) / len(taken),
    })  # fmt: skip
    seconds = [sample.seconds for sample in taken if sample.seconds is not None]
    if seconds:
        values["rollout.queue_seconds"] = sum(seconds) / len(seconds)
    advantages = np.asarray([sample.advantage for sample in taken if sample.advantage is not None], dtype=np.float64)
    if advantages.size:
        values["advantage.mean"], values["advantage.abs_max"] = float(advantages.mean()), float(np.abs(advantages).max())
    if advantages.size > 1:
        values["advantage.std"] = float(advantages.std(ddof=1))
    values.update(_reward_signals([sample.metrics for sample in taken], seen))
    return values


def _reward_signals(rows: list[dict[str, float]], seen: RewardRange) -> dict[str, float]:
    """Rewards of samples that each carry their own and the spread of their group (population, as TRL's worker has it)."""
    table = np.asarray([(row["reward"], row.get("reward_std", math.nan)) for row in rows if "reward" in row], dtype=np.float64)
    if not len(table):
        return {}
    rewards, spreads = table[:, 0], table[:, 1]
    seen.see(rewards)
    values = {"reward.unscored_fraction": float(np.isnan(rewards).mean())}
    finite = rewards[np.isfinite(rewards)]
    if finite.size:
        values["reward.min"], values["reward.max"] = float(finite.min()), float(finite.max())
    if finite.size > 1:
        values["reward.std"] = float(finite.std(ddof=1))
    known = np.isfinite(spreads) & np.isfinite(rewards)
    if known.any() and math.isfinite(seen.low):
        flat, level = spreads[known] <= _ZERO, rewards[known]
        low, high = flat & np.isclose(level, seen.low), flat & np.isclose(level, seen.high)
        if seen.low == seen.high:  # one reward only: at most 0 means failure, as in grpo.py
            low, high = (low, low & False) if seen.low <= 0 else (high & False, high)
        values["reward.group_std_mean"] = float(spreads[known].mean())
        values["reward.group_zero_std_fraction"] = float(flat.mean())
        values["reward.all_low_fraction"], values["reward.all_high_fraction"] = float(low.mean()), float(high.mean())
    parts: dict[str, float] = {}
    for name in sorted({key for row in rows for key in row if key.startswith("rewards/")}):
        column = np.asarray([row[name] for row in rows if name in row], dtype=np.float64)
        label, scored = name.removeprefix("rewards/"), column[~np.isnan(column)]
        values[labelled("reward.component_unscored_fraction", "component", label)] = float(np.isnan(column).mean())
        if scored.size:
            values[labelled("reward.component_zero_fraction", "component", label)] = float((scored == 0).mean())
        if scored.size > 1:
            values[labelled("reward.component_std", "component", label)] = parts[label] = float(scored.std(ddof=1))
    whole = sum(parts.values())
    if len(parts) > 1 and whole > _ZERO:  # TRL's worker adds them up as they are, without weights
        values.update({labelled("reward.component_share", "component", label): part / whole for label, part in parts.items()})
    return values


class _Queue:
    """What has left the queue since the last step."""

    def __init__(self, hooks: Hooks) -> None:
        self._hooks = hooks
        self._taken: list[Taken] = []
        self._repeats: list[float] = []
        self._answers: list[tuple[tuple[bytes, bytes], float]] = []  # prompt and answer, and what its own sampler gives it
        self._dropped = 0
        self._limit = getattr(hooks.trainer.args, "max_staleness", math.inf)
        self._ends = _end_ids(hooks.trainer)
        self.prompts, self.edges = Drift(), Edges()
        self._asked: list[list[int]] = []
        self._newest: Any = None  # what tells the group of the newest prompt from others

    def after_get(self, sample: Any, args: tuple[Any, ...], kwargs: dict[str, Any], seconds: float) -> None:
        """Note one sample; which ones are dropped is decided as TRL's `RolloutQueueDataset` decides it."""
        trainer = self._hooks.trainer
        staleness = int(trainer.model_version) - int(sample.model_version)
        if staleness > self._limit:
            self._dropped += 1
            return
        if len(self._taken) >= _LIMIT:
            return
        own = np.asarray(sample.completion_mask) > 0
        ids = np.asarray(sample.input_ids)[own]
        self._ask(sample, np.asarray(sample.input_ids)[: own.argmax() if own.any() else len(own)].tolist())
        put_in = getattr(sample, "enqueued_at", None)
        self._taken.append(
            Taken(
                staleness=staleness,
                waiting=trainer.rollout_queue.qsize(),
                length=len(ids),
                cut=not len(ids) or int(ids[-1]) not in self._ends,
                empty=not len(ids) or int(ids[0]) in self._ends,
                seconds=None if put_in is None else max(0.0, _now() - put_in),
                advantage=getattr(sample, "advantage", None),
                metrics={key: float(value) for key, value in sample.metrics.items() if key.startswith("reward")},
            )
        )
        given = getattr(sample, "old_log_probs", None)  # distillation has none
        if given is not None:
            everything, begin = np.asarray(sample.input_ids), int(own.argmax()) if own.any() else len(own)
            row = everything[:begin].tobytes(), everything[begin:].tobytes()
            self._answers.append((row, float(np.asarray(given)[own].sum(dtype=np.float64))))
        repeated = repetition(ids.tolist()) if len(self._taken) <= _READ else None
        if repeated is not None:
            self._repeats.append(repeated)

    def _ask(self, sample: Any, prompt: list[int]) -> None:
        """The samples of one prompt adjoin in the queue; its group, or where there is none (TRL 1.0, distillation) its tokens tell."""
        group = getattr(sample, "group_id", prompt)
        if group != self._newest:
            self._asked.append(prompt)
        self._newest = group

    def step_end(self) -> None:
        """Hand over what this step took."""
        give_drift(self._hooks, "data", self.prompts, [unit([prompt]) for prompt in self._asked])
        give_frame(self._hooks, self.edges, self._asked)
        self._asked = []
        for name, value in queue_signals(self._taken, self._dropped, self._hooks.callback.seen).items():
            self._hooks.give(name, value)
        if self._repeats:
            self._hooks.give("completion.repetition_fraction", sum(self._repeats) / len(self._repeats))
        share = improbable([row for row, _ in self._answers], [logp for _, logp in self._answers])
        if share is not None:
            self._hooks.give("completion.improbable_copies_fraction", share)
        self._taken, self._repeats, self._answers, self._dropped = [], [], [], 0


def _now() -> float:
    import time

    return time.time()  # what TRL's worker stamps on a sample


def _end_ids(trainer: Any) -> frozenset[int]:
    tokenizer = getattr(trainer.processing_class, "tokenizer", trainer.processing_class)
    found = [*(getattr(trainer, "eos_token_ids", None) or ()), getattr(tokenizer, "eos_token_id", None)]
    return frozenset(token for token in found if isinstance(token, int))


# ---- the weight sync ----


def fingerprint(tensors: Iterable[torch.Tensor]) -> torch.Tensor | None:
    """A few elements of each tensor, copied, as one vector on the device; None without any. Launches small copies, waits for none."""
    parts = [_elements(tensor) for tensor, _ in zip(tensors, range(_TENSORS), strict=False)]
    return torch.cat(parts) if parts else None


def _elements(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.detach()
    if hasattr(tensor, "to_local"):  # DTensor: this rank's part, the whole would be a collective
        tensor = tensor.to_local()
    flat = tensor.reshape(-1)  # a view of contiguous weights
    return flat[:: max(1, flat.numel() // _ELEMENTS)][:_ELEMENTS].to(torch.float32, copy=True)


class _Sync:
    """What was handed to the sampler at this sync and at the one before."""

    def __init__(self, hooks: Hooks) -> None:
        self._hooks = hooks
        self._parts: list[torch.Tensor] = []
        self._streams: set[Any] = set()
        self._sent: torch.Tensor | None = None
        self._own: torch.Tensor | None = None

    def before_send(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """Look at the weights as they pass by."""
        self._parts, self._streams = [], set()
        return (self._passing(args[0]), *args[1:]) if args else args

    def _passing(self, weights: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in weights:
            if len(self._parts) < _TENSORS:
                self._parts.append(_elements(tensor))
                if tensor.is_cuda:  # vLLM packs on streams of its own
                    self._streams.add(torch.cuda.current_stream(tensor.device))
            yield name, tensor

    def after_send(self, result: Any, args: tuple[Any, ...], kwargs: dict[str, Any], seconds: float) -> None:
        """Compare with the sync before, on the device."""
        for stream in self._streams:
            torch.cuda.current_stream(stream.device).wait_stream(stream)  # orders the device's work, the host goes on
        sent = torch.cat(self._parts) if self._parts else None
        own = fingerprint(p for p in self._hooks.trainer.model.parameters() if p.requires_grad)
        before_sent, before_own = self._sent, self._own
        self._parts, self._sent, self._own = [], sent, own
        if own is not None and before_own is not None:
            self._hooks.put([_differs(before_own, own), _differs(before_sent, sent)], _sync_signals)


def _differs(before: torch.Tensor | None, now: torch.Tensor | None) -> torch.Tensor:
    if now is None:
        return torch.tensor(False)  # nothing was taken: the sampler has what it had
    if before is None or before.shape != now.shape:
        return torch.tensor(True)
    return (before != now).any()


def _sync_signals(tensors: list[torch.Tensor]) -> dict[str, float]:
    """Says nothing while the trainer's own weights stand still: then an unchanged sampler is right."""
    moved, sent = (bool(tensor) for tensor in tensors)
    return {"rollout.sync_changed": float(sent)} if moved else {}


# ---- the loss ----


class _Ratios:
    """Importance ratios of the micro-batches of one step."""

    def __init__(self, hooks: Hooks, low: float, high: float) -> None:
        self._hooks, self._low, self._high = hooks, low, high
        self._logps: torch.Tensor | None = None
        self._entropies: torch.Tensor | None = None
        self._ratios: list[torch.Tensor] = []
        self._gaps: list[torch.Tensor] = []
        self._apart: list[torch.Tensor] | None = []  # of the first update: how far the sampler's probabilities are from the trainer's
        self._believed = True

    def after_forward(self, result: Any, args: tuple[Any, ...], kwargs: dict[str, Any], seconds: float) -> None:
        """Keep the log-probabilities that the loss is about to use."""
        self._logps, self._entropies = _output(result, "log_probs"), _output(result, "entropy")

    def after_loss(self, result: Any, args: tuple[Any, ...], kwargs: dict[str, Any], seconds: float) -> None:
        """Ratios to the policy that sampled, one micro-batch."""
        inputs = args[1] if len(args) > 1 else kwargs["inputs"]
        logps, self._logps = self._logps, None
        entropies, self._entropies = self._entropies, None
        if logps is None:
            msg = "the forward pass gave no log-probabilities, so there are no importance ratios"
            raise LookupError(msg)
        if len(self._ratios) < _LIMIT:
            new, old, mask = aligned(logps, inputs)
            self._ratios.append(ratio_stats(new, old, mask, self._low, self._high, sequence=False))
            if entropies is not None and entropies.shape == logps.shape:
                entropy, _, _ = aligned(entropies, inputs)
                self._gaps.append(gap_stats(new, entropy, mask, old))
            if self._apart is not None:
                self._apart.append(_k3_stats(new, old, mask))

    def step_end(self) -> None:
        """Hand over what the micro-batches of this step gave."""
        if self._ratios:
            self._hooks.put(self._ratios, ratio_signals)
        if self._apart:
            self._hooks.put(self._apart, self._believe)
            self._apart = None
        if self._gaps:
            self._hooks.put(self._gaps, lambda stats: gap_signals(stats) if self._believed else {})
        self._ratios, self._gaps = [], []


    def _believe(self, stats: list[torch.Tensor]) -> dict[str, float]:
        """In the first update every sample is of the weights that the run began with, however long the queue is. A sampler that reports other
        probabilities there gives weights that mean nothing: the surprise of its tokens is not told (sampler-mismatch speaks of it)."""
        total, count = (float(part) for part in torch.stack(stats).double().sum(0))
        self._believed = bool(count) and total / count <= _SAME
        return {}


def _k3_stats(new: torch.Tensor, old: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Sum and count of the k3 estimate of KL over the trained tokens, as TRL logs it."""
    with torch.no_grad():
        difference = torch.where(mask > 0, new.detach().float() - old.float(), 0.0)
        return torch.stack([(difference.exp() - 1.0 - difference).sum(), (mask > 0).sum().float()])


def _output(result: Any, name: str) -> torch.Tensor | None:
    found = getattr(result, name, None)
    if found is None and isinstance(result, dict):
        found = result.get(name)
    return found.detach() if isinstance(found, torch.Tensor) else None


def aligned(logps: torch.Tensor, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """New and old log-probabilities of the trained tokens and the mask that selects them, as TRL's `compute_loss` pairs them.

    Nothing here selects by a condition: a shape that depends on values would make the host wait for the device.

    Args:
        logps: Of the forward pass, or another number for each token: one per packed position (TRL 1.13 and later, which share prefixes), or one per token after the first.
        inputs: The micro-batch of this rank, one row.
    """
    index = inputs.get("token_index")
    if index is not None:
        return logps.reshape(-1)[index.clamp(min=0)], inputs["old_log_probs"], index >= 0
    width = logps.shape[-1] + 1
    return logps, inputs["old_log_probs"][:, 1:width], inputs["completion_mask"][:, 1:width]
