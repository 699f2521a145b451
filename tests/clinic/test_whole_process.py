"""What only a whole process shows: the demo, a kill in mid-training, a resumed run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from trainvitals import cli
from trainvitals.integrations import demo, tiny
from trainvitals.integrations.trl import attach

pytestmark = [pytest.mark.slow, pytest.mark.trl]


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "vitals" / "rank0.jsonl").read_text().splitlines()]


def test_the_demo_shows_both_faults(tmp_path, capfd):
    assert demo.main(["--output", str(tmp_path)]) == 0
    said = capfd.readouterr().err
    assert "[TRL] WARNING: Clip ratio outside [0.8, 1.2] for " in said
    assert "Advantage signal has collapsed. Consider revisiting your reward function." in said
    assert said.index("(clip-ratio-high") < said.index("(advantage-collapse")
    assert "\nvitals_verdict: " in said
    assert "trainvitals check" in said
    fired = {record["rule"]["id"] for record in records(tmp_path) if record["kind"] == "finding" and record["state"] == "firing"}
    assert {"clip-ratio-high", "advantage-collapse"} <= fired
    # And nothing that is not true of it: a newcomer's first run must not blame lengths or learning for a broken parser.
    assert fired <= {"clip-ratio-high", "advantage-collapse", "reward-collapse", "reward-drop", "reward-solved", "throughput-drop"}


def test_the_healthy_demo_says_nothing_but_the_end_block(tmp_path, capfd):
    assert demo.main(["--healthy", "--output", str(tmp_path)]) == 0
    said = capfd.readouterr().err
    loud = [line for line in said.splitlines() if line.startswith("[TRL]") and "(throughput-drop," not in line]
    assert loud == []  # throughput-drop is about the machine, which may be busy
    assert "\nvitals_verdict: " in said


def test_a_killed_training_leaves_an_end_block_and_whole_records(tmp_path):
    script = textwrap.dedent(f"""
        import torch; torch.set_num_threads(1)
        from trainvitals.integrations import tiny
        from trainvitals.integrations.trl import attach
        trainer = tiny.sft({str(tmp_path)!r}, max_steps=100000)
        attach(trainer)
        trainer.train()
    """)
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (tmp_path / "err").open("w") as err:
        child = subprocess.Popen([sys.executable, "-c", script], stderr=err, stdout=subprocess.DEVNULL, env=env)
        path = tmp_path / "vitals" / "rank0.jsonl"
        end = time.monotonic() + 120
        while time.monotonic() < end and not (path.exists() and path.stat().st_size > 20000):
            time.sleep(0.2)
        child.send_signal(signal.SIGTERM)
        assert child.wait(60) == -signal.SIGTERM
    assert "\nvitals_verdict: " in (tmp_path / "err").read_text()
    last = records(tmp_path)[-1]
    assert (last["kind"], last["status"]) == ("run_end", "killed")


def test_a_resumed_run_says_what_an_uninterrupted_one_says(tmp_path, capsys):
    settings = {"learning_rate": 2e-4, "lr_scheduler_type": "constant", "save_steps": 50, "save_strategy": "steps"}

    def train(folder: str, resume: bool, stop: int | None = None) -> Any:
        trainer = tiny.grpo(folder, reward=demo.reward_with_parser(30), max_steps=90, **settings)
        callback = attach(trainer, console=False)
        if stop is not None:
            trainer.add_callback(_stop_at(stop))
        trainer.train(resume_from_checkpoint=True if resume else None)
        return callback.monitor

    whole = train(str(tmp_path / "whole"), resume=False)
    train(str(tmp_path / "parts"), resume=False, stop=50)
    resumed = train(str(tmp_path / "parts"), resume=True)
    opened = {f.rule.id: f.step for f in whole.findings if f.state == "firing"}
    again = {r["rule"]["id"]: r["step"] for r in records(tmp_path / "parts") if r["kind"] == "finding" and r["state"] == "firing"}
    assert "advantage-collapse" in opened
    assert again.keys() == opened.keys()
    # Sampling after the checkpoint differs a little: generation draws from another state.
    assert all(abs(again[rule] - step) <= 3 for rule, step in opened.items())
    assert resumed.step == whole.step == 90
    stored = [line for line in (tmp_path / "parts" / "vitals" / "rank0.jsonl").read_text().splitlines() if '"kind":"finding"' in line]
    capsys.readouterr()
    cli.main(["check", "--format", "jsonl", "--fail-on", "never", str(tmp_path / "parts")])
    assert [line for line in capsys.readouterr().out.splitlines() if '"kind":"finding"' in line] == stored


def _stop_at(step: int) -> Any:
    from transformers import TrainerCallback

    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == step:
                control.should_training_stop = True

    return Stop()


class Hang(TrainerCallback):
    """The main thread stands still once, as before a collective that never comes, until a rule has spoken; notes what was said meanwhile."""

    def __init__(self, at: int, rule: str, seconds: float) -> None:
        self.at, self.rule, self.seconds = at, rule, seconds
        self.callback: Any = None
        self.meanwhile: list[str] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.at:
            end = time.monotonic() + self.seconds
            while self.rule not in self.meanwhile and time.monotonic() < end:
                time.sleep(0.2)
                self.meanwhile = [one.rule.id for one in self.callback.monitor.findings if one.state == "firing"]


def test_a_hanging_step_is_reported_while_it_hangs(tmp_path):
    """The watchdog's thread and the stall rule, on real training: up to 35 s of silence where 0.02 s are usual, the rule's own 15 s between two looks among them."""
    overrides = tmp_path / "trainvitals.yaml"
    overrides.write_text("rules:\n  - id: training-stalled\n    params: {min_wait: 10}\n    reason: a test has no five minutes\n")
    hang = Hang(at=20, rule="training-stalled", seconds=35)
    trainer = tiny.sft(str(tmp_path / "run"), max_steps=30, callbacks=[hang], learning_rate=1e-4)
    hang.callback = attach(trainer, tick_seconds=0.5, overrides=[overrides], console=False)
    trainer.train()
    assert "training-stalled" in hang.meanwhile
    states = [one.state for one in hang.callback.monitor.findings if one.rule.id == "training-stalled"]
    assert states == ["firing", "resolved"]
