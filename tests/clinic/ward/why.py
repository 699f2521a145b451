"""What the report says about what is missed: written by hand, after looking. Keys are case ids."""

from __future__ import annotations

TRIED = ""
MISSED: dict[str, str] = {}
CURE_MISSED: dict[str, str] = {}
