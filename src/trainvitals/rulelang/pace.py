"""How often the condition of a calm rule must be looked at.

A statistic over 30 updates hardly moves in one: 16 of 20 overlapping medians are about three independent votes
(notes/rules.md section 6, 4). And what does move it shows first in the samples. So a calm rule (no hit, no open finding) is
looked at every half of the narrowest window of its condition, and besides, at every update, from the moment one of
its series leaves the band of its recent samples (`windows_series.BAND`) or gets a value that is not finite, for `AWAKE`
updates. Only a change that stays within the band can be seen late, by at most `pace` - 1 updates. A rule with a hit or an
open finding, and one that reads a signal directly, is looked at on every update. An author who knows that a condition on a
direct reading can only come true through news (a spike) says so with ``clock: {updates: n}``.
"""

from __future__ import annotations

from collections.abc import Mapping

from trainvitals.rulelang.expr import Binary, Call, Compare, Expr, If, Logic, Name, Negate, Node, Not, Num
from trainvitals.rulelang.functions import FUNCTIONS
from trainvitals.rulelang.windows_series import BAND

SHARE = 1 / 2
"""Part of the narrowest window that may pass between two looks: a median needs half a window to follow a change."""
PACES = (20, 10, 5, 2)
"""Paces in use: each divides the ones above it, so that rules are looked at together and most updates pass without a look."""
AWAKE = 3 * BAND // 2
"""Updates for which a rule stays awake after news: as long as the news stays in the memory of the band, which is reviewed
every half `BAND`: a second spike while the band still holds the first would be no news."""


def pace(narrowest: float) -> int:
    """Updates between two evaluations of a calm rule whose condition looks back this far at least (`Bound.narrowest`)."""
    return next((length for length in PACES if length <= narrowest * SHARE + 1e-9), 1)


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
    return int(_furthest(expr.root, lets, params, frozenset({"window", "reference"})))


def look_back(expr: Expr, lets: Mapping[str, Expr], params: Mapping[str, float]) -> int:
    """Updates of the recent past that a condition looks at, 0 for one that reads newest values alone: what it tells may have begun so long ago."""
    return int(_furthest(expr.root, lets, params, frozenset({"window"})))


def _furthest(node: Node, lets: Mapping[str, Expr], params: Mapping[str, float], families: frozenset[str]) -> float:
    if isinstance(node, Name):
        return _furthest(lets[node.name].root, lets, params, families) if node.name in lets else 0.0
    inner = max((_furthest(part, lets, params, families) for part in _parts(node)), default=0.0)
    if isinstance(node, Call) and FUNCTIONS[node.function].family in families:
        return inner + _length(node, params) + _length(node, params, "skip", 0.0)
    return inner


def _length(call: Call, params: Mapping[str, float], keyword: str = "updates", default: float = 1.0) -> float:
    for name, value in call.keywords:
        if name == keyword:
            if isinstance(value, Num):
                return value.value
            return params.get(value.name, default) if isinstance(value, Name) else default
    return default
