"""``trainvitals explain``: the page of one rule, offline; with ``--run LOG --at N`` the values at that step."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING

from trainvitals.cli import UserError, nearest
from trainvitals.sinks.encode import one_line

if TYPE_CHECKING:
    from trainvitals.findings import Term
    from trainvitals.rulelang.loader import RuleSet
    from trainvitals.rulelang.model import Rule, Suggest

_WIDTH = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this command."""
    from trainvitals.cli.common import add_log_arguments, add_rule_arguments

    parser.add_argument("rule", metavar="RULE", help="id or code of a rule, as a finding names it")
    parser.add_argument("--run", metavar="LOG", help="log file or run folder: show the values of the rule's signals")
    parser.add_argument("--at", type=int, metavar="STEP", help="with --run: at this step; default: the last one")
    add_rule_arguments(parser)
    add_log_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Print the page."""
    from trainvitals.cli.common import load_ruleset

    if options.at is not None and options.run is None:
        raise UserError("--at needs --run", "trainvitals explain RULE --run LOG --at STEP")
    options.enable = [*options.enable, "experimental"]
    ruleset = load_ruleset(options)
    rule = find(ruleset, options.rule)
    for line in page(rule):
        print(line)
    if options.run is not None:
        print()
        for line in _values(rule, ruleset, options):
            print(line)
    return 0


def find(ruleset: RuleSet, name: str) -> Rule:
    """The rule with an id or a code.

    Raises:
        UserError: If there is none.
    """
    for rule in ruleset.rules:
        if name.lower() == rule.id or name.upper() == rule.code:
            return rule
    known = [word for rule in ruleset.rules for word in (rule.id, rule.code)]
    raise UserError(f"no rule {name!r}", nearest(name, known) or "see trainvitals rules list")


def _wrapped(head: str, text: str) -> list[str]:
    return textwrap.wrap(
        f"{head}{one_line(text, 4000)}", _WIDTH, subsequent_indent=" " * len(head), break_long_words=False, break_on_hyphens=False
    )


def page(rule: Rule) -> Iterator[str]:
    """The rule in words and in full."""
    yield f"{rule.code} {rule.id} {rule.version} ({rule.severity}, {rule.category}, {rule.status})"
    yield rule.title
    if rule.disabled:
        yield f"switched off: {rule.disabled}"
    if rule.docs.explain:
        yield ""
        yield from _wrapped("", rule.docs.explain)
    yield ""
    yield from _wrapped("says:       ", f"{rule.message.text} {rule.advice.text}".strip())
    yield from _wrapped("trainers:   ", ", ".join(rule.trainers) or "any")
    if rule.docs.look_first:
        yield from _wrapped("look first: ", rule.docs.look_first)
    yield ""
    yield from _condition(rule)
    yield ""
    yield from _signals(rule)
    if rule.suggest:
        yield ""
        yield "what to do"
        for suggestion in rule.suggest:
            yield from _suggestion(suggestion)
    yield ""
    yield from _measured(rule)
    for head, entries in (
        ("when it is wrong", rule.docs.false_positives),
        ("tuned", rule.tuned),
        ("references", rule.docs.references),
    ):
        if entries:
            yield ""
            yield head
            for entry in entries:
                yield from _wrapped("  - ", entry)


def _condition(rule: Rule) -> Iterator[str]:
    yield from _wrapped("fires when  ", rule.when.text)
    for name, expr in rule.lets.items():
        yield from _wrapped(f"  {name} = ", expr.text)
    for param in rule.params.values():
        yield from _wrapped(
            f"  {param.name} = ",
            f"{param.default:g} {param.unit}, from {param.low:g} to {param.high:g}" + (f": {param.why}" if param.why else ""),
        )
    yield f"  in {rule.sustain.hits} of {rule.sustain.of} evaluations" + (f", after {rule.warmup} updates" if rule.warmup else "")
    for name, expr in rule.unless.items():
        yield from _wrapped(f"unless {name}: ", expr.text)
    if rule.clear is not None:
        yield from _wrapped("ends when   ", rule.clear.text)
    if rule.caused_by:
        yield from _wrapped("not told while one of these explains it: ", ", ".join(rule.caused_by))


def _measured(rule: Rule) -> Iterator[str]:
    """How often it was right on recorded runs of which the truth is known; the share is `confidence` of its findings."""
    from trainvitals.cli.intervals import counted, rated

    seen = rule.measured
    if seen is None:
        yield "how often it is right: never measured in this form"
        return
    yield "how often it is right"
    if seen.healthy_runs:
        yield from _wrapped(
            "  - ",
            f"healthy runs: fired in {counted(seen.false_runs, seen.healthy_runs)}; "
            f"{rated(seen.false_firings, seen.healthy_steps)} firings per 1,000 updates",
        )
    if seen.own_runs:
        yield from _wrapped("  - ", f"sick runs of its fault: fired in {counted(seen.found, seen.own_runs)}")
    if seen.other_runs:
        yield from _wrapped("  - ", f"sick runs of other faults: fired in {seen.after} of {seen.other_runs}, as a symptom")
    if seen.confidence is not None:
        true, fired = seen.found + seen.after, seen.confidence.runs
        yield from _wrapped("  - ", f"when it fired, the run was sick: {counted(true, fired)}; this is the confidence of its findings")
    yield from _wrapped("  - ", f"measured on: {seen.basis}")


def _signals(rule: Rule) -> Iterator[str]:
    from trainvitals.events import CATALOGUE

    yield "reads"
    for name in sorted(rule.signals):
        spec = CATALOGUE.get(name)
        yield from _wrapped(f"  {name} ", f"({spec.unit}) {spec.meaning}" if spec else "(custom)")


def _suggestion(suggestion: Suggest) -> Iterator[str]:
    if suggestion.inspect is not None:
        yield from _wrapped("  - ", suggestion.inspect)
        return
    to = suggestion.to.text if suggestion.to is not None else ""
    parts = [f"set {suggestion.set} to {to}"]
    if suggestion.condition is not None:
        parts.append(f"if {suggestion.condition.text}")
    parts += [f"and {also.set} to {also.to.text}" for also in suggestion.also]
    if suggestion.why:
        parts.append(f"why: {suggestion.why}")
    if suggestion.costs:
        parts.append(f"costs: {suggestion.costs}")
    yield from _wrapped("  - ", "; ".join(parts))


def _term(term: Term) -> str:
    value = "unknown" if term.value is None else term.value
    unit = f" {term.unit}" if term.unit else ""
    limit = f", limit {term.limit}" if term.limit is not None else ""
    means = f" = {term.means}" if term.means else ""
    return f"{term.expr}{means}: {value}{unit}{limit}"


def _values(rule: Rule, ruleset: RuleSet, options: argparse.Namespace) -> Iterator[str]:
    """What the rule saw at a step: its own terms as the engine explains them, else the last value of each signal."""
    from trainvitals.cli.common import read_log, settings
    from trainvitals.cli.replay import replay

    replayed = replay(options.run, read_log(options.run, options), ruleset, settings(options), options.trainer, until=options.at)
    yield one_line(f"in {options.run}, at step {replayed.last_step}")
    for finding in replayed.findings:
        if finding.rule.id == rule.id:
            yield one_line(f"  step {finding.step}: {finding.state}: {finding.message}")
    try:
        explained = replayed.monitor.engine.explain(rule.id)
    except Exception as error:  # a rule that does not apply to this run may not be bound at all
        explained = {}
        yield one_line(f"  not bound to this run ({type(error).__name__})")
    for label, terms in explained.items():
        if label:
            yield one_line(f"  for {label}:")
        for term in terms:
            yield one_line(f"  {_term(term)}")
    for name in sorted(rule.signals):
        series = [key for key in replayed.last_values if key.partition("{")[0] == name]
        if not series:
            yield f"  {name}: not in this log"
        for key in series:
            step, value = replayed.last_values[key]
            yield one_line(f"  {key}: {value:g} (step {step})")
