"""Smaller tables: minimind, LLaMA-Factory, OpenRLHF, Stable-Baselines3. They add to the base table of transformers."""

from __future__ import annotations

from trainvitals.names.entry import Entry

MINIMIND: tuple[Entry, ...] = (
    Entry("dpo_loss", "", note="the same as loss without the router loss"),
    Entry("logits_loss", "", note="loss without the router loss"),
    Entry("aux_loss", "moe.aux_loss", note="0 on dense models"),
    Entry("epoch_time", "", note="minutes left of the epoch"),
)

LLAMA_FACTORY: tuple[Entry, ...] = (
    Entry("percentage", "", note="progress in percent"),
    Entry("elapsed_time", ""),
    Entry("remaining_time", ""),
    Entry("throughput", "time.tokens_per_second"),
    Entry("total_tokens", "run.tokens_seen"),
)

OPENRLHF: tuple[Entry, ...] = (
    Entry("policy_loss", "optim.loss"),
    Entry("reward", "reward.mean"),
    Entry("return", ""),
    Entry("group_reward_std", "reward.group_std_mean"),
    Entry("kl", "policy.kl_ref"),
    Entry("ppo_kl", "policy.kl_old"),
    Entry("vllm_kl", "sampler.kl"),
    Entry("entropy_loss", "policy.entropy", note="positive entropy"),
    Entry("ppo_clip_ratio", "policy.clip_fraction"),
    Entry("actor_grad_norm", "optim.grad_norm"),
    Entry("actor_lr", "optim.learning_rate"),
    Entry("critic_loss", "value.loss"),
    Entry("critic_lr", ""),
    Entry("response_length", "completion.length_mean"),
    Entry("total_length", ""),
    Entry("response_clip_ratio", "completion.truncated_fraction"),
    Entry("timing/step_total", "time.step_seconds"),
    Entry("timing/generation", "time.generation_seconds"),
)

SB3: tuple[Entry, ...] = (
    Entry("rollout/ep_rew_mean", "reward.mean", note="per episode"),
    Entry("rollout/ep_len_mean", "", note="environment steps, not tokens"),
    Entry("approx_kl", "policy.kl_old"),
    Entry("clip_fraction", "policy.clip_fraction"),
    Entry("entropy_loss", "policy.entropy", sign=-1, note="minus the entropy"),
    Entry("policy_gradient_loss", ""),
    Entry("value_loss", "value.loss"),
    Entry("explained_variance", "value.explained_variance"),
    Entry("time/fps", "", note="environment steps per second"),
    Entry("time/<rest>", ""),
    Entry("std", ""),
    Entry("clip_range", ""),
    Entry("n_updates", ""),
)
