"""Signals from plain PyTorch, for training loops without a trainer class.

Example::

    from trainvitals.integrations.torch import gradient_signals, memory_signals
    from trainvitals.monitor import Monitor

    with Monitor(output_dir="out") as vitals:
        for step, batch in enumerate(loader, start=1):
            loss = model(batch).loss
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            vitals.log(step, {"loss": loss.item(), "grad_norm": norm.item(), **memory_signals()})
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from trainvitals.integrations.checkpoint import held
from trainvitals.integrations.optimizer_check import left_out


def gradient_norm(parameters: Iterable[torch.nn.Parameter]) -> torch.Tensor | None:
    """Total 2-norm of the gradients as a 0-dimensional tensor on their device, without synchronising.

    Returns None when no parameter has a gradient, or when gradients are sharded (DTensor): the norm of one shard is not the
    norm of the model, and summing over ranks would be a collective.
    """
    norms = parameter_norms(parameters)
    return None if norms is None else torch.linalg.vector_norm(norms)


def parameter_norms(parameters: Iterable[torch.nn.Parameter]) -> torch.Tensor | None:
    """2-norm of each parameter's gradient as one float32 vector; None as in `gradient_norm`."""
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not grads or any(type(grad).__name__ == "DTensor" or grad.is_sparse for grad in grads):
        return None
    device = grads[0].device
    if all(grad.device == device for grad in grads):
        norms = torch._foreach_norm([grad.detach() for grad in grads])
        return torch.stack([norm.float() for norm in norms])
    return torch.stack([torch.linalg.vector_norm(grad.detach()).float().to(device, non_blocking=True) for grad in grads])


def gradient_signals(parameters: Iterable[torch.nn.Parameter]) -> dict[str, float]:
    """``optim.grad_norm_step``, ``optim.nonfinite_grads`` and ``optim.trainable_with_grad`` of this step.

    Call it between ``backward()`` and ``optimizer.step()``. It reads the numbers and so waits for the GPU; in a loop that
    must not wait, use `gradient_norm` with `trainvitals.integrations.later.Later`.
    """
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    values: dict[str, float] = {}
    if trainable:
        values["optim.trainable_with_grad"] = sum(parameter.grad is not None for parameter in trainable) / len(trainable)
    norms = parameter_norms(trainable)
    if norms is not None:
        values["optim.grad_norm_step"] = float(torch.linalg.vector_norm(norms))
        values["optim.nonfinite_grads"] = float((~torch.isfinite(norms)).sum())
    return values


def optimizer_signals(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """``optim.left_out_fraction``: what has a gradient and is in no group of the optimizer.

    Call it once between the first ``backward()`` and ``optimizer.step()``, and again after something was frozen or thawed.
    """
    return left_out([parameter for parameter in model.parameters() if parameter.requires_grad], optimizer)


def checkpoint_signals(model: torch.nn.Module, folder: str | Path) -> dict[str, float]:
    """``run.checkpoint_missing_fraction`` and ``run.checkpoint_differing_fraction``: what the files of safetensors in a folder hold of what is trained.

    Call it after the checkpoint was written, with the model as it was then, whole and in this process; log what it gives. Empty where it cannot be told.
    """
    return held(model, folder)


def memory_signals(device: int | torch.device | None = None, *, reset_peak: bool = True) -> dict[str, float]:
    """Memory of one CUDA device, in bytes and fractions; empty without CUDA. Does not synchronise.

    Call it between steps, after ``zero_grad(set_to_none=True)``: what is still allocated then is static (weights, optimizer
    state). Memory of other processes on the card counts as used and as static.

    Args:
        device: CUDA device; None is the current one.
        reset_peak: Start a new peak for the next step with ``torch.cuda.reset_peak_memory_stats``. Pass False where
            somebody else reads torch's peaks; peaks are then those of the whole run.
    """
    if not torch.cuda.is_available():
        return {}
    free, total = torch.cuda.mem_get_info(device)
    allocated = torch.cuda.memory_allocated(device)
    reserved = torch.cuda.memory_reserved(device)
    peak_reserved = torch.cuda.max_memory_reserved(device)
    values = {
        **_fractions(free=free, total=total, allocated=allocated, reserved=reserved, peak_reserved=peak_reserved),
        "memory.vram_total_bytes": float(total),
        "memory.vram_allocated_peak_bytes": float(torch.cuda.max_memory_allocated(device)),
        "memory.vram_reserved_bytes": float(reserved),
    }
    stats = torch.cuda.memory_stats(device)
    values["memory.vram_alloc_retries"] = float(stats.get("num_alloc_retries", 0))
    if reserved > 0:
        values["memory.vram_split_fraction"] = min(1.0, stats.get("inactive_split_bytes.all.current", 0) / reserved)
    if reset_peak:
        torch.cuda.reset_peak_memory_stats(device)
    return values


def _fractions(*, free: int, total: int, allocated: int, reserved: int, peak_reserved: int) -> dict[str, float]:
    """Used and static share of a card: ours by torch's counters, everybody else's by what the driver calls not free."""
    others = max(0, total - free - reserved)
    return {
        "memory.vram_used_fraction": min(1.0, (peak_reserved + others) / total),
        "memory.vram_static_fraction": min(1.0, (allocated + others) / total),
    }


def norm_signals(limit: float, *, clipped_before: bool) -> Callable[[list[torch.Tensor]], dict[str, float]]:
    """Gradient norm and whether it was clipped; after clipping, a norm at the limit (0.1 % tolerance) means that it was."""

    def compute(tensors: list[torch.Tensor]) -> dict[str, float]:
        norm = float(tensors[0])
        values = {"optim.grad_norm_step": norm}
        if limit > 0 and math.isfinite(norm):
            values["optim.clipped_step"] = float(norm > (0.999 * limit if clipped_before else limit))
        return values

    return compute
