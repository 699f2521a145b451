"""The monitor as a whole: what it writes, what it prints, and that it never gets in the way of training."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from trainvitals.cli import main
from trainvitals.events import custom_signal
from trainvitals.findings import RECORD
from trainvitals.items import Applied, Boundary, Frame, RunEnd, RunStart, Tick
from trainvitals.monitor import Monitor
from trainvitals.rulelang.errors import RuleError
from trainvitals.schemas import record_schema

T0 = 1763896072.25
START = RunStart(
    "run-1", "grpo", "trl", config={"learning_rate": 1e-6, "num_generations": 8, "hub_token": "x"}, total_steps=140, time=T0
)


def row(step: int, *, bad_from: int = 60) -> dict[str, float]:
    """A GRPO run whose groups all become wrong."""
    bad = step >= bad_from
    return {
        "loss": 0.01,
        "reward": 0.05 if bad else 0.6 + 0.001 * (step % 3),
        "frac_reward_zero_std": 0.97 if bad else 0.2,
        "kl": 0.01,
        "entropy": 1.2,
        "learning_rate": 1e-6,
        "grad_norm": 0.3,
        "completions/clipped_ratio": 0.1,
    }


def drive(monitor: Monitor, first: int = 1, last: int = 140, **options: Any) -> None:
    for step in range(first, last + 1):
        monitor.log(step, row(step, **options), time=T0 + step)


def records(folder: Path, rank: int = 0) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "vitals" / f"rank{rank}.jsonl").read_text().splitlines()]


def test_every_record_is_valid_numbered_and_strict_json(tmp_path: Path) -> None:
    monitor = Monitor(output_dir=tmp_path, run=START, console=False)
    monitor.publish(Boundary(0, "train_begin", T0))
    drive(monitor, last=70)
    monitor.log(71, {**row(71), "loss": math.nan, "grad_norm": math.inf}, time=T0 + 71)
    monitor.publish(Boundary(71, "save_end", T0 + 71, {"path": "checkpoint-71", "hub_token": "secret"}))
    monitor.publish(Tick(71, T0 + 80))
    monitor.publish(Applied(71, "learning_rate", 1e-6, 5e-7, T0 + 81))
    monitor.log(72, {"eval_loss": 0.5}, phase="eval", time=T0 + 82)
    drive(monitor, 72)
    monitor.close()
    schema = jsonschema.Draft202012Validator(record_schema())
    text = (tmp_path / "vitals" / "rank0.jsonl").read_text()
    lines = [json.loads(line, parse_constant=lambda word: pytest.fail(f"bare {word}")) for line in text.splitlines()]
    for line in lines:
        schema.validate(line)
        RECORD.validate_python(line)
    assert [line["seq"] for line in lines] == list(range(len(lines)))
    assert lines[0]["kind"] == "run_start"
    assert [line["kind"] for line in lines[-3:]] == ["verdict", "coverage", "run_end"]
    assert {line["event"] for line in lines if line["kind"] == "signal"} == {"frame", "boundary", "tick", "applied"}
    assert {line["kind"] for line in lines} == {"run_start", "signal", "finding", "verdict", "action", "coverage", "run_end"}
    bad = next(line for line in lines if line["step"] == 71 and line.get("event") == "frame")
    assert bad["values"]["optim.loss"] == {"value": None, "nonfinite": "nan"}
    assert bad["values"]["optim.grad_norm"] == {"value": None, "nonfinite": "inf"}
    assert "secret" not in text
    assert "hub_token" not in text


def test_replay_gives_the_bytes_of_the_live_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Monitor(output_dir=tmp_path, run=START, console=False) as monitor:
        monitor.publish(Boundary(0, "train_begin", T0))
        drive(monitor, last=100)
        monitor.publish(Tick(100, T0 + 100.123456))
        monitor.publish(Applied(100, "learning_rate", 1e-6, 5e-7, T0 + 101))
        monitor.log(101, {**row(101), "loss": math.nan, "grad_norm": math.nan}, time=T0 + 101)
        drive(monitor, 102)
    stored = (tmp_path / "vitals" / "rank0.jsonl").read_text().splitlines()
    assert main(["check", "--format", "jsonl", str(tmp_path)]) == 1
    again = capsys.readouterr().out.splitlines()
    for kind in ("finding", "verdict"):
        mark = f'"kind":"{kind}"'
        expected = [line for line in stored if mark in line]
        assert expected
        assert [line for line in again if mark in line] == expected


@pytest.mark.parametrize("killed", [True, False])
def test_replay_of_a_run_that_overshot_its_checkpoint_and_resumed(tmp_path: Path, capsys: pytest.CaptureFixture[str], killed: bool) -> None:
    """Steps 61 to 100 happened twice; the second time from the state of the checkpoint at step 60."""
    first = Monitor(output_dir=tmp_path, run=START, console=False)
    drive(first, last=60)
    state = json.loads(json.dumps(first.state_dict()))
    first.boundary("save_end", 60, T0 + 60.5)
    drive(first, 61, last=100, bad_from=70)
    if not killed:
        first.close("interrupted")
    again = Monitor(output_dir=tmp_path, console=False, resumed_from=60)
    again.load_state_dict(state)
    again.publish(replace(START, time=T0 + 200))
    again.publish(Boundary(60, "train_begin", T0 + 200))
    again.publish(Boundary(60, "resume", T0 + 200))
    drive(again, 61, last=150, bad_from=90)
    again.close()
    stored = (tmp_path / "vitals" / "rank0.jsonl").read_text().splitlines()
    assert main(["check", "--format", "jsonl", str(tmp_path)]) == 1
    replayed = capsys.readouterr().out.splitlines()
    expected = [line for line in stored if '"kind":"finding"' in line]
    assert len(expected) > 4
    assert [line for line in replayed if '"kind":"finding"' in line] == expected


def test_console_prints_transitions_and_the_end_block(tmp_path: Path) -> None:
    stream = io.StringIO()
    with Monitor(output_dir=tmp_path, run=START, console=stream) as monitor:
        drive(monitor)
    lines = stream.getvalue().splitlines()
    place = lines.index("--- trainvitals")
    assert all(line.startswith("[TRL] ") for line in lines[:place])
    assert any("WARNING: Group reward std is 0 (near zero). Advantage signal has collapsed." in line for line in lines)
    block = dict(line.split(": ", 1) for line in lines[place + 1 :])
    assert all(key.startswith("vitals_") for key in block)
    assert block["vitals_verdict"] == "collapsed"
    assert int(block["vitals_errors"]) + int(block["vitals_warnings"]) >= 1
    assert block["vitals_records"] == str(tmp_path / "vitals" / "rank0.jsonl")
    assert {"vitals_decision", "vitals_reason", "vitals_first_bad_step", "vitals_last_healthy_step"} <= set(block)
    assert {"vitals_rules_evaluated", "vitals_rules_not_evaluated"} <= set(block)


def test_a_healthy_run_prints_nothing_but_the_end_block() -> None:
    stream = io.StringIO()
    with Monitor(run=START, console=stream) as monitor:
        drive(monitor, bad_from=10_000)
    assert stream.getvalue().startswith("--- trainvitals\n")


def test_close_twice_and_calls_after_close_do_nothing(tmp_path: Path) -> None:
    stream = io.StringIO()
    monitor = Monitor(output_dir=tmp_path, run=START, console=stream)
    drive(monitor, last=5)
    monitor.close()
    before, text = records(tmp_path), stream.getvalue()
    monitor.close("failed")
    monitor.log(6, row(6))
    monitor.publish(Tick(6, T0))
    monitor.boundary("epoch", 6)
    monitor.applied("x", 1, 2)
    assert records(tmp_path) == before
    assert stream.getvalue() == text
    assert before[-1]["status"] == "completed"


@pytest.mark.parametrize(
    ("error", "status"),
    [(None, "completed"), (ValueError("x"), "failed"), (KeyboardInterrupt(), "interrupted"), (SystemExit(0), "completed")],
)
def test_the_context_manager_tells_how_it_ended(tmp_path: Path, error: BaseException | None, status: str) -> None:
    expected = contextlib.nullcontext() if error is None else pytest.raises(type(error))
    with expected, Monitor(output_dir=tmp_path, run=START, console=False) as monitor:
        drive(monitor, last=3)
        if error is not None:
            raise error
    assert records(tmp_path)[-1]["status"] == status


@pytest.mark.parametrize("number", [np.float32, np.float64, np.int64, str])
def test_numbers_of_other_kinds(tmp_path: Path, number: Any) -> None:
    with Monitor(output_dir=tmp_path, console=False) as monitor:
        monitor.log(np.int64(1), {"loss": number(2), "grad_norm": None}, time=np.float64(T0))
        monitor.publish(Frame(np.int64(2), {"optim.loss": number(3) if number is not str else 3.0}, time=np.float32(1.0)))  # type: ignore[arg-type]
    frames = [record for record in records(tmp_path) if record["kind"] == "signal"]
    assert frames[0]["values"] == {"optim.loss": 2.0, "optim.grad_norm": {"value": None, "nonfinite": "nan"}}
    assert frames[1]["values"] == {"optim.loss": 3.0}
    assert frames[1]["time"] == 1.0


def test_without_a_run_start_one_is_made(tmp_path: Path) -> None:
    with Monitor(output_dir=tmp_path, console=False) as monitor:
        monitor.log(1, {**row(1), "no_such_metric": 1.0}, time=T0)
    lines = records(tmp_path)
    assert lines[0]["kind"] == "run_start"
    assert lines[0]["trainer"] == "grpo"
    assert lines[0]["run"].startswith("run-")
    assert all(line["run"] == lines[0]["run"] for line in lines)
    coverage = next(line for line in lines if line["kind"] == "coverage")
    assert "no_such_metric" in coverage["unknown_metrics"]


def test_closing_without_any_event_says_that_nothing_was_evaluated() -> None:
    stream = io.StringIO()
    Monitor(console=stream).close()
    assert "vitals_verdict: insufficient_data" in stream.getvalue()


def test_custom_signals(tmp_path: Path) -> None:
    spec = custom_signal("custom.unit_tests_passed", "fraction", "Share of tests that pass.", low=0, high=1)
    with Monitor(output_dir=tmp_path, console=False, custom=[spec]) as monitor:
        monitor.log(1, {"custom.unit_tests_passed": 0.5, "policy.kl_ref": 0.1}, time=T0)
    frame = next(record for record in records(tmp_path) if record["kind"] == "signal")
    assert frame["values"] == {"custom.unit_tests_passed": 0.5, "policy.kl_ref": 0.1}


def test_a_full_disk_costs_one_line_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monitor = Monitor(output_dir=tmp_path, run=START, console=stream)
    drive(monitor, last=10)
    real = os.write

    def full(fd: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    drive(monitor, 11)
    monkeypatch.setattr(os, "write", real)
    monitor.close()
    text = stream.getvalue()
    assert text.count("no space left on the disk. Records are no longer saved") == 1
    assert "vitals_records: incomplete (no space left on the disk)" in text
    assert "Advantage signal has collapsed" in text
    assert monitor.verdict is not None
    assert monitor.verdict.state == "collapsed"


def test_a_folder_that_cannot_be_written_costs_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    stream = io.StringIO()
    with Monitor(output_dir=tmp_path / "file" / "out", run=START, console=stream) as monitor:
        drive(monitor)
    assert stream.getvalue().count("cannot write") == 1
    assert monitor.findings


def test_a_failing_subscriber_is_one_line_and_one_record(tmp_path: Path) -> None:
    stream = io.StringIO()
    monitor = Monitor(output_dir=tmp_path, run=START, console=stream)
    monitor.bus.subscribe("mine", lambda item: 1 / 0)
    drive(monitor, last=5)
    monitor.close()
    errors = [record for record in records(tmp_path) if record["kind"] == "finding" and record["state"] == "error"]
    assert len(errors) == 1
    assert "mine failed with ZeroDivisionError" in errors[0]["message"]
    assert stream.getvalue().count("mine failed") == 1
    assert len([record for record in records(tmp_path) if record["kind"] == "signal"]) == 5


def test_a_broken_engine_does_not_stop_training_or_the_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monitor = Monitor(output_dir=tmp_path, run=START, console=stream)
    monkeypatch.setattr(monitor.engine, "observe", lambda item: 1 / 0)
    monkeypatch.setattr(monitor.engine, "coverage", lambda: 1 / 0)
    drive(monitor, last=5)
    monitor.close()
    assert "engine failed with ZeroDivisionError" in stream.getvalue()
    assert "vitals_verdict: insufficient_data" in stream.getvalue()
    assert [record["kind"] for record in records(tmp_path)][-2:] == ["coverage", "run_end"]


def test_metrics_that_are_no_mapping_are_reported_once() -> None:
    stream = io.StringIO()
    monitor = Monitor(run=START, console=stream)
    for step in range(3):
        monitor.log(step, [1, 2, 3])  # type: ignore[arg-type]
    monitor.close()
    assert stream.getvalue().count("log failed") == 1


def test_tests_may_ask_for_the_exception() -> None:
    monitor = Monitor(run=START, console=False, fail_soft=False)
    monitor.bus.subscribe("mine", lambda item: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        drive(monitor, last=1)


def test_only_rank_zero_speaks_and_every_rank_writes(tmp_path: Path) -> None:
    stream = io.StringIO()
    for rank in (0, 1):
        run = RunStart("run-1", "grpo", "trl", rank=rank, world_size=2, time=T0)
        with Monitor(output_dir=tmp_path, run=run, console=stream if rank else False) as monitor:
            drive(monitor)
    assert stream.getvalue() == ""
    assert {record["rank"] for record in records(tmp_path, 1)} == {1}
    assert {record["rank"] for record in records(tmp_path, 0)} == {0}


def test_a_new_run_in_the_same_folder_keeps_the_old_records(tmp_path: Path) -> None:
    for name in ("one", "two"):
        with Monitor(output_dir=tmp_path, run=RunStart(name, time=T0), console=False) as monitor:
            drive(monitor, last=2)
    assert records(tmp_path)[0]["run"] == "two"
    assert json.loads((tmp_path / "vitals" / "rank0.1.jsonl").read_text().splitlines()[0])["run"] == "one"


def test_a_resumed_run_continues_file_and_state(tmp_path: Path) -> None:
    whole = Monitor(run=START, console=False)
    drive(whole)
    whole.close()
    first = Monitor(output_dir=tmp_path, run=START, console=False)
    drive(first, last=90)
    state = json.loads(json.dumps(first.state_dict()))
    first.close("interrupted")
    second = Monitor(output_dir=tmp_path, run=START, console=False, resumed_from=90)
    second.load_state_dict(state)
    drive(second, 91)
    second.close()
    lines = records(tmp_path)
    assert [line["seq"] for line in lines] == list(range(len(lines)))
    starts = [line for line in lines if line["kind"] == "run_start"]
    assert [line["resumed_from"] for line in starts] == [None, 90]
    transitions = [
        (line["rule"]["id"], line["state"], line["step"])
        for line in lines
        if line["kind"] == "finding" and line["state"] != "blind"
    ]
    assert transitions == [(f.rule.id, f.state, f.step) for f in whole.findings if f.state != "blind"]


def test_a_state_of_another_version_is_refused_kindly() -> None:
    stream = io.StringIO()
    monitor = Monitor(run=START, console=stream)
    monitor.load_state_dict({"version": 999})
    drive(monitor, last=3)
    monitor.close()
    assert "another version" in stream.getvalue()


def test_signals_can_be_left_out(tmp_path: Path) -> None:
    with Monitor(output_dir=tmp_path, run=START, console=False, record_signals=False) as monitor:
        drive(monitor)
    lines = records(tmp_path)
    assert not [line for line in lines if line["kind"] == "signal"]
    assert [line["seq"] for line in lines] == list(range(len(lines)))


def test_closing_from_inside_a_delivery_still_ends_the_stream_in_order(tmp_path: Path) -> None:
    stream = io.StringIO()
    monitor = Monitor(output_dir=tmp_path, run=START, console=stream)

    def stop(item: object) -> None:
        if isinstance(item, Frame) and item.step == 5:
            monitor.close("killed")

    monitor.bus.subscribe("stop", stop)
    drive(monitor, last=8)
    lines = records(tmp_path)
    assert lines[-1]["kind"] == "run_end"
    assert lines[-1]["status"] == "killed"
    assert stream.getvalue().count("vitals_verdict") == 1


def test_ticks_from_another_thread(tmp_path: Path) -> None:
    monitor = Monitor(output_dir=tmp_path, run=START, console=False)
    thread = threading.Thread(target=lambda: [monitor.publish(Tick(1, T0 + n / 1000)) for n in range(200)])
    thread.start()
    drive(monitor)
    thread.join()
    monitor.close()
    lines = records(tmp_path)
    assert [line["seq"] for line in lines] == list(range(len(lines)))
    assert len([line for line in lines if line.get("event") == "tick"]) == 200


def test_a_run_end_that_is_published_closes(tmp_path: Path) -> None:
    monitor = Monitor(output_dir=tmp_path, run=START, console=False)
    drive(monitor, last=3)
    monitor.publish(RunEnd(3, "failed", T0 + 4, "CUDA out of memory, token hf_abcdefghijklmn"))
    end = records(tmp_path)[-1]
    assert (end["kind"], end["status"], end["detail"]) == ("run_end", "failed", None)
    monitor.close()
    assert records(tmp_path)[-1] == end


def test_a_wrong_rule_file_is_told_before_training(tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text("id: broken\nwhen: nope > 1\n")
    with pytest.raises(RuleError):
        Monitor(rules=[path], console=False)
