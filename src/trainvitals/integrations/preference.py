"""Family: trainers that compare chosen with rejected responses (DPO, KTO, ORPO, CPO, TPO, BCO, online DPO, XPO, Nash-MD).

What they log themselves comes through `names/trl.py`. Here is what no log row has: how far the policy has moved on these very
examples, whether it started at its reference, pairs that truncation made equal or empty, the balance of KTO's classes. And
three of these trainers keep their metrics where only a log row shows them; here they are read at every step.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from trainvitals.integrations import pair_scores
from trainvitals.integrations.grpo import repetition
from trainvitals.integrations.newest import Commonest, Differing, LengthBias, differing, fingerprints
from trainvitals.integrations.pair_scores import PairScores
from trainvitals.names import Mapper

if TYPE_CHECKING:
    from trainvitals.integrations.hooks import Hooks

_MARGINS = frozenset({"preference.margin_length_correlation", "preference.shorter_chosen_accuracy"})
_DIFFERING = frozenset({"preference.differing_tokens", "preference.differing_fraction"})
_PAIR = _MARGINS | _DIFFERING | {"preference.identical_fraction", "preference.longer_chosen_fraction", "preference.chosen_commonest_fraction"}
_RESPONSE = frozenset({"preference.empty_fraction"})
_REFERENCE = frozenset({"preference.logratio_chosen", "preference.logratio_rejected", "preference.reference_gap"})
_CLASSES = frozenset({"preference.desirable_fraction", "preference.one_class_fraction"})
_KL = frozenset({"preference.kl_zero_fraction"})
_WRITTEN = frozenset({"completion.repetition_fraction", "reward.length_correlation"})
SIGNALS = _PAIR | _RESPONSE | _REFERENCE | _CLASSES | _KL | pair_scores.TIES | {"reward.unscored_fraction"}
"""Signals that only these wraps give; `sampling.py` gives ``reward.unscored_fraction`` as well."""

_STEP_LIMIT = 4096  # as in hooks.py
_READ = 64  # completions of a step read for repetition, as in grpo.py
_SPLITS, _REWARDS = ("chosen", "rejected"), ("rewards/chosen", "rewards/rejected")
_ENDED = ("val/contain_eos_token", "val/model_contain_eos_token")  # online DPO; XPO and Nash-MD, of the policy's own samples


def install(hooks: Hooks) -> None:
    """Look at what the trainer has and read the batches, metrics and scores of a preference trainer."""
    trainer = hooks.trainer
    if not hasattr(trainer, "beta"):
        return
    classes = _CLASSES | _REFERENCE | (_KL if getattr(trainer, "calculate_KL", False) else frozenset())
    if hasattr(trainer, "get_batch_loss_metrics"):  # ORPO, CPO, BCO, KTO until 1.5
        unpaired = hasattr(trainer, "kto_loss") or hasattr(trainer, "bco_loss")
        gives = _RESPONSE | (classes if unpaired else _PAIR)
        reader = _Preference(hooks, gives, share=True)
        hooks.wrap(trainer, "get_batch_loss_metrics", reader.after_metrics, gives=gives)
        for name in ("odds_ratio_loss", "cpo_loss"):  # losses, rewards of chosen, rewards of rejected, one number per pair
            hooks.wrap(trainer, name, reader.after_pair_loss)
    elif any(hasattr(trainer, name) for name in ("calculate_KL", "compute_ref_log_probs", "tpo_alpha")):
        gives = _RESPONSE | (classes if hasattr(trainer, "calculate_KL") else _PAIR)  # KTO since 1.6; DPO, TPO
        if hasattr(trainer, "compute_ref_log_probs"):
            gives |= _REFERENCE
        reader = _Preference(hooks, gives, share=False)
        hooks.wrap(trainer, "compute_loss", reader.after_loss, before=reader.before_loss, gives=gives, needed=True)
        if gives >= _PAIR:
            hooks.wrap(getattr(trainer, "accelerator", None), "gather", reader.after_gather)
    elif isinstance(getattr(trainer, "stats", None), dict):  # online DPO, XPO, Nash-MD
        gives = frozenset() if hasattr(trainer, "mixture_coef") else _REFERENCE
        reader = _Preference(hooks, gives, share=True)
        hooks.wrap(trainer, "training_step", gives=gives)
        if "objective/scores" in trainer.stats:  # XPO and Nash-MD inherit the method and do not use it
            models = any(isinstance(function, torch.nn.Module) for function in trainer.reward_funcs or ())
            told = pair_scores.TIES | pair_scores.ENDS | (frozenset() if models else pair_scores.HEARD)
            hooks.wrap(trainer, "_calculate_rewards_from_functions", reader.scores.after, before=reader.scores.before, gives=told)
        written = _WRITTEN if "objective/scores" in trainer.stats else frozenset()
        hooks.wrap(trainer, "_forward", reader.after_forward, gives=written)
        hooks.at_step_end.append(reader.read_stats)
    else:
        return
    hooks.at_step_end.append(reader.step_end)


# ---- numbers in, numbers out ----


def pair_counts(chosen: torch.Tensor, rejected: torch.Tensor, chosen_mask: torch.Tensor, rejected_mask: torch.Tensor) -> torch.Tensor:
    """Pairs, identical pairs, responses, empty responses of one micro-batch.

    Args:
        chosen: Token ids of prompt and chosen response, one row each, padded.
        rejected: Likewise of the rejected responses.
        chosen_mask: True on response tokens.
        rejected_mask: Likewise.

    Returns:
        Four counts. A pair is identical when both rows and their masks are equal; an empty one does not count as identical.
    """
    width = max(chosen.size(1), rejected.size(1))
    left, right = _widen(chosen, chosen_mask, width), _widen(rejected, rejected_mask, width)
    equal = (left[0] == right[0]).all(1) & (left[1] == right[1]).all(1) & left[1].any(1)
    empty = (~left[1].any(1)).sum() + (~right[1].any(1)).sum()
    pairs = torch.full_like(empty, chosen.size(0))
    return torch.stack([pairs, equal.sum(), 2 * pairs, empty])


def _widen(ids: torch.Tensor, mask: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    # Padding of the two sides may differ in amount and in id: rows are compared where at least one mask is set.
    more = width - ids.size(1)
    wide = torch.nn.functional.pad(mask.bool(), (0, more))
    return torch.nn.functional.pad(ids, (0, more)).masked_fill(~wide, 0), wide


def length_signals(tensors: list[torch.Tensor]) -> dict[str, float]:
    """Correlation of score and length within pairs, of all pairs of a step together: pairs alone have none.

    Args:
        tensors: Scores of each micro-batch, then lengths in tokens; the first half of a micro-batch answers the same prompts as the second.

    Returns:
        ``reward.length_correlation`` of the differences, around 0 since either answer may be called the first; nothing where scores or lengths are equal.
    """
    halves = [(left - right).double() for left, right in (part.flatten().chunk(2) for part in tensors if len(part) and len(part) % 2 == 0)]
    middle = len(halves) // 2
    if not middle or len(halves) != len(tensors):
        return {}
    scores, lengths = torch.cat(halves[:middle]), torch.cat(halves[middle:])
    known = torch.isfinite(scores)
    scale = float(torch.sqrt((scores[known] ** 2).sum() * (lengths[known] ** 2).sum()))
    return {"reward.length_correlation": float((scores * lengths)[known].sum()) / scale} if scale > 0 else {}


def response_counts(mask: torch.Tensor) -> torch.Tensor:
    """As `pair_counts` for single responses: no pairs."""
    empty = (~mask.bool().any(1)).sum()
    zero = torch.zeros_like(empty)
    return torch.stack([zero, zero, torch.full_like(empty, mask.size(0)), empty])


def class_counts(label: Any) -> torch.Tensor:
    """Examples, desirable examples, batches, batches with one class only, of KTO's labels (tensor or list of bools)."""
    flags = torch.as_tensor(label).bool().reshape(-1)
    desirable = flags.sum()
    single = (desirable == 0) | (desirable == flags.numel())
    one = torch.ones_like(desirable)
    return torch.stack([one * flags.numel(), desirable, one, single.to(one.dtype)])


def share_signals(tensors: list[torch.Tensor]) -> dict[str, float]:
    """Shares of a step from the counts of its micro-batches (`pair_counts`, `response_counts`)."""
    pairs, identical, responses, empty = torch.stack(tensors).sum(0).tolist()
    values = {"preference.empty_fraction": empty / responses} if responses else {}
    if pairs:
        values["preference.identical_fraction"] = identical / pairs
    return values


def class_signals(tensors: list[torch.Tensor]) -> dict[str, float]:
    """Balance of a step from the counts of its micro-batches (`class_counts`)."""
    examples, desirable, batches, single = torch.stack(tensors).sum(0).tolist()
    if not examples:
        return {}
    return {"preference.desirable_fraction": desirable / examples, "preference.one_class_fraction": single / batches}


def mean_metrics(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Metrics of a step from those of its micro-batches, under the names that TRL logs.

    KTO until 1.5 and BCO keep sums and counts (``rewards/chosen_sum``, ``count/chosen``) of one class each, which TRL divides
    when it logs; everything else is a plain mean.
    """
    names = dict.fromkeys(name for row in rows for name in row)
    result: dict[str, float] = {}
    for name in names:
        values = [row[name] for row in rows if name in row]
        if name.startswith("count/"):
            continue
        split = name.rpartition("/")[2].removesuffix("_sum")
        if name.endswith("_sum") and split in _SPLITS:
            count = sum(row[f"count/{split}"] for row in rows if f"count/{split}" in row)
            result[name.removesuffix("_sum")] = sum(values) / count if count else math.nan
        else:
            result[name] = sum(values) / len(values)
    if "rewards/margins" not in result and {"rewards/chosen", "rewards/rejected"} <= result.keys():
        result["rewards/margins"] = result["rewards/chosen"] - result["rewards/rejected"]
    return result


def moved(rewards: Mapping[str, float], beta: float) -> dict[str, float]:
    """Change of log-probability in nats from implicit rewards, which are beta times it."""
    return {f"preference.logratio_{split}": rewards[f"rewards/{split}"] / beta for split in _SPLITS if f"rewards/{split}" in rewards}


def not_these(margins: torch.Tensor, logged: float) -> bool:
    """Whether margins cannot have the logged mean: TRL gathers other numbers first, or rejected before chosen. Half precision is no reason."""
    middle, spread = float(margins.double().mean()), float(margins.double().std(correction=0))
    return abs(middle - logged) > 0.1 * abs(logged) + 0.05 * spread + 1e-3


def gap(movements: Sequence[float]) -> float:
    """Largest absolute value; NaN when any is NaN."""
    return math.nan if any(math.isnan(x) for x in movements) else max(abs(x) for x in movements)


# ---- what one step has gathered ----


class _Preference:
    """Reads one trainer's calls and hands over at the end of each step."""

    def __init__(self, hooks: Hooks, gives: frozenset[str], *, share: bool) -> None:
        self._hooks, self._gives = hooks, gives
        self._share = share  # nobody else reads the trainer's metrics at every step
        self._mapper = Mapper(hooks.kind if hooks.kind != "unknown" else None)
        self._rows: list[dict[str, float]] = []
        self._counts: list[torch.Tensor] = []
        self._classes: list[torch.Tensor] = []
        self.scores = PairScores(hooks)
        self._lengths: list[torch.Tensor] = []
        self._texts: list[torch.Tensor] = []  # of the first micro-batch: ids and mask of its completions
        self._pairs: list[torch.Tensor] = []  # of each micro-batch: lengths of chosen, of rejected, fingerprints of chosen, differing tokens
        self._margins: list[torch.Tensor] = []
        self._rewards: list[torch.Tensor] | None = None  # per pair, while a loss is computed: chosen, rejected
        self._bias, self._commonest, self._differing = LengthBias(), Commonest(), Differing()
        self._lists: dict[str, tuple[Any, int]] = {}
        self._first: list[float] = []

    def _skip(self) -> bool:
        return not self._hooks.training or len(self._rows) >= _STEP_LIMIT

    def after_metrics(self, result: Any, args: tuple[Any, ...], kwargs: dict[str, Any], seconds: float) -> None:
        """One micro-batch of a trainer whose loss returns its metrics as numbers (ORPO, CPO, BCO, KTO until 1.5)."""
        if self._skip():
            return
        batch = args[1] if len(args) > 1 else kwargs["batch"]
        self._batch(batch)
        row = {name: float(value) for name, value in result[1].items()}
        self._rows.append(row)
        self._first_row(row, done=0)

    def after_pair_loss(self, result: Any, args: tuple[Any, ...], kwargs: dict[str, Any], seconds: float) -> None:
        """Rewards of each pair of a micro-batch (ORPO, CPO)."""
        if not self._skip():
            self._rewards = list(result[1:3])

    def before_loss(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """A loss begins: wait for its rewards."""
        self._rewards = None if self._skip() else []
        return args

    def after_gather(self, result: Any, args: tuple[Any, ...], kwargs: dict[str, Any], seconds: float) -> None:
        """Rewards of this rank's pairs: the first two things with a number per pair that a loss gathers (DPO, TPO)."""
        local = args[0] if args else kwargs.get("tensor")
        if self._rewards is None or len(self._rewards) == 2 or not isinstance(local, torch.Tensor):
            return
        if local.is_floating_point() and local.dim() == 1:
            self._rewards.append(local.detach())

    def after_loss(self, result: Any, args: tuple[Any, ...], kwargs: dict[str, Any], seconds: float) -> None:
        """One micro-batch of a trainer that appends its metrics to lists (DPO, TPO, KTO since 1.6)."""
        if self._skip():
            return
        self._batch(args[1] if len(args) > 1 else kwargs["inputs"])
        row = self._fresh(self._hooks.trainer._metrics["train"], (*_REWARDS, "kl"))
        self._rows.append(row)
        self._first_row(row, done=0)

    def after_forward(self, result: Any, args: tuple[Any, ...], kwargs: dict[str, Any], seconds: float) -> None:
        """Lengths of the sampled completions; the reference's pass over the same ones is not counted twice."""
        mask = args[4] if len(args) > 4 else kwargs.get("completion_mask")
        if isinstance(mask, torch.Tensor) and self._hooks.training and torch.is_grad_enabled() and len(self._lengths) < _STEP_LIMIT:
            self._lengths.append(mask.sum(1))
            ids = args[3] if len(args) > 3 else kwargs.get("completion_ids")
            if not self._texts and isinstance(ids, torch.Tensor) and ids.shape == mask.shape:
                self._texts = [ids[:_READ], mask[:_READ]]

    def read_stats(self) -> None:
        """What online DPO, XPO and Nash-MD appended in this step; before the log row, which empties the lists."""
        stats = self._hooks.trainer.stats
        row = self._fresh(stats, list(stats))
        for name in _ENDED:
            if name in row:
                self._hooks.give("completion.truncated_fraction", 1.0 - row[name])
        if row:
            self._rows.append(row)
            self._first_row(row, done=1)
        cap = getattr(self._hooks.trainer.args, "max_new_tokens", None)
        if cap and self._first:
            self._hooks.give("completion.length_cap", float(cap))

    def step_end(self) -> None:
        """Hand over the step."""
        hooks, step = self._hooks, mean_metrics(self._rows)
        if self._share:
            for name, value in step.items():
                found = self._mapper.resolve(name)
                if found is not None and found[0] and not found[2]:
                    hooks.give(found[0], value * found[1])
        beta = float(hooks.trainer.beta)
        if beta and self._gives >= _REFERENCE:
            for name, value in moved(step, beta).items():
                hooks.give(name, value)
            if self._first:
                hooks.give("preference.reference_gap", gap(self._first) / beta)
        censored = [row["kl"] <= 0 for row in self._rows if "kl" in row]
        if censored and self._gives >= _KL:
            hooks.give("preference.kl_zero_fraction", sum(censored) / len(censored))
        if [len(part) for part in self.scores.scores] == [len(part) for part in self._lengths]:
            hooks.put([*self.scores.scores, *self._lengths], length_signals)
        self.scores.step_end()
        for tensors, compute in (
            (self._counts, share_signals), (self._classes, class_signals), (self._lengths, _length_signals),
            (self._texts, _text_signals),
        ):  # fmt: skip
            if tensors:
                hooks.put(tensors, compute)
        if self._pairs:
            margins = [torch.cat(self._margins)] if len(self._margins) == len(self._pairs) else []
            logged = self._logged_margin(step)
            hooks.put([torch.cat(self._pairs, dim=1), *margins], lambda tensors: self._pair_signals(tensors, logged))
        self._rows, self._counts, self._classes, self._lengths, self._first = [], [], [], [], []
        self._pairs, self._margins, self._rewards, self._texts = [], [], None, []

    def _logged_margin(self, step: Mapping[str, float]) -> float | None:
        """What TRL logs as the mean margin of these very pairs; None where other ranks' are in it, or micro-batches of other sizes."""
        alone = int(getattr(getattr(self._hooks.trainer, "accelerator", None), "num_processes", 1)) == 1
        return step.get("rewards/margins") if alone and len({len(part) for part in self._margins}) == 1 else None

    def _pair_signals(self, tensors: list[torch.Tensor], logged: float | None) -> dict[str, float]:
        chosen, rejected, prints, tokens = tensors[0]
        margins = tensors[1] if len(tensors) > 1 else None
        if margins is not None and logged is not None and not_these(margins, logged):
            msg = f"the rewards that were heard of these pairs are not those whose mean margin, {logged:.3g}, is logged"
            raise ValueError(msg)
        values = self._bias.signals(chosen, rejected, margins) | self._differing.signals(tokens, torch.maximum(chosen, rejected))
        share = self._commonest.share(x for x in prints.tolist() if x)  # 0: truncation left no token
        return values if share is None else {**values, "preference.chosen_commonest_fraction": share}

    def _first_row(self, row: Mapping[str, float], done: int) -> None:
        """Remember the rewards of the first update; `done` is what the trainer's counter says while that update is open."""
        if int(self._hooks.trainer.state.global_step) == done:
            means = mean_metrics([row])
            self._first += [means[name] for name in _REWARDS if name in means]

    def _fresh(self, lists: Mapping[str, Any], names: Iterable[str]) -> dict[str, float]:
        """Mean of what was appended to TRL's lists since the last look."""
        row: dict[str, float] = {}
        for name in names:
            entries = lists.get(name)
            known, count = self._lists.get(name, (None, 0))
            start = count if known is entries else 0
            if isinstance(entries, list) and len(entries) > start:
                row[name] = float(sum(entries[start:]) / (len(entries) - start))
                self._lists[name] = (entries, len(entries))
        return row

    def _batch(self, batch: Mapping[str, Any]) -> None:
        """Count pairs, empty responses and classes of a micro-batch, on its own device."""
        if "label" in batch:
            self._classes.append(class_counts(batch["label"]))
        if "chosen_input_ids" in batch:  # ORPO, CPO
            masks = [batch[f"{split}_labels"] != -100 for split in _SPLITS]
            self._pair(batch["chosen_input_ids"], batch["rejected_input_ids"], *masks)
        elif "completion_mask" in batch and "label" not in batch:  # DPO, TPO: chosen, rejected (, gold) below each other
            branches = 3 if getattr(self._hooks.trainer, "tpo_alpha", 0.0) else 2
            ids, masks = batch["input_ids"].chunk(branches), batch["completion_mask"].chunk(branches)
            self._pair(ids[0], ids[1], masks[0], masks[1])
        elif "completion_mask" in batch:  # KTO since 1.6
            self._counts.append(response_counts(batch["completion_mask"]))
        elif "completion_labels" in batch:  # KTO until 1.5, BCO
            self._counts.append(response_counts(batch["completion_labels"] != -100))

    def _pair(self, chosen: torch.Tensor, rejected: torch.Tensor, chosen_mask: torch.Tensor, rejected_mask: torch.Tensor) -> None:
        self._counts.append(pair_counts(chosen, rejected, chosen_mask, rejected_mask))
        lengths = [mask.bool().sum(1) for mask in (chosen_mask, rejected_mask)]
        tokens = differing(chosen, rejected, chosen_mask, rejected_mask)
        self._pairs.append(torch.stack([*lengths, fingerprints(chosen, chosen_mask), tokens]))
        rewards, self._rewards = self._rewards or [], None
        if len(rewards) == 2 and all(part.shape == lengths[0].shape for part in rewards):
            self._margins.append((rewards[0] - rewards[1]).detach().float())


def _text_signals(tensors: list[torch.Tensor]) -> dict[str, float]:
    ids, mask = tensors[0], tensors[1].bool()
    shares = [share for row, own in zip(ids, mask, strict=True) if (share := repetition(row[own].tolist())) is not None]
    return {"completion.repetition_fraction": sum(shares) / len(shares)} if shares else {}


def _length_signals(tensors: list[torch.Tensor]) -> dict[str, float]:
    lengths = torch.cat([tensor.reshape(-1) for tensor in tensors]).double()
    if not lengths.numel():
        return {}
    return {
        "completion.length_mean": float(lengths.mean()),
        "completion.length_min": float(lengths.min()),
        "completion.length_max": float(lengths.max()),
    }
