"""Every format and every bad input."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainvitals.findings import RunEndRecord
from trainvitals.items import Applied, Boundary, Frame, Item, RunEnd, RunStart, Tick
from trainvitals.readers import FORMATS, InputError, read
from trainvitals.readers.source import decode
from trainvitals.sinks.encode import rfc3339
from trainvitals.sinks.recorder import Recorder

ROW = {"loss": 1.0, "grad_norm": 0.5, "learning_rate": 1e-5, "epoch": 0.1}


def write(tmp_path: Path, name: str, text: str | bytes) -> Path:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def frames(path: Path, **options: Any) -> list[Frame]:
    return [item for item in read(path, **options).items if isinstance(item, Frame)]


def lines(*rows: dict[str, Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_jsonl_steps_interval_and_torn_lines(tmp_path: Path) -> None:
    text = lines(*({"step": step, **ROW} for step in (5, 10, 15))).replace('{"step": 10', 'x{"step": 10') + '{"step": 20, "lo'
    recording = read(write(tmp_path, "run.jsonl", text + ""))
    items = list(recording.items)
    assert [item.step for item in items if isinstance(item, Frame)] == [5, 15]
    assert any("line 2" in note for note in recording.notes)
    assert any("torn last line" in note for note in recording.notes)
    assert isinstance(items[0], RunStart)
    assert items[0].emits is not None
    assert "optim.loss" in items[0].emits
    assert "reward.mean" not in items[0].emits


@pytest.mark.parametrize(("mark", "trainer"), [("matched_loss", "gkd"), ("iw_opd/ess", "gkd"), ("ssd/active_sample_ratio", "sdft")])
def test_a_log_is_judged_by_the_name_that_a_live_run_has(tmp_path: Path, mark: str, trainer: str) -> None:
    start = read(write(tmp_path, "run.jsonl", lines(*({"step": step, **ROW, mark: 0.5} for step in range(1, 6))))).items
    first = next(iter(start))
    assert isinstance(first, RunStart)
    assert first.trainer == trainer


def test_null_after_numbers_is_not_finite_and_before_is_absent(tmp_path: Path) -> None:
    text = lines(
        {"step": 1, "loss": 1.0, "kl": None, "reward": 1, "reward_std": 0.1},
        {"step": 2, "loss": None, "kl": None, "reward": 1, "reward_std": 0.1},
    )
    first, second = frames(write(tmp_path, "a.jsonl", text))
    assert "policy.kl_ref" not in first.values
    assert math.isnan(second.values["optim.loss"])
    assert "policy.kl_ref" not in second.values


def test_nulls_of_a_table_are_empty_cells(tmp_path: Path) -> None:
    text = lines(
        {"step": 1, "loss": 1.0, "eval_loss": None},
        {"step": 1, "loss": None, "eval_loss": 2.0},
        {"step": 2, "loss": 1.0, "eval_loss": None},
    )
    read_back = frames(write(tmp_path, "a.jsonl", text))
    assert all(math.isfinite(value) for frame in read_back for value in frame.values.values())
    assert [(frame.step, frame.phase, frame.closes) for frame in read_back] == [
        (1, "eval", False),
        (1, "train", True),
        (2, "train", True),
    ]


def test_config_row_and_nested_data(tmp_path: Path) -> None:
    text = lines(
        {"config": {"max_steps": 9, "logging_steps": 3, "hub_token": "s"}}, {"step": 3, "data": ROW}, {"step": 6, "data": ROW}
    )
    items = list(read(write(tmp_path, "a.jsonl", text)).items)
    start, end = items[0], items[-1]
    assert isinstance(start, RunStart)
    assert (start.config, start.total_steps) == ({"max_steps": 9, "logging_steps": 3}, 9)
    assert isinstance(end, RunEnd)
    assert end.status == "interrupted"


def test_resume_in_a_file_drops_superseded_rows(tmp_path: Path) -> None:
    steps = (1, 2, 3, 4, 3, 4, 5)
    recording = read(write(tmp_path, "a.jsonl", lines(*({"step": step, "loss": float(place)} for place, step in enumerate(steps)))))
    items = list(recording.items)
    assert [(item.step, item.values["optim.loss"]) for item in items if isinstance(item, Frame)] == [
        (1, 0),
        (2, 1),
        (3, 4),
        (4, 5),
        (5, 6),
    ]
    assert [item.step for item in items if isinstance(item, Boundary)] == [3]
    assert any("go back" in note for note in recording.notes)


def test_shuffled_steps_are_refused(tmp_path: Path) -> None:
    text = lines(*({"step": step, **ROW} for step in [9, 1] * 40))
    with pytest.raises(InputError, match="not in order"):
        read(write(tmp_path, "a.jsonl", text))


def test_no_step_is_inferred_with_a_note(tmp_path: Path) -> None:
    recording = read(write(tmp_path, "a.jsonl", lines(ROW, ROW)))
    assert [item.step for item in recording.items if isinstance(item, Frame)] == [1, 2]
    assert any("inferred" in note for note in recording.notes)


def test_unknown_metrics_give_no_signal(tmp_path: Path) -> None:
    recording = read(write(tmp_path, "a.jsonl", lines({"step": 1, "foo": 1.0})))
    start = next(recording.items)
    assert isinstance(start, RunStart)
    assert start.emits == frozenset()
    assert recording.mapper.unknown == {"foo"}


def test_trainer_state_with_bare_nan_and_summary(tmp_path: Path) -> None:
    state = {"max_steps": 30, "logging_steps": 10, "log_history": [
        {"step": 10, **ROW}, {"step": 10, "eval_loss": 2.0}, {"step": 20, **ROW, "grad_norm": math.nan},
        {"step": 20, "train_runtime": 5.0, "train_loss": 9.0, "epoch": 1.0}]}  # fmt: skip
    write(tmp_path, "trainer_state.json", json.dumps(state, indent=2))
    recording = read(tmp_path)
    items = list(recording.items)
    assert recording.format == "trainer_state"
    rows = [item for item in items if isinstance(item, Frame)]
    assert [(frame.step, frame.phase) for frame in rows] == [(10, "eval"), (10, "train"), (20, "train")]
    assert math.isnan(rows[2].values["optim.grad_norm"])
    assert isinstance(items[0], RunStart)
    assert items[0].total_steps == 30


def test_newest_checkpoint_of_a_folder(tmp_path: Path) -> None:
    for step in (9, 100):
        (tmp_path / f"checkpoint-{step}").mkdir()
        write(tmp_path / f"checkpoint-{step}", "trainer_state.json", json.dumps({"log_history": [{"step": step, **ROW}]}))
    assert [frame.step for frame in frames(tmp_path)] == [100]


CONSOLE_4 = "\r 10%|█ | 10/100 [00:01<00:09]\n{'loss': 0.5, 'grad_norm': nan, 'learning_rate': 1e-05, 'epoch': 0.1}\n\r 10%|█ | 10/100 [00:02<00:09]\r 15%| 15/100 [00:03<1]\n{'loss': 0.25, 'grad_norm': 1.0, 'learning_rate': 1e-05, 'epoch': 0.2}\n\r 20%|█ | 20/100 [00:02<00:09]"
CONSOLE_5 = "INFO start {'input_ids'}\n\x1b[32m{'loss': '0.1234', 'grad_norm': 'nan', 'learning_rate': '1e-05', 'epoch': '0.1'}\x1b[0m\n{'eval_loss': '2', 'epoch': '0.1'}\n{'loss': '0.1', 'grad_norm': '1', 'learning_rate': '1e-05', 'epoch': '0.2'}\n{'train_runtime': '10', 'train_steps_per_second': '2.0', 'epoch': '0.2'}\n"


def test_console_of_transformers_4_with_progress_bar(tmp_path: Path) -> None:
    recording = read(write(tmp_path, "out.log", CONSOLE_4))
    items = list(recording.items)
    rows = [item for item in items if isinstance(item, Frame)]
    assert recording.format == "console"
    assert [frame.step for frame in rows] == [10, 20]
    assert math.isnan(rows[0].values["optim.grad_norm"])
    assert isinstance(items[0], RunStart)
    assert items[0].total_steps == 100
    assert any("progress bar" in note for note in recording.notes)


def test_console_of_transformers_5_with_quoted_text(tmp_path: Path) -> None:
    recording = read(write(tmp_path, "out.log", CONSOLE_5))
    rows = [item for item in recording.items if isinstance(item, Frame)]
    assert [(frame.step, frame.phase) for frame in rows] == [(10, "eval"), (10, "train"), (20, "train")]
    assert rows[1].values["optim.loss"] == 0.1234
    assert math.isnan(rows[1].values["optim.grad_norm"])
    assert any("inferred from the closing summary" in note for note in recording.notes)


def test_console_crash_and_verl(tmp_path: Path) -> None:
    crashed = read(write(tmp_path, "a.log", CONSOLE_5 + "Traceback (most recent call last):\n  File\nValueError: boom\n"))
    *_, end = crashed.items
    assert end == RunEnd(20, "failed", None, "ValueError: boom")
    verl = frames(
        write(tmp_path, "b.log", "(main) step:3 - actor/pg_loss:0.5 - actor/entropy:nan - critic/score/mean:np.float64(0.25)\n")
    )
    assert verl[0].step == 3
    assert verl[0].values["reward.mean"] == 0.25
    assert math.isnan(verl[0].values["policy.entropy"])


def test_gzip_and_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = lines({"step": 1, **ROW}).encode()
    assert frames(write(tmp_path, "a.jsonl.gz", gzip.compress(data)))[0].step == 1
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert read("-").path == "-"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"), (b" \n", "empty"), (b"\x00\x01\x02\xff" * 50, "binary"), (b'{\n "log_history": [\n  {"step": 1,', "truncated"),
        (b"hello world\n", "no row of metrics"), (b'{"log_history": []}', "log_history is empty"), (b"\x1f\x8bjunk", "damaged gzip"),
    ],
)  # fmt: skip
def test_bad_files(tmp_path: Path, content: bytes, message: str) -> None:
    path = write(tmp_path, "x", content)
    with pytest.raises(InputError, match=message) as caught:
        read(path)
    assert caught.value.path == str(path)


def test_missing_path_empty_folder_and_permission(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read(tmp_path / "nothing")
    with pytest.raises(InputError, match=r"rank0\.jsonl"):
        read(tmp_path)
    if os.geteuid() != 0:  # root may read everything
        path = write(tmp_path, "x.jsonl", "{}")
        path.chmod(0)
        with pytest.raises(InputError, match="permission denied"):
            read(path)


@given(
    st.one_of(st.binary(max_size=300), st.text(alphabet="{}[]\":',0123456789naNIloss step\n\r", max_size=300).map(str.encode)),
    st.sampled_from([None, *FORMATS]),
)
def test_arbitrary_bytes_raise_only_input_error(data: bytes, format: str | None) -> None:
    stdin, sys.stdin = sys.stdin, io.TextIOWrapper(io.BytesIO(data))
    try:
        with contextlib.suppress(InputError):
            list(read("-", format=format).items)
        with contextlib.suppress(InputError):
            decode(data, "x")
    finally:
        sys.stdin = stdin


number = st.floats(allow_nan=True, allow_infinity=True)
moment = st.none() | st.integers(10**9, 2 * 10**9).map(float)
frame = st.builds(
    Frame, step=st.integers(0, 10**6), values=st.dictionaries(st.sampled_from(["optim.loss", "policy.kl_ref", "reward.component_mean{component=a b}"]), number),
    closes=st.booleans(), phase=st.sampled_from(["train", "eval"]), time=moment, tokens=st.none() | st.floats(0, 1e12), epoch=st.none() | st.floats(0, 10),
)  # fmt: skip
boundary = st.builds(Boundary, step=st.integers(0, 99), what=st.sampled_from(["epoch", "resume", "save_end"]), time=moment)
tick = st.builds(Tick, step=st.integers(0, 99), time=st.floats(1e9, 2e9))
applied = st.builds(
    Applied, step=st.integers(0, 99), parameter=st.just("learning_rate"), old=st.floats(0, 1), new=st.floats(0, 1), time=moment
)


@given(st.lists(st.one_of(frame, boundary, tick, applied), max_size=8), moment)
def test_own_records_give_the_very_items_back(
    tmp_path_factory: pytest.TempPathFactory, middle: list[Item], time: float | None
) -> None:
    start = RunStart("r", "grpo", "trl", "1.16.0", {"a": 1, "b": "x"}, 10, 2, 0, time, frozenset({"optim.loss"}))
    end = RunEnd(9, "failed", time, "boom")
    written: list[str] = []
    recorder = Recorder()
    recorder.write = lambda line, **_: written.append(line if isinstance(line, str) else line.decode())
    for item in (start, *middle):
        recorder(item)
    recorder(RunEndRecord(ts=rfc3339(end.time), step=end.step, status=end.status, detail=end.detail))
    path = tmp_path_factory.mktemp("own") / "rank0.jsonl"
    path.write_text("\n".join(line.rstrip("\n") for line in written) + "\n", encoding="utf-8")
    recording = read(path)
    assert recording.format == "own"
    assert repr(list(recording.items)) == repr([start, *middle, end])  # repr: nan equals nan


def test_own_resume_torn_end_and_newer_schema(tmp_path: Path) -> None:
    head = {"schema": "trainvitals/1.0", "run": "r", "rank": 0}
    start = {**head, "kind": "run_start", "trainer": "grpo", "framework": "trl"}
    signal = {
        **head,
        "kind": "signal",
        "event": "frame",
        "values": {"optim.loss": {"value": None, "nonfinite": "nan"}},
        "later_field": 1,
    }
    text = (
        lines(start, {**signal, "step": 1}, {**start, "resumed_from": 1}, {**signal, "step": 2}, {**head, "kind": "future"})
        + '{"schema": "train'
    )
    recording = read(write(tmp_path, "rank0.jsonl", text))
    kinds = [type(item).__name__ for item in recording.items]
    assert kinds == ["RunStart", "Frame", "RunStart", "Boundary", "Frame", "RunEnd"]
    assert len(recording.notes) == 3
    with pytest.raises(InputError, match="schema"):
        read(write(tmp_path, "b.jsonl", lines({**start, "schema": "trainvitals/2.0"})))
    with pytest.raises(InputError, match="malformed") as caught:
        read(write(tmp_path, "c.jsonl", lines(start, {**signal, "step": "x"})))
    assert caught.value.line == 2


@pytest.mark.parametrize("values", ["x", 1, True, [1], {"optim.loss": "1"}, {"optim.loss": {"nonfinite": "odd"}}])
def test_own_malformed_values_are_an_input_error(tmp_path: Path, values: Any) -> None:
    record = {"schema": "trainvitals/1.0", "kind": "signal", "event": "frame", "step": 1, "values": values}
    with pytest.raises(InputError, match="malformed"):
        read(write(tmp_path, "rank0.jsonl", lines(record)))
