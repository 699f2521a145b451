"""The page docs/matrix.md: trainer x signal x version, from what the suite saw in real training (tests/suite/seen/*.json)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

Seen = dict[str, dict[str, frozenset[str]]]
"""Trainer -> version of TRL -> signals."""

_HEAD = """# What each trainer emits

Trainer x signal x version, from what the tests saw in real training, not from what was planned: `tests/suite` trains each trainer for a few steps
under `attach` and keeps the signals that came in `tests/suite/seen/<trainer>-<TRL version>.json`; a signal that goes missing or
appears fails the tests. A trainer without a column for a version does not exist in it, or was not trained there. What a signal means: [signals](signals.md).

"""


def read(folder: Path) -> Seen:
    """All records of one folder.

    Raises:
        ValueError: If a record holds no signal: an empty row would claim a support that nobody saw.
    """
    seen: Seen = {}
    for path in sorted(folder.glob("*.json")):
        record = json.loads(path.read_text())
        if not record["signals"]:
            msg = f"{path.name} holds no signal"
            raise ValueError(msg)
        seen.setdefault(record["trainer"], {})[record["trl"]] = frozenset(record["signals"])
    return seen


def page(folder: Path, notice: str) -> str:
    """The whole page."""
    seen = read(folder)
    versions = sorted({version for runs in seen.values() for version in runs}, key=_order)
    parts = [notice, _HEAD, _overview(seen, versions), _by_signal(seen, versions)]
    parts += [_trainer(name, runs) for name, runs in sorted(seen.items())]
    return "".join(parts)


def _order(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def _overview(seen: Seen, versions: list[str]) -> str:
    lines = ["## Trainers\n\n", "| trainer | " + " | ".join(f"TRL {version}" for version in versions) + " |\n"]
    lines.append("| --- |" + " --- |" * len(versions) + "\n")
    for name, runs in sorted(seen.items()):
        cells = [f"{len(runs[version])} signals" if version in runs else "" for version in versions]
        lines.append(f"| [{name}](#{name.replace(' ', '-')}) | " + " | ".join(cells) + " |\n")
    return "".join(lines) + "\n"


def _by_signal(seen: Seen, versions: list[str]) -> str:
    """Each signal with the trainers that emit it; versions are named where it is not all that were trained."""
    signals = sorted({signal for runs in seen.values() for found in runs.values() for signal in found})
    lines = ["## Signals\n\n", "| signal | emitted by |\n", "| --- | --- |\n"]
    everybody = len(seen)
    for signal in signals:
        emitters = {name: [v for v in versions if signal in runs.get(v, ())] for name, runs in sorted(seen.items())}
        emitters = {name: found for name, found in emitters.items() if found}
        whole = all(len(found) == len(seen[name]) for name, found in emitters.items())
        who = "every trainer" if len(emitters) == everybody and whole else ", ".join(_named(name, found, seen[name]) for name, found in emitters.items())
        lines.append(f"| `{signal}` | {who} |\n")
    return "".join(lines) + "\n"


def _named(name: str, found: list[str], runs: Mapping[str, frozenset[str]]) -> str:
    return name if len(found) == len(runs) else f"{name} ({', '.join(found)})"


def _trainer(name: str, runs: Mapping[str, frozenset[str]]) -> str:
    versions = sorted(runs, key=_order)
    lines = [f"## {name}\n\n", "| signal | " + " | ".join(f"TRL {version}" for version in versions) + " |\n"]
    lines.append("| --- |" + " --- |" * len(versions) + "\n")
    for signal in sorted(frozenset[str]().union(*runs.values())):
        lines.append(f"| `{signal}` | " + " | ".join("yes" if signal in runs[version] else "no" for version in versions) + " |\n")
    return "".join(lines) + "\n"
