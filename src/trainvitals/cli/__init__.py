"""The command line. One file per command; heavy imports happen inside the command that needs them.

Data goes to stdout, words to stderr. Exit codes: 0 fine, 1 findings at or above ``--fail-on``, 2 usage, rule or input error,
3 could not tell, 5 a bug of ours, 130 interrupted.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import sys
from typing import Any, NoReturn

from trainvitals._version import __version__

COMMANDS = {
    "check": "evaluate logs or a run folder; the gate for CI",
    "run": "run a training command with the vitals attached, without a change of its code",
    "explain": "what a rule means, why it fires, what to do",
    "signals": "what was recognised in a log, or the catalogue of signals",
    "rules": "list, check, test, mutate, backtest and calibrate rules",
    "schema": "print the JSON Schema of records, events, rules or rule tests",
    "demo": "train a tiny model that goes wrong and watch it being noticed",
    "doctor": "look at this installation",
}

EXIT_USAGE, EXIT_BUG, EXIT_INTERRUPTED, EXIT_BROKEN_PIPE = 2, 5, 130, 141

_SHORT = """trainvitals: vital signs for post-training.

  trainvitals check PATH          evaluate a log or a run folder
  trainvitals run -- COMMAND      train with the vitals attached, no code
  trainvitals signals PATH        what was recognised in it
  trainvitals explain RULE        what a rule means and what to do
  trainvitals demo                a run that goes wrong, in a minute

All commands: trainvitals --help. In a script: `from trainvitals import attach; attach(trainer)`.
"""


class UserError(Exception):
    """Something that the user can put right: exit code 2.

    Attributes:
        hint: How.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class Parser(argparse.ArgumentParser):
    """argparse with errors that name the nearest right word."""

    def error(self, message: str) -> NoReturn:
        """Tell what is wrong and how to see the usage; exit code 2."""
        print(f"trainvitals: error: {message}\n  help: {self.prog} --help", file=sys.stderr)
        raise SystemExit(EXIT_USAGE)


def nearest(word: str, words: Any) -> str:
    """`` Did you mean 'x'?``, or nothing when no word is near."""
    close = difflib.get_close_matches(word, list(words), n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else ""


def _parser(wanted: str | None) -> Parser:
    parser = Parser(prog="trainvitals", description="Vital signs for post-training.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"trainvitals {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for name, text in COMMANDS.items():
        add_help = name != "demo"  # the demo has options of its own
        child = commands.add_parser(
            name, help=text, description=text[0].upper() + text[1:] + ".", allow_abbrev=False, add_help=add_help
        )
        if name == wanted:
            importlib.import_module(f"trainvitals.cli.{name}").add_arguments(child)
    return parser


def _run(argv: list[str]) -> int:
    if not argv:
        print(_SHORT, end="")
        return 0
    word = argv[0]
    if not word.startswith("-") and word not in COMMANDS:
        raise UserError(f"no command {word!r}", nearest(word, COMMANDS) or "see trainvitals --help")
    if word == "demo":
        from trainvitals.cli.demo import run_demo

        return run_demo(argv[1:])
    options = _parser(word if word in COMMANDS else None).parse_args(argv)
    if options.command is None:
        print(_SHORT, end="")
        return 0
    code: int = importlib.import_module(f"trainvitals.cli.{options.command}").run(options)
    sys.stdout.flush()
    return code


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns its exit code and raises nothing but `SystemExit` of argparse."""
    try:
        return _run(sys.argv[1:] if argv is None else argv)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else EXIT_USAGE
    except UserError as error:
        print(f"trainvitals: error: {error}", file=sys.stderr)
        if error.hint:
            print(f"  help: {error.hint}", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        print("trainvitals: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader (head, less) has gone. Python would complain again while flushing at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return EXIT_BROKEN_PIPE
    except Exception as error:
        if os.environ.get("TRAINVITALS_DEBUG") == "1":
            raise
        print(f"trainvitals: internal error: {type(error).__name__}: {error}", file=sys.stderr)
        print("  help: this is a bug of trainvitals; TRAINVITALS_DEBUG=1 shows where it happened", file=sys.stderr)
        return EXIT_BUG
