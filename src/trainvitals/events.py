"""Typed events: this file IS the signal catalogue.

One pydantic model per family. A *signal* is a field of such a model, written ``family.field`` (``policy.kl_ref``).
Every field states its unit, physical range, meaning, emitters and cadence; the rule language checks rules against them,
``schemas/event.schema.json`` and ``docs/signals.md`` are generated from them.

A moment of a run travels over the bus as one `items.Frame`.

A labelled signal has one series per label value, keyed ``reward.component_mean{component=format}``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

Cadence = Literal["update", "rollout", "eval", "sample", "once"]
Per = Literal["", "token", "sequence", "either"]


def signal(
    unit: str,
    meaning: str,
    *,
    low: float | None = None,
    high: float | None = None,
    emitters: str = "any",
    cadence: Cadence = "update",
    label: str | None = None,
    per: Per = "",
) -> Any:
    """Declare one signal.

    Args:
        unit: Unit of the number. ``fraction`` is 0..1 and never percent; ``nats``, ``tokens``, ``seconds``, ``bytes``,
            ``reward``, ``score``, ``count``, ``norm``, ``loss``, ``ratio``, ``rate``.
        meaning: One sentence; with formula and source where there is one.
        low: Physical lower bound, inclusive; None when unbounded.
        high: Physical upper bound, inclusive; None when unbounded.
        emitters: Space-separated trainers (``grpo rloo``) that can emit it, or ``any``.
        cadence: How often a new value is expected: each optimizer update, each generation batch, each evaluation, at
            its own pace (``sample``), or once a run.
        label: Name of the label (``component``, ``rank``) when there is one series per label value.
        per: What one number is about before the mean over a batch is taken: a ``token`` or a whole ``sequence`` (summed over its
            tokens, or a length). ``either`` where a setting of the trainer decides. Empty where the question has no meaning.
    """
    extra: dict[str, Any] = {"unit": unit, "low": low, "high": high, "emitters": emitters.split(), "cadence": cadence, "label": label, "per": per}
    return Field(default=None, description=meaning, json_schema_extra=extra)


class Event(BaseModel):
    """Base of the family models: frozen, no unknown fields, every metric optional (missing is data)."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=True)
    family: ClassVar[str]


class RunEvent(Event):
    """Progress of the run itself."""

    family: ClassVar[str] = "run"
    progress: float | None = signal("fraction", "Optimizer updates done divided by updates planned.", low=0, high=1)
    tokens_seen: float | None = signal("tokens", "Prompt and completion tokens processed so far, all ranks.", low=0)
    epoch: float | None = signal("count", "Passes over the training data so far.", low=0)
    logging_every: float | None = signal("count", "Optimizer updates that one logged value averages.", low=1, cadence="once")
    checkpoint_room: float | None = signal("count", "Checkpoints that the disk of the output folder still has room for: by the sizes of weights and moments at the start, by the newest checkpoint later.", low=0, cadence="sample")
    checkpoint_missing_fraction: float | None = signal("fraction", "Share of the trained numbers that the newest checkpoint does not hold, read from its files; not told where they may be there in another form.", low=0, high=1, cadence="sample")
    checkpoint_differing_fraction: float | None = signal("fraction", "Share of the trained numbers that lie in the newest checkpoint under their name with another content: in each tensor a few are compared.", low=0, high=1, cadence="sample")
    rank_behind: dict[str, float] | None = signal("count", "Places at which ranks meet that one rank has not reached while others wait there; 0 while steps end. Told by rank 0.", low=0, label="rank")
    rank_silent_seconds: dict[str, float] | None = signal("seconds", "While no step ends: time since a rank last said anything, which it does every 5 s. Told by rank 0.", low=0, label="rank")


class OptimEvent(Event):
    """Loss, gradient and schedule."""

    family: ClassVar[str] = "optim"
    loss: float | None = signal("loss", "Training loss as logged: transformers replaces NaN by a running mean (logging_nan_inf_filter).")
    loss_raw: float | None = signal("loss", "Loss of one optimizer step before any NaN filter, mean of its micro-batches, this rank.")
    loss_start: float | None = signal("loss", "Raw loss of the first update, before any weight changed.", emitters="sft", cadence="once")
    grad_norm: float | None = signal("norm", "Total gradient norm before clipping, as logged (of the last step of the window).", low=0)
    grad_norm_step: float | None = signal("norm", "Total gradient norm of this very step, before clipping where the trainer hands it out.", low=0)
    learning_rate: float | None = signal("rate", "Learning rate that the step used (first parameter group).", low=0)
    nonfinite_grads: float | None = signal("count", "Parameters whose gradient holds a NaN or Inf at this step.", low=0)
    update_ratio: float | None = signal("ratio", "Norm of the parameter update over norm of the parameters.", low=0)
    update_lost_fraction: float | None = signal("fraction", "Of a sample of the trained numbers that had a gradient, the share that the optimizer's step left exactly as they were; told where weights are in bfloat16 or float16 and the optimizer writes into them without a finer copy.", low=0, high=1)
    moved_outside_ratio: float | None = signal("ratio", "Between the end of the update before and this one's step: norm of what changed in a sample of the trained weights over their norm, of matrices or of vectors (norms, biases), whichever is larger. 0 unless something other than the optimizer writes the weights.", low=0)
    clipped_step: float | None = signal("fraction", "1 when this step's gradient norm was above max_grad_norm, else 0.", low=0, high=1)
    trainable_fraction: float | None = signal("fraction", "Share of the model's parameters that are trained, at the first update.", low=0, high=1, cadence="once")
    trainable_with_grad: float | None = signal("fraction", "Share of trainable parameters that received a gradient.", low=0, high=1)
    left_out_fraction: float | None = signal("fraction", "Of the trainable numbers with a gradient, the share that is in no group of the optimizer; at the first update, and again when something was frozen or thawed.", low=0, high=1, cadence="once")
    never_reached_fraction: float | None = signal("fraction", "Share of the trainable numbers that has had no gradient in any update so far; without experts, towers for other inputs and poolers.", low=0, high=1, cadence="once")
    state_restored_fraction: float | None = signal("fraction", "At the first update after a resume: of the parameters for which the optimizer keeps state, the share that came with some; not for optimizers without state.", low=0, high=1, cadence="once")
    resumed_differing_fraction: float | None = signal("fraction", "At the first update after a resume: of a few hundred numbers of the trained weights, remembered in the checkpoint, the share that has another value now.", low=0, high=1, cadence="once")
    token_weight_ratio: float | None = signal("ratio", "Largest over smallest weight of a label token among the micro-batches of an update, where the weight is the micro-batch's loss over the summed cross entropy of its labels: 1 when the loss is a mean over all label tokens of the update, the ratio of label counts when it is a mean of the micro-batches' means. Not told where the loss is neither of the two. This rank.", low=1, emitters="sft transformers", cadence="sample", per="token")
    rank_loss: dict[str, float] | None = signal("loss", "Loss of one optimizer step on one rank, before any NaN filter. Told by rank 0, a step late.", label="rank")
    rank_nonfinite_alone: dict[str, float] | None = signal("fraction", "1 when the loss of one rank is not finite while another rank's is at the same step, else 0.", low=0, high=1, label="rank")
    rank_weight_drift: dict[str, float] | None = signal("ratio", "Where all ranks should hold the same weights: relative difference of a rank's weight norm from the median of all.", low=0, label="rank", cadence="sample")


class RewardEvent(Event):
    """Rewards of sampled completions, before they become advantages."""

    family: ClassVar[str] = "reward"
    _on: ClassVar[str] = "grpo rloo ppo async_grpo online_dpo sdpo"
    mean: float | None = signal("reward", "Mean of the weighted sum of reward functions over the generation batch.", emitters=f"{_on} a2po nash_md xpo", cadence="rollout")
    std: float | None = signal("reward", "Spread over the WHOLE generation batch (TRL `reward_std` since 0.27). Not a collapse signal.", low=0, emitters=_on, cadence="rollout")
    min: float | None = signal("reward", "Smallest reward in the generation batch.", emitters=f"{_on} a2po", cadence="rollout")
    max: float | None = signal("reward", "Largest reward in the generation batch.", emitters=f"{_on} a2po", cadence="rollout")
    group_std_mean: float | None = signal("reward", "Mean over prompts of the standard deviation within the prompt's group (unbiased, G-1).", low=0, emitters="grpo rloo async_grpo sdpo", cadence="rollout")
    group_zero_std_fraction: float | None = signal("fraction", "Share of prompt groups whose rewards are all equal: they give no advantage.", low=0, high=1, emitters="grpo rloo async_grpo sdpo", cadence="rollout")
    all_low_fraction: float | None = signal("fraction", "Share of groups without spread whose common reward is at the lowest reward seen in the run.", low=0, high=1, emitters="grpo rloo async_grpo sdpo", cadence="rollout")
    all_high_fraction: float | None = signal("fraction", "Share of groups without spread whose common reward is at the highest reward seen in the run.", low=0, high=1, emitters="grpo rloo async_grpo sdpo", cadence="rollout")
    group_count: float | None = signal("count", "Prompt groups in the generation batch, all ranks.", low=0, emitters="grpo rloo sdpo", cadence="rollout")
    penalised_mean: float | None = signal("reward", "Mean reward after the KL penalty was subtracted from it (RLOO, PPO); `mean` is before.", emitters="rloo ppo online_dpo", cadence="rollout")
    unscored_fraction: float | None = signal("fraction", "Share of completions for which every reward function returned None or NaN.", low=0, high=1, emitters=_on, cadence="rollout")
    length_correlation: float | None = signal("ratio", "Mean within-group Pearson correlation of reward and completion length (PPO: over the batch; online DPO: of the differences within its pairs).", low=-1, high=1, emitters="grpo rloo ppo sdpo online_dpo", cadence="rollout")
    model_outside_fraction: float | None = signal("fraction", "Share of samples whose features in the reward model lie beyond the distance that 1% of the run's first samples exceed (diagonal Mahalanobis; largest of several reward models).", low=0, high=1, emitters="grpo rloo ppo", cadence="rollout")
    component_mean: dict[str, float] | None = signal("reward", "Mean of one reward function over the generation batch.", emitters="grpo rloo async_grpo online_dpo sdpo", cadence="rollout", label="component")
    component_std: dict[str, float] | None = signal("reward", "Standard deviation of one reward function over the generation batch.", low=0, emitters="grpo rloo async_grpo online_dpo sdpo", cadence="rollout", label="component")
    component_share: dict[str, float] | None = signal("fraction", "w_k*std_k / sum_j w_j*std_j: the part of the reward spread that one function contributes.", low=0, high=1, emitters="grpo rloo async_grpo sdpo online_dpo", cadence="rollout", label="component")
    component_unscored_fraction: dict[str, float] | None = signal("fraction", "Share of completions for which one function returned None or NaN.", low=0, high=1, emitters="grpo rloo async_grpo online_dpo sdpo", cadence="rollout", label="component")
    component_zero_fraction: dict[str, float] | None = signal("fraction", "Share of one function's scores that are exactly 0.", low=0, high=1, emitters="grpo rloo async_grpo sdpo online_dpo", cadence="rollout", label="component")
    unpaid_mean: dict[str, float] | None = signal("reward", "Mean of one reward function whose weight is 0 while another's is not: it is measured and pays nothing, like a held-out checker.", emitters="grpo rloo sdpo online_dpo", cadence="rollout", label="component")
    mixed_group_fraction: float | None = signal("fraction", "Share of this rank's prompt groups whose completions do not all answer the same prompt; 0 in every sound run.", low=0, high=1, emitters="grpo rloo sdpo", cadence="rollout")
    same_text_spread: dict[str, float] | None = signal("ratio", "Mean square difference of one function's scores for copies of one completion, over that for different completions beside them (newest 256 pairs of copies; both directions of a difference must occur): 0 when the text decides the score, 1 when it does not.", low=0, emitters="grpo rloo sdpo", cadence="rollout", label="component")
    same_text_differing: dict[str, float] | None = signal("count", "Pairs of copies of one completion (of the newest 256) that one function scored differently.", low=0, emitters="grpo rloo sdpo", cadence="rollout", label="component")
    same_text_zero_fraction: dict[str, float] | None = signal("fraction", "Of the copies that one function scored differently, the share in which one of two has exactly 0; told of functions with three and more other scores, which copies otherwise share.", low=0, high=1, emitters="grpo rloo sdpo", cadence="rollout", label="component")
    text_slope: dict[str, float] | None = signal("ratio", "Slope of one function's scores on what the texts of the answers promised, both within groups and in units of the group's spread: 1 when scores go by the text as they did, 0 when they have nothing to do with it any more, at least 0.5 where the newest answers foretell each other's scores. The promise (ridge regression on shares of tokens and on length) is made before the batch is learned from; newest 256 answers of groups with spread, told while the standard error is at most 0.2.", emitters="grpo rloo sdpo", cadence="rollout", label="component")


class AdvantageEvent(Event):
    """Advantages as the loss sees them."""

    family: ClassVar[str] = "advantage"
    mean: float | None = signal("ratio", "Mean advantage of the batch; 0 by construction in GRPO.", emitters="grpo rloo ppo async_grpo a2po distillation", cadence="rollout")
    std: float | None = signal("ratio", "Standard deviation of the advantages of the batch.", low=0, emitters="grpo rloo ppo async_grpo distillation", cadence="rollout")
    abs_max: float | None = signal("ratio", "Largest absolute advantage; at most (G-1)/sqrt(G) when scaled by the group's own std.", low=0, emitters="grpo rloo ppo async_grpo distillation", cadence="rollout")
    group_mean_error: float | None = signal("ratio", "Largest distance of a prompt group's mean advantage from 0, over the root mean square of all advantages: 0 up to rounding when each is measured against its own group. This rank.", low=0, emitters="grpo rloo", cadence="rollout")


class PolicyEvent(Event):
    """The policy against its reference, its own past and its clip range."""

    family: ClassVar[str] = "policy"
    entropy: float | None = signal("nats", "Mean token entropy of the policy over completion tokens.", low=0, emitters="grpo rloo ppo sft dpo distillation async_grpo gkd sdft sdpo", per="token")
    kl_ref: float | None = signal("nats", "KL to the REFERENCE policy per token (GRPO: k3 estimate; only logged when beta > 0).", emitters="grpo rloo", per="token")
    kl_ref_sequence: float | None = signal("nats", "KL to the reference summed over a sequence (PPO, RLOO, online DPO); a first-order estimate, so it may be negative.", emitters="ppo rloo online_dpo nash_md", per="sequence")
    kl_old: float | None = signal("nats", "KL to the policy that generated the batch, within the update (PPO approxkl).", emitters="ppo verl", per="token")
    clip_fraction: float | None = signal("fraction", "Share of tokens where the clip is ACTIVE for the sign of the advantage (TRL clip_ratio/region_mean): a lower bound of ratio_outside_fraction.", low=0, high=1, emitters="grpo rloo ppo async_grpo", per="either")
    clip_fraction_low: float | None = signal("fraction", "Share of tokens with ratio < 1-eps and a negative advantage.", low=0, high=1, emitters="grpo rloo async_grpo", per="either")
    clip_fraction_high: float | None = signal("fraction", "Share of tokens with ratio > 1+eps and a positive advantage.", low=0, high=1, emitters="grpo rloo async_grpo", per="either")
    ratio_outside_fraction: float | None = signal("fraction", "Share of completion tokens (sequences when sequence-level) whose importance ratio lies outside [1-eps_low, 1+eps_high], from per-token ratios.", low=0, high=1, emitters="grpo rloo async_grpo distillation", per="either")
    ratio_mean: float | None = signal("ratio", "Mean importance ratio new/old policy over completion tokens.", low=0, emitters="grpo rloo ppo async_grpo distillation", per="either")
    ratio_max: float | None = signal("ratio", "Largest importance ratio of the step.", low=0, emitters="grpo rloo ppo async_grpo distillation", per="either")
    sampling_gap: float | None = signal("nats", "Mean over completion tokens of -log p of the sampled token minus the policy's entropy at its place, before the policy is updated on them: 0 when the policy itself sampled them, above when the sampler is hotter, older, another model or barred from likely tokens, below when it is colder. Async GRPO, whose samples may be some updates old: each token weighted by its importance ratio, which takes their age out.", emitters="grpo rloo async_grpo distillation", cadence="rollout", per="token")
    sampling_gap_error: float | None = signal("nats", "Standard error of sampling_gap: what chance alone gives it in one batch.", low=0, emitters="grpo rloo async_grpo distillation", cadence="rollout", per="token")
    clip_low: float | None = signal("ratio", "Lower end of the clip range, 1 - epsilon; below 0 nothing is ever clipped there.", high=1, emitters="grpo rloo ppo async_grpo sdpo", cadence="once")
    clip_per_sequence: float | None = signal("fraction", "1 when the clip range applies to one ratio per sequence (RLOO, GSPO), else not given.", low=0, high=1, emitters="grpo rloo", cadence="once")
    clip_high: float | None = signal("ratio", "Upper end of the clip range, 1 + epsilon_high (CISPO: epsilon_high).", low=0, emitters="grpo rloo ppo async_grpo sdpo", cadence="once")


class SamplerEvent(Event):
    """Trainer against rollout engine: the same weights should give the same log-probabilities."""

    family: ClassVar[str] = "sampler"
    _on: ClassVar[str] = "grpo rloo"
    logp_difference_mean: float | None = signal("nats", "Mean absolute difference of trainer and sampler log-prob of sampled tokens.", low=0, emitters=_on, cadence="rollout", per="token")
    logp_difference_max: float | None = signal("nats", "Largest absolute difference of trainer and sampler log-prob.", low=0, emitters=_on, cadence="rollout", per="token")
    is_ratio_mean: float | None = signal("ratio", "Mean trainer/sampler importance ratio AFTER clamping or masking.", low=0, emitters=_on, cadence="rollout", per="either")
    is_ratio_min: float | None = signal("ratio", "Smallest trainer/sampler importance ratio.", low=0, emitters=_on, cadence="rollout", per="either")
    is_ratio_max: float | None = signal("ratio", "Largest trainer/sampler importance ratio.", low=0, emitters=_on, cadence="rollout", per="either")
    masked_fraction: float | None = signal("fraction", "Share of tokens (sequences, with a weight per sequence) that the correction for the sampler masks: their weight is 0 and they teach nothing.", low=0, high=1, emitters=_on, cadence="rollout", per="either")
    effective_fraction: float | None = signal("fraction", "Kish's effective share of the batch under the weights that correct for the sampler, (sum w)^2 / (n sum w^2): 1 when all weigh the same.", low=0, high=1, emitters=_on, cadence="rollout", per="either")
    kl: float | None = signal("nats", "KL to the SAMPLER policy per token, k3 estimate from its own log-probabilities (async GRPO `kl`).", emitters="async_grpo", per="token")


class CompletionEvent(Event):
    """What the policy writes: length, termination, repetition."""

    family: ClassVar[str] = "completion"
    _on: ClassVar[str] = "grpo rloo ppo online_dpo distillation async_grpo gkd sdft sdpo"
    length_mean: float | None = signal("tokens", "Mean completion length.", low=0, emitters=f"{_on} a2po", cadence="rollout", per="sequence")
    length_min: float | None = signal("tokens", "Shortest completion.", low=0, emitters=f"{_on} a2po", cadence="rollout", per="sequence")
    length_max: float | None = signal("tokens", "Longest completion.", low=0, emitters=f"{_on} a2po", cadence="rollout", per="sequence")
    terminated_length_mean: float | None = signal("tokens", "Mean length of completions that ended by themselves; TRL writes 0 when none did.", low=0, emitters=_on, cadence="rollout", per="sequence")
    truncated_fraction: float | None = signal("fraction", "Share of completions that hit the token cap without an end token.", low=0, high=1, emitters=f"{_on} a2po xpo nash_md", cadence="rollout")
    length_cap: float | None = signal("tokens", "max_completion_length: the cap that truncates.", low=0, emitters=f"{_on} a2po xpo nash_md", cadence="once", per="sequence")
    repetition_fraction: float | None = signal("fraction", "Share of a completion's 4-grams that repeat an earlier one, mean over completions.", low=0, high=1, emitters=_on, cadence="rollout")
    distinct_fraction: float | None = signal("fraction", "Distinct completions divided by completions, mean over prompt groups.", low=0, high=1, emitters=_on, cadence="rollout")
    improbable_copies_fraction: float | None = signal("fraction", "Share of answers that have so many copies, token by token, among the answers to the same prompt that independent draws from the policy would give them with a chance below 1e-4: C(n, k) p**k for k copies among n other answers, p being the policy's probability of the answer. Of the answers of one generation batch that the first update on it sees.", low=0, high=1, emitters="grpo rloo async_grpo distillation", cadence="rollout")
    group_overlap: float | None = signal("fraction", "How alike two answers to one prompt are: tokens that stand in the same order in both (longest common subsequence, of the first 256 tokens), over the mean of their lengths; mean over pairs of a prompt group. 1 for copies.", low=0, high=1, emitters="grpo rloo sdpo", cadence="rollout")
    drift: float | None = signal("nats", "Jensen-Shannon divergence of the newest completions (of 128 prompts) from the run's first, beyond what sampling explains; of tokens or of lengths, whichever stands out more. This rank.", low=0, high=0.7, emitters="grpo rloo", cadence="sample")
    drift_ratio: float | None = signal("ratio", "The divergence of completions over what sampling alone exceeds once in 10,000 looks.", low=0, emitters="grpo rloo", cadence="sample")
    counted_padding_fraction: float | None = signal("fraction", "Of the tokens that the trainer counts as answer, the share that nobody sampled: the run of padding at the end of an answer, behind the token at which the sampler ended it (eos_token_id of its generation config). 0 where the trainer knows that token. This rank.", low=0, high=1, emitters="grpo rloo distillation", cadence="rollout")
    empty_fraction: float | None = signal("fraction", "Share of completions without any token before the end token.", low=0, high=1, emitters=_on, cadence="rollout")
    tool_call_rate: float | None = signal("ratio", "Tool calls per completion.", low=0, emitters=_on, cadence="rollout", per="sequence")
    tool_failure_fraction: float | None = signal("fraction", "Share of tool calls that failed.", low=0, high=1, emitters=_on, cadence="rollout")


class PreferenceEvent(Event):
    """Chosen against rejected (DPO, KTO, ORPO, CPO, online DPO, reward models).

    Rewards that compare with a reference (DPO, KTO) and rewards that do not (ORPO, CPO, TPO) are different quantities on
    different scales and never share a name.
    """

    family: ClassVar[str] = "preference"
    _ref: ClassVar[str] = "dpo kto bco online_dpo xpo"
    _free: ClassVar[str] = "orpo cpo tpo"
    differing_tokens: float | None = signal("tokens", "Median tokens in which the two answers of a pair differ: what is left of the longer one without the beginning and the end that they share. Of the newest 16 to 256 pairs whose answers differ, this rank.", low=0, emitters="dpo orpo cpo tpo", per="sequence")
    differing_fraction: float | None = signal("fraction", "Median share of the longer answer's tokens that these are.", low=0, high=1, emitters="dpo orpo cpo tpo", per="sequence")
    reward_chosen: float | None = signal("reward", "Mean implicit reward of chosen responses: beta * (log pi - log pi_ref), summed over tokens.", emitters=_ref, per="sequence")
    reward_rejected: float | None = signal("reward", "Mean implicit reward of rejected responses, as reward_chosen.", emitters=_ref, per="sequence")
    margin: float | None = signal("reward", "Mean of chosen minus rejected reward; of a reward model: of its raw scores.", emitters=f"{_ref} reward", per="sequence")
    free_reward_chosen: float | None = signal("reward", "Implicit reward of chosen responses WITHOUT a reference: beta * log pi (ORPO: of the mean per token). Not comparable with reward_chosen.", emitters=_free, per="either")
    free_reward_rejected: float | None = signal("reward", "As free_reward_chosen, of rejected responses.", emitters=_free, per="either")
    free_margin: float | None = signal("reward", "Mean of chosen minus rejected reference-free reward; in ORPO about 100 times smaller than DPO's margin.", emitters=_free, per="either")
    accuracy: float | None = signal("fraction", "Share of pairs in which chosen beats rejected (strictly: ties count as lost); 0 on DPO's first row.", low=0, high=1, emitters="dpo orpo cpo tpo reward online_dpo xpo")
    logp_chosen: float | None = signal("nats", "Log-probability of chosen responses, summed over tokens (CPO, TPO: per token with the simpo, ipo and tpo-l losses).", emitters="dpo kto bco cpo tpo online_dpo", per="either")
    logp_rejected: float | None = signal("nats", "Log-probability of rejected responses, as logp_chosen.", emitters="dpo kto bco cpo tpo online_dpo", per="either")
    logp_token_chosen: float | None = signal("nats", "Log-probability per token of chosen responses (ORPO).", emitters="orpo", per="token")
    logp_token_rejected: float | None = signal("nats", "Log-probability per token of rejected responses (ORPO).", emitters="orpo", per="token")
    logratio_chosen: float | None = signal("nats", "Mean of log pi - log pi_ref of chosen responses, summed over tokens: change since the start where the reference is the starting policy.", emitters=_ref, per="sequence")
    logratio_rejected: float | None = signal("nats", "As logratio_chosen, of rejected responses.", emitters=_ref, per="sequence")
    reference_gap: float | None = signal("nats", "Largest mean of |log pi - log pi_ref|, chosen or rejected, in the first update: 0 when the reference is the starting policy.", low=0, emitters=_ref, cadence="once", per="sequence")
    log_odds: float | None = signal("nats", "Mean log odds of chosen over rejected responses (ORPO log_odds_chosen).", emitters="orpo", per="token")
    odds_loss: float | None = signal("loss", "Mean of -log sigmoid(log odds), without ORPO's weight beta; ln 2 when the model does not prefer either.", low=0, emitters="orpo")
    nll: float | None = signal("loss", "Negative log-likelihood of chosen responses per token, the supervised part of ORPO and CPO.", low=0, emitters="orpo cpo", per="token")
    margin_std: float | None = signal("reward", "Standard deviation of chosen minus rejected over the pairs of the step.", low=0, emitters="reward", per="sequence")
    negative_margin_fraction: float | None = signal("fraction", "Share of pairs in which rejected beats chosen; with ties this is less than 1 - accuracy.", low=0, high=1, emitters="reward")
    score_mean: float | None = signal("reward", "Mean score that a reward model in training gives to all responses; only differences have a meaning.", emitters="reward")
    score_bound_fraction: float | None = signal("fraction", "Share of the newest 64 to 256 scores of this rank that are within a thousandth of their range of the smallest or the largest of them.", low=0, high=1, emitters="reward")
    score_std: float | None = signal("reward", "Spread of the scores of all responses of the step.", low=0, emitters="reward")
    length_correlation: float | None = signal("ratio", "Correlation of score and response length, chosen and rejected each around their own mean: what length explains beyond the preference.", low=-1, high=1, emitters="reward")
    kl_baseline: float | None = signal("nats", "KTO's clamped batch estimate of KL to the reference: zeros are censored values.", low=0, emitters="kto", per="sequence")
    kl_zero_fraction: float | None = signal("fraction", "Share of this step's micro-batches whose KL estimate was clamped at 0 (KTO).", low=0, high=1, emitters="kto")
    desirable_fraction: float | None = signal("fraction", "Share of desirable examples in this step's batches, this rank (KTO, BCO).", low=0, high=1, emitters="kto bco")
    one_class_fraction: float | None = signal("fraction", "Share of this step's micro-batches with only desirable or only undesirable examples, this rank.", low=0, high=1, emitters="kto bco")
    identical_fraction: float | None = signal("fraction", "Share of pairs whose chosen and rejected tokens are equal after truncation, this rank.", low=0, high=1, emitters="reward dpo orpo cpo tpo")
    empty_fraction: float | None = signal("fraction", "Share of responses of which truncation left no token, this rank.", low=0, high=1, emitters="dpo kto bco orpo cpo tpo")
    longer_chosen_fraction: float | None = signal("fraction", "Share of the step's pairs whose chosen response has more tokens than the rejected one; equal lengths count half. This rank.", low=0, high=1, emitters="reward dpo orpo cpo tpo")
    margin_length_correlation: float | None = signal("ratio", "Correlation of the implicit reward of chosen minus rejected with the difference of their lengths, over the newest 64 to 256 pairs of this rank.", low=-1, high=1, emitters="dpo orpo cpo tpo")
    shorter_chosen_accuracy: float | None = signal("fraction", "Of those pairs whose chosen response is the shorter one (16 at least): share in which chosen beats rejected.", low=0, high=1, emitters="dpo orpo cpo tpo")
    chosen_commonest_fraction: float | None = signal("fraction", "Share of the newest 64 to 512 chosen responses of this rank that are the commonest of them, token by token.", low=0, high=1, emitters="dpo orpo cpo tpo")
    score_margin: float | None = signal("score", "Score of the better minus score of the worse sample of a pair, mean over pairs (online DPO; XPO: policy minus reference).", emitters="online_dpo xpo")
    tied_fraction: float | None = signal("fraction", "Share of sampled pairs whose two scores are equal: their order is arbitrary.", low=0, high=1, emitters="online_dpo")


class ValueEvent(Event):
    """Critic of PPO-like trainers."""

    family: ClassVar[str] = "value"
    loss: float | None = signal("loss", "Value function loss.", low=0, emitters="ppo verl")
    clip_fraction: float | None = signal("fraction", "Share of value predictions clipped.", low=0, high=1, emitters="ppo verl")
    explained_variance: float | None = signal("ratio", "1 - Var(return - value)/Var(return) of the rollout; 0 is a critic that says the same everywhere. TRL's PPO: the return is taken as the score.", high=1, emitters="ppo verl")
    grad_norm: float | None = signal("norm", "Gradient norm of the critic.", low=0, emitters="ppo verl")


class DistillEvent(Event):
    """Student against teacher."""

    family: ClassVar[str] = "distill"
    _self: ClassVar[str] = "sdft sdpo"
    _any: ClassVar[str] = "gkd distillation sdft sdpo"
    divergence: float | None = signal("nats", "Divergence of student and teacher per token of the loss; which one is said by `beta`.", low=0, emitters=_any, per="token")
    beta: float | None = signal("ratio", "Which divergence: 0 forward KL (teacher to student), 1 reverse KL (student to teacher), between them generalised JSD, which is at most H(beta).", low=0, high=1, emitters=_any, cadence="once")
    on_policy_fraction: float | None = signal("fraction", "Share of micro-batches that the student wrote; the rest comes from the data set or the teacher.", low=0, high=1, emitters="gkd distillation")
    teacher_surprise: float | None = signal("ratio", "Teacher's mean negative log-probability of the tokens that are trained on over ln(vocabulary): 1 is a uniform guess.", low=0, emitters=_any, per="token")
    teacher_distance: float | None = signal("ratio", "Distance of the student's weights to those of a teacher that was made from it, over the norm of the teacher's; of 8 parameters. 0 when the teacher is the student.", low=0, emitters=_self)
    active_fraction: float | None = signal("fraction", "Share of samples that are distilled at all: with a success or feedback in the teacher's prompt (SDPO), or kept by the filter (SSD).", low=0, high=1, emitters=_self, cadence="rollout")
    success_group_fraction: float | None = signal("fraction", "Share of prompt groups with a rollout at or above success_reward_threshold.", low=0, high=1, emitters="sdpo", cadence="rollout")
    success_sample_fraction: float | None = signal("fraction", "Share of samples for which another rollout of the group was a success.", low=0, high=1, emitters="sdpo", cadence="rollout")
    feedback_fraction: float | None = signal("fraction", "Share of samples that came with feedback.", low=0, high=1, emitters="sdpo", cadence="rollout")
    feedback_used_fraction: float | None = signal("fraction", "Share of samples whose feedback went into the teacher's prompt.", low=0, high=1, emitters="sdpo", cadence="rollout")
    logp_gap: float | None = signal("nats", "Mean absolute difference of the student's and the teacher's log-prob of sampled tokens (IW-OPD; teacher servers).", low=0, emitters=_any, per="token")
    on_policy_loss: float | None = signal("loss", "Loss on the student's own samples (GOLD, IW-OPD; rounded to 4 decimals).", emitters="gkd distillation")
    off_policy_loss: float | None = signal("loss", "Loss on the data set's answers (GOLD, IW-OPD; rounded to 4 decimals).", emitters="gkd distillation")
    matched_loss: float | None = signal("loss", "GOLD across tokenizers: loss on tokens that both vocabularies have.", emitters="gkd")
    unmatched_loss: float | None = signal("loss", "GOLD across tokenizers: loss on tokens that only one vocabulary has.", emitters="gkd")


class TokenEvent(Event):
    """Supervised token statistics."""

    family: ClassVar[str] = "token"
    accuracy: float | None = signal("fraction", "Share of label tokens that are the argmax prediction.", low=0, high=1, emitters="sft dpo distillation")
    label_fraction: float | None = signal("fraction", "Share of predictable tokens (all but the first of a sequence, no padding) that carry a label.", low=0, high=1, emitters="sft gkd")
    unlabelled_batch_fraction: float | None = signal("fraction", "Share of the step's micro-batches without a single label.", low=0, high=1, emitters="sft gkd")
    unlabelled_sequence_fraction: float | None = signal("fraction", "Share of sequences (documents, when packed) without a single label.", low=0, high=1, emitters="sft gkd")
    end_label_fraction: float | None = signal("fraction", "Share of labelled sequences with an end token among their labels; those cut at max_length are left out. Where a turn was opened behind the last end token and goes on to the end of the sequence, with labels, the end tokens are those of earlier turns and do not count (unless all such sequences are of one length: blocks of text).", low=0, high=1, emitters="sft gkd")
    cut_fraction: float | None = signal("fraction", "Share of labelled sequences that are as long as max_length and do not close with an end token.", low=0, high=1, emitters="sft gkd")
    pad_label_fraction: float | None = signal("fraction", "Share of labels that are padding: masked out, or pad tokens at the end of a row (behind the first two, where the pad token ends an answer).", low=0, high=1, emitters="sft gkd")
    commonest_answer_fraction: float | None = signal("fraction", "Share of the newest 64 to 512 labelled sequences of this rank whose labels are the commonest of them, token by token.", low=0, high=1, emitters="sft gkd")
    label_shift: float | None = signal("tokens", "How many tokens behind the token that is read the one lies that the model is trained to write there: 1 in sound training, 0 when it learns to repeat what it reads, 2 when it skips one. From how labels lie on the tokens, and from the cross entropy that the loss is; told where both are plain.", emitters="sft transformers", cadence="sample")
    doubled_template_fraction: float | None = signal("fraction", "Share of sequences (of the first micro-batch, or of a generation batch's prompts) that begin with two BOS tokens or open a turn inside an open turn.", low=0, high=1, emitters="sft gkd dpo kto orpo cpo tpo bco reward grpo rloo online_dpo distillation sdpo")


class MoeEvent(Event):
    """Mixture-of-experts routers: tokens that were trained on in one step, padding left out, this rank."""

    family: ClassVar[str] = "moe"
    aux_loss: float | None = signal("loss", "Load-balancing auxiliary loss before its coefficient; top_k when balanced, in models of transformers.")
    router_entropy: float | None = signal("nats", "Mean entropy of the softmax over a router's logits, mean of the layers; ln(experts) when undecided.", low=0, per="token")
    max_load_fraction: float | None = signal("fraction", "Share of tokens that the busiest expert received, in the layer where it is largest.", low=0, high=1)
    min_load_fraction: float | None = signal("fraction", "Share of tokens that the idlest expert received, in the layer where it is smallest.", low=0, high=1)
    fair_load_fraction: float | None = signal("fraction", "Experts per token over experts: the share of tokens of each expert when the load is even.", low=0, high=1, cadence="once")
    load_imbalance: float | None = signal("fraction", "(share of the busiest expert - fair share) / (1 - fair share), mean of the layers: 0 even, 1 when one expert gets every token.", low=0, high=1)
    dead_expert_fraction: float | None = signal("fraction", "Share of experts, all layers, that got less than 1% of a fair share of the tokens of the last ten steps.", low=0, high=1)
    dropped_token_fraction: float | None = signal("fraction", "Share of a router's picks that were dropped for lack of capacity; only from routers that hand out a mask (Switch).", low=0, high=1)


class AdapterEvent(Event):
    """Low-rank adapters (LoRA, QLoRA): s*B@A beside a frozen weight W."""

    family: ClassVar[str] = "adapter"
    b_norm: float | None = signal("norm", "Frobenius norm of B, mean of the adapted modules; 0 in a new adapter.", low=0)
    still_fraction: float | None = signal("fraction", "Share of adapted modules whose B has exactly the norm that it had when training began: they learn nothing.", low=0, high=1)
    effective_rank: float | None = signal("count", "exp of the entropy of the normalised singular values of B@A, mean of up to 16 modules, every ten updates: 1 to r.", low=1)
    delta_ratio: float | None = signal("ratio", "Norm of s*B@A over the norm of W, mean of up to 16 modules, every ten updates; not where W is quantised.", low=0)
    trainable_fraction: float | None = signal("fraction", "Trainable parameters over all parameters of the model.", low=0, high=1, cadence="once")


class HiddenEvent(Event):
    """The last hidden states of the model, of 64 tokens every ten updates; in RL those of prompts."""

    family: ClassVar[str] = "hidden"
    norm: float | None = signal("norm", "Median norm of the states that go into the final norm.", low=0, cadence="sample")
    effective_rank: float | None = signal("count", "exp of the entropy of the normalised singular values of the states behind the final norm, their mean taken off: directions in use, 1 to 63.", low=0, cadence="sample")
    repeat_difference: float | None = signal("ratio", "Relative difference of the last states of rows that begin with the same token, at that token, median over rows: 0 but for rounding where no dropout is active.", low=0, cadence="sample")
    norm_start: float | None = signal("norm", "The norm at the first update, before any weight changed.", low=0, cadence="once")
    rank_start: float | None = signal("count", "The effective rank at the first update, before any weight changed.", low=0, cadence="once")


class RolloutEvent(Event):
    """Asynchronous rollouts: queue, staleness, weight syncs. Rank 0 alone holds the queue."""

    family: ClassVar[str] = "rollout"
    _on: ClassVar[str] = "async_grpo distillation"
    queue_size: float | None = signal("count", "Samples left in the queue after one was taken, mean over the samples taken (TRL 1.0 to 1.10 logs it where the worker fills it).", low=0, emitters=_on)
    queue_seconds: float | None = signal("seconds", "Time a taken sample had lain in the queue, mean. Not the trainer's waiting: that is time.data_wait_seconds.", low=0, emitters=_on)
    backpressure_seconds: float | None = signal("seconds", "How long the worker was blocked by a full queue, mean of the blocks since the last log row; missing when there was none.", low=0, emitters=_on, cadence="sample")
    staleness: float | None = signal("count", "Policy versions between sampler and trainer when a sample was taken, mean over the samples taken. A version is one weight sync.", low=0, emitters=_on)
    staleness_max: float | None = signal("count", "Largest staleness of a sample taken in this step.", low=0, emitters=_on)
    dropped_fraction: float | None = signal("fraction", "Samples dropped for staleness above max_staleness over all that left the queue in this step.", low=0, high=1, emitters=_on)
    dropped_stale: float | None = signal("count", "Samples dropped for staleness (a sum over the log window in a log row); TRL logs it only when there were some.", low=0, emitters=_on)
    dropped_oversize: float | None = signal("count", "Samples dropped because they alone exceed token_budget.", low=0, emitters=_on, cadence="sample")
    samples: float | None = signal("count", "Samples trained in one optimizer step.", low=0, emitters=_on)
    sync_seconds: float | None = signal("seconds", "Time one weight sync took, the trainer standing still.", low=0, emitters=_on, cadence="sample")
    sync_changed: float | None = signal("fraction", "1 when the weights handed to the sampler differ from those of the sync before, 0 when they do not although the trainer's own do (or nothing was taken).", low=0, high=1, emitters=_on, cadence="sample")


class MemoryEvent(Event):
    """Device memory of this rank."""

    family: ClassVar[str] = "memory"
    vram_used_fraction: float | None = signal("fraction", "Peak device memory in use since the last step (torch peak reserved, or NVML used when other processes share the card) over total.", low=0, high=1, cadence="update")
    vram_static_fraction: float | None = signal("fraction", "Memory held between steps (weights, optimizer state, caches) over total, after the first full optimizer step.", low=0, high=1, cadence="update")
    vram_total_bytes: float | None = signal("bytes", "Total memory of the device.", low=0, cadence="once")
    vram_allocated_peak_bytes: float | None = signal("bytes", "torch.cuda.max_memory_allocated since the last step.", low=0)
    vram_reserved_bytes: float | None = signal("bytes", "torch.cuda.memory_reserved.", low=0)
    host_rss_bytes: float | None = signal("bytes", "Resident memory of this process.", low=0, cadence="sample")
    host_private_bytes: float | None = signal("bytes", "Resident memory of this process that no file backs; every ten updates, on Linux.", low=0, cadence="sample")
    host_available_bytes: float | None = signal("bytes", "Memory that the host, or the container, can still give; every ten updates, on Linux.", low=0, cadence="sample")
    vram_alloc_retries: float | None = signal("count", "Times since the start that torch found no room, freed its whole cache and asked the device again (torch.cuda.memory_stats).", low=0)
    vram_split_fraction: float | None = signal("fraction", "Share of the reserved device memory that lies unused in pieces of blocks in use, between steps: fragmentation.", low=0, high=1)


class DeviceEvent(Event):
    """The accelerator itself, from NVML."""

    family: ClassVar[str] = "device"
    utilization_fraction: float | None = signal("fraction", "Share of the sample period in which a kernel ran (NVML).", low=0, high=1, cadence="sample")
    temperature_celsius: float | None = signal("celsius", "GPU temperature (NVML).", cadence="sample")
    throttled: float | None = signal("fraction", "1 when NVML reports a thermal or power-brake slowdown, else 0.", low=0, high=1, cadence="sample")
    ecc_errors: float | None = signal("count", "Uncorrectable memory errors of the device since this process began to watch it (NVML, volatile ECC counters).", low=0, cadence="sample")


class TimeEvent(Event):
    """Where wall time goes."""

    family: ClassVar[str] = "time"
    step_seconds: float | None = signal("seconds", "Wall time of one optimizer step, this rank.", low=0)
    tokens_per_second: float | None = signal("rate", "Tokens processed per second.", low=0)
    samples_per_second: float | None = signal("rate", "Training samples per second.", low=0)
    generation_seconds: float | None = signal("seconds", "Time spent generating in one step.", low=0, emitters="grpo rloo ppo verl gkd distillation sdft sdpo online_dpo")
    data_wait_seconds: float | None = signal("seconds", "Time waiting for the data loader in one step.", low=0)
    saving_fraction: float | None = signal("fraction", "Share of the wall time since the start of this process that went to checkpoints, told after each.", low=0, high=1, cadence="sample")
    evaluating_fraction: float | None = signal("fraction", "Share of the wall time since the start of this process that went to evaluations, told after each.", low=0, high=1, cadence="sample")
    rank_step_seconds: dict[str, float] | None = signal("seconds", "Wall time of one optimizer step on one rank.", low=0, label="rank")
    rank_own_seconds: dict[str, float] | None = signal("seconds", "Part of a step that one rank did not spend in calls which wait for other ranks, as far as they can be told from outside.", low=0, label="rank")
    rank_lag_fraction: dict[str, float] | None = signal("fraction", "Own time of one rank beyond the median of the others', over the step: the share for which they wait for it.", low=0, high=1, label="rank")


class DataEvent(Event):
    """What goes in."""

    family: ClassVar[str] = "data"
    _on: ClassVar[str] = "sft gkd dpo kto bco orpo cpo tpo reward"
    prompt_length_mean: float | None = signal("tokens", "Mean prompt length.", low=0, per="sequence")
    prompt_length_max: float | None = signal("tokens", "Longest prompt.", low=0, per="sequence")
    padding_fraction: float | None = signal("fraction", "Share of input tokens that are padding.", low=0, high=1)
    drift: float | None = signal("nats", "Jensen-Shannon divergence of the newest 128 prompts (or training sequences) from the run's first, beyond what sampling explains; of tokens or of lengths, whichever stands out more. This rank.", low=0, high=0.7, cadence="sample")
    drift_ratio: float | None = signal("ratio", "The divergence of prompts over what sampling alone exceeds once in 10,000 looks.", low=0, cadence="sample")
    prompt_frame_lost: float | None = signal("fraction", "Share of the step's prompts without the tokens that the run's first prompts (32 different ones, or 64) all begin and end with: the chat template, and a system prompt that all share. This rank.", low=0, high=1, emitters="grpo rloo async_grpo distillation", cadence="rollout")
    rows_given: float | None = signal("count", "Rows of the training set before the trainer dropped those that do not fit max_length.", low=0, emitters="sft dpo tpo kto reward", cadence="once")
    rows_kept: float | None = signal("count", "Rows of the training set that are trained on.", low=0, emitters="sft dpo tpo kto reward", cadence="once")
    untrained_token_fraction: float | None = signal("fraction", "Share of the first update's tokens, padding left out, whose row of the input embedding is shorter than a thousandth of the median row.", low=0, high=1, emitters="sft gkd", cadence="once")
    invalid_token_fraction: float | None = signal("fraction", "Share of the update's token ids, padding included, that the model's input embedding has no row for: negative ones and those beyond the table. Not of batches with images. This rank.", low=0, high=1, emitters=_on)
    negative_token_fraction: float | None = signal("fraction", "Share of the update's token ids that are negative: -100 is the mask of a label. This rank.", low=0, high=1, emitters=_on)
    prompt_commonest_fraction: float | None = signal("fraction", "Share of the training rows looked at (4,000, spread over the data set) whose prompt is the commonest one, token by token: the tokens before the first label, or the column of prompt ids.", low=0, high=1, emitters="sft dpo kto bco orpo cpo tpo", cadence="once")
    question_absent_fraction: float | None = signal("fraction", "Share of rows whose tokens do not hold what the row asks: neither end of the user's first or last turn. Of 32 rows spread over the data set where it kept the texts and their questions differ; of the first rollouts' prompts.", low=0, high=1, emitters="sft dpo kto bco orpo cpo tpo reward grpo rloo distillation", cadence="once")
    generation_prompt_absent_fraction: float | None = signal("fraction", "Share of the first rollouts' prompts (16 different ones at most) in which the chat template's frame of a user's turn stands and no header of the assistant's turn behind the last one: what add_generation_prompt=True writes. Only where the template has such a header.", low=0, high=1, emitters="grpo rloo online_dpo distillation", cadence="once")
    prompt_repeated_fraction: float | None = signal("fraction", "Share of answers that begin with the question although the prompt, which has a column of its own, stands before them already. Of 32 rows spread over the data set, where it kept the texts and their questions differ; by the texts and by the tokens that were made of them.", low=0, high=1, emitters="sft dpo kto bco orpo cpo tpo reward", cadence="once")
    pair_reversed_fraction: float | None = signal("fraction", "Share of the training pairs looked at (all, or the first 50 million tokens) whose two answers are there in the other order as well, behind the same prompt.", low=0, high=1, emitters="dpo orpo cpo tpo reward", cadence="once")
    rows_looked_at: float | None = signal("count", "Training rows whose tokens were compared before the first update: all, or the first 50 million tokens.", low=0, emitters=_on, cadence="once")
    row_tokens: float | None = signal("tokens", "Median tokens of the training rows looked at, prompt and all answers of a row together.", low=0, emitters=_on, cadence="once", per="sequence")
    duplicate_fraction: float | None = signal("fraction", "Share of the training rows looked at whose tokens are those of an earlier one.", low=0, high=1, emitters=_on, cadence="once")
    repeated_fraction: float | None = signal("fraction", "Share of the training rows looked at that are there more than once: the share of evaluation rows that a clean split of the same data would have in common with them by chance.", low=0, high=1, emitters=_on, cadence="once")
    most_copies: float | None = signal("count", "How often the commonest of the training rows looked at is there.", low=1, emitters=_on, cadence="once")
    eval_overlap_fraction: float | None = signal("fraction", "Share of evaluation rows whose tokens are those of a training row (of those looked at), in the evaluation set where it is largest.", low=0, high=1, emitters=_on, cadence="once")
    eval_overlap_rows: float | None = signal("count", "Evaluation rows whose tokens are those of a training row, in the evaluation set where their share is largest.", low=0, emitters=_on, cadence="once")
    read_in_order: float | None = signal("fraction", "1 when the data loader reads the training rows from the first to the last, 0 when it shuffles or groups them.", low=0, high=1, emitters=_on, cadence="once")
    order_length_correlation: float | None = signal("ratio", "Rank correlation of a training row's length with its place in the data set (64 rows or more).", low=-1, high=1, emitters=_on, cadence="once")
    order_drift: float | None = signal("nats", "Jensen-Shannon divergence of the two stretches of 128 training rows, of four evenly spread over the data set, that differ most, beyond what sampling explains; of tokens or of lengths (256 rows or more).", low=0, high=0.7, emitters=_on, cadence="once")
    order_drift_ratio: float | None = signal("ratio", "That divergence over what sampling alone exceeds once in 10,000 looks: below 1 in a shuffled data set.", low=0, emitters=_on, cadence="once")
    order_class_runs: float | None = signal("ratio", "Stretches of one class (desirable, undesirable) in the data set over those of a shuffled one on the average: about 1 when mixed, near 0 when sorted.", low=0, high=2.1, emitters="kto bco", cadence="once")
    prompt_fraction: float | None = signal("fraction", "Share of the first training rows that is prompt: tokens where prompt and completion are apart (completion_mask), else characters of prompt and completion, or of a chat's turns that are not the assistant's.", low=0, high=1, emitters="sft", cadence="once")
    masked_token_fraction: float | None = signal("fraction", "Share of the tokens of the first training rows, as the trainer has prepared them, that are meant to carry no label.", low=0, high=1, emitters="sft gkd", cadence="once")
    masked_row_fraction: float | None = signal("fraction", "Share of the first training rows, as prepared, in which some token is meant to carry no label.", low=0, high=1, emitters="sft gkd", cadence="once")
    packed_row_gap: float | None = signal("nats", "Once a run, in the first batch with several rows in one sequence: mean absolute difference of the log-probability of a later row's tokens, its first left out, between the training's own pass and a pass of that row alone (the last three rows, 96 tokens of each at most): what the rows before it change.", low=0, emitters="sft transformers", cadence="once", per="token")
    packed_row_noise: float | None = signal("nats", "The same difference for the first row of that sequence, which has nothing before it: what precision, kernels and dropout change.", low=0, emitters="sft transformers", cadence="once", per="token")
    rank_exhausted: dict[str, float] | None = signal("fraction", "1 when the data of one rank ran out while another rank still got a batch, else 0.", low=0, high=1, label="rank")


class EvalEvent(Event):
    """Held-out measurements; never mixed with training values."""

    family: ClassVar[str] = "eval"
    loss: float | None = signal("loss", "Loss on the evaluation set.", cadence="eval")
    reward: float | None = signal("reward", "Mean training reward measured on the evaluation set.", cadence="eval")
    score: float | None = signal("score", "Held-out score from a checker that is not the training reward.", cadence="eval")
    accuracy: float | None = signal("fraction", "Preference or token accuracy on the evaluation set.", low=0, high=1, cadence="eval")
    margin: float | None = signal("reward", "Mean implicit reward of chosen (desirable) minus that of rejected (undesirable) responses on the evaluation set.", cadence="eval", per="sequence")
    score_fall: float | None = signal("score", "Best held-out score of the run so far minus the better one of the two newest, by HeldoutProbe.", low=0, cadence="eval")
    proxy_gain: float | None = signal("reward", "Mean training reward of the updates before this evaluation minus that before the best one, by HeldoutProbe.", cadence="eval")
    fall_chance: float | None = signal("fraction", "HeldoutProbe: bound on the chance that anywhere in the run two evaluations in a row fall so clearly, prompt by prompt against the best one, by luck; the least since the best.", low=0, high=1, cadence="eval")
    unearned_fraction: float | None = signal("fraction", "Share of training answers with the highest reward of the run to which HeldoutProbe's checker gives its lowest mark: they were paid for something else.", low=0, high=1, cadence="eval")
    unlearned: float | None = signal("nats", "Log-probability per token that answers have lost which the policy gave itself before training, by RetentionProbe: the forward KL from the start to the policy of now, by samples; below 0 where they are likelier now.", cadence="eval", per="token")
    length_mean: float | None = signal("tokens", "Mean length of the completions of HeldoutProbe.", low=0, cadence="eval", per="sequence")
    seconds: float | None = signal("seconds", "Time one evaluation by HeldoutProbe took, reward function included.", low=0, cadence="eval")


FAMILIES: tuple[type[Event], ...] = (
    RunEvent, OptimEvent, RewardEvent, AdvantageEvent, PolicyEvent, SamplerEvent, CompletionEvent, PreferenceEvent,
    ValueEvent, DistillEvent, TokenEvent, MoeEvent, AdapterEvent, HiddenEvent, RolloutEvent, MemoryEvent, DeviceEvent, TimeEvent, DataEvent, EvalEvent,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class SignalSpec:
    """One row of the catalogue; the attributes are those of `signal`."""

    name: str
    unit: str
    meaning: str
    low: float | None = None
    high: float | None = None
    emitters: tuple[str, ...] = ("any",)
    cadence: Cadence = "update"
    label: str | None = None
    per: Per = ""


def _specs() -> dict[str, SignalSpec]:
    specs = {}
    for model in FAMILIES:
        for name, info in model.model_fields.items():
            extra = info.json_schema_extra
            assert isinstance(extra, dict), f"{model.__name__}.{name} is not declared with signal()"
            full = f"{model.family}.{name}"
            values: dict[str, Any] = {**extra, "emitters": tuple(extra["emitters"])}  # type: ignore[arg-type]
            specs[full] = SignalSpec(name=full, meaning=info.description or "", **values)
    return specs


CATALOGUE: Mapping[str, SignalSpec] = _specs()
"""Every built-in signal by its dotted name. Users add their own with `custom_signal`."""

_CUSTOM_NAME = re.compile(r"custom\.[a-z][a-z0-9_]{0,60}")


def custom_signal(name: str, unit: str, meaning: str, *, low: float | None = None, high: float | None = None) -> SignalSpec:
    """Describe a signal of your own, named ``custom.<snake_case>``, for `Monitor(custom=[...])`.

    Raises:
        ValueError: If the name is not of that form.
    """
    if not _CUSTOM_NAME.fullmatch(name):
        msg = f"custom signal {name!r}: expected 'custom.<snake_case name>', for example 'custom.unit_tests_passed'"
        raise ValueError(msg)
    return SignalSpec(name=name, unit=unit, meaning=meaning, low=low, high=high, emitters=("user",))


def labelled(name: str, label: str, value: str) -> str:
    """Key of one series of a labelled signal: ``labelled("reward.component_mean", "component", "format")``."""
    return f"{name}{{{label}={value}}}"


def split_label(key: str) -> tuple[str, str | None, str | None]:
    """Inverse of `labelled`: signal name, label and value; both None for a plain signal."""
    if not key.endswith("}"):
        return key, None, None
    name, _, rest = key[:-1].partition("{")
    label, _, value = rest.partition("=")
    return name, label, value
