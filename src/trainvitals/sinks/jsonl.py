"""The record stream on disk: append-only JSON lines, one ``os.write`` per record.

A full disk, a read-only folder or a missing permission switches the file off with one notice; training and the rules go
on in memory. `fsync` costs milliseconds, so only errors and the end of the run pay for it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

_TAIL_BYTES = 1 << 16

_WORDS = {
    errno.ENOSPC: "no space left on the disk",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
}


class JsonlSink:
    """Appends lines to one file.

    Args:
        path: The file; folders are made on the first write.
        resume: Continue an existing file. Otherwise an existing one is moved aside (``rank0.1.jsonl``), never deleted:
            one file is one run, which is what replay relies on.
        notify: Called once, with one line of text, when the file has to be given up.
    """

    def __init__(self, path: Path, *, resume: bool = False, notify: Callable[[str], None] | None = None) -> None:
        self.path = path
        self.failed: str | None = None
        self._resume = resume
        self._notify = notify
        self._fd: int | None = None
        self._closed = False

    def last_record(self) -> dict[str, Any] | None:
        """The last whole record of an existing file; None when there is none or it cannot be read."""
        try:
            with self.path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - _TAIL_BYTES))
                lines = file.read().split(b"\n")
        except OSError:
            return None
        for line in reversed(lines):
            with contextlib.suppress(ValueError):
                record = json.loads(line)
                if isinstance(record, dict) and "seq" in record:
                    return record
        return None

    def write(self, line: bytes, *, sync: bool = False) -> None:
        """Append `line` and a newline. After a failure this does nothing."""
        if self.failed is not None or self._closed:
            return
        try:
            if self._fd is None:
                self._open()
            assert self._fd is not None
            data = line + b"\n"
            written = os.write(self._fd, data)
            while written < len(data):  # a disk that fills up takes a part first
                written += os.write(self._fd, data[written:])
            if sync:
                with contextlib.suppress(OSError):  # pipes and some network file systems cannot
                    os.fsync(self._fd)
        except OSError as error:
            self._give_up(error)

    def close(self) -> None:
        """Close the file; further writes do nothing."""
        self._closed = True
        if self._fd is not None:
            with contextlib.suppress(OSError):
                os.close(self._fd)
            self._fd = None

    def _open(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not self._resume:
            _move_aside(self.path)
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_CLOEXEC", 0), 0o644)
        size = os.lseek(self._fd, 0, os.SEEK_END)
        if size and os.pread(self._fd, 1, size - 1) != b"\n":
            os.write(self._fd, b"\n")  # a killed process left a torn line: keep it apart from ours

    def _give_up(self, error: OSError) -> None:
        why = _WORDS.get(error.errno or 0) or error.strerror or str(error)
        self.failed = why
        self.close()
        if self._notify is not None:
            self._notify(f"cannot write {self.path}: {why}. Records are no longer saved; the rules go on in memory.")


def _move_aside(path: Path) -> None:
    if not path.exists() or path.stat().st_size == 0:
        return
    number = 1
    while (other := path.with_name(f"{path.stem}.{number}{path.suffix}")).exists():
        number += 1
    path.rename(other)
