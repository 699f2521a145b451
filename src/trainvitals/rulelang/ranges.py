"""What the checker knows of a value: its type, its unit and between which numbers it lies."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from trainvitals.detectors.shift import CAP
from trainvitals.rulelang import expr as ex
from trainvitals.rulelang import units
from trainvitals.rulelang.expr import Kind, Node

INF = math.inf


@dataclass(frozen=True, slots=True)
class Type:
    """Type, unit and range. A bool lies between 0 and 1: low 1 means it always holds, high 0 that it never does."""

    kind: Kind
    unit: str | None = None
    low: float = -INF
    high: float = INF

    @property
    def is_number(self) -> bool:
        return self.kind in ("number", "any")

    @property
    def is_bool(self) -> bool:
        return self.kind in ("bool", "any")


ANY = Type("any")
BOOL = Type("bool", None, 0.0, 1.0)


def negate(value: Type) -> Type:
    """Range of ``-value``."""
    return replace(value, kind="number", low=-value.high, high=-value.low)


def arithmetic(op: str, left: Type, right: Type) -> Type:
    """Unit and range of a sum, difference, product or quotient of numbers that fit."""
    if op in "+-":
        other = right if op == "+" else negate(right)
        return _of(units.common(left.unit, right.unit), [left.low + other.low, left.high + other.high], ordered=True)
    unit = units.multiply(left.unit, right.unit, 1 if op == "*" else -1)
    if op == "*":
        return _of(unit, [_times(a, b) for a in (left.low, left.high) for b in (right.low, right.high)])
    if right.low <= 0.0 <= right.high:
        return Type("number", unit, 0.0 if left.low >= 0.0 and right.low >= 0.0 else -INF, INF)
    return _of(unit, [0.0 if math.isinf(b) else a / b for a in (left.low, left.high) for b in (right.low, right.high)])


def _times(left: float, right: float) -> float:
    return 0.0 if left == 0.0 or right == 0.0 else left * right


def _of(unit: str | None, ends: list[float], *, ordered: bool = False) -> Type:
    if any(math.isnan(end) for end in ends):
        return Type("number", unit)
    return Type("number", unit, ends[0] if ordered else min(ends), ends[1] if ordered else max(ends))


def window(function: str, value: Type, axis: str) -> Type:
    """Unit and range of a windowed statistic of a value."""
    low, high = value.low, value.high
    width = high - low if high - low == high - low else INF
    match function:
        case "std":
            return Type("number", value.unit, 0.0, width)
        case "frozen_spread" | "trailing_spread":
            return Type("number", value.unit, 0.0, 1.4826 * width)
        case "sum":
            return Type("number", value.unit, 0.0 if low >= 0 else -INF, 0.0 if high <= 0 else INF)
        case "trend_z":
            return Type("number", "sigma", -15.0, 15.0)  # a hundred samples in order have 14.7
        case "shift_up" | "shift_down":
            return Type("number", "decades", -1.0, CAP)
        case "slope" | "theil_sen":
            return Type("number", units.multiply(value.unit, axis, -1) if value.unit else None)
        case "gain_low":
            return Type("number", value.unit, -INF, width)
        case "gain_high":
            return Type("number", value.unit, -width, INF)
        case "delta":
            return Type("number", value.unit, -width, width)
        case "count":
            return Type("number", "count", 0.0, INF)
        case "share_true":
            return Type("number", "fraction", 0.0, 1.0)
        case _:
            return Type("number", value.unit, low, high)


def math_function(name: str, args: list[Type]) -> Type:
    """Unit and range of a pure function; units of several arguments agree."""
    first = args[0]
    unit = first.unit
    for other in args[1:]:
        unit = units.common(unit, other.unit)
    match name:
        case "min":
            return Type("number", unit, min(arg.low for arg in args), min(arg.high for arg in args))
        case "max":
            return Type("number", unit, max(arg.low for arg in args), max(arg.high for arg in args))
        case "clamp":
            return Type("number", unit, min(max(first.low, args[1].low), args[2].low), min(max(first.high, args[1].high), args[2].high))
        case "abs":
            top = max(abs(first.low), abs(first.high))
            return Type("number", unit, 0.0 if first.low <= 0.0 <= first.high else min(abs(first.low), abs(first.high)), top)
        case "sqrt":
            return Type("number", units.root(unit), math.sqrt(max(0.0, first.low)), math.sqrt(max(0.0, first.high)))
        case "log":
            return Type("number", None)
        case "exp":
            return Type("number", None, 0.0, INF)
        case _:
            whole = math.isfinite(first.low) and math.isfinite(first.high)
            slack = 0.0 if name in ("pow2_floor", "pow2_ceil") else 1.0
            if slack:
                return Type("number", unit, first.low - slack, first.high + slack)
            return Type("number", unit, 0.0, 2.0 * max(0.0, first.high) if whole else INF)


def compared(op: str, left: Type, right: Type) -> tuple[bool, bool]:
    """Whether a comparison can never, or must always, hold."""
    match op:
        case "<":
            return left.low >= right.high, left.high < right.low
        case "<=":
            return left.low > right.high, left.high <= right.low
        case ">":
            return left.high <= right.low, left.low > right.high
        case ">=":
            return left.high < right.low, left.low >= right.high
        case _:
            apart = left.low > right.high or left.high < right.low
            same = left.low == left.high == right.low == right.high
            return (apart, same) if op == "==" else (same, apart)


def exclude(limits: Iterable[tuple[Node, str, float]]) -> Node | None:
    """The first value for which limits, each ``value op number``, leave nothing; None when all leave something."""
    found: dict[Node, tuple[float, bool, float, bool]] = {}
    for node, op, number in limits:
        low, low_open, high, high_open = found.get(node, (-INF, False, INF, False))
        if op in ("<", "<=", "==") and (number < high or (number == high and op == "<")):
            high, high_open = number, op == "<"
        if op in (">", ">=", "==") and (number > low or (number == low and op == ">")):
            low, low_open = number, op == ">"
        if low > high or (low == high and (low_open or high_open)):
            return node
        found[node] = (low, low_open, high, high_open)
    return None


FLIPPED = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "==": "==", "!=": "!="}
OPPOSITE = {"<": ">=", "<=": ">", ">": "<=", ">=": "<", "==": "!=", "!=": "=="}


def is_plain(node: Node) -> bool:
    """Whether a node always gives the same value within one evaluation and is no constant: a name or a call."""
    return isinstance(node, ex.Name | ex.Call)
