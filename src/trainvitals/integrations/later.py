"""Reading tensors without making the GPU wait: what a step computed is read when it is there, at most a few steps late.

``tensor.item()`` on a CUDA tensor stops the host until the device has caught up. Here a tensor is copied to pinned host
memory without blocking and an event is recorded behind the copy; the numbers are read when the event says that it is done:
at the same step when the trainer itself has synchronised meanwhile, else at the next. CPU tensors are read at once.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

Compute = Callable[[list[torch.Tensor]], dict[str, float]]
_LIMIT = 64  # batches that wait; a device that is further behind than this loses the oldest


@dataclass(slots=True)
class _Waiting:
    tensors: list[torch.Tensor]
    compute: Compute
    event: Any  # torch.cuda.Event, or None for tensors that are on the host already


class Later:
    """Tensors on their way to the host, in order.

    Args:
        on_error: Told once about each `compute` that raises; its signals are missing from then on, the others go on.

    Attributes:
        dropped: Batches that were never read because the device stayed too far behind.
    """

    def __init__(self, on_error: Callable[[str], None] = lambda text: None) -> None:
        self._waiting: deque[_Waiting] = deque()
        self._on_error = on_error
        self._failed: set[str] = set()
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, tensors: Sequence[torch.Tensor], compute: Compute) -> None:
        """Start moving `tensors` to the host; `compute` turns them into signals once they are there."""
        detached = [tensor.detach() for tensor in tensors]
        event = None
        if any(tensor.is_cuda for tensor in detached):
            detached = [_to_host(tensor) for tensor in detached]
            event = torch.cuda.Event()
            event.record()
        self._waiting.append(_Waiting(detached, compute, event))
        if len(self._waiting) > _LIMIT:
            self._waiting.popleft()
            self.dropped += 1

    def ready(self, *, wait: bool = False) -> dict[str, float]:
        """Signals of all batches that have arrived, in order.

        A later value replaces an earlier one of the same signal, but never hides a non-finite one.

        Args:
            wait: Block until everything has arrived: only for the end of training.
        """
        values: dict[str, float] = {}
        while self._waiting:
            first = self._waiting[0]
            if first.event is not None and not first.event.query():
                if not wait:
                    break
                first.event.synchronize()
            self._waiting.popleft()
            for name, value in self._compute(first).items():
                if name not in values or math.isfinite(values[name]):
                    values[name] = value
        return values

    def _compute(self, batch: _Waiting) -> dict[str, float]:
        name = batch.compute.__qualname__
        if name in self._failed:
            return {}
        try:
            return batch.compute(batch.tensors)
        except Exception as error:
            self._failed.add(name)
            self._on_error(f"{name} raised {type(error).__name__}: {error}; its signals are off. Training goes on.")
            return {}


def _to_host(tensor: torch.Tensor) -> torch.Tensor:
    if not tensor.is_cuda:
        return tensor
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    return host


def scalar(name: str) -> Compute:
    """A `compute` for one 0-dimensional tensor."""

    def compute(tensors: list[torch.Tensor]) -> dict[str, float]:
        return {name: float(tensors[0])}

    return compute
