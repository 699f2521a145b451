"""``trainvitals check``: evaluate logs; the gate for CI."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from trainvitals.cli import UserError, nearest

if TYPE_CHECKING:
    from trainvitals.cli.replay import Replayed
    from trainvitals.findings import Finding
    from trainvitals.rulelang.loader import RuleSet
    from trainvitals.rulelang.model import Rule

EXIT_OK, EXIT_FINDINGS, EXIT_USAGE, EXIT_UNKNOWN, EXIT_BUG = 0, 1, 2, 3, 5
FORMATS = ("text", "json", "jsonl", "github")
LEVELS = {"info": 0, "warning": 1, "error": 2, "never": 3}
_WORST_FIRST = (EXIT_BUG, EXIT_USAGE, EXIT_FINDINGS, EXIT_UNKNOWN, EXIT_OK)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this command."""
    from trainvitals.cli.common import add_log_arguments, add_rule_arguments

    parser.add_argument("paths", nargs="+", metavar="PATH", help="log file, run folder, or - for standard input")
    parser.add_argument(
        "-f", "--format", action="append", default=[], metavar="NAME[=FILE]", help=f"{', '.join(FORMATS)}; repeatable; default text"
    )
    parser.add_argument("-o", "--output", metavar="FILE", help="write the (single) format to FILE")
    parser.add_argument(
        "--fail-on", choices=tuple(LEVELS), default="error", help="findings from this level on make exit 1 (default: error)"
    )
    parser.add_argument("--severity", choices=("info", "warning", "error"), default="info", help="show findings from this level on")
    parser.add_argument(
        "--select", action="append", default=[], metavar="RULE", help="only these rules: id, code, or start of a code (KL)"
    )
    parser.add_argument("--ignore", action="append", default=[], metavar="RULE", help="without these rules; the longer match wins")
    parser.add_argument(
        "--required", action="append", default=[], metavar="NAME", help="signal or rule without which the answer is exit 3"
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="also list the rules that were not evaluated, with the reason")
    add_rule_arguments(parser)
    add_log_arguments(parser)
    parser.epilog = "exit codes: 0 fine, 1 findings, 2 usage or input error, 3 could not tell, 5 a bug of trainvitals"


def run(options: argparse.Namespace) -> int:
    """Evaluate every path; the exit code is that of the worst."""
    from trainvitals.cli import report
    from trainvitals.cli.common import load_ruleset, read_log, say, settings
    from trainvitals.cli.replay import replay

    outputs = _outputs(options)
    options.select, options.ignore, options.required = (
        _split(entries) for entries in (options.select, options.ignore, options.required)
    )
    ruleset = load_ruleset(options)
    _check_names(ruleset, options)
    ruleset = _selected(ruleset, options.select, options.ignore)
    results: list[report.Result] = []
    failed = False
    for path in options.paths:
        try:
            replayed = replay(path, read_log(path, options), ruleset, settings(options), options.trainer)
        except UserError as error:
            if len(options.paths) == 1:
                raise
            say(f"trainvitals: error: {error}" + (f"\n  help: {error.hint}" if error.hint else ""))
            failed = True
            continue
        code, reason = decide(replayed, options.fail_on, options.required)
        results.append(report.Result(replayed, code, reason))
    codes = [result.code for result in results] + ([EXIT_USAGE] if failed else [])
    final = next(code for code in _WORST_FIRST if code in codes)
    for name, target in outputs:
        text = report.render(name, results, final, severity=options.severity, verbose=options.verbose)
        _write(text, target)
    for result in results:
        if result.reason and all(name != "text" or target is not None for name, target in outputs):
            say(f"{result.replayed.path}: {result.reason}")
    return final


def decide(replayed: Replayed, fail_on: str, required: list[str]) -> tuple[int, str]:
    """Exit code of one log and, when it is not plain, the reason in words."""
    rules = {rule.id: rule for rule in replayed.monitor.ruleset.rules}
    coverage = replayed.coverage
    broken = [entry.id for entry in coverage.rules if entry.status == "error"]
    if broken:
        return EXIT_BUG, f"rules failed: {', '.join(broken)}"
    if any(_fails(finding, rules, fail_on) for finding in replayed.findings):
        return EXIT_FINDINGS, ""
    unclear = _unclear(replayed, required)
    return (EXIT_UNKNOWN, f"could not tell: {unclear}") if unclear else (EXIT_OK, "")


def _fails(finding: Finding, rules: Mapping[str, Rule], fail_on: str) -> bool:
    if finding.state != "firing" or fail_on == "never":
        return False
    rule = rules.get(finding.rule.id)
    if rule is not None and rule.gate_is_set:
        return rule.action.gate == "fail"
    return LEVELS[finding.severity] >= LEVELS[fail_on]


def _unclear(replayed: Replayed, required: list[str]) -> str:
    """Why a log without bad findings is still no healthy log; empty when it is one."""
    if not replayed.points:
        unknown = sorted(replayed.recording.mapper.unknown)
        return "no known metric in it" + (f"; unknown: {', '.join(unknown[:8])}" if unknown else "")
    coverage = replayed.coverage
    names = {key.partition("{")[0] for key in replayed.points}
    decided = {entry.id for entry in coverage.rules if entry.status in ("evaluated", "degraded") and entry.decided}
    codes = {rule.code: rule.id for rule in replayed.monitor.ruleset.rules}
    lacking = [name for name in required if name not in names and codes.get(name, name) not in decided]
    if lacking:
        return f"required and not there: {', '.join(lacking)}"
    blind = [
        entry.id for entry in coverage.rules if entry.required and entry.id not in decided and entry.status in ("blind", "inactive")
    ]
    if blind:
        missing = sorted({signal for entry in coverage.rules if entry.id in blind for signal in entry.missing})
        return f"required rules without data: {', '.join(blind)}" + (f" (missing {', '.join(missing)})" if missing else "")
    if not decided:
        return "no rule had enough data"
    verdict = replayed.verdict
    if verdict is None or verdict.state in ("insufficient_data", "warming_up"):
        return f"too little data ({replayed.last_step} updates)"
    return ""


def _outputs(options: argparse.Namespace) -> list[tuple[str, Path | None]]:
    outputs: list[tuple[str, Path | None]] = []
    for entry in options.format or ["text"]:
        name, _, target = entry.partition("=")
        if name not in FORMATS:
            raise UserError(f"--format {name!r}: no such format", nearest(name, FORMATS) or f"one of {', '.join(FORMATS)}")
        outputs.append((name, Path(target) if target and target != "-" else None))
    if options.output is not None:
        if len(outputs) != 1 or outputs[0][1] is not None:
            raise UserError("--output goes with one --format", "write --format NAME=FILE for each of several formats")
        outputs = [(outputs[0][0], None if options.output == "-" else Path(options.output))]
    if sum(target is None for _, target in outputs) > 1:
        raise UserError("two formats for one standard output", "give all but one a file: --format github --format json=out.json")
    return outputs


def _write(text: str, target: Path | None) -> None:
    if target is None:
        sys.stdout.write(text)
        sys.stdout.flush()
        return
    try:
        target.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror}", "give a path in a folder that exists and is writable") from None


def _split(entries: list[str]) -> list[str]:
    return [part.strip() for entry in entries for part in entry.split(",") if part.strip()]


def _match(pattern: str, rule_id: str, code: str) -> int:
    """Length of the match of a selector; 0 for none. An exact id or code beats any start of a code."""
    if pattern == "ALL":
        return 1
    if pattern in (rule_id, code):
        return 100
    return 1 + len(pattern) if code.startswith(pattern) else 0


def _check_names(ruleset: RuleSet, options: argparse.Namespace) -> None:
    from trainvitals.events import CATALOGUE

    known = [name for rule in ruleset.rules for name in (rule.id, rule.code)]
    for option in ("select", "ignore"):
        for pattern in getattr(options, option):
            if not any(_match(pattern, rule.id, rule.code) for rule in ruleset.rules):
                raise UserError(f"--{option} {pattern!r}: no such rule", nearest(pattern, known) or "see trainvitals rules list")
    for name in options.required:
        if name not in CATALOGUE and name not in known and not name.startswith("custom."):
            raise UserError(f"--required {name!r}: no such signal or rule", nearest(name, [*CATALOGUE, *known]))


def _selected(ruleset: RuleSet, select: list[str], ignore: list[str]) -> RuleSet:
    """The rules that stay. A rule that is left out does not suppress others either."""
    from trainvitals.cli.common import with_rules

    if not select and not ignore:
        return ruleset
    kept = []
    for rule in ruleset.rules:
        wanted = max((_match(pattern, rule.id, rule.code) for pattern in select), default=0 if select else 1)
        unwanted = max((_match(pattern, rule.id, rule.code) for pattern in ignore), default=0)
        if wanted > unwanted:
            kept.append(rule)
    if not kept:
        raise UserError("--select and --ignore leave no rule", "see trainvitals rules list")
    return with_rules(ruleset, kept)
