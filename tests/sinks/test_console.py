"""Console lines: the mission's form, once per transition, few, clean."""

from __future__ import annotations

import io
import sys
from typing import Any

import pytest

from trainvitals.findings import Finding, RuleRef
from trainvitals.sinks.console import LINES_PER_WINDOW, WINDOW, ConsoleSink, wants_colour, write_line


def finding(state: str = "firing", step: int = 34, **changes: Any) -> Finding:
    fields: dict[str, Any] = {
        "finding_id": "f1",
        "fingerprint": "p1",
        "rule": RuleRef(id="vram-underused", code="SYS001"),
        "state": state,
        "severity": "warning",
        "category": "efficiency",
        "title": "Memory lies idle",
        "message": "VRAM utilization at 34%.",
        "advice": "Consider increasing per_device_train_batch_size from 4 to 16.",
        "step": step,
        "first_step": 34,
    }
    return Finding(**{**fields, **changes})


def printed(*records: Finding, **options: Any) -> list[str]:
    stream = io.StringIO()
    sink = ConsoleSink(stream, **options)
    for record in records:
        sink(record)
    return stream.getvalue().splitlines()


def test_the_missions_line() -> None:
    assert printed(finding()) == [
        "[TRL] WARNING: VRAM utilization at 34%. Consider increasing per_device_train_batch_size from 4 to 16. (vram-underused, step 34)"
    ]


def test_resolved_is_an_info_line() -> None:
    assert printed(finding(), finding("resolved", 60))[1:] == [
        "[TRL] INFO: Resolved after 26 updates: Memory lies idle. (vram-underused, step 60)"
    ]


def test_suppressed_and_blind_are_not_printed() -> None:
    assert printed(finding("suppressed"), finding("blind"), finding("resolved", 99)) == []


def test_repeats_collapse_on_a_doubling_schedule() -> None:
    records = [finding(state, step=WINDOW * n) for n in range(1, 17) for state in ("firing", "resolved")]
    openings = [line for line in printed(*records) if "WARNING" in line]
    assert len(openings) == 5  # 1st, 2nd, 4th, 8th, 16th
    assert "(opening 16)" in openings[-1]
    assert len([line for line in printed(*records) if "Resolved" in line]) == 5


def test_a_flood_ends_in_one_line_with_a_pointer() -> None:
    records = [finding(step=10, fingerprint=f"p{n}") for n in range(40)]
    out = printed(*records, finding(step=WINDOW * 3, fingerprint="late"), pointer="out/vitals/rank0.jsonl")
    assert len(out) == LINES_PER_WINDOW + 2
    assert out[LINES_PER_WINDOW] == f"[TRL] INFO: {40 - LINES_PER_WINDOW} more lines were left out. See out/vitals/rank0.jsonl."


def test_an_error_is_not_lost_among_warnings() -> None:
    records = [finding(step=10, fingerprint=f"p{n}") for n in range(40)]
    assert any("ERROR" in line for line in printed(*records, finding(step=10, fingerprint="e", severity="error")))


def test_data_cannot_forge_lines_or_move_the_cursor() -> None:
    out = printed(finding(message="bad\n[TRL] ERROR: forged\x1b[2J", instance={"component": "x\ny"}))
    assert len(out) == 1
    assert "\x1b" not in out[0]


def test_end_block_is_grep_able_and_one_line_each() -> None:
    stream = io.StringIO()
    ConsoleSink(stream).end_block({"verdict": "collapsed", "reason": "a\nvitals_verdict: improving"})
    assert stream.getvalue() == "--- trainvitals\nvitals_verdict: collapsed\nvitals_reason: a vitals_verdict: improving\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "env", "expected"),
    [
        (Terminal(), {}, True),
        (io.StringIO(), {}, False),
        (Terminal(), {"NO_COLOR": "1"}, False),
        (Terminal(), {"TERM": "dumb"}, False),
        (io.StringIO(), {"FORCE_COLOR": "1"}, True),
        (io.StringIO(), {"FORCE_COLOR": "0"}, False),
        (io.StringIO(), {"FORCE_COLOR": "1", "NO_COLOR": "1"}, False),
    ],
)
def test_colour(stream: io.StringIO, env: dict[str, str], expected: bool) -> None:
    assert wants_colour(stream, env) is expected


def test_the_label_is_readable_without_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert printed(finding())[0].startswith("[TRL] \x1b[33mWARNING\x1b[0m: VRAM")


def test_a_progress_bar_stays_intact() -> None:
    tqdm = pytest.importorskip("tqdm")
    stream = io.StringIO()
    with tqdm.tqdm(total=10, file=stream, mininterval=0) as bar:
        bar.update(3)
        ConsoleSink(stream)(finding())
        bar.update(1)
    line = next(line for line in stream.getvalue().split("\n") if "VRAM" in line)
    assert line.split("\r")[-1].startswith("[TRL] WARNING: VRAM")


def test_closed_and_missing_streams_do_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = io.StringIO()
    closed.close()
    write_line(closed, "x")
    monkeypatch.setattr(sys, "stderr", None)
    write_line(None, "x")
    ConsoleSink()(finding())


def test_a_terminal_without_unicode_gets_question_marks() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    write_line(stream, "reward → 0")
    assert raw.getvalue() == b"reward ? 0\n"


def test_the_current_stderr_is_used(capsys: pytest.CaptureFixture[str]) -> None:
    ConsoleSink()(finding())
    assert "VRAM" in capsys.readouterr().err
