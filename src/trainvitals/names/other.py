"""Smaller tables: minimind, LLaMA-Factory, OpenRLHF, Stable-Baselines3. They add to the base table of transformers."""

from __future__ import annotations

from trainvitals.names.entry import Entry

MINIMIND: tuple[Entry, ...] = (
    Entry("dpo_loss", "", note="the same as loss without the router loss"),
    Entry("logits_loss", "", note="loss without the router loss"),
    Entry("aux_loss", "moe.aux_loss", "loss", note="0 on dense models"),
    Entry("epoch_time", "", note="minutes left of the epoch"),
)

LLAMA_FACTORY: tuple[Entry, ...] = (
    Entry("percentage", "", note="progress in percent"),
    Entry("elapsed_time", ""),
    Entry("remaining_time", ""),
    Entry("throughput", "time.tokens_per_second", "rate"),
    Entry("total_tokens", "run.tokens_seen", "tokens"),
)

OPENRLHF: tuple[Entry, ...] = (
    Entry("policy_loss", "optim.loss", "loss"),
    Entry("reward", "reward.mean", "reward"),
    Entry("return", ""),
    Entry("group_reward_std", "reward.group_std_mean", "reward"),
    Entry("kl", "policy.kl_ref", "nats", "token"),
    Entry("ppo_kl", "policy.kl_old", "nats", "token"),
    Entry("vllm_kl", "sampler.kl", "nats", "token"),
    Entry("entropy_loss", "policy.entropy", "nats", "token", note="positive entropy"),
    Entry("ppo_clip_ratio", "policy.clip_fraction", "fraction", "token"),
    Entry("actor_grad_norm", "optim.grad_norm", "norm"),
    Entry("actor_lr", "optim.learning_rate", "rate"),
    Entry("critic_loss", "value.loss", "loss"),
    Entry("critic_lr", ""),
    Entry("response_length", "completion.length_mean", "tokens", "sequence"),
    Entry("total_length", ""),
    Entry("response_clip_ratio", "completion.truncated_fraction", "fraction"),
    Entry("timing/step_total", "time.step_seconds", "seconds"),
    Entry("timing/generation", "time.generation_seconds", "seconds"),
)

SB3: tuple[Entry, ...] = (
    Entry("rollout/ep_rew_mean", "reward.mean", "reward", note="per episode"),
    Entry("rollout/ep_len_mean", "", note="environment steps, not tokens"),
    Entry("approx_kl", "policy.kl_old", "nats", "token"),
    Entry("clip_fraction", "policy.clip_fraction", "fraction", "token", note="per action"),
    Entry("entropy_loss", "policy.entropy", "nats", "token", sign=-1, note="minus the entropy"),
    Entry("policy_gradient_loss", ""),
    Entry("value_loss", "value.loss", "loss"),
    Entry("explained_variance", "value.explained_variance", "ratio"),
    Entry("time/fps", "", note="environment steps per second"),
    Entry("time/<rest>", ""),
    Entry("std", ""),
    Entry("clip_range", ""),
    Entry("n_updates", ""),
)
