"""JSON Schema (2020-12) of rule files and of the test files beside them, for editors; the loader checks much more."""

from __future__ import annotations

from typing import Any

from trainvitals.rulelang import build, model
from trainvitals.rulelang.fields import ID, NAME

DIALECT = "https://json-schema.org/draft/2020-12/schema"
Schema = dict[str, Any]


def _object(properties: Schema, required: tuple[str, ...] = (), meaning: str = "") -> Schema:
    made: Schema = {"type": "object", "properties": properties, "additionalProperties": False}
    if required:
        made["required"] = list(required)
    if meaning:
        made["description"] = meaning
    return made


def _text(meaning: str, pattern: str = "") -> Schema:
    made: Schema = {"type": "string", "minLength": 1, "description": meaning}
    return {**made, "pattern": f"^{pattern}$"} if pattern else made


def _expression(meaning: str) -> Schema:
    return {"type": ["string", "number", "boolean"], "description": f"{meaning} (expression)"}


def _whole(low: int, meaning: str, high: int = 100_000) -> Schema:
    return {"type": "integer", "minimum": low, "maximum": high, "description": meaning}


def _named(values: Schema, meaning: str) -> Schema:
    pattern = f"^{NAME.pattern}$"
    return {"type": "object", "patternProperties": {pattern: values}, "additionalProperties": False, "description": meaning}


def _updates(meaning: str, low: int = 0) -> Schema:
    return _object({"updates": _whole(low, "Optimizer updates.")}, ("updates",), meaning)


def _sustain(meaning: str) -> Schema:
    inner = {"hits": _whole(1, "Evaluations that must agree.", 10_000), "of": _whole(1, "Evaluations looked at.", 10_000)}
    return _object(inner, ("hits", "of"), meaning)


def _ids(meaning: str) -> Schema:
    return {"type": "array", "uniqueItems": True, "items": _text("Id of a rule.", ID.pattern), "description": meaning}


def _texts(meaning: str) -> Schema:
    return {"type": "array", "uniqueItems": True, "items": {"type": "string", "minLength": 1}, "description": meaning}


def _param() -> Schema:
    inner = {
        "default": {"type": "number", "description": "Value in force unless a user tunes it; inside `range`."},
        "unit": _text("Unit, as in the signal catalogue."),
        "range": {
            "type": "array",
            "items": {"type": "number"},
            "minItems": 2,
            "maxItems": 2,
            "description": "[lowest, highest] a user may set.",
        },
        "why": _text("Reason for the value and its source."),
    }
    return _object(inner, ("default", "unit", "range"))


def _suggestion() -> Schema:
    native = _text("Native name of the parameter.")
    also = _object({"set": native, "to": _expression("New value"), "why": _text("Reason.")}, ("set", "to"))
    change = {
        "set": native, "to": _expression("New value"), "if": _expression("Made only when it holds"),
        "also": {"type": "array", "items": also, "description": "Changes that must go along."},
        "predicts": {"type": "object", "additionalProperties": _expression("Value expected"), "description": "Signal to expected value."},
        "why": _text("Reason."), "costs": _text("What gets worse."),
        "objective": {"type": "boolean", "description": "The change alters what is optimised."},
    }  # fmt: skip
    look = {"inspect": _text("What to look at."), "if": _expression("Made only when it holds"), "why": _text("Reason.")}
    return {"oneOf": [_object(change, ("set", "to")), _object(look, ("inspect",))]}


def rule_schema() -> Schema:
    """Schema of ``<id>.yaml``."""
    trainers = {"oneOf": [{"const": "any"}, {"type": "array", "items": {"enum": list(model.TRAINERS)}, "uniqueItems": True}]}
    families = "|".join(model.CODE_FAMILIES)
    action = {"gate": {"enum": ["fail", "warn", "none"]}, "stop": {"enum": ["never", "offer"]}, "log": {"enum": list(build.LOGS)}}
    docs = {
        "explain": _text("What it means."), "look_first": _text("First thing to look at."),
        "false_positives": _texts("When it is wrong."), "references": _texts("Sources."),
    }  # fmt: skip
    properties: Schema = {
        "id": _text("Id; equals the file name without .yaml.", ID.pattern),
        "code": _text("Short code.", f"(?:{families})[0-9]{{3}}"),
        "version": _text("Version of the rule, major.minor.patch.", r"[0-9]+\.[0-9]+\.[0-9]+"),
        "title": _text("The fault in words."),
        "category": {"enum": list(model.CATEGORIES)},
        "severity": {"enum": list(model.SEVERITY_WORDS)},
        "applies_to": _object({"trainers": trainers, "where": _expression("Over config.X and run.X, decided once a run")}),
        "params": _named(_param(), "Named thresholds."),
        "let": _named(_expression("Named value; may use earlier ones"), "Named expressions."),
        "when": _expression("Condition"),
        "sustain": _sustain("How persistent the condition must be; default 1 of 1."),
        "clear": _expression("End condition; default: `when` is false"),
        "clear_sustain": _sustain("How persistent the end must be."),
        "warmup": _updates("Updates before the first evaluation."),
        "clock": {
            "oneOf": [
                _object({"seconds": {"type": "number", "minimum": 0.1, "maximum": 86400}}, ("seconds",), "Evaluate on timer ticks."),
                _object({"updates": {"type": "number", "minimum": 1, "maximum": 1000}}, ("updates",), "Look this often while calm."),
            ]
        },
        "unless": _named(_expression("Exception"), "Named exceptions."),
        "for_each": _text("Label: one instance per label value."),
        "caused_by": _ids("Rules that explain this one when they fire."),
        "absorbs": _ids("Rules that this one speaks for."),
        "hold": _updates("A cause that fired explains this rule for so many updates."),
        "repeat": {"oneOf": [{"enum": ["on-change", "never"]}, _updates("Say it again.", 1)]},
        "required": {"type": "boolean", "description": "A gate answers 'could not tell' when this rule was blind."},
        "message": _text("Measurement and meaning; {expr} or {expr:format} for values."),
        "advice": _text("What to do; same form as `message`."),
        "suggest": {"type": "array", "items": _suggestion(), "description": "Typed changes."},
        "expect": _object(
            {"that": _expression("Condition"), "within": _updates("", 1)}, ("that", "within"), "What should hold after a change."
        ),
        "action": _object(action, meaning="What the rule may do beside telling."),
        "verdict": {"enum": list(model.VERDICT_STATES), "description": "State of the run that the rule leads to."},
        "docs": _object(docs, meaning="Prose for people."),
    }
    return {"$schema": DIALECT, "title": "trainvitals rule", **_object(properties, build.REQUIRED)}


_STEP: Schema = {"type": "integer", "minimum": 0}
_POSITIVE: Schema = {"type": "number", "minimum": 0}
_SCALAR: Schema = {"type": ["string", "number", "boolean"]}
_SCALARS: Schema = {"type": "object", "additionalProperties": _SCALAR}
_FACTS: Schema = {"type": "object", "additionalProperties": {"anyOf": [_SCALAR, {"type": "array", "items": {"type": "string"}}]}}


def rule_test_schema() -> Schema:
    """Schema of ``<id>.test.yaml``; the keys are those that `trainvitals.testing_cases` reads."""
    given = _object(
        {
            "trainer": _text("Trainer of the run."), "framework": _text("Framework of the run."), "config": _SCALARS, "run": _FACTS,
            "absent": _texts("Signals that this run can never emit."),
        },
        meaning="The run that the cases happen in.",
    )  # fmt: skip
    series = {
        "anyOf": [
            _text("'0.4x60 0.4..0.02x40 0.4~0.03x60 _x5 nan': constant, ramp, seeded noise, missing, not a number."),
            _object({"values": _text("As above."), "every": _STEP}, ("values",), "One sample every so many updates."),
        ]
    }
    silence = _object({"after": _STEP, "seconds": _POSITIVE, "every": _POSITIVE}, ("after", "seconds"), "No step ends, only ticks come.")
    boundary = _object({"at": _STEP, "what": _text("Kind of boundary."), "detail": _SCALARS}, ("at", "what"))
    change = _object({"at": _STEP, "parameter": _text("Native name."), "from": _SCALAR, "to": _SCALAR}, ("at", "parameter", "to"))
    cases = _object(
        {
            "name": _text("What the case shows."), "given": given, "from": _text("A recorded log to replay."),
            "series": {"type": "object", "additionalProperties": series, "description": "Signal to series."},
            "every": _STEP, "seed": _STEP, "step_seconds": _POSITIVE, "todo": _text("Why it must keep failing."),
            "boundaries": {"type": "array", "items": boundary}, "applied": {"type": "array", "items": change},
            "silence": {"anyOf": [silence, {"type": "array", "items": silence}]},
            "expect": {"type": "array", "items": _expectation(), "minItems": 1},
        },
        ("name", "expect"),
    )  # fmt: skip
    properties = {
        "rule": _text("Id of the rule.", ID.pattern),
        "with": _texts("Rules evaluated beside it, for causes."),
        "given": given,
        "cases": {"type": "array", "items": cases, "minItems": 1},
        "excused": {"type": "object", "additionalProperties": {"type": "string"}, "description": "Mutant to the reason why no case can notice it."},
    }
    return {"$schema": DIALECT, "title": "trainvitals rule test", **_object(properties, ("rule", "cases"))}


def _expectation() -> Schema:
    between = {"type": "array", "items": _STEP, "minItems": 2, "maxItems": 2}
    return _object(
        {
            "never": _text("State that may not occur."), "always": _text("State that holds throughout."), "at": _STEP, "until": _STEP,
            "fires_between": between, "resolves_between": between, "times": _STEP, "state": _text("State of the rule."),
            "severity": {"enum": list(model.SEVERITY_WORDS)}, "data": {"enum": ["ok", "degraded", "stale"]},
            "message_has": _text("Part of the message."), "advice_has": _text("Part of the advice."),
            "suggests": {"type": "object", "description": "Parameter to {from, to, apply, also}, or to false where it must not be suggested; {} for no suggestion at all.", "additionalProperties": {"type": ["object", "string", "number", "boolean"]}},
            "verdict": {"enum": list(model.VERDICT_STATES)}, "instance": _text("Label value."), "suppressed_by": _text("Id of the cause."),
        }
    )  # fmt: skip
