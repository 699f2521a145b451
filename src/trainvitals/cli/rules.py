"""``trainvitals rules``: list, check, test and mutate rules. `backtest` and `calibrate` have modules of their own."""

from __future__ import annotations

import argparse
from pathlib import Path

from trainvitals.cli import UserError
from trainvitals.sinks.encode import dumps, one_line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this command and its parts."""
    from trainvitals.cli import backtest, calibrate
    from trainvitals.cli.common import add_rule_arguments

    parts = parser.add_subparsers(dest="part", metavar="PART", required=True)
    listing = parts.add_parser("list", help="the rules in force")
    listing.add_argument("-f", "--format", choices=("text", "json"), default="text")
    add_rule_arguments(listing)
    for name, text in (
        ("check", "look for mistakes in rule files"),
        ("test", "run the cases of <rule>.test.yaml"),
        ("mutate", "change the rules a little and see whether their tests notice"),
    ):
        part = parts.add_parser(name, help=text)
        part.add_argument("paths", nargs="*", metavar="PATH", help="rule files or folders; default: the built-in rules")
        part.add_argument("-v", "--verbose", action="store_true", help="also name what passed")
    backtest.add_arguments(parts.add_parser("backtest", help="recorded runs through the rules: how often each was right and wrong"))
    calibrate.add_arguments(parts.add_parser("calibrate", help="try the values of a rule's parameters on labelled runs; proposes, writes nothing"))


def run(options: argparse.Namespace) -> int:
    """Do the part."""
    if options.part == "list":
        return _list(options)
    if options.part in ("backtest", "calibrate"):
        from trainvitals.cli import backtest, calibrate

        return backtest.run(options) if options.part == "backtest" else calibrate.run(options)
    paths = _paths(options.paths)
    if options.part == "check":
        return _check(paths)
    return _test(paths, options.verbose) if options.part == "test" else _mutate(paths, options.verbose)


def _list(options: argparse.Namespace) -> int:
    from trainvitals.cli.common import load_ruleset

    for rule in sorted(load_ruleset(options).rules, key=lambda rule: rule.code):
        if options.format == "json":
            row = {
                "id": rule.id, "code": rule.code, "version": rule.version, "status": rule.status, "severity": rule.severity,
                "category": rule.category, "title": rule.title, "trainers": list(rule.trainers), "disabled": rule.disabled, "source": rule.source,
            }  # fmt: skip
            print(dumps(row).decode())
        else:
            off = f" [off: {rule.disabled}]" if rule.disabled else ""
            print(one_line(f"{rule.code:7} {rule.id:30} {rule.severity:8} {rule.category:18} {rule.title}{off}"))
    return 0


def _paths(given: list[str]) -> list[Path]:
    from trainvitals._resources import rules_folder

    builtin = (rules_folder() / "stable", rules_folder() / "experimental")
    if not given:
        return [folder for folder in builtin if any(folder.glob("*.yaml"))]
    paths = []
    for name in given:
        # A path, or the id of a built-in rule: what `rules list` prints can be typed here.
        found = [path for path in (Path(name), *(folder / f"{name}.yaml" for folder in builtin)) if path.exists()]
        if not found:
            raise UserError(f"{name}: no such file, folder or rule", "give a rule file (*.yaml), a folder of them, or an id from `trainvitals rules list`")
        paths.append(found[0])
    return paths


def _check(paths: list[Path]) -> int:
    from trainvitals._resources import rules_folder
    from trainvitals.cli.common import rule_problems
    from trainvitals.rulelang.errors import RuleError
    from trainvitals.rulelang.loader import load_rules

    given = [file for path in paths for file in ([path] if path.is_file() else _rule_files(path))]
    if not given:
        raise UserError(f"no rule in {', '.join(map(str, paths))}", "rule files end in .yaml; see trainvitals schema rule")
    # A rule may name built-in ones as its causes; a file of the same name stands for the built-in one.
    names = {file.name for file in given}
    around = [file for file in _rule_files(rules_folder()) if file.name not in names]
    try:
        ruleset = load_rules([*given, *around], enable=["experimental"])
    except RuleError as error:
        raise rule_problems(error) from None
    for problem in ruleset.warnings:
        print(problem.render())
    print(f"{len(given)} rules, no errors" if ruleset.warnings else f"{len(given)} rules, no problems")
    return 0


def _rule_files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.suffix in (".yaml", ".yml") and not file.stem.endswith(".test"))


def _test(paths: list[Path], verbose: bool) -> int:
    from trainvitals.cli.common import rule_problems
    from trainvitals.rulelang.errors import RuleError
    from trainvitals.testing import run_rule_tests

    try:
        results = [result for path in paths for result in run_rule_tests(path)]
    except RuleError as error:
        raise rule_problems(error) from None
    failed = [result for result in results if not result.passed]
    for result in results:
        if not result.passed:
            print(one_line(f"FAIL {result.rule}: {result.case} ({result.path}:{result.line})", 2000))
            for failure in result.failures:
                print(one_line(f"     {failure}", 2000))
        elif verbose:
            print(one_line(f"ok   {result.rule}: {result.case}"))
    print(f"{len(results) - len(failed)} cases passed, {len(failed)} failed")
    return 1 if failed or not results else 0


def _mutate(paths: list[Path], verbose: bool) -> int:
    from trainvitals.cli.common import rule_problems
    from trainvitals.rulelang.errors import RuleError
    from trainvitals.testing_mutants import run_mutants

    try:
        reports = [report for path in paths for report in run_mutants(path)]
    except RuleError as error:
        raise rule_problems(error) from None
    for report in reports:
        for case in report.broken:
            print(one_line(f"FAIL {report.rule}: {case} fails on the rule itself; no mutants were run"))
        for name in report.stale:
            print(one_line(f"STALE {report.rule}: the excuse for {name} excuses nothing"))
        for result in report.results:
            if result.status != "killed" or verbose:
                print(
                    one_line(
                        f"{result.status:8} {report.rule}: {result.name}: {result.what}" + (f" ({result.by})" if result.by else "")
                    )
                )
    results = [result for report in reports for result in report.results]
    counts = {status: sum(result.status == status for result in results) for status in ("killed", "survived", "excused")}
    print(f"{len(results)} mutants: {counts['killed']} killed, {counts['survived']} survived, {counts['excused']} excused")
    return 0 if results and all(report.passed for report in reports) else 1
