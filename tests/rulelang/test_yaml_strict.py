"""Strict YAML: scalars by YAML 1.2, positions, and the same answer with and without libyaml."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from trainvitals.rulelang.errors import Problem, RuleError, Where, nearest
from trainvitals.rulelang.yaml_strict import MAX_BYTES, MAX_DEPTH, MAX_NODES, Map, Node, Scalar, Seq, load, scan


def plain(node: Node) -> Any:
    """The node as ordinary values."""
    if isinstance(node, Map):
        return {key: plain(value) for key, value in node.values.items()}
    return [plain(item) for item in node.items] if isinstance(node, Seq) else node.value


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-5", 1e-5), ("5e-2", 0.05), ("1E3", 1000.0), ("-0.5", -0.5), (".5", 0.5), ("5.", 5.0), ("0", 0), ("-7", -7), ("+3", 3),
     ("true", True), ("false", False), ("'1e-5'", "1e-5"), ('"no"', "no"), ("2026-01-01", "2026-01-01"), ("1.2.3", "1.2.3"),
     ("arxiv:2503.14476", "arxiv:2503.14476"), ("y", "y"), ("-", None), ("a - b", "a - b"), ("1e", "1e"), ("0.0.1", "0.0.1"), ("=", "=")],
)  # fmt: skip
def test_scalars(text: str, value: object) -> None:
    if value is None:
        with pytest.raises(RuleError):
            load(f"a: {text}\n", "f")
        return
    node = load(f"a: {text}\n", "f")
    found = plain(node)["a"]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    "text", ["a: {b: 1, c: [x, 2]}\nd: |\n  one\n  two\n", "a:\r\n- 1\r\n- b\r\n", "\ufeffa: 1\n", "---\na: 1\n...\n"]
)
def test_structure(text: str) -> None:
    assert plain(load(text.encode(), "f")) == yaml.safe_load(text)


@pytest.mark.parametrize(
    ("text", "piece", "line", "column"),
    [
        ("when: a < bad\n", "bad", 1, 11),
        ("when: 'a < bad'\n", "bad", 1, 12),
        ('when: "a < bad"\n', "bad", 1, 12),
        ("when: 'it''s bad'\n", "bad", 1, 14),
        ('when: "a\\tb bad"\n', "bad", 1, 13),
        ('when: "\\x41 bad"\n', "bad", 1, 13),
        ("when: >-\n  a\n  < bad\n", "bad", 3, 5),
        ("when: >-\n    a <\n      bad\n\n    c\n", "bad", 3, 7),
        ("when: |\n  a\n\n  < bad\n", "bad", 4, 5),
        ("when: a\n  < bad\n", "bad", 2, 5),
        ("x: {when: a < bad}\n", "bad", 1, 15),
        ("when: '\u00e4\U0001f600 bad'\n", "bad", 1, 11),
    ],
)
def test_every_character_has_its_place(text: str, piece: str, line: int, column: int) -> None:
    node = load(text, "f")
    assert isinstance(node, Map)
    scalar = next(iter(node.values.values()))
    if isinstance(scalar, Map):
        scalar = scalar.values["when"]
    assert isinstance(scalar, Scalar)
    at = scalar.text.index(piece)
    assert scalar.where.locate(at) == (line, column)
    found = scalar.where.problem("E101", "m", at, len(piece))
    assert (found.line, found.column, found.length, found.source_line) == (line, column, len(piece), text.split("\n")[line - 1])
    inner = scalar.where.inner(at, len(piece))
    assert inner.locate(1) == (line, column + 1)


def both(data: str | bytes) -> tuple[object, object]:
    """The answer with libyaml and without it."""
    with_library = scan(data, "f")
    had = yaml.__with_libyaml__
    yaml.__with_libyaml__ = False
    try:
        return with_library, scan(data, "f")
    finally:
        yaml.__with_libyaml__ = had


PIECES = st.sampled_from(
    [
        "a",
        "b: ",
        "{",
        "}",
        "[",
        "]",
        ", ",
        ": ",
        "- ",
        "\n",
        "\n  ",
        "? ",
        "?",
        "&x ",
        "*x",
        "!t ",
        "|\n ",
        ">-\n ",
        "'",
        '"',
        "#",
        " #",
        "1e-5",
        "no",
        "0x1",
        "%",
        "@",
        "---\n",
        "...\n",
        "\u00e9",
        "\\n",
    ]
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(PIECES, max_size=25).map("".join))
@example("z: {to: true, if: ? a}")
@example("a: {b?c: d}")
@example("{? a: b}")
def test_libyaml_changes_nothing(text: str) -> None:
    first, second = both(text)
    assert first == second


@pytest.mark.parametrize(
    ("data", "code", "words"),
    [
        ("a: " + "b" * MAX_BYTES, "E403", "bytes"),
        ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), "E403", "deeper"),
        ("[" + "1," * (MAX_NODES + 1) + "1]", "E403", "values"),
        (b"a: \xe9\n", "E402", "0xe9"),
        ("a: \ud800", "E402", "U+D800"),
        ('a: "\\0"', "E402", "U+0000"),
        ('a: "\\UFFFFFFFF"', "E401", "not YAML"),
        ("a: b\u2028", "E402", "U+2028"),
        ("a: 1\rb: 2", "E402", "U+000D"),
        ("a: '\t'", "E404", "tab"),
        ("", "E405", "no document"),
        ("# only a comment\n", "E405", "no document"),
        ("a: 1\n---\nb: 1\n", "E405", "one document"),
        ("a: @b", "E401", "not YAML"),
        ("a: " + "9" * 50, "E410", "too large"),
    ],
)
def test_refusals(data: str | bytes, code: str, words: str) -> None:
    with pytest.raises(RuleError) as caught:
        load(data, "f")
    assert caught.value.problems[0].code == code
    assert words in caught.value.problems[0].message


def test_render() -> None:
    problem = Problem("E103", "unknown signal 'x'", "f.yaml", 19, 5, 3, "abc def", "did you mean 'y'?")
    assert problem.render() == "f.yaml:19:5 error E103 unknown signal 'x'\n   19 | abc def\n      |     ^^^ did you mean 'y'?"
    assert Problem("W601", "m", "f", 1, 1).render() == "f:1:1 warning W601 m"
    assert Problem("E101", "m", "f", 1, 1, hint="h").render() == "f:1:1 error E101 m\n      | h"
    wide = Problem("E101", "m", "f", 1, 100_000, 7, "x" * 200_000).render()
    assert len(wide) < 500
    assert "^^^^^^^" in wide


def test_where_past_the_end_and_without_lines() -> None:
    assert Where("f", 3, 5).locate(4) == (3, 9)
    assert Where("f", 3, 5, offsets=((3, 5), (4, 2))).locate(9) == (4, 3)
    assert Where("f", 3, 5, "  text").problem("E1", "m", 0, 50).length == 50


def test_nearest() -> None:
    assert nearest("policy.entropi", ["policy.entropy", "reward.mean"]) == "did you mean 'policy.entropy'?"
    assert nearest("entropy", ["policy.entropy"]) == "did you mean 'policy.entropy'?"
    assert nearest("zzz", ["policy.entropy"]) == ""
    assert nearest("x" * 1_000, ["policy.entropy"]) == ""
