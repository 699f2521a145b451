"""Raw metric names to signals: one literal table per framework, and the `Mapper` that applies them."""

from __future__ import annotations

from trainvitals.items import KIN
from trainvitals.names.config import config_signals, planned_steps, safe_config
from trainvitals.names.detect import detect
from trainvitals.names.entry import Entry
from trainvitals.names.mapper import BOOKKEEPING, FRAMEWORKS, STEP_KEYS, TIME_KEYS, Mapper, is_summary, leftover, number

__all__ = [
    "BOOKKEEPING",
    "FRAMEWORKS",
    "KIN",
    "STEP_KEYS",
    "TIME_KEYS",
    "Entry",
    "Mapper",
    "config_signals",
    "detect",
    "is_summary",
    "leftover",
    "number",
    "planned_steps",
    "safe_config",
]
