"""One rule file's tree → one `Rule`, with every problem of the file collected."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from trainvitals.events import SignalSpec
from trainvitals.items import KIN
from trainvitals.rulelang import model
from trainvitals.rulelang.errors import Problem, nearest
from trainvitals.rulelang.expr import Expr
from trainvitals.rulelang.fields import ID, Fields, what
from trainvitals.rulelang.functions import FUNCTIONS
from trainvitals.rulelang.model import Also, Docs, Expect, Param, Rule, RuleAction, Slot, Suggest, Sustain, Template
from trainvitals.rulelang.scope import Scope
from trainvitals.rulelang.yaml_strict import Map, Scalar, Seq

FIELDS = (
    "id", "code", "version", "title", "category", "severity", "applies_to", "params", "let", "when", "sustain", "clear",
    "clear_sustain", "warmup", "clock", "unless", "for_each", "caused_by", "absorbs", "hold", "repeat", "required",
    "message", "advice", "suggest", "expect", "action", "verdict", "docs",
)  # fmt: skip
REQUIRED = ("id", "code", "title", "category", "severity", "when", "message")
LOGS = ("stacks", "sample_completions", "memory_snapshot")
MAX_TEMPLATE = 2_000
MAX_SLOTS = 32
_CODE = re.compile(r"([A-Z]{2,3})[0-9]{3}")
_VERSION = re.compile(r"(?:0|[1-9][0-9]{0,5})(?:\.(?:0|[1-9][0-9]{0,5})){2}")
_FORMAT = re.compile(r"(?:percent|num|\+?,?(?:\.[0-9]{1,2})?[fgde])")
_SLOT = re.compile(r"\{\{|\}\}|\{|\}")


@dataclass(frozen=True, slots=True)
class Built:
    """A rule with the tree it came from: later checks need the places."""

    rule: Rule
    node: Map
    problems: list[Problem] = field(default_factory=list)


def build(
    node: Map, *, stem: str, status: model.Status, source: str, signals: Mapping[str, SignalSpec]
) -> tuple[Built | None, list[Problem]]:
    """Read one rule.

    Args:
        node: Root of the file.
        stem: File name without ``.yaml``; the id must equal it.
        status: Name of the folder.
        source: ``builtin`` or the file's path.
        signals: Catalogue, custom signals included.

    Returns:
        The rule, None when it has errors, and all problems, style warnings (W6xx) included.
    """
    builder = _Builder(node, signals)
    rule = builder.rule(stem, status, source)
    problems = builder.problems
    if rule is None or any(problem.severity == "error" for problem in problems):
        return None, problems
    return Built(rule, node, problems), problems


class _Builder:
    """State while one rule is read: its fields, the names seen so far, the problems."""

    def __init__(self, node: Map, signals: Mapping[str, SignalSpec]) -> None:
        self.problems: list[Problem] = []
        self.fields = Fields(node, self.problems)
        self.scope = Scope(signals)

    def rule(self, stem: str, status: model.Status, source: str) -> Rule | None:
        """The rule; None when a required expression is missing or wrong."""
        fields = self.fields
        fields.only(FIELDS, REQUIRED)
        self.identity(stem)
        for_each = self.for_each()
        trainers, where = self.applies_to()
        params, lets = self.params(), self.lets()
        when = self.expression(fields, "when", "bool")
        clear = self.expression(fields, "clear", "bool")
        unless = self.exceptions()
        message, advice = self.template("message"), self.template("advice")
        suggest, expect = self.suggest(), self.expect()
        sustain = self.sustain("sustain") or Sustain()
        action = fields.inner("action", ("gate", "stop", "log"))
        severity = fields.word("severity", model.SEVERITY_WORDS, "warning")
        clock_seconds, clock_updates = fields.clock()
        warmup, hold = self.updates("warmup", 0), self.updates("hold", 0)
        verdict = fields.word("verdict", model.VERDICT_STATES, "") or None
        category = fields.word("category", model.CATEGORIES, "collapse")
        clear_sustain, repeat, docs = self.sustain("clear_sustain"), self.repeat(), self.docs()
        required = fields.flag("required")
        caused_by, absorbs = self.ids("caused_by", stem), self.ids("absorbs", stem)
        self.unused()
        if when is None:
            return None
        self.style(when, clear, sustain)
        gates = {"error": "fail", "warning": "warn", "info": "none"}
        stop = action.word("stop", ("never", "offer"), "never") if action else "never"
        gate = action.word("gate", ("fail", "warn", "none"), gates[severity]) if action else gates[severity]
        log = action.word("log", LOGS, "") or None if action else None
        return Rule(
            id=fields.text("id"), code=fields.text("code"), version=fields.text("version", "1.0.0"), title=fields.text("title"),
            category=cast("Any", category), severity=cast("Any", severity), status=status, when=when, message=message,
            trainers=trainers, applies_where=where, params=params, lets=lets, sustain=sustain, clear=clear,
            clear_sustain=clear_sustain, warmup=warmup, clock_seconds=clock_seconds, clock_updates=clock_updates, unless=unless, for_each=for_each,
            caused_by=caused_by, absorbs=absorbs, hold=hold, repeat=repeat, required=required, advice=advice, suggest=suggest,
            expect=expect, action=RuleAction(cast("Any", gate), cast("Any", stop), log),
            gate_is_set=action is not None and "gate" in action, verdict=cast("Any", verdict), docs=docs, source=source,
            path=fields.node.source.path,
        )  # fmt: skip

    def identity(self, stem: str) -> None:
        """`id`, `code`, `version` and `title`."""
        fields = self.fields
        given = fields.scalar_text("id")
        if given is not None and not (ID.fullmatch(given.text) and len(given.text) <= 60):
            fields.fail(
                given, "E424", f"id {given.text[:80]!r} is not of the form 'advantage-collapse'", "lower case words joined by '-'"
            )
        elif given is not None and given.text != stem:
            fields.fail(
                given,
                "E425",
                f"id {given.text!r} differs from the file name",
                f"rename the file to {given.text}.yaml, or the id to {stem!r}",
            )
        code = fields.scalar_text("code")
        if code is not None:
            match = _CODE.fullmatch(code.text)
            if match is None or match[1] not in model.CODE_FAMILIES:
                fields.fail(
                    code,
                    "E424",
                    f"code {code.text[:80]!r} is not a family and three digits",
                    f"families: {' '.join(model.CODE_FAMILIES)}",
                )
        version = fields.scalar_text("version")
        if version is not None and not _VERSION.fullmatch(version.text):
            fields.fail(version, "E424", f"version {version.text[:80]!r} is not of the form 1.0.0")
        fields.text("title")

    def for_each(self) -> str | None:
        scalar = self.fields.scalar_text("for_each")
        if scalar is None:
            return None
        labels = sorted({spec.label for spec in self.scope.signals.values() if spec.label})
        if scalar.text not in labels:
            self.fields.fail(
                scalar,
                "E111",
                f"no signal has the label {scalar.text!r}",
                nearest(scalar.text, labels) or f"labels: {', '.join(labels)}",
            )
            return None
        self.scope.label = scalar.text
        return scalar.text

    def applies_to(self) -> tuple[tuple[str, ...], Expr | None]:
        inner = self.fields.inner("applies_to", ("trainers", "where"))
        if inner is None:
            return (), None
        node = inner.get("trainers")
        names: tuple[Scalar, ...] = ()
        if isinstance(node, Seq):
            names = inner.texts("trainers")
        elif node is not None and not (isinstance(node, Scalar) and node.text == "any"):
            inner.fail(
                node, "E422", f"'applies_to.trainers' must be 'any' or a list, here it is {what(node)}", "write [grpo, rloo]"
            )
        for name in names:
            if name.text not in model.TRAINERS:
                kin = f"runs of {name.text} go by the name of their kin: write {KIN[name.text]}" if name.text in KIN else None
                hint = kin or nearest(name.text, model.TRAINERS) or f"known: {', '.join(model.TRAINERS)}"
                inner.fail(name, "E112", f"unknown trainer {name.text!r}", hint)
        where = self.expression(inner, "where", "bool")
        if where is not None and (where.signals or where.rules):
            seen = sorted(where.signals or where.rules)[0]
            place = inner.get("where")
            assert place is not None
            inner.fail(
                place,
                "E352",
                f"'applies_to.where' is decided once a run and cannot read {seen!r}",
                "move it to 'when'; here only config.X and run.X",
            )
        return tuple(name.text for name in names), where

    def new_name(self, fields: Fields, key: str) -> bool:
        """Whether a name is well formed and free."""
        if not fields.good_name(key):
            return False
        taken = (
            "a function" if key in FUNCTIONS else "a parameter" if key in self.scope.params else "a 'let' value" if key in self.scope.lets
            else "a word of the language" if key in ("and", "or", "not", "if", "else", "true", "false", "config", "run", "in", "is", "lambda") else ""
        )  # fmt: skip
        if taken:
            fields.fail_key(key, "E426", f"{key!r} is already the name of {taken}", "choose another name")
        return not taken

    def params(self) -> dict[str, Param]:
        outer = self.fields.names("params")
        for key in outer.node.keys if outer else ():
            assert outer is not None
            ok = self.new_name(outer, key)
            inner = outer.inner(key, ("default", "unit", "range", "why"), ("default", "unit", "range"))
            if inner is None:
                continue
            name = f"params.{key}"
            ends = inner.items("range")
            low, high = float("-inf"), float("inf")
            if "range" in inner and len(ends) != 2:
                inner.fail_key("range", "E422", f"'{name}.range' must be [lowest, highest]")
            elif "range" in inner:
                low, high = (inner.as_number(end, f"{name}.range", bound) for end, bound in zip(ends, (low, high), strict=True))
                if low >= high:
                    inner.fail_key("range", "E353", f"'{name}.range' is empty: {low:g} is not below {high:g}")
                    low, high = float("-inf"), float("inf")
            default = inner.number("default", 0.0, low if low > float("-inf") else None, high if high < float("inf") else None)
            why, unit = inner.text("why"), inner.text("unit", "ratio")
            if not why:
                inner.problems.append(
                    outer.node.keys[key].problem("W603", f"parameter {key!r} has no 'why'", "name the source of the number")
                )
            if ok:
                self.scope.params[key] = Param(key, default, unit, low, high, why, f"{name} default")
        return dict(self.scope.params)

    def lets(self) -> dict[str, Expr]:
        outer = self.fields.names("let")
        for key in outer.node.keys if outer else ():
            assert outer is not None
            if self.new_name(outer, key):
                self.scope.later = {name for name in outer.node.keys if name not in self.scope.lets}
                expr = self.expression(outer, key, None)
                if expr is None:
                    self.scope.broken.add(key)
                else:
                    self.scope.lets[key] = expr
        self.scope.later = set()
        return dict(self.scope.lets)

    def exceptions(self) -> dict[str, Expr]:
        return read_exceptions(self.fields, self.scope)

    def expression(self, fields: Fields, key: str, kind: Literal["bool", "number"] | None) -> Expr | None:
        """Parse and check one expression; None when it is missing or wrong."""
        scalar = fields.expression(key)
        return None if scalar is None else self.scope.expression(scalar.text, scalar.where, self.problems, kind)

    def template(self, key: str) -> Template:
        scalar = self.fields.scalar_text(key)
        if scalar is None:
            return Template("")
        text, where = scalar.text, scalar.where
        if len(text) > MAX_TEMPLATE or text.count("{") > MAX_SLOTS:
            self.fields.fail(
                scalar, "E442", f"'{key}' is longer than {MAX_TEMPLATE} characters or has more than {MAX_SLOTS} braces"
            )
            return Template("")
        parts: list[str | Slot] = []
        literal, open_at = "", -1
        position = 0
        for match in _SLOT.finditer(text):
            if open_at < 0:
                literal += text[position : match.start()]
            position = match.end()
            mark = match.group()
            if open_at < 0 and mark in ("{{", "}}"):
                literal += mark[0]
            elif open_at < 0 and mark == "{":
                open_at = match.end()
                if literal:
                    parts.append(literal)
                literal = ""
            elif open_at >= 0 and mark in ("}", "}}"):
                slot = self.slot(text[open_at : match.start()], open_at, scalar, key)
                parts += [slot] if slot is not None else []
                if mark == "}}":
                    literal = "}"
                open_at = -1
            else:
                self.problems.append(
                    where.problem(
                        "E440", f"'{mark}' does not match in '{key}'", match.start(), len(mark), "write '{{' or '}}' for a brace"
                    )
                )
                return Template(text)
        if open_at >= 0:
            self.problems.append(
                where.problem("E440", f"'{{' is never closed in '{key}'", open_at - 1, 1, "write '{{' for a brace")
            )
        parts += [literal + text[position:]] if literal + text[position:] else []
        return Template(text.strip(), tuple(parts))

    def slot(self, inside: str, at: int, scalar: Scalar, key: str) -> Slot | None:
        """``expr:format|otherwise`` between braces; the colon cannot be part of an expression outside quotes."""
        bare = re.sub(r"'[^']*'|\"[^\"]*\"", lambda match: " " * len(match.group()), inside)
        colon = bare.find(":")
        body, spec = (inside, "") if colon < 0 else (inside[:colon], inside[colon + 1 :])
        spec, _, otherwise = spec.partition("|")
        where = scalar.where
        if colon >= 0 and not _FORMAT.fullmatch(spec) and (spec or not otherwise):
            hint = nearest(spec, ("percent", "num")) or "percent, num, or a number format such as .2f"
            self.problems.append(where.problem("E441", f"unknown format {spec[:40]!r}", at + colon + 1, max(1, len(spec)), hint))
            return None
        expr = self.scope.expression(body, where.inner(at, len(body)), self.problems, None)
        return Slot(expr, spec, otherwise or "unknown") if expr else None

    def sustain(self, key: str) -> Sustain | None:
        inner = self.fields.inner(key, ("hits", "of"), ("hits", "of"))
        if inner is None:
            return None
        hits, of = inner.whole("hits", 1, 1, 10_000), inner.whole("of", 1, 1, 10_000)
        if hits > of and "of" in inner:
            inner.fail_key("hits", "E354", f"'{key}' asks for {hits} hits of {of}: it can never be met")
            return Sustain(1, 1)
        return Sustain(hits, of)

    def updates(self, key: str, default: int) -> int:
        inner = self.fields.inner(key, ("updates",), ("updates",))
        return inner.whole("updates", default, 0) if inner else default

    def repeat(self) -> Literal["on-change", "never"] | int:
        if isinstance(self.fields.get("repeat"), Map):
            inner = self.fields.inner("repeat", ("updates",), ("updates",))
            return inner.whole("updates", 1) if inner else "on-change"
        return "never" if self.fields.word("repeat", ("on-change", "never"), "on-change") == "never" else "on-change"

    def ids(self, key: str, own: str) -> tuple[str, ...]:
        """Ids of other rules; whether they exist is checked when all files are read."""
        found = self.fields.texts(key)
        for scalar in found:
            if scalar.text == own:
                self.fields.fail(scalar, "E502", f"'{key}' of {own!r} names the rule itself")
        return tuple(scalar.text for scalar in found if scalar.text != own)

    def suggest(self) -> tuple[Suggest, ...]:
        found = []
        for number, node in enumerate(self.fields.items("suggest"), 1):
            if not isinstance(node, Map):
                self.fields.fail(node, "E422", f"'suggest' item {number} must be a mapping, here it is {what(node)}")
                continue
            found.append(self.suggestion(Fields(node, self.problems, f"suggest[{number}]")))
        return tuple(suggestion for suggestion in found if suggestion is not None)

    def suggestion(self, inner: Fields) -> Suggest | None:
        if "inspect" in inner:
            inner.only(("inspect", "if", "why"))
            return Suggest(inspect=inner.text("inspect"), condition=self.expression(inner, "if", "bool"), why=inner.text("why"))
        inner.only(("set", "to", "if", "also", "predicts", "why", "costs", "objective", "inspect"), ("set", "to"))
        also = []
        for number, node in enumerate(inner.items("also"), 1):
            if not isinstance(node, Map):
                inner.fail(node, "E422", f"'{inner.path('also')}' item {number} must be a mapping, here it is {what(node)}")
                continue
            part = Fields(node, self.problems, f"{inner.path('also')}[{number}]")
            part.only(("set", "to", "why"), ("set", "to"))
            value = self.expression(part, "to", None)
            if value is not None:
                also.append(Also(self.parameter(part), value, part.text("why")))
        predicts: dict[str, Expr] = {}
        outer = inner.names("predicts")
        for key in outer.node.keys if outer else ():
            assert outer is not None
            if key not in self.scope.signals:
                outer.fail_key(key, "E103", f"unknown signal {key[:80]!r}", nearest(key, self.scope.signals))
            value = self.expression(outer, key, "number")
            if value is not None:
                predicts[key] = value
        to = self.expression(inner, "to", None)
        return Suggest(
            set=self.parameter(inner), to=to, condition=self.expression(inner, "if", "bool"), also=tuple(also), predicts=predicts,
            why=inner.text("why"), costs=inner.text("costs"), objective=inner.flag("objective"),
        )  # fmt: skip

    def parameter(self, inner: Fields) -> str:
        """Native name of a configuration parameter."""
        scalar = inner.scalar_text("set")
        if scalar is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.]{0,99}", scalar.text):
            inner.fail(scalar, "E424", f"{scalar.text[:80]!r} is not the name of a parameter", "native name, without 'config.'")
        if scalar is not None and scalar.text.startswith("config."):
            inner.fail(
                scalar, "E424", f"{scalar.text[:80]!r}: write the native name", f"set: {scalar.text.removeprefix('config.')}"
            )
        return scalar.text if scalar else ""

    def expect(self) -> Expect | None:
        inner = self.fields.inner("expect", ("that", "within"), ("that", "within"))
        if inner is None:
            return None
        that = self.expression(inner, "that", "bool")
        within = inner.inner("within", ("updates",), ("updates",))
        return Expect(that, within.whole("updates", 1) if within else 1) if that else None

    def docs(self) -> Docs:
        inner = self.fields.inner("docs", ("explain", "look_first", "false_positives", "references"))
        if inner is None:
            return Docs()
        lists = [tuple(scalar.text for scalar in inner.texts(key)) for key in ("false_positives", "references")]
        return Docs(inner.text("explain"), inner.text("look_first"), *lists)

    def unused(self) -> None:
        """Every `let` and parameter must be used."""
        if self.problems and any(problem.severity == "error" for problem in self.problems):
            return  # the use may be in the part that is wrong
        for group, names in (("params", self.scope.params), ("let", self.scope.lets)):
            outer = self.fields.names(group)
            for name in names:
                if outer is not None and name not in self.scope.used:
                    kind = "parameter" if group == "params" else "'let' value"
                    outer.fail_key(name, "E430", f"{kind} {name!r} is never used", "use it or remove it")

    def style(self, when: Expr, clear: Expr | None, sustain: Sustain) -> None:
        """W601: fewer evaluations than one window holds are not independent. W602: a relative test without an end flaps."""
        widest = self.scope.widest(when)
        node = self.fields.get("when")
        assert node is not None
        guard = sustain.hits == sustain.of <= 3  # no count: two statistics that cross meet for an update or two
        if 1 < sustain.of < widest and not guard:
            at = self.fields.node.keys["sustain"]
            message = f"'sustain' looks at {sustain.of} evaluations, the widest window holds {widest:g}: they share most samples"
            self.problems.append(at.problem("W601", message, "count over at least twice the window, or shorten the window"))
        if clear is None and self.scope.relative(when):
            self.problems.append(node.problem("W602", "a test against the run's own past has no 'clear'", "say when it is over"))


def read_exceptions(fields: Fields, scope: Scope) -> dict[str, Expr]:
    """`unless`: named conditions; also used for those a user adds."""
    outer = fields.names("unless")
    found: dict[str, Expr] = {}
    for key in outer.node.keys if outer else ():
        assert outer is not None
        scalar = outer.expression(key)
        if outer.good_name(key) and scalar is not None:
            expr = scope.expression(scalar.text, scalar.where, fields.problems, "bool")
            if expr is not None:
                found[key] = expr
    return found
