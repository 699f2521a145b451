"""What TRL's trainers log, 0.14 to 1.16, and what each name means there.

The same raw name has different meanings in different trainers (`kl`, `reward_std`, `clip_ratio`, `rewards/<x>`, `accuracy`),
so rows are keyed on the trainer, and the trainer is told by the metrics that are present, never by a class or a version.
`since`/`until` are documentation.
"""

from __future__ import annotations

from trainvitals.names.entry import Entry

GROUP = ("grpo", "rloo", "a2po")
"""Trainers that sample a group of completions per prompt and log `reward`."""
ONLINE = (*GROUP, "async_grpo", "sdpo")
REFERENCED = ("dpo", "kto", "bco", "online_dpo", "xpo")
"""Trainers whose implicit reward is beta * (log pi - log pi_ref)."""
NORMED = ("cpo", "tpo")
"""Trainers whose loss type decides whether log-probs are summed over a response or averaged."""
FREE = ("orpo", *NORMED)
"""Trainers whose implicit reward has no reference: other numbers on another scale."""
PAIRS = (*REFERENCED, *FREE, "nash_md")
"""Trainers that compare chosen with rejected responses."""
SUMMED = ("dpo", "kto", "bco", "online_dpo")
"""Trainers that log the log-probability summed over a response."""
TAUGHT = ("gkd", "distillation", "gold", "iw_opd")
"""Trainers with a teacher of its own; attached GOLD and IW-OPD call themselves `gkd`."""
SCORED = ("ppo", "online_dpo", "xpo", "nash_md")
"""Trainers whose names start with `objective/`."""

_ROLLOUT: tuple[Entry, ...] = (
    Entry("reward", "reward.mean", "reward", trainers=ONLINE, note="1.0 counts rows without any score as 0, 1.16 leaves them out"),
    Entry("reward_std", "reward.std", "reward", trainers=("grpo", "rloo"), since="0.27", note="whole batch; the numbers tell it from the older meaning"),
    Entry("reward_std", "reward.group_std_mean", "reward", trainers=("grpo", "rloo"), until="0.26", note="mean of the groups' own std"),
    Entry("reward_std", "reward.group_std_mean", "reward", trainers=("async_grpo",), note="mean of the groups' own std, unlike GRPO"),
    Entry("frac_reward_zero_std", "reward.group_zero_std_fraction", "fraction", trainers=GROUP, note="0 or 1 with scale_rewards='batch'"),
    Entry("rewards/<component>/mean", "reward.component_mean", "reward", trainers=ONLINE),
    Entry("rewards/<component>/std", "reward.component_std", "reward", trainers=ONLINE),
    Entry("rewards/<component>", "reward.component_mean", "reward", trainers=ONLINE, note="before 0.17, async GRPO, SDPO and Unsloth"),
    Entry("completions/mean_length", "completion.length_mean", "tokens", "sequence"),
    Entry("completions/min_length", "completion.length_min", "tokens", "sequence"),
    Entry("completions/max_length", "completion.length_max", "tokens", "sequence"),
    Entry("completion_length", "completion.length_mean", "tokens", "sequence", until="0.16", note="the old name of completions/mean_length"),
    Entry("completions/clipped_ratio", "completion.truncated_fraction", "fraction", note="1.0 knows one end token only: several look 100 % truncated"),
    Entry("completions/truncated_fraction", "completion.truncated_fraction", "fraction", note="experimental distillation"),
    Entry("completions/mean_terminated_length", "completion.terminated_length_mean", "tokens", "sequence", note="0 when nothing terminated: read as missing"),
    Entry("completions/min_terminated_length", "", note="0 when nothing terminated; no signal of its own"),
    Entry("completions/max_terminated_length", "", note="0 when nothing terminated; no signal of its own"),
    Entry("tools/call_frequency", "completion.tool_call_rate", "ratio", "sequence"),
    Entry("tools/failure_frequency", "completion.tool_failure_fraction", "fraction"),
    Entry("tools/loop_exhausted_frac", "", note="async worker"),
    Entry("step_time", "time.step_seconds", "seconds", note="this rank; generation and rewards included"),
)

_POLICY: tuple[Entry, ...] = (
    Entry("kl", "policy.kl_ref", "nats", "token", trainers=("grpo",), note="k3 estimate to the reference; only with beta != 0"),
    Entry("kl", "policy.kl_ref", "nats", "token", trainers=("rloo",), note="first-order estimate: may be negative"),
    Entry("kl", "sampler.kl", "nats", "token", trainers=("async_grpo",), note="to the ROLLOUT policy"),
    Entry("kl", "preference.kl_baseline", "nats", "sequence", trainers=("kto",), note="mismatched pairs, clamped at 0: zeros are censored"),
    Entry("entropy", "policy.entropy", "nats", "token", note="SFT 1.0 to 1.2 counts prompt tokens too"),
    Entry("clip_ratio/region_mean", "policy.clip_fraction", "fraction", "either", note="of sequences in RLOO and GSPO; only where the clip is active for the advantage's sign"),
    Entry("clip_ratio/low_mean", "policy.clip_fraction_low", "fraction", "either"),
    Entry("clip_ratio/high_mean", "policy.clip_fraction_high", "fraction", "either"),
    Entry("clip_ratio/low_min", "", note="over ranks until 1.8, over sequences since 1.9"),
    Entry("clip_ratio/high_max", "", note="over ranks until 1.8, over sequences since 1.9"),
    Entry("clip_ratio", "policy.clip_fraction", "fraction", "either", trainers=("grpo", "rloo"), until="1.13", note="before 0.17, then Liger only"),
    Entry("clip_ratio", "policy.ratio_outside_fraction", "fraction", "token", trainers=("async_grpo",), until="1.6", note="regardless of the advantage's sign"),
    Entry("ratio", "policy.ratio_mean", "ratio", "token", trainers=("async_grpo",)),
    Entry("cispo_clip_ratio", "policy.clip_fraction", "fraction", "either", trainers=("grpo",), note="loss_type cispo"),
    Entry("vespo/phi_seq_mean", "", note="loss_type vespo: a weight, no clip"),
    Entry("policy_loss", "", trainers=("grpo", "rloo"), note="loss without the entropy bonus"),
    Entry("entropy_coef", "", note="a setting"),
    Entry("advantages/mean", "advantage.mean", "ratio", trainers=GROUP, note="DPPO"),
    Entry("advantages/std", "advantage.std", "ratio", trainers=GROUP, note="DPPO"),
    Entry("prob_diff/<which>", "", note="DPPO"),
    Entry("mask_ratio/<which>", "", note="DPPO"),
    Entry("aux_loss", "moe.aux_loss", "loss", note="mixture-of-experts models only"),
    Entry("sampling/sampling_logp_difference/mean", "sampler.logp_difference_mean", "nats", "token"),
    Entry("sampling/sampling_logp_difference/max", "sampler.logp_difference_max", "nats", "token"),
    Entry("sampling/importance_sampling_ratio/min", "sampler.is_ratio_min", "ratio", "either", note="after clamping; masked counts as 0"),
    Entry("sampling/importance_sampling_ratio/mean", "sampler.is_ratio_mean", "ratio", "either", note="after clamping; masked counts as 0"),
    Entry("sampling/importance_sampling_ratio/max", "sampler.is_ratio_max", "ratio", "either", note="after clamping; masked counts as 0"),
)

ASYNC = ("async_grpo", "async_distillation", "distillation")
"""Trainers that may train from a queue; an attached AsyncDistillation calls itself `distillation`."""

_ASYNC: tuple[Entry, ...] = (
    Entry("sample/rollout_queue_size", "rollout.queue_size", "count", trainers=ASYNC, since="1.11", note="after a sample was taken"),
    Entry("buffer_qsize", "rollout.queue_size", "count", trainers=("async_grpo",), until="1.10", note="when the worker put the group in"),
    Entry("sample/time_in_queue_s", "rollout.queue_seconds", "seconds", trainers=ASYNC, since="1.11"),
    Entry("sample/staleness_mean", "rollout.staleness", "count", trainers=ASYNC, since="1.11"),
    Entry("sample/staleness_max", "rollout.staleness_max", "count", trainers=ASYNC, since="1.11"),
    Entry("sample/dropped_stale_total", "rollout.dropped_stale", "count", trainers=ASYNC, since="1.11", note="sum over the window; absent when 0"),
    Entry("batch/dropped_oversize_total", "rollout.dropped_oversize", "count", trainers=ASYNC, since="1.11", note="absent when 0"),
    Entry("batch/samples_per_step", "rollout.samples", "count", trainers=ASYNC, since="1.11"),
    Entry("rollout/backpressure_s", "rollout.backpressure_seconds", "seconds", trainers=ASYNC, since="1.11", note="per block; absent without one"),
    Entry("sample/<rest>", "", note="tokens per sample"),
    Entry("perf/weight_sync_s", "rollout.sync_seconds", "seconds", since="1.11"),
    Entry("weight_sync_time_s", "rollout.sync_seconds", "seconds", until="1.10"),
    Entry("perf/step_s", "time.step_seconds", "seconds", note="from one step's end to the next: the waiting for samples included"),
    Entry("perf/rollout_wait_s", "time.data_wait_seconds", "seconds", note="the trainer waited for an empty queue"),
    Entry("queue_wait_time_s", "time.data_wait_seconds", "seconds", until="1.10", note="mean per SAMPLE, so a lower bound of the step's wait"),
    Entry("training_tok/s", "time.tokens_per_second", "rate", until="1.10", note="mean of ratios, not a ratio of sums"),
    Entry("perf/trained_tok_s_wall_clock", "time.tokens_per_second", "rate", since="1.11"),
    Entry("batch/pad_frac", "data.padding_fraction", "fraction", note="between ranks; stripped before the forward pass"),
    Entry("perf/<rest>", "", note="timings of the parts, throughput of the forward pass, MFU"),
    Entry("batch/<rest>", "", note="packing of the batch"),
    Entry("rollout/<rest>", "", trainers=ASYNC, note="rollout worker: scoring, tokens per second, turns, retokenisation"),
    Entry("tools/<rest>", "", trainers=("async_grpo",), note="calls, failures and latency of each tool"),
    Entry("train_seq_len", "", until="1.10", note="longest sequence of the micro-batch"),
    Entry("forward_time_s", "", until="1.10"),
    Entry("generation_tok_per_s", "", until="1.10", note="of the worker, since its start"),
    Entry("scoring_time_ms", "", until="1.10"),
    Entry("wait_scoring_ms", "", until="1.10"),
    Entry("jsd", "distill.divergence", "nats", "token", trainers=("async_distillation", "distillation")),
    Entry("teacher_entropy", "", note="entropy of the teacher"),
    Entry("teacher_entropy/<teacher>", "", note="of one teacher of several"),
    Entry("teacher_jsd/<teacher>", "", note="divergence to one teacher of several"),
    Entry("teacher_token_frac/<teacher>", "", note="share of tokens that one teacher scored"),
)

_PREFERENCE: tuple[Entry, ...] = (
    Entry("rewards/chosen", "preference.reward_chosen", "reward", "sequence", trainers=REFERENCED, note="0 on the first row, before the policy has moved"),
    Entry("rewards/rejected", "preference.reward_rejected", "reward", "sequence", trainers=REFERENCED),
    Entry("rewards/margins", "preference.margin", "reward", "sequence", trainers=REFERENCED),
    Entry("rewards/chosen", "preference.free_reward_chosen", "reward", "token", trainers=("orpo",), note="beta times the MEAN log-prob"),
    Entry("rewards/rejected", "preference.free_reward_rejected", "reward", "token", trainers=("orpo",)),
    Entry("rewards/margins", "preference.free_margin", "reward", "token", trainers=("orpo",), note="about 100 times smaller than DPO's"),
    Entry("rewards/chosen", "preference.free_reward_chosen", "reward", "either", trainers=NORMED, note="beta times log-prob"),
    Entry("rewards/rejected", "preference.free_reward_rejected", "reward", "either", trainers=NORMED),
    Entry("rewards/margins", "preference.free_margin", "reward", "either", trainers=NORMED),
    Entry("rewards/chosen", "reward.mean", "reward", trainers=("nash_md",), note="scores of the policy's own samples, no implicit reward"),
    Entry("rewards/rejected", "", trainers=("nash_md",), note="scores of the mixture's samples"),
    Entry("rewards/margins", "policy.kl_ref_sequence", "nats", "sequence", trainers=("nash_md",), note="log pi - log pi_ref of the policy's samples, summed"),
    Entry("rewards/accuracies", "", trainers=("nash_md",), note="share of samples that the policy finds likelier than the reference"),
    Entry("rewards/accuracies", "preference.accuracy", "fraction", trainers=PAIRS, note="0 on the very first row, where both rewards are 0"),
    Entry("logps/<which>", "", trainers=("nash_md",), note="'chosen' is the policy, 'rejected' the reference, on the same samples"),
    Entry("logps/<which>", "", trainers=("xpo",), note="TRL adds the policy's and the reference's log-prob"),
    Entry("logps/chosen", "preference.logp_token_chosen", "nats", "token", trainers=("orpo",), note="mean over tokens"),
    Entry("logps/rejected", "preference.logp_token_rejected", "nats", "token", trainers=("orpo",), note="mean over tokens"),
    Entry("logps/chosen", "preference.logp_chosen", "nats", "sequence", trainers=SUMMED, note="summed: grows with length"),
    Entry("logps/rejected", "preference.logp_rejected", "nats", "sequence", trainers=SUMMED, note="summed: grows with length"),
    Entry("logps/chosen", "preference.logp_chosen", "nats", "either", trainers=NORMED, note="summed; mean in CPO's simpo, ipo and TPO's ipo, tpo-l"),
    Entry("logps/rejected", "preference.logp_rejected", "nats", "either", trainers=NORMED, note="summed; mean in CPO's simpo, ipo and TPO's ipo, tpo-l"),
    Entry("logits/<which>", "", note="mean raw logit; KTO 1.0 to 1.8 and BCO log a sum near -1e8"),
    Entry("nll_loss", "preference.nll", "loss", "token", trainers=("orpo", "cpo"), note="ORPO: prompt tokens too; CPO: constant 0 with cpo_alpha=0"),
    Entry("log_odds_ratio", "preference.odds_loss", "loss", sign=-1, trainers=("orpo",), note="mean log sigmoid(log odds): negative, towards 0"),
    Entry("log_odds_chosen", "preference.log_odds", "nats", "token", trainers=("orpo",)),
    Entry("delta", "", trainers=("bco",), note="running mean of rewards, BCO's shift"),
    Entry("accuracy", "preference.accuracy", "fraction", trainers=("reward",), note="on training pairs: no held-out score"),
    Entry("margin", "preference.margin", "reward", "sequence", trainers=("reward",), note="raw score difference"),
    Entry("mean_reward", "preference.score_mean", "reward", trainers=("reward",), note="score of the model in training: not a reward of sampled text"),
    Entry("min_reward", "", trainers=("reward",), note="an extreme of one batch; preference.score_std tells the spread"),
    Entry("max_reward", "", trainers=("reward",), note="an extreme of one batch; preference.score_std tells the spread"),
)

_SUPERVISED: tuple[Entry, ...] = (
    Entry("mean_token_accuracy", "token.accuracy", "fraction", note="0.0 on a batch without any label in 1.16"),
    Entry("on_policy_loss", "distill.on_policy_loss", "loss", trainers=TAUGHT, note="GOLD rounds to 4 decimals"),
    Entry("off_policy_loss", "distill.off_policy_loss", "loss", trainers=TAUGHT),
    Entry("matched_loss", "distill.matched_loss", "loss", trainers=TAUGHT, note="GOLD with use_uld_loss"),
    Entry("unmatched_loss", "distill.unmatched_loss", "loss", trainers=TAUGHT, note="GOLD with use_uld_loss"),
    Entry("iw_opd/mean_abs_advantage", "distill.logp_gap", "nats", "token", note="local rank only"),
    Entry("iw_opd/<rest>", "", note="weights between 1 and 1 + gamma by position, and their mean times the gap; local rank only"),
    Entry("completions/on_policy_mean_length", "completion.length_mean", "tokens", "sequence", note="IW-OPD"),
    Entry("completions/on_policy_min_length", "completion.length_min", "tokens", "sequence", note="IW-OPD"),
    Entry("completions/on_policy_max_length", "completion.length_max", "tokens", "sequence", note="IW-OPD"),
    Entry("completions/off_policy_<rest>", "", note="lengths of the data set's answers"),
    Entry("self_distillation/distillation_loss", "distill.divergence", "nats", "token", trainers=("sdft",), note="a policy gradient and no divergence with sampled_token"),
    Entry("self_distillation/distillation_loss", "", trainers=("sdpo",), note="by default a policy gradient: negative, and no divergence"),
    Entry("self_distillation/policy_loss", "", trainers=("sdpo",), note="the other part of the loss"),
    Entry("self_distillation/server_logprob_abs_diff", "distill.logp_gap", "nats", "token", trainers=("sdft", "sdpo")),
    Entry("self_distillation/success_group_fraction", "distill.success_group_fraction", "fraction", trainers=("sdpo",)),
    Entry("self_distillation/success_sample_fraction", "distill.success_sample_fraction", "fraction", trainers=("sdpo",)),
    Entry("self_distillation/feedback_available_fraction", "distill.feedback_fraction", "fraction", trainers=("sdpo",)),
    Entry("self_distillation/feedback_used_fraction", "distill.feedback_used_fraction", "fraction", trainers=("sdpo",)),
    Entry("self_distillation/reprompt_sample_fraction", "distill.active_fraction", "fraction", trainers=("sdpo",)),
    Entry("self_distillation/rewards/<component>", "reward.component_mean", "reward", trainers=("sdpo",)),
    Entry("self_distillation/reward_mean", "reward.mean", "reward", trainers=("sdpo",)),
    Entry("self_distillation/reward_std", "reward.std", "reward", trainers=("sdpo",)),
    Entry("self_distillation/reward_min", "reward.min", "reward", trainers=("sdpo",)),
    Entry("self_distillation/reward_max", "reward.max", "reward", trainers=("sdpo",)),
    Entry("self_distillation/group_reward_std_mean", "reward.group_std_mean", "reward", trainers=("sdpo",)),
    Entry("self_distillation/flat_group_fraction", "reward.group_zero_std_fraction", "fraction", trainers=("sdpo",)),
    Entry("self_distillation/<rest>", ""),
    Entry("sdft/<rest>", "", note="the same value as self_distillation/distillation_loss"),
    Entry("sdpo/<rest>", "", note="the same value as self_distillation/distillation_loss"),
    Entry("ssd/active_sample_ratio", "distill.active_fraction", "fraction", note="completions that the filter for stubs kept"),
    Entry("ssd/cross_entropy_loss", "", note="the loss itself"),
)

_OBJECTIVE: tuple[Entry, ...] = (
    Entry("objective/kl", "policy.kl_ref_sequence", "nats", "sequence", trainers=("ppo", "online_dpo", "nash_md"), note="summed over the response"),
    Entry("objective/kl", "", trainers=("xpo",), note="mean over the policy's and the reference's samples, whose signs cancel: no KL"),
    Entry("objective/scores_margin", "preference.score_margin", "score", trainers=("online_dpo", "xpo"), note="online DPO: better minus worse, never negative"),
    Entry("objective/model_scores", "reward.mean", "reward", trainers=("xpo",), note="scores of the policy's own samples"),
    Entry("objective/scores", "reward.mean", "reward", trainers=SCORED, note="reward model's score, missing-EOS penalty included"),
    Entry("objective/entropy", "", trainers=SCORED, note="minus the summed log-prob of sampled tokens: no entropy"),
    Entry("objective/rlhf_reward", "reward.penalised_mean", "reward", trainers=SCORED, note="score minus the KL penalty"),
    Entry("objective/<rest>", "", trainers=SCORED),
    Entry("policy/approxkl_avg", "policy.kl_old", "nats", "token", trainers=("ppo",)),
    Entry("policy/clipfrac_avg", "policy.clip_fraction", "fraction", "token", trainers=("ppo",)),
    Entry("policy/entropy_avg", "policy.entropy", "nats", "token", trainers=("ppo",), note="the true entropy"),
    Entry("loss/policy_avg", "optim.loss", "loss", trainers=("ppo",)),
    Entry("loss/value_avg", "value.loss", "loss", trainers=("ppo",)),
    Entry("loss/<rest>", "", trainers=SCORED, note="parts of the loss"),
    Entry("val/clipfrac_avg", "value.clip_fraction", "fraction", trainers=("ppo",), note="'val' is value here, not validation"),
    Entry("val/ratio", "policy.ratio_mean", "ratio", "token", trainers=("ppo",)),
    Entry("val/<rest>", "", trainers=SCORED, note="val/ratio_var is NaN with a single mini-batch"),
    Entry("eps", "time.samples_per_second", "rate", trainers=("ppo",), note="episodes per second, rounded down"),
    Entry("episode", "", trainers=("ppo",)),
    Entry("rewards/probabilities", "", trainers=("nash_md",)),
    Entry("beta", "", trainers=PAIRS, note="a setting"),
    Entry("alpha", "", trainers=("xpo",), note="a setting"),
    Entry("mixture_coef", "", trainers=("nash_md",), note="a setting"),
    Entry("v_star", "", trainers=("a2po",)),
    Entry("implicit_reward", "", trainers=("a2po",), note="local rank only"),
    Entry("advantage", "advantage.mean", "ratio", trainers=("a2po",), note="local rank only"),
)

TABLE: tuple[Entry, ...] = (*_ROLLOUT, *_POLICY, *_ASYNC, *_PREFERENCE, *_SUPERVISED, *_OBJECTIVE)
