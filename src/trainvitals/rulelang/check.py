"""The checker: names, types, units, ranges and reachability of an expression, before any run.

A rule that can never fire, or that always does, is refused when it is loaded. All problems of an expression are reported.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Protocol

from trainvitals.events import SignalSpec
from trainvitals.rulelang import expr as ex
from trainvitals.rulelang import ranges, units
from trainvitals.rulelang.errors import Problem, RuleError, nearest
from trainvitals.rulelang.expr import Expr, Kind, Node
from trainvitals.rulelang.functions import FUNCTIONS
from trainvitals.rulelang.ranges import ANY, BOOL, INF, Type

MAX_EXPANDED_NODES = 3_000
MAX_EXPANDED_DEPTH = 100
"""Limits with `let` names put in place."""
_MAX_HINTS = 5

RUN_TYPES: Mapping[str, Type] = {
    "run.step": Type("number", "updates", 0.0, INF),
    "run.progress": Type("number", "fraction", 0.0, 1.0),
    "run.total_steps": Type("number", "updates", 0.0, INF),
    "run.trainer": Type("string"),
    "run.framework": Type("string"),
    "run.world_size": Type("number", "count", 1.0, INF),
    "run.phase": Type("string"),
    "run.logging_every": Type("number", "updates", 0.0, INF),
}
"""What ``run.X`` is."""


class ParamLike(Protocol):
    """What the checker reads of a parameter."""

    @property
    def default(self) -> float: ...

    @property
    def unit(self) -> str: ...

    @property
    def low(self) -> float: ...

    @property
    def high(self) -> float: ...


def check(
    expr: Expr,
    *,
    signals: Mapping[str, SignalSpec],
    params: Mapping[str, ParamLike] | None = None,
    lets: Mapping[str, Expr] | None = None,
    label: str | None = None,
    expect: Kind | None = None,
    later: Collection[str] = (),
    broken: Collection[str] = (),
) -> Expr:
    """Check an expression and fill in its type, unit, range and what it reads.

    Args:
        expr: From `parse`.
        signals: The catalogue, custom signals included.
        params: Parameters of the rule by name.
        lets: Checked `let` expressions that come before this one.
        label: Label that the rule has one instance for (``for_each``).
        expect: Type that is needed; None takes any.
        later: `let` names that come after this one: using them is an error of its own.
        broken: `let` names that have problems themselves: using them is no further problem.

    Raises:
        RuleError: With every problem found.
    """
    checker = _Checker(expr, signals, params or {}, lets or {}, label, later, broken)
    found = checker.type_of(expr.root)
    if expect is not None and found.kind not in (expect, "any") and not checker.problems:
        words = {"bool": "a condition", "number": "a number", "string": "a text", "any": ""}
        hint = "compare it with something" if expect == "bool" else ""
        checker.fail(expr.root, "E206", f"{words[expect]} is needed here, this is {words[found.kind]}", hint)
    used = [checker.lets[name] for name in sorted(checker.names) if name in checker.lets]
    size = expr.size + sum(let.size * checker.uses[let_name] for let_name, let in checker.lets.items() if let_name in checker.names)
    depth = expr.depth + max((let.depth for let in used), default=0)
    if size > MAX_EXPANDED_NODES or depth > MAX_EXPANDED_DEPTH:
        checker.fail(expr.root, "E452", f"with its 'let' names put in place the expression has {size} parts, {depth} deep; {MAX_EXPANDED_NODES} and {MAX_EXPANDED_DEPTH} are allowed")
    if checker.problems:
        raise RuleError(sorted(checker.problems, key=lambda problem: (problem.line, problem.column, problem.code)))
    return replace(
        expr,
        kind=found.kind, unit=found.unit, low=found.low, high=found.high, size=size, depth=depth, names=frozenset(checker.names),
        signals=frozenset(checker.signals_read).union(*(let.signals for let in used)),
        config=frozenset(checker.config).union(*(let.config for let in used)),
        rules=frozenset(checker.rules).union(*(let.rules for let in used)),
    )  # fmt: skip


class _Checker:
    """State of one check."""

    def __init__(
        self,
        expr: Expr,
        signals: Mapping[str, SignalSpec],
        params: Mapping[str, ParamLike],
        lets: Mapping[str, Expr],
        label: str | None,
        later: Collection[str],
        broken: Collection[str],
    ) -> None:
        self.expr, self.signals, self.params, self.lets = expr, signals, params, lets
        self.label, self.later, self.broken = label, later, broken
        self.problems: list[Problem] = []
        self.names: set[str] = set()
        self.uses: dict[str, int] = {}
        self.signals_read: set[str] = set()
        self.config: set[str] = set()
        self.rules: set[str] = set()
        self.types: dict[int, Type] = {}
        self.hints = 0

    def fail(self, node: Node, code: str, message: str, hint: str = "") -> None:
        self.problems.append(ex.problem(self.expr.where, node.at, node.end - node.at, code, message, hint))

    def near(self, name: str, known: Collection[str]) -> str:
        """Nearest known name; only for the first few problems, searching is slow."""
        self.hints += 1
        return nearest(name, known) if self.hints <= _MAX_HINTS else ""

    def type_of(self, node: Node) -> Type:
        """Type of a node; ANY after a problem, so that one mistake gives one message."""
        key = id(node)
        if key not in self.types:
            self.types[key] = self._type_of(node)
        return self.types[key]

    def _type_of(self, node: Node) -> Type:
        match node:
            case ex.Num(value):
                return Type("number", None, value, value)
            case ex.Flag(value):
                return Type("bool", None, float(value), float(value))
            case ex.Text():
                return Type("string")
            case ex.Name():
                return self._name(node)
            case ex.Negate(operand):
                return ranges.negate(self._number(operand))
            case ex.Binary():
                return self._binary(node)
            case ex.Compare():
                return self._compare(node)
            case ex.Logic():
                return self._logic(node)
            case ex.Not(operand):
                inner = self._bool(operand)
                return Type("bool", None, 1.0 - inner.high, 1.0 - inner.low) if inner.kind == "bool" else BOOL
            case ex.If():
                return self._if(node)
            case ex.Call():
                return self._call(node)

    def _number(self, node: Node) -> Type:
        found = self.type_of(node)
        if found.is_number:
            return found
        self.fail(node, "E202", f"a number is needed here, this is {'a condition' if found.kind == 'bool' else 'a text'}")
        return ANY

    def _bool(self, node: Node) -> Type:
        found = self.type_of(node)
        if found.is_bool:
            return found
        self.fail(node, "E202", f"a condition is needed here, this is a {'number' if found.kind == 'number' else 'text'}", "compare it with something" if found.kind == "number" else "")
        return BOOL

    def _name(self, node: ex.Name) -> Type:
        name = node.name
        if name in self.lets:
            let = self.lets[name]
            self.names.add(name)
            self.uses[name] = self.uses.get(name, 0) + 1
            return Type(let.kind, let.unit, let.low, let.high)
        if name in self.params:
            param = self.params[name]
            self.names.add(name)
            return Type("number", param.unit, param.default, param.default)
        if name in self.broken:
            self.names.add(name)
            return ANY
        if name in self.later:
            self.fail(node, "E107", f"{name!r} is defined further below", "a 'let' may use only earlier ones")
            return ANY
        family, dot, rest = name.partition(".")
        if family == "config" and dot:
            self.config.add(rest)
            return ANY
        if family == "run" and name in RUN_TYPES:
            return RUN_TYPES[name]
        return self._signal(node)

    def _signal(self, node: ex.Name) -> Type:
        name = node.name
        spec = self.signals.get(name)
        if spec is not None:
            self.signals_read.add(name)
            if spec.label is not None and spec.label != self.label:
                self.fail(node, "E106", f"{name!r} has one series per {spec.label}", f"add 'for_each: {spec.label}' to the rule")
            return Type("number", spec.unit, -INF if spec.low is None else spec.low, INF if spec.high is None else spec.high)
        if name in FUNCTIONS:
            self.fail(node, "E108", f"{name!r} is a function", f"call it: {FUNCTIONS[name].usage}")
        elif name.startswith("run."):
            self.fail(node, "E104", f"unknown name {name!r}", self.near(name, RUN_TYPES) or f"known: {', '.join(RUN_TYPES)}")
        elif "." in name:
            self.fail(node, "E103", f"unknown signal {name!r}", self._described(self.near(name, self.signals)))
        else:
            known = [*self.params, *self.lets, *self.signals]
            self.fail(node, "E101", f"unknown name {name!r}", self._described(self.near(name, known)) or "neither a parameter nor a 'let' of this rule; signals are written family.name")
        return ANY

    def _described(self, hint: str) -> str:
        """A hint with unit, cadence and emitters of the signal it suggests."""
        name = hint.split("'")[1] if hint.count("'") >= 2 else ""
        spec = self.signals.get(name)
        if spec is None:
            return hint
        by = "" if "any" in spec.emitters else f", emitted by {', '.join(spec.emitters)}"
        every = "once a run" if spec.cadence == "once" else f"per {spec.cadence}"
        return f"did you mean {name!r} ({spec.unit}, {every}{by})?"

    def _binary(self, node: ex.Binary) -> Type:
        left, right = self._number(node.left), self._number(node.right)
        words = {"+": "add", "-": "subtract"}
        if node.op in words and not units.agree(left.unit, right.unit):
            self.fail(node, "E201", f"cannot {words[node.op]} {left.unit} and {right.unit}", "both sides need one unit")
            return ANY
        if node.op == "/" and isinstance(node.right, ex.Num) and node.right.value == 0.0:
            self.fail(node.right, "E305", "division by zero is always unknown")
            return ANY
        found = ranges.arithmetic(node.op, left, right)
        return replace(found, kind="any") if left.kind == right.kind == "any" else found

    def _compare(self, node: ex.Compare) -> Type:
        left, right = self.type_of(node.left), self.type_of(node.right)
        if node.op in ("==", "!=") and not (left.is_number and right.is_number):
            if left.kind != right.kind and "any" not in (left.kind, right.kind):
                self.fail(node, "E202", f"cannot compare a {left.kind} with a {right.kind}")
            for one, other in ((node.left, node.right), (node.right, node.left)):
                if isinstance(one, ex.Name) and one.name == "run.phase" and isinstance(other, ex.Text) and other.value not in ("train", "eval"):
                    self.fail(other, "E302", f"run.phase is never {other.value!r}", "it is 'train' or 'eval'")
            return BOOL
        left, right = self._number(node.left), self._number(node.right)
        if not units.agree(left.unit, right.unit):
            self.fail(node, "E201", f"cannot compare {left.unit} with {right.unit}", "both sides need one unit")
            return BOOL
        if self._outside(node.left, left, node.right) or self._outside(node.right, right, node.left):
            return BOOL
        never, always = ranges.compared(node.op, left, right)
        if never or always:
            spans = f"{self._span(node.left, left)}, {self._span(node.right, right)}"
            self.fail(node, "E302" if never else "E303", f"this can never hold: {spans}" if never else f"this always holds: {spans}")
        return BOOL

    def _span(self, node: Node, found: Type) -> str:
        text = self.expr.text[node.at : node.end][:60]
        if found.low == found.high:
            return f"{text} is {found.low:g}"
        if found.low == -INF or found.high == INF:
            return f"{text} is at least {found.low:g}" if found.low > -INF else f"{text} is at most {found.high:g}" if found.high < INF else text
        return f"{text} lies in {found.low:g}..{found.high:g}"

    def _outside(self, node: Node, found: Type, other: Node) -> bool:
        """Report a number outside the range of what it is compared with."""
        if not isinstance(other, ex.Num) or isinstance(node, ex.Num) or found.kind != "number":
            return False
        value = other.value
        if found.low <= value <= found.high:
            return False
        text = self.expr.text[node.at : node.end][:60]
        fraction = found.unit == "fraction" and (found.low, found.high) == (0.0, 1.0)
        hint = f"did you mean {value / 100:g}?" if fraction and 1.0 < value <= 100.0 else ""
        kind = "a fraction 0..1" if fraction else f"at least {found.low:g}" if found.high == INF else f"at most {found.high:g}" if found.low == -INF else f"between {found.low:g} and {found.high:g}"
        self.fail(other, "E301", f"{text!r} is {kind}, {value:g} is outside", hint)
        return True

    def _logic(self, node: ex.Logic) -> Type:
        found = [self._bool(term) for term in node.terms]
        limits = []
        for term in node.terms:
            limit = self._limit(term)
            if limit is not None:
                inner, op, value = limit
                limits.append((inner, op if node.op == "and" else ranges.OPPOSITE[op], value))
        clash = ranges.exclude(limits)
        if clash is not None:
            text = self.expr.text[clash.at : clash.end][:60]
            words = "these can never hold together" if node.op == "and" else "one of these always holds"
            self.fail(node, "E302" if node.op == "and" else "E303", f"{words}: see the limits of {text!r}")
        known = [item if item.kind == "bool" else BOOL for item in found]
        combine = min if node.op == "and" else max
        return Type("bool", None, combine(item.low for item in known), combine(item.high for item in known))

    def _limit(self, term: Node) -> tuple[Node, str, float] | None:
        """``value op number`` of a comparison with a constant."""
        if not isinstance(term, ex.Compare):
            return None
        for node, op, other in ((term.left, term.op, term.right), (term.right, ranges.FLIPPED[term.op], term.left)):
            limit = self.type_of(other)
            if limit.kind == "number" and limit.low == limit.high and ranges.is_plain(node):
                return node, op, limit.low
        return None

    def _if(self, node: ex.If) -> Type:
        self._bool(node.condition)
        then, other = self.type_of(node.then), self.type_of(node.other)
        if "any" in (then.kind, other.kind):
            return ANY
        if then.kind != other.kind:
            self.fail(node, "E202", f"one branch is a {then.kind}, the other a {other.kind}")
            return ANY
        if not units.agree(then.unit, other.unit):
            self.fail(node, "E201", f"one branch is in {then.unit}, the other in {other.unit}")
            return ANY
        return Type(then.kind, units.common(then.unit, other.unit), min(then.low, other.low), max(then.high, other.high))

    def _call(self, node: ex.Call) -> Type:
        function = FUNCTIONS.get(node.function)
        if function is None:
            self.fail(node, "E102", f"unknown function {node.function!r}", self.near(node.function, FUNCTIONS))
            for part in ex.children(node):
                self.type_of(part)
            return ANY
        from trainvitals.rulelang.check_calls import check_call

        return check_call(self, node, function)


