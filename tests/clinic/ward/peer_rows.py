"""Recordings back to what `Trainer.log` handed to callbacks: the inverse of `trainvitals.names.trl`, one row per update.

Another tool must see what its users would see, no more and no less:

* Signals that this trainer logs under no name (ours, from hooks) are left out.
* transformers replaces a loss that is not finite by the running mean of the window (`logging_nan_inf_filter`). At one row per
  update the window is empty, so it logs 0.0.
* GRPO and its relatives drop NaN before they average, and log None when nothing is left.
* The closing summary row of transformers comes last when the run completed.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tests.clinic.ward.record import FOLDER, load, run_id

from trainvitals.events import split_label
from trainvitals.items import Boundary, Frame, Item, RunEnd, RunStart
from trainvitals.names import Mapper
from trainvitals.names.transformers import TABLE as BASE
from trainvitals.names.trl import PAIRS, TABLE
from trainvitals.readers import own

Value = float | None
_SAMPLERS = ("grpo", "rloo", "a2po", "distillation", "sdft", "sdpo")
LOGGED_BY: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("step_time", ("grpo", "rloo", "a2po", "distillation")),
    ("perf/", ("async_grpo", "async_distillation")),
    ("sample/dropped", ()),
    ("completions/", _SAMPLERS),
    ("jsd", ("async_distillation",)),
    ("advantages/", ()),
    ("implicit_reward", ()),
)
"""Names (or beginnings of names) that only these trainers log. Our hooks measure the same signal elsewhere too, and the tables
know DPPO's `advantages/*`, so a signal alone does not tell. Found by comparing with the log of every trainer (TRL 1.16)."""
NOT_LOGGED_BY = {"entropy": ("gkd", "gold", "sdft", "sdpo"), "rewards/<component>/std": ("async_grpo", "sdpo")}
"""Names that every trainer but these logs."""
PREFERRED = {
    ("async_grpo", "reward.component_mean"): "rewards/<component>",
    ("sdpo", "reward.component_mean"): "self_distillation/rewards/<component>",
    ("sdpo", "reward.mean"): "self_distillation/reward_mean",
    ("ppo", "optim.learning_rate"): "lr",
    ("grpo", "policy.clip_fraction"): "clip_ratio/region_mean",
}
"""Where the tables list several current names of one signal and the first is not this trainer's."""
DROPS_NAN = frozenset({"grpo", "rloo", "a2po", "async_grpo", "distillation", "sdpo"})
"""Trainers that log None for a metric without a finite value (TRL 1.16); the others log NaN."""
OWN_LOOP = frozenset({"ppo"})
"""Trainers whose loop is their own: the loss passes no filter, and no gradient norm is logged."""
_BASE_NAMES = frozenset({"loss", "grad_norm", "learning_rate", "epoch"})
_EVAL = {"eval.loss": "eval_loss", "eval.reward": "eval_reward", "eval.score": "eval_score"}


@dataclass(frozen=True, slots=True)
class Row:
    """One call of ``on_log``, or one update that logged nothing.

    Attributes:
        step: Optimizer updates completed.
        kind: ``train``, ``eval``, ``summary`` (the closing row), or ``step`` (an update without a row).
        logs: Raw names to numbers, as the trainer logs them; None is TRL's "nothing left after dropping NaN".
        seconds: Wall time of the update, as recorded; None when it is not known, or not the update's first row.
        update_ratio: Norm of the update over norm of the weights, where recorded. TRL logs none: for fixed thresholds only.
    """

    step: int
    kind: Literal["train", "eval", "summary", "step"]
    logs: dict[str, Value] = field(default_factory=dict)
    seconds: float | None = None
    update_ratio: float | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """One recorded run, translated.

    Attributes:
        name: ``<case>-s<seed>``.
        case: Name of the recording.
        seed: Seed of the run.
        trainer: ``grpo``, ``sft``, ...
        config: Scalars of the training arguments.
        total_steps: Planned updates.
        status: How it ended.
        rows: What callbacks saw, in order.
    """

    name: str
    case: str
    seed: int
    trainer: str
    config: dict[str, Any]
    total_steps: int
    status: str
    rows: tuple[Row, ...]


def read_runs(case_id: str, folder: Path = FOLDER) -> list[Run]:
    """All recorded runs of one case, by seed; none when it was never recorded.

    Raises:
        InputError: The file is no recording of ours.
    """
    runs = []
    for seed, records in sorted(load(case_id, folder).items()):
        name = run_id(case_id, seed)
        recording = own.read("".join(json.dumps(record) + "\n" for record in records), name, Mapper())
        runs.append(translate(recording.items, name=name, case=case_id, seed=seed))
    return runs


def translate(items: Iterable[Item], *, name: str, case: str, seed: int) -> Run:
    """Rows of one recorded run."""
    rows: list[Row] = []
    start: RunStart | None = None
    status, closed = "killed", -1
    epoch: float | None = None
    for item in items:
        if isinstance(item, RunStart):
            start = start or item
        elif isinstance(item, RunEnd):
            status = item.status
        elif isinstance(item, Boundary) and item.what == "resume":
            closed = -1  # a resumed run counts its steps again
        elif isinstance(item, Frame) and start is not None:
            epoch = epoch if item.epoch is None else item.epoch
            if item.phase == "eval":
                logs = _eval_logs(item, start.trainer, epoch)
                rows.extend([Row(item.step, "eval", logs)] if logs else [])
                continue
            first = item.step != closed
            logs = _train_logs(item, start)
            closed = item.step if item.closes else closed
            if logs or (first and item.closes):
                seconds = item.values.get("time.step_seconds") if first else None
                rows.append(Row(item.step, "train" if logs else "step", logs, seconds, item.values.get("optim.update_ratio")))
    if start is None:
        msg = f"{name}: no run_start"
        raise ValueError(msg)
    if status == "completed" and rows:
        rows.append(_summary(rows))
    total = start.total_steps or max((row.step for row in rows), default=0)
    return Run(name, case, seed, start.trainer, dict(start.config), total, status, tuple(rows))


@functools.cache
def raw_names(trainer: str) -> dict[str, tuple[str, float]]:
    """Signal to the raw name (with ``<label>`` for labelled signals) that this trainer logs today, and the factor to it."""
    table = [entry for entry in (*TABLE, *BASE) if entry.signal and not entry.until and entry.scope != "eval"]
    chosen: dict[str, tuple[str, float]] = {}
    mine = [entry for entry in table if trainer in entry.trainers]
    for entry in (*mine, *(entry for entry in table if not entry.trainers)):
        if not _logs(trainer, entry.raw):
            continue
        wanted = PREFERRED.get((trainer, entry.signal), entry.raw)
        if wanted == entry.raw:
            chosen.setdefault(entry.signal, (entry.raw, 1.0 / (entry.sign * entry.scale)))
    return chosen


def _logs(trainer: str, raw: str) -> bool:
    if trainer in NOT_LOGGED_BY.get(raw, ()):
        return False
    return all(trainer in trainers for start, trainers in LOGGED_BY if raw.startswith(start))


def _train_logs(frame: Frame, start: RunStart) -> dict[str, Value]:
    """One training row, at one row per update whatever the run's own ``logging_steps`` was."""
    values, trainer = dict(frame.values), start.trainer
    if start.config.get("logging_steps", 1) != 1:
        # The logged loss is the mean of a window and comes with every n-th update only; these two are of every update.
        values.pop("optim.loss", None), values.pop("optim.grad_norm", None)
    for logged, raw in (("optim.loss", "optim.loss_raw"), ("optim.grad_norm", "optim.grad_norm_step")):
        if logged not in values and raw in values and frame.closes and trainer not in OWN_LOOP:
            values[logged] = values[raw]
    for signal, header in (("run.epoch", frame.epoch), ("run.tokens_seen", frame.tokens)):
        if header is not None and "optim.loss" in values:
            values.setdefault(signal, header)
    names = raw_names(trainer)
    logs: dict[str, Value] = {}
    for key, value in values.items():
        signal, _, label = split_label(key)
        found = names.get(signal)
        if found is None:
            continue
        raw, factor = found
        if "<" in raw:
            raw = f"{raw.partition('<')[0]}{label}{raw.partition('>')[2]}"
        logs[raw] = _as_logged(raw, value * factor, trainer)
    if "completions/mean_length" in logs and trainer in ("grpo", "rloo"):
        logs.setdefault("completions/mean_terminated_length", 0.0)  # what TRL writes when nothing terminated
    if set(logs) <= {"learning_rate", "lr", "epoch", "num_tokens", "step_time", "perf/step_s"}:
        return {}  # known of every update, logged or not: no row
    return logs


def _as_logged(raw: str, value: float, trainer: str) -> Value:
    if math.isfinite(value):
        return value
    if raw == "loss" and trainer not in OWN_LOOP:
        return 0.0
    return None if math.isnan(value) and trainer in DROPS_NAN and raw not in _BASE_NAMES else value


def _eval_logs(frame: Frame, trainer: str, epoch: float | None) -> dict[str, Value]:
    accuracy = "eval_rewards/accuracies" if trainer in PAIRS else "eval_accuracy" if trainer == "reward" else "eval_mean_token_accuracy"
    names = {**_EVAL, "eval.accuracy": accuracy}
    logs: dict[str, Value] = {names[key]: float(value) for key, value in frame.values.items() if key in names}
    if logs and epoch is not None:
        logs["epoch"] = epoch
    return logs


def _summary(rows: list[Row]) -> Row:
    """The row that `Trainer.train` logs at its end: means over the run."""
    train = [row for row in rows if row.kind in ("train", "step")]
    losses = [loss for row in train if (loss := row.logs.get("loss")) is not None]
    runtime = sum(row.seconds or 0.0 for row in train) or 1.0
    logs: dict[str, Value] = {
        "train_runtime": runtime, "train_samples_per_second": 0.0, "train_steps_per_second": len(train) / runtime,
        "total_flos": 0.0, "train_loss": sum(losses) / len(losses) if losses else 0.0,
    }  # fmt: skip
    epoch = next((row.logs["epoch"] for row in reversed(train) if "epoch" in row.logs), None)
    if epoch is not None:
        logs["epoch"] = epoch
    return Row(rows[-1].step, "summary", logs)
