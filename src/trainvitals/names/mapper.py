"""`Mapper`: one logged row of a trainer becomes one `Frame`.

The work is done once per set of keys: the first row with new keys compiles a `_Plan`, later rows are one `itemgetter`, one
C-level conversion and one dict. A 40-metric row of floats costs about 4 us on the development machine.
"""

from __future__ import annotations

import math
import re
from array import array
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from operator import countOf, itemgetter
from typing import Any, Literal

from trainvitals.events import CATALOGUE, labelled, split_label
from trainvitals.items import Frame
from trainvitals.names import other, transformers, trl, verl
from trainvitals.names.detect import detect
from trainvitals.names.entry import Entry
from trainvitals.names.reward_std import RewardStd

STEP_KEYS = ("step", "global_step", "train/global_step", "training/global_step", "_step", "current_steps", "training_step", "iteration")
"""Where loggers put the number of optimizer updates, most specific first. `time/total_timesteps` counts samples, not updates."""
TIME_KEYS = ("time", "timestamp", "_timestamp", "ts", "wall_time")
BOOKKEEPING = frozenset((*STEP_KEYS, *TIME_KEYS, "_runtime", "_wandb", "total_steps", "max_steps", "rank", "phase", "split", "time/total_timesteps"))
"""Keys of a row that are no metrics."""
SUMMARY_KEYS = frozenset({"train_runtime", "train_steps_per_second", "train_samples_per_second"})
"""Any of them marks the closing summary row of transformers."""
_SUMMARY_ONLY = SUMMARY_KEYS | {"total_flos", "train_loss", "epoch", "train_tokens_per_second", "num_input_tokens_seen", "num_tokens"}
_HEADER = frozenset({"run.epoch", "run.tokens_seen"})
_CUSTOM = re.compile(r"custom\.[a-z][a-z0-9_]{0,60}")
_MAX_PLANS = 256  # a logger with ever new keys must not grow memory

FRAMEWORKS: dict[str, tuple[Entry, ...]] = {
    "trl": trl.TABLE,
    "verl": verl.TABLE,
    "openrlhf": other.OPENRLHF,
    "sb3": other.SB3,
    "minimind": other.MINIMIND,
    "llama-factory": other.LLAMA_FACTORY,
    "transformers": (),
    "unknown": (*trl.TABLE, *verl.TABLE),
}
"""Table of each framework; the base table of transformers is looked up after it. An unknown framework may use TRL's and verl's names."""


def strip_train(raw: str) -> str:
    """Name without the ``train/`` that tensorboard and wandb callbacks put in front."""
    return raw[6:] if raw.startswith("train/") else raw


def strip_eval(raw: str) -> str | None:
    """Name without ``eval_`` or ``eval/`` (also behind ``train/``); None when it is not an evaluation metric."""
    raw = strip_train(raw)
    return raw[5:] if raw.startswith(("eval_", "eval/")) else None


def is_summary(row: Mapping[str, Any]) -> bool:
    """True for the closing row of transformers (``train_runtime`` ...): whole-run means, not a step."""
    return any(key in row or f"train/{key}" in row for key in SUMMARY_KEYS)


def leftover(row: Mapping[str, Any]) -> bool:
    """True when a summary row carries real metrics of steps since the last log, as TRL's does."""
    return any(strip_train(key) not in _SUMMARY_ONLY and key not in BOOKKEEPING and strip_eval(key) is None for key in row)


def number(value: Any) -> float | None:
    """`value` as a float: numbers, bools, numpy and torch scalars, numeric text (``"0.0123"``, ``"nan"``).

    None is TRL's word for "nothing left after dropping NaN" and gives NaN. Anything else gives None: not a number.
    """
    if value is None:
        return math.nan
    if isinstance(value, (list, tuple, dict, bytes, bytearray)) or bool(getattr(value, "ndim", False)):
        return None
    if isinstance(value, str) and "_" in value:
        return None  # float("1_0") is 10
    try:
        return float(value.item() if hasattr(value, "item") else value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf
    except (TypeError, ValueError, RuntimeError):
        return None


@dataclass(slots=True)
class _Plan:
    """How rows with one set of keys are read."""

    pick: Callable[[Any], Any]
    raws: tuple[str, ...]
    signals: tuple[str, ...]
    blank: dict[str, float]
    factors: tuple[tuple[str, float], ...]
    phase: Literal["train", "eval"]
    has_terminated: bool
    has_reward_std: bool
    has_header: bool


UNNAMED = "unnamed"
"""Label of what a framework gave an empty name."""


class Mapper:
    """Raw metric names of one run to signals.

    Args:
        trainer: Trainer as the integration knows it (``rloo`` cannot be told from ``grpo`` by names); None: detected.
        framework: Likewise; None: detected.
        aliases: Raw name to signal, told by the user; they win over every table.

    Attributes:
        trainer: Told or detected trainer, ``unknown`` until names say more.
        framework: Told or detected framework.
        unknown: Raw names that no table knows, and known ones whose value was no number.
        applied: Raw name to signal, for everything read so far.
    """

    def __init__(self, trainer: str | None = None, framework: str | None = None, *, aliases: Mapping[str, str] | None = None) -> None:
        self.trainer = trainer or "unknown"
        self.framework = framework or "unknown"
        self.unknown: set[str] = set()
        self.applied: dict[str, str] = {}
        self._told = (trainer, framework)
        self._aliases = dict(aliases or {})
        self._keys: set[str] = set()
        self._plans: dict[tuple[str, ...], _Plan] = {}
        self._eval_plans: dict[tuple[str, ...], _Plan] = {}
        self._last: _Plan
        self._last_names: list[str] = []
        self._last_phase: str | None = None
        self._reward_std = RewardStd()
        self._index()

    def frame(
        self,
        row: Mapping[str, Any],
        *,
        step: int,
        phase: Literal["train", "eval"] | None = None,
        time: float | None = None,
        closes: bool = True,
    ) -> Frame:
        """Signals of one logged row. Metrics that no table knows are noted in `unknown`, not raised.

        Args:
            row: Raw names to values as the trainer logs them.
            step: Optimizer updates completed.
            phase: None: ``eval`` when every metric of the row has an evaluation prefix.
            time: Unix seconds.
            closes: As in `Frame`. A closing summary row never closes an update unless it carries leftover metrics.
        """
        names = list(row)
        if names == self._last_names and phase == self._last_phase:  # comparing costs less than hashing
            plan = self._last
        else:
            plans = self._eval_plans if phase == "eval" else self._plans
            plan = self._last = plans.get(tuple(row)) or self._compile(row, phase)
            self._last_names, self._last_phase = names, phase
        try:
            # array() converts at C speed whatever has __float__ (ints, bools, numpy and torch scalars) and refuses text and None;
            # floats, as nearly always, need not be made a second time.
            picked = plan.pick(row)
            values = plan.blank.copy()  # its keys have their places: a dict that grows key by key is made anew three times
            values.update(zip(plan.signals, picked if countOf(map(type, picked), float) == len(picked) else array("d", picked)))  # noqa: B905 a keyword costs as much as five signals
        except Exception:
            values = self._coerce(plan, row)
        if plan.factors:
            for key, factor in plan.factors:
                if key in values:
                    values[key] *= factor
        if plan.has_terminated and values.get("completion.terminated_length_mean") == 0.0:
            del values["completion.terminated_length_mean"]  # TRL writes 0 when nothing terminated: that is missing
        if plan.has_reward_std:
            self._reward_std.settle(row, values)
        if not plan.has_header:
            return Frame(step, values, closes, phase or plan.phase, time)
        tokens = values.get("run.tokens_seen")
        return Frame(step, values, closes, phase or plan.phase, time, tokens, values.get("run.epoch"))

    def learn(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Look at rows ahead of reading them: trainer, framework and the meaning of `reward_std` are then known from row one."""
        keys: dict[str, None] = {}
        for row in rows:
            keys.update(dict.fromkeys(row))
            if "reward_std" in row or "train/reward_std" in row:
                self._reward_std.look(row)
        self._see(keys)

    def resolve(self, raw: str) -> tuple[str, float, bool] | None:
        """Series key, factor and whether it is held-out, for one raw name; None when no table knows it.

        An empty series key means: known, and deliberately not a signal.
        """
        if raw in self._aliases:
            return self._aliases[raw], 1.0, self._aliases[raw].startswith("eval.")
        name = split_label(raw)[0]
        if name in CATALOGUE or _CUSTOM.fullmatch(raw):
            return raw, 1.0, name.startswith("eval.")
        bare = strip_eval(raw)
        if bare is not None:
            found = self._eval.get(bare)
            if found is not None:
                return found.signal, 1.0, True
            # Known from training: it has no held-out signal and must not be mixed with the training one.
            return None if self._lookup(bare) is None else ("", 1.0, True)
        return self._lookup(raw) or self._lookup(strip_train(raw))

    def entry(self, raw: str) -> Entry | None:
        """Row of the tables by which `raw` is read in this run; None for an alias, a signal's own name and what no table knows."""
        bare = strip_eval(raw)
        if bare is not None:
            return self._eval.get(bare)
        if raw in self._aliases:
            return None
        found = self._find(raw) or self._find(strip_train(raw))
        return found[0] if found else None

    def is_known(self, raw: str) -> bool:
        """Whether `raw` reads as a signal."""
        found = self.resolve(raw)
        return found is not None and bool(found[0])

    def _index(self) -> None:
        """Rows of the tables that hold for this trainer; a row that names the trainer wins over one that does not."""
        table = (*FRAMEWORKS.get(self.framework, FRAMEWORKS["unknown"]), *transformers.TABLE)
        named = [entry for entry in table if self.trainer in entry.trainers]
        chosen = [*named, *(entry for entry in table if not entry.trainers)]
        self._exact: dict[str, Entry] = {}
        self._patterns: list[tuple[str, str, Entry]] = []
        for entry in chosen:
            head, mark, rest = entry.raw.partition("<")
            if mark:
                self._patterns.append((head, rest.partition(">")[2], entry))
            else:
                self._exact.setdefault(entry.raw, entry)
        self._patterns.sort(key=lambda row: -len(row[0]) - len(row[1]))  # the most specific pattern first
        self._rank = {entry.raw: place for place, entry in enumerate(chosen)}
        self._eval = {entry.raw: entry for entry in transformers.EVAL if not entry.trainers or self.trainer in entry.trainers}
        self._eval_rank = {entry.raw: place for place, entry in enumerate(transformers.EVAL)}

    def _find(self, raw: str) -> tuple[Entry, str] | None:
        """Row that reads a name without prefix, and the text that its ``<label>`` stands for."""
        entry = self._exact.get(raw)
        if entry is not None:
            return entry, ""
        for head, tail, entry in self._patterns:
            if raw.startswith(head) and raw.endswith(tail) and len(raw) >= len(head) + len(tail):
                # A reward model loaded from a path that ends in "/" has an empty name: TRL logs "rewards//std".
                text = raw[len(head) : len(raw) - len(tail)] or (UNNAMED if tail else "")
                if text:
                    return entry, text
        return None

    def _lookup(self, raw: str) -> tuple[str, float, bool] | None:
        found = self._find(raw)
        if found is None:
            return None
        entry, text = found
        label = CATALOGUE[entry.signal].label if entry.signal and text else None
        signal = entry.signal if label is None else labelled(entry.signal, label, text)
        return signal, entry.sign * entry.scale, entry.scope == "eval"

    def _see(self, names: Iterable[str]) -> None:
        """Take note of names; when they tell more about the trainer, forget the plans made for the old answer."""
        fresh = {strip_eval(name) or strip_train(name) for name in names} - BOOKKEEPING - self._keys
        if not fresh:
            return
        self._keys |= fresh if len(self._keys) < 10_000 else set()
        trainer, framework = detect(self._keys)
        answer = (self._told[0] or trainer, self._told[1] or (framework if self._told[0] is None or framework != "unknown" else "trl"))
        if answer != (self.trainer, self.framework):
            self.trainer, self.framework = answer
            self._plans.clear()
            self._eval_plans.clear()
            self._last_names = []
            self._index()

    def _compile(self, row: Mapping[str, Any], phase: str | None) -> _Plan:
        self._see(row)
        chosen: dict[str, tuple[int, str, float]] = {}
        train = evaluation = False
        for raw in row:
            if raw in BOOKKEEPING or not isinstance(raw, str):
                continue
            found = self.resolve(f"eval_{raw}" if phase == "eval" and strip_eval(raw) is None else raw)
            if found is None:
                self.unknown.add(raw)
                evaluation |= strip_eval(raw) is not None
                train |= strip_eval(raw) is None
                continue
            signal, factor, held_out = found
            evaluation |= held_out
            train |= not held_out and signal not in _HEADER
            bare = strip_eval(raw) or (raw if phase == "eval" else None)
            place = self._rank.get(strip_train(raw), 0) if bare is None else self._eval_rank.get(bare, 0)
            # Two raw names of one signal: the table's order decides.
            if signal and (signal not in chosen or place < chosen[signal][0]):
                chosen[signal] = (place, raw, factor)
        self.applied.update({raw: signal for signal, (_, raw, _) in chosen.items()})
        plan = _plan(chosen, "eval" if evaluation and not train else "train")
        plans = self._eval_plans if phase == "eval" else self._plans
        if len(plans) >= _MAX_PLANS:
            plans.clear()
        plans[tuple(row)] = plan
        return plan

    def _coerce(self, plan: _Plan, row: Mapping[str, Any]) -> dict[str, float]:
        """The slow way: text, None, numpy and torch scalars, one value at a time."""
        values = {}
        for raw, signal in zip(plan.raws, plan.signals, strict=True):
            value = number(row[raw])
            if value is None:
                self.unknown.add(raw)
            else:
                values[signal] = value
        return values


def _plan(chosen: Mapping[str, tuple[int, str, float]], phase: Literal["train", "eval"]) -> _Plan:
    raws = tuple(raw for _, raw, _ in chosen.values())
    signals = tuple(chosen)
    if len(raws) > 1:
        pick: Callable[[Any], Any] = itemgetter(*raws)
    else:

        def pick(row: Any) -> Any:
            return [row[raw] for raw in raws]

    return _Plan(
        pick=pick,
        raws=raws,
        signals=signals,
        blank=dict.fromkeys(signals, math.nan),
        factors=tuple((signal, factor) for signal, (_, _, factor) in chosen.items() if factor != 1.0),
        phase=phase,
        has_terminated="completion.terminated_length_mean" in signals,
        has_reward_std="reward.std" in signals and any(strip_train(raw) == "reward_std" for raw in raws),
        has_header=bool(_HEADER & set(signals)),
    )
