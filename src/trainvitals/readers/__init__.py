"""Log files to items. `read` finds the format; each reader is one file."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from trainvitals.names import Mapper
from trainvitals.readers import console, metrics_jsonl, other_ranks, own, trainer_state
from trainvitals.readers.archive import logs_in, only_run, runs_of
from trainvitals.readers.rows import Recording
from trainvitals.readers.source import InputError, read_text

__all__ = ["FORMATS", "InputError", "Recording", "logs_in", "read", "read_runs"]

FORMATS = ("own", "trainer_state", "jsonl", "console")
"""What `read` understands; the names that ``format=`` takes."""
_LOOKED_FOR = "vitals/rank0.jsonl, rank0.jsonl, checkpoint-*/trainer_state.json, trainer_state.json, *.jsonl, *.jsonl.gz, *.jsonl.xz, *.log"
_STATE = re.compile(r'\{\s*"(?:best_|epoch|eval_steps|global_step|is_|log_history|logging_steps|max_steps|save_steps|total_flos|trial_|train_batch)[^{}]*"log_history"')


def read(
    path: str | Path, *, format: str | None = None, mapper_trainer: str | None = None, aliases: Mapping[str, str] | None = None
) -> Recording:
    """Read one run from a file, a run folder, or standard input (``-``); gzip and xz are unpacked.

    Args:
        path: File, folder or ``-``.
        format: One of `FORMATS`; None: found from the content.
        mapper_trainer: Trainer, where the names do not tell (``rloo``).
        aliases: Raw name to signal, where no table knows the name.

    Raises:
        InputError: Nothing to read, nothing that any reader understands, or several runs in one file.
    """
    name, text, format, notes = _open(path, format)
    if format == "own":
        only_run(text, name)
    recording = _READERS[format](text, name, Mapper(mapper_trainer, aliases=aliases))
    recording.notes[:0] = notes
    if recording.format == "own":
        recording.notes += other_ranks.notes(name)
    return recording


def read_runs(
    path: str | Path, *, format: str | None = None, mapper_trainer: str | None = None, aliases: Mapping[str, str] | None = None
) -> Iterator[Recording]:
    """Read every run of a file: of our own records it may hold several, one after another. For the arguments see `read`.

    Raises:
        InputError: As `read`, before the run that it is about.
    """
    name, text, format, notes = _open(path, format)
    for _, part in runs_of(text) if format == "own" else [("", text)]:
        recording = _READERS[format](part, name, Mapper(mapper_trainer, aliases=aliases))
        recording.notes[:0] = notes
        recording.digest = hashlib.sha256(part.strip().encode("utf-8", "surrogatepass")).hexdigest()
        yield recording


_READERS = {"own": own.read, "trainer_state": trainer_state.read, "jsonl": metrics_jsonl.read, "console": console.read}


def _open(path: str | Path, format: str | None) -> tuple[str, str, str, list[str]]:
    """File to read, its text, its format, and what was odd about finding it."""
    name = os.fspath(path)
    if format is not None and format not in FORMATS:
        raise InputError(f"unknown format {format!r}", name, hint=f"one of {', '.join(FORMATS)}")
    notes: list[str] = []
    if name != "-":
        name = _inside(name, notes)
    text = read_text(name)
    return name, text, format or detect_format(text), notes


def detect_format(text: str) -> str:
    """Which reader a text is for."""
    head = text.lstrip()[:20000]
    if head.startswith("["):
        # A list of rows; a console log may begin with "[INFO]" too.
        return "trainer_state" if re.match(r"\[\s*[\{\]]", head) and "{'" not in head[:50] else "console"
    if head.startswith("{") and not head.startswith("{'"):
        lines = [line for line in text.split("\n", 50)[:50] if line.strip()]
        for line in lines:
            record = metrics_jsonl.decode_object(line)
            if record is not None:
                if "log_history" in record:
                    return "trainer_state"
                return "own" if own.is_ours(record) else "jsonl"
        if _STATE.match(head) or lines[0].strip() == "{":
            return "trainer_state"
        return "jsonl" if '":' in lines[0] and "'" not in lines[0] else "console"
    return "console" if "{'" in text or "step:" in text or not re.search(r"^\s*\{", text, re.MULTILINE) else "jsonl"


def _inside(path: str, notes: list[str]) -> str:
    """The file to read: `path` itself, or the best log inside a folder."""
    folder = Path(path)
    try:
        if not folder.is_dir():
            return path
        candidates = [folder / "vitals" / "rank0.jsonl", folder / "rank0.jsonl"]
        state = trainer_state.newest(folder)
        if state is not None:
            candidates.append(state)
        for pattern in ("*.jsonl", "*.jsonl.gz", "*.jsonl.xz", "*.log"):
            candidates += sorted(folder.glob(pattern))
        found = [candidate for candidate in candidates if candidate.is_file()]
    except PermissionError:
        raise InputError("permission denied", path, hint="make the folder readable for this user") from None
    except (OSError, ValueError) as error:
        raise InputError(f"cannot be read: {error}", path) from None
    if not found:
        raise InputError("no log in this folder", path, hint=f"looked for {_LOOKED_FOR}")
    if len(found) > 1:
        notes.append(f"{len(found)} logs in the folder: {found[0].relative_to(folder)} was read")
    return str(found[0])
