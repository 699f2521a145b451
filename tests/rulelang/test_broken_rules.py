"""Broken rule files: each gives the intended code at the intended line and column, and loads nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainvitals.rulelang.errors import RuleError
from trainvitals.rulelang.loader import load_rules, parse_rule

GOOD = """\
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
sustain: {hits: 8, of: 40}
message: "Spread is {spread:.2f}."
"""
"""Twelve lines, so that a change of line n is found at line n."""


def changed(line: int, text: str) -> str:
    """GOOD with one line replaced by one or more others."""
    lines = GOOD.splitlines()
    lines[line - 1 : line] = text.splitlines()
    return "\n".join(lines) + "\n"


BROKEN: list[tuple[str, str, str, int, int]] = [
    # name, text, code, line, column
    ("duplicate key", changed(3, "title: A\ntitle: B"), "E412", 4, 1),
    ("unknown field", changed(3, "title: A\nseverty: info"), "E420", 4, 1),
    ("unknown field inside", changed(11, "sustain: {hits: 8, offs: 40, of: 40}"), "E420", 11, 20),
    (
        "unknown field of a parameter",
        changed(7, "  low: {default: 0.1, unit: reward, range: [0, 1], why: x, max: 3}"),
        "E420",
        7,
        60,
    ),
    ("missing title", changed(3, ""), "E421", 1, 1),
    ("missing when", changed(10, ""), "E421", 1, 1),
    ("number as title", changed(3, "title: 5"), "E422", 3, 8),
    ("number as code", changed(2, "code: 1e-5"), "E422", 2, 7),
    ("quoted number", changed(7, '  low: {default: "1e-5", unit: reward, range: [0, 1], why: x}'), "E422", 7, 18),
    ("truth value as number", changed(7, "  low: {default: true, unit: reward, range: [0, 1], why: x}"), "E422", 7, 18),
    ("yes", changed(3, "title: A\nrequired: yes"), "E409", 4, 11),
    ("on", changed(3, "title: on"), "E409", 3, 8),
    ("NO in a list", changed(3, "title: A\ncaused_by: [other, NO]"), "E409", 4, 20),
    ("True", changed(3, "title: A\nrequired: True"), "E409", 4, 11),
    ("octal", changed(7, "  low: {default: 012, unit: reward, range: [0, 1], why: x}"), "E410", 7, 18),
    ("base 60", changed(3, "title: 12:30"), "E410", 3, 8),
    ("hexadecimal", changed(7, "  low: {default: 0x1F, unit: reward, range: [0, 1], why: x}"), "E410", 7, 18),
    ("underscore", changed(7, "  low: {default: 1_0, unit: reward, range: [0, 1], why: x}"), "E410", 7, 18),
    ("infinity", changed(7, "  low: {default: .inf, unit: reward, range: [0, 1], why: x}"), "E410", 7, 18),
    ("overflow", changed(7, "  low: {default: 1e999, unit: reward, range: [0, 1], why: x}"), "E410", 7, 18),
    ("empty value", changed(3, "title:"), "E408", 3, 7),
    ("null", changed(3, "title: null"), "E408", 3, 8),
    ("tilde", changed(3, "title: ~"), "E408", 3, 8),
    ("tag", changed(3, "title: !!str 5"), "E407", 3, 8),
    ("python tag", changed(3, "title: !!python/object/apply:os.system [ls]"), "E407", 3, 8),
    ("anchor", changed(3, "title: &a text"), "E406", 3, 8),
    ("alias", changed(3, "title: *a"), "E406", 3, 8),
    ("merge key", changed(3, "title: A\n<<: {code: x}"), "E406", 4, 1),
    ("tab", changed(7, "\tlow: {}"), "E404", 7, 1),
    ("second document", GOOD + "---\nid: b\n", "E405", 13, 1),
    ("directive", "%YAML 1.1\n---\n" + GOOD, "E405", 1, 1),
    ("number as key", changed(9, "  1: reward.mean"), "E411", 9, 3),
    ("list as key", changed(9, "  [a]: reward.mean"), "E411", 9, 3),
    ("unclosed bracket", changed(11, "sustain: {hits: 8, of: 40"), "E401", 12, 8),
    ("colon in text", changed(3, "title: a: b"), "E401", 3, 9),
    ("comma inside braces", changed(11, "expect: {that: mean(reward.mean, updates=20) > 1, within: {updates: 5}}"), "E451", 11, 20),
    ("list instead of a mapping", changed(11, "sustain: [8, 40]"), "E422", 11, 10),
    ("word not allowed", changed(4, "category: colapse"), "E423", 4, 11),
    ("severity not allowed", changed(5, "severity: critical"), "E423", 5, 11),
    ("bad id", changed(1, "id: My_Rule"), "E424", 1, 5),
    ("id differs from the file", changed(1, "id: my-rules"), "E425", 1, 5),
    ("bad code", changed(2, "code: ABC001"), "E424", 2, 7),
    ("bad version", changed(3, "title: A\nversion: v1"), "E424", 4, 10),
    ("parameter shadows a function", changed(7, "  mean: {default: 0.1, unit: reward, range: [0, 1], why: x}"), "E426", 7, 3),
    ("let shadows a parameter", changed(9, "  low: mean(reward.group_std_mean, updates=20)"), "E426", 9, 3),
    ("default outside range", changed(7, "  low: {default: 5, unit: reward, range: [0, 1], why: x}"), "E351", 7, 18),
    ("range upside down", changed(7, "  low: {default: 0.1, unit: reward, range: [1, 0], why: x}"), "E353", 7, 37),
    ("range of three", changed(7, "  low: {default: 0.1, unit: reward, range: [0, 1, 2], why: x}"), "E422", 7, 37),
    ("more hits than evaluations", changed(11, "sustain: {hits: 9, of: 8}"), "E354", 11, 11),
    ("fractional hits", changed(11, "sustain: {hits: 8.5, of: 40}"), "E422", 11, 17),
    ("zero hits", changed(11, "sustain: {hits: 0, of: 40}"), "E351", 11, 17),
    ("unused parameter", changed(10, "when: spread < 0.1"), "E430", 7, 3),
    ("unused let", changed(9, "  spread: mean(reward.group_std_mean, updates=20)\n  other: reward.mean"), "E430", 10, 3),
    ("let uses a later one", changed(9, "  spread: later + 1\n  later: mean(reward.group_std_mean, updates=20)"), "E107", 9, 11),
    ("unknown label", changed(3, "title: A\nfor_each: ranks"), "E111", 4, 11),
    ("unknown trainer", changed(3, "title: A\napplies_to: {trainers: [gpro]}"), "E112", 4, 25),
    ("trainer that runs under its kin", changed(3, "title: A\napplies_to: {trainers: [gold]}"), "E112", 4, 25),
    ("where reads a signal", changed(3, "title: A\napplies_to: {where: reward.mean > 1}"), "E352", 4, 21),
    ("template: bad format", changed(12, 'message: "Spread is {spread:.2q}."'), "E441", 12, 29),
    ("template: never closed", changed(12, 'message: "Spread is {spread"'), "E440", 12, 21),
    ("template: lone brace", changed(12, 'message: "Spread } is {spread}"'), "E440", 12, 18),
    ("template: empty slot", changed(12, 'message: "Spread is {}."'), "E453", 12, 22),
    ("unknown rule", changed(3, "title: A\ncaused_by: [other-rule]"), "E501", 4, 13),
    ("own cause", changed(3, "title: A\ncaused_by: [my-rule]"), "E502", 4, 13),
    (
        "predicts an unknown signal",
        changed(3, "title: A\nsuggest:\n- {set: beta, to: 1, predicts: {reward.meen: 1}}"),
        "E103",
        5,
        33,
    ),
    ("suggestion without to", changed(3, "title: A\nsuggest:\n- {set: beta}"), "E421", 5, 3),
    ("syntax error in an expression", changed(10, "when: spread < low )"), "E451", 10, 20),
    ("syntax error in a folded expression", changed(10, "when: >-\n  spread < low\n  && spread < 1"), "E454", 12, 3),
    ("unknown signal", changed(9, "  spread: mean(reward.group_std_meen, updates=20)"), "E103", 9, 16),
    ("unknown function", changed(9, "  spread: meen(reward.group_std_mean, updates=20)"), "E102", 9, 11),
    ("a percent is no fraction", changed(10, "when: spread < low and reward.group_zero_std_fraction > 34"), "E301", 10, 57),
    ("unlike units", changed(10, "when: spread < low and spread > policy.entropy"), "E201", 10, 24),
    ("a number is no condition", changed(10, "when: spread - low"), "E206", 10, 7),
    ("unknown signal in a folded expression", changed(10, "when: >-\n  spread < low\n  and reward.meen > 1"), "E103", 12, 7),
    ("unknown name in a message", changed(12, 'message: "Spread is {spred:.2f}."'), "E101", 12, 22),
    ("control character", changed(3, "title: a\x07b"), "E402", 3, 9),
]


@pytest.mark.parametrize(("text", "code", "line", "column"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN])
def test_broken_file(tmp_path: Path, text: str, code: str, line: int, column: int) -> None:
    path = tmp_path / "my-rule.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RuleError) as caught:
        load_rules([path])
    found = [(problem.code, problem.line, problem.column) for problem in caught.value.problems if problem.severity == "error"]
    assert found[0] == (code, line, column), str(caught.value)
    assert str(path) in str(caught.value)


def test_the_base_of_the_broken_files_is_good(tmp_path: Path) -> None:
    (tmp_path / "my-rule.yaml").write_text(GOOD)
    rules = load_rules([tmp_path])
    assert [rule.id for rule in rules] == ["my-rule"]
    assert rules.warnings == ()


@pytest.mark.parametrize(
    ("line", "text", "hint"),
    [
        (4, "category: colapse", "did you mean 'collapse'?"),
        (3, "title: A\nsustains: {hits: 1, of: 1}", "did you mean 'sustain'?"),
        (3, "title: A\napplies_to: {trainers: [gpro]}", "did you mean 'grpo'?"),
        (3, "title: yes", "write true, or quote it"),
        (7, "  low: {default: 012, unit: reward, range: [0, 1], why: x}", "drop the 0, or quote it"),
    ],
)
def test_hints(line: int, text: str, hint: str) -> None:
    _, problems = parse_rule(changed(line, text), "my-rule.yaml", stem="my-rule")
    assert hint in [problem.hint for problem in problems]


def test_all_problems_of_all_files_at_once(tmp_path: Path) -> None:
    (tmp_path / "my-rule.yaml").write_text(changed(4, "category: x").replace("title: A fault", "title: yes"))
    (tmp_path / "second.yaml").write_text("id: third\n")
    (tmp_path / "third.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(RuleError) as caught:
        load_rules([tmp_path, tmp_path / "absent.yaml"])
    seen = {(Path(problem.path).name, problem.code) for problem in caught.value.problems}
    assert {("my-rule.yaml", "E409"), ("my-rule.yaml", "E423"), ("second.yaml", "E425"), ("second.yaml", "E421")} <= seen
    assert {("third.yaml", "E402"), ("absent.yaml", "E427")} <= seen


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (changed(11, "sustain: {hits: 5, of: 5}"), "W601"),
        (
            changed(9, "  spread: mean(reward.group_std_mean, updates=20) - frozen_median(reward.group_std_mean, updates=50)"),
            "W602",
        ),
        (changed(7, "  low: {default: 0.1, unit: reward, range: [0, 1]}"), "W603"),
    ],
)
def test_style_warnings_refuse_nothing(tmp_path: Path, text: str, code: str) -> None:
    (tmp_path / "my-rule.yaml").write_text(text)
    rules = load_rules([tmp_path])
    assert [problem.code for problem in rules.warnings] == [code]
    assert rules.warnings[0].severity == "warning"


def test_the_caret_stands_under_the_fault() -> None:
    _, problems = parse_rule(changed(4, "category: colapse"), "my-rule.yaml", stem="my-rule")
    head, source, caret = problems[0].render().split("\n")
    assert head == "my-rule.yaml:4:11 error E423 'category' cannot be 'colapse'"
    assert source[caret.index("^") : caret.rindex("^") + 1] == "colapse"
