"""Records: everything that trainvitals writes, one pydantic model per ``kind``.

A stream is one JSON object per line, ``kind`` is the discriminator, ``seq`` counts every record of the stream and is the
cursor. Strict JSON: a number that is not finite is ``{"value": null, "nonfinite": "nan"}``. Only transitions of a rule are
written, never its samples. Fields follow notes/ecosystem.md 4.3 to 4.6; ``schemas/record.schema.json`` is generated here.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

SCHEMA = "trainvitals/1.0"

Severity = Literal["info", "warning", "error"]
Category = Literal["collapse", "over-optimization", "ood-drift", "stall", "numerics", "efficiency", "data", "config"]
Scalar = float | int | bool | str | None
SEVERITIES: tuple[Severity, ...] = ("info", "warning", "error")
"""In ascending order."""


class Model(BaseModel):
    """Base of records and their parts. Unknown fields are refused on writing; readers of our files must ignore them."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class NonFinite(Model):
    """A measured value that is not a number JSON can hold."""

    value: None = None
    nonfinite: Literal["nan", "inf", "-inf"]


Number = float | int | NonFinite


class Record(Model):
    """Envelope of all kinds."""

    schema_: Literal["trainvitals/1.0"] = Field(default="trainvitals/1.0", alias="schema")
    seq: int = Field(default=0, ge=0, description="Counts the records of one stream; the cursor for readers.")
    ts: str | None = Field(default=None, description="RFC 3339 UTC time of the event that caused the record; null when the log has none.")
    run: str = Field(default="", description="Run id, stable across resumes.")
    rank: int = 0
    step: int | None = Field(default=None, description="Optimizer updates completed.")

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, populate_by_name=True)


class RunStartRecord(Record):
    """First record of a stream, and again after each resume."""

    kind: Literal["run_start"] = "run_start"
    trainer: str
    framework: str
    framework_version: str | None = None
    version: str = Field(description="trainvitals version that wrote the stream.")
    rules_digest: str = Field(default="", description="Digest of the effective rules, overrides included.")
    config: dict[str, Any] = Field(default_factory=dict, description="Scalars of the training configuration; secrets removed.")
    total_steps: int | None = None
    world_size: int = 1
    emits: list[str] | None = Field(default=None, description="Signals that this run can emit; null when unknown.")
    resumed_from: int | None = None
    carried: bool = Field(default=False, description="The rules' state of that checkpoint was loaded: they go on where they were.")


class SignalRecord(Record):
    """One event of the bus, as it came: enough to evaluate the run again with other rules."""

    kind: Literal["signal"] = "signal"
    event: Literal["frame", "boundary", "tick", "applied"] = "frame"
    values: dict[str, Number] = Field(default_factory=dict)
    closes: bool = True
    phase: Literal["train", "eval"] = "train"
    time: float | None = None
    tokens: float | None = None
    epoch: float | None = None
    what: str | None = None
    detail: dict[str, Any] | None = None


class Term(Model):
    """One part of a condition with its value: how a number in a message can be traced."""

    expr: str
    means: str | None = Field(default=None, description="The expression a `let` name stands for.")
    value: Scalar | NonFinite = None
    unit: str | None = None
    limit: Scalar = None
    result: bool | None = None
    origin: str | None = Field(default=None, description="Where the limit comes from: 'params.low default', 'trainvitals.yaml:4'.")


class Change(Model):
    """A parameter change that must go along with a suggestion."""

    parameter: str
    from_: Scalar = Field(default=None, alias="from")
    to: Scalar = None
    why: str | None = None
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Action(Model):
    """One typed change that a person or a program can apply."""

    action_id: str
    type: Literal["set_param", "inspect", "stop", "restart_from", "evaluate"] = "set_param"
    parameter: str | None = Field(default=None, description="Native name, e.g. `per_device_train_batch_size`.")
    from_: Scalar = Field(default=None, alias="from")
    to: Scalar = None
    bounds: list[float] | None = Field(default=None, description="[lowest, highest] sensible value.")
    apply: Literal["live", "restart", "manual"] = "restart"
    also: list[Change] = Field(default_factory=list)
    changes_objective: bool = False
    predicts: dict[str, float] = Field(default_factory=dict)
    verify: str | None = Field(default=None, description="Condition in the rule language that should hold afterwards.")
    within_updates: int | None = None
    why: str | None = None
    costs: str | None = None
    text: str | None = Field(default=None, description="Advice in words, for `inspect`.")
    conflicts_with: list[str] = Field(default_factory=list)
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class RuleRef(Model):
    """Which rule spoke."""

    id: str
    code: str
    version: str = "1.0.0"
    status: Literal["stable", "experimental"] = "stable"
    digest: str = ""
    source: str = Field(default="builtin", description="`builtin`, or the path of a user's rule file.")


class Confidence(Model):
    """How often this rule was right when it fired, measured on recorded runs of which the truth is known.

    It is a property of the rule and of the mix of runs it was measured on (`basis`), not of this run: where healthy runs are more
    common than there, it is lower.
    """

    precision: float = Field(ge=0, le=1, description="Share of the runs in which it fired that were sick by then.")
    low: float = Field(ge=0, le=1, description="Lower end of the 95 % interval (Wilson) of `precision`.")
    high: float = Field(ge=0, le=1, description="Upper end.")
    runs: int = Field(ge=0, description="Runs in which it fired.")
    healthy_runs: int = Field(ge=0, description="Healthy runs in which it could have fired.")
    basis: str = Field(description="What it was measured on, with a digest.")


FindingState = Literal["firing", "resolved", "flapping", "suppressed", "confirmed", "no_effect", "blind", "error"]


class Finding(Record):
    """A transition of one rule instance.

    ``firing``: it opened. ``resolved``: its end condition held. ``suppressed``: it opened while its cause was firing, so
    nobody is told. ``flapping``: it opens and closes so often that we go quiet until calm. ``confirmed``/``no_effect``: a
    suggestion was applied and its prediction held or did not. ``blind``: it could not be decided. ``error``: it failed.
    """

    kind: Literal["finding"] = "finding"
    finding_id: str
    fingerprint: str = Field(description="Hash of rule, run and instance; holds no values and no steps.")
    rule: RuleRef
    state: FindingState
    severity: Severity
    category: Category
    title: str
    message: str = Field(description="Measurement and meaning.")
    advice: str = Field(default="", description="What to do; the console joins it to the message.")
    instance: dict[str, str] = Field(default_factory=dict, description="Label values, e.g. {'component': 'format'}.")
    first_step: int | None = None
    onset_step: int | None = Field(
        default=None,
        description="Update at which what it tells began: where one of its signals changed most clearly, at most as far before the condition held as that looks back.",
    )
    count: int = 1
    why: list[Term] = Field(default_factory=list)
    signals: dict[str, Number | None] = Field(default_factory=dict, description="Latest value of every signal the rule reads.")
    unknown: list[str] = Field(default_factory=list, description="Signals that were missing when it was decided.")
    data: Literal["ok", "degraded", "stale"] = "ok"
    sustain: dict[str, int] | None = None
    actions: list[Action] = Field(default_factory=list)
    incident_id: str | None = None
    role: Literal["root", "symptom", "independent"] = "independent"
    suppressed_by: str | None = None
    confidence: Confidence | None = Field(default=None, description="Null where the rule, as it is in force, was never measured or never fired.")
    docs: str = ""


VerdictState = Literal["improving", "steady", "collapsed", "over_optimizing", "drifting", "stalled", "diverged", "warming_up", "insufficient_data"]
Decision = Literal["continue", "watch", "adjust", "stop", "restart_from"]


class Verdict(Record):
    """What the run is doing and what to do about it, on change and at the end."""

    kind: Literal["verdict"] = "verdict"
    state: VerdictState
    decision: Decision
    reason: str = Field(description="One sentence.")
    rule: str | None = Field(default=None, description="Rule that decided.")
    since_step: int | None = None
    last_healthy_step: int | None = Field(
        default=None, description="Last update before the onset of the earliest warning or error that is open now and harms the weights."
    )
    resume_from: str | None = Field(default=None, description="Checkpoint at or before the last healthy step.")
    open_findings: dict[str, int] = Field(default_factory=dict)
    not_checked: list[str] = Field(default_factory=list)
    final: bool = False


class ActionRecord(Record):
    """A parameter was changed, or a stop was requested."""

    kind: Literal["action"] = "action"
    parameter: str | None = None
    from_: Scalar = Field(default=None, alias="from")
    to: Scalar = None
    outcome: Literal["requested", "applied", "rejected", "confirmed", "no_effect"] = "applied"
    finding_id: str | None = None
    detail: str | None = None


class RuleCoverage(Model):
    """Whether one rule could do its work."""

    id: str
    status: Literal["evaluated", "degraded", "blind", "inactive", "not_applicable", "disabled", "error"]
    reason: str | None = None
    missing: list[str] = Field(default_factory=list)
    decided: int = Field(default=0, description="Evaluations that gave true or false.")
    required: bool = False


class CoverageRecord(Record):
    """What was looked at and what was not."""

    kind: Literal["coverage"] = "coverage"
    rules: list[RuleCoverage]
    signals: dict[str, int] = Field(default_factory=dict, description="Samples seen per signal.")
    unknown_metrics: list[str] = Field(default_factory=list, description="Raw names that no table knows.")
    late_events: int = 0
    tuned: list[str] = Field(default_factory=list, description="User overrides in force, with their reasons.")


class RunEndRecord(Record):
    """Last record of a stream."""

    kind: Literal["run_end"] = "run_end"
    status: Literal["completed", "interrupted", "failed", "killed"]
    findings: dict[str, int] = Field(default_factory=dict, description="Openings by severity.")
    detail: str | None = None


AnyRecord = Annotated[
    RunStartRecord | SignalRecord | Finding | Verdict | ActionRecord | CoverageRecord | RunEndRecord, Field(discriminator="kind")
]
RECORD: TypeAdapter[Any] = TypeAdapter(AnyRecord)
"""Validates one decoded line of a stream."""
