"""Which trainer wrote these metrics? Answered from the names that are present, never from a class or a version."""

from __future__ import annotations

from collections.abc import Iterable

_BASE = frozenset(
    {"loss", "grad_norm", "learning_rate", "epoch", "train_runtime", "train_loss", "train_samples_per_second", "total_flos"}
)


def _trl(keys: set[str], roots: set[str]) -> str | None:
    """TRL trainer, most specific mark first."""
    reward = "reward" in keys
    marks: tuple[tuple[bool, str], ...] = (
        ("log_odds_ratio" in keys, "orpo"),
        ("rewards/probabilities" in keys or "mixture_coef" in keys, "nash_md"),
        ("loss/xpo" in keys, "xpo"),
        ("policy/approxkl_avg" in keys or "loss/value_avg" in keys, "ppo"),
        ("objective/kl" in keys, "online_dpo"),
        ("self_distillation/policy_loss" in keys or "self_distillation/flat_group_fraction" in keys, "sdpo"),
        ("sdft" in roots or "self_distillation" in roots, "sdft"),
        ("v_star" in keys, "a2po"),
        ("ssd" in roots, "ssd"),
        ("iw_opd" in roots, "iw_opd"),
        ("matched_loss" in keys, "gold"),
        ("jsd" in keys and "perf" in roots, "distillation"),  # AsyncDistillation: the same to rules, with rollout signals beside
        (reward and ("sample" in roots or "perf" in roots or "ratio" in keys or "buffer_qsize" in keys), "async_grpo"),
        (reward and ("reward_std" in keys or "frac_reward_zero_std" in keys or "rewards" in roots), "grpo"),
        # With num_iterations > 1 a row can carry the loss side alone.
        ("frac_reward_zero_std" in keys or "reward_std" in keys or "clip_ratio/region_mean" in keys, "grpo"),
        ("rewards/chosen" in keys and "delta" in keys, "bco"),
        ("rewards/accuracies" in keys and "nll_loss" in keys, "cpo"),
        ("rewards/accuracies" in keys, "dpo"),
        ("rewards/chosen" in keys or "rewards/rejected" in keys, "kto"),
        ("margin" in keys or {"min_reward", "max_reward"} <= keys, "reward"),
        (bool({"on_policy_loss", "off_policy_loss"} & keys) or "completions" in roots, "distillation"),
        ("mean_token_accuracy" in keys, "sft"),
    )
    return next((name for hit, name in marks if hit), None)


def detect(names: Iterable[str]) -> tuple[str, str]:
    """Trainer and framework that log these names (without ``train/`` or ``eval_`` prefix); ``unknown`` where unclear."""
    keys = set(names)
    roots = {key.partition("/")[0] for key in keys if "/" in key}
    if "actor" in roots or ("critic" in roots and "response_length" in roots):
        return ("ppo" if "critic/vf_loss" in keys else "grpo"), "verl"
    if "rollout/ep_rew_mean" in keys:
        return "ppo", "sb3"
    if "policy_loss" in keys and ("actor_lr" in keys or "response_length" in keys):
        return ("ppo" if "critic_loss" in keys else "grpo"), "openrlhf"
    if "dpo_loss" in keys:
        return "dpo", "minimind"
    if "logits_loss" in keys and "epoch_time" in keys:
        return "sft", "minimind"
    trainer = _trl(keys, roots)
    if trainer is not None:
        return trainer, "trl"
    if "percentage" in keys and ("remaining_time" in keys or "elapsed_time" in keys):
        return "unknown", "llama-factory"
    if len(keys & _BASE) >= 3 or "train_runtime" in keys:
        return "unknown", "transformers"
    return "unknown", "unknown"
