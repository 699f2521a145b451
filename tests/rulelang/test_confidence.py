"""Confidence: read once, tied to the rule as it was measured, carried by findings, and never in the way."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from trainvitals._resources import rules_folder
from trainvitals.engine import Engine
from trainvitals.findings import RECORD, Confidence, Finding
from trainvitals.items import Frame, RunStart
from trainvitals.rulelang import confidence, loader
from trainvitals.rulelang.loader import load_rules
from trainvitals.sinks.console import ConsoleSink
from trainvitals.sinks.encode import encode_record

RULE = "nonfinite-loss"


def row(digest: str, **changes: Any) -> dict[str, Any]:
    """A rule that fired in 20 runs, 19 of them sick."""
    return {
        "digest": digest, "healthy_runs": 40, "healthy_steps": 6000, "false_runs": 1, "false_firings": 2, "early": 0, "own_runs": 10, "found": 9,
        "other_runs": 30, "after": 10, "precision": 0.95, "low": 0.764, "high": 0.991, **changes,
    }  # fmt: skip


def table(rules: dict[str, Any], **changes: Any) -> str:
    return json.dumps({"schema": "trainvitals-confidence/1", "basis": {"text": "a test"}, "rules": rules, **changes})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Built-in rules: one, with a measurement."""
    root = tmp_path / "rules"
    (root / "stable").mkdir(parents=True)
    text = (rules_folder() / "stable" / f"{RULE}.yaml").read_text()
    (root / "stable" / f"{RULE}.yaml").write_text("".join(line for line in text.splitlines(True) if not line.startswith("caused_by:")))
    monkeypatch.setattr(loader, "rules_folder", lambda: root)
    digest = confidence.digest_of(load_rules().by_id[RULE])
    (root / confidence.FILE).write_text(table({RULE: row(digest)}))
    return root


def fire() -> Finding:
    """The first finding of a run whose loss is NaN."""
    engine = Engine(load_rules())
    engine.observe(RunStart("r", trainer="sft", emits=frozenset({"optim.loss"})))
    for step in range(1, 50):
        for record in engine.observe(Frame(step, {"optim.loss": 1.0 if step < 10 else float("nan")})):
            if isinstance(record, Finding):
                return record
    raise AssertionError


def test_a_finding_carries_it_in_the_record_and_not_on_the_console(folder: Path) -> None:
    found = fire()
    assert found.confidence == Confidence(precision=0.95, low=0.764, high=0.991, runs=20, healthy_runs=40, basis="a test")
    line = encode_record(found)
    assert json.loads(line)["confidence"]["low"] == 0.764
    assert RECORD.validate_json(line) == found
    screen = io.StringIO()
    ConsoleSink(screen)(found)
    assert screen.getvalue()
    assert "0.95" not in screen.getvalue()


def test_it_is_loaded_with_the_rules_and_not_asked_for_again(folder: Path) -> None:
    rules = load_rules()
    (folder / confidence.FILE).unlink()
    assert rules.by_id[RULE].confidence is rules.by_id[RULE].confidence is not None


@pytest.mark.parametrize(
    "text",
    [
        None, "", "{", "[]", "{}", table({}, schema="trainvitals-confidence/2"), table({RULE: {}}), table({RULE: row("x", more=1)}), table([]),  # type: ignore[arg-type]
        '{"schema": "trainvitals-confidence/1", "rules": {}}',
    ],
)  # fmt: skip
def test_a_missing_or_damaged_file_hurts_nobody(folder: Path, text: str | None) -> None:
    path = folder / confidence.FILE
    path.unlink()
    if text is not None:
        path.write_text(text)
    assert confidence.read(path) == {}
    assert fire().confidence is None


@pytest.mark.parametrize("changes", [{"precision": 1.5}, {"low": "x"}, {"healthy_runs": -1}])
def test_numbers_that_cannot_be_are_refused_when_rules_load(folder: Path, changes: dict[str, Any]) -> None:
    digest = confidence.digest_of(load_rules().by_id[RULE])
    (folder / confidence.FILE).write_text(table({RULE: row(digest, **changes)}))
    assert load_rules().by_id[RULE].measured is None


def test_it_holds_for_the_rule_as_it_was_measured(folder: Path, tmp_path: Path) -> None:
    path = folder / "stable" / f"{RULE}.yaml"
    text = path.read_text()
    path.write_text(text.replace("title: ", "title: Reworded. "))
    assert load_rules().by_id[RULE].confidence is not None
    changed = text.replace("default: 1\n", "default: 3\n")
    assert changed != text
    path.write_text(changed)
    assert load_rules().by_id[RULE].confidence is None
    path.write_text(text)
    overrides = tmp_path / "o.yaml"
    overrides.write_text(f"rules:\n  - id: {RULE}\n    params: {{patience: 5}}\n    reason: a test\n")
    assert load_rules(overrides=[overrides]).by_id[RULE].confidence is None
    overrides.write_text(f"rules:\n  - id: {RULE}\n    severity: warning\n    reason: a test\n")
    assert load_rules(overrides=[overrides]).by_id[RULE].confidence is not None


def test_never_fired_is_not_the_same_as_always_right(folder: Path) -> None:
    digest = confidence.digest_of(load_rules().by_id[RULE])
    quiet = row(digest, false_runs=0, false_firings=0, found=0, after=0, precision=None, low=None, high=None)
    (folder / confidence.FILE).write_text(table({RULE: quiet}))
    rule = load_rules().by_id[RULE]
    assert rule.confidence is None
    assert rule.measured is not None
    assert rule.measured.healthy_runs == 40


def test_it_is_no_part_of_the_rules_digest(folder: Path) -> None:
    before = load_rules().digest
    (folder / confidence.FILE).unlink()
    assert load_rules().digest == before


def test_the_shipped_table_is_read_and_names_rules_that_exist() -> None:
    shipped = confidence.read(rules_folder() / confidence.FILE)
    assert shipped
    assert shipped.keys() <= load_rules(enable=["experimental"]).by_id.keys()
    for one in shipped.values():
        assert one.false_runs <= one.healthy_runs
        assert one.found <= one.own_runs
        assert one.precision is None or (one.low is not None and one.high is not None and one.low <= one.precision <= one.high)


def test_the_shipped_table_is_about_the_rules_of_today() -> None:
    rules = load_rules(enable=["experimental"])
    stale = [rule for rule, one in confidence.read(rules_folder() / confidence.FILE).items() if one.digest != confidence.digest_of(rules.by_id[rule])]
    assert stale == [], "changed since they were measured: python -m tests.clinic.ward.confidence"
