"""Recorded runs with what is known about them, and what the rules said: the ground of `rules backtest` and `rules calibrate`."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainvitals.cli import UserError, nearest
from trainvitals.items import Frame, Item, RunStart

if TYPE_CHECKING:
    import argparse

    from trainvitals.readers import Recording
    from trainvitals.rulelang.loader import RuleSet

_KEYS = ("healthy", "roots", "onset")


@dataclass(frozen=True)
class Label:
    """What is known about a run.

    Attributes:
        healthy: Nothing was wrong with it.
        roots: Rules that name what was wrong; empty when that is not known.
        onset: Step from which it was wrong; None: from the start, or not known.
    """

    healthy: bool
    roots: tuple[str, ...] = ()
    onset: int | None = None


@dataclass
class Trial:
    """One recorded run, read and labelled.

    Attributes:
        run: Its id.
        path: File or run folder it came from.
        digest: sha256 of its text.
        label: None when nothing is known about it.
    """

    run: str
    path: str
    digest: str
    recording: Recording
    items: list[Item]
    label: Label | None = None

    def again(self) -> Recording:
        """The recording, to be walked once more."""
        return replace(self.recording, items=iter(self.items))


@dataclass
class Outcome:
    """What the rules said about one run.

    Attributes:
        steps: Updates that the log spans.
        decided: Rules that reached a decision at least once: only their silence says something.
        fired: Rule to the steps at which it opened and was told.
        hidden: Rules that opened while their cause was firing, so that nobody was told.
    """

    trial: Trial
    steps: int
    decided: frozenset[str]
    fired: Mapping[str, list[int]] = field(default_factory=dict)
    hidden: frozenset[str] = frozenset()


# ---- labels -----------------------------------------------------------------------------------------------------------


def read_labels(path: str) -> dict[str, Label]:
    """Labels of a file ``{"run id or file": {"healthy": true} | {"roots": ["rule-id"], "onset": 120}}``.

    Raises:
        UserError: It cannot be read, or an entry makes no sense.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}", "labels are a small JSON file, see docs/calibrating.md") from None
    except ValueError as error:
        raise UserError(f"{path}: no JSON: {error}", "labels are a small JSON file, see docs/calibrating.md") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: labels must be an object", '{"run id or file": {"healthy": true}}')
    return {name: _label(entry, f"{path}: {name!r}") for name, entry in data.items()}


def _label(entry: Any, where: str) -> Label:
    example = 'give {"healthy": true}, or {"roots": ["rule-id"], "onset": 120} of a sick run'
    if not isinstance(entry, dict) or not entry:
        raise UserError(f"{where}: expected an object", example)
    for key in entry:
        if key not in _KEYS:
            raise UserError(f"{where}: unknown key {key!r}", nearest(key, _KEYS) or example)
    healthy, roots, onset = entry.get("healthy", False), entry.get("roots", []), entry.get("onset")
    if not isinstance(healthy, bool) or not isinstance(roots, list) or not all(isinstance(root, str) for root in roots):
        raise UserError(f"{where}: 'healthy' is true or false, 'roots' a list of rule ids", example)
    if onset is not None and (isinstance(onset, bool) or not isinstance(onset, int) or onset < 0):
        raise UserError(f"{where}: 'onset' is a step, 0 or more", example)
    if healthy and (roots or onset is not None):
        raise UserError(f"{where}: a healthy run has no roots and no onset", example)
    return Label(healthy, tuple(roots), onset)


def label_of(labels: Mapping[str, Label], run: str, path: str) -> tuple[str, Label] | None:
    """Key and label of a run: by its id, its path, its file's name, or that without the endings."""
    file = Path(path).name
    for key in (run, path, file, file.partition(".jsonl")[0]):
        if key in labels:
            return key, labels[key]
    return None


# ---- runs -------------------------------------------------------------------------------------------------------------


def gather(options: argparse.Namespace, labels: Mapping[str, Label]) -> list[Trial]:
    """All runs of ``--runs``, labelled. A log in a folder that cannot be read is left out with a word on stderr.

    Raises:
        UserError: A named file cannot be read, or nothing is there.
    """
    from trainvitals.cli.common import reading, say, unreadable
    from trainvitals.readers import InputError, logs_in, read_runs

    how = reading(options)
    trials: list[Trial] = []
    used: set[str] = set()
    progress = Progress("reading")
    for given in options.runs:
        try:
            paths = logs_in(given)
        except InputError as error:
            raise unreadable(error, given) from None
        for path in paths:
            try:
                for recording in read_runs(path, **how):
                    trial = _trial(recording, labels, path, used)
                    trials.append(trial)
                    progress(f"{len(trials)} runs")
            except InputError as error:
                if path == given:
                    raise unreadable(error, path) from None
                say(f"trainvitals: left out: {error}")
    progress.end()
    if not trials:
        raise UserError(f"no run in {', '.join(options.runs)}", "give logs, run folders, or folders of them")
    unused = [key for key in labels if key not in used]
    if unused:
        say(f"trainvitals: labels without a run here ({len(unused)}): {', '.join(sorted(unused)[:5])}{', ...' if len(unused) > 5 else ''}")
    return trials


def _trial(recording: Recording, labels: Mapping[str, Label], path: str, used: set[str]) -> Trial:
    items = list(recording.items)
    start = items[0]
    run = start.run_id if isinstance(start, RunStart) else ""
    found = label_of(labels, run, path)
    if found is not None:
        used.add(found[0])
    return Trial(run, path, recording.digest, recording, items, found[1] if found else None)


def judge(trial: Trial, ruleset: RuleSet, config: Mapping[str, Any], trainer: str | None) -> Outcome:
    """Replay one run through the rules."""
    from trainvitals.cli.replay import replay

    replayed = replay(trial.path, trial.again(), ruleset, config, trainer)
    fired: dict[str, list[int]] = {}
    seen: set[str] = set()
    hidden: set[str] = set()
    for finding in replayed.findings:
        if finding.state == "suppressed":
            hidden.add(finding.rule.id)
        elif finding.state == "firing":
            opening = f"{finding.finding_id} {finding.instance}"  # a rule that repeats itself has opened once
            if opening not in seen:
                seen.add(opening)
                fired.setdefault(finding.rule.id, []).append(finding.step or 0)
    steps = [item.step for item in trial.items if isinstance(item, Frame)]
    decided = frozenset(entry.id for entry in replayed.coverage.rules if entry.decided)
    return Outcome(trial, max(steps) - min(steps) + 1 if steps else 0, decided, fired, frozenset(hidden) - fired.keys())


def judge_all(trials: Sequence[Trial], ruleset: RuleSet, options: argparse.Namespace, doing: str = "judging") -> list[Outcome]:
    """`judge` for every run, with progress on stderr."""
    from trainvitals.cli.common import settings

    config = settings(options)
    progress = Progress(doing, len(trials))
    outcomes = []
    for trial in trials:
        outcomes.append(judge(trial, ruleset, config, options.trainer))
        progress(f"{len(outcomes)} of {len(trials)} runs")
    progress.end()
    return outcomes


# ---- counting ---------------------------------------------------------------------------------------------------------


@dataclass
class Score:
    """How one rule did over many runs. Runs in which it could not be decided count only as missed ones of its own fault.

    Attributes:
        healthy: Healthy runs in which it was decided.
        healthy_steps: Updates of these.
        false_runs: Of these, runs in which it fired.
        false_firings: Openings in these.
        own: Sick runs whose label names this rule.
        found: Of these, runs in which it fired at the onset or later.
        other: Other sick runs in which it was decided.
        after: Of these, runs in which it fired at the onset or later: a symptom, or a second fault.
        early: Sick runs in which it fired before the onset: as false as in a healthy one.
        unlabelled: Runs about which nothing is known, in which it was decided.
        fired_unlabelled: Of these, runs in which it fired.
        openings: In all runs.
        steps: Updates of all runs in which it was decided.
        hidden: Runs in which only its cause was told.
        delays: First firing at or after the onset, counted from there, in runs of its own fault with a known onset.
        first_steps: First firing of every run in which it fired.
    """

    rule: str
    healthy: int = 0
    healthy_steps: int = 0
    false_runs: int = 0
    false_firings: int = 0
    own: int = 0
    found: int = 0
    other: int = 0
    after: int = 0
    early: int = 0
    unlabelled: int = 0
    fired_unlabelled: int = 0
    openings: int = 0
    steps: int = 0
    hidden: int = 0
    delays: list[int] = field(default_factory=list)
    first_steps: list[int] = field(default_factory=list)

    @property
    def true_runs(self) -> int:
        """Runs that were sick when it fired."""
        return self.found + self.after

    @property
    def fired_runs(self) -> int:
        """Runs in which it fired."""
        return len(self.first_steps)

    def add(self, outcome: Outcome) -> None:
        """Count one run."""
        steps = outcome.fired.get(self.rule, [])
        decided = self.rule in outcome.decided or bool(steps)
        label = outcome.trial.label
        self.hidden += self.rule in outcome.hidden
        if decided:
            self.openings += len(steps)
            self.steps += outcome.steps
            self.first_steps += [min(steps)] if steps else []
        if label is None:
            self.unlabelled += decided
            self.fired_unlabelled += bool(steps)
        elif label.healthy:
            self.healthy += decided
            self.healthy_steps += outcome.steps if decided else 0
            self.false_runs += bool(steps)
            self.false_firings += len(steps)
        else:
            self._sick(label, steps, decided)

    def _sick(self, label: Label, steps: Sequence[int], decided: bool) -> None:
        onset = label.onset or 0
        true = [step for step in steps if step >= onset]
        self.early += len(true) < len(steps)
        if self.rule in label.roots:
            self.own += 1
            self.found += bool(true)
            if true and label.onset is not None:
                self.delays.append(min(true) - onset)
        else:
            self.other += decided
            self.after += bool(true)


def tally(outcomes: Iterable[Outcome], rules: Sequence[str]) -> list[Score]:
    """A score for every rule, in the order given."""
    scores = [Score(rule) for rule in rules]
    for outcome in outcomes:
        for score in scores:
            score.add(outcome)
    return scores


def digest_of(trials: Iterable[Trial]) -> str:
    """sha256 over runs, whatever files they lie in and in whatever order they are read."""
    lines = sorted(f"{trial.run} {trial.digest}\n" for trial in trials)
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogatepass")).hexdigest()


class Progress:
    """A counter on stderr that overwrites itself; silent when stderr is no terminal."""

    def __init__(self, doing: str, total: int = 0) -> None:
        self._doing = doing
        self._live = sys.stderr.isatty() and total != 1
        self._shown = 0

    def __call__(self, text: str) -> None:
        """Show where we are."""
        if self._live:
            line = f"{self._doing}: {text}"
            print(f"\r{line.ljust(self._shown)}", end="", file=sys.stderr, flush=True)
            self._shown = len(line)

    def end(self) -> None:
        """Take the counter away."""
        if self._live and self._shown:
            print(f"\r{' ' * self._shown}\r", end="", file=sys.stderr, flush=True)

