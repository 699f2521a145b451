"""The first two tables of the page: the goals beside what the newest round said at its first look, and how every round came out, then and today."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tests.clinic.ward.tables import table
from tests.clinic.ward.tally import Rate, Share, Tally

Column = tuple[str, Mapping[str, Any] | None, Tally]
"""Name, what was scored the first time (None where runs were looked at all along), and today's scores."""
MET = {True: "yes", False: "**no**", None: "not measured"}


def judged(newest: Column, unseen: Share | None, uplift: float | None) -> str:
    """The goals, judged by what the newest round's runs said the first time anybody looked.

    Args:
        newest: That round.
        unseen: Cured by our first suggestion, of the runs with seeds on which it was not written.
        uplift: How far that is above a random suggestion.
    """
    name, kept, today = newest
    assert kept is not None
    first = first_look(kept)

    def at_least(key: str, least: float) -> bool | None:
        return None if first[key].value is None else first[key].value >= least

    def at_most(key: str, most: float) -> bool:
        return (first[key].value or 0.0) <= most

    rows = [
        ("detected", "at least 95 %", first["detected"], MET[at_least("detected", 0.95)], today.detected),
        ("false alarms per 1,000 healthy updates", "at most 0.2", first["false"], MET[at_most("false", 0.2)], today.false_rate),
        ("healthy runs with any warning", "at most 5 %", first["warned"], MET[at_most("warned", 0.05)], today.false_runs),
        ("median delay, updates", "at most 10", first["delay"], MET[None if first["delay"] is None else first["delay"] <= 10], today.delay),
        ("root cause first", "at least 85 %", first["first"], MET[at_least("first", 0.85)], today.first),
        ("verdict right at the end", "at least 90 %", first["verdict"], MET[at_least("verdict", 0.9)], today.verdict),
        ("cured by the first suggestion, of the curable, unseen seeds", "at least 70 %", unseen or "", MET[None if unseen is None or unseen.value is None else unseen.value >= 0.7], ""),
        ("... above the random arm", "at least 30 points", _points(uplift), MET[None if uplift is None else uplift >= 0.3], ""),
    ]
    return "## Goals\n\n" + table(("score", "goal", f"{name}, as first scored", "met", f"{name}, today"), rows)


def round_by_round(columns: Sequence[Column]) -> str:
    """Every round twice: what it said the first time, and what the rules of today say of the same recordings."""
    head = (
        "runs", "", "detected", "root cause first", "among the first three", "right category first", "false alarms per 1,000", "healthy runs warned", "median delay", "verdict right", "... of sick runs",
        "... of healthy runs", "incidents per detected sick run",
    )  # fmt: skip
    rows: list[Sequence[Any]] = []
    for name, kept, now in columns:
        if kept is not None:
            then = first_look(kept)
            rows.append((f"**{name}**", "first", then["detected"], then["first"], "", "", then["false"], then["warned"], then["delay"], then["verdict"], "", "", ""))
        lines = f"{now.lines:.1f}" if now.lines else now.lines
        rows.append(("" if kept else f"**{name}**", "today", now.detected, now.first, now.three, now.category, now.false_rate, now.false_runs, now.delay, now.verdict, now.sick_verdict, now.healthy_verdict, lines))
    return "### Round by round\n\n" + table(head, rows)


def first_look(scored: Mapping[str, Any]) -> dict[str, Any]:
    """What `why` keeps, as shares and a rate."""
    shares: dict[str, Any] = {name: Share(*scored[name]) for name in ("detected", "first", "verdict", "warned")}
    return {**shares, "false": Rate(*scored["false"]), "delay": scored["delay"]}


def _points(uplift: float | None) -> str:
    return "" if uplift is None else f"{100 * uplift:+.0f} points"
