"""How often a condition must be looked at.

A statistic over 40 updates hardly moves in one: 16 of 20 overlapping medians are about three independent votes
(notes/rules.md section 6, 4). So a calm rule is evaluated every `SHARE` of the narrowest window of its condition: one that
reads 40 updates every fourth update. A rule that reads a signal directly is evaluated at every update, and so is every rule
with a hit or an open finding: only the first hit can come late, by at most `pace` - 1 updates.
"""

from __future__ import annotations

from collections.abc import Mapping

from trainvitals.events import SignalSpec
from trainvitals.rulelang.expr import Binary, Call, Compare, Expr, If, Logic, Name, Negate, Node, Not, Num
from trainvitals.rulelang.functions import FUNCTIONS

SHARE = 0.1
"""Part of the narrowest window that may pass between two looks: a tenth of the memory of the statistic."""
LONGEST = 10
"""Updates that may pass at the most, however long the window."""


def pace(expr: Expr, lets: Mapping[str, Expr], params: Mapping[str, float], catalogue: Mapping[str, SignalSpec]) -> int:
    """Updates between two evaluations of a calm rule with this condition; 1 for every update."""
    narrowest = _narrowest(expr.root, lets, params, catalogue)
    return max(1, min(LONGEST, int(narrowest * SHARE)))


def _narrowest(node: Node, lets: Mapping[str, Expr], params: Mapping[str, float], catalogue: Mapping[str, SignalSpec]) -> float:
    """Length in updates of the narrowest window below `node`; infinite where nothing in it changes."""
    if isinstance(node, Name):
        if node.name in lets:
            return _narrowest(lets[node.name].root, lets, params, catalogue)
        spec = catalogue.get(node.name)
        return 1.0 if spec is not None and spec.cadence != "once" else float("inf")
    if isinstance(node, Call):
        family = FUNCTIONS[node.function].family
        if family in {"time", "rule"} or node.function == "nonfinite_count":  # one NaN is a fact, not a statistic
            return 1.0
        if family == "presence" or node.function.startswith("frozen_"):
            return float("inf")
        if family in {"window", "reference"}:
            return _length(node, params)
    return min((_narrowest(part, lets, params, catalogue) for part in _parts(node)), default=float("inf"))


def _parts(node: Node) -> tuple[Node, ...]:
    if isinstance(node, Binary | Compare):
        return (node.left, node.right)
    if isinstance(node, Negate | Not):
        return (node.operand,)
    if isinstance(node, Logic):
        return node.terms
    if isinstance(node, If):
        return (node.condition, node.then, node.other)
    return node.args if isinstance(node, Call) else ()


def reach(expr: Expr, lets: Mapping[str, Expr], params: Mapping[str, float]) -> int:
    """Updates that the longest window of a condition looks back: before that it cannot be decided, and nobody is to blame."""
    return int(_furthest(expr.root, lets, params))


def _furthest(node: Node, lets: Mapping[str, Expr], params: Mapping[str, float]) -> float:
    if isinstance(node, Name):
        return _furthest(lets[node.name].root, lets, params) if node.name in lets else 0.0
    inner = max((_furthest(part, lets, params) for part in _parts(node)), default=0.0)
    if isinstance(node, Call) and FUNCTIONS[node.function].family in {"window", "reference"}:
        return inner + _length(node, params) + _length(node, params, "skip", 0.0)
    return inner


def _length(call: Call, params: Mapping[str, float], keyword: str = "updates", default: float = 1.0) -> float:
    for name, value in call.keywords:
        if name == keyword:
            if isinstance(value, Num):
                return value.value
            return params.get(value.name, default) if isinstance(value, Name) else default
    return default
