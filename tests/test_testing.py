"""Series notation, test files with their faults, and the runner."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainvitals.rulelang.errors import RuleError
from trainvitals.testing import SeriesError, parse_series, run_rule_tests
from trainvitals.testing_cases import read_cases

RULE = """\
id: kl-high
code: KL001
version: 1.0.0
title: KL is high
category: numerics
severity: warning
applies_to: {trainers: any}
params:
  limit: {default: 1, unit: nats, range: [0, 10], why: test}
when: policy.kl_ref > limit
sustain: {hits: 2, of: 3}
message: "KL is {policy.kl_ref:num}."
advice: Lower it.
suggest:
  - set: learning_rate
    to: config.learning_rate / 2
    why: smaller steps
docs: {explain: test, look_first: test}
"""


def run(tmp: Path, cases: str, given: str = "given: {config: {learning_rate: 1.0e-6}}\n") -> list[tuple[bool, list[str]]]:
    (tmp / "kl-high.yaml").write_text(RULE)
    (tmp / "kl-high.test.yaml").write_text(f"rule: kl-high\n{given}cases:\n{cases}")
    return [(result.passed, result.failures) for result in run_rule_tests(tmp)]


def test_notation() -> None:
    assert parse_series("0.4x3 1..3x3 _x2 nan inf -inf 2e-1") [:8] == [0.4, 0.4, 0.4, 1.0, 2.0, 3.0, None, None]
    assert [str(value) for value in parse_series("nan inf -inf")] == ["nan", "inf", "-inf"]
    assert parse_series("0x100") == [0.0] * 100
    assert parse_series("-1..-3x2") == [-1.0, -3.0]
    noisy = parse_series("5~0.1x500", "seed")
    assert noisy == parse_series("5~0.1x500", "seed") != parse_series("5~0.1x500", "other")
    numbers = [value for value in noisy if value is not None]
    assert math.isclose(sum(numbers) / 500, 5.0, abs_tol=0.03)


@pytest.mark.parametrize("text", ["", "0.4*60", "x5", "0.4x0", "1x9999999", "1e400x2", "1~-2x5", "abc"])
def test_bad_notation(text: str) -> None:
    with pytest.raises(SeriesError):
        parse_series(text)


@given(st.text(max_size=40))
def test_notation_never_raises_anything_else(text: str) -> None:
    with contextlib.suppress(SeriesError):
        assert parse_series(text)


def test_expectations_that_hold(tmp_path: Path) -> None:
    results = run(tmp_path, """\
  - name: fires and resolves
    series: {policy.kl_ref: "0.5x10 2x10 0.5x10"}
    expect:
      - {until: 10, state: ok}
      - {at: 11, state: pending}
      - {fires_between: [12, 12], severity: warning, times: 1, message_has: "KL is 2"}
      - {at: 15, state: firing, suggests: {learning_rate: {from: 1.0e-6, to: 5.0e-7, apply: live, also: {}}, beta: false}, advice_has: Lower}
      - {at: 15, verdict: steady, data: ok}
      - {resolves_between: [22, 23]}
  - name: silent
    series: {policy.kl_ref: "0.5~0.01x30"}
    expect: [{never: firing}, {always: ok}]
  - name: labelled instance, ticks and boundaries are accepted
    series: {policy.kl_ref: {values: "0.5x10", every: 2}, eval.loss: "1x3"}
    boundaries: [{at: 3, what: save_begin}]
    silence: {after: 4, seconds: 60}
    applied: [{at: 5, parameter: learning_rate, from: 1.0e-6, to: 5.0e-7}]
    expect: [{never: firing}]
""")  # fmt: skip
    assert results == [(True, [])] * 3


def test_expectations_that_do_not_hold_say_what_was_there(tmp_path: Path) -> None:
    ((passed, failures),) = run(tmp_path, """\
  - name: all wrong
    series: {policy.kl_ref: "0.5x10 2x10 0.5x10"}
    expect:
      - {never: firing}
      - {until: 15, state: ok}
      - {fires_between: [1, 5]}
      - {resolves_between: [25, 30]}
      - {times: 2}
      - {at: 15, state: ok, severity: error, message_has: nonsense}
      - {at: 15, suggests: {beta: {to: 1.0}, learning_rate: {to: 1.0, also: {beta: 2.0}}}}
      - {at: 15, suggests: {learning_rate: false}}
""")  # fmt: skip
    assert not passed
    text = "\n".join(failures)
    for part in ("it was at step 12", "firing at step 12", "steps [12]", "but it was firing", "it was warning", "nonsense", "suggests beta", "it is 5e-07", "also {'beta': 2.0}, but it is {}", "does not suggest learning_rate, but it suggests 5e-07"):
        assert part in text, part


def test_todo_must_keep_failing(tmp_path: Path) -> None:
    case = '  - name: gap\n    todo: known\n    series: {{policy.kl_ref: "{}"}}\n    expect: [{{never: firing}}]\n'
    assert run(tmp_path, case.format("2x10")) [0][0]
    passed, failures = run(tmp_path, case.format("0.1x10"))[0]
    assert not passed
    assert "remove the mark" in failures[0]


@pytest.mark.parametrize(
    ("text", "code", "where"),
    [
        ("rule: kl-high\ncases:\n  - name: a\n    series: {policy.kl_reff: '1x5'}\n    expect: [{never: firing}]\n", "E103", (4, 14)),
        ("rule: kl-high\ncases:\n  - name: a\n    series: {policy.kl_ref: '1x5 1*5'}\n    expect: [{never: firing}]\n", "E426", (4, 34)),
        ("rule: kl-high\ncases:\n  - name: a\n    series: {policy.kl_ref: '1x5'}\n    expect: [{nevr: firing}]\n", "E420", (5, 15)),
        ("rule: kl-high\ncases:\n  - name: a\n    series: {policy.kl_ref: '1x5'}\n    expect: [{never: fires}]\n", "E423", (5, 22)),
        ("rule: other\ncases:\n  - name: a\n    series: {policy.kl_ref: '1x5'}\n    expect: [{never: firing}]\n", "E425", (1, 1)),
        ("rule: kl-high\ncases: []\n", "E421", (2, 1)),
        ("rule: kl-high\ncases:\n  - name: a\n    series: {policy.kl_ref: '1x5'}\n    expect: [{state: ok}]\n", "E421", (5, 14)),
    ],
)
def test_faults_of_a_test_file_have_a_place(tmp_path: Path, text: str, code: str, where: tuple[int, int]) -> None:
    path = tmp_path / "kl-high.test.yaml"
    path.write_text(text)
    with pytest.raises(RuleError) as caught:
        read_cases(path)
    problem = caught.value.problems[0]
    assert (problem.code, (problem.line, problem.column)) == (code, where)


def test_a_rule_without_tests_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "kl-high.yaml").write_text(RULE)
    with pytest.raises(RuleError, match="no test file"):
        run_rule_tests(tmp_path / "kl-high.yaml")
