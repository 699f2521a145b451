"""What several commands share: loading rules, reading logs, replaying them."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainvitals._resources import rules_folder
from trainvitals.cli import UserError, nearest

if TYPE_CHECKING:
    from trainvitals.events import RunStart
    from trainvitals.findings import CoverageRecord, Finding, Verdict
    from trainvitals.monitor import Monitor
    from trainvitals.readers import Recording
    from trainvitals.rulelang.loader import RuleSet
    from trainvitals.rulelang.model import Rule


def add_rule_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that choose and tune rules."""
    parser.add_argument(
        "--rules", action="append", default=[], metavar="PATH", help="rule file or folder, in addition to the built-in rules"
    )
    parser.add_argument("--overrides", action="append", default=[], metavar="FILE", help="changes to rules, each with its reason")
    parser.add_argument(
        "--enable", action="append", default=[], metavar="ID", help="switch on an experimental rule, or `experimental` for all"
    )


def add_log_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that say how to read a log."""
    parser.add_argument(
        "--input-format", metavar="NAME", help="how to read the log: own, trainer_state, jsonl, console (default: found out)"
    )
    parser.add_argument(
        "--trainer", metavar="NAME", help="trainer of the run (grpo, dpo, sft, ...); default: found out from the metrics"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a configuration value that the log does not have"
    )
    parser.add_argument("--map", action="append", default=[], metavar="RAW=SIGNAL", help="read the metric RAW as SIGNAL")


def load_ruleset(options: argparse.Namespace) -> RuleSet:
    """The rules that `options` ask for.

    Raises:
        UserError: With every problem of every file.
    """
    from trainvitals.rulelang.errors import RuleError
    from trainvitals.rulelang.loader import load_rules

    extra = [Path(path) for path in options.rules]
    for path in [*extra, *map(Path, options.overrides)]:
        if not path.exists():
            raise UserError(f"{path}: no such file or folder", "give a rule file (*.yaml) or a folder of rule files")
    paths = [*builtin_rule_paths(options.enable), *extra] if extra else None
    try:
        ruleset = load_rules(paths, overrides=[Path(path) for path in options.overrides], enable=options.enable)
    except RuleError as error:
        raise rule_problems(error) from None
    return with_builtin_source(ruleset) if extra else ruleset


def builtin_rule_paths(enable: list[str]) -> list[Path]:
    """Folders and files of the built-in rules: stable ones, and those experimental ones that are named."""
    root = rules_folder()
    experimental = sorted(path for path in (root / "experimental").glob("*.yaml") if not path.stem.endswith(".test"))
    return [root / "stable", *(path for path in experimental if "experimental" in enable or path.stem in enable)]


def with_builtin_source(ruleset: RuleSet) -> RuleSet:
    """Rules that were loaded by path, with the built-in ones named as such: findings must not depend on how we loaded them."""
    root = str(rules_folder())
    rules = tuple(replace(rule, source="builtin") if rule.path.startswith(root) else rule for rule in ruleset.rules)
    return with_rules(ruleset, rules)


def with_rules(ruleset: RuleSet, rules: Sequence[Rule]) -> RuleSet:
    """The same rule set with other rules in it."""
    return replace(ruleset, rules=tuple(rules), by_id={rule.id: rule for rule in rules})


def rule_problems(error: Any) -> UserError:
    """All problems of a `RuleError` as one error for the user."""
    problems = error.problems
    text = "\n".join(problem.render() for problem in problems)
    return UserError(f"{len(problems)} problem{'s' if len(problems) != 1 else ''} in rule files\n{text}")


def pairs(entries: list[str], option: str) -> dict[str, str]:
    """``KEY=VALUE`` arguments as a dict.

    Raises:
        UserError: If one has no ``=``.
    """
    found = {}
    for entry in entries:
        key, mark, value = entry.partition("=")
        if not mark or not key:
            raise UserError(
                f"{option} {entry!r}: expected NAME=VALUE",
                f"for example {option} {'learning_rate=1e-6' if option == '--set' else 'my_kl=policy.kl_ref'}",
            )
        found[key] = value
    return found


def scalar(text: str) -> Any:
    """A configuration value from the command line: true, false, none, a number, else text."""
    words = {"true": True, "false": False, "none": None, "null": None}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def read_log(path: str, options: argparse.Namespace) -> Recording:
    """Read one log or run folder.

    Raises:
        UserError: If it cannot be read or is not understood.
    """
    from trainvitals.events import CATALOGUE, split_label
    from trainvitals.readers import InputError, read

    aliases = pairs(options.map, "--map")
    for raw, signal in aliases.items():
        if split_label(signal)[0] not in CATALOGUE and not signal.startswith("custom."):
            raise UserError(f"--map {raw}={signal}: no signal {signal!r}", nearest(signal, CATALOGUE) or "see trainvitals signals")
    try:
        return read(Path(path), format=options.input_format, mapper_trainer=options.trainer, aliases=aliases)
    except InputError as error:
        where = error.path or path
        at = f":{error.line}" if error.line is not None else ""
        raise UserError(f"{where}{at}: {error.message}", error.hint) from None


@dataclass
class Replayed:
    """One evaluated log."""

    path: str
    recording: Recording
    start: RunStart
    monitor: Monitor
    records: list[Any]
    points: dict[str, list[int]]
    last_values: dict[str, tuple[int, float]]

    @property
    def findings(self) -> list[Finding]:
        """Transitions in order."""
        return [record for record in self.records if record.kind == "finding"]

    @property
    def verdict(self) -> Verdict | None:
        """The last word."""
        return self.monitor.verdict

    @property
    def coverage(self) -> CoverageRecord:
        """What was evaluated."""
        assert self.monitor.coverage is not None
        return self.monitor.coverage

    @property
    def last_step(self) -> int:
        """Last step of the log."""
        return self.monitor.step


def replay(
    path: str, recording: Recording, ruleset: RuleSet, config: Mapping[str, Any], trainer: str | None, until: int | None = None
) -> Replayed:
    """Evaluate a recording, exactly as it was or would have been live.

    Args:
        path: As the user named it.
        recording: From `read_log`.
        ruleset: Rules.
        config: Configuration values that override the log's.
        trainer: Trainer that overrides the log's.
        until: Stop after this step; None for all.
    """
    from trainvitals.events import Boundary, Frame, RunEnd, RunStart
    from trainvitals.findings import Record
    from trainvitals.monitor import Monitor

    monitor = Monitor(rules=ruleset, console=False, fail_soft=False)
    records: list[Any] = []
    points: dict[str, list[int]] = {}
    last_values: dict[str, tuple[int, float]] = {}
    monitor.bus.subscribe("collect", lambda item: records.append(item) if isinstance(item, Record) else None)
    monitor.unknown_metrics = recording.mapper.unknown
    start = RunStart(run_id="")
    items = list(recording.items)
    resumed = {item.resumed_from for item in items if isinstance(item, RunStart) and item.carried}
    checkpoints: dict[int | None, str] = {}
    for item in items:
        if isinstance(item, Boundary) and item.what == "save_end" and item.step in resumed:
            checkpoints[item.step] = json.dumps(monitor.engine.state_dict())  # what the live run put beside its checkpoint
        if isinstance(item, RunStart):
            if item.carried and item.resumed_from in checkpoints:
                monitor.engine.load_state_dict(json.loads(checkpoints[item.resumed_from]))
            item = replace(item, config={**item.config, **config}, trainer=trainer or item.trainer)
            start = item
        elif isinstance(item, Frame):
            if until is not None and item.step > until:
                break
            for key, value in item.values.items():
                last_values[key] = (item.step, value)
                seen = points.setdefault(key, [0, item.step, item.step])
                seen[0] += 1
                seen[2] = item.step
        elif isinstance(item, RunEnd):
            if until is not None:
                break
            if item is not items[-1]:
                monitor.end_attempt(item)
                continue
        monitor.publish(item)
    if until is None:
        monitor.close()
    return Replayed(path, recording, start, monitor, records, points, last_values)


def say(text: str) -> None:
    """A word to the user, on stderr."""
    print(text, file=sys.stderr)
