"""The fault that is reported most often, without any evaluation set: a narrow data set drives out what the model knew."""

from __future__ import annotations

from typing import Any

import pytest
from tests.clinic.ward import offline
from tests.clinic.ward.cases_round8_offline import own_files

from trainvitals.experimental import RetentionProbe

pytestmark = [pytest.mark.slow, pytest.mark.trl]


@pytest.mark.parametrize(("replay", "told"), [(0.0, True), (0.3, False)], ids=["own rows only", "three in ten of the old rows"])
def test_forgetting_is_told_without_an_evaluation_set(tmp_path, observe, replay, told):
    trainer: Any = own_files(str(tmp_path), 41, replay=replay, eval_strategy="no")
    old = [row["prompt"] for row in offline.dialogues(32, 999)]
    probe = RetentionProbe(old, every=20, max_new_tokens=48)
    trainer.add_callback(probe)
    seen = observe(trainer, enable=["own-answers-unlearned"])
    assert list(seen.loud) == (["own-answers-unlearned"] if told else [])
    lost = [unlearned for _, unlearned in probe.history]
    assert lost[0] == 0
    if told:
        assert lost[-1] > 1.5
        assert "has lost" in seen.said[0]
        assert seen.monitor.verdict.state == "drifting"
    else:
        assert max(lost) < 1
