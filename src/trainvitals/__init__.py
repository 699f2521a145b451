"""trainvitals: vital signs for post-training.

    from trainvitals import attach
    attach(trainer)                       # TRL; or TrainerCallback: Trainer(callbacks=[VitalsCallback()])

    from trainvitals import Monitor       # any loop
    with Monitor(output_dir="out") as monitor:
        monitor.log(step, {"loss": loss, "reward": reward})

This page is the stable API. Importing it imports neither torch nor transformers: names are looked up on first use (PEP 562).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from trainvitals._version import __version__

if TYPE_CHECKING:
    from trainvitals.events import CATALOGUE, custom_signal
    from trainvitals.findings import Finding, Verdict
    from trainvitals.integrations.heldout import HeldoutProbe
    from trainvitals.integrations.transformers import VitalsCallback
    from trainvitals.integrations.trl import attach
    from trainvitals.items import Applied, Boundary, Frame, RunEnd, RunStart, Tick
    from trainvitals.monitor import Monitor
    from trainvitals.rulelang.loader import load_rules

__all__ = [
    "CATALOGUE",
    "Applied",
    "Boundary",
    "Finding",
    "Frame",
    "HeldoutProbe",
    "Monitor",
    "RunEnd",
    "RunStart",
    "Tick",
    "Verdict",
    "VitalsCallback",
    "__version__",
    "attach",
    "custom_signal",
    "load_rules",
]

_WHERE = {
    "CATALOGUE": "events",
    "Applied": "items",
    "Boundary": "items",
    "Finding": "findings",
    "Frame": "items",
    "HeldoutProbe": "integrations.heldout",
    "Monitor": "monitor",
    "RunEnd": "items",
    "RunStart": "items",
    "Tick": "items",
    "Verdict": "findings",
    "VitalsCallback": "integrations.transformers",
    "attach": "integrations.trl",
    "custom_signal": "events",
    "load_rules": "rulelang.loader",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        msg = f"module 'trainvitals' has no attribute {name!r}"
        raise AttributeError(msg)
    value = getattr(importlib.import_module(f"trainvitals.{_WHERE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
