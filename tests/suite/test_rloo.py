"""RLOO: the signals on record, and the KL penalty, the ratio per sequence and the groups recomputed from TRL's own batch."""

from __future__ import annotations

import math

import build_sampling
import pytest
import torch

SETTINGS = {"max_steps": 4, "num_iterations": 2, "learning_rate": 1e-3, "lr_scheduler_type": "constant", "epsilon": 0.02}


@pytest.fixture
def batches():
    """Generation batches as TRL hands them to the loss, with the reward matrix and both models' log-probabilities."""
    return []


def keep(trainer, batches):
    """Record what passes through the trainer's own methods, underneath our hooks."""
    score, logps, rewards, loss = (
        getattr(trainer, name)
        for name in ("_generate_and_score_completions", "_get_per_token_logps_and_entropies", "_calculate_rewards", "_compute_loss")
    )
    open_batch: dict = {}

    def keep_logps(*args, **kwargs):
        out = logps(*args, **kwargs)
        open_batch.setdefault("new" if torch.is_grad_enabled() else "frozen", []).append(out[0].detach().clone())
        return out

    def keep_rewards(*args, **kwargs):
        open_batch["rewards"] = out = rewards(*args, **kwargs)
        return out

    def keep_score(*args, **kwargs):
        open_batch.clear()
        out = score(*args, **kwargs)
        batches.append({**open_batch, "mask": out["completion_mask"].clone(), "ratios": []})
        return out

    def keep_loss(model, inputs):
        out = loss(model, inputs)
        new = (open_batch.pop("new")[0] * inputs["completion_mask"]).sum(1)
        batches[-1]["ratios"].append((new - inputs["old_logps"]).exp())
        return out

    trainer._generate_and_score_completions, trainer._get_per_token_logps_and_entropies = keep_score, keep_logps
    trainer._calculate_rewards, trainer._compute_loss = keep_rewards, keep_loss
    return trainer


def test_rloo_emits_what_is_on_record(tmp_path, train, saw):
    seen = train(build_sampling.rloo(str(tmp_path), **SETTINGS))
    assert seen.notices == []
    saw("rloo", seen)
    named = {key.partition("{")[0] for frame in seen.frames for key in frame.values}
    assert named <= seen.start.emits
    assert seen.start.trainer == "rloo"


def test_the_reward_before_and_after_the_penalty(tmp_path, train, batches):
    trainer = keep(build_sampling.rloo(str(tmp_path), beta=0.5, **SETTINGS), batches)
    seen = train(trainer)
    assert len(batches) == 2
    for step, batch in zip((1, 3), batches, strict=True):
        policy, reference = batch["frozen"]
        kl = ((policy - reference) * batch["mask"]).sum(1)
        reward = batch["rewards"].sum(1)
        assert seen.series("reward.mean")[step] == pytest.approx(float(reward.mean()), rel=1e-5)
        assert seen.series("reward.penalised_mean")[step] == pytest.approx(float((reward - 0.5 * kl).mean()), rel=1e-4)
        assert seen.series("policy.kl_ref_sequence")[step] == pytest.approx(float(kl.mean()), abs=1e-6)
        # TRL logs the same estimate per token.
        assert seen.logged("kl")[step] == pytest.approx(float(kl.sum() / batch["mask"].sum()), abs=1e-4)
    assert abs(seen.series("policy.kl_ref_sequence")[3]) > 1e-3
    assert seen.series("reward.penalised_mean")[3] != seen.series("reward.mean")[3]


def test_no_penalty_is_announced_without_a_reference(tmp_path, train):
    seen = train(build_sampling.rloo(str(tmp_path), **{**SETTINGS, "beta": 0.0, "max_steps": 2}))
    assert not {"policy.kl_ref", "policy.kl_ref_sequence", "reward.penalised_mean"} & (seen.start.emits | seen.signals.keys())


def test_one_ratio_per_sequence(tmp_path, train, batches):
    seen = train(keep(build_sampling.rloo(str(tmp_path), **SETTINGS), batches))
    ratios = [ratio for batch in batches for ratio in batch["ratios"]]
    for step, ratio in enumerate(ratios, start=1):
        outside = float(((ratio < 0.98) | (ratio > 1.02)).float().mean())
        assert seen.series("policy.ratio_outside_fraction")[step] == pytest.approx(outside)
        assert seen.series("policy.ratio_max")[step] == pytest.approx(float(ratio.max()), rel=1e-4)
        assert outside >= seen.logged("clip_ratio/region_mean")[step] - 1e-4
    assert max(seen.series("policy.ratio_outside_fraction").values()) > 0
    assert seen.series("policy.clip_per_sequence") == {1: 1.0}


def test_flat_groups_are_counted_before_the_penalty(tmp_path, train):
    """A reward that became constant: every group is flat, although TRL's own share, taken after the penalty, says that none is."""
    calls = []

    def constant_soon(completions, **kwargs):
        calls.append(len(completions))
        return [1.0] * len(completions) if len(calls) > 1 else build_sampling.tiny.vowels(completions, **kwargs)

    seen = train(build_sampling.rloo(str(tmp_path), reward=constant_soon, **SETTINGS))
    assert seen.series("reward.group_zero_std_fraction")[3] == 1.0
    assert seen.logged("frac_reward_zero_std")[3] == 0.0


def test_a_judge_that_answers_half_of_the_time(tmp_path, train):
    def half(completions, **kwargs):
        return [None if index % 2 else float(index) for index in range(len(completions))]

    seen = train(build_sampling.rloo(str(tmp_path), reward=half, **SETTINGS))
    assert seen.series("reward.unscored_fraction") == {1: 0.5, 3: 0.5}
    assert math.isfinite(seen.series("reward.penalised_mean")[3])


def _rule_of(seen, rule):
    return [finding.step for finding in seen.callback.monitor.findings if finding.rule.id == rule]


@pytest.mark.parametrize("top_k", [1, 0])
def test_a_sampler_that_does_not_draw_gives_copies_that_chance_does_not(tmp_path, train, top_k):
    """A greedy engine beside one that draws; the copies are in no way rare in the eyes of a trainer that only compares texts."""
    trainer = build_sampling.rloo(str(tmp_path), max_steps=4, per_device_train_batch_size=16, num_generations=8)
    trainer.generation_config.top_k = top_k
    seen = train(trainer)
    assert seen.notices == []
    shares = list(seen.series("completion.improbable_copies_fraction").values())
    assert len(shares) == 4
    assert shares == [1.0] * 4 if top_k else shares == [0.0] * 4
    assert _rule_of(seen, "samples-repeat") == ([3] if top_k else [])
