"""What surrounds the updates: time that goes to checkpoints and evaluations, room for checkpoints, memory of the host.

Nothing here touches a device. The files of Linux under ``/proc`` and ``/sys/fs/cgroup`` are read every `EVERY` updates, about 0.1 ms; on
other systems the signals about memory are missing.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Any

import torch

EVERY = 10
"""Updates between two looks at the host's memory: leaks that matter take hundreds."""
LINUX = os.path.exists("/proc/self/statm")
_CGROUP = Path("/sys/fs/cgroup")
_MOMENTS = ("adamw_torch", "adamw_torch_fused", "adamw_apex_fused", "adamw_anyprecision")


class Housekeeping:
    """The clock between updates, and looks at disk and memory."""

    def __init__(self) -> None:
        self._start = self._mark = 0.0
        self._spent: dict[str, float] = {}

    def begin(self) -> None:
        """A training begins."""
        self._start, self._mark, self._spent = time.perf_counter(), 0.0, {}

    def update_begins(self) -> None:
        """From here on time belongs to training."""
        self._mark = 0.0

    def update_ended(self, step: int) -> dict[str, float]:
        """From here on time belongs to what comes next. Memory of the host, every `EVERY` updates."""
        self._mark = time.perf_counter()
        return host_memory() if step % EVERY == 0 else {}

    def spent(self, what: str) -> dict[str, float]:
        """The time since the last mark went to `what` (``saving``, ``evaluating``): its share of the time since the start."""
        if not self._mark:  # outside of training: a call of ``trainer.evaluate()``
            return {}
        now = time.perf_counter()
        self._spent[what] = self._spent.get(what, 0.0) + now - self._mark
        self._mark = now
        return {f"time.{what}_fraction": min(1.0, self._spent[what] / max(now - self._start, 1e-9))}


def host_memory() -> dict[str, float]:
    """Memory of this process that no file backs, and what the host (or the container) has left; empty where it cannot be read.

    Pages of memory-mapped data sets count for the resident size and can be dropped at any time, so they are left out.
    """
    values: dict[str, float] = {}
    with contextlib.suppress(OSError, ValueError, IndexError):
        _, resident, shared = Path("/proc/self/statm").read_text().split()[:3]
        values["memory.host_private_bytes"] = float((int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE"))
    left = []
    with contextlib.suppress(OSError, ValueError, IndexError, StopIteration):
        line = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable:"))
        left.append(1024.0 * int(line.split()[1]))
    with contextlib.suppress(OSError, ValueError, KeyError):  # "max" is no number: a container without a limit
        limit = int((_CGROUP / "memory.max").read_text())
        used = int((_CGROUP / "memory.current").read_text())
        stat = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        left.append(max(0.0, float(limit - used + int(stat["inactive_file"]))))  # the kernel drops these before it kills
    if left:
        values["memory.host_available_bytes"] = min(left)
    return values


def expected_checkpoint(model: Any, args: Any) -> float:
    """Bytes of one checkpoint before the first is written: weights that are saved, and both moments where the optimizer is one of Adam's in full.

    An adapter of PEFT is saved without the model under it. Too small for a format that is not the one in memory.
    """
    sizes = [(p.numel() * p.element_size(), p.requires_grad) for p in model.parameters()]
    trained = sum(size for size, on in sizes if on)
    weights = trained if hasattr(model, "peft_config") else sum(size for size, _ in sizes)
    optim = str(getattr(args.optim, "value", args.optim))
    return float(weights + (2 * trained if optim in _MOMENTS and not getattr(args, "save_only_model", False) else 0))


def room(folder: str, checkpoint: float) -> dict[str, float]:
    """How many more checkpoints the disk under `folder` (or under the nearest folder above that exists) has room for."""
    place = Path(folder).resolve()
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        stat = os.statvfs(place)
    except (OSError, AttributeError):
        return {}
    return {"run.checkpoint_room": stat.f_bavail * stat.f_frsize / checkpoint} if checkpoint > 0 else {}


def size_of(folder: str) -> float:
    """Bytes of the files in a folder and below it."""
    total = 0.0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.path.getsize(os.path.join(place, name))
    return total


def room_at_start(model: torch.nn.Module | None, args: Any, *, sharded: bool) -> dict[str, float]:
    """`room` before the first checkpoint, where some will be written and the size of one can be told."""
    strategy = str(getattr(args.save_strategy, "value", args.save_strategy))
    return {} if model is None or sharded or strategy == "no" else room(str(args.output_dir), expected_checkpoint(model, args))
