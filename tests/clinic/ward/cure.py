"""Does the advice help? At the alarm a run forks: carry on, our first suggestion, a random suggestion, the known right change.

A fault that no parameter repairs has no right change. Its run forks too where a parameter is suggested: a suggestion that never helps there either is noise
to whoever follows it.

The sick training runs for real until the first alarm, with checkpoints. Then four trainings go on from the same place, each for as
many updates as a whole healthy run: from the newest checkpoint before the last healthy step that the verdict names, or from the
beginning when there was no healthy moment. An arm recovers when the goal of its last updates is within 5 % of the healthy twins'
(pathologies.md 7.2, "cure rate"). That the right change still recovers tells that the alarm came before the damage was done.
"""

from __future__ import annotations

import io
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import Any

from tests.clinic.ward.case import Case
from tests.clinic.ward.record import Records, first_recorded, is_at_home
from tests.clinic.ward.score import OF_THE_MACHINE

from trainvitals.advice import PARAMETERS
from trainvitals.findings import Action
from trainvitals.rulelang.loader import load_rules

RESULT = Path(__file__).parent / "results" / "cure.json"
SAVE_EVERY = 10
LAST = 10
"""Updates over which the goal is averaged at the end."""
NEAR = 0.05
WAITS = (0, 20, 50)
"""Updates after the alarm at which the right change is made, for the lead."""
ARMS = ("carry on", "suggested", "random", "right")
FACTORS = (0.1, 0.3, 0.5, 2.0, 3.0, 10.0)
"""By which the random arm changes a number: the sizes of change that rules suggest."""


def recovered(goal: str, reached: float | None, healthy: float, spread: float = 0.0) -> bool:
    """Whether an arm ends as the healthy twins do: within 5 %, or two standard deviations of their ends where those differ more.

    A leading minus in `goal` means that less is better.
    """
    if reached is None:
        return False
    room = max(NEAR * abs(healthy), 2 * spread)
    return reached <= healthy + room if goal.startswith("-") else reached >= healthy - room


def goal_of(records: Records, goal: str) -> dict[int, float | None]:
    """The goal's series of one run, evaluations included; None for a value that is not a number."""
    name = goal.lstrip("-")
    values: dict[int, float | None] = {}
    for record in records:
        value = record.get("values", {}).get(name) if record["kind"] == "signal" else None
        if value is not None:
            values[record["step"]] = None if isinstance(value, Mapping) else float(value)
    return values


def end_of(values: Mapping[int, float | None], last: int = LAST) -> float | None:
    """Mean of the newest values, of one where they are evaluations; None when there is none, or one of them is not a number."""
    newest = [values[step] for step in sorted(values)[-last:]]
    numbers = [value for value in newest if value is not None]
    return statistics.fmean(numbers) if numbers and len(numbers) == len(newest) else None


def reached(goal: str, records: Records) -> float | None:
    """A goal over the last updates of one run."""
    return end_of(goal_of(records, goal), last_of(goal))


def last_of(goal: str) -> int:
    """How many of the newest values make the end: evaluations are few, and each is a mean already."""
    return 1 if goal.lstrip("-").startswith("eval.") else LAST


def healthy_end(case: Case, goal: str) -> tuple[float, float]:
    """A goal at the end of the healthy twins: median and standard deviation over their seeds."""
    ends = [reached(goal, records) for records in first_recorded(case.twin).values()]
    numbers = [end for end in ends if end is not None]
    return statistics.median(numbers), statistics.stdev(numbers) if len(numbers) > 1 else 0.0


def way_back(case: Case, entry: Mapping[str, Any], arm: str) -> float | None:
    """How much of the way from where carrying on ends to where the healthy twins do an arm came, 1 for all of it.

    0 where it lost more of what was to be learned than two standard deviations of the twins: standing still is no way back. None without a run that carried on, or
    where that one ended well.
    """
    there, carried = entry["arms"].get(arm), entry["arms"].get("carry on")
    if there is None or carried is None or carried["reached"] is None or carried["recovered"]:
        return None
    if there["reached"] is None:
        return 0.0
    if case.learned and "learned" in there and "learned" in carried:
        sign = -1 if case.learned.startswith("-") else 1
        lost = None if there["learned"] is None or carried["learned"] is None else sign * (carried["learned"] - there["learned"])
        if lost is not None and lost > 2 * healthy_end(case, case.learned)[1]:
            return 0.0
    whole = entry["healthy"] - carried["reached"]
    return (there["reached"] - carried["reached"]) / whole if whole else None


def first_change(actions: Sequence[Action]) -> dict[str, Any]:
    """Parameters that our first typed suggestion sets, with what must go along; empty when there is only advice in words."""
    for action in actions:
        if action.type == "set_param" and action.parameter:
            return {action.parameter: action.to, **{more.parameter: more.to for more in action.also}}
    return {}


def random_changes(config: Mapping[str, Any], trainer: str, random: Random) -> Iterable[dict[str, Any]]:
    """Changes of numbers that our rules for this trainer ever suggest, drawn without a look at the run, in random order."""
    names = {part.set for rule in load_rules().rules if not rule.trainers or trainer in rule.trainers for part in rule.suggest if part.set}
    known = [name for name in sorted(names) if isinstance(config.get(name), int | float) and not isinstance(config[name], bool)]
    for _ in range(20):
        name = random.choice(known)
        what = PARAMETERS.get(name)
        value = (config[name] or 0.01) * random.choice(FACTORS)
        if what is not None:
            value = min(max(value, what.low or value), what.high or value)
        value = max(1, round(value)) if isinstance(config[name], int) else value
        if value != config[name]:
            yield {name: value}


class _Watcher:
    """Trains one run under observation; stops at the first alarm when asked to."""

    def __init__(self, case: Case, seed: int, folder: Path, changes: Mapping[str, Any], *, stop_at_alarm: bool, waits: Sequence[int] = ()) -> None:
        import torch
        import transformers

        from trainvitals.integrations.trl import attach

        torch.set_num_threads(1)
        transformers.logging.set_verbosity_error()
        torch.manual_seed(seed)
        saving = {"save_strategy": "steps", "save_steps": SAVE_EVERY} if stop_at_alarm and not case.needs_trl else {}
        self.case, self.folder, self.rate, self.waits = case, folder, changes.get("learning_rate"), waits or (0,)
        self.trainer = case.build(str(folder), seed, **{**saving, **changes})
        self.trainer.remove_callback(transformers.PrinterCallback)
        self.callback = attach(self.trainer, console=io.StringIO(), fail_soft=False)
        self.alarm: Any = None
        self.seen = 0
        if stop_at_alarm:
            self.trainer.add_callback(_stopper(self))
        if self.rate is not None and not case.needs_trl:
            self.trainer.add_callback(_new_rate(self.rate, case.onset))

    def look(self) -> bool:
        """Whether there is an alarm by now. The first is kept."""
        if self.alarm is not None:
            return True
        for finding in self.callback.monitor.findings:
            loud = finding.state == "firing" and finding.severity != "info" and finding.rule.id not in OF_THE_MACHINE
            if loud and (finding.step or 0) > self.case.onset:
                self.alarm = finding
                return True
        return False

    def train(self, resume: Path | None = None) -> None:
        """Train to the end, the alarm, or death by the fault."""
        try:
            self.trainer.train(**({"resume_from_checkpoint": str(resume)} if resume else {}))
        except (RuntimeError, ValueError, FloatingPointError) as error:
            print(f"  {self.case.id}: training died: {str(error).splitlines()[0][:100]}", file=sys.stderr)

    def ends(self) -> dict[str, float | None]:
        """Each goal over the last updates."""
        stream = self.folder / "vitals" / "rank0.jsonl"
        if not stream.exists():  # a change that left nothing to train on
            return dict.fromkeys(goals(self.case))
        records = [json.loads(line) for line in stream.read_text().splitlines()]
        return {goal: reached(goal, records) for goal in goals(self.case)}


def _stopper(watcher: _Watcher) -> Any:
    from transformers import TrainerCallback

    class Stop(TrainerCallback):
        """Ends the training at the first alarm, or so many updates later; with `waits` a checkpoint is made at each of them."""

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if not watcher.look():
                return
            watcher.seen = watcher.seen or state.global_step  # some findings are of the update before
            late = state.global_step - watcher.seen
            control.should_save = control.should_save or (len(watcher.waits) > 1 and late in watcher.waits)
            control.should_training_stop = control.should_training_stop or late >= max(watcher.waits)

    return Stop()


def _new_rate(rate: float, onset: int) -> Any:
    from transformers import TrainerCallback

    class Rate(TrainerCallback):
        """A checkpoint brings its learning rate along, and a planted fault may change it: the rate that was set for this arm must win, as it does
        where somebody sets it (advice.LIVE says how).
        """

        def on_step_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, lr_scheduler: Any = None, **kwargs: Any) -> None:
            if self.begun and state.global_step != onset:
                return
            self.begun = True
            scheduler = getattr(lr_scheduler, "scheduler", lr_scheduler)
            for group, old in zip(optimizer.param_groups, scheduler.base_lrs, strict=True):
                group["lr"] = group["lr"] * rate / old if old else rate
                group["initial_lr"] = rate
            scheduler.base_lrs = [rate for _ in scheduler.base_lrs]

        begun = False

    return Rate()


def goals(case: Case) -> tuple[str, ...]:
    """What an arm must reach to have recovered."""
    return (case.goal, case.learned) if case.learned else (case.goal,)


def fork(case: Case, seed: int, kept: Mapping[str, Any] | None = None, arms: Sequence[str] = ARMS) -> dict[str, Any]:
    """One run until its alarm and its four arms; what came of each.

    Args:
        case: What to train.
        seed: Its seed; the twins give the standard, whatever their seeds are.
        kept: An earlier result of the same run: an arm that makes the same change at the same place is not trained again.
        arms: Which of `ARMS`.
    """
    healthy = {goal: healthy_end(case, goal) for goal in goals(case)}
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        sick = _Watcher(case, seed, root / "sick", {}, stop_at_alarm=True)
        sick.train()
        result: dict[str, Any] = {"case": case.id, "seed": seed, "healthy": healthy[case.goal][0], "spread": healthy[case.goal][1], "alarm": None, "arms": {}}
        if sick.alarm is None:
            return result
        last = sick.callback.monitor.verdict.last_healthy_step or 0
        saved = sorted(int(path.name.rsplit("-", 1)[1]) for path in (root / "sick").glob("checkpoint-*"))
        resume_at = max((step for step in saved if step <= last), default=0)
        resume = root / "sick" / f"checkpoint-{resume_at}" if resume_at else None
        config = sick.callback.monitor.run.config
        ours = first_change(sick.alarm.actions)
        result |= {"alarm": sick.alarm.step, "rule": sick.alarm.rule.id, "from": resume_at, "suggested": ours, "right": dict(case.cure or {})}
        if not case.cure and not ours:  # words alone: nothing to compare
            return result
        same = kept is not None and kept["alarm"] is not None and kept["from"] == resume_at
        trained = list(kept["arms"].values()) if kept is not None and same else []
        draws = iter(random_changes(config, case.trainer, Random(f"{case.id}-{seed}")))
        for arm in arms:
            changes = {"suggested": ours, "right": dict(case.cure or {}), "carry on": {}}.get(arm)
            if arm == "right" and not case.cure:
                continue
            if arm == "suggested" and not ours:
                result["arms"][arm] = {"reached": None, "recovered": False, "note": "no parameter suggested"}
                continue
            result["arms"][arm] = _arm(case, seed, root / arm.replace(" ", "-"), changes, draws, resume, resume_at, healthy, trained)
            trained.append(result["arms"][arm])
    return result


def _arm(
    case: Case, seed: int, folder: Path, changes: dict[str, Any] | None, draws: Any, resume: Path | None, start: int,
    healthy: Mapping[str, tuple[float, float]], trained: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:  # fmt: skip
    """One arm. A random change that the trainer refuses (a batch that does not divide) is drawn again; what was trained already is not trained again."""
    drawn = changes is None
    while True:
        chosen = next(draws, {}) if drawn else dict(changes or {})
        for before in trained:
            judged = ("learned" in before) == bool(case.learned) or not before["recovered"]
            if judged and before.get("changes") == chosen:
                return dict(before)
        length = {"max_steps": -1 if "num_train_epochs" in chosen else start + case.steps}
        begin = None if chosen.get("max_steps", start + 1) <= start or "num_train_epochs" in chosen else resume  # a shorter run than up to here is a run from the beginning
        try:
            arm = _Watcher(case, seed, folder, {**length, **chosen}, stop_at_alarm=False)
        except (ValueError, TypeError):
            if not drawn or not chosen:
                raise
            continue
        arm.train(begin)
        ends = arm.ends()
        well = all(recovered(goal, value, *healthy[goal]) for goal, value in ends.items())
        found = {"changes": chosen, "reached": ends[case.goal], "recovered": well}
        return {**found, "learned": ends[case.learned]} if case.learned else found


def lead(case: Case, seed: int, waits: Sequence[int] = WAITS) -> dict[str, Any]:
    """The right change so many updates after the alarm, from the weights of that moment and not from an earlier checkpoint: does it still recover?"""
    healthy = {goal: healthy_end(case, goal) for goal in goals(case)}
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        sick = _Watcher(case, seed, root / "sick", {}, stop_at_alarm=True, waits=waits)
        sick.train()
        result: dict[str, Any] = {"case": case.id, "seed": seed, "alarm": None if sick.alarm is None else sick.alarm.step, "recovered": {}}
        for wait in waits:
            place = None if sick.alarm is None else root / "sick" / f"checkpoint-{sick.seen + wait}"
            if place is not None and place.exists():  # none: the run ended, or died, before
                arm = _arm(case, seed, root / f"after-{wait}", dict(case.cure or {}), None, place, sick.seen + wait, healthy)
                result["recovered"][str(wait)] = arm["recovered"]
    return result


def _job(part: str, case_id: str, seed: int, kept: Mapping[str, Any] | None, arms: Sequence[str]) -> dict[str, Any]:
    import warnings

    warnings.simplefilter("ignore")
    from tests.clinic.ward.cases import by_id

    return lead(by_id(case_id), seed) if part == "lead" else fork(by_id(case_id), seed, kept, arms)


def read(path: Path = RESULT) -> dict[str, list[dict[str, Any]]]:
    """Kept results: ``forks`` and ``lead``."""
    return json.loads(path.read_text()) if path.exists() else {"forks": [], "lead": []}


def cure_all(
    cases: Iterable[Case], seeds: Sequence[int], *, jobs: int, part: str = "forks", again: bool = False, arms: Sequence[str] = ARMS, result: Path = RESULT
) -> int:
    """Fork every case that has no result yet (all with `again`); results are kept after each. Returns how many failed."""
    kept = read(result)
    known = {(entry["case"], entry["seed"]): entry for entry in kept[part]}
    missing = [(case.id, seed) for case in cases if (case.cure or part == "forks") and is_at_home(case) for seed in seeds if again or (case.id, seed) not in known]
    failed, begin = 0, time.monotonic()
    result.parent.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        waiting = {pool.submit(_job, part, *one, known.get(one), arms): one for one in missing}
        for count, future in enumerate(as_completed(waiting), 1):
            try:
                entry = future.result()
            except Exception as error:  # one broken case must not lose the others' results
                failed += 1
                print(f"[{count}/{len(missing)}] {waiting[future]} FAILED: {error!r}", file=sys.stderr)
                continue
            known[entry["case"], entry["seed"]] = entry
            kept[part] = [known[key] for key in sorted(known)]
            result.write_text(json.dumps(kept, indent=1) + "\n")
            print(f"[{count}/{len(missing)}, {time.monotonic() - begin:.0f} s] {entry['case']} seed {entry['seed']}: {_said(entry)}", file=sys.stderr)
    return failed


def _said(entry: Mapping[str, Any]) -> str:
    if "arms" not in entry:
        return ", ".join(f"after {wait}: {'recovers' if well else 'no'}" for wait, well in entry["recovered"].items()) or "no alarm"
    arms = ", ".join(f"{arm}: {'recovers' if what['recovered'] else 'no'}" for arm, what in entry["arms"].items())
    return f"{entry['rule']} {entry['suggested']}: {arms}" if arms else "no alarm" if entry["alarm"] is None else f"{entry['rule']}: words alone"
