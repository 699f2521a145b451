"""Log files to items. `read` finds the format; each reader is one file."""

from __future__ import annotations

from trainvitals.names import Mapper
from trainvitals.readers import metrics_jsonl
from trainvitals.readers.rows import Recording
from trainvitals.readers.source import InputError, read_text

__all__ = ["InputError", "Recording", "read"]


def read(path: str, *, format: str | None = None, mapper_trainer: str | None = None) -> Recording:
    """Read one run."""
    return metrics_jsonl.read(read_text(str(path)), str(path), Mapper(mapper_trainer))
