"""What is not promised: names here may change or go in any version (docs/stability.md).

    from trainvitals.experimental import RetentionProbe

Importing it imports neither torch nor transformers: names are looked up on first use (PEP 562).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainvitals.integrations.retention import RetentionProbe

__all__ = ["RetentionProbe"]

_WHERE = {"RetentionProbe": "trainvitals.integrations.retention"}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(importlib.import_module(_WHERE[name]), name)
