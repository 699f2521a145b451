"""Bad input and bad surroundings: said plainly, with the right exit code, and never as "healthy"."""

from __future__ import annotations

import io
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

from trainvitals.cli import main
from trainvitals.monitor import Monitor
from trainvitals.rulelang.errors import RuleError

ROW = {
    "loss": 0.5,
    "reward": 0.5,
    "kl": 0.01,
    "entropy": 1.0,
    "learning_rate": 1e-6,
    "grad_norm": 0.2,
    "completions/clipped_ratio": 0.1,
}


def log(count: int, **changes: Any) -> str:
    return "".join(json.dumps({"step": step, **ROW, **changes}) + "\n" for step in range(1, count + 1))


def check(capsys: pytest.CaptureFixture[str], path: Path, *words: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(["check", str(path), *words])
    seen = capsys.readouterr()
    return code, seen.out, seen.err


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.jsonl", b"", "the file is empty"),
        ("blank.jsonl", b"\n  \n\n", "the file is empty"),
        ("junk.jsonl", bytes(range(256)) * 40, "binary data"),
        ("cut.json", b'{"log_history": [{"loss": 1.0, "step": 1}, {"loss', None),
        ("first.jsonl", b'{"step": 1, "loss": 0.5, "lear', "ends inside its first line"),
        ("other.jsonl", b'{"step": 1, "loss": 0.5, "lear\n', "no JSON object in any line"),
        ("prose.log", b"the quick brown fox\njumps\n" * 20, None),
        ("list.json", b"[1, 2, 3]", None),
        ("damaged.jsonl.gz", b"\x1f\x8b\x08\x00broken", None),
    ],
)
def test_files_that_are_no_log_are_never_0(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: bytes, words: str | None
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    code, out, err = check(capsys, path)
    assert code in (2, 3)
    assert "Traceback" not in out + err
    assert name in out + err
    if words is not None:
        assert code == 2
        assert words in err
        assert "help: " in err


def test_missing_files_and_folders_without_logs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = check(capsys, tmp_path / "nothing")
    assert code == 2
    assert "no such file or folder" in err
    code, _, err = check(capsys, tmp_path)
    assert code == 2
    assert "no log in this folder" in err
    assert "looked for" in err


def test_a_torn_last_line_is_read_past_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.jsonl"
    path.write_text(log(140) + '{"step": 141, "lo')
    code, out, _ = check(capsys, path)
    assert code == 0
    assert "torn last line" in out


def test_a_torn_record_of_our_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Monitor(output_dir=tmp_path, console=False) as monitor:
        for step in range(1, 141):
            monitor.log(step, ROW, time=1e9 + step)
    path = tmp_path / "vitals" / "rank0.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.rindex(b'"kind":"run_end"')])
    code, out, _ = check(capsys, path)
    assert code == 0
    assert "torn last line" in out
    assert "no run_end record" in out


def test_bare_nan_is_read_and_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.jsonl"
    path.write_text(
        log(100) + "".join(f'{{"step": {step}, "loss": NaN, "grad_norm": NaN, "reward": 0.5}}\n' for step in range(101, 141))
    )
    code, out, _ = check(capsys, path)
    assert code == 1
    assert "(nonfinite-loss, step 10" in out
    assert json.loads(check(capsys, path, "-f", "json")[1], parse_constant=lambda word: pytest.fail(word))["exit_code"] == 1


def test_an_unreadable_file(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.jsonl"
    path.write_text(log(5))

    def refuse(self: Path) -> bytes:  # chmod does not stop root
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    code, _, err = check(capsys, path)
    assert code == 2
    assert "permission denied" in err


def test_all_errors_of_a_rule_file_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rule = tmp_path / "five-faults.yaml"
    rule.write_text(
        textwrap.dedent("""\
        id: five-faults
        code: XYZ1
        version: 1.0.0
        title: Five faults in one file
        category: nonsense
        severity: critical
        applies_to: {trainers: any}
        params:
          low: {default: 1e-5, unit: rate, range: [0, 1], why: a test}
        when: optim.learning_rte < low
        sustian: {hits: 2, of: 3}
        message: "Rate {optim.learning_rate:num}."
        """)
    )
    log_file = tmp_path / "run.jsonl"
    log_file.write_text(log(10))
    code, out, err = check(capsys, log_file, "--rules", str(rule))
    assert (code, out) == (2, "")
    for line, word in ((2, "XYZ1"), (5, "nonsense"), (6, "critical"), (10, "optim.learning_rte"), (11, "sustian")):
        assert f"five-faults.yaml:{line}:" in err, word
        assert word in err
    assert "did you mean 'optim.learning_rate'" in err
    assert "^^^" in err
    assert main(["rules", "check", str(rule)]) == 2
    with pytest.raises(RuleError) as caught:
        Monitor(rules=[rule], console=False)
    assert len(caught.value.problems) >= 5


def test_an_override_of_a_rule_that_does_not_exist(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "trainvitals.yaml"
    file.write_text("rules:\n  no-such-rule:\n    disable: true\n    reason: a test\n")
    log_file = tmp_path / "run.jsonl"
    log_file.write_text(log(10))
    code, _, err = check(capsys, log_file, "--overrides", str(file))
    assert code == 2
    assert "trainvitals.yaml:" in err


def test_a_step_that_is_no_number_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    monitor = Monitor()
    monitor.log("soon", ROW)  # type: ignore[arg-type]
    monitor.log("soon", ROW)  # type: ignore[arg-type]
    monitor.log(1, ROW)
    monitor.close()
    assert capsys.readouterr().err.count("log failed") == 1


def test_a_really_full_disk(tmp_path: Path) -> None:
    """`/dev/full` answers every write with ENOSPC, as a full disk does."""
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    (tmp_path / "vitals").mkdir()
    (tmp_path / "vitals" / "rank0.jsonl").symlink_to("/dev/full")
    stream = io.StringIO()
    with Monitor(output_dir=tmp_path, console=stream) as monitor:
        for step in range(1, 50):
            monitor.log(step, ROW, time=1e9 + step)
    assert stream.getvalue().count("no space left on the disk. Records") == 1
    assert "vitals_records: incomplete" in stream.getvalue()


SCRIPT = """
import sys, time
from trainvitals import Monitor
{guard}
with Monitor(output_dir={folder!r}) as monitor:
    for step in range(1, 100000):
        monitor.log(step, {row!r})
        if step == 20:
            print("ready", flush=True)
        time.sleep(0.005)
"""
GUARD = "import signal\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(143))"
TERMINAL = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)"
"""As Python sets it in a terminal: a shell that runs the tests in the background has SIGINT ignored, and children inherit that."""


@pytest.mark.parametrize(
    ("number", "guard", "status"), [(signal.SIGINT, TERMINAL, "interrupted"), (signal.SIGTERM, GUARD, "interrupted")]
)
def test_ctrl_c_and_sigterm_still_print_the_end_block(tmp_path: Path, number: signal.Signals, guard: str, status: str) -> None:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT.format(folder=str(tmp_path), row=ROW, guard=guard))
    child = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    child.send_signal(number)
    _, err = child.communicate(timeout=60)
    assert child.returncode != 0
    assert "vitals_verdict: " in err
    last = json.loads((tmp_path / "vitals" / "rank0.jsonl").read_text().splitlines()[-1])
    assert (last["kind"], last["status"]) == ("run_end", status)


def test_a_killed_process_leaves_a_readable_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT.format(folder=str(tmp_path), row=ROW, guard=""))
    child = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout is not None
    child.stdout.readline()
    time.sleep(0.05)
    child.kill()
    child.communicate(timeout=60)
    code, out, _ = check(capsys, tmp_path)
    assert code in (0, 3)
    assert "no run_end record" in out


def test_a_forgotten_close_is_made_up_for_at_exit(tmp_path: Path) -> None:
    code = f"from trainvitals import Monitor\nm = Monitor(output_dir={str(tmp_path)!r})\nm.log(1, {ROW!r})\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "vitals_verdict: " in done.stderr
    crash = subprocess.run([sys.executable, "-c", code + "raise ValueError"], capture_output=True, text=True, check=False)
    assert "vitals_verdict: " in crash.stderr
    last = json.loads((tmp_path / "vitals" / "rank0.jsonl").read_text().splitlines()[-1])
    assert last["status"] == "failed"
