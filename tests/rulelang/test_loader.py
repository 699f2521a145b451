"""Loading sets of rules: order, references, digests, experimental rules, and hostile input."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path

import jsonschema
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trainvitals._resources import rules_folder
from trainvitals.events import custom_signal
from trainvitals.rulelang.errors import RuleError
from trainvitals.rulelang.loader import before, load_rules, parse_rule
from trainvitals.rulelang.model import Slot, format_value
from trainvitals.rulelang.schema import rule_schema, rule_test_schema

CODES = iter(range(100, 1000))


def rule(folder: Path, name: str, extra: str = "", when: str = "reward.mean < 0") -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.yaml"
    path.write_text(
        f"id: {name}\ncode: RWD{next(CODES)}\ntitle: A fault\ncategory: collapse\nseverity: warning\n"
        f"when: {when}\nmessage: Something is wrong.\n{extra}"
    )
    return path


def errors(caught: pytest.ExceptionInfo[RuleError]) -> list[str]:
    return [problem.code for problem in caught.value.problems if problem.severity == "error"]


def test_causes_come_before_effects(tmp_path: Path) -> None:
    rule(tmp_path, "a-effect", "caused_by: [z-cause]\n")
    rule(tmp_path, "m-middle", "absorbs: [a-effect]\n")
    rule(tmp_path, "z-cause")
    rule(tmp_path, "b-asks", when='firing_for("m-middle") > 10')
    ids = [one.id for one in load_rules([tmp_path])]
    assert ids == ["z-cause", "a-effect", "m-middle", "b-asks"]


def test_errors_come_before_warnings_each_after_all_that_explains_it(tmp_path: Path) -> None:
    rule(tmp_path, "a-lint").write_text(rule(tmp_path, "a-lint").read_text().replace("severity: warning", "severity: info"))
    rule(tmp_path, "b-warns")
    rule(tmp_path, "k-before-the-cause")
    rule(tmp_path, "m-cause", "caused_by: [k-before-the-cause]\n")
    for name, extra in (("x-error", "caused_by: [m-cause]\n"), ("y-error", "")):
        path = rule(tmp_path, name, extra)
        path.write_text(path.read_text().replace("severity: warning", "severity: error"))
    ids = [one.id for one in load_rules([tmp_path])]
    assert ids == ["k-before-the-cause", "m-cause", "x-error", "y-error", "b-warns", "a-lint"]


def test_cycles_are_refused_with_the_whole_circle(tmp_path: Path) -> None:
    rule(tmp_path, "a-one", "caused_by: [b-two]\n")
    rule(tmp_path, "b-two", "caused_by: [c-three]\n")
    rule(tmp_path, "c-three", when='firing("a-one")')
    with pytest.raises(RuleError, match="a-one -> b-two -> c-three -> a-one") as caught:
        load_rules([tmp_path])
    assert errors(caught) == ["E502"]


def test_unknown_rule_in_an_expression(tmp_path: Path) -> None:
    rule(tmp_path, "a-one", when='firing("b-too")')
    rule(tmp_path, "b-two")
    with pytest.raises(RuleError, match="did you mean 'b-two'") as caught:
        load_rules([tmp_path])
    assert errors(caught) == ["E501"]


def test_ids_and_codes_are_unique(tmp_path: Path) -> None:
    first, second = rule(tmp_path / "a", "same"), rule(tmp_path / "b", "same")
    second.write_text(first.read_text())
    with pytest.raises(RuleError) as caught:
        load_rules([first, second])
    assert sorted(errors(caught)) == ["E503", "E504"]


def test_a_rule_with_errors_is_still_known_to_others(tmp_path: Path) -> None:
    rule(tmp_path, "a-one", "caused_by: [b-two]\n")
    rule(tmp_path, "b-two", "nonsense: 1\n")
    with pytest.raises(RuleError) as caught:
        load_rules([tmp_path])
    assert errors(caught) == ["E420"]


def test_unknown_enable(tmp_path: Path) -> None:
    rule(tmp_path, "a-one")
    with pytest.raises(RuleError, match="did you mean 'experimental'"):
        load_rules([tmp_path], enable=["experimentl"])


def test_experimental_rules_are_off_until_named() -> None:
    stable = {one.id for one in load_rules()}
    everything = load_rules(enable=["experimental"])
    assert all(one.status == "stable" for one in load_rules())
    assert stable <= {one.id for one in everything}


def test_custom_signals(tmp_path: Path) -> None:
    path = rule(tmp_path, "a-one", when="custom.passed < 0.5")
    with pytest.raises(RuleError, match="E103"):
        load_rules([path])
    assert load_rules([path], custom=[custom_signal("custom.passed", "fraction", "Tests passed.", low=0, high=1)]).by_id[
        "a-one"
    ].signals == {"custom.passed"}


def test_digest_ignores_comments_and_sees_changes(tmp_path: Path) -> None:
    path = rule(tmp_path, "a-one")
    text = path.read_text()
    first = load_rules([path])
    path.write_text("# a comment\n" + text)
    assert load_rules([path]).digest == first.digest
    path.write_text(text.replace("< 0", "< 1"))
    changed = load_rules([path])
    assert changed.digest != first.digest
    assert changed.rules[0].digest != first.rules[0].digest
    json.dumps(changed.rules[0].canonical(), allow_nan=False)


def test_defaults_and_frozen(tmp_path: Path) -> None:
    one = load_rules([rule(tmp_path, "a-one")]).rules[0]
    assert (one.version, one.trainers, one.warmup, one.repeat, one.required, one.action.gate) == (
        "1.0.0",
        (),
        0,
        "on-change",
        False,
        "warn",
    )
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.severity = "error"  # type: ignore[misc]


def test_template(tmp_path: Path) -> None:
    path = rule(tmp_path, "a-one", "advice: \"{{x}} {reward.mean:+.3f} of {1 / 2:percent}, {run.trainer == 'a:b'}\"\n")
    advice = load_rules([path]).rules[0].advice
    assert [part if isinstance(part, str) else (part.expr.text, part.format) for part in advice.parts] == [
        "{x} ", ("reward.mean", "+.3f"), " of ", ("1 / 2", "percent"), ", ", ("run.trainer == 'a:b'", ""),
    ]  # fmt: skip
    assert isinstance(advice.parts[1], Slot)
    assert advice.render(lambda expr: {"reward.mean": 0.5, "1 / 2": 0.5}.get(expr.text)) == "{x} +0.500 of 50%, unknown"


@pytest.mark.parametrize(
    ("value", "spec", "text"),
    [(4.0, "", "4"), (0.123456, "", "0.1235"), (0.34, "percent", "34%"), (12345.6, "num", "1.23e+04"), (True, "", "true"),
     (float("nan"), ".2f", "nan"), (None, ".2f", "unknown"), ("grpo", "", "grpo"), (2.6, "d", "3"), (1e300, "", "1e+300")],
)  # fmt: skip
def test_format_value(value: float | bool | str | None, spec: str, text: str) -> None:
    assert format_value(value, spec) == text


def test_builtin_rules_agree_with_the_published_schemas() -> None:
    rule_check, test_check = jsonschema.Draft202012Validator(rule_schema()), jsonschema.Draft202012Validator(rule_test_schema())
    jsonschema.Draft202012Validator.check_schema(rule_schema())
    jsonschema.Draft202012Validator.check_schema(rule_test_schema())
    for path in sorted(rules_folder().rglob("*.yaml")):
        check = test_check if path.stem.endswith(".test") else rule_check
        found = [
            f"{path.name}: {error.json_path}: {error.message}" for error in check.iter_errors(yaml.safe_load(path.read_text()))
        ]
        assert found == []


def test_builtin_rules_load_in_causal_order() -> None:
    rules = load_rules(enable=["experimental"])
    seen: set[str] = set()
    for one in rules:
        assert not (set(before(one)) & set(rules.by_id)) - seen, one.id
        seen.add(one.id)


SEEDS = (
    "id: a\ncode: RWD001\ntitle: t\ncategory: collapse\nseverity: info\nwhen: reward.mean < 1e-5\nmessage: m {reward.mean:.2f}\n",
    "let: {a: 1}\nwhen: >-\n  a < 2\n  and b\n",
    "params:\n  x: {default: 1, unit: ratio, range: [0, 2]}\n",
)
PIECES = st.sampled_from(
    [
        "{",
        "}",
        "[",
        "]",
        ":",
        "- ",
        "\n",
        "  ",
        "? ",
        "&a ",
        "*a",
        "!t ",
        "|\n",
        ">-\n ",
        "'",
        '"',
        "#",
        "1e-5",
        "9" * 50,
        "\u0430",
        "\u2028",
        "\t",
        "\\x",
        "when: ",
        "a.b",
        "(",
        ")",
        "mean(",
        ",",
        "\x00",
    ]
)


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.one_of(st.binary(max_size=300), st.text(max_size=300), st.lists(PIECES, max_size=60).map("".join),
                 st.tuples(st.sampled_from(SEEDS), st.integers(0, 150), st.lists(PIECES, max_size=8).map("".join)).map(lambda parts: parts[0][: parts[1]] + parts[2] + parts[0][parts[1] :])))  # fmt: skip
def test_arbitrary_input_gives_problems_and_nothing_else(data: str | bytes) -> None:
    one, problems = parse_rule(data, "fuzz.yaml", stem="a")
    assert one is not None or problems
    for problem in problems:
        assert problem.line >= 1
        assert problem.column >= 1
        assert problem.code in problem.render()


@pytest.mark.parametrize(
    "data",
    [
        "[" * 100_000, "{a: " * 50_000, "- " * 100_000, "(" * 200_000, "a: [" + "1, " * 80_000 + "1]",
        "\n".join(f"k{number}: 1" for number in range(20_000)), "let:\n" + "\n".join(f"  k{number}: reward.mean" for number in range(8_000)),
        "when: " + "(" * 1_900, "when: " + "not " * 480, "when: " + "-" * 1_900 + "1", "when: " + "1 + " * 480 + "1", "when: 9" + "9" * 1_900,
        "title: " + "9" * 200_000, "\u0430\u0440\u0440: 1", "when: r\u0435ward.mean > 1", "a: " + "'" * 200_001, "a: |\n" + " \n" * 80_000,
        "message: '" + "{" * 1_999 + "'", "message: '" + "{a}" * 60_000 + "'", "&a [*a, " * 20_000, b"\x00" * 1_000, b"\xff\xfe" + b"a" * 1_000,
        "x" * 262_144, "x" * 300_000, "#" * 200_000, "? " * 100_000, "a: \"" + "\\\n" * 60_000 + "\"", "unless: {" + "a: b, " * 30_000 + "}",
    ],
    ids=range(28),
)  # fmt: skip
def test_hostile_input_ends_soon(data: str | bytes) -> None:
    started = time.perf_counter()
    one, problems = parse_rule(data, "hostile.yaml", stem="a")
    assert one is None
    assert problems
    assert "".join(problem.render() for problem in problems[:60])
    assert time.perf_counter() - started < 5.0  # only that it ends: a shared machine can be slow


def test_the_example_of_the_readme_is_a_good_rule() -> None:
    text = (rules_folder() / "README.md").read_text(encoding="utf-8").split("```yaml\n")[1].split("```")[0]
    one, problems = parse_rule(text, "README.md", stem="entropy-low")
    assert one is not None
    assert problems == []


def test_a_slot_says_what_stands_in_for_an_unknown_value() -> None:
    """A log without its configuration must not print "unknown" where a person expects the clip range."""
    rule = load_rules().by_id["clip-ratio-high"]
    known = {"low": 0.8, "high": 1.2, "bound": "", "outside": 0.43}
    assert rule.message.render(lambda expr: known[expr.text]) == "Clip ratio outside [0.8, 1.2] for 43% of updates."
    bare = {"low": None, "high": None, "bound": "at least ", "outside": 0.43}
    assert rule.message.render(lambda expr: bare[expr.text]) == "Clip ratio outside [1 - epsilon, 1 + epsilon] for at least 43% of updates."
