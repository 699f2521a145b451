"""Command line of the ward; see the package's docstring."""

from __future__ import annotations

import argparse
import sys

from tests.clinic.ward import record
from tests.clinic.ward.cases import CASES, by_id


def main(argv: list[str] | None = None) -> int:
    """Do one part; 0 when it went through."""
    parser = argparse.ArgumentParser(prog="python -m tests.clinic.ward", description="The clinic: record, score, cure, report.")
    parts = parser.add_subparsers(dest="part", required=True)
    parts.add_parser("list", help="every case with its truth")
    recording = parts.add_parser("record", help="train and record what is missing")
    recording.add_argument("cases", nargs="*", metavar="CASE", help="default: all")
    recording.add_argument("--jobs", type=int, default=2)
    recording.add_argument("--again", action="store_true", help="also what was recorded before")
    options = parser.parse_args(argv)
    if options.part == "list":
        for case in CASES:
            print(f"{case.id:36} {'sick from ' + str(case.onset) if case.sick else 'healthy':14} {', '.join(case.roots)}")
        return 0
    cases = [by_id(name) for name in options.cases] if options.cases else list(CASES)
    return int(record.record_all(cases, jobs=options.jobs, again=options.again) > 0)


if __name__ == "__main__":
    sys.exit(main())
