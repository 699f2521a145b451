"""The names that an expression of one rule may use, and the way from its text to a checked tree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

from trainvitals.events import SignalSpec
from trainvitals.rulelang.check import check
from trainvitals.rulelang.errors import Problem, RuleError, Where
from trainvitals.rulelang.expr import Call, Expr, Name, Node, Num, children, parse
from trainvitals.rulelang.functions import FUNCTIONS
from trainvitals.rulelang.model import Param


class Scope:
    """What one rule has declared so far.

    Attributes:
        signals: Catalogue, custom signals included.
        params: Parameters by name.
        lets: `let` values so far, in order.
        broken: Names of `let` values that are wrong themselves: uses of them are not reported again.
        later: Names of `let` values that stand further down.
        used: Parameters and `let` values that some expression uses.
        label: Label of `for_each`.
    """

    def __init__(self, signals: Mapping[str, SignalSpec]) -> None:
        self.signals = signals
        self.params: dict[str, Param] = {}
        self.lets: dict[str, Expr] = {}
        self.broken: set[str] = set()
        self.later: set[str] = set()
        self.used: set[str] = set()
        self.label: str | None = None

    def expression(self, text: str, where: Where, problems: list[Problem], kind: Literal["bool", "number"] | None) -> Expr | None:
        """Parse and check; None after a problem.

        Args:
            text: As written.
            where: Position of the text.
            problems: Where problems go.
            kind: Type that the field needs; None takes any.
        """
        try:
            expr = parse(text, where)
        except RuleError as error:
            problems.extend(error.problems)
            return None
        names = {node.name for node in walk(expr.root) if isinstance(node, Name)}
        self.used |= names & (set(self.params) | set(self.lets))
        try:
            expr = check(
                expr, signals=self.signals, params=self.params, lets=self.lets, label=self.label, expect=kind,
                later=self.later, broken=self.broken,
            )  # fmt: skip
        except RuleError as error:
            problems.extend(error.problems)
            return None
        return None if names & self.broken else expr

    def widest(self, expr: Expr) -> float:
        """Longest ``updates=`` window that an expression uses, `let` values included; 0 without one."""
        found = 0.0
        for node in self.expanded(expr):
            if isinstance(node, Call) and node.function in FUNCTIONS and FUNCTIONS[node.function].family == "window":
                length = node.keyword("updates")
                if isinstance(length, Num):
                    found = max(found, length.value)
                elif isinstance(length, Name) and length.name in self.params:
                    found = max(found, self.params[length.name].default)
        return found

    def relative(self, expr: Expr) -> bool:
        """Whether an expression compares with the run's own past."""
        calls = (node for node in self.expanded(expr) if isinstance(node, Call))
        return any(node.function in FUNCTIONS and FUNCTIONS[node.function].family == "reference" for node in calls)

    def expanded(self, expr: Expr) -> Iterator[Node]:
        """Nodes of an expression and of the `let` values behind it, each `let` once."""
        todo, seen = [expr], set[str]()
        while todo:
            for node in walk(todo.pop().root):
                yield node
                if isinstance(node, Name) and node.name in self.lets and node.name not in seen:
                    seen.add(node.name)
                    todo.append(self.lets[node.name])


def walk(root: Node) -> Iterator[Node]:
    """A node and all below it."""
    todo = [root]
    while todo:
        node = todo.pop()
        yield node
        todo.extend(children(node))
