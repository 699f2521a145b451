"""What several commands share: loading rules, reading logs. Replaying them is in `cli.replay`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainvitals._resources import rules_folder
from trainvitals.cli import UserError, nearest

if TYPE_CHECKING:
    from trainvitals.readers import InputError, Recording
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
    from trainvitals.readers import InputError, read

    try:
        return read(Path(path), **reading(options))
    except InputError as error:
        raise unreadable(error, path) from None


def reading(options: argparse.Namespace) -> dict[str, Any]:
    """What `readers.read` and `readers.read_runs` take, from the options of `add_log_arguments`.

    Raises:
        UserError: ``--map`` names no signal.
    """
    from trainvitals.events import CATALOGUE, split_label

    aliases = pairs(options.map, "--map")
    for raw, signal in aliases.items():
        if split_label(signal)[0] not in CATALOGUE and not signal.startswith("custom."):
            raise UserError(f"--map {raw}={signal}: no signal {signal!r}", nearest(signal, CATALOGUE) or "see trainvitals signals")
    return {"format": options.input_format, "mapper_trainer": options.trainer, "aliases": aliases}


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """Configuration values from ``--set``."""
    return {key: scalar(value) for key, value in pairs(options.set, "--set").items()}


def unreadable(error: InputError, path: str) -> UserError:
    """A log that cannot be read, as an error for the user."""
    at = f":{error.line}" if error.line is not None else ""
    return UserError(f"{error.path or path}{at}: {error.message}", error.hint)


def say(text: str) -> None:
    """A word to the user, on stderr."""
    print(text, file=sys.stderr)
