"""The record file: atomic appends, torn tails, disks that fill up, folders that cannot be written."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from trainvitals.sinks.jsonl import JsonlSink


def lines(path: Path) -> list[bytes]:
    return path.read_bytes().split(b"\n")


def test_lines_are_appended_with_one_write_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[bytes] = []
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: calls.append(bytes(data)) or real(fd, data))
    sink = JsonlSink(tmp_path / "deep" / "er" / "rank0.jsonl")
    sink.write(b"{}")
    sink.write(b"[]", sync=True)
    sink.close()
    assert calls == [b"{}\n", b"[]\n"]
    assert lines(sink.path) == [b"{}", b"[]", b""]


def test_nothing_is_created_before_the_first_record(tmp_path: Path) -> None:
    JsonlSink(tmp_path / "vitals" / "rank0.jsonl").close()
    assert list(tmp_path.iterdir()) == []


def test_an_earlier_run_is_moved_aside_not_lost(tmp_path: Path) -> None:
    path = tmp_path / "rank0.jsonl"
    for text in (b"1", b"2", b"3"):
        sink = JsonlSink(path)
        sink.write(text)
        sink.close()
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {
        "rank0.1.jsonl": b"1\n",
        "rank0.2.jsonl": b"2\n",
        "rank0.jsonl": b"3\n",
    }


def test_a_resumed_file_is_continued_behind_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "rank0.jsonl"
    path.write_bytes(b'{"seq":4}\n{"seq":5,"ki')
    sink = JsonlSink(path, resume=True)
    assert sink.last_record() == {"seq": 4}
    sink.write(b'{"seq":6}')
    assert lines(path) == [b'{"seq":4}', b'{"seq":5,"ki', b'{"seq":6}', b""]


def test_last_record_of_no_file(tmp_path: Path) -> None:
    assert JsonlSink(tmp_path / "no.jsonl").last_record() is None


@pytest.mark.parametrize(
    ("code", "words"),
    [(errno.ENOSPC, "no space left"), (errno.EROFS, "read-only"), (errno.EDQUOT, "quota"), (errno.EACCES, "permission denied")],
)
def test_a_failing_disk_gives_one_notice_and_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, words: str
) -> None:
    notices: list[str] = []
    sink = JsonlSink(tmp_path / "rank0.jsonl", notify=notices.append)
    sink.write(b"{}")

    def full(fd: int, data: bytes) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "write", full)
    sink.write(b"{}")
    sink.write(b"{}")
    sink.close()
    assert len(notices) == 1
    assert words in notices[0]
    assert "\n" not in notices[0]
    assert sink.failed is not None
    assert words in sink.failed


def test_a_partial_write_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:3]))
    sink = JsonlSink(tmp_path / "rank0.jsonl")
    sink.write(b'{"seq": 1}')
    assert lines(sink.path) == [b'{"seq": 1}', b""]


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    notices: list[str] = []
    sink = JsonlSink(tmp_path / "file" / "vitals" / "rank0.jsonl", notify=notices.append)
    sink.write(b"{}")
    assert len(notices) == 1
    assert sink.failed is not None


def test_writing_after_close_does_nothing(tmp_path: Path) -> None:
    sink = JsonlSink(tmp_path / "rank0.jsonl")
    sink.write(b"1")
    sink.close()
    sink.close()
    sink.write(b"2")
    assert lines(sink.path) == [b"1", b""]
