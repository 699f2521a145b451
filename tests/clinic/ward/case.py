"""What one case of the clinic is: a real training, what was planted in it, and what a good diagnosis must say.

The truth comes from the injection, never from what a rule said. A case is built by a function, so that the recorder, the cure and
a reader get the very same training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from trainvitals.findings import Category, VerdictState

Build = Callable[..., Any]
"""``build(folder, seed, **changes)`` returns a trainer that is ready to train; `changes` are fields of its config and win."""

SICK_SEEDS = (0, 1, 2, 3, 4)
HEALTHY_SEEDS = tuple(range(100, 120))
HEALTHY_STATES: tuple[VerdictState, ...] = ("improving", "steady")


@dataclass(frozen=True)
class Case:
    """One fault, or one way to be healthy.

    Attributes:
        id: ``<trainer>-<fault in words>``; its recordings are ``recordings/<id>.jsonl.xz`` (``recordings_2`` to ``recordings_9`` for the later rounds).
        trainer: Name of the trainer as rules write it (``grpo``, ``sft``, ...).
        what: One sentence: what was planted and how, or what is varied in a healthy case.
        build: Builds the training, see `Build`.
        steps: Optimizer updates of a run.
        onset: Updates before the fault acts: 0 when it is there from the start, 60 when update 61 is the first sick one.
        roots: Ids of rules that name the cause. Empty: the run is healthy, and every warning in it is a false alarm. In a later round
            one that begins with ``no-rule:`` is what a person would say where no rule's title does; no finding can match it.
        from_start: Ids of rules whose title is true of the data set or the configuration from the first update, although its effect begins after `onset` only. What
            they say before it is no false alarm; one that is among `roots` as well has detected the fault.
        categories: Categories of the mission that describe the disease.
        verdicts: States that the last verdict may have.
        twin: Id of the healthy case that differs from this one in nothing but the fault, with the same seeds.
        cure: The known right change, native parameter to value; None when no parameter cures it (a broken reward function).
        goal: Signal by which recovery is measured, a leading minus where less is better (``-optim.loss``).
        learned: A second such signal, for a goal that a policy which stands still reaches as well: recovery needs both.
        seeds: Seeds to record.
        keeps_time: Keep times in the recording: for faults that are about time. Other recordings must not depend on the machine.
        hard: A healthy case that looks sick: its false alarms are reported apart as well.
        needs_trl: The TRL that records it, major and minor (``1.12``), when the trainer is not in the current one; empty: any.
    """

    id: str
    trainer: str
    what: str
    build: Build
    steps: int
    onset: int = 0
    roots: tuple[str, ...] = ()
    from_start: tuple[str, ...] = ()
    categories: tuple[Category, ...] = ()
    verdicts: tuple[VerdictState, ...] = HEALTHY_STATES
    twin: str = ""
    cure: Mapping[str, Any] | None = field(default=None, hash=False)
    goal: str = "reward.mean"
    learned: str = ""
    seeds: tuple[int, ...] = SICK_SEEDS
    keeps_time: bool = False
    hard: bool = False
    needs_trl: str = ""

    @property
    def sick(self) -> bool:
        """Whether a fault was planted."""
        return bool(self.roots)
