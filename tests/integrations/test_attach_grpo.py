"""What `attach` reads from GRPO agrees with what TRL says where both mean the same."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import pytest
import torch

from trainvitals.integrations import tiny
from trainvitals.integrations.grpo import ratio_stats
from trainvitals.integrations.lifecycle import cause_of
from trainvitals.integrations.transformers import VitalsCallback
from trainvitals.integrations.trl import attach, detach

pytestmark = pytest.mark.trl


def test_every_update_closes_exactly_once(grpo):
    assert [(frame.step, frame.closes) for frame in grpo.monitor.frames] == [(step, True) for step in range(1, 9)]


def test_signals_come_from_the_run_they_were_announced_for(grpo):
    named = {key.split("{")[0] for frame in grpo.monitor.frames for key in frame.values}
    assert named <= grpo.monitor.start.emits
    assert {"policy.ratio_outside_fraction", "reward.group_std_mean", "optim.loss_raw", "optim.grad_norm_step"} <= named


def test_the_run_describes_itself(grpo):
    start = grpo.monitor.start
    assert (start.trainer, start.framework, start.total_steps, start.rank) == ("grpo", "trl", 8, 0)
    assert start.config["num_generations"] == 8
    assert start.config["learning_rate"] == pytest.approx(1e-2)
    assert not any("token" in name and "hub" in name for name in start.config)


def test_per_step_values_equal_the_logged_ones(grpo):
    """logging_steps=1: the average of one step is the step."""
    pairs = [
        ("policy.entropy", "entropy"),
        ("policy.clip_fraction", "clip_ratio/region_mean"),
        ("reward.mean", "reward"),
        ("optim.grad_norm_step", "grad_norm"),
        ("optim.learning_rate", "learning_rate"),
        ("optim.loss_raw", "loss"),
        ("completion.truncated_fraction", "completions/clipped_ratio"),
    ]
    for signal, metric in pairs:
        ours, theirs = grpo.monitor.series(signal), grpo.logged(metric)
        assert ours.keys() == theirs.keys(), signal
        for step, value in theirs.items():
            assert ours[step] == pytest.approx(value, abs=1e-4), (signal, step)


def test_ratios_outside_bound_the_clip_fraction_from_above(grpo):
    outside, clipped = grpo.monitor.series("policy.ratio_outside_fraction"), grpo.monitor.series("policy.clip_fraction")
    assert max(outside.values()) > 0.05
    assert all(outside[step] >= clipped[step] - 1e-6 for step in clipped)
    assert all(outside[step] == 0.0 for step in (1, 3, 5, 7))  # the first update of a batch is on-policy


def test_group_spread_is_the_trainers_own(tmp_path, monitor):
    """A constant second reward function makes every group flat in one component and not in the other."""
    seen: list[torch.Tensor] = []
    trainer = tiny.grpo(str(tmp_path), reward=[tiny.vowels, constant], max_steps=2)
    attach(trainer, monitor=monitor)
    hooked = trainer._calculate_rewards
    trainer._calculate_rewards = lambda *a, **k: seen.append(out := hooked(*a, **k)) or out
    trainer.train()
    groups = seen[0].sum(1).view(-1, 8)
    assert monitor.series("reward.group_std_mean")[1] == pytest.approx(float(groups.std(dim=1).mean()), rel=1e-5)
    assert monitor.series("reward.group_count")[1] == 4
    row = trainer.state.log_history[0]
    assert monitor.series("reward.group_zero_std_fraction")[1] == pytest.approx(row["frac_reward_zero_std"])
    assert monitor.series("reward.component_share{component=constant}")[1] == pytest.approx(0.0)
    assert monitor.series("reward.component_share{component=vowels}")[1] == pytest.approx(1.0)


def constant(completions: list[Any], **kwargs: Any) -> list[float]:
    return [0.5] * len(completions)


def test_ratio_stats_reproduce_trls_region_mean(tmp_path, monitor):
    """Masked by the sign of the advantage, our ratios give exactly the number that TRL logs."""
    shares: list[float] = []
    trainer = tiny.grpo(str(tmp_path), max_steps=4, num_iterations=2, learning_rate=1e-2)
    attach(trainer, monitor=monitor)
    box: dict[str, torch.Tensor] = {}
    logps, loss = trainer._get_per_token_logps_and_entropies, trainer._compute_loss

    def keep(*args: Any, **kwargs: Any) -> Any:
        out = logps(*args, **kwargs)
        box["new"] = out[0].detach()
        return out

    def check(model: Any, inputs: dict[str, torch.Tensor]) -> Any:
        out = loss(model, inputs)
        mask, old = inputs["completion_mask"], inputs.get("old_per_token_logps")
        up = (inputs["advantages"] > 0).unsqueeze(1) * mask
        down = (inputs["advantages"] < 0).unsqueeze(1) * mask
        high = ratio_stats(box["new"], old, up, 0.0, 1.2, sequence=False)[0]
        low = ratio_stats(box["new"], old, down, 0.8, math.inf, sequence=False)[0]
        shares.append(float((high + low) / mask.sum()))
        return out

    trainer._get_per_token_logps_and_entropies, trainer._compute_loss = keep, check
    trainer.train()
    logged = [row["clip_ratio/region_mean"] for row in trainer.state.log_history if "clip_ratio/region_mean" in row]
    assert max(logged) > 0
    assert shares == pytest.approx(logged, abs=1e-6)


def test_a_hook_that_finds_no_method_says_so_once(tmp_path, monitor, monkeypatch, capsys):
    import trl

    monkeypatch.delattr(trl.GRPOTrainer, "_generate", raising=True)
    trainer = tiny.grpo(str(tmp_path), max_steps=1)
    callback = attach(trainer, monitor=monitor)
    assert "_generate" not in callback.hooks.names
    assert capsys.readouterr().err.count("GRPOTrainer has no _generate") == 1


def test_a_hook_that_fails_switches_off_alone(tmp_path, monitor, monkeypatch, capsys):
    monkeypatch.setattr("trainvitals.integrations.sampling.ratio_stats", lambda *a, **k: 1 / 0)
    trainer = tiny.grpo(str(tmp_path), max_steps=4, num_iterations=2)
    callback = attach(trainer, monitor=monitor)
    trainer.train()
    err = capsys.readouterr().err
    assert err.count("hook _compute_loss switched off: ZeroDivisionError") == 1
    assert "_compute_loss" not in vars(trainer)
    assert not callback.off
    assert len(monitor.frames) == 4
    assert len(monitor.series("reward.group_std_mean")) == 2
    assert trainer.state.global_step == 4


def test_a_broken_monitor_does_not_stop_training(tmp_path, monitor, capsys):
    monitor.fail_on = lambda item: getattr(item, "step", 0) == 2
    trainer = tiny.grpo(str(tmp_path), max_steps=4)
    callback = attach(trainer, monitor=monitor)
    trainer.train()
    assert callback.off
    assert trainer.state.global_step == 4
    assert capsys.readouterr().err.count("switched off") == 1
    assert "training_step" not in vars(trainer)


def test_detach_restores_the_instance(tmp_path, monitor):
    trainer = tiny.grpo(str(tmp_path), max_steps=1)
    before = set(vars(trainer)), set(vars(trainer.accelerator))
    mine = trainer.compute_loss
    trainer._generate = wrapped = lambda *a, **k: mine
    attach(trainer, monitor=monitor)
    assert "training_step" in vars(trainer)
    detach(trainer)
    assert (set(vars(trainer)) - {"_generate"}, set(vars(trainer.accelerator))) == before
    assert trainer._generate is wrapped
    assert not any(isinstance(callback, VitalsCallback) for callback in trainer.callback_handler.callbacks)


def test_attaching_twice_gives_the_same_callback(tmp_path, monitor):
    trainer = tiny.grpo(str(tmp_path), max_steps=1)
    callback = attach(trainer, monitor=monitor)
    assert attach(trainer) is callback
    with pytest.raises(ValueError, match="already has a VitalsCallback: give console"):
        attach(trainer, console=False)


def test_values_of_each_step_although_trl_logs_every_fourth(tmp_path, monitor):
    trainer = tiny.grpo(str(tmp_path), max_steps=6, logging_steps=4)
    attach(trainer, monitor=monitor)
    trainer.train()
    assert sorted(monitor.series("policy.entropy")) == [1, 2, 3, 4, 5, 6]
    assert sorted(monitor.series("optim.loss")) == [4]
    row = trainer.state.log_history[0]
    entropy = monitor.series("policy.entropy")
    assert sum(entropy[step] for step in (1, 2, 3, 4)) / 4 == pytest.approx(row["entropy"], rel=1e-5)


def test_sequence_level_ratios(tmp_path, monitor):
    trainer = tiny.grpo(
        str(tmp_path), max_steps=2, num_iterations=2, learning_rate=2e-2, importance_sampling_level="sequence", epsilon=0.01
    )
    attach(trainer, monitor=monitor)
    trainer.train()
    row = trainer.state.log_history[1]
    outside = monitor.series("policy.ratio_outside_fraction")[2]
    assert outside >= row["clip_ratio/region_mean"] - 1e-6
    assert (outside * 32) == pytest.approx(round(outside * 32))  # a share of 32 sequences, not of tokens
    assert monitor.start.emits
    assert monitor.series("policy.clip_high")[1] == pytest.approx(1.01)


def test_a_reward_function_that_raises_ends_the_run_under_its_name(tmp_path, capsys):
    """TRL's own exception comes through untouched; the end block and the records say where it was, not what it said."""
    said = KeyError("no field 'answer' in: a text of the data")
    calls = []

    def judge(completions, **kwargs):
        calls.append(len(completions))
        if len(calls) == 4:
            raise said
        return tiny.vowels(completions, **kwargs)

    trainer = tiny.grpo(str(tmp_path), reward=judge, max_steps=8, per_device_train_batch_size=8)
    callback = attach(trainer)
    with pytest.raises(KeyError) as caught:
        trainer.train()
    assert caught.value is said
    assert caught.traceback[-1].name == "judge"
    where = f"KeyError in judge (test_attach_grpo.py:{caught.traceback[-1].lineno + 1})"
    block = capsys.readouterr().err
    assert block.count("--- trainvitals") == 1
    assert f"\nvitals_ended: failed after update 3: {where}\n" in block
    assert "a text of the data" not in block
    rows = [json.loads(line) for line in (tmp_path / "vitals" / "rank0.jsonl").read_text().splitlines()]
    assert [row["kind"] for row in rows[-3:]] == ["verdict", "coverage", "run_end"]
    assert (rows[-1]["status"], rows[-1]["detail"], rows[-1]["step"]) == ("failed", where, 3)
    assert not callback.off
    assert callback._watchdog is None


def test_where_an_exception_came_from():
    def parse():
        json.loads("{")

    with pytest.raises(json.JSONDecodeError) as caught:
        parse()
    assert re.fullmatch(r"JSONDecodeError in parse \(test_attach_grpo\.py:\d+\)", cause_of(caught.value))
    assert cause_of(KeyboardInterrupt()) is None
    assert cause_of(SystemExit(3)) is None
    assert cause_of(ValueError("never raised")) == "ValueError"
