"""The matrix of trainers, signals and versions: whole, and made from what was seen."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SEEN = ROOT / "tests" / "suite" / "seen"
OLD, MIDDLE, NEW = "1.0.0", "1.12.0", "1.16.0"
WANTED = {
    **dict.fromkeys(("sft", "reward", "dpo", "kto", "orpo", "grpo", "rloo", "gkd", "sdft", "sdpo", "async_grpo"), (OLD, NEW)),
    "ppo": (OLD, MIDDLE), "distillation": (NEW,), "online_dpo": (NEW,), "cpo": (NEW,), "gold": (NEW,), "tpo": (NEW,), "a2po": (NEW,),
    "gmpo": (NEW,), "iw_opd": (NEW,), "server_distillation": (NEW,), "async_distillation": (NEW,),
}  # fmt: skip
"""Trainers that are supported, with the versions of TRL in which they must have been seen to train."""


@pytest.fixture
def matrix():
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        import matrix

        yield matrix
    finally:
        sys.path.remove(str(ROOT / "tools"))


def test_every_supported_trainer_was_seen_in_its_versions(matrix) -> None:
    seen = matrix.read(SEEN)
    missing = [f"{name} under TRL {version}" for name, versions in WANTED.items() for version in versions if version not in seen.get(name, {})]
    assert missing == []


def test_no_row_is_empty(matrix, tmp_path: Path) -> None:
    assert all(signals for runs in matrix.read(SEEN).values() for signals in runs.values())
    (tmp_path / "nobody-1.0.0.json").write_text(json.dumps({"trainer": "nobody", "trl": "1.0.0", "signals": []}))
    with pytest.raises(ValueError, match="holds no signal"):
        matrix.read(tmp_path)
