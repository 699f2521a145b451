"""``trainvitals signals``: what was recognised in a log. The first thing to run when nothing fires."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from trainvitals.sinks.encode import dumps, one_line

if TYPE_CHECKING:
    from trainvitals.cli.replay import Replayed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this command."""
    from trainvitals.cli.common import add_log_arguments, add_rule_arguments

    parser.add_argument("path", nargs="?", metavar="PATH", help="log file or run folder; without it the catalogue is listed")
    parser.add_argument("-f", "--format", choices=("text", "json"), default="text")
    add_rule_arguments(parser)
    add_log_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """List them; 3 when nothing was recognised."""
    if options.path is None:
        _catalogue(options.format)
        return 0
    from trainvitals.cli.common import load_ruleset, read_log, settings
    from trainvitals.cli.replay import replay

    recording = read_log(options.path, options)
    replayed = replay(options.path, recording, load_ruleset(options), settings(options), options.trainer)
    if options.format == "json":
        print(dumps(_document(replayed)).decode())
    else:
        for line in _text(replayed):
            print(line)
    return 0 if replayed.points else 3


def _catalogue(form: str) -> None:
    from trainvitals.events import CATALOGUE

    for spec in CATALOGUE.values():
        if form == "json":
            row = {
                "signal": spec.name, "unit": spec.unit, "low": spec.low, "high": spec.high, "emitters": list(spec.emitters),
                "cadence": spec.cadence, "label": spec.label, "per": spec.per, "meaning": spec.meaning,
            }  # fmt: skip
            print(dumps(row).decode())
        else:
            print(f"{spec.name:38} {spec.unit:9} {spec.per:9} {spec.meaning}")


def _raw_names(replayed: Replayed) -> dict[str, str]:
    found = {signal: raw for raw, signal in reversed(list(replayed.recording.mapper.applied.items()))}
    if "reward.std" in found and "reward.std" not in replayed.points:  # the numbers told that this log has the name's older meaning
        found.setdefault("reward.group_std_mean", found.pop("reward.std"))
    return found


def feeders(signal: str, framework: str) -> list[str]:
    """Raw names that would give `signal` under a framework, most specific table first."""
    from trainvitals.names import FRAMEWORKS
    from trainvitals.names.transformers import TABLE

    table = (*FRAMEWORKS.get(framework, FRAMEWORKS["unknown"]), *TABLE)
    return list(dict.fromkeys(entry.raw for entry in table if entry.signal == signal))


def _starved(replayed: Replayed) -> list[dict[str, Any]]:
    """Rules without their data, with the raw names that would feed them."""
    rows = []
    for entry in replayed.coverage.rules:
        if entry.status in ("blind", "inactive", "degraded"):
            wanted = {signal: feeders(signal, replayed.start.framework) for signal in entry.missing}
            rows.append({"rule": entry.id, "status": entry.status, "reason": entry.reason, "missing": wanted})
    return rows


def _reading(replayed: Replayed, signal: str, raw: str | None) -> dict[str, Any]:
    """How the numbers behind a signal are read: the row of the name table, or the catalogue where no raw name is behind it."""
    from trainvitals.events import CATALOGUE, split_label

    row = replayed.recording.mapper.entry(raw) if raw is not None else None
    if row is not None and row.signal == split_label(signal)[0]:
        factor = {"scale": row.scale} if row.scale != 1.0 else {}
        versions = {key: value for key, value in (("since", row.since), ("until", row.until)) if value}
        return {"read_as": row.reading(), "unit": row.unit, "per": row.per, "sign": row.sign, **factor, **versions, "note": row.note}
    spec = CATALOGUE.get(split_label(signal)[0])
    return {"read_as": "", "unit": spec.unit if spec else "", "per": spec.per if spec else "", "sign": 1, "note": ""}


def _document(replayed: Replayed) -> dict[str, Any]:
    raws = _raw_names(replayed)
    found = [
        {"signal": key, "raw": raws.get(key), "points": count, "first_step": first, "last_step": last, **_reading(replayed, key, raws.get(key))}
        for key, (count, first, last) in replayed.points.items()
    ]
    return {
        "path": replayed.path,
        "format": replayed.recording.format,
        "trainer": replayed.start.trainer,
        "framework": replayed.start.framework,
        "notes": list(replayed.recording.notes),
        "signals": found,
        "unknown": sorted(replayed.recording.mapper.unknown),
        "starved": _starved(replayed),
    }


def _text(replayed: Replayed) -> Iterator[str]:
    document = _document(replayed)
    yield one_line(f"{replayed.path}: {document['trainer']} ({document['framework']}), read as {document['format']}")
    for note in document["notes"]:
        yield f"  note: {one_line(note)}"
    rows = [("signal", "raw name", "points", "first", "last", "read as")]
    for row in document["signals"]:
        words = "; ".join(part for part in (row["read_as"] or row["unit"], row["note"]) if part)
        rows.append((row["signal"], row["raw"] or "", *(str(row[key]) for key in ("points", "first_step", "last_step")), words))
    widths = [max(len(one_line(row[column], 60)) for row in rows) for column in range(5)]
    for row in rows:
        cells = [one_line(cell, 60) for cell in row[:5]]
        yield "  ".join(
            [
                *(cell.ljust(width) for cell, width in zip(cells[:2], widths[:2], strict=True)),
                *(cell.rjust(width) for cell, width in zip(cells[2:], widths[2:], strict=True)),
                one_line(row[5], 160),
            ]
        ).rstrip()
    if document["unknown"]:
        yield one_line(f"unknown names: {', '.join(document['unknown'])}", 2000)
        yield "  (feed one to a signal with --map RAW=SIGNAL)"
    for row in document["starved"]:
        wants = [f"{signal} <- {' | '.join(raws[:3]) if raws else 'the callback'}" for signal, raws in row["missing"].items()]
        yield one_line(f"{row['status']}: {row['rule']}: {'; '.join(wants) if wants else row['reason'] or 'no data'}", 1000)
