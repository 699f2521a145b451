"""GRPO and its relatives: the signals on record, every loss type, tools, and what a clip range means in each."""

from __future__ import annotations

import math
from importlib.metadata import version

import build_sampling
import numpy as np
import pytest
import torch

from trainvitals.integrations import tiny
from trainvitals.integrations.grpo import clip_range, penalty_signals, repetition

OFF_POLICY = {"max_steps": 4, "num_iterations": 2, "learning_rate": 1e-2, "lr_scheduler_type": "constant"}
LOSSES = ["grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo", "vespo"]
CLIPPED = {"policy.clip_fraction", "policy.clip_fraction_low", "policy.clip_fraction_high"}


def announced(seen):
    """Signals that came, each of which must have been announced."""
    named = {key.partition("{")[0] for frame in seen.frames for key in frame.values}
    assert named <= seen.start.emits, named - seen.start.emits
    return named


def keep_ratios(trainer):
    """Importance ratios and token masks of every micro-batch, from the trainer's own methods."""
    kept = []
    logps, loss = trainer._get_per_token_logps_and_entropies, trainer._compute_loss
    box = {}

    def keep_logps(*args, **kwargs):
        out = logps(*args, **kwargs)
        box["new"] = out[0].detach().clone()
        return out

    def keep_loss(model, inputs):
        out = loss(model, inputs)
        old = inputs.get("old_per_token_logps", box["new"])
        mask = inputs["completion_mask"] * inputs.get("tool_mask", 1)
        kept.append((box["new"] - (box["new"] if old is None else old)).exp()[mask.bool()])
        return out

    trainer._get_per_token_logps_and_entropies, trainer._compute_loss = keep_logps, keep_loss
    return kept


def repetitions(rows):
    """Mean share of repeated 4-grams of rows that are long enough to have one."""
    return np.mean([share for share in map(repetition, rows) if share is not None])


def test_grpo_emits_what_is_on_record(tmp_path, train, saw):
    seen = train(tiny.grpo(str(tmp_path), max_steps=4))
    assert seen.notices == []
    saw("grpo", seen)


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_type(tmp_path, train, loss):
    high = 1.5 if loss == "cispo" else 0.1
    try:
        trainer = tiny.grpo(str(tmp_path), loss_type=loss, epsilon=0.1, epsilon_high=high, **OFF_POLICY)
    except (ValueError, TypeError) as error:
        pytest.skip(f"TRL {version('trl')} has no loss_type {loss}: {error}")
    ratios = keep_ratios(trainer)
    try:
        seen = train(trainer)
    except ValueError as error:
        pytest.skip(f"TRL {version('trl')} has no loss_type {loss}: {error}")
    assert seen.notices == []
    named = announced(seen)
    ours = seen.series("policy.ratio_outside_fraction")
    for step, ratio in enumerate(ratios, start=1):
        assert seen.series("policy.ratio_mean")[step] == pytest.approx(float(ratio.mean()), rel=1e-4)
        assert seen.series("policy.ratio_max")[step] == pytest.approx(float(ratio.max()), rel=1e-4)
    if loss in {"sapo", "vespo"}:  # these weigh every ratio and clip none: no range, so nothing is outside of it
        assert not (CLIPPED | {"policy.ratio_outside_fraction", "policy.clip_low", "policy.clip_high"}) & (named | seen.start.emits)
    elif loss == "cispo":
        assert (seen.series("policy.clip_low"), seen.series("policy.clip_high")) == ({1: 0.0}, {1: 1.5})
        assert ours == pytest.approx({step: float((ratio > 1.5).float().mean()) for step, ratio in enumerate(ratios, start=1)})
        assert all(ours[step] >= value - 1e-6 for step, value in seen.logged("cispo_clip_ratio").items())
        assert max(ours.values()) > 0
    else:
        assert ours == pytest.approx({s: float(((r < 0.9) | (r > 1.1)).float().mean()) for s, r in enumerate(ratios, start=1)}, abs=1e-6)
        assert all(ours[step] >= value - 1e-6 for step, value in seen.logged("clip_ratio/region_mean").items())
        assert max(ours.values()) > 0.05


def test_the_sampling_gap_is_of_the_first_update_on_a_batch_alone(tmp_path, train):
    """The second one trains on what the policy before it wrote; what `generation_kwargs` cut to shape is nobody's fault."""
    seen = train(tiny.grpo(str(tmp_path), max_steps=4, num_iterations=2))
    assert sorted(seen.series("policy.sampling_gap")) == sorted(seen.series("policy.sampling_gap_error")) == [1, 3]
    assert all(abs(seen.series("policy.sampling_gap")[step]) < 5 * error for step, error in seen.series("policy.sampling_gap_error").items())
    shaped = train(tiny.grpo(str(tmp_path), max_steps=1, generation_kwargs={"no_repeat_ngram_size": 2}))
    assert not {"policy.sampling_gap", "policy.sampling_gap_error"} & (shaped.start.emits | shaped.signals.keys())


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_groups_are_the_same_however_rewards_are_scaled(tmp_path, train, scale):
    """TRL's share of flat groups turns into 0 or 1 with scale_rewards='batch'; ours is of the groups themselves."""
    matrices = []

    def half_flat(completions, **kwargs):
        matrices.append([0.0 if index < len(completions) // 2 else float(index % 3) for index in range(len(completions))])
        return matrices[-1]

    seen = train(tiny.grpo(str(tmp_path), reward=half_flat, scale_rewards=scale, max_steps=2))
    assert seen.notices == []
    groups = np.asarray(matrices).reshape(2, 4, 8)
    assert seen.series("reward.group_zero_std_fraction") == {1: 0.5, 2: 0.5}
    assert seen.logged("frac_reward_zero_std")[1] == (0.0 if scale == "batch" else 0.5)
    assert seen.series("reward.group_std_mean")[2] == pytest.approx(groups[1].std(axis=1, ddof=1).mean())
    assert seen.series("advantage.mean")[2] == pytest.approx(0.0, abs=1e-6)


def test_several_objectives(tmp_path, train):
    def short(completions, **kwargs):
        return [-0.1 * len(tiny.text_of(completion)) for completion in completions]

    try:
        trainer = tiny.grpo(str(tmp_path), reward=[tiny.vowels, short], multi_objective_aggregation="normalize_then_sum", max_steps=2)
    except TypeError:
        pytest.skip(f"TRL {version('trl')} has no multi_objective_aggregation")
    seen = train(trainer)
    assert seen.notices == []
    announced(seen)
    shares = [seen.series(f"reward.component_share{{component={name}}}")[2] for name in ("vowels", "short")]
    stds = [seen.logged(f"rewards/{name}/std")[2] for name in ("vowels", "short")]
    assert shares == pytest.approx([std / sum(stds) for std in stds], rel=1e-4)
    assert abs(seen.series("advantage.mean")[2]) < 1e-4


def test_tools(tmp_path, train, saw):
    """A tool that fails for half of the alphabet: calls, failures, and a mask without the tool's answers."""

    def look(text: str) -> str:
        """Look a word up.

        Args:
            text: The word.
        """
        calls.append(text)
        if not text or text[0] < "n":
            raise ValueError("no such word")
        return "good good good good good good good " + text

    calls: list[str] = []
    try:
        trainer = build_sampling.grpo_with_tools(str(tmp_path), tool=look, **{**OFF_POLICY, "learning_rate": 1e-3})
    except (ImportError, ValueError, TypeError) as error:
        pytest.skip(f"tools need transformers 5 and a response template: {str(error)[:80]}")
    ratios, written = keep_ratios(trainer), []
    generate = trainer._generate

    def keep_mask(prompts):
        out = generate(prompts)
        written.append((out[1], out[2]))
        return out

    trainer._generate = keep_mask
    seen = train(trainer)
    assert seen.notices == []
    announced(seen)
    saw("grpo-tools", seen)
    rate, failed = seen.series("completion.tool_call_rate"), seen.series("completion.tool_failure_fraction")
    assert len(calls) == round(32 * sum(rate.values()))
    refused = sum(not text or text[0] < "n" for text in calls)
    assert sum(failed[step] * rate[step] * 32 for step in rate) == pytest.approx(refused)
    assert 0 < refused < len(calls)
    for step, (ids, masks) in zip((1, 3), written, strict=True):
        assert any(0 in mask for mask in masks)
        assert seen.series("completion.length_mean")[step] == pytest.approx(np.mean([sum(mask) for mask in masks]))
        # The tool says "good" seven times, which is not the policy's repetition.
        own = [[token for token, mine in zip(row, mask, strict=True) if mine] for row, mask in zip(ids, masks, strict=True)]
        assert seen.series("completion.repetition_fraction")[step] == pytest.approx(repetitions(own))
        assert repetitions(ids) > repetitions(own) + 0.01
    for step, ratio in enumerate(ratios, start=1):
        assert seen.series("policy.ratio_max")[step] == pytest.approx(float(ratio.max()), rel=1e-4)


@pytest.mark.parametrize("name", ["gmpo", "dppo", "gspo_token", "grpo_with_replay_buffer", "minillm"])
def test_relatives(tmp_path, train, saw, name):
    settings = {**OFF_POLICY}
    if name == "minillm":
        settings = {"max_steps": 2, "teacher_model": tiny.policy(tiny.tokenizer(), seed=1)}
    if name == "gspo_token":
        settings["importance_sampling_level"] = "sequence_token"
    try:
        trainer = build_sampling.relative(name)(str(tmp_path), **settings)
    except ImportError:
        pytest.skip(f"TRL {version('trl')} has no {name}")
    seen = train(trainer)
    assert seen.notices == []
    saw(name, seen)
    outside = seen.series("policy.ratio_outside_fraction")
    if name == "dppo":  # its epsilon bounds a divergence, not a ratio
        assert not (CLIPPED | {"policy.ratio_outside_fraction", "policy.clip_low"}) & (seen.signals.keys() | seen.start.emits)
        assert seen.series("policy.ratio_max")[2] > 1.0
    elif name == "minillm":  # a distillation: its reward is a placeholder and no rule may judge it
        assert seen.start.trainer == "distillation"
        assert "reward.group_std_mean" not in seen.signals
    else:
        assert all(outside[step] >= value - 1e-6 for step, value in seen.logged("clip_ratio/region_mean").items())
        assert max(outside.values()) > 0.1
    if name == "gmpo":  # epsilon 0.4 in log space
        assert seen.series("policy.clip_low")[1] == pytest.approx(math.exp(-0.4))
        assert seen.series("policy.clip_high")[1] == pytest.approx(math.exp(0.4))
    assert seen.series("policy.clip_per_sequence") == ({1: 1.0} if name == "gspo_token" else {})


def test_clip_range_of_a_trainer_without_epsilon_high():
    class Args:
        epsilon = 0.3

    class Trainer:
        args, loss_type = Args(), "grpo"

    assert clip_range(Trainer()) == (0.7, 1.3)


def test_penalty_is_of_the_scored_completions_only():
    rewards, kl = np.asarray([1.0, math.nan, 0.0]), np.asarray([2.0, -4.0, -1.0])
    values = penalty_signals(rewards, kl, 0.1)
    assert values["policy.kl_ref_sequence"] == pytest.approx(-1.0)
    assert values["reward.penalised_mean"] == pytest.approx((0.8 + 0.1) / 2)
    assert penalty_signals(np.asarray([math.nan]), np.asarray([1.0]), 0.1) == {"policy.kl_ref_sequence": 1.0}


def test_a_fused_loss_switches_off_the_ratios_alone(tmp_path, train):
    """A loss that never asks for log-probabilities (as a fused kernel would): one notice, everything else goes on."""
    trainer = tiny.grpo(str(tmp_path), max_steps=2)
    logps = trainer._get_per_token_logps_and_entropies
    loss = trainer._compute_loss

    def fused(model, inputs):
        hooked, trainer._get_per_token_logps_and_entropies = trainer._get_per_token_logps_and_entropies, logps
        try:
            return loss(model, inputs)
        finally:
            trainer._get_per_token_logps_and_entropies = hooked

    trainer._compute_loss = fused
    seen = train(trainer)
    assert [line for line in seen.notices if "hook _compute_loss switched off: LookupError" in line]
    assert len(seen.notices) == 1
    assert sorted(seen.series("reward.group_std_mean")) == [1, 2]
    assert not seen.series("policy.ratio_mean")


PADDED = "completion.counted_padding_fraction"


def generated(trainer):
    """Ids and masks of every generation batch, as the trainer hands them to the loss."""
    batches, score = [], trainer._generate_and_score_completions

    def keep(inputs):
        result = score(inputs)
        batches.append((result["completion_ids"].tolist(), result["completion_mask"].tolist()))
        return result

    trainer._generate_and_score_completions = keep
    return batches


@pytest.mark.parametrize("build", [build_sampling.grpo, build_sampling.rloo])
def test_an_end_token_of_the_sampler_that_the_trainer_does_not_know(tmp_path, train, build):
    """Sampling ends at a letter too; the trainer counts such answers to the end of the longest of the batch."""
    stop = tiny.tokenizer().convert_tokens_to_ids("e")
    trainer = build(str(tmp_path), max_steps=3, generation_kwargs={"eos_token_id": [tiny.END_ID, stop]})
    batches, pad = generated(trainer), trainer.processing_class.pad_token_id
    seen = train(trainer)
    assert seen.notices == []
    assert PADDED in seen.start.emits
    for (ids, mask), told in zip(batches, seen.series(PADDED).values(), strict=True):
        counted = [[token for token, own in zip(row, kept, strict=True) if own] for row, kept in zip(ids, mask, strict=True)]
        behind = sum(len(row) - row.index(stop) - 1 for row in counted if stop in row)
        assert behind == sum(token == pad for row in counted for token in row) > 0  # nobody writes padding here
        assert told == pytest.approx(behind / sum(map(len, counted)))
    assert [one.step for one in seen.callback.monitor.findings if one.rule.id == "padding-counts-as-answer"] == [1]


@pytest.mark.parametrize("build", [build_sampling.grpo, build_sampling.rloo])
def test_a_policy_that_writes_padding_is_not_taken_for_filling(tmp_path, train, build):
    trainer = build(str(tmp_path), max_steps=3)
    batches, pad = generated(trainer), trainer.processing_class.pad_token_id
    head = trainer.model.get_output_embeddings()
    with torch.no_grad():  # the tied table: padding becomes as likely as a letter
        head.weight[pad] = head.weight[trainer.processing_class.convert_tokens_to_ids("q")] * 1.3
    seen = train(trainer)
    written = sum(token == pad and own for ids, mask in batches for row, kept in zip(ids, mask, strict=True) for token, own in zip(row, kept, strict=True))
    assert written > 10
    assert seen.series(PADDED) == {1: 0.0, 2: 0.0, 3: 0.0}
