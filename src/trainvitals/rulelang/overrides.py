"""Users' override files: tune a rule by field with a reason, never by copying it.

```yaml
schema: trainvitals-overrides/1
rules:
  - id: advantage-collapse
    params: {min_std: 0.01}
    reason: binary reward, groups of 4
```
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from trainvitals.events import SignalSpec
from trainvitals.findings import Severity
from trainvitals.rulelang import model
from trainvitals.rulelang.build import Built, read_exceptions
from trainvitals.rulelang.check import check
from trainvitals.rulelang.errors import Problem, RuleError, Where, nearest
from trainvitals.rulelang.expr import Expr, parse
from trainvitals.rulelang.fields import Fields, what
from trainvitals.rulelang.model import Rule, RuleAction
from trainvitals.rulelang.scope import Scope
from trainvitals.rulelang.yaml_strict import MAX_BYTES, Map, scan

SCHEMA = "trainvitals-overrides/1"
FIELDS = ("id", "reason", "params", "severity", "unless", "disable", "action", "optional")


def apply(
    built: Sequence[Built],
    paths: Sequence[Path | str],
    signals: Mapping[str, SignalSpec],
    known: set[str],
    problems: list[Problem],
    *,
    not_enabled: Collection[str] = (),
) -> tuple[list[Rule], list[str]]:
    """Apply override files in order.

    Args:
        built: Rules in force.
        paths: Override files; a later one wins.
        signals: Catalogue, custom signals included.
        known: Ids of all rules, those not in force and those with errors included.
        problems: Where problems go.
        not_enabled: Ids that exist but are off: tuning them does nothing and is no error.

    Returns:
        The effective rules, and one line per override: what, why and where.
    """
    rules = {one.rule.id: one.rule for one in built}
    tuned: list[str] = []
    for path in paths:
        for fields in _entries(Path(path), problems):
            before = len(problems)
            fields.only(FIELDS, ("id",))
            if "reason" not in fields:
                fields.fail(fields.node, "E506", "an override needs a 'reason'", "it is printed with every finding of the rule")
            rule = _target(fields, rules, known, not_enabled)
            reason = fields.text("reason")
            changed, words = _tune(fields, rule, reason, signals) if rule is not None else (None, [])
            if changed is None or len(problems) > before:
                continue
            if not words:
                hint = "give params, severity, unless, action or disable"
                fields.fail(fields.node, "E428", f"the entry for {changed.id!r} changes nothing", hint)
                continue
            line = f"{changed.id}: {', '.join(words)} ({reason}; {fields.node.source.path}:{fields.node.line})"
            rules[changed.id] = replace(changed, tuned=(*changed.tuned, line))
            tuned.append(line)
    return list(rules.values()), tuned


def _entries(path: Path, problems: list[Problem]) -> list[Fields]:
    """The entries of one file that are mappings."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        problems.append(Problem("E427", f"cannot be read: {error.strerror or type(error).__name__}", str(path), 1, 1))
        return []
    root, found = scan(data, str(path))
    problems += found
    if root is None:
        return []
    if not isinstance(root, Map):
        problems.append(root.problem("E422", "an override file must be a mapping: 'rules:' at the top"))
        return []
    fields = Fields(root, problems)
    fields.only(("schema", "rules"), ("rules",))
    fields.word("schema", (SCHEMA,), SCHEMA)
    entries = []
    for number, node in enumerate(fields.items("rules"), 1):
        if isinstance(node, Map):
            entries.append(Fields(node, problems, f"rules[{number}]"))
        else:
            fields.fail(node, "E422", f"'rules' item {number} must be a mapping, here it is {what(node)}")
    return entries


def _target(fields: Fields, rules: Mapping[str, Rule], known: set[str], not_enabled: Collection[str]) -> Rule | None:
    """The rule that an entry is about; a problem when there is none and it is not `optional`."""
    optional = fields.flag("optional")
    scalar = fields.scalar_text("id")
    if scalar is None:
        return None
    if scalar.text not in known and not optional:
        fields.fail(
            scalar,
            "E505",
            f"no rule has the id {scalar.text[:80]!r}",
            nearest(scalar.text, known) or "mark it 'optional: true' if it may be missing",
        )
    if scalar.text in not_enabled:
        return None
    return rules.get(scalar.text)


def _tune(fields: Fields, rule: Rule, reason: str, signals: Mapping[str, SignalSpec]) -> tuple[Rule, list[str]]:
    """The rule with one entry applied, and the changes in words."""
    words: list[str] = []
    place = f"{fields.node.source.path}:{fields.node.line}"
    params = dict(rule.params)
    group = fields.names("params")
    for key in group.node.keys if group else ():
        assert group is not None
        if key not in params:
            group.fail_key(
                key,
                "E507",
                f"rule {rule.id!r} has no parameter {key[:80]!r}",
                nearest(key, params) or f"it has: {', '.join(params) or 'none'}",
            )
            continue
        old = params[key]
        at = group.node.values[key]
        value = group.as_number(at, f"params.{key}", old.default, old.low, old.high)
        words.append(f"{key} {old.default:g} -> {value:g}")
        params[key] = replace(old, default=value, origin=f"{at.source.path}:{at.line}")
    severity = rule.severity
    if "severity" in fields:
        severity = cast("Any", fields.word("severity", model.SEVERITY_WORDS, rule.severity))
        words.append(f"severity {rule.severity} -> {severity}")
    unless = dict(rule.unless)
    for key, expr in _exceptions(fields, rule, signals).items():
        if key in unless:
            outer = fields.names("unless")
            assert outer is not None
            outer.fail_key(
                key, "E426", f"rule {rule.id!r} already has an exception {key!r}", "choose another name; exceptions are only added"
            )
        unless[key] = expr
        words.append(f"unless {key}")
    action, gate_is_set = _action(fields, rule, severity, words)
    disabled = rule.disabled
    if "disable" in fields:
        disabled = f"{reason} ({place})" if fields.flag("disable") else None
        words.append("disabled" if disabled is not None else "enabled")
    changed = replace(
        rule, params=params, severity=severity, unless=unless, action=action, gate_is_set=gate_is_set, disabled=disabled
    )
    if changed.params != rule.params:
        _still_sound(fields, changed, signals)
    return changed, words


def _still_sound(fields: Fields, rule: Rule, signals: Mapping[str, SignalSpec]) -> None:
    """Check the expressions again with the user's parameters: a window must stay whole, a condition reachable."""
    problem = unsound(rule, signals)
    if problem is not None:
        fields.fail_key("params", "E355", f"with these parameters {problem}")


def unsound(rule: Rule, signals: Mapping[str, SignalSpec]) -> str | None:
    """What is wrong with a rule whose parameters were changed, in words; None when it can still be decided."""
    lets: dict[str, Expr] = {}
    conditions = [("when", rule.when)] + ([("clear", rule.clear)] if rule.clear is not None else [])
    for name, expr in [*rule.lets.items(), *conditions]:
        try:
            lets[name] = check(parse(expr.text, Where()), signals=signals, params=rule.params, lets=lets, label=rule.for_each)
        except RuleError as error:
            first = error.problems[0]
            return f"{name!r} of rule {rule.id!r} is refused: {first.code} {first.message}"
    return None


def _exceptions(fields: Fields, rule: Rule, signals: Mapping[str, SignalSpec]) -> dict[str, Any]:
    scope = Scope(signals)
    scope.params, scope.lets, scope.label = dict(rule.params), dict(rule.lets), rule.for_each
    return read_exceptions(fields, scope)


def _action(fields: Fields, rule: Rule, severity: Severity, words: list[str]) -> tuple[RuleAction, bool]:
    """The action after an entry: a gate that the rule does not state itself follows the severity."""
    gates = {"error": "fail", "warning": "warn", "info": "none"}
    gate = rule.action.gate if rule.gate_is_set else cast("Any", gates[severity])
    action, is_set = replace(rule.action, gate=gate), rule.gate_is_set
    inner = fields.inner("action", ("gate", "stop"))
    if inner is not None:
        given = {
            key: inner.word(key, allowed, "none" if key == "gate" else "never")
            for key, allowed in (("gate", ("fail", "warn", "none")), ("stop", ("never", "offer")))
            if key in inner
        }
        words += [f"{key} {getattr(action, key)} -> {value}" for key, value in given.items()]
        action, is_set = replace(action, **cast("Any", given)), is_set or "gate" in given
    return action, is_set
