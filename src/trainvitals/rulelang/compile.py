"""Binding: an expression, a run's configuration and a store of samples become a function without arguments."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from trainvitals.events import labelled
from trainvitals.rulelang import expr as ex
from trainvitals.rulelang.expr import Expr, Node
from trainvitals.rulelang.folding import choice, comparison, constant, fold, joined, junction_of, number, truth
from trainvitals.rulelang.functions import FUNCTIONS
from trainvitals.rulelang.generate import generate, generate_each
from trainvitals.rulelang.kleene import (
    UNKNOWN,
    Absent,
    Arithmetic,
    Const,
    Inverse,
    Math,
    Negative,
    Read,
    Value,
    can_be,
    canonical,
    evaluate,
    expires,
    parts,
)
from trainvitals.rulelang.kleene import Bound as Tree
from trainvitals.rulelang.proof import Proof, prove
from trainvitals.rulelang.windows import Series, Store
from trainvitals.rulelang.windows_series import Axis, Bounds

if TYPE_CHECKING:
    from trainvitals.findings import Term

RUN_NAMES = ("step", "progress", "total_steps", "trainer", "framework", "world_size", "phase", "logging_every")

_WINDOW_COST = {"frozen_median": 2.0, "frozen_spread": 2.0, "mean": 3.0, "share_true": 3.0, "delta": 3.0, "count": 3.0, "sum": 3.0, "minimum": 4.0, "maximum": 4.0, "trailing_spread": 16.0, "trend_z": 100.0, "theil_sen": 200.0}
"""Of a look with one new sample, a newest value being 1; medians, quantiles, slopes and tests that are kept up to date are about 8."""


class RuleStatus(Protocol):
    """What rule functions ask about another rule; the engine provides it."""

    firing: bool
    firing_since: int | None
    last_fired: int | None


@dataclass(slots=True)
class RunInfo:
    """What ``run.X`` gives; None is unknown. ``phase`` may change during the run, the rest is fixed when rules are bound."""

    trainer: str = "unknown"
    framework: str = "unknown"
    world_size: int | None = None
    total_steps: int | None = None
    logging_every: float | None = None
    phase: str = "train"


class Bound:
    """An expression bound to a run. Calling it gives its value now; None is unknown.

    Attributes:
        expr: The expression.
        status: ``full``; ``degraded`` when a term that can never be known was left out; ``inactive`` when nothing is left.
        missing: Absent signals that it reads, sorted.
        signals: Signals that it still reads.
        keys: Series that it still reads, directly or through a window.
        unset: Settings (``config.X``, ``run.X``) that it asks for and this run does not say, sorted.
    """

    __slots__ = ("_binder", "_context", "_read", "_tree", "expr", "keys", "missing", "signals", "status", "unset")

    def __init__(self, expr: Expr, tree: Tree, binder: Binder, context: _Context) -> None:
        self.expr = expr
        self._tree = tree
        self._binder = binder
        self._context = context
        self.missing: tuple[str, ...] = tuple(sorted(context.missing))
        self.signals: frozenset[str] = frozenset(context.signals)
        self.keys: frozenset[str] = frozenset(context.keys)
        self.unset: tuple[str, ...] = tuple(sorted(context.unset))
        inactive = isinstance(tree, Absent)
        self.status: Literal["full", "degraded", "inactive"] = "inactive" if inactive else "degraded" if context.pruned else "full"
        self._read: Callable[[], Value] | None = None

    @property
    def read(self) -> Callable[[], Value]:
        """The generated function, written on first use: most messages and suggestions of a run are never asked for."""
        if self._read is None:
            self._read = generate(self._tree)
        return self._read

    def __call__(self) -> Value:
        """The value now. In a hot loop keep ``bound.read`` and call that, which saves two calls."""
        return self.read()

    def slow(self) -> Value:
        """The same value by walking the tree."""
        return evaluate(self._tree)

    @property
    def constant(self) -> bool:
        """Whether the value is the same for the whole run."""
        return isinstance(self._tree, Const)

    @property
    def possible(self) -> bool:
        """Whether it can be true at all: not where a setting that it turns on is unknown for the whole run."""
        return can_be(self._tree, True)

    @property
    def narrowest(self) -> float:
        """The shortest look back of all that it reads, in updates; infinite when nothing in it changes by itself."""
        return min((part.span for part in parts(self._tree) if isinstance(part, Read)), default=math.inf)

    @property
    def until(self) -> float:
        """The last ``run.step`` at which it can be true; infinite for most conditions."""
        return expires(self._tree)

    def prove(self) -> Proof | None:
        """A proof that it stays false for a while; None when there is none."""
        return prove(self._tree, self._binder.store.clock)

    @property
    def notes(self) -> tuple[str, ...]:
        """Windows of it that can never be decided because they are shorter than three observed cadences."""
        own = {part.text for part in parts(self._tree) if isinstance(part, Read)}
        return tuple(
            f"{key} is shorter than three samples, one comes every {cadence:g}; needs one every {length / 3:.3g} or less"
            for key, length, cadence in self._binder.store.too_coarse()
            if key in own
        )

    def explain(self) -> list[Term]:
        """Its `let` names and comparisons with their values now: the evidence of a finding."""
        from trainvitals.rulelang.explain import explain

        return explain(self.expr, self._binder, self._context)


class _Context:
    """What one binding knows beside the run; `named` is what the `let` names of its rule stand for, shared by the rule's expressions."""

    def __init__(
        self, params: Mapping[str, float], lets: Mapping[str, Expr], label: tuple[str, str] | None, origins: Mapping[str, str], named: Names
    ) -> None:
        self.params = params
        self.lets = lets
        self.label = label
        self.origins = origins
        self.named = named
        self.missing: set[str] = set()
        self.signals: set[str] = set()
        self.keys: set[str] = set()
        self.unset: set[str] = set()
        self.pruned = False


Names = dict[str, tuple[Tree, _Context]]
"""What `let` names stand for in one instance of a rule: the bound tree, and what it reads."""


class Binder:
    """Binds checked expressions to one run.

    Args:
        store: Samples and windows.
        config: Training configuration under native names.
        run: Facts about the run.
        absent: Signals that this run never emits.
        rules: Status of every rule by id, for ``firing("id")`` and its like; looked up at every evaluation.
    """

    def __init__(
        self,
        store: Store,
        *,
        config: Mapping[str, Any],
        run: RunInfo,
        absent: frozenset[str] = frozenset(),
        rules: Mapping[str, RuleStatus] | None = None,
    ) -> None:
        self.store = store
        self.config = config
        self.run = run
        self.absent = absent
        self.rules: Mapping[str, RuleStatus] = rules if rules is not None else {}
        if run.logging_every:
            store.clock.every = float(run.logging_every)

    def bind(
        self,
        expr: Expr,
        params: Mapping[str, float] | None = None,
        lets: Mapping[str, Expr] | None = None,
        label: tuple[str, str] | None = None,
        *,
        origins: Mapping[str, str] | None = None,
        named: Names | None = None,
    ) -> Bound:
        """Bind one expression.

        Args:
            expr: From `parse` and `check`.
            params: Values of the rule's parameters.
            lets: The rule's `let` expressions by name.
            label: Label and value of the instance, for rules with ``for_each``.
            origins: Where parameter values come from, for evidence; by default ``params.<name>``.
            named: What other expressions of this instance of the rule have made of its `let` names, to be added to.
        """
        context = _Context(params or {}, lets or {}, label, origins or {}, {} if named is None else named)
        return Bound(expr, self.resolve(expr.root, context), self, context)

    def resolve(self, node: Node, context: _Context) -> Tree:
        """The bound tree of a node: names put in place, constants folded, absent signals pruned."""
        match node:  # the commonest first: a run binds some thousand nodes before its first update
            case ex.Name():
                return self._name(node.name, context)
            case ex.Num(value) | ex.Flag(value) | ex.Text(value):
                return Const(value)
            case ex.Negate(operand):
                return fold(Negative(number(self.resolve(operand, context))))
            case ex.Binary(op, left, right):
                return fold(Arithmetic(op, number(self.resolve(left, context)), number(self.resolve(right, context))))
            case ex.Compare(op, left, right):
                return comparison(op, self.resolve(left, context), self.resolve(right, context))
            case ex.Logic(op, terms):
                return self._junction(op, [truth(self.resolve(term, context)) for term in terms], context)
            case ex.Not(operand):
                return fold(Inverse(truth(self.resolve(operand, context))))
            case ex.If(condition, then, other):
                return choice(truth(self.resolve(condition, context)), self.resolve(then, context), self.resolve(other, context))
            case ex.Call():
                return self._call(node, context)

    def _name(self, name: str, context: _Context) -> Tree:
        if name in context.lets:
            if name not in context.named:
                inner = _Context(context.params, context.lets, context.label, context.origins, context.named)
                context.named[name] = (self.resolve(context.lets[name].root, inner), inner)
            tree, read = context.named[name]
            context.missing |= read.missing
            context.signals |= read.signals
            context.keys |= read.keys
            context.unset |= read.unset
            context.pruned |= read.pruned
            return tree
        if name in context.params:
            return constant(context.params[name])
        family, _, rest = name.partition(".")
        if family == "config" or (family == "run" and rest in RUN_NAMES):
            setting = constant(self.config.get(rest)) if family == "config" else self._run(rest)
            if setting == UNKNOWN:
                context.unset.add(name)
            return setting
        series = self._signal(name, context)
        if isinstance(series, Absent):
            return series
        span = math.inf if series.cadence_kind == "once" else 1.0
        return Read(series.key, series.now, "number", 1.0, (series,), span, series.bounds)

    def _run(self, name: str) -> Tree:
        clock, run = self.store.clock, self.run
        if name == "step":
            return Read("run.step", lambda: clock.step, "number", 1.0, span=math.inf, bounds=lambda _: Bounds(clock.step, math.inf, 0.0))
        if name == "phase":
            return Read("run.phase", lambda: run.phase, "string", 1.0, span=math.inf)
        if name == "progress":
            total = run.total_steps
            if not total:
                return UNKNOWN

            def progress() -> float:
                return min(1.0, clock.step / total)

            return Read("run.progress", progress, "number", 1.0, span=math.inf, bounds=lambda _: Bounds(progress(), 1.0, 0.0))
        return constant(getattr(run, name))

    def _signal(self, name: str, context: _Context) -> Series | Absent:
        if name in self.absent:
            context.missing.add(name)
            return Absent((name,))
        context.signals.add(name)
        spec = self.store.catalogue.get(name)
        own_label = spec is not None and spec.label is not None and context.label is not None and spec.label == context.label[0]
        key = labelled(name, *context.label) if own_label and context.label is not None else name
        context.keys.add(key)
        return self.store.series(key)

    def _junction(self, op: str, terms: list[Tree], context: _Context) -> Tree:
        """Absent terms of ``or`` are left out; an absent term makes ``and`` absent."""
        absent = [term for term in terms if isinstance(term, Absent)]
        if absent and (op == "and" or len(absent) == len(terms)):
            if op == "and" and any(term == Const(False) for term in terms):
                return Const(False)
            return joined(absent)
        if absent:
            context.pruned = True
        return junction_of(op, [term for term in terms if not isinstance(term, Absent)])

    def _call(self, node: ex.Call, context: _Context) -> Tree:
        function = FUNCTIONS[node.function]
        match function.family:
            case "math":
                return fold(Math(node.function, tuple(number(self.resolve(argument, context)) for argument in node.args)))
            case "window" | "reference":
                return self._window(node, context)
            case "rule":
                return self._rule(node, context)
            case "time" if node.function != "age":
                what = argument_text(node.args[0])
                ask = self.store.updates_since if node.function == "updates_since" else self.store.seconds_since
                return Read(f"{node.function}({what})", lambda: ask(what), "number", 2.0)
            case _:
                return self._presence(node, context)

    def _presence(self, node: ex.Call, context: _Context) -> Tree:
        name = argument_text(node.args[0])
        series = self._signal(name, context)
        if isinstance(series, Absent):
            return Const(False) if node.function == "has" else series
        clock = self.store.clock
        text = f"{node.function}({series.key})"
        if node.function == "has":
            return Read(text, lambda: bool(series.xs) and series.fresh(), "bool", 2.0, (series,), math.inf, lambda _: Bounds(1.0, 1.0))
        if node.function == "age":
            return Read(text, lambda: float(clock.step - series.steps[-1]) if series.steps else None, "number", 2.0)
        if node.function == "is_finite":
            return Read(text, lambda: None if not series.xs and series.bad_at < 0 else series.bad_at != series.total, "bool", 2.0, (series,), math.inf, lambda _: Bounds(1.0, 1.0))
        updates = self._constant(node.keyword("updates"), context)
        return Read(f"{node.function}({series.key}, updates={updates:g})", lambda: series.bad_within(updates), "number", 2.0, span=math.inf)

    def _constant(self, node: Node | None, context: _Context, default: float = 0.0) -> float:
        """Number of a literal or parameter."""
        if node is None:
            return default
        tree = self.resolve(node, context)
        if isinstance(tree, Const) and isinstance(tree.value, int | float):
            return float(tree.value)
        msg = f"not a constant: {node!r}"
        raise ValueError(msg)

    def _window(self, node: ex.Call, context: _Context) -> Tree:
        inner = self.resolve(node.args[0], context)
        if isinstance(inner, Absent):
            return inner
        inner = truth(inner) if node.function == "share_true" else number(inner)
        axis: Axis = next(axis for axis in ("updates", "points", "tokens", "seconds") if node.keyword(axis) is not None)
        length = self._constant(node.keyword(axis), context)
        q = self._constant(node.args[1], context) if len(node.args) > 1 else 0.5
        source, bring_up_to_date = self._source(inner)
        skip, every = self._constant(node.keyword("skip"), context), self._constant(node.keyword("every"), context)
        window = self.store.window(node.function, source, axis, length, q=q, skip=skip, every=every)
        value: Callable[[], Value] = window.value
        if bring_up_to_date is not None:
            advance, of = bring_up_to_date, window.value

            def value() -> Value:
                advance()
                return of()

        span = math.inf if node.function.startswith("frozen_") else length if axis == "updates" else 1.0
        bounds = window.bounds if _plain(inner) else None  # only what comes with the frames has a hull
        return Read(window.key, value, "number", _WINDOW_COST.get(node.function, 8.0), (window.series,), span, bounds)

    def _source(self, tree: Tree) -> tuple[Series, Callable[[], None] | None]:
        """The series of a signal, or one derived from an expression; with what must be called before it is read, if anything."""
        if plain := _plain(tree):
            return plain, None
        reads = [part for part in parts(tree) if isinstance(part, Read)]
        sources = [plain for part in reads if (plain := _plain(part))]
        if len(sources) == len(reads) and len(set(map(id, sources))) == 1:
            entry = self.store.elementwise(canonical(tree), generate_each(tree, sources[0].key), sources[0])
            return entry.series, entry.advance
        inputs: list[Series] = []
        for part in parts(tree):
            if isinstance(part, Read):
                if not part.series:
                    inputs = []
                    break
                inputs += [series for series in part.series if series not in inputs]
        read: Callable[[], Any] = generate(tree)
        return self.store.derived(canonical(tree), read, inputs), None

    def _rule(self, node: ex.Call, context: _Context) -> Tree:
        ids = [argument_text(argument) for argument in node.args]
        within = self._constant(node.keyword("updates"), context)
        rules, clock = self.rules, self.store.clock
        text = f"{node.function}({', '.join(map(repr, ids))}, {within:g})"
        first = ids[0]

        def firing() -> Value:
            status = rules.get(first)
            return None if status is None else status.firing

        def firing_for() -> Value:
            status = rules.get(first)
            if status is None:
                return None
            return float(clock.step - status.firing_since) if status.firing and status.firing_since is not None else 0.0

        def fired_within() -> Value:
            status = rules.get(first)
            if status is None:
                return None
            return status.firing or (status.last_fired is not None and clock.step - status.last_fired < within)

        def ordered() -> Value:
            one, other = rules.get(first), rules.get(ids[-1])
            if one is None or other is None:
                return None
            if one.last_fired is None or other.last_fired is None:
                return False
            return 0 <= other.last_fired - one.last_fired <= within

        read = {"firing": firing, "firing_for": firing_for, "fired_within": fired_within, "ordered": ordered}[node.function]
        return Read(text, read, FUNCTIONS[node.function].kind, 1.0)


def argument_text(node: Node) -> str:
    """The name or string that a function was given."""
    return node.name if isinstance(node, ex.Name) else node.value if isinstance(node, ex.Text) else ""


def _plain(tree: Tree) -> Series | None:
    """The series whose newest value the tree is, if it is nothing else."""
    return tree.series[0] if isinstance(tree, Read) and len(tree.series) == 1 and tree.text == tree.series[0].key else None
