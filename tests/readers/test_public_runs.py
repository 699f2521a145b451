"""Every public run of ../shared/real_runs reads whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trainvitals.items import Frame, RunEnd, RunStart
from trainvitals.readers import read

FOLDER = Path(__file__).resolve().parents[3] / "shared" / "real_runs"


@pytest.mark.skipif(not FOLDER.is_dir(), reason="the public logs are not in this tree (their licences do not allow it)")
def test_all_real_runs() -> None:
    labels = json.loads((FOLDER / "labels.json").read_text())
    for name, label in labels.items():
        recording = read(FOLDER / label["file"])
        items = list(recording.items)
        start, end = items[0], items[-1]
        assert isinstance(start, RunStart), name
        assert isinstance(end, RunEnd), name
        frames = [item for item in items if isinstance(item, Frame)]
        assert recording.mapper.unknown == set(), name
        assert start.trainer in (label["trainer"], "unknown"), name
        assert len(frames) == label["rows"] - (name == "sft_mistral_translator_8600"), name
        assert frames[0].values["run.logging_every"] == label.get("steps_per_row", frames[0].values["run.logging_every"]), name
        assert all(frame.closes and frame.phase == "train" for frame in frames) or "verl" in name
