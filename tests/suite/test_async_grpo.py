"""AsyncGRPO and AsyncDistillation: the signals on record, and that the numbers are those of the queue, the sync and the loss."""

from __future__ import annotations

import math
from typing import Any

import build_async
import numpy as np
import pytest
import torch
from trl import __version__ as trl

from trainvitals.integrations import async_rollout
from trainvitals.integrations.async_rollout import Taken, aligned, fingerprint, queue_signals
from trainvitals.integrations.grpo import RewardRange
from trainvitals.integrations.trl import attach, detach

pytestmark = pytest.mark.trl
PER_STEP = build_async.PER_STEP


def trainer_of(build: Any, folder: Any, **changes: Any) -> Any:
    try:
        return build(str(folder), **changes)
    except ImportError as error:
        pytest.skip(f"TRL {trl} has no {build.__name__} here: {error}")


def close(ours: dict[int, float], theirs: dict[int, float], tolerance: float = 1e-5) -> bool:
    return bool(theirs) and all(math.isclose(ours[step], theirs[step], rel_tol=tolerance, abs_tol=tolerance) for step in theirs)


def test_async_grpo_emits_what_is_on_record(tmp_path, train, saw):
    seen = train(trainer_of(build_async.async_grpo, tmp_path, max_steps=5))
    assert seen.notices == []
    saw("async_grpo", seen)
    assert seen.start.trainer == "async_grpo"
    mine = {
        name
        for name in seen.signals
        if name.startswith(("rollout.", "sampler.", "reward.", "advantage.", "policy.", "completion."))
    }
    assert mine <= seen.start.emits  # no rule counts one of them as absent
    assert seen.callback._mapper.unknown == set()  # every metric that this TRL logs is known
    assert close(seen.series("policy.ratio_mean"), seen.logged("ratio"))  # per-token ratios of ours against TRL's own mean
    assert close(seen.series("sampler.kl"), seen.logged("kl"))
    outside = seen.series("policy.ratio_outside_fraction")
    assert seen.series("sampler.kl")[1] < 1e-6 < seen.series("sampler.kl")[2]  # the first batch comes from the policy itself
    assert outside[1] == 0.0 < outside[2]
    if seen.logged("clip_ratio"):
        assert close(outside, seen.logged("clip_ratio"))  # TRL 1.0 to 1.6: regardless of the advantage's sign
    else:
        assert all(value <= outside[step] + 1e-6 for step, value in seen.logged("clip_ratio/region_mean").items())
        assert all(value >= seen.series("policy.ratio_mean")[step] for step, value in seen.series("policy.ratio_max").items())
    assert all(abs(value) < 1e-6 for value in seen.series("advantage.mean").values())
    assert set(seen.series("rollout.sync_changed").values()) == {1.0}
    assert all(value > 0 for value in seen.series("rollout.sync_seconds").values())


def test_rewards_are_those_of_the_groups(tmp_path, train):
    trainer = trainer_of(build_async.async_grpo, tmp_path, max_steps=4)
    worker, made = trainer.rollout_worker, []
    sample = worker.sample
    worker.sample = lambda groups: made.append(sample(groups)) or made[-1]
    seen = train(trainer)
    batch = made[3]  # made at the first sync and fetched in the second step; what came before was fetched in the first
    rewards = torch.tensor([one.metrics["reward"] for one in batch], dtype=torch.float64)
    assert seen.series("reward.std")[2] == pytest.approx(float(rewards.std()))
    assert seen.series("reward.max")[2] == float(rewards.max())
    groups = rewards.reshape(-1, build_async.GROUP).std(dim=1, correction=0)
    assert seen.series("reward.group_std_mean")[2] == pytest.approx(float(groups.mean()))
    assert seen.series("advantage.abs_max")[2] == pytest.approx(max(abs(one.advantage) for one in batch))
    lengths = [int(sum(one.completion_mask)) for one in batch]
    assert seen.series("completion.length_mean")[2] == pytest.approx(sum(lengths) / len(lengths))
    ended = [one.input_ids[-1] == trainer.processing_class.eos_token_id for one in batch]
    assert seen.series("completion.truncated_fraction")[2] == pytest.approx(1 - sum(ended) / len(ended))


def test_staleness_queue_and_drops_are_those_of_trl(tmp_path, train):
    # Four updates' worth in the queue and a limit of one version: what waits too long is thrown away.
    seen = train(trainer_of(build_async.async_grpo, tmp_path, max_steps=6, max_staleness=1, sampler={"ahead": 4 * PER_STEP}))
    dropped = seen.series("rollout.dropped_stale")
    assert max(dropped.values()) >= PER_STEP
    assert max(seen.series("rollout.staleness_max").values()) == 1.0
    for step, count in dropped.items():
        kept = PER_STEP * (2 if step == 1 else 1)  # one micro-batch is fetched ahead
        assert seen.series("rollout.dropped_fraction")[step] == pytest.approx(count / (count + kept))
    if seen.logged("sample/staleness_mean"):  # TRL 1.11 and later
        assert close(seen.series("rollout.staleness"), seen.logged("sample/staleness_mean"))
        assert close(seen.series("rollout.queue_size"), seen.logged("sample/rollout_queue_size"))
        assert close(seen.series("rollout.queue_seconds"), seen.logged("sample/time_in_queue_s"), tolerance=0.02)
        assert {step: count for step, count in dropped.items() if count} == seen.logged("sample/dropped_stale_total")


def test_tags_of_the_worker_are_believed(tmp_path, train):
    seen = train(trainer_of(build_async.async_grpo, tmp_path, max_steps=5, sampler={"lag": 2}))
    assert seen.series("rollout.staleness") == {1: 1.0, 2: 2.0, 3: 2.0, 4: 2.0, 5: 2.0}
    assert set(seen.series("rollout.dropped_fraction").values()) == {0.0}


@pytest.mark.parametrize(("takes", "expected"), [("weights", {1.0}), ("nothing", {0.0}), ("and-forgets", {1.0})])
def test_a_sync_that_hands_over_nothing_new_is_seen(tmp_path, train, takes, expected):
    seen = train(trainer_of(build_async.async_grpo, tmp_path, max_steps=3, sampler={"takes": takes}))
    assert set(seen.series("rollout.sync_changed").values()) == expected


@pytest.mark.parametrize("merged", [True, False])
def test_an_adapter_that_is_not_merged_before_the_sync_is_seen(tmp_path, train, merged):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
    trainer = trainer_of(build_async.async_grpo, tmp_path, max_steps=3, peft_config=config)
    if not merged:
        trainer.model.merge_adapter = trainer.model.unmerge_adapter = lambda *args, **kwargs: None
    seen = train(trainer)
    assert set(seen.series("rollout.sync_changed").values()) == {float(merged)}
    assert close(seen.series("policy.ratio_mean"), seen.logged("ratio"))
    assert trainer.rollout_worker.received >= 3 * 26  # the stream went on to the sampler


def test_nothing_is_said_about_a_sync_while_the_trainer_stands_still(tmp_path, train):
    seen = train(trainer_of(build_async.async_grpo, tmp_path, max_steps=3, learning_rate=0.0))
    assert seen.series("rollout.sync_changed") == {}
    assert seen.notices == []


def test_async_distillation_emits_what_is_on_record(tmp_path, train, saw):
    seen = train(trainer_of(build_async.async_distillation, tmp_path, max_steps=5))
    assert seen.notices == []
    saw("async_distillation", seen)
    assert seen.callback._mapper.unknown == set()
    assert close(seen.series("distill.divergence"), seen.logged("jsd"))
    assert close(seen.series("rollout.staleness"), seen.logged("sample/staleness_mean"))
    assert set(seen.series("rollout.sync_changed").values()) == {1.0}
    assert "rollout.dropped_fraction" in seen.start.emits
    assert not {"policy.ratio_mean", "reward.group_zero_std_fraction"} & seen.start.emits


def test_detach_gives_queue_worker_and_model_back(tmp_path):
    trainer = trainer_of(build_async.async_grpo, tmp_path, max_steps=1)
    forward = trainer.model.forward
    attach(trainer)
    assert "get" in vars(trainer.rollout_queue)
    detach(trainer)
    assert "get" not in vars(trainer.rollout_queue)
    assert "send_weights" not in vars(trainer.rollout_worker)
    assert trainer.model.forward == forward


# ---- pure functions ----


def test_a_step_that_took_nothing_says_nothing_and_one_that_dropped_all_says_so():
    assert queue_signals([], 0, RewardRange()) == {}
    assert queue_signals([], 3, RewardRange()) == {"rollout.dropped_fraction": 1.0, "rollout.dropped_stale": 3.0}


def test_flat_groups_are_told_apart_by_their_level():
    rows = [(0.0, 0.0), (0.0, 0.0), (1.0, 0.0), (1.0, 0.5), (0.0, 0.5)]
    taken = [Taken(1, 4, metrics={"reward": reward, "reward_std": std}) for reward, std in rows]
    values = queue_signals(taken, 0, RewardRange())
    assert values["reward.group_zero_std_fraction"] == pytest.approx(0.6)
    assert values["reward.all_low_fraction"] == pytest.approx(0.4)
    assert values["reward.all_high_fraction"] == pytest.approx(0.2)
    assert values["reward.group_std_mean"] == pytest.approx(0.2)


def test_unscored_samples_are_counted_and_nothing_else():
    nan = math.nan
    taken = [
        Taken(0, 0, metrics={"reward": nan, "reward_std": nan, "rewards/f": nan}),
        Taken(2, 0, metrics={"reward": 1.0, "reward_std": 0.5, "rewards/f": 1.0, "rewards/g": 0.0}),
    ]
    values = queue_signals(taken, 0, RewardRange())
    assert values["reward.unscored_fraction"] == 0.5
    assert values["reward.component_unscored_fraction{component=f}"] == 0.5
    assert (values["reward.component_zero_fraction{component=f}"], values["reward.component_zero_fraction{component=g}"]) == (0.0, 1.0)
    assert (values["reward.min"], values["reward.max"], values["reward.group_std_mean"]) == (1.0, 1.0, 0.5)
    assert (values["rollout.staleness"], values["rollout.staleness_max"]) == (1.0, 2.0)


def test_the_spread_of_the_reward_is_shared_out_among_its_functions():
    rows = [(0.0, 1.0), (3.0, 2.0), (0.0, 1.0), (3.0, 2.0)]
    both = [Taken(0, 0, metrics={"reward": f + g, "reward_std": 2.0, "rewards/f": f, "rewards/g": g}) for f, g in rows]
    values = queue_signals(both, 0, RewardRange())
    assert values["reward.component_share{component=f}"] == pytest.approx(0.75)
    assert values["reward.component_share{component=g}"] == pytest.approx(0.25)
    one = queue_signals([Taken(0, 0, metrics={"reward": f, "reward_std": 2.0, "rewards/f": f}) for f, _ in rows], 0, RewardRange())
    assert not any(name.startswith("reward.component_share") for name in one), "one function has all of it"


def test_a_fingerprint_is_a_copy_of_elements_from_every_tensor():
    weights = [torch.zeros(100), torch.ones(3, 5), torch.tensor(7.0)]
    first = fingerprint(weights)
    assert first is not None
    assert len(first) == 8 + 8 + 1
    weights[0][96] = 1.0  # one of the elements that are looked at: 0, 12, 24, ...
    weights[0][96 - 12] = 1.0
    second = fingerprint(weights)
    assert not torch.equal(first, second)
    assert fingerprint([]) is None
    pairs = ((first, first), (first, second), (first, None), (None, first), (None, None))
    assert [bool(async_rollout._differs(*pair)) for pair in pairs] == [False, True, False, True, False]


def test_log_probabilities_are_paired_as_in_the_loss():
    packed = {"token_index": torch.tensor([[2, 0, -1]]), "old_log_probs": torch.tensor([[-3.0, -1.0, 0.0]])}
    new, old, mask = aligned(torch.tensor([[-1.5, -9.0, -2.5]]), packed)
    assert new[mask].tolist() == [-2.5, -1.5]
    assert old[mask].tolist() == [-3.0, -1.0]
    flat = {"old_log_probs": torch.tensor([[0.0, 0.0, -1.0, 0.0]]), "completion_mask": torch.tensor([[0, 0, 1, 0]])}
    new, old, mask = aligned(torch.tensor([[-7.0, -1.25]]), flat)  # one padded position was stripped before the forward pass
    assert (new[mask > 0].tolist(), old[mask > 0].tolist()) == ([-1.25], [-1.0])


def _steps(seen: Any, rule: str) -> list[int]:
    return [finding.step for finding in seen.callback.monitor.findings if finding.rule.id == rule]


def _noisy(trainer: Any, share: float) -> None:
    """Some tokens are any token, while the log-probability that is reported stays the policy's own: text that nobody sampled, under the mask."""
    make, random = trainer.rollout_worker.make, np.random.default_rng(0)

    def mixed(ids: list[int], mask: list[int], logps: list[float], **rest: Any) -> Any:
        own = [place for place, counted in enumerate(mask[:-1]) if counted and random.random() < share]
        for place in own:
            ids[place] = int(random.integers(len(trainer.processing_class)))
        with torch.no_grad():
            table = trainer.rollout_worker.model(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1)
        scored = [0.0, *table[:-1].gather(-1, torch.tensor(ids[1:])[:, None])[:, 0].tolist()]
        return make(ids=ids, mask=mask, logps=[score if counted else 0.0 for score, counted in zip(scored, mask, strict=True)], **rest)

    trainer.rollout_worker.make = mixed


@pytest.mark.parametrize("share", [0.8, 0.0])
def test_tokens_that_nobody_sampled_are_more_surprising_than_the_policy_expects(tmp_path, train, share):
    trainer = trainer_of(build_async.async_grpo, tmp_path, max_steps=12, learning_rate=1e-3, sampler={"ahead": 3 * PER_STEP})
    if not any("forward" in vars(module) for module in trainer.model.modules()):
        pytest.skip("this TRL has no head that gives log-probabilities")
    _noisy(trainer, share)
    seen = train(trainer)
    assert seen.notices == []
    assert len(seen.series("policy.sampling_gap")) == 12
    assert max(seen.series("rollout.staleness").values()) >= 1
    fired = _steps(seen, "samples-from-another-policy")
    assert (fired and fired[0] <= 11) if share else not fired


@pytest.mark.parametrize("epsilon", [100.0, 0.2])
def test_a_clip_that_never_acts_is_told_at_the_first_update(tmp_path, train, epsilon):
    seen = train(trainer_of(build_async.async_grpo, tmp_path, max_steps=2, epsilon=epsilon))
    assert _steps(seen, "clip-range-too-wide") == ([1] if epsilon > 1 else [])


@pytest.mark.parametrize("itself", [True, False])
def test_a_ratio_that_is_taken_against_the_policy_itself(tmp_path, train, itself):
    """The loss gets the log-probabilities of now for those of the sampler, whose samples are two versions old."""
    trainer = trainer_of(build_async.async_grpo, tmp_path, max_steps=14, learning_rate=3e-3, sampler={"ahead": 4 * PER_STEP})
    if not any("forward" in vars(module) for module in trainer.model.modules()):
        pytest.skip("this TRL has no head that gives log-probabilities")
    if itself:
        if tuple(int(part) for part in trl.split(".")[:2]) < (1, 13):
            pytest.skip("the plant writes into batches as TRL packs them since 1.13")
        from tests.clinic.ward.cases_round7_rl import taken_against_itself

        taken_against_itself(trainer)
    seen = train(trainer)
    assert seen.notices == []
    fired = _steps(seen, "ratio-of-itself")
    assert fired[:1] and fired[0] <= 12 if itself else not fired


def test_answers_that_a_cache_gives_again_are_counted_in_the_queue(tmp_path, train):
    trainer = trainer_of(build_async.async_grpo, tmp_path, max_steps=4)
    write = trainer.rollout_worker._write

    def cached(starts: list[list[int]]) -> Any:
        rows, logps = write(starts)
        first = {tuple(start): place for place, start in reversed(list(enumerate(starts)))}
        return [rows[first[tuple(start)]] for start in starts], [logps[first[tuple(start)]] for start in starts]

    trainer.rollout_worker._write = cached
    seen = train(trainer)
    assert min(seen.series("completion.improbable_copies_fraction").values()) > 0.5
    assert _steps(seen, "samples-repeat") == [3]
