"""The integrations with the real monitor: what two lines give, and who speaks."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from trainvitals.integrations import tiny
from trainvitals.integrations.torch import gradient_signals, memory_signals
from trainvitals.integrations.transformers import VitalsCallback
from trainvitals.integrations.trl import attach
from trainvitals.monitor import Monitor

pytestmark = pytest.mark.trl


def records(folder: Path, rank: int = 0) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "vitals" / f"rank{rank}.jsonl").read_text().splitlines()]


def test_two_lines_record_the_run(tmp_path, capsys):
    trainer = tiny.grpo(str(tmp_path), max_steps=3)
    attach(trainer)
    trainer.train()
    lines = records(tmp_path)
    kinds = [line["kind"] for line in lines]
    assert (kinds[0], kinds[-1]) == ("run_start", "run_end")
    assert {"signal", "verdict", "coverage"} <= set(kinds)
    frames = [line for line in lines if line["kind"] == "signal" and line["event"] == "frame"]
    assert [frame["step"] for frame in frames] == [1, 2, 3]
    assert frames[0]["values"]["reward.group_std_mean"] > 0
    coverage = next(line for line in lines if line["kind"] == "coverage")
    assert coverage["unknown_metrics"] == []
    assert not any(rule["status"] == "error" for rule in coverage["rules"])
    err = capsys.readouterr().err
    assert "\nvitals_verdict: " in err
    assert lines[0]["trainer"] == "grpo"


def test_the_callback_alone_works_under_any_trainer(tmp_path, capsys):
    trainer = tiny.sft(str(tmp_path), max_steps=2, callbacks=[VitalsCallback()])
    trainer.train()
    assert records(tmp_path)[-1]["status"] == "completed"
    assert "vitals_verdict: " in capsys.readouterr().err


def test_ranks_above_zero_record_and_do_not_speak(tmp_path, capsys):
    trainer = tiny.sft(str(tmp_path), max_steps=3)
    patched = type(
        "Rank1", (type(trainer.args),), {"process_index": property(lambda self: 1), "world_size": property(lambda self: 2)}
    )
    callback = attach(trainer, console=True)
    begin = callback.on_train_begin

    class AsRankOne(TrainerCallback):
        """Lets only our callback believe that this is rank 1: a real second process would double the test's time."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            plain, args.__class__ = args.__class__, patched
            try:
                begin(args, state, control, **kwargs)
            finally:
                args.__class__ = plain

    callback.on_train_begin = lambda *args, **kwargs: None
    trainer.add_callback(AsRankOne())
    trainer.train()
    assert "vitals_" not in capsys.readouterr().err
    assert [r["rank"] for r in records(tmp_path, 1)] == [1] * len(records(tmp_path, 1))
    assert not (tmp_path / "vitals" / "rank0.jsonl").exists()


def test_a_failing_subscriber_is_reported_once_and_training_goes_on(tmp_path):
    console = io.StringIO()
    trainer = tiny.sft(str(tmp_path), max_steps=4)
    callback = attach(trainer, console=console)

    class Sabotage(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 1:
                callback.monitor.bus.subscribe("saboteur", lambda item: 1 / 0)

    trainer.add_callback(Sabotage())
    trainer.train()
    assert trainer.state.global_step == 4
    assert console.getvalue().count("saboteur failed with ZeroDivisionError") == 1
    assert not callback.off
    faults = [line for line in records(tmp_path) if line["kind"] == "finding" and line["state"] == "error"]
    assert len(faults) == 1


def test_a_wrong_rule_file_is_told_and_training_goes_on(tmp_path, capsys):
    bad = tmp_path / "mine.yaml"
    bad.write_text("id: mine\nwhen: reward.maen > 1\n")
    trainer = tiny.sft(str(tmp_path / "out"), max_steps=2)
    callback = attach(trainer, rules=[bad])
    trainer.train()
    assert callback.off
    assert trainer.state.global_step == 2
    assert capsys.readouterr().err.count("switched off: on_train_begin raised RuleError") == 1


def test_the_watchdog_ticks_into_the_records_and_stops(tmp_path):
    import threading
    import time

    class Slow(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 1:
                time.sleep(0.3)

    trainer = tiny.sft(str(tmp_path), max_steps=2, callbacks=[Slow()])
    attach(trainer, console=False, tick_seconds=0.05)
    trainer.train()
    ticks = [line for line in records(tmp_path) if line["kind"] == "signal" and line["event"] == "tick"]
    assert len(ticks) >= 3
    assert all(tick["time"] for tick in ticks)
    assert not any(thread.name == "trainvitals-watchdog" for thread in threading.enumerate())


def test_a_second_training_of_the_same_trainer_is_a_new_run(tmp_path, capsys):
    trainer = tiny.sft(str(tmp_path), max_steps=2)
    callback = attach(trainer)
    trainer.train()
    first = callback.monitor
    trainer.train()
    assert callback.monitor is not first
    assert capsys.readouterr().err.count("\nvitals_verdict: ") == 2


def test_a_plain_pytorch_loop(tmp_path):
    """The example of `integrations.torch`, run."""
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Monitor(output_dir=tmp_path, console=False) as vitals:
        for step in range(1, 21):
            batch = torch.randn(8, 4)
            loss = (model(batch) - batch.sum(1, keepdim=True)).pow(2).mean()
            loss.backward()
            gradients = gradient_signals(model.parameters())
            optimizer.step()
            optimizer.zero_grad()
            vitals.log(step, {"loss": loss.item(), **gradients, **memory_signals()})
    frames = [line for line in records(tmp_path) if line["kind"] == "signal"]
    assert [frame["step"] for frame in frames] == list(range(1, 21))
    assert {"optim.loss", "optim.grad_norm_step", "optim.nonfinite_grads"} <= frames[0]["values"].keys()
    assert vitals.verdict is not None


def test_importing_the_package_costs_no_torch():
    import subprocess

    code = "import sys, trainvitals.integrations.nvml, trainvitals.integrations.watchdog; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
