"""The test file of a rule: read strictly, every fault with its place. Format in ``rules/README.md``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from trainvitals.events import CATALOGUE, SignalSpec, split_label
from trainvitals.findings import SEVERITIES, VerdictState
from trainvitals.items import BoundaryKind
from trainvitals.rulelang.errors import Problem, RuleError, nearest
from trainvitals.rulelang.fields import Fields
from trainvitals.rulelang.model import TRAINERS
from trainvitals.rulelang.yaml_strict import Map, Node, Scalar, Seq, load
from trainvitals.testing_series import SeriesError, parse_series

STATES = ("not_applicable", "inactive", "warming", "ok", "pending", "firing", "clearing", "flapping", "error")
DATA = ("ok", "degraded", "stale")
_FILE = ("rule", "given", "with", "cases", "excused")
_CASE = ("name", "given", "series", "every", "seed", "boundaries", "silence", "applied", "step_seconds", "from", "expect", "todo")
_GIVEN = ("trainer", "framework", "config", "run", "absent")
_EXPECT = (
    "never", "always", "at", "until", "fires_between", "resolves_between", "times", "state", "data", "severity", "message_has",
    "advice_has", "suggests", "verdict", "instance", "suppressed_by",
)  # fmt: skip
_ANCHORS = ("never", "always", "at", "until", "fires_between", "resolves_between", "times")


@dataclass(frozen=True, slots=True)
class Series:
    """Samples of one series key; the n-th one comes at update ``n * every``."""

    key: str
    samples: tuple[float | None, ...]
    every: int = 1


@dataclass(frozen=True, slots=True)
class Silence:
    """No step ends for `seconds` after update `after`; a tick comes `every` so many seconds."""

    after: int
    seconds: float
    every: float = 15.0


@dataclass(frozen=True, slots=True)
class Change:
    """Somebody changes a parameter after update `at`."""

    at: int
    parameter: str
    old: Any
    new: Any


@dataclass(frozen=True, slots=True)
class Expectation:
    """One line of `expect`; fields that are None ask nothing. Steps are 1-based, as in messages."""

    never: str | None = None
    always: str | None = None
    at: int | None = None
    until: int | None = None
    fires_between: tuple[int, int] | None = None
    resolves_between: tuple[int, int] | None = None
    times: int | None = None
    state: str | None = None
    data: str | None = None
    severity: str | None = None
    message_has: str | None = None
    advice_has: str | None = None
    suggests: Mapping[str, Mapping[str, Any] | None] | None = None
    verdict: str | None = None
    instance: str | None = None
    suppressed_by: str | None = None
    line: int = 0


@dataclass(frozen=True, slots=True)
class Case:
    """One case: a run in miniature and what must come out."""

    name: str
    line: int
    trainer: str | None = None
    framework: str = "trl"
    config: Mapping[str, Any] = field(default_factory=dict)
    run: Mapping[str, Any] = field(default_factory=dict)
    absent: tuple[str, ...] = ()
    series: tuple[Series, ...] = ()
    every: int = 1
    boundaries: tuple[tuple[int, str, Mapping[str, Any]], ...] = ()
    silences: tuple[Silence, ...] = ()
    applied: tuple[Change, ...] = ()
    step_seconds: float = 1.0
    source: str | None = None
    expect: tuple[Expectation, ...] = ()
    todo: str | None = None


@dataclass(frozen=True, slots=True)
class CaseFile:
    """A whole test file.

    Attributes:
        rule: Id of the rule under test.
        beside: Other rules to load (`with`), for causes.
        cases: At least one.
        excused: Names of mutants that may survive, with the reason.
    """

    path: str
    rule: str
    cases: tuple[Case, ...]
    beside: tuple[str, ...] = ()
    excused: Mapping[str, str] = field(default_factory=dict)


def read_cases(path: Path, catalogue: Mapping[str, SignalSpec] = CATALOGUE) -> CaseFile:
    """Read a test file.

    Raises:
        RuleError: With every problem found.
        OSError: If the file cannot be read.
    """
    node = load(path.read_bytes(), str(path))
    problems: list[Problem] = []
    if not isinstance(node, Map):
        raise RuleError([node.problem("E422", "a test file must be a mapping: 'rule: ...' at the top")])
    fields = Fields(node, problems)
    fields.only(_FILE, ("rule", "cases"))
    rule = fields.text("rule")
    expected = path.name.removesuffix(".test.yaml")
    if rule and rule != expected:
        fields.fail_key("rule", "E425", f"rule {rule!r} in a test file named {path.name!r}", f"rule: {expected}")
    given = _given(fields, catalogue)
    names: set[str] = set()
    cases = []
    for item in fields.items("cases"):
        if not isinstance(item, Map):
            problems.append(item.problem("E422", "a case must be a mapping with 'name'"))
            continue
        case = _case(Fields(item, problems, "cases"), given, catalogue)
        if case.name in names:
            problems.append(item.problem("E423", f"two cases are called {case.name!r}"))
        names.add(case.name)
        cases.append(case)
    excused = {}
    if (inner := fields.names("excused")) is not None:
        excused = {key: inner.text(key) for key in inner.node.values}
    if not problems and not cases:
        fields.fail_key("cases", "E421", "no cases")
    if problems:
        raise RuleError(sorted(problems, key=lambda problem: (problem.line, problem.column)))
    return CaseFile(str(path), rule, tuple(cases), tuple(scalar.text for scalar in fields.texts("with")), excused)


def _given(fields: Fields, catalogue: Mapping[str, SignalSpec]) -> dict[str, Any]:
    """`given` as the keyword arguments of `Case` that it sets."""
    inner = fields.inner("given", _GIVEN)
    if inner is None:
        return {}
    found: dict[str, Any] = {}
    if "trainer" in inner:
        found["trainer"] = inner.word("trainer", TRAINERS, "unknown")
    if "framework" in inner:
        found["framework"] = inner.text("framework")
    for key in ("config", "run"):
        if (values := inner.names(key)) is not None:
            found[key] = {name: node.value for name, node in values.node.values.items() if isinstance(node, Scalar)}
    if "absent" in inner:
        for scalar in inner.texts("absent"):
            if scalar.text not in catalogue:
                fields.fail(scalar, "E103", f"unknown signal {scalar.text!r}", nearest(scalar.text, catalogue))
        found["absent"] = tuple(scalar.text for scalar in inner.texts("absent"))
    return found


def _case(fields: Fields, common: dict[str, Any], catalogue: Mapping[str, SignalSpec]) -> Case:
    fields.only(_CASE, ("name", "expect"))
    own = _given(fields, catalogue)
    given = {**common, **own}
    for key in ("config", "run"):
        given[key] = {**common.get(key, {}), **own.get(key, {})}
    name = fields.text("name")
    every = fields.whole("every", 1)
    if "series" not in fields and "from" not in fields:
        fields.fail(fields.node, "E421", "a case needs 'series' or 'from'")
    seed = f"{name}|{fields.whole('seed', 0, 0, 1_000_000)}"
    return Case(
        name=name,
        line=fields.node.line,
        series=_series(fields, every, seed, catalogue),
        every=every,
        boundaries=tuple(_boundary(item, fields) for item in fields.items("boundaries")),
        silences=_silences(fields),
        applied=tuple(_applied(item, fields) for item in fields.items("applied")),
        step_seconds=fields.number("step_seconds", 1.0, 0.0, 1e6),
        source=fields.text("from") or None,
        expect=tuple(_expectation(item, fields) for item in fields.items("expect")),
        todo=fields.text("todo") or None,
        **given,
    )


def _series(fields: Fields, every: int, seed: str, catalogue: Mapping[str, SignalSpec]) -> tuple[Series, ...]:
    inner = fields.names("series")
    found = []
    for key, node in inner.node.values.items() if inner is not None else ():
        assert inner is not None
        name, label, _ = split_label(key)
        spec = catalogue.get(name)
        if spec is None and not name.startswith("custom."):
            inner.fail_key(key, "E103", f"unknown signal {name!r}", nearest(name, catalogue))
        elif spec is not None and spec.label != label:
            hint = f"write {name}{{{spec.label}=...}}" if spec.label else f"write {name}"
            inner.fail_key(key, "E104", f"signal {name!r} {'has' if spec.label else 'has no'} label", hint)
        pace = every
        text: Node | None = node
        if isinstance(node, Map):
            parts = Fields(node, fields.problems, key)
            parts.only(("values", "every"), ("values",))
            pace, text = parts.whole("every", every), parts.get("values")
        if not isinstance(text, Scalar):
            fields.fail(node, "E422", "a series is a text such as '0.4x60'")
            continue
        try:
            found.append(Series(key, tuple(parse_series(text.text, f"{seed}|{key}")), pace))
        except SeriesError as error:
            fields.problems.append(text.where.problem("E426", str(error), error.at, error.length, "0.4x60, 0.4..0.02x40, 0.4~0.03x60, _x5, nan"))
    return tuple(found)


def _mapping(node: Node, fields: Fields, name: str, known: tuple[str, ...], required: tuple[str, ...]) -> Fields | None:
    if not isinstance(node, Map):
        fields.fail(node, "E422", f"'{name}' holds mappings")
        return None
    inner = Fields(node, fields.problems, name)
    inner.only(known, required)
    return inner


def _boundary(node: Node, fields: Fields) -> tuple[int, str, Mapping[str, Any]]:
    inner = _mapping(node, fields, "boundaries", ("at", "what", "detail"), ("at", "what"))
    if inner is None:
        return 0, "epoch", {}
    detail = inner.names("detail")
    values = {key: item.value for key, item in detail.node.values.items() if isinstance(item, Scalar)} if detail else {}
    return inner.whole("at", 1, 0, 10_000_000), inner.word("what", get_args(BoundaryKind), "epoch"), values


def _silences(fields: Fields) -> tuple[Silence, ...]:
    node = fields.get("silence")
    nodes = () if node is None else node.items if isinstance(node, Seq) else (node,)
    found = []
    for item in nodes:
        inner = _mapping(item, fields, "silence", ("after", "seconds", "every"), ("after", "seconds"))
        if inner is not None:
            found.append(Silence(inner.whole("after", 1, 0, 10_000_000), inner.number("seconds", 0.0, 0.0, 1e7), inner.number("every", 15.0, 0.01, 1e6)))
    return tuple(found)


def _applied(node: Node, fields: Fields) -> Change:
    inner = _mapping(node, fields, "applied", ("at", "parameter", "from", "to"), ("at", "parameter", "to"))
    if inner is None:
        return Change(0, "", None, None)
    return Change(inner.whole("at", 1, 0, 10_000_000), inner.text("parameter"), _plain(inner.get("from")), _plain(inner.get("to")))


def _plain(node: Node | None) -> Any:
    return node.value if isinstance(node, Scalar) else None


def _expectation(node: Node, fields: Fields) -> Expectation:
    inner = _mapping(node, fields, "expect", _EXPECT, ())
    if inner is None:
        return Expectation()
    if not any(key in inner for key in _ANCHORS) and all(key in _EXPECT for key in inner.node.keys):
        fields.fail(node, "E421", f"an expectation needs one of {', '.join(_ANCHORS)}")
    if ("until" in inner) and "state" not in inner:
        fields.fail(node, "E421", "'until' needs 'state'")
    return Expectation(
        never=inner.word("never", STATES, "ok") if "never" in inner else None,
        always=inner.word("always", STATES, "ok") if "always" in inner else None,
        at=inner.whole("at", 1, 1, 10_000_000) if "at" in inner else None,
        until=inner.whole("until", 1, 1, 10_000_000) if "until" in inner else None,
        fires_between=_between(inner, "fires_between"),
        resolves_between=_between(inner, "resolves_between"),
        times=inner.whole("times", 1, 0) if "times" in inner else None,
        state=inner.word("state", STATES, "ok") if "state" in inner else None,
        data=inner.word("data", DATA, "ok") if "data" in inner else None,
        severity=inner.word("severity", SEVERITIES, "info") if "severity" in inner else None,
        message_has=_words(inner, "message_has"),
        advice_has=_words(inner, "advice_has"),
        suggests=_suggests(inner),
        verdict=inner.word("verdict", get_args(VerdictState), "steady") if "verdict" in inner else None,
        instance=_words(inner, "instance"),
        suppressed_by=_words(inner, "suppressed_by"),
        line=node.line,
    )


def _words(fields: Fields, key: str) -> str | None:
    scalar = fields.scalar_text(key)
    return scalar.text if scalar else None


def _between(fields: Fields, key: str) -> tuple[int, int] | None:
    if key not in fields:
        return None
    ends = [node.value for node in fields.items(key) if isinstance(node, Scalar) and isinstance(node.value, int) and not isinstance(node.value, bool)]
    if len(ends) != 2 or ends[0] > ends[1]:
        fields.fail_key(key, "E422", f"'{key}' is two steps, the earlier one first", f"{key}: [105, 122]")
        return None
    return int(ends[0]), int(ends[1])


def _suggests(fields: Fields) -> Mapping[str, Mapping[str, Any] | None] | None:
    inner = fields.names("suggests")
    if inner is None:
        return None
    found: dict[str, Mapping[str, Any] | None] = {}
    for parameter, node in inner.node.values.items():
        if isinstance(node, Scalar) and node.value is False:
            found[parameter] = None
            continue
        ends = inner.inner(parameter, ("from", "to", "apply", "also"))
        wanted: dict[str, Any] = {key: _plain(ends.get(key)) for key in ("from", "to", "apply") if key in ends} if ends else {}
        also = ends.names("also") if ends else None
        if also is not None:
            wanted["also"] = {name: _plain(also.get(name)) for name in also.node.values}
        found[parameter] = wanted
    return found
