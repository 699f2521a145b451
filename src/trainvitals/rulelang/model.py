"""The model of a rule: what the engine, the documentation and the tests read. Made by `loader`, never changed afterwards."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

from trainvitals.findings import Category, Confidence, Severity, VerdictState
from trainvitals.rulelang.expr import Expr

if TYPE_CHECKING:
    from trainvitals.rulelang.confidence import Measured

Status = Literal["stable", "experimental"]
Gate = Literal["fail", "warn", "none"]
Value = float | bool | str | None
"""What a bound expression gives; None is unknown."""

CATEGORIES: tuple[str, ...] = get_args(Category)
SEVERITY_WORDS: tuple[str, ...] = get_args(Severity)
VERDICT_STATES: tuple[str, ...] = get_args(VerdictState)
CODE_FAMILIES: tuple[str, ...] = ("NUM", "KL", "ENT", "RWD", "CLP", "GRD", "LEN", "OPT", "STL", "SYS", "EVL", "CFG", "DAT")
TRAINERS: tuple[str, ...] = (
    "grpo", "rloo", "ppo", "async_grpo", "online_dpo", "dpo", "kto", "orpo", "cpo", "reward", "sft", "gkd", "distillation",
    "sdft", "sdpo", "prm", "nash_md", "xpo", "bco", "tpo", "a2po", "verl", "transformers", "unknown",
)  # fmt: skip
"""Values of `RunStart.trainer` that `applies_to.trainers` may name. GOLD, IW-OPD, SSD and async distillation go by the name of their kin (`items.KIN`)."""


@dataclass(frozen=True, slots=True)
class Param:
    """A named threshold.

    Attributes:
        name: As expressions use it.
        default: Value in force: the author's, or the user's when an override set it.
        unit: Unit of the number, as in the catalogue.
        low: Smallest value that a user may set.
        high: Largest value that a user may set.
        why: Reason for the value and its source.
        origin: Where the value comes from: ``params.min_std default`` or ``trainvitals.yaml:4``.
    """

    name: str
    default: float
    unit: str
    low: float
    high: float
    why: str = ""
    origin: str = ""


@dataclass(frozen=True, slots=True)
class Sustain:
    """The condition must hold in `hits` of the last `of` evaluations."""

    hits: int = 1
    of: int = 1


@dataclass(frozen=True, slots=True)
class Slot:
    """``{expr:format|otherwise}`` inside a template; an empty format picks a plain spelling.

    `otherwise` is what stands there while the value is unknown.
    """

    expr: Expr
    format: str = ""
    otherwise: str = "unknown"

    def render(self, value: Value) -> str:
        """The value in words."""
        return self.otherwise if value is None else format_value(value, self.format)


@dataclass(frozen=True, slots=True)
class Template:
    """Text with values in it. `parts` alternates freely between literal text and slots."""

    text: str
    parts: tuple[str | Slot, ...] = ()

    @property
    def slots(self) -> tuple[Slot, ...]:
        """The slots in order."""
        return tuple(part for part in self.parts if isinstance(part, Slot))

    def render(self, value_of: Callable[[Expr], Value]) -> str:
        """Fill in the values; `value_of` is asked once per slot, in order."""
        return "".join(part if isinstance(part, str) else part.render(value_of(part.expr)) for part in self.parts)


def format_value(value: Value, spec: str = "") -> str:
    """Spell a value for people.

    Args:
        value: Number, bool, text, or None, which reads ``unknown``.
        spec: ``percent`` ("34%"), ``num`` (3 significant digits), a Python format such as ``.3f``, or empty: whole numbers
            without a decimal point, others with 4 significant digits.
    """
    if value is None:
        return "unknown"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return value
    if not math.isfinite(value):
        return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    if spec == "percent":
        return f"{value * 100:.0f}%"
    if spec.endswith("d"):
        return format(round(value), spec)
    if spec == "":
        return str(int(value)) if value == int(value) and abs(value) < 1e15 else f"{value:.4g}"
    return format(value, ".3g" if spec == "num" else spec)


@dataclass(frozen=True, slots=True)
class Also:
    """A change that must go along with a suggestion."""

    set: str
    to: Expr
    why: str = ""


@dataclass(frozen=True, slots=True)
class Suggest:
    """One piece of advice that a program can act on: set a parameter, or (`inspect`) look at something.

    Attributes:
        set: Native parameter name, or None for `inspect`.
        to: New value; may use ``config.X``.
        condition: `if` of the file: the suggestion is made only when it is true.
        also: Compensations.
        predicts: Signal to the value expected after the change.
        why: Reason in words.
        costs: What gets worse.
        objective: True when the change alters what is optimised.
        inspect: Advice in words.
    """

    set: str | None = None
    to: Expr | None = None
    condition: Expr | None = None
    also: tuple[Also, ...] = ()
    predicts: Mapping[str, Expr] = field(default_factory=dict)
    why: str = ""
    costs: str = ""
    objective: bool = False
    inspect: str | None = None


@dataclass(frozen=True, slots=True)
class Expect:
    """What should be true within so many updates after a suggestion was applied."""

    that: Expr
    within: int


@dataclass(frozen=True, slots=True)
class RuleAction:
    """What the rule may do beside telling: fail a gate, offer to stop, write a log."""

    gate: Gate = "warn"
    stop: Literal["never", "offer"] = "never"
    log: str | None = None


@dataclass(frozen=True, slots=True)
class Docs:
    """Prose for people; feeds the rule's page and `explain`."""

    explain: str = ""
    look_first: str = ""
    false_positives: tuple[str, ...] = ()
    references: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule, checked, with overrides applied. See ``rules/README.md`` for the meaning of the fields.

    Attributes:
        trainers: Trainers it applies to; empty means any.
        applies_where: Condition over ``config.X`` and ``run.X``, decided once a run; None always holds.
        lets: Named expressions in order; each uses only earlier ones.
        clear: End condition; None: `when` was false in `sustain.of` evaluations.
        clear_sustain: For `clear` (or the negated `when`); default all of `sustain.of`.
        warmup: Updates before the first evaluation.
        clock_seconds: Evaluate on ticks, at most this often; None evaluates once per update.
        clock_updates: Updates between two looks while it is calm and its series bring no news; None: as `pace` finds.
        unless: Named exceptions: the condition is ``(when) and not (any of them)``.
        hold: Updates for which a cause that fired still explains this rule.
        repeat: ``on-change``, ``never``, or an int: every so many updates while it fires.
        required: A gate answers "could not tell" when this rule was blind.
        gate_is_set: True when the file states `action.gate`; otherwise it follows from the severity.
        verdict: State of the run that this rule leads to when it fires.
        disabled: Reason when a user switched it off, else None.
        tuned: User overrides in force on this rule, each with reason and place.
        source: ``builtin`` or the path of the user's file.
        path: File it was read from.
        digest: sha256 of the effective rule.
        measured: What recorded runs say about this rule as it is in force; None: never measured. Not part of the digest.
        confidence: The same as findings carry it.
        expressions: All expressions of the rule, those of templates and suggestions included.
        signals: Every signal that the rule reads.
    """

    id: str
    code: str
    version: str
    title: str
    category: Category
    severity: Severity
    status: Status
    when: Expr
    message: Template
    trainers: tuple[str, ...] = ()
    applies_where: Expr | None = None
    params: Mapping[str, Param] = field(default_factory=dict)
    lets: Mapping[str, Expr] = field(default_factory=dict)
    sustain: Sustain = Sustain()
    clear: Expr | None = None
    clear_sustain: Sustain | None = None
    warmup: int = 0
    clock_seconds: float | None = None
    clock_updates: int | None = None
    unless: Mapping[str, Expr] = field(default_factory=dict)
    for_each: str | None = None
    caused_by: tuple[str, ...] = ()
    absorbs: tuple[str, ...] = ()
    hold: int = 0
    repeat: Literal["on-change", "never"] | int = "on-change"
    required: bool = False
    advice: Template = Template("")
    suggest: tuple[Suggest, ...] = ()
    expect: Expect | None = None
    action: RuleAction = RuleAction()
    gate_is_set: bool = False
    verdict: VerdictState | None = None
    docs: Docs = Docs()
    disabled: str | None = None
    tuned: tuple[str, ...] = ()
    source: str = "builtin"
    path: str = ""
    digest: str = ""
    measured: Measured | None = None
    confidence: Confidence | None = None
    expressions: tuple[Expr, ...] = field(init=False, repr=False, compare=False)
    signals: frozenset[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Collect once what every engine asks each rule for."""
        expressions = self._expressions()
        object.__setattr__(self, "expressions", expressions)
        object.__setattr__(self, "signals", frozenset[str]().union(*(expr.signals for expr in expressions)))

    @property
    def param_values(self) -> dict[str, float]:
        """Value in force of every parameter, as `Binder.bind` takes it."""
        return {name: param.default for name, param in self.params.items()}

    def _expressions(self) -> tuple[Expr, ...]:
        found: list[Expr | None] = [self.applies_where, *self.lets.values(), self.when, self.clear, *self.unless.values()]
        found += [slot.expr for template in (self.message, self.advice) for slot in template.slots]
        for suggestion in self.suggest:
            found += [suggestion.to, suggestion.condition, *(also.to for also in suggestion.also), *suggestion.predicts.values()]
        found.append(self.expect.that if self.expect else None)
        return tuple(expr for expr in found if expr is not None)

    @property
    def asks(self) -> frozenset[str]:
        """Ids of rules that its expressions ask about with `firing` and the like."""
        return frozenset[str]().union(*(expr.rules for expr in self.expressions))

    def canonical(self) -> dict[str, Any]:
        """Everything that changes what the rule does or says, as plain data: the digest is taken of it."""
        return {
            "id": self.id, "code": self.code, "version": self.version, "title": self.title, "category": self.category,
            "severity": self.severity, "trainers": list(self.trainers), "where": _text(self.applies_where),
            "params": {p.name: [p.default, p.unit, p.low, p.high] for p in self.params.values()},
            "let": {name: expr.text for name, expr in self.lets.items()}, "when": self.when.text,
            "sustain": [self.sustain.hits, self.sustain.of], "clear": _text(self.clear),
            "clear_sustain": [self.clear_sustain.hits, self.clear_sustain.of] if self.clear_sustain else None,
            "warmup": self.warmup, "clock": self.clock_seconds, "unless": {n: e.text for n, e in self.unless.items()},
            "for_each": self.for_each, "caused_by": list(self.caused_by), "absorbs": list(self.absorbs), "hold": self.hold,
            "repeat": self.repeat, "required": self.required, "message": self.message.text, "advice": self.advice.text,
            "suggest": [_suggestion(suggestion) for suggestion in self.suggest],
            "expect": [self.expect.that.text, self.expect.within] if self.expect else None,
            "action": [self.action.gate, self.action.stop, self.action.log], "verdict": self.verdict,
            "disabled": self.disabled is not None,
        }  # fmt: skip


def _text(expr: Expr | None) -> str | None:
    return expr.text if expr is not None else None


def _suggestion(suggestion: Suggest) -> dict[str, Any]:
    return {
        "set": suggestion.set, "to": _text(suggestion.to), "if": _text(suggestion.condition), "inspect": suggestion.inspect,
        "also": [[also.set, also.to.text] for also in suggestion.also],
        "predicts": {name: expr.text for name, expr in suggestion.predicts.items()}, "objective": suggestion.objective,
    }  # fmt: skip
