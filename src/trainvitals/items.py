"""What travels over the bus: the frame of one moment, and the marks of what happened between.

On the per-step path that is not one model per family but a `Frame`: all signals that one moment of a run gave, packed as
``{signal: number}``. Building eight models costs about 15 us, packing a dict about 2 us, and one logged step must cost less than
``json.dumps`` of the same row. `Frame.of` packs models, `Frame.events` unpacks them, and both agree.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from trainvitals.events import CATALOGUE, FAMILIES, Event, labelled, split_label

KIN = {"gold": "gkd", "iw_opd": "gkd", "ssd": "sdft", "async_distillation": "distillation"}
"""Trainers whose numbers mean what those of another one do, which is the name that rules know them by: live
(`integrations.facts`) and on logs alike. The name table still tells them apart."""


@dataclass(slots=True)
class Frame:
    """All signals of one moment: what travels over the bus on every step.

    Attributes:
        step: Optimizer updates completed, 1-based, as the trainer counts them.
        values: Series key to number; NaN and Inf are kept. Keys are signal names, with the label for labelled signals.
        closes: True when nothing more will come for this update: the engine then evaluates its rules.
        phase: ``train`` or ``eval``.
        time: Unix seconds at emission; None on a log without times. Recorded, so replay sees the same clock.
        tokens: Tokens processed so far, for ``tokens=`` windows.
        epoch: Passes over the data so far.
    """

    step: int
    values: dict[str, float]
    closes: bool = True
    phase: Literal["train", "eval"] = "train"
    time: float | None = None
    tokens: float | None = None
    epoch: float | None = None

    @classmethod
    def of(cls, step: int, events: Iterable[Event], **header: Any) -> Frame:
        """Pack typed events of one moment into a frame."""
        values: dict[str, float] = {}
        for event in events:
            for name in event.model_fields_set:
                value = getattr(event, name)
                full = f"{event.family}.{name}"
                if isinstance(value, dict):
                    label = CATALOGUE[full].label or "label"
                    values.update({labelled(full, label, key): number for key, number in value.items()})
                elif value is not None:
                    values[full] = value
        return cls(step, values, **header)

    def events(self) -> list[Event]:
        """Unpack into typed events, one per family present; custom signals have no model and are left out."""
        fields: dict[str, dict[str, Any]] = {}
        for key, value in self.values.items():
            full, _, label = split_label(key)
            family, _, name = full.partition(".")
            if family == "custom":
                continue
            if label is None:
                fields.setdefault(family, {})[name] = value
            else:
                fields.setdefault(family, {}).setdefault(name, {})[label] = value
        return [model(**fields[model.family]) for model in FAMILIES if model.family in fields]

    def nonfinite(self) -> dict[str, str]:
        """Series whose value is not finite, with ``nan``, ``inf`` or ``-inf``."""
        return {key: nonfinite_word(value) for key, value in self.values.items() if not math.isfinite(value)}


def nonfinite_word(value: float) -> str:
    """``nan``, ``inf`` or ``-inf``: how records spell a number that JSON cannot."""
    return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"


BoundaryKind = Literal[
    "train_begin", "epoch", "eval_begin", "eval_end", "save_begin", "save_end", "resume", "ref_sync", "schedule_change", "config_change", "train_end"
]


@dataclass(slots=True)
class Boundary:
    """A moment at which signals may jump legally: rules look away for a while (DESIGN section 6)."""

    step: int
    what: BoundaryKind
    time: float | None = None
    detail: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Tick:
    """A timer event: lets stall rules see that time passes while no step ends. Recorded like any other event."""

    step: int
    time: float


@dataclass(slots=True)
class RunStart:
    """First event of a run.

    Attributes:
        run_id: Stable across resumes of the same output folder.
        trainer: ``grpo``, ``sft``, ``dpo``, ... or ``unknown``; chosen from the metrics present or told by the integration.
        framework: ``trl``, ``transformers``, ``verl``, ``torch``, ...
        config: Scalars of the training configuration under their native names (``learning_rate``, ``num_generations``).
        total_steps: Planned optimizer updates; None when unknown.
        emits: Signals that can come in this run; None when unknown (a log not read yet). Others are *absent*.
        resumed_from: Step of the checkpoint that training goes on from; None for a run from the beginning.
        carried: The state of the rules came along with that checkpoint: windows and open findings go on where they were.
    """

    run_id: str
    trainer: str = "unknown"
    framework: str = "unknown"
    framework_version: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    total_steps: int | None = None
    world_size: int = 1
    rank: int = 0
    time: float | None = None
    emits: frozenset[str] | None = None
    resumed_from: int | None = None
    carried: bool = False


@dataclass(slots=True)
class Applied:
    """Somebody changed a parameter: lets the engine check whether a suggestion's `expect` then held."""

    step: int
    parameter: str
    old: Any
    new: Any
    time: float | None = None


@dataclass(slots=True)
class RunEnd:
    """Last event of a run. ``status``: completed, interrupted, failed or killed."""

    step: int
    status: Literal["completed", "interrupted", "failed", "killed"] = "completed"
    time: float | None = None
    detail: str | None = None


Item = Frame | Boundary | Tick | RunStart | Applied | RunEnd
"""What trainers and readers publish."""
