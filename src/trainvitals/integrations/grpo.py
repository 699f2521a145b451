"""Numbers that group-relative trainers compute and do not log: groups, ratios, repetition. Pure functions, no trainer.

Formulas follow TRL 1.16 `GRPOTrainer` (`_generate_and_score_completions`, `_compute_loss`), so that what is said here and
what TRL logs agree where they mean the same.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from trainvitals.events import labelled

_ZERO = 1e-8  # torch.isclose(std, 0) of TRL: absolute tolerance 1e-8
_SAMPLE = 64  # completions read for repetition: 64 x 1024 4-grams take about 3 ms
_NGRAM = 4
_PAIRS = 64  # pairs of completions compared for overlap: about 4 ms when all of them are `_HEAD` tokens long, 0.1 ms for 8
_HEAD = 256  # tokens read of a completion for overlap; the work grows with their square
_FEW = 2000  # up to so many tokens a set of tuples is faster than sorting hashes: 3 us for 32 tokens against 11, 500 for 4,000 against 300

Floats = NDArray[np.float64]


@dataclass(slots=True)
class RewardRange:
    """Lowest and highest reward seen in the run so far."""

    low: float = math.inf
    high: float = -math.inf

    def bounds(self) -> list[float | None]:
        """``[low, high]`` for JSON; None before the first reward."""
        return [self.low, self.high] if math.isfinite(self.low) else [None, None]

    def see(self, rewards: Floats) -> None:
        """Widen the range by the finite values of `rewards`."""
        finite = rewards[np.isfinite(rewards)]
        if finite.size:
            self.low, self.high = min(self.low, float(finite.min())), max(self.high, float(finite.max()))


def reward_signals(
    matrix: Floats, weights: Floats, names: Sequence[str], group_size: int, seen: RewardRange
) -> tuple[dict[str, float], Floats]:
    """Signals of one generation batch from its reward matrix.

    Args:
        matrix: Rewards of all ranks, one row per completion (the completions of one prompt adjoin), one column per reward
            function; NaN where a function returned None.
        weights: Weight of each reward function.
        names: Name of each reward function; two of the same name are told apart by their position.
        group_size: Completions per prompt.
        seen: Rewards of the run so far; updated.

    Returns:
        The signals, and the total reward of each completion (NaN where no function scored it).
    """
    unscored = np.isnan(matrix)
    total = np.nansum(matrix * weights, axis=1)
    total[unscored.all(axis=1)] = np.nan
    seen.see(total)
    values = {"reward.unscored_fraction": float(np.isnan(total).mean())}
    finite = total[np.isfinite(total)]
    if finite.size:
        values["reward.min"], values["reward.max"] = float(finite.min()), float(finite.max())
    if group_size > 1 and total.size % group_size == 0:
        values.update(_group_signals(total.reshape(-1, group_size), seen))
    values.update(_component_signals(matrix, weights, names, unscored))
    return values, total


def _group_signals(groups: Floats, seen: RewardRange) -> dict[str, float]:
    scored = groups[(~np.isnan(groups)).sum(axis=1) > 1]  # a group with fewer than two scored completions has no spread
    values = {"reward.group_count": float(len(groups))}
    if not len(scored):
        return values
    stds = np.nanstd(scored, axis=1, ddof=1)
    flat = stds <= _ZERO
    values["reward.group_std_mean"] = float(stds.mean())
    values["reward.group_zero_std_fraction"] = float(flat.mean())
    if math.isfinite(seen.low):
        level = np.nanmean(scored, axis=1)
        low = flat & np.isclose(level, seen.low)
        high = flat & np.isclose(level, seen.high)
        if seen.low == seen.high:
            # Only one reward was ever seen: 0 and below mean failure by every convention in use, above 0 success.
            low, high = (low, low & False) if seen.low <= 0 else (high & False, high)
        values["reward.all_low_fraction"] = float(low.mean())
        values["reward.all_high_fraction"] = float(high.mean())
    return values


def _component_signals(matrix: Floats, weights: Floats, names: Sequence[str], unscored: NDArray[np.bool_]) -> dict[str, float]:
    values: dict[str, float] = {}
    labels = component_labels(names)
    spreads = []
    for index, label in enumerate(labels):
        column = matrix[~unscored[:, index], index]
        values[labelled("reward.component_unscored_fraction", "component", label)] = float(unscored[:, index].mean())
        spread = float(column.std(ddof=1)) if column.size > 1 else 0.0
        spreads.append(abs(float(weights[index])) * spread)
        if column.size:
            values[labelled("reward.component_mean", "component", label)] = float(column.mean())
            values[labelled("reward.component_std", "component", label)] = spread
            values[labelled("reward.component_zero_fraction", "component", label)] = float((column == 0).mean())
            if weights[index] == 0 and weights.any():
                values[labelled("reward.unpaid_mean", "component", label)] = float(column.mean())
    whole = sum(spreads)
    if whole > _ZERO and len(labels) > 1:
        for label, part in zip(labels, spreads, strict=True):
            values[labelled("reward.component_share", "component", label)] = part / whole
    return values


def component_labels(names: Sequence[str]) -> list[str]:
    """Label of each reward function: its name, with its position where two have the same."""
    return [name if list(names).count(name) == 1 else f"{name}_{index}" for index, name in enumerate(names)]


def length_correlation(rewards: Floats, lengths: Floats, group_size: int) -> float | None:
    """Mean over groups of the Pearson correlation of reward and completion length; None where no group varies in both."""
    if group_size < 3 or rewards.size != lengths.size or rewards.size % group_size:
        return None
    r, n = rewards.reshape(-1, group_size), lengths.reshape(-1, group_size)
    r, n = r - r.mean(axis=1, keepdims=True), n - n.mean(axis=1, keepdims=True)
    scale = np.sqrt((r * r).sum(axis=1) * (n * n).sum(axis=1))
    usable = np.isfinite(scale) & (scale > _ZERO)
    if not usable.any():
        return None
    return float(((r * n).sum(axis=1)[usable] / scale[usable]).mean())


def text_signals(ids: Sequence[Sequence[int]], group_size: int, end_ids: frozenset[int]) -> dict[str, float]:
    """Repetition, variety, likeness within groups and emptiness of completions.

    Args:
        ids: Token ids per completion, without padding, the completions of one prompt adjoin.
        group_size: Completions per prompt.
        end_ids: End tokens, not counted as content.
    """
    if not ids:
        return {}
    rows = [tuple(row) for row in ids]
    values = {"completion.empty_fraction": sum(not row or row[0] in end_ids for row in rows) / len(rows)}
    repeats = [share for row in rows[:_SAMPLE] if (share := repetition(row)) is not None]
    if repeats:
        values["completion.repetition_fraction"] = sum(repeats) / len(repeats)
    if group_size > 1 and len(rows) % group_size == 0:
        groups = [rows[start : start + group_size] for start in range(0, len(rows), group_size)]
        values["completion.distinct_fraction"] = sum(len(set(group)) for group in groups) / len(rows)
        alike = group_overlap(groups, end_ids)
        if alike is not None:
            values["completion.group_overlap"] = alike
    return values


def group_overlap(groups: Sequence[Sequence[Sequence[int]]], end_ids: frozenset[int]) -> float | None:
    """How alike the completions of one prompt are, from 0 (nothing in common) to 1 (copies), mean over pairs.

    Two texts are as alike as the longest sequence of tokens that stands in both in the same order, over the mean of their lengths: the
    F-measure of ROUGE-L (Lin 2004). Copies with a word exchanged, added or left out stay near 1, where a count of distinct texts sees none.

    Why this and not distinct n-grams (arXiv:1510.03055) or shared ones (Self-BLEU, arXiv:1802.01886): those depend on how much text there
    is. Two random texts over 26 letters share 1% of their bigrams when they have 6 letters and 56% when they have 1,000; their longest
    common subsequence is 17% and 32% of them, and goes to a constant (about two over the root of the vocabulary). Nor does the mean
    over pairs depend on the size of the group, as distinct n-grams of a whole group do. What two texts share by chance still depends
    on how many tokens are in use, so the number is to be compared with the run's own.

    Pairs are neighbours in their group (its completions are exchangeable), spread over the groups when there are more than `_PAIRS`. A pair
    of texts of a single token or none is left out: those are equal or not, which `completion.distinct_fraction` says.

    Args:
        groups: Token ids of each completion, by prompt.
        end_ids: End tokens, not counted as text.

    Returns:
        The mean, or None where no pair could be compared.
    """
    pairs = [pair for group in groups for pair in pairwise(group)]
    found = []
    for one, two in pairs[:: max(1, math.ceil(len(pairs) / _PAIRS))]:
        a, b = ([token for token in row[:_HEAD] if token not in end_ids] for row in (one, two))
        if max(len(a), len(b)) > 1:
            found.append(2.0 * common_length(a, b) / (len(a) + len(b)))
    return sum(found) / len(found) if found else None


def common_length(one: Sequence[int], two: Sequence[int]) -> int:
    """Length of the longest common subsequence, one machine word at a time (Hyyro 2004): 60 us for two texts of 256 tokens."""
    place: dict[int, int] = {}
    for index, token in enumerate(one):
        place[token] = place.get(token, 0) | 1 << index
    full = (1 << len(one)) - 1
    open_ = full  # a bit that is 0 counts one more token in common
    for token in two:
        hit = open_ & place.get(token, 0)
        if hit:
            open_ = ((open_ + hit) | (open_ - hit)) & full
    return len(one) - open_.bit_count()


def repetition(row: Sequence[int]) -> float | None:
    """Share of a sequence's 4-grams that repeat an earlier one; None when it is shorter than five tokens."""
    count = len(row) - _NGRAM + 1
    if count < 2:
        return None
    if len(row) <= _FEW:
        return 1.0 - len(set(zip(*(row[offset:] for offset in range(_NGRAM)), strict=False))) / count
    tokens = np.asarray(row, dtype=np.uint64)
    key = np.zeros(count, dtype=np.uint64)
    for offset in range(_NGRAM):
        # A 64-bit polynomial hash; a collision within one completion has a chance below 1e-12.
        key = key * np.uint64(0x9E3779B97F4A7C15) + tokens[offset : offset + count] + np.uint64(1)
    return 1.0 - len(np.unique(key)) / count


def ratio_stats(
    new: torch.Tensor, old: torch.Tensor | None, mask: torch.Tensor, low: float, high: float, *, sequence: bool
) -> torch.Tensor:
    """Importance ratios of one micro-batch as four numbers on the device: outside, ratio sum, count, largest.

    Args:
        new: Log-probabilities of the policy per token, shape (batch, time).
        old: Those of the policy that sampled, or None when both are the same (then every ratio is 1).
        mask: 1 for tokens that count.
        low: Lower end of the clip range, ``1 - epsilon_low``.
        high: Upper end, ``1 + epsilon_high``.
        sequence: One ratio per sequence (GSPO), the exponential of the mean log-ratio, instead of one per token.
    """
    with torch.no_grad():
        weight = mask.to(torch.float32)
        difference = torch.zeros_like(weight) if old is None else (new.detach().float() - old.float()) * weight
        if sequence:
            difference = (difference.sum(-1) / weight.sum(-1).clamp(min=1.0)).unsqueeze(-1)
            weight = torch.ones_like(difference)
        ratio = difference.exp()
        outside = (((ratio < low) | (ratio > high)) * weight).sum()
        # NaN > 1.2 is False: a broken ratio must show in the mean, so the mean is not masked by `where`.
        return torch.stack([outside, (ratio * weight).sum(), weight.sum(), (ratio * (weight > 0)).max()])


def ratio_signals(stats: Sequence[torch.Tensor], *, clips: bool = True) -> dict[str, float]:
    """Signals of one optimizer step from the `ratio_stats` of its micro-batches, weighted by tokens.

    Args:
        stats: What `ratio_stats` gave.
        clips: False for a loss without a clip range, which no ratio can be outside of.
    """
    if not stats:
        return {}
    table = np.asarray([row.tolist() for row in stats], dtype=np.float64)
    count = float(table[:, 2].sum())
    if not count:
        return {}
    values = {"policy.ratio_mean": float(table[:, 1].sum()) / count, "policy.ratio_max": float(table[:, 3].max())}
    if clips:
        values["policy.ratio_outside_fraction"] = float(table[:, 0].sum()) / count
    return values


def gap_stats(logps: torch.Tensor, entropies: torch.Tensor, mask: torch.Tensor, old: torch.Tensor | None = None) -> torch.Tensor:
    """How much more surprising a micro-batch's tokens are than the policy expects, as four numbers on the device: sum, sum of squares, count, largest weight.

    A token that was drawn from the policy itself has a surprise of ``-log p`` whose mean is the entropy at its place, whatever came
    before it, so that the difference has mean 0 and is uncorrelated between tokens. One that an older policy drew has not; but weighted by what the
    policy gives it over what the older one gave it, the difference has mean 0 again, exactly (importance sampling, place by place).

    Args:
        logps: Log-probabilities of the sampled tokens, shape (batch, time).
        entropies: Entropy of the policy at the same places.
        mask: 1 for tokens that the policy wrote.
        old: Log-probabilities under the policy that sampled, where it may be an older one; None when it is the same.
    """
    with torch.no_grad():
        own = mask > 0
        weight = torch.ones_like(logps, dtype=torch.float32) if old is None else torch.where(own, logps.float() - old.float(), 0.0).exp()
        excess = torch.where(own, weight * (-logps.float() - entropies.float()), 0.0)  # what stands at padding may be anything
        return torch.stack([excess.sum(), (excess * excess).sum(), own.sum().float(), torch.where(own, weight, 0.0).max()])


def gap_signals(stats: Sequence[torch.Tensor]) -> dict[str, float]:
    """Sampling gap of one optimizer step and its standard error, from the `gap_stats` of its micro-batches.

    The error counts one token more than there were, as rare as one in that many and of the largest weight: the surprise of a decided policy is in few
    tokens, and where none of them happened to be drawn the others would seem to agree without any doubt.
    """
    table = np.asarray([row.tolist() for row in stats], dtype=np.float64)
    total, squares, count = (float(column) for column in table[:, :3].sum(axis=0))
    if not count:
        return {}
    mean = total / count
    around = max(squares - count * mean * mean, 0.0) if math.isfinite(squares) else squares
    rare = float(table[:, 3].max()) * math.log(count + 1.0)
    return {"policy.sampling_gap": mean, "policy.sampling_gap_error": math.sqrt(around + rare * rare) / count}


def padding_counts(ids: torch.Tensor, own: torch.Tensor, ends: Collection[int], pads: Collection[int]) -> torch.Tensor:
    """Tokens that count as answer though nobody sampled them, and all that count, as two numbers on the device.

    A sampler that ends an answer at a token of `ends` fills it up with padding to the longest of its batch (transformers `GenerationMixin._sample`; vLLM
    fills nothing up). The run of padding that closes a row's counted tokens is that filling where an end stands just before it, or where its first
    token is an end itself. Padding that a policy writes by itself ends no answer, so that no end stands before it.

    Args:
        ids: Token ids of the completions, shape (batch, time).
        own: 1 for tokens that count and that the policy is said to have written (no tool's answer).
        ends: Ids at which the sampler stops.
        pads: Ids with which it fills up.
    """
    with torch.no_grad():
        counted, end, pad = own > 0, among(ids, ends), among(ids, pads)
        run = counted & ((counted & ~pad).flip(1).cumsum(1).flip(1) == 0)  # nothing else counts from there on
        first = run & (run.cumsum(1) == 1)
        behind = (first[:, 1:] & end[:, :-1]).any(1)
        itself = (first & end).any(1) & ~behind
        filling = run.sum(1) * (behind | itself) - itself.long()
        return torch.stack([filling.sum(), counted.sum()])


def among(ids: torch.Tensor, tokens: Collection[int]) -> torch.Tensor:
    """Where one of a few tokens stands; unlike `torch.isin` nothing is copied to the device."""
    found = torch.zeros_like(ids, dtype=torch.bool)
    for token in tokens:
        found |= ids == token
    return found


def padding_signals(counts: torch.Tensor) -> dict[str, float]:
    """Share of the counted tokens that are filling, from `padding_counts`; nothing where no token counts."""
    filling, counted = counts.tolist()
    return {"completion.counted_padding_fraction": filling / counted} if counted else {}


def correction_stats(ratio: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Weights that correct for the sampler, as four numbers on the device: masked ones, all, their sum, their sum of squares.

    Args:
        ratio: As the loss gets it: one per token, shape (batch, time), or one per sequence, shape (batch, 1); 0 where it was masked.
        mask: 1 for tokens that count.
    """
    with torch.no_grad():
        counts = mask > 0
        counts = counts if ratio.shape == mask.shape else counts.any(dim=-1, keepdim=True)
        weight = torch.where(counts, ratio.float(), 0.0)
        return torch.stack([((weight == 0) & counts).sum().float(), counts.sum().float(), weight.sum(), (weight * weight).sum()])


def correction_signals(stats: torch.Tensor) -> dict[str, float]:
    """Share of weights that are 0, and Kish's effective share of samples, from `correction_stats`."""
    zeros, count, whole, squares = stats.double().tolist()
    if not count:
        return {}
    effective = whole * whole / (count * squares) if squares else math.nan if math.isnan(whole) else 0.0
    return {"sampler.masked_fraction": zeros / count, "sampler.effective_fraction": effective}


def clip_range(trainer: Any) -> tuple[float, float] | None:
    """Importance ratios that the trainer's loss leaves alone, as ``(low, high)``; None when its loss clips none.

    What `epsilon` means depends on the loss (TRL 1.16 `_compute_loss`): the width around 1 of a ratio (the usual one), an upper
    bound alone (CISPO), the width around 0 of a log-ratio (GMPO), or a bound on something else than a ratio (DPPO). SAPO and
    VESPO weigh ratios softly and clip none.
    """
    loss = getattr(trainer, "loss_type", None)
    if loss in {"sapo", "vespo"} or hasattr(trainer, "_compute_divergence_mask"):
        return None
    low = float(getattr(trainer, "epsilon_low", getattr(trainer.args, "epsilon", 0.2)))
    wide = getattr(trainer, "epsilon_high", None)
    high = float(low if wide is None else wide)
    if loss == "cispo":
        return 0.0, high
    if "clipped_log_ratio" in _locals(type(trainer), "_compute_loss"):
        return math.exp(-low), math.exp(high)
    return 1.0 - low, 1.0 + high


def _locals(owner: type, method: str) -> tuple[str, ...]:
    """Names of a method's local variables: says which formula it uses where no attribute does."""
    code = getattr(inspect.unwrap(getattr(owner, method, len)), "__code__", None)
    return code.co_varnames if code is not None else ()


def penalty_signals(rewards: Floats, kl: Floats, beta: float) -> dict[str, float]:
    """Reward after the KL penalty that RLOO subtracts from it, and the penalty's KL itself.

    Args:
        rewards: Reward of each completion before the penalty; NaN where nothing scored it.
        kl: Sum over each completion's tokens of ``log pi - log pi_ref``: a first-order estimate, so it may be negative.
        beta: Weight of the penalty.
    """
    values: dict[str, float] = {}
    if kl.size:
        values["policy.kl_ref_sequence"] = float(kl.mean())
    after = rewards - beta * kl
    after = after[~np.isnan(rewards)]
    if after.size:
        values["reward.penalised_mean"] = float(after.mean())
    return values
