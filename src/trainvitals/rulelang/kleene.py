"""Bound trees and their evaluation in three-valued logic.

A bound tree is an expression with parameters, `let` names, configuration and windows put in place: constants, reads and
operators. `evaluate` walks it; it is the reference for the generated code of `compile` and serves explanations. Unknown is
None. Arithmetic with unknown, division by zero and results that are not finite are unknown; ``and``/``or`` follow Kleene.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from trainvitals.rulelang.expr import Kind
from trainvitals.rulelang.functions import apply_math
from trainvitals.rulelang.windows_series import Bounds, Series

Value = float | bool | str | None

SELDOM = 1 / 3
"""How often the terms of ``and`` and ``or`` after the cheapest are computed, roughly; it moves the order of terms, never a value."""


@dataclass(frozen=True, slots=True)
class Const:
    """A value known when the rule is bound; None is unknown for the whole run."""

    value: Value


@dataclass(frozen=True, slots=True)
class Read:
    """A value that changes during the run.

    Attributes:
        text: Canonical text; equal texts read the same thing.
        read: Gives the value now.
        kind: Type of the value.
        cost: Rough relative cost, to put cheap terms first.
        series: Series it depends on; a derived series is sampled when one of them has a new sample.
        span: Updates that it looks back: the length of a window; 1 for a newest value, a time or another rule; infinite for
            what only news changes (references that are fixed, presence, the run's own clock).
        bounds: Gives between which numbers it lies, its series' hulls widened by a share (`proof`). Gives None, or is None,
            where nothing can be said.
    """

    text: str
    read: Callable[[], Value]
    kind: Kind = "number"
    cost: float = 1.0
    series: tuple[Series, ...] = ()
    span: float = 1.0
    bounds: Callable[[float], Bounds | None] | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Negative:
    """Unary minus."""

    operand: Bound


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """``+ - * /`` on numbers."""

    op: str
    left: Bound
    right: Bound


@dataclass(frozen=True, slots=True)
class Comparison:
    """Comparison of two numbers, or equality of two values of one type."""

    op: str
    left: Bound
    right: Bound


@dataclass(frozen=True, slots=True)
class Junction:
    """``and`` or ``or``."""

    op: str
    terms: tuple[Bound, ...]


@dataclass(frozen=True, slots=True)
class Inverse:
    """``not``."""

    operand: Bound


@dataclass(frozen=True, slots=True)
class Choice:
    """``then if condition else other``."""

    condition: Bound
    then: Bound
    other: Bound


@dataclass(frozen=True, slots=True)
class Math:
    """A pure function of numbers."""

    name: str
    args: tuple[Bound, ...]


@dataclass(frozen=True, slots=True)
class Absent:
    """Something that this run can never have, with the signals it lacks."""

    signals: tuple[str, ...]


Bound = Const | Read | Negative | Arithmetic | Comparison | Junction | Inverse | Choice | Math | Absent

UNKNOWN = Const(None)


def evaluate(node: Bound) -> Value:
    """Value of a bound tree now."""
    match node:
        case Const(value):
            return value
        case Read():
            return node.read()
        case Negative(operand):
            inner = evaluate(operand)
            return None if inner is None else -inner  # type: ignore[operator]
        case Arithmetic(op, left, right):
            return calculate(op, evaluate(left), evaluate(right))
        case Comparison(op, left, right):
            return compare(op, evaluate(left), evaluate(right))
        case Junction(op, terms):
            return junction(op, [evaluate(term) for term in terms])
        case Inverse(operand):
            inner = evaluate(operand)
            return None if inner is None else not inner
        case Choice(condition, then, other):
            chosen = evaluate(condition)
            return None if chosen is None else evaluate(then if chosen else other)
        case Math(name, args):
            return apply_math(name, *[evaluate(argument) for argument in args])  # type: ignore[arg-type]
        case Absent():
            return None


def calculate(op: str, left: Value, right: Value) -> float | None:
    """Arithmetic; None when an operand is unknown or the result is not a finite number."""
    if left is None or right is None or isinstance(left, str) or isinstance(right, str):
        return None
    if op == "/":
        if right == 0.0:
            return None
        result = left / right
    else:
        result = left + right if op == "+" else left - right if op == "-" else left * right
    return result if result - result == 0.0 else None


def compare(op: str, left: Value, right: Value) -> bool | None:
    """Comparison; None when an operand is unknown."""
    if left is None or right is None:
        return None
    if op == "==":
        return left == right
    if op == "!=":
        return left != right
    if isinstance(left, str) or isinstance(right, str):
        return None
    return left < right if op == "<" else left <= right if op == "<=" else left > right if op == ">" else left >= right


def junction(op: str, values: list[Value]) -> bool | None:
    """Kleene's ``and`` and ``or``: a deciding term wins over unknown ones."""
    decider = op == "or"
    if any(value is not None and bool(value) is decider for value in values):
        return decider
    return None if None in values else not decider


def kind_of(node: Bound) -> Kind:
    """Type of a bound tree's value; ``any`` for an unknown constant."""
    match node:
        case Const(value):
            return "any" if value is None else "bool" if isinstance(value, bool) else "string" if isinstance(value, str) else "number"
        case Read():
            return node.kind
        case Comparison() | Junction() | Inverse():
            return "bool"
        case Choice(_, then, other):
            kinds = {kind_of(then), kind_of(other)} - {"any"}
            return kinds.pop() if len(kinds) == 1 else "any"
        case Absent():
            return "any"
        case _:
            return "number"


def parts(node: Bound) -> Iterator[Bound]:
    """The node and everything below it."""
    yield node
    match node:
        case Negative(operand) | Inverse(operand):
            yield from parts(operand)
        case Arithmetic(_, left, right) | Comparison(_, left, right):
            yield from parts(left)
            yield from parts(right)
        case Junction(_, below) | Math(_, below):
            for part in below:
                yield from parts(part)
        case Choice(condition, then, other):
            yield from parts(condition)
            yield from parts(then)
            yield from parts(other)
        case _:
            return


def expires(node: Bound) -> float:
    """The last ``run.step`` at which a condition can be true: a rule for the first updates needs no look after them."""
    match node:
        case Const(value):
            return math.inf if value else -math.inf
        case Comparison("<" | "<=", Read(text="run.step"), Const(value)) if isinstance(value, int | float):
            return float(value)
        case Comparison(">" | ">=", Const(value), Read(text="run.step")) if isinstance(value, int | float):
            return float(value)
        case Junction(op, terms):
            return (min if op == "and" else max)(expires(term) for term in terms)
        case _:
            return math.inf


def can_be(node: Bound, value: bool) -> bool:
    """Whether a condition can have this value at all, some of its settings being unknown for the whole run."""
    match node:
        case Const(known):
            return known is value
        case Inverse(operand):
            return can_be(operand, not value)
        case Junction(op, terms):
            return (any if value is (op == "or") else all)(can_be(term, value) for term in terms)
        case Choice(condition, then, other):
            return (can_be(condition, True) and can_be(then, value)) or (can_be(condition, False) and can_be(other, value))
        case _:
            return can_be_known(node)


def can_be_known(node: Bound) -> bool:
    """Whether a number or a comparison of numbers can have a value at all."""
    match node:
        case Const(value):
            return value is not None
        case Choice(condition, then, other):
            return (can_be(condition, True) and can_be_known(then)) or (can_be(condition, False) and can_be_known(other))
        case Negative(operand):
            return can_be_known(operand)
        case Arithmetic(_, left, right) | Comparison(_, left, right):
            return can_be_known(left) and can_be_known(right)
        case Math(_, args):
            return all(can_be_known(argument) for argument in args)
        case _:
            return True


def cost(node: Bound) -> float:
    """Rough relative cost of evaluating a tree, cheapest terms first: of ``and`` and ``or`` mostly the first one decides."""
    match node:
        case Const() | Absent():
            return 0.0
        case Read():
            return node.cost
        case Negative(operand) | Inverse(operand):
            return 0.2 + cost(operand)
        case Arithmetic(_, left, right) | Comparison(_, left, right):
            return 0.2 + cost(left) + cost(right)
        case Junction(_, terms):
            first, *others = sorted(cost(term) for term in terms)
            return 0.2 + first + SELDOM * sum(others)
        case Choice(condition, then, other):
            return 0.2 + cost(condition) + (cost(then) + cost(other)) / 2
        case Math(_, args):
            return 0.2 + sum(cost(argument) for argument in args)


def canonical(node: Bound) -> str:
    """Text that is equal for equal trees; names derived series."""
    match node:
        case Const(value):
            return repr(value)
        case Read():
            return node.text
        case Negative(operand):
            return f"(-{canonical(operand)})"
        case Arithmetic(op, left, right) | Comparison(op, left, right):
            return f"({canonical(left)} {op} {canonical(right)})"
        case Junction(op, terms):
            return f"({f' {op} '.join(canonical(term) for term in terms)})"
        case Inverse(operand):
            return f"(not {canonical(operand)})"
        case Choice(condition, then, other):
            return f"({canonical(then)} if {canonical(condition)} else {canonical(other)})"
        case Math(name, args):
            return f"{name}({', '.join(canonical(argument) for argument in args)})"
        case Absent(signals):
            return f"absent({', '.join(signals)})"
