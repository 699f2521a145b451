"""Parsing: what is accepted, what is refused and where the caret stands, and that hostile text neither hangs nor escapes."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainvitals.events import CATALOGUE
from trainvitals.rulelang import expr as ex
from trainvitals.rulelang.check import check
from trainvitals.rulelang.errors import RuleError, Where
from trainvitals.rulelang.expr import parse


def _parse(text: str) -> ex.Expr:
    return parse(text, Where(source_line=text))


def _codes(text: str) -> list[str]:
    with pytest.raises(RuleError) as caught:
        _parse(text)
    return [problem.code for problem in caught.value.problems]


def test_a_chain_becomes_links_joined_by_and() -> None:
    root = _parse("0.1 < policy.entropy <= 2").root
    assert root == ex.Logic(
        "and", (ex.Compare("<", ex.Num(0.1), ex.Name("policy.entropy")), ex.Compare("<=", ex.Name("policy.entropy"), ex.Num(2.0)))
    )


def test_line_breaks_are_spaces_and_literals_have_yaml_spelling() -> None:
    assert _parse("true and\n  not false").root == ex.Logic("and", (ex.Flag(True), ex.Not(ex.Flag(False))))
    assert _parse("-1e-5").root == ex.Num(-1e-5)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("a && b", "E454"), ("a || b", "E454"), ("!a", "E454"), ("a ** 2", "E454"), ("a[0]", "E454"), ("{a}", "E454"), ("a # c", "E454"),
        ("lambda: 1", "E454"), ("(a := 1)", "E454"), ("a < b > c", "E457"), ("a in b", "E455"), ("a is b", "E455"), ("f'x'", "E455"),
        ("b'x'", "E455"), ("a.b.c", "E455"), ("(1).real", "E455"), ("a.b()", "E455"), ("f(**k)", "E454"), ("None", "E455"), ("1j", "E455"),
        ("1e999", "E456"), ("", "E453"), ("   ", "E453"), ("a <", "E451"), ("x = 3", "E451"), ("+a", "E455"), ("a if b", "E451"),
        ("кл > 1", "E454"), ("a\u2028b", "E454"), ("\x00", "E454"), ("yield", "E451"), ("await x", "E455"), ("f(*a)", "E455"), ("a, b", "E455"),
    ],
)  # fmt: skip
def test_what_is_not_in_the_language_is_refused(text: str, code: str) -> None:
    assert code in _codes(text)


def test_the_caret_stands_under_the_operator() -> None:
    with pytest.raises(RuleError) as caught:
        _parse("policy.kl_ref > 1 && policy.entropy < 2")
    problem = caught.value.problems[0]
    assert (problem.column, problem.length, problem.hint) == (19, 2, "use 'and'")


def test_limits() -> None:
    assert _codes("a + " * 600 + "a") == ["E452"]
    assert _codes("+".join("a" * 150)) == ["E452"]
    assert "E452" in _codes("(" * 40 + "a" + ")" * 40)
    assert _codes("not " * 40 + "a") == ["E452"]
    assert _parse(" or ".join(["a"] * 150)).size == 151


HOSTILE = [
    "(" * 1900, "-" * 1900 + "1", "not " * 480 + "a", "f(" * 600 + ")" * 600, "9" * 1999, "a." * 900 + "b", "a<" * 900 + "a", "'" * 1999,
    '"""' * 600, "a if b else " * 150 + "c", "__import__('os').system('true')", "().__class__.__bases__", "a\\\nb", "[[[[" * 400,
    "f(a=" * 300, "mean(" * 30 + "x" + ", updates=5)" * 30, "1if 1else 1", "0x1for x in y", "'\\N{BELL}'", "a" * 1999, "min(" + "1," * 180 + "1)",
    "e" * 900 + " < " + "1e5" * 300, "x.y." * 400, "*" * 500, "a==" * 600 + "b", "\ud800", "\t\n\r\f", "f'{x!r}'" * 100,
    " + ".join(f"abc.n{i}" for i in range(90)), " + ".join(f"nam{i}(1)" for i in range(60)),
]  # fmt: skip


def _survive(text: str) -> float:
    start = time.process_time()
    try:
        check(_parse(text), signals=CATALOGUE)
    except RuleError as error:
        problems = error.problems
    else:
        problems = None
    elapsed = time.process_time() - start
    assert problems is None or (problems and all(problem.render() for problem in problems))
    return elapsed


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_answered_quickly_with_a_rule_error(text: str) -> None:
    assert min(_survive(text) for _ in range(3)) < 0.05


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=200))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    _survive(text)


def test_random_token_soup_is_parsed_or_refused() -> None:
    random_ = random.Random(7)
    tokens = ["a", "policy.kl_ref", "config.x", "run.step", "(", ")", "<", ">=", "==", "and", "or", "not", "if", "else", "+", "-", "*", "/", "1", "0.5",
              "1e-5", "'s'", "mean(", "updates=20", ",", "firing(", "has(", "min(", "frozen_median(", "share_true(", ".", "true", "q="]  # fmt: skip
    for _ in range(3000):
        _survive(" ".join(random_.choices(tokens, k=random_.randint(1, 25))))
