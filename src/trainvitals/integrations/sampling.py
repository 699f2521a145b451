"""Family: trainers that sample groups of completions and score them (GRPO, RLOO and what inherits from them)."""

from __future__ import annotations

import inspect
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from trainvitals.integrations.copies import Copies
from trainvitals.integrations.groups import SameText, centre_error, group_parts, mixed_fraction, prompt_key, text_keys
from trainvitals.integrations.grpo import (
    clip_range,
    component_labels,
    correction_signals,
    correction_stats,
    gap_signals,
    gap_stats,
    length_correlation,
    padding_counts,
    padding_signals,
    penalty_signals,
    ratio_signals,
    ratio_stats,
    reward_signals,
    text_signals,
)
from trainvitals.integrations.text_slope import TextSlope

if TYPE_CHECKING:
    from trainvitals.integrations.hooks import Hooks

_REWARDS = frozenset({
    "reward.min", "reward.max", "reward.group_std_mean", "reward.all_low_fraction", "reward.all_high_fraction",
    "reward.group_count", "reward.unscored_fraction", "reward.component_share", "reward.component_unscored_fraction", "reward.component_zero_fraction",
    "reward.length_correlation", "completion.repetition_fraction", "completion.distinct_fraction", "completion.empty_fraction",
    "completion.group_overlap", "reward.mixed_group_fraction", "reward.same_text_spread", "reward.same_text_differing",
    "reward.same_text_zero_fraction", "reward.text_slope", "reward.unpaid_mean",
})  # fmt: skip
_CENTRE = frozenset({"advantage.group_mean_error"})
_PADDING = frozenset({"completion.counted_padding_fraction"})
_CORRECTION = frozenset({"sampler.masked_fraction", "sampler.effective_fraction"})
_LOSS = frozenset({"policy.ratio_mean", "policy.ratio_max", "advantage.mean", "advantage.std", "advantage.abs_max"})
_CLIP = frozenset({"policy.ratio_outside_fraction"})
_SEQUENCE = frozenset({"policy.clip_per_sequence"})
_GAP = frozenset({"policy.sampling_gap", "policy.sampling_gap_error"})
_COPIES = frozenset({"completion.improbable_copies_fraction"})
_GENERATE = frozenset({"time.generation_seconds"})
PENALTY = frozenset({"policy.kl_ref_sequence", "reward.penalised_mean"})
"""Signals that these wraps give where the KL penalty is part of the reward (RLOO); PPO logs them itself."""
SINGLES = frozenset({
    "reward.min", "reward.max", "completion.truncated_fraction", "completion.length_mean", "completion.length_min", "completion.length_max",
})  # fmt: skip
"""Signals that these wraps give where every prompt has one scored sample (A2PO), which logs none of them."""
SIGNALS = _REWARDS | _CENTRE | _PADDING | _CORRECTION | _LOSS | _CLIP | _SEQUENCE | _GAP | _GENERATE
"""Signals that only these wraps give. verl and others log some of them themselves."""

_SHAPES = frozenset({
    "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "top_h", "num_beams", "penalty_alpha", "repetition_penalty",
    "presence_penalty", "frequency_penalty", "no_repeat_ngram_size", "bad_words_ids", "bad_words", "suppress_tokens", "sequence_bias", "logit_bias",
    "min_tokens", "min_length", "min_new_tokens", "allowed_token_ids", "guided_decoding", "structured_outputs", "logits_processors",
})  # fmt: skip
# Keys of `generation_kwargs` by which samples are meant to differ from the policy. A temperature is none of them: the trainer has its own.
_STEP_LIMIT = 4096  # as in hooks.py
_ONE = torch.tensor([0.0, 1.0, 1.0, 1.0])  # ratio statistics of a micro-batch that the policy itself sampled


def install(hooks: Hooks) -> None:
    """Read rewards per group, advantages, importance ratios and the time that generation takes."""
    trainer = hooks.trainer
    reader = _Sampling(hooks)
    groups = all(hasattr(trainer, name) for name in ("_calculate_rewards", "reward_func_names", "num_generations"))
    hooks.wrap(trainer, "_generate", reader.after_generate, gives=_GENERATE, needed=groups)
    if hasattr(trainer, "_estimate_optimal_values"):
        hooks.wrap(trainer, "_prepare_inputs", reader.after_singles, gives=SINGLES, needed=True)
    if not groups:
        return
    if not hasattr(trainer, "teacher_model") or hasattr(trainer, "teacher_context_builder"):  # MiniLLM's reward function is a placeholder: its teacher is the reward
        hooks.wrap(trainer, "_calculate_rewards", reader.after_rewards, gives=_REWARDS)
        hooks.saved["scores and texts"] = reader.slope
        if hasattr(trainer, "reward_clip_range") and trainer.beta:
            before, after = reader.before_score, reader.after_score
            hooks.wrap(trainer, "_generate_and_score_completions", after, before=before, gives=PENALTY, needed=True)
    if hasattr(trainer, "teacher_context_builder"):
        return  # SDPO scores its samples to find a teacher among them: its loss is read in distillation.py
    hooks.wrap(trainer, "_generate_and_score_completions", reader.after_padding, gives=_PADDING if sampler_ends(trainer) else ())
    if not _calls(type(trainer), "compute_loss", "_compute_loss"):
        return  # a copy of the trainer with a loss of its own (Unsloth): there are no ratios to read
    hooks.wrap(trainer, "_generate_and_score_completions", reader.after_advantages, gives=_CENTRE)
    if getattr(trainer, "use_vllm", False) and getattr(trainer, "vllm_importance_sampling_correction", False):
        hooks.wrap(trainer, "_generate_and_score_completions", reader.after_correction, gives=_CORRECTION)
    if not reader.differs:
        hooks.wrap(trainer, "_generate_and_score_completions", reader.after_copies)
    hooks.wrap(trainer, "_get_per_token_logps_and_entropies", reader.after_logps, needed=True)
    gives = _LOSS | (_CLIP if reader.clips else frozenset()) | (_SEQUENCE if reader.clips and reader.sequence else frozenset())
    gives |= frozenset() if reader.differs else _GAP | _COPIES
    hooks.wrap(trainer, "_compute_loss", reader.after_loss, gives=gives, needed=True)
    hooks.at_step_end.append(reader.step_end)


def _calls(cls: type, method: str, other: str) -> bool:
    """Whether a method's own code names another one; True where that cannot be told."""
    code = getattr(inspect.unwrap(getattr(cls, method, _calls)), "__code__", None)
    return code is None or other in code.co_names


class _Sampling:
    """What one step has gathered so far."""

    def __init__(self, hooks: Hooks) -> None:
        trainer = hooks.trainer
        self._hooks = hooks
        self.clips = clip_range(trainer) is not None
        level = getattr(trainer, "importance_sampling_level", "token")
        self.sequence = hasattr(trainer, "reward_clip_range") or level in {"sequence", "sequence_token"}
        # Samples that are of another policy on purpose: an older one's, or those of a distribution cut to shape.
        self.differs = hasattr(trainer, "replay_buffer") or not _SHAPES.isdisjoint(getattr(trainer.args, "generation_kwargs", None) or ())
        self._told = not (self.clips and self.sequence)
        self._ratios: list[torch.Tensor] = []
        self._gaps: list[torch.Tensor] = []
        self._copies = Copies(hooks)
        self._entropies: torch.Tensor | None = None
        self._fresh = False  # no optimizer step since the last generation: the policy is still the one that sampled
        self._advantages: list[torch.Tensor] = []
        self._logps: torch.Tensor | None = None
        self._frozen: list[torch.Tensor] = []  # log-probabilities of one generation batch, computed without gradient
        self._matrix: torch.Tensor | None = None  # rewards of the last generation batch, all ranks
        self._scored: torch.Tensor | None = None  # the same, until the advantages made of it have been seen
        self._same, self.slope = SameText(), TextSlope()
        self._written: list[list[int]] | None = None  # per completion: 1 for the policy's own tokens, 0 for a tool's answer

    def after_generate(self, result: Any, args: tuple[Any, ...], kwargs: dict[str, Any], seconds: float) -> None:
        """Time of one generation."""
        if self._hooks.training:
            self._hooks.add_seconds("time.generation_seconds", seconds)
            self._fresh = True
        self._written = _tool_mask(result)

    def after_logps(self, result: Any, args: tuple[Any, ...], kwargs: dict[str, Any], seconds: float) -> None:
        """Keep the log-probabilities and entropies that the loss is about to use."""
        logps = result[0] if isinstance(result, tuple) else result
        self._logps = None if logps is None else logps.detach()
        entropies = result[1] if isinstance(result, tuple) and len(result) > 1 else None
        self._entropies = entropies.detach() if isinstance(entropies, torch.Tensor) else None  # only the loss asks for them
        if not torch.is_grad_enabled():
            self._frozen = [*self._frozen[-1:], self._logps]

    def before_score(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """A generation batch begins: forget the last one's log-probabilities."""
        self._frozen, self._matrix = [], None
        return args

    def after_score(self, result: Any, args: tuple[Any, ...], kwargs: dict[str, Any], seconds: float) -> None:
        """KL penalty of one generation batch, where it is subtracted from the reward (RLOO).

        TRL computes the log-probabilities of the policy first and those of the reference second, without gradient.
        """
        frozen, matrix = self._frozen, self._matrix
        self._frozen, self._matrix = [], None
        if not self._hooks.training or len(frozen) != 2 or matrix is None:
            return
        trainer = self._hooks.trainer
        kl = ((frozen[0] - frozen[1]).float() * result["completion_mask"]).sum(-1)
        start, beta, bounds = int(trainer.accelerator.process_index) * len(kl), float(trainer.beta), trainer.reward_clip_range

        def compute(tensors: list[torch.Tensor]) -> dict[str, float]:
            rewards, weights, penalty = (tensor.double().numpy() for tensor in tensors)
            total = np.nansum(rewards * weights, axis=1)
            total[np.isnan(rewards).all(axis=1)] = np.nan
            if bounds:
                total = total.clip(*bounds)
            return penalty_signals(total[start : start + len(penalty)], penalty, beta)

        self._hooks.put([matrix, trainer.reward_weights, kl], compute)

    def after_loss(self, result: Any, args: tuple[Any, ...], kwargs: dict[str, Any], seconds: float) -> None:
        """Advantages and importance ratios of one micro-batch."""
        inputs = args[1] if len(args) > 1 else kwargs["inputs"]
        logps, self._logps = self._logps, None
        entropies, self._entropies = self._entropies, None
        if not self._hooks.training or len(self._advantages) >= _STEP_LIMIT:
            return
        self._advantages.append(inputs["advantages"].detach())
        if logps is None:
            msg = "the loss did not compute per-token log-probabilities (a fused loss?), so there are no importance ratios"
            raise LookupError(msg)
        mask = inputs["completion_mask"]
        if "tool_mask" in inputs:
            mask = mask * inputs["tool_mask"]
        if self._fresh and not self.differs and entropies is not None and entropies.shape == logps.shape:
            self._gaps.append(gap_stats(logps, entropies, mask))
        if self._fresh and not self.differs:
            self._copies.after_loss(inputs, logps, mask)
        low, high = clip_range(self._hooks.trainer) or (0.0, math.inf)
        if "old_logps" in inputs:  # RLOO: one ratio per sequence, of summed log-probabilities
            new = (logps.float() * mask).sum(-1, keepdim=True)
            old, mask = inputs["old_logps"].reshape(-1, 1), torch.ones_like(new)
            self._ratios.append(ratio_stats(new, old, mask, low, high, sequence=False))
            return
        old = inputs.get("old_per_token_logps")
        if old is None and hasattr(self._hooks.trainer, "_compute_divergence_mask"):
            old = inputs["sampling_per_token_logps"]  # DPPO compares with the sampler itself
        if old is None:
            self._ratios.append(_ONE)
            return
        self._ratios.append(ratio_stats(logps, old, mask, low, high, sequence=self.sequence))

    def after_rewards(self, matrix: Any, args: tuple[Any, ...], kwargs: dict[str, Any], seconds: float) -> None:
        """Rewards and texts of one generation batch."""
        if not self._hooks.training:
            return
        self._matrix = self._scored = matrix
        trainer, seen = self._hooks.trainer, self._hooks.callback.seen
        prompts = args[1] if len(args) > 1 else kwargs["prompts"]
        ids = whole = args[3] if len(args) > 3 else kwargs["completion_ids_list"]
        if self._written is not None and [len(row) for row in self._written] == [len(row) for row in ids]:
            # What a tool answered is not the policy's text: TRL counts lengths without it too.
            ids = [[token for token, own in zip(row, mask, strict=True) if own] for row, mask in zip(ids, self._written, strict=True)]
        start = int(trainer.accelerator.process_index) * len(prompts)
        size, names = int(trainer.num_generations), list(trainer.reward_func_names)
        self._hooks.callback.scored.keep(args, matrix, trainer.reward_weights, start)
        ends = _end_ids(trainer)
        parts = group_parts(len(prompts), size, start)
        keys = _prompt_keys(args[0] if args else kwargs["inputs"], prompts)

        def compute(tensors: list[torch.Tensor]) -> dict[str, float]:
            rewards, weights = (tensor.double().numpy() for tensor in tensors)
            values, total = reward_signals(rewards, weights, names, size, seen)
            values.update(text_signals(ids, size, ends))
            lengths = np.asarray([len(row) for row in ids], dtype=np.float64)
            correlation = length_correlation(total[start : start + len(ids)], lengths, size)
            if correlation is not None:
                values["reward.length_correlation"] = correlation
            mixed = mixed_fraction(keys, parts)
            if mixed is not None:
                values["reward.mixed_group_fraction"] = mixed
            scores, labels = rewards[start : start + len(ids)], component_labels(names)
            values.update(self._same.signals(text_keys(keys, whole), parts, scores, labels))
            values.update(self.slope.signals(ids, parts, scores, labels))
            return values

        self._hooks.put([matrix, trainer.reward_weights], compute)

    def after_advantages(self, result: Any, args: tuple[Any, ...], kwargs: dict[str, Any], seconds: float) -> None:
        """Advantages of one generation batch beside the rewards they are made of, where this rank holds whole groups."""
        matrix, self._scored = self._scored, None
        advantages = result.get("advantages")
        if not self._hooks.training or matrix is None or not isinstance(advantages, torch.Tensor) or advantages.dim() != 1:
            return
        trainer, count = self._hooks.trainer, len(advantages)
        size, start = int(trainer.num_generations), int(trainer.accelerator.process_index) * count
        ranks = int(trainer.accelerator.num_processes)
        if size < 2 or count % size or len(matrix) != count * ranks:  # GFPO hands on a part of each group
            return

        def compute(tensors: list[torch.Tensor]) -> dict[str, float]:
            ours, rewards, weights = (tensor.double().numpy() for tensor in tensors)
            total = np.nansum(rewards * weights, axis=1)
            total[np.isnan(rewards).all(axis=1)] = np.nan
            error = centre_error(ours, total[start : start + count], size)
            return {} if error is None else {"advantage.group_mean_error": error}

        self._hooks.put([advantages, matrix, trainer.reward_weights], compute)

    def after_copies(self, result: Any, args: tuple[Any, ...], kwargs: dict[str, Any], seconds: float) -> None:
        """Answers of one generation batch, of which some may be on other ranks."""
        if self._hooks.training:
            self._copies.after_batch(result)

    def after_correction(self, result: Any, args: tuple[Any, ...], kwargs: dict[str, Any], seconds: float) -> None:
        """Weights that correct for the sampler (vLLM), as the loss will use them."""
        ratio = result.get("importance_sampling_ratio")
        if self._hooks.training and isinstance(ratio, torch.Tensor):
            mask = result["completion_mask"] * result.get("tool_mask", 1)
            self._hooks.put([correction_stats(ratio, mask)], lambda tensors: correction_signals(tensors[0]))

    def after_padding(self, result: Any, args: tuple[Any, ...], kwargs: dict[str, Any], seconds: float) -> None:
        """Tokens of one generation batch that count as answer and are the filling behind it."""
        trainer, ids, mask = self._hooks.trainer, result.get("completion_ids"), result.get("completion_mask")
        ends = sampler_ends(trainer)  # anew each time: settings may be changed between two batches
        if self._hooks.training and ends and isinstance(ids, torch.Tensor) and isinstance(mask, torch.Tensor) and ids.shape == mask.shape:
            counts = padding_counts(ids, mask * result.get("tool_mask", 1), ends, _pad_ids(trainer))
            self._hooks.put([counts], lambda tensors: padding_signals(tensors[0]))

    def after_singles(self, result: Any, args: tuple[Any, ...], kwargs: dict[str, Any], seconds: float) -> None:
        """Scores and lengths of one sample per prompt (A2PO): the mask of a sample ends with its end token, that of a cut one does not end."""
        if not self._hooks.training:
            return
        count, ends = int(result["logits_to_keep"]), _end_ids(self._hooks.trainer)
        mask, ids = result["attention_mask"][:, -count:], result["input_ids"][:, -count:]
        lengths = mask.sum(1)
        last = ids.gather(1, (lengths - 1).clamp(min=0).unsqueeze(1)).squeeze(1)
        self._hooks.put([result["rewards"], lengths, last], lambda tensors: _single_signals(tensors, ends))

    def step_end(self) -> None:
        """Hand over what the micro-batches of this step gave."""
        if not self._told:
            self._hooks.give("policy.clip_per_sequence", 1.0)
            self._told = True
        if self._ratios:
            self._hooks.put(self._ratios, lambda stats: ratio_signals(stats, clips=self.clips))
        if self._advantages:
            self._hooks.put(self._advantages, _advantage_signals)
        if self._gaps:
            self._hooks.put(self._gaps, gap_signals)
        self._copies.step_end()
        self._ratios, self._advantages, self._gaps, self._fresh = [], [], [], False


def _prompt_keys(inputs: Any, prompts: Any) -> list[Any]:
    """What each row was asked, as the data set has it: an environment may add another first observation to each copy of a prompt."""
    if isinstance(inputs, list) and len(inputs) == len(prompts) and all(isinstance(row, dict) and "prompt" in row for row in inputs):
        prompts = [row["prompt"] for row in inputs]
    return [prompt_key(prompt) for prompt in prompts]


def _single_signals(tensors: list[torch.Tensor], ends: frozenset[int]) -> dict[str, float]:
    rewards, lengths, last = (tensor.double().numpy() for tensor in tensors)
    return {
        "reward.min": float(rewards.min()), "reward.max": float(rewards.max()),
        "completion.truncated_fraction": float((~np.isin(last, list(ends))).mean()), "completion.length_mean": float(lengths.mean()),
        "completion.length_min": float(lengths.min()), "completion.length_max": float(lengths.max()),
    }  # fmt: skip


def _advantage_signals(tensors: list[torch.Tensor]) -> dict[str, float]:
    flat = torch.cat([tensor.reshape(-1).double() for tensor in tensors])
    if not flat.numel():
        return {}
    values = {"advantage.mean": float(flat.mean()), "advantage.abs_max": float(flat.abs().max())}
    if flat.numel() > 1:
        values["advantage.std"] = float(flat.std())
    return values


def _tool_mask(result: Any) -> list[list[int]] | None:
    """The third part of what `_generate` returns, where it is a mask of tokens (GRPO with tools)."""
    mask = result[2] if isinstance(result, tuple) and len(result) > 3 else None
    if isinstance(mask, list) and mask and isinstance(mask[0], list) and mask[0] and isinstance(mask[0][0], int):
        return mask
    return None


def _end_ids(trainer: Any) -> frozenset[int]:
    tokenizer = getattr(trainer.processing_class, "tokenizer", trainer.processing_class)
    found: list[Any] = [getattr(tokenizer, "eos_token_id", None), getattr(tokenizer, "pad_token_id", None)]
    more = getattr(getattr(trainer.model, "generation_config", None), "eos_token_id", None)
    found += more if isinstance(more, list) else [more]
    return frozenset(token for token in found if isinstance(token, int))


def sampler_ends(trainer: Any) -> frozenset[int]:
    """Ids at which the sampler ends an answer: those that it is called with, else those of the model's own generation config."""
    for owner in (trainer, trainer.model):
        found = getattr(getattr(owner, "generation_config", None), "eos_token_id", None)
        if found is not None:
            return frozenset(token for token in (found if isinstance(found, list | tuple) else [found]) if isinstance(token, int))
    return frozenset()


def _pad_ids(trainer: Any) -> frozenset[int]:
    """Ids with which the sampler and then the trainer fill answers up."""
    tokenizer = getattr(trainer.processing_class, "tokenizer", trainer.processing_class)
    found = [getattr(owner, "pad_token_id", None) for owner in (getattr(trainer, "generation_config", None), tokenizer)]
    return frozenset(token for token in found if isinstance(token, int))
