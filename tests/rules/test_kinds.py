"""Every built-in rule is complete: loads without a warning, is documented, sourced, and tested in all the ways that matter."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainvitals.rulelang.loader import load_rules
from trainvitals.rulelang.model import Rule
from trainvitals.testing import load_tests

RULES = Path(__file__).resolve().parents[2] / "rules"
LOADED = load_rules(enable=["experimental"])
EVERY = [pytest.param(rule, id=rule.id) for rule in LOADED.rules]
KINDS = ("fires", "near miss", "recovers", "missing", "nan")
"""Words that the names of a rule's cases hold between them."""


def test_nothing_to_complain_about() -> None:
    assert [problem.render() for problem in LOADED.warnings] == []


def test_at_least_twenty_two_stable_rules() -> None:
    assert len([rule for rule in LOADED.rules if rule.status == "stable"]) >= 22


def test_codes_are_unique() -> None:
    codes = [rule.code for rule in LOADED.rules]
    assert sorted(codes) == sorted(set(codes))


@pytest.mark.parametrize("rule", EVERY)
def test_is_tested_in_all_ways(rule: Rule) -> None:
    cases, _ = load_tests(RULES / rule.status / f"{rule.id}.test.yaml")
    names = [case.name for case in cases.cases]
    assert [kind for kind in KINDS if not any(kind in name.split(",")[0] for name in names)] == []
    assert any(one.fires_between for case in cases.cases if case.name.startswith("fires") for one in case.expect)
    assert any(one.resolves_between for case in cases.cases if case.name.startswith("recovers") for one in case.expect)
    assert all(
        any(one.never for one in case.expect) or any(one.always for one in case.expect)
        for case in cases.cases
        if case.name.startswith("near miss")
    )


@pytest.mark.parametrize("rule", EVERY)
def test_is_documented(rule: Rule) -> None:
    assert rule.docs.explain
    assert rule.docs.look_first
    assert rule.docs.false_positives
    assert rule.docs.references
    assert rule.advice.text
    assert rule.suggest


@pytest.mark.parametrize("rule", EVERY)
def test_every_parameter_says_where_it_comes_from(rule: Rule) -> None:
    assert [name for name, param in rule.params.items() if len(param.why) < 20] == []


@pytest.mark.parametrize("rule", EVERY)
def test_states_a_verdict_or_leaves_the_policy_alone(rule: Rule) -> None:
    harmless = rule.category in ("efficiency", "data", "config", "numerics") or rule.severity == "info"
    assert harmless or rule.verdict is not None or rule.category == "ood-drift"
