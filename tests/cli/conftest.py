"""Logs and a runner for the tests of the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from trainvitals.cli import main


@dataclass
class Output:
    """What one command did."""

    code: int
    out: str
    err: str


Run = Callable[..., Output]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process."""

    def call(*words: object) -> Output:
        capsys.readouterr()
        code = main([str(word) for word in words])
        seen = capsys.readouterr()
        return Output(code, seen.out, seen.err)

    return call


def rows(last: int = 140, *, bad_from: int = 60) -> list[dict[str, Any]]:
    """A GRPO log whose groups all become wrong."""
    made = []
    for step in range(1, last + 1):
        bad = step >= bad_from
        made.append(
            {
                "step": step, "loss": 0.01, "reward": 0.05 if bad else 0.6 + 0.001 * (step % 3), "kl": 0.01, "entropy": 1.2,
                "frac_reward_zero_std": 0.97 if bad else 0.2, "reward.group_std_mean": 0.01 if bad else 0.3, "grad_norm": 0.3,
                "learning_rate": 1e-6, "completions/clipped_ratio": 0.1, "completions/mean_length": 100.0,
            }
        )  # fmt: skip
    return made


def write(path: Path, lines: list[dict[str, Any]]) -> Path:
    """A metrics JSONL."""
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def sick(tmp_path: Path) -> Path:
    """A log with errors in it."""
    return write(tmp_path / "sick.jsonl", rows())


@pytest.fixture
def healthy(tmp_path: Path) -> Path:
    """A log without."""
    return write(tmp_path / "healthy.jsonl", rows(bad_from=10_000))
