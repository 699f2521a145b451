"""The suite: every trainer trains for real for a few steps, and what it emits is compared with what is on record.

`tests/suite/seen/<trainer>-<trl version>.json` holds the signals that a trainer was seen to emit; `docs/matrix.md` is made
from these files. A signal that goes missing or appears fails the test; after a deliberate change write them anew with
``SEEN=write pytest tests/suite``.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest

torch = pytest.importorskip("torch", reason="the suite trains and needs the extra 'trl'")
pytest.importorskip("trl", reason="the suite trains and needs the extra 'trl'")
torch.set_num_threads(1)

import transformers  # noqa: E402

from trainvitals.events import split_label  # noqa: E402
from trainvitals.integrations.trl import attach  # noqa: E402
from trainvitals.items import Frame, RunStart  # noqa: E402
from trainvitals.monitor import Monitor  # noqa: E402

SEEN = Path(__file__).parent / "seen"


class Observed:
    """A finished training under `attach`, with everything that was published.

    Attributes:
        trainer: The trainer.
        callback: The `VitalsCallback`; its ``monitor`` has findings and verdict.
        items: Everything that went over the bus, in order.
        notices: What was said on stderr by hooks that switched themselves off.
    """

    def __init__(self, trainer: Any, callback: Any, items: list[Any], notices: list[str]) -> None:
        self.trainer, self.callback, self.items, self.notices = trainer, callback, items, notices
        self.frames = [item for item in items if isinstance(item, Frame) and item.phase == "train"]
        self.start = next(item for item in items if isinstance(item, RunStart))

    def series(self, name: str) -> dict[int, float]:
        """Values of a signal (or of one label of it) by step."""
        return {frame.step: frame.values[name] for frame in self.frames if name in frame.values}

    def logged(self, name: str) -> dict[int, float]:
        """What the trainer itself logged under a raw name, by step."""
        rows = [row for row in self.trainer.state.log_history if "train_runtime" not in row]
        return {row["step"]: row[name] for row in rows if name in row}

    @property
    def signals(self) -> dict[str, int]:
        """Signals that came with at least one finite value, labels left out, with the number of steps that carried them."""
        found: dict[str, int] = {}
        for frame in self.frames:
            for name in {split_label(key)[0] for key, value in frame.values.items() if math.isfinite(value)}:
                found[name] = found.get(name, 0) + 1
        return found


@pytest.fixture
def train(capsys: pytest.CaptureFixture[str]) -> Callable[..., Observed]:
    """Attach to a trainer, train it, return what was seen."""

    def run(trainer: Any, **kwargs: Any) -> Observed:
        trainer.remove_callback(transformers.PrinterCallback)
        items: list[Any] = []
        with Monitor(**{"console": False, "fail_soft": False, **kwargs}) as monitor:
            monitor.bus.subscribe("suite", items.append)
            callback = attach(trainer, monitor=monitor)
            trainer.train()
        notices = [line for line in capsys.readouterr().err.splitlines() if line.startswith("[trainvitals]")]
        return Observed(trainer, callback, items, notices)

    return run


@pytest.fixture
def saw() -> Callable[[str, Observed], None]:
    """Compare the signals of a training with those on record for this trainer and this TRL, or write them (``SEEN=write``)."""

    def compare(trainer: str, observed: Observed) -> None:
        path = SEEN / f"{trainer}-{version('trl')}.json"
        found = sorted(observed.signals)
        assert found, f"{trainer} emitted nothing"
        if os.environ.get("SEEN") == "write":
            record = {"trainer": trainer, "trl": version("trl"), "transformers": transformers.__version__, "signals": found}
            path.write_text(json.dumps(record, indent=1) + "\n")
        on_record = json.loads(path.read_text())["signals"]
        assert found == on_record

    return compare
