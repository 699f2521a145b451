"""The clinic: real trainings with a planted fault, each beside a healthy twin. Minutes, not milliseconds."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import io
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the clinic trains and needs the extra 'trl'")
pytest.importorskip("trl", reason="the clinic trains and needs the extra 'trl'")
torch.set_num_threads(1)

import transformers  # noqa: E402

from trainvitals.integrations.trl import attach  # noqa: E402

OF_THE_MACHINE = {"throughput-drop", "training-stalled"}  # true or not depends on what else runs on this machine


class Patient:
    """One finished training under observation.

    Attributes:
        fired: Step at which each rule first fired, suppressed ones left out.
        said: Lines on the console.
        rewards: Mean reward as TRL logged it.
    """

    def __init__(self, trainer: Any, callback: Any, console: str) -> None:
        self.monitor = callback.monitor
        self.trainer = trainer
        self.off = callback.off
        self.fired: dict[str, int] = {}
        self.loud: dict[str, int] = {}  # warnings and errors about the training itself
        for finding in self.monitor.findings:
            if finding.state == "firing":
                self.fired.setdefault(finding.rule.id, finding.step)
                if finding.severity != "info" and finding.rule.id not in OF_THE_MACHINE:
                    self.loud.setdefault(finding.rule.id, finding.step)
        self.said = [line for line in console.splitlines() if line and not any(f"({rule}," in line for rule in OF_THE_MACHINE)]
        self.rewards = [row["reward"] for row in trainer.state.log_history if "reward" in row]


@pytest.fixture
def observe() -> Callable[..., Patient]:
    """Attach, train, and report what was said."""

    def run(trainer: Any, **kwargs: Any) -> Patient:
        trainer.remove_callback(transformers.PrinterCallback)
        console = io.StringIO()
        callback = attach(trainer, console=console, fail_soft=False, **kwargs)
        trainer.train()
        return Patient(trainer, callback, console.getvalue())

    return run
