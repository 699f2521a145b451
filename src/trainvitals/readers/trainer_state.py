"""`trainer_state.json` of transformers: full precision, written at every checkpoint, with bare NaN in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trainvitals.names import Mapper
from trainvitals.readers.metrics_jsonl import run_id
from trainvitals.readers.rows import Log, Recording, as_step, build, make_row
from trainvitals.readers.source import InputError

_SETTINGS = ("logging_steps", "max_steps", "num_train_epochs", "eval_steps", "save_steps", "train_batch_size")


def read(text: str, path: str, mapper: Mapper) -> Recording:
    """Read ``log_history``; also a bare list of rows, as people save it.

    Raises:
        InputError: Not JSON (cut off, with the line), or without logged rows.
    """
    try:
        state: Any = json.loads(text)
    except json.JSONDecodeError as error:
        hint = "the file is cut off: copy it again, or read an older checkpoint" if error.pos >= len(text.rstrip()) - 1 else "not valid JSON"
        raise InputError(f"truncated or broken JSON: {error.msg}", path, error.lineno, hint) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"broken JSON: {error}", path) from None
    history = state if isinstance(state, list) else state.get("log_history") if isinstance(state, dict) else None
    if not isinstance(history, list):
        raise InputError("no log_history in it", path, hint="expected trainer_state.json or a list of logged rows")
    log = Log(path, [make_row(row, None) for row in history if isinstance(row, dict)], run_id(path))
    if isinstance(state, dict):
        log.config = {name: state[name] for name in _SETTINGS if name in state}
        log.total_steps = as_step(state.get("max_steps")) or None
        if len(log.rows) < len(history):
            log.notes.append(f"{len(history) - len(log.rows)} entries of log_history are no rows, left out")
    if not log.rows:
        raise InputError("log_history is empty", path, hint="nothing was logged before this checkpoint (logging_steps)")
    return build(log, mapper, format="trainer_state")


def newest(folder: Path) -> Path | None:
    """The `trainer_state.json` of the newest checkpoint (highest step), or of the folder itself."""
    found = []
    for path in [*folder.glob("checkpoint-*/trainer_state.json"), folder / "trainer_state.json"]:
        if path.is_file():
            step = path.parent.name.rpartition("-")[2]
            # The folder's own is written at the end of training and so holds everything.
            found.append((int(step) if step.isdecimal() and path.parent != folder else 2**62, str(path), path))
    return max(found)[2] if found else None
