"""The callback under real supervised trainings, attached and not."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from trainvitals.integrations import tiny
from trainvitals.integrations.transformers import STATE_FILE, VitalsCallback
from trainvitals.integrations.trl import attach
from trainvitals.items import Frame

pytestmark = pytest.mark.trl


class Poison(TrainerCallback):
    """Makes one weight NaN before a step, as a bad kernel or an overflow does."""

    def __init__(self, at: int) -> None:
        self.at = at

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step == self.at - 1:
            with torch.no_grad():
                next(model.parameters()).view(-1)[0] = math.nan


def test_a_hidden_nan_is_seen(tmp_path, monitor):
    """transformers writes 0.0 where the loss is NaN; the raw loss and the gradient norm tell."""
    trainer = tiny.sft(str(tmp_path), max_steps=6, callbacks=[Poison(4)])
    attach(trainer, monitor=monitor)
    trainer.train()
    raw, logged = monitor.series("optim.loss_raw"), monitor.series("optim.loss")
    assert all(math.isfinite(raw[step]) for step in (1, 2, 3))
    assert all(math.isnan(raw[step]) for step in (4, 5, 6))
    assert all(math.isfinite(value) for value in logged.values())
    assert logged[5] == 0.0
    assert math.isnan(monitor.series("optim.grad_norm_step")[4])
    assert monitor.series("optim.nonfinite_grads")[5] > 0


def test_without_attach_nothing_is_inferred(tmp_path, monitor):
    trainer = tiny.sft(str(tmp_path), max_steps=3, callbacks=[VitalsCallback(monitor=monitor)])
    trainer.train()
    assert "optim.loss_raw" not in monitor.start.emits
    assert not monitor.series("optim.loss_raw")
    assert monitor.start.trainer == "sft"
    norms = monitor.series("optim.grad_norm_step")
    logged = {row["step"]: row["grad_norm"] for row in trainer.state.log_history if "grad_norm" in row}
    for step in (1, 2, 3):  # after clipping: at most max_grad_norm
        assert norms[step] == pytest.approx(min(logged[step], 1.0), rel=1e-3)
        assert monitor.series("optim.clipped_step")[step] == float(logged[step] > 1.0)
    assert monitor.series("optim.trainable_with_grad") == {1: 1.0, 2: 1.0, 3: 1.0}


def test_unclipped_gradients_are_counted(tmp_path, monitor):
    trainer = tiny.sft(str(tmp_path), max_steps=3, max_grad_norm=0.0, callbacks=[Poison(3), VitalsCallback(monitor=monitor)])
    trainer.train()
    bad = monitor.series("optim.nonfinite_grads")
    assert (bad[1], bad[2]) == (0, 0)
    assert bad[3] > 0


def test_the_raw_loss_of_accumulated_micro_batches(tmp_path, monitor):
    trainer = tiny.sft(str(tmp_path), max_steps=3, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    attach(trainer, monitor=monitor)
    trainer.train()
    logged = {row["step"]: row["loss"] for row in trainer.state.log_history if "loss" in row}
    assert monitor.series("optim.loss_raw") == pytest.approx(logged, rel=1e-3)


def test_evaluations_are_no_training_steps(tmp_path, monitor):
    trainer = tiny.sft(str(tmp_path), max_steps=4, eval_strategy="steps", eval_steps=2)
    attach(trainer, monitor=monitor)
    trainer.train()
    evals = [item for item in monitor.items if isinstance(item, Frame) and item.phase == "eval"]
    assert [(frame.step, frame.closes) for frame in evals] == [(2, False), (4, False)]
    assert all(frame.values["eval.loss"] > 0 for frame in evals)
    assert [frame.step for frame in monitor.frames] == [1, 2, 3, 4]
    assert monitor.boundaries("eval_begin") == monitor.boundaries("eval_end") == [2, 4]
    kinds = [getattr(item, "what", None) or (item.phase if isinstance(item, Frame) else "") for item in monitor.items]
    assert kinds.index("eval_begin") < kinds.index("eval") < kinds.index("eval_end")


def test_what_the_configuration_announces_is_a_legal_jump(tmp_path, monitor):
    """The end of the warm-up; and TRL's `sync_ref_model`, which starts the KL to the reference again."""
    trainer = tiny.sft(str(tmp_path), max_steps=4, warmup_steps=3)
    # The names of TRL's own arguments; a reference model needs a model folder, which the tiny model does not have.
    trainer.args.sync_ref_model, trainer.args.ref_model_sync_steps = True, 2
    attach(trainer, monitor=monitor)
    trainer.train()
    assert monitor.boundaries("schedule_change") == [3]
    assert monitor.boundaries("ref_sync") == [2, 4]


def test_state_travels_with_the_checkpoint(tmp_path, monitor):
    out = str(tmp_path)
    first = tiny.sft(out, max_steps=4, save_strategy="steps", save_steps=2)
    attach(first, monitor=monitor)
    first.train()
    saved = json.loads((tmp_path / "checkpoint-2" / STATE_FILE).read_text())
    assert saved["monitor"] == {"frames": 2}
    assert monitor.boundaries("save_begin") == monitor.boundaries("save_end") == [2, 4]

    again = type(monitor)()
    second = tiny.sft(out, max_steps=4, save_strategy="no")
    attach(second, monitor=again)
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert again.loaded == [{"frames": 2}]
    assert again.boundaries("resume") == [2]
    assert [frame.step for frame in again.frames] == [3, 4]


def test_after_a_resume_the_data_are_compared_with_the_beginning_of_the_whole_run(tmp_path, monitor):
    """16 updates of 8 rows are the start, 16 more the newest stretch: the first look comes at update 32, whichever process is at it."""
    settings = {"max_steps": 36, "logging_steps": 36, "lr_scheduler_type": "constant"}
    whole = tiny.sft(str(tmp_path / "whole"), **settings)
    attach(whole, monitor=monitor)
    whole.train()
    looks = monitor.series("data.drift_ratio")
    assert set(looks) == {32, 36}

    out = str(tmp_path / "parts")
    first = tiny.sft(out, **{**settings, "max_steps": 20}, save_strategy="steps", save_steps=20)
    attach(first, monitor=type(monitor)())
    first.train()
    again = type(monitor)()
    second = tiny.sft(out, **settings, save_strategy="no")
    attach(second, monitor=again)
    second.train(resume_from_checkpoint=f"{out}/checkpoint-20")
    assert again.series("data.drift_ratio") == looks

    saved = tmp_path / "parts" / "checkpoint-20" / STATE_FILE  # of an older version: it starts anew
    saved.write_text(json.dumps({key: value for key, value in json.loads(saved.read_text()).items() if key != "hooks"}))
    third, anew = tiny.sft(out, **settings, save_strategy="no"), type(monitor)()
    attach(third, monitor=anew)
    third.train(resume_from_checkpoint=f"{out}/checkpoint-20")
    assert anew.series("data.drift_ratio") == {}


def test_a_moved_checkpoint_is_found_when_attached(tmp_path, monitor):
    first = tiny.sft(str(tmp_path / "a"), max_steps=2, save_strategy="steps", save_steps=2)
    attach(first, monitor=monitor)
    first.train()
    moved = tmp_path / "elsewhere"
    (tmp_path / "a" / "checkpoint-2").rename(moved)
    again = type(monitor)()
    second = tiny.sft(str(tmp_path / "b"), max_steps=3, save_strategy="no")
    attach(second, monitor=again)
    second.train(resume_from_checkpoint=str(moved))
    assert again.loaded == [{"frames": 2}]


def test_resuming_without_our_state_is_said(tmp_path, monitor, capsys):
    first = tiny.sft(str(tmp_path), max_steps=2, save_strategy="steps", save_steps=2)
    first.train()
    second = tiny.sft(str(tmp_path), max_steps=3, save_strategy="no")
    attach(second, monitor=monitor)
    second.train(resume_from_checkpoint=True)
    assert capsys.readouterr().err.count(f"no {STATE_FILE} in the checkpoint of step 2") == 1
    assert [frame.step for frame in monitor.frames] == [3]


def test_a_callback_that_asks_for_a_log_later_gives_an_extra_row(tmp_path, monitor):
    """Some callbacks set should_log after ours has run: the step is closed already, its row comes as a second frame."""

    class Late(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_log = True

    trainer = tiny.sft(str(tmp_path), max_steps=3, logging_steps=50)
    attach(trainer, monitor=monitor)
    trainer.add_callback(Late())
    trainer.train()
    assert [(frame.step, frame.closes) for frame in monitor.frames] == [
        (1, True), (1, False), (2, True), (2, False), (3, True), (3, False),
    ]  # fmt: skip
    assert sorted(monitor.series("optim.loss")) == [1, 2, 3]


def test_a_log_row_before_the_step_ends_belongs_to_the_step(monitor):
    """PPO logs before on_step_end and has no on_step_begin."""
    from transformers import TrainerControl, TrainerState, TrainingArguments

    args = TrainingArguments(output_dir="unused", use_cpu=True, report_to="none")
    callback = VitalsCallback(monitor=monitor, tick_seconds=0)
    state, control = TrainerState(max_steps=2), TrainerControl()
    callback.on_train_begin(args, state, control, model=torch.nn.Linear(1, 1))
    for step in (1, 2):
        state.global_step = step
        callback.on_log(args, state, control, logs={"objective/kl": 0.1 * step})
        callback.on_step_end(args, state, control)
    callback.on_train_end(args, state, control)
    assert [(frame.step, frame.closes) for frame in monitor.frames] == [(1, True), (2, True)]
    assert monitor.series("policy.kl_ref_sequence") == pytest.approx({1: 0.1, 2: 0.2})


def test_an_exception_in_training_still_ends_the_run(tmp_path, monkeypatch):
    ends: list[str] = []
    trainer = tiny.sft(str(tmp_path), max_steps=5)
    callback = attach(trainer, tick_seconds=0)
    monkeypatch.setattr(callback, "_start_monitor", lambda *args: None)
    callback.monitor = type(
        "Closing", (), {"publish": lambda self, item: None, "close": lambda self, status, detail: ends.append(status)}
    )()

    class Crash(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 2:
                raise KeyboardInterrupt

    trainer.add_callback(Crash())
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert ends == ["interrupted"]


def test_rloo_ratios_are_per_sequence(tmp_path, monitor):
    from trl import RLOOConfig, RLOOTrainer

    vocabulary = tiny.tokenizer()
    trainer = RLOOTrainer(
        model=tiny.policy(vocabulary),
        reward_funcs=tiny.vowels,
        args=RLOOConfig(
            **tiny.arguments(str(tmp_path), max_steps=4, num_generations=4, max_completion_length=12, num_iterations=2, beta=0.0)
        ),
        train_dataset=tiny.prompts(),
        processing_class=vocabulary,
    )
    callback = attach(trainer, monitor=monitor)
    trainer.train()
    assert not callback.off
    assert monitor.start.trainer == "rloo"
    outside = monitor.series("policy.ratio_outside_fraction")
    clipped = monitor.series("policy.clip_fraction")
    assert sorted(outside) == [1, 2, 3, 4]
    assert all(outside[step] >= clipped[step] - 1e-6 for step in clipped)
    assert monitor.series("reward.group_count")[1] == 2
