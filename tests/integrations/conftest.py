"""Real trainings of a few steps, shared by the tests: importing torch and trl costs more than all of them together."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the integrations need the extra 'trl'")
pytest.importorskip("trl", reason="the integrations need the extra 'trl'")
torch.set_num_threads(1)

from trainvitals.integrations import tiny  # noqa: E402
from trainvitals.integrations.trl import attach  # noqa: E402
from trainvitals.items import Boundary, Frame, RunStart  # noqa: E402


class FakeMonitor:
    """Collects what is published; can be told to fail."""

    def __init__(self) -> None:
        self.items: list[Any] = []
        self.loaded: list[dict[str, Any]] = []
        self.fail_on: Callable[[Any], bool] = lambda item: False

    def publish(self, item: Any) -> None:
        if self.fail_on(item):
            raise RuntimeError("subscriber broke")
        self.items.append(item)

    def state_dict(self) -> dict[str, Any]:
        return {"frames": len(self.frames)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.loaded.append(state)

    @property
    def frames(self) -> list[Frame]:
        return [item for item in self.items if isinstance(item, Frame) and item.phase == "train"]

    @property
    def start(self) -> RunStart:
        return next(item for item in self.items if isinstance(item, RunStart))

    def boundaries(self, what: str) -> list[int]:
        return [item.step for item in self.items if isinstance(item, Boundary) and item.what == what]

    def series(self, name: str) -> dict[int, float]:
        return {frame.step: frame.values[name] for frame in self.frames if name in frame.values}


@pytest.fixture
def monitor() -> FakeMonitor:
    return FakeMonitor()


class Run:
    """A finished training with what the monitor got and what the trainer itself logged."""

    def __init__(self, trainer: Any, monitor: FakeMonitor) -> None:
        self.trainer, self.monitor = trainer, monitor
        self.rows = [row for row in trainer.state.log_history if "train_runtime" not in row]

    def logged(self, name: str) -> dict[int, float]:
        return {row["step"]: row[name] for row in self.rows if name in row}


@pytest.fixture(scope="session")
def grpo(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """GRPO with two updates per batch and a high learning rate, so that ratios leave the clip range."""
    monitor = FakeMonitor()
    trainer = tiny.grpo(str(tmp_path_factory.mktemp("grpo")), max_steps=8, num_iterations=2, learning_rate=1e-2, beta=0.0)
    attach(trainer, monitor=monitor)
    trainer.train()
    return Run(trainer, monitor)
