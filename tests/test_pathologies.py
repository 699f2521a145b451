"""The page of the catalogue: every pathology has a rule or a reason, and nothing is named that does not exist."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
RULES = {path.stem: path.read_text() for path in sorted((ROOT / "rules" / "stable").glob("*.yaml")) if not path.name.endswith(".test.yaml")}


@pytest.fixture(scope="module")
def pathologies() -> ModuleType:
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        import pathologies

        return pathologies
    finally:
        sys.path.pop(0)


def test_each_of_the_191_has_a_rule_or_a_reason_and_not_both(pathologies: ModuleType) -> None:
    listed, found = pathologies.entries(), pathologies.answers(RULES)
    assert len(listed) == 191
    assert {one for one, entry in listed.items() if bool(found[one]) == bool(entry.get("why_not"))} == set()


def test_rules_and_ids_that_are_named_exist(pathologies: ModuleType) -> None:
    listed = pathologies.entries()
    assert {rule for entry in listed.values() for rule in entry.get("also", ())} <= RULES.keys()
    cited = {one for text in RULES.values() for one in re.findall(r"pathologies\.md ([A-Z]{2}-\d\d)", text)}
    assert cited <= listed.keys()
    assert len(cited) > 100
    assert {one[:2] for one in listed} == pathologies.FAMILIES.keys()


def test_the_page_links_every_answer(pathologies: ModuleType) -> None:
    text = pathologies.page({"one-rule": "notes/pathologies.md EN-01"}, "")
    assert "| EN-01 | entropy collapse | [one-rule](rules/one-rule.md) |" in text
    assert "| TR-12 | reference sync artefact | *no rule:* no fault" in text
