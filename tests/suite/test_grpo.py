"""GRPO: the signals on record, for each supported end of TRL."""

from __future__ import annotations

from trainvitals.integrations import tiny


def test_grpo_emits_what_is_on_record(tmp_path, train, saw):
    seen = train(tiny.grpo(str(tmp_path), max_steps=4))
    assert seen.notices == []
    saw("grpo", seen)
