"""``trainvitals schema``: print a JSON Schema."""

from __future__ import annotations

import argparse

NAMES = ("record", "event", "rule", "rule-test")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this command."""
    parser.add_argument(
        "name", choices=NAMES, help="record: a line of a record stream; event: typed events; rule, rule-test: files"
    )


def run(options: argparse.Namespace) -> int:
    """Print it."""
    from trainvitals._resources import schemas_folder
    from trainvitals.schemas import render

    path = schemas_folder() / f"{options.name}.schema.json"
    print(path.read_text(encoding="utf-8") if path.is_file() else render(options.name), end="")
    return 0
