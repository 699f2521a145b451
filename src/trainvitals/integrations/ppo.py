"""Family: PPO with a critic (TRL 1.0 to 1.12), whose whole loop is one method with everything in local variables.

So what can be read is what passes through an object that the trainer holds: the policy generates, the reward model and the
critic score, the accelerator gets each loss, the optimizer steps. Importance ratios per token, advantages and exact returns
stay inside the loop; TRL logs the mean ratio and the approximate KL.

The loop has a callback order of its own: no ``on_step_begin``, no ``on_pre_optimizer_step``, and one row of metrics for
every update whatever ``logging_steps`` says.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from trainvitals.integrations.grpo import Floats, length_correlation, text_signals
from trainvitals.integrations.torch import parameter_norms

if TYPE_CHECKING:
    from trainvitals.integrations.hooks import Hooks

_GENERATE = frozenset({
    "completion.length_mean", "completion.length_min", "completion.length_max", "completion.truncated_fraction", "completion.length_cap",
    "completion.repetition_fraction", "completion.empty_fraction", "time.generation_seconds", "time.step_seconds",
})  # fmt: skip
_SCORE = frozenset({"reward.min", "reward.max", "reward.std", "reward.length_correlation"})
_VALUE = frozenset({"value.explained_variance"})
_STEP = frozenset({"optim.grad_norm_step", "optim.nonfinite_grads", "optim.trainable_with_grad", "value.grad_norm"})
_LOSS = frozenset({"optim.loss_raw", "policy.clip_low", "policy.clip_high"})
SIGNALS = _GENERATE | _SCORE | _VALUE | _STEP | _LOSS
"""Signals that come only from these wraps when the trainer is PPO; other trainers log some of them or have other wraps."""

_FLAT = 1e-12  # variance of scores below which there is nothing for a critic to explain
_LIMIT = 4096  # as in hooks.py


def install(hooks: Hooks) -> None:
    """Read responses, scores, values, losses and gradients where the trainer has a policy, a critic and a reward model."""
    trainer = hooks.trainer
    if not all(hasattr(trainer, name) for name in ("policy_model", "value_model", "reward_model", "generate_completions")):
        return
    reader = _Ppo(hooks)
    hooks.wrap(trainer, "generate_completions", reader.after_sample, before=reader.before_sample)
    hooks.wrap(trainer.policy_model, "generate", reader.after_generate, before=reader.before_generate, gives=_GENERATE, needed=True)
    for model, keep, gives in ((trainer.reward_model, reader.after_score, _SCORE), (trainer.value_model, reader.after_value, _VALUE)):
        backbone = getattr(model, getattr(model, "base_model_prefix", ""), None)
        hooks.wrap(backbone, "forward", reader.after_backbone, needed=True)
        hooks.wrap(getattr(model, "score", None), "forward", keep, gives=gives, needed=True)
    hooks.wrap(trainer.accelerator, "backward", reader.after_backward, gives=_LOSS, needed=True)
    hooks.wrap(trainer.optimizer, "step", before=reader.before_step, gives=_STEP, needed=True)
    hooks.at_step_end.append(reader.step_end)


class _Ppo:
    """What one update has gathered so far."""

    def __init__(self, hooks: Hooks) -> None:
        trainer = hooks.trainer
        self._hooks = hooks
        self._policy = [p for p in trainer.policy_model.parameters() if p.requires_grad]
        shared = {id(p) for p in self._policy}
        self._critic = [p for p in trainer.value_model.parameters() if p.requires_grad and id(p) not in shared]
        self._sampling = False  # inside generate_completions: a table of samples for the log, no training
        self._began: float | None = None
        self._context = 0
        self._mask: torch.Tensor | None = None
        self._first = True
        self._empty()

    def _empty(self) -> None:
        self._responses: list[torch.Tensor] = []
        self._scores: list[torch.Tensor] = []
        self._values: list[torch.Tensor] = []
        self._losses: list[torch.Tensor] = []
        self._norms: list[torch.Tensor] = []  # per optimizer step: policy and critic, critic alone, parameters not finite

    def before_sample(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """Samples for the log begin."""
        self._sampling = True
        return args

    def after_sample(self, result: Any, args: tuple[Any, ...], kwargs: dict[str, Any], seconds: float) -> None:
        """Samples for the log are over."""
        self._sampling = False

    def before_generate(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """The first generation of an update is its beginning: there is no ``on_step_begin``."""
        if self._began is None and not self._sampling:
            self._began = time.perf_counter()
        return args

    def after_generate(self, result: Any, args: tuple[Any, ...], kwargs: dict[str, Any], seconds: float) -> None:
        """Responses of one chunk of the rollout."""
        if self._sampling or len(self._responses) >= _LIMIT:
            return
        self._hooks.add_seconds("time.generation_seconds", seconds)
        self._context = int((args[0] if args else kwargs["input_ids"]).shape[1])
        self._responses.append(result.sequences[:, self._context :].detach())

    def after_backbone(self, result: Any, args: tuple[Any, ...], kwargs: dict[str, Any], seconds: float) -> None:
        """Which tokens a scoring model is about to score."""
        self._mask = kwargs["attention_mask"] if not torch.is_grad_enabled() else None

    def after_score(self, result: Any, args: tuple[Any, ...], kwargs: dict[str, Any], seconds: float) -> None:
        """Scores of the reward model for one chunk: its output at the last token of each response."""
        mask, self._mask = self._mask, None
        if mask is None or self._sampling or len(self._scores) >= _LIMIT:
            return
        length = mask[:, self._context :].long().cumprod(1).sum(1)
        self._scores.append(result[torch.arange(len(result), device=result.device), self._context - 1 + length].reshape(-1))

    def after_value(self, result: Any, args: tuple[Any, ...], kwargs: dict[str, Any], seconds: float) -> None:
        """What the critic expects before each token of the rollout."""
        mask, self._mask = self._mask, None
        if mask is not None and not self._sampling and len(self._values) < _LIMIT:
            self._values.append(result[:, self._context - 1 : -1].squeeze(-1))

    def after_backward(self, result: Any, args: tuple[Any, ...], kwargs: dict[str, Any], seconds: float) -> None:
        """Loss of one micro-batch: policy plus `vf_coef` times value."""
        if len(self._losses) < _LIMIT:
            self._losses.append((args[0] if args else kwargs["loss"]).detach())

    def before_step(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """Gradients just before an optimizer step. TRL's PPO does not clip them."""
        if not self._hooks.trainer.accelerator.sync_gradients or len(self._norms) >= _LIMIT:
            return args
        policy, critic = parameter_norms(self._policy), parameter_norms(self._critic)
        known = [norms for norms in (policy, critic) if norms is not None]
        if known:
            own = torch.linalg.vector_norm(critic) if critic is not None else torch.zeros((), device=known[0].device)
            norms = torch.cat(known)
            self._norms.append(torch.stack([torch.linalg.vector_norm(norms), own, (~torch.isfinite(norms)).sum().float()]))
        trainable = [*self._policy, *self._critic]
        self._hooks.give("optim.trainable_with_grad", sum(p.grad is not None for p in trainable) / max(1, len(trainable)))
        return args

    def step_end(self) -> None:
        """Hand over what one update gave."""
        hooks, args = self._hooks, self._hooks.trainer.args
        if self._first:
            self._first = False
            hooks.give("run.logging_every", 1.0)
            hooks.give("completion.length_cap", float(args.response_length))
            hooks.give("policy.clip_low", 1.0 - float(args.cliprange))
            hooks.give("policy.clip_high", 1.0 + float(args.cliprange))
        if self._began is not None:
            hooks.give("time.step_seconds", time.perf_counter() - self._began)
            self._began = None
        if self._losses:
            hooks.put([torch.stack([loss.float() for loss in self._losses]).mean()], lambda t: {"optim.loss_raw": float(t[0])})
        if self._norms:
            hooks.put([torch.stack(self._norms).amax(0)], _norm_signals)
        chunks, end = len(self._responses), hooks.trainer.processing_class.eos_token_id
        stops, penalty = hooks.trainer.stop_token_id is not None, float(args.missing_eos_penalty or 0.0)
        if chunks and len(self._scores) == chunks:
            valued = len(self._values) == chunks

            def compute(tensors: list[torch.Tensor]) -> dict[str, float]:
                parts = [tensors[start : start + chunks] for start in range(0, len(tensors), chunks)]
                rows = [row for part in parts[0] for row in part.tolist()]
                scores = torch.cat([part.double() for part in parts[1]]).numpy()
                values = [row for part in parts[2] for row in part.double().numpy()] if valued else None
                return rollout_signals(rows, scores, values, end=end, stops=stops, penalty=penalty)

            hooks.put([*self._responses, *self._scores, *(self._values if valued else [])], compute)
        self._empty()


def _norm_signals(tensors: list[torch.Tensor]) -> dict[str, float]:
    """Largest norms among the optimizer steps of one update; NaN where one was NaN."""
    total, critic, bad = tensors[0].tolist()
    return {"optim.grad_norm_step": total, "value.grad_norm": critic, "optim.nonfinite_grads": bad}


def rollout_signals(
    rows: Sequence[Sequence[int]], scores: Floats, values: Sequence[Floats] | None, *, end: int | None, stops: bool, penalty: float
) -> dict[str, float]:
    """Signals of one rollout.

    Args:
        rows: Token ids of each response, padded behind its end token.
        scores: Score of the reward model for each response.
        values: The critic's expectation before each token of each response; None where it is not known.
        end: End token.
        stops: Whether a response is over at its end token (``stop_token``); else it always has the full length.
        penalty: Subtracted from the score of a response without an end token (``missing_eos_penalty``).
    """
    ended = np.asarray([end in row for row in rows])
    cut = [_until(row, end) if stops else list(row) for row in rows]
    lengths = np.asarray([len(row) for row in cut], dtype=np.float64)
    scores = scores - penalty * ~ended
    signals = {
        "completion.length_mean": float(lengths.mean()),
        "completion.length_min": float(lengths.min()),
        "completion.length_max": float(lengths.max()),
        "completion.truncated_fraction": float(1.0 - ended.mean()),
        "reward.min": float(scores.min()),
        "reward.max": float(scores.max()),
        **text_signals(cut, 1, frozenset() if end is None else frozenset({end})),
    }
    if len(scores) > 1:
        signals["reward.std"] = float(scores.std(ddof=1))
    correlation = length_correlation(scores, lengths, len(scores))
    if correlation is not None:
        signals["reward.length_correlation"] = correlation
    if values is not None:
        explained = explained_variance(scores, [row[: len(text)] for row, text in zip(values, cut, strict=True)])
        if explained is not None:
            signals["value.explained_variance"] = explained
    return signals


def _until(row: Sequence[int], end: int | None) -> list[int]:
    """Tokens up to and with the end token."""
    return list(row[: row.index(end) + 1]) if end is not None and end in row else list(row)


def explained_variance(scores: Floats, values: Sequence[Floats]) -> float | None:
    """``1 - Var(score - value) / Var(score)`` over all tokens of a rollout; None where all scores are equal.

    The return of a token is taken as the score of its response: with ``gamma`` 1, TRL's default, that is the return without the
    KL penalty still to come.
    """
    returns = np.concatenate([np.full(len(row), score) for row, score in zip(values, scores, strict=True)])
    spread = float(returns.var()) if returns.size else 0.0
    return None if spread <= _FLAT else 1.0 - float((returns - np.concatenate(values)).var()) / spread
