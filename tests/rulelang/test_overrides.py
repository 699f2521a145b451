"""User overrides: by field, with a reason, within the author's limits, and never louder by accident."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainvitals.rulelang.errors import RuleError
from trainvitals.rulelang.loader import RuleSet, load_rules

RULE = """\
id: my-rule
code: RWD900
title: A fault
category: collapse
severity: warning
params:
  low: {default: 0.1, unit: reward, range: [0, 1], why: a source}
let:
  spread: mean(reward.group_std_mean, updates=20)
when: spread < low
unless: {early: run.step < 30}
message: "Spread is {spread:.2f}."
"""


def load(folder: Path, *files: str) -> RuleSet:
    (folder / "my-rule.yaml").write_text(RULE)
    paths = []
    for number, text in enumerate(files):
        path = folder / f"overrides{number}.txt"
        path.write_text(text)
        paths.append(path)
    return load_rules([folder / "my-rule.yaml"], overrides=paths)


def test_every_field_with_reason_and_place(tmp_path: Path) -> None:
    text = (
        "schema: trainvitals-overrides/1\nrules:\n  - id: my-rule\n    params: {low: 0.01}\n    severity: error\n"
        "    unless: {late: run.step > low * 0 + 900}\n    action: {stop: offer}\n    reason: binary reward\n"
    ).replace("low * 0 + 900", "900")
    rules = load(tmp_path, text)
    rule = rules.by_id["my-rule"]
    assert rule.param_values == {"low": 0.01}
    assert rule.params["low"].origin == f"{tmp_path / 'overrides0.txt'}:4"
    assert (rule.severity, rule.action.gate, rule.action.stop) == ("error", "fail", "offer")
    assert list(rule.unless) == ["early", "late"]
    assert rules.tuned == list(rule.tuned)
    assert rules.tuned[0].startswith(
        "my-rule: low 0.1 -> 0.01, severity warning -> error, unless late, stop never -> offer (binary reward; "
    )
    assert rules.tuned[0].endswith("overrides0.txt:3)")


def test_a_later_file_wins_and_the_digest_changes(tmp_path: Path) -> None:
    entry = "rules:\n  - {id: my-rule, params: {low: %s}, reason: r}\n"
    plain, tuned = load(tmp_path), load(tmp_path, entry % "0.2", entry % "0.3")
    assert tuned.by_id["my-rule"].param_values == {"low": 0.3}
    assert len(tuned.tuned) == 2
    assert plain.digest != tuned.digest
    assert load(tmp_path).digest == plain.digest


def test_one_load_leaves_no_trace_in_the_next(tmp_path: Path) -> None:
    """Files are parsed once in a process: what an override changes is a copy, and a file that was written anew is read anew."""
    plain = load(tmp_path)
    tuned = load(tmp_path, "rules:\n  - {id: my-rule, params: {low: 0.2}, severity: error, unless: {late: run.step > 900}, reason: r}\n")
    again = load(tmp_path)
    assert plain.digest == again.digest != tuned.digest
    assert (again.by_id["my-rule"].severity, again.by_id["my-rule"].param_values, list(again.by_id["my-rule"].unless)) == ("warning", {"low": 0.1}, ["early"])
    (tmp_path / "my-rule.yaml").write_text(RULE.replace("default: 0.1", "default: 0.3"))
    assert load_rules([tmp_path / "my-rule.yaml"]).by_id["my-rule"].param_values == {"low": 0.3}


def test_disabled_rules_are_listed_and_not_in_force(tmp_path: Path) -> None:
    rules = load(tmp_path, "rules:\n  - {id: my-rule, disable: true, reason: known}\n")
    assert len(rules) == 0
    assert rules.disabled["my-rule"].startswith("known (")
    assert "disabled" in rules.tuned[0]


def test_optional_unknown_rule_is_passed_over(tmp_path: Path) -> None:
    rules = load(tmp_path, "rules:\n  - {id: of-a-plugin, optional: true, disable: true, reason: r}\n")
    assert rules.tuned == []


def test_an_exception_never_changes_the_condition_itself(tmp_path: Path) -> None:
    """`unless` is kept apart from `when`, so no text of a user can widen the condition."""
    plain = load(tmp_path).by_id["my-rule"]
    tuned = load(tmp_path, "rules:\n  - {id: my-rule, unless: {x: spread > 0 or run.step > 5}, reason: r}\n").by_id["my-rule"]
    assert tuned.when == plain.when
    assert set(plain.unless) < set(tuned.unless)


@pytest.mark.parametrize(
    ("entry", "code", "line", "column"),
    [
        ("{id: my-rul, disable: true, reason: r}", "E505", 2, 10),
        ("{id: my-rule, disable: true}", "E506", 2, 5),
        ("{id: my-rule, params: {lo: 0.2}, reason: r}", "E507", 2, 28),
        ("{id: my-rule, params: {low: 2}, reason: r}", "E351", 2, 33),
        ("{id: my-rule, params: {low: '1e-5'}, reason: r}", "E422", 2, 33),
        ("{id: my-rule, severity: critical, reason: r}", "E423", 2, 29),
        ("{id: my-rule, unless: {early: run.step > 3}, reason: r}", "E426", 2, 28),
        ("{id: my-rule, unless: {new: run.stepp > 3}, reason: r}", "E104", 2, 33),
        ("{id: my-rule, reason: r}", "E428", 2, 5),
        ("{id: my-rule, when: 1 > 0, reason: r}", "E420", 2, 19),
        ("{disable: true, reason: r}", "E421", 2, 5),
        ("my-rule", "E422", 2, 5),
    ],
)
def test_bad_entries(tmp_path: Path, entry: str, code: str, line: int, column: int) -> None:
    with pytest.raises(RuleError) as caught:
        load(tmp_path, f"rules:\n  - {entry}\n")
    assert [(problem.code, problem.line, problem.column) for problem in caught.value.problems if problem.severity == "error"] == [
        (code, line, column)
    ]


def test_unknown_id_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(RuleError, match="did you mean 'my-rule'"):
        load(tmp_path, "rules:\n  - {id: my-rul, disable: true, reason: r}\n")


def test_missing_file(tmp_path: Path) -> None:
    (tmp_path / "my-rule.yaml").write_text(RULE)
    with pytest.raises(RuleError, match="E427"):
        load_rules([tmp_path / "my-rule.yaml"], overrides=[tmp_path / "absent.yaml"])


def test_a_parameter_that_breaks_an_expression_is_refused_where_it_is_set(tmp_path: Path) -> None:
    text = RULE.replace("params:\n", "params:\n  width: {default: 20, unit: updates, range: [5, 50], why: a source}\n")
    (tmp_path / "my-rule.yaml").write_text(text.replace("updates=20", "updates=width"))
    user = tmp_path / "user.txt"
    user.write_text("rules:\n  - {id: my-rule, params: {width: 30}, reason: r}\n")
    assert load_rules([tmp_path / "my-rule.yaml"], overrides=[user]).by_id["my-rule"].param_values["width"] == 30
    user.write_text("rules:\n  - {id: my-rule, params: {width: 20.5}, reason: r}\n")
    with pytest.raises(RuleError, match="whole number") as caught:
        load_rules([tmp_path / "my-rule.yaml"], overrides=[user])
    assert [(problem.code, problem.path, problem.line) for problem in caught.value.problems] == [("E355", str(user), 2)]
