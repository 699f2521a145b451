"""Bound trees simplified while they are made: constants folded, absent parts pruned, ill-typed parts unknown."""

from __future__ import annotations

from collections.abc import Sequence

from trainvitals.rulelang.expr import MAX_NUMBER
from trainvitals.rulelang.kleene import (
    UNKNOWN,
    Absent,
    Arithmetic,
    Choice,
    Comparison,
    Const,
    Inverse,
    Junction,
    Math,
    Negative,
    evaluate,
    kind_of,
)
from trainvitals.rulelang.kleene import Bound as Tree


def constant(value: object) -> Const:
    """A configuration value or parameter as a constant; what is no number, bool or string is unknown."""
    if isinstance(value, bool | str):
        return Const(value)
    if isinstance(value, int | float) and abs(value) < MAX_NUMBER:
        return Const(float(value))
    return UNKNOWN


def joined(trees: Sequence[Tree]) -> Absent:
    """All that several absent trees lack."""
    return Absent(tuple(sorted({name for tree in trees if isinstance(tree, Absent) for name in tree.signals})))


def number(tree: Tree) -> Tree:
    """The tree where a number is needed; a value of another type is unknown."""
    return tree if isinstance(tree, Absent) or kind_of(tree) in ("number", "any") else UNKNOWN


def truth(tree: Tree) -> Tree:
    """The tree where a condition is needed; a value of another type is unknown."""
    return tree if isinstance(tree, Absent) or kind_of(tree) in ("bool", "any") else UNKNOWN


def fold(tree: Tree) -> Tree:
    """Absent if a direct part is absent, a constant if all are constant, else the tree."""
    below: tuple[Tree, ...]
    match tree:
        case Negative(operand) | Inverse(operand):
            below = (operand,)
        case Arithmetic(_, left, right) | Comparison(_, left, right):
            below = (left, right)
        case Math(_, args):
            below = args
        case _:
            return tree
    if any(isinstance(part, Absent) for part in below):
        return joined(below)
    if all(isinstance(part, Const) for part in below):
        return Const(evaluate(tree))
    return UNKNOWN if any(part == UNKNOWN for part in below) else tree


def comparison(op: str, left: Tree, right: Tree) -> Tree:
    """A comparison; unknown when the types do not fit."""
    tree = Comparison(op, left, right)
    if isinstance(left, Absent) or isinstance(right, Absent):
        return fold(tree)
    one, other = kind_of(left), kind_of(right)
    if "any" not in (one, other) and (one != other or (op not in ("==", "!=") and one != "number")):
        return UNKNOWN
    return fold(tree)


def junction_of(op: str, terms: list[Tree]) -> Tree:
    """``and``/``or`` with constants folded."""
    decider = op == "or"
    if any(isinstance(term, Const) and term.value is decider for term in terms):
        return Const(decider)
    left = [term for term in terms if not (isinstance(term, Const) and term.value is (not decider))]
    if not left:
        return Const(not decider)
    if len(left) == 1 and (kind_of(left[0]) == "bool" or isinstance(left[0], Const)):
        return left[0]
    if all(isinstance(term, Const) for term in left):
        return UNKNOWN
    return Junction(op, tuple(left))


def choice(condition: Tree, then: Tree, other: Tree) -> Tree:
    """``then if condition else other`` with constants folded; branches of different types are unknown."""
    if isinstance(condition, Absent):
        return condition
    if isinstance(condition, Const):
        return UNKNOWN if condition.value is None else then if condition.value else other
    if isinstance(then, Absent) and isinstance(other, Absent):
        return joined((then, other))
    # One branch may still decide: `a if has(x) else b` must not go dead because `a` reads what this run never emits.
    then, other = (UNKNOWN if isinstance(branch, Absent) else branch for branch in (then, other))
    kinds = {kind_of(then), kind_of(other)} - {"any"}
    return Choice(condition, then, other) if len(kinds) == 1 else UNKNOWN
