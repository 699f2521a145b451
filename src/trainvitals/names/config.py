"""The training configuration: what of it is kept, and the signals that are settings."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_SECRET_NAME = re.compile(r"token|secret|passw|api_?key|credential|auth|private", re.IGNORECASE)
_SECRET_VALUE = re.compile(r"^(hf_|sk-|gh[pousr]_|xox|AKIA|eyJ)|://[^/\s]*@")
_MAX_TEXT = 200
_MAX_KEYS = 1000


def safe_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Scalars of a configuration under their native names; nested values, long texts and anything like a secret left out."""
    kept: dict[str, Any] = {}
    for name, value in config.items():
        if len(kept) >= _MAX_KEYS:
            break
        if value is None or isinstance(value, (bool, int, float)) or (isinstance(value, str) and _harmless(str(name), value)):
            kept[str(name)] = value
    return kept


def _harmless(name: str, value: str) -> bool:
    return len(value) <= _MAX_TEXT and not _SECRET_NAME.search(name) and not _SECRET_VALUE.search(value)


def _number(config: Mapping[str, Any], name: str) -> float | None:
    value = config.get(name)
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def config_signals(config: Mapping[str, Any]) -> dict[str, float]:
    """Signals that are settings: length cap, clip range, logging interval. What the configuration lacks is not invented."""
    signals: dict[str, float] = {}
    cap = _number(config, "max_completion_length")
    epsilon = _number(config, "epsilon")
    high = _number(config, "epsilon_high")
    every = _number(config, "logging_steps")
    if cap is not None:
        signals["completion.length_cap"] = cap
    if epsilon is not None:
        signals["policy.clip_low"] = 1.0 - epsilon
        signals["policy.clip_high"] = 1.0 + (epsilon if high is None else high)
    if every is not None and every >= 1:  # below 1 it is a share of the run, in transformers
        signals["run.logging_every"] = every
    return signals


def planned_steps(config: Mapping[str, Any]) -> int | None:
    """Planned optimizer updates where the configuration says so (``max_steps`` > 0)."""
    steps = _number(config, "max_steps")
    return int(steps) if steps is not None and 0 < steps < 1e15 else None
