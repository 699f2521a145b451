"""PPO (TRL 1.0 to 1.12): its own loop closes each update once, and what passes through its parts is read right."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

pytest.importorskip("trl.experimental.ppo", reason="this TRL has no PPO: it is in 1.0 to 1.12")

import build_sampling

from trainvitals.integrations.ppo import explained_variance, rollout_signals
from trainvitals.items import Boundary

SETTINGS = {"updates": 3, "per_device_train_batch_size": 8, "num_ppo_epochs": 2, "lr_scheduler_type": "constant"}


def test_ppo_emits_what_is_on_record(tmp_path, train, saw):
    # Samples for the log and checkpoints in between: neither may count as a rollout, and each update closes once.
    settings = {**SETTINGS, "num_sample_generations": 3, "save_strategy": "steps", "save_steps": 2, "missing_eos_penalty": 1.0}
    seen = train(build_sampling.ppo(str(tmp_path), **settings))
    assert seen.notices == []
    saw("ppo", seen)
    assert [(frame.step, frame.closes) for frame in seen.frames] == [(1, True), (2, True), (3, True)]
    named = {key.partition("{")[0] for frame in seen.frames for key in frame.values}
    assert named <= seen.start.emits
    assert (seen.start.trainer, seen.start.total_steps) == ("ppo", 3)
    assert [item.step for item in seen.items if isinstance(item, Boundary) and item.what == "save_end"] == [2, 3]
    assert (tmp_path / "checkpoint-2" / "vitals_state.json").is_file()
    assert seen.series("run.logging_every") == {1: 1.0}
    assert seen.series("completion.length_cap") == {1: 16.0}


def test_ppo_rollout_loss_and_gradients_are_those_of_the_loop(tmp_path, train):
    """Two chunks a rollout, two micro-batches and two epochs an update, half of the responses without an end token."""
    trainer = build_sampling.ppo(
        str(tmp_path), **{**SETTINGS, "updates": 2, "gradient_accumulation_steps": 2}, local_rollout_forward_batch_size=8, response_length=5, missing_eos_penalty=0.5
    )  # fmt: skip
    losses, norms, critic, responses = [], [], [], []
    backward, step, generate = trainer.accelerator.backward, trainer.optimizer.step, trainer.policy_model.generate

    def keep_loss(loss, **kwargs):
        losses.append(float(loss))
        return backward(loss, **kwargs)

    def keep_norms(*args, **kwargs):
        if trainer.accelerator.sync_gradients:
            norms.append(float(torch.linalg.vector_norm(torch.stack([p.grad.norm() for p in trainer.model.parameters() if p.grad is not None]))))
            critic.append(float(torch.linalg.vector_norm(torch.stack([p.grad.norm() for p in trainer.value_model.parameters() if p.grad is not None]))))
        return step(*args, **kwargs)

    def keep_text(*args, **kwargs):
        out = generate(*args, **kwargs)
        responses.append(out.sequences[:, kwargs["input_ids"].shape[1] :].tolist())
        return out

    trainer.accelerator.backward, trainer.optimizer.step, trainer.policy_model.generate = keep_loss, keep_norms, keep_text
    seen = train(trainer)
    assert seen.notices == []
    # 2 epochs x 2 micro-batches of loss, 2 optimizer steps and 2 chunks an update
    assert (len(losses), len(norms), len(responses)) == (8, 4, 4)
    for update in (1, 2):
        assert seen.series("optim.loss_raw")[update] == pytest.approx(np.mean(losses[4 * update - 4 : 4 * update]), rel=1e-4)
        assert seen.series("optim.grad_norm_step")[update] == pytest.approx(max(norms[2 * update - 2 : 2 * update]), rel=1e-4)
        assert seen.series("value.grad_norm")[update] == pytest.approx(max(critic[2 * update - 2 : 2 * update]), rel=1e-4)
        rows = [row for chunk in responses[2 * update - 2 : 2 * update] for row in chunk]
        ended = [build_sampling.tiny.END_ID in row for row in rows]
        assert 0 < sum(ended) < len(rows)
        assert seen.series("completion.truncated_fraction")[update] == pytest.approx(1 - sum(ended) / len(rows))
        lengths = [row.index(build_sampling.tiny.END_ID) + 1 if done else len(row) for row, done in zip(rows, ended, strict=True)]
        assert seen.series("completion.length_mean")[update] == pytest.approx(np.mean(lengths))
        scores = [score_by_hand(trainer, row, done) for row, done in zip(rows, ended, strict=True)]
        # TRL's own mean is of the same scores, the penalty included: so ours are the raw rewards of this rollout.
        assert np.mean(scores) == pytest.approx(seen.logged("objective/scores")[update], abs=1e-5)
        assert seen.series("reward.min")[update] == pytest.approx(min(scores), abs=1e-5)
        assert seen.series("reward.max")[update] == pytest.approx(max(scores), abs=1e-5)
        assert seen.series("reward.std")[update] == pytest.approx(np.std(scores, ddof=1), abs=1e-5)


def score_by_hand(trainer, row, done):
    """Share of vowels of a finished response, minus half a point for an unfinished one."""
    texts = [trainer.processing_class.decode([token]) for token in (row[: row.index(build_sampling.tiny.END_ID)] if done else row)]
    share = sum(sum(char in build_sampling.tiny.VOWELS for char in text) / max(1, len(text)) for text in texts) / max(1, len(texts))
    return share if done else -0.5


def test_ppo_logged_names_mean_what_they_say(tmp_path, train):
    seen = train(build_sampling.ppo(str(tmp_path), **SETTINGS))
    pairs = [
        ("reward.mean", "objective/scores"), ("reward.penalised_mean", "objective/rlhf_reward"), ("policy.kl_ref_sequence", "objective/kl"),
        ("policy.kl_old", "policy/approxkl_avg"), ("policy.clip_fraction", "policy/clipfrac_avg"), ("policy.ratio_mean", "val/ratio"),
        ("policy.entropy", "policy/entropy_avg"), ("value.loss", "loss/value_avg"), ("value.clip_fraction", "val/clipfrac_avg"),
        ("optim.learning_rate", "lr"),
    ]  # fmt: skip
    for signal, metric in pairs:
        assert seen.series(signal) == pytest.approx(seen.logged(metric)), signal
    assert seen.series("reward.penalised_mean")[3] != seen.series("reward.mean")[3]
    times = [frame.time for frame in seen.frames]
    for step, (before, after) in enumerate(pairwise(times), start=2):
        assert 0 < seen.series("time.generation_seconds")[step] < seen.series("time.step_seconds")[step] <= after - before + 0.05


def test_ppo_values_of_the_critic_are_read_before_each_token(tmp_path, train):
    """A critic that says 0 everywhere explains nothing; one that is told the score of the whole response explains everything."""
    seen = train(build_sampling.ppo(str(tmp_path), **{**SETTINGS, "updates": 1}))
    assert seen.series("value.explained_variance")[1] == pytest.approx(0.0, abs=1e-6)
    scores = np.asarray([0.0, 1.0, 0.5])
    rows = [[5, 6, 2], [5, 2, 0], [5, 6, 7]]
    knows = [np.full(3, score) for score in (0.0, 1.0, -0.5)]  # the third has no end token: 0.5 - 1.0
    values = rollout_signals(rows, scores, knows, end=2, stops=True, penalty=1.0)
    assert values["value.explained_variance"] == pytest.approx(1.0)
    assert (values["reward.min"], values["reward.max"]) == (-0.5, 1.0)
    assert values["completion.truncated_fraction"] == pytest.approx(1 / 3)
    assert (values["completion.length_min"], values["completion.length_max"]) == (2, 3)
    # Without a stop token a response goes on behind an end token, and has one all the same.
    whole = rollout_signals(rows, scores, None, end=2, stops=False, penalty=0.0)
    assert (whole["completion.length_min"], whole["completion.truncated_fraction"]) == (3, pytest.approx(1 / 3))


def test_ppo_explained_variance_by_hand():
    scores, values = np.asarray([1.0, 0.0]), [np.asarray([1.0, 1.0]), np.asarray([0.5])]
    returns, guesses = np.asarray([1.0, 1.0, 0.0]), np.asarray([1.0, 1.0, 0.5])
    assert explained_variance(scores, values) == pytest.approx(1 - np.var(returns - guesses) / np.var(returns))
    assert explained_variance(scores, [np.asarray([9.0, -9.0]), np.asarray([5.0])]) < 0
    assert explained_variance(np.ones(2), values) is None
