"""Proofs that a condition is false, and stays so for as long as its signals go on as they did.

Most looks at a calm rule (`pace`) find what the last one found: half of the length is nowhere near the length of today. So a
condition that was false is looked at once more by interval arithmetic: each newest value, median, mean or extreme lies within
the hull of its series (`windows_series`), whatever the next samples are, as long as they lie in it too. When the condition is
false for all such values, computing it tells nothing. A proof rests on *grounds*, at which it looks again
after something moved (`windows_series.Clock`), for two comparisons a series:

* its series stay within the hull of the proof, and
* they go on with one sample an update, so that windows that were ready stay ready, and no value is unknown or stale.

It says nothing that computing would not say: the property test compares them. Rounding moves an interval's ends as it moves the
values between them, since rounded ``+ - * /`` are monotonic; only sums of many samples need the slack of `windows_stats`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from trainvitals.rulelang.folding import junction_of
from trainvitals.rulelang.functions import apply_math
from trainvitals.rulelang.generate import generate
from trainvitals.rulelang.kleene import Arithmetic, Bound, Choice, Comparison, Const, Inverse, Junction, Math, Negative, Read, Value
from trainvitals.rulelang.ranges import Type, compared
from trainvitals.rulelang.windows_series import Clock, Series

Interval = tuple[float, float]
"""Two ends, which belong to it. Of a bool: (1, 1) holds, (0, 0) does not, (0, 1) is one of the two."""

ROOMS = (0.05, 0.5)
"""A hull is widened by this much of itself on each side, and by more where that proves it too, so that a proof outlives a slow drift."""
STEADY = 96
"""Updates for which a series must have brought one sample each: the cadence in force was observed at most 64 + 17 samples ago."""

_RISING = frozenset({"min", "max", "clamp", "floor", "ceil", "round", "sqrt"})
"""Functions that never fall when an argument rises, to the last digit."""

YES, NO, EITHER = (1.0, 1.0), (0.0, 0.0), (0.0, 1.0)


class Proof:
    """That a condition is false, and what that rests on.

    Attributes:
        rest: Computes what of the condition is not proved, and is all that it can still be; None when nothing is left.
        seen: Where `clock.moved` stood when it was last seen to hold: as long as that is so, it holds, and need not be asked.
        clock: Of its series.
    """

    __slots__ = ("_grounds", "clock", "rest", "seen")

    def __init__(self, clock: Clock, grounds: list[tuple[Series, int, int, float, float]], rest: Callable[[], Value] | None = None) -> None:
        self.clock = clock
        self._grounds = grounds
        self.seen = -1
        self.rest = rest

    def holds(self) -> bool:
        """Whether what was proved must be false now. Once it does not hold, another proof is needed."""
        if self.clock.moved == self.seen:
            return True
        step = self.clock.step
        for series, lag, uneven, low, high in self._grounds:
            if series.dropped + len(series.xs) - step != lag or series.uneven != uneven:
                return False
            hull = series.hull
            if hull[0] < low or hull[1] > high:
                return False
            series.relied = True
        self.seen = self.clock.moved
        return True


def prove(tree: Bound, clock: Clock) -> Proof | None:
    """A proof that a condition, or some of what it joins by ``or``, is false; None when there is none, for it may well be false all the same."""
    if clock.origin is None or clock.step - clock.origin < STEADY:
        return None
    terms = tree.terms if isinstance(tree, Junction) and tree.op == "or" else (tree,)
    chosen: tuple[float, set[Series], list[Bound]] | None = None
    for room in ROOMS:  # the least first: what it does not prove, more room does not either, and most attempts fail
        prover = _Prover(room, clock)
        found = [(term, prover.never(term)) for term in terms]
        left = [term for term, used in found if used is None]
        if len(left) == len(terms) or (chosen is not None and len(left) > len(chosen[2])):
            break
        chosen = (room, {series for _, used in found if used is not None for series in used}, left)
    if chosen is None:
        return None
    room, used, left = chosen
    grounds = [(series, series.total - clock.step, series.uneven, *series.bounds(room)[:2]) for series in used]
    return Proof(clock, grounds, generate(junction_of("or", left)) if left else None)


class _Prover:
    """Interval arithmetic over a bound tree; None stands for what may be unknown, or of which nothing can be said."""

    def __init__(self, room: float, clock: Clock) -> None:
        self.room = room
        self.clock = clock

    def never(self, node: Bound) -> set[Series] | None:
        """The series on which it rests that a condition is false; None when that cannot be told. Nothing is asked that would not help."""
        match node:
            case Junction("and", terms):
                return next((found for term in terms if (found := self.never(term)) is not None), None)
            case Junction("or", terms):
                every: set[Series] = set()
                for term in terms:
                    found = self.never(term)
                    if found is None:
                        return None
                    every |= found
                return every
            case _:
                used: set[Series] = set()
                try:
                    return used if self.lies(node, used) == NO else None
                except ArithmeticError:  # of a term that the condition itself may never get to
                    return None

    def lies(self, node: Bound, used: set[Series]) -> Interval | None:
        """Between which numbers the value of a node lies; the series that this rests on are added to `used`."""
        match node:
            case Const(value):
                return (float(value), float(value)) if isinstance(value, bool | int | float) else None
            case Read():
                return self.read(node, used)
            case Junction(op, terms):
                return self.junction(op, terms, used)
            case Choice(condition, then, other):
                test = self.lies(condition, used)
                if test is None or test == EITHER:
                    one, two = self.lies(then, used), self.lies(other, used)
                    return None if test is None or one is None or two is None else (min(one[0], two[0]), max(one[1], two[1]))
                return self.lies(then if test == YES else other, used)
            case Negative(operand) | Inverse(operand):
                inner = self.lies(operand, used)
                if inner is None:
                    return None
                return (-inner[1], -inner[0]) if isinstance(node, Negative) else (1.0 - inner[1], 1.0 - inner[0])
            case Comparison(op, left, right):
                one, two = self.lies(left, used), self.lies(right, used)
                if one is None or two is None:
                    return None
                never, always = compared(op, Type("number", None, *one), Type("number", None, *two))
                return NO if never else YES if always else EITHER
            case Arithmetic(op, left, right):
                one, two = self.lies(left, used), self.lies(right, used)
                return None if one is None or two is None else arithmetic(op, one, two)
            case Math(name, args):
                return self.function(name, [self.lies(argument, used) for argument in args])
            case _:
                return None

    def read(self, node: Read, used: set[Series]) -> Interval | None:
        bounds = node.bounds(self.room) if node.bounds is not None else None
        if bounds is None or node.read() is None:  # in this order: what has no bounds may be dear to read
            return None
        if bounds.back:
            if not all(self.steady(series, bounds.back) for series in node.series):
                return None
            used.update(node.series)
        return bounds.low, bounds.high

    def steady(self, series: Series, back: float) -> bool:
        """Whether one sample came in each update of a window and of what its cadence was observed in, this update included."""
        count = int(max(STEADY, back + 1))
        return series.steps[-count:] == list(range(self.clock.step - count + 1, self.clock.step + 1))

    def junction(self, op: str, terms: tuple[Bound, ...], used: set[Series]) -> Interval | None:
        """One term that decides is enough, and only what that one rests on counts."""
        decider, neutral = (NO, YES) if op == "and" else (YES, NO)
        found: list[Interval | None] = []
        every: set[Series] = set()
        for term in terms:
            own: set[Series] = set()
            value = self.lies(term, own)
            if value == decider:
                used |= own
                return decider
            found.append(value)
            every |= own
        used |= every
        if None in found:
            return None
        return neutral if all(value == neutral for value in found) else EITHER

    def function(self, name: str, args: list[Interval | None]) -> Interval | None:
        known = [interval for interval in args if interval is not None]
        if len(known) < len(args):
            return None
        if name == "abs":
            low, high = known[0]
            return (0.0 if low <= 0.0 <= high else min(abs(low), abs(high)), max(abs(low), abs(high)))
        if name not in _RISING:
            return None
        least, most = apply_math(name, *(low for low, _ in known)), apply_math(name, *(high for _, high in known))
        return None if least is None or most is None else (least, most)


def arithmetic(op: str, one: Interval, two: Interval) -> Interval | None:
    """Ends of a sum, difference, product or quotient; None when one of the results may be no finite number."""
    if op == "/" and two[0] <= 0.0 <= two[1]:
        return None
    ends = [_OPERATIONS[op](left, right) for left in one for right in two]
    if not all(map(math.isfinite, ends)):
        return None
    return min(ends), max(ends)


_OPERATIONS: dict[str, Callable[[float, float], float]] = {
    "+": lambda left, right: left + right,
    "-": lambda left, right: left - right,
    "*": lambda left, right: left * right,
    "/": lambda left, right: left / right,
}

